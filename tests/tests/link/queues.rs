//! Queues with something in them that nobody can read, deleted ones, and ones of somebody else's.

use std::time::Duration;

use bytes::Bytes;
use lapin::{options::QueueDeclareOptions, types::FieldTable};
use pombo_proto::{
    link::{Audience, Event},
    topology::{SpoolClass, Topology},
};
use pombo_tests::Broker;

use crate::{
    mischief::Raw,
    peer::{NORMAL, Peer, message, options, packet, prefix, tags},
};

#[tokio::test]
async fn unreadable_bytes_are_buried_and_nothing_else_suffers() {
    let broker = Broker::shared().await;
    let prefix = prefix();
    let names = Topology::new(&prefix);
    let mut peer = Peer::up(options(&broker.url(), &prefix, Audience::Spoolers)).await;
    let raw = Raw::connect(broker).await;
    peer.link.lease(NORMAL, 10);
    raw.publish(&names.spool_exchange(), "normal", b"no message")
        .await;
    let inbox = names.inbox(peer.incarnation);
    raw.publish(&names.session_exchange(), &inbox, b"no packet")
        .await;
    raw.publish(&names.spoolers_exchange(), "", b"").await;
    peer.link.bury(Bytes::from_static(b"said so"), "a reason");
    peer.publish(message(b"good")).await;
    let good = peer.leases(1).await;
    peer.link
        .send(&packet(peer.incarnation, peer.incarnation, 1));
    assert_eq!(peer.packets(1).await.len(), 1);
    let mut buried = Vec::new();
    for _ in 0..4 {
        buried.push(raw.take(&names.dead_queue()).await);
    }
    buried.sort();
    let bodies: Vec<_> = buried.iter().map(|(_, body)| body.as_slice()).collect();
    assert_eq!(bodies[0], b"said so");
    assert!(buried[1].0.starts_with("unreadable message"), "{buried:?}");
    assert_eq!(bodies[1], b"no message");
    assert!(buried[2].0.starts_with("unreadable packet"), "{buried:?}");
    // The unreadable message is acked: nothing of it is left for the next one.
    peer.link.ack(tags(&good));
    peer.close().await;
    let options = options(&broker.url(), &prefix, Audience::Spoolers);
    let mut next = Peer::up(options).await;
    next.link.lease(NORMAL, 10);
    next.publish(message(b"after")).await;
    let after = next.leases(1).await;
    assert!(!after[0].redelivered);
    assert_eq!(&after[0].message.inline[..], b"after");
    next.close().await;
}

#[tokio::test]
async fn a_deleted_queue_loses_nothing_and_comes_back() {
    let broker = Broker::shared().await;
    let prefix = prefix();
    let names = Topology::new(&prefix);
    let mut door = Peer::up(options(&broker.url(), &prefix, Audience::Agents)).await;
    let raw = Raw::connect(broker).await;
    raw.delete(&names.spool_queue(NORMAL)).await;
    // Nobody noticed: the publish goes to where unroutable ones go.
    let astray = message(b"astray");
    door.publish(astray.clone()).await;
    door.link.lease(SpoolClass::Unrouted, 10);
    let leases = door.leases(1).await;
    assert_eq!(leases[0].message.encoded, astray.encoded);
    assert_eq!(leases[0].tag.class, SpoolClass::Unrouted);
    door.link.ack(tags(&leases));
    door.close().await;

    let mut spooler = Peer::up(options(&broker.url(), &prefix, Audience::Spoolers)).await;
    spooler.link.lease(NORMAL, 10);
    spooler.publish(message(b"before")).await;
    spooler.leases(1).await;
    raw.delete(&names.spool_queue(NORMAL)).await;
    let ended = |event| match event {
        Event::LeaseEnded(class) => Some(class),
        _ => None,
    };
    assert_eq!(spooler.until("LeaseEnded", ended).await, NORMAL);
    spooler.down().await;
    assert_ne!(spooler.next_up().await, spooler.incarnation);
    // The wish stands.
    spooler.publish(message(b"after")).await;
    assert_eq!(&spooler.leases(1).await[0].message.inline[..], b"after");
    spooler.close().await;
}

#[tokio::test]
async fn a_queue_with_other_arguments_keeps_the_link_down_until_it_is_gone() {
    let broker = Broker::shared().await;
    let prefix = prefix();
    let queue = Topology::new(&prefix).spool_queue(NORMAL);
    let raw = Raw::connect(broker).await;
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    raw.channel
        .queue_declare(queue.as_str().into(), durable, FieldTable::default())
        .await
        .unwrap();
    let mut peer = Peer::start(options(&broker.url(), &prefix, Audience::Nobody));
    let told = tokio::time::timeout(Duration::from_secs(30), peer.events.recv()).await;
    let Ok(Some(Event::Down(reason))) = told else {
        panic!("{told:?}")
    };
    assert!(reason.contains(&queue), "{reason}");
    assert!(!peer.link.is_up());
    raw.delete(&queue).await;
    peer.next_up().await;
    peer.close().await;
}
