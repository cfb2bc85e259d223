//! What is said at the publish: properties, a trace, a key, and sendmail's arguments.

use pombo_proto::properties::{
    PR_DELETE_AFTER_SUBMIT, PR_SENTMAIL_ENTRYID, PR_SUBJECT, PropValue, Property,
};
use pombo_tests::{mail::Mail, service};
use serde_json::Value;

use crate::support::{SOON, count, own, pombo, quick};

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
async fn a_trace_of_the_publishers_own_is_kept_through_the_outbox_to_the_log() -> anyhow::Result<()>
{
    let mut pombo = pombo().await?;
    let theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let to = ["later-1@a.example"];
    let traced = pombo.publish_traced(&to, theirs).await?;
    let plain = pombo.publish(&to, |_| {}).await?;
    let noise = pombo.publish_traced(&to, "not a trace").await?;
    let noted = |trace: &Value| {
        let timeline = trace["timeline"].as_array().cloned().unwrap_or_default();
        let events = timeline.iter().filter(|it| it["what"] == "traceparent");
        events.map(|it| it["detail"].clone()).collect::<Vec<_>>()
    };
    let trace = pombo.in_state(&traced, "finished", SOON).await;
    assert_eq!(noted(&trace), [theirs], "{trace}");
    // Without one, the id is the trace, and needs no word.
    for id in [&plain, &noise] {
        let trace = pombo.in_state(id, "finished", SOON).await;
        assert!(noted(&trace).is_empty(), "{trace}");
    }
    let log = pombo.spooler(0).log();
    let attempts = |id: &str| -> Vec<&str> {
        let lines = log.lines().filter(|line| line.contains("attempt"));
        lines
            .filter(|line| line.contains(&format!("id={id}")))
            .collect()
    };
    let lines = attempts(&traced);
    assert!(lines.len() >= 2, "deferred, then delivered: {lines:?}");
    assert!(lines.iter().all(|line| line.contains(theirs)), "{lines:?}");
    assert!(attempts(&plain).iter().all(|line| !line.contains("trace=")));
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
