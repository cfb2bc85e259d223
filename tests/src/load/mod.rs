//! Many messages by clients that are not ours, and what became of them.
//!
//! [`Python`] sends with smtplib: messages of mixed sizes, each with its own id, retried as a mail server would. [`SmtpSource`]
//! is Postfix's generator: one message over and over, each to another recipient. Both remember what they sent, so that
//! [`Sent::arrived_in`] can say what is missing, twice, or changed.

mod compare;
mod python;
mod smtp_source;

pub use self::{
    compare::{Arrival, arrived_in},
    python::Python,
    smtp_source::SmtpSource,
};

/// One message that was sent, for one or more recipients.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct SentMessage {
    /// The value of its `X-Pombo-Test` field.
    pub id: String,
    /// The reverse-path.
    pub from: String,
    /// The recipients.
    pub to: Vec<String>,
    /// Its size in bytes.
    pub size: usize,
    /// SHA-256 over its bytes, in hexadecimal.
    pub sha256: String,
    /// The code of the last reply: 250 if it was accepted, 0 if no server answered to the end.
    pub code: u16,
    /// How often it was offered until then. More than once after an unknown outcome may be accepted twice.
    pub tries: u32,
}

impl SentMessage {
    /// Whether the server took it.
    pub fn accepted(&self) -> bool {
        self.code == 250
    }
}

/// What a load sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// All messages, accepted or not.
    pub messages: Vec<SentMessage>,
}

impl Sent {
    /// How many were accepted.
    pub fn accepted(&self) -> usize {
        self.messages
            .iter()
            .filter(|message| message.accepted())
            .count()
    }

    /// How many copies the accepted ones make, one per recipient.
    pub fn deliveries(&self) -> usize {
        self.messages
            .iter()
            .filter(|message| message.accepted())
            .map(|message| message.to.len())
            .sum()
    }

    /// The bytes of the accepted ones.
    pub fn bytes(&self) -> usize {
        self.messages
            .iter()
            .filter(|message| message.accepted())
            .map(|message| message.size)
            .sum()
    }

    /// Those that were not accepted.
    pub fn refused(&self) -> impl Iterator<Item = &SentMessage> {
        self.messages.iter().filter(|message| !message.accepted())
    }

    /// Puts what two loads sent together.
    pub fn and(mut self, other: Self) -> Self {
        self.messages.extend(other.messages);
        self
    }

    /// Compares with what a sink took.
    pub fn arrived_in(&self, sink: &crate::Sink) -> Arrival {
        let transactions = sink.look(|seen| seen.transactions().to_vec());
        arrived_in(self, &transactions)
    }
}
