//! One message to one destination: which connection, which host next, how often.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use pombo_proto::outcome::{Outcome, RecipientOutcome};
use tracing::debug;

use super::{
    Session, SmtpTransport,
    connection::{Connection, place},
    pool::{Acquired, Lease},
    route::{Destination, Endpoint, HostSet, Kind},
    status::{ConnectionError, Failure},
    transaction::{self, End, Mail, Rcpt, State},
};

/// Messages over one connection to hosts by MX, and to configured ones, where nothing is said.
const USES_MX: u32 = 100;
const USES_CONFIGURED: u32 = 10_000;
/// The memory of unreachable addresses is swept when it is larger than this.
const UNREACHABLE_MAX: usize = 4096;

/// What became of the recipients of one destination.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    pub(super) outcomes: Vec<RecipientOutcome>,
    /// Cancelled before everybody was decided; who has no outcome was not sent to.
    pub(super) cancelled: bool,
}

/// Addresses that could not be reached a moment ago: they are tried after all others (RFC 5321 4.5.4.1).
#[derive(Default)]
pub(super) struct Unreachable(Mutex<HashMap<SocketAddr, Instant>>);

impl Unreachable {
    fn insert(&self, address: SocketAddr, memory: Duration) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= UNREACHABLE_MAX {
            known.retain(|_, since| since.elapsed() < memory);
        }
        if known.len() < UNREACHABLE_MAX {
            known.insert(address, Instant::now());
        }
    }

    fn remove(&self, address: &SocketAddr) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(address);
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Moves those known behind the others, otherwise in the same order.
    fn defer(&self, endpoints: &mut [Endpoint], memory: Duration) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.is_empty() {
            let is_known = |at: &Endpoint| {
                known
                    .get(&at.address)
                    .is_some_and(|since| since.elapsed() < memory)
            };
            endpoints.sort_by_key(is_known);
        }
    }
}

/// Why there is no connection.
enum NoConnection {
    Cancelled,
    Failed(Failure),
}

/// A way through the addresses of a destination for one message.
struct Tour<'a> {
    transport: &'a SmtpTransport,
    session: &'a Session,
    mail: &'a Mail<'a>,
    hosts: Arc<HostSet>,
    /// Looked up when a new connection is needed for the first time.
    endpoints: Option<Vec<Endpoint>>,
    /// The next address; those before it have failed.
    next: usize,
    /// Only new connections from now on: one from the pool has failed.
    fresh: bool,
    /// Some host took the connection.
    reached: bool,
    /// The most telling failure so far.
    failed: Option<Failure>,
}

/// Sends to the recipients of one destination.
pub(super) async fn deliver(
    transport: &SmtpTransport,
    session: &Session,
    mail: &Mail<'_>,
    destination: Destination,
    mut owed: Vec<Rcpt<'_>>,
) -> Delivered {
    let mut delivered = Delivered::default();
    let hosts = transport
        .routes
        .hosts(&destination, &*session.lookup, &session.dialer.helo);
    let hosts = match mail.unless_cancelled(hosts).await {
        None => {
            delivered.cancelled = true;
            return delivered;
        }
        Some(Err(failure)) => {
            give_all(&mut delivered, owed, &failure.outcome());
            return delivered;
        }
        Some(Ok(hosts)) => hosts,
    };
    let mut tour = Tour {
        transport,
        session,
        mail,
        hosts,
        endpoints: None,
        next: 0,
        fresh: false,
        reached: false,
        failed: None,
    };
    let mut batch_max = transport.config.recipients_per_transaction as usize;
    while !owed.is_empty() {
        let (mut lease, pooled) = match tour.connection().await {
            Ok(found) => found,
            Err(NoConnection::Cancelled) => {
                delivered.cancelled = true;
                break;
            }
            Err(NoConnection::Failed(failure)) => {
                give_all(&mut delivered, owed, &failure.outcome());
                break;
            }
        };
        let end = on_connection(&mut lease, mail, &mut owed, &mut batch_max, &mut delivered).await;
        match end {
            End::Completed => lease.release(tour.uses_max()),
            End::Lost { error, answered } => {
                tour.lost(&lease.connection, error, pooled && !answered, pooled)
            }
            End::Cancelled => {
                delivered.cancelled = true;
                break;
            }
            End::NotAllowed => {
                let text = "stopped before the final dot: the right to send has run out";
                give_all(
                    &mut delivered,
                    owed,
                    &Failure::temporary((4, 0), false, text).outcome(),
                );
                break;
            }
        }
    }
    delivered
}

/// As many transactions over one connection as it takes and as it lasts.
async fn on_connection(
    lease: &mut Lease,
    mail: &Mail<'_>,
    owed: &mut Vec<Rcpt<'_>>,
    batch_max: &mut usize,
    delivered: &mut Delivered,
) -> End {
    loop {
        let count = owed.len().min(*batch_max);
        let end = transaction::run(&mut lease.connection, mail, &mut owed[..count]).await;
        let refused = owed.iter().any(|rcpt| rcpt.state == State::NextTime);
        let mut decided = 0;
        owed.retain_mut(
            |rcpt| match std::mem::replace(&mut rcpt.state, State::Owed) {
                State::Done(outcome) => {
                    decided += 1;
                    delivered.outcomes.push(RecipientOutcome {
                        recipient: rcpt.index,
                        outcome,
                    });
                    false
                }
                State::Owed | State::Accepted | State::NextTime => true,
            },
        );
        if refused {
            // So many it takes; the next ones need not find out again.
            *batch_max = decided.max(1);
        }
        if !matches!(end, End::Completed) || owed.is_empty() || lease.connection.finished {
            return end;
        }
    }
}

fn give_all(delivered: &mut Delivered, owed: Vec<Rcpt<'_>>, outcome: &Outcome) {
    delivered
        .outcomes
        .extend(owed.into_iter().map(|rcpt| RecipientOutcome {
            recipient: rcpt.index,
            outcome: outcome.clone(),
        }));
}

impl Tour<'_> {
    fn uses_max(&self) -> u32 {
        let default = if self.hosts.kind.is_configured() {
            USES_CONFIGURED
        } else {
            USES_MX
        };
        self.transport
            .config
            .connections
            .uses_max
            .unwrap_or(default)
    }

    /// A connection, and whether it was used before.
    async fn connection(&mut self) -> Result<(Lease, bool), NoConnection> {
        let mail = self.mail;
        mail.unless_cancelled(self.connect())
            .await
            .unwrap_or(Err(NoConnection::Cancelled))
    }

    async fn connect(&mut self) -> Result<(Lease, bool), NoConnection> {
        let vacancy = match self
            .transport
            .pool
            .acquire(&self.hosts.key, self.fresh)
            .await
        {
            Ok(Acquired::Pooled(lease)) => return Ok((lease, true)),
            Ok(Acquired::Vacant(vacancy)) => vacancy,
            Err(_) => {
                let text = format!("{}: all connections are in use", self.hosts.key);
                return Err(NoConnection::Failed(Failure::temporary(
                    (4, 5),
                    false,
                    text,
                )));
            }
        };
        let connection = self.dial().await.map_err(NoConnection::Failed)?;
        Ok((vacancy.fill(connection), false))
    }

    /// The first address from `next` on that takes a connection.
    async fn dial(&mut self) -> Result<Connection, Failure> {
        let connections = &self.transport.config.connections;
        if self.endpoints.is_none() {
            let routes = &self.transport.routes;
            let found = routes
                .endpoints(&self.hosts, &*self.session.lookup, &self.transport.config)
                .await;
            let mut endpoints = found.inspect_err(|failure| self.report(failure))?;
            self.transport
                .unreachable
                .defer(&mut endpoints, connections.unreachable_memory);
            endpoints.truncate(connections.attempts_max);
            self.endpoints = Some(endpoints);
        }
        while let Some(endpoint) = self.endpoints.iter().flatten().nth(self.next).cloned() {
            match self.session.dialer.dial(&endpoint, self.hosts.kind).await {
                Ok(connection) => {
                    self.reached = true;
                    self.transport.unreachable.remove(&endpoint.address);
                    if self.hosts.kind == Kind::Smarthost {
                        self.transport.well();
                    }
                    return Ok(connection);
                }
                Err(error) => {
                    self.transport
                        .unreachable
                        .insert(endpoint.address, connections.unreachable_memory);
                    self.note(&endpoint.host, endpoint.address, &error);
                    self.next += 1;
                }
            }
        }
        let none = || {
            Failure::temporary(
                (4, 1),
                true,
                format!("{}: no address left to try", self.hosts.key),
            )
        };
        let mut failure = self.failed.clone().unwrap_or_else(none);
        failure.destination_down = !self.reached && !failure.permanent;
        self.report(&failure);
        Err(failure)
    }

    /// The transport as a whole is ill if its smart host is.
    fn report(&self, failure: &Failure) {
        if self.hosts.kind == Kind::Smarthost && failure.destination_down {
            self.transport.ill(&failure.diagnosis.text);
        }
    }

    /// A transaction broke off before its dot. If the connection came from the pool, it had gone stale, and the hosts are tried
    /// as if nothing had happened; otherwise the next one is.
    fn lost(&mut self, connection: &Connection, error: ConnectionError, stale: bool, pooled: bool) {
        debug!(host = %connection.host, address = %connection.address, %error, stale, "transaction broken off");
        self.reached |= !stale;
        self.fresh = true;
        if !stale {
            self.note(&connection.host, connection.address, &error);
        }
        if !pooled {
            self.next += 1;
        }
    }

    fn note(&mut self, host: &str, address: SocketAddr, error: &ConnectionError) {
        // Trouble with the smart host is between us and it: no message fails for it.
        let permanent = error.is_permanent() && self.hosts.kind != Kind::Smarthost;
        // One that may pass counts more than one that will not.
        if permanent && self.failed.as_ref().is_some_and(|failed| !failed.permanent) {
            return;
        }
        self.failed = Some(Failure {
            diagnosis: error.diagnosis(host, &place(host, address), permanent),
            permanent,
            destination_down: false,
        });
    }
}
