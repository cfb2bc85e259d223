//! PostgreSQL as the store of several spoolers, under load, and taken away in every way: nothing accepted is lost, and nothing is
//! delivered twice.

mod relay;

use std::time::Duration;

use pombo_tests::{
    Installation, Postgres, Sink, eventually,
    load::{Python, Sent},
    service::Service,
    sink::{Stage, at},
};
use tokio::task::JoinHandle;

use relay::{LONG, SOON, nothing_is_left, relay, settles, started};

/// Small mails, each to a recipient of its own, in the background; one in ten has a body that lies in the blob store.
fn load(pombo: &Installation, messages: usize) -> JoinHandle<anyhow::Result<Sent>> {
    send(
        pombo,
        messages,
        &[(9, 600, 4 << 10), (1, 40 << 10, 60 << 10)],
    )
}

/// Without bodies in the blob store: one that dies or stands still between its commit and the removal leaves them there.
fn small_load(pombo: &Installation, messages: usize) -> JoinHandle<anyhow::Result<Sent>> {
    send(pombo, messages, &[(1, 600, 4 << 10)])
}

fn send(
    pombo: &Installation,
    messages: usize,
    sizes: &[(u32, usize, usize)],
) -> JoinHandle<anyhow::Result<Sent>> {
    let python = Python::messages(messages)
        .to(&["bob{n}@example.net"])
        .sizes(sizes)
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

/// Two spoolers over this server; every tenth recipient is told to come back, so that the outbox is used.
async fn two_spoolers(world: &Sink, server: &Postgres) -> anyhow::Result<Installation> {
    for n in 0..10 {
        world.rule(
            at(Stage::Rcpt)
                .recipient(&format!("bob{}@example.net", n * 10 + 7))
                .first(1)
                .reply("451 4.2.0 later"),
        );
    }
    started(relay(world).spoolers(2).postgres(server)).await
}

/// Waits until each spooler says that the store is away.
async fn all_unready(pombo: &mut Installation) {
    for service in pombo.spoolers() {
        let what = format!("{} is unready because of its store", service.name());
        eventually(LONG, &what, || async {
            match service.get("/readyz").await {
                Ok(reply) if reply.status == 503 && is_of_the_store(&reply.body) => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }
}

fn is_of_the_store(said: &str) -> bool {
    said.contains("store") || said.contains("membership")
}

/// All of it arrived, once, and nothing is left.
async fn is_complete(pombo: &Installation, world: &Sink, sent: &Sent) {
    assert!(sent.accepted() > 0);
    settles(pombo, world, sent, LONG).await;
    let arrival = sent.arrived_in(world);
    println!("{arrival}");
    arrival.is_complete_and_intact();
}

/// Of what was offered twice because an answer did not come, two copies may have arrived: that is SMTP's own doubt.
async fn is_complete_but_for_what_was_offered_twice(
    pombo: &Installation,
    world: &Sink,
    sent: &Sent,
) {
    settles(pombo, world, sent, LONG).await;
    let arrival = sent.arrived_in(world);
    println!("{arrival}");
    arrival.lost_nothing();
    let again = |id: &str| {
        let mut messages = sent.messages.iter();
        messages.any(|message| message.id.as_str() == id && message.tries > 1)
    };
    let twice: Vec<_> = arrival
        .repeated
        .iter()
        .filter(|(id, _)| !again(id))
        .collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_spoolers_share_a_server_and_one_that_is_killed_loses_and_repeats_nothing()
-> anyhow::Result<()> {
    const MESSAGES: usize = 1_000;
    let world = Sink::start().await?;
    let server = Postgres::start()?;
    let mut pombo = two_spoolers(&world, &server).await?;
    pombo.has_sessions(4, SOON).await;
    let sending = small_load(&pombo, MESSAGES);
    seen(&world, 200).await;
    let of_the_first = pombo.spooler(0).metric("pombo_outcomes_total").await?;
    pombo.spooler(0).kill9();
    seen(&world, 500).await;
    pombo.spooler(0).start_again()?;
    pombo.spooler(0).ready(LONG).await?;
    let sent = sending.await??;
    assert_eq!(sent.accepted(), MESSAGES, "{:?}", sent.refused().next());
    is_complete(&pombo, &world, &sent).await;
    let shared = [
        of_the_first,
        pombo.spooler(1).metric("pombo_outcomes_total").await?,
    ];
    println!("attempts recorded by each: {shared:?}");
    assert!(shared.iter().all(|n| *n > 0.0), "{shared:?}");
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

/// Takes the server away under load, and gives it back when every spooler says so.
async fn outlives(
    away: impl FnOnce(&Postgres) -> anyhow::Result<()>,
    back: impl FnOnce(&Postgres) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    const MESSAGES: usize = 600;
    let world = Sink::start().await?;
    let server = Postgres::start()?;
    let mut pombo = two_spoolers(&world, &server).await?;
    let sending = load(&pombo, MESSAGES);
    seen(&world, 150).await;
    away(&server)?;
    // Nothing is recorded, so nothing is acked: all of it would come again if the spoolers died here.
    all_unready(&mut pombo).await;
    back(&server)?;
    pombo.ready(LONG).await?;
    let sent = sending.await??;
    assert_eq!(sent.accepted(), MESSAGES, "{:?}", sent.refused().next());
    is_complete_but_for_what_was_offered_twice(&pombo, &world, &sent).await;
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_stopped_under_load_stops_the_work_and_its_return_resumes_it()
-> anyhow::Result<()> {
    outlives(Postgres::stop, Postgres::start_again).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_under_load_is_given_up_and_found_again() -> anyhow::Result<()> {
    let away = |server: &Postgres| {
        server.pause();
        Ok(())
    };
    let back = |server: &Postgres| {
        server.resume();
        Ok(())
    };
    outlives(away, back).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_stops_the_work_until_the_lock_is_gone() -> anyhow::Result<()> {
    const MESSAGES: usize = 300;
    let world = Sink::start().await?;
    let server = Postgres::start()?;
    let schema = server.fresh_schema();
    let builder = relay(&world).spoolers(2).postgres_schema(&server, &schema);
    let mut pombo = started(builder).await?;
    let sending = load(&pombo, MESSAGES);
    seen(&world, 50).await;
    let lock = server.lock(&schema, "messages")?;
    all_unready(&mut pombo).await;
    drop(lock);
    pombo.ready(LONG).await?;
    let sent = sending.await??;
    assert_eq!(sent.accepted(), MESSAGES, "{:?}", sent.refused().next());
    is_complete(&pombo, &world, &sent).await;
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_the_work_until_there_is_room() -> anyhow::Result<()> {
    const MESSAGES: usize = 300;
    let world = Sink::start().await?;
    let server = Postgres::builder().small_disk(64 << 20).start()?;
    let mut pombo = started(relay(&world).spoolers(2).postgres(&server)).await?;
    let sending = load(&pombo, MESSAGES);
    seen(&world, 50).await;
    server.fill_disk()?;
    // Pages that are there have room for some rows yet.
    all_unready(&mut pombo).await;
    assert!(pombo.spooler(0).log().contains("53100") || pombo.spooler(1).log().contains("53100"));
    server.free_disk()?;
    pombo.ready(LONG).await?;
    let sent = sending.await??;
    assert_eq!(sent.accepted(), MESSAGES, "{:?}", sent.refused().next());
    is_complete(&pombo, &world, &sent).await;
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spooler_waits_for_its_server_at_the_start_and_refuses_one_that_forgets()
-> anyhow::Result<()> {
    let world = Sink::start().await?;
    let server = Postgres::start()?;
    server.stop()?;
    let mut pombo = relay(&world).postgres(&server).start_unready().await?;
    let said = store_condition(pombo.spooler(0)).await;
    println!("{said}");
    server.start_again()?;
    pombo.ready(LONG).await?;
    relay::takes_mail(&pombo).await;
    pombo.spooler(0).terminate_and_wait(LONG).await?;

    server.sql("ALTER SYSTEM SET synchronous_commit = off")?;
    server.sql("SELECT pg_reload_conf()")?;
    pombo.spooler(0).start_again()?;
    let code = pombo.spooler(0).wait(LONG).await?;
    assert_eq!(code, 1);
    let log = pombo.spooler(0).log();
    assert!(log.contains("synchronous_commit=off"), "{log}");
    nothing_is_left_in(&server);
    Ok(())
}

async fn store_condition(service: &Service) -> String {
    eventually(SOON, "/readyz tells of the store", || async {
        match service.get("/readyz").await {
            Ok(reply) if reply.status == 503 && reply.body.contains("store") => Ok(reply.body),
            other => Err(other),
        }
    })
    .await
}

/// Whoever is refused has changed nothing.
fn nothing_is_left_in(server: &Postgres) {
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pombo-spooler'";
    assert_eq!(server.sql(sessions).unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_of_a_spooler_that_stood_still_are_taken_over_and_it_records_nothing_when_it_wakes()
-> anyhow::Result<()> {
    const MESSAGES: usize = 400;
    let world = Sink::start().await?;
    let server = Postgres::start()?;
    let mut pombo = two_spoolers(&world, &server).await?;
    let sending = small_load(&pombo, MESSAGES);
    seen(&world, 100).await;
    pombo.spooler(0).sigstop();
    let sent = sending.await??;
    assert_eq!(sent.accepted(), MESSAGES, "{:?}", sent.refused().next());
    settles(&pombo, &world, &sent, Duration::from_secs(180)).await;
    pombo.spooler(0).sigcont();
    // It has learned that it is none any more; before that, nothing is shown.
    pombo
        .spooler(0)
        .wait_for_log("the link is down", LONG)
        .await;
    pombo.ready(LONG).await?;
    nothing_is_left(&pombo, LONG).await;
    let arrival = sent.arrived_in(&world);
    println!("{arrival}");
    arrival.is_complete_and_intact();
    Ok(())
}
