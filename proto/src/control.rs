//! The questions that people ask by `pombo`, and the answers.
//!
//! `pombo` finds spoolers by a [`crate::verbs::Hello`] on their fanout, then writes to inboxes. A question about one
//! message goes to all of them: the store answers the same everywhere, but what moves is known only to its holder.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    ids::{Fence, MessageId},
    ledger::{Balance, DoorNumber},
    message::{Notify, Priority, ReportReturn},
    outcome::Diagnosis,
    time::UnixMillis,
    verbs::{StatusRow, Validation},
};

/// What travels in a control frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Control {
    /// From `pombo` to a spooler.
    Question(Question),
    /// Back. Several may answer one question; the last one says so.
    Answer(Result<Answer, ControlError>),
}

/// What is asked. The uploads' frames carry their bytes as the tail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Question {
    /// Who is there? Answered by [`Answer::Here`].
    WhoIsThere,
    /// A part of a body (the tail), in order. Answered by [`Answer::Uploaded`]; the next part may then come.
    Upload {
        /// Chosen by the asker.
        upload: Uuid,
        /// Where this part begins.
        offset: u64,
    },
    /// SubmitMessage: the body was uploaded. Answered by [`Answer::Accepted`] once the broker has confirmed it.
    Submit {
        /// The upload that is its body.
        upload: Uuid,
        /// Everything else.
        submission: Submission,
    },
    /// All that is known of one message. Answered by [`Answer::Trace`].
    Trace(MessageId),
    /// Where is it, who holds it, what does it wait for. Answered by [`Answer::Why`].
    Why(MessageId),
    /// What is moving and waiting. Answered by [`Answer::Queue`].
    Queue(QueueFilter),
    /// Mark as cancelled; in time only if the answer says so. Answered by [`Answer::Cancelled`].
    Cancel(MessageId),
    /// Make due now. Answered by [`Answer::Changed`].
    Retry(Selection),
    /// Take off the road until released. Answered by [`Answer::Changed`].
    Hold(Selection),
    /// The end of hold. Answered by [`Answer::Changed`].
    Release(Selection),
    /// Sessions and status rows. Answered by [`Answer::Transports`].
    Transports,
    /// FlushQueues on a transport, or on all. Answered by [`Answer::Changed`].
    Flush {
        /// Which transport; `None`: all.
        transport: Option<String>,
        /// Outbound.
        upload: bool,
        /// Inbound.
        download: bool,
    },
    /// What is dead, in the store. Answered by [`Answer::Queue`].
    Dead,
    /// Dead ones made due again. Answered by [`Answer::Changed`].
    DeadRequeue(Selection),
    /// Dead ones given up, with a report; one that is held, too. Answered by [`Answer::Changed`].
    DeadDrop(Selection),
    /// ValidateState on a transport, or on all. Answered by [`Answer::Validated`].
    Validate {
        /// Which transport; `None`: all.
        transport: Option<String>,
    },
    /// What was accepted, and what became of it. Answered by [`Answer::Ledger`].
    Ledger,
    /// These numbers are missing: who moves them? Asked by one spooler of the others. Answered by [`Answer::Held`].
    Held(Vec<DoorNumber>),
    /// A person accepts that these are lost. Answered by [`Answer::Changed`].
    WriteOff(Vec<DoorNumber>),
    /// Large bodies, and how many of them belong to nothing in the store. Answered by [`Answer::Bodies`].
    Bodies,
}

/// Which messages are meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selection {
    /// One.
    One(MessageId),
    /// All that match.
    Matching(QueueFilter),
}

/// Which rows of the queue. Empty: all, up to the limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueFilter {
    /// Of this transport.
    pub transport: Option<String>,
    /// To this destination (a domain, for SMTP).
    pub destination: Option<String>,
    /// From this sender.
    pub sender: Option<String>,
    /// To this recipient.
    pub recipient: Option<String>,
    /// In this state.
    pub state: Option<QueueState>,
    /// Only those that may have been sent to somebody without our knowing.
    pub in_doubt: bool,
    /// At most this many rows; 0: the default of 1,000.
    pub limit: u32,
}

/// A message as a client submits it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The reverse-path.
    pub sender: String,
    /// `TYPE:address`, or a bare mailbox for SMTP.
    pub recipients: Vec<String>,
    /// PR_PRIORITY.
    pub priority: Priority,
    /// PR_DEFERRED_SEND_TIME.
    pub at: Option<UnixMillis>,
    /// PR_EXPIRY_TIME.
    pub expires: Option<UnixMillis>,
    /// RFC 3461 NOTIFY, for all recipients.
    pub notify: Notify,
    /// RFC 3461 RET.
    pub report_return: ReportReturn,
    /// Idempotence: the same key gives the same message.
    pub key: Option<String>,
    /// Who asked: the user's name.
    pub client: String,
}

/// What is answered. Serialises to the JSON that `pombo --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// One spooler of how many that the store knows alive.
    Here {
        /// Its name.
        spooler: String,
        /// How many live incarnations the store lists.
        alive: u32,
    },
    /// The part was kept; this much there is.
    Uploaded {
        /// Bytes so far.
        size: u64,
    },
    /// Confirmed by the broker, and routed.
    Accepted {
        /// The message's id.
        id: MessageId,
    },
    /// All that is known of one message here; `None`: nothing.
    Trace(Option<Box<Trace>>),
    /// Where it is, as far as this spooler knows; `None`: it does not.
    Why(Option<Why>),
    /// Rows. The store's are the same from every spooler; those in process come from their holder.
    Queue(Vec<QueueRow>),
    /// What cancelling did.
    Cancelled(CancelAnswer),
    /// How many were changed.
    Changed {
        /// Messages or sessions.
        count: u64,
    },
    /// The sessions of this spooler.
    Transports(Vec<SessionRow>),
    /// What ValidateState returned, per session of this spooler.
    Validated(Vec<ValidationRow>),
    /// The ledger, as this spooler sees it.
    Ledger(Box<LedgerView>),
    /// Those of the numbers asked for that move here.
    Held(Vec<DoorNumber>),
    /// What lies in the blob store.
    Bodies(BodiesView),
}

/// What lies in the blob store, counted now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BodiesView {
    /// All bodies.
    pub bodies: u64,
    /// Of these, bodies of which the store has no unfinished row: of messages that are on their way and have not been tried in vain,
    /// or whose writer died before they were accepted.
    pub without_row: u64,
    /// Of these, those older than any message can be. They will be removed.
    pub orphans: u64,
}

/// The ledger. The accounts are the store's; the rest is what one spooler knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerView {
    /// The spooler that answers.
    pub spooler: String,
    /// Every account.
    pub accounts: Vec<Balance>,
    /// Messages that lie ready in the spool's queues; `None`: the broker did not say.
    pub ready: Option<u64>,
    /// Deliveries that this spooler has leased and not acked.
    pub leased: u64,
    /// What the audit has found, if this is the spooler that makes it.
    pub audit: Option<Audited>,
}

/// What an audit has found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Audited {
    /// Numbers that are accepted, are not in the store, and move nowhere; the oldest thousand.
    pub missing: Vec<DoorNumber>,
    /// How many are missing, at least.
    pub missing_count: u64,
    /// Numbers that nobody has said to hold, but not for long enough to be called missing; the oldest hundred.
    pub sought: Vec<DoorNumber>,
    /// Accounts whose books do not agree with themselves.
    pub unsound: Vec<crate::ledger::Account>,
}

/// Why a question was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ControlError {
    /// The submission was refused; the status says why.
    #[error("{}: {}", .0.status, .0.text)]
    Refused(Box<Diagnosis>),
    /// Not now: nothing can be confirmed, or the store is away. Try again later.
    #[error("try again later: {0}")]
    Later(String),
    /// The question makes no sense.
    #[error("{0}")]
    Bad(String),
}

/// What cancelling did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CancelAnswer {
    /// Committed by the holder of the fence before any recipient was sent to.
    InTime,
    /// Some recipients were sent to, the others are cancelled.
    Partly {
        /// How many had been sent to.
        sent: u32,
        /// How many were cancelled.
        cancelled: u32,
    },
    /// Everything had been decided before.
    TooLate,
    /// The mark is set; the holder has not yet answered.
    Asked,
    /// No such message here.
    Unknown,
}

/// Everything about one message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// The message.
    pub id: MessageId,
    /// The reverse-path.
    pub sender: String,
    /// When the door took it.
    pub submitted_at: UnixMillis,
    /// Which door, and who brought it.
    pub source: String,
    /// Size of the body in bytes.
    pub size: u64,
    /// PR_PRIORITY.
    pub priority: Priority,
    /// `moving`, or a state of the store.
    pub state: QueueState,
    /// What it waits for, in words.
    pub reason: String,
    /// The next time something happens by itself.
    pub due: Option<UnixMillis>,
    /// The fence it stands at.
    pub fence: Fence,
    /// Per recipient.
    pub recipients: Vec<RecipientTrace>,
    /// What happened, oldest first.
    pub timeline: Vec<Event>,
}

/// One recipient in a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecipientTrace {
    /// `TYPE:address`.
    pub address: String,
    /// `pending`, `delivered`, `failed`, `expired`, `cancelled`, `kept`.
    pub state: String,
    /// The transport that has or had it.
    pub transport: Option<String>,
    /// How often it was tried.
    pub tries: u32,
    /// When it was decided, if it is.
    pub at: Option<UnixMillis>,
    /// The remote server or mailbox.
    pub remote: Option<String>,
    /// The last thing said about it.
    pub text: String,
    /// Whether it may have been sent twice.
    pub in_doubt: bool,
}

/// One line of a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: UnixMillis,
    /// What: a verb, in lower case.
    pub what: String,
    /// Details.
    pub detail: String,
}

/// Where a message is and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// The state.
    pub state: QueueState,
    /// Who holds it: a spooler, an agent; `None`: nobody.
    pub holder: Option<String>,
    /// What it waits for, in words.
    pub waiting_for: String,
    /// Since when.
    pub since: UnixMillis,
    /// Until when, if something happens by itself.
    pub until: Option<UnixMillis>,
}

/// The states that people see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueState {
    /// In process, from a lease or a claim.
    Moving,
    /// In the outbox, until due.
    Waiting,
    /// Held by a person.
    Held,
    /// Poison, or unreadable.
    Dead,
    /// Finished: all recipients decided.
    Finished,
}

/// One row of the queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueRow {
    /// The message.
    pub id: MessageId,
    /// Its state.
    pub state: QueueState,
    /// When the door took it.
    pub submitted_at: UnixMillis,
    /// The reverse-path.
    pub sender: String,
    /// Undecided recipients: the first few.
    pub recipients: Vec<String>,
    /// How many are undecided.
    pub pending: u32,
    /// How many of these may have been sent to without our knowing.
    pub in_doubt: u32,
    /// Size in bytes.
    pub size: u64,
    /// The transport it waits for or is with.
    pub transport: Option<String>,
    /// The destination it waits for.
    pub destination: Option<String>,
    /// What it waits for, in words.
    pub reason: String,
    /// When it is due.
    pub due: Option<UnixMillis>,
    /// How often it was tried.
    pub tries: u32,
}

/// One session, as a spooler sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionRow {
    /// The spooler.
    pub spooler: String,
    /// The transport's name.
    pub transport: String,
    /// The agent's host and instance.
    pub agent: String,
    /// How long it has been open.
    pub age: Duration,
    /// Credit left.
    pub credit: u32,
    /// Submitted and not yet settled, by this spooler.
    pub outstanding: u32,
    /// Its last status row.
    pub status: StatusRow,
}

/// What ValidateState returned in one session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidationRow {
    /// The spooler.
    pub spooler: String,
    /// The transport's name.
    pub transport: String,
    /// The agent's host and instance.
    pub agent: String,
    /// What it returned; `None`: nothing in time.
    pub validation: Option<Validation>,
}
