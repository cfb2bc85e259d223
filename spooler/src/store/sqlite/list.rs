//! What people ask for by a filter, a slice at a time.
//!
//! `queue` knows state, transport and destination of what is not finished, so that a head is opened only where they fit. Every
//! question walks an index from a place on, and no further than [`SLICE_SEEN_MAX`] entries.

use pombo_proto::control::{QueueFilter, QueueState};
use rusqlite::params;
use uuid::Uuid;

use super::{
    super::{
        Place, Slice,
        stored::{CLAIMED, DEAD, FINISHED, FINISHED_SEEN_MAX, HELD, Listed, SLICE_SEEN_MAX},
    },
    parts::Scope,
    rows::{head_of, read},
};

/// Entries of one of the indexes that are in the order of age, from a place on. The states stand in the text: only so does SQLite
/// see that an index of some states will do.
macro_rules! entries {
    ($index:literal, $and:literal) => {
        concat!(
            "SELECT part, row, since, state, transport, destination FROM queue INDEXED BY ",
            $index,
            " WHERE ",
            $and,
            "(since, part, row) > (?1, ?2, ?3) ORDER BY since, part, row LIMIT ?4"
        )
    };
}
const ALL: &str = entries!("queue_since", "");
const IN_DOUBT: &str = entries!("queue_in_doubt", "in_doubt > 0 AND ");
const MOVING: &str = entries!("queue_apart", "state = 2 AND ");
const OF_HELD: &str = entries!("queue_apart", "state = 3 AND ");
const OF_DEAD: &str = entries!("queue_apart", "state = 4 AND ");

/// What stands in the texts above and is a constant elsewhere.
const _: () = assert!(CLAIMED == 2 && HELD == 3 && DEAD == 4);

pub(super) fn list(
    scope: &mut Scope<'_>,
    filter: &QueueFilter,
    rows: usize,
    after: Option<&Place>,
) -> rusqlite::Result<Slice> {
    let mut listed = Listed::new(filter, rows);
    let next = if filter.state == Some(QueueState::Finished) {
        finished(scope, &mut listed, after)?
    } else {
        unfinished(scope, &mut listed, after)?
    };
    Ok(Slice {
        rows: listed.rows,
        next,
    })
}

fn entries(filter: &QueueFilter) -> &'static str {
    match filter.state {
        _ if filter.in_doubt => IN_DOUBT,
        Some(QueueState::Moving) => MOVING,
        Some(QueueState::Held) => OF_HELD,
        Some(QueueState::Dead) => OF_DEAD,
        Some(QueueState::Waiting | QueueState::Finished) | None => ALL,
    }
}

/// By the queue, which knows all but sender and recipients.
fn unfinished(
    scope: &mut Scope<'_>,
    listed: &mut Listed<'_>,
    after: Option<&Place>,
) -> rusqlite::Result<Option<Place>> {
    let transaction = scope.transaction;
    let (mut place, mut seen) = (after.copied(), 0);
    let (at, part, row) = after.map_or((i64::MIN, 0, i64::MIN), |it| (it.at, it.part, it.row));
    let mut queue = transaction.prepare_cached(entries(listed.filter))?;
    let mut entries = queue.query(params![at, part, row, SLICE_SEEN_MAX as i64])?;
    while let Some(entry) = entries.next()? {
        if listed.is_full() {
            return Ok(place);
        }
        seen += 1;
        let (part, number): (u32, i64) = (entry.get(0)?, entry.get(1)?);
        place = Some(Place {
            at: entry.get(2)?,
            part,
            row: number,
            id: Uuid::nil(),
            seen: 0,
        });
        let (transport, destination) = (entry.get_ref(4)?, entry.get_ref(5)?);
        if !listed.may_fit(entry.get(3)?, transport.as_str()?, destination.as_str()?) {
            continue;
        }
        let Some(sql) = scope.part(part) else {
            continue;
        };
        let (_, mut row) = transaction
            .prepare_cached(&sql.row_by_number)?
            .query_row([number], read)?;
        row.data.message = head_of(scope, &sql, number)?;
        listed.offer(row);
    }
    Ok(place.filter(|_| seen == SLICE_SEEN_MAX))
}

/// The newest first, by part and row. The others of a part are stepped over, and counted: they may be a million.
fn finished(
    scope: &mut Scope<'_>,
    listed: &mut Listed<'_>,
    after: Option<&Place>,
) -> rusqlite::Result<Option<Place>> {
    let transaction = scope.transaction;
    let mut place = after.copied().unwrap_or(Place {
        at: 0,
        part: u32::MAX,
        row: i64::MAX,
        id: Uuid::nil(),
        seen: 0,
    });
    let mut looked_at = 0;
    for part in scope.parts().to_vec().into_iter().rev() {
        if part > place.part {
            continue;
        }
        if part < place.part {
            (place.part, place.row) = (part, i64::MAX);
        }
        let Some(sql) = scope.part(part) else {
            continue;
        };
        let mut statement = transaction.prepare_cached(&sql.newest)?;
        let mut rows = statement.query(params![place.row, (SLICE_SEEN_MAX - looked_at) as i64])?;
        while let Some(found) = rows.next()? {
            if listed.is_full() {
                return Ok(Some(place));
            }
            looked_at += 1;
            place.row = found.get(0)?;
            if found.get::<_, i64>(2)? != FINISHED {
                continue;
            }
            place.seen += 1;
            if place.seen > FINISHED_SEEN_MAX {
                return Ok(None);
            }
            listed.offer(read(found)?.1);
        }
        if looked_at == SLICE_SEEN_MAX {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Options, Sqlite},
        *,
    };

    #[test]
    fn every_list_is_read_from_its_index_and_in_its_order() {
        let directory = tempfile::tempdir().unwrap();
        let store = Sqlite::open(directory.path().join("store.db"), Options::default()).unwrap();
        let connection = store.connection.unwrap();
        let plan = |sql: &str| -> Vec<String> {
            let mut explained = connection
                .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
                .unwrap();
            let lines = explained.query_map(params![0, 0, 0, 9], |row| row.get(3));
            lines.unwrap().map(Result::unwrap).collect()
        };
        let of_age = "((since,part,row)>(?,?,?))";
        let of_state = "(state=? AND (since,part,row)>(?,?,?))";
        for (sql, index, by) in [
            (ALL, "queue_since", of_age),
            (IN_DOUBT, "queue_in_doubt", of_age),
            (MOVING, "queue_apart", of_state),
            (OF_HELD, "queue_apart", of_state),
            (OF_DEAD, "queue_apart", of_state),
        ] {
            let expected = format!("SEARCH queue USING INDEX {index} {by}");
            assert_eq!(plan(sql), [expected], "{sql}");
        }
    }
}
