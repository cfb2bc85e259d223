//! How large the world is, what goes wrong in it, and which rule is broken on purpose.

use std::ops::Range;

/// Virtual time, in milliseconds since the world began.
pub type Millis = u64;

/// Everything that a run depends on besides its seed.
#[derive(Clone, Debug)]
pub struct Options {
    /// Spoolers.
    pub spoolers: usize,
    /// Agents of the transport `smtp`.
    pub agents: usize,
    /// Agents of the transport `spare`, which takes what `smtp` leaves.
    pub spares: usize,
    /// Doors.
    pub doors: usize,
    /// Mails that clients bring; each comes again until it is accepted.
    pub mails: u32,
    /// Files in the drop folder, which have an identity of their own.
    pub files: u32,
    /// In percent: mails that are cancelled by somebody.
    pub cancelled: u32,
    /// What an agent takes at a time.
    pub capacity: u32,
    /// Leases that a spooler takes at a time.
    pub prefetch: usize,
    /// How long an AMQP message takes.
    pub latency: Range<Millis>,
    /// How long it takes to move a message to its remote.
    pub transfer: Range<Millis>,
    /// In percent: transfers that take up to a minute.
    pub slow_transfers: u32,
    /// Doubt about the transport `smtp` waits for a person.
    pub hold: bool,
    /// How long faults happen; mail comes in the first half of it.
    pub trouble: Millis,
    /// Once they have stopped, everything must be finished within this.
    pub calm: Millis,
    /// What goes wrong.
    pub faults: Faults,
}

/// What goes wrong, and how often. The first ones as a weight among them; 0: never.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The mean time between two of them; 0: none at all.
    pub every: Millis,
    /// A spooler is killed, and started again.
    pub crash_spooler: u32,
    /// An agent is killed.
    pub crash_agent: u32,
    /// A door is killed.
    pub crash_door: u32,
    /// A host with a spooler and an agent on it loses power.
    pub power_loss: u32,
    /// A process stalls, for up to a minute.
    pub pause: u32,
    /// A process loses its connection; its two ends notice at different times.
    pub cut: u32,
    /// A process cannot reach the broker for a while, and nobody is told.
    pub partition: u32,
    /// A broker node stalls: what it had delivered is given to others, and the first holders are not told.
    pub two_holders: u32,
    /// What is said between two processes is swallowed for a while.
    pub swallow: u32,
    /// What is said between two processes takes seconds: sessions overtake each other.
    pub delay: u32,
    /// Every question to the store takes seconds, for a while.
    pub slow_store: u32,
    /// The store refuses a process for a while.
    pub store_away: u32,
    /// A process is asked to end: it drains, and logs off.
    pub drain: u32,
    /// The broker holds all publishes back, for up to a minute (a memory alarm).
    pub block: u32,
    /// In percent: a commit succeeds, and its answer says that it did not.
    pub unknown_commit: u32,
    /// In percent: a publish is confirmed, and the confirm is lost with the connection.
    pub lost_confirm: u32,
    /// In percent: a publish surfaces up to a minute later, its connection being lost.
    pub late_publish: u32,
}

impl Options {
    /// What a seed draws. Each fault is absent in half of the worlds, so that what one of them hides the others show.
    pub fn drawn(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x006f_7074_696f_6e73);
        let mut some = |max: u32| {
            if random.bool() {
                random.u32(1..=max)
            } else {
                0
            }
        };
        let faults = Faults {
            every: 0,
            crash_spooler: some(3),
            crash_agent: some(3),
            crash_door: some(2),
            power_loss: some(2),
            pause: some(4),
            cut: some(4),
            partition: some(4),
            two_holders: some(4),
            swallow: some(3),
            delay: some(4),
            slow_store: some(2),
            store_away: some(2),
            unknown_commit: some(10),
            lost_confirm: some(20),
            late_publish: some(15),
            drain: some(3),
            block: some(1),
        };
        let every = random.u64(1_500..6_000);
        Self {
            spoolers: random.usize(2..=3),
            agents: random.usize(1..=2),
            spares: 1,
            doors: random.usize(1..=2),
            mails: random.u32(3..=10),
            files: random.u32(0..=3),
            cancelled: if random.u8(..4) == 0 { 10 } else { 0 },
            capacity: random.u32(1..=4),
            prefetch: random.usize(1..=6),
            latency: 1..random.u64(5..80),
            transfer: 5..random.u64(50..4_000),
            slow_transfers: random.u32(0..20),
            hold: random.u8(..3) == 0,
            trouble: random.u64(20_000..60_000),
            calm: 900_000,
            faults: Faults { every, ..faults },
        }
    }

    /// The same, leaning to where this rule matters: some need a coincidence that is rare elsewhere.
    pub fn drawn_for(seed: u64, broken: Option<Sabotage>) -> Self {
        let drawn = Self::drawn(seed);
        let every = drawn.faults.every;
        match broken {
            // Two have one lease, one of them waits for credit, and meanwhile an agent comes.
            Some(Sabotage::AgentStartedAfterAdopt) => Self {
                agents: 2,
                mails: 14,
                capacity: 1,
                prefetch: 6,
                slow_transfers: 40,
                faults: Faults {
                    every: every / 2,
                    crash_agent: 3,
                    two_holders: 3,
                    ..Faults::default()
                },
                ..drawn
            },
            // An agent is away for longer than its right, and a transfer takes longer than that.
            Some(Sabotage::RightComesBack) => Self {
                spoolers: 2,
                agents: 3,
                doors: 1,
                mails: 12,
                capacity: 4,
                prefetch: 6,
                hold: false,
                transfer: 20_000..90_000,
                trouble: 120_000,
                faults: Faults {
                    every: every * 4,
                    partition: 3,
                    ..Faults::default()
                },
                ..drawn
            },
            // A spooler takes over, and for some time has no session with the agent that others answer.
            Some(Sabotage::GivenBackIsRecorded) => Self {
                spoolers: 3,
                mails: 14,
                capacity: 4,
                prefetch: 6,
                hold: false,
                faults: Faults {
                    every: every / 2,
                    crash_spooler: 3,
                    swallow: 3,
                    delay: 6,
                    ..Faults::default()
                },
                ..drawn
            },
            // SubmitMessage is still on its way when its spooler is dead, and another one has the lease and asks.
            Some(Sabotage::UnknownWithoutTombstone) => Self {
                spoolers: 3,
                agents: 2,
                doors: 1,
                mails: 30,
                capacity: 4,
                prefetch: 6,
                hold: false,
                faults: Faults {
                    every: every / 2,
                    crash_spooler: 4,
                    delay: 6,
                    ..Faults::default()
                },
                ..drawn
            },
            // Spooler and agent are gone right after the final dot.
            Some(Sabotage::GoBeforeNote) => Self {
                hold: true,
                faults: Faults {
                    every: every / 2,
                    power_loss: 3,
                    store_away: 2,
                    slow_store: 2,
                    ..Faults::default()
                },
                ..drawn
            },
            _ => drawn,
        }
    }
}

/// One rule, broken on purpose: the checks must find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// The store records whatever it is told, under whatever fence.
    NoFenceCheck,
    /// A lease is acked when it comes.
    AckBeforeCommit,
    /// An agent that answers "unknown" does not remember the fence.
    UnknownWithoutTombstone,
    /// Reports are written after the verdict that causes them.
    ReportOutsideTransaction,
    /// A notification that comes too soon after another is dropped.
    ForgetLastNotification,
    /// An agent writes the final dot whatever it has heard.
    NoRightToSend,
    /// A message is submitted in whatever session there is.
    AgentStartedAfterAdopt,
    /// What was published twice is submitted at once, and nobody is asked.
    MarkedTwinFirst,
    /// What waits and what has finished do not know of each other.
    TwoArbiters,
    /// Who lost keeps its lease.
    LoserDoesNotAck,
    /// What ended sessions have left with an agent is never settled.
    SettledLost,
    /// What has finished is not settled, and does not count as recorded.
    FinishedNeverSettled,
    /// The claims of a spooler that died are not found again.
    DeadHoldersClaim,
    /// Time passes between the question for the right to send and the final dot.
    PauseBeforeDot,
    /// An agent that was cut off and comes back sends what it had under way.
    RightComesBack,
    /// Where doubt is held: the go is given before the note is written.
    GoBeforeNote,
    /// The store forgets at once who was struck off.
    ForgetTheStruck,
    /// Of those that could have a message in doubt, only those that have a session here are asked and waited for.
    OnlyOursAreAsked,
    /// Who was struck off while it was asked counts as one that has logged off: it has left nothing behind.
    StruckAsLoggedOff,
    /// What an agent kept of a message in doubt is not recorded.
    ResultsNotTaken,
    /// A claim that is given back in doubt counts as recorded, and so does all of before.
    GivenBackIsRecorded,
    /// An agent that logs off says that it keeps nothing.
    LeavesItBehind,
    /// Agents are struck off while the broker holds publishes back.
    BlockIgnored,
    /// A permit is used for SaveChanges twice.
    PermitUsedTwice,
    /// A client is told "accepted" when its message is published.
    DoneBeforeConfirm,
    /// A transport assigns a reference that is in use.
    ReferenceInUse,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Self; 26] = [
        Self::NoFenceCheck,
        Self::AckBeforeCommit,
        Self::UnknownWithoutTombstone,
        Self::ReportOutsideTransaction,
        Self::ForgetLastNotification,
        Self::NoRightToSend,
        Self::AgentStartedAfterAdopt,
        Self::MarkedTwinFirst,
        Self::TwoArbiters,
        Self::LoserDoesNotAck,
        Self::SettledLost,
        Self::FinishedNeverSettled,
        Self::DeadHoldersClaim,
        Self::PauseBeforeDot,
        Self::RightComesBack,
        Self::GoBeforeNote,
        Self::ForgetTheStruck,
        Self::OnlyOursAreAsked,
        Self::StruckAsLoggedOff,
        Self::ResultsNotTaken,
        Self::GivenBackIsRecorded,
        Self::LeavesItBehind,
        Self::BlockIgnored,
        Self::PermitUsedTwice,
        Self::DoneBeforeConfirm,
        Self::ReferenceInUse,
    ];

    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|one| format!("{one:?}").eq_ignore_ascii_case(name))
    }
}
