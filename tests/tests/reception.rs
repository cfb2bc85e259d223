//! Message reception, end to end: every numbered step of the reception model, by push and by pull, and what must not happen in
//! between: nothing lost, nothing twice, nobody starved.

use std::time::Duration;

use pombo_tests::{
    Installation, eventually,
    installation::{Agent, Builder},
    mail::{self, Mail},
    scripted::journal::{Entry, Journal},
};

const SOON: Duration = Duration::from_secs(30);

/// Delivers from its folder, and takes nothing.
fn door(name: &str) -> Agent {
    Agent::scripted(name).delivers().line("addresses = [\"\"]")
}

/// Where everything goes that came in.
fn out() -> Agent {
    Agent::scripted("out").line("addresses = [\"SMTP\"]")
}

fn builder() -> Builder {
    Installation::builder().agent(out())
}

fn about_file(name: &str) -> impl Fn(&Entry) -> bool {
    let file = format!("{name}.eml");
    move |entry| entry.text("file") == file
}

/// Waits until the message of this file was submitted to `out`, and gives that call.
async fn arrived(pombo: &Installation, door: &str, file: &str) -> Entry {
    let saved = |entry: &Entry| entry.text("how") == "saved" && about_file(file)(entry);
    let journal = pombo.journal(door);
    let returned = journal.wait_for(SOON, "start_returned", 1, saved).await;
    pombo
        .journal("out")
        .wait_about(SOON, "submit", 1, returned.text("id"))
        .await
}

/// The position of the first such call.
fn place(journal: &Journal, what: &str, matches: impl Fn(&Entry) -> bool) -> usize {
    let entries = journal.entries();
    entries
        .iter()
        .position(|entry| entry.what() == what && matches(entry))
        .unwrap_or_else(|| panic!("no {what} in {entries:?}"))
}

// ---- the six steps

#[tokio::test(flavor = "multi_thread")]
async fn reception_step_1_push_spoolernotify_brings_startmessage() -> anyhow::Result<()> {
    let pombo = builder().agent(door("in")).start().await?;
    let journal = pombo.journal("in");
    journal.wait_for(SOON, "begin_inbound", 1, |_| true).await;
    assert!(
        journal.all("start").is_empty(),
        "nobody asks before there is mail"
    );
    pombo.incoming(
        "in",
        "a",
        "ann@x.example",
        &["ok@y.example"],
        &Mail::new().bytes(),
    );
    arrived(&pombo, "in", "a").await;
    let notified = place(&journal, "new_mail", about_file("a"));
    let begun = place(&journal, "begin_inbound", |_| true);
    let asked = place(&journal, "start", |_| true);
    assert!(begun < notified && notified < asked);
    assert!(journal.all("poll").is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn reception_step_1_pull_poll_brings_startmessage() -> anyhow::Result<()> {
    let pombo = builder()
        .agent(door("in").line("poll = true"))
        .start()
        .await?;
    let journal = pombo.journal("in");
    journal
        .wait_for(SOON, "poll", 2, |it| it.number("incoming") == 0)
        .await;
    assert!(
        journal.all("start").is_empty(),
        "an empty poll brings nothing"
    );
    pombo.incoming(
        "in",
        "a",
        "ann@x.example",
        &["ok@y.example"],
        &Mail::new().bytes(),
    );
    arrived(&pombo, "in", "a").await;
    let polled = place(&journal, "poll", |it| it.number("incoming") == 1);
    let begun = place(&journal, "begin_inbound", |_| true);
    let asked = place(&journal, "start", |_| true);
    assert!(begun < polled && polled < asked);
    assert!(journal.all("new_mail").is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn reception_step_2_startmessage_comes_for_each_message() -> anyhow::Result<()> {
    let pombo = builder().agent(door("in")).start().await?;
    let journal = pombo.journal("in");
    let names: Vec<String> = (0..20).map(|n| format!("m+{n}")).collect();
    for name in &names {
        pombo.incoming(
            "in",
            name,
            "ann@x.example",
            &["ok@y.example"],
            &Mail::new().bytes(),
        );
    }
    for name in &names {
        arrived(&pombo, "in", name).await;
    }
    assert!(journal.all("start").len() >= names.len());
    let returned = journal.all("start_returned");
    assert_eq!(returned.len(), names.len(), "each file once: {returned:?}");
    assert_eq!(pombo.journal("out").all("submit").len(), names.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn reception_step_3_references_tell_messages_apart() -> anyhow::Result<()> {
    let pombo = builder().agent(door("in")).start().await?;
    let journal = pombo.journal("in");
    for name in ["slow+1", "slow+2"] {
        pombo.incoming(
            "in",
            name,
            "ann@x.example",
            &["ok@y.example"],
            &Mail::new().bytes(),
        );
    }
    // Both are under way at the same time; the second one is let go first.
    let one = journal
        .wait_for(SOON, "start_reference", 1, about_file("slow+1"))
        .await;
    let two = journal
        .wait_for(SOON, "start_reference", 1, about_file("slow+2"))
        .await;
    assert_ne!(one.number("reference"), two.number("reference"));
    assert!(one.number("reference") >= 2 && two.number("reference") >= 2);
    assert!(journal.all("start_returned").is_empty());
    pombo.open_gate("in", "slow+2");
    arrived(&pombo, "in", "slow+2").await;
    assert_eq!(journal.all("start_returned").len(), 1);
    pombo.open_gate("in", "slow+1");
    arrived(&pombo, "in", "slow+1").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn reception_step_4_the_message_is_complete() -> anyhow::Result<()> {
    let pombo = Installation::builder()
        .agent(out().line("takes_ms = 0"))
        .agent(door("in"))
        .start()
        .await?;
    let sent = Mail::with_dots();
    let to = ["ok+1@y.example", "ok+2@z.example", "ok+3@y.example"];
    pombo.incoming("in", "a", "ann@x.example", &to, &sent.bytes());
    let submit = arrived(&pombo, "in", "a").await;
    assert_eq!(submit.text("sender"), "ann@x.example");
    assert_eq!(submit.list("all"), to);
    assert_eq!(
        mail::is_intact(submit.text("body").as_bytes(), &sent.bytes()),
        Ok(())
    );
    let trace = pombo.in_state(submit.text("id"), "finished", SOON).await;
    assert!(
        trace["source"]
            .as_str()
            .is_some_and(|it| it.starts_with("in")),
        "{trace}"
    );
    // Larger than what travels inline: through the blob store, and gone from there in the end.
    let large = Mail::new().size(300_000);
    pombo.incoming(
        "in",
        "b",
        "ann@x.example",
        &["ok@y.example"],
        &large.bytes(),
    );
    let submit = arrived(&pombo, "in", "b").await;
    assert_eq!(
        mail::is_intact(submit.text("body").as_bytes(), &large.bytes()),
        Ok(())
    );
    pombo.in_state(submit.text("id"), "finished", SOON).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn reception_step_5_savechanges_commits_before_the_foreign_system_hears_done()
-> anyhow::Result<()> {
    let mut pombo = builder().agent(door("in")).start().await?;
    pombo.has_sessions(2, SOON).await;
    // Nobody leases: what is saved lies in the spool, and only there.
    pombo.agent("out").sigstop();
    pombo.incoming(
        "in",
        "a",
        "ann@x.example",
        &["ok@y.example"],
        &Mail::new().bytes(),
    );
    let journal = pombo.journal("in");
    let returned = journal
        .wait_for(SOON, "start_returned", 1, about_file("a"))
        .await;
    assert_eq!(returned.text("how"), "saved");
    let file = pombo.drop_folder("in").join("a.eml");
    eventually(SOON, "the file is gone", || async { !file.exists() }).await;
    pombo.agent("out").sigcont();
    let id = returned.text("id");
    pombo.in_state(id, "finished", SOON).await;
    let submit = pombo.journal("out").wait_about(SOON, "submit", 1, id).await;
    assert_eq!(submit.text("sender"), "ann@x.example");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn reception_step_6_a_stopped_delivery_stays_where_it_is_and_comes_again()
-> anyhow::Result<()> {
    let mut pombo = builder().agent(door("in")).start().await?;
    let journal = pombo.journal("in");
    pombo.incoming(
        "in",
        "slow",
        "ann@x.example",
        &["ok@y.example"],
        &Mail::new().bytes(),
    );
    journal
        .wait_for(SOON, "start_reference", 1, about_file("slow"))
        .await;
    // The spooler goes down and must stop the delivery.
    assert_eq!(pombo.spooler(0).terminate_and_wait(SOON).await?, 0);
    journal
        .wait_for(SOON, "start_cancelled", 1, about_file("slow"))
        .await;
    let returned = journal.wait_for(SOON, "start_returned", 1, |_| true).await;
    assert_eq!(returned.text("how"), "cancelled");
    assert!(pombo.drop_folder("in").join("slow.eml").exists());
    assert!(pombo.journal("out").all("submit").is_empty());
    pombo.open_gate("in", "slow");
    pombo.spooler(0).start_again()?;
    arrived(&pombo, "in", "slow").await;
    assert_eq!(pombo.journal("out").all("submit").len(), 1);
    Ok(())
}

// ---- what else may happen to a delivery

#[tokio::test(flavor = "multi_thread")]
async fn nothing_after_all_is_no_message() -> anyhow::Result<()> {
    let pombo = builder().agent(door("in")).start().await?;
    let journal = pombo.journal("in");
    pombo.incoming(
        "in",
        "nothing",
        "ann@x.example",
        &["ok@y.example"],
        &Mail::new().bytes(),
    );
    let returned = journal.wait_for(SOON, "start_returned", 1, |_| true).await;
    assert_eq!(returned.text("how"), "nothing");
    pombo.incoming(
        "in",
        "a",
        "ann@x.example",
        &["ok@y.example"],
        &Mail::new().bytes(),
    );
    arrived(&pombo, "in", "a").await;
    assert_eq!(pombo.journal("out").all("submit").len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_loses_nothing_and_makes_no_second_copy() -> anyhow::Result<()> {
    let pombo = builder()
        .agent(door("push"))
        .agent(door("pull").line("poll = true"))
        .start()
        .await?;
    for name in ["push", "pull"] {
        let to = format!("ok+{name}@y.example");
        pombo.incoming(
            name,
            "fail-2",
            "ann@x.example",
            &[to.as_str()],
            &Mail::new().bytes(),
        );
    }
    for name in ["push", "pull"] {
        arrived(&pombo, name, "fail-2").await;
        let returned = pombo.journal(name).all("start_returned");
        let how: Vec<&str> = returned.iter().map(|it| it.text("how")).collect();
        assert_eq!(how, ["failed", "failed", "saved"], "{name}");
    }
    assert_eq!(pombo.journal("out").all("submit").len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_fetched_between_end_inbound_and_begin_inbound() -> anyhow::Result<()> {
    let mut pombo = builder().agent(door("in")).start().await?;
    let journal = pombo.journal("in");
    journal.wait_for(SOON, "begin_inbound", 1, |_| true).await;
    assert_eq!(pombo.spooler(0).terminate_and_wait(SOON).await?, 0);
    journal.wait_for(SOON, "end_inbound", 1, |_| true).await;
    journal.wait_for(SOON, "end_outbound", 1, |_| true).await;
    pombo.incoming(
        "in",
        "a",
        "ann@x.example",
        &["ok@y.example"],
        &Mail::new().bytes(),
    );
    pombo.spooler(0).start_again()?;
    arrived(&pombo, "in", "a").await;
    let ended = place(&journal, "end_inbound", |_| true);
    let asked = place(&journal, "start", |_| true);
    let entries = journal.entries();
    let again = entries[ended..asked].iter();
    assert_eq!(again.filter(|it| it.what() == "begin_inbound").count(), 1);

    // The agent's own drain says END to the transport, too, and Shutdown last of all.
    assert_eq!(pombo.agent("in").terminate_and_wait(SOON).await?, 0);
    let entries = journal.entries();
    assert_eq!(entries.last().map(Entry::what), Some("shutdown"));
    assert_eq!(journal.all("end_inbound").len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_notifications_is_coalesced_and_others_get_their_turn() -> anyhow::Result<()> {
    let mut pombo = builder()
        .agent(door("loud"))
        .agent(door("calm"))
        .start()
        .await?;
    for name in ["loud", "calm"] {
        let journal = pombo.journal(name);
        journal.wait_for(SOON, "begin_inbound", 1, |_| true).await;
    }
    // While one shouts, the other one's mail goes through as always.
    for round in 0..5 {
        pombo.command("loud", "notify-4000");
        let name = format!("m+{round}");
        pombo.incoming(
            "calm",
            &name,
            "ann@x.example",
            &["ok@y.example"],
            &Mail::new().bytes(),
        );
        arrived(&pombo, "calm", &name).await;
    }
    let journal = pombo.journal("loud");
    journal.wait_for(SOON, "command", 5, |_| true).await;
    let agent = pombo.agent("loud");
    let said = eventually(SOON, "all notifications are counted", || async {
        let said = agent.metric("pombo_agent_notifications_total").await?;
        anyhow::ensure!(said >= 20_000.0, "{said}");
        Ok::<_, anyhow::Error>(said)
    })
    .await;
    let sent = agent.metric("pombo_agent_notifications_sent_total").await?;
    assert!(
        sent >= 1.0 && sent * 20.0 < said,
        "{sent} of {said} were sent on"
    );
    // The last one is not lost.
    pombo.incoming(
        "loud",
        "last",
        "ann@x.example",
        &["ok@y.example"],
        &Mail::new().bytes(),
    );
    arrived(&pombo, "loud", "last").await;
    Ok(())
}

// ---- who polls

/// How many polls there are now.
fn polls(journal: &Journal) -> usize {
    journal.all("poll").len()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_turn_to_poll_is_handed_on_when_its_session_ends() -> anyhow::Result<()> {
    let mut pombo = builder()
        .spoolers(2)
        .agent(door("in").line("poll = true"))
        .start()
        .await?;
    pombo.has_sessions(4, SOON).await;
    let journal = pombo.journal("in");
    journal.wait_for(SOON, "poll", 7, |_| true).await;
    // One session polls, once a second: two would poll twice as often.
    let all = journal.all("poll");
    let five = all[6].at() - all[1].at();
    assert!(five >= Duration::from_millis(3_500), "{five:?}");
    // Whichever of the two it is, it is killed at some point.
    for number in [0, 1] {
        pombo.spooler(number).kill9();
        let before = polls(&journal);
        let name = format!("m+{number}");
        pombo.incoming(
            "in",
            &name,
            "ann@x.example",
            &["ok@y.example"],
            &Mail::new().bytes(),
        );
        journal.wait_for(SOON, "poll", before + 2, |_| true).await;
        let saved = |entry: &Entry| entry.text("how") == "saved" && about_file(&name)(entry);
        journal.wait_for(SOON, "start_returned", 1, saved).await;
        pombo.spooler(number).start_again()?;
        pombo.ready(SOON).await?;
        pombo.has_sessions(4, SOON).await;
    }
    for number in [0, 1] {
        arrived(&pombo, "in", &format!("m+{number}")).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_agent_of_a_polled_transport_polls() -> anyhow::Result<()> {
    let agent = |name: &str| door(name).transport("in").line("poll = true");
    let mut pombo = builder()
        .agent(agent("one"))
        .agent(agent("two"))
        .start()
        .await?;
    pombo.has_sessions(3, SOON).await;
    let (one, two) = (pombo.journal("one"), pombo.journal("two"));
    let polled = eventually(SOON, "one polls", || async {
        match (polls(&one), polls(&two)) {
            (3.., 0) => Some("one"),
            (0, 3..) => Some("two"),
            _ => None,
        }
    })
    .await;
    let (first, second) = if polled == "one" {
        ("one", "two")
    } else {
        ("two", "one")
    };
    pombo.incoming(
        first,
        "a",
        "ann@x.example",
        &["ok@y.example"],
        &Mail::new().bytes(),
    );
    arrived(&pombo, first, "a").await;
    assert_eq!(polls(&pombo.journal(second)), 0);
    // The other one takes over.
    pombo.agent(first).kill9();
    pombo.incoming(
        second,
        "b",
        "ann@x.example",
        &["ok@y.example"],
        &Mail::new().bytes(),
    );
    arrived(&pombo, second, "b").await;
    assert!(polls(&pombo.journal(second)) > 0);
    Ok(())
}
