//! What is known of each message in doubt, by whom: a plain state machine, without clock, channel or log.
//!
//! ```text
//! begin -> questions -> answers --+-> EndMessage -> its result --+
//!                                 '------------------------------+-> settled -> the actor resolves it
//!          listed, gone: nobody will answer any more ------------'
//! ```
//!
//! Drained in this order: feed what has come, then [`Doubts::take_settled`] until it gives nothing. Everything here is in the order
//! of its ids, so that the same inputs have the same consequences: the simulation drives it by seeds.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use pombo_proto::{
    ids::{Instance, MessageId, Reference},
    ladder::submission::AttemptResult,
    outcome::{EndMessageFlag, SubmitResult},
    verbs::{AdoptAnswer, Adopted, Refusal, Tenancy},
};

use super::who;
use crate::{
    horizon::Observed,
    job::{Job, SessionKey},
    store::Suspect,
};

/// An instance that was asked and is missing in so many lists, one after the other, has logged off or was struck off by somebody.
const MISSING_MAX: u32 = 2;

/// What one instance knows of one message.
#[derive(Debug)]
pub enum Knows {
    /// Not yet answered; or under way, ask again. Not in the store's list for so many times.
    Asked {
        /// How many.
        missing: u32,
    },
    /// Done, and EndMessage is under way.
    Ending {
        /// What the attempt brought.
        result: AttemptResult,
        /// Who keeps it.
        session: SessionKey,
    },
    /// Done.
    Done {
        /// What the attempt brought.
        result: AttemptResult,
        /// Who keeps it.
        session: SessionKey,
    },
    /// It has nothing, and will refuse anything older.
    Nothing,
    /// It never answered, and has lost its right to send.
    Gone,
    /// It had lost its right to send, and was struck off, before it could be asked.
    Struck,
}

impl Knows {
    fn is_asked(&self) -> bool {
        matches!(self, Self::Asked { .. })
    }
}

/// One instance that could have a message.
#[derive(Debug)]
pub struct Suspected {
    /// Its transport.
    pub transport: String,
    /// What it knows.
    pub knows: Knows,
}

/// One message.
#[derive(Debug)]
pub struct Doubt {
    /// It, and the right to decide.
    pub job: Job,
    /// Who could have it.
    pub instances: BTreeMap<Instance, Suspected>,
    /// An attempt that is under way for longer is asked to return: when, and again after as long.
    cancel_at: Instant,
}

impl Doubt {
    fn is_settled(&self) -> bool {
        let open = |knows: &Knows| matches!(knows, Knows::Asked { .. } | Knows::Ending { .. });
        !self.instances.values().any(|it| open(&it.knows))
    }
}

/// What an answer asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing, for now.
    Wait,
    /// EndMessage, to who answered.
    End(Tenancy, Reference),
    /// Somebody claimed it after us: whatever we would record is lost, and it is forgotten here.
    Lost(MessageId),
}

/// What the store's list of agents says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Silent {
    /// Lost their right to send: to be struck off, if their counters still stand there. Also those that nothing waits for: when
    /// it was is compared with what comes later, and an agent that died idle never had that.
    pub gone: BTreeMap<Instance, u64>,
    /// Asked, and listed no more: to be looked up.
    pub missing: BTreeSet<Instance>,
}

/// What became of an instance that was listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// None: it is listed again, or still.
    Listed,
    /// It has lost its right to send, and was struck off: who knows what it had.
    Struck,
    /// It is forgotten: it has left nothing behind.
    LoggedOff,
}

impl End {
    /// By all that the store knows of.
    pub fn of(instance: Instance, all: &[Suspect]) -> Self {
        match all.iter().find(|it| it.instance.instance == instance) {
            None => Self::LoggedOff,
            Some(it) if it.struck.is_some() => Self::Struck,
            Some(_) => Self::Listed,
        }
    }
}

/// All of them. What bounds it is what the outbox claims.
#[derive(Debug)]
pub struct Doubts {
    attempt_max: Duration,
    doubts: BTreeMap<MessageId, Doubt>,
}

impl Doubts {
    /// None yet; an attempt may be under way for so long.
    pub fn new(attempt_max: Duration) -> Self {
        Self {
            attempt_max,
            doubts: BTreeMap::new(),
        }
    }

    /// Messages in doubt.
    pub fn len(&self) -> usize {
        self.doubts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.doubts.is_empty()
    }

    /// Forgets all of them: the term is over, and the claims with it.
    pub fn clear(&mut self) {
        self.doubts.clear();
    }

    /// A message, and who could have it. `Some`: nobody is to be asked.
    pub fn begin(
        &mut self,
        job: Job,
        instances: BTreeMap<Instance, Suspected>,
        now: Instant,
    ) -> Option<Doubt> {
        let doubt = Doubt {
            job,
            instances,
            cancel_at: now + self.attempt_max,
        };
        if doubt.is_settled() {
            return Some(doubt);
        }
        let (id, fence) = (doubt.job.id(), doubt.job.tenure.fence());
        let known = self.doubts.get(&id).map(|it| it.job.tenure.fence());
        // Of two claims of one message the later one is ours: the other one was given back.
        if known.is_none_or(|known| known < fence) {
            self.doubts.insert(id, doubt);
        }
        None
    }

    /// Who is to be asked for what, now and until each has answered.
    pub fn questions(&self) -> BTreeMap<Instance, Vec<Tenancy>> {
        let mut asked: BTreeMap<Instance, Vec<Tenancy>> = BTreeMap::new();
        for doubt in self.doubts.values() {
            for (instance, it) in &doubt.instances {
                if it.knows.is_asked() {
                    let tenancy = doubt.job.tenure.tenancy();
                    asked.entry(*instance).or_default().push(tenancy);
                }
            }
        }
        asked
    }

    /// Attempts that answer "under way" for too long: to be cancelled, with their transports. Else each would keep its message
    /// for ever.
    pub fn poll_long(&mut self, now: Instant) -> Vec<(Instance, Tenancy, String)> {
        let mut long = Vec::new();
        for doubt in self.doubts.values_mut() {
            if now < doubt.cancel_at {
                continue;
            }
            doubt.cancel_at = now + self.attempt_max;
            let tenancy = doubt.job.tenure.tenancy();
            let asked = doubt.instances.iter().filter(|(_, it)| it.knows.is_asked());
            long.extend(asked.map(|(instance, it)| (*instance, tenancy, it.transport.clone())));
        }
        long
    }

    /// Gives back what is held for longer than `patience` and waits for an agent that nobody here can ask, named by its transport.
    pub fn take_strangers(
        &mut self,
        now: Instant,
        patience: Duration,
        can_ask: impl Fn(Instance) -> bool,
    ) -> Vec<(Job, String)> {
        let stranger = |(instance, it): (&Instance, &Suspected)| {
            let waits = it.knows.is_asked() && !can_ask(*instance);
            waits.then(|| it.transport.clone())
        };
        let held = |doubt: &Doubt| now.saturating_duration_since(doubt.job.since);
        let old = |doubt: &Doubt| held(doubt) > patience;
        let found: Vec<_> = self
            .doubts
            .iter()
            .filter(|(_, doubt)| old(doubt))
            .filter_map(|(id, doubt)| Some((*id, doubt.instances.iter().find_map(stranger)?)))
            .collect();
        found
            .into_iter()
            .filter_map(|(id, transport)| Some((self.doubts.remove(&id)?.job, transport)))
            .collect()
    }

    /// The store's list of agents, seen again.
    pub fn handle_listed(&mut self, observed: &Observed, now: Instant) -> Silent {
        let mut silent = Silent {
            gone: observed.all_gone(now).collect(),
            missing: BTreeSet::new(),
        };
        let all = self.doubts.values_mut().flat_map(|it| &mut it.instances);
        for (instance, it) in all {
            let Knows::Asked { missing } = &mut it.knows else {
                continue;
            };
            if observed.is_listed(*instance) {
                *missing = 0;
            } else {
                *missing += 1;
                if *missing >= MISSING_MAX {
                    silent.missing.insert(*instance);
                }
            }
        }
        silent
    }

    /// What became of an instance: for how many messages that settles what it knows.
    pub fn handle_end(&mut self, instance: Instance, end: End) -> usize {
        let mut waited = 0;
        for doubt in self.doubts.values_mut() {
            if let Some(it) = doubt.instances.get_mut(&instance)
                && it.knows.is_asked()
            {
                it.knows = match end {
                    End::Listed => return 0,
                    End::Struck => Knows::Gone,
                    End::LoggedOff => Knows::Nothing,
                };
                waited += 1;
            }
        }
        waited
    }

    /// An answer to Adopt.
    pub fn handle_answer(
        &mut self,
        instance: Instance,
        session: SessionKey,
        Adopted { id, fence, answer }: Adopted,
    ) -> Next {
        let Some(doubt) = self.doubts.get_mut(&id) else {
            return Next::Wait;
        };
        let tenancy = doubt.job.tenure.tenancy();
        let Some(it) = doubt.instances.get_mut(&instance) else {
            return Next::Wait;
        };
        if tenancy.fence != fence || !it.knows.is_asked() {
            return Next::Wait;
        }
        match answer {
            AdoptAnswer::Unknown => it.knows = Knows::Nothing,
            AdoptAnswer::UnderWay => it.knows = Knows::Asked { missing: 0 },
            AdoptAnswer::Fenced => {
                self.doubts.remove(&id);
                return Next::Lost(id);
            }
            AdoptAnswer::Done {
                reference,
                result,
                statuses,
                ended,
            } => {
                let end_follows = matches!(result, SubmitResult::Ok(_));
                let result = AttemptResult {
                    result,
                    end: ended,
                    statuses,
                };
                if ended.is_none() && end_follows {
                    it.knows = Knows::Ending { result, session };
                    return Next::End(tenancy, reference);
                }
                it.knows = Knows::Done { result, session };
            }
        }
        Next::Wait
    }

    /// EndMessage of an adopted attempt returned.
    pub fn handle_ended(
        &mut self,
        instance: Instance,
        id: MessageId,
        flag: Result<EndMessageFlag, Refusal>,
    ) {
        let doubt = self.doubts.get_mut(&id);
        let Some(it) = doubt.and_then(|it| it.instances.get_mut(&instance)) else {
            return;
        };
        it.knows = match std::mem::replace(&mut it.knows, Knows::Nothing) {
            Knows::Ending {
                mut result,
                session,
            } => {
                // Refused: the reference was ended before, and what its flag was follows from the outcomes.
                result.end = flag.ok();
                Knows::Done { result, session }
            }
            other => other,
        };
    }

    /// The session with an instance is over: what was being ended there is asked for again in its next one.
    pub fn handle_session_over(&mut self, instance: Instance) {
        for doubt in self.doubts.values_mut() {
            if let Some(it) = doubt.instances.get_mut(&instance)
                && matches!(it.knows, Knows::Ending { .. })
            {
                it.knows = Knows::Asked { missing: 0 };
            }
        }
    }

    /// It never could have had anything, and cannot be asked now: nothing waits for it, but what it was noted to have at its dot.
    pub fn let_go(&mut self, instance: Instance) {
        for Doubt { job, instances, .. } in self.doubts.values_mut() {
            if let Some(it) = instances.get_mut(&instance)
                && it.knows.is_asked()
                && !who::had_it(job, instance)
            {
                it.knows = Knows::Nothing;
            }
        }
    }

    /// Those of which all is known that will ever be.
    pub fn take_settled(&mut self) -> Vec<Doubt> {
        let settled = |(id, doubt): (&MessageId, &Doubt)| doubt.is_settled().then_some(*id);
        let settled: Vec<_> = self.doubts.iter().filter_map(settled).collect();
        let taken = settled.iter().filter_map(|id| self.doubts.remove(id));
        taken.collect()
    }
}

#[cfg(test)]
pub(super) mod tests;
