//! A cancel and a point of no return, which exclude each other.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use tokio::sync::Notify;

const OPEN: u8 = 0;
const CANCELLED: u8 = 1;
const COMMITTED: u8 = 2;

/// Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Cancel {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: AtomicU8,
    notify: Notify,
}

impl Cancel {
    /// Cancels, unless it is too late.
    pub fn cancel(&self) {
        if self.move_to(CANCELLED) {
            self.shared.notify.notify_waiters();
        }
    }

    /// The point of no return: true if it was not cancelled before, and then it never is.
    pub fn commit(&self) -> bool {
        self.move_to(COMMITTED) || self.shared.state.load(Ordering::Acquire) == COMMITTED
    }

    /// Whether it is cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.shared.state.load(Ordering::Acquire) == CANCELLED
    }

    /// Resolves when it is cancelled.
    pub async fn cancelled(&self) {
        loop {
            let notified = self.shared.notify.notified();
            tokio::pin!(notified);
            // Registered before the state is read, so that no cancel falls in between.
            notified.as_mut().enable();
            if self.is_cancelled() {
                return;
            }
            notified.await;
        }
    }

    fn move_to(&self, state: u8) -> bool {
        let order = (Ordering::AcqRel, Ordering::Acquire);
        self.shared
            .state
            .compare_exchange(OPEN, state, order.0, order.1)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cancel_and_a_commit_exclude_each_other() {
        let cancel = Cancel::default();
        let other = cancel.clone();
        let waiting = tokio::spawn(async move { other.cancelled().await });
        cancel.cancel();
        waiting.await.unwrap();
        assert!(!cancel.commit());
        let cancel = Cancel::default();
        assert!(cancel.commit());
        cancel.cancel();
        assert!(!cancel.is_cancelled() && cancel.commit());
    }
}
