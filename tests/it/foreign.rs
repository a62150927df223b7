//! Records that others write, with bytes that no client library lets through.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::harness::agent::Agent;
use crate::harness::kafka::create_topic;
use crate::harness::services::Shared;
use crate::harness::wait::{USUAL, scaled};

/// CRC-32C (Castagnoli), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// A length as a varint; they are short here.
fn varint(length: usize) -> u8 {
    u8::try_from(length * 2).ok().filter(|byte| *byte < 128).expect("a single byte")
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&i16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&i32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// A batch of one record, in the format of magic 2.
fn batch(value: &[u8], headers: &[(&[u8], &[u8])]) -> Vec<u8> {
    // Attributes, time and offset from the batch's, no key.
    let mut record = vec![0, 0, 0, 1, varint(value.len())];
    record.extend(value);
    record.push(varint(headers.len()));
    for (name, value) in headers {
        record.push(varint(name.len()));
        record.extend(*name);
        record.push(varint(value.len()));
        record.extend(*value);
    }
    let mut checked = Vec::new();
    checked.extend([0; 2 + 4 + 8 + 8]);
    // No producer id, epoch and sequence; one record.
    checked.extend([0xff; 8 + 2 + 4]);
    checked.extend(1_i32.to_be_bytes());
    checked.push(varint(record.len()));
    checked.extend(record);
    let mut inner = (-1_i32).to_be_bytes().to_vec();
    inner.push(2);
    inner.extend(crc32c(&checked).to_be_bytes());
    inner.extend(checked);
    [&[0; 8][..], &long(&inner)].concat()
}

/// Produce in version 3, to partition 0.
fn produce(broker: &str, topic: &str, batch: &[u8]) {
    let mut request = [0_i16.to_be_bytes(), 3_i16.to_be_bytes()].concat();
    request.extend(7_i32.to_be_bytes());
    request.extend(text(b"it"));
    // No transaction; acknowledged by all, within 10 s.
    request.extend((-1_i16).to_be_bytes());
    request.extend((-1_i16).to_be_bytes());
    request.extend(10_000_i32.to_be_bytes());
    request.extend(1_i32.to_be_bytes());
    request.extend(text(topic.as_bytes()));
    request.extend(1_i32.to_be_bytes());
    request.extend(0_i32.to_be_bytes());
    request.extend(long(batch));
    let mut stream = TcpStream::connect(broker).unwrap();
    stream.set_read_timeout(Some(scaled(USUAL))).unwrap();
    stream.write_all(&long(&request)).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut answer).unwrap();
    // Correlation, topics, name, partitions, partition, error.
    let error = 4 + 4 + 2 + topic.len() + 4 + 4;
    assert_eq!(answer[error..error + 2], [0, 0], "{answer:?}");
}

#[test]
fn a_header_whose_name_is_no_text_does_not_end_tail() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    let broker = &Shared::get().kafka;
    let topic = create_topic(broker, 1);
    let headers: [(&[u8], &[u8]); 3] =
        [(b"fieldpost-id", b"e1"), (b"\xff\xfe", b"x"), (b"fieldpost-type", b"t")];
    produce(broker, &topic, &batch(b"1", &headers));
    let agent = Agent::prepare(|config| {
        config.shared_kafka(&topic);
    });
    let words = ["tail", "--from", "kafka", "--json", "--offset", "beginning", "--until", "end"];
    let output = agent.command(&words).output().unwrap();
    let (shown, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && !said.contains("panick"), "{} {said}", output.status);
    assert!(shown.contains(r#""id":"e1""#) && shown.contains(r#""type":"t""#), "{shown}");
}
