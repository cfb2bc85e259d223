//! A relay, as most tests need one: a listener that takes everything, and smtp to a sink. With what they all want to know at
//! the end: is anything left over?

#![allow(
    dead_code,
    reason = "each test binary uses the part of it that it needs"
)]

use std::{path::Path, time::Duration};

use pombo_tests::{
    Installation, Sink,
    client::Session,
    eventually,
    installation::{Agent, Builder},
    load::Sent,
};
use serde_json::Value;

/// Within this, what needs no restart or retry happens; eight others may be compiling on the same two cores.
pub const SOON: Duration = Duration::from_secs(20);
/// Within this, everything else does: claims of the dead are taken over after 12 s, agents that are lost after 35 s.
pub const LONG: Duration = Duration::from_secs(120);

/// One listener `door` and one agent `out` that sends everything to `world`.
pub fn relay(world: &Sink) -> Builder {
    with(world, |door| door, |out| out)
}

/// The same, with more lines for either agent.
pub fn with(
    world: &Sink,
    door: impl FnOnce(Agent) -> Agent,
    out: impl FnOnce(Agent) -> Agent,
) -> Builder {
    Installation::builder()
        .log_filter("info,pombo=debug,pombo_spooler=debug,pombo_agent=debug")
        .agent(door(Agent::smtp_listener("door").relay_for_everyone()))
        .agent(out(Agent::smtp("out").smarthost(world.address())))
        // A test does not wait a minute for the second try.
        .spooler_lines("[schedule]\nfirst = \"500ms\"\nmax = \"2s\"\njitter = 0.0")
}

/// Waits until the door takes mail: it needs a spooler for that, and is ready before it has met one.
pub async fn takes_mail(pombo: &Installation) {
    eventually(LONG, "the door takes mail", || async {
        let (mut session, _) = Session::try_connect(pombo.door()).await?;
        session.try_command("EHLO client.example").await?;
        let reply = session.try_command("MAIL FROM:<alice@example.org>").await?;
        anyhow::ensure!(reply.is_ok(), "{reply}");
        anyhow::Ok(())
    })
    .await;
}

/// Starts it, and waits until it takes mail.
pub async fn started(builder: Builder) -> anyhow::Result<Installation> {
    let pombo = builder.start().await?;
    takes_mail(&pombo).await;
    Ok(pombo)
}

/// Waits until all copies of a load have arrived somewhere, and until nothing moves or waits any more.
pub async fn settles(pombo: &Installation, world: &Sink, sent: &Sent, limit: Duration) {
    let wanted = sent.deliveries();
    world
        .wait_for(limit, &format!("{wanted} copies"), |seen| {
            seen.distinct_deliveries() >= wanted
        })
        .await;
    nothing_is_left(pombo, limit).await;
}

/// Claims that the queue is empty and the blob directory too.
pub async fn nothing_is_left(pombo: &Installation, limit: Duration) {
    eventually(limit, "an empty queue", || async {
        let queue = pombo.pombo(&["--json", "queue"]).await;
        match serde_json::from_str::<Value>(&queue.stdout) {
            Ok(Value::Array(rows)) if rows.is_empty() => Ok(()),
            Ok(rows) => Err(format!("{rows:.2000}")),
            Err(e) => Err(format!("{e}: {queue:?}")),
        }
    })
    .await;
    eventually(limit, "no bodies left in the blob directory", || async {
        let bodies = bodies(&pombo.blobs());
        if bodies.is_empty() {
            Ok(())
        } else {
            Err(bodies)
        }
    })
    .await;
}

/// The bodies in the blob directory, by their paths.
pub fn bodies(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(bodies(&path));
        } else if !entry
            .file_name()
            .to_string_lossy()
            .starts_with("pombo-blob-store")
        {
            found.push(path.display().to_string());
        }
    }
    found
}

/// A metric, summed over processes; those that are gone count nothing.
pub async fn sum_of_metric(services: &[pombo_tests::service::Service], name: &str) -> f64 {
    let mut sum = 0.0;
    for service in services {
        sum += service.metric(name).await.unwrap_or(0.0);
    }
    sum
}
