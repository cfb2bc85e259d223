//! A message that kills whoever has it ends in the dead state, after it was tried alone; those beside it are delivered.

use std::time::{Duration, Instant};

use pombo_tests::{
    Installation,
    installation::{Agent, Builder},
    scripted::journal::{Entry, Journal},
};

use crate::{
    relay::{LONG, SOON},
    support::{ask, is_in_state, submit},
};

/// Each death costs until the dead one's claims are taken over, or until its right to send has run out.
const DEATHS: Duration = Duration::from_secs(400);

fn builder(agent: Agent) -> Builder {
    let quick = "[schedule]\nfirst = \"1s\"\nmax = \"1s\"\njitter = 0.0\nbusy = \"300ms\"\n";
    Installation::builder()
        .agent(agent.line("addresses = [\"SMTP\"]"))
        .spooler_line("suspect_after = 2")
        .spooler_lines(quick)
}

async fn state(pombo: &Installation, id: &str) -> String {
    let why = ask(pombo, &["why", id]).await;
    why["state"].as_str().unwrap_or("unknown").to_owned()
}

fn tries(journal: &Journal, id: &str) -> usize {
    let story = journal.story(id);
    story.iter().filter(|it| *it == "submit").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_kills_its_agent_is_dead_and_those_beside_it_are_delivered()
-> anyhow::Result<()> {
    let mut pombo = builder(Agent::scripted("own").line("takes_ms = 300"))
        .start()
        .await?;
    let journal = pombo.journal("own");
    let mut healthy = Vec::new();
    for n in 0..6 {
        healthy.push(submit(&pombo, &format!("ok+{n}@example.net")).await);
        if n == 2 {
            healthy.push(submit(&pombo, "slow+1@example.net").await);
        }
    }
    let poison = submit(&pombo, "abort@example.net").await;
    pombo.open_gate("own", "slow+1");

    // The service manager starts the agent again whenever it has died, until there is nothing left to die of.
    let begun = Instant::now();
    let mut deaths = 0;
    while state(&pombo, &poison).await != "dead" {
        assert!(
            begun.elapsed() < DEATHS,
            "{deaths} deaths, and not given up"
        );
        let agent = pombo.agent("own");
        if !agent.is_running() {
            deaths += 1;
            agent.start_again()?;
            agent.ready(LONG).await?;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!(
        "dead after {deaths} deaths, {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    // Twice beside others, once alone.
    assert_eq!(tries(&journal, &poison), 3);
    for id in &healthy {
        is_in_state(&pombo, id, "finished", LONG).await;
    }
    let trace = ask(&pombo, &["trace", &poison]).await;
    let reason = trace["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("alone"), "{trace}");
    let listed = ask(&pombo, &["dead", "list"]).await;
    assert_eq!(listed[0]["id"], poison.as_str(), "{listed}");
    // New mail flows past it.
    let next = submit(&pombo, "ok+next@example.net").await;
    is_in_state(&pombo, &next, "finished", SOON).await;

    // A person gives it up, and its sender hears of it.
    pombo.pombo(&["dead", "drop", &poison]).await;
    is_in_state(&pombo, &poison, "finished", SOON).await;
    let report = |entry: &Entry| entry.text("class") == "REPORT.IPM.Note.NDR";
    journal.wait_for(SOON, "submit", 1, report).await;
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_spooler_dies_each_time_is_dead_and_those_beside_it_are_delivered()
-> anyhow::Result<()> {
    // Long enough that the spooler is dead before its agent has answered.
    let mut pombo = builder(Agent::scripted("own").line("takes_ms = 5000"))
        .start()
        .await?;
    let journal = pombo.journal("own");
    let poison = submit(&pombo, "later-99@example.net").await;
    let mut healthy = Vec::new();
    for n in 0..4 {
        healthy.push(submit(&pombo, &format!("ok+{n}@example.net")).await);
    }
    let begun = Instant::now();
    let mut deaths = 0;
    while state_of_the_living(&pombo, &poison).await != "dead" {
        assert!(
            begun.elapsed() < DEATHS,
            "{deaths} deaths, and not given up"
        );
        if tries(&journal, &poison) > deaths {
            deaths += 1;
            let spooler = pombo.spooler(0);
            spooler.kill9();
            spooler.start_again()?;
            spooler.ready(LONG).await?;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!(
        "dead after {deaths} deaths, {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    // Its lease, twice by a claim, once alone.
    assert_eq!(deaths, 4);
    for id in &healthy {
        is_in_state(&pombo, id, "finished", LONG).await;
        let sent = journal.about(id);
        let ok = sent.iter().filter(|it| it.text("result") == "ok").count();
        assert_eq!(ok, 1, "{id} was sent {ok} times");
    }
    // Requeued, and spared this time, it is as good as any other.
    pombo.pombo(&["dead", "requeue", &poison]).await;
    let more = tries(&journal, &poison);
    journal.wait_about(LONG, "submit", more + 1, &poison).await;
    pombo.pombo(&["cancel", &poison]).await;
    is_in_state(&pombo, &poison, "finished", SOON).await;
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

/// Without the patience of a question to a spooler that is not there.
async fn state_of_the_living(pombo: &Installation, id: &str) -> String {
    let store = rusqlite::Connection::open(pombo.store());
    let dead = store.and_then(|store| {
        store.query_row("SELECT count(*) FROM queue WHERE state = 4", [], |row| {
            row.get::<_, i64>(0)
        })
    });
    match dead {
        Ok(1) => state(pombo, id).await,
        _ => "alive".to_owned(),
    }
}
