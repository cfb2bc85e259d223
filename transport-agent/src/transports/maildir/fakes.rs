//! Handles for tests of transports: what the spooler would hold on the other side.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use pombo_proto::{
    ids::{DoorSequence, MessageId, RecipientIndex, Reference},
    message::{Body, Content, Envelope, MessageClass, Priority, Recipient, ReportReturn, Source},
    outcome::{Diagnosis, RecipientStatus},
    time::UnixMillis,
    verbs::TransportState,
};
use tokio::sync::Notify;

use crate::provider::{
    Identity, Incoming, Received, Reception, ReceptionHandle, SaveError, Submission,
    SubmissionHandle, Support,
};

/// An envelope as a door would make it.
pub(crate) fn envelope(recipients: &[&str], size: u64) -> Envelope {
    let mut door = DoorSequence::default();
    Envelope {
        id: door.issue(UnixMillis::now()),
        class: MessageClass::Note,
        sender: "sender@example.net".to_owned(),
        recipients: recipients.iter().copied().map(Recipient::smtp).collect(),
        priority: Priority::Normal,
        submitted_at: UnixMillis::now(),
        deferred_until: None,
        expires_at: None,
        report_return: ReportReturn::Headers,
        envelope_id: None,
        content: Content::default(),
        source: Source::default(),
        body: Body::Inline { size },
        properties: Vec::new(),
    }
}

/// A submission whose strings are pulled by the test.
#[derive(Clone)]
pub(crate) struct Submitted(Arc<SubmittedState>);

struct SubmittedState {
    envelope: Envelope,
    considered: Vec<RecipientIndex>,
    body: Bytes,
    may_finish: AtomicBool,
    cancelled: AtomicBool,
    cancel: Notify,
    reference: AtomicU64,
}

impl Submitted {
    pub(crate) fn new(envelope: Envelope, body: impl Into<Bytes>) -> Self {
        let considered = (0..)
            .map(RecipientIndex)
            .take(envelope.recipients.len())
            .collect();
        Self(Arc::new(SubmittedState {
            envelope,
            considered,
            body: body.into(),
            may_finish: AtomicBool::new(true),
            cancelled: AtomicBool::new(false),
            cancel: Notify::new(),
            reference: AtomicU64::new(Reference::UNASSIGNED_OUTBOUND.0),
        }))
    }

    /// The right to send has run out.
    pub(crate) fn forbid(&self) {
        self.0.may_finish.store(false, Ordering::SeqCst);
    }

    /// CANCEL_MESSAGE.
    pub(crate) fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        self.0.cancel.notify_waiters();
    }

    pub(crate) fn reference(&self) -> Reference {
        Reference(self.0.reference.load(Ordering::SeqCst))
    }

    pub(crate) fn handle(&self) -> Arc<Submission> {
        Arc::new(Submission::new(self.clone()))
    }
}

#[async_trait]
impl SubmissionHandle for Submitted {
    fn envelope(&self) -> &Envelope {
        &self.0.envelope
    }
    fn considered(&self) -> &[RecipientIndex] {
        &self.0.considered
    }
    fn begin_deferred(&self) -> bool {
        false
    }
    async fn body(&self) -> io::Result<Bytes> {
        Ok(self.0.body.clone())
    }
    fn assign_reference(&self, reference: Reference) {
        self.0.reference.store(reference.0, Ordering::SeqCst);
    }
    fn status_recips(&self, _statuses: Vec<(RecipientIndex, RecipientStatus)>) {}
    fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }
    async fn cancelled(&self) {
        let notified = self.0.cancel.notified();
        if !self.is_cancelled() {
            notified.await;
        }
    }
    async fn may_finish(&self) -> bool {
        self.0.may_finish.load(Ordering::SeqCst)
    }
}

/// A reception that keeps what is saved.
#[derive(Clone, Default)]
pub(crate) struct Receiver(Arc<ReceiverState>);

#[derive(Default)]
struct ReceiverState {
    saved: Mutex<Vec<Incoming>>,
    refuse: Mutex<Option<SaveError>>,
    cancelled: AtomicBool,
}

impl Receiver {
    /// What SaveChanges says from now on.
    pub(crate) fn refuse(&self, error: impl Into<Option<SaveError>>) {
        *self.0.refuse.lock().unwrap() = error.into();
    }

    /// CANCEL_MESSAGE.
    pub(crate) fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
    }

    /// All that was saved, in order.
    pub(crate) fn saved(&self) -> Vec<Incoming> {
        self.0.saved.lock().unwrap().clone()
    }

    pub(crate) fn handle(&self) -> Arc<Reception> {
        Arc::new(Reception::new(self.clone()))
    }
}

#[async_trait]
impl ReceptionHandle for Receiver {
    fn assign_reference(&self, _reference: Reference) {}
    async fn save_changes(&self, message: Incoming) -> Result<MessageId, SaveError> {
        // Others run in between, as they would while a broker confirms.
        tokio::task::yield_now().await;
        if let Some(error) = self.0.refuse.lock().unwrap().clone() {
            return Err(error);
        }
        let id = match &message.identity {
            Identity::Derived(identity) => MessageId::derived("test", identity),
            Identity::Again(id) => *id,
            Identity::Issued => DoorSequence::default().issue(UnixMillis::now()),
        };
        self.0.saved.lock().unwrap().push(message);
        Ok(id)
    }
    fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }
    async fn cancelled(&self) {
        std::future::pending().await
    }
    fn finished(&self, _received: Received) {}
}

/// A support object that counts.
#[derive(Default)]
pub(crate) struct FakeSupport {
    references: AtomicU64,
    news: AtomicU64,
    said: Notify,
    statuses: Mutex<Vec<(TransportState, Option<String>)>>,
}

impl FakeSupport {
    pub(crate) fn news(&self) -> u64 {
        self.news.load(Ordering::SeqCst)
    }

    /// Resolves when `new_mail` has been called more than `before` times.
    pub(crate) async fn more_news_than(&self, before: u64) {
        self.when(|| self.news() > before).await;
    }

    /// Resolves when a status row like this has been shown last.
    pub(crate) async fn status_is(&self, wanted: TransportState) {
        self.when(|| self.last_status().is_some_and(|(state, _)| state == wanted))
            .await;
    }

    pub(crate) fn last_status(&self) -> Option<(TransportState, Option<String>)> {
        self.statuses.lock().unwrap().last().cloned()
    }

    async fn when(&self, condition: impl Fn() -> bool) {
        let wait = async {
            loop {
                let said = self.said.notified();
                tokio::pin!(said);
                said.as_mut().enable();
                if condition() {
                    return;
                }
                said.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait)
            .await
            .expect("nothing was said in 30 s");
    }
}

impl Support for FakeSupport {
    fn new_mail(&self) {
        self.news.fetch_add(1, Ordering::SeqCst);
        self.said.notify_waiters();
    }
    fn ready_to_send(&self) {}
    fn critical_error(&self, _error: Diagnosis) {}
    fn sent_deferred(&self, _id: MessageId, _statuses: Vec<(RecipientIndex, RecipientStatus)>) {}
    fn config_change(&self) {}
    fn critical_section(&self, _inside: bool) {}
    fn status(&self, state: TransportState, error: Option<String>) {
        self.statuses.lock().unwrap().push((state, error));
        self.said.notify_waiters();
    }
    fn next_reference(&self) -> Reference {
        Reference(Reference::FIRST.0 + self.references.fetch_add(1, Ordering::SeqCst))
    }
    fn permit(&self, _patience: Duration) -> BoxFuture<'static, Option<Arc<Reception>>> {
        Box::pin(async { None })
    }
    fn host(&self) -> &str {
        "agent.example.org"
    }
}
