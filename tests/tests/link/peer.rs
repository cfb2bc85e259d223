//! A link and what it tells, and what is sent over it.

use std::{collections::BTreeSet, time::Duration};

use pombo_proto::{
    frame::{Frame, Packet, encode_message},
    ids::{Correlation, DoorSequence, Incarnation, MessageId},
    link::{Audience, Event, Lease, Link, Options, SpoolPublish, Tls},
    message::{Body, Content, Envelope, MessageClass, Priority, Recipient, ReportReturn, Source},
    tenure::LeaseTag,
    time::UnixMillis,
    topology::{SpoolClass, Topology},
    verbs::Verb,
};
use tokio::sync::mpsc;

/// Generous: other things compile on the same cores.
pub const LIMIT: Duration = Duration::from_secs(60);
pub const NORMAL: SpoolClass = SpoolClass::Priority(Priority::Normal);

/// A link and what it tells.
pub struct Peer {
    pub link: Link,
    pub events: mpsc::UnboundedReceiver<Event>,
    pub incarnation: Incarnation,
}

impl Peer {
    pub fn start(options: Options) -> Self {
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

    pub async fn up(options: Options) -> Self {
        let mut peer = Self::start(options);
        peer.incarnation = peer.next_up().await;
        peer
    }

    /// The first event that `wanted` makes something of. What comes before it is forgotten.
    pub async fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
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

    pub async fn next_up(&mut self) -> Incarnation {
        let up = |event| match event {
            Event::Up(incarnation) => Some(incarnation),
            _ => None,
        };
        self.until("Up", up).await
    }

    pub async fn down(&mut self) -> String {
        let down = |event| match event {
            Event::Down(reason) => Some(reason),
            _ => None,
        };
        self.until("Down", down).await
    }

    pub async fn leases(&mut self, count: usize) -> Vec<Lease> {
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

    pub async fn packets(&mut self, count: usize) -> Vec<Packet> {
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

    pub async fn turn(&mut self, wanted: bool) {
        let turn = |event| matches!(event, Event::PollTurn(turn) if turn == wanted).then_some(());
        self.until(&format!("PollTurn({wanted})"), turn).await;
    }

    pub async fn blocked(&mut self, wanted: bool) {
        let blocked = |event| matches!(event, Event::Blocked(now) if now == wanted).then_some(());
        self.until(&format!("Blocked({wanted})"), blocked).await;
    }

    pub async fn publish(&self, publish: SpoolPublish) {
        self.link.publish(publish).await.expect("confirmed");
    }

    pub async fn close(self) {
        tokio::time::timeout(Duration::from_secs(12), self.link.close())
            .await
            .expect("closing is bounded");
    }
}

pub fn options(url: &str, prefix: &str, audience: Audience) -> Options {
    Options {
        versions: pombo_proto::verbs::VERSIONS,
        addresses: vec![url.into()],
        topology: Topology::new(prefix),
        audience,
        name: "test".to_owned(),
        heartbeat: 10,
        inbox_prefetch: 100,
        tls: Tls::default(),
    }
}

pub fn prefix() -> String {
    format!("t{:012x}", fastrand::u64(..1 << 48))
}

pub fn message(body: &[u8]) -> SpoolPublish {
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

pub fn packet(from: Incarnation, to: Incarnation, number: u64) -> Packet {
    let frame = Frame::verb(Correlation(number), Verb::Settled(Vec::new()));
    Packet {
        first: number,
        ..Packet::single(from, to, frame)
    }
}

pub fn tags(leases: &[Lease]) -> Vec<LeaseTag> {
    leases.iter().map(|lease| lease.tag).collect()
}

pub fn ids<'a>(leases: impl IntoIterator<Item = &'a Lease>) -> BTreeSet<MessageId> {
    leases
        .into_iter()
        .map(|lease| lease.message.envelope.id)
        .collect()
}
