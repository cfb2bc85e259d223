//! The `smtp` transport: sends Internet mail (RFC 5321) to a smart host, to hosts by domain, or by MX.
//!
//! ```text
//! submit_message -> destinations -> hosts (map, literal, MX) -> connection (pool, or the next address) -> transaction -> outcomes
//! ```
//!
//! | module | what it owns |
//! |---|---|
//! | [`config`] | what can be configured |
//! | `route`, [`dns`] | from a recipient to hosts and addresses |
//! | `pool`, `connection`, `tls`, `stream` | connections: how many, how made, how reused |
//! | `transaction`, `command`, `content`, `body`, `reply` | MAIL to the answer to the final dot |
//! | `deliver` | which host next; what is tried again |
//! | `status` | what replies and failures mean for recipients |
//!
//! What a reply means: 4xx defers the recipient, 5xx fails it; 421 and everything that keeps a connection from being made or from
//! going on (before the final dot) leads to the next address. If none of a destination can be reached, its recipients are deferred
//! with `destination_down`. A connection lost between the final dot and its reply leaves a doubt that SMTP cannot resolve: the
//! recipients are deferred with 4.4.2, the text says that they may have the message, and it is sent again (at least once).
//!
//! Bounds: submissions by the credit that [`Config::capacity`] grants, connections by [`config::Connections`], replies, hosts,
//! groups of commands and texts each by a constant where they are read or made.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream::FuturesUnordered};
use pombo_proto::{
    message::SMTP,
    outcome::{Diagnosis, EnhancedStatus, NdrReason, Outcome, RecipientOutcome, SubmitResult},
    verbs::{AddressTypes, Flush, LogonError, TransportState, Validation},
};
use secrecy::{SecretString, zeroize::Zeroizing};
use tracing::{debug, warn};

use crate::provider::{LogonReply, Submission, Support, Transport};

mod auth;
mod body;
mod command;
pub mod config;
mod connection;
mod content;
mod deliver;
pub mod dns;
#[doc(hidden)]
pub mod fuzzing;
mod pool;
mod reply;
mod route;
mod status;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod transaction;

pub use config::{Config, Error};

use body::Body;
use command::is_path;
use connection::{Credentials, Dialer};
use deliver::{Delivered, Unreachable, deliver};
use dns::Lookup;
use pool::Pool;
use route::{Destination, Routes};
use status::Failure;
use tls::Tls;
use transaction::{Mail, Rcpt, State};

/// Destinations of one message that are served at a time.
const PARALLEL_MAX: usize = 20;
/// After so many failures in a row to reach the smart host the status row says FAILURE.
const FAILURES_MAX: u32 = 3;
/// The content could not be read, or the transport is not ready: offered again after this long.
const PAUSE: Duration = Duration::from_secs(10);
/// Idle is called at no promised interval, perhaps in every lull: connections younger than this survive it.
const IDLE_MIN: Duration = Duration::from_secs(5);
/// ValidateState is a person's question; it gets an answer in this time.
const VALIDATE_LIMIT: Duration = Duration::from_secs(30);
/// A password file larger than this is none.
const PASSWORD_BYTES_MAX: usize = 4096;

/// Sends Internet mail.
pub struct SmtpTransport {
    config: Arc<Config>,
    routes: Routes,
    /// Given instead of the configured name service.
    lookup: Option<Arc<dyn Lookup>>,
    /// Since logon; made anew when the configuration is to be read again.
    session: RwLock<Option<Arc<Session>>>,
    support: OnceLock<Arc<dyn Support>>,
    pool: Arc<Pool>,
    unreachable: Unreachable,
    /// Failures in a row to reach the smart host.
    failures: AtomicU32,
    closing: AtomicBool,
}

/// What logon made ready: everything that needs files or the name service.
struct Session {
    dialer: Dialer,
    lookup: Arc<dyn Lookup>,
}

impl SmtpTransport {
    /// A transport of this configuration. Reads no file and opens nothing: that is [`Transport::logon`]'s.
    ///
    /// # Errors
    /// A key makes no sense.
    pub fn new(config: Config) -> Result<Self, Error> {
        config.check()?;
        let routes = Routes::new(&config)?;
        let pool = Pool::new(config.connections.clone(), config.timeouts.quit);
        Ok(Self {
            config: Arc::new(config),
            routes,
            lookup: None,
            session: RwLock::default(),
            support: OnceLock::new(),
            pool,
            unreachable: Unreachable::default(),
            failures: AtomicU32::new(0),
            closing: AtomicBool::new(false),
        })
    }

    /// The same with a name service of one's own.
    #[must_use]
    pub fn with_lookup(mut self, lookup: Arc<dyn Lookup>) -> Self {
        self.lookup = Some(lookup);
        self
    }

    /// Reads what the configuration refers to.
    fn load(&self, support: &dyn Support) -> Result<Session, String> {
        let helo = match &self.config.helo {
            Some(helo) => helo.clone(),
            None if config::is_helo_name(support.host()) => support.host().to_owned(),
            None => {
                return Err(format!(
                    "{:?} cannot stand behind EHLO; set `helo`",
                    support.host()
                ));
            }
        };
        let credentials = match &self.config.auth {
            None => None,
            Some(auth) => Some(Credentials {
                username: auth.username.clone(),
                password: read_password(&auth.password_file)?,
                mechanism: auth.mechanism,
            }),
        };
        Ok(Session {
            dialer: Dialer {
                config: Arc::clone(&self.config),
                helo,
                tls: Tls::load(&self.config.tls)?,
                credentials,
            },
            lookup: self
                .lookup
                .clone()
                .unwrap_or_else(|| dns::configured(&self.config)),
        })
    }

    fn session(&self) -> Option<Arc<Session>> {
        self.session
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_session(&self, session: Session) {
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(session));
    }

    /// A connection was made: after trouble with the smart host the status row hears of it.
    fn well(&self) {
        // Read first: this is on the way of every connection, and mostly there was no trouble.
        if self.failures.load(Ordering::Relaxed) > 0
            && self.failures.swap(0, Ordering::AcqRel) >= FAILURES_MAX
        {
            self.tell(TransportState::Available, None);
        }
    }

    /// The smart host could not be reached.
    fn ill(&self, text: &str) {
        if self.failures.fetch_add(1, Ordering::AcqRel) + 1 == FAILURES_MAX {
            warn!(error = text, "the smart host cannot be reached");
            self.tell(TransportState::Failure, Some(text.to_owned()));
        }
    }

    fn tell(&self, state: TransportState, error: Option<String>) {
        if let Some(support) = self.support.get() {
            support.status(state, error);
        }
    }

    /// Sorts recipients by destination; who has none is decided at once.
    fn groups<'a>(
        &self,
        message: &'a Submission,
        decided: &mut Vec<RecipientOutcome>,
    ) -> Vec<(Destination, Vec<Rcpt<'a>>)> {
        let sender_is_sound = is_path(&message.envelope().sender);
        let mut places: HashMap<Destination, usize> = HashMap::new();
        let mut groups: Vec<(Destination, Vec<Rcpt<'a>>)> = Vec::new();
        for (index, recipient) in message.recipients() {
            let mut decide = |outcome| {
                decided.push(RecipientOutcome {
                    recipient: index,
                    outcome,
                })
            };
            if !recipient.address_type.eq_ignore_ascii_case(SMTP) {
                decide(Outcome::Left);
                continue;
            }
            if !sender_is_sound {
                decide(Failure::permanent((1, 7), "the sender's address cannot be sent").outcome());
                continue;
            }
            if recipient.address.is_empty() || !is_path(&recipient.address) {
                decide(Failure::permanent((1, 3), "the address cannot be sent").outcome());
                continue;
            }
            let domain = recipient.address.rsplit_once('@').map(|(_, domain)| domain);
            let destination = match self.routes.destination(domain) {
                Ok(destination) => destination,
                Err(failure) => {
                    decide(failure.outcome());
                    continue;
                }
            };
            let place = *places.entry(destination).or_insert_with_key(|destination| {
                groups.push((destination.clone(), Vec::new()));
                groups.len() - 1
            });
            groups[place].1.push(Rcpt {
                index,
                recipient,
                state: State::Owed,
            });
        }
        groups
    }

    /// Everything of SubmitMessage behind the reference and the content.
    async fn send(&self, session: &Session, message: &Submission, content: &[u8]) -> SubmitResult {
        let mut all = Delivered::default();
        let groups = self.groups(message, &mut all.outcomes);
        let body = match Body::prepare(content, self.config.bare_newlines) {
            Ok(body) => body,
            Err(_) => {
                let failure =
                    Failure::permanent((6, 0), "the content has a CR or LF that stands alone");
                let rest = groups.iter().flat_map(|(_, recipients)| recipients);
                all.outcomes.extend(rest.map(|rcpt| RecipientOutcome {
                    recipient: rcpt.index,
                    outcome: failure.outcome(),
                }));
                return SubmitResult::Ok(all.outcomes);
            }
        };
        let mail = Mail {
            submission: message,
            config: &self.config,
            utf8_headers: message.envelope().content.smtputf8 && body.has_utf8_headers(),
            body,
        };
        let mail = &mail;
        let mut waiting = groups.into_iter();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < PARALLEL_MAX
                && let Some((destination, recipients)) = waiting.next()
            {
                // Boxed: twenty of them side by side would make a large future.
                running.push(Box::pin(deliver(
                    self,
                    session,
                    mail,
                    destination,
                    recipients,
                )));
            }
            let Some(delivered) = running.next().await else {
                break;
            };
            all.outcomes.extend(delivered.outcomes);
            all.cancelled |= delivered.cancelled;
        }
        if all.cancelled {
            SubmitResult::Cancelled(all.outcomes)
        } else {
            SubmitResult::Ok(all.outcomes)
        }
    }

    /// Whether the smart host greets us. The connection is kept for the next message.
    async fn try_smarthost(&self) -> Result<(), String> {
        let (Some(session), Some(hosts)) = (self.session(), self.routes.smarthost()) else {
            return Ok(());
        };
        let endpoints = self
            .routes
            .endpoints(hosts, &*session.lookup, &self.config)
            .await;
        let endpoints = endpoints.map_err(|failure| failure.diagnosis.text)?;
        let mut last = String::from("no address");
        for endpoint in endpoints {
            let vacancy = match self.pool.acquire(&hosts.key, true).await {
                Ok(pool::Acquired::Vacant(vacancy)) => vacancy,
                // All connections are in use: they would not be if it were not well.
                Ok(pool::Acquired::Pooled(_)) | Err(_) => return Ok(()),
            };
            match session.dialer.dial(&endpoint, hosts.kind).await {
                Ok(connection) => {
                    vacancy.fill(connection).release(u32::MAX);
                    self.unreachable.clear();
                    self.well();
                    return Ok(());
                }
                Err(error) => {
                    let at = connection::place(&endpoint.host, endpoint.address);
                    last = error.diagnosis(&endpoint.host, &at, false).text;
                }
            }
        }
        Err(last)
    }
}

fn read_password(path: &std::path::Path) -> Result<SecretString, String> {
    use std::io::Read;
    let shown = path.display();
    let file = std::fs::File::open(path).map_err(|error| format!("{shown}: {error}"))?;
    let mut text = Zeroizing::new(String::with_capacity(PASSWORD_BYTES_MAX + 1));
    file.take(PASSWORD_BYTES_MAX as u64 + 1)
        .read_to_string(&mut text)
        .map_err(|error| format!("{shown}: {error}"))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() || password.len() > PASSWORD_BYTES_MAX || password.contains('\0') {
        return Err(format!("{shown}: not a password"));
    }
    Ok(SecretString::from(password))
}

#[async_trait]
impl Transport for SmtpTransport {
    async fn logon(&self, support: Arc<dyn Support>) -> Result<LogonReply, LogonError> {
        let session = self.load(&*support).map_err(LogonError::Unconfigured)?;
        self.set_session(session);
        // A second logon comes with the same support object.
        let _ = self.support.set(support);
        Ok(LogonReply {
            poll: false,
            idle: true,
            resolve: false,
            outbound: true,
            inbound: false,
            capacity: self.config.capacity,
        })
    }

    fn address_types(&self) -> AddressTypes {
        AddressTypes {
            types: Some(self.config.address_types.clone()),
            uids: Vec::new(),
        }
    }

    async fn submit_message(&self, message: Arc<Submission>) -> SubmitResult {
        let (Some(session), Some(support)) = (self.session(), self.support.get()) else {
            return SubmitResult::Busy;
        };
        if self.closing.load(Ordering::Acquire) {
            return SubmitResult::Busy;
        }
        message.assign_reference(support.next_reference());
        let content = tokio::select! {
            biased;
            () = message.cancelled() => return SubmitResult::Cancelled(Vec::new()),
            content = message.body() => content,
        };
        match content {
            Ok(content) => self.send(&session, &message, &content).await,
            Err(error) => {
                debug!(%error, "the content cannot be read");
                let text = format!("the content cannot be read: {error}");
                let diagnosis = Diagnosis::new(
                    EnhancedStatus::new(4, 3, 0),
                    NdrReason::TransferFailed,
                    text,
                );
                SubmitResult::Wait(PAUSE, Some(diagnosis))
            }
        }
    }

    async fn idle(&self) {
        let limit = self.config.connections.idle_timeout.min(IDLE_MIN);
        self.pool.close_idle(limit).await;
    }

    async fn flush_queues(&self, flush: Flush) {
        if flush.upload {
            self.unreachable.clear();
            if let Some(session) = self.session() {
                session.lookup.forget();
            }
        }
    }

    async fn validate_state(&self, config_changed: bool) -> Validation {
        if config_changed && let Some(support) = self.support.get() {
            match self.load(&**support) {
                Ok(session) => self.set_session(session),
                Err(error) => return Validation::Failing(error),
            }
        }
        match tokio::time::timeout(VALIDATE_LIMIT, self.try_smarthost()).await {
            Ok(Ok(())) => Validation::Ok,
            Ok(Err(error)) => Validation::Failing(error),
            Err(_) => Validation::Failing("the smart host does not answer in time".to_owned()),
        }
    }

    async fn shutdown(&self) {
        self.closing.store(true, Ordering::Release);
        self.pool.close().await;
    }
}
