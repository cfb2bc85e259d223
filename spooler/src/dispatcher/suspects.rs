//! Messages that are suspected of killing whoever has them: tried one at a time, with nothing else beside them.
//!
//! Healthy ones are suspected, too, if they were in the wrong place often enough; tried alone they are delivered, and are
//! suspected no more. What bounds them is what bounds the ready lanes: claims.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use pombo_proto::{ids::MessageId, time::UnixMillis, verbs::Tenancy};
use tracing::debug;

use super::{Dispatcher, LaneKey, READY_MAX, ReadyJob};
use crate::{job::SessionKey, verdict::Happened};

/// A session that does not get empty for so long is used all the same: one suspect at a time is what counts most.
const EMPTY_MAX: Duration = Duration::from_secs(30);

/// All that this process holds.
#[derive(Default)]
pub(super) struct Suspects {
    waiting: VecDeque<(LaneKey, ReadyJob)>,
    trial: Option<Trial>,
}

enum Trial {
    /// The session is kept free, and gets empty.
    Emptying {
        suspect: Box<(LaneKey, ReadyJob)>,
        session: SessionKey,
        since: Instant,
    },
    /// It is submitted.
    Tried {
        tenancy: Tenancy,
        session: SessionKey,
    },
}

impl Suspects {
    pub fn push(&mut self, key: LaneKey, ready: ReadyJob) {
        self.waiting.push_back((key, ready));
    }

    pub fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.trial.is_some())
    }

    /// An attempt is over. If it was the one that is tried: the session that was kept for it.
    pub fn handle_over(&mut self, over: Tenancy) -> Option<SessionKey> {
        match self.trial {
            Some(Trial::Tried { tenancy, session }) if tenancy == over => {
                self.trial = None;
                Some(session)
            }
            _ => None,
        }
    }

    /// Takes one out, unless it is submitted.
    pub fn take(&mut self, id: MessageId) -> Option<ReadyJob> {
        let at = self.waiting.iter().position(|(_, it)| it.job.id() == id)?;
        self.waiting.remove(at).map(|(_, ready)| ready)
    }

    /// Takes those of a transport that is away.
    pub fn take_of(&mut self, transport: &str) -> Vec<ReadyJob> {
        let all = std::mem::take(&mut self.waiting);
        let (taken, rest): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|(key, _)| &*key.transport == transport);
        self.waiting = rest.into();
        taken.into_iter().map(|(_, ready)| ready).collect()
    }

    /// Takes all that are not submitted.
    pub fn drain(&mut self) -> Vec<ReadyJob> {
        if let Some(Trial::Emptying { suspect, .. }) = self
            .trial
            .take_if(|it| matches!(it, Trial::Emptying { .. }))
        {
            self.waiting.push_front(*suspect);
        }
        self.waiting.drain(..).map(|(_, ready)| ready).collect()
    }

    /// Forgets everything; says how many had not been submitted.
    pub fn clear(&mut self) -> usize {
        let dropped = self.drain().len();
        self.trial = None;
        dropped
    }
}

impl Dispatcher {
    /// The next suspect, if none is being tried.
    pub(super) fn try_a_suspect(&mut self) {
        self.park_old_suspects();
        match self.suspects.trial.take() {
            None => self.begin_a_trial(),
            Some(Trial::Emptying {
                suspect,
                session,
                since,
            }) => match self.sessions.is_idle(session) {
                Some(false) if since.elapsed() < EMPTY_MAX => {
                    self.suspects.trial = Some(Trial::Emptying {
                        suspect,
                        session,
                        since,
                    });
                }
                Some(_) => self.submit_alone(*suspect, session),
                None => {
                    let now = UnixMillis::now();
                    self.intake(suspect.1.job, now);
                }
            },
            tried => self.suspects.trial = tried,
        }
    }

    fn begin_a_trial(&mut self) {
        let Some((key, ready)) = self.suspects.waiting.pop_front() else {
            return;
        };
        let tenure = &ready.job.tenure;
        match self.sessions.reserve(&key.transport, tenure) {
            Some(session) => {
                debug!(id = %ready.job.id(), "a suspect: its session gets empty");
                let (suspect, since) = (Box::new((key, ready)), Instant::now());
                self.suspects.trial = Some(Trial::Emptying {
                    suspect,
                    session,
                    since,
                });
                self.try_a_suspect();
            }
            None => {
                // No agent has room, or every session was opened after the tenure was obtained: claim anew.
                let reason = format!("{} has no agent to try it alone", key.transport);
                let until = UnixMillis::now().after(Duration::from_secs(1));
                self.park(ready, reason, until);
            }
        }
    }

    fn submit_alone(&mut self, (key, mut ready): (LaneKey, ReadyJob), session: SessionKey) {
        if self.moving.is_cancelled(ready.job.id()) {
            self.sessions.release(session);
            ready.job.cancelled = true;
            return self.conclude(ready.job, Happened::Nothing);
        }
        let tenancy = ready.job.tenure.tenancy();
        let mut submission = self.start(ready, &key, session, UnixMillis::now());
        submission.alone = true;
        self.suspects.trial = Some(Trial::Tried { tenancy, session });
        self.sessions.submit(session, vec![submission]);
    }

    /// A claim keeps others from it.
    fn park_old_suspects(&mut self) {
        while let Some((_, first)) = self.suspects.waiting.front()
            && first.queued.elapsed() > READY_MAX
        {
            if let Some((_, ready)) = self.suspects.waiting.pop_front() {
                let reason = "others are tried alone before it".to_owned();
                self.park(ready, reason, UnixMillis::now());
            }
        }
    }
}
