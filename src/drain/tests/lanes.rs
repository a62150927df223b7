//! Two lanes: fresh events pass the backlog, each lane keeps its order, and nothing changes lanes.

use super::*;

const BACKLOG_AFTER: Duration = Duration::from_secs(60);

impl Bench {
    fn live_first() -> Self {
        Self { order: Order::LiveFirst { backlog_after: BACKLOG_AFTER }, ..Self::new() }
    }

    /// Events that stay fresh, however slow the machine is.
    async fn append_fresh(&self, ids: std::ops::RangeInclusive<u64>) {
        self.append_at(u64::MAX, "t", ids).await;
    }

    fn link(&self, state: LinkState) {
        self.stats.kafka.set(state);
        self.producer.reported.notify_one();
    }

    /// Runs the drain beside `scenario` and drops it in the midst of its work, as a crash does.
    async fn crash(&self, delivery: Delivery, scenario: impl AsyncFnOnce(&Self)) {
        let running = self.drain(delivery).run(CancellationToken::new());
        tokio::select! {
            ended = running => panic!("{ended:?}"),
            () = scenario(self) => {}
        }
        // What it asked of the buffer is done, as if it had come before the crash: nobody is left to do it later.
        self.buffer.commit_durable(Seq(0)).await.unwrap();
    }

    /// Ids that went out in the backlog lane, and in the live one, each once.
    fn by_lane(&self) -> (Vec<u64>, Vec<u64>) {
        let of = |script: &Script, wanted: bool| {
            let ids = script.lanes.iter().filter(|(_, is_backlog)| *is_backlog == wanted);
            let mut ids: Vec<u64> = ids.map(|(id, _)| id.parse().unwrap()).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        self.producer.with(|script| (of(script, true), of(script, false)))
    }
}

fn numbers(ranges: &[std::ops::RangeInclusive<u64>]) -> Vec<u64> {
    ranges.iter().cloned().flatten().collect()
}

#[tokio::test]
async fn fresh_events_pass_what_has_waited_for_too_long() {
    let bench = Bench::live_first();
    bench.fates(&[(6, Fate::Hold), (7, Fate::Hold)]);
    let dir = bench.dir.path().to_owned();
    let (cursor, _) = bench
        .run(Delivery::AtLeastOnce, async |bench| {
            bench.append_fresh(1..=5).await;
            bench.producer.until(|_| bench.stats.kafka_out.get() == 5).await;
            bench.link(LinkState::Down);
            bench.append(6..=50).await;
            bench.producer.until(|script| script.held.len() == 1).await;
            bench.append_fresh(51..=60).await;
            // Back again: what waits becomes backlog, fresh or not, and 7 is in flight for long.
            bench.link(LinkState::Up);
            bench.producer.release();
            bench.producer.until(|script| script.held.iter().any(|(_, id)| id == "7")).await;
            bench.append_fresh(61..=70).await;
            bench.producer.until(|script| script.delivered.iter().any(|id| id == "70")).await;
            bench.until_cursor(6).await;
            assert_eq!(bench.buffer.figures().cursor, Seq(6), "the backlog is not through");
            bench.producer.release();
            bench.until_cursor(70).await;
            bench.append_fresh(71..=72).await;
        })
        .await;
    assert_eq!(cursor, Seq(72));
    drop(dir);
}

#[tokio::test]
async fn a_backlog_is_what_waited_and_nothing_else() {
    let bench = Bench::live_first();
    bench.fates(&[(6, Fate::Hold)]);
    bench
        .crash(Delivery::AtLeastOnce, async |bench| {
            bench.append_fresh(1..=5).await;
            bench.producer.until(|_| bench.stats.kafka_out.get() == 5).await;
            bench.link(LinkState::Down);
            bench.append(6..=50).await;
            bench.producer.until(|script| script.held.len() == 1).await;
            bench.link(LinkState::Up);
            bench.producer.release();
            bench.producer.until(|script| script.delivered.len() == 50).await;
            bench.append_fresh(51..=55).await;
            bench.until_cursor(55).await;
        })
        .await;
    assert_eq!(bench.by_lane(), (numbers(&[7..=50]), numbers(&[1..=6, 51..=55])));
}

#[tokio::test]
async fn fifo_sends_the_oldest_first_and_has_one_lane() {
    let bench = Bench::new();
    bench
        .crash(Delivery::AtLeastOnce, async |bench| {
            bench.append(1..=50).await;
            bench.append_fresh(51..=60).await;
            bench.until_cursor(60).await;
        })
        .await;
    assert_eq!(bench.by_lane(), (vec![], numbers(&[1..=60])));
    assert!(bench.buffer.lanes().is_none(), "nothing is written for it");
}

#[tokio::test]
async fn what_may_have_gone_out_live_goes_out_live_again() {
    let mut bench = Bench::live_first();
    bench.order = Order::LiveFirst { backlog_after: Duration::from_secs(1_000_000_000) };
    bench.fates(&[(5, Fate::Hold)]);
    bench
        .crash(Delivery::AtLeastOnce, async |bench| {
            bench.append(1..=9).await;
            bench.producer.until(|script| script.delivered.len() == 8).await;
        })
        .await;
    // By now they are old enough for the backlog.
    bench.order = Order::LiveFirst { backlog_after: BACKLOG_AFTER };
    bench.crash(Delivery::AtLeastOnce, async |bench| bench.until_cursor(9).await).await;
    assert_eq!(bench.by_lane(), (vec![], numbers(&[1..=9])));
}

#[tokio::test]
async fn an_unfinished_backlog_goes_on_in_its_lane_also_without_live_first() {
    for (order, delivery) in [
        (Order::LiveFirst { backlog_after: BACKLOG_AFTER }, Delivery::AtLeastOnce),
        (Order::Fifo, Delivery::AtLeastOnce),
        (Order::Fifo, Delivery::AtMostOnce),
    ] {
        let mut bench = Bench::live_first();
        bench.append(1..=20).await;
        bench.fates(&[(3, Fate::Hold)]);
        bench
            .crash(Delivery::AtLeastOnce, async |bench| {
                bench.producer.until(|script| script.held.len() == 1).await;
                bench.append_fresh(21..=25).await;
                bench.producer.until(|script| script.delivered.iter().any(|id| id == "25")).await;
                // Kept within a second.
                bench.producer.until(|_| bench.buffer.lanes().is_some_and(|l| l.live_from == Seq(26))).await;
            })
            .await;
        bench.producer.with(|script| script.held.clear());
        bench.order = order;
        let before = bench.producer.with(|script| script.sent.len());
        bench.crash(delivery, async |bench| bench.until_cursor(25).await).await;
        assert_eq!(bench.by_lane(), (numbers(&[1..=20]), numbers(&[21..=25])), "{order:?} {delivery:?}");
        let again = bench.producer.with(|script| script.sent[before..].iter().any(|(id, _)| id == "23"));
        assert!(!again, "what is delivered ahead is not sent again");
    }
}

/// A consumer that drops duplicates by one position for each lane: what it keeps, in order.
fn kept(delivered: &[String], is_backlog: impl Fn(u64) -> bool) -> Vec<u64> {
    let mut positions = [0, 0];
    let ids = delivered.iter().map(|id| id.parse::<u64>().unwrap());
    ids.filter(|id| {
        let position = &mut positions[usize::from(is_backlog(*id))];
        let is_new = id > position;
        *position = (*position).max(*id);
        is_new
    })
    .collect()
}

/// Links that come and go, a partition that stops for a while, and crashes, by chance; then all of it is delivered.
async fn story(delivery: Delivery, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let bench = Bench::live_first();
    bench.producer.with(|script| script.is_one_partition = true);
    let mut last = 0;
    for _ in 0..6 {
        bench
            .crash(delivery, async |bench| {
                for _ in 0..random.usize(1..20) {
                    match random.u8(0..10) {
                        0..4 => {
                            let first = last + 1;
                            last += random.u64(1..60);
                            bench.append_fresh(first..=last).await;
                        }
                        4 => {
                            let first = last + 1;
                            last += random.u64(1..200);
                            bench.append(first..=last).await;
                        }
                        5 => bench.link(LinkState::Down),
                        6 => bench.link(LinkState::Up),
                        7 => {
                            bench.fates(&[(last + random.u64(1..40), Fate::Hold)]);
                        }
                        8 => bench.producer.release(),
                        _ => tokio::time::sleep(Duration::from_millis(random.u64(1..100))).await,
                    }
                    tokio::time::sleep(Duration::from_millis(random.u64(0..4))).await;
                }
            })
            .await;
        bench.producer.with(|script| {
            // What was in flight may have come through, from its beginning on.
            let held = std::mem::take(&mut script.held);
            let come_through = random.usize(0..=held.len());
            script.delivered.extend(held.into_iter().map(|(_, id)| id).take(come_through));
            script.reports.clear();
            let Transactions { ended, is_begun, open, .. } = &mut script.transactions;
            (*ended, *is_begun) = (None, false);
            open.clear();
        });
    }
    bench.producer.with(|script| script.fates.clear());
    bench.crash(delivery, async |bench| bench.until_cursor(last).await).await;
    let (backlog, live) = bench.by_lane();
    let mut kept = if delivery == Delivery::ExactlyOnce {
        let committed = bench.producer.with(|script| script.transactions.committed_ids());
        committed.iter().map(|id| id.parse().unwrap()).collect()
    } else {
        let both: Vec<_> = backlog.iter().filter(|id| live.binary_search(id).is_ok()).collect();
        assert!(both.is_empty(), "seed {seed}: {both:?} went out in both lanes");
        let delivered = bench.producer.with(|script| std::mem::take(&mut script.delivered));
        kept(&delivered, |id| backlog.binary_search(&id).is_ok())
    };
    kept.sort_unstable();
    let is_missing = |id: &u64| kept.binary_search(id).is_err();
    let missing: Vec<_> = (1..=last).filter(is_missing).collect();
    assert!(missing.is_empty(), "{delivery:?}, seed {seed}: {missing:?} did not arrive");
    assert_eq!(kept.len() as u64, last, "{delivery:?}, seed {seed}: one arrived twice");
}

#[tokio::test]
async fn whatever_happens_a_consumer_with_a_position_for_each_lane_has_every_event_once() {
    for seed in 0..5 {
        story(Delivery::AtLeastOnce, seed).await;
        story(Delivery::ExactlyOnce, seed).await;
    }
}

#[tokio::test]
async fn with_damaged_lanes_everything_goes_out_as_backlog_whatever_the_order() {
    let bench = Bench::live_first();
    bench.append(1..=9).await;
    bench.fates(&[(1, Fate::Hold)]);
    bench
        .crash(Delivery::AtLeastOnce, async |bench| {
            bench.producer.until(|script| script.held.len() == 1).await;
            bench.append_fresh(10..=12).await;
            bench.producer.until(|_| bench.buffer.lanes().is_some_and(|l| l.live_from == Seq(13))).await;
        })
        .await;
    let Bench { dir, buffer, writer, .. } = bench;
    buffer.close().await;
    writer.ended().await.unwrap();
    let file = dir.path().join("buffer/LANES");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, vec![0xa5; bytes.len()]).unwrap();
    let bench = Bench::in_dir(dir);
    assert_eq!((bench.order, bench.buffer.lanes()), (Order::Fifo, None));
    bench
        .crash(Delivery::AtLeastOnce, async |bench| {
            bench.until_cursor(12).await;
            bench.append(13..=13).await;
            bench.until_cursor(13).await;
        })
        .await;
    assert_eq!(bench.by_lane(), (numbers(&[1..=12]), vec![13]));
}
