//! What the actor is made of, and what is said to it.

use std::{sync::Arc, time::Duration};

use actix::Message;
use pombo_proto::{blob::Blobs, link::Event, service::http::Health, verbs::VersionRange};
use tokio::sync::oneshot;

use crate::{host::wire::Wire, provider::Transport};

/// How this agent hosts its transport.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The transport's name.
    pub name: String,
    /// This host's name.
    pub host: String,
    /// See [`crate::config::AgentSection::right_to_send`].
    pub right_to_send: bool,
    /// See [`crate::config::AgentSection::drain_limit`].
    pub drain_limit: Duration,
    /// See [`crate::config::AgentSection::message_max`], in bytes.
    pub message_max: u64,
    /// See [`crate::config::AgentSection::confirm_patience`].
    pub confirm_patience: Duration,
    /// See [`crate::config::AgentSection::notify_interval`].
    pub notify_interval: Duration,
    /// See [`crate::config::AgentSection::sessions_max`].
    pub sessions_max: usize,
    /// See [`crate::config::AgentSection::bodies_max`], in bytes.
    pub bodies_max: u64,
    /// Bodies up to this size travel with the message.
    pub inline_max: usize,
    /// The protocol versions that it speaks.
    pub versions: VersionRange,
}

/// What the actor is made of.
pub struct Parts {
    /// How.
    pub settings: Settings,
    /// What it hosts.
    pub transport: Arc<dyn Transport>,
    /// The link.
    pub wire: Arc<dyn Wire>,
    /// Where the transport runs.
    pub runtime: tokio::runtime::Handle,
    /// Large bodies.
    pub blobs: Option<Blobs>,
    /// Conditions behind `/readyz`.
    pub health: Health,
    /// Told once the agent has drained.
    pub done: oneshot::Sender<Drained>,
}

/// Something from the link.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Linked(pub Event);

/// The transport's threads have told something.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Wake;

/// No new work; end when what is under way has been settled, or at the limit.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Drain;

/// End now.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop;

/// The agent has logged off from everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Attempts that nobody has settled.
    pub kept: u32,
}

/// What the actor has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sessions opened.
    pub sessions: u64,
    /// Logons refused.
    pub logons_refused: u64,
    /// Submissions started.
    pub submitted: u64,
    /// Submissions refused.
    pub refused: u64,
    /// Submissions returned.
    pub returned: u64,
    /// Receptions that ended with a saved message.
    pub saved: u64,
    /// Packets that broke a session.
    pub broken: u64,
}

/// Asks for the [`Counters`].
#[derive(Message)]
#[rtype(result = "Counters")]
pub struct GetCounters;
