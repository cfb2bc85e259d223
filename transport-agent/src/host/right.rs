//! The right to send: whether a transport may pass its point of no return.
//!
//! A spooler answers status rows only while its incarnation lives in the store, and keeps this agent's counter there
//! moving. So who sent a row less than [`VALID`] ago and has had it answered knows that nobody has yet given up on it. The
//! clock counts through a suspended machine.
//!
//! **A right that has lapsed does not come back for what was under way**: others may be sending that by now. What is submitted
//! in sessions that are opened after it is under the right again.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

pub use pombo_proto::{right::VALID, time::boot_time};
use tokio::sync::Notify;

/// Shared by all submissions.
#[derive(Debug)]
pub struct Right {
    enforced: bool,
    /// When the latest answered row was sent, in milliseconds of the boot clock plus one; 0: none was.
    proven: AtomicU64,
    /// Since when it is waited for the first proof, in the same way: since the first session was opened; 0: there was none.
    awaited: AtomicU64,
    lapses: AtomicU64,
}

/// The right as it stood when a submission began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since(u64);

impl Right {
    /// Not proven yet. Not `enforced`: it always holds.
    pub fn new(enforced: bool) -> Self {
        Self {
            enforced,
            proven: AtomicU64::new(0),
            awaited: AtomicU64::new(0),
            lapses: AtomicU64::new(0),
        }
    }

    /// A row that was sent at this time has been answered. Look for a lapse first.
    pub fn prove(&self, sent_at: Duration) {
        self.proven.fetch_max(mark(sent_at), Ordering::AcqRel);
    }

    /// A session is opened: if nothing is proven yet, that must follow soon. What is submitted before the first proof would
    /// otherwise get the right by one that comes long after others have given it up.
    pub fn await_proof(&self, now: Duration) {
        let _ = self
            .awaited
            .compare_exchange(0, mark(now), Ordering::AcqRel, Ordering::Acquire);
    }

    /// For a submission that begins now.
    pub fn since(&self) -> Since {
        Since(self.lapses.load(Ordering::Acquire))
    }

    /// Whether it holds at this time of the boot clock, and has held for as long as this.
    pub fn holds(&self, since: Since, now: Duration) -> bool {
        if !self.enforced {
            return true;
        }
        since == self.since() && self.is_fresh(now)
    }

    /// True once, when it was proven (or awaited) and has run out: what is under way has lost it for good, and so have the sessions
    /// that brought it.
    pub fn has_lapsed(&self, now: Duration) -> bool {
        if !self.enforced {
            return false;
        }
        let proven = self.proven.load(Ordering::Acquire);
        let since = match proven {
            0 => self.awaited.load(Ordering::Acquire),
            proven => proven,
        };
        let lapsed = since != 0 && !is_fresh(since, now);
        if lapsed {
            self.lapses.fetch_add(1, Ordering::AcqRel);
            self.proven.store(0, Ordering::Release);
            self.awaited.store(0, Ordering::Release);
        }
        lapsed
    }

    fn is_fresh(&self, now: Duration) -> bool {
        is_fresh(self.proven.load(Ordering::Acquire), now)
    }
}

/// Whether an instant (plus one; 0: none) is less than [`VALID`] ago.
fn is_fresh(at: u64, now: Duration) -> bool {
    match at {
        0 => false,
        at => now.saturating_sub(Duration::from_millis(at - 1)) < VALID,
    }
}

/// The spooler's go for one submission: asked for before each point of no return, where doubt is held.
#[derive(Debug, Default)]
pub struct Go {
    /// When it was asked for last, and until when there is one: milliseconds of the boot clock.
    asked: AtomicU64,
    until: AtomicU64,
    given: Notify,
}

impl Go {
    /// It is asked for now.
    pub fn ask(&self, now: Duration) {
        self.asked.store(millis(now), Ordering::Release);
    }

    /// It is given: valid from the time of asking.
    pub fn give(&self) {
        let asked = self.asked.load(Ordering::Acquire);
        let until = asked.saturating_add(millis(VALID));
        self.until.store(until, Ordering::Release);
        self.given.notify_waiters();
    }

    /// Whether there is one at this time.
    pub fn is_given(&self, now: Duration) -> bool {
        millis(now) < self.until.load(Ordering::Acquire)
    }

    /// Resolves when there is one at the time of its giving.
    pub async fn given(&self) {
        loop {
            let notified = self.given.notified();
            tokio::pin!(notified);
            // Registered before the state is read, so that no go falls in between.
            notified.as_mut().enable();
            if self.is_given(boot_time()) {
                return;
            }
            notified.await;
        }
    }
}

/// An instant as it is kept: plus one, because 0 says that there is none.
fn mark(at: Duration) -> u64 {
    millis(at).saturating_add(1)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answered_row_gives_the_right_for_a_while_from_its_sending() {
        let right = Right::new(true);
        let since = right.since();
        let at = Duration::from_secs(100);
        assert!(!right.holds(since, at));
        right.prove(at);
        right.prove(at - Duration::from_secs(5));
        assert!(right.holds(since, at + VALID - Duration::from_millis(1)));
        assert!(!right.holds(since, at + VALID));
        assert!(Right::new(false).holds(since, at));
        assert!(boot_time() > Duration::ZERO && boot_time() < Duration::MAX);
    }

    #[test]
    fn a_right_that_has_lapsed_comes_back_only_for_what_begins_after() {
        let right = Right::new(true);
        let at = Duration::from_secs(100);
        assert!(!right.has_lapsed(at), "never proven");
        right.prove(at);
        let before = right.since();
        assert!(!right.has_lapsed(at + VALID - Duration::from_millis(1)));
        assert!(right.has_lapsed(at + VALID));
        assert!(!right.has_lapsed(at + VALID), "once");
        let again = at + VALID + Duration::from_secs(1);
        right.prove(again);
        assert!(!right.holds(before, again));
        assert!(right.holds(right.since(), again));
        assert!(!Right::new(false).has_lapsed(again));
    }

    #[test]
    fn a_first_proof_that_comes_too_late_is_none_for_what_was_submitted_before() {
        let right = Right::new(true);
        let at = Duration::from_secs(100);
        right.await_proof(at);
        right.await_proof(at + Duration::from_secs(9));
        let before = right.since();
        assert!(!right.has_lapsed(at + VALID - Duration::from_millis(1)));
        let late = at + VALID;
        assert!(right.has_lapsed(late) && !right.has_lapsed(late));
        right.await_proof(late);
        right.prove(late);
        assert!(!right.holds(before, late));
        assert!(right.holds(right.since(), late));
    }

    #[tokio::test]
    async fn a_go_is_valid_from_its_asking() {
        let go = Go::default();
        let at = boot_time();
        assert!(!go.is_given(at));
        go.ask(at);
        assert!(!go.is_given(at));
        go.give();
        go.given().await;
        assert!(go.is_given(at + VALID - Duration::from_millis(1)));
        assert!(!go.is_given(at + VALID));
    }
}
