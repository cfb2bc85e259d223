//! How long a message takes while there is room: from its acceptance to its delivery, and at the door.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use pombo_tests::{Installation, installation::Agent};

use super::USUAL;
use crate::{
    bench::{Bench, PATIENCE},
    load::Job,
    paced::{self, Pace, Times},
    relay::{Relay, relaying, run},
    samples::percentile,
    sink::Sink,
};

/// Accepted to delivered, at half of the full load that the contender itself was measured with.
pub async fn latency(bench: &mut Bench, case: &str) -> anyhow::Result<()> {
    bench.samples.compare(case, "pombo", "postfix");
    let seconds = if bench.amount.quick { 3.0 } else { 15.0 };
    let relays = bench.relays(&["pombo", "postfix"]).await?;
    let mut full = Vec::new();
    for relay in &relays {
        full.push(full_load(bench, relay).await?);
    }
    for round in 1..=bench.runs().min(3) {
        for (relay, full) in relays.iter().zip(&full) {
            let rate = full / 2.0;
            let pace = Pace {
                count: (rate * seconds) as usize,
                rate,
                size: USUAL,
            };
            let (times, stamps) = paced_run(&bench.sink, relay.doors[0], pace).await?;
            // A copy may be there before its sender has read the 250.
            let waits = times
                .iter()
                .zip(&stamps)
                .map(|(times, stamp)| stamp.saturating_duration_since(times.accepted));
            let (p50, p99) = percentiles(waits);
            bench.samples.add(case, &relay.name, "msg/s offered", rate);
            bench.samples.add(case, &relay.name, "ms p50", p50);
            bench.samples.add(case, &relay.name, "ms p99", p99);
            bench.say(&format!(
                "{case} {round}: {} at {rate:.0} msg/s: p50 {p50:.2} ms, p99 {p99:.2} ms",
                relay.name
            ));
        }
    }
    bench.give_back(relays);
    Ok(())
}

/// As fast as it goes: as measured before, or now.
async fn full_load(bench: &Bench, relay: &Relay) -> anyhow::Result<f64> {
    if let Some(known) = bench.samples.median("smtp-10k", &relay.name, "msg/s") {
        return Ok(known);
    }
    let job = |messages: u64| Job {
        messages,
        size: USUAL,
        recipients: 1,
    };
    let messages = bench.messages(20_000);
    run(&bench.sink, relay, job(messages / 4)).await?;
    let measured = run(&bench.sink, relay, job(messages)).await?;
    Ok(messages as f64 / measured.elapsed.as_secs_f64())
}

/// The times of all messages, and when they arrived.
async fn paced_run(
    sink: &Sink,
    door: SocketAddr,
    pace: Pace,
) -> anyhow::Result<(Vec<Times>, Vec<Instant>)> {
    let before = sink.recipients();
    sink.stamp(pace.count);
    sink.expect(pace.count as u64);
    let (times, reached) = tokio::join!(paced::send(door, pace), sink.reached(PATIENCE));
    let (times, _) = (times?, reached?);
    let stamps: Option<Vec<Instant>> = sink.stamps().into_iter().collect();
    let arrived = sink.recipients() - before;
    ensure!(
        arrived == pace.count as u64,
        "{arrived} arrived instead of {}",
        pace.count
    );
    Ok((
        times,
        stamps.context("a message arrived without its number")?,
    ))
}

fn percentiles(waits: impl Iterator<Item = Duration>) -> (f64, f64) {
    let mut millis: Vec<f64> = waits.map(|wait| wait.as_secs_f64() * 1e3).collect();
    millis.sort_by(f64::total_cmp);
    (percentile(&millis, 0.5), percentile(&millis, 0.99))
}

/// Reception at a quarter of full load, from the moment a message is due until its 250; with and without another transport
/// that announces mail all the time, and has none.
pub async fn flood(bench: &mut Bench, case: &str) -> anyhow::Result<()> {
    const QUIET: &str = "pombo";
    const FLOODED: &str = "pombo-flooded";
    bench.samples.compare(case, FLOODED, QUIET);
    let seconds = if bench.amount.quick { 3.0 } else { 15.0 };
    let builder = relaying(&bench.broker, &bench.sink, 1)
        .agent(Agent::scripted("flood").delivers())
        .transport_order(&["out", "door", "flood"]);
    let mut relay = Relay::pombo("pombo", builder, &bench.broker).await?;
    let full = full_load(bench, &relay).await?;
    let pace = Pace {
        count: (full / 4.0 * seconds) as usize,
        rate: full / 4.0,
        size: USUAL,
    };
    let door = relay.doors[0];
    for round in 1..=bench.runs().min(3) {
        for contender in [QUIET, FLOODED] {
            let pombo = relay.installation().context("only Pombo is flooded")?;
            let measured = paced_run(&bench.sink, door, pace);
            let (times, _) = match contender {
                FLOODED => tokio::select! {
                    measured = measured => measured?,
                    never = flooding(pombo) => never,
                },
                _ => measured.await?,
            };
            let waits = times
                .iter()
                .map(|times| times.accepted.duration_since(times.due));
            let (p50, p99) = percentiles(waits);
            bench.samples.add(case, contender, "ms p50", p50);
            bench.samples.add(case, contender, "ms p99", p99);
            bench.say(&format!(
                "{case} {round}: {contender} p50 {p50:.2} ms, p99 {p99:.2} ms"
            ));
        }
    }
    Ok(())
}

/// A thousand notifications every ten milliseconds, for as long as it is polled.
async fn flooding<T>(pombo: &Installation) -> T {
    loop {
        pombo.command("flood", "notify-1000");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
