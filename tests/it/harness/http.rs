//! A client of the agent's HTTP interface. It speaks HTTP/1.0, so that a stream comes as it is and ends with its connection.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::agent::Agent;
use super::wait::{USUAL, scaled};

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|problem| panic!("{problem}: {self:?}"))
    }
}

/// Where an agent with `http.listen = "127.0.0.1:0"` listens.
#[track_caller]
pub(crate) fn address_of(agent: &Agent) -> String {
    let line = agent.wait_log("HTTP is served", USUAL);
    let (_, address) = line.split_once("listen=").expect("the line says where");
    let port = address.rsplit_once(':').expect("an address has a port").1.trim();
    format!("127.0.0.1:{port}")
}

/// Asks and reads the answer to its end.
#[track_caller]
pub(crate) fn get(address: &str, path: &str) -> Answer {
    ask(address, &format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n"))
}

/// As [`get`], with a token.
#[track_caller]
pub(crate) fn get_with_token(address: &str, path: &str, token: &str) -> Answer {
    ask(address, &format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\r\n"))
}

/// Sends `request` as it is.
#[track_caller]
pub(crate) fn ask(address: &str, request: &str) -> Answer {
    let mut stream = connect(address);
    // One that is refused may be closed before it is read to its end.
    let _ = stream.write_all(request.as_bytes());
    let mut reader = BufReader::new(stream);
    let (status, headers) = head(&mut reader);
    let mut body = Vec::new();
    let _ = reader.read_to_end(&mut body);
    Answer { status, headers, body: String::from_utf8(body).expect("the answer is text") }
}

#[track_caller]
pub(crate) fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the agent listens");
    stream.set_read_timeout(Some(scaled(USUAL))).expect("it is above zero");
    stream
}

#[track_caller]
fn head(reader: &mut BufReader<TcpStream>) -> (u16, BTreeMap<String, String>) {
    let mut line = String::new();
    reader.read_line(&mut line).expect("an answer comes");
    let status = line.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status in {line:?}"));
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line).expect("the headers end");
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    (status, headers)
}

/// A word of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Word {
    /// `message` unless it says otherwise.
    pub(crate) kind: String,
    pub(crate) id: Option<String>,
    pub(crate) data: Value,
}

/// A stream that is read.
pub(crate) struct EventStream {
    reader: BufReader<TcpStream>,
}

impl EventStream {
    /// Follows `path`, from behind `last` if there is one.
    #[track_caller]
    pub(crate) fn open(address: &str, path: &str, last: Option<&str>) -> Self {
        let mut stream = connect(address);
        let last = last.map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n{last}\r\n").expect("the agent reads");
        let mut reader = BufReader::new(stream);
        let (status, headers) = head(&mut reader);
        assert_eq!((status, headers["content-type"].as_str()), (200, "text/event-stream"));
        Self { reader }
    }

    /// The next word; `None` at the end of the stream.
    #[track_caller]
    pub(crate) fn next(&mut self) -> Option<Word> {
        let (mut kind, mut id, mut data) = ("message".to_owned(), None, String::new());
        let deadline = Instant::now() + scaled(USUAL);
        let mut line = String::new();
        loop {
            assert!(Instant::now() < deadline, "no word in time");
            line.clear();
            match self.reader.read_line(&mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("reading the stream: {error}"),
            }
            match line.trim_end_matches('\n').split_once(": ") {
                Some(("event", value)) => kind = value.to_owned(),
                Some(("id", value)) => id = Some(value.to_owned()),
                Some(("data", value)) => data = value.to_owned(),
                // Comments, `retry`.
                Some(_) => {}
                None if data.is_empty() => {}
                None => {
                    let data = serde_json::from_str(&data).expect("data is JSON");
                    return Some(Word { kind, id, data });
                }
            }
        }
    }

    /// The next so many events; nothing else may come before them.
    #[track_caller]
    pub(crate) fn events(&mut self, count: usize) -> Vec<Word> {
        (0..count)
            .map(|number| {
                let word = self.next().unwrap_or_else(|| panic!("the stream ended behind {number} events"));
                assert_eq!(word.kind, "message", "{word:?}");
                word
            })
            .collect()
    }

    /// Does not read any more, and keeps the connection.
    pub(crate) fn abandon(self) -> TcpStream {
        let stream = self.reader.into_inner();
        let _ = stream.shutdown(Shutdown::Write);
        stream
    }

    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.reader.get_ref().set_read_timeout(Some(scaled(patience))).expect("it is above zero");
    }
}
