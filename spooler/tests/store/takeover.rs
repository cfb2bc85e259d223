//! Incarnations that live, end, and are ended; what becomes of their claims.

use pombo_proto::{
    control::QueueState,
    ids::{Fence, Incarnation, Instance, MessageId},
    time::UnixMillis,
};
use pombo_spooler::store::{
    Change, Counts, ListedInstance, Member, Pruned, RowData, Store, Write, Written,
};

use super::{Opened, Shared};
use crate::support::*;

#[test]
fn an_incarnation_that_was_ended_learns_it_at_its_next_renewal() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    assert!(store.renew(me, "test", false, &[]).unwrap());
    let alive = store.members().unwrap();
    let expected = Member {
        incarnation: me,
        name: "test".to_owned(),
        counter: 2,
    };
    assert_eq!(alive, [expected]);
    assert!(store.end_member(NOW, me, Some(2)).unwrap());
    assert!(!store.renew(me, "test", false, &[]).unwrap());
    assert_eq!(store.members().unwrap(), []);
}

#[test]
fn who_has_renewed_meanwhile_is_not_ended() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let seen = store.members().unwrap()[0].counter;
    store.renew(me, "test", false, &[]).unwrap();
    assert!(!store.end_member(NOW, me, Some(seen)).unwrap());
    assert!(store.renew(me, "test", false, &[]).unwrap());
    let stranger = Incarnation::random();
    assert!(!store.end_member(NOW, stranger, Some(1)).unwrap());
    assert!(!store.end_member(NOW, stranger, None).unwrap());
}

#[test]
fn a_dead_members_claims_are_found_again_in_doubt_and_it_can_record_nothing() {
    let file = Shared::new();
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
    let file = Shared::new();
    let (mut store, me) = file.joined();
    store.moved(file.id(), waiting(NOW));
    assert!(store.end_member(NOW, me, None).unwrap());
    assert!(store.claim_all(me).is_empty());
    assert_eq!(store.counts().unwrap().waiting, 1);
}

#[test]
fn marks_outlive_the_holder() {
    let file = Shared::new();
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

fn agent(host: &str) -> ListedInstance {
    ListedInstance {
        instance: Instance::random(),
        transport: "smtp".to_owned(),
        host: host.to_owned(),
        counter: 1,
    }
}

#[test]
fn instances_are_listed_until_they_are_struck_off() {
    let file = Shared::new();
    let mut store = file.open();
    let mut listed = agent("a");
    store.list_instance(&listed).unwrap();
    listed.host = "b".to_owned();
    store.list_instance(&listed).unwrap();
    listed.counter = 2;
    assert_eq!(file.open().instances().unwrap(), [listed.clone()]);
    for _ in 0..2 {
        assert!(store.strike_instance(NOW, listed.instance, None).unwrap());
    }
    assert_eq!(store.instances().unwrap(), []);
}

#[test]
fn an_agent_that_is_answered_is_not_struck_off_by_who_saw_it_silent() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let (served, silent) = (agent("a"), agent("b"));
    for instance in [&served, &silent] {
        store.list_instance(instance).unwrap();
    }
    assert!(
        store
            .renew(me, "test", false, std::slice::from_ref(&served))
            .unwrap()
    );
    assert!(
        !store
            .strike_instance(NOW, served.instance, Some(1))
            .unwrap()
    );
    assert!(
        store
            .strike_instance(NOW, silent.instance, Some(1))
            .unwrap()
    );
    let expected = ListedInstance {
        counter: 2,
        ..served.clone()
    };
    assert_eq!(store.instances().unwrap(), [expected]);
    // Who answers one that was struck off lists it again; who was ended writes nothing.
    assert!(
        store
            .renew(me, "test", false, std::slice::from_ref(&silent))
            .unwrap()
    );
    assert_eq!(store.instances().unwrap().len(), 2);
    store.end_member(NOW, me, None).unwrap();
    store.strike_instance(NOW, served.instance, None).unwrap();
    assert!(
        !store
            .renew(me, "test", false, std::slice::from_ref(&served))
            .unwrap()
    );
    assert_eq!(store.instances().unwrap().len(), 1);
}

/// Whom a message that may have been with somebody since then is suspected of.
fn suspects(store: &mut Opened, since: UnixMillis) -> Vec<(String, Option<UnixMillis>)> {
    let suspects = store.suspects(since).unwrap();
    let mut suspects: Vec<_> = suspects
        .into_iter()
        .map(|it| (it.instance.host, it.struck))
        .collect();
    suspects.sort();
    suspects
}

#[test]
fn who_was_struck_off_stays_a_suspect_of_what_it_may_have_had() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let (lost, gone_home, served) = (agent("lost"), agent("gone home"), agent("served"));
    for instance in [&lost, &gone_home, &served] {
        store.list_instance(instance).unwrap();
    }
    let at = |seconds: u64| UnixMillis(NOW.0 + 1_000 * seconds);
    // Two find it out: the first one's time stands.
    for seconds in [5, 9] {
        let struck = store.strike_instance(at(seconds), lost.instance, Some(1));
        assert!(struck.unwrap());
    }
    assert!(
        store
            .strike_instance(at(5), gone_home.instance, None)
            .unwrap()
    );
    assert_eq!(store.instances().unwrap(), std::slice::from_ref(&served));
    let served_is = ("served".to_owned(), None);
    let lost_is = ("lost".to_owned(), Some(at(5)));
    for (since, expected) in [
        (at(0), vec![lost_is.clone(), served_is.clone()]),
        (at(5), vec![lost_is.clone(), served_is.clone()]),
        (at(6), vec![served_is.clone()]),
    ] {
        assert_eq!(suspects(&mut store, since), expected);
    }
    // Back: it answers for itself, and its counter has gone on.
    store
        .renew(me, "test", false, std::slice::from_ref(&lost))
        .unwrap();
    let back = suspects(&mut store, at(0));
    assert_eq!(back, [("lost".to_owned(), None), served_is]);
    assert!(
        !store
            .strike_instance(at(7), lost.instance, Some(1))
            .unwrap()
    );
    assert!(
        store
            .strike_instance(at(7), lost.instance, Some(2))
            .unwrap()
    );
    assert_eq!(suspects(&mut store, at(6)).len(), 2);
    // It has come all the way home.
    assert!(store.strike_instance(at(8), lost.instance, None).unwrap());
    assert_eq!(suspects(&mut store, at(0)).len(), 1);
}

#[test]
fn a_row_knows_since_when_somebody_may_have_it() {
    let file = Shared::new();
    let id = file.id();
    let at = |seconds: u64| UnixMillis(NOW.0 + 1_000 * seconds);
    let (mut store, other) = file.joined();
    store.moved(id, waiting(NOW));
    // Holders die one after the other, and nothing is recorded: since the first one's claim.
    for seconds in [1, 2, 3] {
        let (mut dying, me) = file.joined();
        let claimed = dying.claim(&everything(me, at(seconds))).unwrap().remove(0);
        assert_eq!(claimed.doubt, seconds > 1);
        assert_eq!(claimed.unsure_since, at(1));
        assert!(store.end_member(at(seconds), me, Some(1)).unwrap());
    }
    let claimed = store.claim(&everything(other, at(4))).unwrap().remove(0);
    assert_eq!((claimed.doubt, claimed.unsure_since), (true, at(1)));
    // Who has asked all of them, and loses it again, says so.
    let again = RowData {
        doubt: true,
        unsure_since: at(4),
        ..waiting(at(4))
    };
    store.one(record(id, 4, other, again));
    let claimed = store.claim(&everything(other, at(5))).unwrap().remove(0);
    assert_eq!((claimed.doubt, claimed.unsure_since), (true, at(4)));
    // What was recorded without doubt begins anew.
    store.one(record(id, 5, other, waiting(at(5))));
    let claimed = store.claim(&everything(other, at(6))).unwrap().remove(0);
    assert_eq!((claimed.doubt, claimed.unsure_since), (false, at(6)));
}

#[test]
fn who_was_struck_off_is_forgotten_with_the_history_but_not_while_something_waits_that_it_may_have_had()
 {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let days_ago = |days: u64| UnixMillis(NOW.0 - days * DAY);
    for (host, days) in [("nine", 9), ("six", 6), ("one", 1)] {
        let instance = agent(host);
        store.list_instance(&instance).unwrap();
        let struck = store.strike_instance(days_ago(days), instance.instance, Some(1));
        assert!(struck.unwrap());
    }
    let known = |store: &mut Opened| -> Vec<String> {
        let all = suspects(store, UnixMillis(0));
        all.into_iter().map(|(host, _)| host).collect()
    };
    // Issued before those of the ninth day were struck off, and still waiting.
    let old = file.id_at(days_ago(10));
    let moved = Write::Move {
        id: old,
        row: waiting(NOW),
    };
    store.commit(days_ago(10), &[moved]).unwrap();
    assert_eq!(prune(&mut store, days_ago(7).day()), Pruned::default());
    assert_eq!(known(&mut store), ["nine", "one", "six"]);
    store.claim_all(me);
    store.finish_at(days_ago(8), old, 1, me);
    let pruned = prune(&mut store, days_ago(7).day());
    assert_eq!((pruned.parts, pruned.struck), (1, 1));
    assert_eq!(known(&mut store), ["one", "six"]);

    // A derived id says nothing; when it came into the store does.
    let derived = MessageId::derived("test", b"waits");
    let moved = Write::Move {
        id: derived,
        row: waiting(NOW),
    };
    store.commit(days_ago(8), &[moved]).unwrap();
    let pruned = prune(&mut store, days_ago(0).day());
    assert_eq!((pruned.derived, pruned.struck), (0, 0));
    assert_eq!(known(&mut store), ["one", "six"]);
    store.claim_all(me);
    store.one(record(derived, 1, me, finished()));
    assert_eq!(prune(&mut store, days_ago(0).day()).struck, 2);
    assert!(known(&mut store).is_empty());
}

#[test]
fn a_note_is_its_holders_alone_and_stays_while_there_is_doubt() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let (mut others, other) = file.joined();
    let id = file.id();
    store.moved(id, waiting(NOW));
    let note = |fence, holder, text: &str| Write::Note {
        tenancy: tenancy(id, fence),
        holder,
        note: text.into(),
    };
    assert_eq!(store.one(note(0, me, "too early")), Written::Lost);
    store.claim_all(me);
    assert_eq!(store.one(note(1, other, "not mine")), Written::Lost);
    assert_eq!(store.one(note(1, me, "first")), Written::Won);
    assert_eq!(store.one(note(1, me, "second")), Written::Won);
    store.end_member(NOW, me, Some(1)).unwrap();
    assert_eq!(store.one(note(1, me, "too late")), Written::Lost);

    let claimed = others.claim_all(other).remove(0);
    assert_eq!(claimed.note.as_deref(), Some(b"second".as_slice()));
    assert_eq!(claimed.deaths, 1);
    let in_doubt = RowData {
        doubt: true,
        deaths: 1,
        ..waiting(NOW)
    };
    assert_eq!(others.one(record(id, 2, other, in_doubt)), Written::Won);
    assert!(others.claim_all(other).remove(0).note.is_some());
    assert_eq!(others.one(record(id, 3, other, waiting(NOW))), Written::Won);
    let claimed = others.claim_all(other).remove(0);
    assert_eq!((claimed.note, claimed.deaths), (None, 0));
}

#[test]
fn what_died_with_its_holders_is_counted_until_it_is_requeued() {
    let file = Shared::new();
    let (mut store, other) = file.joined();
    let id = file.id();
    store.moved(id, waiting(NOW));
    for deaths in 0..3 {
        let (mut dying, me) = file.joined();
        assert_eq!(dying.claim_all(me).remove(0).deaths, deaths);
        assert!(store.end_member(NOW, me, Some(1)).unwrap());
    }
    let claimed = store.claim_all(other).remove(0);
    assert_eq!(claimed.deaths, 3);
    let dead = RowData {
        state: QueueState::Dead,
        due: None,
        deaths: 3,
        ..waiting(NOW)
    };
    store.one(record(id, 4, other, dead));
    assert!(store.change(NOW, id, Change::Requeue).unwrap());
    assert_eq!(store.claim_all(other).remove(0).deaths, 0);
}

#[test]
fn what_is_in_doubt_is_counted_and_listed() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let (sure, unsure) = (file.id(), file.id());
    store.moved(sure, waiting(NOW));
    store.moved(
        unsure,
        RowData {
            in_doubt: 2,
            ..waiting(NOW)
        },
    );
    let filter = pombo_proto::control::QueueFilter {
        in_doubt: true,
        ..Default::default()
    };
    let ids = |store: &mut Opened| -> Vec<_> {
        let rows = all_of(store, filter.clone());
        rows.iter().map(|row| (row.id, row.data.in_doubt)).collect()
    };
    assert_eq!(ids(&mut store), [(unsure, 2)]);
    assert_eq!(store.counts().unwrap().in_doubt, 1);
    store.claim_all(me);
    assert_eq!(store.counts().unwrap().in_doubt, 1);
    store.one(record(unsure, 1, me, finished()));
    assert_eq!(ids(&mut store), []);
    assert_eq!(store.counts().unwrap().in_doubt, 0);
}

#[test]
fn a_note_and_a_verdict_in_one_commit_apply_in_their_order() {
    use Written::{Lost, Won};

    let file = Shared::new();
    let (mut store, me) = file.joined();
    let (noted, decided) = (file.id(), file.id());
    store.moved(noted, waiting(NOW));
    store.moved(decided, waiting(NOW));
    store.claim_all(me);
    let note = |id| Write::Note {
        tenancy: tenancy(id, 1),
        holder: me,
        note: b"at the dot".to_vec(),
    };
    let in_doubt = RowData {
        doubt: true,
        ..waiting(NOW)
    };
    let writes = [
        note(noted),
        record(decided, 1, me, waiting(NOW)),
        note(decided),
        record(noted, 1, me, in_doubt),
    ];
    assert_eq!(store.commit(NOW, &writes).unwrap(), [Won, Won, Lost, Won]);
    for claim in store.claim_all(me) {
        let expected = (claim.id == noted).then_some(b"at the dot".as_slice());
        assert_eq!(claim.note.as_deref(), expected);
    }
}

#[test]
fn spoolers_that_answer_the_same_agents_at_once_all_count() {
    const ROUNDS: u64 = 25;
    let file = Shared::new();
    let agents: Vec<_> = ["a", "b", "c", "d"].map(agent).into();
    let backwards: Vec<_> = agents.iter().rev().cloned().collect();
    std::thread::scope(|scope| {
        for answered in [&agents, &backwards] {
            let (mut store, me) = file.joined();
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    assert!(store.renew(me, "test", false, answered).unwrap());
                }
            });
        }
    });
    let listed = file.open().instances().unwrap();
    let counters: Vec<_> = listed.iter().map(|it| it.counter).collect();
    assert_eq!(counters, [2 * ROUNDS; 4]);
}
