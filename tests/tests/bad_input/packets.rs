//! Packets that nobody can read, to everybody and to each inbox.

use futures_util::StreamExt as _;
use lapin::{
    BasicProperties,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use pombo_proto::{
    control::{Control, Question},
    frame::{Frame, Packet, Payload},
    ids::{Correlation, Incarnation},
    topology::Topology,
};
use pombo_tests::{Broker, Sink, eventually, http};

use crate::{
    relay::{LONG, SOON, relay, started},
    support::still_works,
};

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
