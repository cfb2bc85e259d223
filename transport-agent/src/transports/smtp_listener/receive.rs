//! DATA: from the permit to the reply to the final dot.
//!
//! ```text
//! permit -> reference -> 354 -> content (DataReader) -> seen before? -> SaveChanges -> finished -> 250
//! ```
//!
//! Nothing is read without a permit, no 250 is said without an id from SaveChanges, and the reception is finished exactly
//! once whatever happens ([`Permit`]).

use std::{collections::HashSet, io, time::Duration, time::SystemTime};

use bytes::Bytes;
use pombo_proto::{
    ids::MessageId,
    message::{Content as BodyKind, Priority, Recipient},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, info};

use super::{
    data::{self, Content, DataReader, Fault},
    limits::Grant,
    permit::Permit,
    received::{Trace, With},
    repeats::{Fate, Repeats, Ticket, Trail},
    session::{Next, Session, Transaction},
};
use crate::provider::{Identity, Incoming, Received, SaveError};

/// A reply that is unseen for so long, or a save that takes so long, is written down as doubtful.
const UNSEEN_MAX: Duration = Duration::from_secs(1);
/// Memory that a message gets to begin with if its size is not declared.
const FIRST_BYTES: u64 = 16 * 1024;
/// A declared size is believed up to here; beyond it memory follows what really comes.
const BELIEVED_BYTES: u64 = 64 * 1024;
/// How much of a message that will be refused is read, besides its permitted size, before the connection is closed.
const DRAIN_BYTES: u64 = 16 * 1024 * 1024;
/// Closed although the client goes on, because it was told so already by its SIZE.
const DRAINED: &str = "552 5.3.4 Message too large, closing connection";

/// The last accepted message, until its client shows that it has seen the 250.
pub(super) struct Doubt {
    id: MessageId,
    state: Unseen,
    /// Whether the 250 was handed to the network. What the client said before that proves nothing.
    pub written: bool,
}

enum Unseen {
    /// Its bytes are kept, so that no digest is needed in the usual case.
    Fresh {
        trail: Trail,
        since: Instant,
        _grant: Grant,
    },
    /// It is in the table.
    Recorded(Ticket),
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

/// How the content came in.
enum Transfer {
    /// To its end.
    Complete(Content, Permit),
    /// To its end, for nothing.
    Refused(Fault),
    /// The client is gone.
    Lost,
    /// The client was silent for too long, or took too long in all.
    TimedOut,
    /// It would not end.
    Endless,
}

/// Whether a message is one that was accepted a short while ago.
enum Known {
    No,
    /// Under this id; the client has not seen the 250 yet.
    As(MessageId, Ticket),
    /// The first copy is still being saved.
    Unclear,
}

/// How SaveChanges ended.
struct Saved {
    result: Result<MessageId, SaveError>,
    /// The entry made while it took long.
    ticket: Option<Ticket>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// DATA.
    pub async fn data(&mut self) -> io::Result<Next> {
        match &self.transaction {
            None => return Ok(self.say("503 5.5.1 MAIL first")),
            Some(transaction) if transaction.recipients.is_empty() => {
                return Ok(self.say("554 5.5.1 No valid recipients"));
            }
            Some(_) => {}
        }
        let Some(permit) = self.permit().await? else {
            return Ok(self.say("451 4.3.2 Cannot take it now, try again later"));
        };
        let Some(mut transaction) = self.transaction.take() else {
            return Ok(Next::Go);
        };
        let first = transaction.mail.size.unwrap_or(FIRST_BYTES);
        let first = first.clamp(1024, BELIEVED_BYTES);
        if !transaction.grant.grow(first) {
            self.transaction = Some(transaction);
            return Ok(self.say("452 4.3.1 Out of memory, try again later"));
        }
        self.peer.messages = self.peer.messages.saturating_add(1);
        let reference = self.shared.support.next_reference();
        permit.reception().assign_reference(reference);
        once_each(&mut transaction.recipients);
        let id = format!("{:x}-{}", self.peer.id, self.peer.messages);
        let field = self.trace(&transaction, &id);
        debug!(transport = "smtp-listener", transaction = %id, reference = reference.0, "start_message");
        self.io.say("354 End data with <CR><LF>.<CR><LF>");

        let transfer = self
            .transfer(permit, &mut transaction.grant, &field, first)
            .await?;
        match transfer {
            Transfer::Complete(content, permit) => {
                let head = field.len();
                if data::hops(&content.body[head..]) > self.shared.config.hops_max {
                    info!(transaction = %id, client = %self.peer.ip, "refused: too many hops");
                    return Ok(self.say("554 5.4.6 Too many hops: the message goes in a circle"));
                }
                self.complete(permit, transaction, content, head, &id).await
            }
            Transfer::Refused(fault) => {
                info!(transaction = %id, client = %self.peer.ip, ?fault, "refused");
                Ok(self.say(refusal(fault)))
            }
            Transfer::Lost => Ok(Next::Lost),
            Transfer::TimedOut => Ok(self.close("421 4.4.2", "Timeout, closing connection")),
            Transfer::Endless => {
                self.say(DRAINED);
                Ok(Next::Close)
            }
        }
    }

    /// The permit, waited for if it has not come yet.
    async fn permit(&mut self) -> io::Result<Option<Permit>> {
        self.slot.expire(Instant::now());
        self.ask();
        // One look first, so that a permit that is there already does not break the group of replies.
        if futures_util::FutureExt::now_or_never(self.slot.answered()).is_none() {
            self.flush().await?;
            let patience = self.shared.config.permit_timeout;
            if timeout(patience, self.slot.answered()).await.is_err() {
                self.slot.clear();
            }
        }
        Ok(self.slot.take())
    }

    fn trace(&self, transaction: &Transaction, id: &str) -> String {
        let (helo, extended) = self
            .greeting
            .as_ref()
            .map_or(("unknown", false), |greeting| {
                (greeting.name.as_str(), greeting.extended)
            });
        let only_recipient = match transaction.recipients.as_slice() {
            [only] => Some(only.address.as_str()),
            _ => None,
        };
        Trace {
            helo,
            client: self.peer.ip,
            host: &self.shared.host,
            with: With {
                extended,
                tls: self.tls,
                utf8: transaction.mail.smtputf8,
                authenticated: self.user.is_some(),
            },
            id,
            only_recipient,
            at: SystemTime::now(),
        }
        .field()
    }

    /// Reads the content. If the message will be refused, the permit is given back at once, while the rest is read and
    /// dropped.
    async fn transfer(
        &mut self,
        permit: Permit,
        grant: &mut Grant,
        field: &str,
        first: u64,
    ) -> io::Result<Transfer> {
        let config = &self.shared.config;
        let (silence_max, limits) = (config.data_timeout, config.limits());
        let read_max = config.message_bytes_max.saturating_add(DRAIN_BYTES);
        let deadline = Instant::now() + config.transfer_timeout;
        let mut head = Vec::with_capacity(field.len() + usize::try_from(first).unwrap_or(0));
        head.extend_from_slice(field.as_bytes());
        let mut reader = DataReader::new(head, limits);
        let mut permit = Some(permit);
        loop {
            if !self.io.input().is_empty() {
                let ended = self.feed(&mut reader, grant);
                if let Some(fault) = reader.fault()
                    && let Some(permit) = permit.take()
                {
                    grant.shrink_to(0);
                    permit.finish(match fault {
                        Fault::Cancelled => Received::Cancelled,
                        _ => Received::Nothing,
                    });
                }
                if ended {
                    return Ok(match (reader.finish(), permit) {
                        (Ok(content), Some(permit)) => Transfer::Complete(content, permit),
                        (Ok(_), None) => Transfer::Refused(Fault::Cancelled),
                        (Err(fault), _) => Transfer::Refused(fault),
                    });
                }
                if reader.size() > read_max {
                    return Ok(Transfer::Endless);
                }
            }
            self.flush().await?;
            let reception = permit.as_ref().map(|permit| permit.reception().clone());
            let cancelled = async {
                match &reception {
                    Some(reception) => reception.cancelled().await,
                    None => std::future::pending().await,
                }
            };
            let silent = deadline.min(Instant::now() + silence_max);
            tokio::select! {
                biased;
                () = cancelled => {
                    reader.refuse(Fault::Cancelled);
                    grant.shrink_to(0);
                    if let Some(permit) = permit.take() {
                        permit.finish(Received::Cancelled);
                    }
                }
                read = self.io.fill() => match read {
                    Ok(0) | Err(_) => return Ok(Transfer::Lost),
                    Ok(_) => self.heard(),
                },
                () = sleep_until(silent) => return Ok(Transfer::TimedOut),
            }
        }
    }

    /// Gives the reader what has been read, with memory for it. True: the message has ended.
    fn feed(&mut self, reader: &mut DataReader, grant: &mut Grant) -> bool {
        let input = self.io.input();
        if let Some(wanted) = reader.wants(input.len()) {
            if grant.grow((wanted - reader.capacity()) as u64) {
                reader.reserve(wanted);
            } else {
                reader.refuse(Fault::NoMemory);
            }
        }
        let fed = reader.feed(input);
        self.io.consume(fed.taken);
        fed.ended
    }

    /// The message is complete: save it, unless it has been, and say so.
    async fn complete(
        &mut self,
        permit: Permit,
        transaction: Transaction,
        content: Content,
        head: usize,
        transaction_id: &str,
    ) -> io::Result<Next> {
        let Transaction {
            mail,
            recipients,
            grant,
        } = transaction;
        let body = Bytes::from(content.body);
        let trail = self.shared.repeats.is_on().then(|| {
            Trail::new(
                self.peer.ip,
                &mail.sender,
                &recipients,
                mail.report_return,
                mail.envelope_id.as_deref(),
                body.slice(head..),
            )
        });
        if let Some(trail) = &trail {
            match self.known(trail).await {
                Known::No => {}
                Known::As(id, ticket) => {
                    permit.finish(Received::Nothing);
                    info!(transport = "smtp-listener", message = %id, transaction = transaction_id,
                        client = %self.peer.ip, "sent again, known already");
                    return Ok(self.accepted(id, Some(Unseen::Recorded(ticket))).await);
                }
                Known::Unclear => {
                    return Ok(
                        self.say("451 4.3.0 The first copy is still being queued, try again later")
                    );
                }
            }
        }
        let (size, count) = (body.len(), recipients.len());
        let incoming = Incoming {
            identity: Identity::Issued,
            sender: mail.sender,
            recipients,
            priority: Priority::default(),
            content: BodyKind {
                eight_bit: mail.eight_bit || content.eight_bit,
                smtputf8: mail.smtputf8,
            },
            report_return: mail.report_return,
            envelope_id: mail.envelope_id,
            deferred_until: None,
            expires_at: None,
            client: self.peer.ip.to_string(),
            body,
        };
        let saved = self.save(&permit, incoming, trail.as_ref()).await;
        match saved.result {
            Ok(id) => {
                permit.finish(Received::Saved { id, more: false });
                info!(transport = "smtp-listener", message = %id, transaction = transaction_id, client = %self.peer.ip,
                    size, recipients = count, "save_changes");
                let state = match (saved.ticket, trail) {
                    (Some(ticket), _) => Some(Unseen::Recorded(ticket)),
                    (None, Some(trail)) => Some(Unseen::Fresh {
                        trail,
                        since: Instant::now(),
                        _grant: grant,
                    }),
                    (None, None) => None,
                };
                Ok(self.accepted(id, state).await)
            }
            Err(error) => {
                info!(transport = "smtp-listener", transaction = transaction_id, client = %self.peer.ip, size, %error,
                    "not saved");
                permit.finish(match &error {
                    SaveError::Cancelled => Received::Cancelled,
                    other => Received::Failed(other.to_string()),
                });
                Ok(self.say(save_refusal(&error)))
            }
        }
    }

    /// SaveChanges. If it takes long, or the client goes away meanwhile, the message is written down as being
    /// saved, so that the same one, sent again by then, waits for this one's id.
    async fn save(&mut self, permit: &Permit, incoming: Incoming, trail: Option<&Trail>) -> Saved {
        let mut save = std::pin::pin!(permit.reception().save_changes(incoming));
        let done = |result| Saved {
            result,
            ticket: None,
        };
        let Some(trail) = trail else {
            return done(save.await);
        };
        tokio::select! {
            biased;
            result = &mut save => return done(result),
            () = self.io.loss() => {}
            () = sleep(UNSEEN_MAX) => {}
        }
        let digest = tokio::select! {
            biased;
            result = &mut save => return done(result),
            digest = trail.digest() => digest,
        };
        let repeats = &self.shared.repeats;
        let (tell, wait) = watch::channel(None);
        let now = std::time::Instant::now();
        let ticket = repeats.insert(trail.outline(), digest, Fate::Saving(wait), now);
        let mut entry = Pending {
            repeats,
            ticket,
            keep: false,
        };
        let result = save.await;
        if let Ok(id) = &result {
            entry.keep = true;
            repeats.saved(ticket, *id);
            tell.send_replace(Some(*id));
        }
        Saved {
            ticket: entry.keep.then_some(ticket),
            result,
        }
    }

    /// Whether this message was accepted a short while ago without the client knowing.
    async fn known(&mut self, trail: &Trail) -> Known {
        let repeats = &self.shared.repeats;
        if !repeats.may_know(trail.outline()) {
            return Known::No;
        }
        let digest = trail.digest().await;
        match repeats.find(&digest, std::time::Instant::now()) {
            None => Known::No,
            Some((Fate::Saved(id), ticket)) => Known::As(id, ticket),
            Some((Fate::Saving(mut wait), ticket)) => {
                let patience = self.shared.config.data_timeout;
                match timeout(patience, wait.wait_for(Option::is_some)).await {
                    Ok(Ok(saved)) => saved.map_or(Known::No, |id| Known::As(id, ticket)),
                    // The first one was not saved; this one is, in its place.
                    Ok(Err(_)) => Known::No,
                    Err(_) => Known::Unclear,
                }
            }
        }
    }

    async fn accepted(&mut self, id: MessageId, unseen: Option<Unseen>) -> Next {
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
            let (outline, now) = (trail.outline(), std::time::Instant::now());
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

/// An entry of a message that is being saved; goes away with it unless it was.
struct Pending<'a> {
    repeats: &'a Repeats,
    ticket: Ticket,
    keep: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.keep {
            self.repeats.forget(self.ticket);
        }
    }
}

/// A recipient that was named twice gets one copy.
fn once_each(recipients: &mut Vec<Recipient>) {
    if recipients.len() > 1 {
        let mut seen = HashSet::with_capacity(recipients.len());
        recipients.retain(|recipient| seen.insert(recipient.address.clone()));
    }
}

fn refusal(fault: Fault) -> &'static str {
    match fault {
        Fault::TooLarge => "552 5.3.4 Message too large",
        Fault::LineTooLong => "554 5.6.0 Message has a line that is too long",
        Fault::BareLf => "550 5.5.2 Bare <LF> in the message: lines end with <CRLF>",
        Fault::BareCr => "550 5.5.2 Bare <CR> in the message: lines end with <CRLF>",
        Fault::NoMemory => "452 4.3.1 Out of memory, try again later",
        Fault::Cancelled => "451 4.3.2 Delivery stopped, try again later",
    }
}

fn save_refusal(error: &SaveError) -> &'static str {
    match error {
        SaveError::Cancelled => "451 4.3.2 Delivery stopped, try again later",
        SaveError::Unconfirmed(_) => "451 4.3.0 The queue does not answer, try again later",
        SaveError::Blob(_) => "452 4.3.1 Insufficient system storage, try again later",
        SaveError::TooLarge(_) => "552 5.3.4 Message too large",
        SaveError::Recipients(0) => "554 5.5.1 No valid recipients",
        SaveError::Recipients(_) => "554 5.5.3 Too many recipients",
    }
}
