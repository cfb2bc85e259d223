//! Which ready work goes next.
//!
//! Three priority classes take weighted turns: in one round each class has as many turns as its weight, and urgent work
//! goes first as long as it has turns left; a class without work gives its turns up. So urgent work hardly waits and bulk
//! never starves. And a share of the credit is kept for urgent work, which then need not wait until something else has
//! finished.

use pombo_proto::message::Priority;
use serde::{Deserialize, Serialize};

/// How turns and credit are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shares {
    /// Turns of urgent work in one round. Default 16.
    pub urgent: u32,
    /// Turns of normal work. Default 6.
    pub normal: u32,
    /// Turns of bulk work. Default 1.
    pub bulk: u32,
    /// How much of the credit only urgent work may use, in percent, 0 to 90. Default 10.
    pub urgent_credit: u8,
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            urgent: 16,
            normal: 6,
            bulk: 1,
            urgent_credit: 10,
        }
    }
}

/// Credit, as of now: how many more messages may be submitted, of how many altogether.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Not spent.
    pub free: u32,
    /// Granted.
    pub total: u32,
}

/// Chooses. Remembers only the turns left in this round.
#[derive(Clone, Debug)]
pub struct Pick {
    weights: [u32; 3],
    left: [u32; 3],
    urgent_credit: u32,
}

impl Pick {
    /// With these shares; a weight of 0 counts as 1, or the class would starve.
    pub fn new(shares: Shares) -> Self {
        let weights = [shares.urgent, shares.normal, shares.bulk].map(|weight| weight.max(1));
        Self {
            weights,
            left: weights,
            urgent_credit: u32::from(shares.urgent_credit.min(90)),
        }
    }

    /// The class whose turn it is, among those with ready work (`ready` is in the order of [`Priority::ALL`]). `None`:
    /// nothing may go now. Each answer is a turn taken.
    pub fn next(&mut self, ready: [bool; 3], credit: Credit) -> Option<Priority> {
        let [urgent, others @ ..] = ready;
        let others = others.map(|ready| ready && credit.free > self.reserved(credit.total));
        let may_go = [urgent && credit.free > 0, others[0], others[1]];
        if !may_go.contains(&true) {
            return None;
        }
        let turn = |left: &[u32; 3]| (0..3).find(|at| may_go[*at] && left[*at] > 0);
        let at = turn(&self.left).or_else(|| {
            self.left = self.weights;
            turn(&self.left)
        })?;
        self.left[at] -= 1;
        Some(Priority::ALL[at])
    }

    /// How much credit is kept for urgent work: never all of it, or nothing else would ever go.
    fn reserved(&self, total: u32) -> u32 {
        let share = (u64::from(total) * u64::from(self.urgent_credit)).div_ceil(100);
        (share as u32).min(total.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Credit = Credit {
        free: 1_000,
        total: 1_000,
    };

    fn counts(ready: [bool; 3], turns: usize) -> [usize; 3] {
        let mut pick = Pick::new(Shares::default());
        let mut counts = [0; 3];
        for _ in 0..turns {
            let priority = pick.next(ready, PLENTY).unwrap();
            counts[Priority::ALL.iter().position(|p| *p == priority).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn turns_are_shared_by_weight_and_given_up_by_the_idle() {
        assert_eq!(counts([true, true, true], 2_300), [1_600, 600, 100]);
        assert_eq!(counts([false, true, true], 700), [0, 600, 100]);
        assert_eq!(counts([false, false, true], 7), [0, 0, 7]);
    }

    #[test]
    fn nothing_goes_without_work_or_credit() {
        let mut pick = Pick::new(Shares::default());
        assert_eq!(pick.next([false; 3], PLENTY), None);
        let none = Credit { free: 0, total: 9 };
        assert_eq!(pick.next([true; 3], none), None);
    }

    #[test]
    fn the_last_share_of_credit_is_for_urgent_work() {
        let mut pick = Pick::new(Shares::default());
        let low = Credit {
            free: 10,
            total: 100,
        };
        assert_eq!(pick.next([false, true, true], low), None);
        assert_eq!(pick.next([true, true, true], low), Some(Priority::Urgent));
        let enough = Credit { free: 11, ..low };
        assert_eq!(
            pick.next([false, true, true], enough),
            Some(Priority::Normal)
        );
    }

    #[test]
    fn a_single_credit_is_not_kept_from_anybody() {
        let mut pick = Pick::new(Shares::default());
        let one = Credit { free: 1, total: 1 };
        assert_eq!(pick.next([false, false, true], one), Some(Priority::Bulk));
    }

    /// Whatever comes: a class with work goes at least once in two rounds, and no choice has no work.
    #[test]
    fn no_class_starves() {
        for seed in 0..3_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let shares = Shares {
                urgent: random.u32(0..20),
                normal: random.u32(0..20),
                bulk: random.u32(0..5),
                urgent_credit: random.u8(..),
            };
            let round = shares.urgent.max(1) + shares.normal.max(1) + shares.bulk.max(1);
            let mut pick = Pick::new(shares);
            let patient = random.usize(0..3);
            let mut waited = 0;
            for _ in 0..200 {
                let mut ready = [random.bool(), random.bool(), random.bool()];
                ready[patient] = true;
                let priority = pick.next(ready, PLENTY).unwrap();
                let at = Priority::ALL.iter().position(|p| *p == priority).unwrap();
                assert!(ready[at], "seed {seed}");
                waited = if at == patient { 0 } else { waited + 1 };
                assert!(waited <= 2 * round, "seed {seed}");
            }
        }
    }
}
