//! What nobody can read goes to the dead queue, for a person to look at.
//!
//! Burials wait here while the broker is away, over incarnations, up to a bound. They are repeated until confirmed: twice in
//! the dead queue is better than nowhere.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use lapin::types::ShortString;
use tokio::sync::{Notify, watch};
use tracing::error;

use super::{
    metrics,
    publish::{Publish, Publisher},
};

/// Bytes that wait. One packet is at most 12 MiB.
const PENDING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The same as a count.
const PENDING_MAX: usize = 1_024;
/// While the broker blocks publishes, one may as well wait.
const RETRY: Duration = Duration::from_secs(2);

/// What is to be buried.
#[derive(Clone, Default)]
pub(super) struct Graveyard(Arc<Waiting>);

#[derive(Default)]
struct Waiting {
    queue: Mutex<Queue>,
    more: Notify,
    empty: Notify,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<(Bytes, String)>,
    bytes: usize,
}

impl Graveyard {
    /// Takes bytes and the reason why nobody can read them.
    pub(super) fn bury(&self, bytes: Bytes, reason: &str) {
        let mut queue = self.queue();
        if queue.entries.len() >= PENDING_MAX || queue.bytes + bytes.len() > PENDING_BYTES_MAX {
            metrics::burial_dropped();
            error!(
                size = bytes.len(),
                reason, "no room for what belongs into the dead queue: dropped"
            );
            return;
        }
        queue.bytes += bytes.len();
        queue.entries.push_back((bytes, reason.to_owned()));
        drop(queue);
        self.0.more.notify_one();
    }

    fn first(&self) -> Option<(Bytes, String)> {
        self.queue().entries.front().cloned()
    }

    fn buried(&self) {
        let mut queue = self.queue();
        if let Some((bytes, _)) = queue.entries.pop_front() {
            queue.bytes -= bytes.len();
        }
        if queue.entries.is_empty() {
            self.0.empty.notify_waiters();
        }
    }

    /// Waits until all is buried.
    pub(super) async fn emptied(&self) {
        loop {
            let empty = self.0.empty.notified();
            if self.queue().entries.is_empty() {
                return;
            }
            empty.await;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        let queue = self.0.queue.lock();
        queue.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Buries for one incarnation, until `drain`.
pub(super) async fn run(
    graveyard: Graveyard,
    publisher: Publisher,
    dead: ShortString,
    mut drain: watch::Receiver<bool>,
) -> String {
    let work = async {
        loop {
            while let Some((bytes, reason)) = graveyard.first() {
                bury(&publisher, &dead, bytes, &reason).await;
                graveyard.buried();
            }
            graveyard.0.more.notified().await;
        }
    };
    tokio::select! {
        () = work => {}
        () = super::run::set(&mut drain) => {}
    }
    "nothing is buried any more".to_owned()
}

/// Returns when the dead queue has it.
pub(super) async fn bury(publisher: &Publisher, dead: &ShortString, bytes: Bytes, reason: &str) {
    loop {
        let publish = Publish::dead(dead.clone(), bytes.clone(), reason);
        match publisher.publish(publish).await {
            Ok(()) => return,
            Err(error) => {
                error!(%error, "the dead queue does not take what nobody can read; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burials_are_bounded() {
        let graveyard = Graveyard::default();
        let large = Bytes::from(vec![0; PENDING_BYTES_MAX / 2]);
        (0..3).for_each(|_| graveyard.bury(large.clone(), "test"));
        assert_eq!(graveyard.queue().entries.len(), 2);
        graveyard.buried();
        graveyard.bury(Bytes::new(), "test");
        assert_eq!(graveyard.queue().bytes, PENDING_BYTES_MAX / 2);
    }
}
