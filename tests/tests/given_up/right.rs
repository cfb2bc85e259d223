//! Who comes back when everybody has given it up sends nothing any more, and records nothing.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use pombo_proto::right::GONE_AFTER;
use pombo_tests::{
    Broker, Installation, eventually,
    installation::{Agent, Builder},
    proxy::{Proxy, Weather},
    scripted::journal::Journal,
};

use crate::{
    relay::{LONG, SOON, sum_of_metric},
    support::{GONE, is_in_state, submit},
};

fn builder() -> Builder {
    let quick = "[schedule]\nfirst = \"1s\"\nmax = \"2s\"\njitter = 0.0\nbusy = \"300ms\"\n";
    let agent = |name| {
        Agent::scripted(name)
            .transport("own")
            .line("addresses = [\"SMTP\"]\ncapacity = 40")
    };
    Installation::builder()
        .agent(agent("one"))
        .agent(agent("two"))
        .spooler_lines(quick)
}

fn count(journal: &Journal, id: &str, what: &str) -> usize {
    let story = journal.story(id);
    story.iter().filter(|it| *it == what).count()
}

/// Who has it, and who has not.
async fn whose(pombo: &Installation, id: &str) -> (&'static str, &'static str) {
    eventually(SOON, "an agent has it", || async {
        let has = |name| count(&pombo.journal(name), id, "submit") > 0;
        match (has("one"), has("two")) {
            (true, false) => Ok(("one", "two")),
            (false, true) => Ok(("two", "one")),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_stopped_until_it_was_given_up_abandons_before_its_dot()
-> anyhow::Result<()> {
    let mut pombo = builder().start().await?;
    let id = submit(&pombo, "dot@example.net").await;
    let (stopped, other) = whose(&pombo, &id).await;
    pombo.agent(stopped).sigstop();
    pombo.open_gate(other, "dot");
    is_in_state(&pombo, &id, "finished", GONE).await;
    assert_eq!(count(&pombo.journal(other), &id, "sent"), 1);
    assert_eq!(
        sum_of_metric(pombo.spoolers(), "pombo_in_doubt_total").await,
        1.0
    );

    pombo.agent(stopped).sigcont();
    // Back in service, and with the right to send what comes now, before it comes to the old dot.
    let (fresh, all) = given_to(&pombo, stopped).await;
    let_go(&pombo, &all).await;
    assert_eq!(count(&pombo.journal(stopped), &fresh, "sent"), 1);
    pombo.open_gate(stopped, "dot");
    let asked = pombo.journal(stopped);
    let asked = asked.wait_about(SOON, "may_finish", 1, &id).await;
    assert!(!asked.flag("may"), "{asked:?}");
    let sent = ["one", "two"].map(|name| count(&pombo.journal(name), &id, "sent"));
    assert_eq!(sent.iter().sum::<usize>(), 1, "{sent:?}");
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

/// Submits until the agent of this name has one, at a gate: which. Those that the other one got stay with it, so that it has less
/// credit for the next.
async fn given_to(pombo: &Installation, agent: &str) -> (String, Vec<(String, String)>) {
    let mut others = Vec::new();
    static SERIAL: AtomicUsize = AtomicUsize::new(0);
    for _ in 0..40 {
        let local = format!("dot+{}", SERIAL.fetch_add(1, Ordering::Relaxed));
        let id = submit(pombo, &format!("{local}@example.net")).await;
        if whose(pombo, &id).await.0 == agent {
            others.push((id.clone(), local));
            return (id, others);
        }
        others.push((id, local));
    }
    panic!("{agent} gets no mail");
}

/// Lets all of these go on, and waits for them.
async fn let_go(pombo: &Installation, all: &[(String, String)]) {
    for (_, local) in all {
        for name in ["one", "two"] {
            pombo.open_gate(name, local);
        }
    }
    for (id, _) in all {
        is_in_state(pombo, id, "finished", LONG).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_lost_the_broker_but_not_the_internet_abandons_before_its_dot()
-> anyhow::Result<()> {
    let broker = Broker::shared().await;
    let (network, through) = Proxy::before(broker).await?;
    let mut pombo = builder()
        .broker(broker)
        .route("one", &[through])
        .start()
        .await?;
    // The first agent is the one behind the network.
    let (id, all) = given_to(&pombo, "one").await;
    let local = &all.last().expect("the one").1;
    network.set(Weather::BlackHole);
    for (_, local) in &all {
        pombo.open_gate("two", local);
    }
    is_in_state(&pombo, &id, "finished", GONE).await;
    assert_eq!(count(&pombo.journal("two"), &id, "sent"), 1);
    // Cut off, but alive: it comes to its dot now.
    pombo.open_gate("one", local);
    let one = pombo.journal("one");
    let asked = one.wait_about(SOON, "may_finish", 1, &id).await;
    assert!(!asked.flag("may"), "{asked:?}");
    assert_eq!(count(&one, &id, "sent"), 0);
    assert_eq!(
        sum_of_metric(pombo.spoolers(), "pombo_in_doubt_total").await,
        1.0
    );
    network.set(Weather::Fine);
    pombo.ready(LONG).await?;
    let (fresh, all) = given_to(&pombo, "one").await;
    let_go(&pombo, &all).await;
    assert_eq!(count(&one, &fresh, "sent"), 1);
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spooler_that_was_stopped_until_it_was_given_up_records_and_sends_nothing_late()
-> anyhow::Result<()> {
    let mut pombo = builder().spoolers(2).start().await?;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(submit(&pombo, &format!("slow+{n}@example.net")).await);
    }
    let submitted = |pombo: &Installation| -> usize {
        let of = |name| pombo.journal(name).all("submit").len();
        of("one") + of("two")
    };
    eventually(SOON, "all are under way", || async {
        match submitted(&pombo) {
            20 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    pombo.spooler(0).sigstop();
    for n in 0..20 {
        for name in ["one", "two"] {
            pombo.open_gate(name, &format!("slow+{n}"));
        }
    }
    // Its leases come back when the broker misses its heartbeats, and are adopted from the agents that have them.
    let store = pombo.store();
    eventually(LONG, "all are recorded by the other one", || async {
        let store = rusqlite::Connection::open(&store).map_err(|e| e.to_string())?;
        let mut done = 0_u32;
        let parts = store
            .prepare("SELECT part FROM parts")
            .and_then(|mut it| {
                it.query_map([], |row| row.get::<_, u32>(0))?
                    .collect::<Result<Vec<_>, _>>()
            })
            .map_err(|e| e.to_string())?;
        for part in parts {
            let sql = format!("SELECT count(*) FROM part_{part} WHERE state = 5");
            done += store
                .query_row(&sql, [], |row| row.get::<_, u32>(0))
                .map_err(|e| e.to_string())?;
        }
        if done == 20 {
            Ok(())
        } else {
            Err(format!("{done} of 20"))
        }
    })
    .await;
    pombo.spooler(0).sigcont();
    let spooler = pombo.spooler(0);
    // It has learned that it is none any more: from the store or from the broker, whichever comes first.
    spooler.wait_for_log("the link is down", SOON).await;
    spooler.ready(LONG).await?;
    for n in 0..40 {
        let id = submit(&pombo, &format!("ok+{n}@example.net")).await;
        is_in_state(&pombo, &id, "finished", LONG).await;
    }
    for id in &ids {
        is_in_state(&pombo, id, "finished", SOON).await;
        let times = ["one", "two"].map(|name| count(&pombo.journal(name), id, "submit"));
        assert_eq!(
            times.iter().sum::<usize>(),
            1,
            "{id} was submitted {times:?}"
        );
    }
    assert_eq!(
        sum_of_metric(pombo.spoolers(), "pombo_in_doubt_total").await,
        0.0
    );
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

/// The spooler that died had leased the message, so nothing in the store says that an agent had it when that agent is struck off.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_after_its_agent_was_struck_off_for_another_message_counts_as_in_doubt_too()
-> anyhow::Result<()> {
    // One delivery each: who holds one is given no other. And the broker does not miss who is stopped.
    let mut pombo = Installation::builder()
        .agent(Agent::scripted("own").line("addresses = [\"SMTP\"]"))
        .spooler_lines("[spooler.prefetch]\nnormal = 1\n")
        .broker_lines("heartbeat = \"120s\"")
        .start()
        .await?;
    let journal = pombo.journal("own");
    let late = submit(&pombo, "dot+late@example.net").await;
    journal.wait_about(SOON, "submit", 1, &late).await;
    pombo.add_spooler()?;
    pombo.ready(LONG).await?;
    pombo.has_sessions(2, SOON).await;
    let early = submit(&pombo, "dot+early@example.net").await;
    journal.wait_about(SOON, "submit", 1, &early).await;
    let trace = pombo.pombo(&["--json", "why", &early]).await.json();
    let holder = trace["holder"].as_str().unwrap_or_default();
    assert!(holder.starts_with("spooler-2"), "{trace}");

    // Sent, but its spooler does not hear of it; then the agent dies with what both had given to it.
    pombo.spooler(0).sigstop();
    pombo.open_gate("own", "dot+late");
    journal.wait_about(SOON, "sent", 1, &late).await;
    pombo.agent("own").kill9();
    let _ = pombo.agent("own").wait(SOON).await;
    pombo.open_gate("own", "dot+early");
    pombo.agent("own").start_again()?;
    journal.wait_about(GONE, "sent", 1, &early).await;
    let counted = pombo.spooler(1).metric("pombo_in_doubt_total").await?;
    assert_eq!(counted, 1.0, "the late one is found too early");

    // Nobody can be asked about the other one any more: it is sent again, and counted.
    pombo.spooler(0).kill9();
    journal.wait_about(SOON, "sent", 2, &late).await;
    is_in_state(&pombo, &late, "finished", SOON).await;
    let trace = pombo.trace(&late).await;
    assert_eq!(trace["recipients"][0]["in_doubt"], true, "{trace}");
    let counted = pombo.spooler(1).metric("pombo_in_doubt_total").await?;
    assert_eq!(counted, 2.0);

    // What comes after the strike has nothing to do with it, whoever dies.
    let after = submit(&pombo, "slow+after@example.net").await;
    journal.wait_about(SOON, "submit", 1, &after).await;
    pombo.spooler(1).kill9();
    let _ = pombo.spooler(1).wait(SOON).await;
    pombo.spooler(1).start_again()?;
    pombo.open_gate("own", "slow+after");
    is_in_state(&pombo, &after, "finished", LONG).await;
    assert_eq!(count(&journal, &after, "submit"), 1);
    let trace = pombo.trace(&after).await;
    assert_eq!(trace["recipients"][0]["in_doubt"], false, "{trace}");
    let counted = pombo.spooler(1).metric("pombo_in_doubt_total").await?;
    assert_eq!(counted, 0.0);
    Ok(())
}

/// Nobody waits for it when it dies, so nobody asks; what is submitted long afterwards has nothing to do with it.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_died_idle_is_struck_off_and_no_doubt_about_what_comes_later()
-> anyhow::Result<()> {
    let mut pombo = builder().start().await?;
    let store = pombo.store();
    let listed = |count: u32| {
        let store = &store;
        async move {
            let sql = "SELECT count(*) FROM instances WHERE struck IS NULL";
            let found = rusqlite::Connection::open(store)
                .and_then(|store| store.query_row(sql, [], |row| row.get::<_, u32>(0)));
            match found {
                Ok(found) if found == count => Ok(()),
                other => Err(format!("{other:?}")),
            }
        }
    };
    eventually(SOON, "both are listed", || listed(2)).await;
    pombo.agent("one").kill9();
    eventually(GONE, "the dead one is struck off", || listed(1)).await;

    let id = submit(&pombo, "slow+later@example.net").await;
    let two = pombo.journal("two");
    two.wait_about(SOON, "submit", 1, &id).await;
    pombo.spooler(0).kill9();
    let _ = pombo.spooler(0).wait(SOON).await;
    pombo.spooler(0).start_again()?;
    pombo.open_gate("two", "slow+later");
    is_in_state(&pombo, &id, "finished", LONG).await;
    assert_eq!(count(&two, &id, "submit"), 1);
    let trace = pombo.trace(&id).await;
    assert_eq!(trace["recipients"][0]["in_doubt"], false, "{trace}");
    let counted = pombo.spooler(0).metric("pombo_in_doubt_total").await?;
    assert_eq!(counted, 0.0);
    Ok(())
}

/// Longer than an agent keeps its right, nobody can be answered; what it had sent by then is found when all are back.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_was_away_for_long_leaves_no_doubt_about_agents_that_come_back()
-> anyhow::Result<()> {
    let broker = Broker::start().await?;
    let mut pombo = Installation::builder()
        .broker(&broker)
        .agent(Agent::scripted("own").line("addresses = [\"SMTP\"]"))
        .start()
        .await?;
    let journal = pombo.journal("own");
    let id = submit(&pombo, "dot+away@example.net").await;
    journal.wait_about(SOON, "submit", 1, &id).await;
    broker.kill9();
    // It still has its right, for some seconds.
    pombo.open_gate("own", "dot+away");
    journal.wait_about(SOON, "sent", 1, &id).await;
    tokio::time::sleep(GONE_AFTER + Duration::from_secs(5)).await;
    broker.start_again().await?;
    is_in_state(&pombo, &id, "finished", GONE).await;
    assert_eq!(count(&journal, &id, "sent"), 1);
    let trace = pombo.trace(&id).await;
    assert_eq!(trace["recipients"][0]["in_doubt"], false, "{trace}");
    let counted = pombo.spooler(0).metric("pombo_in_doubt_total").await?;
    assert_eq!(counted, 0.0);
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

/// Nobody can publish, so a spooler that has asked who has a message hears nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn a_memory_alarm_that_stays_for_long_leaves_no_doubt_about_agents_that_live()
-> anyhow::Result<()> {
    let broker = Broker::start().await?;
    let mut pombo = Installation::builder()
        .broker(&broker)
        .agent(Agent::scripted("own").line("addresses = [\"SMTP\"]"))
        .start()
        .await?;
    let journal = pombo.journal("own");
    let id = submit(&pombo, "dot+alarm@example.net").await;
    journal.wait_about(SOON, "submit", 1, &id).await;
    pombo.spooler(0).kill9();
    pombo.spooler(0).start_again()?;
    let asks = "in doubt: asking who has it";
    pombo.spooler(0).wait_for_log(asks, LONG).await;
    pombo.has_sessions(1, SOON).await;
    broker.raise_memory_alarm().await?;
    let blocked = "the broker blocks publishes";
    pombo.agent("own").wait_for_log(blocked, SOON).await;
    // It still has its right, for some seconds.
    pombo.open_gate("own", "dot+alarm");
    journal.wait_about(SOON, "sent", 1, &id).await;
    tokio::time::sleep(GONE_AFTER + Duration::from_secs(5)).await;
    broker.clear_memory_alarm().await?;
    is_in_state(&pombo, &id, "finished", GONE).await;
    assert_eq!(count(&journal, &id, "sent"), 1);
    let trace = pombo.trace(&id).await;
    assert_eq!(trace["recipients"][0]["in_doubt"], false, "{trace}");
    let counted = pombo.spooler(0).metric("pombo_in_doubt_total").await?;
    assert_eq!(counted, 0.0);
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

/// The agent stands still, so that it says nothing itself: only what comes back tells its spooler.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_submitted_to_an_inbox_that_is_gone_is_given_back_and_not_in_doubt()
-> anyhow::Result<()> {
    let broker = Broker::shared().await;
    let mut pombo = Installation::builder()
        .broker(broker)
        .agent(Agent::scripted("own").line("addresses = [\"SMTP\"]"))
        .broker_lines("heartbeat = \"120s\"")
        .start()
        .await?;
    let up = pombo
        .agent("own")
        .wait_for_log("the link is up incarnation=", SOON)
        .await;
    let incarnation = up.rsplit('=').next().unwrap_or_default().to_owned();
    pombo.has_sessions(1, SOON).await;
    pombo.agent("own").sigstop();
    // By the node itself: to everybody else an exclusive queue is locked.
    let prefix = pombo.prefix();
    let delete = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{prefix}.inbox.{incarnation}\">>)), \
         {{ok, _}} = rabbit_amqqueue:delete(Q, false, false, <<\"test\">>), ok."
    );
    broker.eval(&delete).await?;
    let id = submit(&pombo, "ok+back@example.net").await;
    let said = "submissions came back: nobody has heard of them";
    pombo.spooler(0).wait_for_log(said, SOON).await;
    is_in_state(&pombo, &id, "waiting", SOON).await;
    pombo.agent("own").sigcont();
    is_in_state(&pombo, &id, "finished", LONG).await;
    assert_eq!(count(&pombo.journal("own"), &id, "submit"), 1);
    let counted = pombo.spooler(0).metric("pombo_in_doubt_total").await?;
    assert_eq!(counted, 0.0);
    pombo.stops_cleanly(LONG).await;
    Ok(())
}
