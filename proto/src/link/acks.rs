//! Which acks to write: as few as possible, and never one that covers a delivery that nobody has acked.
//!
//! Delivery tags of a channel run from 1 without gaps. `multiple` acks everything up to its tag, and the broker closes the
//! channel for a tag that is not outstanding. So `multiple` goes to the highest tag not yet written below which all are
//! acked. What is above a gap waits for it to close: messages end in another order than they came in, and a moment later one
//! `multiple` covers them all. A gap that does not move (a slow message) is acked around, one by one.

use std::collections::BTreeSet;

/// One basic.ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) tag: u64,
    pub(super) multiple: bool,
}

/// The state of one channel's deliveries.
#[derive(Debug, Default)]
pub(super) struct AckBook {
    /// The highest tag that was delivered.
    delivered: u64,
    /// All tags up to here are acked.
    settled: u64,
    /// Acked ones above it.
    above: BTreeSet<u64>,
    /// Acked ones that the broker was not told of.
    unwritten: BTreeSet<u64>,
    /// `settled` when the gap was looked at.
    gap: u64,
}

impl AckBook {
    pub(super) fn delivered(&mut self, tag: u64) {
        self.delivered = self.delivered.max(tag);
    }

    /// Deliveries that nobody has acked yet.
    pub(super) fn outstanding(&self) -> u64 {
        self.delivered - self.settled - self.above.len() as u64
    }

    /// These are acked. Tags that were acked before, or never delivered, are left out: the broker would close the channel for
    /// them.
    pub(super) fn settle(&mut self, tags: impl IntoIterator<Item = u64>) {
        for tag in tags {
            if tag > self.settled && tag <= self.delivered && self.above.insert(tag) {
                self.unwritten.insert(tag);
            }
        }
        while self.above.first() == Some(&(self.settled + 1)) {
            self.above.pop_first();
            self.settled += 1;
        }
    }

    /// What to write for everything below the first gap.
    pub(super) fn below_the_gap(&mut self) -> Option<Ack> {
        let above = self.unwritten.split_off(&(self.settled + 1));
        let below = std::mem::replace(&mut self.unwritten, above);
        below.last().map(|&tag| Ack {
            tag,
            multiple: below.len() > 1,
        })
    }

    /// Whether something waits above a gap.
    pub(super) fn has_gap(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// Looks at the gap: if it has not moved since the last look, what to write for everything above it.
    pub(super) fn around_the_gap(&mut self) -> Vec<Ack> {
        if std::mem::replace(&mut self.gap, self.settled) == self.settled {
            self.all()
        } else {
            Vec::new()
        }
    }

    /// What to write for everything that was settled.
    pub(super) fn all(&mut self) -> Vec<Ack> {
        let below = self.below_the_gap();
        let above = std::mem::take(&mut self.unwritten).into_iter();
        let one = |tag| Ack {
            tag,
            multiple: false,
        };
        below.into_iter().chain(above.map(one)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(delivered: u64) -> AckBook {
        let mut book = AckBook::default();
        (1..=delivered).for_each(|tag| book.delivered(tag));
        book
    }

    fn settled(book: &mut AckBook, tags: impl IntoIterator<Item = u64>) -> Option<Ack> {
        book.settle(tags);
        book.below_the_gap()
    }

    fn one(tag: u64) -> Ack {
        Ack {
            tag,
            multiple: false,
        }
    }

    fn up_to(tag: u64) -> Ack {
        Ack {
            tag,
            multiple: true,
        }
    }

    #[test]
    fn what_is_above_a_gap_waits_until_it_closes() {
        let mut book = book(10);
        assert_eq!(settled(&mut book, [2, 1, 3, 6]), Some(up_to(3)));
        assert!(book.has_gap());
        assert_eq!(settled(&mut book, [4, 5]), Some(up_to(6)));
        assert!(!book.has_gap());
        assert_eq!(book.outstanding(), 4);
    }

    #[test]
    fn a_gap_that_does_not_move_is_acked_around() {
        let mut book = book(10);
        assert_eq!(settled(&mut book, [1, 2, 4, 6]), Some(up_to(2)));
        assert_eq!(book.around_the_gap(), []);
        assert_eq!(book.around_the_gap(), [one(4), one(6)]);
        assert_eq!(settled(&mut book, [8]), None);
        assert_eq!(book.around_the_gap(), [one(8)]);
        // The broker does not know 4, 6 and 8 any more.
        assert_eq!(settled(&mut book, [3, 5]), Some(up_to(5)));
        assert_eq!(settled(&mut book, [7]), Some(one(7)));
    }

    #[test]
    fn at_the_end_nothing_waits() {
        let mut book = book(5);
        book.settle([1, 2, 4]);
        assert_eq!(book.all(), [up_to(2), one(4)]);
        assert_eq!(book.all(), []);
    }

    #[test]
    fn what_was_acked_or_never_delivered_is_left_out() {
        let mut book = book(2);
        assert_eq!(settled(&mut book, [1, 1, 0, 9]), Some(one(1)));
        assert_eq!(settled(&mut book, [1]), None);
        assert_eq!(settled(&mut book, [2]), Some(one(2)));
        assert_eq!(book.outstanding(), 0);
    }

    /// A broker that closes the channel for what it does not know, and remembers what nobody has acked.
    #[test]
    fn no_order_of_acks_covers_an_unacked_delivery_or_an_unknown_tag() {
        fastrand::seed(11);
        for _ in 0..500 {
            let mut book = AckBook::default();
            let (mut broker, mut ours) = (BTreeSet::new(), Vec::new());
            let mut next = 1;
            for step in 0..40 {
                for _ in 0..fastrand::usize(..6) {
                    book.delivered(next);
                    broker.insert(next);
                    ours.push(next);
                    next += 1;
                }
                fastrand::shuffle(&mut ours);
                let batch = ours.split_off(ours.len() - fastrand::usize(..=ours.len()));
                book.settle(batch);
                let acks = match fastrand::u8(..3) {
                    _ if step == 39 => book.all(),
                    0 => book.below_the_gap().into_iter().collect(),
                    1 => book.around_the_gap(),
                    _ => Vec::new(),
                };
                for ack in acks {
                    assert!(broker.contains(&ack.tag));
                    if ack.multiple {
                        broker = broker.split_off(&(ack.tag + 1));
                    } else {
                        broker.remove(&ack.tag);
                    }
                }
                assert!(ours.iter().all(|tag| broker.contains(tag)));
                assert_eq!(book.outstanding(), ours.len() as u64);
            }
            assert_eq!(broker, ours.iter().copied().collect());
        }
    }
}
