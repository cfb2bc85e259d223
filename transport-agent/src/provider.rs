//! What a transport is: the traits to implement, and the support objects to call back through.
//!
//! A transport is one value of a type that implements [`Transport`], made once per process from its section of the
//! configuration. The agent calls it in the order of a session's life:
//!
//! ```text
//! logon -> address_types -> begin/end of inbound and outbound -> ...  -> logoff -> shutdown
//! outbound:  submit_message (assign_reference first) -> end_message
//! inbound:   support.new_mail()  or  poll  ->  start_message (assign_reference first, save_changes last)
//! ```
//!
//! Several spoolers may have sessions with one agent; a transport does not see them apart. All methods may be called
//! concurrently, on the agent's tokio runtime; submissions at most as many at a time as [`LogonReply::capacity`] says.
//! A panic in a submission or a reception is caught, logged, and ends as a temporary failure of that message alone; behind
//! [`Submission::may_finish`], it leaves whom the submission was for in doubt.
//!
//! `transports/skeleton.rs` is a complete transport to copy.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use pombo_proto::{
    ids::{MessageId, RecipientIndex, Reference},
    message::{Content, Envelope, Notify, Priority, Recipient},
    outcome::{Diagnosis, EndMessageFlag, Outcome, RecipientStatus, SubmitResult},
    time::UnixMillis,
    verbs::{AddressTypes, Flush, LogonError, TransportState, Validation},
};

/// A transport: IXPLogon, and the part of IXPProvider that makes it.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// TransportLogon: get ready, without touching messages yet. Called once at start, before any session; again
    /// after a failure, with growing pauses.
    ///
    /// # Errors
    /// [`LogonError::Unconfigured`] and [`LogonError::FailOneProvider`] keep the agent without sessions until a later try
    /// succeeds; `/readyz` and the log say why.
    async fn logon(&self, support: Arc<dyn Support>) -> Result<LogonReply, LogonError>;

    /// AddressTypes: which recipients it takes. Asked at the start of every session, and again after
    /// [`Support::config_change`].
    fn address_types(&self) -> AddressTypes;

    /// TransportNotify(BEGIN_INBOUND, END_INBOUND): mail may be announced and fetched, or not any more.
    async fn inbound(&self, _flow: Flow) {}

    /// TransportNotify(BEGIN_OUTBOUND, END_OUTBOUND). END does not stop what is being sent.
    async fn outbound(&self, _flow: Flow) {}

    /// SubmitMessage: send to [`Submission::recipients`].
    ///
    /// Call [`Submission::assign_reference`] before any data moves. Give an outcome for each recipient; one that is
    /// not named counts as [`Outcome::Left`]. Return soon after [`Submission::cancelled`] resolves. Before the point of no
    /// return (SMTP's final dot, a rename) ask [`Submission::may_finish`], and stop if it says no.
    ///
    /// **Behind that point never say [`Outcome::Deferred`] of what may have been sent**, but [`Outcome::InDoubt`]: the connection was
    /// lost or a time limit ran out before the answer, or the answer cannot be understood. It is counted, and sent a second time only
    /// where the configuration wants that. `Deferred` is right where it was certainly not sent (the other side has said no), and
    /// where a second time changes nothing (the foreign system knows what it has by its name, as a Maildir does).
    async fn submit_message(&self, message: Arc<Submission>) -> SubmitResult;

    /// EndMessage: the spooler hands over for good. The reference is dead when this returns.
    ///
    /// A cancel may come now, too: who has kept the [`Submission`] hears of it by [`Submission::cancelled`].
    async fn end_message(&self, ended: Ended) -> EndMessageFlag {
        ended.suggested
    }

    /// CANCEL_MESSAGE with ABORT_DEFERRED: forget a message that [`Outcome::Kept`] left here. True if it was still here.
    async fn abort_deferred(&self, _id: MessageId) -> bool {
        false
    }

    /// StartMessage: deliver one message into `message`, and say what became of it. Transports that only send need not
    /// implement it.
    ///
    /// Assign the reference first. Tell the foreign system "done" only after [`Reception::save_changes`] returned an id.
    async fn start_message(&self, _message: Arc<Reception>) -> Received {
        Received::Nothing
    }

    /// Whether it takes its permits by [`Support::permit`]; `start_message` is then never called. Permits stand ready
    /// in the agent, so that a client hardly ever waits for one.
    fn takes_permits(&self) -> bool {
        false
    }

    /// Poll: how many messages are there to fetch? Called only if `logon` returned [`LogonReply::poll`].
    async fn poll(&self) -> u32 {
        0
    }

    /// Idle: there is nothing else to do. Called only if `logon` returned [`LogonReply::idle`], at no promised interval.
    async fn idle(&self) {}

    /// FlushQueues: as fast as you can. The agent has set the flush bits of the status row before this is called, nobody waits for
    /// it to return, and the bits stand until it does.
    async fn flush_queues(&self, _flush: Flush) {}

    /// ValidateState: is the external system healthy? With `config_changed`, read the configuration again first.
    async fn validate_state(&self, _config_changed: bool) -> Validation {
        Validation::Ok
    }

    /// TransportLogoff of the last session and Shutdown: release everything. What is under way has completed before, and so has END
    /// of both directions, unless the agent's `drain_limit` or a second signal cut that short.
    async fn shutdown(&self) {}

    /// How long [`Self::shutdown`] may take if it is not hung; then the process ends without it. Default 10 s.
    fn shutdown_max(&self) -> Duration {
        Duration::from_secs(10)
    }
}

/// BEGIN or END of a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Traffic may flow.
    Begin,
    /// No new work; what is in process completes.
    End,
}

/// What `logon` returns: the flags of TransportLogon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogonReply {
    /// SP_POLL: call `poll` often.
    pub poll: bool,
    /// SP_IDLE: call `idle` when idle.
    pub idle: bool,
    /// SP_RESOLVE: resolve foreign addresses too.
    pub resolve: bool,
    /// Whether it sends.
    pub outbound: bool,
    /// Whether it receives.
    pub inbound: bool,
    /// How many submissions it wants to have at a time, over all sessions; its credit. 1..=10,000.
    pub capacity: u32,
}

/// The support object: what a transport may say by itself, at any time. Cheap to clone and to call; none of it waits.
pub trait Support: Send + Sync + 'static {
    /// SpoolerNotify(NEWMAIL). Bursts coalesce in the agent's gate, and the last one is never lost.
    fn new_mail(&self);
    /// SpoolerNotify(READYTOSEND): recovered after [`Support::critical_error`].
    fn ready_to_send(&self);
    /// SpoolerNotify(CRITICAL_ERROR): no more calls but to release what is under way.
    fn critical_error(&self, error: Diagnosis);
    /// SpoolerNotify(SENTDEFERRED): a message that was [`Outcome::Kept`] is finished (its statuses), or wanted again (none).
    fn sent_deferred(&self, id: MessageId, statuses: Vec<(RecipientIndex, RecipientStatus)>);
    /// SpoolerNotify(CONFIG_CHANGE): the address types are others now.
    fn config_change(&self);
    /// SpoolerNotify(CRITSEC or NONCRIT): no Idle, no Poll meanwhile; ValidateState answers BUSY.
    fn critical_section(&self, inside: bool);
    /// ModifyStatusRow: the state, and what went wrong if something did.
    fn status(&self, state: TransportState, error: Option<String>);
    /// A reference that is not in use.
    fn next_reference(&self) -> Reference;
    /// For doors that must not keep a client waiting: resolves when a StartMessage permit is free for the mail that
    /// `new_mail` announced, or gives up. The permit then calls `start_message` no more; it is the reception itself.
    /// Only for transports with [`Transport::takes_permits`].
    ///
    /// A listener uses this instead of `start_message`: the client stands at DATA, and no permit in time is a 4xx.
    fn permit(
        &self,
        patience: Duration,
    ) -> futures_util::future::BoxFuture<'static, Option<Arc<Reception>>>;
    /// The host name that this service gives itself in Received, EHLO and reports.
    fn host(&self) -> &str;
}

/// A message being submitted: the handle that SubmitMessage passes. Only transmittable properties are visible.
pub struct Submission {
    pub(crate) inner: Box<dyn SubmissionHandle>,
}

/// What stands behind a [`Submission`]; implemented by the agent's host, and by tests of transports.
#[async_trait]
pub trait SubmissionHandle: Send + Sync {
    /// See [`Submission::envelope`].
    fn envelope(&self) -> &Envelope;
    /// See [`Submission::recipients`].
    fn considered(&self) -> &[RecipientIndex];
    /// See [`Submission::begin_deferred`].
    fn begin_deferred(&self) -> bool;
    /// See [`Submission::body`].
    async fn body(&self) -> std::io::Result<Bytes>;
    /// See [`Submission::assign_reference`].
    fn assign_reference(&self, reference: Reference);
    /// See [`Submission::status_recips`].
    fn status_recips(&self, statuses: Vec<(RecipientIndex, RecipientStatus)>);
    /// See [`Submission::is_cancelled`].
    fn is_cancelled(&self) -> bool;
    /// See [`Submission::cancelled`].
    async fn cancelled(&self);
    /// See [`Submission::may_finish`].
    async fn may_finish(&self) -> bool;
}

impl Submission {
    /// A submission over any handle; tests of transports bring their own.
    pub fn new(handle: impl SubmissionHandle + 'static) -> Self {
        Self {
            inner: Box::new(handle),
        }
    }

    /// The message's name.
    pub fn id(&self) -> MessageId {
        self.inner.envelope().id
    }

    /// The envelope.
    pub fn envelope(&self) -> &Envelope {
        self.inner.envelope()
    }

    /// The recipients to consider: those with PR_RESPONSIBILITY = FALSE.
    pub fn recipients(&self) -> impl Iterator<Item = (RecipientIndex, &Recipient)> {
        let all = &self.inner.envelope().recipients;
        self.inner
            .considered()
            .iter()
            .filter_map(|index| Some((*index, all.get(index.get())?)))
    }

    /// BEGIN_DEFERRED: this transport kept it earlier.
    pub fn begin_deferred(&self) -> bool {
        self.inner.begin_deferred()
    }

    /// The content, RFC 5322 with CRLF line ends as the door took it. Read from the blob store if it is large.
    ///
    /// # Errors
    /// The blob store cannot be read. Return [`SubmitResult::Wait`] then.
    pub async fn body(&self) -> std::io::Result<Bytes> {
        self.inner.body().await
    }

    /// Tells the spooler this message's reference. First of all, since a cancel may arrive at any moment.
    pub fn assign_reference(&self, reference: Reference) {
        self.inner.assign_reference(reference);
    }

    /// StatusRecips: any number of times. One call per recipient and report; outcomes of SubmitMessage are reported
    /// by themselves and need none.
    pub fn status_recips(&self, statuses: Vec<(RecipientIndex, RecipientStatus)>) {
        self.inner.status_recips(statuses);
    }

    /// Whether CANCEL_MESSAGE has come, or the session's holder has lost the right to this message.
    pub fn is_cancelled(&self) -> bool {
        self.inner.is_cancelled()
    }

    /// Resolves when it does.
    pub async fn cancelled(&self) {
        self.inner.cancelled().await;
    }

    /// Asked right before each point of no return: may the message be finished now? On no, abandon it without trace
    /// (for SMTP: without the final dot) and name the recipients as deferred.
    ///
    /// No means: it was cancelled, or no spooler has answered this agent for so long that others may be sending the message.
    /// Where the configuration says that doubt about this transport is held for a person, this asks the spooler that submitted
    /// it, which notes in the store that it may have been sent from now on, and it takes that long: a round trip and
    /// a commit, some milliseconds, ten seconds at most. So ask when everything else is done, and go on at once: a yes
    /// is good for ten seconds from the asking.
    pub async fn may_finish(&self) -> bool {
        self.inner.may_finish().await
    }
}

/// What EndMessage tells a transport.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Which message.
    pub id: MessageId,
    /// Its reference, for the last time.
    pub reference: Reference,
    /// What follows from the outcomes: [`EndMessageFlag::ResendLater`] if any was deferred or is in doubt,
    /// [`EndMessageFlag::DontResend`] if any was kept, else [`EndMessageFlag::Sent`].
    pub suggested: EndMessageFlag,
}

impl Ended {
    /// The flag that follows from outcomes.
    pub fn suggested_by<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> EndMessageFlag {
        let mut flag = EndMessageFlag::Sent;
        for outcome in outcomes {
            match outcome {
                Outcome::Deferred { .. } | Outcome::InDoubt(_) => {
                    return EndMessageFlag::ResendLater;
                }
                Outcome::Kept => flag = EndMessageFlag::DontResend,
                Outcome::Delivered(_) | Outcome::Failed(_) | Outcome::Left => {}
            }
        }
        flag
    }
}

/// A message being received: the handle that StartMessage passes. Dropped without `save_changes` = there was none.
pub struct Reception {
    pub(crate) inner: Box<dyn ReceptionHandle>,
}

/// What stands behind a [`Reception`]; implemented by the agent's host, and by tests of transports.
#[async_trait]
pub trait ReceptionHandle: Send + Sync {
    /// See [`Reception::assign_reference`].
    fn assign_reference(&self, reference: Reference);
    /// See [`Reception::save_changes`].
    async fn save_changes(&self, message: Incoming) -> Result<MessageId, SaveError>;
    /// See [`Reception::is_cancelled`].
    fn is_cancelled(&self) -> bool;
    /// See [`Reception::cancelled`].
    async fn cancelled(&self);
    /// Said by a door that took the permit through [`Support::permit`]: StartMessage returns now.
    fn finished(&self, received: Received);
}

impl Reception {
    /// A reception over any handle; tests of transports bring their own.
    pub fn new(handle: impl ReceptionHandle + 'static) -> Self {
        Self {
            inner: Box::new(handle),
        }
    }

    /// Tells the spooler this reception's reference. First of all.
    pub fn assign_reference(&self, reference: Reference) {
        self.inner.assign_reference(reference);
    }

    /// SaveChanges: publishes to the spool. When it returns an id, the message is confirmed and routed, and belongs to
    /// Pombo. At most once per reception.
    ///
    /// # Errors
    /// See [`SaveError`]; the foreign system must not be told "done".
    pub async fn save_changes(&self, message: Incoming) -> Result<MessageId, SaveError> {
        self.inner.save_changes(message).await
    }

    /// Whether the spooler has stopped this delivery.
    pub fn is_cancelled(&self) -> bool {
        self.inner.is_cancelled()
    }

    /// Resolves when it does.
    pub async fn cancelled(&self) {
        self.inner.cancelled().await;
    }

    /// Returns from StartMessage, for a door that took the permit through [`Support::permit`]. Others return a value.
    pub fn finished(&self, received: Received) {
        self.inner.finished(received);
    }
}

/// What was received: envelope and content. The door adds its Received field to the content before this.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Where the id comes from.
    pub identity: Identity,
    /// The reverse-path.
    pub sender: String,
    /// The recipients, complete with all addressing properties.
    pub recipients: Vec<Recipient>,
    /// PR_PRIORITY.
    pub priority: Priority,
    /// 8BITMIME, SMTPUTF8.
    pub content: Content,
    /// RFC 3461 RET and ENVID.
    pub report_return: pombo_proto::message::ReportReturn,
    /// RFC 3461 ENVID, decoded.
    pub envelope_id: Option<String>,
    /// PR_DEFERRED_SEND_TIME.
    pub deferred_until: Option<UnixMillis>,
    /// PR_EXPIRY_TIME.
    pub expires_at: Option<UnixMillis>,
    /// Who brought it, for the trace.
    pub client: String,
    /// The content: RFC 5322.
    pub body: Bytes,
}

impl Incoming {
    /// A message with the usual settings.
    pub fn new(sender: impl Into<String>, recipients: Vec<String>, body: Bytes) -> Self {
        let smtp = |address: String| Recipient {
            notify: Notify::default(),
            ..Recipient::smtp(address)
        };
        Self {
            identity: Identity::Issued,
            sender: sender.into(),
            recipients: recipients.into_iter().map(smtp).collect(),
            priority: Priority::default(),
            content: Content::default(),
            report_return: pombo_proto::message::ReportReturn::default(),
            envelope_id: None,
            deferred_until: None,
            expires_at: None,
            client: String::new(),
            body,
        }
    }
}

/// Where a received message's id comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The door issues one.
    Issued,
    /// The source has an identity: the same bytes here give the same id, and the second copy vanishes.
    Derived(Vec<u8>),
    /// Saving it ended [`SaveError::Unclear`] before, with this id, and its source brings it again: the id's second copy
    /// vanishes, whichever of them that will be. The content must be the same to the byte, for a body by reference is kept
    /// once for all copies.
    Again(MessageId),
}

/// Why SaveChanges failed. Nothing was accepted in any of these but [`Unclear`](Self::Unclear).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SaveError {
    /// The spooler has stopped this delivery, or the session is gone: try again later.
    #[error("the spooler stopped the delivery")]
    Cancelled,
    /// The broker cannot confirm now: try again later.
    #[error("the broker does not confirm: {0}")]
    Unconfirmed(String),
    /// It was published and the broker has not confirmed it: it may be in the spool, or come to be there later. Who brings
    /// it again as [`Identity::Again`] makes no second one.
    #[error("it is unknown whether the message was accepted: {why}")]
    Unclear {
        /// The id that it has, if it was accepted.
        id: MessageId,
        /// What was seen.
        why: String,
    },
    /// The blob store does not take it: try again later.
    #[error("the blob store does not take it: {0}")]
    Blob(String),
    /// Larger than the limit.
    #[error("larger than {0} bytes")]
    TooLarge(u64),
    /// Too many recipients, or none.
    #[error("{0} recipients")]
    Recipients(usize),
}

/// What StartMessage returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// SaveChanges returned this id. `more`: there is more to fetch.
    Saved {
        /// The id.
        id: MessageId,
        /// Whether there is more.
        more: bool,
    },
    /// No message after all.
    Nothing,
    /// It failed; the transport still has the message.
    Failed(String),
    /// The spooler cancelled it.
    Cancelled,
}
