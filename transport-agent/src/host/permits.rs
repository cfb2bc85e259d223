//! StartMessage: permits for doors that take them ([`Support::permit`](crate::provider::Support::permit)), and the reception
//! behind each permit.
//!
//! A permit that a door has taken and not used goes back among those that stand ready. All of them are
//! given back when the spooler ends inbound traffic.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::future::{BoxFuture, FutureExt};
use pombo_proto::{
    attempt::Session,
    ids::{MessageId, Reference},
    verbs::StartResult,
};
use tokio::sync::oneshot;

use super::{
    cancel::Cancel,
    door::{Door, Saved},
    support::References,
    told::{PermitId, Teller, Told},
};
use crate::provider::{Incoming, Received, Reception, ReceptionHandle, SaveError};

/// Doors that wait at a time; more get no permit (SMTP: 4xx).
const WAITERS_MAX: usize = 10_000;

/// All permits, and what receptions need.
pub(super) struct Permits {
    pub door: Arc<Door>,
    pub teller: Teller,
    pub references: Arc<References>,
    /// Whether permits stand ready for doors.
    pub standing: bool,
    pub state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    ready: VecDeque<Ticket>,
    waiters: VecDeque<oneshot::Sender<Ticket>>,
    /// Sessions whose permits may stand ready.
    open: HashSet<Session>,
}

/// A permit in hand. Dropped, it goes back.
pub(super) struct Ticket {
    permits: Arc<Permits>,
    id: PermitId,
    cancel: Cancel,
    spent: bool,
}

impl Permits {
    /// The spooler lets mail in through this session.
    pub fn open(&self, session: Session) {
        self.lock().open.insert(session);
    }

    /// It does so no more: those that stand ready are given back.
    pub fn close(&self, session: Session) {
        let mut state = self.lock();
        state.open.remove(&session);
        let (gone, stay) = std::mem::take(&mut state.ready)
            .into_iter()
            .partition(|ticket| ticket.id.session == session);
        state.ready = stay;
        drop(state);
        // Dropped outside the lock: they take it.
        drop::<VecDeque<Ticket>>(gone);
    }

    /// No session will give any: who waits gets none.
    pub fn close_all(&self) {
        let mut state = self.lock();
        state.open.clear();
        let (ready, waiters) = (
            std::mem::take(&mut state.ready),
            std::mem::take(&mut state.waiters),
        );
        drop(state);
        drop((ready, waiters));
    }

    /// A permit has come.
    pub fn ticket(this: &Arc<Self>, id: PermitId, cancel: Cancel) -> Ticket {
        Ticket {
            permits: Arc::clone(this),
            id,
            cancel,
            spent: false,
        }
    }

    /// Gives it to who waits longest, or lets it stand ready; gives it back if its session is not open.
    pub fn offer(&self, mut ticket: Ticket) -> Option<Ticket> {
        let mut state = self.lock();
        if !state.open.contains(&ticket.id.session) {
            return Some(ticket);
        }
        while let Some(waiter) = state.waiters.pop_front() {
            match waiter.send(ticket) {
                Ok(()) => return None,
                Err(back) => ticket = back,
            }
        }
        state.ready.push_back(ticket);
        None
    }

    /// See [`Support::permit`](crate::provider::Support::permit).
    pub fn take(
        this: &Arc<Self>,
        patience: Duration,
    ) -> BoxFuture<'static, Option<Arc<Reception>>> {
        let mut state = this.lock();
        if let Some(ticket) = state.ready.pop_front() {
            drop(state);
            let reception = Arc::new(Reception::new(Handle::new(ticket)));
            return std::future::ready(Some(reception)).boxed();
        }
        state.waiters.retain(|waiter| !waiter.is_closed());
        if state.waiters.len() >= WAITERS_MAX {
            return std::future::ready(None).boxed();
        }
        let (give, get) = oneshot::channel();
        state.waiters.push_back(give);
        drop(state);
        this.teller.tell(Told::NewMail);
        async move {
            let ticket = tokio::time::timeout(patience, get).await.ok()?.ok()?;
            Some(Arc::new(Reception::new(Handle::new(ticket))))
        }
        .boxed()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.spent {
            return;
        }
        if self.permits.standing && !self.cancel.is_cancelled() {
            let again = Permits::ticket(&self.permits, self.id, self.cancel.clone());
            match self.permits.offer(again) {
                None => return,
                Some(mut back) => back.spent = true,
            }
        }
        let told = Told::Started(self.id, StartResult::Nothing, None);
        self.permits.teller.tell(told);
    }
}

/// A reception under way.
pub(super) struct Receiving {
    ticket: Mutex<Option<Ticket>>,
    permits: Arc<Permits>,
    id: PermitId,
    cancel: Cancel,
    since: Instant,
    state: Mutex<Stage>,
}

#[derive(Default)]
struct Stage {
    assigned: bool,
    saving: bool,
    saved: Option<Saved>,
    over: bool,
}

impl Receiving {
    /// StartMessage returns. The first one counts; what SaveChanges did counts more than what is said.
    pub fn finish(&self, received: Received) {
        let mut stage = self.stage();
        if std::mem::replace(&mut stage.over, true) {
            return;
        }
        let more = matches!(received, Received::Saved { more: true, .. }) || self.permits.standing;
        let result = match (stage.saved, received) {
            (Some(Saved { id, size }), _) => StartResult::Saved { id, size, more },
            (None, Received::Failed(error)) => StartResult::Failed(error),
            (None, Received::Cancelled) => StartResult::Cancelled,
            (None, Received::Nothing | Received::Saved { .. }) => StartResult::Nothing,
        };
        let used = stage.assigned;
        drop(stage);
        let ticket = self
            .ticket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(mut ticket) = ticket else { return };
        if result == StartResult::Nothing && !used {
            // It goes back, to stand ready or to the spooler.
            return;
        }
        ticket.spent = true;
        let told = Told::Started(self.id, result, Some(self.since.elapsed()));
        self.permits.teller.tell(told);
    }

    fn assign(&self, reference: Option<Reference>) {
        let mut stage = self.stage();
        if stage.assigned || stage.over {
            return;
        }
        stage.assigned = true;
        let usable = reference.filter(|reference| *reference >= Reference::FIRST);
        let reference = usable.unwrap_or_else(|| self.permits.references.next());
        tracing::Span::current().record("reference", reference.0);
        // Nobody waits for it; what follows brings it along.
        self.permits
            .teller
            .mention(Told::StartReference(self.id, reference));
    }

    fn stage(&self) -> std::sync::MutexGuard<'_, Stage> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the transport holds; the last one to go finishes the reception, if nobody has.
pub(super) struct Handle(pub Arc<Receiving>);

impl Handle {
    /// A reception under this permit.
    pub fn new(ticket: Ticket) -> Self {
        Self(Arc::new(Receiving {
            permits: Arc::clone(&ticket.permits),
            id: ticket.id,
            cancel: ticket.cancel.clone(),
            ticket: Mutex::new(Some(ticket)),
            since: Instant::now(),
            state: Mutex::default(),
        }))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.finish(Received::Nothing);
    }
}

#[async_trait]
impl ReceptionHandle for Handle {
    fn assign_reference(&self, reference: Reference) {
        self.0.assign(Some(reference));
    }

    async fn save_changes(&self, message: Incoming) -> Result<MessageId, SaveError> {
        self.0.assign(None);
        {
            let mut stage = self.0.stage();
            if stage.over {
                return Err(SaveError::Cancelled);
            }
            if std::mem::replace(&mut stage.saving, true) {
                let text = "SaveChanges was called before".to_owned();
                return Err(SaveError::Unconfirmed(text));
            }
        }
        let saved = self.0.permits.door.save(&self.0.cancel, message).await?;
        tracing::Span::current().record("message", tracing::field::display(saved.id));
        self.0.stage().saved = Some(saved);
        Ok(saved.id)
    }

    fn is_cancelled(&self) -> bool {
        self.0.cancel.is_cancelled()
    }

    async fn cancelled(&self) {
        self.0.cancel.cancelled().await;
    }

    fn finished(&self, received: Received) {
        self.0.finish(received);
    }
}
