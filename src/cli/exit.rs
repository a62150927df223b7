//! Exit codes, by sysexits(3). The unit file knows them: 64 and 78 are not tried again.

/// What was asked about is there and not as it should be.
pub const UNHEALTHY: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 64;
/// Something in the data is wrong: lines that are no events, a damaged buffer.
pub const DATA: u8 = 65;
/// The input cannot be read.
pub const NO_INPUT: u8 = 66;
/// No agent listens on the socket.
pub const UNAVAILABLE: u8 = 69;
/// A bug: a stage ended that should not.
pub const BUG: u8 = 70;
/// The buffer's directory, the socket's folder or standard output cannot be used.
pub const STORAGE: u8 = 74;
/// A service is not reachable: the same may work later.
pub const TEMPORARY: u8 = 75;
/// The configuration is invalid.
pub const CONFIG: u8 = 78;
