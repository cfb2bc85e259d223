//! What goes wrong between us and the broker. Never carries an address with its password.

use std::{future::Future, time::Duration};

use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};

/// Why a link could not be built.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("not an amqp:// or amqps:// address")]
    Address,
    #[error("the broker refuses to let us in: {0}")]
    Refused(AMQPError),
    #[error("{what} exists with other arguments than ours: {answer}")]
    Differs { what: String, answer: AMQPError },
    #[error("{0:?} is longer than the 255 bytes of an AMQP name")]
    Name(String),
    #[error("{what} took longer than {limit:?}")]
    Timeout { what: &'static str, limit: Duration },
    #[error("the broker ended {0}")]
    Ended(&'static str),
    #[error("TLS to the broker: {0}")]
    Tls(#[from] super::TlsError),
    #[error(
        "{0} does not exist, and this user may not declare it: import the definitions of the topology"
    )]
    Missing(String),
    #[error(transparent)]
    Amqp(#[from] lapin::Error),
}

impl Error {
    /// What happened while a connection was opened: here a 403 or 530 is about us, not about a queue.
    pub(super) fn while_opening(error: lapin::Error) -> Self {
        match answer(&error) {
            Some(answer) if is_refusal(answer.kind()) => Self::Refused(answer.clone()),
            _ => Self::Amqp(error),
        }
    }

    /// What happened while `what` was declared.
    pub(super) fn while_declaring(what: &str, error: lapin::Error) -> Self {
        let precondition = AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED);
        match answer(&error) {
            Some(answer) if *answer.kind() == precondition => Self::Differs {
                what: what.to_owned(),
                answer: answer.clone(),
            },
            _ => Self::Amqp(error),
        }
    }
}

impl Error {
    /// The broker says that something does not exist.
    pub(super) fn is_not_found(&self) -> bool {
        self.is_soft(AMQPSoftError::NOTFOUND)
    }

    /// The broker says that we may not do this.
    pub(super) fn is_forbidden(&self) -> bool {
        self.is_soft(AMQPSoftError::ACCESSREFUSED)
    }

    fn is_soft(&self, kind: AMQPSoftError) -> bool {
        let Self::Amqp(error) = self else {
            return false;
        };
        answer(error).is_some_and(|answer| *answer.kind() == AMQPErrorKind::Soft(kind))
    }
}

/// Bounds a conversation with the broker: it may be stopped in the middle of one.
pub(super) async fn within<T, E>(
    what: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Error>
where
    Error: From<E>,
{
    match tokio::time::timeout(limit, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Error::Timeout { what, limit }),
    }
}

fn answer(error: &lapin::Error) -> Option<&AMQPError> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(answer) => Some(answer),
        _ => None,
    }
}

/// 403: user or password; 530: no such virtual host, or no right to it.
fn is_refusal(kind: &AMQPErrorKind) -> bool {
    *kind == AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)
        || *kind == AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protocol(kind: AMQPErrorKind) -> lapin::Error {
        lapin::ErrorKind::ProtocolError(AMQPError::new(kind, "as the broker says".into())).into()
    }

    #[test]
    fn a_refused_login_is_told_from_a_lost_connection() {
        let refused = protocol(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED));
        assert!(matches!(Error::while_opening(refused), Error::Refused(_)));
        let no_vhost = protocol(AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED));
        assert!(matches!(Error::while_opening(no_vhost), Error::Refused(_)));
        let lost = lapin::Error::from(std::io::Error::other("reset"));
        assert!(matches!(Error::while_opening(lost), Error::Amqp(_)));
    }

    #[test]
    fn other_arguments_are_named_with_the_queue() {
        let differs = protocol(AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED));
        let error = Error::while_declaring("pombo.spool.bulk", differs);
        assert!(error.to_string().starts_with("pombo.spool.bulk exists"));
    }
}
