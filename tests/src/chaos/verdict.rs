//! What was accepted against what arrived. Knows neither the fault nor the load: only the book, what the sink saw, and the
//! counters of doubt.

use std::collections::HashMap;

use serde::Serialize;

use super::load::Entry;

/// One row of the table of faults.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// The kind of fault.
    pub fault: String,
    /// How often it happened.
    pub times: u32,
    /// Messages that a client was told 250 for.
    pub accepted: u64,
    /// Those that arrived.
    pub delivered: u64,
    /// Those that a report said will not arrive.
    pub failed: u64,
    /// Those that neither arrived nor were reported.
    pub lost: u64,
    /// Copies that arrived beyond the first of each message.
    pub duplicated: u64,
    /// Recipients that the spoolers count in doubt, plus messages that clients sent again after a final dot without an answer.
    pub in_doubt: u64,
    /// How long it all took.
    pub seconds: f64,
}

/// What a kind of fault must not do. Nothing is ever lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Nothing arrives twice.
    Once,
    /// At most as much arrives twice as was in doubt.
    TwiceOnlyInDoubt,
    /// Nothing arrives twice, and no client loses a connection or hears anything worse than 4xx.
    Gently,
}

/// A row, and what in it breaks a promise.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// The figures.
    pub row: Row,
    /// Broken promises, in words. Empty: all is well.
    pub breaches: Vec<String>,
    /// The fault could not be tried on this machine, and why.
    pub skipped: Option<String>,
}

/// What arrived, by the test's id of the message.
#[derive(Clone, Debug, Default)]
pub struct Arrived {
    /// How many copies, and whether all were as sent.
    pub copies: HashMap<String, Copies>,
    /// Messages whose sender got a report.
    pub reported: HashMap<String, u32>,
}

/// The copies of one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    /// How many came.
    pub count: u32,
    /// How many had other bytes than were sent.
    pub changed: u32,
}

/// Counts.
pub fn judge(book: &[Entry], arrived: &Arrived, spoolers_doubt: u64, promise: Promise) -> Verdict {
    let mut row = Row {
        in_doubt: spoolers_doubt,
        ..Row::default()
    };
    let mut breaches = Vec::new();
    let (mut lost, mut twice, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    for entry in book {
        let copies = arrived.copies.get(&entry.id).copied().unwrap_or_default();
        row.duplicated += u64::from(copies.count.saturating_sub(1));
        if copies.count > 1 {
            twice.push(entry.id.as_str());
        }
        if copies.changed > 0 {
            changed.push(entry.id.as_str());
        }
        row.in_doubt += u64::from(entry.unanswered > 0);
        if let Some(reply) = &entry.refused {
            breaches.push(format!("{} was refused for good: {reply}", entry.id));
        }
        if !entry.accepted {
            continue;
        }
        row.accepted += 1;
        match (copies.count, arrived.reported.get(&entry.id)) {
            (1.., _) => row.delivered += 1,
            (0, Some(_)) => row.failed += 1,
            (0, None) => lost.push(entry.id.as_str()),
        }
    }
    row.lost = lost.len() as u64;
    let mut name = |what: &str, ids: &[&str]| {
        let listed = ids[..ids.len().min(5)].join(", ");
        breaches.push(format!("{} {what}: {listed}", ids.len()));
    };
    if !lost.is_empty() {
        name("lost", &lost);
    }
    if !changed.is_empty() {
        name("changed on the way", &changed);
    }
    let twice_max = match promise {
        Promise::Once | Promise::Gently => 0,
        Promise::TwiceOnlyInDoubt => row.in_doubt,
    };
    if row.duplicated > twice_max {
        name("arrived twice", &twice);
    }
    if promise == Promise::Gently {
        let (cut, unanswered): (u32, u32) = book
            .iter()
            .fold((0, 0), |sum, it| (sum.0 + it.cut, sum.1 + it.unanswered));
        if cut + unanswered > 0 {
            breaches.push(format!(
                "clients lost {cut} connections in the middle, {unanswered} of them after a final dot"
            ));
        }
    }
    if row.accepted == 0 {
        breaches.push("nothing was accepted: this says nothing".to_owned());
    }
    Verdict {
        row,
        breaches,
        skipped: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str) -> Entry {
        Entry {
            id: id.to_owned(),
            accepted: true,
            ..Entry::default()
        }
    }

    fn arrived(copies: &[(&str, u32)]) -> Arrived {
        let copies = copies.iter().map(|&(id, count)| {
            let copies = Copies { count, changed: 0 };
            (id.to_owned(), copies)
        });
        Arrived {
            copies: copies.collect(),
            reported: HashMap::new(),
        }
    }

    #[test]
    fn all_that_arrives_once_is_well() {
        let verdict = judge(&[entry("1")], &arrived(&[("1", 1)]), 0, Promise::Gently);
        assert!(verdict.breaches.is_empty(), "{:?}", verdict.breaches);
        assert_eq!((verdict.row.accepted, verdict.row.delivered), (1, 1));
    }

    #[test]
    fn what_is_lost_breaks_every_promise() {
        let verdict = judge(
            &[entry("1"), entry("2")],
            &arrived(&[("1", 1)]),
            9,
            Promise::TwiceOnlyInDoubt,
        );
        assert_eq!((verdict.row.lost, verdict.breaches.len()), (1, 1));
    }

    #[test]
    fn a_report_is_no_loss() {
        let mut seen = arrived(&[]);
        seen.reported.insert("1".to_owned(), 1);
        let verdict = judge(&[entry("1")], &seen, 0, Promise::Once);
        assert_eq!((verdict.row.failed, verdict.row.lost), (1, 0));
        assert!(verdict.breaches.is_empty());
    }

    #[test]
    fn twice_is_forgiven_only_where_it_is_promised_and_only_in_doubt() {
        let book = [entry("1")];
        let seen = arrived(&[("1", 2)]);
        for (promise, doubt, breaches) in [
            (Promise::Once, 1, 1),
            (Promise::TwiceOnlyInDoubt, 0, 1),
            (Promise::TwiceOnlyInDoubt, 1, 0),
        ] {
            let verdict = judge(&book, &seen, doubt, promise);
            assert_eq!(verdict.row.duplicated, 1);
            assert_eq!(verdict.breaches.len(), breaches, "{promise:?} {doubt}");
        }
        let unanswered = Entry {
            unanswered: 1,
            ..entry("1")
        };
        let verdict = judge(&[unanswered], &seen, 0, Promise::TwiceOnlyInDoubt);
        assert!(verdict.breaches.is_empty(), "{:?}", verdict.breaches);
    }

    #[test]
    fn changed_refused_cut_and_empty_are_breaches() {
        let mut seen = arrived(&[("1", 1)]);
        seen.copies.get_mut("1").unwrap().changed = 1;
        assert_eq!(
            judge(&[entry("1")], &seen, 0, Promise::Once).breaches.len(),
            1
        );
        let refused = Entry {
            refused: Some("550 no".to_owned()),
            accepted: false,
            ..entry("2")
        };
        let both = [entry("1"), refused];
        assert_eq!(
            judge(&both, &arrived(&[("1", 1)]), 0, Promise::Once)
                .breaches
                .len(),
            1
        );
        let cut = Entry {
            cut: 1,
            ..entry("1")
        };
        assert_eq!(
            judge(&[cut], &arrived(&[("1", 1)]), 0, Promise::Gently)
                .breaches
                .len(),
            1
        );
        assert_eq!(
            judge(&[], &arrived(&[]), 0, Promise::Once).breaches.len(),
            1
        );
    }
}
