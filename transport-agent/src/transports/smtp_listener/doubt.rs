//! A session's side of repeats: saves messages, and keeps track of whether the client has seen the 250.
//!
//! What is written down when, and why, is told in [`super::repeats`].

use std::time::{Duration, Instant as StdInstant};

use bytes::Bytes;
use pombo_proto::ids::MessageId;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    io::Io,
    limits::Grant,
    permit::Permit,
    repeats::{Digest, Fate, Repeats, Ticket, Trail},
    session::{Next, Session},
};
use crate::provider::{Identity, Incoming, SaveError};

/// A reply that is unseen for so long, or a save that takes so long, is written down as doubtful.
const UNSEEN_MAX: Duration = Duration::from_secs(1);

/// The last accepted message, until its client shows that it has seen the 250.
pub(super) struct Doubt {
    id: MessageId,
    state: Unseen,
    /// Whether the 250 was handed to the network. What the client said before that proves nothing.
    pub written: bool,
}

pub(super) enum Unseen {
    /// Its bytes are kept, so that no digest is needed in the usual case.
    Fresh {
        trail: Trail,
        since: Instant,
        _grant: Grant,
    },
    /// It is in the table.
    Recorded(Ticket),
}

impl Unseen {
    /// Right after it was saved: `ticket` if it is in the table, `trail` if it may have to be.
    pub fn after(ticket: Option<Ticket>, trail: Option<Trail>, grant: Grant) -> Option<Self> {
        match (ticket, trail) {
            (Some(ticket), _) => Some(Self::Recorded(ticket)),
            (None, Some(trail)) => Some(Self::Fresh {
                trail,
                since: Instant::now(),
                _grant: grant,
            }),
            (None, None) => None,
        }
    }
}

impl Doubt {
    /// When it should be written down.
    pub fn due(&self) -> Option<Instant> {
        match &self.state {
            Unseen::Fresh { since, .. } => Some(*since + UNSEEN_MAX),
            Unseen::Recorded(_) => None,
        }
    }
}

/// Whether a message is one that was accepted a short while ago.
pub(super) enum Known {
    No,
    /// Under this id; the client has not seen the 250 yet.
    As(MessageId, Ticket),
    /// It may have been, under this id and with this trace field.
    Unclear(MessageId, Bytes),
    /// The first copy is still being saved.
    BeingSaved,
}

/// How SaveChanges ended.
pub(super) struct Saved {
    pub result: Result<MessageId, SaveError>,
    /// The entry made while it took long.
    pub ticket: Option<Ticket>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// SaveChanges. If it takes long, or the client goes away meanwhile, the message is written down as being
    /// saved, so that the same one, sent again by then, waits for this one's id. If nobody can say whether it was saved, that is
    /// written down too: the same one, sent again, is published under the same id.
    pub async fn save(
        &mut self,
        permit: &Permit,
        incoming: Incoming,
        trail: Option<&Trail>,
    ) -> Saved {
        let again = matches!(incoming.identity, Identity::Again(_));
        let body = incoming.body.clone();
        let mut save = std::pin::pin!(permit.reception().save_changes(incoming));
        let Some(trail) = trail else {
            return Saved {
                result: save.await,
                ticket: None,
            };
        };
        let repeats = &self.shared.repeats;
        let mut pending = None;
        let result = tokio::select! {
            biased;
            result = &mut save => result,
            // One that comes again is in the table.
            entry = Pending::after_long(&mut self.io, repeats, trail), if !again => {
                pending = Some(entry);
                save.await
            }
        };
        let fate = match &result {
            Ok(id) if again || pending.is_some() => Fate::Saved(*id),
            Err(SaveError::Unclear { id, .. }) => {
                // A copy: the table is not to keep whole messages alive.
                let field = &body[..body.len() - trail.outline().size];
                Fate::Unclear(*id, Bytes::copy_from_slice(field))
            }
            _ => {
                return Saved {
                    result,
                    ticket: None,
                };
            }
        };
        let digest = match &pending {
            Some(entry) => entry.digest,
            None => trail.digest().await,
        };
        let ticket = repeats.insert(trail.outline(), digest, fate, StdInstant::now());
        if let (Some(entry), Ok(id)) = (&pending, &result) {
            entry.tell.send_replace(Some((*id, ticket)));
        }
        Saved {
            ticket: result.is_ok().then_some(ticket),
            result,
        }
    }

    /// Whether this message was accepted a short while ago without the client knowing.
    pub async fn known(&mut self, trail: &Trail) -> Known {
        let repeats = &self.shared.repeats;
        if !repeats.may_know(trail.outline()) {
            return Known::No;
        }
        let digest = trail.digest().await;
        let patience = self.shared.config.data_timeout;
        loop {
            let mut wait = match repeats.find(&digest, StdInstant::now()) {
                None => return Known::No,
                Some((Fate::Saved(id), ticket)) => return Known::As(id, ticket),
                Some((Fate::Unclear(id, field), _)) => return Known::Unclear(id, field),
                Some((Fate::Saving(wait), _)) => wait,
            };
            match timeout(patience, wait.wait_for(Option::is_some)).await {
                Ok(Ok(saved)) => {
                    return saved.map_or(Known::No, |(id, ticket)| Known::As(id, ticket));
                }
                // The first one was not saved, or nobody knows whether it was: the table does.
                Ok(Err(_)) => {}
                Err(_) => return Known::BeingSaved,
            }
        }
    }

    pub async fn accepted(&mut self, id: MessageId, unseen: Option<Unseen>) -> Next {
        // The one before, if the client sends without waiting for replies.
        self.record_doubt().await;
        self.doubt = unseen.map(|state| Doubt {
            id,
            state,
            written: false,
        });
        let reply = format!("250 2.0.0 Ok: queued as {id}");
        self.say(&reply)
    }

    /// The client has said something after our last reply was written: it has seen it.
    pub fn heard(&mut self) {
        if let Some(doubt) = self.doubt.take_if(|doubt| doubt.written)
            && let Unseen::Recorded(ticket) = doubt.state
        {
            self.shared.repeats.forget(ticket);
        }
    }

    /// Writes the last message down, if its reply may still be unseen.
    pub async fn record_doubt(&mut self) {
        if let Some(doubt) = &mut self.doubt
            && let Unseen::Fresh { trail, .. } = &doubt.state
        {
            let digest = trail.digest().await;
            let (outline, now) = (trail.outline(), StdInstant::now());
            let repeats = &self.shared.repeats;
            let ticket = repeats.insert(outline, digest, Fate::Saved(doubt.id), now);
            doubt.state = Unseen::Recorded(ticket);
        }
    }

    /// The session ends: what is in doubt stays in the table.
    pub async fn leave_doubt(&mut self) {
        self.record_doubt().await;
        self.doubt = None;
    }
}

/// An entry of a message that is being saved. Goes away with it, unless another has come in its place.
struct Pending<'a> {
    repeats: &'a Repeats,
    ticket: Ticket,
    digest: Digest,
    tell: watch::Sender<Option<(MessageId, Ticket)>>,
}

impl<'a> Pending<'a> {
    /// Once saving takes long, or the client is gone.
    async fn after_long<S: AsyncRead + AsyncWrite + Unpin + Send>(
        io: &mut Io<S>,
        repeats: &'a Repeats,
        trail: &Trail,
    ) -> Self {
        tokio::select! {
            () = io.loss() => {}
            () = sleep(UNSEEN_MAX) => {}
        }
        let digest = trail.digest().await;
        let (tell, wait) = watch::channel(None);
        let (fate, now) = (Fate::Saving(wait), StdInstant::now());
        Self {
            ticket: repeats.insert(trail.outline(), digest, fate, now),
            repeats,
            digest,
            tell,
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.repeats.forget(self.ticket);
    }
}
