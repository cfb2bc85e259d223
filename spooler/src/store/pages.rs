//! Which of a door's numbers are accounted for: one bit each, in pages of [`NUMBERS`].
//!
//! A number is accounted for once its message has come into the store, or once its door has called it void. Pages make the missing
//! ones enumerable without a look at any row, also after the rows of their day have been dropped; a page costs 128 bytes while
//! it is incomplete, and nothing afterwards.

/// Numbers in one page. A commit of some hundred messages of one door touches one or two.
pub const NUMBERS: u64 = 1_024;
const WORDS: usize = 16;
const BYTES: usize = WORDS * 8;

/// The bits of one page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Page([u64; WORDS]);

/// In which page a number's bit is, and where. Numbers begin at 1.
pub fn place(sequence: u64) -> (u64, u32) {
    let index = sequence.saturating_sub(1);
    (index / NUMBERS, (index % NUMBERS) as u32)
}

/// The number of a bit.
pub fn number(page: u64, bit: u32) -> u64 {
    page * NUMBERS + u64::from(bit) + 1
}

impl Page {
    /// As it was stored; anything else is an empty page, which is then missing in the books and not in the mail.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut page = Self::default();
        if bytes.len() == BYTES {
            for (word, bytes) in page.0.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = bytes
                    .iter()
                    .rev()
                    .fold(0, |word, byte| word << 8 | u64::from(*byte));
            }
        }
        page
    }

    /// To be stored.
    pub fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Accounts for a number; true if it was not before.
    pub fn set(&mut self, bit: u32) -> bool {
        let (word, mask) = (&mut self.0[bit as usize / 64], 1 << (bit % 64));
        let fresh = *word & mask == 0;
        *word |= mask;
        fresh
    }

    /// Whether this number is accounted for.
    pub fn has(&self, bit: u32) -> bool {
        self.0[bit as usize / 64] & (1 << (bit % 64)) != 0
    }

    /// Whether all are.
    pub fn is_full(&self) -> bool {
        self.0.iter().all(|word| *word == u64::MAX)
    }

    /// How many of the first `bits` are, and how many of the others.
    pub fn split_count(&self, bits: u64) -> (u64, u64) {
        let all: u64 = self.0.iter().map(|word| u64::from(word.count_ones())).sum();
        let below = if bits >= NUMBERS {
            all
        } else {
            (0..bits as u32).filter(|bit| self.has(*bit)).count() as u64
        };
        (below, all - below)
    }
}

/// What a door's pages add up to, against its confirmed number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Numbers up to the confirmed one that are not accounted for.
    pub holes: u64,
    /// Accounted for beyond it.
    pub beyond: u64,
}

/// Adds up. Pages before `complete` are full and not kept; `pages` are the others, in any order.
pub fn add_up(confirmed: u64, complete: u64, pages: impl IntoIterator<Item = (u64, Page)>) -> Sum {
    let dropped = complete.saturating_mul(NUMBERS);
    let (mut below, mut beyond) = (dropped.min(confirmed), dropped.saturating_sub(confirmed));
    for (page, bits) in pages {
        let first = page.saturating_mul(NUMBERS);
        let (under, over) = bits.split_count(confirmed.saturating_sub(first));
        below += under;
        beyond += over;
    }
    Sum {
        holes: confirmed.saturating_sub(below),
        beyond,
    }
}

/// The first `limit` numbers up to the confirmed one that are not accounted for. `pages` in order.
pub fn holes(
    confirmed: u64,
    complete: u64,
    pages: impl IntoIterator<Item = (u64, Page)>,
    limit: usize,
) -> Vec<u64> {
    let mut found = Vec::new();
    let mut next = complete;
    // After the last page that there is, everything is missing.
    let all = pages.into_iter().map(Some).chain([None]);
    for page in all {
        let last = confirmed / NUMBERS + 1;
        let until = page.map_or(last, |(page, _)| page.min(last));
        while next < until && found.len() < limit {
            take_holes(&mut found, confirmed, next, Page::default(), limit);
            next += 1;
        }
        if let Some((page, bits)) = page {
            take_holes(&mut found, confirmed, page, bits, limit);
            next = page + 1;
        }
        if found.len() >= limit {
            break;
        }
    }
    found
}

fn take_holes(found: &mut Vec<u64>, confirmed: u64, page: u64, bits: Page, limit: usize) {
    let numbers = (0..NUMBERS as u32)
        .filter(|bit| !bits.has(*bit))
        .map(|bit| number(page, bit))
        .take_while(|number| *number <= confirmed);
    found.extend(numbers.take(limit - found.len()));
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn a_page_is_stored_and_read_as_it_was() {
        let mut page = Page::default();
        for bit in [0, 1, 63, 64, 500, 1023] {
            assert!(page.set(bit));
            assert!(!page.set(bit));
        }
        assert_eq!(Page::from_bytes(&page.to_bytes()), page);
        assert_eq!(page.split_count(64), (3, 3));
        assert_eq!(page.split_count(u64::MAX), (6, 0));
        assert_eq!(place(1), (0, 0));
        assert_eq!(place(1025), (1, 0));
        assert_eq!(number(1, 0), 1025);
    }

    /// Against a set of numbers.
    #[test]
    fn pages_say_what_a_set_says() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let roof = random.u64(1..6_000);
            let complete = random.u64(..3);
            let mut set: BTreeSet<u64> = (1..=complete * NUMBERS).collect();
            let mut pages: BTreeMap<u64, Page> = BTreeMap::new();
            for _ in 0..random.u64(..4_000) {
                let sequence = complete * NUMBERS + random.u64(1..=roof);
                let (page, bit) = place(sequence);
                assert_eq!(
                    pages.entry(page).or_default().set(bit),
                    set.insert(sequence)
                );
            }
            let confirmed = random.u64(..8_000);
            let sum = add_up(confirmed, complete, pages.clone());
            let missing: Vec<u64> = (1..=confirmed).filter(|it| !set.contains(it)).collect();
            assert_eq!(sum.holes, missing.len() as u64, "seed {seed}");
            assert_eq!(
                sum.beyond,
                set.range(confirmed + 1..).count() as u64,
                "seed {seed}"
            );
            let limit = random.usize(1..3_000);
            let named = holes(confirmed, complete, pages, limit);
            assert_eq!(named, missing[..limit.min(missing.len())], "seed {seed}");
        }
    }

    #[test]
    fn a_door_that_claims_the_impossible_costs_no_more_than_what_is_asked_for() {
        assert_eq!(holes(u64::MAX - 1, 0, [], 3), [1, 2, 3]);
        assert_eq!(add_up(u64::MAX, 0, []).holes, u64::MAX);
    }
}
