//! What is claimed, in which order, past what is excluded, by how many.

use std::collections::HashSet;

use pombo_proto::{
    ids::{DoorSequence, MessageId},
    message::Priority,
    time::UnixMillis,
};
use pombo_spooler::store::{ClaimRequest, RowData, Store, Write};

use super::{Opened, Shared};
use crate::support::*;

fn minus(ms: u64) -> UnixMillis {
    UnixMillis(NOW.0 - ms)
}

/// Many rows, in commits of a hundred.
fn fill(store: &mut Opened, file: &Shared, n: usize, row: &RowData) -> HashSet<MessageId> {
    let writes: Vec<Write> = (0..n)
        .map(|_| Write::Move {
            id: file.id(),
            row: row.clone(),
        })
        .collect();
    for hundred in writes.chunks(100) {
        store.commit(NOW, hundred).unwrap();
    }
    writes
        .iter()
        .map(|write| match write {
            Write::Move { id, .. }
            | Write::Record {
                tenancy: pombo_proto::verbs::Tenancy { id, .. },
                ..
            }
            | Write::Note {
                tenancy: pombo_proto::verbs::Tenancy { id, .. },
                ..
            } => *id,
        })
        .collect()
}

#[test]
fn urgent_ones_first_then_the_oldest_due_across_parts() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let yesterday = file.id_at(minus(DAY));
    let derived = MessageId::derived("test", b"1");
    let (today, urgent, bulk, later) = (file.id(), file.id(), file.id(), file.id());
    let with = |priority, due| RowData {
        priority,
        ..waiting(due)
    };
    store.moved(bulk, with(Priority::Bulk, minus(9_000)));
    store.moved(today, with(Priority::Normal, minus(100)));
    store.moved(yesterday, with(Priority::Normal, minus(50)));
    store.moved(derived, with(Priority::Normal, minus(200)));
    store.moved(urgent, with(Priority::Urgent, minus(1)));
    store.moved(later, with(Priority::Urgent, UnixMillis(NOW.0 + 1)));
    assert_eq!(store.next_due().unwrap(), Some(minus(9_000)));
    let order: Vec<MessageId> = store.claim_all(me).iter().map(|claim| claim.id).collect();
    assert_eq!(order, [urgent, derived, today, yesterday, bulk]);
    assert_eq!(store.next_due().unwrap(), Some(UnixMillis(NOW.0 + 1)));
}

#[test]
fn what_must_wake_is_claimed_from_among_any_number_of_excluded_ones() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    fill(&mut store, &file, 2_500, &to("away", "a", minus(9_000)));
    let expires = |wake| RowData {
        wake: Some(wake),
        ..to("away", "a", minus(10))
    };
    let (now, later) = (file.id(), file.id());
    store.moved(now, expires(NOW));
    store.moved(later, expires(UnixMillis(NOW.0 + 1)));
    let request = ClaimRequest {
        limit: 16,
        excluded: vec![("away".to_owned(), None)],
        ..everything(me, NOW)
    };
    let claimed = store.claim(&request).unwrap();
    let claimed: Vec<MessageId> = claimed.iter().map(|it| it.id).collect();
    assert_eq!(claimed, [now]);
    assert_eq!(store.claim(&request).unwrap().len(), 0);
}

#[test]
fn a_claim_keeps_to_its_rows_and_its_bytes_but_takes_at_least_one() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let mut large = waiting(NOW);
    large.message = vec![7; 10_000].into();
    fill(&mut store, &file, 10, &large);
    let mut claim = |limit, bytes| {
        let request = ClaimRequest {
            limit,
            bytes,
            ..everything(me, NOW)
        };
        store.claim(&request).unwrap().len()
    };
    assert_eq!(claim(3, usize::MAX), 3);
    assert_eq!(claim(100, 25_000), 2);
    assert_eq!(claim(100, 1), 1);
    assert_eq!(claim(0, usize::MAX), 0);
    assert_eq!(claim(100, usize::MAX), 4);
}

#[test]
fn excluded_destinations_and_transports_are_passed_over() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    store.moved(file.id(), to("smtp", "down.example", NOW));
    let up = file.id();
    store.moved(up, to("smtp", "up.example", NOW));
    store.moved(file.id(), to("maildir", "a", NOW));
    let unrouted = file.id();
    store.moved(
        unrouted,
        RowData {
            transport: None,
            destination: None,
            ..waiting(NOW)
        },
    );
    let request = ClaimRequest {
        excluded: vec![
            ("smtp".to_owned(), Some("down.example".to_owned())),
            ("maildir".to_owned(), Some("b".to_owned())),
            ("maildir".to_owned(), None),
        ],
        ..everything(me, NOW)
    };
    let claimed: HashSet<MessageId> = store
        .claim(&request)
        .unwrap()
        .iter()
        .map(|claim| claim.id)
        .collect();
    assert_eq!(claimed, HashSet::from([up, unrouted]));
}

/// 5,000 due rows stand before it: more than a walk in order steps over.
#[test]
fn a_row_behind_very_many_excluded_ones_is_found_at_once() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    fill(
        &mut store,
        &file,
        2_500,
        &to("smtp", "down.example", minus(2)),
    );
    fill(&mut store, &file, 2_500, &to("gone", "anywhere", minus(2)));
    let behind = fill(&mut store, &file, 3, &to("smtp", "up.example", minus(1)));
    let request = ClaimRequest {
        limit: 2,
        excluded: vec![
            ("gone".to_owned(), None),
            ("smtp".to_owned(), Some("down.example".to_owned())),
        ],
        ..everything(me, NOW)
    };
    let mut claimed = HashSet::new();
    for expected in [2, 1, 0, 0] {
        let claims = store.claim(&request).unwrap();
        assert_eq!(claims.len(), expected);
        claimed.extend(claims.iter().map(|claim| claim.id));
    }
    assert_eq!(claimed, behind);
}

/// The walk in order is filled by normal rows for ever; the urgent one stands behind excluded ones.
#[test]
fn a_lane_that_the_order_never_reaches_has_its_turn() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let urgent = |destination: &str, due| RowData {
        priority: Priority::Urgent,
        ..to("smtp", destination, due)
    };
    fill(&mut store, &file, 2_100, &urgent("down.example", minus(9)));
    fill(
        &mut store,
        &file,
        200,
        &to("smtp", "busy.example", minus(9)),
    );
    let behind = file.id();
    store.moved(behind, urgent("up.example", minus(1)));
    let request = ClaimRequest {
        limit: 1,
        excluded: vec![("smtp".to_owned(), Some("down.example".to_owned()))],
        ..everything(me, NOW)
    };
    let found = (0..3).any(|_| store.claim(&request).unwrap()[0].id == behind);
    assert!(found);
}

#[test]
fn lanes_take_turns_over_several_claims_when_there_are_very_many() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    fill(
        &mut store,
        &file,
        2_100,
        &to("smtp", "down.example", minus(9)),
    );
    let lanes: Vec<Write> = (0..2_500)
        .map(|n| Write::Move {
            id: file.id(),
            row: to("smtp", &format!("{n}.example"), UnixMillis(NOW.0 + 1)),
        })
        .collect();
    store.commit(NOW, &lanes).unwrap();
    let last = file.id();
    store.moved(last, to("smtp", "zzz.example", NOW));
    let request = ClaimRequest {
        limit: 10,
        excluded: vec![("smtp".to_owned(), Some("down.example".to_owned()))],
        ..everything(me, NOW)
    };
    // 2,502 lanes, 1,000 of them in each claim.
    let claims: Vec<MessageId> = (0..3)
        .flat_map(|_| store.claim(&request).unwrap())
        .map(|claim| claim.id)
        .collect();
    assert_eq!(claims, [last]);
}

#[test]
fn racing_processes_claim_each_row_once() {
    const ROWS: usize = 600;
    let file = Shared::new();
    let (mut store, _) = file.joined();
    let ids = fill(&mut store, &file, ROWS, &waiting(NOW));
    let racers = (0..4).map(|_| {
        let (mut store, me) = file.joined();
        std::thread::spawn(move || {
            let request = ClaimRequest {
                limit: 7,
                ..everything(me, NOW)
            };
            let mut mine = Vec::new();
            loop {
                let claims = store.claim(&request).unwrap();
                if claims.is_empty() {
                    return mine;
                }
                mine.extend(claims.iter().map(|claim| claim.id));
            }
        })
    });
    let racers: Vec<_> = racers.collect();
    let claimed: Vec<MessageId> = racers
        .into_iter()
        .flat_map(|racer| racer.join().unwrap())
        .collect();
    assert_eq!(claimed.len(), ROWS);
    assert_eq!(claimed.into_iter().collect::<HashSet<_>>(), ids);
    assert_eq!(store.counts().unwrap().claimed, ROWS as u64);
}

#[test]
fn racing_processes_decide_each_lease_once() {
    const IDS: usize = 200;
    let file = Shared::new();
    drop(file.open());
    let mut door = DoorSequence::default();
    let ids: Vec<MessageId> = (0..IDS).map(|_| door.issue(NOW)).collect();
    let racers: Vec<_> = (0..3)
        .map(|_| {
            let (mut store, me) = file.joined();
            let ids = ids.clone();
            std::thread::spawn(move || {
                ids.into_iter()
                    .map(|id| store.one(record(id, 0, me, finished())))
                    .filter(|written| *written == pombo_spooler::store::Written::Won)
                    .count()
            })
        })
        .collect();
    let won: usize = racers.into_iter().map(|racer| racer.join().unwrap()).sum();
    assert_eq!(won, IDS);
}

#[test]
fn who_asks_at_the_dot_is_known_as_long_as_every_claim_since_the_last_certain_verdict_says_the_same()
 {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let unsure = |doubt| RowData {
        doubt,
        ..waiting(NOW)
    };
    let id = file.id();
    store.moved(id, unsure(false));
    let mut claim = |asks: &str, doubt| {
        let request = ClaimRequest {
            asks: asks.to_owned(),
            ..everything(me, NOW)
        };
        let claimed = store.claim(&request).unwrap().remove(0);
        let fence = claimed.fence.0;
        store.one(record(claimed.id, fence, me, unsure(doubt)));
        claimed.asks
    };
    assert_eq!(claim("out", true), "out");
    assert_eq!(claim("out", true), "out");
    // Whoever this is does not ask, and may have submitted it.
    assert_eq!(claim("", true), "");
    assert_eq!(claim("out", true), "");
    assert_eq!(claim("out", false), "");
    // What came of it is recorded now: it begins anew.
    assert_eq!(claim("out", true), "out");
    assert_eq!(claim("out\nspare", false), "");

    // Nobody knows who had this one before.
    let other = Shared::new();
    let (mut store, me) = other.joined();
    let id = other.id();
    store.moved(id, unsure(true));
    let request = ClaimRequest {
        asks: "out".to_owned(),
        ..everything(me, NOW)
    };
    assert_eq!(store.claim(&request).unwrap()[0].asks, "");
}
