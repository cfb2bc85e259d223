//! The link against a real broker: what is confirmed, leased, acked, told, returned, buried and rebuilt.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use lapin::{
    BasicProperties, ConnectionProperties,
    options::{
        BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use pombo_proto::{
    frame::{Frame, Packet, encode_message},
    ids::{Correlation, DoorSequence, Incarnation, MessageId},
    link::{Audience, Event, Lease, Link, Options, PublishError, SpoolPublish},
    message::{Body, Content, Envelope, MessageClass, Priority, Recipient, ReportReturn, Source},
    tenure::LeaseTag,
    time::UnixMillis,
    topology::{SpoolClass, Topology},
    verbs::Verb,
};
use pombo_tests::Broker;
use tokio::{net::TcpStream, sync::mpsc, task::JoinHandle};

/// Generous: other things compile on the same cores.
const LIMIT: Duration = Duration::from_secs(60);
const NORMAL: SpoolClass = SpoolClass::Priority(Priority::Normal);

/// A link and what it tells.
struct Peer {
    link: Link,
    events: mpsc::UnboundedReceiver<Event>,
    incarnation: Incarnation,
}

impl Peer {
    fn start(options: Options) -> Self {
        let (tell, events) = mpsc::unbounded_channel();
        let link = Link::start(options, move |event| {
            let _ = tell.send(event);
        });
        Self {
            link,
            events,
            incarnation: Incarnation::EVERYONE,
        }
    }

    async fn up(options: Options) -> Self {
        let mut peer = Self::start(options);
        peer.incarnation = peer.next_up().await;
        peer
    }

    /// The first event that `wanted` makes something of. What comes before it is forgotten.
    async fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        let mut seen = Vec::new();
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the link lives");
                seen.push(format!("{event:.60?}"));
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        };
        match tokio::time::timeout(LIMIT, search).await {
            Ok(found) => found,
            Err(_) => panic!("no {what} within {LIMIT:?}; saw {seen:#?}"),
        }
    }

    async fn next_up(&mut self) -> Incarnation {
        let up = |event| match event {
            Event::Up(incarnation) => Some(incarnation),
            _ => None,
        };
        self.until("Up", up).await
    }

    async fn down(&mut self) -> String {
        let down = |event| match event {
            Event::Down(reason) => Some(reason),
            _ => None,
        };
        self.until("Down", down).await
    }

    async fn leases(&mut self, count: usize) -> Vec<Lease> {
        let mut leases = Vec::new();
        while leases.len() < count {
            let more = |event| match event {
                Event::Leases(more) => Some(more),
                _ => None,
            };
            leases.extend(self.until("Leases", more).await);
        }
        assert_eq!(leases.len(), count);
        leases
    }

    async fn packets(&mut self, count: usize) -> Vec<Packet> {
        let mut packets = Vec::new();
        while packets.len() < count {
            let more = |event| match event {
                Event::Packets(more) => Some(more),
                _ => None,
            };
            packets.extend(self.until("Packets", more).await);
        }
        assert_eq!(packets.len(), count);
        packets
    }

    async fn turn(&mut self, wanted: bool) {
        let turn = |event| matches!(event, Event::PollTurn(turn) if turn == wanted).then_some(());
        self.until(&format!("PollTurn({wanted})"), turn).await;
    }

    async fn blocked(&mut self, wanted: bool) {
        let blocked = |event| matches!(event, Event::Blocked(now) if now == wanted).then_some(());
        self.until(&format!("Blocked({wanted})"), blocked).await;
    }

    async fn publish(&self, publish: SpoolPublish) {
        self.link.publish(publish).await.expect("confirmed");
    }

    async fn close(self) {
        tokio::time::timeout(Duration::from_secs(12), self.link.close())
            .await
            .expect("closing is bounded");
    }
}

fn options(url: &str, prefix: &str, audience: Audience) -> Options {
    Options {
        addresses: vec![url.into()],
        topology: Topology::new(prefix),
        audience,
        name: "test".to_owned(),
        heartbeat: 10,
        inbox_prefetch: 100,
    }
}

fn prefix() -> String {
    format!("t{:012x}", fastrand::u64(..1 << 48))
}

fn message(body: &[u8]) -> SpoolPublish {
    let envelope = Envelope {
        id: DoorSequence::default().issue(UnixMillis::now()),
        class: MessageClass::Note,
        sender: "ann@example.org".to_owned(),
        recipients: vec![Recipient::smtp("bob@example.net")],
        priority: Priority::Normal,
        submitted_at: UnixMillis::now(),
        deferred_until: None,
        expires_at: None,
        report_return: ReportReturn::Headers,
        envelope_id: None,
        content: Content::default(),
        source: Source::default(),
        body: Body::Inline {
            size: body.len() as u64,
        },
        properties: Vec::new(),
    };
    let message = encode_message(envelope, body);
    SpoolPublish {
        id: message.envelope.id,
        priority: Priority::Normal,
        encoded: message.encoded,
        marked: false,
    }
}

fn packet(from: Incarnation, to: Incarnation, number: u64) -> Packet {
    let frame = Frame::verb(Correlation(number), Verb::Settled(Vec::new()));
    Packet {
        first: number,
        ..Packet::single(from, to, frame)
    }
}

fn tags(leases: &[Lease]) -> Vec<LeaseTag> {
    leases.iter().map(|lease| lease.tag).collect()
}

fn ids<'a>(leases: impl IntoIterator<Item = &'a Lease>) -> BTreeSet<MessageId> {
    leases
        .into_iter()
        .map(|lease| lease.message.envelope.id)
        .collect()
}

/// A plain connection, for looking and for mischief.
struct Raw {
    _connection: lapin::Connection,
    channel: lapin::Channel,
}

impl Raw {
    async fn connect(broker: &Broker) -> Self {
        let url = format!("amqp://127.0.0.1:{}", broker.port());
        let connection = lapin::Connection::connect(&url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        let select = ConfirmSelectOptions::default();
        channel.confirm_select(select).await.unwrap();
        Self {
            _connection: connection,
            channel,
        }
    }

    async fn publish(&self, exchange: &str, key: &str, body: &[u8]) {
        let confirm = self
            .channel
            .basic_publish(
                exchange.into(),
                key.into(),
                BasicPublishOptions::default(),
                body,
                BasicProperties::default(),
            )
            .await
            .unwrap();
        assert!(confirm.await.unwrap().is_ack());
    }

    async fn take(&self, queue: &str) -> (String, Vec<u8>) {
        let start = Instant::now();
        loop {
            let got = self
                .channel
                .basic_get(queue.into(), BasicGetOptions { no_ack: true })
                .await
                .unwrap();
            if let Some(got) = got {
                let headers = got.properties.headers().clone().unwrap_or_default();
                let reason = match headers.inner().get("pombo-reason") {
                    Some(AMQPValue::LongString(reason)) => reason.to_string(),
                    other => panic!("no reason: {other:?}"),
                };
                return (reason, got.delivery.data);
            }
            assert!(start.elapsed() < LIMIT, "nothing in {queue}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn delete(&self, queue: &str) {
        let options = QueueDeleteOptions::default();
        self.channel
            .queue_delete(queue.into(), options)
            .await
            .unwrap();
    }
}

/// Stands between a link and its broker, and cuts.
struct Proxy {
    port: u16,
    streams: Arc<Mutex<Vec<JoinHandle<()>>>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    async fn start(broker: &Broker) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = broker.port();
        let streams: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
        let pumps = Arc::clone(&streams);
        let accepting = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let pump = tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
                pumps.lock().unwrap().push(pump);
            }
        });
        Self {
            port,
            streams,
            accepting,
        }
    }

    fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.port)
    }

    /// Ends the n-th connection that was made through it.
    fn cut(&self, number: usize) {
        self.streams.lock().unwrap()[number].abort();
    }

    /// Ends all, and lets nobody in any more.
    fn die(&self) {
        self.accepting.abort();
        self.streams
            .lock()
            .unwrap()
            .iter()
            .for_each(JoinHandle::abort);
    }
}

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
    let options = options(&broker.url(), &prefix(), Audience::Spoolers);
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
            Event::Returned(incarnation) => returned = Some(incarnation),
            Event::Packets(packets) => received = packets.first().map(|p| p.first),
            other => panic!("{other:?}"),
        }
        (returned.is_some() && received.is_some()).then_some(())
    })
    .await;
    assert_eq!((returned, received), (Some(gone), Some(2)));
    peer.close().await;
}

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
            Event::Returned(incarnation) => Some(incarnation),
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

#[tokio::test]
async fn publishes_are_pipelined() {
    let broker = Broker::shared().await;
    let peer = Peer::up(options(&broker.url(), &prefix(), Audience::Nobody)).await;
    let rate = |count: u32, start: Instant| f64::from(count) / start.elapsed().as_secs_f64();
    let start = Instant::now();
    for _ in 0..100 {
        peer.publish(message(&[b'x'; 1_024])).await;
    }
    let alone = rate(100, start);
    let messages: Vec<_> = (0..8_000).map(|_| message(&[b'x'; 1_024])).collect();
    let start = Instant::now();
    for confirmed in join_all(messages.into_iter().map(|m| peer.link.publish(m))).await {
        confirmed.unwrap();
    }
    let together = rate(8_000, start);
    println!("{alone:.0}/s one by one, {together:.0}/s together");
    assert!(together > 2.0 * alone, "{alone:.0}/s and {together:.0}/s");
    peer.close().await;
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
    assert!(start.elapsed() < Duration::from_secs(1));
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
    assert!(start.elapsed() < Duration::from_secs(1));
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
