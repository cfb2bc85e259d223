//! The spooler's leave to receive one message. It costs a round trip, so it is asked for at the first recipient that is
//! accepted, while the client is still busy with the rest of its envelope.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::provider::{Received, Reception, Support};

/// A permit is given back if the client does not come to DATA in this time, so that dawdlers hold up nobody; DATA
/// asks for another.
const HELD_MAX: Duration = Duration::from_secs(5);

/// A reception that will be finished exactly once: by [`Permit::finish`], or as [`Received::Nothing`] when it is dropped.
pub(super) struct Permit {
    reception: Arc<Reception>,
    finished: bool,
}

impl Permit {
    fn new(reception: Arc<Reception>) -> Self {
        Self {
            reception,
            finished: false,
        }
    }

    /// The reception, for as long as it takes.
    pub fn reception(&self) -> &Arc<Reception> {
        &self.reception
    }

    /// StartMessage returns this.
    pub fn finish(mut self, received: Received) {
        self.finished = true;
        self.reception.finished(received);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.finished {
            self.reception.finished(Received::Nothing);
        }
    }
}

/// A session's permit: none, asked for, or held. Dropped or [`Slot::clear`]ed, it is given back.
#[derive(Default)]
pub(super) enum Slot {
    #[default]
    Empty,
    Asked(BoxFuture<'static, Option<Arc<Reception>>>),
    Held(Permit, Instant),
}

impl Slot {
    /// Announces a message and asks for a permit, unless that was done.
    pub fn ask(&mut self, support: &dyn Support, patience: Duration) {
        if matches!(self, Self::Empty) {
            support.new_mail();
            *self = Self::Asked(support.permit(patience));
        }
    }

    /// Gives it back.
    pub fn clear(&mut self) {
        *self = Self::Empty;
    }

    /// Whether an answer is awaited.
    pub fn is_asked(&self) -> bool {
        matches!(self, Self::Asked(_))
    }

    /// When a permit that is not used should be given back.
    pub fn due(&self) -> Option<Instant> {
        match self {
            Self::Held(_, since) => Some(*since + HELD_MAX),
            Self::Empty | Self::Asked(_) => None,
        }
    }

    /// Gives a permit back that has not been used for too long.
    pub fn expire(&mut self, now: Instant) {
        if self.due().is_some_and(|due| due <= now) {
            self.clear();
        }
    }

    /// Resolves when the question that was asked is answered; at once if none was.
    pub async fn answered(&mut self) {
        poll_fn(|context| self.poll_answered(context)).await;
    }

    fn poll_answered(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Self::Asked(question) = self {
            *self = match ready!(question.as_mut().poll(context)) {
                Some(reception) => Self::Held(Permit::new(reception), Instant::now()),
                None => Self::Empty,
            };
        }
        Poll::Ready(())
    }

    /// The permit, if it is held.
    pub fn take(&mut self) -> Option<Permit> {
        match std::mem::take(self) {
            Self::Held(permit, _) => Some(permit),
            other => {
                *self = other;
                None
            }
        }
    }
}
