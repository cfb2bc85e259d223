//! How a link begins, is lost and begins again: addresses, connections, restarts, stalls and alarms.

use std::time::{Duration, Instant};

use bytes::Bytes;
use pombo_proto::{
    link::{Audience, Event, PublishError},
    topology::Topology,
};
use pombo_tests::Broker;

use crate::{
    mischief::{Proxy, Raw},
    peer::{NORMAL, Peer, message, options, packet, prefix, tags},
};

#[tokio::test]
async fn addresses_are_tried_in_turn_past_a_refused_login() {
    let broker = Broker::shared().await;
    let mut options = options(&broker.url(), &prefix(), Audience::Nobody);
    let refused = format!("amqp://guest:wrong@127.0.0.1:{}", broker.port());
    let no_vhost = format!("amqp://127.0.0.1:{}/nowhere", broker.port());
    let tls = format!("amqps://127.0.0.1:{}", broker.port());
    let closed = "amqp://127.0.0.1:1".to_owned();
    let nonsense = "guest:wrong".to_owned();
    let bad = [refused, no_vhost, tls, closed, nonsense];
    options
        .addresses
        .splice(0..0, bad.into_iter().map(Into::into));
    let peer = Peer::up(options).await;
    peer.publish(message(b"x")).await;
    peer.close().await;
}

#[tokio::test]
async fn the_loss_of_either_connection_is_a_new_incarnation() {
    let broker = Broker::shared().await;
    let proxy = Proxy::start(broker).await;
    let prefix = prefix();
    let mut peer = Peer::up(options(&proxy.url(), &prefix, Audience::Agents)).await;
    let mut witness = Peer::up(options(&broker.url(), &prefix, Audience::Agents)).await;
    peer.link.lease(NORMAL, 10);
    peer.publish(message(b"kept")).await;
    assert!(!peer.leases(1).await[0].redelivered);
    // First the publishing one, then the consuming one of the next incarnation.
    for connection in [0, 3] {
        let before = peer.incarnation;
        proxy.cut(connection);
        peer.down().await;
        assert_eq!(
            peer.link.publish(message(b"x")).await,
            Err(PublishError::NotConnected)
        );
        peer.incarnation = peer.next_up().await;
        assert_ne!(peer.incarnation, before);
        assert!(peer.leases(1).await[0].redelivered);
        // The old inbox is gone, the new one is there.
        witness.link.send(&packet(witness.incarnation, before, 1));
        let returned = |event| match event {
            Event::Returned { peer, .. } => Some(peer),
            _ => None,
        };
        assert_eq!(witness.until("Returned", returned).await, before);
        witness
            .link
            .send(&packet(witness.incarnation, peer.incarnation, 2));
        assert_eq!(peer.packets(1).await[0].first, 2);
    }
    peer.close().await;
    witness.close().await;
}

#[tokio::test]
async fn a_broker_that_restarts_is_found_again() {
    let broker = Broker::start().await.unwrap();
    let prefix = prefix();
    let mut peer = Peer::up(options(&broker.url(), &prefix, Audience::Spoolers)).await;
    peer.link.lease(NORMAL, 10);
    let kept = message(b"kept");
    peer.publish(kept.clone()).await;
    peer.leases(1).await;
    let close = ["close_all_connections", "by a test"];
    broker.rabbitmqctl(&close).await.unwrap();
    peer.down().await;
    let incarnation = peer.next_up().await;
    assert_ne!(incarnation, peer.incarnation);
    assert!(peer.leases(1).await[0].redelivered);

    broker.stop().await.unwrap();
    peer.down().await;
    let start = Instant::now();
    let refused = peer.link.publish(message(b"x")).await;
    assert_eq!(refused, Err(PublishError::NotConnected));
    assert!(start.elapsed() < Duration::from_secs(10));
    peer.link.bury(Bytes::from_static(b"kept"), "while away");
    broker.start_again().await.unwrap();
    assert_ne!(peer.next_up().await, incarnation);
    // The queue is durable, and the message in it persistent.
    let leases = peer.leases(1).await;
    assert_eq!(leases[0].message.encoded, kept.encoded);
    peer.publish(message(b"after")).await;
    peer.leases(1).await;
    let raw = Raw::connect(&broker).await;
    let (reason, body) = raw.take(&Topology::new(&prefix).dead_queue()).await;
    assert_eq!(
        (reason.as_str(), body.as_slice()),
        ("while away", &b"kept"[..])
    );
    peer.close().await;
}

#[tokio::test]
async fn a_broker_that_stalls_is_given_up_and_closing_does_not_wait_for_it() {
    let broker = Broker::start().await.unwrap();
    let mut options = options(&broker.url(), &prefix(), Audience::Spoolers);
    options.heartbeat = 2;
    let mut peer = Peer::up(options.clone()).await;
    let stalled = Peer::up(options).await;
    broker.pause();
    let asked = peer.link.publish(message(b"x"));
    let start = Instant::now();
    stalled.close().await;
    assert!(start.elapsed() < Duration::from_secs(10));
    peer.down().await;
    // Written, and never answered.
    assert!(matches!(asked.await, Err(PublishError::Unknown(_))));
    broker.resume();
    peer.next_up().await;
    peer.publish(message(b"x")).await;
    peer.close().await;
}

#[tokio::test]
async fn an_alarm_blocks_publishes_at_once_and_acks_go_on() {
    let broker = Broker::start().await.unwrap();
    let options = options(&broker.url(), &prefix(), Audience::Spoolers);
    let mut peer = Peer::up(options.clone()).await;
    let mut doomed = Peer::up(options.clone()).await;
    for _ in 0..3 {
        peer.publish(message(b"x")).await;
    }
    peer.link.lease(NORMAL, 2);
    let leases = peer.leases(2).await;
    let alarm = ["set_vm_memory_high_watermark", "0.00001"];
    broker.rabbitmqctl(&alarm).await.unwrap();
    // The broker says so after the first publish, which stays where it is.
    let first = tokio::spawn(peer.link.publish(message(b"first")));
    let doomed_first = tokio::spawn(doomed.link.publish(message(b"first")));
    peer.blocked(true).await;
    doomed.blocked(true).await;
    assert!(!peer.link.is_up());
    let start = Instant::now();
    let refused = peer.link.publish(message(b"x")).await;
    assert_eq!(refused, Err(PublishError::NotConnected));
    assert!(start.elapsed() < Duration::from_secs(10));
    // The third message comes only when an ack of the first two has gone through.
    peer.link.ack(tags(&leases));
    peer.leases(1).await;
    // Packets gather, and nobody waits for them.
    for number in 0..10_000 {
        peer.link
            .send(&packet(peer.incarnation, peer.incarnation, number));
    }
    // Closing ends although nothing can be written.
    let start = Instant::now();
    doomed.close().await;
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(doomed_first.await.unwrap().is_err());
    broker
        .rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"])
        .await
        .unwrap();
    peer.blocked(false).await;
    // Confirmed, unless the alarm took longer than a publish may.
    let first = first.await.unwrap();
    assert!(matches!(first, Ok(()) | Err(PublishError::Unknown(_))));
    peer.publish(message(b"x")).await;
    peer.close().await;
}
