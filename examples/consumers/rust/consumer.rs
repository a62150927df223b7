//! Prints every event of a fieldpost topic once: consumer BROKERS TOPIC GROUP, until SIGTERM.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;

use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::signal::unix::{SignalKind, signal};

/// The brokers' `offset.metadata.max.bytes`: nobody would hear of a commit in the background that is refused.
const METADATA_BYTES_MAX: usize = 4096;

/// By lane of a log: the last position (epoch, seq).
type Positions = BTreeMap<String, (u64, u64)>;

fn advance(positions: &mut Positions, lane: &str, position: (u64, u64)) -> bool {
    let is_new = positions.get(lane).is_none_or(|known| position > *known);
    if is_new {
        positions.insert(lane.to_owned(), position);
    }
    is_new
}

fn is_new(positions: &mut Positions, message: &BorrowedMessage<'_>) -> Result<bool, Box<dyn Error>> {
    let header = |name| message.headers()?.iter().find(|header| header.key == name)?.value;
    let text = |name| std::str::from_utf8(header(name).unwrap_or_default());
    if header("fieldpost-log").is_none() {
        return Ok(true); // not written by fieldpost
    }
    let position = (text("fieldpost-epoch")?.parse()?, text("fieldpost-seq")?.parse()?);
    let lane = if header("fieldpost-backlog").is_some() { "+backlog" } else { "" };
    Ok(advance(positions, &format!("{}{lane}", text("fieldpost-log")?), position))
}

/// Positions only grow, so of what is known here and what was committed the greater one is the later one.
fn recall(positions: &mut Positions, metadata: &str) -> Result<(), Box<dyn Error>> {
    for word in metadata.split_whitespace() {
        let mut parts = word.splitn(3, ':');
        let mut part = || parts.next().ok_or("positions are lane:epoch:seq");
        advance(positions, part()?, (part()?.parse()?, part()?.parse()?));
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, brokers, topic, group] = arguments.as_slice() else { return Err("BROKERS TOPIC GROUP".into()) };
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        // What was stored is committed each second, when a partition moves, and at the end.
        .set("enable.auto.offset.store", "false")
        .set("auto.commit.interval.ms", "1000")
        .create()?;
    consumer.subscribe(&[topic])?;
    // By partition: the offset that is next, and the positions before it.
    let mut last: BTreeMap<i32, (i64, Positions)> = BTreeMap::new();
    let mut stop = signal(SignalKind::terminate())?;
    let mut results = std::io::stdout();
    loop {
        let message = tokio::select! {
            message = consumer.recv() => message?,
            _ = stop.recv() => return Ok(()),
        };
        let at = |offset, metadata: &str| {
            let mut list = TopicPartitionList::new();
            let mut place = list.add_partition(topic, message.partition());
            place.set_offset(offset)?;
            place.set_metadata(metadata);
            Ok::<_, rdkafka::error::KafkaError>(list)
        };
        let (next, positions) = last.entry(message.partition()).or_default();
        if *next != message.offset() {
            // New here, or back from another consumer.
            let committed =
                consumer.committed_offsets(at(Offset::Invalid, "")?, std::time::Duration::from_secs(30))?;
            for place in committed.elements() {
                recall(positions, place.metadata())?;
            }
        }
        if is_new(positions, &message)? {
            results.write_all(message.payload().unwrap_or_default())?; // the result: put your own work here
            results.write_all(b"\n")?;
        }
        results.flush()?; // results first, then offset and positions, which go into one commit
        *next = message.offset() + 1;
        let words: Vec<String> =
            positions.iter().map(|(lane, (epoch, seq))| format!("{lane}:{epoch}:{seq}")).collect();
        let words = words.join(" ");
        if words.len() > METADATA_BYTES_MAX {
            return Err("too many logs for the brokers' offset.metadata.max.bytes".into());
        }
        consumer.store_offsets(&at(Offset::Offset(*next), &words)?)?;
    }
}
