//! The way down: no new work; what is under way completes and is settled; then log off.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use actix::{ActorContext, Context};
use pombo_proto::{outbound::PATIENCE, verbs::Verb};
use tracing::{info, warn};

use super::{Agent, Drained};

/// How often the log says what is still waited for.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// The drain.
pub(super) struct Draining {
    since: Instant,
    said: Instant,
}

impl Agent {
    /// No submission and no permit from now on; END to the transport.
    pub(super) fn drain(&mut self) {
        if self.draining.is_some() {
            return;
        }
        let now = Instant::now();
        info!(
            in_flight = self.attempts.in_flight(),
            receiving = self.receiving,
            "draining"
        );
        self.draining = Some(Draining {
            since: now,
            said: now,
        });
        self.health
            .set("transport", Err("the agent is draining".to_owned()));
        self.attempts.set_closed(true);
        self.flows_changed();
        self.choose_poller();
        // Those that stand ready go back at once; receptions under way complete.
        self.permits.close_all();
        self.shares_changed();
    }

    /// Ends when nothing is left, or at the limit; says each second what is left.
    pub(super) fn drain_beat(&mut self, now: Instant, ctx: &mut Context<Self>) {
        let Some(draining) = &mut self.draining else {
            return;
        };
        let waited = now.saturating_duration_since(draining.since);
        // Shutdown comes after the END of both directions.
        let flows = self.flows_open.load(Ordering::Acquire);
        let empty = self.attempts.is_empty() && self.receiving == 0 && flows == 0;
        if !empty && waited < self.settings.drain_limit {
            if now.saturating_duration_since(draining.said) < SAY_EVERY {
                return;
            }
            draining.said = now;
            let oldest = self.oldest_running().map(|(id, _)| id.to_string());
            info!(
                sending = self.attempts.under_way_count(),
                unsettled = self.attempts.in_flight(),
                receiving = self.receiving,
                flows,
                sessions = self.peers.len(),
                oldest,
                "the drain waits"
            );
            return;
        }
        if !empty {
            warn!(
                unsettled = self.attempts.in_flight(),
                receiving = self.receiving,
                flows,
                "the drain limit is reached"
            );
        }
        self.log_off();
        ctx.stop();
    }

    /// Tells every spooler, and the service, that this is the end.
    pub(super) fn log_off(&mut self) {
        let kept = self.attempts.in_flight();
        let later = Instant::now() + PATIENCE;
        for session in self.open_sessions() {
            self.say(session, Verb::LoggedOff { kept });
            let Some(peer) = self.peers.get_mut(&session) else {
                continue;
            };
            // There is no later: what is held back goes now.
            for at in [Instant::now(), later, later + PATIENCE] {
                while let Some(packet) = peer.out.poll_packet(at) {
                    self.wire.send(&packet);
                }
            }
        }
        if let Some(done) = self.done.take() {
            let _ = done.send(Drained { kept });
        }
    }
}
