//! What waits, and what people may do with it.

use std::time::Duration;

use pombo_tests::{Installation, mail::Mail};

use crate::support::{SOON, count, own, pombo};

#[tokio::test(flavor = "multi_thread")]
async fn waiting_messages_are_cancelled_in_time_held_released_and_retried() -> anyhow::Result<()> {
    // The schedule's own pause is a minute.
    let pombo = Installation::builder().agent(own()).start().await?;
    let journal = pombo.journal("own");
    let mut ids = Vec::new();
    for tag in ["a", "b", "c"] {
        let to = format!("later-1+{tag}@a.example");
        ids.push(pombo.submit(&[], &[to.as_str()], &Mail::new()).await);
    }
    for id in &ids {
        pombo.in_state(id, "waiting", SOON).await;
    }
    let answer = pombo.pombo(&["cancel", &ids[0]]).await.succeeds();
    assert!(answer.contains("in time"), "{answer}");
    pombo.in_state(&ids[0], "finished", SOON).await;

    pombo.pombo(&["hold", &ids[1]]).await.succeeds();
    pombo.in_state(&ids[1], "held", SOON).await;
    pombo.pombo(&["retry", &ids[1]]).await.exits(1);
    pombo.pombo(&["retry", &ids[2]]).await.succeeds();
    pombo.in_state(&ids[2], "finished", SOON).await;
    assert_eq!(count(&journal.story(&ids[2]), "submit"), 2);
    pombo.pombo(&["release", "--all"]).await.succeeds();
    pombo.in_state(&ids[1], "finished", SOON).await;
    assert_eq!(count(&journal.story(&ids[1]), "submit"), 2);
    assert_eq!(count(&journal.story(&ids[0]), "submit"), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn deferred_send_time_is_kept_and_a_message_that_waits_for_it_can_be_cancelled()
-> anyhow::Result<()> {
    let pombo = pombo().await?;
    let at = ["--at", "3s"];
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let id = pombo.submit(&at, &["ok@a.example"], &Mail::new()).await;
    let never = pombo
        .submit(&["--at", "1h"], &["ok@a.example"], &Mail::new())
        .await;
    let trace = pombo.in_state(&never, "waiting", SOON).await;
    assert_eq!(trace["reason"], "to be sent later");
    pombo.pombo(&["cancel", &never]).await.succeeds();
    let submit = pombo
        .journal("own")
        .wait_about(SOON, "submit", 1, &id)
        .await;
    assert!(submit.at() >= before + Duration::from_secs(3), "{submit:?}");
    pombo.in_state(&id, "finished", SOON).await;
    assert_eq!(pombo.journal("own").all("submit").len(), 1);
    Ok(())
}
