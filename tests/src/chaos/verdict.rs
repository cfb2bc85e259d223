//! What was accepted against what arrived. Knows neither the fault nor the load: only the book, what the sink saw, and what the
//! spoolers say of doubt.
//!
//! Everything is counted for each recipient, and a copy too many has to be explained for itself:
//!
//! ```text
//! message of a client ──> offers that Pombo took, each under an id of its own ──> copies, reports
//!                    one more: only after a dot                      one more: only where that id's
//!                    that nobody answered                            trace says that it was in doubt
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use super::load::Entry;

/// Things named in one breach.
const NAMED: usize = 5;

/// One row of the table of faults. All but the strikes and the time are recipients.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// The kind of fault.
    pub fault: String,
    /// How often it happened.
    pub times: u32,
    /// Recipients of messages that a client was told 250 for.
    pub accepted: u64,
    /// Those whose copy arrived.
    pub delivered: u64,
    /// Those of whom a report said that theirs will not arrive.
    pub failed: u64,
    /// Those for whom neither came.
    pub lost: u64,
    /// Copies that arrived beyond each recipient's first.
    pub duplicated: u64,
    /// Recipients that the spoolers count in doubt, plus those of messages whose final dot was not answered to their clients.
    pub in_doubt: u64,
    /// How long it all took.
    pub seconds: f64,
}

/// What a kind of fault must not do. Nothing is ever lost, and what arrives twice is explained by its own doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Nothing arrives twice, and nothing is in doubt.
    Once,
    /// The same, and no client loses a connection or hears anything worse than 4xx.
    Gently,
    /// Nothing arrives twice, though the spoolers may be in doubt: that waits for a person.
    OnceThoughInDoubt,
    /// What the spoolers are in doubt about may arrive twice.
    TwiceInDoubt,
    /// What a client brought again, because nobody answered its final dot, may arrive twice.
    TwiceUnanswered,
}

impl Promise {
    fn lets_arrive_twice(self) -> bool {
        matches!(self, Self::TwiceInDoubt | Self::TwiceUnanswered)
    }

    pub(super) fn lets_spoolers_doubt(self) -> bool {
        matches!(self, Self::OnceThoughInDoubt | Self::TwiceInDoubt)
    }

    fn lets_dots_go_unanswered(self) -> bool {
        self == Self::TwiceUnanswered
    }
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

/// What arrived, by the recipient's address: no two messages have one in common.
#[derive(Clone, Debug, Default)]
pub struct Arrived {
    /// Only of those for whom something came.
    pub fates: HashMap<String, Fate>,
}

/// What became of one message for one recipient.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// By the id that Pombo gave it: a client that brings a message again makes another one of it.
    pub offers: BTreeMap<String, Offer>,
    /// Copies with other bytes than were sent.
    pub changed: u32,
}

/// One of the messages that Pombo has made of a client's message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Copies that arrived.
    pub copies: u32,
    /// Reports that it will not arrive.
    pub failed: u32,
    /// How often its trace says that it may have been sent without the spoolers' knowing. Asked only if
    /// [`needs_a_trace`](Self::needs_a_trace).
    pub doubts: u32,
}

impl Offer {
    /// Whether it is well only if it was in doubt.
    pub fn needs_a_trace(&self) -> bool {
        self.copies > 1 || (self.copies > 0 && self.failed > 0)
    }
}

impl Fate {
    fn copies(&self) -> u32 {
        self.offers.values().map(|offer| offer.copies).sum()
    }

    fn is_reported(&self) -> bool {
        self.offers.values().any(|offer| offer.failed > 0)
    }

    /// What of it nothing explains, in words.
    fn unexplained(&self, unanswered: u32) -> Vec<String> {
        let mut words = Vec::new();
        let arrived = self.offers.values().filter(|offer| offer.copies > 0);
        let offers = arrived.count() as u32;
        if offers > 1 + unanswered {
            words.push(format!(
                "arrived as {offers} messages, with {unanswered} dots unanswered"
            ));
        }
        for (id, offer) in &self.offers {
            let Offer {
                copies,
                failed,
                doubts,
            } = *offer;
            if copies > 1 + doubts {
                words.push(format!("arrived {copies} times as {id}, {doubts} in doubt"));
            }
            if copies > 0 && failed > 0 && doubts == 0 {
                words.push(format!("arrived as {id} and was reported failed"));
            }
            if failed > 1 {
                words.push(format!("was reported failed {failed} times as {id}"));
            }
        }
        words
    }
}

/// Counts.
pub fn judge(book: &[Entry], arrived: &Arrived, spoolers_doubt: u64, promise: Promise) -> Verdict {
    let mut count = Count::default();
    for entry in book {
        count.entry(entry, arrived);
    }
    let (mut row, mut breaches) = (count.row, count.breaches);
    row.lost = count.lost.len() as u64;
    let known: HashSet<&String> = book.iter().flat_map(|entry| &entry.recipients).collect();
    let all = arrived.fates.keys();
    let strangers: Vec<String> = all.filter(|it| !known.contains(it)).cloned().collect();
    let mut name = |what: &str, names: &[String]| {
        if !names.is_empty() {
            let listed = names[..names.len().min(NAMED)].join(", ");
            breaches.push(format!("{} {what}: {listed}", names.len()));
        }
    };
    name("lost", &count.lost);
    name("changed on the way", &count.changed);
    name("unexplained", &count.unexplained);
    name("of nobody's recipients", &strangers);
    if !promise.lets_arrive_twice() {
        name("arrived twice", &count.twice);
    }
    if !promise.lets_dots_go_unanswered() {
        name("without an answer to a final dot", &count.unanswered);
    }
    if spoolers_doubt > 0 && !promise.lets_spoolers_doubt() {
        breaches.push(format!(
            "{spoolers_doubt} in doubt, where nothing takes away who knows or what is said"
        ));
    }
    row.in_doubt = spoolers_doubt + count.unanswered.len() as u64;
    if promise == Promise::Gently {
        let cut: u32 = book.iter().map(|entry| entry.cut).sum();
        if cut > 0 {
            breaches.push(format!("clients lost {cut} connections in the middle"));
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

/// What is gathered from the book. The lists name recipients.
#[derive(Default)]
struct Count {
    row: Row,
    breaches: Vec<String>,
    lost: Vec<String>,
    changed: Vec<String>,
    twice: Vec<String>,
    unexplained: Vec<String>,
    unanswered: Vec<String>,
}

impl Count {
    fn entry(&mut self, entry: &Entry, arrived: &Arrived) {
        if let Some(reply) = &entry.refused {
            let text = format!("{} was refused for good: {reply}", entry.id);
            self.breaches.push(text);
        }
        let nothing = Fate::default();
        for recipient in &entry.recipients {
            let fate = arrived.fates.get(recipient).unwrap_or(&nothing);
            self.recipient(entry, recipient, fate);
        }
    }

    fn recipient(&mut self, entry: &Entry, recipient: &str, fate: &Fate) {
        let copies = fate.copies();
        let named = || recipient.to_owned();
        if copies > 1 {
            self.row.duplicated += u64::from(copies - 1);
            self.twice.push(named());
        }
        if fate.changed > 0 {
            self.changed.push(named());
        }
        if entry.unanswered > 0 {
            self.unanswered.push(named());
        }
        let unexplained = fate.unexplained(entry.unanswered);
        let words = unexplained.iter().map(|what| format!("{recipient} {what}"));
        self.unexplained.extend(words);
        if !entry.accepted {
            return;
        }
        self.row.accepted += 1;
        if copies > 0 {
            self.row.delivered += 1;
        } else if fate.is_reported() {
            self.row.failed += 1;
        } else {
            self.lost.push(named());
        }
    }
}

#[cfg(test)]
mod tests;
