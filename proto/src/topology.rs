//! The names of queues and exchanges, and the arguments they are declared with.
//!
//! Nothing here is refused by RabbitMQ 4.x: no transient non-exclusive queues, no global QoS, no mirrored queues.

use serde::{Deserialize, Serialize};

use crate::{ids::Incarnation, message::Priority};

/// Names under a configurable prefix, so that several installations share a broker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Topology {
    prefix: String,
}

impl Default for Topology {
    fn default() -> Self {
        Self {
            prefix: "pombo".to_owned(),
        }
    }
}

impl Topology {
    /// Names that start with `prefix`.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
        }
    }

    /// The exchange that doors publish to: direct, by [`Priority::name`].
    pub fn spool_exchange(&self) -> String {
        format!("{}.spool", self.prefix)
    }

    /// A spool queue.
    pub fn spool_queue(&self, class: SpoolClass) -> String {
        format!("{}.spool.{}", self.prefix, class.name())
    }

    /// The alternate exchange of the spool: an unroutable publish is confirmed, so it must end somewhere.
    pub fn unrouted_exchange(&self) -> String {
        format!("{}.unrouted", self.prefix)
    }

    /// The dead-letter exchange (fanout), which leads to [`Self::dead_queue`].
    pub fn dead_exchange(&self) -> String {
        format!("{}.dead", self.prefix)
    }

    /// Frames that nobody can read.
    pub fn dead_queue(&self) -> String {
        format!("{}.dead", self.prefix)
    }

    /// All session traffic: direct, by inbox.
    pub fn session_exchange(&self) -> String {
        format!("{}.session", self.prefix)
    }

    /// The exclusive queue of one incarnation.
    pub fn inbox(&self, incarnation: Incarnation) -> String {
        format!("{}.inbox.{incarnation}", self.prefix)
    }

    /// The fanout that reaches every spooler.
    pub fn spoolers_exchange(&self) -> String {
        format!("{}.spoolers", self.prefix)
    }

    /// The fanout that reaches every agent.
    pub fn agents_exchange(&self) -> String {
        format!("{}.agents", self.prefix)
    }

    /// The single-active-consumer queue that picks which agent of a transport polls.
    pub fn poll_queue(&self, transport: &str) -> String {
        format!("{}.poll.{transport}", self.prefix)
    }
}

/// The spool's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SpoolClass {
    /// What doors published, by priority.
    Priority(Priority),
    /// What the spool exchange could not route; consumed like a fourth class, and moved.
    Unrouted,
}

impl SpoolClass {
    /// All, most urgent first.
    pub const ALL: [Self; 4] = [
        Self::Priority(Priority::Urgent),
        Self::Priority(Priority::Normal),
        Self::Priority(Priority::Bulk),
        Self::Unrouted,
    ];

    /// The last part of the queue's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Priority(priority) => priority.name(),
            Self::Unrouted => "unrouted",
        }
    }
}
