//! The ways out. A sink is told what to send and reports what became of it; it never sees the buffer.

pub mod kafka;
pub mod kafka_probe;
pub mod redis;
