//! Parts: one pair of tables per day of issue, and one for derived ids (number 0).
//!
//! `part_N` holds one row per message, small: it is what every write decides by, and all that is left of a finished one.
//! `body_N` holds the encoded message while it waits, under the same row number, so that a claim or a retry does not rewrite
//! it. Both are rowid tables with an index on the id: rows of some 700 bytes would make a clustered tree of fan-out five.
//!
//! A part is made by the first write that needs it and dropped whole once nothing in it is unfinished; any process may do
//! either, so the list of parts is read at the start of every transaction (some microseconds). A drop takes about half a
//! microsecond per row, if the file is cached: writes of other processes wait for it.

use std::{collections::HashMap, sync::Arc};

use rusqlite::{OptionalExtension, Transaction, params};

/// States as they are stored. 1 and 2 also stand in the schema's partial indexes.
pub(super) const WAITING: i64 = 1;
/// See [`WAITING`].
pub(super) const CLAIMED: i64 = 2;
/// See [`WAITING`].
pub(super) const HELD: i64 = 3;
/// See [`WAITING`].
pub(super) const DEAD: i64 = 4;
/// See [`WAITING`].
pub(super) const FINISHED: i64 = 5;

/// Derived ids carry no date.
const UNDATED: u32 = 0;
/// At most this many finished rows of derived ids go in one call of prune (about a second on a slow disk).
const DERIVED_PRUNED_MAX: usize = 20_000;
const DAY_MS: i64 = 86_400_000;

/// The SQL for one part's tables.
#[derive(Debug)]
pub(super) struct Sql {
    pub body_table: String,
    pub insert: String,
    pub insert_body: String,
    pub find: String,
    pub record: String,
    pub replace_body: String,
    pub delete_body: String,
    pub read_body: String,
    pub take: String,
    pub row_by_id: String,
    pub row_by_number: String,
    pub newest_finished: String,
    pub mark: String,
    pub marks: String,
    pub give_back: String,
}

/// A fresh cancel is known to whoever claims the row next.
const SEEN: &str = "iif(cancel = 2, 1, cancel)";

/// What a row is read by; in the order that [`super::rows`] expects.
const COLUMNS: &str = "row, id, state, fence, holder, cancel, changed, due, priority, doubt, reason, transport, \
                       destination, progress, head, wake";

impl Sql {
    fn new(part: u32) -> Self {
        let (rows, bodies) = (format!("part_{part}"), format!("body_{part}"));
        Self {
            insert: format!(
                "INSERT INTO {rows} (id, state, fence, holder, recorded_fence, recorded_by, recorded_state, cancel, \
                 hold, doubt, changed, due, priority, reason, transport, destination, progress, head, wake) \
                 VALUES (?1, ?2, 0, NULL, ?3, ?4, ?5, 0, 0, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) \
                 ON CONFLICT (id) DO NOTHING"
            ),
            insert_body: format!("INSERT INTO {bodies} (row, message) VALUES (?1, ?2)"),
            find: format!(
                "SELECT row, state, fence, holder, recorded_fence, recorded_by, recorded_state, cancel, hold \
                 FROM {rows} WHERE id = ?1"
            ),
            record: format!(
                "UPDATE {rows} SET state = ?2, holder = NULL, recorded_fence = fence, recorded_by = ?3, \
                 recorded_state = ?4, cancel = ?5, hold = 0, doubt = ?6, changed = ?7, due = ?8, priority = ?9, \
                 reason = ?10, transport = ?11, destination = ?12, progress = ?13, head = ?14, wake = ?15 \
                 WHERE row = ?1"
            ),
            replace_body: format!(
                "UPDATE {bodies} SET message = ?2 WHERE row = ?1 AND message <> ?2"
            ),
            delete_body: format!("DELETE FROM {bodies} WHERE row = ?1"),
            // A row that is due since it was last changed was made due by somebody.
            read_body: format!(
                "SELECT message, (SELECT due = changed FROM {rows} WHERE row = ?1) FROM {bodies} WHERE row = ?1"
            ),
            take: format!(
                "UPDATE {rows} SET state = {CLAIMED}, fence = fence + 1, holder = ?2, cancel = {SEEN}, \
                 changed = ?3, due = NULL, wake = NULL WHERE row = ?1 AND state = {WAITING} \
                 RETURNING id, fence, doubt, cancel, progress"
            ),
            row_by_id: format!("SELECT {COLUMNS} FROM {rows} WHERE id = ?1"),
            row_by_number: format!("SELECT {COLUMNS} FROM {rows} WHERE row = ?1"),
            newest_finished: format!(
                "SELECT {COLUMNS} FROM {rows} WHERE state = {FINISHED} ORDER BY row DESC"
            ),
            mark: format!(
                "UPDATE {rows} SET state = ?2, due = ?3, wake = ?3, cancel = ?4, hold = ?5, changed = ?6 WHERE row = ?1"
            ),
            marks: format!("SELECT cancel, hold FROM {rows} WHERE row = ?1"),
            give_back: format!(
                "UPDATE {rows} SET state = ?2, due = ?3, wake = ?3, cancel = {SEEN}, hold = 0, holder = NULL, \
                 doubt = 1, changed = ?4, reason = ?5 WHERE row = ?1"
            ),
            body_table: bodies,
        }
    }
}

/// The tables of a part, and the triggers that keep `queue` and `counts` by them. A finished row never leaves that state.
fn create(part: u32) -> String {
    let undated = if part == UNDATED {
        format!("CREATE INDEX part_0_age ON part_0 (changed) WHERE state = {FINISHED};")
    } else {
        String::new()
    };
    format!(
        "CREATE TABLE part_{part} (
            row INTEGER PRIMARY KEY,
            id BLOB NOT NULL UNIQUE,
            state INTEGER NOT NULL,
            fence INTEGER NOT NULL,
            holder BLOB,
            recorded_fence INTEGER,
            recorded_by BLOB,
            recorded_state INTEGER,
            cancel INTEGER NOT NULL,
            hold INTEGER NOT NULL,
            doubt INTEGER NOT NULL,
            changed INTEGER NOT NULL,
            due INTEGER,
            wake INTEGER,
            priority INTEGER NOT NULL,
            reason TEXT NOT NULL,
            transport TEXT,
            destination TEXT,
            progress BLOB NOT NULL,
            head BLOB
        ) STRICT;
        CREATE TABLE body_{part} (row INTEGER PRIMARY KEY, message BLOB NOT NULL) STRICT;
        {undated}
        CREATE TRIGGER part_{part}_enters AFTER INSERT ON part_{part} WHEN NEW.state < {FINISHED} BEGIN
            INSERT INTO queue (part, row, state, priority, due, wake, transport, destination, holder, since)
            VALUES ({part}, NEW.row, NEW.state, NEW.priority, NEW.due, NEW.wake, ifnull(NEW.transport, ''),
                    ifnull(NEW.destination, ''), NEW.holder, NEW.changed);
            UPDATE counts SET n = n + 1 WHERE part = {part} AND state = NEW.state;
        END;
        CREATE TRIGGER part_{part}_moves AFTER UPDATE OF state, priority, due, wake, transport, destination, holder
        ON part_{part} WHEN OLD.state < {FINISHED} AND NEW.state < {FINISHED} BEGIN
            UPDATE queue SET state = NEW.state, priority = NEW.priority, due = NEW.due, wake = NEW.wake,
                transport = ifnull(NEW.transport, ''), destination = ifnull(NEW.destination, ''), holder = NEW.holder
            WHERE part = {part} AND row = NEW.row;
            UPDATE counts SET n = n - 1 WHERE part = {part} AND state = OLD.state;
            UPDATE counts SET n = n + 1 WHERE part = {part} AND state = NEW.state;
        END;
        CREATE TRIGGER part_{part}_leaves AFTER UPDATE OF state ON part_{part}
        WHEN OLD.state < {FINISHED} AND NEW.state = {FINISHED} BEGIN
            DELETE FROM queue WHERE part = {part} AND row = NEW.row;
            UPDATE counts SET n = n - 1 WHERE part = {part} AND state = OLD.state;
        END;
        INSERT INTO parts (part) VALUES ({part});
        INSERT INTO counts (part, state, n) VALUES
            ({part}, {WAITING}, 0), ({part}, {CLAIMED}, 0), ({part}, {HELD}, 0), ({part}, {DEAD}, 0);"
    )
}

/// The texts of the parts seen, made once each.
#[derive(Debug, Default)]
pub(super) struct Statements(HashMap<u32, Arc<Sql>>);

impl Statements {
    fn of(&mut self, part: u32) -> Arc<Sql> {
        let made = self
            .0
            .entry(part)
            .or_insert_with(|| Arc::new(Sql::new(part)));
        Arc::clone(made)
    }
}

/// A transaction and the parts that there are in it.
pub(super) struct Scope<'a> {
    pub transaction: &'a Transaction<'a>,
    parts: Vec<u32>,
    statements: &'a mut Statements,
}

impl<'a> Scope<'a> {
    pub fn begin(
        transaction: &'a Transaction<'a>,
        statements: &'a mut Statements,
    ) -> rusqlite::Result<Self> {
        let parts = transaction
            .prepare_cached("SELECT part FROM parts ORDER BY part")?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<u32>>>()?;
        if statements.0.len() > parts.len() {
            statements
                .0
                .retain(|part, _| parts.binary_search(part).is_ok());
        }
        Ok(Self {
            transaction,
            parts,
            statements,
        })
    }

    /// All parts, oldest first; derived ids before all.
    pub fn parts(&self) -> &[u32] {
        &self.parts
    }

    /// A part that exists.
    pub fn part(&mut self, part: u32) -> Option<Arc<Sql>> {
        self.parts.binary_search(&part).ok()?;
        Some(self.statements.of(part))
    }

    /// A part, made now if it does not exist.
    pub fn part_or_new(&mut self, part: u32) -> rusqlite::Result<Arc<Sql>> {
        if let Err(place) = self.parts.binary_search(&part) {
            self.transaction.execute_batch(&create(part))?;
            self.parts.insert(place, part);
            tracing::info!(part, "store: a part begins");
        }
        Ok(self.statements.of(part))
    }
}

/// Dated parts from before that day.
pub(super) fn older_than(scope: &mut Scope<'_>, before: u32) -> rusqlite::Result<Vec<u32>> {
    let dated = |part: &&u32| **part != UNDATED && **part < before;
    Ok(scope.parts().iter().filter(dated).copied().collect())
}

/// Drops a part unless something in it is unfinished, or another process was quicker.
pub(super) fn drop_if_done(scope: &mut Scope<'_>, part: u32) -> rusqlite::Result<bool> {
    if scope.parts.binary_search(&part).is_err() {
        return Ok(false);
    }
    let unfinished = scope
        .transaction
        .query_row(
            "SELECT 1 FROM counts WHERE part = ?1 AND n <> 0 LIMIT 1",
            [part],
            |_| Ok(()),
        )
        .optional()?;
    if unfinished.is_some() {
        return Ok(false);
    }
    scope.transaction.execute_batch(&format!(
        "DROP TABLE part_{part}; DROP TABLE body_{part};
         DELETE FROM counts WHERE part = {part}; DELETE FROM parts WHERE part = {part};"
    ))?;
    tracing::info!(part, "store: a part is dropped");
    Ok(true)
}

/// Deletes what has finished under derived ids before that day: how many, and whether there is more.
pub(super) fn prune_derived(scope: &mut Scope<'_>, before: u32) -> rusqlite::Result<(u32, bool)> {
    if scope.part(UNDATED).is_none() {
        return Ok((0, false));
    }
    let deleted = scope.transaction.execute(
        &format!(
            "DELETE FROM part_0 WHERE row IN (SELECT row FROM part_0 INDEXED BY part_0_age \
             WHERE state = {FINISHED} AND changed < ?1 ORDER BY changed LIMIT ?2)"
        ),
        params![i64::from(before) * DAY_MS, DERIVED_PRUNED_MAX as i64],
    )?;
    Ok((
        u32::try_from(deleted).unwrap_or(u32::MAX),
        deleted == DERIVED_PRUNED_MAX,
    ))
}
