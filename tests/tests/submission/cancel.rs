//! The model's last step: a cancel reaches what is under way, at every stage.

use pombo_tests::mail::Mail;
use serde_json::Value;

use crate::support::{SOON, count, own, pombo, quick, state_of};

#[tokio::test(flavor = "multi_thread")]
async fn submission_step_6_a_cancel_reaches_submitmessage_and_the_others_keep() -> anyhow::Result<()>
{
    let pombo = pombo().await?;
    let to = ["ok@a.example", "slow@a.example"];
    let id = pombo.submit(&[], &to, &Mail::new()).await;
    let journal = pombo.journal("own");
    journal.wait_about(SOON, "reference", 1, &id).await;
    let answer = pombo.pombo(&["--json", "cancel", &id]).await;
    let answer = answer.json();
    assert_eq!(answer["Partly"]["sent"], 1, "{answer}");
    assert_eq!(answer["Partly"]["cancelled"], 1, "{answer}");
    let trace = pombo.in_state(&id, "finished", SOON).await;
    assert_eq!(state_of(&trace, to[0])["state"], "delivered");
    assert_eq!(state_of(&trace, to[1])["state"], "cancelled");
    // MAPI_E_CANCEL: no EndMessage follows.
    assert_eq!(
        journal.story(&id),
        ["submit", "reference", "cancelled", "returned"]
    );
    let late = pombo.pombo(&["cancel", &id]).await.exits(1);
    assert!(late.contains("too late"), "{late}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn submission_step_6_a_cancel_reaches_endmessage() -> anyhow::Result<()> {
    let pombo = pombo().await?;
    let id = pombo
        .submit(&[], &["slow-end@a.example"], &Mail::new())
        .await;
    let journal = pombo.journal("own");
    journal.wait_about(SOON, "end", 1, &id).await;
    let answer = pombo.pombo(&["cancel", &id]).await.succeeds();
    assert!(answer.contains("in time"), "{answer}");
    assert_eq!(
        journal.story(&id),
        [
            "submit",
            "reference",
            "returned",
            "end",
            "end_cancelled",
            "ended"
        ]
    );
    let trace = pombo.in_state(&id, "finished", SOON).await;
    assert_eq!(state_of(&trace, "slow-end@a.example")["state"], "cancelled");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_takes_too_long_is_asked_to_return_and_so_is_an_adopted_one()
-> anyhow::Result<()> {
    let mut pombo = quick()
        .spooler_line("attempt_max = \"1h\"")
        .agent(own())
        .start()
        .await?;
    let journal = pombo.journal("own");
    let id = pombo.submit(&[], &["slow@a.example"], &Mail::new()).await;
    journal.wait_about(SOON, "reference", 1, &id).await;
    // Its next holder finds the attempt under way, and it answers that for ever.
    pombo.spooler(0).kill9();
    pombo
        .spooler(0)
        .start_changed("attempt_max = \"1h\"", "attempt_max = \"1s\"")?;
    journal.wait_about(SOON, "cancelled", 1, &id).await;
    let story = journal.story(&id);
    let before = story.split(|it| it == "cancelled").next();
    let before = before.unwrap_or_default();
    assert_eq!(count(before, "submit"), 1, "adopted, not sent again");
    // Nobody wanted it cancelled: it is tried again, and that takes too long as well.
    journal.wait_about(SOON, "cancelled", 2, &id).await;
    assert!(count(&journal.story(&id), "submit") >= 2);
    pombo.open_gate("own", "slow");
    let trace = pombo.in_state(&id, "finished", SOON).await;
    assert_eq!(state_of(&trace, "slow@a.example")["state"], "delivered");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_of_a_kept_message_tells_the_transport_to_forget_it() -> anyhow::Result<()> {
    let pombo = pombo().await?;
    let journal = pombo.journal("own");
    let id = pombo.submit(&[], &["kept@a.example"], &Mail::new()).await;
    let kept = |trace: &Value| trace["recipients"][0]["state"] == "kept";
    pombo.trace_that(&id, SOON, "it is kept", kept).await;
    let answer = pombo.pombo(&["cancel", &id]).await.succeeds();
    assert!(answer.contains("in time"), "{answer}");
    journal.wait_about(SOON, "abort_deferred", 1, &id).await;
    pombo.open_gate("own", "kept");
    let trace = pombo.in_state(&id, "finished", SOON).await;
    assert_eq!(trace["recipients"][0]["state"], "cancelled");
    assert_eq!(count(&journal.story(&id), "sent_deferred"), 0);
    Ok(())
}
