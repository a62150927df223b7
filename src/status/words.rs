//! A status in words: the line for the log and the service manager, and what is wrong.

use std::fmt::Write as _;

use super::{Left, LinkStatus, Redis, Status};

impl Status {
    /// The links to the services, by name.
    pub fn links(&self) -> [(&'static str, &LinkStatus); 3] {
        [("mqtt", &self.inputs.mqtt), ("kafka", &self.kafka.link), ("redis", &self.redis.link)]
    }

    /// What goes in, what waits, what went out, in one line: for the log and the service manager.
    pub fn line(&self) -> String {
        let Self { inputs, buffer, kafka, .. } = self;
        let backlog = match buffer.backlog_events {
            0 => String::new(),
            events => format!(" ({events} backlog)"),
        };
        let mut line = format!(
            "in {} (mqtt {}, unix {}), refused {}, buffered {} events{backlog} in {} KiB, oldest {} s, out {}, lost {}",
            inputs.events,
            inputs.mqtt_events,
            inputs.unix_events,
            inputs.refused + inputs.invalid + inputs.too_large,
            buffer.events,
            buffer.bytes / 1024,
            buffer.oldest_age_s.unwrap_or(0),
            kafka.events,
            self.lost,
        );
        // Writing to a String cannot fail.
        let mut add = |text: std::fmt::Arguments<'_>| {
            let _ = line.write_fmt(text);
        };
        let lost = self.ledger.iter().filter(|(_, losses)| losses.acknowledged);
        let reasons: Vec<_> = lost.map(|(reason, losses)| format!("{reason} {}", losses.events)).collect();
        if !reasons.is_empty() {
            add(format_args!(" ({})", reasons.join(", ")));
        }
        if kafka.fallback_topic_events > 0 {
            add(format_args!(", {} to the fallback topic", kafka.fallback_topic_events));
        }
        let Left { dropped, sampled_out, filtered } = self.routes;
        let by_route = [("dropped", dropped), ("sampled out", sampled_out), ("filtered", filtered)];
        for (word, events) in by_route.iter().filter(|(_, events)| *events > 0) {
            add(format_args!(", {word} {events}"));
        }
        if self.disk.stored_bytes > 0 {
            add(format_args!(", stored {} KiB", self.disk.stored_bytes / 1024));
            if let Some(bytes) = self.disk.device_bytes {
                add(format_args!(" (device wrote {} KiB)", bytes / 1024));
            }
        }
        if buffer.is_full {
            add(format_args!(", FULL"));
        }
        if !buffer.is_writable {
            add(format_args!(", NOT WRITABLE"));
        }
        if self.redis.link.is_on() {
            add(format_args!("{}", self.redis.words()));
        }
        for (name, link) in self.links() {
            add(format_args!(", {name} {}", link.state));
        }
        if self.http.is_on() {
            add(format_args!(", http {}", self.http.state));
        }
        line
    }

    /// Why no data moves, or soon will not, each in words; empty when all is well. `age_max_s`: how long an event may wait.
    pub fn troubles(&self, age_max_s: u64) -> Vec<String> {
        let mut troubles = Vec::new();
        let links = [("mqtt", &self.inputs.mqtt), ("kafka", &self.kafka.link)];
        for (name, link) in links.into_iter().filter(|(_, link)| link.is_on() && !link.is_up()) {
            let since = link.state_for_s.map_or_else(String::new, |s| format!(" for {s} s"));
            let why = link.last_error.as_ref().map_or_else(String::new, |error| format!(": {}", error.what));
            troubles.push(format!("{name} is {}{since}{why}", link.state));
        }
        if let Some(age_s) = self.buffer.oldest_age_s.filter(|age_s| *age_s > age_max_s) {
            troubles.push(format!("the oldest event has waited for {age_s} s"));
        }
        if self.buffer.is_full {
            troubles.push("the buffer is full".to_owned());
        }
        if !self.buffer.is_writable {
            troubles.push("the buffer cannot be written".to_owned());
        }
        if let Some(free) = self.disk.free_bytes.filter(|free| *free < self.disk.min_free) {
            troubles.push(format!(
                "{free} bytes are free on the disk, buffer.min_free is {}",
                self.disk.min_free
            ));
        }
        troubles
    }
}

impl Redis {
    /// For the status line.
    fn words(&self) -> String {
        let mut words = format!(", pings {} (dropped {})", self.pings, self.pings_dropped);
        let (added, dropped) = (self.stream_entries, self.stream_entries_dropped);
        if added + dropped > 0 {
            // Writing to a String cannot fail.
            let _ = write!(words, ", stream entries {added} (dropped {dropped})");
        }
        for (word, count) in [
            ("pings coalesced", self.pings_coalesced),
            ("pings stale", self.pings_stale),
            ("stream entries stale", self.stream_entries_stale),
        ] {
            if count > 0 {
                let _ = write!(words, ", {word} {count}");
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use crate::stats::LinkState;
    use crate::status::Status;
    use crate::status::tests::overview;

    #[tokio::test]
    async fn the_line_says_what_the_status_has() {
        let dir = tempfile::tempdir().unwrap();
        let overview = overview(dir.path());
        let stats = overview.stats();
        stats.mqtt_in.add(3);
        stats.unix_in.add(4);
        stats.invalid.add(1);
        stats.too_large.add(2);
        stats.refused.add(3);
        stats.kafka_out.add(5);
        stats.kafka_lost.add(1);
        stats.sampled_out.add(9);
        stats.kafka.set(LinkState::Up);
        let status = overview.look();
        let line = status.line();
        assert!(line.starts_with("in 7 (mqtt 3, unix 4), refused 6, buffered 0 events in "), "{line}");
        assert!(line.contains(" KiB, oldest 0 s, out 5, lost 1, sampled out 9"), "{line}");
        assert!(line.ends_with(", mqtt off, kafka up, redis off"), "{line}");
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
        assert!(status.memory.resident_bytes.is_some_and(|bytes| bytes > 100_000));
        assert!(status.troubles(60).is_empty());
        overview.buffer().close().await;
    }

    #[tokio::test]
    async fn troubles_are_told_with_their_reason() {
        let dir = tempfile::tempdir().unwrap();
        let overview = overview(dir.path());
        overview.stats().kafka.set(LinkState::Down);
        overview.stats().kafka.failed("connection refused");
        overview.stats().oldest_boot_us.set(1);
        let mut status = overview.look();
        status.buffer.oldest_age_s = Some(61);
        (status.buffer.is_full, status.buffer.is_writable) = (true, false);
        (status.disk.free_bytes, status.disk.min_free) = (Some(1), 2);
        let troubles = status.troubles(60);
        assert_eq!(troubles[0], "kafka is down for 0 s: connection refused");
        assert_eq!(
            troubles[1..],
            [
                "the oldest event has waited for 61 s",
                "the buffer is full",
                "the buffer cannot be written",
                "1 bytes are free on the disk, buffer.min_free is 2"
            ]
        );
        overview.buffer().close().await;
    }
}
