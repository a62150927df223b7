//! The commands, one file or folder each. They parse, ask the library to act, and turn the outcome into an exit code.

pub mod send;
