//! Incarnations that live, end, and are ended; what becomes of their claims.

use pombo_proto::{
    control::QueueState,
    ids::{Fence, Incarnation, Instance},
};
use pombo_spooler::store::{Change, Counts, ListedInstance, Member, Store, Written};

use crate::support::*;

#[test]
fn an_incarnation_that_was_ended_learns_it_at_its_next_renewal() {
    let file = File::new();
    let (mut store, me) = file.joined();
    assert!(store.renew(me, "test", false).unwrap());
    let alive = store.members().unwrap();
    let expected = Member {
        incarnation: me,
        name: "test".to_owned(),
        counter: 2,
    };
    assert_eq!(alive, [expected]);
    assert!(store.end_member(NOW, me, Some(2)).unwrap());
    assert!(!store.renew(me, "test", false).unwrap());
    assert_eq!(store.members().unwrap(), []);
}

#[test]
fn who_has_renewed_meanwhile_is_not_ended() {
    let file = File::new();
    let (mut store, me) = file.joined();
    let seen = store.members().unwrap()[0].counter;
    store.renew(me, "test", false).unwrap();
    assert!(!store.end_member(NOW, me, Some(seen)).unwrap());
    assert!(store.renew(me, "test", false).unwrap());
    let stranger = Incarnation::random();
    assert!(!store.end_member(NOW, stranger, Some(1)).unwrap());
    assert!(!store.end_member(NOW, stranger, None).unwrap());
}

#[test]
fn a_dead_members_claims_are_found_again_in_doubt_and_it_can_record_nothing() {
    let file = File::new();
    let (mut dead, me) = file.joined();
    let (mut survivor, other) = file.joined();
    let ids = [file.id(), file.id(), file.id()];
    for id in ids {
        dead.moved(id, waiting(NOW));
    }
    let mut request = everything(me, NOW);
    request.limit = 2;
    let held = dead.claim(&request).unwrap();
    assert_eq!(held.len(), 2);
    let counter = survivor.members().unwrap();
    let counter = counter
        .iter()
        .find(|member| member.incarnation == me)
        .unwrap();
    assert!(survivor.end_member(NOW, me, Some(counter.counter)).unwrap());
    let expected = Counts {
        waiting: 3,
        ..Counts::default()
    };
    assert_eq!(survivor.counts().unwrap(), expected);

    let taken = survivor.claim_all(other);
    assert_eq!(taken.len(), 3);
    for claim in &taken {
        let was_held = held.iter().any(|held| held.id == claim.id);
        assert_eq!(claim.doubt, was_held);
        assert_eq!(claim.fence, Fence(1 + u32::from(was_held)));
    }
    for claim in held {
        let stale = record(claim.id, claim.fence.0, me, finished());
        assert_eq!(dead.one(stale), Written::Lost);
        let right = record(claim.id, claim.fence.0 + 1, other, finished());
        assert_eq!(survivor.one(right), Written::Won);
    }
}

#[test]
fn nothing_is_claimed_for_an_incarnation_that_is_not_listed() {
    let file = File::new();
    let (mut store, me) = file.joined();
    store.moved(file.id(), waiting(NOW));
    assert!(store.end_member(NOW, me, None).unwrap());
    assert!(store.claim_all(me).is_empty());
    assert_eq!(store.counts().unwrap().waiting, 1);
}

#[test]
fn marks_outlive_the_holder() {
    let file = File::new();
    let (mut store, me) = file.joined();
    let (hold, cancel) = (file.id(), file.id());
    store.moved(hold, waiting(NOW));
    store.moved(cancel, waiting(NOW));
    store.claim_all(me);
    store.change(NOW, hold, Change::Hold).unwrap();
    store.change(NOW, cancel, Change::Cancel).unwrap();
    store.end_member(NOW, me, None).unwrap();
    let held = store.row(hold);
    assert_eq!((held.data.state, held.data.doubt), (QueueState::Held, true));
    let cancelled = store.row(cancel);
    assert_eq!(cancelled.data.due, Some(NOW));
    assert!(cancelled.cancelled && cancelled.data.doubt);
}

#[test]
fn instances_are_listed_until_they_are_struck_off() {
    let file = File::new();
    let mut store = file.open();
    let mut listed = ListedInstance {
        instance: Instance::random(),
        transport: "smtp".to_owned(),
        host: "a".to_owned(),
    };
    store.list_instance(&listed).unwrap();
    listed.host = "b".to_owned();
    store.list_instance(&listed).unwrap();
    assert_eq!(file.open().instances().unwrap(), [listed.clone()]);
    for _ in 0..2 {
        store.strike_instance(listed.instance).unwrap();
    }
    assert_eq!(store.instances().unwrap(), []);
}
