//! Ends of messages that are none.

use pombo_tests::{Installation, Sink, client::Session, eventually, mail::Mail};

use crate::relay::{LONG, SOON, nothing_is_left, relay, started};

/// What other software takes for the end of a message, with a second message behind it.
const FALSE_ENDS: [&str; 10] = [
    "\n.\n",
    "\n.\r\n",
    "\r\n.\n",
    "\r.\r",
    "\r\n.\r",
    "\r.\r\n",
    "\n.\r",
    "\r.\n",
    "\r\n\0.\r\n",
    "\r\n.\0\r\n",
];

#[tokio::test(flavor = "multi_thread")]
async fn smuggled_messages_never_become_two() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    // One door as it comes, and one that keeps bare line ends: what it accepts must still be one message behind smtp.
    let pombo = started(
        relay(&world).agent(
            pombo_tests::installation::Agent::smtp_listener("keeping")
                .relay_for_everyone()
                .line("bare_lf = \"keep\"")
                .line("bare_cr = \"keep\""),
        ),
    )
    .await?;
    let mut accepted = 0;
    for (number, end) in FALSE_ENDS.iter().enumerate() {
        for door in ["door", "keeping"] {
            let mail = Mail::new();
            let to = format!("victim{number}@example.net");
            let content = [
                &mail.bytes()[..],
                b"first",
                end.as_bytes(),
                b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<smuggled@example.net>\r\nDATA\r\nSubject: evil\r\n\r\nevil\r\n",
            ]
            .concat();
            // Not stuffed: a dot at a line's start that is none of the end's loses itself, as the standard has it.
            let mut session = eventually_hello(&pombo, door).await;
            session.envelope("alice@example.org", &[&to]).await;
            session.raw(&content).await;
            session.raw(b".\r\n").await;
            let reply = session.reply().await;
            assert!(
                reply.code == 250 || (500..600).contains(&reply.code),
                "{end:?} at {door}: {reply}\n{}",
                session.transcript()
            );
            session.quits().await;
            if reply.code == 250 {
                accepted += 1;
                world
                    .wait_for(SOON, "the one message", |seen| {
                        seen.copies(mail.id(), &to) == 1
                    })
                    .await;
            }
        }
    }
    nothing_is_left(&pombo, SOON).await;
    println!(
        "{accepted} of {} were accepted, as one message",
        2 * FALSE_ENDS.len()
    );
    world.look(|seen| {
        assert_eq!(seen.accepted(), accepted, "{}", seen.summary());
        assert_eq!(seen.mail_for("smuggled@example.net").count(), 0);
        assert!(
            seen.transactions()
                .iter()
                .all(|it| it.from == "alice@example.org")
        );
    });
    Ok(())
}

async fn eventually_hello(pombo: &Installation, door: &str) -> Session {
    eventually(LONG, "the door takes mail", || async {
        let mut session = Session::hello(pombo.door_of(door)).await;
        let reply = session.command("MAIL FROM:<alice@example.org>").await;
        if !reply.is_ok() {
            return Err(reply);
        }
        session.says("RSET", 250).await;
        Ok(session)
    })
    .await
}
