//! A private schema on a server of this test process, and several connections to it, as several hosts have.

use std::{cell::RefCell, time::Duration};

use pombo_proto::{
    ids::{DoorSequence, Incarnation, MessageId},
    time::UnixMillis,
};
use pombo_spooler::store::{
    Error, Postgres, Store,
    postgres::{self, Options},
};
use pombo_tests::postgres::Postgres as Server;

use crate::support::NOW;

/// What one process has of a store.
pub type Opened = Postgres;

/// Each is a round trip or three.
pub const MODEL_STEPS: usize = 2_500;

/// One store.
pub struct Shared {
    server: &'static Server,
    schema: String,
    doors: RefCell<DoorSequence>,
}

/// How this server is reached.
pub fn options(server: &Server, schema: &str) -> Options {
    let plain = Options::new(server.url());
    Options {
        password_file: Some(server.password_file()),
        schema: schema.to_owned(),
        ..plain
    }
}

impl Shared {
    pub fn new() -> Self {
        let server = Server::shared();
        Self {
            server,
            schema: server.fresh_schema(),
            doors: DoorSequence::default().into(),
        }
    }

    pub fn options(&self) -> Options {
        // Tests of the same process compile and wait for each other on two cores.
        Options {
            patience: Duration::from_secs(30),
            ..options(self.server, &self.schema)
        }
    }

    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// What one process has of it.
    pub fn open(&self) -> Opened {
        self.try_open().unwrap()
    }

    pub fn try_open(&self) -> Result<Opened, Error> {
        Postgres::open(self.options())
    }

    /// One that waits for hardly anybody.
    pub fn open_impatient(&self) -> Opened {
        Postgres::open(postgres::Options {
            patience: Duration::from_secs(2),
            ..self.options()
        })
        .unwrap()
    }

    /// Nobody can write until this is dropped.
    pub fn lock(&self) -> impl Sized + use<> {
        self.server.lock(&self.schema, "messages").unwrap()
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

    /// As a person with `psql` would, or another program.
    pub fn sql(&self, statements: &str) -> String {
        let all = format!("SET search_path = {}; {statements}", self.schema);
        self.server.sql(&all).unwrap()
    }

    fn number(&self, query: &str) -> i64 {
        self.sql(query).parse().unwrap()
    }

    /// How many dated parts there are, derived ids' apart.
    pub fn dated_parts(&self) -> i64 {
        self.number(
            "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename ~ '^messages_[1-9][0-9]*$'",
        )
    }

    /// Rows of a part that have more than a head.
    pub fn bodies(&self, part: u32) -> i64 {
        self.number(&format!(
            "SELECT count(*) FROM messages_{part} WHERE state < 5"
        ))
    }

    /// Pages of numbers that the ledger keeps.
    pub fn ledger_pages(&self) -> i64 {
        self.number("SELECT count(*) FROM pages")
    }

    /// As it was before there was a ledger.
    pub fn forget_the_ledger(&self) {
        self.sql(
            "DROP TABLE accounts; DROP TABLE pages; DROP TABLE entries; DROP TABLE chores; DROP INDEX messages_apart; \
             DROP INDEX messages_late; \
             ALTER TABLE messages DROP COLUMN asks; UPDATE meta SET version = 2",
        );
    }

    /// What no transaction of ours can leave behind: counts that are none.
    pub fn is_sound(&self) {
        let states = self.sql(
            "SELECT count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 2), \
             count(*) FILTER (WHERE state = 3), count(*) FILTER (WHERE state = 4) FROM messages",
        );
        let tallied = self.sql(
            "SELECT coalesce(sum(waiting), 0), coalesce(sum(claimed), 0), coalesce(sum(held), 0), \
             coalesce(sum(dead), 0) FROM tallies",
        );
        assert_eq!(states, tallied);
    }
}
