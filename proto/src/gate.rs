//! SpoolerNotify bursts: the agent paces its notifications, and the spooler shares itself out among the sessions that have
//! mail. Without IO and without a clock.
//!
//! [`Gate`] is the agent's side: notifications coalesce, the interval between two is at least the time that one message
//! takes (and a floor), and **the last one is never lost**. [`Turns`] is the spooler's side, which does not trust
//! that: one bit per session, and turns by messages and bytes.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::Hash,
    time::{Duration, Instant},
};

// ---- the agent's side

/// Paces SpoolerNotify(NEWMAIL). `K` names a session.
///
/// Call [`Self::poll_action`] after every handler and at [`Self::poll_timeout`]; when it says so, announce to a session
/// and tell [`Self::handle_sent`].
#[derive(Debug)]
pub struct Gate<K> {
    floor: Duration,
    average: Average,
    /// Something was announced by the transport and not yet by us.
    wanted: bool,
    /// Whom we told, until it has fetched something.
    told: Option<K>,
    last: Option<Instant>,
    counters: GateCounters,
}

/// What a gate has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateCounters {
    /// Notifications by the transport.
    pub notified: u64,
    /// Notifications sent on.
    pub sent: u64,
}

impl<K: Copy + Eq> Gate<K> {
    /// `floor`: the shortest interval between two notifications.
    pub fn new(floor: Duration) -> Self {
        Self {
            floor,
            average: Average::default(),
            wanted: false,
            told: None,
            last: None,
            counters: GateCounters::default(),
        }
    }

    /// The transport has mail.
    pub fn handle_notify(&mut self) {
        self.counters.notified += 1;
        self.wanted = true;
    }

    /// A notification went to this session.
    pub fn handle_sent(&mut self, now: Instant, session: K) {
        self.counters.sent += 1;
        self.wanted = false;
        self.told = Some(session);
        self.last = Some(now);
    }

    /// This session has come for mail (StartMessage): it has heard of it.
    pub fn handle_fetch(&mut self, session: K) {
        if self.told == Some(session) {
            self.told = None;
        }
    }

    /// A session has ended, or takes no mail any more. If it was told and never came, another one is told.
    pub fn handle_session_ended(&mut self, session: K) {
        if self.told == Some(session) {
            self.told = None;
            self.wanted = true;
        }
    }

    /// One message took this long.
    pub fn handle_message_time(&mut self, took: Duration) {
        self.average.add(took);
    }

    /// The moving average of the time that one message takes.
    pub fn message_time(&self) -> Duration {
        self.average.get()
    }

    /// Whether a notification should go out now (if there is a session that takes mail).
    pub fn poll_action(&self, now: Instant) -> bool {
        self.wanted && self.due().is_none_or(|due| due <= now)
    }

    /// When [`Self::poll_action`] will say so by itself; `None`: not before something happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.wanted.then(|| self.due()).flatten()
    }

    /// What it has done.
    pub fn counters(&self) -> GateCounters {
        self.counters
    }

    fn due(&self) -> Option<Instant> {
        self.last
            .map(|last| last + self.floor.max(self.average.get()))
    }
}

/// A moving average over about eight values: follows a change within seconds, is not moved by one outlier.
#[derive(Clone, Copy, Debug, Default)]
pub struct Average(Option<Duration>);

impl Average {
    /// One more value.
    pub fn add(&mut self, value: Duration) {
        self.0 = Some(match self.0 {
            None => value,
            Some(average) => average - average / 8 + value / 8,
        });
    }

    /// The average; zero before the first value.
    pub fn get(self) -> Duration {
        self.0.unwrap_or_default()
    }
}

// ---- the spooler's side

/// Who may deliver next. `K` names a session.
///
/// Whenever the spooler could take more mail, it gives a StartMessage to whom [`Self::next`] names, until that names
/// nobody.
///
/// Sessions with mail take turns, deficit round robin in two currencies: a turn is worth
/// [`TurnOptions::turn_messages`] messages and [`TurnOptions::turn_bytes`] bytes, whichever is used up first. The size of a message
/// is known only after it was delivered; a session then owes, and pays from later turns. A session that nobody competes
/// with does not wait for anything but its window.
///
/// The window doubles whenever all of it is in use and there is more: a reply says so, or a notification. A notification has
/// to count, because permits may be in use for a long time (a client that sends slowly holds one) and no reply comes meanwhile;
/// then who came first would shut everybody else out. It falls back when there is nothing more, but never below the
/// permits that are still out.
#[derive(Debug)]
pub struct Turns<K> {
    options: TurnOptions,
    sessions: BTreeMap<K, Waiting>,
    /// Who takes turns, in order; the front one has the turn.
    ring: VecDeque<K>,
    outstanding: u32,
    next_permit: u64,
}

/// How permits are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnOptions {
    /// StartMessages outstanding in one session.
    pub window: u32,
    /// The window of a session that uses all of it and has more, at most. One below `window` counts as `window`.
    pub window_busy: u32,
    /// StartMessages outstanding over all sessions.
    pub outstanding_max: u32,
    /// What one turn is worth, in messages.
    pub turn_messages: u32,
    /// What one turn is worth, in bytes.
    pub turn_bytes: u64,
}

impl Default for TurnOptions {
    fn default() -> Self {
        Self {
            window: 8,
            window_busy: 64,
            outstanding_max: 1024,
            turn_messages: 8,
            turn_bytes: 256 * 1024,
        }
    }
}

/// One StartMessage: who may deliver, and the permit's number by which its reply is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn<K> {
    /// The session.
    pub session: K,
    /// Unique in this [`Turns`].
    pub permit: Permit,
}

/// The number of a permit, in the order in which they were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Permit(pub u64);

/// What a StartMessage returned, as far as turns are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartReply {
    /// A message of this size came, and there is more.
    More {
        /// Size in bytes.
        bytes: u64,
    },
    /// A message of this size came, and that was the last one as far as the transport knows.
    Last {
        /// Size in bytes.
        bytes: u64,
    },
    /// There was none, or it failed, or was cancelled: nothing more before the next notification.
    Nothing,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The one bit: it has mail, as far as we know.
    mail: bool,
    /// The number of the next permit when we last heard that it has mail. What a permit from before
    /// says of "nothing" does not contradict that.
    evidence: u64,
    outstanding: u32,
    window: u32,
    /// Left of this turn, or owed if negative.
    messages: i64,
    bytes: i64,
}

impl<K: Copy + Eq + Hash + Ord> Turns<K> {
    /// Nobody has mail yet.
    pub fn new(options: TurnOptions) -> Self {
        Self {
            options,
            sessions: BTreeMap::new(),
            ring: VecDeque::new(),
            outstanding: 0,
            next_permit: 1,
        }
    }

    /// SpoolerNotify(NEWMAIL), or Poll returned more than zero.
    pub fn handle_new_mail(&mut self, session: K) {
        let (options, next_permit) = (self.options, self.next_permit);
        let ring = &mut self.ring;
        let waiting = self.sessions.entry(session).or_insert_with(|| {
            ring.push_back(session);
            Waiting {
                window: options.window,
                ..Waiting::default()
            }
        });
        waiting.mail = true;
        waiting.evidence = next_permit;
        if waiting.uses_all() {
            waiting.widen(&options);
        }
    }

    /// StartMessage returned. Unknown sessions (they have ended) are ignored.
    pub fn handle_start_reply(&mut self, session: K, permit: Permit, reply: StartReply) {
        let Some(waiting) = self.sessions.get_mut(&session) else {
            return;
        };
        let limiting = waiting.uses_all();
        waiting.outstanding = waiting.outstanding.saturating_sub(1);
        self.outstanding = self.outstanding.saturating_sub(1);
        let (bytes, mail) = match reply {
            StartReply::More { bytes } => (bytes, true),
            StartReply::Last { bytes } => (bytes, false),
            StartReply::Nothing => (0, false),
        };
        if mail {
            waiting.mail = true;
            waiting.evidence = self.next_permit;
            if limiting {
                waiting.widen(&self.options);
            }
        } else if permit.0 >= waiting.evidence {
            waiting.mail = false;
        }
        if !waiting.mail {
            waiting.fall_back(&self.options);
        }
        waiting.bytes = waiting
            .bytes
            .saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX / 2));
    }

    /// The session is gone, and its permits with it. What it had is announced in another one.
    pub fn handle_session_ended(&mut self, session: K) {
        if let Some(waiting) = self.sessions.remove(&session) {
            self.outstanding -= waiting.outstanding;
            self.ring.retain(|other| *other != session);
        }
    }

    /// To whom to give a StartMessage now; `None`: nobody has mail and a window that is not full, or all permits are out.
    #[expect(
        clippy::should_implement_trait,
        reason = "it is asked again after it has ended"
    )]
    pub fn next(&mut self) -> Option<Turn<K>> {
        if self.outstanding >= self.options.outstanding_max {
            return None;
        }
        if !self.sessions.values().any(Waiting::is_ready) {
            return None;
        }
        // One round, and one more for the turns that began in it. Debts may take several rounds: skip to the
        // round in which somebody is free of debt.
        for _ in 0..=2 * self.ring.len() {
            let session = *self.ring.front()?;
            let waiting = self.sessions.get_mut(&session)?;
            if waiting.is_ready() && waiting.may_take() {
                waiting.messages -= 1;
                waiting.outstanding += 1;
                self.outstanding += 1;
                let permit = Permit(self.next_permit);
                self.next_permit += 1;
                return Some(Turn { session, permit });
            }
            self.pass_on();
        }
        self.skip_rounds();
        self.next()
    }

    /// Whether a session has mail, as far as we know.
    pub fn has_mail(&self, session: K) -> bool {
        self.sessions
            .get(&session)
            .is_some_and(|waiting| waiting.mail)
    }

    /// Permits that are out.
    pub fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// The front one's turn is over; the next one's begins.
    fn pass_on(&mut self) {
        self.ring.rotate_left(1);
        let Some(waiting) = self
            .ring
            .front()
            .and_then(|session| self.sessions.get_mut(session))
        else {
            return;
        };
        waiting.begin_turns(1, &self.options);
    }

    /// Everybody who is ready owes more than a turn is worth: give all of them as many turns as it takes until the first
    /// one is free of debt.
    fn skip_rounds(&mut self) {
        let options = self.options;
        let ready = || self.sessions.values().filter(|waiting| waiting.is_ready());
        let rounds = ready()
            .map(|waiting| waiting.rounds_owed(&options))
            .min()
            .unwrap_or(0);
        for waiting in self.sessions.values_mut() {
            waiting.begin_turns(rounds, &options);
        }
    }
}

impl Waiting {
    fn is_ready(&self) -> bool {
        self.mail && !self.uses_all()
    }

    fn uses_all(&self) -> bool {
        self.outstanding >= self.window
    }

    fn widen(&mut self, options: &TurnOptions) {
        let most = options.window_busy.max(self.window);
        self.window = self.window.saturating_mul(2).min(most);
    }

    /// Below what is out, the next notification would not get a permit before many of those have come back.
    fn fall_back(&mut self, options: &TurnOptions) {
        let least = options.window.max(self.outstanding);
        self.window = self.window.min(least);
    }

    fn may_take(&self) -> bool {
        self.messages > 0 && self.bytes > 0
    }

    /// Adds what turns are worth; never more than one turn in hand, or an idle session would save them up.
    fn begin_turns(&mut self, turns: i64, options: &TurnOptions) {
        let (messages, bytes) = worth(options);
        self.messages = self
            .messages
            .saturating_add(messages.saturating_mul(turns))
            .min(messages);
        self.bytes = self
            .bytes
            .saturating_add(bytes.saturating_mul(turns))
            .min(bytes);
    }

    /// After how many turns both currencies are above zero.
    fn rounds_owed(&self, options: &TurnOptions) -> i64 {
        let (messages, bytes) = worth(options);
        let turns = |have: i64, worth: i64| if have > 0 { 0 } else { -have / worth + 1 };
        turns(self.messages, messages).max(turns(self.bytes, bytes))
    }
}

fn worth(options: &TurnOptions) -> (i64, i64) {
    let bytes = i64::try_from(options.turn_bytes).unwrap_or(i64::MAX / 4);
    (i64::from(options.turn_messages.max(1)), bytes.max(1))
}

#[cfg(test)]
mod tests;
