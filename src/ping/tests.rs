//! What a ping carries, and how it is offered.

use super::*;
use crate::event::{EventId, Payload, Stamp, Way};

fn event() -> Event<'static> {
    Event {
        id: EventId::Given("e \"1\""),
        kind: "reading",
        source_type: "thermometer",
        source_id: "t-1",
        timestamp: None,
        received: Stamp { wall_us: 0, boot_us: 0, clock_trusted: true },
        payload: Payload::Json("1"),
        way: Way::USUAL,
    }
}

fn template(text: &str) -> ChannelTemplate {
    ChannelTemplate::parse(text).unwrap()
}

fn published(channel: &str) -> Plan {
    Plan { channel: Some(template(channel)), aggregate: None, stream: None }
}

fn streamed(payload_bytes_max: Option<usize>) -> Plan {
    let stream = StreamPlan { name: template("events:{type}"), payload_bytes_max };
    Plan { channel: None, aggregate: None, stream: Some(stream) }
}

fn room(bytes: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(bytes))
}

fn pings(plan: Plan, queue_max: usize) -> (Pings, mpsc::Receiver<Ping>) {
    let (queue, received) = mpsc::channel(queue_max);
    (Pings { queue, plan: Arc::new(plan), room: room(0), stats: Arc::default() }, received)
}

fn channels(ping: &Ping) -> Vec<&str> {
    ping.channels().map(|channel| std::str::from_utf8(channel).unwrap()).collect()
}

#[test]
fn a_full_queue_drops_and_counts_each_kind() {
    for (plan, counted) in [(published("c"), (2, 0)), (streamed(None), (0, 2))] {
        let (pings, mut received) = pings(plan, 2);
        pings.offer([event(), event(), event(), event()].into_iter());
        let stats = &pings.stats;
        assert_eq!(
            (stats.pings_dropped.queue_full.get(), stats.stream_entries_dropped.queue_full.get()),
            counted
        );
        assert!(received.try_recv().is_ok());
    }
}

fn numbered(outbox: &Outbox, kind: &'static str) -> Ping {
    outbox.make(&Event { kind, ..event() }).unwrap()
}

#[tokio::test]
async fn what_comes_all_at_once_waits_for_room_in_its_order_and_the_rest_is_counted() {
    let (pings, mut received) = pings(published("{type}"), 2);
    let stats = Arc::clone(&pings.stats);
    let mut outbox = Outbox::new(pings, 3);
    for kind in ["1", "2", "3", "4", "5", "6"] {
        outbox.offer(numbered(&outbox, kind));
    }
    assert_eq!(stats.pings_dropped.get(), 1);
    let mut next = || channels(&received.try_recv().unwrap()).concat();
    assert_eq!([next(), next()], ["1", "2"]);
    outbox.hand_over().await;
    // It does not overtake those that wait.
    outbox.offer(numbered(&outbox, "7"));
    assert_eq!([next(), next()], ["3", "4"]);
    assert!(!outbox.is_empty());
    outbox.hand_over().await;
    assert!(outbox.is_empty());
    assert_eq!([next(), next()], ["5", "7"]);
    assert_eq!(stats.pings_dropped.get(), 1);
}

#[tokio::test]
async fn what_nobody_takes_is_counted_and_not_waited_for() {
    for is_closed in [false, true] {
        let (pings, received) = pings(published("c"), 1);
        let stats = Arc::clone(&pings.stats);
        let mut outbox = Outbox::new(pings, 9);
        for _ in 0..5 {
            outbox.offer(numbered(&outbox, "t"));
        }
        if is_closed {
            drop(received);
            outbox.hand_over().await;
            assert!(outbox.is_empty());
        }
        outbox.close();
        assert_eq!(stats.pings_dropped.get(), 4);
    }
}

#[test]
fn a_quiet_event_has_no_ping() {
    let (pings, mut received) = pings(published("{type}"), 2);
    let quiet = Event { kind: "quiet", way: Way { topic: None, is_quiet: true }, ..event() };
    pings.offer([quiet, event(), quiet].into_iter());
    assert_eq!(channels(&received.try_recv().unwrap()), ["reading"]);
    assert!(received.try_recv().is_err() && pings.stats.pings_dropped.get() == 0);
    let outbox = Outbox::new(pings, 0);
    assert!(outbox.make(&quiet).is_none() && outbox.make(&event()).is_some());
}

#[test]
fn a_ping_is_three_fields_on_the_events_channels() {
    let plan = Plan {
        channel: Some(template("events:{source_type}:{source_id}")),
        aggregate: Some(template("all.{type}.x")),
        stream: None,
    };
    let ping = plan.ping(&event(), Instant::now(), &room(0));
    assert_eq!(channels(&ping), ["events:thermometer:t-1", "all.reading.x"]);
    assert_eq!(ping.message(), br#"{"id":"e \"1\"","type":"reading","source_id":"t-1"}"#);
    assert_eq!((ping.stream(), ping.payload()), (None, (Carried::Unwanted, &b""[..])));
    let aggregate = Plan { channel: None, ..plan }.ping(&event(), Instant::now(), &room(0));
    assert_eq!(channels(&aggregate), ["all.reading.x"]);
    assert_eq!(aggregate.message(), ping.message());
}

#[test]
fn an_entry_has_its_fields_and_nothing_is_published() {
    let ping = streamed(None).ping(&event(), Instant::now(), &room(0));
    assert_eq!(ping.stream(), Some(&b"events:reading"[..]));
    assert_eq!((channels(&ping).len(), ping.message()), (0, &b""[..]));
    let fields = ping.fields().map(|(name, value)| (name, std::str::from_utf8(value).unwrap()));
    assert_eq!(
        fields,
        [
            ("event_type", "reading"),
            ("aggregate_id", "t-1"),
            ("source_type", "thermometer"),
            ("id", "e \"1\""),
            ("timestamp", "1970-01-01T00:00:00.000000Z"),
        ]
    );
}

#[test]
fn payloads_take_room_while_their_ping_lives_and_are_left_out_without() {
    let room = room(8);
    let of = |payload| streamed(Some(6)).ping(&Event { payload, ..event() }, Instant::now(), &room);
    let json = of(Payload::Json("[1,2]"));
    assert_eq!(json.payload(), (Carried::Json, &b"[1,2]"[..]));
    assert_eq!(of(Payload::Json("[1,2,3]")).payload(), (Carried::TooLarge(7), &b""[..]));
    assert_eq!(of(Payload::Bytes(&[0; 4])).payload(), (Carried::NoRoom(4), &b""[..]));
    drop(json);
    let bytes = of(Payload::Bytes(&[0, 255, 1, 2]));
    assert_eq!((bytes.payload(), room.available_permits()), ((Carried::Base64, &b"AP8BAg=="[..]), 0));
    assert_eq!(bytes.fields().map(|(_, value)| value.len()), [7, 3, 11, 5, 27]);
}

#[test]
fn without_a_stream_a_ping_is_published_alike_and_holds_no_payload() {
    let room = room(8);
    let plan = Plan { stream: streamed(Some(8)).stream, ..published("c") };
    let ping = plan.ping(&event(), Instant::now(), &room);
    let bare = ping.without_stream();
    assert_eq!((bare.message(), bare.subject()), (ping.message(), ping.subject()));
    assert_eq!((channels(&bare), bare.stream(), bare.payload().1), (channels(&ping), None, &b""[..]));
    assert!(bare.text.len() < ping.text.len());
    drop(ping);
    assert_eq!(room.available_permits(), 8);
}

#[test]
fn a_subject_is_a_source_and_a_type() {
    let of = |kind, source_type, source_id| {
        let event = Event { kind, source_type, source_id, ..event() };
        published("c").ping(&event, Instant::now(), &room(0)).subject()
    };
    assert_eq!(of("a", "b", "c"), of("a", "b", "c"));
    for other in [of("a", "b", "d"), of("a", "x", "c"), of("x", "b", "c")] {
        assert_ne!(of("a", "b", "c"), other);
    }
    assert_ne!(of("ab", "c", "d"), of("a", "bc", "d"));
}

#[test]
fn a_ping_without_escapes_is_one_allocation_of_its_size() {
    let plan = Plan { stream: streamed(None).stream, ..published("events:{source_id}") };
    let event = Event { id: EventId::Given("1"), ..event() };
    assert_eq!(plan.ping(&event, Instant::now(), &room(0)).text.len(), plan.length(&event, "1"));
}

#[test]
fn channel_templates_are_checked_and_have_a_pattern() {
    for bad in ["", "events:{id}", "events:{source_id", "{}"] {
        assert!(ChannelTemplate::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(template("a*[{type}]?\\:{source_id}").pattern(), "a\\*\\[*\\]\\?\\\\:*");
}
