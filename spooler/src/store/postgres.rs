//! The store on PostgreSQL: one schema, shared by the spoolers of any number of hosts.
//!
//! Owns the connection, its time limits and what an error means. Each concern has its own module:
//!
//! | module | what it is |
//! |---|---|
//! | [`options`] | where the server is, and who we both are |
//! | `session` | one connection: its settings, its prepared statements |
//! | `schema` | the tables and their migrations |
//! | `parts` | one partition per day of issue, made on demand, dropped whole |
//! | `commit` | conditional writes: who wins, who loses |
//! | `claim` | what is due, in order, past what is excluded and what others are claiming |
//! | `rows` | rows as people see and change them |
//! | `list` | what people ask for by a filter, a slice at a time |
//! | `members` | incarnations, and the agents that may have been submitted to |
//! | `ledger` | accounts, the numbers of doors, and the lines that commits leave for them |
//! | `chores` | what one spooler does at a time |
//!
//! **Few round trips.** A commit is one statement over arrays, whatever its size, and its own transaction; a second one asks
//! after repetitions, only if something lost. A claim is three: choose, take, commit.
//!
//! **Unknown outcomes.** A connection that is lost may have committed what it was asked for. Writes name their holder and are
//! repeated by the caller. A claim whose commit is unknown is remembered here and, as the first thing of the next claim, given
//! back if it turns out to have happened: nobody has seen it, and the incarnation that it names lives on.
//!
//! **Time.** Nothing here but pruning and migrating waits for longer than [`Options::patience`]: a server that does not answer is away. The server has
//! the same limits (statements, locks, idle transactions), so that what we gave up ends there, too, and a spooler that stands
//! still holds no lock for long. After a failure the connection is made anew, with growing pauses, in which every call fails
//! at once.

use std::{collections::BTreeSet, time::Duration};

use pombo_proto::{
    control::QueueFilter,
    ids::{Incarnation, Instance, MessageId},
    ledger::{Balance, DoorNumber},
    time::UnixMillis,
    verbs::Tenancy,
};
use tokio::runtime::Runtime;
use tokio_postgres::error::SqlState;

use super::{
    Change, ClaimRequest, Claimed, Counts, DoorReport, Error, ListedInstance, Member, Place,
    Pruned, Row, Slice, Store, Suspect, Write, Written, stored::PartStep, tally,
};

mod chores;
mod claim;
mod commit;
mod ledger;
mod list;
mod members;
pub mod options;
mod parts;
mod rows;
mod schema;
mod session;

pub use options::Options;
use session::{Connecting, Session};

/// Dropping a part: a day's files may be many gigabytes.
const SCHEMA_PATIENCE: Duration = Duration::from_secs(60);
/// Migrating: an index is made by a look at all the history that is kept.
const MIGRATION_PATIENCE: Duration = Duration::from_secs(900);
/// A transaction that met another one (a deadlock, a part dropped under it) is run again so often.
const TRIES: u32 = 4;

/// The store in one PostgreSQL schema.
#[derive(Debug)]
pub struct Postgres {
    options: Options,
    /// Of one thread: the one that calls. `None` only while it is dropped.
    runtime: Option<Runtime>,
    connecting: Connecting,
    session: Option<Session>,
    memory: Memory,
}

/// What is remembered from one connection to the next.
#[derive(Debug, Default)]
struct Memory {
    /// Parts that were there when last seen. One that another process has dropped is noticed by an error.
    parts: BTreeSet<u32>,
    lanes: claim::LaneCursor,
    /// Claims that may have been committed without our knowing.
    limbo: claim::Limbo,
}

/// What goes wrong inside.
#[derive(Debug)]
enum Failure {
    Postgres(tokio_postgres::Error),
    Store(Error),
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

type Result<T, E = Failure> = std::result::Result<T, E>;

impl Postgres {
    /// Connects, and makes or migrates the schema. Several processes may do so at once.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a server whose commits are not durable, a schema that is not ours or from a newer version; else
    /// [`Error::Unavailable`].
    pub fn open(options: Options) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::Unavailable(format!("no runtime for the store: {error}")))?;
        let mut store = Self {
            options,
            runtime: Some(runtime),
            connecting: Connecting::default(),
            session: None,
            memory: Memory::default(),
        };
        let schema = store.options.schema.clone();
        store.run(MIGRATION_PATIENCE, async |session, _| {
            schema::migrate(session, &schema).await
        })?;
        Ok(store)
    }

    /// Runs `work` on a connection that stands, within the time.
    fn run<T: Send>(
        &mut self,
        patience: Duration,
        work: impl AsyncFn(&mut Session, &mut Memory) -> Result<T> + Send,
    ) -> Result<T, Error> {
        // A test, or the start of a service, may call from inside another runtime, where nothing may block.
        if tokio::runtime::Handle::try_current().is_ok() {
            return std::thread::scope(|scope| {
                let elsewhere = scope.spawn(|| self.run_here(patience, work));
                elsewhere.join().unwrap_or_else(|_| {
                    Err(Error::Unavailable("the store's work panicked".to_owned()))
                })
            });
        }
        self.run_here(patience, work)
    }

    fn run_here<T>(
        &mut self,
        patience: Duration,
        work: impl AsyncFn(&mut Session, &mut Memory) -> Result<T>,
    ) -> Result<T, Error> {
        let Some(runtime) = &self.runtime else {
            return Err(Error::Unavailable("the store is closed".to_owned()));
        };
        runtime.block_on(async {
            let mut tries = 0;
            loop {
                tries += 1;
                let mut session = match self.session.take() {
                    Some(session) if session.stands() => session,
                    _ => self.connecting.connect(&self.options).await?,
                };
                let worked = work(&mut session, &mut self.memory);
                let failure = match tokio::time::timeout(patience, worked).await {
                    Ok(Ok(value)) => {
                        self.session = Some(session);
                        return Ok(value);
                    }
                    Ok(Err(failure)) => failure,
                    Err(_) => {
                        tracing::warn!("store: no answer in time, the connection is made anew");
                        let text = format!("no answer within {patience:?}");
                        return Err(self.connecting.failed(text));
                    }
                };
                let again = tries < TRIES && failure.goes_by();
                if session.recover(self.options.patience).await {
                    self.session = Some(session);
                } else {
                    tracing::warn!(error = %failure, "store: the connection is made anew");
                }
                if failure.is_missing_part() {
                    self.memory.parts.clear();
                }
                if !again {
                    return Err(failure.into());
                }
            }
        })
    }

    /// What people and actors wait for.
    fn ask<T: Send>(
        &mut self,
        work: impl AsyncFn(&mut Session, &mut Memory) -> Result<T> + Send,
    ) -> Result<T, Error> {
        self.run(self.options.patience, work)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.session = None;
        if let Some(runtime) = self.runtime.take() {
            // Dropped as it is, it would wait, which is forbidden inside another runtime.
            runtime.shutdown_background();
        }
    }
}

impl Failure {
    fn state(&self) -> Option<&SqlState> {
        match self {
            Self::Postgres(error) => error.code(),
            Self::Store(_) => None,
        }
    }

    /// It met another transaction, which is over: the same again may succeed at once.
    fn goes_by(&self) -> bool {
        let met = [
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::T_R_SERIALIZATION_FAILURE,
        ];
        self.is_missing_part() || self.state().is_some_and(|state| met.contains(state))
    }

    /// "no partition of relation found for row": another process has dropped the part.
    fn is_missing_part(&self) -> bool {
        self.state() == Some(&SqlState::CHECK_VIOLATION)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Postgres(error) => f.write_str(&said(error)),
            Self::Store(error) => error.fmt(f),
        }
    }
}

/// With its cause: alone it is "db error". Never the detail: that may hold a row's values.
fn said(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    match (error.as_db_error(), error.source()) {
        (Some(db), _) => format!("{} ({})", db.message(), db.code().code()),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}

impl From<Failure> for Error {
    /// By code, never by text. What no retry can mend is [`Error::Unusable`].
    fn from(failure: Failure) -> Self {
        let text = failure.to_string();
        match failure {
            Failure::Store(error) => error,
            Failure::Postgres(error) => match error.code() {
                // Away, or gone while it was asked.
                None => Self::Unavailable(text),
                Some(state) if mends(state.code()) => Self::Unavailable(text),
                Some(_) => Self::Unusable(text),
            },
        }
    }
}

/// What time or people can mend, by the class of the state: connection, transaction rolled back, resources (disk full, memory,
/// connections), operator intervention (shutdown, cancel), object in use (locks), system error, login, the database's name, rights.
fn mends(code: &str) -> bool {
    const CLASSES: [&str; 8] = ["08", "28", "3D", "40", "53", "55", "57", "58"];
    // Read-only (a standby), an idle transaction that was ended, rights.
    const CODES: [&str; 3] = ["25006", "25P03", "42501"];
    CLASSES.iter().any(|class| code.starts_with(class)) || CODES.contains(&code)
}

impl Store for Postgres {
    fn commit(&mut self, now: UnixMillis, writes: &[Write]) -> Result<Vec<Written>, Error> {
        self.ask(async |session, memory| commit::commit(session, memory, now, writes).await)
    }

    fn claim(&mut self, request: &ClaimRequest) -> Result<Vec<Claimed>, Error> {
        self.ask(async |session, memory| claim::claim(session, memory, request).await)
    }

    fn next_due(&mut self) -> Result<Option<UnixMillis>, Error> {
        self.ask(async |session, _| claim::next_due(session).await)
    }

    fn get(&mut self, id: MessageId) -> Result<Option<Row>, Error> {
        self.ask(async |session, _| rows::get(session, id).await)
    }

    fn recorded(&mut self, tenancies: &[Tenancy]) -> Result<Vec<Tenancy>, Error> {
        self.ask(async |session, _| rows::recorded(session, tenancies).await)
    }

    fn list(
        &mut self,
        filter: &QueueFilter,
        rows: usize,
        after: Option<&Place>,
    ) -> Result<Slice, Error> {
        self.ask(async |session, _| list::list(session, filter, rows, after).await)
    }

    fn change_all(
        &mut self,
        now: UnixMillis,
        ids: &[MessageId],
        change: Change,
    ) -> Result<u64, Error> {
        self.ask(async |session, _| rows::change_all(session, now, ids, change).await)
    }

    fn counts(&mut self) -> Result<Counts, Error> {
        self.ask(async |session, _| rows::counts(session).await)
    }

    fn renew(
        &mut self,
        incarnation: Incarnation,
        name: &str,
        first: bool,
        answered: &[ListedInstance],
    ) -> Result<bool, Error> {
        self.ask(async |session, _| {
            members::renew(session, incarnation, name, first, answered).await
        })
    }

    fn members(&mut self) -> Result<Vec<Member>, Error> {
        self.ask(async |session, _| members::members(session).await)
    }

    fn end_member(
        &mut self,
        now: UnixMillis,
        who: Incarnation,
        counter: Option<u64>,
    ) -> Result<bool, Error> {
        self.ask(async |session, _| members::end(session, now, who, counter).await)
    }

    fn list_instance(&mut self, instance: &ListedInstance) -> Result<(), Error> {
        self.ask(async |session, _| members::list_instance(session, instance).await)
    }

    fn strike_instance(
        &mut self,
        now: UnixMillis,
        instance: Instance,
        counter: Option<u64>,
    ) -> Result<bool, Error> {
        self.ask(async |session, _| members::strike_instance(session, now, instance, counter).await)
    }

    fn instances(&mut self) -> Result<Vec<ListedInstance>, Error> {
        self.ask(async |session, _| members::instances(session).await)
    }

    fn record_doors(&mut self, now: UnixMillis, reports: &[DoorReport]) -> Result<(), Error> {
        self.ask(async |session, _| ledger::record_doors(session, now, reports).await)
    }

    fn ledger(&mut self) -> Result<Vec<Balance>, Error> {
        self.ask(async |session, _| ledger::ledger(session).await)
    }

    fn holes(&mut self, door: u32, limit: usize) -> Result<Vec<u64>, Error> {
        self.ask(async |session, _| ledger::holes(session, door, limit).await)
    }

    fn write_off(&mut self, _: UnixMillis, numbers: &[DoorNumber]) -> Result<u64, Error> {
        self.ask(async |session, _| ledger::write_off(session, numbers).await)
    }

    fn begin_chore(
        &mut self,
        now: UnixMillis,
        name: &str,
        who: Incarnation,
        every: Duration,
    ) -> Result<bool, Error> {
        self.ask(async |session, _| chores::begin(session, now, name, who, every).await)
    }

    fn end_chore(&mut self, now: UnixMillis, name: &str, who: Incarnation) -> Result<(), Error> {
        self.ask(async |session, _| chores::end(session, now, name, who).await)
    }

    fn unfinished(&mut self, ids: &[MessageId]) -> Result<Vec<MessageId>, Error> {
        self.ask(async |session, _| chores::unfinished(session, ids).await)
    }

    fn suspects(&mut self, struck_since: UnixMillis) -> Result<Vec<Suspect>, Error> {
        self.ask(async |session, _| members::suspects(session, struck_since).await)
    }

    fn prune(&mut self, before: u32) -> Result<Pruned, Error> {
        let mut pruned = Pruned::default();
        // A transaction for each part: other processes get their turn between them.
        for part in self.ask(async |session, _| parts::older_than(session, before).await)? {
            let step = self.run(SCHEMA_PATIENCE, async |session, memory| {
                parts::prune(session, memory, part, before).await
            })?;
            if step != PartStep::Stays {
                pruned.parts = u32::from(step == PartStep::Dropped);
                pruned.more = true;
                return Ok(pruned);
            }
        }
        let prune = async |session: &mut Session, _: &mut Memory| {
            parts::prune_derived(session, before).await
        };
        let (derived, more) = self.ask(prune)?;
        pruned.derived = derived;
        if more {
            pruned.more = true;
            return Ok(pruned);
        }
        pruned.struck =
            self.ask(async |session, _| members::forget_struck(session, before).await)?;
        let before = tally::forgotten_before(before);
        pruned.doors = self.ask(async |session, _| ledger::forget(session, before).await)?;
        Ok(pruned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_time_or_people_can_mend_is_told_from_the_rest_by_its_state() {
        for state in [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::QUERY_CANCELED,
            SqlState::DISK_FULL,
            SqlState::OUT_OF_MEMORY,
            SqlState::TOO_MANY_CONNECTIONS,
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::IO_ERROR,
            SqlState::READ_ONLY_SQL_TRANSACTION,
            SqlState::INVALID_PASSWORD,
            SqlState::INVALID_CATALOG_NAME,
            SqlState::INSUFFICIENT_PRIVILEGE,
            SqlState::CONNECTION_FAILURE,
        ] {
            assert!(mends(state.code()), "{state:?}");
        }
        for state in [
            SqlState::DATA_CORRUPTED,
            SqlState::INDEX_CORRUPTED,
            SqlState::UNDEFINED_TABLE,
            SqlState::UNDEFINED_COLUMN,
            SqlState::UNIQUE_VIOLATION,
            SqlState::SYNTAX_ERROR,
            SqlState::CHARACTER_NOT_IN_REPERTOIRE,
        ] {
            assert!(!mends(state.code()), "{state:?}");
        }
    }
}
