//! The ledger: what goes in, what is missing, and who does chores.

use std::time::Duration;

use pombo_proto::{
    control::QueueState,
    ids::{DoorSequence, Incarnation, MessageId},
    ledger::{Account, Balance, DoorNumber},
    time::UnixMillis,
};
use pombo_spooler::store::{
    Change, DoorReport, RowData, Store, Tally, Write, Written, pages::NUMBERS,
};

use super::{Opened, Shared};
use crate::support::*;

fn balance(store: &mut Opened, account: Account) -> Balance {
    let all = store.ledger().unwrap();
    all.into_iter().find(|it| it.account == account).unwrap()
}

fn report(door: &DoorSequence, confirmed: u64, voided: &[(u64, u64)]) -> DoorReport {
    DoorReport {
        door: door.door(),
        name: "listener".to_owned(),
        confirmed,
        voided: voided.to_vec(),
    }
}

#[test]
fn what_is_accepted_is_finished_waits_or_moves() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let mut door = DoorSequence::default();
    let account = Account::Door(door.door());
    let ids: Vec<MessageId> = (0..10).map(|_| door.issue(NOW)).collect();
    store
        .record_doors(NOW, &[report(&door, 8, &[(3, 4)])])
        .unwrap();
    let before = balance(&mut store, account);
    assert_eq!(
        (before.accepted(), before.moving(), before.waiting()),
        (6, 6, 0)
    );

    let failed = RowData {
        tally: Tally {
            recipients: [2, 1, 0, 0].into(),
            is_report: false,
        },
        ..finished()
    };
    let notice = (MessageId::derived("report", b"1"), waiting(NOW));
    let mut writes = vec![
        record(ids[0], 0, me, finished()),
        record(ids[1], 0, me, failed),
        Write::Move {
            id: ids[4],
            row: waiting(NOW),
        },
        // Beyond what the door has said.
        record(ids[9], 0, me, finished()),
    ];
    if let Write::Record { reports, .. } = &mut writes[1] {
        reports.push(notice);
    }
    // The second time, nothing is entered again.
    for _ in 0..2 {
        store.commit(NOW, &writes).unwrap();
        let it = balance(&mut store, account);
        assert_eq!(it.messages.as_array(), [2, 1, 0, 0]);
        assert_eq!(it.recipients.as_array(), [4, 1, 0, 0]);
        assert_eq!(
            (it.accepted(), it.waiting(), it.moving(), it.beyond),
            (7, 1, 3, 1)
        );
        assert!(it.is_sound());
        assert_eq!(it.name, "listener");
        assert_eq!(store.holes(door.door(), 10).unwrap(), [6, 7, 8]);
        assert_eq!(balance(&mut store, Account::Reports).waiting(), 1);
    }

    let claimed = store.claim_all(me);
    assert_eq!(claimed.len(), 2);
    for claim in claimed {
        let is_report = claim.id.is_derived();
        let row = RowData {
            tally: Tally {
                recipients: [0, 0, 1, 0].into(),
                is_report,
            },
            ..finished()
        };
        assert_eq!(
            store.one(record(claim.id, claim.fence.0, me, row)),
            Written::Won
        );
    }
    assert_eq!(
        balance(&mut store, account).messages.as_array(),
        [2, 1, 1, 0]
    );
    let reports = balance(&mut store, Account::Reports);
    assert_eq!(
        (
            reports.accepted(),
            reports.waiting(),
            reports.messages.expired
        ),
        (1, 0, 1)
    );
    let all = store.ledger().unwrap();
    assert!(all.iter().all(Balance::is_sound) && all.len() == 2);
}

#[test]
fn a_complete_page_costs_nothing_and_its_numbers_stay_known() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let mut door = DoorSequence::default();
    let ids: Vec<MessageId> = (0..3 * NUMBERS).map(|_| door.issue(NOW)).collect();
    // Everything but number 5, the later pages first.
    let writes: Vec<Write> = ids
        .iter()
        .rev()
        .filter(|id| id.issue().unwrap().sequence != 5)
        .map(|id| record(*id, 0, me, finished()))
        .collect();
    for group in writes.chunks(100) {
        store.commit(NOW, group).unwrap();
    }
    store
        .record_doors(NOW, &[report(&door, 3 * NUMBERS, &[])])
        .unwrap();
    assert_eq!(
        (file.ledger_pages(), store.holes(door.door(), 10).unwrap()),
        (3, vec![5])
    );
    let late = record(ids[4], 0, me, finished());
    assert_eq!(store.one(late), Written::Won);
    let it = balance(&mut store, Account::Door(door.door()));
    assert_eq!(file.ledger_pages(), 0);
    assert_eq!((it.accepted(), it.moving(), it.holes), (3 * NUMBERS, 0, 0));
    assert!(it.is_sound());
    // A door that said it was void would be caught.
    store
        .record_doors(NOW, &[report(&door, 3 * NUMBERS, &[(1, 7)])])
        .unwrap();
    assert_eq!(balance(&mut store, Account::Door(door.door())).voided, 0);
}

#[test]
fn an_older_word_changes_nothing_and_a_lie_is_seen() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let mut door = DoorSequence::default();
    let id = door.issue(NOW);
    store
        .record_doors(NOW, &[report(&door, 5, &[(1, 2), (9, 12)])])
        .unwrap();
    store.record_doors(NOW, &[report(&door, 3, &[])]).unwrap();
    let it = balance(&mut store, Account::Door(door.door()));
    assert_eq!((it.confirmed, it.voided, it.moving()), (5, 2, 3));
    assert!(it.is_sound());
    store.commit(NOW, &[record(id, 0, me, finished())]).unwrap();
    assert!(!balance(&mut store, Account::Door(door.door())).is_sound());
}

#[test]
fn what_a_person_gives_up_is_no_longer_missed() {
    let file = Shared::new();
    let mut store = file.open();
    let door = DoorSequence::default();
    store.record_doors(NOW, &[report(&door, 3, &[])]).unwrap();
    let number = |sequence| DoorNumber {
        door: door.door(),
        sequence,
    };
    let unknown = DoorNumber {
        door: door.door() ^ 1,
        sequence: 1,
    };
    // One is beyond the door's word, one is of a door that nobody knows.
    let numbers = [number(2), number(2), number(4), unknown];
    assert_eq!(store.write_off(NOW, &numbers).unwrap(), 1);
    assert_eq!(store.write_off(NOW, &numbers).unwrap(), 0);
    assert_eq!(store.holes(door.door(), 10).unwrap(), [1, 3]);
    assert!(balance(&mut store, Account::Door(door.door())).is_sound());
}

#[test]
fn a_door_that_is_long_gone_is_forgotten_but_not_while_something_of_it_waits() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let [mut gone, mut waits, alive] = std::array::from_fn(|_| DoorSequence::default());
    store
        .commit(NOW, &[record(gone.issue(NOW), 0, me, finished())])
        .unwrap();
    let id = waits.issue(NOW);
    store.moved(id, waiting(NOW));
    let later = UnixMillis(NOW.0 + 4 * DAY);
    store
        .record_doors(later, &[report(&alive, 0, &[])])
        .unwrap();
    assert_eq!(prune(&mut store, later.day() - 2).doors, 0);
    assert_eq!(prune(&mut store, later.day() - 1).doors, 1);
    let left = store.ledger().unwrap();
    let left: Vec<_> = left.iter().map(|it| it.account).collect();
    assert!(
        left.contains(&Account::Door(waits.door())) && left.contains(&Account::Door(alive.door()))
    );
    assert_eq!(left.len(), 2);
}

#[test]
fn a_chore_is_done_by_one_that_is_listed_and_not_again_too_soon() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let (mut others, other) = file.joined();
    let hour = Duration::from_secs(3_600);
    let stranger = Incarnation::random();
    assert!(!store.begin_chore(NOW, "tidy", stranger, hour).unwrap());
    assert!(store.begin_chore(NOW, "tidy", me, hour).unwrap());
    assert!(store.begin_chore(NOW, "tidy", me, hour).unwrap());
    assert!(!others.begin_chore(NOW, "tidy", other, hour).unwrap());
    assert!(others.begin_chore(NOW, "another", other, hour).unwrap());
    // Somebody else's end is none.
    others.end_chore(NOW, "tidy", other).unwrap();
    assert!(!others.begin_chore(NOW, "tidy", other, hour).unwrap());
    store.end_chore(NOW, "tidy", me).unwrap();
    assert!(!others.begin_chore(NOW, "tidy", other, hour).unwrap());
    assert!(
        others
            .begin_chore(NOW.after(hour), "tidy", other, hour)
            .unwrap()
    );
    // Who is not listed any more has nothing.
    others.end_member(NOW, other, None).unwrap();
    assert!(
        store
            .begin_chore(NOW.after(hour), "tidy", me, hour)
            .unwrap()
    );
}

#[test]
fn bodies_are_needed_while_their_row_has_not_finished() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let [waits, held, done, nowhere] = std::array::from_fn(|_| file.id());
    store.moved(waits, waiting(NOW));
    store.moved(held, waiting(NOW));
    assert!(store.change(NOW, held, Change::Hold).unwrap());
    assert_eq!(store.row(held).data.state, QueueState::Held);
    store
        .commit(NOW, &[record(done, 0, me, finished())])
        .unwrap();
    let needed = store.unfinished(&[waits, held, done, nowhere]).unwrap();
    assert_eq!(needed, [waits, held]);
}

#[test]
fn a_store_from_before_the_ledger_begins_it_with_what_is_there() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    // Long finished, and pruned.
    file.id();
    let ids = [file.id(), file.id(), file.id()];
    store.moved(ids[0], waiting(NOW));
    store.moved(ids[1], waiting(NOW));
    store
        .commit(NOW, &[record(ids[2], 0, me, finished())])
        .unwrap();
    let derived = MessageId::derived("test", b"1");
    store.moved(derived, waiting(NOW));
    drop(store);
    file.forget_the_ledger();
    let mut store = file.open();
    let door = Account::Door(ids[0].issue().unwrap().door);
    for claim in store.claim_all(me) {
        assert_eq!(
            store.one(record(claim.id, claim.fence.0, me, finished())),
            Written::Won
        );
    }
    let it = balance(&mut store, door);
    assert_eq!(
        (it.accepted(), it.messages.delivered, it.waiting()),
        (3, 3, 0)
    );
    assert_eq!(balance(&mut store, Account::Derived).messages.delivered, 1);
    // The door lives on, and one of its numbers is missing.
    let Account::Door(number) = door else {
        unreachable!()
    };
    let report = DoorReport {
        door: number,
        name: "listener".to_owned(),
        confirmed: 5,
        voided: Vec::new(),
    };
    store.record_doors(NOW, &[report]).unwrap();
    assert_eq!(store.holes(number, 10).unwrap(), [5]);
    assert!(store.ledger().unwrap().iter().all(Balance::is_sound));
}
