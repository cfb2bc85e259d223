//! A door's account of its numbers: what it has confirmed, and which numbers never became messages.
//!
//! The **watermark** is the highest number up to which none is open. It stands in the door's status row, and the ledger is reckoned
//! from it. Void numbers are kept as runs: a door without a broker voids one after the other, and all of them together are
//! one run.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ids::{DoorSequence, MessageId},
    time::UnixMillis,
};

/// Runs of void numbers that are remembered for the status row. It is sent every second; the ledger needs each run once.
const RUNS_MAX: usize = 256;

/// On the last number of a run of several in a status row. Numbers themselves stay far below.
const RUN: u64 = 1 << 63;

/// Runs of void numbers as a status row carries them: a run of one as its number, a longer one as its first number and, marked,
/// its last. A reader that knows single numbers only takes the first for one, and the marked one for none of its own.
pub fn pack(runs: &[(u64, u64)]) -> Vec<u64> {
    let mut packed = Vec::with_capacity(runs.len() * 2);
    for (first, last) in runs {
        packed.push(*first);
        if last > first {
            packed.push(*last | RUN);
        }
    }
    packed
}

/// Back from [`pack`]: first and last of each run. What is out of order, or marked without a beginning, is left out.
pub fn runs(packed: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::with_capacity(packed.len());
    for number in packed {
        let (is_last, number) = (number & RUN != 0, number & !RUN);
        match runs.last_mut() {
            Some((first, last)) if is_last && first == last && number > *first => *last = number,
            _ if is_last || number == 0 => {}
            _ => runs.push((number, number)),
        }
    }
    runs
}

/// Issues ids, and keeps account of them. One per life of a door.
#[derive(Debug, Default)]
pub struct Account {
    sequence: DoorSequence,
    open: BTreeSet<u64>,
    last: u64,
    /// First and last of each run.
    voided: BTreeMap<u64, u64>,
}

impl Account {
    /// A new id, open until [`Account::close`].
    pub fn issue(&mut self, now: UnixMillis) -> MessageId {
        let id = self.sequence.issue(now);
        if let Some(issue) = id.issue() {
            self.open.insert(issue.sequence);
            self.last = issue.sequence;
        }
        id
    }

    /// A number's fate is known: void if its message is certainly not in the spool; else it counts as confirmed. Were it
    /// void and there, nobody would ever miss it.
    pub fn close(&mut self, sequence: u64, void: bool) {
        if !self.open.remove(&sequence) || !void {
            return;
        }
        let (mut first, mut last) = (sequence, sequence);
        if let Some((&before, &end)) = self.voided.range(..sequence).next_back()
            && end == sequence - 1
        {
            first = before;
        }
        if let Some(after) = self.voided.remove(&(sequence + 1)) {
            last = after;
        }
        self.voided.insert(first, last);
        if self.voided.len() > RUNS_MAX {
            self.voided.pop_first();
        }
    }

    /// The door incarnation in its ids; `None` while it has issued none.
    pub fn door(&self) -> Option<u32> {
        (self.last > 0).then(|| self.sequence.door())
    }

    /// The highest number up to which none is open.
    pub fn confirmed(&self) -> u64 {
        self.open.first().map_or(self.last, |first| first - 1)
    }

    /// Numbers up to there that never became messages: first and last of each run; the newest 256 runs.
    pub fn voided(&self) -> Vec<(u64, u64)> {
        let confirmed = self.confirmed();
        let runs = self.voided.range(..=confirmed);
        runs.map(|(first, last)| (*first, (*last).min(confirmed)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issue(account: &mut Account, n: usize) -> Vec<u64> {
        let now = UnixMillis::now();
        (0..n)
            .map(|_| account.issue(now).issue().unwrap().sequence)
            .collect()
    }

    #[test]
    fn the_watermark_stops_below_the_first_open_number() {
        let mut account = Account::default();
        assert_eq!((account.door(), account.confirmed()), (None, 0));
        let numbers = issue(&mut account, 4);
        account.close(numbers[1], true);
        account.close(numbers[3], false);
        assert_eq!((account.confirmed(), account.voided()), (0, vec![]));
        account.close(numbers[0], false);
        assert_eq!((account.confirmed(), account.voided()), (2, vec![(2, 2)]));
        account.close(numbers[2], true);
        assert_eq!((account.confirmed(), account.voided()), (4, vec![(2, 3)]));
        // A second word about the same number is none.
        account.close(numbers[3], true);
        assert_eq!(account.voided(), [(2, 3)]);
    }

    #[test]
    fn void_numbers_in_any_order_are_runs_and_an_hour_without_a_broker_is_one() {
        for seed in 0..100 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut account = Account::default();
            let mut numbers = issue(&mut account, 300);
            random.shuffle(&mut numbers);
            let mut void: Vec<u64> = Vec::new();
            for number in numbers {
                let is_void = random.u8(..4) > 0;
                account.close(number, is_void);
                void.extend(is_void.then_some(number));
            }
            void.sort_unstable();
            let runs = account.voided();
            let told: Vec<u64> = runs.iter().flat_map(|(a, b)| *a..=*b).collect();
            assert_eq!(told, void, "seed {seed}");
            assert!(
                runs.windows(2).all(|two| two[0].1 + 1 < two[1].0),
                "seed {seed}"
            );
        }
        let mut account = Account::default();
        for number in issue(&mut account, 100_000) {
            account.close(number, true);
        }
        assert_eq!(account.voided(), [(1, 100_000)]);
    }

    #[test]
    fn runs_survive_the_status_row_and_single_numbers_are_what_they_were() {
        let all = [(1, 1), (3, 9), (11, 12), (20, 20)];
        let packed = pack(&all);
        assert_eq!(packed.len(), 6);
        assert_eq!(runs(&packed), all);
        // As a version writes them that knows no runs.
        assert_eq!(runs(&[3, 4, 9]), [(3, 3), (4, 4), (9, 9)]);
        assert_eq!(runs(&[RUN | 7, 0, 5, RUN | 2, RUN | 8, RUN | 9]), [(5, 8)]);
    }

    #[test]
    fn the_oldest_runs_are_forgotten() {
        let mut account = Account::default();
        for number in issue(&mut account, 1_000) {
            account.close(number, number % 2 == 0);
        }
        let runs = account.voided();
        assert_eq!((runs.len(), runs.last()), (RUNS_MAX, Some(&(1_000, 1_000))));
    }
}
