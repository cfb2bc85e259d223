//! Who wins, who loses.

use pombo_proto::{
    control::QueueState,
    ids::{Fence, Incarnation, MessageId},
    time::UnixMillis,
};
use pombo_spooler::store::{Counts, RowData, Store, Write, Written};

use super::Shared;
use crate::support::*;

#[test]
fn a_lease_wins_if_the_row_is_absent_and_everybody_else_loses() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let id = file.id();
    assert_eq!(store.one(record(id, 0, me, finished())), Written::Won);
    let other = Incarnation::random();
    assert_eq!(store.one(record(id, 0, other, finished())), Written::Lost);
    let again = Write::Move {
        id,
        row: waiting(NOW),
    };
    assert_eq!(store.one(again), Written::Lost);
    let row = store.row(id);
    assert_eq!(row.data.state, QueueState::Finished);
    assert_eq!(row.data.message, finished().message);
    assert_eq!(store.counts().unwrap(), Counts::default());
}

#[test]
fn a_lease_that_was_moved_by_another_holder_loses() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let id = file.id();
    store.moved(id, waiting(NOW));
    assert_eq!(store.one(record(id, 0, me, finished())), Written::Lost);
    assert_eq!(store.row(id).data.state, QueueState::Waiting);
}

#[test]
fn a_repeated_commit_wins_again_and_writes_nothing_twice() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let (id, report) = (file.id(), file.id());
    let write = Write::Record {
        tenancy: tenancy(id, 0),
        holder: me,
        row: finished(),
        reports: vec![(report, waiting(NOW))],
    };
    let answers = store.commit(NOW, &[write.clone(), write.clone()]).unwrap();
    assert_eq!(answers, [Written::Won, Written::Won]);
    assert_eq!(store.one(write), Written::Won);
    assert_eq!(store.counts().unwrap().waiting, 1);
    // Another verdict of the same holder is not a repetition.
    assert_eq!(store.one(record(id, 0, me, waiting(NOW))), Written::Lost);
}

#[test]
fn a_repeated_commit_wins_while_a_later_claim_is_under_way_and_loses_after_it_recorded() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let id = file.id();
    let first = record(id, 0, me, waiting(NOW));
    assert_eq!(store.one(first.clone()), Written::Won);
    assert_eq!(store.claim_all(me)[0].fence, Fence(1));
    assert_eq!(store.one(first.clone()), Written::Won);
    assert_eq!(store.row(id).data.state, QueueState::Moving);
    assert_eq!(store.one(record(id, 1, me, waiting(NOW))), Written::Won);
    assert_eq!(store.one(first), Written::Lost);
    assert_eq!(store.one(record(id, 1, me, waiting(NOW))), Written::Won);
}

#[test]
fn a_claim_records_under_its_fence_and_a_stale_holder_loses() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let other = Incarnation::random();
    let id = file.id();
    store.moved(id, waiting(NOW));
    assert_eq!(store.claim_all(me).len(), 1);
    assert_eq!(store.one(record(id, 2, me, finished())), Written::Lost);
    assert_eq!(store.one(record(id, 1, other, finished())), Written::Lost);
    assert_eq!(store.one(record(id, 0, me, finished())), Written::Lost);
    let absent = file.id();
    assert_eq!(store.one(record(absent, 1, me, finished())), Written::Lost);
    assert_eq!(store.one(record(id, 1, me, finished())), Written::Won);
    let row = store.row(id);
    assert_eq!((row.fence, row.holder), (Fence(1), None));
}

#[test]
fn what_waits_again_keeps_its_fence_and_the_next_claim_raises_it() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let id = file.id();
    store.moved(id, waiting(NOW));
    store.claim_all(me);
    let mut again = waiting(NOW);
    again.doubt = true;
    again.progress = b"more".to_vec();
    again.reason = "try again".to_owned();
    assert_eq!(store.one(record(id, 1, me, again.clone())), Written::Won);
    let row = store.row(id);
    assert_eq!((row.fence, row.holder), (Fence(1), None));
    assert_eq!(row.data.reason, "try again");
    let claimed = store.claim_all(me).remove(0);
    assert_eq!((claimed.fence, claimed.doubt), (Fence(2), true));
    assert_eq!(claimed.message, again.message);
    assert_eq!(claimed.progress, again.progress);
}

#[test]
fn reports_go_in_only_with_a_verdict_that_won() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let (id, report) = (file.id(), MessageId::derived("report", b"1"));
    store.moved(id, waiting(NOW));
    let write = |fence| Write::Record {
        tenancy: tenancy(id, fence),
        holder: me,
        row: finished(),
        reports: vec![(report, waiting(NOW))],
    };
    assert_eq!(store.one(write(1)), Written::Lost);
    assert!(store.get(report).unwrap().is_none());
    store.claim_all(me);
    assert_eq!(store.one(write(1)), Written::Won);
    assert_eq!(store.row(report).data.state, QueueState::Waiting);
}

#[test]
fn recorded_means_recorded_at_that_fence_or_a_higher_one() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let (waits, done, absent) = (file.id(), file.id(), file.id());
    store.moved(waits, waiting(NOW));
    store.one(record(done, 0, me, finished()));
    let asked = [
        tenancy(waits, 0),
        tenancy(waits, 1),
        tenancy(done, 0),
        tenancy(done, 9),
        tenancy(absent, 0),
    ];
    let done = [tenancy(done, 0), tenancy(done, 9)];
    assert_eq!(store.recorded(&asked).unwrap(), done);
    // Claimed at fence 1: whoever holds it may still have to adopt what an agent keeps of fence 0.
    store.claim_all(me);
    assert_eq!(store.recorded(&asked).unwrap(), done);
    store.one(record(waits, 1, me, waiting(NOW)));
    let all = [&asked[..2], &done].concat();
    assert_eq!(store.recorded(&asked).unwrap(), all);
}

#[test]
fn what_was_recorded_in_doubt_is_not_settled_before_somebody_has_adopted_it() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let id = file.id();
    let lost = RowData {
        doubt: true,
        ..waiting(NOW)
    };
    // A lease whose session was lost: the agent may still keep its result, under fence 0.
    assert_eq!(store.one(record(id, 0, me, lost.clone())), Written::Won);
    assert_eq!(store.one(record(id, 0, me, lost.clone())), Written::Won);
    let asked = [tenancy(id, 0), tenancy(id, 1), tenancy(id, 2)];
    assert_eq!(store.recorded(&asked).unwrap(), []);
    // Found out what became of that one, and lost once more.
    store.claim_all(me);
    let again = RowData {
        unsure_since: UnixMillis(1),
        ..lost
    };
    store.one(record(id, 1, me, again));
    assert_eq!(store.recorded(&asked).unwrap(), asked[..1]);
    store.claim_all(me);
    store.one(record(id, 2, me, waiting(NOW)));
    assert_eq!(store.recorded(&asked).unwrap(), asked);
}

#[test]
fn a_claim_that_is_given_back_in_the_same_doubt_settles_nothing_of_before() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let id = file.id();
    store.moved(id, waiting(NOW));
    let asked = [tenancy(id, 0), tenancy(id, 1), tenancy(id, 2)];
    store.claim_all(me);
    store.one(record(id, 1, me, waiting(NOW)));
    assert_eq!(store.recorded(&asked).unwrap(), asked[..2]);
    let claim = store.claim_all(me).remove(0);
    let lost = RowData {
        doubt: true,
        unsure_since: claim.unsure_since,
        ..waiting(NOW)
    };
    store.one(record(id, 2, me, lost.clone()));
    assert_eq!(store.recorded(&asked).unwrap(), asked[..2]);
    // Nobody could ask who may have it. It stays there, whoever claims it and gives it back.
    for fence in 3..5 {
        assert_eq!(store.claim_all(me).len(), 1);
        assert_eq!(store.one(record(id, fence, me, lost.clone())), Written::Won);
        assert_eq!(store.row(id).data.state, QueueState::Waiting);
        assert_eq!(store.recorded(&asked).unwrap(), asked[..2]);
    }
    store.claim_all(me);
    store.one(record(id, 5, me, waiting(NOW)));
    assert_eq!(store.recorded(&asked).unwrap(), asked);
}

#[test]
fn what_is_finished_keeps_only_the_head_that_was_given() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let id = file.id();
    store.moved(id, waiting(NOW));
    assert_eq!(store.row(id).data.message, waiting(NOW).message);
    store.claim_all(me);
    store.one(record(id, 1, me, finished()));
    assert_eq!(store.row(id).data.message, finished().message);
    assert_eq!(file.bodies(id.part()), 0);
}
