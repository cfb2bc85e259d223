//! Every command of `pombo`: what it does, what it prints for people and for programs, and its exit codes.

mod relay;

use std::{os::unix::fs::symlink, path::Path, time::Duration};

use pombo_tests::{
    Broker, Installation, Sink, eventually,
    mail::{self, Mail},
    scratch::Scratch,
    service::{self, Output},
    sink::{Gate, Stage, at, nobody},
};
use serde_json::Value;

use relay::{LONG, SOON, nothing_is_left, started};

/// Far enough away that no second try happens by itself in a test.
const SLOW_RETRY: &str = "[schedule]\nfirst = \"1h\"\nmax = \"2h\"";

async fn installation(world: &Sink) -> anyhow::Result<Installation> {
    use pombo_tests::installation::Agent;
    started(
        Installation::builder()
            .agent(Agent::smtp_listener("door").relay_for_everyone())
            .agent(Agent::smtp("out").smarthost(world.address()))
            .spooler_lines(SLOW_RETRY),
    )
    .await
}

async fn submit(pombo: &Installation, args: &[&str], mail: &[u8]) -> String {
    let args = [&["--json", "submit", "-i"], args].concat();
    let output = pombo.pombo_with(&args, mail).await;
    output.json()["id"].as_str().expect("an id").to_owned()
}

async fn json(pombo: &Installation, args: &[&str]) -> Value {
    let output = pombo.pombo(&[&["--json"], args].concat()).await;
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

async fn is_in_state(pombo: &Installation, id: &str, state: &str) -> Value {
    eventually(SOON, &format!("{id} is {state}"), || async {
        // A spooler that is about to have its broker again does not answer yet.
        let why = pombo.pombo(&["--json", "why", id]).await.stdout;
        let why: Value = serde_json::from_str(&why).unwrap_or_default();
        if why["state"] == state {
            Ok(why)
        } else {
            Err(why)
        }
    })
    .await
}

/// The ids that `pombo queue` lists with these filters.
async fn queued(pombo: &Installation, filters: &[&str]) -> Vec<String> {
    let rows = json(pombo, &[&["queue"], filters].concat()).await;
    let ids = rows
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| row["id"].as_str().expect("an id").to_owned());
    let mut ids: Vec<_> = ids.collect();
    ids.sort();
    ids
}

fn sorted(ids: &[&String]) -> Vec<String> {
    let mut ids: Vec<String> = ids.iter().map(|&id| id.clone()).collect();
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_takes_messages_as_sendmail_does() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let pombo = installation(&world).await?;
    let scratch = Scratch::new("command-line")?;

    // Recipients named, the sender from the message; a line feed becomes CRLF, and a lone dot ends it.
    let text = "From: Ann <ann@example.org>\nSubject: x\n\nhello\n.\nnot this\n";
    let id = pombo
        .pombo_with(&["submit", "named@example.net"], text.as_bytes())
        .await
        .succeeds();
    assert_eq!(id.trim().len(), 32, "{id:?}");
    let taken = world.mail_for("named@example.net", SOON).await;
    assert_eq!(taken.from, "ann@example.org");
    let wanted = "From: Ann <ann@example.org>\r\nSubject: x\r\n\r\nhello\r\n";
    assert_eq!(mail::is_intact(&taken.data, wanted.as_bytes()), Ok(()));

    // -i: the dot is content.
    pombo
        .pombo_with(
            &["submit", "-i", "-f", "<>", "dots@example.net"],
            text.as_bytes(),
        )
        .await
        .succeeds();
    let taken = world.mail_for("dots@example.net", SOON).await;
    assert_eq!(taken.from, "");
    assert_eq!(
        mail::is_intact(&taken.data, text.replace('\n', "\r\n").as_bytes()),
        Ok(())
    );

    // -t: recipients from the header, blind copies are blind.
    let text = "From: ann@example.org\r\nTo: to@example.net, \"C, D\" <cd@example.net>\r\nCc: cc@example.net\r\nBcc: bcc@example.net,\r\n\tbcc2@example.net\r\nSubject: x\r\n\r\nBcc: is text here\r\n";
    let file = scratch.write("mail.eml", text)?;
    pombo
        .pombo(&[
            "submit",
            "-t",
            "-f",
            "other@example.org",
            "--file",
            &file.to_string_lossy(),
        ])
        .await
        .succeeds();
    let without = text.replace("Bcc: bcc@example.net,\r\n\tbcc2@example.net\r\n", "");
    for to in ["to", "cd", "cc", "bcc", "bcc2"] {
        let taken = world.mail_for(&format!("{to}@example.net"), SOON).await;
        assert_eq!(taken.from, "other@example.org");
        assert_eq!(
            mail::is_intact(&taken.data, without.as_bytes()),
            Ok(()),
            "{to}"
        );
    }

    // As a link named sendmail, with its options; the broker is named by the environment.
    let link = scratch.join("sendmail");
    symlink(service::binary("pombo"), &link)?;
    let config = pombo.directory().join("pombo.toml");
    let config = config.to_string_lossy();
    let args = [
        "--config",
        &*config,
        "-oi",
        "-F",
        "Ann",
        "-f",
        "ann@example.org",
        "link@example.net",
    ];
    service::run(&link, &args, b"Subject: x\n\n.\nx\n")
        .await?
        .succeeds();
    let taken = world.mail_for("link@example.net", SOON).await;
    assert_eq!(
        mail::is_intact(&taken.data, b"Subject: x\r\n\r\n.\r\nx\r\n"),
        Ok(())
    );

    // The same key is the same message.
    let mail = Mail::new();
    let args = [
        "-f",
        "ann@example.org",
        "--key",
        "order-42",
        "--priority",
        "urgent",
        "key@example.net",
    ];
    let first = submit(&pombo, &args, &mail.bytes()).await;
    is_in_state(&pombo, &first, "finished").await;
    assert_eq!(submit(&pombo, &args, &mail.bytes()).await, first);
    // Leased and found finished.
    nothing_is_left(&pombo, LONG).await;
    world.look(|seen| assert_eq!(seen.copies(mail.id(), "key@example.net"), 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_use_refusals_and_absence_have_their_exit_codes() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let pombo = installation(&world).await?;
    // 0: help and version are asked for.
    pombo.pombo(&["--help"]).await.succeeds();
    pombo.pombo(&["--version"]).await.succeeds();
    // 64: used wrongly.
    for args in [
        &["fly"][..],
        &[],
        &["trace"],
        &["trace", "not-an-id"],
        &["retry"],
        &["submit"],
        &["submit", "--at", "soon", "a@b.example"],
        &["submit", "--priority", "high", "a@b.example"],
        &["submit", "--notify", "maybe", "a@b.example"],
        &["submit", "--file", "/nonexistent", "a@b.example"],
        &["queue", "--state", "lost"],
    ] {
        let output = pombo.pombo(args).await;
        assert!(!output.stderr.is_empty(), "{output:?}");
        output.exits(64);
    }
    // 65: the message is refused.
    for to in [
        "no-domain",
        "a@b@",
        "a b@example.net",
        "a@example.net>\r\nDATA",
    ] {
        let output = pombo
            .pombo_with(&["submit", "-f", "a@example.org", to], b"x\n")
            .await;
        assert!(output.stderr.contains("5.1.3"), "{output:?}");
        output.exits(65);
    }
    // 1: nothing found, nothing changed.
    let unknown = "01a2000000008000800000000000002a";
    let why = pombo.pombo(&["why", unknown]).await;
    assert!(why.stdout.contains("nobody holds it"), "{why:?}");
    why.exits(1);
    for args in [
        &["trace", unknown][..],
        &["cancel", unknown],
        &["retry", unknown],
        &["hold", "--all"],
        &["release", "--all"],
        &["dead", "requeue", "--all"],
        &["dead", "drop", unknown],
        &["flush", "nobody"],
    ] {
        pombo.pombo(args).await.exits(1);
        let output = pombo.pombo(&[&["--json"], args].concat()).await;
        serde_json::from_str::<Value>(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        output.exits(1);
    }
    // 78: wrong configuration.
    let scratch = Scratch::new("command-line")?;
    let bad = scratch.write("bad.toml", "[broker]\naddresses = [\"http://x\"]\n")?;
    for args in [
        ["--config", &*bad.to_string_lossy(), "queue"],
        ["--config", "/nonexistent.toml", "queue"],
    ] {
        run(&args).await.exits(78);
    }
    // 64: a password where everybody sees it; and it is not said again.
    let seen = "amqp://guest:s3cret@127.0.0.1/%2f";
    for args in [["--broker", seen, "queue"], ["queue", "--broker", seen]] {
        let output = run(&args).await;
        assert!(!output.stderr.contains("s3cret"), "{output:?}");
        output.exits(64);
    }
    let joined = format!("--broker={seen}");
    run(&[&joined, "queue"]).await.exits(64);
    // 69: no broker; a broker without a spooler.
    let broker = format!("amqp://{}/%2f", nobody());
    let output = run(&["--broker", &broker, "--patience", "2s", "queue"]).await;
    assert!(output.stderr.contains("broker"), "{output:?}");
    output.exits(69);
    let shared = Broker::shared().await;
    let output = run(&[
        "--broker",
        &shared.address(),
        "--prefix",
        &shared.fresh_prefix(),
        "--patience",
        "8s",
        "queue",
    ])
    .await;
    assert!(output.stderr.contains("no spooler"), "{output:?}");
    output.exits(69);
    Ok(())
}

async fn run(args: &[&str]) -> Output {
    service::run(&service::binary("pombo"), args, b"")
        .await
        .unwrap_or_else(|e| panic!("{e:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn trace_and_why_tell_of_waiting_moving_and_finished_messages() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let gate = Gate::closed();
    world.rule(at(Stage::Dot).recipient("moving@example.net").hold(&gate));
    world.rule(
        at(Stage::Rcpt)
            .recipient("waiting@example.net")
            .first(1)
            .reply("450 4.2.1 box is busy"),
    );
    world.rule(
        at(Stage::Rcpt)
            .recipient("gone@example.net")
            .reply("550 5.1.1 no such user"),
    );
    let pombo = installation(&world).await?;
    let from = ["-f", "ann@example.org"];
    let finished = submit(
        &pombo,
        &[&from[..], &["bob@example.net"]].concat(),
        &Mail::new().bytes(),
    )
    .await;
    let waiting = submit(
        &pombo,
        &[&from[..], &["waiting@example.net"]].concat(),
        &Mail::new().bytes(),
    )
    .await;
    let moving = submit(
        &pombo,
        &[&from[..], &["moving@example.net"]].concat(),
        &Mail::new().bytes(),
    )
    .await;
    let failed = submit(
        &pombo,
        &["-f", "<>", "gone@example.net", "eve@example.net"],
        &Mail::new().bytes(),
    )
    .await;
    let later = submit(
        &pombo,
        &[
            "-f",
            "ann@example.org",
            "--at",
            "1h",
            "--expires",
            "2h",
            "bob@example.net",
        ],
        &Mail::new().bytes(),
    )
    .await;

    gate.reached_by(1, SOON).await;
    for (id, state) in [
        (&finished, "finished"),
        (&waiting, "waiting"),
        (&moving, "moving"),
        (&failed, "finished"),
        (&later, "waiting"),
    ] {
        let why = is_in_state(&pombo, id, state).await;
        assert!(
            why["waiting_for"].is_string() && why["since"].is_number(),
            "{why}"
        );
        let trace = json(&pombo, &["trace", id]).await;
        assert_eq!(trace["id"], **id);
        assert_eq!(trace["state"], state, "{trace}");
        let timeline = trace["timeline"].as_array().expect("a timeline");
        assert!(
            timeline.iter().any(|event| event["what"] == "accepted"),
            "{trace}"
        );
        // For people, the same words.
        let text = pombo.pombo(&["trace", id]).await.succeeds();
        assert!(text.contains(id.as_str()) && text.contains(state), "{text}");
        let text = pombo.pombo(&["why", id]).await.succeeds();
        assert!(text.contains(state) && text.contains("since"), "{text}");
    }
    let why = json(&pombo, &["why", &moving]).await;
    assert!(
        why["holder"]
            .as_str()
            .is_some_and(|holder| holder.contains("spooler-1")),
        "{why}"
    );
    let trace = json(&pombo, &["trace", &waiting]).await;
    assert!(
        trace["recipients"][0]["text"]
            .as_str()
            .is_some_and(|text| text.contains("box is busy")),
        "{trace}"
    );
    assert_eq!(trace["recipients"][0]["tries"], 1);
    assert!(trace["due"].is_number(), "{trace}");
    let trace = json(&pombo, &["trace", &failed]).await;
    let states: Vec<_> = trace["recipients"]
        .as_array()
        .expect("recipients")
        .iter()
        .map(|it| it["state"].clone())
        .collect();
    assert_eq!(states, ["failed", "delivered"], "{trace}");

    gate.open();
    is_in_state(&pombo, &moving, "finished").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_is_filtered_and_messages_are_held_released_retried_and_cancelled()
-> anyhow::Result<()> {
    let world = Sink::start().await?;
    world.rule(
        at(Stage::Rcpt)
            .domain("slow.example")
            .reply("450 4.2.1 not now"),
    );
    let pombo = installation(&world).await?;
    let a = submit(
        &pombo,
        &["-f", "ann@example.org", "a@slow.example"],
        &Mail::new().bytes(),
    )
    .await;
    let b = submit(
        &pombo,
        &["-f", "ben@example.org", "b@slow.example"],
        &Mail::new().bytes(),
    )
    .await;
    let later = submit(
        &pombo,
        &["-f", "ann@example.org", "--at", "1h", "c@example.net"],
        &Mail::new().bytes(),
    )
    .await;
    for id in [&a, &b, &later] {
        is_in_state(&pombo, id, "waiting").await;
    }
    assert_eq!(queued(&pombo, &[]).await, sorted(&[&a, &b, &later]));
    assert_eq!(
        queued(&pombo, &["--destination", "slow.example"]).await,
        sorted(&[&a, &b])
    );
    assert_eq!(
        queued(&pombo, &["--sender", "ann@example.org"]).await,
        sorted(&[&a, &later])
    );
    assert_eq!(
        queued(&pombo, &["--recipient", "c@example.net"]).await,
        sorted(&[&later])
    );
    assert_eq!(
        queued(
            &pombo,
            &["--transport", "out", "--sender", "ben@example.org"]
        )
        .await,
        sorted(&[&b])
    );
    assert_eq!(
        queued(&pombo, &["--state", "waiting", "--limit", "1"])
            .await
            .len(),
        1
    );
    assert_eq!(queued(&pombo, &["--state", "held"]).await, sorted(&[]));
    let text = pombo.pombo(&["queue"]).await.succeeds();
    assert!(text.contains(&a) && text.contains("slow.example"), "{text}");

    // Hold: nothing makes it go.
    assert_eq!(
        json(&pombo, &["hold", "--destination", "slow.example"]).await["changed"],
        2
    );
    assert_eq!(
        queued(&pombo, &["--state", "held"]).await,
        sorted(&[&a, &b])
    );
    world.accept_everything();
    pombo
        .pombo(&["retry", "--destination", "slow.example"])
        .await
        .exits(1);
    // Release makes it due; retry by id does the same for one that waits.
    assert_eq!(
        pombo.pombo(&["release", &a]).await.succeeds().trim(),
        "1 messages released"
    );
    world.mail_for("a@slow.example", SOON).await;
    is_in_state(&pombo, &a, "finished").await;
    is_in_state(&pombo, &b, "held").await;
    // Cancel: in time, and then too late.
    let cancelled = json(&pombo, &["cancel", &b]).await;
    println!("{cancelled}");
    let text = format!("{cancelled}").to_lowercase();
    assert!(
        text.contains("time") || text.contains("asked"),
        "{cancelled}"
    );
    is_in_state(&pombo, &b, "finished").await;
    pombo.pombo(&["cancel", &a]).await.exits(1);
    assert_eq!(
        pombo.pombo(&["cancel", &later]).await.succeeds().trim(),
        "in time: nobody was sent to"
    );
    nothing_is_left(&pombo, SOON).await;
    world.look(|seen| assert_eq!(seen.accepted(), 1, "{}", seen.summary()));

    // Retry: one that waits an hour goes now.
    world.rule(
        at(Stage::Rcpt)
            .recipient("d@slow.example")
            .first(1)
            .reply("450 4.2.1 not now"),
    );
    let d = submit(
        &pombo,
        &["-f", "ann@example.org", "d@slow.example"],
        &Mail::new().bytes(),
    )
    .await;
    is_in_state(&pombo, &d, "waiting").await;
    pombo.pombo(&["retry", &d]).await.succeeds();
    world.mail_for("d@slow.example", SOON).await;
    is_in_state(&pombo, &d, "finished").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn transports_are_shown_and_flushed_and_dead_messages_requeued_and_dropped()
-> anyhow::Result<()> {
    let world = Sink::start().await?;
    let broker = Broker::shared().await;
    let pombo = {
        use pombo_tests::installation::Agent;
        let builder = Installation::builder()
            .agent(Agent::smtp_listener("door").relay_for_everyone())
            .agent(Agent::smtp("out").smarthost(world.address()))
            .spooler_lines(SLOW_RETRY)
            .broker(broker);
        started(builder).await?
    };
    pombo.has_sessions(2, SOON).await;
    let rows = json(&pombo, &["transports"]).await;
    let names: Vec<_> = rows
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| row["transport"].clone())
        .collect();
    assert_eq!(names, ["door", "out"], "{rows}");
    assert!(
        rows[1]["credit"].as_u64().is_some_and(|credit| credit > 0),
        "{rows}"
    );
    let text = pombo.pombo(&["transports"]).await.succeeds();
    assert!(
        text.contains("spooler-1") && text.contains("available"),
        "{text}"
    );
    assert_eq!(json(&pombo, &["flush"]).await["changed"], 2);
    assert_eq!(
        json(&pombo, &["flush", "out", "--upload"]).await["changed"],
        1
    );

    // A large body that vanishes from the blob store makes a dead message.
    world.rule(
        at(Stage::Rcpt)
            .domain("slow.example")
            .first(2)
            .reply("450 4.2.1 not now"),
    );
    let mut ids = Vec::new();
    for to in ["keep@slow.example", "drop@slow.example"] {
        let mail = Mail::new().size(100_000);
        let id = submit(&pombo, &["-f", "ann@example.org", to], &mail.bytes()).await;
        is_in_state(&pombo, &id, "waiting").await;
        let body = blob(&pombo, &id);
        let bytes = std::fs::read(&body)?;
        std::fs::remove_file(&body)?;
        pombo.pombo(&["retry", &id]).await.succeeds();
        is_in_state(&pombo, &id, "dead").await;
        ids.push((id, body, bytes, mail));
    }
    let listed = json(&pombo, &["dead", "list"]).await;
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    let (kept, body, bytes, mail) = &ids[0];
    std::fs::write(body, bytes)?;
    assert_eq!(json(&pombo, &["dead", "requeue", kept]).await["changed"], 1);
    let taken = world.mail_for("keep@slow.example", SOON).await;
    assert_eq!(mail::is_intact(&taken.data, &mail.bytes()), Ok(()));
    assert_eq!(
        json(&pombo, &["dead", "drop", &ids[1].0]).await["changed"],
        1
    );
    is_in_state(&pombo, &ids[1].0, "finished").await;
    // Given up with a report.
    let report = world.mail_for("ann@example.org", SOON).await;
    assert_eq!(report.from, "");
    assert_eq!(json(&pombo, &["dead", "list"]).await, serde_json::json!([]));
    nothing_is_left(&pombo, SOON).await;
    Ok(())
}

/// Where a body lies.
fn blob(pombo: &Installation, id: &str) -> std::path::PathBuf {
    relay::bodies(&pombo.blobs())
        .into_iter()
        .map(|path| Path::new(&path).to_owned())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().replace('-', "") == id)
        })
        .unwrap_or_else(|| panic!("no body of {id} in {:?}", relay::bodies(&pombo.blobs())))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_spooler_is_named_and_the_store_that_is_away_means_later() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let mut pombo = installation(&world).await?;
    pombo.spooler(0).sigstop();
    let output = pombo.pombo(&["--patience", "2s", "queue"]).await;
    pombo.spooler(0).sigcont();
    output.exits(69);

    let message = Mail::new().bytes();
    let waiting = &["-f", "ann@example.org", "--at", "1h", "bob@example.net"];
    let id = submit(&pombo, waiting, &message).await;
    is_in_state(&pombo, &id, "waiting").await;
    let store = pombo.store();
    let lock = tokio::task::spawn_blocking(move || -> rusqlite::Result<_> {
        let connection = rusqlite::Connection::open(store)?;
        connection.busy_timeout(Duration::from_secs(20))?;
        connection.execute_batch("BEGIN EXCLUSIVE")?;
        Ok(connection)
    })
    .await??;
    // A change needs the store's lock; 75 says that it may be asked again.
    let output = pombo.pombo(&["hold", &id]).await;
    tokio::task::spawn_blocking(move || lock.execute_batch("ROLLBACK")).await??;
    output.exits(75);
    // Whether the first one was carried out after all is open (75): asking again settles it.
    eventually(LONG, "it is held", || async {
        pombo.pombo(&["hold", &id]).await;
        let why = pombo.pombo(&["--json", "why", &id]).await.stdout;
        let row: Value = serde_json::from_str(&why).unwrap_or_default();
        if row["state"] == "held" {
            Ok(())
        } else {
            Err(why)
        }
    })
    .await;
    Ok(())
}
