//! Going down: no submission and no permit from now on, what is under way completes, and then it logs off.

use pombo_proto::{attempt::Session, ids::Correlation, outbound::PATIENCE, verbs::Verb};

use super::Agent;
use crate::sim::{
    context::{Context, Effect},
    options::{Millis, Sabotage},
};

/// So long it waits for what is under way, and for whoever has not settled.
const LIMIT: Millis = 20_000;

impl Agent {
    pub(super) fn drain(&mut self, cx: &mut Context<'_>) {
        self.draining.get_or_insert(cx.now.ms);
        self.attempts.set_closed(true);
        self.inbound.close();
    }

    /// Ends when nothing is left, or at the limit.
    pub(super) fn drain_beat(&mut self, cx: &mut Context<'_>) {
        let Some(since) = self.draining else { return };
        let empty = self.attempts.is_empty() && self.inbound.is_idle();
        if empty || cx.now.ms > since + LIMIT {
            self.log_off(cx);
            cx.act(Effect::Exit);
        }
    }

    /// There is no later: what is held back goes now.
    fn log_off(&mut self, cx: &mut Context<'_>) {
        let mut kept = self.attempts.in_flight();
        if cx.broken(Sabotage::LeavesItBehind) {
            kept = 0;
        }
        let now = cx.now.instant();
        let open = self.peers.iter().filter(|(_, peer)| peer.logged_on);
        for session in open.map(|(it, _)| *it).collect::<Vec<Session>>() {
            self.say(session, Correlation(0), Verb::LoggedOff { kept });
            let Some(peer) = self.peers.get_mut(&session) else {
                continue;
            };
            for at in [now, now + PATIENCE, now + 2 * PATIENCE] {
                while let Some(packet) = peer.out.poll_packet(at) {
                    cx.act(Effect::Send(packet));
                }
            }
        }
    }
}
