//! The file: full, locked, away, foreign: said by code, and usable once the cause is gone.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use pombo_proto::{control::QueueState, frame::encoded_head, time::UnixMillis};
use pombo_spooler::store::{
    Change, Error, Options, Pruned, RowData, Sqlite, Store, Write, Written,
};

use super::Shared;
use crate::support::*;

fn impatient() -> Options {
    Options {
        busy_timeout: Duration::from_millis(10),
        size_max: None,
    }
}

fn large() -> RowData {
    RowData {
        message: message("ann@example.org", "bob@example.net", &[b'x'; 30_000]).encoded,
        ..waiting(NOW)
    }
}

#[test]
fn a_full_store_says_so_writes_nothing_and_can_still_finish_what_it_has() {
    let file = Shared::new();
    let (_, me) = file.joined();
    let options = Options {
        size_max: Some(1_000_000),
        ..Options::default()
    };
    let mut store = Sqlite::open(file.path(), options).unwrap();
    let mut kept = Vec::new();
    let error = loop {
        let id = file.id();
        match store.commit(NOW, &[Write::Move { id, row: large() }]) {
            Ok(answers) => {
                assert_eq!(answers, [Written::Won]);
                kept.push(id);
            }
            Err(error) => break error,
        }
        assert!(kept.len() < 100);
    };
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert_eq!(store.counts().unwrap().waiting, kept.len() as u64);
    let half = [
        Write::Move {
            id: file.id(),
            row: large(),
        },
        record(file.id(), 0, me, finished()),
    ];
    assert!(matches!(
        store.commit(NOW, &half),
        Err(Error::Unavailable(_))
    ));
    assert_eq!(store.counts().unwrap().waiting, kept.len() as u64);

    let claims = store.claim_all(me);
    assert_eq!(claims.len(), kept.len());
    let head = encoded_head(&message(
        "ann@example.org",
        "bob@example.net",
        &[b'x'; 30_000],
    ));
    for claim in &claims {
        let row = RowData {
            message: head.clone(),
            ..finished()
        };
        assert_eq!(store.one(record(claim.id, 1, me, row)), Written::Won);
    }
    // And there is room again.
    store.moved(file.id(), large());
}

#[test]
fn a_locked_store_says_so_and_goes_on_when_the_lock_is_gone() {
    let file = Shared::new();
    let mut store = Sqlite::open(file.path(), impatient()).unwrap();
    let id = file.id();
    let other = file.raw();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let write = [Write::Move {
        id,
        row: waiting(NOW),
    }];
    let refused = store.commit(NOW, &write);
    assert!(matches!(refused, Err(Error::Unavailable(_))));
    assert!(store.get(id).unwrap().is_none());
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(store.commit(NOW, &write).unwrap(), [Written::Won]);
}

#[test]
fn a_connection_that_may_be_damaged_is_opened_anew() {
    let file = Shared::new();
    let mut store = file.open();
    let other = file.raw();
    other
        .execute_batch("ALTER TABLE members RENAME TO gone")
        .unwrap();
    assert!(matches!(store.members(), Err(Error::Unusable(_))));
    other
        .execute_batch("ALTER TABLE gone RENAME TO members")
        .unwrap();
    assert_eq!(store.members().unwrap(), []);
}

#[test]
fn a_directory_that_is_away_is_unavailable() {
    let file = Shared::new();
    let path = file.path().join("no").join("store.db");
    let refused = Sqlite::open(path, Options::default());
    assert!(matches!(refused, Err(Error::Unavailable(_))));
}

#[test]
fn a_foreign_file_is_refused_and_left_as_it_is() {
    let file = Shared::new();
    file.raw().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let before = std::fs::read(file.path()).unwrap();
    let refused = Sqlite::open(file.path(), Options::default());
    assert!(matches!(refused, Err(Error::Unusable(_))));
    assert_eq!(std::fs::read(file.path()).unwrap(), before);
}

#[test]
fn a_file_that_is_no_database_is_refused() {
    let file = Shared::new();
    std::fs::write(file.path(), vec![b'x'; 5_000]).unwrap();
    let refused = Sqlite::open(file.path(), Options::default());
    assert!(matches!(refused, Err(Error::Unusable(_))));
}

#[test]
fn a_newer_version_is_refused() {
    let file = Shared::new();
    drop(file.open());
    file.raw().pragma_update(None, "user_version", 999).unwrap();
    let refused = Sqlite::open(file.path(), Options::default());
    assert!(matches!(refused, Err(Error::Unusable(_))));
}

#[test]
fn the_file_is_for_its_owner_alone() {
    let file = Shared::new();
    let mut store = file.open();
    store.moved(file.id(), waiting(NOW));
    for name in ["store.db", "store.db-wal"] {
        let path = file.path().with_file_name(name);
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn processes_that_start_at_once_make_one_store() {
    for _ in 0..10 {
        let file = Shared::new();
        let ids: Vec<_> = (0..4).map(|_| file.id()).collect();
        let racers: Vec<_> = ids
            .iter()
            .map(|&id| {
                let path = file.path();
                std::thread::spawn(move || {
                    let mut store = Sqlite::open(path, Options::default()).unwrap();
                    store.moved(id, waiting(NOW));
                })
            })
            .collect();
        for racer in racers {
            racer.join().unwrap();
        }
        assert_eq!(file.open().counts().unwrap().waiting, 4);
    }
}

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let id = file.id();
    store.moved(id, waiting(NOW));
    store.claim_all(me);
    store.change(NOW, id, Change::Hold).unwrap();
    drop(store);
    let mut store = file.open();
    assert_eq!(store.row(id).holder, Some(me));
    store.one(record(id, 1, me, waiting(NOW)));
    assert_eq!(store.row(id).data.state, QueueState::Held);
}

#[test]
fn the_parts_of_a_file_of_version_1_are_brought_up_with_what_is_in_them() {
    let file = Shared::new();
    let id = file.id();
    let part = id.part();
    file.joined().0.moved(id, waiting(NOW));
    // Back to what version 1 made.
    let columns = ["in_doubt", "deaths", "note", "unsure_since", "asks"];
    let columns = columns.map(|it| format!("ALTER TABLE part_{part} DROP COLUMN {it};"));
    let triggers = ["enters", "moves", "leaves"];
    let dropped = triggers.map(|it| format!("DROP TRIGGER part_{part}_{it};"));
    let made = triggers.map(|it| {
        format!("CREATE TRIGGER part_{part}_{it} AFTER UPDATE OF wake ON part_{part} BEGIN SELECT 1; END;")
    });
    let raw = file.raw();
    raw.execute_batch(&format!(
        "{} {} {} DROP INDEX queue_in_doubt; DROP INDEX queue_apart; ALTER TABLE queue DROP COLUMN in_doubt;
         ALTER TABLE instances DROP COLUMN counter; ALTER TABLE instances DROP COLUMN struck;
         DROP TABLE accounts; DROP TABLE pages; DROP TABLE chores;
         PRAGMA user_version = 1;",
        dropped.concat(),
        columns.concat(),
        made.concat(),
    ))
    .unwrap();
    drop(raw);
    let (mut store, me) = file.joined();
    assert_eq!(store.claim_all(me).len(), 1);
    let in_doubt = RowData {
        in_doubt: 1,
        ..waiting(NOW)
    };
    store.one(record(id, 1, me, in_doubt));
    assert_eq!(store.counts().unwrap().in_doubt, 1);
    assert_eq!(store.counts().unwrap().waiting, 1);
}

#[test]
fn a_large_part_goes_in_steps_and_others_write_between_them() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let old = UnixMillis(NOW.0 - 9 * DAY);
    let writes: Vec<_> = (0..20_500)
        .map(|_| record(file.id_at(old), 0, me, finished()))
        .collect();
    for some in writes.chunks(5_000) {
        store.commit(NOW, some).unwrap();
    }
    let left = || -> i64 {
        let sql = format!("SELECT count(*) FROM part_{}", old.day());
        file.raw().query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    let step = store.prune(NOW.day() + 1).unwrap();
    assert_eq!((step.parts, step.more, left()), (0, true, 500));
    // What comes for that day meanwhile stays, and so does the rest of the part.
    let late = file.id_at(old);
    file.open().moved(late, waiting(NOW));
    assert_eq!(store.prune(NOW.day() + 1).unwrap(), Pruned::default());
    assert_eq!(left(), 501);
    assert_eq!(store.claim_all(me).len(), 1);
    store.one(record(late, 1, me, finished()));
    let step = store.prune(NOW.day() + 1).unwrap();
    assert_eq!((step.parts, step.more), (1, true));
    assert_eq!(store.prune(NOW.day()).unwrap(), Pruned::default());
    assert_eq!(file.dated_parts(), 0);
}
