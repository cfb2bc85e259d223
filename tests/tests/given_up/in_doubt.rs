//! Where doubt is held, nothing is sent twice by itself: what was at its final dot with an agent that died waits for a person, and
//! what was not is sent. So it is with what another system took without saying so, and nobody died.

use std::time::Duration;

use pombo_tests::{
    Installation, Sink, eventually,
    installation::{Agent, Builder},
    load::Python,
    scripted::journal::{Entry, Journal},
    service::Service,
    sink::{Seen, Stage, at},
};
use serde_json::Value;

use crate::{
    relay::{LONG, SOON, started},
    support::{GONE, ask, is_in_state, submit},
};

fn times_sent(journal: &Journal, id: &str) -> usize {
    let story = journal.story(id);
    story.iter().filter(|it| *it == "sent").count()
}

/// As a service manager would, once it has ended and its spooler knows: what is given to a dead one would be in doubt as well.
async fn comes_back(pombo: &mut Installation, agent: &str) -> anyhow::Result<()> {
    // By a signal: there is no exit code.
    let _ = pombo.agent(agent).wait(SOON).await;
    pombo.has_sessions(0, LONG).await;
    let service = pombo.agent(agent);
    assert!(!service.is_running(), "{agent} still runs");
    service.start_again()?;
    service.ready(LONG).await?;
    pombo.has_sessions(1, SOON).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_at_its_dot_waits_for_a_person_and_what_was_not_is_sent() -> anyhow::Result<()> {
    let quick = "[schedule]\nfirst = \"1s\"\nmax = \"2s\"\njitter = 0.0\nbusy = \"300ms\"\n";
    let mut pombo = Installation::builder()
        .agent(Agent::scripted("own").line("addresses = [\"SMTP\"]"))
        .transport_line("own", "in_doubt = \"hold\"")
        .spooler_lines(quick)
        .start()
        .await?;
    let journal = pombo.journal("own");

    // All stand before their dots when the one dies at its own.
    let before = submit(&pombo, "dot+before@example.net").await;
    journal.wait_about(SOON, "submit", 1, &before).await;
    let mut at_the_dot = Vec::new();
    for tag in ["release", "drop", "cancel"] {
        let id = submit(&pombo, &format!("lastdot+{tag}@example.net")).await;
        comes_back(&mut pombo, "own").await?;
        at_the_dot.push(id);
    }
    for id in &at_the_dot {
        let why = is_in_state(&pombo, id, "held", GONE).await;
        let said = why["waiting_for"].as_str().unwrap_or_default();
        assert!(said.contains("in doubt"), "{why}");
        assert_eq!(times_sent(&journal, id), 1);
        let trace = ask(&pombo, &["trace", id]).await;
        assert_eq!(trace["recipients"][0]["in_doubt"], true, "{trace}");
    }
    let listed = ask(&pombo, &["queue", "--in-doubt"]).await;
    let listed: Vec<&str> = listed
        .as_array()
        .expect("rows")
        .iter()
        .filter_map(|row| row["id"].as_str())
        .collect();
    let wanted: Vec<&str> = at_the_dot.iter().map(String::as_str).collect();
    assert_eq!(listed, wanted);
    let counted = pombo.spooler(0).metric("pombo_in_doubt_total").await?;
    assert_eq!(counted, 3.0);
    let spooler: &Service = pombo.spooler(0);
    eventually(SOON, "the gauge says so", || async {
        match spooler.metric("pombo_in_doubt").await {
            Ok(3.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    // What had not been at its dot when its agent died was simply sent, once.
    pombo.open_gate("own", "dot+before");
    is_in_state(&pombo, &before, "finished", GONE).await;
    assert_eq!(times_sent(&journal, &before), 1);

    // A person who means all that is held does not mean these.
    let none = ask(&pombo, &["release", "--all"]).await;
    assert_eq!(none["changed"], 0, "{none}");
    let [release, drop, cancel] = &at_the_dot[..] else {
        unreachable!()
    };
    pombo.open_gate("own", "lastdot+release");
    pombo.pombo(&["release", release]).await;
    pombo.pombo(&["drop", drop]).await;
    pombo.pombo(&["cancel", cancel]).await;
    for id in &at_the_dot {
        is_in_state(&pombo, id, "finished", SOON).await;
    }
    let state = |trace: &Value| trace["recipients"][0]["state"].clone();
    assert_eq!(state(&ask(&pombo, &["trace", release]).await), "delivered");
    assert_eq!(state(&ask(&pombo, &["trace", drop]).await), "failed");
    assert_eq!(state(&ask(&pombo, &["trace", cancel]).await), "cancelled");
    let times = [release, drop, cancel].map(|id| times_sent(&journal, id));
    assert_eq!(times, [2, 1, 1]);
    // Only the one that was given up is told of.
    let report = |entry: &Entry| entry.text("class") == "REPORT.IPM.Note.NDR";
    journal.wait_for(SOON, "submit", 1, report).await;
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

/// A world that takes the first message for each recipient and never says so: it hangs up, or is silent for longer than the
/// agent waits.
async fn never_answers() -> anyhow::Result<(Sink, Builder)> {
    let world = Sink::start().await?;
    let first = |domain| at(Stage::Dot).domain(domain).first_of_each(1);
    world.rule(first("hangup.example").accept_and_drop());
    world.rule(first("silent.example").wait(Duration::from_secs(4)));
    let builder = crate::relay::with(
        &world,
        |door| door,
        |out| out.line("timeouts.data_end = \"1s\""),
    );
    Ok((world, builder))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_without_a_word_is_sent_again_and_counted_once_each() -> anyhow::Result<()> {
    let (world, builder) = never_answers().await?;
    let mut pombo = started(builder).await?;
    for to in ["bob@hangup.example", "bob@silent.example"] {
        let id = submit(&pombo, to).await;
        is_in_state(&pombo, &id, "finished", LONG).await;
        let both = |seen: &Seen| seen.mail_for(to).count() == 2;
        world.wait_for(SOON, "both copies", both).await;
        let trace = ask(&pombo, &["trace", &id]).await;
        assert_eq!(trace["recipients"][0]["in_doubt"], true, "{trace}");
        assert!(
            trace.to_string().contains("may have been sent to"),
            "{trace}"
        );
    }
    let counted = pombo.spooler(0).metric("pombo_in_doubt_total").await?;
    assert_eq!(counted, 2.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_without_a_word_waits_for_a_person_where_doubt_is_held() -> anyhow::Result<()>
{
    let (world, builder) = never_answers().await?;
    let mut pombo = started(builder.transport_line("out", "in_doubt = \"hold\"")).await?;
    let addresses = ["release@silent.example", "drop@hangup.example"];
    let mut ids = Vec::new();
    for to in addresses {
        ids.push(submit(&pombo, to).await);
    }
    for id in &ids {
        let why = is_in_state(&pombo, id, "held", LONG).await;
        let said = why["waiting_for"].as_str().unwrap_or_default();
        assert!(said.contains("in doubt"), "{why}");
    }
    let listed = ask(&pombo, &["queue", "--in-doubt"]).await;
    let rows = listed.as_array().expect("rows").iter();
    let listed: Vec<&str> = rows.filter_map(|row| row["id"].as_str()).collect();
    assert_eq!(listed, ids);
    let taken = |seen: &Seen| addresses.map(|to| seen.mail_for(to).count()) == [1, 1];
    world.wait_for(SOON, "one copy each", taken).await;
    let counted = pombo.spooler(0).metric("pombo_in_doubt_total").await?;
    assert_eq!(counted, 2.0);

    pombo.pombo(&["release", &ids[0]]).await;
    pombo.pombo(&["drop", &ids[1]]).await;
    for (id, state) in ids.iter().zip(["delivered", "failed"]) {
        is_in_state(&pombo, id, "finished", SOON).await;
        let trace = ask(&pombo, &["trace", id]).await;
        assert_eq!(trace["recipients"][0]["state"], state, "{trace}");
    }
    let told = |seen: &Seen| seen.mail_for("alice@example.org").count() == 1;
    world
        .wait_for(SOON, "a report of what was given up", told)
        .await;
    world.look(|seen| assert_eq!(addresses.map(|to| seen.mail_for(to).count()), [2, 1]));
    let counted = pombo.spooler(0).metric("pombo_in_doubt_total").await?;
    assert_eq!(counted, 2.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_a_killed_smtp_agent_sends_nothing_twice() -> anyhow::Result<()> {
    const MESSAGES: usize = 600;
    let world = Sink::start().await?;
    world.rule(at(Stage::Dot).wait(Duration::from_millis(30)));
    let builder = crate::relay::relay(&world)
        .spoolers(2)
        .agent(
            Agent::smtp("out-2")
                .transport("out")
                .smarthost(world.address()),
        )
        .transport_line("out", "in_doubt = \"hold\"");
    let mut pombo = started(builder).await?;
    let python = Python::messages(MESSAGES)
        .to(&["bob{n}@example.net"])
        .sizes(&[(9, 600, 4 << 10), (1, 40 << 10, 60 << 10)])
        .connections(1, 6)
        .patience(LONG);
    let door = pombo.door();
    let sending = tokio::spawn(async move { python.send(door).await });
    world
        .wait_for(LONG, "150 messages", |seen| {
            seen.distinct_deliveries() >= 150
        })
        .await;
    pombo.agent("out").kill9();
    let sent = sending.await??;
    assert_eq!(sent.accepted(), MESSAGES, "{:?}", sent.refused().next());

    // In the end everything has arrived or is held.
    let held = eventually(LONG + GONE, "only what is in doubt is left", || async {
        let rows = ask(&pombo, &["queue"]).await;
        let Some(rows) = rows.as_array() else {
            return Err(rows.to_string());
        };
        let doubted = |row: &Value| row["state"] == "held" && row["in_doubt"] == 1;
        if rows.iter().all(doubted) {
            Ok(rows.len())
        } else {
            let open = rows.iter().find(|row| !doubted(row));
            Err(format!("{} rows, {open:?}", rows.len()))
        }
    })
    .await;
    let in_doubt = crate::relay::sum_of_metric(pombo.spoolers(), "pombo_in_doubt_total").await;
    println!("{held} held, {in_doubt} counted in doubt");
    assert_eq!(in_doubt, held as f64);
    world.look(|seen| {
        assert!(seen.duplicates().is_empty(), "{:?}", seen.duplicates());
        assert!(
            seen.distinct_deliveries() + held >= MESSAGES,
            "{} arrived, {held} held",
            seen.distinct_deliveries()
        );
    });
    Ok(())
}
