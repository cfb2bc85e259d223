//! Messages that come over AMQP, as a door publishes them, beside what a bare program gets out of the same broker.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use pombo_proto::message::Priority;
use pombo_tests::{Installation, installation::Agent};

use super::USUAL;
use crate::{
    amqp,
    asked::Asker,
    bench::{Bench, PATIENCE},
    flow,
    messages::Messages,
    relay::{Run, parts, plain, shown, watched},
    usage::Part,
};

const HOP: &str = "raw-hop";
const FLOW: &str = "flow-l";
const ASKED: &str = "pombo-asked";

/// Often enough to tell when a run has ended, seldom enough not to slow it down.
const LOOK: Duration = Duration::from_millis(10);

/// The bare program: one durable hop, and everything that one message needs.
pub async fn limit(bench: &mut Bench, case: &str) -> anyhow::Result<()> {
    bench.samples.compare(case, FLOW, HOP);
    let count = bench.messages(40_000) as usize;
    for round in 0..=bench.runs() {
        for contender in [HOP, FLOW] {
            bare(bench, case, contender, round, count).await?;
        }
    }
    Ok(())
}

/// One run of a bare program; round 0 warms up.
async fn bare(
    bench: &mut Bench,
    case: &str,
    contender: &str,
    round: usize,
    count: usize,
) -> anyhow::Result<()> {
    if !bench.wants(contender) {
        return Ok(());
    }
    let count = if round == 0 { count / 4 } else { count };
    let body = Bytes::from(vec![b'x'; USUAL]);
    let url = bench.broker.url();
    let mut parts = vec![Part::own("program", std::process::id())];
    parts.extend(bench.broker.pid().map(|pid| Part::other("broker", pid)));
    let run = watched(&parts, async {
        match contender {
            HOP => amqp::raw_hop(&url, count, &body).await,
            _ => flow::flow(&url, count, &body).await,
        }
    })
    .await
    .with_context(|| format!("{count} messages by {contender}"))?;
    note(bench, case, contender, round, count, &run);
    Ok(())
}

fn note(bench: &mut Bench, case: &str, contender: &str, round: usize, count: usize, run: &Run) {
    if round == 0 {
        return;
    }
    let rate = count as f64 / run.elapsed.as_secs_f64();
    bench.samples.add(case, contender, "msg/s", rate);
    bench.record(case, contender, count as u64, run);
    bench.say(&format!(
        "{case} {round}/{}: {contender} {rate:.0} msg/s{}",
        bench.runs(),
        shown(run, count as u64)
    ));
}

/// Over AMQP to one transport, alternating with a raw hop of the same size: published as a door does, and by asking a spooler as
/// `pombo submit` does.
pub async fn submit(bench: &mut Bench, case: &str, agent: Agent, boxes: u64) -> anyhow::Result<()> {
    for contender in ["pombo", ASKED] {
        bench.samples.compare(case, contender, HOP);
    }
    let mut pombo = plain(&bench.broker).agent(agent).start().await?;
    pombo.has_sessions(1, PATIENCE).await;
    let parts = parts(&mut pombo, &bench.broker);
    let url = bench.broker.url();
    let mut messages = Messages::new(pombo.prefix(), USUAL).boxes(boxes);
    let mut asker = Asker::connect(&url, pombo.prefix()).await?;
    let count = bench.messages(20_000) as usize;
    for round in 0..=bench.runs() {
        let fewer = if round == 0 { count / 4 } else { count };
        if bench.wants("pombo") {
            let published = amqp::publish_all(&url, (&mut messages).take(fewer));
            let run = watched(&parts, through(&mut pombo, published, fewer)).await?;
            nothing_is_left(&pombo).await?;
            note(bench, case, "pombo", round, fewer, &run);
        }
        if bench.wants(ASKED) && boxes == 1 {
            let asked = asker.submit(fewer, messages.body());
            let run = watched(&parts, through(&mut pombo, asked, fewer)).await?;
            nothing_is_left(&pombo).await?;
            note(bench, case, ASKED, round, fewer, &run);
        }
        bare(bench, case, HOP, round, count).await?;
    }
    asker.close().await;
    Ok(())
}

/// One priority and several, alternating.
pub async fn priorities(bench: &mut Bench, case: &str, several: &[Priority]) -> anyhow::Result<()> {
    let agent = Agent::of_kind("null", "null");
    let mut pombo = plain(&bench.broker).agent(agent).start().await?;
    pombo.has_sessions(1, PATIENCE).await;
    let parts = parts(&mut pombo, &bench.broker);
    let many = format!("pombo-{}-priorities", several.len());
    bench.samples.compare(case, &many, "pombo");
    let mut ways = [
        ("pombo", Messages::new(pombo.prefix(), USUAL)),
        (
            many.as_str(),
            Messages::new(pombo.prefix(), USUAL).priorities(several),
        ),
    ];
    let count = bench.messages(20_000) as usize;
    for round in 0..=bench.runs() {
        for (contender, messages) in &mut ways {
            let count = if round == 0 { count / 4 } else { count };
            let url = bench.broker.url();
            let published = amqp::publish_all(&url, messages.take(count));
            let run = watched(&parts, through(&mut pombo, published, count)).await?;
            nothing_is_left(&pombo).await?;
            note(bench, case, contender, round, count, &run);
        }
    }
    Ok(())
}

/// Has `count` messages submitted, and waits until the spooler has recorded all as delivered.
async fn through(
    pombo: &mut Installation,
    submitting: impl Future<Output = anyhow::Result<()>>,
    count: usize,
) -> anyhow::Result<Duration> {
    let before = delivered(pombo).await?;
    let start = Instant::now();
    let end = all_delivered(pombo, before + count as u64);
    let (submitted, end) = tokio::join!(submitting, end);
    submitted?;
    Ok(end?.duration_since(start))
}

/// When so many recipients are recorded as delivered.
///
/// # Errors
/// Nothing more is delivered, or more than that.
pub async fn all_delivered(pombo: &mut Installation, wanted: u64) -> anyhow::Result<Instant> {
    let (mut last, mut moved) = (0, Instant::now());
    loop {
        let now = delivered(pombo).await?;
        ensure!(now <= wanted, "{} delivered too often", now - wanted);
        if now == wanted {
            return Ok(Instant::now());
        }
        if now != last {
            (last, moved) = (now, Instant::now());
        }
        if moved.elapsed() > PATIENCE {
            bail!(
                "nothing moves for {PATIENCE:?}; {} are missing",
                wanted - now
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Recipients recorded as delivered so far, by all spoolers.
pub async fn delivered(pombo: &mut Installation) -> anyhow::Result<u64> {
    let mut sum = 0.0;
    for spooler in pombo.spoolers() {
        let page = spooler.get("/metrics").await?.body;
        sum += page
            .lines()
            .filter(|line| line.starts_with("pombo_outcomes_total{"))
            .filter(|line| line.contains("outcome=\"delivered\""))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>();
    }
    Ok(sum as u64)
}

/// Claims that nothing moves or waits.
///
/// # Errors
/// Something does.
pub async fn nothing_is_left(pombo: &Installation) -> anyhow::Result<()> {
    let queue = pombo.pombo(&["--json", "queue"]).await.stdout;
    ensure!(queue.trim() == "[]", "left in the queue: {queue:.500}");
    Ok(())
}
