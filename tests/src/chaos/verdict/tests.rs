use super::*;

const ALL: [Promise; 5] = [
    Promise::Once,
    Promise::Gently,
    Promise::OnceThoughInDoubt,
    Promise::TwiceInDoubt,
    Promise::TwiceUnanswered,
];

/// A message that was accepted, with these recipients.
fn entry(recipients: &[&str]) -> Entry {
    Entry {
        id: "m".to_owned(),
        recipients: recipients.iter().map(|&it| it.to_owned()).collect(),
        accepted: true,
        ..Entry::default()
    }
}

fn unanswered(recipients: &[&str], unanswered: u32) -> Entry {
    Entry {
        cut: unanswered,
        unanswered,
        ..entry(recipients)
    }
}

fn copies(copies: u32) -> Offer {
    Offer {
        copies,
        ..Offer::default()
    }
}

/// For each recipient, what became of each of the messages that Pombo took.
fn arrived(fates: &[(&str, &[Offer])]) -> Arrived {
    let fate = |offers: &[Offer]| Fate {
        offers: offers
            .iter()
            .enumerate()
            .map(|(number, offer)| (format!("id{number}"), *offer))
            .collect(),
        changed: 0,
    };
    Arrived {
        fates: fates
            .iter()
            .map(|(recipient, offers)| ((*recipient).to_owned(), fate(offers)))
            .collect(),
    }
}

fn breaches(book: &[Entry], arrived: &Arrived, doubt: u64, promise: Promise) -> Vec<String> {
    judge(book, arrived, doubt, promise).breaches
}

/// Which promises it breaks.
fn broken(book: &[Entry], arrived: &Arrived, doubt: u64) -> Vec<Promise> {
    let mut all = ALL.to_vec();
    all.retain(|promise| !breaches(book, arrived, doubt, *promise).is_empty());
    all
}

#[test]
fn all_that_arrives_once_is_well() {
    let (book, seen) = ([entry(&["r"])], arrived(&[("r", &[copies(1)])]));
    assert_eq!(broken(&book, &seen, 0), []);
    let row = judge(&book, &seen, 0, Promise::Once).row;
    assert_eq!((row.accepted, row.delivered, row.in_doubt), (1, 1, 0));
}

#[test]
fn each_recipient_counts_for_itself() {
    let book = [entry(&["r", "s"])];
    let seen = arrived(&[("r", &[copies(2)])]);
    let row = judge(&book, &seen, 9, Promise::TwiceInDoubt).row;
    assert_eq!((row.accepted, row.delivered), (2, 1));
    assert_eq!((row.lost, row.duplicated), (1, 1));
}

#[test]
fn what_is_lost_breaks_every_promise_however_much_is_in_doubt() {
    let (book, seen) = (
        [entry(&["r"]), unanswered(&["s"], 3)],
        arrived(&[("r", &[copies(1)])]),
    );
    assert_eq!(broken(&book, &seen, 9), ALL);
    assert_eq!(
        breaches(&book, &seen, 0, Promise::TwiceUnanswered),
        ["1 lost: s"]
    );
}

#[test]
fn a_report_is_no_loss() {
    let failed = Offer {
        failed: 1,
        ..Offer::default()
    };
    let (book, seen) = ([entry(&["r"])], arrived(&[("r", &[failed])]));
    assert_eq!(broken(&book, &seen, 0), []);
    let row = judge(&book, &seen, 0, Promise::Once).row;
    assert_eq!((row.failed, row.lost), (1, 0));
}

#[test]
fn another_messages_doubt_explains_no_copy() {
    let book = [entry(&["r"]), entry(&["s"])];
    let doubted = Offer {
        copies: 1,
        failed: 0,
        doubts: 5,
    };
    let seen = arrived(&[("r", &[copies(2)]), ("s", &[doubted])]);
    assert_eq!(
        breaches(&book, &seen, 5, Promise::TwiceInDoubt),
        ["1 unexplained: r arrived 2 times as id0, 0 in doubt"]
    );
    // Neither does that of another recipient's client.
    let book = [entry(&["r"]), unanswered(&["s"], 5)];
    let seen = arrived(&[("r", &[copies(1), copies(1)]), ("s", &[copies(1)])]);
    assert_eq!(
        breaches(&book, &seen, 0, Promise::TwiceUnanswered),
        ["1 unexplained: r arrived as 2 messages, with 0 dots unanswered"]
    );
}

#[test]
fn each_doubt_explains_one_copy_and_only_where_that_is_promised() {
    let book = [entry(&["r"])];
    let twice = |copies, doubts| Offer {
        copies,
        failed: 0,
        doubts,
    };
    let seen = arrived(&[("r", &[twice(3, 2)])]);
    assert_eq!(
        breaches(&book, &seen, 2, Promise::TwiceInDoubt),
        [""; 0],
        "two doubts, two copies"
    );
    for promise in [Promise::Once, Promise::Gently, Promise::OnceThoughInDoubt] {
        let all = breaches(&book, &seen, 2, promise);
        assert!(all.iter().any(|it| it == "1 arrived twice: r"), "{all:?}");
    }
    let seen = arrived(&[("r", &[twice(3, 1)])]);
    assert_eq!(broken(&book, &seen, 1), ALL);
}

#[test]
fn each_unanswered_dot_explains_one_more_message_and_only_where_that_is_promised() {
    let seen = arrived(&[("r", &[copies(1), copies(1), copies(1)])]);
    let well = [unanswered(&["r"], 2)];
    assert_eq!(breaches(&well, &seen, 0, Promise::TwiceUnanswered), [""; 0]);
    let row = judge(&well, &seen, 0, Promise::TwiceUnanswered).row;
    assert_eq!((row.duplicated, row.in_doubt), (2, 1));
    assert_eq!(broken(&well, &seen, 0), &ALL[..4]);
    assert_eq!(broken(&[unanswered(&["r"], 1)], &seen, 0), ALL);
    // It does not explain that one of them was sent twice.
    let seen = arrived(&[("r", &[copies(2)])]);
    assert_eq!(broken(&well, &seen, 0), ALL);
}

#[test]
fn what_arrived_and_was_reported_failed_was_in_doubt_or_is_a_breach() {
    let book = [entry(&["r"])];
    let both = |doubts| Offer {
        copies: 1,
        failed: 1,
        doubts,
    };
    assert!(both(0).needs_a_trace() && copies(2).needs_a_trace() && !copies(1).needs_a_trace());
    let seen = arrived(&[("r", &[both(0)])]);
    assert_eq!(broken(&book, &seen, 0), ALL);
    assert_eq!(
        breaches(&book, &seen, 0, Promise::Once),
        ["1 unexplained: r arrived as id0 and was reported failed"]
    );
    let seen = arrived(&[("r", &[both(1)])]);
    assert_eq!(
        breaches(&book, &seen, 1, Promise::OnceThoughInDoubt),
        [""; 0]
    );
}

#[test]
fn two_final_reports_of_one_message_for_one_recipient_are_a_breach() {
    let twice = Offer {
        copies: 0,
        failed: 2,
        doubts: 7,
    };
    let seen = arrived(&[("r", &[twice])]);
    assert_eq!(broken(&[entry(&["r"])], &seen, 0), ALL);
}

#[test]
fn doubt_is_a_breach_where_nobody_who_knows_is_taken_away() {
    let (book, seen) = ([entry(&["r"])], arrived(&[("r", &[copies(1)])]));
    assert_eq!(
        broken(&book, &seen, 1),
        [Promise::Once, Promise::Gently, Promise::TwiceUnanswered]
    );
    // Of the client's kind as well.
    assert_eq!(broken(&[unanswered(&["r"], 1)], &seen, 0), &ALL[..4]);
}

#[test]
fn changed_and_refused_are_breaches_and_so_is_nothing_at_all() {
    let seen = arrived(&[("r", &[copies(1)])]);
    let mut changed = seen.clone();
    changed.fates.get_mut("r").unwrap().changed = 1;
    assert_eq!(broken(&[entry(&["r"])], &changed, 0), ALL);
    let refused = Entry {
        refused: Some("550 no".to_owned()),
        accepted: false,
        ..entry(&["s"])
    };
    assert_eq!(broken(&[entry(&["r"]), refused], &seen, 0), ALL);
    assert_eq!(broken(&[], &arrived(&[]), 0), ALL);
}

#[test]
fn a_lost_connection_is_not_gentle() {
    let cut = Entry {
        cut: 1,
        ..entry(&["r"])
    };
    let seen = arrived(&[("r", &[copies(1)])]);
    assert_eq!(broken(&[cut], &seen, 0), [Promise::Gently]);
}
