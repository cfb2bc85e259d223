//! The names of queues and exchanges, and the arguments they are declared with.
//!
//! Nothing here is refused by RabbitMQ 4.x: no transient non-exclusive queues, no global QoS, no mirrored queues.

use serde::{Deserialize, Serialize};

use crate::{ids::Incarnation, message::Priority};

/// Attempts are counted by the fence; the broker's own count must never decide. -1 means "none at all" in 3.10.
const DELIVERY_LIMIT: i32 = 1_000_000;

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

    /// What outlives every process and belongs to all of them, in the order in which it can be declared.
    pub fn shared(&self) -> Vec<Durable> {
        let exchange = |name, kind, alternate| Durable::Exchange {
            name,
            kind,
            alternate,
        };
        let mut all = vec![
            exchange(self.dead_exchange(), Kind::Fanout, None),
            exchange(self.unrouted_exchange(), Kind::Fanout, None),
            // The broker confirms what it cannot route; so there is nothing it cannot route.
            exchange(
                self.spool_exchange(),
                Kind::Direct,
                Some(self.unrouted_exchange()),
            ),
            exchange(self.session_exchange(), Kind::Direct, None),
            exchange(self.spoolers_exchange(), Kind::Fanout, None),
            exchange(self.agents_exchange(), Kind::Fanout, None),
            Durable::Queue {
                name: self.dead_queue(),
                arguments: quorum(Vec::new()),
            },
            Durable::Binding {
                queue: self.dead_queue(),
                exchange: self.dead_exchange(),
                key: String::new(),
            },
        ];
        for class in SpoolClass::ALL {
            let queue = self.spool_queue(class);
            let dead = Argument::Text(self.dead_exchange());
            let arguments = quorum(vec![("x-dead-letter-exchange", dead)]);
            let (exchange, key) = match class {
                SpoolClass::Priority(priority) => (self.spool_exchange(), priority.name()),
                SpoolClass::Unrouted => (self.unrouted_exchange(), ""),
            };
            all.push(Durable::Queue {
                name: queue.clone(),
                arguments,
            });
            all.push(Durable::Binding {
                queue,
                exchange,
                key: key.to_owned(),
            });
        }
        all
    }

    /// The same of one polled transport. Its token comes through the session exchange: whoever may write to the default
    /// exchange could write to every queue.
    pub fn polled(&self, transport: &str) -> Vec<Durable> {
        let queue = self.poll_queue(transport);
        let arguments = quorum(vec![
            ("x-single-active-consumer", Argument::Flag(true)),
            ("x-max-length", Argument::Number(1)),
            ("x-overflow", Argument::Text("reject-publish".to_owned())),
        ]);
        vec![
            Durable::Queue {
                name: queue.clone(),
                arguments,
            },
            Durable::Binding {
                key: queue.clone(),
                queue,
                exchange: self.session_exchange(),
            },
        ]
    }
}

fn quorum(mut more: Vec<(&'static str, Argument)>) -> Vec<(&'static str, Argument)> {
    more.push(("x-queue-type", Argument::Text("quorum".to_owned())));
    more.push(("x-delivery-limit", Argument::Number(DELIVERY_LIMIT)));
    more
}

/// Something on the broker that survives its restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Durable {
    /// An exchange.
    Exchange {
        /// Its name.
        name: String,
        /// How it routes.
        kind: Kind,
        /// Where what it cannot route goes.
        alternate: Option<String>,
    },
    /// A queue.
    Queue {
        /// Its name.
        name: String,
        /// What it is declared with.
        arguments: Vec<(&'static str, Argument)>,
    },
    /// A binding.
    Binding {
        /// Where to.
        queue: String,
        /// Where from.
        exchange: String,
        /// The routing key.
        key: String,
    },
}

impl Durable {
    /// What it is called; a binding by its queue.
    pub fn name(&self) -> &str {
        match self {
            Self::Exchange { name, .. } | Self::Queue { name, .. } => name,
            Self::Binding { queue, .. } => queue,
        }
    }
}

/// How an exchange routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By the routing key.
    Direct,
    /// To everybody.
    Fanout,
}

/// The value of a queue's argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A string.
    Text(String),
    /// An integer.
    Number(i32),
    /// A boolean.
    Flag(bool),
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
