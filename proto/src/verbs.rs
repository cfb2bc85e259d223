//! The calls of a session, by their names in MAPI.
//!
//! A session is one spooler incarnation and one agent incarnation. Requests carry a [`crate::ids::Correlation`] and are
//! answered with the same one; everything else is said once. A SubmitMessage frame's tail is the whole encoded message.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{Fence, Incarnation, Instance, MessageId, RecipientIndex, Reference},
    outcome::{Diagnosis, EndMessageFlag, RecipientStatus, SubmitResult},
    time::UnixMillis,
};

/// The protocol versions that this build speaks. Two neighbours can talk; see [`crate::frame`] for how a new one is introduced.
///
/// | version | what is new in it |
/// |---|---|
/// | 1 | |
/// | 2 | [`crate::outcome::Outcome::InDoubt`] |
pub const VERSIONS: VersionRange = VersionRange { min: 1, max: 2 };

/// The first version that has a word for doubt.
const KNOWS_DOUBT: u8 = 2;

/// XPProviderInit: which versions one side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

impl VersionRange {
    /// The newest version that both speak; `None`: no session.
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }

    /// The oldest one, as packets carry it.
    pub fn oldest(self) -> u8 {
        self.min as u8
    }

    /// Whether a packet's version is one of them.
    pub fn contains(self, version: u8) -> bool {
        (self.min..=self.max).contains(&u16::from(version))
    }
}

/// Said on the fanouts every 10-30 s by everybody; hearing it twice changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Who.
    pub role: Role,
    /// Which run of it.
    pub instance: Instance,
    /// Where to write to: the inbox is named after it.
    pub incarnation: Incarnation,
    /// What it speaks.
    pub versions: VersionRange,
    /// Its host, for people.
    pub host: String,
}

/// The two parties, and people's tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A spooler.
    Spooler,
    /// An agent, and the name of its transport.
    Agent {
        /// The transport's name in configuration.
        transport: String,
    },
    /// `pombo`, with questions.
    Control,
}

/// One call, answer or notification. Grouped by who says it, in the order of a session's life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Verb {
    // ---- the spooler calls
    /// XPProviderInit and TransportLogon in one. Answered by [`Verb::LogonReply`].
    TransportLogon(Logon),
    /// Asks which recipients the transport takes. Answered by [`Verb::AddressTypesReply`].
    AddressTypes,
    /// TransportNotify.
    TransportNotify(TransportNotification),
    /// SubmitMessage; the tail is the encoded message. Answered by [`Verb::SubmitReply`].
    SubmitMessage(Submit),
    /// EndMessage: the final hand-off. Answered by [`Verb::EndReply`]; the reference is dead then.
    EndMessage {
        /// Which message.
        id: MessageId,
        /// Under which fence.
        fence: Fence,
        /// The transport's name for it.
        reference: Reference,
    },
    /// What do you know of these? Answered by [`Verb::AdoptReply`]. Raises the fence that the agent has seen.
    Adopt(Vec<Tenancy>),
    /// The store has recorded these: forget them; the credit returns to the session that spent it.
    Settled(Vec<Tenancy>),
    /// The permit to deliver one message. Answered by [`Verb::StartReply`].
    StartMessage,
    /// Is there mail? Only to a session that returned SP_POLL. Answered by [`Verb::PollReply`].
    Poll,
    /// There is nothing else to do. Only to a session that returned SP_IDLE.
    Idle,
    /// FlushQueues. The status row answers.
    FlushQueues(Flush),
    /// Is your external system healthy? Answered by [`Verb::ValidateReply`].
    ValidateState {
        /// CONFIG_CHANGED: read your configuration again first.
        config_changed: bool,
    },
    /// Your status row of this number was read, and my incarnation is alive in the store.
    StatusAnswer {
        /// The row's number.
        row: u64,
    },
    /// You may write the final dot, within D of your asking ([`crate::right::VALID`]): that is noted in the store.
    Go(Tenancy),
    /// TransportLogoff: no more of this session.
    TransportLogoff,

    // ---- the transport answers, or calls its support object
    /// Answers TransportLogon.
    LogonReply(Result<LogonAccepted, LogonError>),
    /// Answers AddressTypes.
    AddressTypesReply(AddressTypes),
    /// ModifyStatusRow, every second or two and on every change.
    ModifyStatusRow(StatusRow),
    /// The reference of a message is assigned; said before any data moves.
    Reference {
        /// Which message.
        id: MessageId,
        /// Under which fence.
        fence: Fence,
        /// Its name from now on.
        reference: Reference,
    },
    /// StatusRecips.
    StatusRecips {
        /// Which message.
        id: MessageId,
        /// Under which fence.
        fence: Fence,
        /// Of whom, and what.
        recipients: Vec<(RecipientIndex, RecipientStatus)>,
    },
    /// SubmitMessage returned.
    SubmitReply {
        /// Which message.
        id: MessageId,
        /// Under which fence.
        fence: Fence,
        /// What it returned, or that it was refused.
        result: Result<SubmitResult, Refusal>,
    },
    /// EndMessage returned.
    EndReply {
        /// Which message.
        id: MessageId,
        /// Under which fence.
        fence: Fence,
        /// What it returned, or that it was refused.
        result: Result<EndMessageFlag, Refusal>,
    },
    /// Answers Adopt, one entry per id asked.
    AdoptReply(Vec<Adopted>),
    /// SpoolerNotify.
    SpoolerNotify(SpoolerNotification),
    /// The reference of a reception is assigned.
    StartReference {
        /// Its name until StartMessage returns.
        reference: Reference,
    },
    /// StartMessage returned.
    StartReply(StartResult),
    /// Answers Poll: how many messages are there to fetch.
    PollReply {
        /// 0: none.
        incoming: u32,
    },
    /// Answers ValidateState.
    ValidateReply(Validation),
    /// May I write the final dot? (only for transports whose doubt is held; see the design's right to send)
    AtTheDot(Tenancy),

    // ---- either side
    /// There is no such session here (any more): whatever you think is under way is unknown.
    NoSession,

    // ---- the transport again (new verbs come last, so that the numbers of the others stay)
    /// The agent goes down and ends the session by itself. The instance can be struck off if it keeps nothing.
    LoggedOff {
        /// How many attempts it still keeps: submitted, and not settled within its drain limit.
        kept: u32,
    },

    // ---- the spooler again
    /// Doubt about this transport waits for a person: ask [`Verb::AtTheDot`] before the final dot of whatever is submitted in
    /// this session. Said before BEGIN_OUTBOUND. (An agent that does not know this verb has no session then, rightly.)
    AskAtTheDot,
}

impl Verb {
    /// What a peer of this version can read: the nearest word for what it has none for.
    pub(crate) fn in_version(&mut self, version: u8) {
        if version >= KNOWS_DOUBT {
            return;
        }
        match self {
            Self::SubmitReply {
                result: Ok(result), ..
            } => result.without_doubt(),
            Self::AdoptReply(adopted) => {
                for Adopted { answer, .. } in adopted {
                    if let AdoptAnswer::Done { result, .. } = answer {
                        result.without_doubt();
                    }
                }
            }
            _ => {}
        }
    }
}

/// A message and the fence under which something is asked or said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tenancy {
    /// Which message.
    pub id: MessageId,
    /// Under which fence.
    pub fence: Fence,
}

impl From<(MessageId, Fence)> for Tenancy {
    fn from((id, fence): (MessageId, Fence)) -> Self {
        Self { id, fence }
    }
}

/// What TransportLogon says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logon {
    /// XPProviderInit.
    pub versions: VersionRange,
    /// The spooler's name, for the agent's log.
    pub spooler: String,
    /// NO_CONNECT: do not reach out to the foreign system for now.
    pub no_connect: bool,
    /// NO_INBOUND, until TransportNotify(BEGIN_INBOUND).
    pub no_inbound: bool,
    /// NO_OUTBOUND, until TransportNotify(BEGIN_OUTBOUND).
    pub no_outbound: bool,
    /// The blob store's identity; both sides must mean the same one.
    pub blobs: String,
}

/// What TransportLogon returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogonAccepted {
    /// The version that the session speaks.
    pub version: u16,
    /// The run of the agent, to which references and kept attempts belong.
    pub instance: Instance,
    /// SP_POLL: call Poll often. Set on one session of an agent only.
    pub poll: bool,
    /// SP_IDLE: call Idle when idle.
    pub idle: bool,
    /// SP_RESOLVE: resolve foreign addresses too.
    pub resolve: bool,
    /// Not read: whether doubt is held for a person is the spooler's to say ([`Verb::AskAtTheDot`]).
    pub hold_in_doubt: bool,
    /// How many messages may be outstanding (submitted, not settled) in this session.
    pub credit: u32,
}

/// Why TransportLogon failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum LogonError {
    /// The version ranges do not overlap.
    #[error("no common protocol version: the agent speaks {0:?}")]
    Version(VersionRange),
    /// MAPI_E_UNCONFIGURED: the configuration lacks something.
    #[error("the transport is not configured: {0}")]
    Unconfigured(String),
    /// MAPI_E_FAILONEPROVIDER: this transport is out; the others of its service live.
    #[error("the transport cannot work: {0}")]
    FailOneProvider(String),
    /// The two sides would look for large bodies in different places.
    #[error("another blob store: {0}")]
    Blobs(String),
    /// The agent is going down.
    #[error("the agent is draining")]
    Draining,
}

/// Which recipients a transport takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressTypes {
    /// Address types or spaces: `SMTP`, `SMTP:*@example.org`, `SMTP:*@*.example.org`, `SMTP:ann@example.org`.
    /// `None`: anything (it goes last in the order). One empty string: nothing by type.
    pub types: Option<Vec<String>>,
    /// Recipients by UID, scanned before all types: an exact `TYPE:address`.
    pub uids: Vec<String>,
}

/// SubmitMessage's arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submit {
    /// Which message.
    pub id: MessageId,
    /// Under which fence.
    pub fence: Fence,
    /// BEGIN_DEFERRED: this transport had deferred it.
    pub begin_deferred: bool,
    /// The recipients with PR_RESPONSIBILITY = FALSE: those to consider.
    pub recipients: Vec<RecipientIndex>,
}

/// TransportNotify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransportNotification {
    /// BEGIN_INBOUND
    BeginInbound,
    /// END_INBOUND: what is being received completes.
    EndInbound,
    /// BEGIN_OUTBOUND
    BeginOutbound,
    /// END_OUTBOUND: does not stop the message being sent.
    EndOutbound,
    /// BEGIN_INBOUND_FLUSH: as fast as you can, the user asked.
    BeginInboundFlush,
    /// END_INBOUND_FLUSH
    EndInboundFlush,
    /// BEGIN_OUTBOUND_FLUSH
    BeginOutboundFlush,
    /// END_OUTBOUND_FLUSH
    EndOutboundFlush,
    /// CANCEL_MESSAGE for a submission: return as soon as you can.
    CancelMessage {
        /// Which message.
        message: Tenancy,
        /// The transport's name for it; 0 if it has not told one yet.
        reference: Reference,
        /// With ABORT_DEFERRED: a message that the transport keeps is cancelled.
        abort_deferred: bool,
    },
    /// CANCEL_MESSAGE for a reception: discard what was written, keep the message where it is.
    CancelReception {
        /// The transport's name for it.
        reference: Reference,
    },
    /// ABORT_DEFERRED alone: the spooler logs off; deferred messages will not be asked for in this session.
    AbortDeferred,
}

/// FlushQueues' directions; FORCE makes it reach out even if it thinks it is offline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flush {
    /// FLUSH_UPLOAD: outbound.
    pub upload: bool,
    /// FLUSH_DOWNLOAD: inbound.
    pub download: bool,
    /// FLUSH_FORCE
    pub force: bool,
}

/// Why an agent did not even try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// A higher fence was seen for this id: somebody else decides about it.
    Fenced,
    /// No credit left, or the direction is closed: nothing was done.
    Closed,
    /// The reference is not one that is alive.
    UnknownReference,
    /// The message could not be read (its body is not in the blob store, or it is malformed).
    Unreadable,
}

/// One answer to Adopt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adopted {
    /// Which message.
    pub id: MessageId,
    /// The fence under which it was asked.
    pub fence: Fence,
    /// What the agent knows.
    pub answer: AdoptAnswer,
}

/// What an agent knows of a message that somebody else may have submitted to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AdoptAnswer {
    /// Nothing, and it will refuse anything older than the fence that asked.
    Unknown,
    /// It is being sent. Ask again.
    UnderWay,
    /// SubmitMessage has returned: here is everything. The adopter now calls EndMessage with this reference.
    Done {
        /// The transport's name for it.
        reference: Reference,
        /// What SubmitMessage returned.
        result: SubmitResult,
        /// All StatusRecips so far.
        statuses: Vec<(RecipientIndex, RecipientStatus)>,
        /// What EndMessage returned, if it was called already.
        ended: Option<EndMessageFlag>,
    },
    /// A higher fence was seen: the asker has lost.
    Fenced,
}

/// SpoolerNotify.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SpoolerNotification {
    /// NEWMAIL: there is something to fetch.
    NewMail,
    /// READYTOSEND: recovered after a critical error.
    ReadyToSend,
    /// SENTDEFERRED: a message left with END_DONT_RESEND is finished, or wanted again.
    SentDeferred {
        /// Its entry id.
        id: MessageId,
        /// Empty: offer it again with BEGIN_DEFERRED. Otherwise what became of the recipients.
        statuses: Vec<(RecipientIndex, RecipientStatus)>,
    },
    /// CRITICAL_ERROR: no more calls but to release what is under way.
    CriticalError(Diagnosis),
    /// CONFIG_CHANGE: ask AddressTypes again.
    ConfigChange,
    /// CRITSEC: no Idle, no Poll.
    CritSec,
    /// NONCRIT: the end of it.
    NonCrit,
}

/// What StartMessage returns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StartResult {
    /// SaveChanges was called and the broker has confirmed.
    Saved {
        /// The new message.
        id: MessageId,
        /// Its size in bytes.
        size: u64,
        /// Whether there is more to fetch.
        more: bool,
    },
    /// No SaveChanges: there was no message after all.
    Nothing,
    /// It failed; the transport still has the message.
    Failed(String),
    /// The spooler cancelled it.
    Cancelled,
}

/// What ValidateState returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Validation {
    /// The external system is healthy.
    Ok,
    /// In a critical section.
    Busy,
    /// Not healthy, and why.
    Failing(String),
}

/// A transport's row in the status table, as of now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusRow {
    /// Running number; the answer names it.
    pub row: u64,
    /// STATUS_AVAILABLE, STATUS_OFFLINE or STATUS_FAILURE.
    pub state: TransportState,
    /// STATUS_INBOUND_*
    pub inbound: FlowState,
    /// STATUS_OUTBOUND_*
    pub outbound: FlowState,
    /// How many messages may be outstanding in this session.
    pub credit: u32,
    /// How many are, over all sessions.
    pub in_flight: u32,
    /// Moving average of the time one message takes, outbound.
    pub outbound_time: Duration,
    /// Moving average of the time one message takes, inbound.
    pub inbound_time: Duration,
    /// The last thing that went wrong, and when.
    pub last_error: Option<(UnixMillis, String)>,
    /// Door: the door incarnation of ids that it issues.
    pub door: Option<u32>,
    /// Door: the highest sequence up to which every id is confirmed or voided.
    pub confirmed: u64,
    /// Door: sequence numbers up to `confirmed` that never became messages (bounded; the newest), as
    /// [`crate::door::pack`] writes them and [`crate::door::runs`] reads them.
    pub voided: Vec<u64>,
    /// Attempts of ended sessions (or long unsettled ones), still kept: settle them if the store has recorded them.
    /// Bounded.
    pub unsettled: Vec<Tenancy>,
    /// SP_POLL as of now: whether this session is the one to poll. It is handed on to another one when that
    /// session ends, so the row decides and not the flag at logon.
    pub poll: bool,
}

/// The state bits of a status row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransportState {
    /// STATUS_AVAILABLE
    #[default]
    Available,
    /// STATUS_OFFLINE: by configuration or by the user's wish.
    Offline,
    /// STATUS_FAILURE
    Failure,
}

/// One direction's bits of a status row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowState {
    /// ENABLED
    pub enabled: bool,
    /// ACTIVE
    pub active: bool,
    /// FLUSH
    pub flush: bool,
}
