//! Whatever comes from outside, by the broker or by the doors: no process dies of it, what was a message is kept for a person
//! to look at, and mail goes on.

mod relay;

use std::fmt::Write as _;

use futures_util::StreamExt as _;
use lapin::{
    BasicProperties,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use pombo_proto::{
    control::{Control, Question},
    frame::{self, Frame, Packet, Payload},
    ids::{Correlation, DoorSequence, Incarnation},
    message::{Body, Content, Envelope, MessageClass, Priority, Recipient, ReportReturn, Source},
    time::UnixMillis,
    topology::Topology,
};
use pombo_tests::{
    Broker, Installation, Sink,
    client::{self, Session},
    eventually, http,
    mail::{self, Mail},
};
use serde_json::Value;

use relay::{LONG, SOON, nothing_is_left, relay, started};

fn envelope(recipients: Vec<Recipient>, body: Body) -> Envelope {
    Envelope {
        id: DoorSequence::default().issue(UnixMillis::now()),
        class: MessageClass::Note,
        sender: "alice@example.org".into(),
        recipients,
        priority: Priority::Normal,
        submitted_at: UnixMillis::now(),
        deferred_until: None,
        expires_at: None,
        report_return: ReportReturn::Headers,
        envelope_id: None,
        content: Content::default(),
        source: Source::default(),
        body,
        properties: Vec::new(),
    }
}

/// Each a message that nobody can read, with the reason.
fn broken_messages() -> Vec<(&'static str, Vec<u8>)> {
    let body = b"Subject: x\r\n\r\nx\r\n";
    let size = body.len() as u64;
    let good = |recipients| {
        frame::encode_message(envelope(recipients, Body::Inline { size }), body)
            .encoded
            .to_vec()
    };
    let one = || vec![Recipient::smtp("bob@example.net")];
    let whole = good(one());
    let patched = |at: usize, bytes: &[u8]| {
        let mut copy = whole.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        copy
    };
    vec![
        ("empty", Vec::new()),
        ("one byte", b"P".to_vec()),
        (
            "no message of ours",
            b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n".to_vec(),
        ),
        ("zeros", vec![0; 4096]),
        ("another version", patched(2, &[99])),
        (
            "an envelope longer than everything",
            patched(3, &u32::MAX.to_be_bytes()),
        ),
        (
            "an envelope longer than the message",
            patched(3, &100_000_u32.to_be_bytes()),
        ),
        ("cut in the header", whole[..5].to_vec()),
        ("cut in the envelope", whole[..40].to_vec()),
        ("cut in the body", whole[..whole.len() - 3].to_vec()),
        ("more than its body", [&whole[..], b"more"].concat()),
        (
            "a huge length in the envelope",
            patched(30, &[0xfc, 0xff, 0xff, 0xff, 0xff, 0x7f]),
        ),
        (
            "too many recipients",
            good(
                (0..10_001)
                    .map(|n| Recipient::smtp(format!("{n}@x.org")))
                    .collect(),
            ),
        ),
    ]
}

/// Each a packet that nobody can read.
fn broken_packets(from: Incarnation, to: Incarnation) -> Vec<Vec<u8>> {
    let frame = Frame {
        correlation: Correlation(1),
        payload: Payload::Control(Control::Question(Question::WhoIsThere)),
        tail: bytes::Bytes::new(),
    };
    let whole = Packet::single(from, to, frame).encode();
    let patched = |at: usize, bytes: &[u8]| {
        let mut copy = whole.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        copy
    };
    vec![
        Vec::new(),
        b"PB".to_vec(),
        b"hello".to_vec(),
        vec![0xff; 10_000],
        patched(2, &[99]),
        // More frames than there are, and frames of lengths that are not there.
        patched(3, &u16::MAX.to_be_bytes()),
        patched(53, &u32::MAX.to_be_bytes()),
        patched(57, &u32::MAX.to_be_bytes()),
        whole[..whole.len() - 1].to_vec(),
        [&whole[..], b"more"].concat(),
    ]
}

/// Everybody's incarnations, from the hellos that are repeated on both fanouts.
async fn everybody(
    broker: &Broker,
    topology: &Topology,
    count: usize,
) -> anyhow::Result<Vec<Incarnation>> {
    let connection = broker.connect().await?;
    let channel = connection.create_channel().await?;
    let exclusive = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    let queue = channel
        .queue_declare("".into(), exclusive, FieldTable::default())
        .await?;
    for exchange in [topology.spoolers_exchange(), topology.agents_exchange()] {
        let options = QueueBindOptions::default();
        channel
            .queue_bind(
                queue.name().clone(),
                exchange.into(),
                "".into(),
                options,
                FieldTable::default(),
            )
            .await?;
    }
    let no_ack = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let mut packets = channel
        .basic_consume(
            queue.name().clone(),
            "eavesdropper".into(),
            no_ack,
            FieldTable::default(),
        )
        .await?;
    let mut found: Vec<Incarnation> = Vec::new();
    while found.len() < count {
        let next = tokio::time::timeout(LONG, packets.next()).await?;
        let delivery = next.ok_or_else(|| anyhow::anyhow!("no more hellos"))??;
        let packet = Packet::decode(&delivery.data.into())?;
        if !found.contains(&packet.from) {
            found.push(packet.from);
        }
    }
    connection.close(200, "heard enough".into()).await?;
    Ok(found)
}

async fn still_works(pombo: &mut Installation, world: &Sink) -> anyhow::Result<()> {
    for service in pombo.spoolers() {
        assert!(service.is_running(), "{} died", service.name());
    }
    for service in pombo.agents() {
        assert!(service.is_running(), "{} died", service.name());
    }
    pombo.ready(LONG).await?;
    relay::takes_mail(pombo).await;
    let mail = Mail::new();
    client::send(
        pombo.door(),
        "alice@example.org",
        &["after@example.net"],
        &mail.bytes(),
    )
    .await?;
    world
        .wait_for(LONG, "the mail after all this", |seen| {
            seen.copies(mail.id(), "after@example.net") == 1
        })
        .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_messages_are_counted_and_kept_and_mail_goes_on() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let broker = Broker::shared().await;
    let mut pombo = started(relay(&world).broker(broker)).await?;
    let topology = Topology::new(pombo.prefix());
    let broken = broken_messages();
    for (number, (what, bytes)) in broken.iter().enumerate() {
        let priority = Priority::ALL[number % 3];
        broker
            .publish(
                &topology.spool_exchange(),
                priority.name(),
                BasicProperties::default(),
                bytes,
            )
            .await?;
        println!("{what}: {} bytes", bytes.len());
    }
    eventually(SOON, "all are in the dead queue", || async {
        let count = broker
            .queue_messages(&topology.dead_queue())
            .await
            .map_err(|e| e.to_string())?;
        if count as usize == broken.len() {
            Ok(())
        } else {
            Err(format!("{count} of {}", broken.len()))
        }
    })
    .await;
    let counted = pombo
        .spooler(0)
        .metric("pombo_link_unreadable_total")
        .await?;
    assert_eq!(counted as usize, broken.len());
    // Byte for byte as they came, for a person to look at.
    let mut kept = Vec::new();
    while let Some(taken) = broker.take(&topology.dead_queue()).await? {
        kept.push(taken.body);
    }
    let mut wanted: Vec<_> = broken.into_iter().map(|(_, bytes)| bytes).collect();
    kept.sort();
    wanted.sort();
    assert!(
        kept == wanted,
        "what lies in the dead queue is not what was published"
    );
    still_works(&mut pombo, &world).await?;
    nothing_is_left(&pombo, SOON).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_packets_to_fanouts_and_inboxes_are_counted_and_harm_nobody()
-> anyhow::Result<()> {
    let world = Sink::start().await?;
    let broker = Broker::shared().await;
    let mut pombo = started(relay(&world).broker(broker)).await?;
    let topology = Topology::new(pombo.prefix());
    let everybody = everybody(broker, &topology, 3).await?;
    let stranger = Incarnation(uuid::Uuid::new_v4());
    for exchange in [topology.spoolers_exchange(), topology.agents_exchange()] {
        for bytes in broken_packets(stranger, Incarnation::EVERYONE) {
            broker
                .publish(&exchange, "", BasicProperties::default(), &bytes)
                .await?;
        }
    }
    for peer in &everybody {
        for bytes in broken_packets(stranger, *peer) {
            broker
                .publish(
                    &topology.session_exchange(),
                    &topology.inbox(*peer),
                    BasicProperties::default(),
                    &bytes,
                )
                .await?;
        }
    }
    // On its fanout, and in its inbox.
    let wanted = 2 * broken_packets(stranger, stranger).len();
    let mut services = vec![pombo.spooler(0).http()];
    services.extend(pombo.agents().iter().map(|agent| agent.http()));
    for service in services {
        eventually(SOON, "each has counted its packets", || async {
            let page = http::get(service, "/metrics")
                .await
                .map_err(|e| e.to_string())?;
            let counted = http::metric(&page.body, "pombo_link_unreadable_total").unwrap_or(0.0);
            if counted as usize == wanted {
                Ok(())
            } else {
                Err(format!("{counted} of {wanted}"))
            }
        })
        .await;
    }
    still_works(&mut pombo, &world).await
}

/// Readable, and yet nonsense: a body that is not there, nobody to send to, addresses that are none.
#[tokio::test(flavor = "multi_thread")]
async fn readable_nonsense_ends_in_a_state_that_people_can_see() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    let broker = Broker::shared().await;
    let mut pombo = started(relay(&world).broker(broker)).await?;
    let topology = Topology::new(pombo.prefix());
    let smtp = |address: &str| vec![Recipient::smtp(address)];
    let body = b"Subject: x\r\n\r\nx\r\n";
    let size = body.len() as u64;
    let mut ids = Vec::new();
    for (what, envelope) in [
        ("no recipients", envelope(Vec::new(), Body::Inline { size })),
        (
            "no body in the blob store",
            envelope(smtp("bob@example.net"), Body::Blob { size: 100_000 }),
        ),
        ("no address", envelope(smtp(""), Body::Inline { size })),
        (
            "an address with commands",
            envelope(smtp("bob@example.net>\r\nDATA\r\n"), Body::Inline { size }),
        ),
        (
            "of a type that nobody takes",
            envelope(
                vec![Recipient {
                    address_type: "FAX".into(),
                    ..Recipient::smtp("+1")
                }],
                Body::Inline { size },
            ),
        ),
        (
            "a sender with commands",
            Envelope {
                sender: "a@b>\r\nQUIT".into(),
                ..envelope(smtp("bob@example.net"), Body::Inline { size })
            },
        ),
    ] {
        let inline: &[u8] = if matches!(envelope.body, Body::Inline { .. }) {
            body
        } else {
            b""
        };
        let message = frame::encode_message(envelope, inline);
        broker
            .publish(
                &topology.spool_exchange(),
                "normal",
                BasicProperties::default(),
                &message.encoded,
            )
            .await?;
        ids.push((what, message.envelope.id.to_string(), message.encoded));
    }
    let mut dead = 0;
    for (what, id, _) in &ids {
        let state = eventually(
            LONG,
            &format!("a state of the message with {what}"),
            || async {
                let why = pombo.pombo(&["--json", "why", id]).await;
                let why: Value = serde_json::from_str(&why.stdout).unwrap_or(Value::Null);
                match why["state"].as_str() {
                    Some(state @ ("finished" | "dead" | "waiting" | "held")) => {
                        Ok(state.to_owned())
                    }
                    _ => Err(why),
                }
            },
        )
        .await;
        println!("{what}: {state}");
        dead += u32::from(state == "dead");
    }
    println!("{dead} dead in the store");
    still_works(&mut pombo, &world).await?;
    world.look(|seen| {
        let others = seen
            .transactions()
            .iter()
            .filter(|it| it.to() != ["after@example.net"] && !it.from.is_empty());
        let others: Vec<_> = others.collect();
        assert!(others.is_empty(), "{others:?}");
        assert!(seen.complaints().is_empty(), "{:?}", seen.complaints());
    });
    Ok(())
}

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
