//! The order of events: flow, outage, kill and restart in the middle of it, return, drain, stop, count.

use std::ops::Range;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::agent::{Agent, Home};
use super::cluster::{Cluster, Reader};
use super::consumer::{self, Account};
use super::progress::Progress;
use super::report::Verdict;
use super::sensors::{Diaries, Sensor};
use super::{Failure, Plan, SetOnDrop, Shared};
use crate::cli::runtime;
use crate::config::Redis;
use crate::sink::redis::Turns;
use crate::sink::redis::subscription::Subscription;
use crate::system::Signals;

/// Time between two looks at everything.
const TICK: Duration = Duration::from_millis(100);

/// Time between two looks at a thing that is expected at any moment.
const SHORT_TICK: Duration = Duration::from_millis(10);

/// Programs that send; each has its share of the sources.
const PROGRAMS: usize = 4;

/// Longest start of the agent.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Longest wait for an acknowledgement at which to kill.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// Longest ordinary stop of the agent: its own bounds add up to less.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How long the consumer may get nothing new although acknowledged events are missing.
const STANDSTILL: Duration = Duration::from_secs(10);

/// Part of the outage after which what was on its way has come.
const SETTLING_SHARE: u32 = 2;

/// What happened, beside what the sensors and the consumer know.
#[derive(Debug, Default)]
pub(super) struct Events {
    pub(super) kills: u32,
    pub(super) is_outage_real: bool,
    pub(super) outage: Duration,
    pub(super) restart: Duration,
    pub(super) catch_up: Option<Duration>,
    pub(super) acknowledged_in_outage: u64,
    pub(super) pings_in_outage: u64,
    pub(super) in_flight_at_kill: u64,
    pub(super) peak_memory: Vec<u64>,
    pub(super) peak_disk: u64,
    pub(super) problems: Vec<String>,
}

/// Tells it once.
pub(super) struct Story<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    home: &'a Home,
    cluster: &'a Cluster,
    redis: Option<Redis>,
    progress: Progress,
    agent: Option<Agent>,
    /// When the sensors began.
    began: Instant,
    /// Records read when what was on its way at the outage's begin had come.
    records_settled: u64,
    events: Events,
}

type Threads<'scope> = (Vec<ScopedJoinHandle<'scope, Diaries>>, ScopedJoinHandle<'scope, Account>);

impl<'a> Story<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        shared: &'a Shared,
        home: &'a Home,
        cluster: &'a Cluster,
        redis: Option<Redis>,
        progress: Progress,
    ) -> Self {
        Self {
            plan,
            shared,
            home,
            cluster,
            redis,
            progress,
            agent: None,
            began: Instant::now(),
            records_settled: 0,
            events: Events::default(),
        }
    }

    /// Plays everything and compares the books. On a signal everything ends at once.
    pub(super) fn tell(mut self) -> Result<Verdict, Failure> {
        let (plan, shared) = (self.plan, self.shared);
        let runtime = runtime::build().map_err(Failure::System)?;
        let reader = Reader::connect(&self.cluster.brokers())?;
        let socket = self.home.socket();
        let (reader, socket) = (&reader, socket.as_path());
        let (diaries, account) = std::thread::scope(|scope| {
            // Order: goes before the scope waits for the threads, also after a failure.
            let _stop = SetOnDrop(&shared.stop);
            let start = || {
                let range = |at| plan.sources * at / PROGRAMS..plan.sources * (at + 1) / PROGRAMS;
                let sensor = |sources: Range<usize>| {
                    let sensor = Sensor::new(plan, shared, socket, sources);
                    scope.spawn(move || sensor.run())
                };
                let sensors = (0..PROGRAMS).map(range).map(sensor).collect();
                (sensors, scope.spawn(move || consumer::run(reader, plan, shared)))
            };
            runtime.block_on(async {
                let mut signals = Signals::new().map_err(Failure::System)?;
                let mut hangup = signal(SignalKind::hangup()).map_err(Failure::System)?;
                tokio::select! {
                    played = Box::pin(self.play(start)) => played,
                    _ = signals.stop_requested() => Err(Failure::Interrupted),
                    _ = hangup.recv() => Err(Failure::Interrupted),
                }
            })
        })?;
        self.events.in_flight_at_kill = shared.figures.in_flight.get();
        Ok(Verdict::reach(plan, shared, &diaries, &account, self.events))
    }

    async fn play<'scope>(
        &mut self,
        start: impl FnOnce() -> Threads<'scope>,
    ) -> Result<(Vec<Diaries>, Account), Failure> {
        let mut listening = self.listen_for_pings().await?;
        self.progress.say("starting the agent, real and with its default settings");
        self.start_agent().await?;
        self.began = Instant::now();
        let (sensors, consumer) = start();
        let (count, rate) = (self.plan.sources, self.plan.rate);
        self.progress.say(&format!("{count} sensors send {rate} events a second, Kafka takes them"));
        let [outage_begin, kill, outage_end] = self.plan.times();
        self.watch_until(outage_begin).await?;
        self.outage(kill, outage_end).await?;
        self.return_of_kafka().await?;
        self.watch(Duration::MAX, |_| sensors.iter().all(ScopedJoinHandle::is_finished)).await?;
        self.progress.say("the sensors have their last acknowledgements");
        self.drain().await?;
        self.stop_agent().await?;
        self.progress.say("the consumer reads the topic to its end");
        self.shared.is_agent_gone.set();
        self.watch(Duration::MAX, |_| consumer.is_finished()).await?;
        listening.shutdown().await;
        let diaries: Result<_, _> = sensors.into_iter().map(ScopedJoinHandle::join).collect();
        let account = consumer.join();
        Ok((diaries.map_err(|_| Failure::Panicked)?, account.map_err(|_| Failure::Panicked)?))
    }

    async fn listen_for_pings(&self) -> Result<JoinSet<()>, Failure> {
        let mut listening = JoinSet::new();
        if let Some(redis) = &self.redis {
            let pings = std::sync::Arc::clone(&self.shared.figures.pings);
            let pattern = format!("events:*:{}-*", self.plan.run);
            let count = move |_| pings.add(1);
            let mut subscription =
                Subscription::open(&redis.options, &mut Turns::default(), &pattern, count).await?;
            listening.spawn(async move {
                // The account at the end says how many came.
                let _ = subscription.ended().await;
            });
        }
        Ok(listening)
    }

    /// Kafka goes; in the middle of it the agent is killed and started again.
    async fn outage(&mut self, kill: Duration, end: Duration) -> Result<(), Failure> {
        let figures = &self.shared.figures;
        let begin = Instant::now();
        self.cluster.down()?;
        self.progress.say("OUTAGE: no broker is left; the agent goes on acknowledging");
        let before = (figures.acknowledged.get(), figures.pings.get());
        let settled = self.began.elapsed() + kill.saturating_sub(self.began.elapsed()) / SETTLING_SHARE;
        self.watch_until(settled).await?;
        self.records_settled = figures.records.get();
        self.watch_until(kill).await?;
        self.kill_agent().await?;
        self.watch_until(end).await?;
        self.events.acknowledged_in_outage = figures.acknowledged.get() - before.0;
        self.events.pings_in_outage = figures.pings.get() - before.1;
        self.events.is_outage_real = figures.records.get() == self.records_settled;
        self.cluster.up()?;
        self.events.outage = begin.elapsed();
        Ok(())
    }

    async fn kill_agent(&mut self) -> Result<(), Failure> {
        let Some(mut agent) = self.agent.take() else { return Ok(()) };
        let process = agent.process();
        self.progress
            .say(&format!("KILL -9 of the agent (process {process}) as the next acknowledgement comes"));
        agent.look();
        *self.shared.target() = Some(process);
        let limit = Instant::now() + KILL_LIMIT;
        while self.shared.target().is_some() && Instant::now() < limit {
            sleep_until(Instant::now() + SHORT_TICK).await;
        }
        *self.shared.target() = None;
        let begin = Instant::now();
        agent.kill()?;
        self.events.kills += 1;
        self.events.peak_memory.push(agent.peak_memory);
        self.start_agent().await?;
        self.events.restart = begin.elapsed();
        let restart_ms = self.events.restart.as_millis();
        self.progress.say(&format!("started again; its socket answers after {restart_ms} ms"));
        Ok(())
    }

    /// Waits until Kafka has what was acknowledged before it came back.
    async fn return_of_kafka(&mut self) -> Result<(), Failure> {
        let begin = Instant::now();
        let acknowledged = self.shared.figures.acknowledged.get();
        self.progress.say("Kafka is back; the backlog drains while the sensors go on");
        let left = self.plan.sending.saturating_sub(self.began.elapsed());
        if self.watch(left, |shared| shared.figures.events.get() >= acknowledged).await? {
            self.events.catch_up = Some(begin.elapsed());
            let seconds = begin.elapsed().as_secs_f32();
            self.progress.say(&format!("caught up, {seconds:.1} s after Kafka was back"));
        }
        Ok(())
    }

    /// Waits until Kafka has everything that was acknowledged, or nothing new comes any more.
    async fn drain(&mut self) -> Result<(), Failure> {
        let is_drained = |shared: &Shared| shared.figures.events.get() >= shared.figures.acknowledged.get();
        let mut events = self.shared.figures.events.get();
        while !self.watch(STANDSTILL, is_drained).await? {
            let now = self.shared.figures.events.get();
            if now == events {
                self.events.problems.push("the backlog does not drain any further".into());
                break;
            }
            events = now;
        }
        Ok(())
    }

    async fn start_agent(&mut self) -> Result<(), Failure> {
        self.agent = Some(Agent::start(self.home)?);
        let limit = Instant::now() + START_LIMIT;
        while !self.agent.as_ref().is_some_and(Agent::is_ready) {
            self.look()?;
            if Instant::now() > limit {
                return Err(self.agent_failed("the agent did not get ready in time".into()));
            }
            sleep_until(Instant::now() + SHORT_TICK).await;
        }
        Ok(())
    }

    async fn stop_agent(&mut self) -> Result<(), Failure> {
        self.progress.say("SIGTERM: the agent stops in order");
        let Some(mut agent) = self.agent.take() else { return Ok(()) };
        let limit = Instant::now() + STOP_LIMIT;
        agent.terminate()?;
        let status = loop {
            agent.look();
            if let Some(status) = agent.ended()? {
                break status;
            }
            if Instant::now() > limit {
                return Err(self.agent_failed("the agent did not stop in time".into()));
            }
            sleep_until(Instant::now() + SHORT_TICK).await;
        };
        self.events.peak_memory.push(agent.peak_memory);
        if !status.success() {
            self.events.problems.push(format!("the agent did not stop in order: {status}"));
        }
        Ok(())
    }

    async fn watch_until(&mut self, time: Duration) -> Result<(), Failure> {
        let left = time.saturating_sub(self.began.elapsed());
        self.watch(left, |_| false).await.map(drop)
    }

    /// Looks after everything until `is_over`, not longer than `limit`; whether it is over.
    async fn watch(&mut self, limit: Duration, is_over: impl Fn(&Shared) -> bool) -> Result<bool, Failure> {
        let begin = Instant::now();
        loop {
            self.look()?;
            if is_over(self.shared) {
                return Ok(true);
            }
            let left = limit.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            sleep_until(Instant::now() + left.min(TICK)).await;
        }
    }

    fn look(&mut self) -> Result<(), Failure> {
        self.events.peak_disk = self.events.peak_disk.max(self.home.data_bytes());
        self.progress.show(&self.shared.figures, self.began.elapsed(), self.plan.has_redis);
        let Some(agent) = &mut self.agent else { return Ok(()) };
        agent.look();
        match agent.ended()? {
            Some(status) => Err(self.agent_failed(format!("the agent ended by itself: {status}"))),
            None => Ok(()),
        }
    }

    fn agent_failed(&self, what: String) -> Failure {
        Failure::Agent { what, log: self.home.log_tail() }
    }
}
