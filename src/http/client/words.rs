//! Server-sent events out of the bytes as they come. Pure.

use std::collections::VecDeque;

/// Most bytes of a word: more than the largest event takes as JSON.
const WORD_BYTES_MAX: usize = 32 << 20;

/// What a stream says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Word {
    /// `message` if the stream does not say otherwise.
    pub kind: String,
    /// The position to come back to.
    pub id: Option<String>,
    /// What it says.
    pub data: String,
}

/// A stream that has been read up to somewhere within a line.
#[derive(Debug, Default)]
pub(super) struct Words {
    line: Vec<u8>,
    word: Word,
    has_data: bool,
    /// The line before ended with a carriage return: a line feed that follows belongs to it.
    is_behind_return: bool,
}

impl Words {
    /// Takes the next bytes; what is complete goes to the end of `words`.
    ///
    /// # Errors
    /// In words: a word is larger than any.
    pub(super) fn take(&mut self, bytes: &[u8], words: &mut VecDeque<Word>) -> Result<(), String> {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let (part, behind) = rest.split_at(end);
            let is_rest_of_end = self.is_behind_return && end == 0 && behind.starts_with(b"\n");
            self.is_behind_return = behind.starts_with(b"\r");
            rest = behind.get(1..).unwrap_or_default();
            if is_rest_of_end {
                continue;
            }
            self.line.extend_from_slice(part);
            self.end_line(words);
        }
        self.is_behind_return &= rest.is_empty();
        self.line.extend_from_slice(rest);
        if self.line.len() + self.word.data.len() > WORD_BYTES_MAX {
            return Err(format!("a word of more than {WORD_BYTES_MAX} bytes"));
        }
        Ok(())
    }

    fn end_line(&mut self, words: &mut VecDeque<Word>) {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        if line.is_empty() {
            let mut word = std::mem::take(&mut self.word);
            if std::mem::take(&mut self.has_data) {
                if word.kind.is_empty() {
                    "message".clone_into(&mut word.kind);
                }
                words.push_back(word);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.word.kind),
            "id" => self.word.id = Some(value.to_owned()),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.word.data.push('\n');
                }
                self.word.data.push_str(value);
            }
            // Comments have an empty field; `retry` is for browsers.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = "retry: 2000\n\nid: 3-1\ndata: {\"a\": \"b:c\"}\n\n: nothing new\n\nevent: gap\ndata: one\ndata: two\n\n\
                          id: 3-2\r\ndata:é\r\n\r\ndata: cut";

    fn word(kind: &str, id: Option<&str>, data: &str) -> Word {
        Word { kind: kind.into(), id: id.map(Into::into), data: data.into() }
    }

    proptest! {
        #[test]
        fn words_come_wherever_the_stream_is_cut(mut cuts in proptest::collection::vec(0..STREAM.len(), 0..20)) {
            cuts.sort_unstable();
            let (mut words, mut found, mut from) = (Words::default(), VecDeque::new(), 0);
            for to in cuts.into_iter().chain([STREAM.len()]) {
                words.take(&STREAM.as_bytes()[from..to], &mut found).unwrap();
                from = to;
            }
            let wanted = [
                word("message", Some("3-1"), "{\"a\": \"b:c\"}"),
                word("gap", None, "one\ntwo"),
                word("message", Some("3-2"), "é"),
            ];
            prop_assert_eq!(Vec::from(found), wanted);
        }
    }

    #[test]
    fn a_word_has_a_limit() {
        let (mut words, mut found) = (Words::default(), VecDeque::new());
        let part = vec![b'x'; WORD_BYTES_MAX / 2 + 1];
        assert!(words.take(&part, &mut found).is_ok());
        assert!(words.take(&part, &mut found).is_err());
    }
}
