//! A session's life, end to end: the calls around messages, with a transport in a process of its own that writes down what it is
//! asked to do. Idle, FlushQueues, ValidateState, critical sections, changed configuration, and what logon's flags hold back.

use std::time::Duration;

use pombo_tests::{
    Installation, eventually,
    installation::{Agent, Builder},
    mail::Mail,
    scripted::journal::{Entry, Journal},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
/// Idle comes after some seconds without anything else, so several of them take a while.
const LONG: Duration = Duration::from_secs(60);

const QUICK: &str = "[schedule]\nfirst = \"1s\"\nmax = \"2s\"\njitter = 0.0\nbusy = \"300ms\"\n\
    [destinations]\nrest = \"1s\"\n";

fn quick() -> Builder {
    Installation::builder().spooler_lines(QUICK)
}

/// For one domain.
fn own(name: &str) -> Agent {
    let line = format!("addresses = [\"SMTP:*@{name}.example\"]");
    Agent::scripted(name).line(&line)
}

/// The status rows of a transport, as `pombo transports` shows them.
async fn rows(pombo: &Installation, transport: &str) -> Vec<Value> {
    let output = pombo.pombo(&["--json", "transports", transport]).await;
    let rows: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
    rows.as_array().cloned().unwrap_or_default()
}

/// Waits until the only session of a transport has a row like this.
async fn row_that(
    pombo: &Installation,
    transport: &str,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Value {
    let what = format!("a row of {transport}: {what}");
    eventually(SOON, &what, || async {
        let rows = rows(pombo, transport).await;
        match rows.as_slice() {
            [row] if wanted(&row["status"]) => Ok(row["status"].clone()),
            _ => Err(format!("{rows:?}")),
        }
    })
    .await
}

fn anything(_: &Entry) -> bool {
    true
}

/// The calls of this kind that came later than `since` since the epoch.
fn after(journal: &Journal, what: &str, since: Duration) -> usize {
    let all = journal.all(what);
    all.iter().filter(|entry| entry.at() > since).count()
}

/// How many calls of these kinds there were.
fn count(journal: &Journal, kinds: &[&str]) -> usize {
    let all = journal.entries();
    all.iter().filter(|it| kinds.contains(&it.what())).count()
}

async fn command(pombo: &Installation, agent: &str, command: &str) -> Duration {
    let journal = pombo.journal(agent);
    pombo.command(agent, command);
    let said = |entry: &Entry| entry.text("command") == command;
    journal.wait_for(SOON, "command", 1, said).await.at()
}

// ---- Idle, CRITSEC

#[tokio::test(flavor = "multi_thread")]
async fn idle_comes_in_truly_idle_time_and_neither_it_nor_poll_in_a_critical_section()
-> anyhow::Result<()> {
    let polled = |name: &str| own(name).delivers().line("poll = true").line("idle = true");
    // Of two spoolers one has nothing to do with what keeps the transport busy.
    let pombo = quick()
        .spoolers(2)
        .agent(polled("calm"))
        .agent(polled("busy"))
        .agent(polled("critical"))
        .agent(own("unasked"))
        .start()
        .await?;
    pombo.has_sessions(8, SOON).await;
    let (calm, busy, critical) = (
        pombo.journal("calm"),
        pombo.journal("busy"),
        pombo.journal("critical"),
    );
    let id = pombo
        .submit(&[], &["slow@busy.example"], &Mail::new())
        .await;
    let began = busy.wait_about(SOON, "reference", 1, &id).await.at();
    let entered = command(&pombo, "critical", "critsec").await;

    // While the one that has nothing to do is called again and again, the others are not.
    let idle = calm
        .all("idle")
        .iter()
        .filter(|it| it.at() < entered)
        .count();
    calm.wait_for(LONG, "idle", idle + 2, anything).await;
    // What was on its way then may still have arrived.
    let settled = began + Duration::from_secs(1);
    assert_eq!(after(&busy, "idle", settled), 0, "{:?}", busy.entries());
    // What was on its way when the section began may still arrive.
    let settled = entered + Duration::from_secs(1);
    let later = |entry: &Entry| entry.at() > settled;
    calm.wait_for(SOON, "poll", 3, later).await;
    busy.wait_for(SOON, "poll", 3, later).await;
    assert_eq!(after(&critical, "idle", settled), 0);
    assert_eq!(after(&critical, "poll", settled), 0);
    assert_eq!(count(&pombo.journal("unasked"), &["idle", "poll"]), 0);

    // The end of both.
    pombo.open_gate("busy", "slow");
    pombo.in_state(&id, "finished", SOON).await;
    let left = command(&pombo, "critical", "noncrit").await;
    let later = |entry: &Entry| entry.at() > left;
    critical.wait_for(SOON, "poll", 1, later).await;
    critical.wait_for(LONG, "idle", 1, later).await;
    busy.wait_for(LONG, "idle", 1, later).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spooler_that_comes_later_hears_of_the_critical_section_too() -> anyhow::Result<()> {
    let agent = own("own").delivers().line("poll = true");
    let mut pombo = quick().agent(agent).start().await?;
    let journal = pombo.journal("own");
    journal.wait_for(SOON, "poll", 1, anything).await;
    command(&pombo, "own", "critsec").await;
    assert_eq!(pombo.spooler(0).terminate_and_wait(SOON).await?, 0);
    let polled = count(&journal, &["poll"]);
    pombo.spooler(0).start_again()?;
    // The new session stands and is used.
    let id = pombo.publish(&["ok@own.example"], |_| {}).await?;
    pombo.spooler(0).ready(SOON).await?;
    pombo.in_state(&id, "finished", SOON).await;
    let validated = pombo.pombo(&["--json", "transports", "--validate"]).await;
    let rows: Value = serde_json::from_str(&validated.exits(1))?;
    assert_eq!(rows[0]["validation"], "Busy", "{rows}");
    assert_eq!(count(&journal, &["poll"]), polled);
    command(&pombo, "own", "noncrit").await;
    journal.wait_for(SOON, "poll", polled + 1, anything).await;
    Ok(())
}

// ---- ValidateState

#[tokio::test(flavor = "multi_thread")]
async fn validatestate_answers_a_person_per_session_and_busy_in_a_critical_section()
-> anyhow::Result<()> {
    let pombo = quick()
        .spoolers(2)
        .agent(own("own"))
        .agent(own("other"))
        .start()
        .await?;
    pombo.has_sessions(4, SOON).await;
    let validate = ["--json", "transports", "own", "--validate"];
    let rows = pombo.pombo(&validate).await.json();
    let rows = rows.as_array().expect("rows");
    assert_eq!(rows.len(), 2, "one for each spooler: {rows:?}");
    assert!(rows.iter().all(|row| row["validation"] == "Ok"), "{rows:?}");
    let journal = pombo.journal("own");
    let asked = journal.all("validate");
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|it| !it.flag("config_changed")));
    assert_eq!(count(&pombo.journal("other"), &["validate"]), 0);

    command(&pombo, "own", "failing-the disk is full").await;
    let failing = pombo.pombo(&["transports", "--validate"]).await.exits(1);
    assert!(failing.contains("failing: the disk is full"), "{failing}");
    assert!(failing.contains("healthy"), "the other one is: {failing}");
    command(&pombo, "own", "healthy").await;

    let before = count(&journal, &["validate"]);
    command(&pombo, "own", "critsec").await;
    let busy = eventually(SOON, "busy", || async {
        let output = pombo.pombo(&["transports", "own", "--validate"]).await;
        match output.stdout.contains("busy") {
            true => Ok(output),
            false => Err(output.stdout),
        }
    })
    .await;
    busy.exits(1);
    // Answered for it: the transport itself is left alone in its critical section.
    let settled = count(&journal, &["validate"]);
    pombo
        .pombo(&["transports", "own", "--validate"])
        .await
        .exits(1);
    assert_eq!(count(&journal, &["validate"]), settled);
    assert!(settled <= before + 2);
    command(&pombo, "own", "noncrit").await;
    eventually(SOON, "healthy again", || async {
        let output = pombo.pombo(&["transports", "--validate"]).await;
        (output.code == 0).then_some(()).ok_or(output.stdout)
    })
    .await;
    pombo
        .pombo(&["transports", "nobody", "--validate"])
        .await
        .exits(1);
    Ok(())
}

// ---- FlushQueues

#[tokio::test(flavor = "multi_thread")]
async fn flushqueues_shows_its_bits_at_once_and_then_works() -> anyhow::Result<()> {
    let pombo = quick()
        .agent(own("own").line("slow_flush = true"))
        .agent(own("other"))
        .start()
        .await?;
    pombo.has_sessions(2, SOON).await;
    let journal = pombo.journal("own");
    let row = row_that(&pombo, "own", "open", |it| {
        it["outbound"]["enabled"] == true
    })
    .await;
    assert_eq!(row["outbound"]["flush"], false);

    pombo.pombo(&["flush", "own", "--upload"]).await.succeeds();
    // The transport has not returned and is not going to: the bits stand before its work is done.
    row_that(&pombo, "own", "flush", |it| it["outbound"]["flush"] == true).await;
    let flush = journal.wait_for(SOON, "flush", 1, anything).await;
    assert!(flush.flag("upload") && !flush.flag("download") && flush.flag("force"));
    assert_eq!(count(&journal, &["flushed"]), 0);
    let row = row_that(&pombo, "own", "flush", |it| it["outbound"]["flush"] == true).await;
    assert_eq!(row["inbound"]["flush"], false, "only what was asked for");
    // Messages flow meanwhile.
    let id = pombo.submit(&[], &["ok@own.example"], &Mail::new()).await;
    pombo.in_state(&id, "finished", SOON).await;

    // A second one, over the first: the bits stay until both are done.
    pombo.pombo(&["flush", "own"]).await.succeeds();
    let both = |it: &Value| it["outbound"]["flush"] == true && it["inbound"]["flush"] == true;
    row_that(&pombo, "own", "both directions", both).await;
    assert_eq!(count(&journal, &["flushed"]), 0);
    pombo.open_gate("own", "flush");
    let none = |it: &Value| it["outbound"]["flush"] == false && it["inbound"]["flush"] == false;
    row_that(&pombo, "own", "no flush", none).await;
    assert_eq!(count(&journal, &["flushed"]), 2);
    assert_eq!(count(&pombo.journal("other"), &["flush"]), 0);
    pombo.pombo(&["flush", "nobody"]).await.exits(1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn flushqueues_polls_at_once() -> anyhow::Result<()> {
    let agent = own("own").delivers().line("poll = true");
    let pombo = quick()
        .agent(agent)
        .transport_line("own", "poll_every = \"1h\"")
        .start()
        .await?;
    let journal = pombo.journal("own");
    journal.wait_for(SOON, "poll", 1, anything).await;
    let mail = Mail::new().bytes();
    pombo.incoming("own", "a", "ann@x.example", &["ok@own.example"], &mail);
    pombo.pombo(&["flush", "--download"]).await.succeeds();
    journal
        .wait_for(SOON, "submit", 1, |it| it.text("sender") == "ann@x.example")
        .await;
    assert_eq!(count(&journal, &["poll"]), 2);
    Ok(())
}

// ---- CONFIG_CHANGE

#[tokio::test(flavor = "multi_thread")]
async fn config_change_asks_for_the_address_types_again_and_routing_follows() -> anyhow::Result<()>
{
    let pombo = quick()
        .agent(own("first"))
        .agent(Agent::scripted("rest").line("addresses = [\"SMTP\"]"))
        .start()
        .await?;
    pombo.has_sessions(2, SOON).await;
    let (first, rest) = (pombo.journal("first"), pombo.journal("rest"));
    let send = async |address: &str| pombo.submit(&[], &[address], &Mail::new()).await;
    let before = send("ok@moved.example").await;
    rest.wait_about(SOON, "submit", 1, &before).await;
    let before = send("ok@first.example").await;
    first.wait_about(SOON, "submit", 1, &before).await;

    let asked = count(&first, &["address_types"]);
    let at = command(&pombo, "first", "addresses-SMTP:*@moved.example").await;
    let again = first
        .wait_for(SOON, "address_types", asked + 1, anything)
        .await;
    assert_eq!(again.list("types"), ["SMTP:*@moved.example"]);
    // ValidateState(CONFIG_CHANGED): read your configuration again.
    let validated = |it: &Entry| it.flag("config_changed") && it.at() >= at;
    first.wait_for(SOON, "validate", 1, validated).await;
    eventually(SOON, "the new address goes to it", || async {
        let id = send("ok@moved.example").await;
        pombo.in_state(&id, "finished", SOON).await;
        let there = !first.about(&id).is_empty();
        there.then_some(()).ok_or("it went to the rest")
    })
    .await;
    let after = send("ok@first.example").await;
    rest.wait_about(SOON, "submit", 1, &after).await;
    assert!(first.about(&after).is_empty());
    assert_eq!(count(&rest, &["address_types"]), 1, "only who said it");
    Ok(())
}

// ---- NO_CONNECT, NO_INBOUND, NO_OUTBOUND

/// What a transport is not asked to do before it may reach out.
const REACHING_OUT: &[&str] = &[
    "begin_inbound",
    "begin_outbound",
    "submit",
    "start",
    "poll",
    "idle",
    "flush",
    "validate",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_connect_keeps_a_transport_from_reaching_out() -> anyhow::Result<()> {
    let polled = |name: &str| own(name).delivers().line("poll = true").line("idle = true");
    let mut pombo = quick()
        .agent(polled("off"))
        .agent(polled("on"))
        .transport_line("off", "connect = false")
        .start()
        .await?;
    pombo.has_sessions(2, SOON).await;
    let (off, on) = (pombo.journal("off"), pombo.journal("on"));
    let row = row_that(&pombo, "off", "offline", |it| it["state"] == "Offline").await;
    assert_eq!(row["inbound"]["enabled"], false);
    assert_eq!(row["outbound"]["enabled"], false);

    let mail = Mail::new().bytes();
    pombo.incoming("off", "a", "ann@x.example", &["ok@on.example"], &mail);
    let to = ["ok@off.example", "ok@on.example"];
    let id = pombo.submit(&[], &to, &Mail::new()).await;
    on.wait_about(SOON, "submit", 1, &id).await;
    let waiting = pombo.in_state(&id, "waiting", SOON).await;
    assert_eq!(waiting["reason"], "off is away", "{waiting}");
    pombo.pombo(&["flush"]).await.succeeds();
    on.wait_for(SOON, "flush", 1, anything).await;
    let validated = pombo.pombo(&["transports", "off", "--validate"]).await;
    let said = validated.exits(1);
    assert!(said.contains("NO_CONNECT"), "{said}");
    // As long as the other one needs to be called for everything, and the flush.
    on.wait_for(LONG, "idle", 1, anything).await;
    assert_eq!(count(&off, REACHING_OUT), 0, "{:?}", off.entries());
    assert!(pombo.drop_folder("off").join("a.eml").exists());

    assert_eq!(pombo.spooler(0).terminate_and_wait(SOON).await?, 0);
    pombo
        .spooler(0)
        .start_changed("connect = false", "connect = true")?;
    pombo.in_state(&id, "finished", SOON).await;
    off.wait_about(SOON, "submit", 1, &id).await;
    let fetched = |it: &Entry| it.text("sender") == "ann@x.example";
    on.wait_for(SOON, "submit", 1, fetched).await;
    assert_eq!(count(&off, &["begin_inbound", "begin_outbound"]), 2);
    assert_eq!(
        on.about(&id)
            .iter()
            .filter(|it| it.what() == "submit")
            .count(),
        1
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_inbound_and_no_outbound_each_close_one_direction() -> anyhow::Result<()> {
    let mut pombo = quick()
        .agent(own("takes").delivers())
        .agent(own("gives").delivers())
        .transport_line("takes", "inbound = false")
        .transport_line("gives", "outbound = false")
        .start()
        .await?;
    pombo.has_sessions(2, SOON).await;
    let (takes, gives) = (pombo.journal("takes"), pombo.journal("gives"));
    takes.wait_for(SOON, "begin_outbound", 1, anything).await;
    gives.wait_for(SOON, "begin_inbound", 1, anything).await;
    let mail = Mail::new().bytes();
    pombo.incoming(
        "takes",
        "kept",
        "ann@x.example",
        &["ok@takes.example"],
        &mail,
    );
    pombo.incoming("gives", "a", "bob@x.example", &["ok@takes.example"], &mail);
    takes
        .wait_for(SOON, "submit", 1, |it| it.text("sender") == "bob@x.example")
        .await;
    let id = pombo.submit(&[], &["ok@gives.example"], &Mail::new()).await;
    pombo.in_state(&id, "waiting", SOON).await;
    assert_eq!(count(&takes, &["begin_inbound", "start"]), 0);
    assert_eq!(count(&gives, &["begin_outbound", "submit"]), 0);

    assert_eq!(pombo.spooler(0).terminate_and_wait(SOON).await?, 0);
    pombo
        .spooler(0)
        .start_changed("outbound = false", "outbound = true")?;
    pombo.in_state(&id, "finished", SOON).await;
    gives.wait_about(SOON, "submit", 1, &id).await;
    assert_eq!(
        count(&takes, &["begin_inbound", "start"]),
        0,
        "still closed"
    );
    assert!(pombo.drop_folder("takes").join("kept.eml").exists());
    Ok(())
}
