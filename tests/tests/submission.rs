//! Message submission, end to end: every numbered step of the submission model, every result of SubmitMessage and every flag
//! of EndMessage, with a transport in a process of its own that writes down what it is asked to do.

use std::time::{Duration, Instant};

use pombo_proto::{
    message::Priority,
    properties::{PR_DELETE_AFTER_SUBMIT, PR_SENTMAIL_ENTRYID, PR_SUBJECT, PropValue, Property},
};
use pombo_tests::{
    Installation, eventually,
    installation::{Agent, Builder},
    mail::{self, Mail},
    scripted::journal::{Entry, Journal},
    service,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// Short pauses, so that what is tried again comes back within a test.
const QUICK: &str = "[schedule]\nfirst = \"1s\"\nmax = \"2s\"\njitter = 0.0\nbusy = \"300ms\"\n\
    [destinations]\nrest = \"1s\"\n";

fn quick() -> Builder {
    Installation::builder().spooler_lines(QUICK)
}

/// One transport of one's own, for all Internet mail.
fn own() -> Agent {
    Agent::scripted("own").line("addresses = [\"SMTP\"]")
}

async fn pombo() -> anyhow::Result<Installation> {
    quick().agent(own()).start().await
}

/// The state of each recipient by its address.
fn state_of<'a>(trace: &'a Value, address: &str) -> &'a Value {
    let all = trace["recipients"].as_array().expect("recipients");
    all.iter()
        .find(|it| it["address"] == format!("SMTP:{address}"))
        .unwrap_or_else(|| panic!("{address} is not in {trace}"))
}

fn count(story: &[String], what: &str) -> usize {
    story.iter().filter(|it| *it == what).count()
}

/// The report of this class about `subject`, as the sender's transport got it.
async fn report(journal: &Journal, class: &str) -> Entry {
    let matches = |entry: &Entry| entry.text("class") == class;
    journal.wait_for(SOON, "submit", 1, matches).await
}

fn reports(journal: &Journal) -> Vec<String> {
    let all = journal.all("submit");
    let classes = all.iter().map(|entry| entry.text("class").to_owned());
    classes.filter(|class| class != "IPM.Note").collect()
}

// ---- the six steps

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

// ---- results of SubmitMessage

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

#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_it_and_the_sender_gets_a_report_of_non_delivery() -> anyhow::Result<()> {
    let pombo = quick()
        .agent(Agent::scripted("own").line("addresses = [\"SMTP:*@own.example\"]"))
        .agent(Agent::maildir("local", &["SMTP:*@home.example"]))
        .start()
        .await?;
    let to = ["bob@nowhere.example", "left@own.example", "ok@own.example"];
    let sent = Mail::new().subject("to nobody");
    let id = pombo.submit(&[], &to, &sent).await;
    let trace = pombo.in_state(&id, "finished", SOON).await;
    assert_eq!(state_of(&trace, to[0])["state"], "failed");
    assert_eq!(state_of(&trace, to[1])["state"], "failed");
    assert_eq!(state_of(&trace, to[2])["state"], "delivered");
    // The two are decided in two verdicts or in one: each recipient is reported once.
    let text = eventually(SOON, "reports of both", || async {
        let all = pombo.delivered_to("alice@home.example").concat();
        let text = String::from_utf8_lossy(&all).into_owned();
        let both = to[..2].iter().all(|it| {
            text.matches(&format!("Final-Recipient: rfc822; {it}"))
                .count()
                == 1
        });
        if both { Ok(text) } else { Err(text) }
    })
    .await;
    let reports = pombo.delivered_to("alice@home.example");
    let first = &reports[0];
    let kind = mail::header(first, "Content-Type").unwrap_or_default();
    assert!(kind.contains("multipart/report"), "{kind}");
    assert!(kind.contains("report-type=delivery-status"), "{kind}");
    assert_eq!(mail::header(first, "Return-Path").as_deref(), Some("<>"));
    assert!(
        text.contains("Action: failed") && text.contains("Status: 5.4.4"),
        "{text}"
    );
    assert!(
        text.contains("Subject: to nobody"),
        "the original's header is returned"
    );
    assert!(!text.contains("ok@own.example\r\nAction"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_reports_come_only_when_asked_for() -> anyhow::Result<()> {
    let pombo = pombo().await?;
    let quiet = pombo
        .submit(&[], &["ok+quiet@a.example"], &Mail::new())
        .await;
    let never = ["--notify", "never"];
    let silent = pombo
        .submit(&never, &["fail+silent@a.example"], &Mail::new())
        .await;
    let asked = ["--notify", "success"];
    let loud = pombo
        .submit(&asked, &["ok+loud@a.example"], &Mail::new())
        .await;
    let relayed = pombo
        .submit(&asked, &["relayed@a.example"], &Mail::new())
        .await;
    for id in [&quiet, &silent, &loud, &relayed] {
        pombo.in_state(id, "finished", SOON).await;
    }
    let journal = pombo.journal("own");
    let is_report = |entry: &Entry| entry.text("class") != "IPM.Note";
    journal.wait_for(SOON, "submit", 2, is_report).await;
    let all: Vec<_> = journal
        .all("submit")
        .into_iter()
        .filter(is_report)
        .collect();
    assert_eq!(all.len(), 2, "{all:?}");
    let of = |who: &str| all.iter().find(|it| it.text("body").contains(who));
    let delivered = of("ok+loud@a.example").expect("a report of delivery");
    assert!(delivered.text("body").contains("Action: delivered"));
    let handed_on = of("relayed@a.example").expect("a report of relaying");
    assert!(handed_on.text("body").contains("Action: relayed"));
    Ok(())
}

// ---- flags of EndMessage

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

// ---- what a transport sees, and what people may do

#[tokio::test(flavor = "multi_thread")]
async fn properties_that_are_not_transmittable_are_never_seen() -> anyhow::Result<()> {
    let pombo = pombo().await?;
    let id = pombo
        .publish(&["ok@a.example"], |envelope| {
            envelope.properties = vec![
                property(PR_DELETE_AFTER_SUBMIT, PropValue::Boolean(true)),
                property(PR_SUBJECT, PropValue::Text("seen".into())),
                property(PR_SENTMAIL_ENTRYID, PropValue::Binary(b"secret"[..].into())),
            ];
        })
        .await?;
    let submit = pombo
        .journal("own")
        .wait_about(SOON, "submit", 1, &id)
        .await;
    assert_eq!(submit.list("properties"), ["0x0037001F=Text(\"seen\")"]);
    Ok(())
}

fn property(tag: pombo_proto::properties::PropTag, value: PropValue) -> Property {
    Property { tag, value }
}

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

#[tokio::test(flavor = "multi_thread")]
async fn expiry_is_reported_and_a_delay_is_told_once() -> anyhow::Result<()> {
    let lines = QUICK.replace("[schedule]", "[schedule]\ndelay_warning = \"1500ms\"");
    let pombo = Installation::builder()
        .spooler_lines(&lines)
        .agent(own())
        .start()
        .await?;
    let expires = ["--expires", "5s"];
    let id = pombo
        .submit(&expires, &["later@a.example"], &Mail::new())
        .await;
    let trace = pombo.in_state(&id, "finished", SOON).await;
    assert_eq!(trace["recipients"][0]["state"], "expired");
    let journal = pombo.journal("own");
    let ndr = report(&journal, "REPORT.IPM.Note.NDR").await;
    assert!(ndr.text("body").contains("5.4.7"), "{ndr:?}");
    assert!(
        ndr.text("body").contains("not now"),
        "the last words of the other side"
    );
    let delayed = report(&journal, "REPORT.IPM.Note.Delayed").await;
    assert!(
        delayed.text("body").contains("Action: delayed"),
        "{delayed:?}"
    );
    let mut all = reports(&journal);
    all.sort();
    assert_eq!(all, ["REPORT.IPM.Note.Delayed", "REPORT.IPM.Note.NDR"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sendmail_takes_recipients_from_the_header_and_hides_blind_copies() -> anyhow::Result<()> {
    let pombo = pombo().await?;
    let link = pombo.directory().join("sendmail");
    std::os::unix::fs::symlink(service::binary("pombo"), &link)?;
    let config = pombo.directory().join("pombo.toml").display().to_string();
    let text = b"From: ann@home.example\nTo: ok+to@a.example\nCc: ok+cc@b.example\n\
        Bcc: ok+bcc@c.example\nSubject: x\n\nfirst\n.\nlast\n";
    let args = [
        "--config",
        &config,
        "-oi",
        "-t",
        "-F",
        "Ann",
        "-f",
        "bounces@home.example",
    ];
    let id = service::run(&link, &args, text).await?.succeeds();
    let id = id.trim();
    pombo.in_state(id, "finished", SOON).await;
    let submits = pombo.journal("own").all("submit");
    let mut to: Vec<_> = submits
        .iter()
        .flat_map(|it| it.list("recipients"))
        .collect();
    to.sort_unstable();
    assert_eq!(
        to,
        ["ok+bcc@c.example", "ok+cc@b.example", "ok+to@a.example"]
    );
    assert_eq!(submits[0].text("sender"), "bounces@home.example");
    let body = submits[0].text("body");
    assert!(!body.to_lowercase().contains("bcc"), "{body}");
    assert!(body.ends_with("\r\n\r\nfirst\r\n.\r\nlast\r\n"), "{body}");

    let nobody = service::run(&link, &["--config", &config], b"Subject: x\n\n").await?;
    nobody.exits(64);
    let refused = pombo.pombo_with(&["submit", "not an address"], b"x").await;
    refused.exits(65);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_is_the_same_message() -> anyhow::Result<()> {
    let pombo = quick().spoolers(2).agent(own()).start().await?;
    let key = ["--key", "ORDER-42"];
    let first = pombo.submit(&key, &["ok@a.example"], &Mail::new()).await;
    let second = pombo.submit(&key, &["ok@a.example"], &Mail::new()).await;
    assert_eq!(first, second);
    pombo.in_state(&first, "finished", SOON).await;
    let third = pombo.submit(&key, &["ok@a.example"], &Mail::new()).await;
    let other = pombo
        .submit(&["--key", "ORDER-43"], &["ok@a.example"], &Mail::new())
        .await;
    assert_eq!(first, third);
    assert_ne!(first, other);
    // What came after it has gone through: the repeats would have, too.
    pombo.in_state(&other, "finished", SOON).await;
    assert_eq!(count(&pombo.journal("own").story(&first), "submit"), 1);
    Ok(())
}

// ---- sharing

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
    let start = Instant::now();
    let mut live = Vec::new();
    for _ in 0..10 {
        live.push(pombo.publish(&["ok@live.example"], |_| {}).await?);
    }
    for id in &live {
        journal.wait_about(SOON, "ended", 1, id).await;
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
    // The gate lets a probe through now and then; without it each of the 40 would have gone once and again.
    let tried = journal.all("submit");
    let dead = tried
        .iter()
        .filter(|it| it.list("recipients") == ["neterr@dead.example"]);
    let dead = dead.count();
    assert!(dead < 30, "{dead} submissions to a dead destination");
    Ok(())
}
