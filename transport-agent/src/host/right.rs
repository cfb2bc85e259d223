//! The right to send: whether a transport may pass its point of no return.
//!
//! A spooler answers status rows only while its incarnation lives in the store. So who sent a row less than [`VALID`] ago and
//! has had it answered knows that nobody has yet given up on it. The clock counts through a suspended machine.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

/// How long an answered row is good for, counted from when it was sent.
pub(super) const VALID: Duration = Duration::from_secs(10);

/// Shared by all submissions.
#[derive(Debug)]
pub(super) struct Right {
    enforced: bool,
    /// When the latest answered row was sent, in milliseconds of the boot clock plus one; 0: none was.
    proven: AtomicU64,
}

impl Right {
    /// Not proven yet. Not `enforced`: it always holds.
    pub fn new(enforced: bool) -> Self {
        Self {
            enforced,
            proven: AtomicU64::new(0),
        }
    }

    /// A row that was sent at this time has been answered.
    pub fn prove(&self, sent_at: Duration) {
        let at = u64::try_from(sent_at.as_millis()).unwrap_or(u64::MAX - 1);
        self.proven.fetch_max(at + 1, Ordering::AcqRel);
    }

    /// Whether it holds at this time of the boot clock.
    pub fn holds(&self, now: Duration) -> bool {
        if !self.enforced {
            return true;
        }
        match self.proven.load(Ordering::Acquire) {
            0 => false,
            at => now.saturating_sub(Duration::from_millis(at - 1)) < VALID,
        }
    }
}

/// The boot clock: monotonic, and it counts while the machine sleeps.
pub(super) fn boot_time() -> Duration {
    // A kernel without this clock does not exist any more; without a clock there is no right.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answered_row_gives_the_right_for_a_while_from_its_sending() {
        let right = Right::new(true);
        let at = Duration::from_secs(100);
        assert!(!right.holds(at));
        right.prove(at);
        right.prove(at - Duration::from_secs(5));
        assert!(right.holds(at + VALID - Duration::from_millis(1)));
        assert!(!right.holds(at + VALID));
        assert!(Right::new(false).holds(at));
        assert!(boot_time() > Duration::ZERO && boot_time() < Duration::MAX);
    }
}
