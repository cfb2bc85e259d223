//! Every process and every connection is taken away under load, and the store: nothing accepted is lost, and what is sent twice
//! was in doubt and is counted.

mod relay;

use std::{collections::HashSet, path::Path, time::Duration};

use pombo_tests::{
    Broker, Installation, Sink,
    client::{self, Session},
    eventually,
    installation::Agent,
    load::{Python, Sent},
    mail::{self, Mail},
    service::{Service, binary},
    sink::{Gate, Stage, at},
};
use serde_json::Value;
use tokio::task::JoinHandle;

use relay::{LONG, SOON, nothing_is_left, relay, settles, started};

/// Small mails, each to a recipient of its own, in the background.
fn load(pombo: &Installation, messages: usize) -> JoinHandle<anyhow::Result<Sent>> {
    let python = Python::messages(messages)
        .to(&["bob{n}@example.net"])
        .sizes(&[(9, 600, 4 << 10), (1, 40 << 10, 60 << 10)])
        .connections(1, 6)
        .patience(LONG);
    let door = pombo.door();
    tokio::spawn(async move { python.send(door).await })
}

async fn seen(world: &Sink, messages: usize) {
    world
        .wait_for(LONG, &format!("{messages} messages"), |seen| {
            seen.distinct_deliveries() >= messages
        })
        .await;
}

async fn submit(pombo: &Installation, to: &str, mail: &Mail) -> String {
    let output = pombo
        .pombo_with(
            &["--json", "submit", "-i", "-f", "alice@example.org", to],
            &mail.bytes(),
        )
        .await;
    output.json()["id"].as_str().expect("an id").to_owned()
}

/// What `pombo why` says; null for a message that nobody knows.
async fn why(pombo: &Installation, id: &str) -> Value {
    let output = pombo.pombo(&["--json", "why", id]).await;
    serde_json::from_str(&output.stdout).unwrap_or(Value::Null)
}

async fn is_in_state(pombo: &Installation, id: &str, state: &str, limit: Duration) -> Value {
    eventually(limit, &format!("{id} is {state}"), || async {
        let why = why(pombo, id).await;
        if why["state"] == state {
            Ok(why)
        } else {
            Err(why)
        }
    })
    .await
}

/// Waits until `/readyz` is 503 and names this condition; gives the whole answer.
async fn unready(service: &Service, condition: &str) -> String {
    let what = format!("{} is unready because of {condition}", service.name());
    eventually(SOON, &what, || async {
        match service.get("/readyz").await {
            Ok(reply) if reply.status == 503 && reply.body.contains(condition) => Ok(reply.body),
            other => Err(other),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_process_drains_at_sigterm_under_load_and_nothing_is_lost_or_repeated()
-> anyhow::Result<()> {
    const MESSAGES: usize = 1_500;
    let world = Sink::start().await?;
    let mut pombo = started(
        relay(&world).spoolers(2).agent(
            Agent::smtp("out-2")
                .transport("out")
                .smarthost(world.address()),
        ),
    )
    .await?;
    let sending = load(&pombo, MESSAGES);

    seen(&world, 200).await;
    stops(pombo.spooler(0)).await?;
    seen(&world, 500).await;
    stops(pombo.agent("out")).await?;
    seen(&world, 800).await;
    stops(pombo.agent("door")).await?;
    seen(&world, 1_000).await;
    stops(pombo.spooler(1)).await?;

    let sent = sending.await??;
    assert_eq!(sent.accepted(), MESSAGES, "{:?}", sent.refused().next());
    settles(&pombo, &world, &sent, LONG).await;
    sent.arrived_in(&world).is_complete_and_intact();
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

/// SIGTERM, exit code 0, and up again.
async fn stops(service: &mut Service) -> anyhow::Result<()> {
    let code = service.terminate_and_wait(Duration::from_secs(45)).await?;
    assert_eq!(code, 0, "exit code of {}", service.name());
    service.start_again()?;
    service.ready(LONG).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_listeners_word_goes_on_when_that_is_heard() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let mut pombo = started(relay(&world)).await?;
    let code = pombo.agent("door").terminate_and_wait(LONG).await?;
    assert_eq!(code, 0);
    // A spooler that has never heard whom the door takes: nobody, for it only brings mail in.
    stops(pombo.spooler(0)).await?;
    let id = pombo.submit(&[], &["bob@example.net"], &Mail::new()).await;
    let said = eventually(SOON, "it waits for the door's word", || async {
        let why = why(&pombo, &id).await;
        match why["waiting_for"].as_str() {
            Some(said) if said.contains("whom it takes") => Ok(said.to_owned()),
            _ => Err(why),
        }
    })
    .await;
    assert!(said.starts_with("door"), "{said}");
    pombo.agent("door").start_again()?;
    pombo.in_state(&id, "finished", SOON).await;
    assert_eq!(world.look(|seen| seen.distinct_deliveries()), 1);
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_spooler_had_is_taken_over_and_not_delivered_again() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let gate = Gate::closed();
    // The first try waits in the outbox; at the second, which is by a claim, the spooler dies while the world has the message.
    world.rule(
        at(Stage::Rcpt)
            .recipient("claimed@example.net")
            .first(1)
            .reply("451 4.2.0 later"),
    );
    world.rule(at(Stage::Dot).recipient("claimed@example.net").hold(&gate));
    world.rule(at(Stage::Dot).recipient("leased@example.net").hold(&gate));
    world.rule(
        at(Stage::Rcpt)
            .recipient("waiting@example.net")
            .first(1)
            .reply("451 4.2.0 later"),
    );
    let mut pombo = started(relay(&world)).await?;

    let waiting = {
        let mail = Mail::new();
        let output = pombo
            .pombo_with(
                &[
                    "--json",
                    "submit",
                    "-i",
                    "--at",
                    "15s",
                    "waiting@example.net",
                ],
                &mail.bytes(),
            )
            .await;
        output.json()["id"].as_str().expect("an id").to_owned()
    };
    let (claimed, leased) = (Mail::new(), Mail::new());
    let claimed_id = submit(&pombo, "claimed@example.net", &claimed).await;
    let leased_id = submit(&pombo, "leased@example.net", &leased).await;
    gate.reached_by(2, SOON).await;
    is_in_state(&pombo, &waiting, "waiting", SOON).await;

    pombo.spooler(0).kill9();
    let killed = std::time::Instant::now();
    let other = pombo.add_spooler()?;
    pombo.spooler(other).ready(SOON).await?;
    gate.open();
    for id in [&claimed_id, &leased_id, &waiting] {
        is_in_state(&pombo, id, "finished", Duration::from_secs(60)).await;
    }
    println!(
        "all taken over {:.1} s after the kill",
        killed.elapsed().as_secs_f64()
    );
    world.look(|seen| {
        assert_eq!(seen.accepted(), 3, "{}", seen.summary());
        assert!(seen.duplicates().is_empty(), "{:?}", seen.duplicates());
    });
    assert_eq!(
        pombo.spooler(other).metric("pombo_in_doubt_total").await?,
        0.0
    );
    nothing_is_left(&pombo, SOON).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_smtp_agent_loses_nothing_and_what_is_sent_twice_is_counted_in_doubt()
-> anyhow::Result<()> {
    const MESSAGES: usize = 800;
    let world = Sink::start().await?;
    world.rule(at(Stage::Dot).wait(Duration::from_millis(200)));
    let mut pombo = started(
        relay(&world).spoolers(2).agent(
            Agent::smtp("out-2")
                .transport("out")
                .smarthost(world.address()),
        ),
    )
    .await?;
    let sending = load(&pombo, MESSAGES);
    seen(&world, 200).await;
    pombo.agent("out").kill9();
    let sent = sending.await??;
    assert_eq!(sent.accepted(), MESSAGES, "{:?}", sent.refused().next());
    settles(&pombo, &world, &sent, LONG).await;

    let arrival = sent.arrived_in(&world);
    arrival.lost_nothing();
    assert!(arrival.unexpected.is_empty(), "{arrival}");
    let in_doubt = relay::sum_of_metric(pombo.spoolers(), "pombo_in_doubt_total").await;
    println!("{} repeated, {in_doubt} in doubt", arrival.repeated.len());
    // Doubt is bounded by what the agent had under way: its capacity.
    assert!((1.0..=200.0).contains(&in_doubt), "{in_doubt} in doubt");
    assert!(
        arrival.repeated.len() as f64 <= in_doubt,
        "{arrival}, {in_doubt} in doubt"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_broker_connections_under_load_lose_nothing() -> anyhow::Result<()> {
    const MESSAGES: usize = 1_200;
    let world = Sink::start().await?;
    let broker = Broker::start().await?;
    let mut pombo = started(relay(&world).spoolers(2).broker(&broker)).await?;
    let sending = load(&pombo, MESSAGES);
    for at in [200, 500] {
        seen(&world, at).await;
        broker.close_all_connections().await?;
    }
    let sent = sending.await??;
    assert_eq!(sent.accepted(), MESSAGES, "{:?}", sent.refused().next());
    settles(&pombo, &world, &sent, Duration::from_secs(180)).await;
    let arrival = sent.arrived_in(&world);
    let in_doubt = relay::sum_of_metric(pombo.spoolers(), "pombo_in_doubt_total").await;
    let again: HashSet<&str> = sent
        .messages
        .iter()
        .filter(|message| message.tries > 1)
        .map(|message| message.id.as_str())
        .collect();
    println!(
        "{arrival}; {in_doubt} in doubt, {} offered again",
        again.len()
    );
    arrival.lost_nothing();
    // No process died, so nobody need doubt anything; only a client that offered again may have been taken at its word twice.
    let twice = arrival
        .repeated
        .iter()
        .filter(|(id, _)| !again.contains(id.as_str()));
    assert_eq!(twice.count(), 0, "{arrival}");
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn services_come_up_with_the_broker_and_outlive_its_absence() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let broker = Broker::start().await?;
    broker.stop().await?;
    let mut pombo = relay(&world).broker(&broker).start_unready().await?;
    let spooler_says = unready(pombo.spooler(0), "broker").await;
    let door_says = unready(pombo.agent("door"), "broker").await;
    println!("{spooler_says}{door_says}");
    broker.start_again().await?;
    pombo.ready(LONG).await?;
    relay::takes_mail(&pombo).await;
    let mut sent = Vec::new();
    for to in ["first@example.net", "second@example.net"] {
        let mail = Mail::new();
        client::send(pombo.door(), "alice@example.org", &[to], &mail.bytes()).await?;
        sent.push((to, mail));
        if sent.len() == 1 {
            broker.stop().await?;
            unready(pombo.agent("door"), "broker").await;
            refuses_for_now(&pombo).await?;
            broker.start_again().await?;
            pombo.ready(LONG).await?;
            relay::takes_mail(&pombo).await;
        }
    }
    for (to, mail) in sent {
        let taken = world.mail_for(to, LONG).await;
        assert_eq!(mail::is_intact(&taken.data, &mail.bytes()), Ok(()));
    }
    nothing_is_left(&pombo, LONG).await;
    world.look(|seen| assert_eq!(seen.accepted(), 2, "{}", seen.summary()));
    Ok(())
}

/// A whole mail is offered, and somewhere on the way 4xx is the answer.
async fn refuses_for_now(pombo: &Installation) -> anyhow::Result<()> {
    let (mut session, greeting) = Session::try_connect(pombo.door()).await?;
    let mut code = greeting.code;
    for line in [
        "EHLO client.example",
        "MAIL FROM:<alice@example.org>",
        "RCPT TO:<refused@example.net>",
        "DATA",
    ] {
        if (200..300).contains(&code) {
            code = session.try_command(line).await?.code;
        }
    }
    if code == 354 {
        code = session.try_message(&Mail::new().bytes()).await?.code;
    }
    assert!(
        (400..500).contains(&code),
        "{code}\n{}",
        session.transcript()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_alarm_makes_the_listener_say_later_and_goes_by() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let broker = Broker::start().await?;
    let mut pombo = started(relay(&world).broker(&broker)).await?;
    broker.raise_memory_alarm().await?;
    // The broker tells a connection of its alarm when that publishes next; status rows do every second or two.
    unready(pombo.agent("door"), "broker-alarm").await;
    for _ in 0..3 {
        refuses_for_now(&pombo).await?;
    }
    broker.clear_memory_alarm().await?;
    pombo.ready(LONG).await?;
    relay::takes_mail(&pombo).await;
    let mail = Mail::new();
    client::send(
        pombo.door(),
        "alice@example.org",
        &["bob@example.net"],
        &mail.bytes(),
    )
    .await?;
    world.mail_for("bob@example.net", SOON).await;
    nothing_is_left(&pombo, LONG).await;
    world.look(|seen| assert_eq!(seen.mail_for("bob@example.net").count(), 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_broker_password_is_said_and_not_shown() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let broker = Broker::shared().await;
    let wrong = broker.url().replace("guest:guest", "guest:open-sesame");
    let mut pombo = relay(&world)
        .broker_at(&[wrong], &broker.fresh_prefix())
        .start_unready()
        .await?;
    for service in [0, 1] {
        let service = if service == 0 {
            pombo.spooler(0)
        } else {
            pombo.agent("door")
        };
        let said = eventually(SOON, "/readyz tells of the refused login", || async {
            let reply = service.get("/readyz").await.map_err(|e| e.to_string())?;
            let body = reply.body.to_lowercase();
            let told = ["refused", "login", "credentials", "password"]
                .iter()
                .any(|word| body.contains(word));
            if reply.status == 503 && told {
                Ok(reply.body)
            } else {
                Err(reply.body)
            }
        })
        .await;
        assert!(!said.contains("open-sesame"), "{said}");
        let log = service.log();
        assert!(log.to_lowercase().contains("refused"), "{log}");
        assert!(!log.contains("open-sesame"), "{log}");
        assert!(service.is_running());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_spool_queue_comes_back_and_what_was_leased_is_not_lost() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let gate = Gate::closed();
    world.rule(at(Stage::Dot).domain("held.example").hold(&gate));
    let broker = Broker::shared().await;
    let mut pombo = started(relay(&world).broker(broker)).await?;
    let held: Vec<Mail> = (0..5).map(|_| Mail::new()).collect();
    for mail in &held {
        client::send(
            pombo.door(),
            "a@example.org",
            &["bob@held.example"],
            &mail.bytes(),
        )
        .await?;
    }
    gate.reached_by(5, SOON).await;

    broker
        .delete_queue(&format!("{}.spool.normal", pombo.prefix()))
        .await?;
    // Accepted while the queue is away or already back: whatever was answered 250 arrives.
    let mut later = Vec::new();
    for _ in 0..20 {
        let mail = Mail::new();
        if client::send(
            pombo.door(),
            "a@example.org",
            &["eve@example.net"],
            &mail.bytes(),
        )
        .await
        .is_ok()
        {
            later.push(mail);
        }
    }
    gate.open();
    pombo.ready(LONG).await?;
    relay::takes_mail(&pombo).await;
    let mail = Mail::new();
    client::send(
        pombo.door(),
        "a@example.org",
        &["eve@example.net"],
        &mail.bytes(),
    )
    .await?;
    later.push(mail);
    for (to, mails) in [("bob@held.example", &held), ("eve@example.net", &later)] {
        for mail in mails {
            world
                .wait_for(LONG, &format!("{} for {to}", mail.id()), |seen| {
                    seen.copies(mail.id(), to) > 0
                })
                .await;
        }
    }
    nothing_is_left(&pombo, LONG).await;
    world.look(|seen| assert!(seen.duplicates().is_empty(), "{:?}", seen.duplicates()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_store_acks_nothing_says_so_and_work_resumes() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let broker = Broker::shared().await;
    let mut pombo = started(relay(&world).broker(broker)).await?;
    let store = pombo.store();
    let lock = tokio::task::spawn_blocking(move || -> rusqlite::Result<_> {
        let connection = rusqlite::Connection::open(store)?;
        connection.busy_timeout(Duration::from_secs(20))?;
        connection.execute_batch("BEGIN EXCLUSIVE")?;
        Ok(connection)
    })
    .await??;

    let mails: Vec<Mail> = (0..5).map(|_| Mail::new()).collect();
    for mail in &mails {
        client::send(
            pombo.door(),
            "a@example.org",
            &["bob@example.net"],
            &mail.bytes(),
        )
        .await?;
    }
    let said = unready(pombo.spooler(0), "store").await;
    println!("{said}");
    // Killed now, the spooler loses nothing: the broker still has what was not acked, and the agent what it did with it.
    pombo.spooler(0).kill9();
    tokio::task::spawn_blocking(move || lock.execute_batch("ROLLBACK")).await??;
    pombo.spooler(0).start_again()?;
    pombo.ready(LONG).await?;
    relay::takes_mail(&pombo).await;
    for mail in &mails {
        world
            .wait_for(LONG, "each mail", |seen| {
                seen.copies(mail.id(), "bob@example.net") > 0
            })
            .await;
    }
    nothing_is_left(&pombo, LONG).await;
    world.look(|seen| assert!(seen.duplicates().is_empty(), "{:?}", seen.duplicates()));

    // And the same without a kill: the lock goes, and work resumes by itself.
    let store = pombo.store();
    let lock = tokio::task::spawn_blocking(move || -> rusqlite::Result<_> {
        let connection = rusqlite::Connection::open(store)?;
        connection.busy_timeout(Duration::from_secs(20))?;
        connection.execute_batch("BEGIN EXCLUSIVE")?;
        Ok(connection)
    })
    .await??;
    let mail = Mail::new();
    client::send(
        pombo.door(),
        "a@example.org",
        &["eve@example.net"],
        &mail.bytes(),
    )
    .await?;
    unready(pombo.spooler(0), "store").await;
    tokio::task::spawn_blocking(move || lock.execute_batch("ROLLBACK")).await??;
    pombo.ready(LONG).await?;
    relay::takes_mail(&pombo).await;
    world.mail_for("eve@example.net", LONG).await;
    nothing_is_left(&pombo, LONG).await;
    world.look(|seen| assert!(seen.duplicates().is_empty(), "{:?}", seen.duplicates()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_stops_nobody() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let mut pombo = started(relay(&world)).await?;
    let mut deaf = Vec::new();
    for name in ["spooler-1", "door", "out"] {
        let (service, program) = match name {
            "spooler-1" => (pombo.spooler(0), "pombo-spooler"),
            agent => (pombo.agent(agent), "pombo-agent"),
        };
        service.kill9();
        let (config, http) = (service.config().to_owned(), service.http());
        // Every write to it fails for want of space.
        let log = Path::new("/dev/full");
        deaf.push(Service::start(name, &binary(program), &config, http, log)?);
    }
    for service in &mut deaf {
        service.ready(LONG).await?;
    }
    relay::takes_mail(&pombo).await;
    let mail = Mail::new();
    let to = ["bob@example.net"];
    client::send(pombo.door(), "alice@example.org", &to, &mail.bytes()).await?;
    world.mail_for("bob@example.net", LONG).await;
    for service in &mut deaf {
        assert!(service.is_running(), "{}", service.name());
    }
    Ok(())
}
