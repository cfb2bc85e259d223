//! How a link ends.

use bytes::Bytes;
use futures_util::future::join_all;
use pombo_proto::{
    link::{Audience, Event, Link},
    topology::Topology,
};
use pombo_tests::Broker;

use crate::{
    mischief::Raw,
    peer::{LIMIT, NORMAL, Peer, ids, message, options, packet, prefix, tags},
};

#[tokio::test]
async fn closing_writes_what_is_pending() {
    let broker = Broker::shared().await;
    let prefix = prefix();
    let names = Topology::new(&prefix);
    let url = broker.url();
    let mut peer = Peer::up(options(&url, &prefix, Audience::Agents)).await;
    let mut other = Peer::up(options(&url, &prefix, Audience::Agents)).await;
    let acked = message(b"acked");
    peer.publish(acked.clone()).await;
    peer.link.lease(NORMAL, 1);
    let leases = peer.leases(1).await;
    let publishes: Vec<_> = (0..500)
        .map(|_| peer.link.publish(message(b"pending")))
        .collect();
    for number in 0..500 {
        peer.link
            .send(&packet(peer.incarnation, other.incarnation, number));
    }
    peer.link.bury(Bytes::from_static(b"pending"), "a reason");
    peer.link.ack(tags(&leases));
    peer.close().await;
    for confirmed in join_all(publishes).await {
        confirmed.unwrap();
    }
    assert_eq!(other.packets(500).await[499].first, 499);
    let raw = Raw::connect(broker).await;
    raw.take(&names.dead_queue()).await;
    other.link.lease(NORMAL, 1_000);
    let spooled = other.leases(500).await;
    assert!(!ids(&spooled).contains(&acked.id));
    other.close().await;
}

#[test]
fn a_link_whose_last_handle_is_dropped_closes() {
    // Outside of any runtime, as actors' arbiters and main threads are.
    let (tell, events) = std::sync::mpsc::channel();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let broker = runtime.block_on(Broker::shared());
    let options = options(&broker.url(), &prefix(), Audience::Nobody);
    let link = Link::start(options, move |event| {
        let _ = tell.send(event);
    });
    let next = || events.recv_timeout(LIMIT).expect("an event");
    assert!(matches!(next(), Event::Up(_)));
    let other = link.clone();
    drop(link);
    assert!(other.is_up());
    drop(other);
    assert!(matches!(next(), Event::Down(_)));
    // The callback is dropped with the thread.
    assert!(matches!(
        events.recv_timeout(LIMIT),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
    ));
}
