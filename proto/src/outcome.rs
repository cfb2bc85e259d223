//! What became of a recipient's copy. Data, not errors.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ids::RecipientIndex, time::UnixMillis};

/// An RFC 3463 enhanced status code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EnhancedStatus {
    /// 2 success, 4 persistent transient failure, 5 permanent failure.
    pub class: u8,
    /// 0..=7 (RFC 3463 section 3): address, mailbox, system, network, protocol, content, policy.
    pub subject: u16,
    /// 0..=999, by subject.
    pub detail: u16,
}

impl EnhancedStatus {
    /// As in `5.1.1`.
    pub const fn new(class: u8, subject: u16, detail: u16) -> Self {
        Self {
            class,
            subject,
            detail,
        }
    }
}

impl std::fmt::Display for EnhancedStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

impl std::fmt::Debug for EnhancedStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// PR_NDR_REASON_CODE: the X.411 non-delivery reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NdrReason {
    /// 0: communication with the other system failed.
    TransferFailed,
    /// 1: the other system refuses, or the recipient is unknown.
    TransferImpossible,
    /// 2: it cannot be converted into what the other system takes.
    ConversionNotPerformed,
    /// 3: the report's recipient, a physical rendition. Kept for completeness.
    PhysicalRendition,
    /// 5: a rule or a person forbids it.
    RestrictedDelivery,
}

impl NdrReason {
    /// The number in PR_NDR_REASON_CODE.
    pub fn code(self) -> i32 {
        match self {
            Self::TransferFailed => 0,
            Self::TransferImpossible => 1,
            Self::ConversionNotPerformed => 2,
            Self::PhysicalRendition => 3,
            Self::RestrictedDelivery => 5,
        }
    }
}

/// Why a copy was not delivered, or not yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The enhanced status code.
    pub status: EnhancedStatus,
    /// The reason for the report.
    pub reason: NdrReason,
    /// What went wrong, in our words. At most [`TEXT_BYTES_MAX`].
    pub text: String,
    /// The remote server that said so, by name or address.
    pub remote: Option<String>,
    /// The remote server's own words, code first. At most [`TEXT_BYTES_MAX`].
    pub reply: Option<String>,
}

/// Longer texts of a remote party are cut.
pub const TEXT_BYTES_MAX: usize = 1024;

impl Diagnosis {
    /// A diagnosis in our own words.
    pub fn new(status: EnhancedStatus, reason: NdrReason, text: impl Into<String>) -> Self {
        Self {
            status,
            reason,
            text: clipped(text.into()),
            remote: None,
            reply: None,
        }
    }

    /// With a remote server's own words.
    pub fn said_by(mut self, remote: impl Into<String>, reply: impl Into<String>) -> Self {
        self.remote = Some(clipped(remote.into()));
        self.reply = Some(clipped(reply.into()));
        self
    }
}

fn clipped(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    }
    text
}

/// What a transport says of one recipient when SubmitMessage returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// PR_RESPONSIBILITY = TRUE: sent, or delivered.
    Delivered(Delivery),
    /// PR_RESPONSIBILITY = TRUE: tried, and never will be. Ends in a report of non-delivery.
    Failed(Diagnosis),
    /// Tried; worth trying again through this transport, with END_RESEND_LATER.
    Deferred {
        /// Why.
        diagnosis: Diagnosis,
        /// The destination itself cannot be reached, so others to it need not try before a probe succeeds.
        destination_down: bool,
    },
    /// PR_RESPONSIBILITY = FALSE: not tried; the next transport may.
    Left,
    /// PR_RESPONSIBILITY = TRUE and END_DONT_RESEND: the transport keeps it and will say SENTDEFERRED.
    Kept,
    /// The point of no return was passed, and what became of it will never be known: it may have been sent. It is counted, and tried
    /// again or held for a person, as the spooler's configuration says. A peer of version 1 is told [`Outcome::Deferred`].
    InDoubt(Diagnosis),
}

/// Where a copy went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// PR_DELIVER_TIME.
    pub at: UnixMillis,
    /// The remote server or mailbox.
    pub remote: String,
    /// What it said. At most [`TEXT_BYTES_MAX`].
    pub reply: String,
    /// Who tells the sender of it, if that was asked for.
    pub relayed: Relayed,
}

/// Whether a copy was delivered or handed on, and so what a sender who asked for NOTIFY=SUCCESS is told (RFC 3461, 5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relayed {
    /// It is in its mailbox, or what counts as one: we report `delivered`.
    #[default]
    No,
    /// Handed to a system that reports nothing: we report `relayed`.
    Unreported,
    /// Handed to a server that took the wish with it (DSN): it reports, and we say nothing.
    Promised,
}

impl Delivery {
    /// A delivery, with its texts bounded.
    pub fn new(at: UnixMillis, remote: impl Into<String>, reply: impl Into<String>) -> Self {
        let (remote, reply) = (clipped(remote.into()), clipped(reply.into()));
        Self {
            at,
            remote,
            reply,
            relayed: Relayed::No,
        }
    }
}

/// One recipient's outcome, by index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipientOutcome {
    /// Which recipient.
    pub recipient: RecipientIndex,
    /// What became of it.
    pub outcome: Outcome,
}

/// What SubmitMessage returns (the table in the contract).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubmitResult {
    /// S_OK: the outcomes say what became of the recipients. EndMessage follows.
    Ok(Vec<RecipientOutcome>),
    /// MAPI_E_BUSY: nothing was done; the same call later.
    Busy,
    /// MAPI_E_NOT_ME: nothing was done; the next transport.
    NotMe,
    /// MAPI_E_CANCEL: do not send it after all. Recipients already sent to are named all the same.
    Cancelled(Vec<RecipientOutcome>),
    /// MAPI_E_WAIT: offer it again after this long.
    Wait(Duration, Option<Diagnosis>),
    /// MAPI_E_NETWORK_ERROR: as WAIT, because the network failed; the destination is given a rest.
    NetworkError(Duration, Diagnosis),
    /// An error after SpoolerNotify(CRITICAL_ERROR): no more calls until READYTOSEND.
    CriticalError(Diagnosis),
}

impl SubmitResult {
    /// For a peer that knows no word for doubt: it hears of a deferral.
    pub(crate) fn without_doubt(&mut self) {
        let (Self::Ok(outcomes) | Self::Cancelled(outcomes)) = self else {
            return;
        };
        for RecipientOutcome { outcome, .. } in outcomes {
            if let Outcome::InDoubt(diagnosis) = outcome {
                *outcome = Outcome::Deferred {
                    diagnosis: diagnosis.clone(),
                    destination_down: false,
                };
            }
        }
    }
}

/// What EndMessage returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndMessageFlag {
    /// No flag: the message is sent, as far as the outcomes say so.
    Sent,
    /// END_RESEND_NOW: start over now.
    ResendNow,
    /// END_RESEND_LATER: not an error; offer it again later.
    ResendLater,
    /// END_DONT_RESEND: the transport calls SpoolerNotify(SENTDEFERRED) by itself.
    DontResend,
}

/// StatusRecips: what a transport learned of recipients while under way or, for what it kept, later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecipientStatus {
    /// A delivery report, with the time.
    Delivered(Delivery),
    /// A report of non-delivery.
    NotDelivered(Diagnosis),
}
