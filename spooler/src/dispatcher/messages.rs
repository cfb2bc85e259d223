//! What the dispatcher is told and asked: by the outbox, the link, the sessions, the recorder and the service.

use std::sync::Arc;

use actix::{Addr, Message};
use pombo_proto::{
    ids::{Incarnation, Instance, MessageId, RecipientIndex},
    link::Lease,
    outcome::RecipientStatus,
    tenure::Ordinal,
    time::UnixMillis,
    topology::SpoolClass,
    verbs::{AddressTypes, Tenancy},
};

use crate::{
    destination::Reach,
    job::{Job, SessionKey},
    session::Session,
};

/// Messages obtained by claims.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Jobs(pub Vec<Job>);

/// Deliveries from the spool.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Leases(pub Vec<Lease>);

/// A consumer ended without our wish.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LeaseEnded(pub SpoolClass);

/// A new incarnation of the link: leases may be taken.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct BeginTerm(pub Incarnation);

/// The incarnation is over: everything in process is dropped.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct EndTerm;

/// How much the outbox may claim now.
#[derive(Message)]
#[rtype(result = "Hunger")]
pub struct Appetite;

/// The answer.
#[derive(Debug, Default, actix::MessageResponse)]
pub struct Hunger {
    /// At most so many rows.
    pub limit: usize,
    /// Not those of these.
    pub excluded: Vec<(String, Option<String>)>,
}

/// A session can be used.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionOpened {
    /// Which.
    pub key: SessionKey,
    /// Its transport.
    pub transport: String,
    /// For people.
    pub agent: String,
    /// When, in the order of this process.
    pub opened: Ordinal,
    /// How much may be outstanding.
    pub credit: u32,
    /// Whether messages go to it at all; else its transport is as good as away.
    pub sends: bool,
    /// Whom to tell.
    pub addr: Addr<Session>,
}

/// A session has ended. Its jobs come back through the recorder. Answered by [`crate::session::Farewell`]: what had been submitted
/// to it before this is in its mailbox, and comes back first.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionClosed {
    /// With which agent.
    pub key: SessionKey,
    /// Which of its sessions; `None`: it never stood.
    pub opened: Option<Ordinal>,
    /// Whom to answer.
    pub addr: Addr<Session>,
}

/// What a transport takes.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub struct TakesAddresses {
    /// By which agent's word.
    pub instance: Instance,
    /// Which transport.
    pub transport: String,
    /// What.
    pub types: AddressTypes,
}

/// A status row: the credit, and whether messages may be submitted.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionStatus {
    /// Which session.
    pub key: SessionKey,
    /// How much may be outstanding.
    pub credit: u32,
    /// False after a critical error, or while the agent drains.
    pub usable: bool,
}

/// SpoolerNotify(SENTDEFERRED): remembered until the message is claimed, by this spooler or by another one that heard it too.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SentDeferred {
    /// Which message.
    pub id: MessageId,
    /// Who says it.
    pub transport: String,
    /// The deadline of the keep that it is about.
    pub until: UnixMillis,
    /// What became of its recipients; none: it is wanted again.
    pub statuses: Vec<(RecipientIndex, RecipientStatus)>,
}

/// Somebody else decides about this message: it does not move here any more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Forget(pub MessageId);

/// An attempt has left its session; what it held at its destinations is free.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AttemptOver {
    /// Which message, under which fence.
    pub tenancy: Tenancy,
    /// What it means for its destinations.
    pub results: Vec<(Arc<str>, Reach)>,
}

/// The store cannot be written (true), or can again (false).
#[derive(Message)]
#[rtype(result = "()")]
pub struct StoreTrouble(pub bool);

/// No new work from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Drain;

/// How many messages are in process: ready, submitted, and being recorded.
#[derive(Message)]
#[rtype(result = "(usize, Vec<String>)")]
pub struct InProcess;
