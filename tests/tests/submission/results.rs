//! Every result of SubmitMessage.

use std::time::Duration;

use pombo_tests::{installation::Agent, mail::Mail};
use serde_json::Value;

use crate::support::{SOON, count, own, pombo, quick, state_of};

#[tokio::test(flavor = "multi_thread")]
async fn busy_wait_and_network_error_are_offered_again_without_endmessage() -> anyhow::Result<()> {
    let pombo = pombo().await?;
    let journal = pombo.journal("own");
    let words = [("busy-2", 2), ("wait-1", 1), ("neterr-1", 1)];
    let mut ids = Vec::new();
    for (word, times) in words {
        let to = format!("{word}@{word}.example");
        let id = pombo.submit(&[], &[to.as_str()], &Mail::new()).await;
        ids.push((id, word, times));
    }
    for (id, word, times) in ids {
        pombo.in_state(&id, "finished", SOON).await;
        let mut expected = Vec::new();
        for _ in 0..times {
            expected.extend(["submit", "reference", "returned"]);
        }
        expected.extend(["submit", "reference", "returned", "end", "ended"]);
        assert_eq!(journal.story(&id), expected, "{word}");
        let submits: Vec<_> = journal.about(&id);
        let starts: Vec<_> = submits.iter().filter(|it| it.what() == "submit").collect();
        let pause = starts[1].at() - starts[0].at();
        let least = if word == "busy-2" { 300 } else { 1_000 };
        assert!(pause >= Duration::from_millis(least), "{word}: {pause:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn not_me_goes_to_the_next_transport_without_endmessage() -> anyhow::Result<()> {
    let pombo = quick()
        .agent(own())
        .agent(Agent::maildir("next", &["SMTP:*@a.example"]))
        .start()
        .await?;
    let to = ["notme@a.example", "ok@a.example"];
    let id = pombo.submit(&[], &to, &Mail::new()).await;
    let trace = pombo.in_state(&id, "finished", SOON).await;
    for address in to {
        assert_eq!(state_of(&trace, address)["transport"], "next");
        assert_eq!(pombo.delivered_to(address).len(), 1);
    }
    let story = pombo.journal("own").story(&id);
    assert_eq!(story, ["submit", "reference", "returned"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_by_the_transport_ends_the_message_without_endmessage() -> anyhow::Result<()> {
    let pombo = pombo().await?;
    let id = pombo
        .submit(&[], &["unwanted@a.example"], &Mail::new())
        .await;
    let trace = pombo.in_state(&id, "finished", SOON).await;
    assert_eq!(state_of(&trace, "unwanted@a.example")["state"], "cancelled");
    let story = pombo.journal("own").story(&id);
    assert_eq!(story, ["submit", "reference", "returned"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn critical_error_stops_all_calls_until_ready_to_send() -> anyhow::Result<()> {
    let pombo = pombo().await?;
    let journal = pombo.journal("own");
    let bad = pombo
        .submit(&[], &["critical@a.example"], &Mail::new())
        .await;
    journal.wait_about(SOON, "returned", 1, &bad).await;
    let row = |trace: &Value| trace["state"] == "waiting";
    pombo.trace_that(&bad, SOON, "it waits", row).await;
    let other = pombo.submit(&[], &["ok@a.example"], &Mail::new()).await;
    pombo.command("own", "ready");
    pombo.in_state(&bad, "finished", SOON).await;
    pombo.in_state(&other, "finished", SOON).await;
    let ready = journal.wait_for(SOON, "command", 1, |_| true).await;
    let submits = journal.all("submit");
    assert_eq!(submits.len(), 3);
    assert!(
        submits[1..].iter().all(|it| it.at() > ready.at()),
        "{submits:?}"
    );
    assert_eq!(count(&journal.story(&bad), "end"), 1);
    Ok(())
}
