//! The owner of both connections: builds an incarnation, lives through it, takes it down, starts over.
//!
//! ```text
//! callers ──> Shared ──> Live (senders of the current incarnation) ──> one task each:
//!   publishing connection:  spool publisher (confirms), session publisher, burials
//!   consuming connection:   inbox, one per spool class, poll turn
//! ```
//!
//! There is one way to recover from anything that was not expected (a lost connection, a closed channel, a consumer that
//! ends, a task that panics): take everything down and build a new incarnation. Only the poll turn looks after itself.

use std::{
    future::Future,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use secrecy::SecretString;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tracing::{error, info, warn};

use super::{
    Audience, Event, Options, PublishError, SpoolPublish,
    bury::Graveyard,
    connect::Address,
    declare, depth,
    error::Error,
    live::{Live, Up},
    metrics,
    publish::Publish,
    session::Outgoing,
};
use crate::{frame::Packet, tenure::LeaseTag, topology::SpoolClass};

/// What hears everything.
pub(super) type Tell = Arc<dyn Fn(Event) + Send + Sync>;

const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A link that stood so long was no flapping one: the next attempt comes at once.
const STEADY: Duration = Duration::from_secs(10);
/// For what lapin has left running when all is closed.
const SHUTDOWN_MAX: Duration = Duration::from_secs(1);
/// Decoding is the work; IO has lapin's own threads.
const WORKERS: usize = 1;

/// What handles share. Dropped with the last one, and then the link closes.
pub(super) struct Shared {
    inner: Arc<Inner>,
}

/// What outlives an incarnation.
pub(super) struct Inner {
    pub(super) options: Options,
    pub(super) tell: Tell,
    pub(super) live: RwLock<Option<Arc<Live>>>,
    /// Wished prefetches, in the order of [`SpoolClass::ALL`].
    pub(super) prefetch: [watch::Sender<u16>; SpoolClass::ALL.len()],
    /// The transport whose turn is wished.
    pub(super) turn: watch::Sender<Option<String>>,
    pub(super) graveyard: Graveyard,
    pub(super) closing: watch::Sender<bool>,
    /// Somebody wants another incarnation.
    pub(super) restart: Notify,
    closed: watch::Sender<bool>,
}

/// Starts the link's thread.
pub(super) fn start(options: Options, tell: Tell) -> Arc<Shared> {
    let inner = Arc::new(Inner {
        options,
        tell,
        live: RwLock::new(None),
        prefetch: std::array::from_fn(|_| watch::Sender::new(0)),
        turn: watch::Sender::new(None),
        graveyard: Graveyard::default(),
        closing: watch::Sender::new(false),
        restart: Notify::new(),
        closed: watch::Sender::new(false),
    });
    let owned = Arc::clone(&inner);
    std::thread::Builder::new()
        .name("pombo-link".to_owned())
        .spawn(move || thread(&owned))
        .expect("the process can start a thread");
    Arc::new(Shared { inner })
}

impl Shared {
    pub(super) fn send(&self, packet: &Packet) {
        let names = &self.inner.options.topology;
        self.write(
            names.session_exchange(),
            names.inbox(packet.to),
            true,
            packet,
        );
    }

    pub(super) fn announce(&self, audience: Audience, packet: &Packet) {
        if let Some(exchange) = declare::fanout(&self.inner.options.topology, audience) {
            self.write(exchange, String::new(), false, packet);
        }
    }

    fn write(&self, exchange: String, routing_key: String, mandatory: bool, packet: &Packet) {
        // A name that is too long was refused when the incarnation was built.
        if let Some(live) = self.inner.live()
            && let Ok(exchange) = declare::name(exchange)
            && let Ok(routing_key) = declare::name(routing_key)
        {
            live.session.send(Outgoing {
                exchange,
                routing_key,
                mandatory,
                bytes: packet.encode(),
            });
        }
    }

    pub(super) fn publish(
        &self,
        publish: SpoolPublish,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> {
        let live = self.inner.live().filter(|live| !live.is_blocked());
        let written = live.map(|live| {
            let exchange = live.spool_exchange.clone();
            live.publisher.publish(Publish::spool(exchange, publish))
        });
        async move {
            match written {
                Some(written) => written.await,
                None => {
                    let refused = Err(PublishError::NotConnected);
                    metrics::published(&refused);
                    refused
                }
            }
        }
    }

    pub(super) fn ack(&self, tags: Vec<LeaseTag>) {
        let Some(live) = self.inner.live() else {
            return;
        };
        for (class, acks) in SpoolClass::ALL.into_iter().zip(&live.acks) {
            let ours = |tag: &&LeaseTag| tag.class == class && tag.incarnation == live.incarnation;
            let tags: Vec<_> = tags.iter().filter(ours).map(|tag| tag.delivery).collect();
            if !tags.is_empty() {
                // The task is gone: so is the incarnation, and the broker delivers them again.
                let _ = acks.send(tags);
            }
        }
    }

    pub(super) fn lease(&self, class: SpoolClass, prefetch: u16) {
        let all = SpoolClass::ALL.into_iter().zip(&self.inner.prefetch);
        for (_, wish) in all.filter(|(other, _)| *other == class) {
            wish.send_if_modified(|wished| std::mem::replace(wished, prefetch) != prefetch);
        }
    }

    pub(super) fn poll_turn(&self, transport: &str, wanted: bool) {
        self.inner.turn.send_if_modified(|wished| {
            let ours = wished.as_deref() == Some(transport);
            match wanted {
                true if !ours => *wished = Some(transport.to_owned()),
                false if ours => *wished = None,
                _ => return false,
            }
            true
        });
    }

    pub(super) fn bury(&self, bytes: Bytes, reason: &str) {
        self.inner.graveyard.bury(bytes, reason);
    }

    pub(super) fn ready(
        &self,
    ) -> impl Future<Output = Option<[u64; SpoolClass::ALL.len()]>> + Send + use<> {
        let live = self.inner.live();
        let names = self.inner.options.topology.clone();
        async move { depth::ready(&live?.consuming, &names).await }
    }

    pub(super) fn restart(&self) {
        self.inner.restart.notify_waiters();
    }

    pub(super) fn is_up(&self) -> bool {
        self.inner.live().is_some_and(|live| !live.is_blocked())
    }

    pub(super) async fn close(&self) {
        self.inner.closing.send_replace(true);
        set(&mut self.inner.closed.subscribe()).await;
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.inner.closing.send_replace(true);
    }
}

impl Inner {
    fn live(&self) -> Option<Arc<Live>> {
        let live = self.live.read();
        live.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_live(&self, live: Option<Arc<Live>>) {
        metrics::up(live.is_some());
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = live;
    }
}

/// Waits until it is set.
pub(super) async fn set(flag: &mut watch::Receiver<bool>) {
    // A sender that is gone will not be waited for by anybody.
    let _ = flag.wait_for(|set| *set).await;
}

/// The runtime's life. Whatever happens, `closed` is set at its end.
fn thread(inner: &Arc<Inner>) {
    let mut backoff = Backoff::default();
    while !*inner.closing.borrow() {
        match tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("pombo-link")
            .enable_all()
            .build()
        {
            Ok(runtime) => {
                let owner = runtime.spawn(own(Arc::clone(inner)));
                let panic = runtime.block_on(owner).err();
                runtime.shutdown_timeout(SHUTDOWN_MAX);
                let Some(panic) = panic else { break };
                error!(%panic, "the owner of the link panicked; starting it again");
                inner.end("the owner of the link panicked");
            }
            Err(error) => error!(%error, "no runtime for the link; trying again"),
        }
        std::thread::sleep(backoff.next());
    }
    inner.closed.send_replace(true);
}

impl Inner {
    /// Tells the end of an incarnation, if there is one.
    pub(super) fn end(&self, reason: &str) {
        let Some(live) = self.live() else { return };
        self.set_live(None);
        live.retract(&self.tell);
        (self.tell)(Event::Down(reason.to_owned()));
    }
}

/// One incarnation after the other, until the link is closed.
async fn own(inner: Arc<Inner>) {
    let mut closing = inner.closing.subscribe();
    let mut backoff = Backoff::default();
    let addresses = inner.options.addresses.clone();
    if addresses.is_empty() {
        error!("no address of a broker: the link stays down");
        return set(&mut closing).await;
    }
    for address in addresses.iter().cycle() {
        let built = tokio::select! {
            built = build(&inner, address) => built,
            () = set(&mut closing) => return,
        };
        if let Some(up) = built {
            let start = Instant::now();
            up.live(&inner).await;
            if start.elapsed() >= STEADY {
                backoff = Backoff::default();
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => metrics::reconnect(),
            () = set(&mut closing) => return,
        }
    }
}

async fn build(inner: &Inner, address: &SecretString) -> Option<Up> {
    let address = match Address::parse(address, inner.options.heartbeat) {
        Ok(address) => address,
        Err(error) => {
            error!(%error, "this address of a broker cannot be used");
            return None;
        }
    };
    match Up::build(&inner.options, &address).await {
        Ok(up) => {
            info!(%address, incarnation = %up.incarnation(), "link up");
            Some(up)
        }
        Err(error) => {
            match &error {
                Error::Refused(_) => {
                    error!(%address, %error, "check user, password and virtual host; trying again");
                }
                Error::Differs { .. } => {
                    error!(%address, %error, "delete it, or choose another prefix; trying again");
                }
                Error::Missing(_) => error!(%address, %error, "trying again"),
                _ => warn!(%address, %error, "no link; trying again"),
            }
            (inner.tell)(Event::Down(error.to_string()));
            None
        }
    }
}

/// Doubles from 0.2 s to 10 s; half of it is chance, so that a thousand processes do not come back at once.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(BACKOFF_MIN)
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let current = self.0;
        self.0 = (current * 2).min(BACKOFF_MAX);
        current.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_with_jitter_up_to_its_bound() {
        let mut backoff = Backoff::default();
        let mut nominal = BACKOFF_MIN;
        for _ in 0..12 {
            let wait = backoff.next();
            assert!(wait >= nominal / 2 && wait <= nominal, "{wait:?}");
            nominal = (nominal * 2).min(BACKOFF_MAX);
        }
        assert_eq!(nominal, BACKOFF_MAX);
    }
}
