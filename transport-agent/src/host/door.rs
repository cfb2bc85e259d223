//! SaveChanges: a received message gets its id, its envelope and its place in the spool; and the door's account of it.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use pombo_proto::{
    blob::Blobs,
    frame::{HEAD_BYTES_MAX, encode_message},
    ids::{DoorSequence, MessageId},
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
/// Voided numbers that are remembered for the status row.
const VOIDED_MAX: usize = 256;
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
        let result = self.keep(cancel, issue.id, incoming).await;
        match &result {
            Ok(()) => issue.close(false),
            // Whether it is in the spool is not known: it counts as confirmed. If it is not there, the ledger
            // names it; were it voided and there, nobody would.
            Err(Failure { written: true, .. }) => issue.close(false),
            Err(Failure { written: false, .. }) => issue.close(true),
        }
        let saved = Saved { id: issue.id, size };
        result.map(|()| saved).map_err(|failure| failure.error)
    }

    async fn keep(
        &self,
        cancel: &Cancel,
        id: MessageId,
        incoming: Incoming,
    ) -> Result<(), Failure> {
        let (priority, derived) = (incoming.priority, id.is_derived());
        let recipients = incoming.recipients.len();
        let inline = incoming.body.len() <= self.inline_max;
        let body = incoming.body.clone();
        let envelope = self.envelope(id, incoming, inline);
        let following: &[u8] = if inline { &body } else { &[] };
        let encoded = encode_message(envelope, following).encoded;
        if encoded.len() - following.len() > HEAD_BYTES_MAX {
            return Err(Failure::before(SaveError::Recipients(recipients)));
        }
        let blobs = match (&self.blobs, inline) {
            (_, true) => None,
            (Some(blobs), false) => Some(blobs),
            (None, false) => {
                let error = SaveError::Blob("there is none".to_owned());
                return Err(Failure::before(error));
            }
        };
        if let Some(blobs) = blobs {
            let kept = blobs.put(id, body).await;
            kept.map_err(|error| Failure::before(SaveError::Blob(error.to_string())))?;
        }
        let result = if cancel.commit() {
            self.publish(id, priority, encoded).await
        } else {
            Err(Failure::before(SaveError::Cancelled))
        };
        // The blob of a derived id may belong to an earlier copy of the same message.
        if let (Err(Failure { written: false, .. }), Some(blobs), false) = (&result, blobs, derived)
            && let Err(error) = blobs.delete(id).await
        {
            tracing::warn!(id = %id, %error, "a body without a message stays in the blob store");
        }
        result
    }

    /// Until it is known to be in the spool, or not, or patience ends. An unknown confirm is cleared by the same id, marked.
    async fn publish(
        &self,
        id: MessageId,
        priority: Priority,
        encoded: Bytes,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + self.patience;
        let mut written = false;
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
                    let error = SaveError::Unconfirmed(error.to_string());
                    return Err(Failure::before(error));
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => {
                    written = true;
                    "no confirm in time".to_owned()
                }
            };
            tracing::warn!(id = %id, error, "not confirmed: published again, marked");
            if Instant::now() + AGAIN_AFTER >= deadline {
                let text = format!("it is unknown whether the message was accepted: {error}");
                let error = SaveError::Unconfirmed(text);
                return Err(Failure { error, written });
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
            submitted_at: UnixMillis::now(),
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
        };
        Issue {
            door: self,
            id,
            open: true.into(),
        }
    }

    /// The account.
    pub fn account(&self) -> std::sync::MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An id whose fate is open. One that is dropped so (its task was aborted) counts as confirmed, like everything unknown.
struct Issue<'a> {
    door: &'a Door,
    id: MessageId,
    open: std::cell::Cell<bool>,
}

impl Issue<'_> {
    fn close(&self, void: bool) {
        if self.open.replace(false)
            && let Some(issue) = self.id.issue()
        {
            self.door.account().close(issue.sequence, void);
        }
    }
}

impl Drop for Issue<'_> {
    fn drop(&mut self) {
        self.close(false);
    }
}

struct Failure {
    error: SaveError,
    /// Something may have been written into the spool.
    written: bool,
}

impl Failure {
    fn before(error: SaveError) -> Self {
        Self {
            error,
            written: false,
        }
    }
}

/// The door's account: which of its numbers are confirmed or void.
#[derive(Debug, Default)]
pub(super) struct Account {
    sequence: DoorSequence,
    open: BTreeSet<u64>,
    last: u64,
    voided: VecDeque<u64>,
}

impl Account {
    fn issue(&mut self, now: UnixMillis) -> MessageId {
        let id = self.sequence.issue(now);
        if let Some(issue) = id.issue() {
            self.open.insert(issue.sequence);
            self.last = issue.sequence;
        }
        id
    }

    fn close(&mut self, sequence: u64, void: bool) {
        self.open.remove(&sequence);
        if void {
            self.voided.push_back(sequence);
            if self.voided.len() > VOIDED_MAX {
                self.voided.pop_front();
            }
        }
    }

    /// The door incarnation in its ids; `None` while it has issued none.
    pub fn door(&self) -> Option<u32> {
        (self.last > 0).then(|| self.sequence.door())
    }

    /// The highest number up to which none is open.
    pub fn confirmed(&self) -> u64 {
        self.open.first().map_or(self.last, |first| first - 1)
    }

    /// Numbers up to there that never became messages; the newest.
    pub fn voided(&self) -> Vec<u64> {
        let confirmed = self.confirmed();
        let below = self.voided.iter().copied();
        below.filter(|sequence| *sequence <= confirmed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_stops_below_the_first_open_number() {
        let mut account = Account::default();
        let now = UnixMillis::now();
        assert_eq!((account.door(), account.confirmed()), (None, 0));
        let numbers: Vec<_> = (0..4)
            .map(|_| account.issue(now).issue().unwrap().sequence)
            .collect();
        account.close(numbers[1], true);
        account.close(numbers[3], false);
        assert_eq!((account.confirmed(), account.voided()), (0, vec![]));
        account.close(numbers[0], false);
        assert_eq!((account.confirmed(), account.voided()), (2, vec![2]));
        account.close(numbers[2], true);
        assert_eq!((account.confirmed(), account.voided()), (4, vec![2, 3]));
    }
}
