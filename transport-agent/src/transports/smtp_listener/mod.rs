//! `smtp-listener`: takes mail by SMTP. A pushing transport: it announces each message and waits for the spooler's
//! permit before it lets the client send.
//!
//! ```text
//! listen -> session -> (first RCPT: new_mail, permit) -> DATA -> DataReader -> SaveChanges -> 250
//! ```
//!
//! * 250 is said only after SaveChanges returned an id; any other end of a reception leaves the message with the client.
//! * No open relay: what is not for a local domain is taken only from `relay_clients`.
//! * Only CRLF.CRLF ends a message (`data`).
//! * A client that lost the 250 and sends the same again gets the same id (`repeats`).
//! * Who has proved to be a user of `users_file` may relay, too (`auth`).
//! * Bounded: connections, bytes of all messages together, recipients, line lengths, errors, and time.

mod address;
mod auth;
mod command;
mod config;
mod data;
mod doubt;
#[doc(hidden)]
pub mod fuzzing;
mod io;
mod limits;
mod listen;
mod permit;
mod policy;
mod receive;
mod received;
mod repeats;
mod session;
#[cfg(test)]
mod tests;
mod tls;
mod users;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use pombo_proto::verbs::{AddressTypes, LogonError, TransportState, Validation};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

pub use self::config::{BareLineEnd, Config, Error, Senders};
pub use self::policy::Error as PolicyError;
use self::{
    limits::{Budget, Door, Failures, Rate},
    policy::Policy,
    repeats::{Repeats, Windows},
    users::Users,
};
use crate::provider::{Flow, LogonReply, Support, Transport};

/// From when on `data_rate_min` is looked at: a network that stumbles once, or a first packet that is lost, is no slow client.
const RATE_AFTER: Duration = Duration::from_secs(60);

/// What cutting off the sessions takes after `shutdown_timeout`, many times over.
const CUT_OFF_MAX: Duration = Duration::from_secs(5);

/// The `smtp-listener` transport.
pub struct SmtpListener {
    config: Arc<Config>,
    /// Between BEGIN_INBOUND and END_INBOUND.
    open: Arc<AtomicBool>,
    running: Mutex<Option<Running>>,
    /// [`RATE_AFTER`], unless a test has less patience.
    rate_after: Duration,
}

/// What lives from logon to shutdown.
struct Running {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    acceptors: Vec<JoinHandle<()>>,
}

/// What all sessions share.
struct Shared {
    config: Arc<Config>,
    host: String,
    support: Arc<dyn Support>,
    /// What the configuration's files said when they were last read.
    files: RwLock<Files>,
    open: Arc<AtomicBool>,
    stop: watch::Sender<bool>,
    door: Arc<Door>,
    budget: Arc<Budget>,
    connections: Rate,
    messages: Rate,
    recipients: Rate,
    errors: Rate,
    failures: Failures,
    repeats: Repeats,
    rate_after: Duration,
    /// The next session's number.
    sessions: AtomicU64,
}

/// What is read from files, and read again when the configuration is.
#[derive(Clone)]
struct Files {
    policy: Arc<Policy>,
    tls: Option<TlsAcceptor>,
    users: Option<Arc<Users>>,
}

impl Shared {
    fn new(
        config: Arc<Config>,
        host: String,
        files: Files,
        support: Arc<dyn Support>,
        open: Arc<AtomicBool>,
    ) -> Self {
        Self {
            host,
            files: RwLock::new(files),
            open,
            stop: watch::Sender::new(false),
            door: Door::new(config.connections_max, config.connections_per_client_max),
            budget: Budget::new(config.memory_bytes_max),
            connections: Rate::per_minute(config.connections_per_minute),
            messages: Rate::per_minute(config.messages_per_minute),
            recipients: Rate::per_minute(config.recipients_per_minute),
            errors: Rate::per_minute(config.errors_per_minute),
            failures: Failures::per_minute(config.auth_failures_per_minute),
            repeats: Repeats::new(
                Windows {
                    unseen: config.repeat_window,
                    unclear: config.unclear_window,
                },
                config.repeat_entries_max,
            ),
            // Drawn, so that names from before a restart do not come again.
            sessions: AtomicU64::new(u64::from(fastrand::u32(..)) << 24),
            rate_after: RATE_AFTER,
            support,
            config,
        }
    }

    /// Policy and certificate as of now; a session keeps them to its end.
    fn files(&self) -> Files {
        self.files
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl SmtpListener {
    /// A listener that will do as configured, from logon on.
    ///
    /// # Errors
    /// The configuration makes no sense; see [`Config::check`].
    pub fn new(config: Config) -> Result<Self, Error> {
        config.check()?;
        Ok(Self {
            config: Arc::new(config),
            open: Arc::new(AtomicBool::new(false)),
            running: Mutex::new(None),
            rate_after: RATE_AFTER,
        })
    }

    /// Where it listens: those of `listen` first, then those of `listen_tls`, with the ports that were picked. Empty before
    /// logon and after shutdown.
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running
            .as_ref()
            .map_or_else(Vec::new, |running| running.addresses.clone())
    }

    fn shared(&self) -> Option<Arc<Shared>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().map(|running| Arc::clone(&running.shared))
    }

    /// Reads all files of the configuration, off the runtime.
    async fn read_files(&self, host: &str) -> Result<Files, String> {
        let (config, host) = (Arc::clone(&self.config), host.to_owned());
        let read = move || {
            let policy = Policy::read(&config, &host).map_err(|error| error.to_string())?;
            let tls = match (&config.tls_certificate, &config.tls_key) {
                (Some(certificate), Some(key)) => {
                    let acceptor = tls::acceptor(certificate, key);
                    Some(acceptor.map_err(|error| error.to_string())?)
                }
                _ => None,
            };
            let users = config.users_file.as_deref().map(Users::read).transpose();
            let users = users.map_err(|error| error.to_string())?;
            Ok(Files {
                policy: Arc::new(policy),
                tls,
                users: users.map(Arc::new),
            })
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| error.to_string())?
    }

    /// Binds all addresses, or none.
    async fn bind(&self) -> Result<Vec<(TcpListener, SocketAddr, bool)>, LogonError> {
        let plain = self.config.listen.iter().map(|address| (address, false));
        let secured = self.config.listen_tls.iter().map(|address| (address, true));
        let mut bound = Vec::new();
        for (address, tls) in plain.chain(secured) {
            let failed = |error: std::io::Error| {
                LogonError::Unconfigured(format!("cannot listen on {address}: {error}"))
            };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let local = listener.local_addr().map_err(failed)?;
            bound.push((listener, local, tls));
        }
        Ok(bound)
    }
}

#[async_trait]
impl Transport for SmtpListener {
    async fn logon(&self, support: Arc<dyn Support>) -> Result<LogonReply, LogonError> {
        let reply = LogonReply {
            poll: false,
            idle: false,
            resolve: false,
            outbound: false,
            inbound: true,
            // It never sends, but a capacity is at least one.
            capacity: 1,
        };
        if self.shared().is_some() {
            return Ok(reply);
        }
        let config = Arc::clone(&self.config);
        let host = config
            .host
            .clone()
            .unwrap_or_else(|| support.host().to_owned());
        let files = self
            .read_files(&host)
            .await
            .map_err(LogonError::Unconfigured)?;
        let bound = self.bind().await?;
        let open = Arc::clone(&self.open);
        let shared = Arc::new(Shared {
            rate_after: self.rate_after,
            ..Shared::new(config, host, files, support.clone(), open)
        });
        let addresses = bound.iter().map(|(_, address, _)| *address).collect();
        let mut acceptors = Vec::new();
        for (listener, address, tls) in bound {
            info!(transport = "smtp-listener", %address, tls, "listening");
            let accept = listen::accept(Arc::clone(&shared), listener, tls);
            acceptors.push(tokio::spawn(accept));
        }
        let running = Running {
            shared,
            addresses,
            acceptors,
        };
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
        support.status(TransportState::Available, None);
        Ok(reply)
    }

    fn takes_permits(&self) -> bool {
        true
    }

    fn address_types(&self) -> AddressTypes {
        AddressTypes {
            types: Some(vec![String::new()]),
            uids: Vec::new(),
        }
    }

    async fn inbound(&self, flow: Flow) {
        self.open.store(flow == Flow::Begin, Ordering::Release);
    }

    async fn submit_message(
        &self,
        _message: Arc<crate::provider::Submission>,
    ) -> pombo_proto::outcome::SubmitResult {
        // It takes no address type, so nobody should ask.
        pombo_proto::outcome::SubmitResult::NotMe
    }

    async fn validate_state(&self, config_changed: bool) -> Validation {
        let Some(shared) = self.shared() else {
            return Validation::Failing("not listening".to_owned());
        };
        if config_changed {
            match self.read_files(&shared.host).await {
                Ok(files) => {
                    *shared.files.write().unwrap_or_else(PoisonError::into_inner) = files;
                }
                Err(error) => {
                    warn!(transport = "smtp-listener", %error, "configuration not read again");
                    return Validation::Failing(error);
                }
            }
        }
        Validation::Ok
    }

    async fn shutdown(&self) {
        self.open.store(false, Ordering::Release);
        let running = self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(running) = running else { return };
        running.shared.stop.send_replace(true);
        for acceptor in running.acceptors {
            if let Err(error) = acceptor.await {
                warn!(transport = "smtp-listener", %error, "an acceptor failed");
            }
        }
    }

    fn shutdown_max(&self) -> Duration {
        self.config.shutdown_timeout.saturating_add(CUT_OFF_MAX)
    }
}

impl Drop for SmtpListener {
    fn drop(&mut self) {
        let running = self.running.get_mut();
        if let Some(running) = running.unwrap_or_else(PoisonError::into_inner) {
            running.shared.stop.send_replace(true);
        }
    }
}
