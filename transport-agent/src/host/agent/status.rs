//! Status rows, and the calls around messages.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use pombo_proto::{
    attempt::Session,
    door,
    ids::Correlation,
    outcome::TEXT_BYTES_MAX,
    time::UnixMillis,
    verbs::{
        AddressTypes, FlowState, Flush, SpoolerNotification, StatusRow, Tenancy,
        TransportNotification, TransportState, Validation, Verb,
    },
};
use tracing::{debug, warn};

use super::{Agent, Direction, NOTIFICATIONS_MAX};
use crate::host::{right::boot_time, told::Told};

/// A session is over when its rows are not answered for so long.
const SILENCE: Duration = Duration::from_secs(30);
/// Rows whose sending is remembered.
const ROWS_MAX: usize = 64;
/// Unsettled attempts named in one row.
const UNSETTLED_MAX: usize = 512;

impl Agent {
    /// Once a second.
    pub(super) fn tick(&mut self, now: Instant) {
        self.attempts.tick();
        self.look_for_a_lapse();
        let silent = |peer: &super::Peer| now.saturating_duration_since(peer.answered) > SILENCE;
        if !self.blocked {
            let sessions = self.peers.iter().filter(|(_, peer)| silent(peer));
            for session in sessions.map(|(session, _)| *session).collect::<Vec<_>>() {
                self.end_session(session, "its spooler is silent");
            }
        }
        self.bound_fences();
        self.say_the_early();
        let unsettled = self.attempts.unsettled(UNSETTLED_MAX);
        for session in self.open_sessions() {
            self.send_row(session, unsettled.clone());
        }
        metrics::gauge!("pombo_agent_sessions").set(self.peers.len() as f64);
        metrics::gauge!("pombo_agent_in_flight").set(f64::from(self.attempts.in_flight()));
        metrics::gauge!("pombo_agent_receiving").set(self.receiving as f64);
        let credit: u32 = self.peers.keys().map(|session| self.credit(*session)).sum();
        metrics::gauge!("pombo_agent_credit").set(f64::from(credit));
    }

    pub(super) fn credit(&self, session: Session) -> u32 {
        if self.critical_error.is_some() {
            return 0;
        }
        self.attempts.credit(session)
    }

    /// A row goes out at the end of this handler.
    pub(super) fn row_due(&mut self, session: Session) {
        if let Some(peer) = self.peers.get_mut(&session) {
            peer.row_due = true;
        }
    }

    /// Everybody's share of the credit, or the state, has changed.
    pub(super) fn shares_changed(&mut self) {
        for peer in self.peers.values_mut() {
            peer.row_due = true;
        }
    }

    pub(super) fn send_due_rows(&mut self) {
        let due: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.row_due)
            .map(|(session, _)| *session)
            .collect();
        for session in due {
            self.send_row(session, Vec::new());
        }
    }

    fn send_row(&mut self, session: Session, unsettled: Vec<Tenancy>) {
        let credit = self.credit(session);
        let (door, confirmed, voided) = {
            let account = self.door.account();
            (
                account.door(),
                account.confirmed(),
                door::pack(&account.voided()),
            )
        };
        let state = match (&self.draining, &self.critical_error) {
            (Some(_), _) => TransportState::Offline,
            (None, Some(_)) => TransportState::Failure,
            (None, None) => self.state,
        };
        let Some(peer) = self.peers.get_mut(&session) else {
            return;
        };
        let state = match peer.no_connect {
            true => TransportState::Offline,
            false => state,
        };
        let (receives, sends) = match &self.logon {
            Ok(reply) => (reply.inbound, reply.outbound),
            Err(_) => (false, false),
        };
        let flow = |direction: Direction, can: bool, active: bool| FlowState {
            enabled: can && peer.begun[direction as usize] && self.draining.is_none(),
            active,
            flush: peer.flush[direction as usize] || self.flushing[direction as usize] > 0,
        };
        peer.row += 1;
        let row = StatusRow {
            row: peer.row,
            state,
            inbound: flow(Direction::Inbound, receives, self.receiving > 0),
            outbound: flow(Direction::Outbound, sends, !self.running.is_empty()),
            credit,
            in_flight: self.attempts.in_flight(),
            outbound_time: self.submit_time.get(),
            inbound_time: self.gate.message_time(),
            last_error: self.last_error.clone(),
            door,
            confirmed,
            voided,
            unsettled,
            poll: self.poller == Some(session),
        };
        peer.credit = credit;
        peer.row_due = false;
        peer.rows.push_back((row.row, boot_time()));
        if peer.rows.len() > ROWS_MAX {
            peer.rows.pop_front();
        }
        self.say(session, Verb::ModifyStatusRow(row));
    }

    /// Nobody has answered for too long: what is under way is abandoned before its point of no return. Its sessions end, because a
    /// spooler that was cut off as well may still submit in them what others have taken over.
    fn look_for_a_lapse(&mut self) {
        let sends = self.logon.as_ref().is_ok_and(|reply| reply.outbound);
        if !sends || !self.right.has_lapsed(boot_time()) {
            return;
        }
        let under_way = self.running.len();
        warn!(
            under_way,
            "the right to send has run out: no spooler has answered"
        );
        metrics::counter!("pombo_agent_right_lapses_total").increment(1);
        for session in self.open_sessions() {
            self.end_session(session, "the right to send has run out");
        }
        // Whoever lives opens another one.
        self.hello_at = Instant::now();
    }

    /// StatusAnswer: the spooler's incarnation lives, and did when this row was sent.
    pub(super) fn status_answered(&mut self, session: Session, row: u64) {
        // An answer that comes after a lapse must not undo it.
        self.look_for_a_lapse();
        let Some(peer) = self.peers.get_mut(&session) else {
            return;
        };
        while let Some((number, sent_at)) = peer.rows.front().copied() {
            if number > row {
                return;
            }
            peer.rows.pop_front();
            if number == row {
                peer.answered = Instant::now();
                self.right.prove(sent_at);
            }
        }
    }

    /// SP_POLL stands in one session's row only: the one that has it, while it lives and takes mail; then another one.
    pub(super) fn choose_poller(&mut self) {
        let polls = self.poll_turn
            && self.draining.is_none()
            && self.logon.as_ref().is_ok_and(|reply| reply.poll);
        let inbound = Direction::Inbound as usize;
        let takes = |session: &Session| {
            self.peers
                .get(session)
                .is_some_and(|peer| peer.begun[inbound])
        };
        let current = self
            .poller
            .filter(|session| self.peers.contains_key(session));
        let chosen = current
            .filter(takes)
            .or_else(|| self.peers.keys().copied().find(takes))
            .or(current)
            .or_else(|| self.peers.keys().next().copied())
            .filter(|_| polls);
        if chosen != self.poller {
            for session in [self.poller, chosen].into_iter().flatten() {
                self.row_due(session);
            }
            self.poller = chosen;
        }
    }

    /// A notification for every spooler; those that change something wait for one if there is none.
    pub(super) fn broadcast(&mut self, notification: SpoolerNotification) {
        let kept = matches!(notification, SpoolerNotification::SentDeferred { .. });
        if self.peers.is_empty() && kept {
            if self.waiting.len() >= NOTIFICATIONS_MAX {
                warn!("a notification is dropped: no spooler for too long");
                return;
            }
            self.waiting.push_back(notification);
            return;
        }
        for session in self.open_sessions() {
            self.say(session, Verb::SpoolerNotify(notification.clone()));
        }
    }

    pub(super) fn set_critical_section(&mut self, inside: bool) {
        self.critical_section = inside;
        self.broadcast(if inside {
            SpoolerNotification::CritSec
        } else {
            SpoolerNotification::NonCrit
        });
    }

    pub(super) fn set_status(&mut self, state: TransportState, error: Option<String>) {
        self.state = state;
        if let Some(mut text) = error {
            warn!(?state, text, "the transport says");
            text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
            self.last_error = Some((UnixMillis::now(), text));
        }
        self.shares_changed();
    }

    pub(super) fn address_types(&self) -> AddressTypes {
        let asked = std::panic::catch_unwind(AssertUnwindSafe(|| self.transport.address_types()));
        asked.unwrap_or_else(|_| {
            tracing::error!("the transport panicked in AddressTypes");
            AddressTypes {
                types: Some(vec![String::new()]),
                uids: Vec::new(),
            }
        })
    }

    /// TransportNotify.
    pub(super) fn transport_notify(&mut self, session: Session, said: TransportNotification) {
        use TransportNotification as Said;
        debug!(?said, "transport_notify");
        match said {
            Said::BeginInbound => self.set_inbound(session, true),
            Said::EndInbound => self.set_inbound(session, false),
            Said::BeginOutbound => self.set_outbound(session, true),
            Said::EndOutbound => self.set_outbound(session, false),
            Said::BeginInboundFlush => self.set_flush(session, Direction::Inbound, true),
            Said::EndInboundFlush => self.set_flush(session, Direction::Inbound, false),
            Said::BeginOutboundFlush => self.set_flush(session, Direction::Outbound, true),
            Said::EndOutboundFlush => self.set_flush(session, Direction::Outbound, false),
            Said::CancelMessage {
                message,
                reference,
                abort_deferred,
            } => self.cancel_message(message, reference, abort_deferred),
            Said::CancelReception { reference } => self.cancel_reception(session, reference),
            // The spooler logs off; what is deferred stays, and another session may ask for it.
            Said::AbortDeferred => {}
        }
    }

    fn set_outbound(&mut self, session: Session, begun: bool) {
        if let Some(peer) = self.peers.get_mut(&session) {
            peer.begun[Direction::Outbound as usize] = begun && !peer.no_connect;
        }
        self.flows_changed();
        self.row_due(session);
    }

    fn set_flush(&mut self, session: Session, direction: Direction, on: bool) {
        if let Some(peer) = self.peers.get_mut(&session) {
            peer.flush[direction as usize] = on;
        }
        self.row_due(session);
        if on && !self.is_offline(session) {
            self.call_flush(Flush {
                upload: direction == Direction::Outbound,
                download: direction == Direction::Inbound,
                force: false,
            });
        }
    }

    /// NO_CONNECT holds for this session: what it asks for does not make the transport reach out.
    fn is_offline(&self, session: Session) -> bool {
        self.peers.get(&session).is_none_or(|peer| peer.no_connect)
    }

    /// FlushQueues: answered at once, by the row's flush bits.
    pub(super) fn flush_queues(&mut self, session: Session, flush: Flush) {
        if self.is_offline(session) {
            self.row_due(session);
            return;
        }
        self.call_flush(flush);
    }

    /// The transport has flushed.
    pub(super) fn flushed(&mut self, flush: Flush) {
        for direction in directions(flush) {
            let count = &mut self.flushing[direction as usize];
            *count = count.saturating_sub(1);
        }
        self.shares_changed();
    }

    fn call_flush(&mut self, flush: Flush) {
        for direction in directions(flush) {
            self.flushing[direction as usize] += 1;
        }
        self.shares_changed();
        let (transport, teller) = (Arc::clone(&self.transport), self.tools.teller.clone());
        self.runtime.spawn(async move {
            let call = AssertUnwindSafe(transport.flush_queues(flush)).catch_unwind();
            if call.await.is_err() {
                tracing::error!("the transport panicked in FlushQueues");
            }
            teller.tell(Told::Flushed(flush));
        });
    }

    /// Idle: one at a time, not in a critical section, and only if no other spooler has work under way here.
    pub(super) fn idle(&mut self, session: Session) {
        let wanted = self.logon.as_ref().is_ok_and(|reply| reply.idle);
        // Permits of a door that stand ready are no work.
        let receiving = self.receiving > 0 && !self.permits.standing;
        let busy = !self.running.is_empty() || !self.ending.is_empty() || receiving;
        if !wanted || busy || self.critical_section || self.idling || self.is_offline(session) {
            return;
        }
        self.idling = true;
        let (transport, teller) = (Arc::clone(&self.transport), self.tools.teller.clone());
        self.runtime.spawn(async move {
            let call = AssertUnwindSafe(transport.idle()).catch_unwind();
            if call.await.is_err() {
                tracing::error!("the transport panicked in Idle");
            }
            teller.tell(Told::Idled);
        });
    }

    /// ValidateState.
    pub(super) fn validate(
        &mut self,
        session: Session,
        correlation: Correlation,
        config_changed: bool,
    ) {
        if self.critical_section {
            self.reply(session, correlation, Verb::ValidateReply(Validation::Busy));
            return;
        }
        if self.is_offline(session) {
            let offline = Validation::Failing("offline: logged on with NO_CONNECT".to_owned());
            self.reply(session, correlation, Verb::ValidateReply(offline));
            return;
        }
        let (transport, teller) = (Arc::clone(&self.transport), self.tools.teller.clone());
        self.runtime.spawn(async move {
            let call = AssertUnwindSafe(transport.validate_state(config_changed)).catch_unwind();
            let validation = call
                .await
                .unwrap_or_else(|_| Validation::Failing("the transport panicked".to_owned()));
            teller.tell(Told::Validated(session, correlation, validation));
        });
    }
}

fn directions(flush: Flush) -> impl Iterator<Item = Direction> {
    let both = [
        (flush.download, Direction::Inbound),
        (flush.upload, Direction::Outbound),
    ];
    both.into_iter()
        .filter_map(|(wanted, direction)| wanted.then_some(direction))
}
