//! Parts: one pair of tables per day of issue, and one for derived ids (number 0).
//!
//! `part_N` holds one row per message, small: it is what every write decides by, and all that is left of a finished one.
//! `body_N` holds the encoded message while it waits, under the same row number, so that a claim or a retry does not rewrite
//! it. Both are rowid tables with an index on the id: rows of some 700 bytes would make a clustered tree of fan-out five.
//!
//! A part is made by the first write that needs it. Once nothing in it is unfinished, its rows go by their last change, and it is
//! dropped when none is left: what waited or was held for longer than its day is kept has its own time. Any process may do
//! either, so the list of parts is read at the start of every transaction (some microseconds). A drop takes time by the row, and
//! writes of other processes wait for it: so the rows go first, in steps, and then what is left of the part.

use std::{collections::HashMap, sync::Arc};

use rusqlite::{OptionalExtension, Transaction, params};

use super::super::stored::{
    CLAIMED, DAY_MS, DEAD, FINISHED, HELD, PRUNED_MAX, PartStep, UNDATED, WAITING,
};

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
    pub newest: String,
    pub mark: String,
    pub marks: String,
    pub progress: String,
    pub set_progress: String,
    pub give_back: String,
    pub note: String,
    pub forget_deaths: String,
}

/// A fresh cancel is known to whoever claims the row next.
const SEEN: &str = "iif(cancel = 2, 1, cancel)";

/// What a row is read by; in the order that [`super::rows`] expects.
const COLUMNS: &str = "row, id, state, fence, holder, cancel, changed, due, priority, doubt, reason, transport, \
                       destination, progress, head, wake, in_doubt, deaths, unsure_since";

/// In `record`: the row is left with the doubt that it was claimed with.
const GIVEN_BACK: &str = "?6 AND doubt AND unsure_since = ?18";

impl Sql {
    fn new(part: u32) -> Self {
        let (rows, bodies) = (format!("part_{part}"), format!("body_{part}"));
        Self {
            insert: format!(
                "INSERT INTO {rows} (id, state, fence, holder, recorded_fence, recorded_by, recorded_state, cancel, \
                 hold, doubt, changed, due, priority, reason, transport, destination, progress, head, wake, in_doubt, \
                 deaths, unsure_since) \
                 VALUES (?1, ?2, 0, NULL, ?3, ?4, ?5, 0, 0, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18) \
                 ON CONFLICT (id) DO NOTHING"
            ),
            insert_body: format!("INSERT INTO {bodies} (row, message) VALUES (?1, ?2)"),
            find: format!(
                "SELECT row, state, fence, holder, recorded_fence, recorded_by, recorded_state, cancel, hold \
                 FROM {rows} WHERE id = ?1"
            ),
            record: format!(
                "UPDATE {rows} SET state = ?2, holder = NULL, recorded_fence = iif({GIVEN_BACK}, recorded_fence, fence), \
                 recorded_by = iif({GIVEN_BACK}, recorded_by, ?3), recorded_state = iif({GIVEN_BACK}, recorded_state, ?4), \
                 cancel = ?5, hold = 0, doubt = ?6, changed = ?7, due = ?8, priority = ?9, \
                 reason = ?10, transport = ?11, destination = ?12, progress = ?13, head = ?14, wake = ?15, \
                 in_doubt = ?16, deaths = ?17, note = iif(?6, note, NULL), unsure_since = ?18, \
                 asks = iif(?6, asks, '') WHERE row = ?1"
            ),
            replace_body: format!(
                "UPDATE {bodies} SET message = ?2 WHERE row = ?1 AND message <> ?2"
            ),
            delete_body: format!("DELETE FROM {bodies} WHERE row = ?1"),
            read_body: format!("SELECT message FROM {bodies} WHERE row = ?1"),
            take: format!(
                "UPDATE {rows} SET state = {CLAIMED}, fence = fence + 1, holder = ?2, cancel = {SEEN}, \
                 changed = ?3, due = NULL, wake = NULL, unsure_since = iif(doubt, unsure_since, ?3), \
                 asks = iif(doubt AND asks <> ?4, '', ?4) \
                 WHERE row = ?1 AND state = {WAITING} \
                 RETURNING id, fence, doubt, cancel, progress, deaths, note, unsure_since, asks"
            ),
            note: format!("UPDATE {rows} SET note = ?2 WHERE row = ?1"),
            forget_deaths: format!("UPDATE {rows} SET deaths = 0, note = NULL WHERE row = ?1"),
            row_by_id: format!("SELECT {COLUMNS} FROM {rows} WHERE id = ?1"),
            row_by_number: format!("SELECT {COLUMNS} FROM {rows} WHERE row = ?1"),
            newest: format!(
                "SELECT {COLUMNS} FROM {rows} WHERE row < ?1 ORDER BY row DESC LIMIT ?2"
            ),
            mark: format!(
                "UPDATE {rows} SET state = ?2, due = ?3, wake = ?3, cancel = ?4, hold = ?5, changed = ?6 WHERE row = ?1"
            ),
            marks: format!("SELECT cancel, hold FROM {rows} WHERE row = ?1"),
            progress: format!("SELECT progress FROM {rows} WHERE row = ?1"),
            set_progress: format!("UPDATE {rows} SET progress = ?2 WHERE row = ?1"),
            give_back: format!(
                "UPDATE {rows} SET state = ?2, due = ?3, wake = ?3, cancel = {SEEN}, hold = 0, holder = NULL, \
                 doubt = 1, deaths = deaths + ?6, changed = ?4, reason = ?5 WHERE row = ?1"
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
            head BLOB,
            in_doubt INTEGER NOT NULL DEFAULT 0,
            deaths INTEGER NOT NULL DEFAULT 0,
            note BLOB,
            unsure_since INTEGER NOT NULL DEFAULT 0,
            asks TEXT NOT NULL DEFAULT ''
        ) STRICT;
        CREATE TABLE body_{part} (row INTEGER PRIMARY KEY, message BLOB NOT NULL) STRICT;
        {undated}
        {triggers}
        INSERT INTO parts (part) VALUES ({part});
        INSERT INTO counts (part, state, n) VALUES
            ({part}, {WAITING}, 0), ({part}, {CLAIMED}, 0), ({part}, {HELD}, 0), ({part}, {DEAD}, 0);",
        triggers = triggers(part)
    )
}

fn triggers(part: u32) -> String {
    format!(
        "CREATE TRIGGER part_{part}_enters AFTER INSERT ON part_{part} WHEN NEW.state < {FINISHED} BEGIN
            INSERT INTO queue (part, row, state, priority, due, wake, transport, destination, holder, since, in_doubt)
            VALUES ({part}, NEW.row, NEW.state, NEW.priority, NEW.due, NEW.wake, ifnull(NEW.transport, ''),
                    ifnull(NEW.destination, ''), NEW.holder, NEW.changed, NEW.in_doubt);
            UPDATE counts SET n = n + 1 WHERE part = {part} AND state = NEW.state;
        END;
        CREATE TRIGGER part_{part}_moves AFTER UPDATE OF state, priority, due, wake, transport, destination, holder, in_doubt
        ON part_{part} WHEN OLD.state < {FINISHED} AND NEW.state < {FINISHED} BEGIN
            UPDATE queue SET state = NEW.state, priority = NEW.priority, due = NEW.due, wake = NEW.wake,
                transport = ifnull(NEW.transport, ''), destination = ifnull(NEW.destination, ''), holder = NEW.holder,
                in_doubt = NEW.in_doubt
            WHERE part = {part} AND row = NEW.row;
            UPDATE counts SET n = n - 1 WHERE part = {part} AND state = OLD.state;
            UPDATE counts SET n = n + 1 WHERE part = {part} AND state = NEW.state;
        END;
        CREATE TRIGGER part_{part}_leaves AFTER UPDATE OF state ON part_{part}
        WHEN OLD.state < {FINISHED} AND NEW.state = {FINISHED} BEGIN
            DELETE FROM queue WHERE part = {part} AND row = NEW.row;
            UPDATE counts SET n = n - 1 WHERE part = {part} AND state = OLD.state;
        END;"
    )
}

/// Brings the parts of a file of version 1 to what [`create`] makes.
pub(super) fn add_doubt(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    for part in all(transaction)? {
        transaction.execute_batch(&format!(
            "ALTER TABLE part_{part} ADD COLUMN in_doubt INTEGER NOT NULL DEFAULT 0;
             ALTER TABLE part_{part} ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0;
             ALTER TABLE part_{part} ADD COLUMN note BLOB;
             DROP TRIGGER part_{part}_enters; DROP TRIGGER part_{part}_moves; DROP TRIGGER part_{part}_leaves;
             {}",
            triggers(part)
        ))?;
    }
    Ok(())
}

/// The same for one of version 2. What is in doubt there may have been with anybody.
pub(super) fn add_unsure_since(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    for part in all(transaction)? {
        transaction.execute_batch(&format!(
            "ALTER TABLE part_{part} ADD COLUMN unsure_since INTEGER NOT NULL DEFAULT 0"
        ))?;
    }
    Ok(())
}

/// The same for one of version 5. Nobody is known to have asked.
pub(super) fn add_asks(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    for part in all(transaction)? {
        transaction.execute_batch(&format!(
            "ALTER TABLE part_{part} ADD COLUMN asks TEXT NOT NULL DEFAULT ''"
        ))?;
    }
    Ok(())
}

fn all(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<u32>> {
    transaction
        .prepare_cached("SELECT part FROM parts ORDER BY part")?
        .query_map([], |row| row.get(0))?
        .collect()
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
        let parts = all(transaction)?;
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

/// The first of them in which nothing is unfinished, and something had its last change before that day.
pub(super) fn ripe_before(scope: &mut Scope<'_>, before: u32) -> rusqlite::Result<Option<u32>> {
    for part in older_than(scope, before)? {
        if is_done(scope, part)? && (is_empty(scope, part)? || has_old(scope, part, before)?) {
            return Ok(Some(part));
        }
    }
    Ok(None)
}

fn is_empty(scope: &Scope<'_>, part: u32) -> rusqlite::Result<bool> {
    let sql = format!("SELECT NOT EXISTS (SELECT 1 FROM part_{part})");
    scope.transaction.query_row(&sql, [], |row| row.get(0))
}

/// Reads the whole part if nothing in it is: by then, that is what finished late.
fn has_old(scope: &Scope<'_>, part: u32, before: u32) -> rusqlite::Result<bool> {
    let sql = format!("SELECT EXISTS (SELECT 1 FROM part_{part} WHERE changed < ?1)");
    let before = i64::from(before) * DAY_MS;
    scope
        .transaction
        .query_row(&sql, [before], |row| row.get(0))
}

fn is_done(scope: &Scope<'_>, part: u32) -> rusqlite::Result<bool> {
    let unfinished = scope
        .transaction
        .prepare_cached("SELECT 1 FROM counts WHERE part = ?1 AND n <> 0 LIMIT 1")?
        .query_row([part], |_| Ok(()))
        .optional()?;
    Ok(unfinished.is_none())
}

/// Takes some of the rows whose last change was before that day, and drops the part once none is left: a drop walks through all
/// pages, and nobody else can write meanwhile.
pub(super) fn prune(scope: &mut Scope<'_>, part: u32, before: u32) -> rusqlite::Result<PartStep> {
    if scope.parts.binary_search(&part).is_err() || !is_done(scope, part)? {
        return Ok(PartStep::Stays);
    }
    let deleted = scope.transaction.execute(
        &format!(
            "DELETE FROM part_{part} WHERE row IN \
             (SELECT row FROM part_{part} WHERE changed < ?1 ORDER BY row LIMIT ?2)"
        ),
        params![i64::from(before) * DAY_MS, PRUNED_MAX as i64],
    )?;
    if deleted == PRUNED_MAX || !is_empty(scope, part)? {
        return Ok(if deleted == 0 {
            PartStep::Stays
        } else {
            PartStep::Shrunk
        });
    }
    scope.transaction.execute_batch(&format!(
        "DROP TABLE part_{part}; DROP TABLE body_{part};
         DELETE FROM counts WHERE part = {part}; DELETE FROM parts WHERE part = {part};"
    ))?;
    tracing::info!(part, "store: a part is dropped");
    Ok(PartStep::Dropped)
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
        params![i64::from(before) * DAY_MS, PRUNED_MAX as i64],
    )?;
    Ok((
        u32::try_from(deleted).unwrap_or(u32::MAX),
        deleted == PRUNED_MAX,
    ))
}
