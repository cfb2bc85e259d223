//! SubmitMessage by `pombo submit`: this spooler is the door.

use std::time::Duration;

use bytes::Bytes;
use pombo_proto::{
    control::{Answer, ControlError, Submission},
    frame,
    ids::MessageId,
    link::{PublishError, SpoolPublish},
    message::{Body, Content, Envelope, MessageClass, RECIPIENTS_MAX, Recipient, SMTP, Source},
    outcome::{Diagnosis, EnhancedStatus, NdrReason},
    time::UnixMillis,
};

use super::Desk;

/// An unknown confirm is cleared by publishing the same id again, marked; so often, with a pause between.
const PUBLISH_TRIES: u32 = 5;
const PUBLISH_PAUSE: Duration = Duration::from_secs(1);
/// A large body goes into the blob store in such pieces.
const PIECE_BYTES: usize = 1024 * 1024;
/// RFC 5321 4.5.3.1.3: a path has at most 256 octets.
const ADDRESS_BYTES_MAX: usize = 256;

/// Why a message was not accepted.
#[derive(Debug)]
pub(super) struct Failure {
    pub error: ControlError,
    /// Something may have been written into the spool.
    pub written: bool,
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self {
            error,
            written: false,
        }
    }
}

pub(super) async fn submit(
    desk: &Desk,
    id: MessageId,
    submission: Submission,
    body: Bytes,
) -> Result<Answer, Failure> {
    let now = UnixMillis::now();
    let recipients = recipients(&submission)?;
    let sender = if submission.sender.is_empty() {
        String::new()
    } else {
        mailbox(&submission.sender)?
    };
    let client: String = submission
        .client
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    let trace = received(&desk.config.spooler.host(), &client, id, now);
    let eight_bit = body.iter().any(|byte| *byte >= 0x80);
    let size = (trace.len() + body.len()) as u64;
    let inline = trace.len() + body.len() <= desk.config.blobs.inline_max;
    let utf8 = |text: &str| !text.is_ascii();
    let envelope = Envelope {
        id,
        class: MessageClass::Note,
        content: Content {
            eight_bit,
            smtputf8: utf8(&sender) || recipients.iter().any(|it| utf8(&it.address)),
        },
        sender,
        recipients,
        priority: submission.priority,
        submitted_at: now,
        deferred_until: submission.at,
        expires_at: submission.expires,
        report_return: submission.report_return,
        envelope_id: None,
        source: Source {
            door: "submit".to_owned(),
            client,
            about: None,
        },
        body: if inline {
            Body::Inline { size }
        } else {
            Body::Blob { size }
        },
        properties: Vec::new(),
    };
    let message = if inline {
        frame::encode_message(envelope, &[trace.as_bytes(), &body[..]].concat())
    } else {
        let kept = keep(desk, id, trace, body).await;
        kept.map_err(|error| ControlError::Later(error.to_string()))?;
        frame::encode_message(envelope, &[])
    };
    let published = publish(desk, id, &message).await;
    // The blob of a derived id may belong to an earlier copy of the same message.
    if let (Err(Failure { written: false, .. }), false, false) =
        (&published, inline, id.is_derived())
        && let Err(error) = desk.blobs.delete(id).await
    {
        tracing::warn!(id = %id, %error, "a body without a message stays in the blob store");
    }
    published.map(|()| Answer::Accepted { id })
}

/// In pieces: a large body is in memory once.
async fn keep(
    desk: &Desk,
    id: MessageId,
    trace: String,
    body: Bytes,
) -> Result<(), pombo_proto::blob::Error> {
    let mut upload = desk.blobs.begin(id, u64::MAX).await?;
    upload.part(trace.into()).await?;
    for start in (0..body.len()).step_by(PIECE_BYTES) {
        let end = body.len().min(start + PIECE_BYTES);
        upload.part(body.slice(start..end)).await?;
    }
    upload.finish().await.map(drop)
}

async fn publish(
    desk: &Desk,
    id: MessageId,
    message: &pombo_proto::message::Message,
) -> Result<(), Failure> {
    let mut marked = false;
    for attempt in 1.. {
        let publish = SpoolPublish {
            id,
            priority: message.envelope.priority,
            encoded: message.encoded.clone(),
            marked,
        };
        let why = match desk.link.publish(publish).await {
            Ok(()) => return Ok(()),
            // Once the first copy may be there, only a confirm ends the uncertainty.
            Err(PublishError::NotConnected | PublishError::Refused(_)) if !marked => {
                return Err(ControlError::Later("the broker takes nothing now".to_owned()).into());
            }
            Err(error) => error,
        };
        marked = true;
        if attempt == PUBLISH_TRIES {
            let text = format!("{why}; the message {id} may have been accepted");
            return Err(Failure {
                error: ControlError::Later(text),
                written: true,
            });
        }
        tokio::time::sleep(PUBLISH_PAUSE).await;
    }
    Ok(())
}

fn recipients(submission: &Submission) -> Result<Vec<Recipient>, ControlError> {
    let count = submission.recipients.len();
    if count == 0 {
        return Err(refused(
            EnhancedStatus::new(5, 5, 4),
            "there are no recipients",
        ));
    }
    if count > RECIPIENTS_MAX {
        let text = format!("{count} recipients, {RECIPIENTS_MAX} are allowed");
        return Err(refused(EnhancedStatus::new(5, 5, 3), &text));
    }
    let typed = |text: &String| {
        let recipient = match text.split_once(':') {
            Some((kind, address)) if is_type(kind) && !kind.eq_ignore_ascii_case(SMTP) => {
                Recipient {
                    address_type: kind.to_ascii_uppercase(),
                    ..Recipient::smtp(bounded(address)?)
                }
            }
            Some((kind, address)) if is_type(kind) => Recipient::smtp(mailbox(address)?),
            _ => Recipient::smtp(mailbox(text)?),
        };
        Ok(Recipient {
            notify: submission.notify,
            ..recipient
        })
    };
    submission.recipients.iter().map(typed).collect()
}

fn is_type(text: &str) -> bool {
    !text.is_empty() && text.len() <= 16 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn bounded(address: &str) -> Result<String, ControlError> {
    let clean = !address.is_empty()
        && address.len() <= ADDRESS_BYTES_MAX
        && !address.chars().any(char::is_control);
    if clean {
        Ok(address.to_owned())
    } else {
        Err(refused(EnhancedStatus::new(5, 1, 3), "not an address"))
    }
}

/// A mailbox with a domain; brackets are taken off, the domain is put in lower case.
fn mailbox(text: &str) -> Result<String, ControlError> {
    let text = text.trim().trim_start_matches('<').trim_end_matches('>');
    let address = bounded(text)?;
    let bad = || {
        refused(
            EnhancedStatus::new(5, 1, 3),
            &format!("not a mailbox: {text}"),
        )
    };
    let (local, domain) = address.rsplit_once('@').ok_or_else(bad)?;
    let quoted = local.starts_with('"') && local.ends_with('"') && local.len() > 2;
    let odd = |c: char| c.is_whitespace() || matches!(c, '<' | '>' | '(' | ')' | ',' | ';' | '"');
    let literal = domain.starts_with('[') && domain.ends_with(']');
    let name = !domain.is_empty()
        && !domain.starts_with('.')
        && !domain.contains("..")
        && !domain.contains(|c: char| odd(c) || matches!(c, '[' | ']' | '\\' | '@'));
    if local.is_empty() || (!quoted && local.contains(odd)) || !(literal || name) {
        return Err(bad());
    }
    Ok(format!("{local}@{}", domain.to_lowercase()))
}

fn refused(status: EnhancedStatus, text: &str) -> ControlError {
    ControlError::Refused(Box::new(Diagnosis::new(
        status,
        NdrReason::TransferImpossible,
        text,
    )))
}

/// RFC 5321 4.4: whoever takes responsibility says so in front.
fn received(host: &str, client: &str, id: MessageId, now: UnixMillis) -> String {
    let date = mail_parser::DateTime::from_timestamp((now.0 / 1000) as i64).to_rfc822();
    let safe: String = client
        .chars()
        .filter(|c| c.is_ascii_graphic() && !"()\\".contains(*c))
        .collect();
    format!("Received: by {host} (submitted by {safe})\r\n\tid {id}; {date}\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mailboxes_are_normalised_and_nonsense_is_refused() {
        assert_eq!(mailbox(" <Ann@EXAMPLE.org> ").unwrap(), "Ann@example.org");
        assert_eq!(mailbox("\"a b\"@x.org").unwrap(), "\"a b\"@x.org");
        assert_eq!(mailbox("a@[127.0.0.1]").unwrap(), "a@[127.0.0.1]");
        let hostile = [
            "",
            "a",
            "@x",
            "a@",
            "a b@x.org",
            "a@x..org",
            "a@x\r\nRCPT TO:<b@y>",
            "a@x>,<b@y",
        ];
        for text in hostile
            .iter()
            .map(ToString::to_string)
            .chain([format!("{}@x.org", "a".repeat(300))])
        {
            assert!(mailbox(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn other_address_types_pass_through() {
        let submission = Submission {
            recipients: vec![
                "fax:+1 555".to_owned(),
                "smtp:a@X.org".to_owned(),
                "b@y.org".to_owned(),
            ],
            ..Submission::default()
        };
        let recipients = recipients(&submission).unwrap();
        let all: Vec<_> = recipients
            .iter()
            .map(|it| (it.address_type.as_str(), it.address.as_str()))
            .collect();
        assert_eq!(
            all,
            [("FAX", "+1 555"), ("SMTP", "a@x.org"), ("SMTP", "b@y.org")]
        );
    }
}
