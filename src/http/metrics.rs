//! `/metrics`: the status as OpenMetrics. Nothing is counted here; a scrape reads what the agent counts anyway.
//!
//! Names, labels and meanings are in one table, from which `docs/metrics.md` is made.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::buffer::ledger::Reason;
use crate::stats::{LATENCY_BOUNDS_US, Latency, Stats};
use crate::status::{Dropped, LinkStatus, Overview, Status, Uplink};

/// What `/metrics` says it is.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The values of a sample's labels, in the order of [`Family::labels`].
type Labels = Vec<String>;

/// The samples of a metric.
type Samples<T> = Vec<(Labels, T)>;

/// What a metric is, and how it is read.
enum Kind {
    Counter(fn(&Status) -> Samples<u64>),
    Gauge(fn(&Status) -> Samples<f64>),
    Histogram(fn(&Stats) -> &Latency),
    Info(fn(&Status) -> Labels),
}

/// A metric.
struct Family {
    /// Without unit and suffix.
    name: &'static str,
    unit: Option<Unit>,
    /// Names of its labels.
    labels: &'static [&'static str],
    help: &'static str,
    kind: Kind,
}

fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    read: fn(&Status) -> Samples<u64>,
) -> Family {
    Family { name, unit: None, labels, help, kind: Kind::Counter(read) }
}

fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    read: fn(&Status) -> Samples<f64>,
) -> Family {
    Family { name, unit: None, labels, help, kind: Kind::Gauge(read) }
}

fn latency(name: &'static str, help: &'static str, read: fn(&Stats) -> &Latency) -> Family {
    Family { name, unit: Some(Unit::Seconds), labels: &[], help, kind: Kind::Histogram(read) }
}

impl Family {
    fn bytes(self) -> Self {
        Self { unit: Some(Unit::Bytes), ..self }
    }

    fn seconds(self) -> Self {
        Self { unit: Some(Unit::Seconds), ..self }
    }
}

fn one<T>(value: T) -> Samples<T> {
    vec![(Labels::new(), value)]
}

/// No sample when there is no value.
fn known(value: Option<u64>) -> Samples<f64> {
    value.map(|value| (Labels::new(), float(value))).into_iter().collect()
}

/// One label.
fn by<T, const N: usize>(values: [(&str, T); N]) -> Samples<T> {
    values.into_iter().map(|(name, value)| (vec![name.to_owned()], value)).collect()
}

#[allow(clippy::cast_precision_loss, reason = "gauges are floats; whole up to 2^53")]
fn float(value: u64) -> f64 {
    value as f64
}

fn flag(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

/// Links that are configured.
fn links(status: &Status, value: fn(&LinkStatus) -> Option<f64>) -> Samples<f64> {
    let on = status.links().into_iter().filter(|(_, link)| link.is_on());
    on.filter_map(|(name, link)| Some((vec![name.to_owned()], value(link)?))).collect()
}

/// Every metric, in the order of the output.
fn families() -> Vec<Family> {
    let mut all = inputs();
    all.extend(buffer());
    all.extend(outputs());
    all.extend(redis());
    all.extend(reach());
    all.extend(process());
    all
}

fn inputs() -> Vec<Family> {
    vec![
        counter("fieldpost_received_events", &["input"], "Events that are durable, by input", |status| {
            by([("mqtt", status.inputs.mqtt_events), ("unix", status.inputs.unix_events)])
        }),
        counter("fieldpost_refused_events", &["reason"], "Events that were not taken, by reason", |status| {
            let inputs = &status.inputs;
            by([
                ("invalid", inputs.invalid),
                ("too_large", inputs.too_large),
                ("buffer_full", inputs.refused),
                ("mqtt_qos0_dropped", inputs.mqtt_qos0_dropped),
            ])
        }),
        counter("fieldpost_left_out_events", &["by"], "Events that routes left out, by what", |status| {
            let routes = &status.routes;
            by([("drop", routes.dropped), ("sample", routes.sampled_out), ("report", routes.filtered)])
        }),
        gauge("fieldpost_unix_connections", &[], "Connections of the Unix socket that are open", |status| {
            one(float(status.inputs.unix_connections))
        }),
        latency(
            "fieldpost_durable_latency",
            "From admission until durable, each event with the time of the oldest of its batch",
            |stats| &stats.durable_latency,
        ),
    ]
}

fn buffer() -> Vec<Family> {
    vec![
        gauge("fieldpost_buffer_events", &[], "Events that wait for Kafka", |status| {
            one(float(status.buffer.events))
        }),
        gauge("fieldpost_buffer_backlog_events", &[], "Of them those of the backlog lane", |status| {
            one(float(status.buffer.backlog_events))
        }),
        gauge("fieldpost_buffer", &[], "Disk that the buffer takes, everything counted", |status| {
            one(float(status.buffer.bytes))
        })
        .bytes(),
        gauge("fieldpost_buffer_max", &[], "The most disk that it may take (buffer.max_bytes)", |status| {
            one(float(status.buffer.max_bytes))
        })
        .bytes(),
        gauge("fieldpost_buffer_generations", &[], "Generations on disk", |status| {
            one(float(status.buffer.generations))
        }),
        gauge(
            "fieldpost_buffer_oldest_age",
            &[],
            "How long the oldest event on its way to Kafka has waited; absent when none waits or it is of an earlier boot",
            |status| known(status.buffer.oldest_age_s),
        )
        .seconds(),
        gauge(
            "fieldpost_buffer_drain_estimate",
            &[],
            "When nothing waits any more at the pace of the last minute; absent when the backlog does not shrink",
            |status| known(status.buffer.drained_in_s),
        )
        .seconds(),
        gauge("fieldpost_buffer_full", &[], "1 while appends find no room", |status| {
            one(flag(status.buffer.is_full))
        }),
        gauge("fieldpost_buffer_writable", &[], "1 while events can be appended", |status| {
            one(flag(status.buffer.is_writable))
        }),
        counter("fieldpost_stored", &[], "Handed to the store, for wear", |status| {
            one(status.disk.stored_bytes)
        })
        .bytes(),
        counter(
            "fieldpost_device_written",
            &[],
            "Written by the block device since the agent's start, whoever asked for it; absent where the kernel does not tell",
            |status| status.disk.device_bytes.map(|bytes| (Labels::new(), bytes)).into_iter().collect(),
        )
        .bytes(),
        gauge("fieldpost_disk_free", &[], "Free on the buffer's file system", |status| {
            known(status.disk.free_bytes)
        })
        .bytes(),
        gauge("fieldpost_disk_min_free", &[], "What is left to others (buffer.min_free)", |status| {
            one(float(status.disk.min_free))
        })
        .bytes(),
        counter(
            "fieldpost_ledger_events",
            &["reason", "acknowledged"],
            "Events in the loss ledger, by reason and whether they had been acknowledged; kept over restarts",
            |status| {
                let sample = |reason: Reason| {
                    let labels = vec![reason.word().to_owned(), reason.is_acknowledged().to_string()];
                    (labels, status.ledger.get(reason.word()).map_or(0, |losses| losses.events))
                };
                Reason::ALL.map(sample).into()
            },
        ),
    ]
}

fn outputs() -> Vec<Family> {
    vec![
        counter("fieldpost_delivered_events", &[], "Events that Kafka confirmed", |status| {
            one(status.kafka.events)
        }),
        latency(
            "fieldpost_kafka_latency",
            "From admission until Kafka's delivery report, for events of this boot; the commit of a transaction comes up \
             to kafka.transaction_interval later",
            |stats| &stats.kafka_latency,
        ),
        counter("fieldpost_drain_rewinds", &[], "Times that the drain went back to send again", |status| {
            one(status.kafka.rewinds)
        }),
        counter("fieldpost_transactions", &[], "Transactions that Kafka committed", |status| {
            one(status.kafka.transactions)
        }),
        counter(
            "fieldpost_fallback_topic_events",
            &[],
            "Events that went to kafka.fallback_topic",
            |status| one(status.kafka.fallback_topic_events),
        ),
        counter(
            "fieldpost_dead_lettered_events",
            &[],
            "Events that Kafka rejected, now dead letters",
            |status| one(status.kafka.dead_lettered),
        ),
        counter("fieldpost_dead_letters_evicted", &[], "Dead letters that went for newer ones", |status| {
            one(status.kafka.dead_letters_evicted)
        }),
    ]
}

fn redis() -> Vec<Family> {
    vec![
        counter("fieldpost_pings", &["outcome"], "Pings, by what became of them", |status| {
            let redis = &status.redis;
            by([
                ("sent", redis.pings),
                ("dropped", redis.pings_dropped),
                ("coalesced", redis.pings_coalesced),
                ("stale", redis.pings_stale),
            ])
        }),
        counter(
            "fieldpost_stream_entries",
            &["outcome"],
            "Entries for Redis' streams, by what became of them",
            |status| {
                let redis = &status.redis;
                by([
                    ("added", redis.stream_entries),
                    ("dropped", redis.stream_entries_dropped),
                    ("stale", redis.stream_entries_stale),
                ])
            },
        ),
        counter(
            "fieldpost_redis_dropped",
            &["kind", "reason"],
            "Pings and entries for streams that were dropped, by reason",
            |status| {
                let redis = &status.redis;
                let of = |kind: &str, dropped: Dropped| {
                    let reasons = [
                        ("queue_full", dropped.queue_full),
                        ("link_down", dropped.link_down),
                        ("refused", dropped.refused),
                        ("too_many_streams", dropped.too_many_streams),
                    ];
                    reasons.map(|(reason, count)| (vec![kind.to_owned(), reason.to_owned()], count))
                };
                let pings = of("ping", redis.pings_dropped_by);
                let entries = of("stream_entry", redis.stream_entries_dropped_by);
                pings.into_iter().chain(entries).collect()
            },
        ),
    ]
}

fn reach() -> Vec<Family> {
    vec![
        counter(
            "fieldpost_uplink_commands",
            &["outcome"],
            "Times that uplink.command was run, by how it ended; one that runs counts as done",
            |status| {
                let Uplink { commands, failed } = status.uplink;
                by([("done", commands.saturating_sub(failed)), ("failed", failed)])
            },
        ),
        gauge("fieldpost_link_up", &["link"], "1 while a configured link is up", |status| {
            links(status, |link| Some(flag(link.is_up())))
        }),
        gauge("fieldpost_link_state_age", &["link"], "For how long a link is in its state", |status| {
            links(status, |link| link.state_for_s.map(float))
        })
        .seconds(),
    ]
}

fn process() -> Vec<Family> {
    vec![
        gauge("fieldpost_memory_resident", &[], "Memory of the process now", |status| {
            known(status.memory.resident_bytes)
        })
        .bytes(),
        gauge("fieldpost_memory_peak", &[], "The most memory that it ever had", |status| {
            known(status.memory.peak_bytes)
        })
        .bytes(),
        gauge("fieldpost_uptime", &[], "Since the agent's start", |status| one(float(status.uptime_s)))
            .seconds(),
        gauge(
            "fieldpost_clock_trusted",
            &[],
            "1 while the wall clock is known to be synchronised",
            |status| one(flag(status.clock_trusted)),
        ),
        Family {
            name: "fieldpost_build",
            unit: None,
            labels: &["version", "agent", "log", "epoch"],
            help: "What runs, and the name of its buffer's log",
            kind: Kind::Info(|status| {
                vec![
                    status.program.clone(),
                    status.agent.clone(),
                    status.log.clone(),
                    status.epoch.to_string(),
                ]
            }),
        },
    ]
}

/// One scrape.
#[derive(Debug)]
struct Scrape {
    status: Status,
    overview: std::sync::Arc<Overview>,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in families() {
            let metric_type = family.metric_type();
            let metric =
                encoder.encode_descriptor(family.name, family.help, family.unit.as_ref(), metric_type)?;
            family.encode(metric, &self.status, self.overview.stats())?;
        }
        Ok(())
    }
}

impl Family {
    fn metric_type(&self) -> MetricType {
        match self.kind {
            Kind::Counter(_) => MetricType::Counter,
            Kind::Gauge(_) => MetricType::Gauge,
            Kind::Histogram(_) => MetricType::Histogram,
            Kind::Info(_) => MetricType::Info,
        }
    }

    /// The labels of a sample with their names.
    fn labels(&self, values: &Labels) -> Vec<(&'static str, String)> {
        self.labels.iter().copied().zip(values.iter().cloned()).collect()
    }

    /// Without braces where there are no labels.
    fn sample(
        &self,
        metric: &mut MetricEncoder<'_>,
        values: &Labels,
        encode: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        match self.labels {
            [] => encode(metric),
            _ => encode(&mut metric.encode_family(&self.labels(values))?),
        }
    }

    fn encode(&self, mut metric: MetricEncoder<'_>, status: &Status, stats: &Stats) -> fmt::Result {
        match self.kind {
            Kind::Counter(read) => read(status).iter().try_for_each(|(values, value)| {
                self.sample(&mut metric, values, |metric| {
                    metric.encode_counter::<NoLabelSet, _, u64>(value, None)
                })
            }),
            Kind::Gauge(read) => read(status).iter().try_for_each(|(values, value)| {
                self.sample(&mut metric, values, |metric| metric.encode_gauge(value))
            }),
            Kind::Info(read) => metric.encode_info(&self.labels(&read(status))),
            Kind::Histogram(read) => {
                let latency = read(stats);
                let bounds = LATENCY_BOUNDS_US.iter().map(|bound| float(*bound) / 1e6);
                let counts = latency.counts();
                let buckets: Vec<_> = bounds.chain([f64::INFINITY]).zip(counts).collect();
                let (sum, count) = (float(latency.sum_us()) / 1e6, counts.iter().sum());
                metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
            }
        }
    }
}

/// The text of `/metrics`.
pub(super) fn text(overview: &std::sync::Arc<Overview>) -> String {
    let scrape = Scrape { status: overview.look(), overview: std::sync::Arc::clone(overview) };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = text::encode(&mut out, &registry);
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;
    use crate::stats::LinkState;
    use crate::status::tests::overview;

    impl Family {
        /// Its name in queries; of a histogram without `_bucket`, `_sum` and `_count`.
        fn full_name(&self) -> String {
            let unit = self.unit.as_ref().map_or_else(String::new, |unit| format!("_{}", unit.as_str()));
            let suffix = match self.kind {
                Kind::Counter(_) => "_total",
                Kind::Info(_) => "_info",
                Kind::Gauge(_) | Kind::Histogram(_) => "",
            };
            format!("{}{unit}{suffix}", self.name)
        }

        fn sample_names(&self) -> Vec<String> {
            let name = self.full_name();
            match self.kind {
                Kind::Histogram(_) => ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")).into(),
                _ => vec![name],
            }
        }
    }

    /// As Prometheus would store it: name and labels of each sample.
    fn samples(text: &str) -> Vec<(String, Vec<String>)> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| {
                let (key, value) = line.rsplit_once(' ').unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
                let (name, labels) = key.split_once('{').unwrap_or((key, "}"));
                let labels = labels.strip_suffix('}').unwrap().split("\",");
                let labels =
                    labels.filter_map(|label| label.split_once('=')).map(|(name, _)| name.to_owned());
                (name.to_owned(), labels.collect())
            })
            .collect()
    }

    #[tokio::test]
    async fn every_metric_is_there_with_the_labels_that_the_table_names() {
        let dir = tempfile::tempdir().unwrap();
        let overview = std::sync::Arc::new(overview(dir.path()));
        let stats = overview.stats();
        for link in [&stats.mqtt, &stats.kafka, &stats.redis] {
            link.set(LinkState::Up);
        }
        stats.oldest_boot_us.set(1);
        stats.durable_latency.add(1_500, 3);
        let text = text(&overview);
        assert!(text.ends_with("# EOF\n"));
        assert!(text.contains("fieldpost_durable_latency_seconds_bucket{le=\"0.001\"} 0\n"), "{text}");
        assert!(text.contains("fieldpost_durable_latency_seconds_bucket{le=\"0.0025\"} 3\n"), "{text}");
        assert!(text.contains("fieldpost_durable_latency_seconds_bucket{le=\"+Inf\"} 3\n"), "{text}");
        let samples = samples(&text);
        for family in families() {
            for name in family.sample_names() {
                let of_it: Vec<_> = samples.iter().filter(|(sample, _)| *sample == name).collect();
                // What the kernel does not tell of a folder in memory.
                assert!(!of_it.is_empty() || name == "fieldpost_device_written_bytes_total", "{name}");
                for (_, labels) in of_it {
                    let labels: Vec<_> = labels.iter().filter(|label| *label != "le").collect();
                    assert_eq!(labels, family.labels, "{name}");
                }
            }
        }
        let known: BTreeSet<_> = families().iter().flat_map(Family::sample_names).collect();
        for (name, _) in samples {
            assert!(known.contains(&name), "{name} is not in the table");
        }
        overview.buffer().close().await;
    }

    #[test]
    fn the_manual_lists_every_metric() {
        let mut text = String::from(
            "# Metrics\n\n<!-- generated from src/http/metrics.rs; FIELDPOST_BLESS=1 cargo test metrics writes it anew -->\n\n\
             `GET /metrics` ([http.md](http.md)) gives them as OpenMetrics. Counters count from the agent's start, but for those of \
             the ledger, which survives. Rules for alerts are in `deploy/prometheus/alerts.yml`, a dashboard is \
             `deploy/grafana/fieldpost.json`; a test holds that they name nothing else than this.\n\n\
             | Name | Kind | Labels | What it is |\n|---|---|---|---|\n",
        );
        for family in families() {
            let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
            let kind = family.metric_type();
            let kind = kind.as_str();
            let (name, labels) = (family.full_name(), labels.join(", "));
            writeln!(text, "| `{name}` | {kind} | {labels} | {} |", family.help).unwrap();
        }
        let bounds = LATENCY_BOUNDS_US.map(|us| (float(us) / 1e6).to_string()).join(", ");
        writeln!(text, "\nBuckets of the histograms, in seconds: {bounds}.").unwrap();
        crate::config::tests::assert_file("docs/metrics.md", &text);
    }

    /// docs/upgrading.md: none goes or changes its labels. What is new is kept with the release that brings it.
    #[test]
    fn the_metrics_of_every_release_stay_and_each_is_kept() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let files =
            std::fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path().join("metrics.txt"));
        let kept: String = files.filter_map(|file| std::fs::read_to_string(file).ok()).collect();
        let kept: BTreeSet<_> = kept.lines().map(str::to_owned).collect();
        let here: BTreeSet<_> = families()
            .iter()
            .map(|family| {
                let (name, kind) = (family.full_name(), family.metric_type());
                [&[name.as_str(), kind.as_str()], family.labels].concat().join(" ")
            })
            .collect();
        let (gone, new) = (kept.difference(&here), here.difference(&kept));
        assert_eq!(
            (Vec::from_iter(gone), Vec::from_iter(new)),
            (vec![], vec![]),
            "gone or changed, and not kept"
        );
    }

    #[test]
    fn alerts_and_dashboard_name_only_metrics_that_there_are() {
        let known: BTreeSet<_> = families().iter().flat_map(Family::sample_names).collect();
        for file in ["deploy/prometheus/alerts.yml", "deploy/grafana/fieldpost.json"] {
            let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
            let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let named: BTreeSet<_> = words.filter(|word| word.starts_with("fieldpost_")).collect();
            assert!(named.len() >= 10, "{file} names {named:?}");
            for name in named {
                assert!(known.contains(name), "{file} names {name}, which there is not");
            }
            if file.ends_with(".json") {
                serde_json::from_str::<serde_json::Value>(&text).unwrap();
            }
        }
    }
}
