//! The content, the final dot, and what its answer means: the part of a transaction that cannot be taken back.

use std::time::Duration;

use pombo_proto::{
    outcome::{Delivery, Diagnosis, EnhancedStatus, NdrReason, Outcome, Relayed},
    time::UnixMillis,
};
use tokio::time::{Instant, timeout};

use super::{
    body::Chunk,
    connection::Connection,
    reply::Reply,
    status::{ConnectionError, Stage, refused},
    transaction::{Break, Mail, Rcpt, State, decide},
};

/// The right to send is asked for again if the dot could not be written within this time of the last answer; well within the
/// time for which an answer holds.
const GO_LASTS: Duration = Duration::from_secs(1);
/// A server that hangs up while it is sent content may have said why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The content and the final dot, written completely when this returns Ok.
pub(super) async fn send(connection: &mut Connection, mail: &Mail<'_>) -> Result<(), Break> {
    let limit = mail.config.timeouts.data_block;
    let mut scratch = Vec::new();
    let mut chunks = mail.body.chunks();
    loop {
        let Chunk { bytes, is_last } = chunks.next(&mut scratch);
        if is_last {
            return send_end(connection, mail, bytes).await;
        }
        let written = connection.write(bytes, Stage::Content, limit);
        mail.unless_cancelled(written)
            .await
            .ok_or(Break::Cancelled)??;
    }
}

/// The last piece and the dot, once we may.
async fn send_end(connection: &mut Connection, mail: &Mail<'_>, last: &[u8]) -> Result<(), Break> {
    let deadline = Instant::now() + mail.config.timeouts.data_block;
    let mut written = 0;
    loop {
        match mail.unless_cancelled(mail.submission.may_finish()).await {
            None => return Err(Break::Cancelled),
            Some(false) => return Err(Break::NotAllowed),
            Some(true) => {}
        }
        let write = connection.write_on([last, mail.body.terminator()], &mut written);
        match mail.unless_cancelled(timeout(GO_LASTS, write)).await {
            None => return Err(Break::Cancelled),
            Some(Ok(Ok(()))) => return Ok(()),
            Some(Ok(Err(error))) => return Err(ConnectionError::Lost(Stage::Content, error).into()),
            Some(Err(_)) if Instant::now() >= deadline => {
                return Err(ConnectionError::Timeout(Stage::Content).into());
            }
            // The server is slow to take it, and the dot is still here.
            Some(Err(_)) => {}
        }
    }
}

/// Why a server hung up in the middle of the content, if it said so.
pub(super) async fn last_words(connection: &mut Connection) -> Option<Reply> {
    let reply = connection.reply(Stage::Content, LAST_WORDS).await.ok()?;
    (reply.is_negative() && reply.code != 421).then_some(reply)
}

/// The answer to the final dot, and what becomes of everybody who was accepted.
pub(super) async fn finish(connection: &mut Connection, mail: &Mail<'_>, batch: &mut [Rcpt<'_>]) {
    let timeouts = &mail.config.timeouts;
    let reply = {
        let reply = connection.reply(Stage::End, timeouts.data_end);
        tokio::pin!(reply);
        tokio::select! {
            biased;
            reply = &mut reply => reply,
            // Cancelled too late: the reply alone says what happened, but nobody waits ten minutes for it any more.
            () = mail.submission.cancelled() => match timeout(timeouts.after_cancel, &mut reply).await {
                Ok(reply) => reply,
                Err(_) => Err(ConnectionError::Timeout(Stage::End)),
            },
        }
    };
    match reply {
        Ok(reply) if reply.is_positive() => delivered(connection, batch, &reply),
        Ok(reply) if reply.is_negative() => {
            connection.finished |= reply.code == 421;
            decide(
                batch,
                &State::Accepted,
                &refused(&reply, Stage::End, &connection.host),
            );
        }
        Ok(reply) => unknown(
            connection,
            batch,
            &ConnectionError::Unexpected(Stage::End, reply),
        ),
        Err(error) => unknown(connection, batch, &error),
    }
}

fn delivered(connection: &Connection, batch: &mut [Rcpt<'_>], reply: &Reply) {
    let delivery = Delivery::new(UnixMillis::now(), &*connection.host, reply.words());
    for rcpt in batch {
        if rcpt.is(&State::Accepted) {
            // Who asked to hear of success will: from the server, if it took NOTIFY with it, or from us.
            let relayed = match connection.offered.dsn {
                true => Relayed::Promised,
                false => Relayed::Unreported,
            };
            rcpt.state = State::Done(Outcome::Delivered(Delivery {
                relayed,
                ..delivery.clone()
            }));
        }
    }
}

/// The dot is out and nobody knows what became of it.
fn unknown(connection: &mut Connection, batch: &mut [Rcpt<'_>], error: &ConnectionError) {
    connection.finished = true;
    let text = format!(
        "{}: {error}; the message may have been received",
        connection.place()
    );
    let diagnosis = Diagnosis {
        remote: Some(connection.host.to_string()),
        ..Diagnosis::new(
            EnhancedStatus::new(4, 4, 2),
            NdrReason::TransferFailed,
            text,
        )
    };
    decide(batch, &State::Accepted, &Outcome::InDoubt(diagnosis));
}
