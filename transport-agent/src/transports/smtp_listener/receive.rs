//! DATA: from the permit to the reply to the final dot.
//!
//! ```text
//! permit -> reference -> 354 -> content (DataReader) -> seen before? -> SaveChanges -> finished -> 250
//! ```
//!
//! Nothing is read without a permit, no 250 is said without an id from SaveChanges, and the reception is finished exactly
//! once whatever happens ([`Permit`]).

use std::{
    collections::HashSet,
    io,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use pombo_proto::message::{Content as BodyKind, Priority, Recipient};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, info};

use super::{
    data::{self, Content, DataReader, Fault},
    doubt::{Known, Unseen},
    limits::Grant,
    permit::Permit,
    received::{Trace, With},
    repeats::Trail,
    session::{Next, Session, Transaction},
};
use crate::provider::{Identity, Incoming, Received, SaveError};

/// Memory that a message gets to begin with if its size is not declared.
const FIRST_BYTES: u64 = 16 * 1024;
/// A declared size is believed up to here; beyond it memory follows what really comes.
const BELIEVED_BYTES: u64 = 64 * 1024;
/// How much of a message that will be refused is read, besides its permitted size, before the connection is closed.
const DRAIN_BYTES: u64 = 16 * 1024 * 1024;
/// Closed although the client goes on, because it was told so already by its SIZE.
const DRAINED: &str = "552 5.3.4 Message too large, closing connection";

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
    /// The client sends, but at less than the least rate.
    TooSlow,
    /// It would not end.
    Endless,
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
            Transfer::TooSlow => {
                info!(transaction = %id, client = %self.peer.ip, "too slow");
                Ok(self.close("421 4.4.2", "Too slow, closing connection"))
            }
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
        let begun = Instant::now();
        let deadline = begun + config.transfer_timeout;
        let (rate_min, rate_after) = (config.data_rate_min, self.shared.rate_after);
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
            let slow = fast_enough_for(reader.size(), rate_min, rate_after);
            // Without an end, another one comes first.
            let slow = slow.map_or(deadline, |time| begun + time);
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
                () = sleep_until(silent.min(slow)) => {
                    return Ok(if slow < silent { Transfer::TooSlow } else { Transfer::TimedOut });
                }
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
            mut grant,
        } = transaction;
        let mut body = Bytes::from(content.body);
        let mut identity = Identity::Issued;
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
                    info!(transport = "smtp-listener", id = %id, transaction = transaction_id,
                        client = %self.peer.ip, "sent again, known already");
                    return Ok(self.accepted(id, Some(Unseen::Recorded(ticket))).await);
                }
                Known::Unclear(id, field) => {
                    if !grant.grow(body.len() as u64) {
                        permit.finish(Received::Nothing);
                        return Ok(self.say(refusal(Fault::NoMemory)));
                    }
                    body = [&field[..], &body[head..]].concat().into();
                    identity = Identity::Again(id);
                    info!(transport = "smtp-listener", id = %id, transaction = transaction_id,
                        client = %self.peer.ip, "sent again, not known whether it is there: to be published again, marked");
                }
                Known::BeingSaved => {
                    return Ok(
                        self.say("451 4.3.0 The first copy is still being queued, try again later")
                    );
                }
            }
        }
        let (size, count) = (body.len(), recipients.len());
        let incoming = Incoming {
            identity,
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
                info!(transport = "smtp-listener", id = %id, transaction = transaction_id, client = %self.peer.ip,
                    size, recipients = count, "save_changes");
                let unseen = Unseen::after(saved.ticket, trail, grant);
                Ok(self.accepted(id, unseen).await)
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
}

/// After how long so much content will not have been enough: then the average falls below the least rate. `None`: never.
fn fast_enough_for(bytes: u64, rate_min: u32, after: Duration) -> Option<Duration> {
    let millis = bytes
        .saturating_mul(1_000)
        .checked_div(u64::from(rate_min))?;
    Some(after.max(Duration::from_millis(millis)))
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
        SaveError::Unconfirmed(_) | SaveError::Unclear { .. } => {
            "451 4.3.0 The queue does not answer, try again later"
        }
        SaveError::Blob(_) => "452 4.3.1 Insufficient system storage, try again later",
        SaveError::TooLarge(_) => "552 5.3.4 Message too large",
        SaveError::Recipients(0) => "554 5.5.1 No valid recipients",
        SaveError::Recipients(_) => "554 5.5.3 Too many recipients",
    }
}
