//! A Schema Registry in the test itself, after its documented HTTP interface: look a schema up under a subject, register
//! it there. The same schema has the same id under every subject. It can be shut and opened again on its port.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value, json};

#[derive(Default)]
struct Content {
    /// By their texts.
    ids: BTreeMap<String, u64>,
    subjects: BTreeMap<String, Vec<String>>,
    /// Method and path of each request.
    requests: Vec<String>,
}

/// On drop it is shut.
pub(crate) struct Registry {
    address: SocketAddr,
    content: Arc<Mutex<Content>>,
    open: Option<Open>,
}

struct Open {
    is_shut: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Registry {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let mut registry = Self { address, content: Arc::default(), open: None };
        registry.serve(listener);
        registry
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections are refused from now on.
    pub(crate) fn shut(&mut self) {
        let Some(open) = self.open.take() else { return };
        open.is_shut.store(true, Ordering::Relaxed);
        // Wakes the one that accepts.
        drop(TcpStream::connect(self.address));
        open.thread.join().expect("the registry does not panic");
    }

    /// Open again, with what it held.
    pub(crate) fn reopen(&mut self) {
        let listener = TcpListener::bind(self.address).expect("the port is still free");
        self.serve(listener);
    }

    fn serve(&mut self, listener: TcpListener) {
        let (is_shut, content) = (Arc::<AtomicBool>::default(), Arc::clone(&self.content));
        let thread = std::thread::spawn({
            let is_shut = Arc::clone(&is_shut);
            move || {
                for stream in listener.incoming().flatten() {
                    if is_shut.load(Ordering::Relaxed) {
                        break;
                    }
                    // A client that goes away in the middle is no concern of the others.
                    drop(answer(&stream, &content));
                    drop(stream.shutdown(Shutdown::Both));
                }
            }
        });
        self.open = Some(Open { is_shut, thread });
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.content.lock().unwrap().requests.clone()
    }

    /// The text of the schema with this id.
    pub(crate) fn schema(&self, id: u32) -> Option<String> {
        let content = self.content.lock().unwrap();
        content.ids.iter().find(|(_, found)| **found == u64::from(id)).map(|(text, _)| text.clone())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.shut();
    }
}

fn answer(stream: &TcpStream, content: &Mutex<Content>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().to_ascii_lowercase().split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse().unwrap_or(0),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let words: Vec<&str> = first.split(' ').take(2).collect();
    let request = words.join(" ");
    let (status, answer) = content.lock().unwrap().answer(&request, &body);
    let text = answer.to_string();
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status} -\r\nContent-Type: application/vnd.schemaregistry.v1+json\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    )
}

impl Content {
    fn answer(&mut self, request: &str, body: &[u8]) -> (u16, Value) {
        self.requests.push(request.to_owned());
        let refused = |status: u16, code: u32, message: &str| {
            (status, json!({ "error_code": code, "message": message }))
        };
        let Some(path) = request.strip_prefix("POST /subjects/") else {
            return refused(405, 405, "HTTP 405 Method Not Allowed");
        };
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let Some(schema) = body["schema"].as_str() else {
            return refused(422, 42201, "Empty schema");
        };
        if let Err(error) = apache_avro::Schema::parse_str(schema) {
            return refused(422, 42201, &error.to_string());
        }
        if let Some(subject) = path.strip_suffix("/versions") {
            let next = self.ids.len() as u64 + 1000;
            let id = *self.ids.entry(schema.to_owned()).or_insert(next);
            let versions = self.subjects.entry(subject.to_owned()).or_default();
            if !versions.iter().any(|version| version == schema) {
                versions.push(schema.to_owned());
            }
            return (200, json!({ "id": id }));
        }
        let Some(versions) = self.subjects.get(path) else {
            return refused(404, 40401, &format!("Subject '{path}' not found."));
        };
        match versions.iter().position(|version| version == schema) {
            None => refused(404, 40403, "Schema not found"),
            Some(at) => {
                let id = self.ids[schema];
                (200, json!({ "subject": path, "id": id, "version": at + 1, "schema": schema }))
            }
        }
    }
}
