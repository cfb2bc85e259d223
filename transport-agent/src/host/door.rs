//! SaveChanges: a received message gets its id, its envelope and its place in the spool; and the door's account of it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use pombo_proto::{
    blob::Blobs,
    door::Account,
    frame::{HEAD_BYTES_MAX, encode_message},
    ids::MessageId,
    link::{PublishError, SpoolPublish},
    message::{Body, Envelope, MessageClass, Priority, RECIPIENTS_MAX, Source},
    time::UnixMillis,
};
use tokio::time::{Instant, sleep, timeout_at};

use super::{cancel::Cancel, wire::Wire};
use crate::provider::{Identity, Incoming, SaveError};

/// Between two publishes of the same message.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// A door's own trace field in front of a message does not count: what it was allowed to take, it may save.
const TRACE_BYTES: u64 = 4 * 1024;
/// The client's name in a trace.
const CLIENT_BYTES_MAX: usize = 255;

/// The door. One per agent.
pub(super) struct Door {
    /// The transport's name: the source of what comes in, and the scope of derived ids.
    pub name: String,
    pub wire: Arc<dyn Wire>,
    pub blobs: Option<Blobs>,
    pub inline_max: usize,
    pub message_max: u64,
    /// How long the broker may take to confirm.
    pub patience: Duration,
    pub account: Mutex<Account>,
}

/// A message that is confirmed and routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub id: MessageId,
    pub size: u64,
}

impl Door {
    /// Keeps a message for good. Cancelled only before the first byte of the publish.
    pub async fn save(&self, cancel: &Cancel, incoming: Incoming) -> Result<Saved, SaveError> {
        let recipients = incoming.recipients.len();
        if !(1..=RECIPIENTS_MAX).contains(&recipients) {
            return Err(SaveError::Recipients(recipients));
        }
        let size = incoming.body.len() as u64;
        if size > self.message_max.saturating_add(TRACE_BYTES) {
            return Err(SaveError::TooLarge(self.message_max));
        }
        if cancel.is_cancelled() {
            return Err(SaveError::Cancelled);
        }
        let issue = self.issue(&incoming.identity);
        let result = self.keep(cancel, &issue, incoming).await;
        match &result {
            Ok(()) => issue.close(false),
            // It counts as confirmed. If it is not there, the ledger names it; were it voided and there, nobody would.
            Err(SaveError::Unclear { .. }) => {
                metrics::counter!("pombo_agent_saves_unclear_total").increment(1);
                issue.close(false);
            }
            Err(_) => issue.close(true),
        }
        let saved = Saved { id: issue.id, size };
        result.map(|()| saved)
    }

    async fn keep(
        &self,
        cancel: &Cancel,
        issue: &Issue<'_>,
        incoming: Incoming,
    ) -> Result<(), SaveError> {
        let id = issue.id;
        let priority = incoming.priority;
        let again = matches!(incoming.identity, Identity::Again(_));
        let recipients = incoming.recipients.len();
        let inline = incoming.body.len() <= self.inline_max;
        let body = incoming.body.clone();
        let envelope = self.envelope(id, incoming, inline);
        let following: &[u8] = if inline { &body } else { &[] };
        let encoded = encode_message(envelope, following).encoded;
        if encoded.len() - following.len() > HEAD_BYTES_MAX {
            return Err(SaveError::Recipients(recipients));
        }
        let blobs = match (&self.blobs, inline) {
            (_, true) => None,
            (Some(blobs), false) => Some(blobs),
            (None, false) => {
                return Err(SaveError::Blob("there is none".to_owned()));
            }
        };
        if let Some(blobs) = blobs {
            let kept = blobs.put(id, body).await;
            kept.map_err(|error| SaveError::Blob(error.to_string()))?;
        }
        let result = if cancel.commit() {
            issue.published.store(true, Ordering::Relaxed);
            self.publish(id, priority, encoded, again).await
        } else {
            Err(SaveError::Cancelled)
        };
        // The blob may belong to an earlier copy of the same message.
        let shared = again || id.is_derived();
        let unused = matches!(&result, Err(error) if !matches!(error, SaveError::Unclear { .. }));
        if let (true, Some(blobs), false) = (unused, blobs, shared)
            && let Err(error) = blobs.delete(id).await
        {
            tracing::warn!(id = %id, %error, "a body without a message stays in the blob store");
        }
        result
    }

    /// Until it is known to be in the spool, or not, or patience ends. An unknown confirm is cleared by the same id, marked:
    /// one of this call, or of an earlier one (`again`).
    async fn publish(
        &self,
        id: MessageId,
        priority: Priority,
        encoded: Bytes,
        again: bool,
    ) -> Result<(), SaveError> {
        let deadline = Instant::now() + self.patience;
        let (mut written, mut said) = (again, false);
        loop {
            let publish = self.wire.publish(SpoolPublish {
                id,
                priority,
                encoded: encoded.clone(),
                marked: written,
            });
            let error = match timeout_at(deadline, publish).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error @ PublishError::Unknown(_))) => {
                    written = true;
                    error.to_string()
                }
                Ok(Err(error)) if !written => {
                    return Err(SaveError::Unconfirmed(error.to_string()));
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => {
                    written = true;
                    "no confirm in time".to_owned()
                }
            };
            if Instant::now() + AGAIN_AFTER >= deadline {
                return Err(SaveError::Unclear { id, why: error });
            }
            if !std::mem::replace(&mut said, true) {
                tracing::warn!(id = %id, error, "not confirmed: published again, marked");
            }
            sleep(AGAIN_AFTER).await;
        }
    }

    fn envelope(&self, id: MessageId, incoming: Incoming, inline: bool) -> Envelope {
        let mut client = incoming.client;
        client.truncate(client.floor_char_boundary(CLIENT_BYTES_MAX));
        let size = incoming.body.len() as u64;
        Envelope {
            id,
            class: MessageClass::Note,
            sender: incoming.sender,
            recipients: incoming.recipients,
            priority: incoming.priority,
            // The same for every copy: a Maildir names its file by it.
            submitted_at: id.issue().map_or_else(UnixMillis::now, |issue| issue.at),
            deferred_until: incoming.deferred_until,
            expires_at: incoming.expires_at,
            report_return: incoming.report_return,
            envelope_id: incoming.envelope_id,
            content: incoming.content,
            source: Source {
                door: self.name.clone(),
                client,
                about: None,
            },
            body: if inline {
                Body::Inline { size }
            } else {
                Body::Blob { size }
            },
            properties: Vec::new(),
        }
    }

    fn issue(&self, identity: &Identity) -> Issue<'_> {
        let id = match identity {
            Identity::Issued => self.account().issue(UnixMillis::now()),
            Identity::Derived(identity) => MessageId::derived(&self.name, identity),
            Identity::Again(id) => *id,
        };
        Issue {
            door: self,
            id,
            // One that comes again was closed when its fate became unclear.
            open: (!matches!(identity, Identity::Again(_))).into(),
            published: false.into(),
        }
    }

    /// The account.
    pub fn account(&self) -> std::sync::MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An id whose fate is open. One that is dropped so (its task was aborted) is void before its first publish, and counts as
/// confirmed afterwards, like everything unknown.
struct Issue<'a> {
    door: &'a Door,
    id: MessageId,
    open: AtomicBool,
    published: AtomicBool,
}

impl Issue<'_> {
    fn close(&self, void: bool) {
        if self.open.swap(false, Ordering::Relaxed)
            && let Some(issue) = self.id.issue()
        {
            self.door.account().close(issue.sequence, void);
        }
    }
}

impl Drop for Issue<'_> {
    fn drop(&mut self) {
        self.close(!self.published.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::{BoxFuture, FutureExt};
    use pombo_proto::{frame::Packet, link::Audience};

    use super::*;

    /// A broker that never answers.
    struct Silence;

    impl Wire for Silence {
        fn send(&self, _: &Packet) {}
        fn announce(&self, _: Audience, _: &Packet) {}
        fn publish(&self, _: SpoolPublish) -> BoxFuture<'static, Result<(), PublishError>> {
            std::future::pending().boxed()
        }
        fn poll_turn(&self, _: &str, _: bool) {}
    }

    /// Remembers what was published, and takes it from the second on.
    #[derive(Default)]
    struct Slow(Mutex<Vec<SpoolPublish>>);

    impl Wire for Slow {
        fn send(&self, _: &Packet) {}
        fn announce(&self, _: Audience, _: &Packet) {}
        fn publish(&self, message: SpoolPublish) -> BoxFuture<'static, Result<(), PublishError>> {
            let mut published = self.0.lock().unwrap();
            published.push(message);
            match published.len() {
                1 => std::future::pending().boxed(),
                _ => std::future::ready(Ok(())).boxed(),
            }
        }
        fn poll_turn(&self, _: &str, _: bool) {}
    }

    fn door(wire: Arc<dyn Wire>) -> Door {
        Door {
            name: "door".to_owned(),
            wire,
            blobs: None,
            inline_max: 100,
            message_max: 1_000,
            patience: Duration::from_millis(200),
            account: Mutex::default(),
        }
    }

    #[tokio::test]
    async fn what_is_unclear_and_comes_again_is_published_under_its_id_and_marked() {
        let wire = Arc::new(Slow::default());
        let door = door(Arc::clone(&wire) as Arc<dyn Wire>);
        let (cancel, body) = (Cancel::default(), Bytes::from_static(b"x"));
        let mut incoming = Incoming::new("a@example.org", vec!["b@example.net".to_owned()], body);
        let unclear = door.save(&cancel, incoming.clone()).await;
        let Err(SaveError::Unclear { id, .. }) = unclear else {
            panic!("{unclear:?}");
        };
        assert_eq!(door.account().confirmed(), 1);
        incoming.identity = Identity::Again(id);
        let saved = door.save(&Cancel::default(), incoming).await;
        assert_eq!(saved.map(|saved| saved.id), Ok(id));
        let published = wire.0.lock().unwrap();
        let seen: Vec<_> = published.iter().map(|it| (it.id, it.marked)).collect();
        assert_eq!(seen, [(id, false), (id, true)]);
        let account = door.account();
        assert_eq!((account.confirmed(), account.voided()), (1, vec![]));
    }

    #[test]
    fn what_is_abandoned_is_void_before_its_publish_and_confirmed_afterwards() {
        let door = door(Arc::new(Silence));
        drop(door.issue(&Identity::Issued));
        let issue = door.issue(&Identity::Issued);
        issue.published.store(true, Ordering::Relaxed);
        assert_eq!(door.account().confirmed(), 1);
        drop(issue);
        let account = door.account();
        assert_eq!((account.confirmed(), account.voided()), (2, vec![(1, 1)]));
    }
}
