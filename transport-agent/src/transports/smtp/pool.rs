//! Connections that wait for their next message, and how many there may be.
//!
//! Connections are shared by the set of hosts (and by whether the password goes there: a smart host has its own keys). The one
//! that was used last is used first, so that a lull lets the others go. Two bounds: per destination, which counts those in use
//! (one is opened only when none is idle, so idle and used together stay within it), and in all, which counts open ones; an idle
//! one makes room for a destination that has none.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{config::Connections, connection::Connection};

/// All connections of one transport.
pub(super) struct Pool {
    limits: Connections,
    quit_limit: Duration,
    total: Arc<Semaphore>,
    /// How many wait for a place in `total`: nothing stays idle then.
    waiting: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    destinations: HashMap<Arc<str>, Slot>,
    reaping: bool,
    closed: bool,
}

struct Slot {
    in_use: Arc<Semaphore>,
    /// Last used last.
    idle: Vec<Open>,
}

/// An open connection and its place among all.
struct Open {
    connection: Connection,
    place: OwnedSemaphorePermit,
}

/// What [`Pool::acquire`] gives.
pub(super) enum Acquired {
    /// A connection that was used before.
    Pooled(Lease),
    /// The right to open one.
    Vacant(Vacancy),
}

/// The right to open a connection.
pub(super) struct Vacancy {
    place: OwnedSemaphorePermit,
    turn: Turn,
}

/// A connection in use. Dropped, it is closed without a word, which is how a transfer is stopped.
pub(super) struct Lease {
    pub(super) connection: Connection,
    // Declared, and so dropped, behind the connection: a place is free once the socket is closed.
    place: OwnedSemaphorePermit,
    turn: Turn,
}

/// The place among those in use of one destination; forgets the destination with its last user.
struct Turn {
    pool: Arc<Pool>,
    key: Arc<str>,
    _permit: OwnedSemaphorePermit,
}

/// All connections are in use, and none became free in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exhausted;

impl Pool {
    pub(super) fn new(limits: Connections, quit_limit: Duration) -> Arc<Self> {
        Arc::new(Self {
            total: Arc::new(Semaphore::new(limits.total)),
            limits,
            quit_limit,
            waiting: AtomicUsize::new(0),
            state: Mutex::default(),
        })
    }

    /// A connection to the destination, or the right to open one. With `fresh`, none that was used before.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        key: &Arc<str>,
        fresh: bool,
    ) -> Result<Acquired, Exhausted> {
        timeout(self.limits.wait, self.acquire_patiently(key, fresh))
            .await
            .map_err(|_| Exhausted)
    }

    async fn acquire_patiently(self: &Arc<Self>, key: &Arc<str>, fresh: bool) -> Acquired {
        let in_use = {
            let mut state = self.lock();
            let slot = state
                .destinations
                .entry(Arc::clone(key))
                .or_insert_with(|| Slot {
                    in_use: Arc::new(Semaphore::new(self.limits.per_destination)),
                    idle: Vec::new(),
                });
            Arc::clone(&slot.in_use)
        };
        let turn = Turn {
            _permit: permit(in_use).await,
            pool: Arc::clone(self),
            key: Arc::clone(key),
        };
        if fresh {
            // One goes for the one that comes, so that the bound holds.
            let old = self
                .lock()
                .destinations
                .get_mut(key)
                .and_then(|slot| slot.idle.pop());
            if let Some(open) = old {
                self.farewell(open);
            }
        } else if let Some(open) = self.take_idle(key) {
            metrics::counter!("pombo_smtp_connections_total", "result" => "reused").increment(1);
            return Acquired::Pooled(Lease {
                connection: open.connection,
                place: open.place,
                turn,
            });
        }
        Acquired::Vacant(Vacancy {
            place: self.place(key).await,
            turn,
        })
    }

    /// The connection used last that is still good. Those that are not are dropped on the way.
    fn take_idle(&self, key: &Arc<str>) -> Option<Open> {
        loop {
            let open = self.lock().destinations.get_mut(key)?.idle.pop()?;
            let fresh = open.connection.idle_since.elapsed() < self.limits.idle_timeout;
            if fresh && open.connection.is_quiet() {
                return Some(open);
            }
        }
    }

    /// A place among all connections; the one idle longest gives way.
    async fn place(self: &Arc<Self>, key: &Arc<str>) -> OwnedSemaphorePermit {
        if let Ok(place) = Arc::clone(&self.total).try_acquire_owned() {
            return place;
        }
        let _waiting = Waiting::new(&self.waiting);
        if let Some(open) = self.take_oldest(key) {
            self.farewell(open);
        }
        permit(Arc::clone(&self.total)).await
    }

    fn take_oldest(&self, not: &Arc<str>) -> Option<Open> {
        let mut state = self.lock();
        let others = state.destinations.iter_mut().filter(|(key, _)| *key != not);
        let idle = others.filter(|(_, slot)| !slot.idle.is_empty());
        let (_, slot) = idle.min_by_key(|(_, slot)| slot.idle[0].connection.idle_since)?;
        Some(slot.idle.remove(0))
    }

    /// Closes those that were not used for this long.
    pub(super) async fn close_idle(&self, longer_than: Duration) {
        let mut gone = Vec::new();
        {
            let mut state = self.lock();
            for slot in state.destinations.values_mut() {
                let idle = std::mem::take(&mut slot.idle);
                let (old, young) = idle
                    .into_iter()
                    .partition(|open: &Open| open.connection.idle_since.elapsed() >= longer_than);
                slot.idle = young;
                gone.extend(Vec::<Open>::into_iter(old));
            }
            state.destinations.retain(|_, slot| slot.is_wanted(0));
        }
        let quits = gone.into_iter().map(|open| async move {
            open.connection.quit(self.quit_limit).await;
            drop(open.place);
        });
        join_all(quits).await;
    }

    /// Says goodbye on all idle connections; those in use are closed when they come back.
    pub(super) async fn close(&self) {
        self.lock().closed = true;
        self.close_idle(Duration::ZERO).await;
    }

    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.lock()
            .destinations
            .values()
            .map(|slot| slot.idle.len())
            .sum()
    }

    fn put_back(self: &Arc<Self>, key: &Arc<str>, mut open: Open) {
        let unwanted = {
            let mut state = self.lock();
            let wanted = !state.closed && self.waiting.load(Ordering::Acquire) == 0;
            match state.destinations.get_mut(key).filter(|_| wanted) {
                None => Some(open),
                Some(slot) => {
                    open.connection.idle_since = Instant::now();
                    slot.idle.push(open);
                    if !std::mem::replace(&mut state.reaping, true) {
                        tokio::spawn(reap(Arc::downgrade(self), self.limits.idle_timeout));
                    }
                    None
                }
            }
        };
        if let Some(open) = unwanted {
            self.farewell(open);
        }
    }

    /// Says goodbye in the background, for a bounded time. Rare: once per connection.
    fn farewell(&self, open: Open) {
        let limit = self.quit_limit;
        tokio::spawn(async move {
            open.connection.quit(limit).await;
            drop(open.place);
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; if something did, the maps are still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Whether anybody uses it or waits for it, not counting `ours`; the map itself holds one.
    fn is_wanted(&self, ours: usize) -> bool {
        !self.idle.is_empty() || Arc::strong_count(&self.in_use) > 1 + ours
    }
}

impl Vacancy {
    /// The connection that was opened.
    pub(super) fn fill(self, connection: Connection) -> Lease {
        Lease {
            connection,
            place: self.place,
            turn: self.turn,
        }
    }
}

impl Lease {
    /// Puts the connection away for the next message, unless it has done its part.
    pub(super) fn release(self, uses_max: u32) {
        let Self {
            connection,
            place,
            turn,
        } = self;
        let used_up = connection.uses >= uses_max;
        let finished = connection.finished;
        let open = Open { connection, place };
        if used_up && !finished {
            turn.pool.farewell(open);
        } else if !finished {
            turn.pool.put_back(&turn.key, open);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        let gone = state
            .destinations
            .get(&self.key)
            .is_some_and(|slot| !slot.is_wanted(1));
        if gone {
            state.destinations.remove(&self.key);
        }
    }
}

/// Counts one that waits, also if it gives up.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn permit(semaphore: Arc<Semaphore>) -> OwnedSemaphorePermit {
    match semaphore.acquire_owned().await {
        Ok(permit) => permit,
        // Never closed.
        Err(_) => std::future::pending().await,
    }
}

/// Closes what is idle for too long. Lives while there is something idle.
async fn reap(pool: Weak<Pool>, idle_timeout: Duration) {
    loop {
        // An expired one is not used; it may stay open a little longer.
        tokio::time::sleep((idle_timeout / 4).max(Duration::from_millis(100))).await;
        let Some(pool) = pool.upgrade() else {
            return;
        };
        pool.close_idle(idle_timeout).await;
        let mut state = pool.lock();
        if state.destinations.values().all(|slot| slot.idle.is_empty()) {
            state.reaping = false;
            return;
        }
    }
}
