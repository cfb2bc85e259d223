//! What the transport's threads tell the agent's actor: gathered, so that one wake carries all that came meanwhile.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pombo_proto::{
    attempt::Session,
    ids::{Correlation, MessageId, RecipientIndex, Reference},
    outcome::{Diagnosis, EndMessageFlag, RecipientStatus, SubmitResult},
    verbs::{Flush, LogonError, StartResult, TransportState, Validation},
};

use crate::provider::LogonReply;

/// Names a permit: the question that it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PermitId {
    pub session: Session,
    pub correlation: Correlation,
}

/// One thing told.
#[derive(Debug)]
pub(super) enum Told {
    /// `logon` returned.
    LoggedOn(Result<LogonReply, LogonError>),
    /// `assign_reference` of a submission.
    Reference(MessageId, Reference),
    /// `status_recips`.
    Statuses(MessageId, Vec<(RecipientIndex, RecipientStatus)>),
    /// `submit_message` returned; `None`: the message could not be read.
    Returned(MessageId, Option<SubmitResult>),
    /// `end_message` returned.
    Ended(MessageId, EndMessageFlag),
    /// `assign_reference` of a reception.
    StartReference(PermitId, Reference),
    /// StartMessage returned, and how long it took if there was something.
    Started(PermitId, StartResult, Option<Duration>),
    /// `poll` returned.
    Polled(Session, Correlation, u32),
    /// `validate_state` returned.
    Validated(Session, Correlation, Validation),
    /// `flush_queues` returned.
    Flushed(Flush),
    /// `idle` returned.
    Idled,
    /// The support object: NEWMAIL.
    NewMail,
    /// READYTOSEND.
    ReadyToSend,
    /// CRITICAL_ERROR.
    CriticalError(Diagnosis),
    /// SENTDEFERRED.
    SentDeferred(MessageId, Vec<(RecipientIndex, RecipientStatus)>),
    /// CONFIG_CHANGE.
    ConfigChange,
    /// CRITSEC and NONCRIT.
    CriticalSection(bool),
    /// ModifyStatusRow.
    Status(TransportState, Option<String>),
}

/// Tells. Cheap to clone.
#[derive(Clone)]
pub(super) struct Teller {
    shared: Arc<Shared>,
}

struct Shared {
    told: Mutex<Vec<Told>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Teller {
    /// `wake` is called when something was told after nothing had been.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                told: Mutex::default(),
                wake: Box::new(wake),
            }),
        }
    }

    /// Tells one thing. Those told by one thread stay in order.
    pub fn tell(&self, told: Told) {
        let mut all = self.lock();
        all.push(told);
        let first = all.len() == 1;
        drop(all);
        if first {
            (self.shared.wake)();
        }
    }

    /// All that was told since the last time.
    pub fn take(&self) -> Vec<Told> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Told>> {
        self.shared
            .told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
