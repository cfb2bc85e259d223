//! What the sender is told.

use pombo_tests::{
    Installation, eventually,
    installation::Agent,
    mail::{self, Mail},
    scripted::journal::Entry,
};

use crate::support::{QUICK, SOON, own, pombo, quick, report, reports, state_of};

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
