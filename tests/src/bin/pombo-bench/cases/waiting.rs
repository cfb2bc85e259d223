//! What lies there already: a backlog in the spool, and an outbox full of messages that wait.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use pombo_proto::{
    control::QueueState,
    frame::{self, encode_message},
    message::Priority,
    time::UnixMillis,
};
use pombo_spooler::{
    progress::Progress,
    store::{Options, RowData, Sqlite, Store as _, Tally, Write},
};

use super::USUAL;
use crate::{
    amqp,
    bench::{Bench, PATIENCE},
    load::Job,
    messages::Messages,
    relay::{Relay, alternate, relaying, run, shown, watched},
};

/// A backlog in the spool, made while no spooler runs, drained to the sink; over the same way with a load at its door.
pub async fn backlog(bench: &mut Bench, case: &str) -> anyhow::Result<()> {
    const STEADY: &str = "pombo-steady";
    const DRAIN: &str = "pombo-drain";
    bench.samples.compare(case, DRAIN, STEADY);
    let builder = relaying(&bench.broker, &bench.sink, 1);
    let mut relay = Relay::pombo(STEADY, builder, &bench.broker).await?;
    let steady = Job {
        messages: bench.messages(20_000),
        size: USUAL,
        recipients: 1,
    };
    let count = bench.messages(100_000);
    // Each takes long enough for its start not to matter.
    let runs = bench.runs().min(3);
    for round in 1..=runs {
        let run = run(&bench.sink, &relay, steady).await?;
        let rate = steady.messages as f64 / run.elapsed.as_secs_f64();
        bench.samples.add(case, STEADY, "msg/s", rate);
        bench.record(case, STEADY, steady.messages, &run);
        bench.say(&format!("{case} {round}/{runs}: steady {rate:.0} msg/s"));

        filled(bench, &mut relay, count).await?;
        bench.say(&format!("{case} {round}/{runs}"));
        drained(bench, case, DRAIN, &mut relay, count).await?;
    }
    Ok(())
}

/// Stops the spooler, and puts so many messages into the spool.
async fn filled(bench: &Bench, relay: &mut Relay, count: u64) -> anyhow::Result<()> {
    let Some(pombo) = relay.installation() else {
        anyhow::bail!("only Pombo has a spool");
    };
    pombo.spooler(0).terminate_and_wait(PATIENCE).await?;
    let messages = Messages::new(pombo.prefix(), USUAL);
    bench.say(&format!("putting {count} messages into the spool"));
    amqp::publish_all(&bench.broker.url(), messages.take(count as usize)).await
}

/// Starts the spooler, and waits until so many messages that lie in the spool have arrived.
async fn drained(
    bench: &mut Bench,
    case: &str,
    contender: &str,
    relay: &mut Relay,
    count: u64,
) -> anyhow::Result<()> {
    let before = bench.sink.recipients();
    bench.sink.expect(count);
    let Some(pombo) = relay.installation() else {
        anyhow::bail!("only Pombo has a backlog");
    };
    pombo.spooler(0).start_again()?;
    relay.find_parts(&bench.broker);
    let sink = &bench.sink;
    let run = watched(&relay.parts, async {
        let end = sink.reached(PATIENCE).await?;
        let first = sink.first().context("nothing arrived")?;
        Ok(end.duration_since(first))
    })
    .await?;
    let arrived = bench.sink.recipients() - before;
    ensure!(arrived == count, "{arrived} arrived instead of {count}");
    let rate = count as f64 / run.elapsed.as_secs_f64();
    bench.samples.add(case, contender, "msg/s", rate);
    bench.record(case, contender, count, &run);
    bench.say(&format!(
        "{case}: drained at {rate:.0} msg/s{}",
        shown(&run, count)
    ));
    Ok(())
}

/// Memory where both are full, the outbox and the spool, over that of one that has nothing but its load.
pub async fn laden(bench: &mut Bench, case: &str) -> anyhow::Result<()> {
    const LADEN: &str = "pombo-laden";
    const LIGHT: &str = "pombo";
    bench.samples.compare(case, LADEN, LIGHT);
    for part in ["spooler", "out"] {
        let of = |contender: &str| format!("{contender}/{part}");
        bench.samples.compare(case, &of(LADEN), &of(LIGHT));
    }
    let (waiting, spooled) = (bench.messages(1_000_000), bench.messages(100_000));
    let light = bench.relays(&[LIGHT]).await?;
    let job = Job {
        messages: bench.messages(20_000),
        size: USUAL,
        recipients: 1,
    };
    for relay in &light {
        let run = run(&bench.sink, relay, job).await?;
        let rate = job.messages as f64 / run.elapsed.as_secs_f64();
        bench.samples.add(case, LIGHT, "msg/s", rate);
        bench.record(case, LIGHT, job.messages, &run);
        let shown = shown(&run, job.messages);
        bench.say(&format!("{case}: steady {rate:.0} msg/s{shown}"));
    }
    bench.give_back(light);
    let builder = relaying(&bench.broker, &bench.sink, 1);
    let mut relay = Relay::pombo(LADEN, builder, &bench.broker).await?;
    filled(bench, &mut relay, spooled).await?;
    if let Some(pombo) = relay.installation() {
        let (path, prefix) = (pombo.store(), pombo.prefix().to_owned());
        let told = bench.start_time();
        bench.say(&format!("putting {waiting} messages into the outbox"));
        tokio::task::spawn_blocking(move || fill(&path, &prefix, waiting, told)).await??;
    }
    drained(bench, case, LADEN, &mut relay, spooled).await
}

/// Steady traffic beside an outbox that is full of what is due next month, over an empty one.
pub async fn outbox(bench: &mut Bench, case: &str) -> anyhow::Result<()> {
    const FULL: &str = "pombo-waiting";
    bench.samples.compare(case, FULL, "pombo");
    let builder = relaying(&bench.broker, &bench.sink, 1);
    let mut full = Relay::pombo(FULL, builder, &bench.broker).await?;
    let count = bench.messages(1_000_000);
    if let Some(pombo) = full.installation() {
        pombo.spooler(0).terminate_and_wait(PATIENCE).await?;
        let (path, prefix) = (pombo.store(), pombo.prefix().to_owned());
        let told = bench.start_time();
        bench.say(&format!("putting {count} messages into the outbox"));
        tokio::task::spawn_blocking(move || fill(&path, &prefix, count, told)).await??;
        let start = Instant::now();
        pombo.spooler(0).start_again()?;
        pombo.spooler(0).ready(PATIENCE).await?;
        let taken = start.elapsed().as_secs_f64() * 1e3;
        bench.samples.add(case, FULL, "ms to ready", taken);
        pombo.has_sessions(2, PATIENCE).await;
    }
    full.find_parts(&bench.broker);
    let mut relays = bench.relays(&["pombo"]).await?;
    if let Some(pombo) = relays.first_mut().and_then(Relay::installation) {
        pombo.spooler(0).terminate_and_wait(PATIENCE).await?;
        let start = Instant::now();
        pombo.spooler(0).start_again()?;
        pombo.spooler(0).ready(PATIENCE).await?;
        let taken = start.elapsed().as_secs_f64() * 1e3;
        bench.samples.add(case, "pombo", "ms to ready", taken);
        pombo.has_sessions(2, PATIENCE).await;
    }
    for relay in &mut relays {
        relay.find_parts(&bench.broker);
    }
    let job = Job {
        messages: bench.messages(20_000),
        size: USUAL,
        recipients: 1,
    };
    let all: Vec<_> = relays.iter().chain([&full]).collect();
    let done = alternate(bench, case, &all, job).await;
    bench.give_back(relays);
    done?;
    let left = full.installation().map(|pombo| pombo.store());
    if let Some(path) = left {
        let mut store = Sqlite::open(path, Options::default())?;
        let waiting = store.counts()?.waiting;
        ensure!(waiting == count, "{waiting} wait instead of {count}");
    }
    Ok(())
}

/// Rows that wait for a month, through the store's own door.
fn fill(path: &std::path::Path, prefix: &str, count: u64, start: Instant) -> anyhow::Result<()> {
    const CHUNK: u64 = 5_000;
    const DESTINATIONS: u64 = 1_000;
    let mut store = Sqlite::open(path, Options::default())?;
    let mut messages = Messages::new(prefix, 1 << 10);
    let progress = frame::encode(&Progress::fresh(1));
    let now = UnixMillis::now();
    let month = Duration::from_secs(30 * 24 * 3600);
    let mut told = Instant::now();
    for from in (0..count).step_by(CHUNK as usize) {
        let writes: Vec<Write> = (from..count.min(from + CHUNK))
            .map(|number| {
                let domain = format!("d{}.example", number % DESTINATIONS);
                let envelope = messages.envelope(&domain);
                let id = envelope.id;
                let message = encode_message(envelope, messages.body());
                let row = RowData {
                    state: QueueState::Waiting,
                    due: Some(UnixMillis(now.0 + month.as_millis() as u64 + number)),
                    wake: None,
                    reason: "put there by the benchmark".to_owned(),
                    transport: Some("out".to_owned()),
                    destination: Some(domain),
                    priority: Priority::Normal,
                    doubt: false,
                    unsure_since: now,
                    in_doubt: 0,
                    deaths: 0,
                    message: message.encoded,
                    progress: progress.clone(),
                    tally: Tally::default(),
                };
                Write::Move { id, row }
            })
            .collect();
        store.commit(now, &writes)?;
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            let seconds = start.elapsed().as_secs();
            eprintln!("[{seconds:4} s] {from} of {count} are in the outbox");
        }
    }
    Ok(())
}
