use pombo_proto::{
    frame::encode_message,
    ids::{Fence, Incarnation},
    outcome::{Delivery, Outcome, RecipientOutcome},
    tenure::{Ordinal, Tenure},
    time::UnixMillis,
};

use super::*;
use crate::{
    horizon::Observed,
    note::{Asks, Note},
    progress::Progress,
    store::{ListedInstance, Options, Sqlite, Store},
    verdict::samples,
};

const ATTEMPT_MAX: Duration = Duration::from_secs(600);

pub(in crate::adoption) fn job(fence: u32) -> Job {
    job_to(fence, 1)
}

pub(in crate::adoption) fn job_to(fence: u32, recipients: usize) -> Job {
    let message = encode_message(samples::envelope(recipients), b"");
    let id = message.envelope.id;
    Job {
        tenure: Tenure::claimed(id, Fence(fence), Incarnation::random(), Ordinal(1)),
        message,
        progress: Progress::fresh(recipients),
        cancelled: false,
        dropped: false,
        doubt: true,
        unsure_since: UnixMillis(0),
        deaths: 0,
        note: Note::default(),
        asks: Asks::default(),
        since: Instant::now(),
    }
}

fn suspected(knows: Knows) -> Suspected {
    Suspected {
        transport: "smtp".to_owned(),
        knows,
    }
}

/// One message, asked for of so many.
fn asked(instances: &[Instance]) -> (Doubts, Tenancy) {
    let mut doubts = Doubts::new(ATTEMPT_MAX);
    let job = job(3);
    let tenancy = job.tenure.tenancy();
    let all = instances.iter();
    let all = all.map(|it| (*it, suspected(Knows::Asked { missing: 0 })));
    let settled = doubts.begin(job, all.collect(), Instant::now());
    assert!(settled.is_none());
    (doubts, tenancy)
}

fn answer(tenancy: Tenancy, answer: AdoptAnswer) -> Adopted {
    Adopted {
        id: tenancy.id,
        fence: tenancy.fence,
        answer,
    }
}

fn done(ended: Option<EndMessageFlag>) -> AdoptAnswer {
    let delivery = Delivery::new(UnixMillis(1), "mx.example", "250 ok");
    let outcome = RecipientOutcome {
        recipient: pombo_proto::ids::RecipientIndex(0),
        outcome: Outcome::Delivered(delivery),
    };
    AdoptAnswer::Done {
        reference: Reference(9),
        result: SubmitResult::Ok(vec![outcome]),
        statuses: Vec::new(),
        ended,
    }
}

pub(in crate::adoption) fn listed(instance: Instance) -> ListedInstance {
    ListedInstance {
        instance,
        transport: "smtp".to_owned(),
        host: String::new(),
        counter: 1,
    }
}

#[test]
fn what_nobody_can_be_asked_about_is_settled_at_once() {
    let mut doubts = Doubts::new(ATTEMPT_MAX);
    for instances in [vec![], vec![(Instance::random(), suspected(Knows::Struck))]] {
        let settled = doubts.begin(job(1), instances.into_iter().collect(), Instant::now());
        assert!(settled.is_some());
    }
    assert_eq!(doubts.len(), 0);
}

#[test]
fn a_message_is_settled_once_everybody_has_answered() {
    let agents = [Instance::random(), Instance::random()];
    let (mut doubts, tenancy) = asked(&agents);
    let session = Incarnation::random();
    assert_eq!(doubts.questions().len(), 2);
    let next = doubts.handle_answer(agents[0], session, answer(tenancy, AdoptAnswer::Unknown));
    assert_eq!(next, Next::Wait);
    let next = doubts.handle_answer(agents[1], session, answer(tenancy, AdoptAnswer::UnderWay));
    assert_eq!(next, Next::Wait);
    assert!(doubts.take_settled().is_empty());
    assert_eq!(doubts.questions()[&agents[1]], [tenancy]);
    let flag = Some(EndMessageFlag::Sent);
    let next = doubts.handle_answer(agents[1], session, answer(tenancy, done(flag)));
    assert_eq!(next, Next::Wait);
    let settled = doubts.take_settled().remove(0);
    let knows = |it: &Instance| &settled.instances[it].knows;
    assert!(matches!(knows(&agents[0]), Knows::Nothing));
    assert!(matches!(knows(&agents[1]), Knows::Done { .. }));
}

#[test]
fn what_is_done_is_ended_and_asked_for_again_if_its_session_ends_meanwhile() {
    let agent = Instance::random();
    let (mut doubts, tenancy) = asked(&[agent]);
    let session = Incarnation::random();
    for _ in 0..2 {
        let next = doubts.handle_answer(agent, session, answer(tenancy, done(None)));
        assert_eq!(next, Next::End(tenancy, Reference(9)));
        assert!(doubts.questions().is_empty() && doubts.take_settled().is_empty());
        doubts.handle_session_over(agent);
        assert_eq!(doubts.questions().len(), 1);
    }
    doubts.handle_answer(agent, session, answer(tenancy, done(None)));
    doubts.handle_ended(agent, tenancy.id, Ok(EndMessageFlag::Sent));
    let settled = doubts.take_settled().remove(0);
    let Knows::Done { result, .. } = &settled.instances[&agent].knows else {
        panic!("{settled:?}")
    };
    assert_eq!(result.end, Some(EndMessageFlag::Sent));
}

#[test]
fn an_answer_about_another_fence_counts_for_nothing_and_a_higher_one_loses() {
    let agent = Instance::random();
    let (mut doubts, tenancy) = asked(&[agent]);
    let session = Incarnation::random();
    let older = Tenancy {
        fence: Fence(2),
        ..tenancy
    };
    doubts.handle_answer(agent, session, answer(older, AdoptAnswer::Unknown));
    assert_eq!(doubts.questions()[&agent], [tenancy]);
    let next = doubts.handle_answer(agent, session, answer(tenancy, AdoptAnswer::Fenced));
    assert_eq!(next, Next::Lost(tenancy.id));
    assert_eq!(doubts.len(), 0);
}

#[test]
fn of_two_claims_of_one_message_the_later_one_stays() {
    let agent = Instance::random();
    let (mut doubts, tenancy) = asked(&[agent]);
    for (fence, stays) in [(2, tenancy.fence), (4, Fence(4))] {
        let instances = [(agent, suspected(Knows::Asked { missing: 0 }))];
        let begun = doubts.begin(job(fence), instances.into(), Instant::now());
        assert!(begun.is_none());
        assert_eq!(doubts.len(), 1);
        assert_eq!(doubts.questions()[&agent][0].fence, stays);
    }
}

#[test]
fn who_stands_still_is_gone_and_who_is_missing_twice_is_looked_up() {
    let (silent, missing) = (Instance::random(), Instance::random());
    let (mut doubts, _) = asked(&[silent, missing]);
    let (mut observed, start) = (Observed::default(), Instant::now());
    observed.handle_listed(&[listed(silent), listed(missing)], start);
    let now = start + pombo_proto::right::GONE_AFTER + Duration::from_secs(1);
    observed.handle_listed(&[listed(silent)], now);
    let seen = doubts.handle_listed(&observed, now);
    assert_eq!(seen.gone, [(silent, 1)].into());
    assert!(seen.missing.is_empty());
    let seen = doubts.handle_listed(&observed, now);
    assert_eq!(seen.missing, [missing].into());
    for instance in [silent, missing] {
        assert_eq!(doubts.handle_end(instance, End::Struck), 1);
    }
    assert_eq!(doubts.take_settled().len(), 1);
}

#[test]
fn who_stands_still_is_struck_off_though_nothing_waits_for_him() {
    let (idle, lives) = (Instance::random(), Instance::random());
    let mut doubts = Doubts::new(ATTEMPT_MAX);
    let (mut observed, start) = (Observed::default(), Instant::now());
    observed.handle_listed(&[listed(idle), listed(lives)], start);
    let now = start + pombo_proto::right::GONE_AFTER + Duration::from_secs(1);
    let renewed = ListedInstance {
        counter: 2,
        ..listed(lives)
    };
    observed.handle_listed(&[listed(idle), renewed], now);
    let seen = doubts.handle_listed(&observed, now);
    assert_eq!(seen.gone, [(idle, 1)].into());
    assert!(seen.missing.is_empty());
}

#[test]
fn who_logs_off_while_it_is_asked_has_left_nothing_behind_and_who_is_struck_off_may_have() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Sqlite::open(folder.path().join("store"), Options::default()).unwrap();
    let (left, struck, stays) = (Instance::random(), Instance::random(), Instance::random());
    let all = [left, struck, stays];
    let (mut doubts, _) = asked(&all);
    for instance in all {
        store.list_instance(&listed(instance)).unwrap();
    }
    let now = UnixMillis(5);
    assert!(store.strike_instance(now, left, None).unwrap());
    assert!(store.strike_instance(now, struck, Some(1)).unwrap());
    let rows = store.suspects(UnixMillis(0)).unwrap();
    let ends = all.map(|it| End::of(it, &rows));
    assert_eq!(ends, [End::LoggedOff, End::Struck, End::Listed]);
    let waited = [0, 1, 2].map(|at| doubts.handle_end(all[at], ends[at]));
    assert_eq!(waited, [1, 1, 0]);
    assert!(doubts.take_settled().is_empty());
    doubts.handle_end(stays, End::LoggedOff);
    let settled = doubts.take_settled().remove(0);
    let knows = |it: &Instance| &settled.instances[it].knows;
    assert!(matches!(knows(&left), Knows::Nothing));
    assert!(matches!(knows(&struck), Knows::Gone));
}

#[test]
fn nothing_waits_for_a_door_that_cannot_be_asked() {
    let (agent, door) = (Instance::random(), Instance::random());
    let (mut doubts, tenancy) = asked(&[agent, door]);
    doubts.handle_answer(
        agent,
        Incarnation::random(),
        answer(tenancy, AdoptAnswer::Unknown),
    );
    assert!(doubts.take_settled().is_empty());
    doubts.let_go(door);
    assert_eq!(doubts.take_settled().len(), 1);
}

#[test]
fn what_takes_too_long_is_cancelled_and_what_waits_for_a_stranger_is_given_back() {
    let (known, stranger) = (Instance::random(), Instance::random());
    let (mut doubts, tenancy) = asked(&[known, stranger]);
    let later = Instant::now() + ATTEMPT_MAX + Duration::from_secs(1);
    assert!(doubts.poll_long(Instant::now()).is_empty());
    assert_eq!(doubts.poll_long(later).len(), 2);
    assert!(doubts.poll_long(later).is_empty(), "not again at once");
    let can_ask = |instance| instance == known;
    let now = Instant::now();
    assert!(doubts.take_strangers(now, ATTEMPT_MAX, can_ask).is_empty());
    let given_back = doubts.take_strangers(later, ATTEMPT_MAX, can_ask);
    assert_eq!(given_back.len(), 1);
    assert_eq!(given_back[0].0.tenure.tenancy(), tenancy);
}
