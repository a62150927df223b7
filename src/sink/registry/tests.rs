//! The client against canned answers over real sockets, and the ids on disk.

use std::collections::VecDeque;
use std::fs;
use std::net::SocketAddr;
use std::sync::Mutex;

use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509NameBuilder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_native_tls::{TlsAcceptor, native_tls};

use super::*;
use crate::secret::Secret;
use crate::sink::record::schema::AVRO;

fn options(port: u16, folder: &std::path::Path) -> Options {
    Options {
        tls: false,
        host: "127.0.0.1".to_owned(),
        port,
        path: "/base".to_owned(),
        username: None,
        password: None,
        ca_file: None,
        timeout: Duration::from_secs(10),
        file: folder.join("SCHEMAS"),
    }
}

/// Answers one request per connection, in this order, and keeps the requests.
struct Canned {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    _task: JoinHandle<()>,
}

impl Canned {
    async fn start(answers: &[(u16, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let mut answers: VecDeque<_> =
            answers.iter().map(|(status, body)| (*status, (*body).to_owned())).collect();
        let kept = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            while let Some((status, body)) = answers.pop_front() {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !String::from_utf8_lossy(&request).ends_with('}') {
                    assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
                }
                kept.lock().unwrap().push(String::from_utf8(request).unwrap());
                let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { address, requests, _task: task }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_schema_that_is_there_is_not_registered_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Canned::start(&[(200, r#"{"subject":"t-value","id":7,"version":1,"schema":"{}"}"#)]).await;
    let options = Options {
        username: Some("u".to_owned()),
        password: Some(Password::Given(Secret::new("hush"))),
        ..options(server.address.port(), folder.path())
    };
    assert_eq!(client::schema_id(&options, "t-value").await.unwrap(), 7);
    let [request] = &server.requests()[..] else { panic!() };
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(head.starts_with("post /base/subjects/t-value http/1.1\r\n"), "{head}");
    assert!(head.contains("content-type: application/vnd.schemaregistry.v1+json"), "{head}");
    assert!(head.contains(&format!("host: {}", server.address)), "{head}");
    // "u:hush"
    assert!(request.contains("Basic dTpodXNo"), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body, serde_json::json!({ "schema": AVRO }));
}

#[tokio::test]
async fn a_schema_that_is_missing_is_registered() {
    let folder = tempfile::tempdir().unwrap();
    let missing = r#"{"error_code":40401,"message":"Subject 't-value' not found."}"#;
    let server = Canned::start(&[(404, missing), (200, r#"{"id":70000}"#)]).await;
    let options = options(server.address.port(), folder.path());
    assert_eq!(client::schema_id(&options, "t-value").await.unwrap(), 70_000);
    let paths: Vec<_> = server.requests().iter().map(|r| r.lines().next().unwrap().to_owned()).collect();
    assert_eq!(
        paths,
        ["POST /base/subjects/t-value HTTP/1.1", "POST /base/subjects/t-value/versions HTTP/1.1"]
    );
}

#[tokio::test]
async fn what_is_no_id_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    for (status, body, message) in [
        (
            401,
            r#"{"error_code":401,"message":"Un\nauthorized"}"#,
            "it answers 401: Un authorized; see schema_registry.username and schema_registry.password_file",
        ),
        (
            409,
            r#"{"error_code":409,"message":"incompatible"}"#,
            "it answers 409: incompatible; the subject holds a schema that does not fit: delete it or use another topic",
        ),
        (500, "<html>", "it answers 500: Internal Server Error; see schema_registry.url"),
    ] {
        let server = Canned::start(&[(status, body)]).await;
        let options = options(server.address.port(), folder.path());
        let error = client::schema_id(&options, "t-value").await.unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    for body in ["", "{}", r#"{"id":-1}"#, r#"{"id":4294967296}"#] {
        let server = Canned::start(&[(200, body)]).await;
        let options = options(server.address.port(), folder.path());
        let error = client::schema_id(&options, "t-value").await.unwrap_err().to_string();
        assert!(error.starts_with("it answers 200: not what a schema registry answers ("), "{error}");
    }
}

#[tokio::test]
async fn silence_and_endless_answers_end() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let options = Options { timeout: Duration::from_millis(50), ..options(port, folder.path()) };
    let error = client::schema_id(&options, "t-value").await.unwrap_err();
    assert_eq!(error.to_string(), "no answer within 50 ms (schema_registry.timeout)");
    drop(listener);
    let error = client::schema_id(&options, "t-value").await.unwrap_err().to_string();
    assert!(error.starts_with("cannot reach it: ") && error.contains("refused"), "{error}");
    let long = "x".repeat(300 << 10);
    let server = Canned::start(&[(200, &long)]).await;
    let options =
        Options { timeout: Duration::from_secs(10), port: server.address.port(), ..options.clone() };
    let error = client::schema_id(&options, "t-value").await.unwrap_err().to_string();
    assert_eq!(error, "cannot reach it: length limit exceeded");
}

/// A certificate for `localhost`, signed by itself, and its key, both PEM.
fn certificate() -> (Vec<u8>, Vec<u8>) {
    let key = PKey::from_ec_key(
        EcKey::generate(&EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap()).unwrap(),
    );
    let key = key.unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "registry").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
    let names = SubjectAlternativeName::new().dns("localhost").build(&builder.x509v3_context(None, None));
    builder.append_extension(names.unwrap()).unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    (builder.build().to_pem().unwrap(), key.private_key_to_pem_pkcs8().unwrap())
}

#[tokio::test]
async fn tls_trusts_the_given_certificate_for_its_name_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (pem, key) = certificate();
    let ca_file = folder.path().join("ca.pem");
    fs::write(&ca_file, &pem).unwrap();
    let identity = native_tls::Identity::from_pkcs8(&pem, &key).unwrap();
    let acceptor = TlsAcceptor::from(native_tls::TlsAcceptor::new(identity).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let _server = tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
            let mut request = Vec::new();
            while !request.ends_with(b"}") && stream.read_buf(&mut request).await.unwrap_or(0) > 0 {}
            drop(stream.write_all(b"HTTP/1.1 200 x\r\ncontent-length: 8\r\n\r\n{\"id\":9}").await);
        }
    });
    let trusting = Options {
        tls: true,
        host: "localhost".to_owned(),
        ca_file: Some(ca_file),
        ..options(port, folder.path())
    };
    assert_eq!(client::schema_id(&trusting, "t-value").await.unwrap(), 9);
    for refused in [
        Options { ca_file: None, ..trusting.clone() },
        Options { host: "127.0.0.1".to_owned(), ..trusting.clone() },
        Options { ca_file: Some(folder.path().join("missing.pem")), ..trusting.clone() },
    ] {
        let error = client::schema_id(&refused, "t-value").await.unwrap_err();
        assert!(matches!(error, RegistryError::Tls(_)), "{error}");
        assert!(error.to_string().ends_with("; see schema_registry.ca_file"), "{error}");
    }
}

#[tokio::test]
async fn an_id_is_kept_over_restarts_for_its_registry_alone() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(1, folder.path());
    let (mut registry, mut schemas) = Registry::open(options.clone());
    assert_eq!(schemas.id("t"), None);
    assert_eq!(registry.wanted.borrow_and_update().as_deref(), Some("t"));
    registry.keep("t".to_owned(), 7).await;
    tokio::time::timeout(Duration::from_secs(10), schemas.changed()).await.unwrap();
    assert_eq!((schemas.id("t"), schemas.id("u")), (Some(7), None));

    let reopened = |options: Options| Registry::open(options).1.id("t");
    assert_eq!(reopened(options.clone()), Some(7));
    assert_eq!(reopened(Options { port: 2, ..options.clone() }), None);
    let text = fs::read_to_string(&options.file).unwrap();
    let crc = crc32fast::hash(AVRO.as_bytes()).to_string();
    fs::write(&options.file, text.replace(&crc, "1")).unwrap();
    assert_eq!(reopened(options.clone()), None, "the id of another schema");
    fs::write(&options.file, &text[..text.len() / 2]).unwrap();
    assert_eq!(reopened(options), None, "a damaged file");
}

#[tokio::test]
async fn ids_are_bounded_and_a_disk_that_refuses_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (mut registry, mut schemas) = Registry::open(options(1, &folder.path().join("missing")));
    for n in 0..TOPICS_MAX {
        registry.known.send_modify(|ids| {
            Arc::make_mut(ids).insert(n.to_string(), 1);
        });
    }
    registry.keep("t".to_owned(), 7).await;
    assert_eq!((schemas.id("t"), registry.known.borrow().len()), (Some(7), 1));
}
