//! Receptions of this session: the permits, and what became of each.

use std::collections::HashMap;

use actix::{Context, Handler};
use pombo_proto::{
    gate::{Permit, StartReply},
    ids::{Correlation, Reference},
    ladder::{
        PeerMisbehaved,
        reception::{Action, Reception as Ladder},
    },
    verbs::{StartResult, TransportNotification, Verb},
};
use tracing::{debug, info};

use super::{Life, Session, StartMessages};
use crate::reception;

/// The permits that are out.
#[derive(Default)]
pub(super) struct Receiving {
    permits: HashMap<Correlation, (Permit, Ladder)>,
}

impl Receiving {
    pub fn is_empty(&self) -> bool {
        self.permits.is_empty()
    }

    /// Those that can be stopped: their references.
    fn cancel(&mut self) -> Vec<Reference> {
        let mut references = Vec::new();
        for (_, ladder) in self.permits.values_mut() {
            ladder.handle_cancel();
            while let Some(Action::SendCancel { reference }) = ladder.poll_action() {
                references.push(reference);
            }
        }
        references
    }

    pub fn reference(
        &mut self,
        correlation: Correlation,
        reference: Reference,
    ) -> Result<(), PeerMisbehaved> {
        let (_, ladder) = self
            .permits
            .get_mut(&correlation)
            .ok_or(PeerMisbehaved::Unasked)?;
        ladder.handle_reference(reference)
    }
}

impl Session {
    /// The session ends by our wish while messages are being delivered: the transport keeps them where they are.
    pub(super) fn cancel_receptions(&mut self) {
        for reference in self.receiving.cancel() {
            self.notify(TransportNotification::CancelReception { reference });
        }
    }

    pub(super) fn start_replied(
        &mut self,
        correlation: Correlation,
        result: StartResult,
    ) -> Result<(), PeerMisbehaved> {
        let (permit, mut ladder) = self
            .receiving
            .permits
            .remove(&correlation)
            .ok_or(PeerMisbehaved::Unasked)?;
        ladder.handle_reply(result.clone())?;
        let transport = &self.peer.transport;
        let reply = match result {
            StartResult::Saved { id, size, more } => {
                debug!(id = %id, transport, size, "received");
                metrics::counter!("pombo_received_total", "transport" => transport.clone())
                    .increment(1);
                if more {
                    StartReply::More { bytes: size }
                } else {
                    StartReply::Last { bytes: size }
                }
            }
            StartResult::Nothing | StartResult::Cancelled => StartReply::Nothing,
            StartResult::Failed(error) => {
                info!(
                    transport,
                    error, "a reception failed; the transport still has the message"
                );
                StartReply::Nothing
            }
        };
        let key = self.peer.key;
        self.parts
            .reception
            .do_send(reception::Started { key, permit, reply });
        Ok(())
    }
}

impl Handler<StartMessages> for Session {
    type Result = ();

    fn handle(&mut self, StartMessages(permits): StartMessages, ctx: &mut Context<Self>) {
        if self.life != Life::Open {
            return;
        }
        for permit in permits {
            let correlation = self.ask(Verb::StartMessage);
            self.receiving
                .permits
                .insert(correlation, (permit, Ladder::new()));
        }
        self.flush(ctx);
    }
}
