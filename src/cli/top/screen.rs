//! The terminal: its size, what is drawn on it, and that it is afterwards as it was before.

use std::io::{self, IsTerminal as _, Write as _};

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

/// How a piece of text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Strong,
    Faint,
    Good,
    Bad,
}

impl Tone {
    /// The terminal's number for it.
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Good => "32",
            Self::Bad => "1;31",
        }
    }
}

/// A line in pieces.
pub(super) type Line = Vec<(Tone, String)>;

/// The lines without tones, as they are printed.
pub(super) fn plain(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines {
        let whole: String = line.iter().map(|(_, text)| text.as_str()).collect();
        text.push_str(whole.trim_end());
        text.push('\n');
    }
    text
}

/// Columns and lines of the terminal of standard output; `None`: it is none, or it does not know.
pub(super) fn size() -> Option<(usize, usize)> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col.into(), size.ws_row.into()))
}

/// A page of its own on the terminal, without a cursor; dropping it brings back what was there before.
pub(super) struct Screen {
    /// How keys were read before.
    keys: Option<Termios>,
    has_colours: bool,
}

impl Screen {
    pub(super) fn open() -> Self {
        let keys = io::stdin().is_terminal().then(io::stdin).and_then(|stdin| {
            let before = tcgetattr(&stdin).ok()?;
            let mut keys = before.clone();
            // A key comes at once and is not shown.
            keys.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON);
            keys.special_codes[SpecialCodeIndex::VMIN] = 1;
            tcsetattr(&stdin, OptionalActions::Now, &keys).ok()?;
            Some(before)
        });
        // By no-color.org.
        let has_colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let screen = Self { keys, has_colours };
        // A terminal that is gone shows at the first drawing.
        let _ = write("\x1b[?1049h\x1b[?25l");
        screen
    }

    /// Whether somebody can press a key.
    pub(super) fn has_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// Draws over what was there: nothing is wiped before it is written again, so that nothing flickers.
    pub(super) fn draw(&mut self, lines: &[Line]) -> io::Result<()> {
        let mut text = "\x1b[H".to_owned();
        for (number, line) in lines.iter().enumerate() {
            if number > 0 {
                text.push_str("\r\n");
            }
            for (tone, piece) in line {
                match (*tone, self.has_colours) {
                    (Tone::Plain, _) | (_, false) => text.push_str(piece),
                    (tone, true) => {
                        text.push_str(&format!("\x1b[{}m{piece}\x1b[{}m", tone.code(), Tone::Plain.code()));
                    }
                }
            }
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        write(&text)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write("\x1b[?25h\x1b[?1049l");
        if let Some(keys) = &self.keys {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, keys);
        }
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
