//! What an agent keeps of each message that was submitted to it, until it is settled. Without IO and without a clock.
//!
//! An attempt is kept from SubmitMessage to Settled, whatever becomes of the session that brought it; a spooler that takes
//! over asks for it by Adopt. This memory never exceeds the capacity, since every attempt holds one credit.
//!
//! # Who is refused
//! - A fence lower than the highest that was seen for the id ([`Refusal::Fenced`]). Every Adopt counts as seeing,
//!   answers of "unknown" included: that answer is a promise, so it leaves a tombstone. What was seen is remembered while a
//!   session lives that was open then; a stale holder cannot use a later session. Fence 0 is the lowest there
//!   is and needs no memory. If there is too much to remember, [`Attempts::sessions_to_end`] names the oldest sessions.
//! - A message that is under way, by whatever fence ([`Refusal::Closed`]): there are never two sends of one id at a time. Who
//!   takes over asks by Adopt instead.
//! - A message whose earlier result is kept and says, of a recipient now asked for, that it may have been sent to
//!   ([`Refusal::Closed`]). Under the same fence nobody has recorded that result, so it must be empty of decisions
//!   altogether (BUSY, WAIT, NOT_ME, ...); under a higher one the store has recorded it, and the new attempt
//!   takes its place (Settled was overtaken, or its sender died).
//!
//! # Credit
//! What is not in use is shared out evenly, and what cannot be divided goes round from tick to tick; a session's credit is what
//! it has outstanding plus its share. Only the capacity itself is enforced at SubmitMessage.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque, hash_map::Entry};

use crate::{
    ids::{Fence, MessageId, RecipientIndex, Reference},
    message::RECIPIENTS_MAX,
    outbound::answer_weight,
    outcome::{EndMessageFlag, Outcome, RecipientOutcome, RecipientStatus, SubmitResult},
    verbs::{AdoptAnswer, Adopted, Refusal, Submit, Tenancy},
};

/// Fences remembered, at most: about 50 MB.
pub const SEEN_MAX: usize = 500_000;
/// Answers to one Adopt weigh at most this much; what does not fit is answered "under way", which is asked again.
pub const ADOPT_WEIGHT_MAX: usize = 2 * 1024 * 1024;
/// An attempt of a living session that was not settled so many ticks after it was done is named like those of
/// ended ones: its holder may have lost it and owe nothing.
pub const STALE_TICKS: u64 = 60;

/// A session with a spooler, in the order in which they were opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session(pub u64);

/// See the module.
#[derive(Debug)]
pub struct Attempts {
    capacity: u32,
    seen_max: usize,
    closed: bool,
    kept: HashMap<MessageId, Attempt>,
    /// Open sessions, and the credit that each has spent.
    sessions: BTreeMap<Session, u32>,
    opened: u64,
    seen: HashMap<MessageId, Seen>,
    /// What was seen, by the session that was opened last then.
    order: VecDeque<(u64, MessageId)>,
    ticks: u64,
    named: usize,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    fence: Fence,
    generation: u64,
}

#[derive(Debug)]
struct Attempt {
    session: Session,
    /// Under which it was submitted: replies carry it.
    submitted: Fence,
    /// The highest that has a say in it: who adopted it.
    fence: Fence,
    reference: Reference,
    statuses: Vec<(RecipientIndex, RecipientStatus)>,
    stage: Stage,
    /// When it was done.
    tick: u64,
}

#[derive(Debug)]
enum Stage {
    /// SubmitMessage has not returned. `settled`: the store has decided without it; free it then.
    UnderWay { settled: bool },
    /// SubmitMessage has returned.
    Done(SubmitResult),
    /// EndMessage has been called and has not returned.
    Ending(SubmitResult),
    /// EndMessage has returned: the reference is dead.
    Ended(SubmitResult, EndMessageFlag),
}

/// To whom a result is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The session that submitted (it may have ended).
    pub session: Session,
    /// The fence under which it did.
    pub fence: Fence,
}

/// What EndMessage comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginEnd {
    /// Call the transport, with what SubmitMessage had returned; then [`Attempts::handle_ended`].
    Call(Vec<RecipientOutcome>),
    /// It was called before, for somebody who did not live to record it; this is what it had returned.
    Already(EndMessageFlag),
}

impl Attempts {
    /// Nothing kept. `capacity`: how many attempts at most.
    pub fn new(capacity: u32) -> Self {
        Self {
            capacity,
            seen_max: SEEN_MAX,
            closed: false,
            kept: HashMap::new(),
            sessions: BTreeMap::new(),
            opened: 0,
            seen: HashMap::new(),
            order: VecDeque::new(),
            ticks: 0,
            named: 0,
        }
    }

    /// The same with another bound on remembered fences.
    pub fn with_seen_max(mut self, seen_max: usize) -> Self {
        self.seen_max = seen_max;
        self
    }

    /// A session begins.
    pub fn open_session(&mut self) -> Session {
        self.opened += 1;
        let session = Session(self.opened);
        self.sessions.insert(session, 0);
        session
    }

    /// A session has ended. Its attempts stay, and count.
    pub fn handle_session_ended(&mut self, session: Session) {
        self.sessions.remove(&session);
        let oldest = self
            .sessions
            .keys()
            .next()
            .map_or(u64::MAX, |oldest| oldest.0);
        while self.order.front().is_some_and(|(at, _)| *at < oldest) {
            self.forget_first();
        }
    }

    /// From now on (or no more) every SubmitMessage is refused: the agent drains, or is in a critical state.
    pub fn set_closed(&mut self, closed: bool) {
        self.closed = closed;
    }

    /// SubmitMessage. Ok: start it, and tell [`Self::handle_returned`] when it is over.
    ///
    /// # Errors
    /// See the module.
    pub fn handle_submit(&mut self, session: Session, submit: &Submit) -> Result<(), Refusal> {
        let Submit { id, fence, .. } = *submit;
        if fence < self.highest(id) {
            return Err(Refusal::Fenced);
        }
        if self.closed || !self.sessions.contains_key(&session) {
            return Err(Refusal::Closed);
        }
        match self.kept.get(&id) {
            Some(earlier) if !earlier.may_be_followed_by(submit) => return Err(Refusal::Closed),
            Some(_) => {
                self.free(id);
            }
            None if self.in_flight() >= self.capacity => return Err(Refusal::Closed),
            None => {}
        }
        self.remember(id, fence);
        *self.sessions.entry(session).or_default() += 1;
        self.kept.insert(
            id,
            Attempt {
                session,
                submitted: fence,
                fence,
                reference: Reference::UNASSIGNED_OUTBOUND,
                statuses: Vec::new(),
                stage: Stage::UnderWay { settled: false },
                tick: 0,
            },
        );
        Ok(())
    }

    /// The transport has assigned the reference. Returns whom to tell; `None`: nobody, it comes too late or twice.
    pub fn handle_reference(&mut self, id: MessageId, reference: Reference) -> Option<Owner> {
        let attempt = self.under_way(id)?;
        if attempt.reference != Reference::UNASSIGNED_OUTBOUND {
            return None;
        }
        attempt.reference = reference;
        Some(attempt.owner())
    }

    /// StatusRecips, kept for whoever adopts. Returns whom to tell now; `None`: nobody.
    pub fn handle_statuses(
        &mut self,
        id: MessageId,
        statuses: &[(RecipientIndex, RecipientStatus)],
    ) -> Option<Owner> {
        let attempt = self.under_way(id)?;
        if attempt.statuses.len() + statuses.len() > RECIPIENTS_MAX {
            return None;
        }
        attempt.statuses.extend_from_slice(statuses);
        Some(attempt.owner())
    }

    /// SubmitMessage has returned. Returns whom to tell; `None`: nobody wants it any more.
    pub fn handle_returned(&mut self, id: MessageId, result: SubmitResult) -> Option<Owner> {
        let tick = self.ticks;
        let attempt = self.under_way(id)?;
        if matches!(attempt.stage, Stage::UnderWay { settled: true }) {
            self.free(id);
            return None;
        }
        attempt.stage = Stage::Done(result);
        attempt.tick = tick;
        Some(attempt.owner())
    }

    /// SubmitMessage turned out to be impossible, and nothing was done: as if it had been refused. Returns whom to tell.
    pub fn withdraw(&mut self, id: MessageId) -> Option<Owner> {
        let owner = self.under_way(id)?.owner();
        self.free(id);
        Some(owner)
    }

    /// EndMessage, from whatever session.
    ///
    /// # Errors
    /// [`Refusal::Fenced`]: somebody with a higher fence decides. [`Refusal::UnknownReference`]: there is no such attempt, its
    /// reference is another, or what SubmitMessage returned is not followed by EndMessage.
    /// [`Refusal::Closed`]: SubmitMessage or another EndMessage is still under way.
    pub fn handle_end(
        &mut self,
        tenancy: Tenancy,
        reference: Reference,
    ) -> Result<BeginEnd, Refusal> {
        if tenancy.fence < self.highest(tenancy.id) {
            return Err(Refusal::Fenced);
        }
        let attempt = self
            .kept
            .get_mut(&tenancy.id)
            .filter(|attempt| attempt.reference == reference)
            .ok_or(Refusal::UnknownReference)?;
        match &attempt.stage {
            Stage::UnderWay { .. } | Stage::Ending(_) => Err(Refusal::Closed),
            Stage::Ended(_, flag) => Ok(BeginEnd::Already(*flag)),
            Stage::Done(SubmitResult::Ok(outcomes)) => {
                let outcomes = outcomes.clone();
                attempt.stage = Stage::Ending(SubmitResult::Ok(outcomes.clone()));
                attempt.fence = tenancy.fence;
                Ok(BeginEnd::Call(outcomes))
            }
            Stage::Done(_) => Err(Refusal::UnknownReference),
        }
    }

    /// EndMessage has returned.
    pub fn handle_ended(&mut self, id: MessageId, flag: EndMessageFlag) {
        let Some(attempt) = self.kept.get_mut(&id) else {
            return;
        };
        if let Stage::Ending(result) = &mut attempt.stage {
            let result = std::mem::replace(result, SubmitResult::Busy);
            attempt.stage = Stage::Ended(result, flag);
            attempt.tick = self.ticks;
        }
    }

    /// Whether an attempt of this message is kept: under way, or not yet settled.
    pub fn keeps(&self, id: MessageId) -> bool {
        self.kept.contains_key(&id)
    }

    /// Adopt: what is known, and the fence is raised.
    pub fn handle_adopt(&mut self, tenancies: &[Tenancy]) -> Vec<Adopted> {
        let mut weight = 0;
        let answer = |tenancy: &Tenancy| {
            let mut answer = self.adopt(*tenancy);
            weight += answer_weight(&answer);
            if weight > ADOPT_WEIGHT_MAX && weight > answer_weight(&answer) {
                answer = AdoptAnswer::UnderWay;
            }
            Adopted {
                id: tenancy.id,
                fence: tenancy.fence,
                answer,
            }
        };
        tenancies.iter().map(answer).collect()
    }

    fn adopt(&mut self, tenancy: Tenancy) -> AdoptAnswer {
        if tenancy.fence < self.highest(tenancy.id) {
            return AdoptAnswer::Fenced;
        }
        self.remember(tenancy.id, tenancy.fence);
        let Some(attempt) = self.kept.get_mut(&tenancy.id) else {
            return AdoptAnswer::Unknown;
        };
        attempt.fence = tenancy.fence;
        let (result, ended) = match &attempt.stage {
            Stage::UnderWay { .. } | Stage::Ending(_) => return AdoptAnswer::UnderWay,
            Stage::Done(result) => (result, None),
            Stage::Ended(result, flag) => (result, Some(*flag)),
        };
        AdoptAnswer::Done {
            reference: attempt.reference,
            result: result.clone(),
            statuses: attempt.statuses.clone(),
            ended,
        }
    }

    /// Settled: the store has recorded these; they are forgotten, and the credit returns to whoever spent it. Returns those that
    /// are still under way (somebody gave them up, and sent them elsewhere): cancel them.
    pub fn handle_settled(&mut self, tenancies: &[Tenancy]) -> Vec<MessageId> {
        let mut cancel = Vec::new();
        for tenancy in tenancies {
            let Some(attempt) = self.kept.get_mut(&tenancy.id) else {
                continue;
            };
            if tenancy.fence < attempt.fence {
                continue;
            }
            match &mut attempt.stage {
                Stage::UnderWay { settled } => {
                    *settled = true;
                    cancel.push(tenancy.id);
                }
                Stage::Done(_) | Stage::Ending(_) | Stage::Ended(..) => self.free(tenancy.id),
            }
        }
        cancel
    }

    /// Whether CANCEL_MESSAGE applies: the message is under way, nobody with a higher fence decides about it, and the
    /// reference is its own (or the asker has not heard of one yet).
    pub fn may_cancel(&self, message: Tenancy, reference: Reference) -> bool {
        self.kept.get(&message.id).is_some_and(|attempt| {
            matches!(attempt.stage, Stage::UnderWay { .. })
                && message.fence >= attempt.fence
                && (reference == Reference::UNASSIGNED_OUTBOUND || reference == attempt.reference)
        })
    }

    /// How many messages may be outstanding in this session, the outstanding ones included.
    pub fn credit(&self, session: Session) -> u32 {
        let Some(outstanding) = self.sessions.get(&session) else {
            return 0;
        };
        if self.closed {
            return 0;
        }
        let sessions = self.sessions.len() as u32;
        let free = self.capacity.saturating_sub(self.in_flight());
        let place = self.sessions.range(..session).count() as u32;
        let turn = (place + (self.ticks % u64::from(sessions)) as u32) % sessions;
        outstanding + free / sessions + u32::from(turn < free % sessions)
    }

    /// Who may be asked at the dot: whoever submitted it, while it is under way and nobody has adopted it.
    pub fn owner(&self, id: MessageId) -> Option<Owner> {
        let attempt = self.kept.get(&id)?;
        let own = matches!(attempt.stage, Stage::UnderWay { settled: false })
            && attempt.fence == attempt.submitted;
        own.then(|| attempt.owner())
    }

    /// Attempts kept, over all sessions, ended ones included.
    pub fn in_flight(&self) -> u32 {
        self.kept.len() as u32
    }

    /// Whether nothing is kept: everything was settled.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Attempts whose SubmitMessage or EndMessage has not returned.
    pub fn under_way_count(&self) -> usize {
        let busy =
            |attempt: &&Attempt| matches!(attempt.stage, Stage::UnderWay { .. } | Stage::Ending(_));
        self.kept.values().filter(busy).count()
    }

    /// One interval of the status row has passed: shares go round.
    pub fn tick(&mut self) {
        self.ticks += 1;
    }

    /// Attempts of ended sessions, and those that nobody has settled for long, under the fence that has a say in them. At most
    /// `limit`; the next call goes on where this one stopped.
    pub fn unsettled(&mut self, limit: usize) -> Vec<Tenancy> {
        let stale = |attempt: &Attempt| {
            let over = matches!(attempt.stage, Stage::Done(_) | Stage::Ended(..));
            over && self.ticks >= attempt.tick + STALE_TICKS
        };
        let mut all: Vec<Tenancy> = self
            .kept
            .iter()
            .filter(|(_, kept)| !self.sessions.contains_key(&kept.session) || stale(kept))
            .map(|(id, kept)| Tenancy {
                id: *id,
                fence: kept.fence,
            })
            .collect();
        if all.len() > limit {
            all.sort_unstable_by_key(|tenancy| tenancy.id);
            self.named %= all.len();
            all.rotate_left(self.named);
            all.truncate(limit);
            self.named += limit;
        }
        all
    }

    /// Sessions that must end because too many fences are remembered for their sake: the oldest ones, as few as it takes.
    pub fn sessions_to_end(&self) -> Vec<Session> {
        let excess = self.order.len().saturating_sub(self.seen_max);
        if excess == 0 {
            return Vec::new();
        }
        // Ending every session up to a generation forgets what was seen up to it.
        let generation = self.order[excess - 1].0;
        let oldest = self.sessions.range(..=Session(generation));
        oldest.map(|(session, _)| *session).collect()
    }

    /// Fences remembered.
    pub fn remembered(&self) -> usize {
        self.order.len()
    }

    fn highest(&self, id: MessageId) -> Fence {
        let kept = self.kept.get(&id).map_or(Fence(0), |attempt| attempt.fence);
        self.seen.get(&id).map_or(kept, |seen| seen.fence.max(kept))
    }

    fn remember(&mut self, id: MessageId, fence: Fence) {
        if fence == Fence(0) {
            return;
        }
        let generation = self.opened;
        match self.seen.entry(id) {
            Entry::Vacant(entry) => {
                entry.insert(Seen { fence, generation });
                self.order.push_back((generation, id));
            }
            Entry::Occupied(mut entry) => {
                let seen = entry.get_mut();
                seen.fence = seen.fence.max(fence);
                if seen.generation != generation {
                    seen.generation = generation;
                    self.order.push_back((generation, id));
                }
            }
        }
    }

    fn forget_first(&mut self) {
        let Some((generation, id)) = self.order.pop_front() else {
            return;
        };
        if let Entry::Occupied(entry) = self.seen.entry(id)
            && entry.get().generation == generation
        {
            entry.remove();
        }
    }

    fn under_way(&mut self, id: MessageId) -> Option<&mut Attempt> {
        self.kept
            .get_mut(&id)
            .filter(|attempt| matches!(attempt.stage, Stage::UnderWay { .. }))
    }

    fn free(&mut self, id: MessageId) {
        if let Some(attempt) = self.kept.remove(&id)
            && let Some(spent) = self.sessions.get_mut(&attempt.session)
        {
            *spent = spent.saturating_sub(1);
        }
    }
}

impl Attempt {
    fn owner(&self) -> Owner {
        Owner {
            session: self.session,
            fence: self.submitted,
        }
    }

    /// Whether a new attempt may take this one's place: see the module.
    fn may_be_followed_by(&self, submit: &Submit) -> bool {
        let result = match &self.stage {
            Stage::UnderWay { .. } | Stage::Ending(_) => return false,
            Stage::Done(result) | Stage::Ended(result, _) => result,
        };
        let outcomes = match result {
            SubmitResult::Ok(outcomes) | SubmitResult::Cancelled(outcomes) => outcomes.as_slice(),
            SubmitResult::Busy
            | SubmitResult::NotMe
            | SubmitResult::Wait(..)
            | SubmitResult::NetworkError(..)
            | SubmitResult::CriticalError(_) => &[],
        };
        if submit.fence == self.fence {
            let decided = |outcome: &RecipientOutcome| {
                !matches!(outcome.outcome, Outcome::Left | Outcome::Deferred { .. })
            };
            return self.statuses.is_empty() && !outcomes.iter().any(decided);
        }
        let wanted: HashSet<RecipientIndex> = submit.recipients.iter().copied().collect();
        let asked = |recipient: &RecipientIndex| wanted.contains(recipient);
        let sent = outcomes.iter().any(|outcome| match outcome.outcome {
            Outcome::Delivered(_) => asked(&outcome.recipient),
            Outcome::Kept => asked(&outcome.recipient) && !submit.begin_deferred,
            // In doubt: whoever decides about it has recorded that.
            Outcome::Failed(_) | Outcome::Deferred { .. } | Outcome::InDoubt(_) | Outcome::Left => {
                false
            }
        });
        let told = self.statuses.iter().any(|(recipient, status)| {
            matches!(status, RecipientStatus::Delivered(_)) && asked(recipient)
        });
        !sent && !told
    }
}

#[cfg(test)]
mod tests;
