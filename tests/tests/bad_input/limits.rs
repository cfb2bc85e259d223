//! Peculiar contents, sizes and recipients: taken up to the limit, refused beyond it.

use std::fmt::Write as _;

use pombo_tests::{
    Sink,
    client::{self, Session},
    mail::{self, Mail},
};

use crate::relay::{self, LONG, SOON, nothing_is_left, relay, started};

#[tokio::test(flavor = "multi_thread")]
async fn peculiar_contents_are_accepted_and_arrive_byte_for_byte() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let pombo = started(relay(&world)).await?;
    let mut all: Vec<(&str, Vec<u8>)> = Mail::peculiar()
        .into_iter()
        .map(|(what, mail)| (what, mail.bytes()))
        .collect();
    all.push(("no header", Mail::without_header()));
    all.push(("nothing at all", b"\r\n".to_vec()));
    all.push(("100 hops less one", Mail::with_hops(98).bytes()));
    all.push((
        "exactly the inline limit",
        Mail::new().size(32 << 10).bytes(),
    ));
    all.push((
        "one byte beyond the inline limit",
        Mail::new().size((32 << 10) + 1).bytes(),
    ));
    for (number, (what, bytes)) in all.iter().enumerate() {
        let (listener, command) = (
            format!("listener{number}@example.net"),
            format!("command{number}@example.net"),
        );
        client::send(pombo.door(), "alice@example.org", &[&listener], bytes)
            .await
            .map_err(|e| e.context(*what))?;
        pombo
            .pombo_with(
                &["submit", "-i", "-f", "alice@example.org", &command],
                bytes,
            )
            .await
            .succeeds();
        for to in [&listener, &command] {
            let taken = world.mail_for(to, LONG).await;
            assert_eq!(
                mail::is_intact(&taken.data, bytes),
                Ok(()),
                "{what} for {to}"
            );
        }
    }
    nothing_is_left(&pombo, SOON).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_at_the_limit_are_taken_and_beyond_it_refused() -> anyhow::Result<()> {
    const LIMIT: usize = 100_000;
    let world = Sink::start().await?;
    let door = |agent: pombo_tests::installation::Agent| {
        agent
            .line(&format!("message_bytes_max = {LIMIT}"))
            .line("recipients_max = 5")
            .line("line_bytes_max = 2000")
    };
    let mut pombo = started(relay::with(&world, door, |out| out)).await?;

    let mut session = Session::hello(pombo.door()).await;
    session
        .says(
            &format!("MAIL FROM:<a@example.org> SIZE={}", LIMIT + 1),
            552,
        )
        .await;
    session
        .envelope("a@example.org", &["over@example.net"])
        .await;
    session
        .message(&Mail::new().size(LIMIT + 1).bytes(), 552)
        .await;
    session
        .envelope("a@example.org", &["over@example.net"])
        .await;
    session
        .message(&Mail::with_long_line(2_001).bytes(), 554)
        .await;
    let at = Mail::new().size(LIMIT);
    session.envelope("a@example.org", &["at@example.net"]).await;
    session.message(&at.bytes(), 250).await;
    session.says("MAIL FROM:<a@example.org>", 250).await;
    for number in 0..5 {
        session
            .says(&format!("RCPT TO:<r{number}@example.net>"), 250)
            .await;
    }
    session.says("RCPT TO:<r5@example.net>", 452).await;
    session.quits().await;
    let taken = world.mail_for("at@example.net", SOON).await;
    assert_eq!(mail::is_intact(&taken.data, &at.bytes()), Ok(()));

    // The same for `pombo submit`, whose limit is the spooler's.
    let config = pombo.spooler(0).config().to_owned();
    let text = std::fs::read_to_string(&config)?;
    std::fs::write(
        &config,
        text.replace(
            "[spooler]",
            &format!("[spooler]\nbody_bytes_max = \"{LIMIT}B\""),
        ),
    )?;
    assert_eq!(pombo.spooler(0).terminate_and_wait(LONG).await?, 0);
    pombo.spooler(0).start_again()?;
    pombo.ready(LONG).await?;
    let args = ["submit", "-i", "-f", "a@example.org", "command@example.net"];
    let refused = pombo
        .pombo_with(&args, &Mail::new().size(LIMIT + 1).bytes())
        .await;
    assert!(refused.stderr.contains("5.3.4"), "{refused:?}");
    refused.exits(65);
    pombo.pombo_with(&args, &at.bytes()).await.succeeds();
    world.mail_for("command@example.net", SOON).await;
    nothing_is_left(&pombo, SOON).await;
    world.look(|seen| assert_eq!(seen.mail_for("over@example.net").count(), 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_recipients_are_served_and_more_or_none_are_refused() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let pombo = started(relay(&world).log_filter("warn,pombo_spooler::recorder=warn")).await?;
    let with_recipients = |count: usize| {
        let mut to = String::new();
        for number in 0..count {
            let _ = write!(
                to,
                "{}r{number}@example.net",
                if number == 0 { "" } else { ",\r\n " }
            );
        }
        Mail::new().header("To", &to)
    };
    let args = ["submit", "-t", "-i", "-f", "a@example.org"];
    pombo
        .pombo_with(&["submit", "-i", "-f", "a@example.org"], b"x\n")
        .await
        .exits(64);
    pombo
        .pombo_with(&args, b"Subject: nobody\n\nx\n")
        .await
        .exits(64);
    let refused = pombo
        .pombo_with(&args, &with_recipients(10_001).bytes())
        .await;
    assert!(refused.stderr.contains("10001 recipients"), "{refused:?}");
    refused.exits(65);

    let mail = with_recipients(10_000);
    pombo.pombo_with(&args, &mail.bytes()).await.succeeds();
    world
        .wait_for(LONG, "10,000 copies", |seen| seen.deliveries() >= 10_000)
        .await;
    nothing_is_left(&pombo, LONG).await;
    world.look(|seen| {
        assert_eq!(
            (seen.deliveries(), seen.distinct_deliveries()),
            (10_000, 10_000)
        );
        let changed = seen
            .transactions()
            .iter()
            .find(|it| mail::is_intact(&it.data, &mail.bytes()).is_err());
        assert!(changed.is_none(), "{changed:?}");
    });
    Ok(())
}
