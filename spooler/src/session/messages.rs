//! What a session is told and asked: by the switchboard, the dispatcher, the recorder, the adoption and people.

use actix::Message;
use pombo_proto::{
    control::{SessionRow, ValidationRow},
    frame::Packet,
    gate::Permit,
    ids::{MessageId, RecipientIndex, Reference},
    verbs::{Flush, Tenancy},
};

use crate::job::Job;

/// A packet from the agent.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Received(pub Packet);

/// Submit these, in order.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Submit(pub Vec<Submission>);

/// One submission.
#[derive(Debug)]
pub struct Submission {
    /// The job; it comes back through the recorder.
    pub job: Job,
    /// The recipients to consider.
    pub considered: Vec<RecipientIndex>,
    /// BEGIN_DEFERRED: the transport had kept it.
    pub begin_deferred: bool,
    /// It is suspected of killing whoever has it: nothing else is submitted beside it, and that is noted before.
    pub alone: bool,
}

/// CANCEL_MESSAGE for a message that may be under way here.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Cancel(pub MessageId);

/// CANCEL_MESSAGE with ABORT_DEFERRED, for a message that the transport keeps.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct AbortDeferred(pub Tenancy);

/// The store has recorded these.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Settle(pub Vec<Tenancy>);

/// Ask what the agent knows of these.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Adopt(pub Vec<Tenancy>);

/// CANCEL_MESSAGE for an attempt that is being adopted.
#[derive(Message)]
#[rtype(result = "()")]
pub struct CancelAdopted(pub Tenancy);

/// EndMessage for an adopted attempt. The answer goes to the adoption.
#[derive(Message)]
#[rtype(result = "()")]
pub struct EndAdopted {
    /// Which message, under the adopter's fence.
    pub tenancy: Tenancy,
    /// The agent's reference.
    pub reference: Reference,
}

/// Permits to deliver.
#[derive(Message)]
#[rtype(result = "()")]
pub struct StartMessages(pub Vec<Permit>);

/// FlushQueues.
#[derive(Message)]
#[rtype(result = "()")]
pub struct FlushQueues(pub Flush);

/// ValidateState, because a person asks.
#[derive(Message)]
#[rtype(result = "Option<ValidationRow>")]
pub struct Validate;

/// Our own publishes are held back, or no more: silence does not count meanwhile.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Blocked(pub bool);

/// END of both directions, then TransportLogoff.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Logoff;

/// The session is over.
#[derive(Message)]
#[rtype(result = "()")]
pub struct End(pub &'static str);

/// The agent's inbox is gone, and with it the session.
#[derive(Message)]
#[rtype(result = "()")]
pub struct InboxGone {
    /// The number of the first frame that has come back.
    pub unheard: Option<u64>,
}

/// The dispatcher knows that the session is over: nothing more will be submitted to it. An actor that stops drops what is in
/// its mailbox, so a session stops only now.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Farewell;

/// Its row in `pombo transports`.
#[derive(Message)]
#[rtype(result = "Option<SessionRow>")]
pub struct Describe;
