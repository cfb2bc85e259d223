//! Many messages at once: among agents, by priority, and beside a dead destination.

use pombo_proto::message::Priority;
use pombo_tests::{eventually, installation::Agent, scripted::journal::Entry};

use crate::support::{SOON, own, quick};

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_one_transport_share_the_work_and_nothing_goes_twice() -> anyhow::Result<()> {
    let agent = |name: &str| {
        Agent::scripted(name)
            .transport("own")
            .line("addresses = [\"SMTP\"]\ncapacity = 2")
    };
    let pombo = quick()
        .agent(agent("one"))
        .agent(agent("two"))
        .start()
        .await?;
    pombo.has_sessions(2, SOON).await;
    let mut ids = Vec::new();
    for number in 0..10 {
        let to = format!("slow+{number}@a.example");
        ids.push(pombo.publish(&[to.as_str()], |_| {}).await?);
    }
    // None of them ends: each agent has as many as it wants, and the others wait.
    let journals = [pombo.journal("one"), pombo.journal("two")];
    for journal in &journals {
        journal.wait_for(SOON, "reference", 2, |_| true).await;
    }
    for journal in &journals {
        assert_eq!(journal.all("submit").len(), 2);
    }
    for number in 0..10 {
        for name in ["one", "two"] {
            pombo.open_gate(name, &format!("slow+{number}"));
        }
    }
    eventually(SOON, "all submitted", || async {
        let seen: usize = journals.iter().map(|it| it.all("ended").len()).sum();
        if seen >= ids.len() { Ok(()) } else { Err(seen) }
    })
    .await;
    for id in &ids {
        pombo.in_state(id, "finished", SOON).await;
    }
    let shares: Vec<usize> = journals.iter().map(|it| it.all("submit").len()).collect();
    assert_eq!(shares.iter().sum::<usize>(), ids.len(), "{shares:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn urgent_mail_overtakes_a_backlog_of_bulk() -> anyhow::Result<()> {
    let agent = own().line("capacity = 1\ntakes_ms = 100");
    let pombo = quick().agent(agent).start().await?;
    let journal = pombo.journal("own");
    // The first one occupies all of the capacity, until everything is in the spool.
    let bulk = 30;
    let first = pombo
        .publish(&["slow@a.example"], |it| it.priority = Priority::Bulk)
        .await?;
    journal.wait_about(SOON, "submit", 1, &first).await;
    for _ in 0..bulk {
        let priority = |envelope: &mut pombo_proto::message::Envelope| {
            envelope.priority = Priority::Bulk;
        };
        pombo.publish(&["ok+bulk@a.example"], priority).await?;
    }
    let urgent = pombo
        .publish(&["ok+urgent@a.example"], |it| {
            it.priority = Priority::Urgent
        })
        .await?;
    let leased = |trace: &serde_json::Value| trace["state"] == "moving";
    pombo
        .trace_that(&urgent, SOON, "it is leased", leased)
        .await;
    pombo.open_gate("own", "slow");
    let last = |entry: &Entry| entry.text("id") == urgent;
    journal.wait_for(SOON, "submit", 1, last).await;
    let all = journal.all("submit");
    let place = all.iter().position(|it| it.text("id") == urgent);
    let place = place.expect("it was just seen");
    assert!((1..=3).contains(&place), "place {place}");
    journal.wait_for(SOON, "ended", bulk + 2, |_| true).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_destination_takes_nothing_from_another() -> anyhow::Result<()> {
    let agent = own().line("capacity = 4\ntakes_ms = 50");
    let pombo = quick().agent(agent).start().await?;
    let journal = pombo.journal("own");
    for _ in 0..40 {
        pombo.publish(&["neterr@dead.example"], |_| {}).await?;
    }
    let mut live = Vec::new();
    for _ in 0..10 {
        live.push(pombo.publish(&["ok@live.example"], |_| {}).await?);
    }
    for id in &live {
        journal.wait_about(SOON, "ended", 1, id).await;
    }
    // The gate lets a probe through now and then; without it each of the 40 would have gone once and again.
    let tried = journal.all("submit");
    let dead = tried
        .iter()
        .filter(|it| it.list("recipients") == ["neterr@dead.example"]);
    let dead = dead.count();
    assert!(dead < 30, "{dead} submissions to a dead destination");
    Ok(())
}
