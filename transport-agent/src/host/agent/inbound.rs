//! Message reception, from this side: NEWMAIL through the gate, StartMessage as the permit, Poll.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{AsyncContext, Context};
use futures_util::FutureExt;
use pombo_proto::{
    attempt::Session,
    ids::{Correlation, Reference},
    verbs::{SpoolerNotification, StartResult, Verb},
};
use tracing::{Instrument, debug};

use super::{Agent, Direction};
use crate::{
    host::{
        permits::{Handle, Permits},
        told::{PermitId, Told},
    },
    provider::{Received, Reception, Transport},
};

/// Permits of one session, at most; a spooler's window is far below.
const PERMITS_MAX: usize = 1_024;
/// What one message of a door counts at most in the pace of its notifications. A door waits for its clients and not for itself,
/// and takes as many at a time as it has permits: slow ones must not keep back the notification that brings others theirs. Well
/// below the time that a client waits for a permit.
const DOOR_PACE_MAX: Duration = Duration::from_secs(1);

impl Agent {
    /// Lets the gate speak, to the sessions that take mail in turn.
    pub(super) fn announce(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        if !self.begun[Direction::Inbound as usize] {
            return;
        }
        if self.gate.poll_action(now) {
            let takes = |peer: &super::Peer| peer.begun[Direction::Inbound as usize];
            let mut takers = self.peers.iter().filter(|(_, peer)| takes(peer));
            let next = takers
                .clone()
                .find(|(session, _)| **session > self.announced_last)
                .or_else(|| takers.next());
            if let Some(session) = next.map(|(session, _)| *session) {
                self.announced_last = session;
                self.gate.handle_sent(now, session);
                metrics::counter!("pombo_agent_notifications_sent_total").increment(1);
                self.say(session, Verb::SpoolerNotify(SpoolerNotification::NewMail));
            }
        }
        let later = self.gate.poll_timeout().filter(|_| !self.gate_armed);
        if let Some(at) = later {
            self.gate_armed = true;
            ctx.run_later(at.saturating_duration_since(now), |this, ctx| {
                this.gate_armed = false;
                this.flush(ctx);
            });
        }
    }

    /// StartMessage: the permit to deliver one message.
    pub(super) fn start_message(&mut self, session: Session, correlation: Correlation) {
        self.gate.handle_fetch(session);
        let receives = self.logon.as_ref().is_ok_and(|reply| reply.inbound);
        let Some(peer) = self.peers.get_mut(&session) else {
            return;
        };
        let begun = peer.begun[Direction::Inbound as usize] && self.draining.is_none();
        if !receives || !begun || peer.permits.len() >= PERMITS_MAX {
            self.reply(session, correlation, Verb::StartReply(StartResult::Nothing));
            return;
        }
        let reception = peer.permits.entry(correlation).or_default();
        let cancel = reception.cancel.clone();
        self.receiving += 1;
        let id = PermitId {
            session,
            correlation,
        };
        let ticket = Permits::ticket(&self.permits, id, cancel);
        if self.permits.standing {
            // Not taken (the session is closed): its end says so.
            drop(self.permits.offer(ticket));
        } else {
            let transport = Arc::clone(&self.transport);
            let span = tracing::info_span!(
                "reception",
                message = tracing::field::Empty,
                reference = tracing::field::Empty,
                transport = self.settings.name,
            );
            let receiving = receive(transport, Handle::new(ticket));
            self.runtime.spawn(receiving.instrument(span));
        }
    }

    pub(super) fn start_reference(&mut self, permit: PermitId, reference: Reference) {
        let Some(peer) = self.peers.get_mut(&permit.session) else {
            return;
        };
        if let Some(reception) = peer.permits.get_mut(&permit.correlation) {
            reception.reference = Some(reference);
            let said = Verb::StartReference { reference };
            self.reply(permit.session, permit.correlation, said);
        }
    }

    /// StartMessage returned.
    pub(super) fn started(
        &mut self,
        permit: PermitId,
        result: StartResult,
        took: Option<Duration>,
    ) {
        let label = match &result {
            StartResult::Saved { .. } => "saved",
            StartResult::Nothing => "nothing",
            StartResult::Failed(_) => "failed",
            StartResult::Cancelled => "cancelled",
        };
        metrics::counter!("pombo_agent_receptions_total", "result" => label).increment(1);
        self.receiving = self.receiving.saturating_sub(1);
        if let StartResult::Saved { id, size, .. } = &result {
            self.counters.saved += 1;
            debug!(id = %id, size, "start_message saved");
            if let Some(took) = took {
                self.gate
                    .handle_message_time(pace(took, self.permits.standing));
                metrics::histogram!("pombo_agent_reception_seconds").record(took.as_secs_f64());
            }
        }
        let Some(peer) = self.peers.get_mut(&permit.session) else {
            return;
        };
        if peer.permits.remove(&permit.correlation).is_some() {
            let reply = Verb::StartReply(result);
            self.reply(permit.session, permit.correlation, reply);
        }
    }

    /// CANCEL_MESSAGE of a reception.
    pub(super) fn cancel_reception(&mut self, session: Session, reference: Reference) {
        let Some(peer) = self.peers.get(&session) else {
            return;
        };
        let named = peer
            .permits
            .values()
            .filter(|reception| reception.reference == Some(reference));
        for reception in named {
            reception.cancel.cancel();
        }
    }

    /// Poll: how many are there to fetch?
    pub(super) fn poll(&mut self, session: Session, correlation: Correlation) {
        let polls = self.logon.as_ref().is_ok_and(|reply| reply.poll);
        let begun = self.begun[Direction::Inbound as usize];
        if !polls || !begun || self.critical_section || self.poller != Some(session) {
            self.reply(session, correlation, Verb::PollReply { incoming: 0 });
            return;
        }
        let (transport, teller) = (Arc::clone(&self.transport), self.tools.teller.clone());
        self.runtime.spawn(async move {
            let call = AssertUnwindSafe(transport.poll()).catch_unwind();
            let incoming = call.await.unwrap_or_else(|_| {
                tracing::error!("the transport panicked in Poll");
                0
            });
            teller.tell(Told::Polled(session, correlation, incoming));
        });
    }

    /// BEGIN_INBOUND, END_INBOUND.
    pub(super) fn set_inbound(&mut self, session: Session, begun: bool) {
        let Some(peer) = self.peers.get_mut(&session) else {
            return;
        };
        let begun = begun && !peer.no_connect;
        peer.begun[Direction::Inbound as usize] = begun;
        if begun && self.draining.is_none() {
            self.permits.open(session);
            if self.permits.standing {
                // Permits stand ready before the first client comes.
                self.gate.handle_notify();
            }
        } else {
            self.permits.close(session);
            self.gate.handle_session_ended(session);
        }
        self.choose_poller();
        self.flows_changed();
        self.row_due(session);
    }
}

/// How long a message has kept the transport, not its client.
fn pace(took: Duration, door: bool) -> Duration {
    if door { took.min(DOOR_PACE_MAX) } else { took }
}

/// StartMessage of a transport that is called.
async fn receive(transport: Arc<dyn Transport>, handle: Handle) {
    let receiving = Arc::clone(&handle.0);
    let reception = Arc::new(Reception::new(handle));
    let call = AssertUnwindSafe(transport.start_message(Arc::clone(&reception))).catch_unwind();
    let received = call.await.unwrap_or_else(|_| {
        tracing::error!("the transport panicked in StartMessage");
        metrics::counter!("pombo_agent_panics_total").increment(1);
        Received::Failed("the transport failed on this message".to_owned())
    });
    receiving.finish(received);
}

#[cfg(test)]
mod tests {
    use pombo_proto::gate::Gate;

    use super::*;

    #[test]
    fn slow_clients_do_not_keep_notifications_back() {
        for (door, at_most) in [(true, DOOR_PACE_MAX), (false, Duration::from_secs(1_500))] {
            let mut gate = Gate::new(Duration::from_millis(10));
            for _ in 0..100 {
                gate.handle_message_time(pace(Duration::from_secs(1_500), door));
            }
            let now = Instant::now();
            gate.handle_sent(now, 1);
            gate.handle_notify();
            let due = gate.poll_timeout().unwrap() - now;
            assert!(due <= at_most && due > at_most / 2, "{due:?}");
        }
    }
}
