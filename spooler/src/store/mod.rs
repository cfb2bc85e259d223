//! The store: what waits and what has happened.
//!
//! **One row per id, waiting or finished, is the only arbiter** of who may decide about a message. A commit is conditional
//! on the fence (fence 0: on the absence of the row) and names its holder, so that an unknown commit can be repeated.
//! Rows lie in parts by day of issue (0 for derived ids); in a part that is older than the history to keep and whose
//! every message has finished, what had its last change before that goes, and with the last of it the part.
//!
//! What moves a row, and who may:
//!
//! ```text
//!              Move, Record(fence 0), report            Record(fence 0, finished)
//!                          |                                       |
//!        change            v       claim: fence + 1                v
//! held <--------> waiting, due ---------------------> claimed -> finished
//! dead ------------^     ^                              |
//!                        '--- Record, or its holder ended (in doubt)
//! ```

use std::time::Duration;

use bytes::Bytes;
use pombo_proto::{
    control::{QueueFilter, QueueState},
    ids::{Fence, Incarnation, Instance, MessageId},
    ledger::{Balance, DoorNumber, Outcomes},
    message::Priority,
    time::UnixMillis,
    verbs::Tenancy,
};

mod listing;
pub mod pages;
#[cfg(feature = "postgres")]
pub mod postgres;
mod sqlite;
mod stored;
mod tally;
mod thread;

pub use listing::Listing;
#[cfg(feature = "postgres")]
pub use postgres::Postgres;
pub use sqlite::{Options, Sqlite};
pub use thread::{Answer, Counters, StoreThread};

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Full, locked, read-only or away: leasing stops, nothing is acked, it is tried again. The store is usable as soon as
    /// the cause is gone; what had been asked for may have been committed all the same (repeat it).
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// It is not one of ours, or from another version.
    #[error("the store cannot be used: {0}")]
    Unusable(String),
}

/// A row to be: what waits, or what has finished.
#[derive(Clone, Debug)]
pub struct RowData {
    /// The state it goes to. [`QueueState::Moving`] is never written by a caller: a claim does that.
    pub state: QueueState,
    /// When it is due; `None` where nothing happens by itself (held, dead, finished).
    pub due: Option<UnixMillis>,
    /// From then on it is claimed even while its lane is excluded: to warn, to expire, to be cancelled. `None`: never.
    pub wake: Option<UnixMillis>,
    /// What it waits for, in words.
    pub reason: String,
    /// The transport that it waits for, if one was chosen.
    pub transport: Option<String>,
    /// The destination within it.
    pub destination: Option<String>,
    /// PR_PRIORITY: urgent ones are claimed first.
    pub priority: Priority,
    /// Somebody may have submitted it without our knowing: Adopt before it is submitted again.
    pub doubt: bool,
    /// Since when that may have been: an agent that was struck off before never had it. A claim of a row that is not in doubt
    /// begins anew.
    pub unsure_since: UnixMillis,
    /// How many of its undecided recipients may have been sent to by an attempt whose result will never be learned.
    pub in_doubt: u32,
    /// How often it was in process when its holder, or the agent that had it, died; since it last survived an attempt.
    pub deaths: u32,
    /// The encoded message while it waits; its head alone (envelope without body) once finished.
    pub message: Bytes,
    /// The encoded [`crate::progress::Progress`].
    pub progress: Vec<u8>,
    /// What it means for the ledger once it has finished; not looked at before, and not kept in the row.
    pub tally: Tally,
}

/// What a finished message enters into the ledger besides itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Its recipients, by outcome.
    pub recipients: Outcomes,
    /// It is a report: its account is another one than that of other derived ids.
    pub is_report: bool,
}

/// What a door says of its numbers, by its status row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoorReport {
    /// Which life of which door.
    pub door: u32,
    /// Its transport, or the spooler that it is in; for people.
    pub name: String,
    /// Every number up to here is confirmed or void.
    pub confirmed: u64,
    /// First and last of runs of void numbers. Those beyond `confirmed` are not looked at.
    pub voided: Vec<(u64, u64)>,
}

/// One conditional write. All writes of a commit succeed or fail together, each with its own answer.
#[derive(Clone, Debug)]
pub enum Write {
    /// Records a verdict under a tenure: conditional on the fence and the holder. Reports go in with it if it is won.
    Record {
        /// Whose verdict.
        tenancy: Tenancy,
        /// Who holds the tenure. For fence 0: the row must be absent. Else: the row must be claimed under this fence by
        /// this holder. A repetition of a write that had been committed before answers `Won` again, as long as nobody has
        /// recorded since; after that `Lost`, which is as good: its reports went in with the first one, and
        /// [`Store::recorded`] covers its fence.
        ///
        /// A row that is left with the doubt that it was claimed with (the same `unsure_since`) is only given back: nothing was
        /// found out, and so this is no verdict on any fence. Repeated, it is `Lost`: it had nothing to settle.
        holder: Incarnation,
        /// The new row.
        row: RowData,
        /// Messages that exist because of this verdict (reports): inserted as waiting in the same transaction.
        reports: Vec<(MessageId, RowData)>,
    },
    /// Moves a delivery into the outbox if its id is new.
    Move {
        /// Which message.
        id: MessageId,
        /// The row, waiting.
        row: RowData,
    },
    /// Notes something about an attempt before it happens: that the final dot is about to be written, that it is tried alone.
    /// Won if the row is claimed under this fence by this holder. The note replaces an earlier one, and stays until a verdict
    /// is recorded that is not in doubt.
    Note {
        /// Whose attempt.
        tenancy: Tenancy,
        /// Who holds the tenure.
        holder: Incarnation,
        /// What, encoded; the store does not read it.
        note: Vec<u8>,
    },
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// This write decided.
    Won,
    /// Somebody else had decided, or the id existed already: the store has the message.
    Lost,
}

/// What to claim.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// Who claims.
    pub holder: Incarnation,
    /// Due by then.
    pub now: UnixMillis,
    /// At most so many rows.
    pub limit: usize,
    /// At most so many bytes of messages (at least one row).
    pub bytes: usize,
    /// Not those that wait for one of these (transport, destination); destination `None`: the whole transport. Rows
    /// without a transport are never excluded, nor those whose [`RowData::wake`] has come.
    pub excluded: Vec<(String, Option<String>)>,
    /// About which transports the claimer is asked at the dot, see [`crate::note::Asks`]; the store only compares it.
    pub asks: String,
}

/// A claimed row: the fence is already raised, and committed.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// Which message.
    pub id: MessageId,
    /// The new fence.
    pub fence: Fence,
    /// See [`RowData::doubt`]: as it was before the claim.
    pub doubt: bool,
    /// See [`RowData::unsure_since`]: of what was not in doubt, this claim.
    pub unsure_since: UnixMillis,
    /// What this claimer said in [`ClaimRequest::asks`], if each one said the same whose verdict on it is still in doubt; else nothing.
    pub asks: String,
    /// See [`RowData::deaths`].
    pub deaths: u32,
    /// The note of an attempt whose verdict was never recorded.
    pub note: Option<Vec<u8>>,
    /// What a person wants of it.
    pub mark: Mark,
    /// The encoded message.
    pub message: Bytes,
    /// The encoded progress.
    pub progress: Vec<u8>,
}

/// What a person wants of a message, for whoever claims it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mark {
    /// Nothing.
    #[default]
    None,
    /// What was not sent is not to be sent, and nobody is told.
    Cancel,
    /// It is given up, with a report.
    Drop,
}

/// A row as it stands.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which message.
    pub id: MessageId,
    /// Its fence.
    pub fence: Fence,
    /// Who has claimed it.
    pub holder: Option<Incarnation>,
    /// Whether a cancel or a drop is marked.
    pub cancelled: bool,
    /// When the row was last written.
    pub changed: UnixMillis,
    /// Everything else. `state` is `Moving` while claimed.
    pub data: RowData,
}

/// A piece of a list.
#[derive(Clone, Debug, Default)]
pub struct Slice {
    /// What is in it.
    pub rows: Vec<Row>,
    /// Where the next one begins; `None`: there is no more.
    pub next: Option<Place>,
}

/// How far a list has come; the store's own affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Since when the row is there, or when it changed.
    at: i64,
    part: u32,
    /// Its number, where rows have numbers.
    row: i64,
    id: uuid::Uuid,
    /// Finished rows looked at so far.
    seen: usize,
}

/// What people do to rows. A claimed one changes when its holder records without finishing it (cancel, hold) or not at all;
/// a cancel goes before a hold. What becomes due does so with all its recipients ([`crate::progress::Progress::make_due`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Waiting: due now.
    Retry,
    /// Waiting: held.
    Hold,
    /// Held: waiting, due now. Claimed: a hold that was asked for meanwhile is taken back.
    Release,
    /// Dead: waiting, due now, its deaths forgotten.
    Requeue,
    /// Mark as cancelled. A row that waits, is held or is dead becomes due now, so that whoever claims it records the
    /// cancellation. A claimed one becomes due as soon as its holder lets it go unfinished.
    Cancel,
    /// Dead or held: due now, and marked, so that whoever claims it gives it up with a report.
    Drop,
}

/// A spooler incarnation that lives while its counter moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub incarnation: Incarnation,
    /// Its name, for people.
    pub name: String,
    /// Raised at every renewal.
    pub counter: u64,
}

/// An agent instance that may have been submitted to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedInstance {
    /// Which run of an agent.
    pub instance: Instance,
    /// Its transport.
    pub transport: String,
    /// Its host, for people.
    pub host: String,
    /// Raised by whoever lists it, and at every renewal of a spooler that answers its status rows. Not read where an
    /// instance is listed.
    pub counter: u64,
}

/// An agent instance that may have a message, or may have had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Which.
    pub instance: ListedInstance,
    /// When its right to send had run out, by the clock of who found it; `None`: it is listed.
    pub struck: Option<UnixMillis>,
}

/// How much there is. Kept without scanning: it is asked every few seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting, not claimed.
    pub waiting: u64,
    /// Claimed.
    pub claimed: u64,
    /// Held.
    pub held: u64,
    /// Dead.
    pub dead: u64,
    /// In whatever state, with recipients in doubt.
    pub in_doubt: u64,
}

/// What pruning did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Parts dropped.
    pub parts: u32,
    /// Finished rows of derived ids deleted.
    pub derived: u32,
    /// Doors that the ledger has forgotten.
    pub doors: u32,
    /// Agents forgotten that had been struck off.
    pub struck: u32,
    /// This was one step: call again soon.
    pub more: bool,
}

impl Pruned {
    /// With the next step.
    #[must_use]
    pub fn and(self, next: Self) -> Self {
        Self {
            parts: self.parts + next.parts,
            derived: self.derived + next.derived,
            doors: self.doors + next.doors,
            struck: self.struck + next.struck,
            more: next.more,
        }
    }
}

/// Outbox, history, and who is who. Called from one thread at a time; several processes may share one store.
pub trait Store: Send {
    /// All of these in one transaction, durable when it returns. One answer per write, in order. What they mean for the ledger
    /// is entered in the same transaction, once per account and not once per message.
    ///
    /// # Errors
    /// Nothing was written.
    fn commit(&mut self, now: UnixMillis, writes: &[Write]) -> Result<Vec<Written>, Error>;

    /// Claims what is due, urgent first, then oldest due first: raises the fence, names the holder, durable when it returns.
    /// Its cost is bounded however many due rows are excluded; the order across destinations then holds only roughly, but
    /// every row that is not excluded has its turn.
    ///
    /// Nothing is claimed for an incarnation that is not listed (any more): nobody would ever find its claims again.
    fn claim(&mut self, request: &ClaimRequest) -> Result<Vec<Claimed>, Error>;

    /// When the next row is due (`None`: nothing waits for a time). It may lie in the past: a row that is excluded from
    /// claims counts too.
    fn next_due(&mut self) -> Result<Option<UnixMillis>, Error>;

    /// One row.
    fn get(&mut self, id: MessageId) -> Result<Option<Row>, Error>;

    /// Which of these has the store recorded at this or a higher fence, or as finished: those may be settled. A claim at a
    /// higher fence is not enough: whoever holds it may still have to adopt the result that the agent keeps. Nor is a
    /// verdict in doubt at this very fence: it says that the result is not known.
    fn recorded(&mut self, tenancies: &[Tenancy]) -> Result<Vec<Tenancy>, Error>;

    /// Rows that are not finished (or, with a state in the filter, those in it), oldest first; of finished ones the newest, and
    /// those first. `message` is the head alone. Transport and destination must be equal, sender and recipient contain what the
    /// filter says, in whatever case. Its limit is for [`Listing`], by which a list is read.
    ///
    /// One slice: at most so many rows, after that place, and never more work than some thousand rows are, however few of them
    /// the filter means: an empty slice is not the end.
    fn list(
        &mut self,
        filter: &QueueFilter,
        rows: usize,
        after: Option<&Place>,
    ) -> Result<Slice, Error>;

    /// Changes one message. True if it applied.
    fn change(&mut self, now: UnixMillis, id: MessageId, change: Change) -> Result<bool, Error> {
        Ok(self.change_all(now, &[id], change)? > 0)
    }

    /// Changes these in one transaction: to how many it applied.
    fn change_all(
        &mut self,
        now: UnixMillis,
        ids: &[MessageId],
        change: Change,
    ) -> Result<u64, Error>;

    /// How much there is.
    fn counts(&mut self) -> Result<Counts, Error>;

    /// An incarnation starts (inserts its row) or renews (raises its counter). Before its first claim. With it, in the same
    /// transaction, the agents whose status rows it answers: each is listed if it was struck off, and its counter raised.
    ///
    /// # Returns
    /// False if it was ended by somebody: nothing was written, and it must end its sessions and start over as another one.
    fn renew(
        &mut self,
        incarnation: Incarnation,
        name: &str,
        first: bool,
        answered: &[ListedInstance],
    ) -> Result<bool, Error>;

    /// All incarnations.
    fn members(&mut self) -> Result<Vec<Member>, Error>;

    /// Ends an incarnation if its counter still stands there (`None`: unconditionally, for our own end). Its claims become
    /// waiting, due now, in doubt (held, if a hold was asked for), and if others end it, it counts as one more death of each.
    /// True if it was listed.
    fn end_member(
        &mut self,
        now: UnixMillis,
        who: Incarnation,
        counter: Option<u64>,
    ) -> Result<bool, Error>;

    /// Lists an agent instance, before a session is opened with it, or raises its counter.
    fn list_instance(&mut self, instance: &ListedInstance) -> Result<(), Error>;

    /// Strikes it off: at log-off (`None`), or, if its counter still stands there, because its right to send has run out. Who
    /// has logged off has left nothing behind and is forgotten; whose right has run out is remembered as a suspect, for what it
    /// had and nobody has found yet, until it is listed again or [`Store::prune`] forgets it. True if it is not listed now.
    fn strike_instance(
        &mut self,
        now: UnixMillis,
        instance: Instance,
        counter: Option<u64>,
    ) -> Result<bool, Error>;

    /// All listed instances.
    fn instances(&mut self) -> Result<Vec<ListedInstance>, Error>;

    /// In one look: all listed instances, and those that were struck off then or later.
    fn suspects(&mut self, struck_since: UnixMillis) -> Result<Vec<Suspect>, Error>;

    /// One step of some hundred milliseconds; [`Pruned::more`] says whether another is to follow.
    ///
    /// Drops what had its last change before `before` (a day), in parts that are older than that and hold nothing unfinished;
    /// finished derived ids, which share one part, by their age and in bounded steps. Doors into whose accounts nothing was
    /// entered since two days before that, and of which nothing waits, are forgotten. So are agents that were struck off before
    /// that day, but none that could have had what still waits: a message that such an agent had was issued before it was struck off, so it lies in one of
    /// those parts, or it has outlived its life wherever it is.
    fn prune(&mut self, before: u32) -> Result<Pruned, Error>;

    /// Enters what doors say of their numbers. Monotone: an older report changes nothing, and a number that is in the store is
    /// not void whatever its door says.
    fn record_doors(&mut self, now: UnixMillis, reports: &[DoorReport]) -> Result<(), Error>;

    /// The ledger: every account, all as of one moment. Asked every few seconds: its cost is that of the accounts and of their
    /// incomplete pages ([`pages`]), whatever waits and whatever history there is.
    fn ledger(&mut self) -> Result<Vec<Balance>, Error>;

    /// The door's first numbers, at most `limit`, up to its confirmed one that are neither in the store nor void.
    fn holes(&mut self, door: u32, limit: usize) -> Result<Vec<u64>, Error>;

    /// A person has accepted that these are lost: they count as void. Only holes are written off. Says how many there were.
    fn write_off(&mut self, now: UnixMillis, numbers: &[DoorNumber]) -> Result<u64, Error>;

    /// Whether this incarnation may do a chore that one spooler does at a time: it has it already, or nobody who is listed has
    /// it and it was last ended at least `every` ago. It has it until it ends it, or is not listed any more.
    fn begin_chore(
        &mut self,
        now: UnixMillis,
        name: &str,
        who: Incarnation,
        every: Duration,
    ) -> Result<bool, Error>;

    /// The chore is done.
    fn end_chore(&mut self, now: UnixMillis, name: &str, who: Incarnation) -> Result<(), Error>;

    /// Which of these have a row that has not finished, and so may still need their bodies.
    fn unfinished(&mut self, ids: &[MessageId]) -> Result<Vec<MessageId>, Error>;
}
