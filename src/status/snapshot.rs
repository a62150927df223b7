//! The fields of a status. What is there keeps its name and meaning: dashboards and scripts read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of [`Status`] as JSON. Fields are added without a new one; what is there keeps its name and meaning.
pub const VERSION: u32 = 1;

/// The agent at one moment. Counters count since its start, the ledger since it began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// Version of the program.
    pub program: String,
    /// `agent.id`.
    pub agent: String,
    /// Name of the buffer's log, a UUID.
    pub log: String,
    /// How often the buffer was opened.
    pub epoch: u32,
    /// Process id.
    pub pid: u32,
    /// The wall clock at this look, RFC 3339.
    pub time: String,
    /// Whether that clock is known to be synchronised.
    pub clock_trusted: bool,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// What came in.
    pub inputs: Inputs,
    /// What routes left out.
    pub routes: Left,
    /// What waits.
    pub buffer: Waiting,
    /// What went out, and the link there.
    pub kafka: Kafka,
    /// Pings.
    pub redis: Redis,
    /// The command of a long outage; an older agent has none.
    #[serde(default)]
    pub uplink: Uplink,
    /// The page and what belongs to it.
    pub http: LinkStatus,
    /// What was lost or refused, by reason; reasons that never came are left out.
    pub ledger: BTreeMap<String, Losses>,
    /// Acknowledged events that were lost, those included that are not in the ledger yet.
    pub lost: u64,
    /// Bytes of disk.
    pub disk: Disk,
    /// Bytes of memory.
    pub memory: Memory,
}

/// What came in, in events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// Events of all inputs, durable.
    pub events: u64,
    /// Of them by MQTT.
    pub mqtt_events: u64,
    /// Of them by the Unix socket.
    pub unix_events: u64,
    /// Events a second over the last minute.
    pub events_per_s: f64,
    /// Not taken: no event.
    pub invalid: u64,
    /// Not taken: above `limits.max_event_bytes`.
    pub too_large: u64,
    /// Not taken: no room, or not writable in time.
    pub refused: u64,
    /// QoS 0 publishes that found no room.
    pub mqtt_qos0_dropped: u64,
    /// Connections of the Unix socket that are open now.
    pub unix_connections: u64,
    /// The link to the MQTT broker.
    pub mqtt: LinkStatus,
}

/// What routes left out, in events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Left {
    /// By `drop`.
    pub dropped: u64,
    /// By `sample`.
    pub sampled_out: u64,
    /// By `report`.
    pub filtered: u64,
}

/// What waits in the buffer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// Events that are to be delivered.
    pub events: u64,
    /// Of them those of the backlog lane.
    pub backlog_events: u64,
    /// Position of the last durable event.
    pub durable_seq: u64,
    /// Everything up to here is delivered.
    pub cursor_seq: u64,
    /// Bytes of disk, everything counted.
    pub bytes: u64,
    /// `buffer.max_bytes`.
    pub max_bytes: u64,
    /// Generations on disk.
    pub generations: u64,
    /// How long the oldest event that is on its way to Kafka has waited; `None`: none waits, or it is of an earlier boot.
    pub oldest_age_s: Option<u64>,
    /// When nothing waits any more, in seconds, if it goes on as in the last minute; `None`: not at this pace.
    pub drained_in_s: Option<u64>,
    /// An append was held back or refused for want of room, and nothing was freed since.
    pub is_full: bool,
    /// Events can be appended.
    pub is_writable: bool,
}

/// What went to Kafka.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kafka {
    /// Events that Kafka confirmed.
    pub events: u64,
    /// Events a second over the last minute.
    pub events_per_s: f64,
    /// Times that the drain went back to send again.
    pub rewinds: u64,
    /// Transactions that were committed.
    pub transactions: u64,
    /// Events that went to the fallback topic.
    pub fallback_topic_events: u64,
    /// Events that Kafka rejected and that are dead letters.
    pub dead_lettered: u64,
    /// Dead letters that went for newer ones.
    pub dead_letters_evicted: u64,
    /// The link.
    #[serde(flatten)]
    pub link: LinkStatus,
}

/// What went to Redis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Redis {
    /// Pings that Redis answered.
    pub pings: u64,
    /// Pings that were dropped.
    pub pings_dropped: u64,
    /// Those, by reason; an older agent tells none.
    #[serde(default)]
    pub pings_dropped_by: Dropped,
    /// Pings in whose place a later one of the same source and type went.
    pub pings_coalesced: u64,
    /// Pings that were too old when their turn came.
    pub pings_stale: u64,
    /// Entries that Redis added to a stream.
    pub stream_entries: u64,
    /// Entries for streams that were dropped.
    pub stream_entries_dropped: u64,
    /// Those, by reason; an older agent tells none.
    #[serde(default)]
    pub stream_entries_dropped_by: Dropped,
    /// Entries for streams that were too old when their turn came.
    pub stream_entries_stale: u64,
    /// The link.
    #[serde(flatten)]
    pub link: LinkStatus,
}

/// What was dropped on its way to Redis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// More came than Redis took.
    pub queue_full: u64,
    /// There was no link, or no answer on it.
    pub link_down: u64,
    /// Redis answered with an error.
    pub refused: u64,
    /// It was for one more stream than may be.
    pub too_many_streams: u64,
}

/// What was done about long outages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Uplink {
    /// Times that `uplink.command` was started.
    pub commands: u64,
    /// Of them those that could not be run, ended with an error or took too long.
    pub failed: u64,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// `off`, `up`, `down` or `MISCONFIGURED`.
    pub state: String,
    /// For how long, in seconds; `None` before the first change.
    pub state_for_s: Option<u64>,
    /// What went wrong last.
    pub last_error: Option<LastError>,
}

/// What went wrong with a link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastError {
    /// In words.
    pub what: String,
    /// When, RFC 3339.
    pub at: String,
    /// How long ago, in seconds.
    pub ago_s: u64,
}

/// The last hour, a sample each ten seconds and one of this moment, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// At most 362.
    pub samples: Vec<Past>,
}

/// The agent at an earlier moment, in events.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Past {
    /// Seconds since the machine's start.
    pub at_s: u64,
    /// Taken since the agent's start.
    pub received: u64,
    /// Confirmed by Kafka since the agent's start.
    pub delivered: u64,
    /// Waiting.
    pub waiting: u64,
}

/// One reason of the ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// Events.
    pub events: u64,
    /// Whether they had been acknowledged.
    pub acknowledged: bool,
    /// When the first was counted, RFC 3339.
    pub first: String,
    /// When the last was counted, RFC 3339.
    pub last: String,
}

/// The disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    /// Free on the buffer's file system; `None`: it cannot be asked.
    pub free_bytes: Option<u64>,
    /// `buffer.min_free`.
    pub min_free: u64,
    /// Handed to the store since the start.
    pub stored_bytes: u64,
    /// Written by the device since the start, whoever asked for it; `None`: the kernel does not tell.
    pub device_bytes: Option<u64>,
}

/// The process's memory; `None`: the kernel does not tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Resident now.
    pub resident_bytes: Option<u64>,
    /// The most that was ever resident.
    pub peak_bytes: Option<u64>,
}
