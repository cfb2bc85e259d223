//! Every flag of EndMessage.

use std::time::Duration;

use pombo_tests::{Installation, mail::Mail};
use serde_json::Value;

use crate::support::{SOON, count, own, pombo, quick, report, reports, state_of};

#[tokio::test(flavor = "multi_thread")]
async fn end_resend_now_starts_over_at_once() -> anyhow::Result<()> {
    // The schedule's own pause is a minute.
    let pombo = Installation::builder().agent(own()).start().await?;
    let id = pombo
        .submit(&[], &["resendnow-2@a.example"], &Mail::new())
        .await;
    pombo.in_state(&id, "finished", SOON).await;
    let journal = pombo.journal("own");
    let flags: Vec<String> = journal
        .about(&id)
        .iter()
        .filter(|it| it.what() == "ended")
        .map(|it| it.text("flag").to_owned())
        .collect();
    assert_eq!(flags, ["ResendNow", "ResendNow", "Sent"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn end_resend_later_waits_for_the_schedule_and_repeats_only_what_was_deferred()
-> anyhow::Result<()> {
    let pombo = pombo().await?;
    let to = ["later-1@a.example", "ok@a.example"];
    let id = pombo.submit(&[], &to, &Mail::new()).await;
    pombo.in_state(&id, "finished", SOON).await;
    let journal = pombo.journal("own");
    let submits: Vec<_> = journal.all("submit");
    assert_eq!(submits.len(), 2);
    assert_eq!(submits[0].list("recipients"), to);
    assert_eq!(submits[1].list("recipients"), [to[0]]);
    assert!(!submits[1].flag("begin_deferred"));
    assert!(submits[1].at() - submits[0].at() >= Duration::from_secs(1));
    let ends: Vec<_> = journal.all("ended");
    assert_eq!(ends[0].text("flag"), "ResendLater");
    assert_eq!(ends[1].text("flag"), "Sent");
    assert!(reports(&journal).is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn end_dont_resend_keeps_it_until_sentdeferred() -> anyhow::Result<()> {
    let pombo = pombo().await?;
    let journal = pombo.journal("own");
    let mut ids = Vec::new();
    for word in ["kept", "kept-fail", "kept-again"] {
        let to = format!("{word}@a.example");
        let id = pombo.submit(&[], &[to.as_str()], &Mail::new()).await;
        let end = journal.wait_about(SOON, "ended", 1, &id).await;
        assert_eq!(end.text("flag"), "DontResend");
        let kept = |trace: &Value| trace["recipients"][0]["state"] == "kept";
        pombo.trace_that(&id, SOON, "it is kept", kept).await;
        pombo.open_gate("own", word);
        ids.push((id, to));
    }
    let states = ["delivered", "failed", "delivered"];
    for ((id, to), state) in ids.iter().zip(states) {
        let trace = pombo.in_state(id, "finished", SOON).await;
        assert_eq!(state_of(&trace, to)["state"], state, "{to}");
    }
    // Wanted again: the same transport gets it, and is told that it had it.
    let again = journal.about(&ids[2].0);
    let deferred: Vec<bool> = again
        .iter()
        .filter(|it| it.what() == "submit")
        .map(|it| it.flag("begin_deferred"))
        .collect();
    assert_eq!(deferred, [false, true]);
    for (id, _) in &ids[..2] {
        assert_eq!(count(&journal.story(id), "submit"), 1);
    }
    report(&journal, "REPORT.IPM.Note.NDR").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sentdeferred_that_comes_before_its_attempt_is_recorded_is_not_lost() -> anyhow::Result<()>
{
    let pombo = quick().spoolers(2).agent(own()).start().await?;
    pombo.has_sessions(2, SOON).await;
    let journal = pombo.journal("own");
    for round in 0..10 {
        let to = format!("kept-early+{round}@a.example");
        let id = pombo.publish(&[to.as_str()], |_| {}).await?;
        let trace = pombo.in_state(&id, "finished", SOON).await;
        let state = state_of(&trace, &to);
        assert_eq!(state["state"], "delivered", "{trace}");
        assert_eq!(state["text"], "250 early");
        let story = journal.story(&id);
        let all = [
            "submit",
            "reference",
            "sent_deferred",
            "returned",
            "end",
            "ended",
        ];
        assert_eq!(story, all);
    }
    Ok(())
}
