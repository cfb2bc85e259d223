//! Ten thousand mails through the whole chain, by clients that are not ours; and the same while a spooler is killed.

mod relay;

use std::time::Instant;

use pombo_tests::{
    Sink,
    load::{Python, Sent, SmtpSource},
};

use relay::{LONG, relay, settles, started};

/// Mostly small ones, as in the world; 1 KiB to 200 KiB.
const SIZES: [(u32, usize, usize); 3] = [
    (850, 1 << 10, 8 << 10),
    (130, 8 << 10, 64 << 10),
    (20, 64 << 10, 200 << 10),
];
const LARGE: [(u32, usize, usize); 1] = [(1, 5 << 20, 5 << 20)];

fn said(what: &str, sent: &Sent, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{what}: {} messages, {} MiB, {seconds:.1} s, {:.0} a second",
        sent.accepted(),
        sent.bytes() >> 20,
        sent.accepted() as f64 / seconds
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_mails_of_mixed_sizes_arrive_once_and_byte_for_byte() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let mut pombo = started(relay(&world).log_filter("info")).await?;
    let start = Instant::now();

    let (small, source, large) = tokio::try_join!(
        Python::messages(5_990)
            .to(&["bob{n}@example.net"])
            .sizes(&SIZES)
            .send(pombo.door()),
        SmtpSource::messages(4_000).send(pombo.door()),
        Python::messages(10)
            .to(&["large{n}@example.net", "second{n}@example.org"])
            .sizes(&LARGE)
            .connections(1, 2)
            .seed(2)
            .send(pombo.door()),
    )?;
    let sent = small.and(source).and(large);
    said("accepted", &sent, start);
    assert_eq!(sent.accepted(), 10_000, "{:?}", sent.refused().next());
    settles(&pombo, &world, &sent, LONG).await;
    said("arrived", &sent, start);

    let arrival = sent.arrived_in(&world);
    arrival.is_complete_and_intact();
    assert_eq!(arrival.intact, 10_010);
    let in_doubt = relay::sum_of_metric(pombo.spoolers(), "pombo_in_doubt_total").await;
    assert_eq!(
        in_doubt, 0.0,
        "recipients in doubt, though nothing was killed"
    );
    pombo.stops_cleanly(LONG).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_a_spooler_twice_under_load_loses_and_repeats_nothing() -> anyhow::Result<()> {
    const MESSAGES: usize = 10_000;
    let world = Sink::start().await?;
    let mut pombo = started(relay(&world).log_filter("info").spoolers(2)).await?;
    let start = Instant::now();

    let door = pombo.door();
    let load = tokio::spawn(async move {
        tokio::try_join!(
            Python::messages(MESSAGES - 5)
                .to(&["bob{n}@example.net"])
                .sizes(&SIZES)
                .send(door),
            Python::messages(5)
                .to(&["large{n}@example.net"])
                .sizes(&LARGE)
                .connections(1, 1)
                .seed(2)
                .send(door),
        )
    });
    for (victim, at) in [(0, MESSAGES / 4), (1, MESSAGES / 2)] {
        world
            .wait_for(LONG, &format!("{at} messages"), |seen| {
                seen.accepted() >= at
            })
            .await;
        pombo.spooler(victim).kill9();
        // The other one carries on alone, and only then this one comes back.
        world
            .wait_for(LONG, "more messages by the other spooler", |seen| {
                seen.accepted() >= at + MESSAGES / 20
            })
            .await;
        pombo.spooler(victim).start_again()?;
        pombo.spooler(victim).ready(LONG).await?;
    }
    let (small, large) = load.await??;
    let sent = small.and(large);
    said("accepted", &sent, start);
    assert_eq!(sent.accepted(), MESSAGES, "{:?}", sent.refused().next());
    settles(&pombo, &world, &sent, LONG).await;
    said("arrived", &sent, start);

    let arrival = sent.arrived_in(&world);
    arrival.is_complete_and_intact();
    assert_eq!(arrival.intact, MESSAGES);
    pombo.stops_cleanly(LONG).await;
    Ok(())
}
