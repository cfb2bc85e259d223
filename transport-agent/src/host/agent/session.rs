//! Sessions: how they open and how they end. Their attempts stay.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use pombo_proto::{
    attempt::Session,
    frame::{Frame, Packet},
    ids::{Correlation, Incarnation, Reference},
    outbound::{self, Outbound},
    verbs::{Logon, LogonAccepted, LogonError, SpoolerNotification, Verb},
};
use tracing::{info, warn};

use super::{Agent, Direction};
use crate::host::{cancel::Cancel, right::boot_time};

/// One session, with the spooler at its other end.
pub(super) struct Peer {
    pub out: Outbound,
    pub logged_on: bool,
    /// NO_CONNECT: this spooler wants the transport not to reach out.
    pub no_connect: bool,
    /// The spooler's name, once it has logged on.
    pub name: String,
    /// BEGIN_INBOUND and BEGIN_OUTBOUND, by [`Direction`].
    pub begun: [bool; 2],
    /// Doubt is held: what is submitted here asks before its point of no return.
    pub asks: bool,
    /// BEGIN_INBOUND_FLUSH and BEGIN_OUTBOUND_FLUSH, by [`Direction`].
    pub flush: [bool; 2],
    /// The number of the last row, and when the last ones were sent, by the boot clock.
    pub row: u64,
    pub rows: VecDeque<(u64, Duration)>,
    /// A row goes out with the next packet.
    pub row_due: bool,
    /// The credit that was told last.
    pub credit: u32,
    /// When a row was answered last.
    pub answered: Instant,
    /// Permits that are out, by the question that they answer.
    pub permits: HashMap<Correlation, Reception>,
}

/// A permit, from this side.
#[derive(Default)]
pub(super) struct Reception {
    pub reference: Option<Reference>,
    pub cancel: Cancel,
}

impl Peer {
    fn new(out: Outbound) -> Self {
        Self {
            out,
            logged_on: false,
            no_connect: false,
            name: String::new(),
            begun: [false; 2],
            asks: false,
            flush: [false; 2],
            row: 0,
            rows: VecDeque::new(),
            row_due: false,
            credit: 0,
            answered: Instant::now(),
            permits: HashMap::new(),
        }
    }
}

impl Agent {
    /// A spooler opens a session, or is told why not.
    pub(super) fn open(
        &mut self,
        mine: Incarnation,
        packet: &Packet,
        epoch: u32,
    ) -> Option<Session> {
        let mut out = Outbound::new(mine, packet.from, epoch);
        let refused = match &self.logon {
            _ if self.draining.is_some() => Some(LogonError::Draining),
            Err(error) => Some(error.clone()),
            Ok(_) if self.peers.len() >= self.settings.sessions_max => {
                let text = "the agent has too many sessions".to_owned();
                Some(LogonError::FailOneProvider(text))
            }
            Ok(_) => None,
        };
        if let Some(error) = refused {
            self.counters.logons_refused += 1;
            info!(%error, "logon refused");
            let correlation = packet
                .frames
                .first()
                .map_or(Correlation(0), |frame| frame.correlation);
            out.handle_packet(packet);
            out.push(Frame::verb(correlation, Verb::LogonReply(Err(error))));
            while let Some(packet) = out.poll_packet(Instant::now()) {
                self.wire.send(&packet);
            }
            return None;
        }
        let session = self.attempts.open_session();
        self.sessions.insert(packet.from, session);
        self.peers.insert(session, Peer::new(out));
        Some(session)
    }

    /// TransportLogon.
    pub(super) fn logon(&mut self, session: Session, correlation: Correlation, logon: Logon) {
        let (Ok(reply), Some(peer)) = (self.logon.clone(), self.peers.get_mut(&session)) else {
            return;
        };
        if std::mem::replace(&mut peer.logged_on, true) {
            self.end_session(session, "it logs on twice");
            return;
        }
        let spoken = self.settings.versions;
        let version = match spoken.common(logon.versions) {
            None => Err(LogonError::Version(spoken)),
            Some(_) if logon.blobs != self.blobs_identity => {
                Err(LogonError::Blobs(self.blobs_identity.clone()))
            }
            Some(version) => Ok(version),
        };
        peer.name = logon.spooler;
        let version = match version {
            Ok(version) => version,
            Err(error) => {
                self.counters.logons_refused += 1;
                warn!(spooler = peer.name, %error, "logon refused");
                self.reply(session, correlation, Verb::LogonReply(Err(error)));
                self.forget_session(session);
                return;
            }
        };
        peer.no_connect = logon.no_connect;
        peer.begun[Direction::Outbound as usize] = !logon.no_outbound && !logon.no_connect;
        let name = peer.name.clone();
        self.right.await_proof(boot_time());
        self.counters.sessions += 1;
        self.choose_poller();
        let credit = self.credit(session);
        let no_connect = logon.no_connect;
        info!(
            spooler = name,
            version, credit, no_connect, "session opened"
        );
        let accepted = LogonAccepted {
            version,
            instance: self.instance,
            poll: self.poller == Some(session),
            idle: reply.idle,
            resolve: reply.resolve,
            hold_in_doubt: false,
            credit,
        };
        self.reply(session, correlation, Verb::LogonReply(Ok(accepted)));
        self.agree(session, version);
        if let Some(diagnosis) = self.critical_error.clone() {
            let error = SpoolerNotification::CriticalError(diagnosis);
            self.say(session, Verb::SpoolerNotify(error));
        }
        if self.critical_section {
            self.say(session, Verb::SpoolerNotify(SpoolerNotification::CritSec));
        }
        for notification in std::mem::take(&mut self.waiting) {
            self.say(session, Verb::SpoolerNotify(notification));
        }
        self.set_inbound(session, !logon.no_inbound);
        self.shares_changed();
    }

    /// The answer still goes in the version that everybody reads, all after it in the one that was agreed.
    fn agree(&mut self, session: Session, version: u16) {
        let Some(peer) = self.peers.get_mut(&session) else {
            return;
        };
        while let Some(packet) = peer.out.poll_packet(Instant::now()) {
            self.wire.send(&packet);
        }
        peer.out.agree(version);
    }

    /// Ends a session by our own wish, and says so.
    pub(super) fn end_session(&mut self, session: Session, reason: &str) {
        let (Some(mine), Some(peer)) = (self.incarnation, self.peers.get(&session)) else {
            return;
        };
        warn!(spooler = peer.name, reason, "the session has ended");
        let end = outbound::no_session(mine, peer.out.peer(), peer.out.epoch());
        self.forget_session(session);
        self.wire.send(&end);
    }

    /// A session is over: what it has spent stays spent, what it was told is told to another one.
    pub(super) fn forget_session(&mut self, session: Session) {
        let Some(mut peer) = self.peers.remove(&session) else {
            return;
        };
        // What was pushed and not sent (a refusal, for example) may still be of use.
        while let Some(packet) = peer.out.poll_packet(Instant::now()) {
            self.wire.send(&packet);
        }
        self.sessions.remove(&peer.out.peer());
        self.attempts.handle_session_ended(session);
        self.end_permits(session, &peer);
        if self.poller == Some(session) {
            self.poller = None;
        }
        self.choose_poller();
        self.flows_changed();
        self.shares_changed();
    }

    /// The permits of a session that is over. What it would have fetched is announced again.
    fn end_permits(&mut self, session: Session, peer: &Peer) {
        for reception in peer.permits.values() {
            reception.cancel.cancel();
        }
        self.permits.close(session);
        self.gate.handle_session_ended(session);
        if !peer.permits.is_empty() {
            self.gate.handle_notify();
        }
    }

    /// All sessions, oldest first.
    pub(super) fn open_sessions(&self) -> Vec<Session> {
        self.peers.keys().copied().collect()
    }

    /// Traffic may flow while any session lets it.
    pub(super) fn flows_changed(&mut self) {
        use crate::provider::Flow;
        for direction in [Direction::Inbound, Direction::Outbound] {
            let index = direction as usize;
            let wanted =
                self.draining.is_none() && self.peers.values().any(|peer| peer.begun[index]);
            if self.begun[index] != wanted {
                self.begun[index] = wanted;
                let flow = if wanted { Flow::Begin } else { Flow::End };
                self.flows_open.fetch_add(1, Ordering::Relaxed);
                // The other end lives as long as the runtime.
                let _ = self.flows.send((direction, flow));
            }
        }
        self.health.set("session", self.is_served());
    }

    /// Whether anybody gives this agent work, or takes what it has: a session, and for one that only receives, one that lets mail
    /// in. (One that sends is ready offline, too: it was kept so on purpose.)
    fn is_served(&self) -> Result<(), String> {
        let receives_only = self.logon.as_ref().is_ok_and(|reply| !reply.outbound);
        if !self.peers.values().any(|peer| peer.logged_on) {
            Err("no spooler has a session with this agent".to_owned())
        } else if receives_only && !self.begun[Direction::Inbound as usize] {
            Err("no spooler lets mail in".to_owned())
        } else {
            Ok(())
        }
    }
}
