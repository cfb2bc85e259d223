//! What a reply or a failure means for a recipient. Data, not errors: decided by code, stage and kind, never by text.

use std::io;

use pombo_proto::{
    outcome::{Diagnosis, EnhancedStatus, NdrReason, Outcome},
    scram,
};

use super::{
    dns,
    reply::{Malformed, Reply},
};

/// What was being done or waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Connect,
    Greeting,
    Hello,
    StartTls,
    Auth,
    Reset,
    Mail,
    Rcpt,
    Data,
    Content,
    End,
    Quit,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Greeting => "waiting for the greeting",
            Self::Hello => "saying EHLO",
            Self::StartTls => "saying STARTTLS",
            Self::Auth => "authenticating",
            Self::Reset => "saying RSET",
            Self::Mail => "giving the sender",
            Self::Rcpt => "giving recipients",
            Self::Data => "saying DATA",
            Self::Content => "sending the content",
            Self::End => "waiting for the answer to the final dot",
            Self::Quit => "saying QUIT",
        })
    }
}

/// Why a connection could not be made, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error("no answer in time while {0}")]
    Timeout(Stage),
    #[error("the connection was lost while {0}: {1}")]
    Lost(Stage, io::Error),
    #[error("the server closed the connection while {0}")]
    Closed(Stage),
    #[error("the server refused while {0}")]
    Refused(Stage, Reply),
    #[error("not an answer of SMTP while {0}: {1}")]
    Malformed(Stage, Malformed),
    #[error("an unexpected answer while {0}")]
    Unexpected(Stage, Reply),
    #[error("TLS failed: {0}")]
    Tls(io::Error),
    #[error("TLS is required, and the server does not offer it")]
    TlsNotOffered,
    #[error("the server said more before TLS than it was asked")]
    Injected,
    #[error("no name to verify the server by")]
    NoTlsName,
    #[error("the server offers no mechanism of authentication that is known here")]
    AuthNotOffered,
    #[error("authentication failed: {0}")]
    Scram(#[from] scram::Error),
}

impl ConnectionError {
    /// The server said that it never takes mail.
    pub(super) fn is_permanent(&self) -> bool {
        match self {
            Self::Refused(Stage::Greeting | Stage::Hello, reply) => reply.is_permanent(),
            _ => false,
        }
    }

    fn status(&self) -> EnhancedStatus {
        match self {
            Self::Connect(_) => EnhancedStatus::new(4, 4, 1),
            Self::Timeout(Stage::Connect | Stage::Greeting) => EnhancedStatus::new(4, 4, 1),
            Self::Timeout(_) | Self::Lost(..) | Self::Closed(_) => EnhancedStatus::new(4, 4, 2),
            Self::Refused(stage, reply) => status_of(reply, *stage),
            Self::Malformed(..) | Self::Unexpected(..) => EnhancedStatus::new(4, 5, 0),
            Self::Tls(_) | Self::Injected | Self::NoTlsName => EnhancedStatus::new(4, 7, 5),
            Self::TlsNotOffered => EnhancedStatus::new(4, 7, 4),
            Self::AuthNotOffered => EnhancedStatus::new(4, 7, 4),
            Self::Scram(_) => EnhancedStatus::new(4, 7, 8),
        }
    }

    /// As a diagnosis; `remote` is the server, `at` its name and address for our own words.
    pub(super) fn diagnosis(&self, remote: &str, at: &str, permanent: bool) -> Diagnosis {
        let mut status = self.status();
        status.class = if permanent { 5 } else { 4 };
        let diagnosis = Diagnosis::new(status, reason(status), format!("{at}: {self}"));
        match self {
            Self::Refused(_, reply) | Self::Unexpected(_, reply) => {
                diagnosis.said_by(remote, reply.words())
            }
            _ => Diagnosis {
                remote: Some(remote.to_owned()),
                ..diagnosis
            },
        }
    }
}

/// Why a whole destination did not take the message.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) diagnosis: Diagnosis,
    /// It never will.
    pub(super) permanent: bool,
    /// No host of it could be reached.
    pub(super) destination_down: bool,
}

impl Failure {
    /// It never will.
    pub(super) fn permanent(status: (u16, u16), text: impl Into<String>) -> Self {
        let status = EnhancedStatus::new(5, status.0, status.1);
        Self {
            diagnosis: Diagnosis::new(status, reason(status), text),
            permanent: true,
            destination_down: false,
        }
    }

    /// Later perhaps.
    pub(super) fn temporary(
        status: (u16, u16),
        destination_down: bool,
        text: impl Into<String>,
    ) -> Self {
        let status = EnhancedStatus::new(4, status.0, status.1);
        Self {
            diagnosis: Diagnosis::new(status, reason(status), text),
            permanent: false,
            destination_down,
        }
    }

    /// A name could not be looked up. `status`: the detail to use where the name does not exist.
    pub(super) fn lookup(error: &dns::Error, name: &str, status: (u16, u16)) -> Self {
        match error {
            dns::Error::NoSuchName | dns::Error::NoRecords => {
                Self::permanent(status, format!("{name}: {error}"))
            }
            dns::Error::Temporary(_) => Self::temporary((4, 3), true, format!("{name}: {error}")),
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        if self.permanent {
            Outcome::Failed(self.diagnosis.clone())
        } else {
            Outcome::Deferred {
                diagnosis: self.diagnosis.clone(),
                destination_down: self.destination_down,
            }
        }
    }
}

/// What a 4xx or 5xx reply means for a recipient.
pub(super) fn refused(reply: &Reply, stage: Stage, remote: &str) -> Outcome {
    let status = status_of(reply, stage);
    let what = match stage {
        Stage::Mail => "the sender was refused",
        Stage::Rcpt => "the recipient was refused",
        _ => "the message was refused",
    };
    let diagnosis = Diagnosis::new(status, reason(status), what).said_by(remote, reply.words());
    if reply.is_permanent() {
        Outcome::Failed(diagnosis)
    } else {
        Outcome::Deferred {
            diagnosis,
            destination_down: false,
        }
    }
}

/// The enhanced status of a negative reply: its own, if it agrees with the code, else what code and stage say.
pub(super) fn status_of(reply: &Reply, stage: Stage) -> EnhancedStatus {
    let class = if reply.is_permanent() { 5 } else { 4 };
    if let Some(status) = reply.status.filter(|status| status.class != 2) {
        // Where code and status disagree the code decides (RFC 2034 section 4 wants them to agree).
        return EnhancedStatus { class, ..status };
    }
    let (subject, detail) = match (reply.code, stage) {
        (421, _) => (3, 2),
        (450, Stage::Rcpt) => (2, 1),
        (452, Stage::Rcpt) => (5, 3),
        (452, _) => (3, 1),
        (454, _) => (7, 0),
        (500 | 502 | 503, _) => (5, 1),
        (501 | 553, Stage::Rcpt) => (1, 3),
        (501 | 553, Stage::Mail) => (1, 7),
        (455 | 501 | 504 | 555, _) => (5, 4),
        (521, _) | (554, Stage::Greeting) => (3, 2),
        (530, _) => (7, 0),
        (534, _) => (7, 9),
        (535, _) => (7, 8),
        (538, _) => (7, 11),
        (550, Stage::Rcpt) => (1, 1),
        (550, _) => (7, 1),
        (551, _) => (1, 6),
        (552, Stage::Rcpt) => (2, 2),
        (552, _) => (3, 4),
        (556, _) => (1, 10),
        _ => (0, 0),
    };
    EnhancedStatus::new(class, subject, detail)
}

fn reason(status: EnhancedStatus) -> NdrReason {
    match status.subject {
        4 => NdrReason::TransferFailed,
        6 => NdrReason::ConversionNotPerformed,
        7 => NdrReason::RestrictedDelivery,
        _ if status.class == 4 => NdrReason::TransferFailed,
        _ => NdrReason::TransferImpossible,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(line: &str, stage: Stage) -> String {
        let (reply, _) = Reply::parse(format!("{line}\r\n").as_bytes())
            .unwrap()
            .unwrap();
        status_of(&reply, stage).to_string()
    }

    #[test]
    fn a_reply_without_enhanced_status_gets_one_by_code_and_stage() {
        assert_eq!(status("550 no such user", Stage::Rcpt), "5.1.1");
        assert_eq!(status("550 policy", Stage::End), "5.7.1");
        assert_eq!(status("552 too large", Stage::Mail), "5.3.4");
        assert_eq!(status("552 full", Stage::Rcpt), "5.2.2");
        assert_eq!(status("452 too many", Stage::Rcpt), "4.5.3");
        assert_eq!(status("421 going down", Stage::Mail), "4.3.2");
        assert_eq!(status("599 what", Stage::Mail), "5.0.0");
        assert_eq!(status("499 what", Stage::Mail), "4.0.0");
    }

    #[test]
    fn the_code_decides_where_the_enhanced_status_disagrees() {
        assert_eq!(status("550 4.2.2 full", Stage::Rcpt), "5.2.2");
        assert_eq!(status("450 5.7.1 greylisted", Stage::Rcpt), "4.7.1");
        assert_eq!(status("550 2.1.5 ok", Stage::Rcpt), "5.1.1");
        assert_eq!(status("550 5.7.509 no", Stage::Rcpt), "5.7.509");
    }
}
