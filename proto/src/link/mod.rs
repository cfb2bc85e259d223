//! A process's link to RabbitMQ: two connections, their channels, confirms, and the rebuild after a loss.
//!
//! The link runs on a tokio runtime of its own, outside all arbiters, so that no busy actor ever stalls a heartbeat. It
//! owns both connections: if either is lost, both are closed and the link starts over as a **new incarnation** with a
//! new inbox. What it hears it tells through one callback, in order; what it is told to do never waits.
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | publishes not yet confirmed | 8,192, or 256 MiB | [`PublishError::NotConnected`] |
//! | a publish not confirmed | 30 s | [`PublishError::Unknown`] |
//! | packets not yet written | 4,096, or 64 MiB | dropped and counted; the session notices the gap |
//! | packets received and not yet told | [`Options::inbox_prefetch`] | they wait in the broker |
//! | leases | their class's prefetch | they wait in the broker |
//! | burials not yet confirmed | 1,024, or 32 MiB | dropped, counted and logged |
//! | [`Link::close`] | about 6 s | cut off |
//!
//! **Wishes** ([`Link::lease`], [`Link::poll_turn`]) stand until they are changed, also over incarnations. Everything else
//! belongs to one incarnation. What was told as [`Event::Blocked`] or [`Event::PollTurn`] is taken back before
//! [`Event::Down`].

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use secrecy::SecretString;

use crate::{
    frame::Packet,
    ids::{Incarnation, MessageId},
    message::{Message, Priority},
    tenure::LeaseTag,
    topology::{SpoolClass, Topology},
    trace::TraceParent,
    verbs::VersionRange,
};

/// How to reach the broker, and as whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// `amqp://` or `amqps://` addresses with user and vhost; tried in turn. Without a path, or with an empty one, the vhost
    /// is `/`.
    pub addresses: Vec<SecretString>,
    /// For `amqps://`.
    pub tls: Tls,
    /// Names of queues and exchanges.
    pub topology: Topology,
    /// Which fanout reaches us.
    pub audience: Audience,
    /// Shown in the broker's list of connections.
    pub name: String,
    /// Seconds, the same on both connections; 0 is taken as 1. A broker that wishes less gets less.
    pub heartbeat: u16,
    /// Packets in the inbox that are delivered and not yet told; 0 is taken as 1.
    pub inbox_prefetch: u16,
    /// Which versions of packets are read.
    pub versions: VersionRange,
}

/// The two fanouts. `pombo`, which asks questions, listens to neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Every spooler.
    Spoolers,
    /// Every agent.
    Agents,
    /// Nobody: only the own inbox.
    Nobody,
}

/// What the link tells. `Up` comes before anything of an incarnation, `Down` after everything of it.
#[derive(Debug)]
pub enum Event {
    /// Both connections stand, the topology is declared, the inbox is consumed.
    Up(Incarnation),
    /// Packets from the inbox or a fanout, in order. Unreadable ones were counted, and put into the dead queue.
    Packets(Vec<Packet>),
    /// Deliveries from the spool, not acked. Unreadable ones were put into the dead queue and acked.
    Leases(Vec<Lease>),
    /// A packet for this incarnation could not be routed: its inbox is gone, and does not come back under this name.
    Returned {
        /// Whose.
        peer: Incarnation,
        /// The number of the first frame that has come back, if that could be read. Packets are written in order, so this and
        /// what comes after it has reached nobody; whatever else is unanswered there is unknown.
        first: Option<u64>,
    },
    /// The poll queue of the transport has made us its active consumer, or we have given it up.
    PollTurn(bool),
    /// The broker holds back our publishes (an alarm), or does so no more.
    Blocked(bool),
    /// A consumer of this class ended without our wish (its queue was deleted, the broker cancelled it). The incarnation ends
    /// with it, and the next one declares the queue again.
    LeaseEnded(SpoolClass),
    /// The incarnation is over, and why: everything unacked will be delivered again. Or there was none, and an attempt to
    /// build one failed: then only the reason is new.
    Down(String),
}

/// One delivery from the spool.
#[derive(Debug)]
pub struct Lease {
    /// What to ack.
    pub tag: LeaseTag,
    /// The broker has delivered it before.
    pub redelivered: bool,
    /// The door published it again after an unknown confirm.
    pub marked: bool,
    /// The trace that its publisher has put it into, if that is another one than its id says.
    pub trace: Option<TraceParent>,
    /// The message.
    pub message: Message,
}

/// A message for the spool.
#[derive(Clone, Debug)]
pub struct SpoolPublish {
    /// Its id: the AMQP message-id, by which a returned message is matched.
    pub id: MessageId,
    /// Its queue.
    pub priority: Priority,
    /// The encoded message.
    pub encoded: Bytes,
    /// Published before, with an unknown result.
    pub marked: bool,
}

/// Why a publish was not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// There is no connection, or the broker blocks: nothing was written.
    #[error("not connected to the broker")]
    NotConnected,
    /// Written, and then the connection was lost or the time ran out: it may or may not be in the spool. Publish the same
    /// id again, marked.
    #[error("the broker did not answer: {0}")]
    Unknown(String),
    /// The broker refused it (nack, or no queue takes it): it is not in the spool.
    #[error("the broker refused: {0}")]
    Refused(String),
}

/// A handle to the link; cheap to clone. Dropping the last one closes it.
#[derive(Clone)]
pub struct Link {
    shared: Arc<run::Shared>,
}

mod acks;
mod bury;
mod connect;
mod declare;
mod depth;
mod error;
mod inbox;
mod lease;
mod live;
mod metrics;
mod poll;
mod publish;
mod run;
mod session;
mod tls;

pub use tls::{Tls, TlsError};

impl Link {
    /// Starts the link. `tell` is called from the link's runtime and must not block.
    pub fn start(options: Options, tell: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self {
            shared: run::start(options, Arc::new(tell)),
        }
    }

    /// Writes a packet to the inbox of `packet.to`, mandatory, not confirmed. Dropped if the link is down, or full.
    pub fn send(&self, packet: &Packet) {
        self.shared.send(packet);
    }

    /// Writes a packet to everybody of an audience. Dropped if the link is down.
    pub fn announce(&self, audience: Audience, packet: &Packet) {
        self.shared.announce(audience, packet);
    }

    /// Publishes into the spool; resolves when it is confirmed and routed. The publish is under way when this returns, from
    /// whichever thread, and in the order of the calls; the future only waits for the answer, and may be dropped.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn publish(
        &self,
        publish: SpoolPublish,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> {
        self.shared.publish(publish)
    }

    /// Acks deliveries. Those of earlier incarnations are ignored. Batched.
    pub fn ack(&self, tags: Vec<LeaseTag>) {
        self.shared.ack(tags);
    }

    /// Consumes a spool queue with this prefetch (1..=2,000), or stops (0). What was delivered stays leased, and does not
    /// count against the new prefetch.
    pub fn lease(&self, class: SpoolClass, prefetch: u16) {
        self.shared.lease(class, prefetch);
    }

    /// Asks for the turn to poll (consumes the transport's single-active-consumer queue), or gives it up. One transport at a
    /// time: a wish for another one gives up the first.
    pub fn poll_turn(&self, transport: &str, wanted: bool) {
        self.shared.poll_turn(transport, wanted);
    }

    /// Puts bytes that nobody can read into the dead queue, with a reason in the header `pombo-reason`. Repeated until it is
    /// confirmed, also over incarnations.
    pub fn bury(&self, bytes: Bytes, reason: &str) {
        self.shared.bury(bytes, reason);
    }

    /// How many messages lie ready in the spool's queues, in the order of [`SpoolClass::ALL`]: those that nobody has leased.
    /// `None` without a link, or if the broker does not say.
    pub fn ready(
        &self,
    ) -> impl Future<Output = Option<[u64; SpoolClass::ALL.len()]>> + Send + use<> {
        self.shared.ready()
    }

    /// Ends this incarnation, and starts over as another one.
    pub fn restart(&self) {
        self.shared.restart();
    }

    /// Whether a publish would be written now.
    pub fn is_up(&self) -> bool {
        self.shared.is_up()
    }

    /// Writes what is pending (bounded time), closes both connections and ends the runtime.
    pub async fn close(&self) {
        self.shared.close().await;
    }
}
