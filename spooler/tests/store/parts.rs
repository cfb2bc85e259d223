//! Parts: made on demand, pruned by the last change, dropped when old.

use pombo_proto::{control::QueueState, ids::MessageId, time::UnixMillis};
use pombo_spooler::store::{Pruned, Store, Written};

use super::Shared;
use crate::support::*;

fn days_ago(days: u64) -> UnixMillis {
    UnixMillis(NOW.0 - days * DAY)
}

#[test]
fn a_part_is_dropped_once_it_is_old_and_nothing_in_it_is_unfinished() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let (old, stuck, today) = (file.id_at(days_ago(9)), file.id_at(days_ago(8)), file.id());
    store.finish_at(days_ago(9), old, 0, me);
    store.finish_at(NOW, today, 0, me);
    store.moved(stuck, waiting(NOW));
    let before = days_ago(7).day();
    let one = Pruned {
        parts: 1,
        ..Pruned::default()
    };
    assert_eq!(prune(&mut store, before), one);
    assert!(store.get(old).unwrap().is_none());
    assert_eq!(store.row(stuck).data.state, QueueState::Waiting);
    assert_eq!(store.row(today).data.state, QueueState::Finished);
    assert_eq!(prune(&mut store, before), Pruned::default());

    store.claim_all(me);
    assert_eq!(prune(&mut store, before), Pruned::default());
    store.finish_at(days_ago(8), stuck, 1, me);
    assert_eq!(prune(&mut store, before), one);
    assert_eq!(file.dated_parts(), 1);
}

#[test]
fn what_was_held_for_longer_than_history_is_kept_is_in_it_from_its_end() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let prompt: Vec<_> = (0..100).map(|_| file.id_at(days_ago(30))).collect();
    let held = file.id_at(days_ago(30));
    for id in &prompt {
        store.finish_at(days_ago(30), *id, 0, me);
    }
    store.moved(held, waiting(NOW));
    store.claim_all(me);
    let history_after = |days: u64| UnixMillis(NOW.0 + days * DAY).day() - 14;
    // While it waits nothing of its day goes; then all that ended long ago does.
    assert_eq!(prune(&mut store, history_after(0)), Pruned::default());
    store.finish_at(NOW, held, 1, me);
    assert_eq!(prune(&mut store, history_after(0)), Pruned::default());
    for id in prompt {
        assert!(store.get(id).unwrap().is_none());
    }
    for days in [0, 1, 14] {
        assert_eq!(prune(&mut store, history_after(days)), Pruned::default());
        assert_eq!(store.row(held).data.state, QueueState::Finished);
    }
    assert_eq!(prune(&mut store, history_after(15)).parts, 1);
    assert!(store.get(held).unwrap().is_none());
    assert_eq!(file.dated_parts(), 0);
}

#[test]
fn a_part_that_another_process_makes_or_drops_is_noticed() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let (mut other, _) = file.joined();
    let old = days_ago(9);
    for _ in 0..3 {
        let (first, second) = (file.id_at(old), file.id_at(old));
        assert_eq!(store.one(record(first, 0, me, finished())), Written::Won);
        assert_eq!(other.row(first).data.state, QueueState::Finished);
        assert_eq!(other.one(record(second, 0, me, finished())), Written::Won);
        assert_eq!(prune(&mut other, NOW.day() + 1).parts, 1);
        assert!(store.get(first).unwrap().is_none());
        assert_eq!(store.recorded(&[tenancy(second, 0)]).unwrap(), []);
        assert_eq!(store.one(record(first, 1, me, finished())), Written::Lost);
    }
}

#[test]
fn finished_derived_ids_go_by_their_age_and_their_part_stays() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let id = |n: u8| MessageId::derived("test", &[n]);
    let write = |n| record(id(n), 0, me, finished());
    store.commit(days_ago(9), &[write(1), write(2)]).unwrap();
    store.commit(NOW, &[write(3)]).unwrap();
    store.moved(id(4), waiting(NOW));
    let two = Pruned {
        derived: 2,
        ..Pruned::default()
    };
    assert_eq!(prune(&mut store, days_ago(7).day()), two);
    assert!(store.get(id(1)).unwrap().is_none());
    assert_eq!(store.row(id(3)).data.state, QueueState::Finished);
    assert_eq!(store.claim_all(me).len(), 1);
}
