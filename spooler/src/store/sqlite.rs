//! The store on SQLite: one file, shared by the spoolers of one host.
//!
//! Owns the connection, its transactions and what an error means. Each concern has its own module:
//!
//! | module | what it is |
//! |---|---|
//! | [`schema`] | the file's identity, tables and migrations |
//! | [`parts`] | one table per day of issue, created on demand, dropped whole |
//! | [`commit`] | conditional writes: who wins, who loses |
//! | [`claim`] | what is due, in order, past what is excluded |
//! | [`rows`] | rows as people see and change them |
//! | [`list`] | what people ask for by a filter, a slice at a time |
//! | [`members`] | incarnations, and the agents that may have been submitted to |
//! | [`ledger`] | accounts, and the numbers of doors |
//! | [`chores`] | what one spooler does at a time |
//!
//! WAL with `synchronous=FULL`: a commit that has returned survives a loss of power. Every write begins as `IMMEDIATE`, so
//! that no transaction fails half way because another process was quicker. After an error the transaction is rolled back;
//! where the connection itself may be damaged it is closed, and the next call opens it anew.

use std::{path::PathBuf, time::Duration};

use pombo_proto::{
    control::QueueFilter,
    ids::{Incarnation, Instance, MessageId},
    ledger::{Balance, DoorNumber},
    time::UnixMillis,
    verbs::Tenancy,
};
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

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
mod parts;
mod rows;
mod schema;

/// How the file is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long a write waits for another process's transaction before it is [`Error::Unavailable`].
    pub busy_timeout: Duration,
    /// The file grows no further than this many bytes: then it counts as full. `None`: as far as the disk goes.
    pub size_max: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            // Transactions of ours last milliseconds; only a step of pruning may last a second.
            busy_timeout: Duration::from_secs(5),
            size_max: None,
        }
    }
}

/// The store in one SQLite file.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    options: Options,
    /// `None` after an error that may have damaged it.
    connection: Option<Connection>,
    statements: parts::Statements,
    lanes: claim::LaneCursor,
}

impl Sqlite {
    /// Opens the file, and makes it if it is not there. Two processes may do so at once.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a file that is not ours or from a newer version, else [`Error::Unavailable`].
    pub fn open(path: impl Into<PathBuf>, options: Options) -> Result<Self, Error> {
        let path = path.into();
        let connection = schema::open(&path, &options)?;
        Ok(Self {
            path,
            options,
            connection: Some(connection),
            statements: parts::Statements::default(),
            lanes: claim::LaneCursor::default(),
        })
    }

    /// Runs `work` in one transaction.
    fn transaction<T>(
        &mut self,
        behavior: TransactionBehavior,
        work: impl FnOnce(&mut parts::Scope<'_>, &mut claim::LaneCursor) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => schema::open(&self.path, &self.options)?,
        };
        let result = run(
            &mut connection,
            behavior,
            &mut self.statements,
            &mut self.lanes,
            work,
        );
        match &result {
            Err(error) if !connection.is_autocommit() || may_have_damaged(error) => {
                tracing::warn!(%error, "store: the connection is opened anew");
            }
            _ => self.connection = Some(connection),
        }
        Ok(result?)
    }

    fn write<T>(
        &mut self,
        work: impl FnOnce(&mut parts::Scope<'_>, &mut claim::LaneCursor) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        self.transaction(TransactionBehavior::Immediate, work)
    }

    fn read<T>(
        &mut self,
        work: impl FnOnce(&mut parts::Scope<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        self.transaction(TransactionBehavior::Deferred, |scope, _| work(scope))
    }
}

/// An error drops the transaction, which rolls it back.
fn run<T>(
    connection: &mut Connection,
    behavior: TransactionBehavior,
    statements: &mut parts::Statements,
    lanes: &mut claim::LaneCursor,
    work: impl FnOnce(&mut parts::Scope<'_>, &mut claim::LaneCursor) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction: Transaction<'_> = connection.transaction_with_behavior(behavior)?;
    let mut scope = parts::Scope::begin(&transaction, statements)?;
    let value = work(&mut scope, lanes)?;
    transaction.commit()?;
    Ok(value)
}

/// Whether a fresh connection may fare better: not where the file is merely busy or full.
fn may_have_damaged(error: &rusqlite::Error) -> bool {
    !matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::DiskFull)
    )
}

impl From<rusqlite::Error> for Error {
    /// By code, never by text. What no retry can mend is [`Error::Unusable`].
    fn from(error: rusqlite::Error) -> Self {
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::DiskFull
                | ErrorCode::ReadOnly
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::PermissionDenied
                | ErrorCode::OutOfMemory
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::OperationInterrupted
                | ErrorCode::OperationAborted
                | ErrorCode::SchemaChanged,
            ) => Self::Unavailable(text),
            _ => Self::Unusable(text),
        }
    }
}

impl Store for Sqlite {
    fn commit(&mut self, now: UnixMillis, writes: &[Write]) -> Result<Vec<Written>, Error> {
        self.write(|scope, _| commit::commit(scope, now, writes))
    }

    fn claim(&mut self, request: &ClaimRequest) -> Result<Vec<Claimed>, Error> {
        self.write(|scope, lanes| claim::claim(scope, lanes, request))
    }

    fn next_due(&mut self) -> Result<Option<UnixMillis>, Error> {
        self.read(claim::next_due)
    }

    fn get(&mut self, id: MessageId) -> Result<Option<Row>, Error> {
        self.read(|scope| rows::get(scope, id))
    }

    fn recorded(&mut self, tenancies: &[Tenancy]) -> Result<Vec<Tenancy>, Error> {
        self.read(|scope| rows::recorded(scope, tenancies))
    }

    fn list(
        &mut self,
        filter: &QueueFilter,
        rows: usize,
        after: Option<&Place>,
    ) -> Result<Slice, Error> {
        self.read(|scope| list::list(scope, filter, rows, after))
    }

    fn change_all(
        &mut self,
        now: UnixMillis,
        ids: &[MessageId],
        change: Change,
    ) -> Result<u64, Error> {
        self.write(|scope, _| {
            ids.iter().try_fold(0, |count, id| {
                Ok(count + u64::from(rows::change(scope, now, *id, change)?))
            })
        })
    }

    fn counts(&mut self) -> Result<Counts, Error> {
        self.read(rows::counts)
    }

    fn renew(
        &mut self,
        incarnation: Incarnation,
        name: &str,
        first: bool,
        answered: &[ListedInstance],
    ) -> Result<bool, Error> {
        self.write(|scope, _| members::renew(scope, incarnation, name, first, answered))
    }

    fn members(&mut self) -> Result<Vec<Member>, Error> {
        self.read(members::members)
    }

    fn end_member(
        &mut self,
        now: UnixMillis,
        who: Incarnation,
        counter: Option<u64>,
    ) -> Result<bool, Error> {
        self.write(|scope, _| members::end(scope, now, who, counter))
    }

    fn list_instance(&mut self, instance: &ListedInstance) -> Result<(), Error> {
        self.write(|scope, _| members::list_instance(scope, instance))
    }

    fn strike_instance(
        &mut self,
        now: UnixMillis,
        instance: Instance,
        counter: Option<u64>,
    ) -> Result<bool, Error> {
        self.write(|scope, _| members::strike_instance(scope, now, instance, counter))
    }

    fn instances(&mut self) -> Result<Vec<ListedInstance>, Error> {
        self.read(members::instances)
    }

    fn suspects(&mut self, struck_since: UnixMillis) -> Result<Vec<Suspect>, Error> {
        self.read(|scope| members::suspects(scope, struck_since))
    }

    fn prune(&mut self, before: u32) -> Result<Pruned, Error> {
        let mut pruned = Pruned::default();
        if let Some(part) = self.read(|scope| parts::ripe_before(scope, before))? {
            let step = self.write(|scope, _| parts::prune(scope, part, before))?;
            pruned.parts = u32::from(step == PartStep::Dropped);
            pruned.more = true;
            return Ok(pruned);
        }
        let (derived, more) = self.write(|scope, _| parts::prune_derived(scope, before))?;
        pruned.derived = derived;
        if more {
            pruned.more = true;
            return Ok(pruned);
        }
        pruned.struck = self.write(|scope, _| members::forget_struck(scope, before))?;
        let before = tally::forgotten_before(before);
        pruned.doors = self.write(|scope, _| ledger::forget(scope, before))?;
        Ok(pruned)
    }

    fn record_doors(&mut self, now: UnixMillis, reports: &[DoorReport]) -> Result<(), Error> {
        self.write(|scope, _| ledger::record_doors(scope, now, reports))
    }

    fn ledger(&mut self) -> Result<Vec<Balance>, Error> {
        self.read(ledger::ledger)
    }

    fn holes(&mut self, door: u32, limit: usize) -> Result<Vec<u64>, Error> {
        self.read(|scope| ledger::holes(scope, door, limit))
    }

    fn write_off(&mut self, _: UnixMillis, numbers: &[DoorNumber]) -> Result<u64, Error> {
        self.write(|scope, _| ledger::write_off(scope, numbers))
    }

    fn begin_chore(
        &mut self,
        now: UnixMillis,
        name: &str,
        who: Incarnation,
        every: Duration,
    ) -> Result<bool, Error> {
        self.write(|scope, _| chores::begin(scope, now, name, who, every))
    }

    fn end_chore(&mut self, now: UnixMillis, name: &str, who: Incarnation) -> Result<(), Error> {
        self.write(|scope, _| chores::end(scope, now, name, who))
    }

    fn unfinished(&mut self, ids: &[MessageId]) -> Result<Vec<MessageId>, Error> {
        self.read(|scope| chores::unfinished(scope, ids))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::ffi;

    fn kind(code: i32) -> Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), None).into()
    }

    #[test]
    fn what_time_or_people_can_mend_is_unavailable_and_the_rest_unusable() {
        for code in [
            ffi::SQLITE_FULL,
            ffi::SQLITE_READONLY,
            ffi::SQLITE_READONLY_DIRECTORY,
            ffi::SQLITE_BUSY,
            ffi::SQLITE_BUSY_SNAPSHOT,
            ffi::SQLITE_LOCKED,
            ffi::SQLITE_IOERR_FSYNC,
            ffi::SQLITE_CANTOPEN,
            ffi::SQLITE_PERM,
            ffi::SQLITE_NOMEM,
        ] {
            assert!(matches!(kind(code), Error::Unavailable(_)), "{code}");
        }
        for code in [
            ffi::SQLITE_CORRUPT,
            ffi::SQLITE_NOTADB,
            ffi::SQLITE_ERROR,
            ffi::SQLITE_CONSTRAINT,
            ffi::SQLITE_MISMATCH,
        ] {
            assert!(matches!(kind(code), Error::Unusable(_)), "{code}");
        }
    }

    #[test]
    fn only_a_busy_or_full_file_leaves_the_connection_beyond_doubt() {
        let damaged =
            |code| may_have_damaged(&rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        assert!(!damaged(ffi::SQLITE_BUSY));
        assert!(!damaged(ffi::SQLITE_FULL));
        assert!(damaged(ffi::SQLITE_READONLY));
        assert!(damaged(ffi::SQLITE_IOERR_WRITE));
        assert!(damaged(ffi::SQLITE_CORRUPT));
    }
}
