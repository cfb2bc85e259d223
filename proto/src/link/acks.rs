//! Which acks to write: as few as possible, and never one that covers a delivery that nobody has acked.
//!
//! Delivery tags of a channel run from 1 without gaps. `multiple` acks everything up to its tag, and the broker closes the
//! channel for a tag that is not outstanding. So `multiple` goes to the highest tag of *this* batch below which all are
//! acked; whatever is above a gap is acked one by one.

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
}

impl AckBook {
    pub(super) fn delivered(&mut self, tag: u64) {
        self.delivered = self.delivered.max(tag);
    }

    /// Deliveries that nobody has acked yet.
    pub(super) fn outstanding(&self) -> u64 {
        self.delivered - self.settled - self.above.len() as u64
    }

    /// What to write for these tags. Tags that were acked before, or never delivered, are left out: the broker would close
    /// the channel for them.
    pub(super) fn settle(&mut self, tags: impl IntoIterator<Item = u64>) -> Vec<Ack> {
        let mut fresh = BTreeSet::new();
        for tag in tags {
            if tag > self.settled && tag <= self.delivered && self.above.insert(tag) {
                fresh.insert(tag);
            }
        }
        while self.above.first() == Some(&(self.settled + 1)) {
            self.above.pop_first();
            self.settled += 1;
        }
        let beyond = fresh.split_off(&(self.settled + 1));
        let mut acks = Vec::with_capacity(beyond.len() + 1);
        if let Some(&tag) = fresh.last() {
            acks.push(Ack {
                tag,
                multiple: fresh.len() > 1,
            });
        }
        acks.extend(beyond.into_iter().map(|tag| Ack {
            tag,
            multiple: false,
        }));
        acks
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
    fn a_run_is_acked_at_once_and_what_is_above_a_gap_alone() {
        let mut book = book(10);
        assert_eq!(book.settle([2, 1, 3, 6]), [up_to(3), one(6)]);
        assert_eq!(book.settle([4]), [one(4)]);
        assert_eq!(book.outstanding(), 5);
    }

    #[test]
    fn multiple_names_a_tag_that_is_still_outstanding() {
        let mut book = book(5);
        assert_eq!(book.settle([3]), [one(3)]);
        // 1 and 2 close the gap below 3, which the broker does not know any more.
        assert_eq!(book.settle([2, 1]), [up_to(2)]);
        assert_eq!(book.settle([5, 4]), [up_to(5)]);
    }

    #[test]
    fn what_was_acked_or_never_delivered_is_left_out() {
        let mut book = book(2);
        assert_eq!(book.settle([1, 1, 0, 9]), [one(1)]);
        assert_eq!(book.settle([1]), []);
        assert_eq!(book.settle([2]), [one(2)]);
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
            for _ in 0..40 {
                for _ in 0..fastrand::usize(..6) {
                    book.delivered(next);
                    broker.insert(next);
                    ours.push(next);
                    next += 1;
                }
                fastrand::shuffle(&mut ours);
                let batch = ours.split_off(ours.len() - fastrand::usize(..=ours.len()));
                for ack in book.settle(batch) {
                    assert!(broker.contains(&ack.tag));
                    if ack.multiple {
                        broker = broker.split_off(&(ack.tag + 1));
                    } else {
                        broker.remove(&ack.tag);
                    }
                }
                assert_eq!(broker, ours.iter().copied().collect());
                assert_eq!(book.outstanding(), broker.len() as u64);
            }
        }
    }
}
