//! What a party is given and what it may do: the parties themselves have no clock, no IO and no chance.

use std::time::{Duration, Instant};

use pombo_proto::{
    attempt::Session,
    frame::Packet,
    ids::{Correlation, Incarnation, MessageId},
    message::Message,
    time::UnixMillis,
    verbs::Hello,
};

use super::{
    broker::Delivered,
    checks::Seen,
    options::{Millis, Options, Sabotage},
    store::{Answer, Ask},
};

/// When the world began, by the wall clock: a day that the store has not dropped.
const BEGINNING: u64 = 1_800_000_000_000;

/// The clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Since the world began.
    pub ms: Millis,
    /// The monotonic clock then. Only differences count.
    pub base: Instant,
}

impl Now {
    /// The wall clock.
    pub fn unix(self) -> UnixMillis {
        UnixMillis(BEGINNING + self.ms)
    }

    /// The monotonic clock.
    pub fn instant(self) -> Instant {
        self.base + Duration::from_millis(self.ms)
    }

    /// The boot clock.
    pub fn boot(self) -> Duration {
        Duration::from_millis(self.ms)
    }
}

/// What happens to a process.
#[derive(Debug)]
pub enum Input {
    /// It was started.
    Started,
    /// A time that it had asked for.
    Timer(Timer),
    /// Its link is up, as this incarnation.
    LinkUp(Incarnation),
    /// Its link is down.
    LinkDown,
    /// A packet in its inbox.
    Packet(Packet),
    /// A packet came back: there is no such inbox.
    Returned(Packet),
    /// On a fanout.
    Hello(Hello),
    /// Deliveries of the spool.
    Leases(Vec<Delivered>),
    /// A publish is confirmed.
    Confirmed(u64),
    /// The store has answered.
    Answer(u64, Answer),
    /// The broker holds publishes back, or takes them again.
    Blocked(bool),
    /// SIGTERM.
    Drain,
    /// A client's mail, by number.
    Mail(u32),
    /// There is this file in the drop folder.
    File(u32),
}

/// What a process asks to be told later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// Every second or so.
    Tick,
    /// Packets that were held back.
    Flush,
    /// Look for due rows.
    Look,
    /// Failed commits are tried again.
    Repeat,
    /// A transfer has come to its final dot.
    Dot(MessageId, u64),
    /// The question was answered a while ago: now the dot itself.
    LateDot(MessageId, u64),
    /// No go has come.
    NoGo(MessageId, u64),
    /// SubmitMessage returns.
    Return(MessageId, u64),
    /// EndMessage returns.
    Ended(MessageId, u64),
    /// The gate may open.
    Gate,
    /// A reception's content was written.
    Filled(Session, Correlation),
}

/// What a process does.
#[derive(Debug)]
pub enum Effect {
    /// Says something to an inbox.
    Send(Packet),
    /// Says something on the other side's fanout.
    Hello(Hello),
    /// Publishes to the spool.
    Publish {
        /// Named by the confirm.
        token: u64,
        /// What.
        message: Message,
        /// It was published before, perhaps.
        marked: bool,
    },
    /// Wants so many deliveries.
    Lease(usize),
    /// Acks.
    Ack(Vec<u64>),
    /// Asks the store.
    Store(u64, Ask),
    /// Wants to be told.
    After(Millis, Timer),
    /// Ends its link, to start over.
    CloseLink,
    /// Ends itself, after its last words.
    Exit,
    /// Tells a client that its mail is accepted.
    Accept(u32),
    /// Takes a file out of the drop folder.
    Remove(u32),
}

/// What a party is handed with each input.
pub struct Context<'a> {
    /// Now.
    pub now: Now,
    /// Chance.
    pub random: &'a mut fastrand::Rng,
    /// The world's options.
    pub options: &'a Options,
    /// The rule that is broken.
    pub broken: Option<Sabotage>,
    /// What it does.
    pub effects: Vec<Effect>,
    /// What the checks are to see.
    pub seen: Vec<Seen>,
}

impl Context<'_> {
    /// Does something.
    pub fn act(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Lets the checks see something.
    pub fn show(&mut self, seen: Seen) {
        self.seen.push(seen);
    }

    /// Asks to be told later.
    pub fn after(&mut self, ms: Millis, timer: Timer) {
        self.act(Effect::After(ms, timer));
    }

    /// Whether this rule is broken.
    pub fn broken(&self, sabotage: Sabotage) -> bool {
        self.broken == Some(sabotage)
    }

    /// Once in a hundred, `percent` times.
    pub fn chance(&mut self, percent: u32) -> bool {
        self.random.u32(..100) < percent
    }
}

/// An id of whatever kind, drawn from the seed.
pub fn drawn_uuid(random: &mut fastrand::Rng) -> uuid::Uuid {
    uuid::Uuid::from_u128(random.u128(..))
}
