//! What peers say to each other, and whose turn it is to poll.

use pombo_proto::{
    ids::Incarnation,
    link::{Audience, Event},
};
use pombo_tests::Broker;

use crate::{
    mischief::Proxy,
    peer::{Peer, options, packet, prefix},
};

#[tokio::test]
async fn packets_go_both_ways_in_order_and_to_everybody() {
    let broker = Broker::shared().await;
    let prefix = prefix();
    let url = broker.url();
    let mut spooler = Peer::up(options(&url, &prefix, Audience::Spoolers)).await;
    let mut other = Peer::up(options(&url, &prefix, Audience::Spoolers)).await;
    let mut agent = Peer::up(options(&url, &prefix, Audience::Agents)).await;
    let mut asker = Peer::up(options(&url, &prefix, Audience::Nobody)).await;
    let hello = packet(agent.incarnation, Incarnation::EVERYONE, 0);
    agent.link.announce(Audience::Spoolers, &hello);
    assert_eq!(spooler.packets(1).await, std::slice::from_ref(&hello));
    assert_eq!(other.packets(1).await, [hello]);
    for number in 0..2_000 {
        let packet = packet(spooler.incarnation, agent.incarnation, number);
        spooler.link.send(&packet);
    }
    let numbers: Vec<_> = agent.packets(2_000).await.iter().map(|p| p.first).collect();
    assert_eq!(numbers, (0..2_000).collect::<Vec<_>>());
    // Who listens to no fanout hears only what is for it.
    spooler.link.announce(
        Audience::Agents,
        &packet(spooler.incarnation, Incarnation::EVERYONE, 1),
    );
    assert_eq!(agent.packets(1).await[0].first, 1);
    agent
        .link
        .send(&packet(agent.incarnation, asker.incarnation, 2));
    assert_eq!(asker.packets(1).await[0].first, 2);
    for peer in [spooler, other, agent, asker] {
        peer.close().await;
    }
}

#[tokio::test]
async fn a_packet_for_nobody_comes_back_as_a_hint() {
    let broker = Broker::shared().await;
    let mut peer = Peer::up(options(&broker.url(), &prefix(), Audience::Agents)).await;
    let gone = Incarnation::random();
    peer.link.send(&packet(peer.incarnation, gone, 1));
    // What comes after it is not disturbed, and everybody's own inbox takes it.
    peer.link
        .send(&packet(peer.incarnation, peer.incarnation, 2));
    let (mut returned, mut received) = (None, None);
    peer.until("both", |event| {
        match event {
            Event::Returned { peer, first } => returned = Some((peer, first)),
            Event::Packets(packets) => received = packets.first().map(|p| p.first),
            other => panic!("{other:?}"),
        }
        (returned.is_some() && received.is_some()).then_some(())
    })
    .await;
    assert_eq!((returned, received), (Some((gone, Some(1))), Some(2)));
    peer.close().await;
}

#[tokio::test]
async fn the_turn_to_poll_moves_when_its_holder_gives_up_or_dies() {
    let broker = Broker::shared().await;
    let proxy = Proxy::start(broker).await;
    let prefix = prefix();
    let url = broker.url();
    let mut first = Peer::up(options(&proxy.url(), &prefix, Audience::Agents)).await;
    let mut second = Peer::up(options(&url, &prefix, Audience::Agents)).await;
    first.link.poll_turn("imap", true);
    first.turn(true).await;
    second.link.poll_turn("imap", true);
    // Another transport's turn is free.
    let mut third = Peer::up(options(&url, &prefix, Audience::Agents)).await;
    third.link.poll_turn("pop3", true);
    third.turn(true).await;
    first.link.poll_turn("imap", false);
    first.turn(false).await;
    second.turn(true).await;
    // Back again, behind the second, which then goes.
    first.link.poll_turn("imap", true);
    second.close().await;
    first.turn(true).await;
    third.link.poll_turn("imap", true);
    third.turn(false).await;
    // The holder dies without a word.
    proxy.die();
    third.turn(true).await;
    first.turn(false).await;
    first.down().await;
    third.close().await;
}
