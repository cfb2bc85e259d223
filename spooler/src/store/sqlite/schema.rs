//! The file: whose it is, which version, and the tables that are there from the start.

use std::path::Path;

use pombo_proto::time::UnixMillis;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::{
    Error, Options, ledger,
    parts::{self, Scope, Statements},
};

/// "Pomb", in the file's header.
const APPLICATION_ID: i32 = 0x506f_6d62;

/// One step per version: the n-th leads from `user_version` n to n + 1. Steps are only ever added.
const MIGRATIONS: [&str; 6] = [FIRST, DOUBT, STRUCK, LEDGER, LISTS, ASKS];

/// `queue` is the index over all parts of what is not finished: SQLite has none across tables. Triggers of each part keep
/// it and `counts` in the same transaction, so both are right whoever writes and whatever crashes. No transport and no
/// destination are `''` in it, so that they compare. The partial indexes begin with their state, a constant of no bytes: only
/// so does SQLite answer from the index alone.
const FIRST: &str = "
CREATE TABLE parts (part INTEGER PRIMARY KEY) STRICT;
CREATE TABLE counts (
    part INTEGER NOT NULL,
    state INTEGER NOT NULL,
    n INTEGER NOT NULL,
    PRIMARY KEY (part, state)
) STRICT, WITHOUT ROWID;
CREATE TABLE queue (
    part INTEGER NOT NULL,
    row INTEGER NOT NULL,
    state INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    due INTEGER,
    wake INTEGER,
    transport TEXT NOT NULL,
    destination TEXT NOT NULL,
    holder BLOB,
    since INTEGER NOT NULL,
    PRIMARY KEY (part, row)
) STRICT, WITHOUT ROWID;
CREATE INDEX queue_order ON queue (state, priority, due, transport, destination, wake) WHERE state = 1;
CREATE INDEX queue_lane ON queue (state, transport, destination, priority, due) WHERE state = 1;
CREATE INDEX queue_wake ON queue (state, wake, due) WHERE state = 1;
CREATE INDEX queue_holder ON queue (state, holder) WHERE state = 2;
CREATE INDEX queue_since ON queue (since);
CREATE TABLE members (
    incarnation BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    counter INTEGER NOT NULL
) STRICT;
CREATE TABLE instances (
    instance BLOB PRIMARY KEY,
    transport TEXT NOT NULL,
    host TEXT NOT NULL
) STRICT;
";

/// What is in doubt, and until when an agent may send. Each part that is there already follows by [`parts::add_doubt`].
const DOUBT: &str = "
ALTER TABLE queue ADD COLUMN in_doubt INTEGER NOT NULL DEFAULT 0;
CREATE INDEX queue_in_doubt ON queue (in_doubt, since) WHERE in_doubt > 0;
ALTER TABLE instances ADD COLUMN counter INTEGER NOT NULL DEFAULT 1;
";

/// Who was struck off, and when: null for who is listed. Since when a message may have been with somebody follows by
/// [`parts::add_unsure_since`].
const STRUCK: &str = "
ALTER TABLE instances ADD COLUMN struck INTEGER;
";

/// Who asks at the dot: all of it is done by [`parts::add_asks`].
const ASKS: &str = "";

/// The ledger, and who does what one does at a time. `complete`: how many pages from the first on are complete, and not kept. The
/// columns `to_...` count recipients, those before them messages.
const LEDGER: &str = "
CREATE TABLE accounts (
    account INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    confirmed INTEGER NOT NULL,
    voided INTEGER NOT NULL,
    complete INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    delivered INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    expired INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    to_delivered INTEGER NOT NULL,
    to_failed INTEGER NOT NULL,
    to_expired INTEGER NOT NULL,
    to_cancelled INTEGER NOT NULL,
    changed INTEGER NOT NULL
) STRICT;
CREATE TABLE pages (
    account INTEGER NOT NULL,
    page INTEGER NOT NULL,
    bits BLOB NOT NULL,
    PRIMARY KEY (account, page)
) STRICT, WITHOUT ROWID;
CREATE TABLE chores (
    name TEXT PRIMARY KEY,
    holder BLOB,
    ended INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Lists are read in slices: from a place on, in the order of age. What does not wait is found among a million that do; what is
/// in doubt is counted from its index alone.
const LISTS: &str = "
CREATE INDEX queue_apart ON queue (state, since) WHERE state = 2 OR state = 3 OR state = 4;
DROP INDEX queue_in_doubt;
CREATE INDEX queue_in_doubt ON queue (since, part, row, in_doubt) WHERE in_doubt > 0;
";

/// A dozen texts for each part; a day or two are in use at a time, more after a long outage.
const CACHED_STATEMENTS: usize = 256;
/// SQLite's own page cache, in KiB.
const CACHE_KIB: i64 = 16 * 1024;
/// A WAL that grew larger, under a long question or a dropped part, is cut back to this.
const WAL_BYTES_KEPT: i64 = 64 * 1024 * 1024;

/// A connection that is ours, migrated, durable.
pub(super) fn open(path: &Path, options: &Options) -> Result<Connection, Error> {
    create_private(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(options.busy_timeout)?;
    connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    // In one transaction: another process may be making the file between two questions.
    let known = version(&*connection.transaction()?)?;
    if known != MIGRATIONS.len() {
        migrate(&mut connection)?;
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    write_ahead(&connection)?;
    connection.pragma_update_and_check(None, "journal_size_limit", WAL_BYTES_KEPT, |_| Ok(()))?;
    if let Some(size) = options.size_max {
        let page: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let pages = i64::try_from(size).unwrap_or(i64::MAX) / page.max(1);
        connection.pragma_update_and_check(None, "max_page_count", pages.max(1), |_| Ok(()))?;
    }
    Ok(connection)
}

/// It holds people's mail: for its owner alone. SQLite gives its WAL the same mode.
fn create_private(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt;
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match made {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::Unavailable(format!(
            "{} cannot be made: {error}",
            path.display()
        ))),
    }
}

/// The version of a file that is ours; 0 for an empty one.
fn version(connection: &Connection) -> Result<usize, Error> {
    let application: i32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let empty = application == 0 && version == 0 && tables == 0;
    if !empty && application != APPLICATION_ID {
        return Err(Error::Unusable("the file is not one of ours".to_owned()));
    }
    match usize::try_from(version) {
        Ok(version) if version <= MIGRATIONS.len() => Ok(version),
        _ => Err(Error::Unusable(format!(
            "the file has version {version}; this build knows up to {}",
            MIGRATIONS.len()
        ))),
    }
}

/// Looks again under the lock: another process may have migrated meanwhile.
fn migrate(connection: &mut Connection) -> Result<(), Error> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let from = version(&transaction)?;
    for (version, step) in MIGRATIONS.iter().enumerate().skip(from) {
        transaction.execute_batch(step)?;
        match version {
            1 => parts::add_doubt(&transaction)?,
            2 => parts::add_unsure_since(&transaction)?,
            3 => {
                let mut statements = Statements::default();
                let mut scope = Scope::begin(&transaction, &mut statements)?;
                ledger::begin(&mut scope, UnixMillis::now())?;
            }
            5 => parts::add_asks(&transaction)?,
            _ => {}
        }
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    transaction.commit()?;
    tracing::info!(from, to = MIGRATIONS.len(), "store: migrated");
    Ok(())
}

/// SQLite does not wait for its busy time-out where two processes change the mode at once, so we do. It happens once in
/// the life of a file.
fn write_ahead(connection: &Connection) -> Result<(), Error> {
    const TRIES: u32 = 100;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
    for last in (0..TRIES).map(|n| n + 1 == TRIES) {
        let mode = connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0));
        match mode {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(mode) => {
                return Err(Error::Unusable(format!(
                    "write-ahead logging does not work on this file system (journal mode {mode})"
                )));
            }
            Err(error) if !last && error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Unavailable("the file is busy".to_owned()))
}
