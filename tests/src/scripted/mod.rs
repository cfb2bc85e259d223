//! A transport that does what its recipients' addresses say, and writes down what it was asked to do.
//!
//! | file | what |
//! |---|---|
//! | `journal` | one JSON line per call, and the reader of them for tests |
//! | `action` | the words of local parts |
//! | `outbound` | SubmitMessage, EndMessage |
//! | `inbound` | StartMessage, Poll, the folder that is delivered from |
//! | `commands` | what a test may make it say: NEWMAIL, READYTOSEND, CONFIG_CHANGE, ... |

mod action;
mod commands;
mod inbound;
pub mod journal;
mod outbound;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use pombo_agent::provider::{
    Ended, Flow, LogonReply, Received, Reception, Submission, Support, Transport,
};
use pombo_proto::{
    ids::MessageId,
    outcome::{EndMessageFlag, SubmitResult},
    verbs::{AddressTypes, Flush, LogonError, Validation},
};
use serde::Deserialize;
use serde_json::json;

use inbound::Folder;
use journal::Writer;
use outbound::Sent;

/// The section `[scripted]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the journal is written.
    pub journal: PathBuf,
    /// Where gates (`open.NAME`) and commands (`do.COMMAND`) appear.
    pub gates: PathBuf,
    /// Address types and spaces; not set: anything.
    #[serde(default)]
    pub addresses: Option<Vec<String>>,
    /// UIDs.
    #[serde(default)]
    pub uids: Vec<String>,
    /// How many submissions at a time.
    #[serde(default = "ten")]
    pub capacity: u32,
    /// How long each submission takes, in milliseconds.
    #[serde(default)]
    pub takes_ms: u64,
    /// A folder with messages to deliver; without one it only sends.
    #[serde(default)]
    pub inbound: Option<PathBuf>,
    /// Wants to be polled, instead of announcing mail by itself.
    #[serde(default)]
    pub poll: bool,
    /// How often mail in the folder is announced: once for each file, or so many times.
    #[serde(default = "one")]
    pub notify_times: u32,
    /// Wants Idle.
    #[serde(default)]
    pub idle: bool,
    /// FlushQueues takes until the gate `flush` opens.
    #[serde(default)]
    pub slow_flush: bool,
}

fn ten() -> u32 {
    10
}

fn one() -> u32 {
    1
}

/// The transport.
pub struct Scripted {
    shared: Arc<Shared>,
}

/// What its tasks share.
struct Shared {
    config: Config,
    journal: Writer,
    support: OnceLock<Arc<dyn Support>>,
    addresses: Mutex<Option<Vec<String>>>,
    /// Why the foreign system is not healthy, if it is not.
    failing: Mutex<Option<String>>,
    sent: Sent,
    folder: Folder,
}

impl Shared {
    fn takes(&self) -> Duration {
        Duration::from_millis(self.config.takes_ms)
    }

    fn is_open(&self, name: &str) -> bool {
        self.config.gates.join(format!("open.{name}")).exists()
    }

    fn set_failing(&self, why: Option<String>) {
        *self.failing.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Until the test opens the gate of this name.
    async fn gate(&self, name: &str) {
        while !self.is_open(name) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Scripted {
    /// From its section.
    ///
    /// # Errors
    /// The journal cannot be opened.
    pub fn new(config: Config) -> std::io::Result<Self> {
        let journal = Writer::open(&config.journal)?;
        let addresses = Mutex::new(config.addresses.clone());
        let folder = Folder::new(config.inbound.clone());
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                journal,
                support: OnceLock::new(),
                addresses,
                failing: Mutex::default(),
                sent: Sent::default(),
                folder,
            }),
        })
    }
}

#[async_trait]
impl Transport for Scripted {
    async fn logon(&self, support: Arc<dyn Support>) -> Result<LogonReply, LogonError> {
        let shared = &self.shared;
        shared.journal.write("logon", json!({}));
        if shared.support.set(support).is_ok() {
            tokio::spawn(commands::watch(Arc::clone(shared)));
        }
        Ok(LogonReply {
            poll: shared.config.poll,
            idle: shared.config.idle,
            resolve: false,
            outbound: true,
            inbound: shared.config.inbound.is_some(),
            capacity: shared.config.capacity,
        })
    }

    fn address_types(&self) -> AddressTypes {
        let addresses = &self.shared.addresses;
        let types = addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let uids = self.shared.config.uids.clone();
        let said = json!({ "types": types, "uids": uids });
        self.shared.journal.write("address_types", said);
        AddressTypes { types, uids }
    }

    async fn inbound(&self, flow: Flow) {
        let what = match flow {
            Flow::Begin => "begin_inbound",
            Flow::End => "end_inbound",
        };
        self.shared.journal.write(what, json!({}));
        self.shared.folder.set_open(flow == Flow::Begin);
    }

    async fn outbound(&self, flow: Flow) {
        let what = match flow {
            Flow::Begin => "begin_outbound",
            Flow::End => "end_outbound",
        };
        self.shared.journal.write(what, json!({}));
    }

    async fn submit_message(&self, message: Arc<Submission>) -> SubmitResult {
        outbound::submit(&self.shared, message).await
    }

    async fn end_message(&self, ended: Ended) -> EndMessageFlag {
        outbound::end(&self.shared, ended).await
    }

    async fn abort_deferred(&self, id: MessageId) -> bool {
        let about = json!({ "id": id.to_string() });
        // Written once it is true: a test goes on from there.
        let aborted = self.shared.sent.abort(id);
        self.shared.journal.write("abort_deferred", about);
        aborted
    }

    async fn start_message(&self, message: Arc<Reception>) -> Received {
        inbound::start(&self.shared, &message).await
    }

    async fn poll(&self) -> u32 {
        let incoming = self.shared.folder.count();
        let said = json!({ "incoming": incoming });
        self.shared.journal.write("poll", said);
        incoming
    }

    async fn idle(&self) {
        self.shared.journal.write("idle", json!({}));
    }

    async fn flush_queues(&self, flush: Flush) {
        let said = json!({
            "upload": flush.upload, "download": flush.download, "force": flush.force,
        });
        self.shared.journal.write("flush", said);
        if self.shared.config.slow_flush {
            self.shared.gate("flush").await;
        }
        self.shared.journal.write("flushed", json!({}));
    }

    async fn validate_state(&self, config_changed: bool) -> Validation {
        let said = json!({ "config_changed": config_changed });
        self.shared.journal.write("validate", said);
        let failing = self.shared.failing.lock();
        let failing = failing.unwrap_or_else(PoisonError::into_inner).clone();
        failing.map_or(Validation::Ok, Validation::Failing)
    }

    async fn shutdown(&self) {
        self.shared.journal.write("shutdown", json!({}));
    }
}
