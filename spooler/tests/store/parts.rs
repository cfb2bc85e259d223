//! Parts: made on demand, dropped whole.

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
    for id in [old, today] {
        store.one(record(id, 0, me, finished()));
    }
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
    store.one(record(stuck, 1, me, finished()));
    assert_eq!(prune(&mut store, before), one);
    assert_eq!(file.dated_parts(), 1);
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
        assert_eq!(prune(&mut other, NOW.day()).parts, 1);
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
