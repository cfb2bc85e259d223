//! What people ask for: at rest, and while a row is claimed.

use pombo_proto::{control::QueueState, ids::MessageId, time::UnixMillis};
use pombo_spooler::store::{Change, Mark, RowData, Store};

use super::{Opened, Shared};
use crate::support::*;

const LATER: UnixMillis = UnixMillis(NOW.0 + 60_000);

fn at_rest(state: QueueState) -> RowData {
    RowData {
        state,
        due: (state == QueueState::Waiting).then_some(LATER),
        ..waiting(LATER)
    }
}

fn standing(store: &mut Opened, id: MessageId) -> (QueueState, Option<UnixMillis>, bool) {
    let row = store.row(id);
    (row.data.state, row.data.due, row.cancelled)
}

#[test]
fn each_change_applies_to_its_states_alone() {
    use Change::{Cancel, Drop, Hold, Release, Requeue, Retry};
    use QueueState::{Dead, Finished, Held, Waiting};
    let now = Some(NOW);
    let table = [
        (Waiting, Retry, Some((Waiting, now, false))),
        (Waiting, Hold, Some((Held, None, false))),
        (Waiting, Cancel, Some((Waiting, now, true))),
        (Waiting, Release, None),
        (Waiting, Requeue, None),
        (Waiting, Drop, None),
        (Held, Release, Some((Waiting, now, false))),
        (Held, Cancel, Some((Waiting, now, true))),
        (Held, Hold, None),
        (Held, Retry, None),
        (Held, Requeue, None),
        (Held, Drop, Some((Waiting, now, true))),
        (Dead, Requeue, Some((Waiting, now, false))),
        (Dead, Drop, Some((Waiting, now, true))),
        (Dead, Cancel, Some((Waiting, now, true))),
        (Dead, Hold, None),
        (Dead, Release, None),
        (Dead, Retry, None),
        (Finished, Retry, None),
        (Finished, Hold, None),
        (Finished, Release, None),
        (Finished, Requeue, None),
        (Finished, Cancel, None),
        (Finished, Drop, None),
    ];
    let file = Shared::new();
    let (mut store, me) = file.joined();
    for (from, change, expected) in table {
        let id = file.id();
        store.one(record(id, 0, me, at_rest(from)));
        let before = standing(&mut store, id);
        let applied = store.change(NOW, id, change).unwrap();
        assert_eq!(applied, expected.is_some(), "{from:?} {change:?}");
        let after = standing(&mut store, id);
        assert_eq!(after, expected.unwrap_or(before), "{from:?} {change:?}");
    }
    assert!(!store.change(NOW, file.id(), Cancel).unwrap());
}

fn claimed(file: &Shared) -> (Opened, pombo_proto::ids::Incarnation, MessageId) {
    let (mut store, me) = file.joined();
    let id = file.id();
    store.moved(id, waiting(NOW));
    assert_eq!(store.claim_all(me).len(), 1);
    (store, me, id)
}

#[test]
fn a_cancel_of_a_claimed_row_makes_it_due_once_its_holder_lets_it_wait() {
    let file = Shared::new();
    let (mut store, me, id) = claimed(&file);
    assert!(store.change(NOW, id, Change::Cancel).unwrap());
    assert_eq!(store.row(id).data.state, QueueState::Moving);
    store.one(record(id, 1, me, waiting(LATER)));
    assert_eq!(
        standing(&mut store, id),
        (QueueState::Waiting, Some(NOW), true)
    );
    let again = store.claim_all(me).remove(0);
    assert_eq!(again.mark, Mark::Cancel);
    // Its holder knows: what it says now stands, or the row would go round and round.
    store.one(record(id, 2, me, waiting(LATER)));
    assert_eq!(
        standing(&mut store, id),
        (QueueState::Waiting, Some(LATER), true)
    );
}

#[test]
fn a_drop_stays_a_drop_for_whoever_claims_it() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let id = file.id();
    store.one(record(id, 0, me, at_rest(QueueState::Dead)));
    assert!(store.change(NOW, id, Change::Drop).unwrap());
    assert_eq!(store.claim_all(me)[0].mark, Mark::Drop);
    assert!(store.change(NOW, id, Change::Cancel).unwrap());
    // Its holder ends before it has recorded.
    store.end_member(NOW, me, None).unwrap();
    store.renew(me, "test", true, &[]).unwrap();
    assert_eq!(store.claim_all(me)[0].mark, Mark::Drop);
}

#[test]
fn a_cancel_of_a_claimed_row_changes_nothing_of_a_finish() {
    let file = Shared::new();
    let (mut store, me, id) = claimed(&file);
    store.change(NOW, id, Change::Cancel).unwrap();
    store.one(record(id, 1, me, finished()));
    assert_eq!(store.row(id).data.state, QueueState::Finished);
    assert_eq!(store.next_due().unwrap(), None);
}

#[test]
fn a_hold_of_a_claimed_row_takes_effect_when_its_holder_lets_it_wait() {
    let file = Shared::new();
    let (mut store, me, id) = claimed(&file);
    assert!(store.change(NOW, id, Change::Hold).unwrap());
    store.one(record(id, 1, me, waiting(LATER)));
    assert_eq!(standing(&mut store, id), (QueueState::Held, None, false));
    // The mark is spent.
    store.change(NOW, id, Change::Release).unwrap();
    store.claim_all(me);
    store.one(record(id, 2, me, waiting(LATER)));
    assert_eq!(
        standing(&mut store, id),
        (QueueState::Waiting, Some(LATER), false)
    );
}

#[test]
fn a_hold_of_a_claimed_row_can_be_taken_back() {
    let file = Shared::new();
    let (mut store, me, id) = claimed(&file);
    assert!(!store.change(NOW, id, Change::Release).unwrap());
    store.change(NOW, id, Change::Hold).unwrap();
    assert!(store.change(NOW, id, Change::Release).unwrap());
    store.one(record(id, 1, me, waiting(LATER)));
    assert_eq!(store.row(id).data.state, QueueState::Waiting);
}

#[test]
fn a_cancel_goes_before_a_hold() {
    let file = Shared::new();
    let (mut store, me, id) = claimed(&file);
    store.change(NOW, id, Change::Cancel).unwrap();
    store.change(NOW, id, Change::Hold).unwrap();
    store.one(record(id, 1, me, waiting(LATER)));
    assert_eq!(
        standing(&mut store, id),
        (QueueState::Waiting, Some(NOW), true)
    );
}
