//! A complete transport in one file, to copy. Its foreign system is two text files: a line is appended to one for each
//! copy sent, and each line of the other is a message that came in.
//!
//! # A transport in an afternoon
//!
//! 1. Copy this file to `transports/NAME.rs` (or a folder, once it has parts) and write `pub mod NAME;` into
//!    `transports/mod.rs`.
//! 2. Replace [`Config`]: a serde struct with `deny_unknown_fields`, one documented field per setting. It is read from
//!    the transport's section of the agent's configuration.
//! 3. Add the arm that makes your type from its section where the agent picks the transport by its kind. No other file
//!    changes: sessions, credit, pacing, results and repeats are the agent's business.
//! 4. Sends it? Write `submit_message`. Receives it? Write `start_message`, and either call `new_mail` when the foreign
//!    system tells you of mail (push) or return `poll: true` and write `poll` (pull).
//! 5. Test it with handles of your own behind [`Submission::new`] and [`Reception::new`], as at the end of this file.
//!
//! # The rules
//!
//! - **The reference first**, in both directions: a cancel can come at any moment and names it.
//! - **An outcome for each recipient.** `Failed` is for ever and makes a report; `Deferred` comes back by itself, so
//!   never wait or retry inside; whom you do not name is `Left` for the next transport.
//! - **Ask `may_finish` right before the point of no return**, and leave no trace if it says no. It may take a round trip to the
//!   spooler and a commit there, and a yes is good for ten seconds: have everything else done, and go on at once.
//! - **Behind it, say `InDoubt` of what may have been sent.** If you never learn what became of it (no answer, half a write), it is
//!   not `Deferred`: a person may want to look before it is sent again. `Deferred` is for what was certainly not sent.
//! - **"Done" only after `save_changes` has returned an id.** Until then the foreign system must keep the message; then
//!   tell it. If you die in between, you will read the message again: derive its identity from the source
//!   ([`Identity::Derived`]), and the second copy vanishes.
//! - **A repeat may come** after a crash. If your system lets you name what you write, name it after the message id and
//!   the recipient's index, so that the second time changes nothing (see `maildir`). This file cannot: at least once.
//! - **What cannot be understood must neither be lost nor come back for ever**: put it where a person finds it.
//! - All methods run concurrently, on tokio: no blocking calls outside `spawn_blocking` and `tokio::fs`, and a bound on
//!   everything that comes from outside.

use std::{io, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use pombo_proto::{
    outcome::{
        Delivery, Diagnosis, EnhancedStatus, NdrReason, Outcome, RecipientOutcome, SubmitResult,
    },
    time::UnixMillis,
    verbs::{AddressTypes, LogonError, TransportState},
};
use serde::Deserialize;
use tokio::{
    fs,
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
    sync::Mutex,
};

use crate::provider::{
    Flow, Identity, Incoming, LogonReply, Received, Reception, Submission, Support, Transport,
};

/// Settings of this transport.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file to which a line `ID INDEX RECIPIENT` is appended for each copy sent.
    pub outgoing: PathBuf,
    /// The file whose lines `SENDER RECIPIENT TEXT` are messages that came in.
    pub incoming: PathBuf,
}

/// The longest line that is read; longer ones are split by it.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// The transport. All methods take `&self` and run concurrently, so what changes is behind a lock.
pub struct Skeleton {
    config: Config,
    /// What logon brought: the way to speak without being asked.
    support: Mutex<Option<Arc<dyn Support>>>,
    /// One line is appended at a time.
    writing: Mutex<()>,
    /// How far the incoming file has been read. Locked while a line is received: two receptions take two lines.
    position: Mutex<u64>,
}

impl Skeleton {
    /// A transport from its section of the configuration. Nothing is touched before logon.
    pub fn new(config: Config) -> Self {
        let (support, writing, position) = Default::default();
        Self {
            config,
            support,
            writing,
            position,
        }
    }

    /// Where the position is kept over restarts.
    fn position_file(&self) -> PathBuf {
        self.config.incoming.with_extension("position")
    }

    /// "Done": from now on the foreign system does not show this line again. Written aside and renamed, so that a crash
    /// leaves the old position or the new one.
    async fn done(&self, position: u64) -> io::Result<()> {
        let aside = self.config.incoming.with_extension("position.new");
        fs::write(&aside, position.to_string()).await?;
        fs::rename(aside, self.position_file()).await
    }

    /// The next complete line after `position`.
    async fn line(&self, position: u64) -> io::Result<Option<String>> {
        let mut file = match fs::File::open(&self.config.incoming).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        file.seek(io::SeekFrom::Start(position)).await?;
        let mut bytes = Vec::new();
        file.take(LINE_BYTES_MAX).read_to_end(&mut bytes).await?;
        let full = bytes.len() as u64 == LINE_BYTES_MAX;
        let end = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .map(|end| end + 1);
        // A line without its end is still being written.
        Ok(end
            .or(full.then_some(bytes.len()))
            .map(|end| String::from_utf8_lossy(&bytes[..end]).into_owned()))
    }
}

#[async_trait]
impl Transport for Skeleton {
    /// Look whether the foreign system is there, and say what you want of the spooler.
    async fn logon(&self, support: Arc<dyn Support>) -> Result<LogonReply, LogonError> {
        let position = match fs::read_to_string(self.position_file()).await {
            Ok(text) => text
                .trim()
                .parse()
                .map_err(|_| LogonError::FailOneProvider("the position is no number".into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            // Fails this transport only; the agent tries again with growing pauses.
            Err(error) => return Err(LogonError::FailOneProvider(error.to_string())),
        };
        *self.position.lock().await = position;
        support.status(TransportState::Available, None);
        *self.support.lock().await = Some(support);
        Ok(LogonReply {
            poll: true,
            idle: false,
            resolve: false,
            outbound: true,
            inbound: true,
            capacity: 10,
        })
    }

    /// Which recipients are offered to it.
    fn address_types(&self) -> AddressTypes {
        AddressTypes {
            types: Some(vec!["SMTP:*@text.example".to_owned()]),
            uids: Vec::new(),
        }
    }

    /// A pushing transport begins and ends to listen here. This one is asked.
    async fn inbound(&self, _flow: Flow) {}

    async fn submit_message(&self, message: Arc<Submission>) -> SubmitResult {
        let Some(support) = self.support.lock().await.clone() else {
            return SubmitResult::Busy;
        };
        message.assign_reference(support.next_reference());
        let mut lines = String::new();
        for (index, recipient) in message.recipients() {
            // Escaped, since what comes from outside must not end the line.
            lines += &format!(
                "{} {} {}\n",
                message.id(),
                index.0,
                recipient.address.escape_debug()
            );
        }
        let _writing = self.writing.lock().await;
        if message.is_cancelled() {
            return SubmitResult::Cancelled(Vec::new());
        }
        let outcome = match open(&self.config.outgoing).await {
            Err(error) => Outcome::Deferred {
                diagnosis: diagnosis(&error),
                destination_down: true,
            },
            Ok(_) if !message.may_finish().await => Outcome::Deferred {
                diagnosis: diagnosis(&io::Error::other("the right to send has run out")),
                destination_down: false,
            },
            // From here on nobody knows how much of it is there if it fails.
            Ok(file) => match append(file, lines).await {
                Ok(()) => {
                    Outcome::Delivered(Delivery::new(UnixMillis::now(), support.host(), "written"))
                }
                Err(error) => Outcome::InDoubt(diagnosis(&error)),
            },
        };
        let each = |(recipient, _)| RecipientOutcome {
            recipient,
            outcome: outcome.clone(),
        };
        SubmitResult::Ok(message.recipients().map(each).collect())
    }

    async fn start_message(&self, message: Arc<Reception>) -> Received {
        let Some(support) = self.support.lock().await.clone() else {
            return Received::Nothing;
        };
        message.assign_reference(support.next_reference());
        let mut position = self.position.lock().await;
        loop {
            let line = match self.line(*position).await {
                Ok(Some(line)) => line,
                Ok(None) => return Received::Nothing,
                Err(error) => return Received::Failed(error.to_string()),
            };
            let next = *position + line.len() as u64;
            let mut words = line.trim_end().splitn(3, ' ');
            let (Some(sender), Some(recipient), Some(text)) =
                (words.next(), words.next(), words.next())
            else {
                // It stays in the file and is seen in the log; the position passes it.
                tracing::warn!(position = *position, "a line is no message");
                *position = next;
                continue;
            };
            let body = format!(
                "Received: by {}\r\nSubject: a line\r\n\r\n{text}\r\n",
                support.host()
            );
            let incoming = Incoming {
                identity: Identity::Derived(format!("{} {line}", *position).into_bytes()),
                client: self.config.incoming.display().to_string(),
                ..Incoming::new(sender, vec![recipient.to_owned()], Bytes::from(body))
            };
            return match message.save_changes(incoming).await {
                Ok(id) => {
                    if let Err(error) = self.done(next).await {
                        tracing::error!(%error, "the position is not kept; after a restart the line is read again");
                    }
                    *position = next;
                    Received::Saved {
                        id,
                        more: matches!(self.line(next).await, Ok(Some(_))),
                    }
                }
                // Nothing was said to the foreign system, so the next StartMessage reads the same line.
                Err(crate::provider::SaveError::Cancelled) => Received::Cancelled,
                Err(error) => Received::Failed(error.to_string()),
            };
        }
    }

    /// "At least so many" is enough.
    async fn poll(&self) -> u32 {
        let position = *self.position.lock().await;
        u32::from(matches!(self.line(position).await, Ok(Some(_))))
    }
}

/// Before anything is written: a file that cannot be opened leaves no doubt.
async fn open(path: &std::path::Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.create(true).append(true).open(path).await
}

/// Appends and syncs: what is reported as delivered must survive.
async fn append(mut file: fs::File, lines: String) -> io::Result<()> {
    file.write_all(lines.as_bytes()).await?;
    file.flush().await?;
    file.sync_all().await
}

fn diagnosis(error: &io::Error) -> Diagnosis {
    let status = EnhancedStatus::new(4, 3, 0);
    Diagnosis::new(status, NdrReason::TransferFailed, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        provider::SaveError,
        transports::maildir::fakes::{FakeSupport, Receiver, Submitted, envelope},
    };

    async fn skeleton(directory: &tempfile::TempDir) -> Skeleton {
        let skeleton = Skeleton::new(Config {
            outgoing: directory.path().join("out"),
            incoming: directory.path().join("in"),
        });
        let support = Arc::new(FakeSupport::default());
        assert!(skeleton.logon(support).await.unwrap().poll);
        skeleton
    }

    #[tokio::test]
    async fn each_copy_is_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let skeleton = skeleton(&directory).await;
        let submitted = Submitted::new(
            envelope(&["a@text.example", "b\nb@text.example"], 4),
            "body",
        );
        let result = skeleton.submit_message(submitted.handle()).await;
        assert!(matches!(result, SubmitResult::Ok(outcomes) if outcomes.len() == 2));
        let lines = std::fs::read_to_string(directory.path().join("out")).unwrap();
        assert_eq!(lines.lines().count(), 2);
        assert!(lines.ends_with("1 b\\nb@text.example\n"), "{lines}");

        submitted.forbid();
        skeleton.submit_message(submitted.handle()).await;
        assert_eq!(
            std::fs::read_to_string(directory.path().join("out")).unwrap(),
            lines
        );
    }

    #[tokio::test]
    async fn each_line_is_a_message_once_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let text =
            "a@x.org b@x.org first\nnonsense\na@x.org b@x.org second\na@x.org b@x.org unfinis";
        std::fs::write(directory.path().join("in"), text).unwrap();
        let receiver = Receiver::default();

        let transport = skeleton(&directory).await;
        receiver.refuse(SaveError::Unconfirmed("no broker".to_owned()));
        assert_eq!(transport.poll().await, 1);
        let refused = transport.start_message(receiver.handle()).await;
        assert!(matches!(refused, Received::Failed(_)));
        receiver.refuse(None);
        let first = transport.start_message(receiver.handle()).await;
        assert!(matches!(first, Received::Saved { more: true, .. }));

        let transport = skeleton(&directory).await;
        let second = transport.start_message(receiver.handle()).await;
        assert!(matches!(second, Received::Saved { more: false, .. }));
        assert_eq!(
            transport.start_message(receiver.handle()).await,
            Received::Nothing
        );
        assert_eq!(transport.poll().await, 0);
        let bodies: Vec<_> = receiver
            .saved()
            .iter()
            .map(|saved| saved.body.clone())
            .collect();
        assert!(
            bodies[0].ends_with(b"\r\n\r\nfirst\r\n") && bodies[1].ends_with(b"\r\n\r\nsecond\r\n")
        );
        assert_eq!(bodies.len(), 2);
    }
}
