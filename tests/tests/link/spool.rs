//! What is published, leased and acked.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use pombo_proto::{ids::Incarnation, link::Audience, tenure::LeaseTag};
use pombo_tests::{Broker, eventually};

use crate::peer::{NORMAL, Peer, ids, message, options, prefix, tags};

#[tokio::test]
async fn a_confirmed_message_is_leased_until_it_is_acked() {
    let broker = Broker::shared().await;
    let options = options(&broker.url(), &prefix(), Audience::Spoolers);
    let mut first = Peer::up(options.clone()).await;
    let (one, mut two) = (message(b"one"), message(b"two"));
    two.marked = true;
    first.publish(one.clone()).await;
    first.link.lease(NORMAL, 10);
    let lease = first.leases(1).await.remove(0);
    assert_eq!(lease.message.encoded, one.encoded);
    assert!(!lease.redelivered && !lease.marked);
    assert_eq!(lease.tag.incarnation, first.incarnation);
    first.link.ack(vec![lease.tag]);
    first.publish(two.clone()).await;
    let lease = first.leases(1).await.remove(0);
    assert!(lease.marked && !lease.redelivered);
    // Not acked: it comes back to the next one, alone. The wish is not the next one's.
    first.close().await;
    let mut second = Peer::up(options).await;
    second.link.lease(NORMAL, 10);
    let lease = second.leases(1).await.remove(0);
    assert_eq!(lease.message.envelope.id, two.id);
    assert!(lease.marked && lease.redelivered);
    // Tags of another incarnation, or acked before, are ignored: they would close the channel.
    let stale = LeaseTag {
        incarnation: Incarnation::random(),
        delivery: 77,
        ..lease.tag
    };
    second.link.ack(vec![stale, lease.tag, lease.tag]);
    second.link.ack(vec![lease.tag]);
    second.publish(message(b"three")).await;
    assert!(!second.leases(1).await[0].redelivered);
    second.close().await;
}

#[tokio::test]
async fn another_prefetch_keeps_what_is_leased() {
    let broker = Broker::shared().await;
    let prefix = prefix();
    let options = options(&broker.url(), &prefix, Audience::Spoolers);
    let mut peer = Peer::up(options.clone()).await;
    for _ in 0..10 {
        peer.publish(message(b"x")).await;
    }
    peer.link.lease(NORMAL, 2);
    let mut leases = peer.leases(2).await;
    peer.link.lease(NORMAL, 5);
    leases.extend(peer.leases(5).await);
    peer.link.lease(NORMAL, 0);
    assert_eq!(ids(&leases).len(), 7);
    // An ack that comes before the end of the consumer makes room for more, which come back when it ends.
    let queue = format!("{prefix}.spool.");
    eventually(Duration::from_secs(30), "the consumer ends", || async {
        let consumers = broker.rabbitmqctl(&["list_consumers", "queue_name"]).await;
        match consumers {
            Ok(names) if !names.contains(&queue) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // In any order, all but the second; then the consumer goes on with what is left.
    let kept = leases.remove(1);
    let mut acked = tags(&leases);
    fastrand::shuffle(&mut acked);
    acked.into_iter().for_each(|tag| peer.link.ack(vec![tag]));
    peer.link.lease(NORMAL, 100);
    let rest = peer.leases(3).await;
    assert!(rest.iter().all(|lease| !lease.redelivered));
    peer.link.ack(tags(&rest));
    peer.close().await;
    let mut next = Peer::up(options).await;
    next.link.lease(NORMAL, 100);
    assert_eq!(ids(&next.leases(1).await), ids([&kept]));
    next.close().await;
}

#[tokio::test]
async fn publishes_are_pipelined() {
    let broker = Broker::shared().await;
    let peer = Peer::up(options(&broker.url(), &prefix(), Audience::Nobody)).await;
    let rate = |count: u32, start: Instant| f64::from(count) / start.elapsed().as_secs_f64();
    let one_by_one = async || {
        let start = Instant::now();
        for _ in 0..100 {
            peer.publish(message(&[b'x'; 1_024])).await;
        }
        rate(100, start)
    };
    let before = one_by_one().await;
    let messages: Vec<_> = (0..8_000).map(|_| message(&[b'x'; 1_024])).collect();
    let start = Instant::now();
    for confirmed in join_all(messages.into_iter().map(|m| peer.link.publish(m))).await {
        confirmed.unwrap();
    }
    let together = rate(8_000, start);
    // The machine may have had more time for one than for the other.
    let alone = before.min(one_by_one().await);
    println!("{alone:.0}/s one by one, {together:.0}/s together");
    assert!(together > 2.0 * alone, "{alone:.0}/s and {together:.0}/s");
    peer.close().await;
}
