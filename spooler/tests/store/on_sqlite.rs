//! A private file, and several handles on it, as several processes have.

use std::{cell::RefCell, path::PathBuf, time::Duration};

use pombo_proto::{
    ids::{DoorSequence, Incarnation, MessageId},
    time::UnixMillis,
};
use pombo_spooler::store::{Options, Sqlite, Store};

use crate::support::NOW;

/// What one process has of a store.
pub type Opened = Sqlite;

/// Enough of the model's random steps.
pub const MODEL_STEPS: usize = 4_000;

/// One store, in a directory that goes with it.
pub struct Shared {
    directory: tempfile::TempDir,
    doors: RefCell<DoorSequence>,
}

impl Shared {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            doors: DoorSequence::default().into(),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("store.db")
    }

    /// What one process has of it.
    pub fn open(&self) -> Opened {
        Sqlite::open(self.path(), Options::default()).unwrap()
    }

    /// One that waits for nobody.
    pub fn open_impatient(&self) -> Opened {
        let options = Options {
            busy_timeout: Duration::from_millis(10),
            size_max: None,
        };
        Sqlite::open(self.path(), options).unwrap()
    }

    /// Nobody can write until this is dropped.
    pub fn lock(&self) -> impl Sized + use<> {
        let other = self.raw();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        other
    }

    /// With a listed incarnation.
    pub fn joined(&self) -> (Opened, Incarnation) {
        let mut store = self.open();
        let me = Incarnation::random();
        assert!(store.renew(me, "test", true, &[]).unwrap());
        (store, me)
    }

    pub fn id(&self) -> MessageId {
        self.id_at(NOW)
    }

    pub fn id_at(&self, at: UnixMillis) -> MessageId {
        self.doors.borrow_mut().issue(at)
    }

    /// As a person with `sqlite3` would, or another program.
    pub fn raw(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path()).unwrap()
    }

    /// How many dated parts there are, derived ids' apart.
    pub fn dated_parts(&self) -> i64 {
        let sql = "SELECT count(*) FROM parts WHERE part <> 0";
        self.raw().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// Bytes of messages in a part, heads of finished ones apart.
    pub fn bodies(&self, part: u32) -> i64 {
        let sql = format!("SELECT count(*) FROM body_{part}");
        self.raw().query_row(&sql, [], |row| row.get(0)).unwrap()
    }

    /// Pages of numbers that the ledger keeps.
    pub fn ledger_pages(&self) -> i64 {
        let sql = "SELECT count(*) FROM pages";
        self.raw().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// As it was before there was a ledger.
    pub fn forget_the_ledger(&self) {
        let raw = self.raw();
        let mut parts = raw.prepare("SELECT part FROM parts").unwrap();
        let parts = parts.query_map([], |row| row.get(0)).unwrap();
        let asks: String = parts
            .map(|part: Result<u32, _>| part.unwrap())
            .map(|part| format!("ALTER TABLE part_{part} DROP COLUMN asks;"))
            .collect();
        let sql = "DROP TABLE accounts; DROP TABLE pages; DROP TABLE chores; DROP INDEX queue_apart; PRAGMA user_version = 3;";
        raw.execute_batch(&format!("{sql} {asks}")).unwrap();
    }

    /// What no transaction of ours can leave behind.
    pub fn is_sound(&self) {
        let trouble: String = self
            .raw()
            .pragma_query_value(None, "integrity_check", |row| row.get(0))
            .unwrap();
        assert_eq!(trouble, "ok");
    }
}
