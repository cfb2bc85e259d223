use super::*;
use crate::verdict::samples;

const T: &str = "smtp";
const D: &str = "example.org";
const START: UnixMillis = UnixMillis(1_000_000);

fn destinations() -> Destinations {
    Destinations::new(Limits::default())
}

fn down() -> Reach {
    Reach::Down(Duration::ZERO)
}

fn close(gates: &mut Destinations, now: UnixMillis) -> UnixMillis {
    let ticket = gates.handle_started(now, T, D);
    gates.handle_result(now, ticket, down());
    match gates.may_start(now, T, D) {
        MayStart::ClosedUntil(until) => until,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_limit_holds_grows_with_success_and_halves_when_it_closes() {
    let mut gates = destinations();
    let tickets: Vec<Ticket> = (0..20).map(|_| gates.handle_started(START, T, D)).collect();
    assert_eq!(gates.may_start(START, T, D), MayStart::Full);
    assert_eq!(gates.may_start(START, T, "example.net"), MayStart::Yes);
    assert_eq!(gates.may_start(START, "other", D), MayStart::Yes);
    for ticket in tickets {
        gates.handle_result(START, ticket, Reach::Reached);
    }
    assert_eq!(gates.gates[T][D].limit, 21);
    close(&mut gates, START);
    assert_eq!(gates.gates[T][D].limit, 10);
}

#[test]
fn those_that_fail_together_are_one_failure() {
    let mut gates = destinations();
    let tickets: Vec<Ticket> = (0..20).map(|_| gates.handle_started(START, T, D)).collect();
    for ticket in tickets {
        gates.handle_result(START, ticket, down());
    }
    let until = START.after(Duration::from_secs(30));
    assert_eq!(gates.may_start(START, T, D), MayStart::ClosedUntil(until));
    assert_eq!(gates.gates[T][D].limit, 10);
    assert_eq!(gates.closed(START).collect::<Vec<_>>(), [(T, D, until)]);
}

#[test]
fn exactly_one_probe_goes_and_rests_grow_up_to_the_longest() {
    let mut gates = destinations();
    let mut until = close(&mut gates, START);
    for rest in [60, 120, 240, 480, 960, 1_800, 1_800] {
        let now = until;
        assert_eq!(gates.may_start(now, T, D), MayStart::Yes);
        let probe = gates.handle_started(now, T, D);
        let asked_again = MayStart::ClosedUntil(now.after(PROBE_PAUSE));
        assert_eq!(gates.may_start(now, T, D), asked_again);
        gates.handle_result(now, probe, down());
        until = now.after(Duration::from_secs(rest));
        assert_eq!(gates.may_start(now, T, D), MayStart::ClosedUntil(until));
    }
    let probe = gates.handle_started(until, T, D);
    gates.handle_result(until, probe, Reach::Reached);
    assert_eq!(gates.may_start(until, T, D), MayStart::Yes);
    assert_eq!(gates.closed(until).count(), 0);
}

#[test]
fn a_straggler_from_before_neither_opens_nor_closes_and_a_probe_in_vain_is_repeated() {
    let mut gates = destinations();
    let [one, two] = [(); 2].map(|()| gates.handle_started(START, T, D));
    let until = close(&mut gates, START);
    gates.handle_result(START, one, Reach::Reached);
    assert_eq!(gates.may_start(START, T, D), MayStart::ClosedUntil(until));
    let probe = gates.handle_started(until, T, D);
    gates.handle_result(until, two, down());
    assert_eq!(gates.gates[T][D].running, 1);
    gates.handle_result(until, probe, Reach::Untold);
    assert_eq!(gates.may_start(until, T, D), MayStart::Yes);
}

#[test]
fn wait_closes_for_as_long_as_it_asks_up_to_the_longest() {
    for (asked, rest) in [(1, 30), (300, 300), (9_999, 1_800)] {
        let mut gates = destinations();
        let ticket = gates.handle_started(START, T, "");
        gates.handle_result(START, ticket, Reach::Down(Duration::from_secs(asked)));
        let until = START.after(Duration::from_secs(rest));
        assert_eq!(gates.may_start(START, T, ""), MayStart::ClosedUntil(until));
        gates.reopen(Some(T));
        assert_eq!(gates.may_start(START, T, ""), MayStart::Yes);
    }
}

#[test]
fn a_transport_without_destinations_has_no_limit_of_its_own() {
    let mut gates = destinations();
    let tickets: Vec<Ticket> = (0..50)
        .map(|_| gates.handle_started(START, T, ""))
        .collect();
    assert_eq!(gates.may_start(START, T, ""), MayStart::Yes);
    for ticket in tickets {
        gates.handle_result(START, ticket, Reach::Untold);
    }
}

#[test]
fn what_is_remembered_is_bounded_and_what_runs_is_never_forgotten() {
    let mut gates = Destinations::new(Limits {
        remembered: 100,
        ..Limits::default()
    });
    let running = gates.handle_started(START, T, "running");
    for n in 0..5_000_u64 {
        let now = START.after(Duration::from_millis(1_001 * n));
        let ticket = gates.handle_started(now, T, &format!("d{n}"));
        let reach = if n % 2 == 0 { down() } else { Reach::Reached };
        gates.handle_result(now, ticket, reach);
        assert!(gates.len() <= 101, "{n}");
    }
    assert_eq!(gates.gates[T]["running"].running, 1);
    gates.handle_result(START, running, Reach::Reached);
}

#[test]
fn what_an_attempt_shows_is_told_apart_by_destination() {
    use pombo_proto::{
        ids::RecipientIndex,
        outcome::{Delivery, RecipientOutcome},
    };
    let mut envelope = samples::envelope(3);
    envelope.recipients[1].address = "b@down.example".to_owned();
    envelope.recipients[2].address = "c@left.example".to_owned();
    let outcomes = [
        Outcome::Delivered(Delivery::new(START, "mx", "ok")),
        Outcome::Deferred {
            diagnosis: samples::diagnosis(),
            destination_down: true,
        },
        Outcome::Left,
    ];
    let result = SubmitResult::Ok(
        outcomes
            .into_iter()
            .zip(0..)
            .map(|(outcome, at)| RecipientOutcome {
                recipient: RecipientIndex(at),
                outcome,
            })
            .collect(),
    );
    let reaches = Reaches::of(&envelope, None, &result);
    assert_eq!(reaches.at(envelope.recipients[0].domain()), Reach::Reached);
    assert_eq!(reaches.at("down.example"), down());
    assert_eq!(reaches.at("left.example"), Reach::Untold);

    let wait = SubmitResult::Wait(Duration::from_secs(9), None);
    let asked = Reach::Down(Duration::from_secs(9));
    assert_eq!(Reaches::of(&envelope, Some("a"), &wait).at("a"), asked);
    assert_eq!(Reaches::of(&envelope, None, &wait).at("a"), Reach::Untold);
    assert_eq!(Reaches::nothing().at("a"), Reach::Untold);
}

/// Whatever comes: never more than the limit, never two probes, nothing leaks.
#[test]
fn the_gate_holds_under_any_traffic() {
    for seed in 0..3_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut gates = Destinations::new(Limits {
            concurrency: random.u32(0..5),
            concurrency_max: random.u32(0..8),
            ..Limits::default()
        });
        let mut now = START;
        let mut out: Vec<Ticket> = Vec::new();
        for _ in 0..100 {
            now = now.after(Duration::from_millis(random.u64(0..20_000)));
            if random.bool() && gates.may_start(now, T, D) == MayStart::Yes {
                out.push(gates.handle_started(now, T, D));
                let probes = out
                    .iter()
                    .filter(|t| t.probe && t.epoch == gates.gates[T][D].epoch);
                assert!(probes.count() <= 1, "seed {seed}");
                assert!(out.len() <= 8, "seed {seed}");
            } else if !out.is_empty() {
                let ticket = out.swap_remove(random.usize(..out.len()));
                let reach = *random
                    .choice(&[Reach::Reached, down(), Reach::Untold])
                    .unwrap();
                gates.handle_result(now, ticket, reach);
            }
        }
        for ticket in out.drain(..) {
            gates.handle_result(now, ticket, Reach::Untold);
        }
        let later = now.after(Duration::from_secs(3_600));
        assert_eq!(gates.may_start(later, T, D), MayStart::Yes, "seed {seed}");
        let running = gates.gates.get(T).map_or(0, |gates| gates[D].running);
        assert_eq!(running, 0, "seed {seed}");
    }
}
