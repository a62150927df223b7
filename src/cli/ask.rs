//! A question before something is gone for good.

use std::io::{self, IsTerminal as _, Write as _};

/// Whether somebody is there to be asked.
pub(in crate::cli) fn is_possible() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks on the terminal; anything but a yes is a no.
pub(in crate::cli) fn is_agreed(question: &str) -> bool {
    let mut out = io::stderr().lock();
    let mut answer = String::new();
    let asked = out.write_all(format!("{question} [y/N] ").as_bytes()).and_then(|()| out.flush());
    let heard = asked.and_then(|()| io::stdin().read_line(&mut answer));
    heard.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}
