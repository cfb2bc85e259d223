//! What the transport's threads tell the agent's actor: gathered, so that one wake carries all that came meanwhile.
//!
//! The first word after a rest wakes the actor at once. Then it looks by itself, every [`LOOK_EVERY`], until there was nothing:
//! so a busy transport wakes it some hundred times a second, and not for every message.

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

/// How often the actor looks while it is told things. The packets that follow go at a slower pace anyway.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(2);

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
    /// `may_finish`, where doubt is held.
    AtTheDot(MessageId),
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
    state: Mutex<State>,
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct State {
    told: Vec<Told>,
    /// The actor was woken, or looks by itself.
    awake: bool,
}

impl Teller {
    /// `wake` is called when something is told while the actor rests.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                wake: Box::new(wake),
            }),
        }
    }

    /// Tells one thing. Those told by one thread stay in order.
    pub fn tell(&self, told: Told) {
        let mut state = self.lock();
        state.told.push(told);
        let rested = !std::mem::replace(&mut state.awake, true);
        drop(state);
        if rested {
            (self.shared.wake)();
        }
    }

    /// Tells one thing that is in no hurry: it is taken with the next one, or at the actor's next beat.
    pub fn mention(&self, told: Told) {
        self.lock().told.push(told);
    }

    /// All that was told since the last time. Nothing: the actor may rest, and is woken by the next word.
    pub fn take(&self) -> Vec<Told> {
        let mut state = self.lock();
        if state.told.is_empty() {
            state.awake = false;
        }
        std::mem::take(&mut state.told)
    }

    /// What was told or mentioned until now, whether the actor rests or not.
    pub fn take_mentions(&self) -> Vec<Told> {
        std::mem::take(&mut self.lock().told)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
