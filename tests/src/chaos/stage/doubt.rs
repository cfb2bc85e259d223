//! How much the spoolers say that they cannot know.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{task::AbortHandle, time::sleep};

use crate::{http, service::Service};

/// The spoolers' counters of recipients in doubt, over the lives of their processes.
#[derive(Debug)]
pub(super) struct Doubt {
    counters: Arc<Vec<Counter>>,
    watching: AbortHandle,
}

#[derive(Debug)]
struct Counter {
    at: SocketAddr,
    /// Of former lives, and of this one.
    seen: Mutex<(u64, u64)>,
    looks: AtomicU64,
}

impl Doubt {
    /// Looks often, because a counter dies with its process.
    pub(super) fn watch(spoolers: &[Service]) -> Self {
        let counters: Arc<Vec<Counter>> = Arc::new(
            spoolers
                .iter()
                .map(|spooler| Counter {
                    at: spooler.http(),
                    seen: Mutex::default(),
                    looks: AtomicU64::new(0),
                })
                .collect(),
        );
        let watched = Arc::clone(&counters);
        let task = tokio::spawn(async move {
            loop {
                look_at(&watched).await;
                sleep(Duration::from_millis(300)).await;
            }
        });
        Self {
            counters,
            watching: task.abort_handle(),
        }
    }

    pub(super) async fn look(&self) {
        look_at(&self.counters).await;
    }

    pub(super) fn sum(&self) -> u64 {
        let counters = self.counters.iter();
        counters
            .map(|counter| {
                let (former, now) = *counter.seen.lock().unwrap_or_else(PoisonError::into_inner);
                former + now
            })
            .sum()
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

async fn look_at(counters: &[Counter]) {
    futures_util::future::join_all(counters.iter().map(|counter| async {
        let turn = counter.looks.fetch_add(1, Ordering::AcqRel);
        let look = http::get(counter.at, "/metrics");
        // A stopped process does not answer; the others are not to wait for it.
        let Ok(Ok(page)) = tokio::time::timeout(Duration::from_secs(1), look).await else {
            return;
        };
        let value = http::metric(&page.body, "pombo_in_doubt_total").unwrap_or(0.0) as u64;
        let mut seen = counter.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if value < seen.1 && counter.looks.load(Ordering::Acquire) == turn + 1 {
            seen.0 += seen.1;
            seen.1 = value;
        }
        seen.1 = seen.1.max(value);
    }))
    .await;
}
