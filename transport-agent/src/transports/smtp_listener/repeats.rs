//! Remembers accepted messages whose 250 the client may not have seen, so that the same message sent again gets the same
//! id and no second copy (RFC 5321 4.5.4.1's doubt, RFC 1047).
//!
//! A client has seen the reply when it says anything after it; until then the session keeps the message's bytes, which costs
//! no copy and no hash. Only if the connection ends without that, or a client stays silent for a second, is the
//! digest made and written here. So the table is empty while all goes well, and a client that sends two
//! identical messages on healthy connections gets two messages.
//!
//! Also written here is what was published and never confirmed. Its client was told to come later, and nobody knows whether the message
//! is in the spool: the same one, sent again, is published under the same id, so that one of the two vanishes.
//!
//! SHA-256 is slow without hardware help (a 10 KiB message takes about 40 us on an old core), but it is only
//! computed for messages in doubt, and for messages of a client and a size that is in doubt already. The table has at most
//! `repeat_entries_max` entries of about 200 bytes, and our trace field of those that were never confirmed; the one that would be
//! forgotten first makes room.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use pombo_proto::{
    ids::MessageId,
    message::{Recipient, ReportReturn},
};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

/// The cheap part of a message's identity, looked at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Outline {
    pub client: IpAddr,
    pub size: usize,
}

/// Client, envelope and content in one.
pub(super) type Digest = [u8; 32];

/// Content is hashed in pieces of this many bytes, with a chance for other sessions in between.
const PIECE_BYTES: usize = 128 * 1024;

/// A message whose digest can be made if that should become necessary.
#[derive(Clone, Debug)]
pub(super) struct Trail {
    outline: Outline,
    /// Everything that is not content, each part with its length before it.
    envelope: Vec<u8>,
    content: Bytes,
}

impl Trail {
    /// `content` is what the client sent, without our trace field.
    pub fn new(
        client: IpAddr,
        sender: &str,
        recipients: &[Recipient],
        ret: ReportReturn,
        envelope_id: Option<&str>,
        content: Bytes,
    ) -> Self {
        let mut envelope = Vec::with_capacity(256);
        let mut add = |part: &[u8]| {
            envelope.extend_from_slice(&(part.len() as u64).to_be_bytes());
            envelope.extend_from_slice(part);
        };
        match client.to_canonical() {
            IpAddr::V4(address) => add(&address.octets()),
            IpAddr::V6(address) => add(&address.octets()),
        }
        add(sender.as_bytes());
        add(&[u8::from(ret == ReportReturn::Full)]);
        add(envelope_id.unwrap_or_default().as_bytes());
        add(&(recipients.len() as u64).to_be_bytes());
        for recipient in recipients {
            let notify = recipient.notify;
            add(recipient.address.as_bytes());
            add(&[notify.success, notify.failure, notify.delay].map(u8::from));
            add(recipient
                .original_recipient
                .as_deref()
                .unwrap_or_default()
                .as_bytes());
        }
        Self {
            outline: Outline {
                client: client.to_canonical(),
                size: content.len(),
            },
            envelope,
            content,
        }
    }

    pub fn outline(&self) -> Outline {
        self.outline
    }

    /// Client, envelope and content in one; yields now and then, so that a large message does not hold a thread.
    pub async fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        hash.update((self.envelope.len() as u64).to_be_bytes());
        hash.update(&self.envelope);
        for piece in self.content.chunks(PIECE_BYTES) {
            hash.update(piece);
            if piece.len() == PIECE_BYTES {
                tokio::task::yield_now().await;
            }
        }
        hash.finalize().into()
    }
}

/// What became of a remembered message.
#[derive(Clone, Debug)]
pub(super) enum Fate {
    /// Accepted under this id.
    Saved(MessageId),
    /// Being saved: the id will come, with what names its entry then, or the sender goes away without.
    Saving(watch::Receiver<Option<(MessageId, Ticket)>>),
    /// Nobody knows: its confirm did not come. Published again, it must be the same to the byte, our trace field included.
    Unclear(MessageId, Bytes),
}

/// Names one entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    serial: u64,
    digest: Digest,
}

/// How long what is remembered, at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Windows {
    /// Accepted, and the reply may not have been seen; or being saved.
    pub unseen: Duration,
    /// Published and never confirmed.
    pub unclear: Duration,
}

/// The table.
#[derive(Debug)]
pub(super) struct Repeats {
    windows: Windows,
    max: usize,
    /// How many entries, to be read without the lock: usually none.
    count: AtomicUsize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Digest, Entry>,
    outlines: HashMap<Outline, usize>,
    /// By the time at which they are forgotten, and number.
    order: BTreeMap<(Instant, u64), Digest>,
    serial: u64,
}

#[derive(Debug)]
struct Entry {
    serial: u64,
    until: Instant,
    outline: Outline,
    fate: Fate,
}

impl Repeats {
    pub fn new(windows: Windows, max: usize) -> Self {
        Self {
            windows,
            max,
            count: AtomicUsize::new(0),
            table: Mutex::default(),
        }
    }

    /// Whether it remembers anything at all.
    pub fn is_on(&self) -> bool {
        self.max > 0 && !self.windows.unseen.max(self.windows.unclear).is_zero()
    }

    /// Whether a digest is worth computing.
    pub fn may_know(&self, outline: Outline) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.lock().outlines.contains_key(&outline)
    }

    /// What became of the message with this digest, if it is remembered.
    pub fn find(&self, digest: &Digest, now: Instant) -> Option<(Fate, Ticket)> {
        let mut table = self.lock();
        self.expire(&mut table, now);
        table.entries.get(digest).map(|entry| {
            let (serial, digest) = (entry.serial, *digest);
            (entry.fate.clone(), Ticket { serial, digest })
        })
    }

    /// Remembers a message from now on. One that is known already gets the new fate.
    pub fn insert(&self, outline: Outline, digest: Digest, fate: Fate, now: Instant) -> Ticket {
        let mut table = self.lock();
        table.remove(&digest);
        self.expire(&mut table, now);
        let window = match fate {
            Fate::Unclear(..) => self.windows.unclear,
            Fate::Saved(_) | Fate::Saving(_) => self.windows.unseen,
        };
        table.serial += 1;
        let serial = table.serial;
        if window.is_zero() {
            // Turned off: nobody has to make room for it.
            return Ticket { serial, digest };
        }
        while table.entries.len() >= self.max.max(1) {
            let Some((_, soonest)) = table.order.pop_first() else {
                break;
            };
            table.remove(&soonest);
        }
        let until = now + window;
        table.order.insert((until, serial), digest);
        *table.outlines.entry(outline).or_default() += 1;
        let entry = Entry {
            serial,
            until,
            outline,
            fate,
        };
        table.entries.insert(digest, entry);
        self.count.store(table.entries.len(), Ordering::Release);
        Ticket { serial, digest }
    }

    /// No doubt any more: the client has seen the reply, or it was not saved.
    pub fn forget(&self, ticket: Ticket) {
        let mut table = self.lock();
        if table
            .entries
            .get(&ticket.digest)
            .is_some_and(|entry| entry.serial == ticket.serial)
        {
            table.remove(&ticket.digest);
        }
        self.count.store(table.entries.len(), Ordering::Release);
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expire(&self, table: &mut Table, now: Instant) {
        while let Some((&(until, _), &digest)) = table.order.first_key_value() {
            if now < until {
                break;
            }
            table.remove(&digest);
        }
        self.count.store(table.entries.len(), Ordering::Release);
    }
}

impl Table {
    fn remove(&mut self, digest: &Digest) {
        let Some(entry) = self.entries.remove(digest) else {
            return;
        };
        self.order.remove(&(entry.until, entry.serial));
        if let Some(count) = self.outlines.get_mut(&entry.outline) {
            *count -= 1;
            if *count == 0 {
                self.outlines.remove(&entry.outline);
            }
        }
    }
}
