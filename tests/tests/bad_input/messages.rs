//! Messages that nobody can read, and readable nonsense, in the spool.

use lapin::BasicProperties;
use pombo_proto::{
    frame,
    message::{Body, Envelope, Priority, Recipient},
    topology::Topology,
};
use pombo_tests::{Broker, Sink, eventually};
use serde_json::Value;

use crate::{
    relay::{LONG, SOON, nothing_is_left, relay, started},
    support::{envelope, still_works},
};

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
