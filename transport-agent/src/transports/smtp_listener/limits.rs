//! What all sessions share and may use up: connections, memory, messages per minute. Everything taken here comes
//! back by `Drop`, however a session ends.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// Whose limits they are: an IPv4 address, or an IPv6 /64, which one customer usually has for himself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClientKey(IpAddr);

impl ClientKey {
    pub fn of(client: IpAddr) -> Self {
        match client.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() >> 64 << 64;
                Self(Ipv6Addr::from_bits(network).into())
            }
            v4 => Self(v4),
        }
    }
}

/// Counts connections.
#[derive(Debug)]
pub(super) struct Door {
    max: usize,
    per_client_max: usize,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    all: usize,
    by_client: HashMap<ClientKey, usize>,
}

/// One connection's place.
#[derive(Debug)]
pub(super) struct Place {
    door: Arc<Door>,
    client: ClientKey,
}

impl Door {
    pub fn new(max: usize, per_client_max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            per_client_max,
            inside: Mutex::default(),
        })
    }

    /// A place for this client, if there is one.
    pub fn enter(self: &Arc<Self>, client: ClientKey) -> Option<Place> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let of_client = inside.by_client.get(&client).copied().unwrap_or_default();
        if inside.all >= self.max || of_client >= self.per_client_max {
            return None;
        }
        inside.all += 1;
        inside.by_client.insert(client, of_client + 1);
        Some(Place {
            door: Arc::clone(self),
            client,
        })
    }

    #[cfg(test)]
    pub fn inside(&self) -> usize {
        self.inside.lock().unwrap().all
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = self
            .door
            .inside
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        inside.all -= 1;
        if let Some(count) = inside.by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                inside.by_client.remove(&self.client);
            }
        }
    }
}

/// Bytes that messages under way may occupy.
#[derive(Debug)]
pub(super) struct Budget {
    max: u64,
    used: AtomicU64,
}

/// A part of a [`Budget`].
#[derive(Debug)]
pub(super) struct Grant {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    pub fn new(max: u64) -> Arc<Self> {
        Arc::new(Self {
            max,
            used: AtomicU64::new(0),
        })
    }

    /// An empty part.
    pub fn grant(self: &Arc<Self>) -> Grant {
        Grant {
            budget: Arc::clone(self),
            bytes: 0,
        }
    }

    /// Bytes that are taken; for tests.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

impl Grant {
    /// Takes more. False: there is no more, and nothing was taken.
    #[must_use]
    pub fn grow(&mut self, bytes: u64) -> bool {
        let fits = |used: u64| {
            let after = used.checked_add(bytes)?;
            (after <= self.budget.max).then_some(after)
        };
        let taken = self
            .budget
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_ok();
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    /// Gives back what exceeds `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        let excess = self.bytes.saturating_sub(bytes);
        self.bytes -= excess;
        self.budget.used.fetch_sub(excess, Ordering::Relaxed);
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// What a client has done wrong lately.
#[derive(Debug)]
pub(super) struct Failures {
    max: Option<NonZeroU32>,
    clients: Mutex<HashMap<ClientKey, (u32, Instant)>>,
}

/// How long a failure counts.
const FAILURES_LAST: Duration = Duration::from_secs(60);

impl Failures {
    pub fn per_minute(max: Option<NonZeroU32>) -> Self {
        Self {
            max,
            clients: Mutex::default(),
        }
    }

    /// Whether this client has had as many failures within a minute as it may.
    pub fn is_over(&self, client: ClientKey) -> bool {
        let Some(max) = self.max else { return false };
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        match clients.get(&client) {
            Some((count, since)) => *count >= max.get() && since.elapsed() < FAILURES_LAST,
            // Full of clients that fail: nobody new is given a chance to.
            None => clients.len() >= CLIENTS_MAX,
        }
    }

    /// One more.
    pub fn count(&self, client: ClientKey) {
        if self.max.is_none() {
            return;
        }
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= CLIENTS_MAX {
            clients.retain(|_, (_, since)| since.elapsed() < FAILURES_LAST);
        }
        let now = Instant::now();
        let entry = clients.entry(client).or_insert((0, now));
        if now.duration_since(entry.1) >= FAILURES_LAST {
            *entry = (0, now);
        }
        entry.0 = entry.0.saturating_add(1);
    }

    /// Forgets what does not count any more. Called now and then.
    pub fn tidy(&self) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|_, (_, since)| since.elapsed() < FAILURES_LAST);
    }
}

/// So much per client and minute.
#[derive(Debug)]
pub(super) struct Rate {
    limiter: Option<DefaultKeyedRateLimiter<ClientKey>>,
}

/// More clients than this in memory: forget those that have been quiet. A flood of new IPv6 networks must not grow it.
const CLIENTS_MAX: usize = 100_000;

impl Rate {
    pub fn per_minute(count: Option<NonZeroU32>) -> Self {
        Self {
            limiter: count.map(|count| RateLimiter::keyed(Quota::per_minute(count))),
        }
    }

    /// Whether one more may pass now.
    pub fn admits(&self, client: ClientKey) -> bool {
        let Some(limiter) = &self.limiter else {
            return true;
        };
        if limiter.len() > CLIENTS_MAX {
            limiter.retain_recent();
            if limiter.len() > CLIENTS_MAX {
                return false;
            }
        }
        limiter.check_key(&client).is_ok()
    }

    /// Forgets clients that have been quiet. Called now and then.
    pub fn tidy(&self) {
        if let Some(limiter) = &self.limiter {
            limiter.retain_recent();
        }
    }
}
