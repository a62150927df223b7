//! Kafka through librdkafka: the only file that names rdkafka.

use crate::secret::Secret;

/// Compression of record batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As they are.
    None,
    /// Fast; the default.
    Lz4,
    /// Smaller on a thin line, more CPU.
    Zstd,
}

/// Which time a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timestamp {
    /// The time of sending: retention counts from the arrival in Kafka (librdkafka 1238, openmeter 5005).
    Send,
    /// The event's own time.
    Event,
}

/// How Kafka is reached and what records look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `host:port`, several separated by commas.
    pub brokers: String,
    /// Topic, may hold `{source_type}`.
    pub topic: String,
    /// Compression of record batches.
    pub compression: Compression,
    /// Which time a record carries.
    pub timestamp: Timestamp,
    /// Further librdkafka properties, checked against the ones that the promise rests on.
    pub properties: Vec<(String, String)>,
    /// Most bytes of records in librdkafka's queue (`queue.buffering.max.kbytes`).
    pub queue_bytes_max: usize,
    /// Largest record in bytes, the largest event in its envelope (`message.max.bytes`).
    pub record_bytes_max: usize,
    /// Properties that are secret, by librdkafka's names (`sasl.password`, `ssl.key.password`).
    pub secrets: Vec<(&'static str, Secret)>,
}
