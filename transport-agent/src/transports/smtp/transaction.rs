//! One mail transaction: MAIL, RCPT, DATA, the content, the final dot, in as few writes and round trips as the server allows.
//!
//! With PIPELINING (RFC 2920) MAIL, all RCPT and DATA are one write, and then every reply is looked at. The content and the
//! final dot are one write if they are small. **The dot is the point of no return**: up to it a cancel breaks the connection, which
//! makes the server forget everything; behind it only the reply counts. A connection that is lost between the dot and its reply
//! leaves the recipients in doubt with 4.4.2, and a text that says that they may have it.

use std::{borrow::Cow, time::Duration};

use pombo_proto::{ids::RecipientIndex, message::Recipient, outcome::Outcome};

use crate::provider::Submission;

use super::{
    body::Body,
    command::{self, MailParameters, in_ascii},
    config::Config,
    connection::Connection,
    content,
    reply::Reply,
    status::{ConnectionError, Failure, Stage, refused},
};

/// A group of commands is at most this many recipients and about this many bytes: its replies then fit any receive buffer, and
/// neither side can block the other (RFC 2920 3.1).
const GROUP_RECIPIENTS: usize = 100;
const GROUP_BYTES: usize = 16 * 1024;
/// What all transactions of one message share.
pub(super) struct Mail<'a> {
    pub(super) submission: &'a Submission,
    pub(super) config: &'a Config,
    pub(super) body: Body<'a>,
    /// The header section cannot be sent without SMTPUTF8.
    pub(super) utf8_headers: bool,
}

/// One recipient of a transaction.
pub(super) struct Rcpt<'a> {
    pub(super) index: RecipientIndex,
    pub(super) recipient: &'a Recipient,
    pub(super) state: State,
}

/// Where a recipient stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not given to a server yet, or in vain.
    Owed,
    /// The server took the address; the content is to follow.
    Accepted,
    /// The server takes no more in this transaction.
    NextTime,
    /// Decided.
    Done(Outcome),
}

impl Rcpt<'_> {
    pub(super) fn is(&self, state: &State) -> bool {
        self.state == *state
    }
}

/// How a transaction ended. Outcomes are with the recipients.
#[derive(Debug)]
pub(super) enum End {
    /// Nobody is [`State::Accepted`] any more; those who are not decided go with the next one.
    Completed,
    /// Broken off before the dot: who is not decided is owed as before. `answered`: the server had answered MAIL.
    Lost {
        error: ConnectionError,
        answered: bool,
    },
    /// Cancelled before the dot.
    Cancelled,
    /// The right to finish was refused, before the dot.
    NotAllowed,
}

/// Why the transaction does not get to the dot.
pub(super) enum Break {
    Lost(ConnectionError),
    Cancelled,
    NotAllowed,
}

impl From<ConnectionError> for Break {
    fn from(error: ConnectionError) -> Self {
        Self::Lost(error)
    }
}

impl Mail<'_> {
    /// Waits for something unless the message is cancelled.
    pub(super) async fn unless_cancelled<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.submission.cancelled() => None,
            done = future => Some(done),
        }
    }

    fn sender(&self) -> &str {
        &self.submission.envelope().sender
    }

    /// What MAIL says to this server, or why the message cannot go there at all.
    fn parameters(
        &self,
        connection: &Connection,
        batch: &[Rcpt<'_>],
    ) -> Result<MailParameters, Failure> {
        let offered = &connection.offered;
        let content = self.submission.envelope().content;
        let size = self.body.size();
        if let Some(limit) = offered.size_max.filter(|limit| size > *limit) {
            let text = format!(
                "{}: takes at most {limit} bytes, the message has {size}",
                connection.place()
            );
            return Err(Failure::permanent((3, 4), text));
        }
        let sender_fits = offered.smtputf8 || in_ascii(self.sender()).is_some();
        if !sender_fits || (self.utf8_headers && !offered.smtputf8) {
            let text = format!(
                "{}: the message needs SMTPUTF8, which is not offered",
                connection.place()
            );
            return Err(Failure::permanent((6, 7), text));
        }
        let eight_bit = content.eight_bit || self.utf8_headers;
        if eight_bit
            && !offered.eight_bit_mime
            && !self.config.send_8bit_anyway
            && self.body.is_eight_bit()
        {
            let text = format!(
                "{}: the message needs 8BITMIME, which is not offered",
                connection.place()
            );
            return Err(Failure::permanent((6, 3), text));
        }
        let utf8_address = || {
            !self.sender().is_ascii() || batch.iter().any(|rcpt| !rcpt.recipient.address.is_ascii())
        };
        Ok(MailParameters {
            size: offered.size.then_some(size),
            eight_bit: eight_bit && offered.eight_bit_mime,
            smtputf8: offered.smtputf8 && (content.smtputf8 || self.utf8_headers || utf8_address()),
            dsn: offered.dsn,
        })
    }
}

/// Runs one transaction for those of `batch` who are owed.
pub(super) async fn run(
    connection: &mut Connection,
    mail: &Mail<'_>,
    batch: &mut [Rcpt<'_>],
) -> End {
    let parameters = match mail.parameters(connection, batch) {
        Ok(parameters) => parameters,
        Err(failure) => {
            decide(batch, &State::Owed, &failure.outcome());
            return End::Completed;
        }
    };
    if !parameters.smtputf8 {
        refuse_utf8_recipients(connection, batch);
    }
    if !batch.iter().any(|rcpt| rcpt.is(&State::Owed)) {
        return End::Completed;
    }
    connection.uses += 1;
    metrics::counter!("pombo_smtp_transactions_total").increment(1);
    let mut answered = false;
    let begin = begin(connection, mail, &parameters, batch, &mut answered);
    let broken = match mail.unless_cancelled(begin).await {
        None => Break::Cancelled,
        Some(Err(error)) => Break::Lost(error),
        Some(Ok(false)) => return End::Completed,
        Some(Ok(true)) => match content::send(connection, mail).await {
            Ok(()) => {
                content::finish(connection, mail, batch).await;
                return End::Completed;
            }
            Err(Break::Lost(error)) => match content::last_words(connection).await {
                Some(reply) => {
                    connection.finished = true;
                    decide(
                        batch,
                        &State::Accepted,
                        &refused(&reply, Stage::End, &connection.host),
                    );
                    return End::Completed;
                }
                None => Break::Lost(error),
            },
            Err(broken) => broken,
        },
    };
    connection.finished = true;
    for rcpt in batch {
        if matches!(rcpt.state, State::Accepted | State::NextTime) {
            rcpt.state = State::Owed;
        }
    }
    match broken {
        Break::Lost(error) => End::Lost { error, answered },
        Break::Cancelled => End::Cancelled,
        Break::NotAllowed => End::NotAllowed,
    }
}

/// A mailbox outside ASCII cannot be told to a server without SMTPUTF8; the other recipients need not suffer.
fn refuse_utf8_recipients(connection: &Connection, batch: &mut [Rcpt<'_>]) {
    for rcpt in batch {
        if rcpt.is(&State::Owed) && in_ascii(&rcpt.recipient.address).is_none() {
            let text = format!(
                "{}: the address needs SMTPUTF8, which is not offered",
                connection.place()
            );
            rcpt.state = State::Done(Failure::permanent((6, 7), text).outcome());
        }
    }
}

pub(super) fn decide(batch: &mut [Rcpt<'_>], those: &State, outcome: &Outcome) {
    for rcpt in batch {
        if rcpt.is(those) {
            rcpt.state = State::Done(outcome.clone());
        }
    }
}

/// From RSET (if there is something to reset) to the answer to DATA. True: the server waits for the content.
async fn begin(
    connection: &mut Connection,
    mail: &Mail<'_>,
    parameters: &MailParameters,
    batch: &mut [Rcpt<'_>],
    answered: &mut bool,
) -> Result<bool, ConnectionError> {
    let pipelining = connection.offered.pipelining && mail.config.pipelining;
    let timeouts = &mail.config.timeouts;
    let envelope = mail.submission.envelope();
    let order: Vec<usize> = (0..batch.len())
        .filter(|at| batch[*at].is(&State::Owed))
        .collect();
    let reset = std::mem::take(&mut connection.reset_needed);

    connection.output.clear();
    if reset {
        connection.output.extend_from_slice(b"RSET\r\n");
        if !pipelining {
            connection
                .write_output(Stage::Reset, timeouts.hello)
                .await?;
            reset_reply(connection, mail).await?;
        }
    }
    let sender = path(&envelope.sender, parameters.smtputf8);
    command::mail(
        &mut connection.output,
        &sender,
        parameters,
        envelope.report_return,
        envelope.envelope_id.as_deref(),
    );
    let mut mail_reply = None;
    if !pipelining {
        connection.write_output(Stage::Mail, timeouts.mail).await?;
        mail_reply = Some(answer(connection, Stage::Mail, timeouts.mail).await?);
        *answered = true;
    }

    let mut next = 0;
    let mut data_reply = None;
    while next < order.len() && mail_reply.as_ref().is_none_or(Reply::is_positive) {
        let group = next;
        while next < order.len()
            && next - group < GROUP_RECIPIENTS
            && connection.output.len() < GROUP_BYTES
            && (pipelining || next == group)
        {
            let recipient = batch[order[next]].recipient;
            let to = path(&recipient.address, parameters.smtputf8);
            command::rcpt(&mut connection.output, &to, recipient, &connection.offered);
            next += 1;
        }
        let with_data = pipelining && next == order.len();
        if with_data {
            connection.output.extend_from_slice(b"DATA\r\n");
        }
        connection.write_output(Stage::Rcpt, timeouts.rcpt).await?;
        if pipelining && mail_reply.is_none() {
            if reset {
                reset_reply(connection, mail).await?;
            }
            mail_reply = Some(answer(connection, Stage::Mail, timeouts.mail).await?);
            *answered = true;
        }
        for at in &order[group..next] {
            let reply = answer(connection, Stage::Rcpt, timeouts.rcpt).await?;
            recipient_answered(&mut batch[..], *at, &reply, &connection.host)?;
        }
        if with_data {
            data_reply = Some(answer(connection, Stage::Data, timeouts.data_start).await?);
        }
    }
    // A sender that was refused leaves nothing to reset; in a group RSET costs nothing, so there it is said in any case.
    let open = pipelining || mail_reply.as_ref().is_some_and(Reply::is_positive);
    if let Some(reply) = mail_reply.filter(|reply| !reply.is_positive()) {
        mail_refused(batch, &order, &reply, &connection.host)?;
    }
    data_answered(connection, mail, batch, data_reply, open).await
}

/// The address as it is said to this server.
fn path(address: &str, smtputf8: bool) -> Cow<'_, str> {
    if smtputf8 {
        Cow::Borrowed(address)
    } else {
        // Those that have no such form were refused before.
        in_ascii(address).unwrap_or(Cow::Borrowed(address))
    }
}

/// A reply; 421 means that the server is about to close, whatever was asked.
async fn answer(
    connection: &mut Connection,
    stage: Stage,
    limit: Duration,
) -> Result<Reply, ConnectionError> {
    let reply = connection.reply(stage, limit).await?;
    if reply.code == 421 {
        return Err(ConnectionError::Refused(stage, reply));
    }
    Ok(reply)
}

async fn reset_reply(connection: &mut Connection, mail: &Mail<'_>) -> Result<(), ConnectionError> {
    let reply = answer(connection, Stage::Reset, mail.config.timeouts.hello).await?;
    if reply.is_positive() {
        Ok(())
    } else {
        Err(ConnectionError::Unexpected(Stage::Reset, reply))
    }
}

/// What the answer to one RCPT means.
fn recipient_answered(
    batch: &mut [Rcpt<'_>],
    at: usize,
    reply: &Reply,
    host: &str,
) -> Result<(), ConnectionError> {
    if reply.is_positive() {
        batch[at].state = State::Accepted;
        return Ok(());
    }
    if !reply.is_negative() {
        return Err(ConnectionError::Unexpected(Stage::Rcpt, reply.clone()));
    }
    let any_accepted = batch.iter().any(|rcpt| rcpt.is(&State::Accepted));
    batch[at].state = if any_accepted && says_too_many(reply) {
        State::NextTime
    } else {
        State::Done(refused(reply, Stage::Rcpt, host))
    };
    Ok(())
}

/// RFC 5321 4.5.3.1.10: 452, and 552 from those who follow RFC 821. A status tells it from a full mailbox.
fn says_too_many(reply: &Reply) -> bool {
    match (reply.code, reply.status) {
        (452 | 552, Some(status)) => (status.subject, status.detail) == (5, 3),
        (452 | 552, None) => true,
        _ => false,
    }
}

/// No sender, no recipients: what the server said to RCPT behind a refused MAIL means nothing.
fn mail_refused(
    batch: &mut [Rcpt<'_>],
    order: &[usize],
    reply: &Reply,
    host: &str,
) -> Result<(), ConnectionError> {
    if !reply.is_negative() {
        return Err(ConnectionError::Unexpected(Stage::Mail, reply.clone()));
    }
    let outcome = refused(reply, Stage::Mail, host);
    for at in order {
        batch[*at].state = State::Done(outcome.clone());
    }
    Ok(())
}

/// DATA, if it was not said before, and what its answer means in the light of all others.
async fn data_answered(
    connection: &mut Connection,
    mail: &Mail<'_>,
    batch: &mut [Rcpt<'_>],
    reply: Option<Reply>,
    open: bool,
) -> Result<bool, ConnectionError> {
    let limit = mail.config.timeouts.data_start;
    let accepted = batch.iter().any(|rcpt| rcpt.is(&State::Accepted));
    let reply = match reply {
        Some(reply) => reply,
        None if accepted => {
            connection.write(b"DATA\r\n", Stage::Data, limit).await?;
            answer(connection, Stage::Data, limit).await?
        }
        None => {
            connection.reset_needed = open;
            return Ok(false);
        }
    };
    match (reply.code, accepted) {
        (354, true) => Ok(true),
        (354, false) => {
            // RFC 2920 3.1: nobody is to get it, and the server waits for it all the same; an empty message ends that.
            let reply = connection.command(b".\r\n", Stage::Data, limit).await;
            connection.finished = !reply.is_ok_and(|reply| reply.code != 421);
            Ok(false)
        }
        _ if reply.is_negative() => {
            connection.reset_needed = true;
            decide(
                batch,
                &State::Accepted,
                &refused(&reply, Stage::Data, &connection.host),
            );
            Ok(false)
        }
        _ => Err(ConnectionError::Unexpected(Stage::Data, reply)),
    }
}
