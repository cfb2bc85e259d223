//! The model's steps from SubmitMessage to EndMessage.

use pombo_tests::{
    installation::Agent,
    mail::{self, Mail},
};

use crate::support::{SOON, count, pombo, quick, report, reports, state_of};

#[tokio::test(flavor = "multi_thread")]
async fn submission_step_1_submitmessage_passes_the_message_and_whom_to_consider()
-> anyhow::Result<()> {
    let pombo = quick()
        .agent(Agent::scripted("own").line("addresses = [\"SMTP:*@own.example\"]"))
        .agent(Agent::maildir("local", &["SMTP:*@local.example"]))
        .start()
        .await?;
    let sent = Mail::with_dots();
    let to = ["ok+1@own.example", "bob@local.example", "ok+2@own.example"];
    let id = pombo.submit(&[], &to, &sent).await;

    let trace = pombo.in_state(&id, "finished", SOON).await;
    assert!(
        to.iter()
            .all(|it| state_of(&trace, it)["state"] == "delivered")
    );
    let submits = pombo.journal("own").all("submit");
    assert_eq!(submits.len(), 1, "{submits:?}");
    let submit = &submits[0];
    assert_eq!(submit.text("id"), id);
    assert_eq!(
        submit.list("recipients"),
        ["ok+1@own.example", "ok+2@own.example"]
    );
    assert_eq!(submit.list("all"), to);
    assert_eq!(submit.text("sender"), "alice@home.example");
    assert!(!submit.flag("begin_deferred"));
    assert_eq!(
        mail::is_intact(submit.text("body").as_bytes(), &sent.bytes()),
        Ok(())
    );
    let local = pombo.delivered_to("bob@local.example");
    assert_eq!(local.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn submission_step_2_the_reference_comes_first_and_names_the_message() -> anyhow::Result<()> {
    let pombo = pombo().await?;
    let journal = pombo.journal("own");
    let one = pombo.submit(&[], &["slow+1@a.example"], &Mail::new()).await;
    let two = pombo.submit(&[], &["slow+2@a.example"], &Mail::new()).await;
    let first = journal.wait_about(SOON, "reference", 1, &one).await;
    let second = journal.wait_about(SOON, "reference", 1, &two).await;
    assert!(first.number("reference") >= 2 && second.number("reference") >= 2);
    assert_ne!(first.number("reference"), second.number("reference"));

    // Of two under way, the reference says which one is cancelled.
    let answer = pombo.pombo(&["cancel", &two]).await.succeeds();
    assert!(answer.contains("in time"), "{answer}");
    assert_eq!(count(&journal.story(&one), "cancelled"), 0);
    pombo.open_gate("own", "slow+1");
    pombo.in_state(&one, "finished", SOON).await;
    let story = journal.story(&one);
    assert_eq!(story, ["submit", "reference", "returned", "end", "ended"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn submission_step_3_responsibility_is_per_recipient_and_what_is_left_goes_on()
-> anyhow::Result<()> {
    let pombo = quick()
        .agent(Agent::scripted("own").line("addresses = [\"SMTP\"]"))
        .agent(Agent::maildir("next", &["SMTP:*@a.example"]))
        .start()
        .await?;
    let to = ["ok@a.example", "fail@a.example", "left@a.example"];
    let id = pombo
        .submit(&["--notify", "never"], &to, &Mail::new())
        .await;
    let trace = pombo.in_state(&id, "finished", SOON).await;
    assert_eq!(state_of(&trace, "ok@a.example")["state"], "delivered");
    assert_eq!(state_of(&trace, "ok@a.example")["transport"], "own");
    assert_eq!(state_of(&trace, "fail@a.example")["state"], "failed");
    assert_eq!(state_of(&trace, "fail@a.example")["transport"], "own");
    assert_eq!(state_of(&trace, "left@a.example")["state"], "delivered");
    assert_eq!(state_of(&trace, "left@a.example")["transport"], "next");
    assert_eq!(pombo.delivered_to("left@a.example").len(), 1);
    assert!(pombo.delivered_to("fail@a.example").is_empty());
    assert_eq!(pombo.journal("own").all("submit").len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn submission_step_4_statusrecips_reports_while_under_way_once_per_recipient()
-> anyhow::Result<()> {
    let pombo = pombo().await?;
    let to = ["statusok@a.example", "statusfail@a.example"];
    let id = pombo
        .submit(&["--notify", "success,failure"], &to, &Mail::new())
        .await;
    let trace = pombo.in_state(&id, "finished", SOON).await;
    let ok = state_of(&trace, to[0]);
    assert_eq!(ok["state"], "delivered");
    assert_eq!(ok["text"], "250 said by StatusRecips");
    let failed = state_of(&trace, to[1]);
    assert_eq!(failed["state"], "failed");
    assert!(
        failed["text"]
            .as_str()
            .is_some_and(|it| it.contains("said by StatusRecips"))
    );

    let journal = pombo.journal("own");
    let ndr = report(&journal, "REPORT.IPM.Note.NDR").await;
    assert_eq!(ndr.list("recipients"), ["alice@home.example"]);
    assert!(ndr.text("body").contains("said by StatusRecips"), "{ndr:?}");
    assert!(ndr.text("body").contains("statusfail@a.example"));
    report(&journal, "REPORT.IPM.Note.DR").await;
    let mut all = reports(&journal);
    all.sort();
    assert_eq!(all, ["REPORT.IPM.Note.DR", "REPORT.IPM.Note.NDR"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn submission_step_5_endmessage_hands_over_once_and_ends_the_reference() -> anyhow::Result<()>
{
    let pombo = pombo().await?;
    let id = pombo.submit(&[], &["ok@a.example"], &Mail::new()).await;
    pombo.in_state(&id, "finished", SOON).await;
    let journal = pombo.journal("own");
    assert_eq!(
        journal.story(&id),
        ["submit", "reference", "returned", "end", "ended"]
    );
    let about = journal.about(&id);
    assert_eq!(about[1].number("reference"), about[3].number("reference"));
    assert_eq!(about[3].text("suggested"), "Sent");
    Ok(())
}
