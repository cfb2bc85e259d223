//! An agent: its sessions, its status rows, and either an outbound transport or a door behind them.

mod drain;
mod inbound;
mod outbound;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pombo_agent::host::right::Right;
use pombo_proto::{
    attempt::{Attempts, Session},
    frame::{Frame, Packet, Payload},
    ids::{Correlation, Incarnation, Instance, MessageId},
    outbound::{self as numbering, Heard, Outbound},
    time::UnixMillis,
    verbs::{
        AddressTypes, FlowState, Hello, LogonAccepted, Role, StatusRow, Tenancy,
        TransportNotification, VERSIONS, Verb,
    },
};

use super::{
    checks::Seen,
    context::{Context, Effect, Input, Timer},
    options::{Millis, Sabotage},
};
use inbound::Inbound;
use outbound::Sending;

/// How often an agent says hello, and how often its rows go out.
const HELLO_EVERY: Millis = 10_000;
const TICK: Millis = 1_000;
/// A session whose rows are not answered for so long is over.
const SILENCE: Millis = 30_000;
/// Unsettled attempts named in one row.
const UNSETTLED_MAX: usize = 64;

/// What stands behind an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Takes Internet mail.
    Smtp,
    /// Takes anything.
    Spare,
    /// Takes nothing, and brings mail.
    Door,
}

impl Kind {
    /// Its transport's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Smtp => "smtp",
            Self::Spare => "spare",
            Self::Door => "door",
        }
    }

    /// What it takes.
    pub fn takes(self) -> AddressTypes {
        let types = match self {
            Self::Smtp => Some(vec!["SMTP".to_owned()]),
            Self::Spare => None,
            Self::Door => Some(vec![String::new()]),
        };
        AddressTypes {
            types,
            uids: Vec::new(),
        }
    }
}

/// One session, from this side.
struct Peer {
    out: Outbound,
    logged_on: bool,
    takes_mail: bool,
    /// What is submitted here asks before its final dot.
    asks: bool,
    row: u64,
    rows: VecDeque<(u64, Millis)>,
    answered: Millis,
}

/// The agent.
pub struct Agent {
    kind: Kind,
    instance: Instance,
    link: Option<Incarnation>,
    sessions: BTreeMap<Incarnation, Session>,
    peers: BTreeMap<Session, Peer>,
    attempts: Attempts,
    right: Right,
    /// When the latest answered row had been sent; what the checks go by.
    answered: Option<Millis>,
    sending: BTreeMap<MessageId, Sending>,
    /// Ever submitted to it.
    known: BTreeSet<MessageId>,
    serial: u64,
    inbound: Inbound,
    greeted: Millis,
    flushing: bool,
    /// Since when it goes down.
    draining: Option<Millis>,
    /// The broker holds publishes back.
    blocked: bool,
}

impl Agent {
    /// A new run of it.
    pub fn new(kind: Kind, instance: Instance, capacity: u32, door: u32) -> Self {
        Self {
            kind,
            instance,
            link: None,
            sessions: BTreeMap::new(),
            peers: BTreeMap::new(),
            attempts: Attempts::new(capacity),
            right: Right::new(true),
            answered: None,
            sending: BTreeMap::new(),
            known: BTreeSet::new(),
            serial: 0,
            inbound: Inbound::new(door),
            greeted: 0,
            flushing: false,
            draining: None,
            blocked: false,
        }
    }

    /// Attempts that it keeps.
    pub fn keeps(&self) -> u32 {
        self.attempts.in_flight()
    }

    /// Something happens.
    pub fn handle(&mut self, input: Input, cx: &mut Context<'_>) {
        match input {
            Input::Started => cx.after(TICK, Timer::Tick),
            Input::LinkUp(incarnation) => {
                self.link = Some(incarnation);
                self.greet(cx);
                self.publish_unconfirmed(cx);
            }
            Input::LinkDown => {
                self.link = None;
                self.blocked = false;
                self.end_all(cx);
            }
            Input::Packet(packet) => self.packet(&packet, cx),
            Input::Returned(packet) => self.returned(&packet, cx),
            Input::Hello(_) => self.greet(cx),
            Input::Confirmed(token) => self.confirmed(token, cx),
            Input::Mail(number) => self.mail(number, false, cx),
            Input::File(number) => self.mail(number, true, cx),
            Input::Timer(timer) => self.timer(timer, cx),
            Input::Blocked(blocked) => self.set_blocked(blocked, cx),
            Input::Drain => self.drain(cx),
            Input::Leases(_) | Input::Answer(..) => {}
        }
        self.look_at_the_gate(cx);
        self.flush(cx);
    }

    fn timer(&mut self, timer: Timer, cx: &mut Context<'_>) {
        match timer {
            Timer::Tick => self.tick(cx),
            Timer::Flush => self.flushing = false,
            Timer::Dot(id, serial) => self.at_the_dot(id, serial, cx),
            Timer::LateDot(id, serial) => self.dot(id, serial, true, cx),
            Timer::NoGo(id, serial) => self.no_go(id, serial, cx),
            Timer::Return(id, serial) => self.submit_returned(id, serial),
            Timer::Ended(id, serial) => self.end_returned(id, serial, cx),
            Timer::Filled(session, correlation) => self.filled(session, correlation, cx),
            Timer::Gate => self.gate_timer_fired(),
            Timer::Look | Timer::Repeat => {}
        }
    }

    fn greet(&mut self, cx: &mut Context<'_>) {
        let Some(incarnation) = self.link else { return };
        self.greeted = cx.now.ms;
        cx.act(Effect::Hello(Hello {
            role: Role::Agent {
                transport: self.kind.name().to_owned(),
            },
            instance: self.instance,
            incarnation,
            versions: VERSIONS,
            host: "host".to_owned(),
        }));
    }

    fn tick(&mut self, cx: &mut Context<'_>) {
        cx.after(TICK, Timer::Tick);
        self.attempts.tick();
        self.look_for_a_lapse(cx);
        let now = cx.now.ms;
        let blocked = self.blocked;
        let silent = |peer: &Peer| now > peer.answered + SILENCE && !blocked;
        let over: Vec<Session> = self
            .peers
            .iter()
            .filter(|(_, peer)| silent(peer))
            .map(|(session, _)| *session)
            .collect();
        for session in over.into_iter().chain(self.attempts.sessions_to_end()) {
            self.end_session(session, true, cx);
        }
        if self.link.is_some() && now >= self.greeted + HELLO_EVERY {
            self.greet(cx);
        }
        let mut unsettled = self.attempts.unsettled(UNSETTLED_MAX);
        unsettled.sort_unstable_by_key(|it| it.id);
        for session in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send_row(session, &unsettled, cx);
        }
        let kept = self.attempts.in_flight() as usize;
        let most = cx.options.capacity as usize;
        cx.show(Seen::Held("attempts kept", kept, most));
        self.drain_beat(cx);
    }

    /// Nothing can be answered meanwhile.
    fn set_blocked(&mut self, blocked: bool, cx: &mut Context<'_>) {
        self.blocked = blocked;
        for peer in self.peers.values_mut() {
            peer.answered = cx.now.ms;
        }
    }

    fn send_row(&mut self, session: Session, unsettled: &[Tenancy], cx: &mut Context<'_>) {
        let credit = self.credit(session);
        let Some(peer) = self.peers.get_mut(&session).filter(|it| it.logged_on) else {
            return;
        };
        peer.row += 1;
        peer.rows.push_back((peer.row, cx.now.ms));
        if peer.rows.len() > 64 {
            peer.rows.pop_front();
        }
        let enabled = FlowState {
            enabled: true,
            ..FlowState::default()
        };
        let row = StatusRow {
            row: peer.row,
            inbound: enabled,
            outbound: enabled,
            credit,
            in_flight: self.attempts.in_flight(),
            unsettled: unsettled.to_vec(),
            last_error: None::<(UnixMillis, String)>,
            ..StatusRow::default()
        };
        peer.out
            .push(Frame::verb(Correlation(0), Verb::ModifyStatusRow(row)));
    }

    fn credit(&self, session: Session) -> u32 {
        if self.kind == Kind::Door {
            0
        } else {
            self.attempts.credit(session)
        }
    }

    fn say(&mut self, session: Session, correlation: Correlation, verb: Verb) {
        if let Some(peer) = self.peers.get_mut(&session) {
            peer.out.push(Frame::verb(correlation, verb));
        }
    }

    fn flush(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.instant();
        for peer in self.peers.values_mut() {
            while let Some(packet) = peer.out.poll_packet(now) {
                cx.act(Effect::Send(packet));
            }
            if peer.out.poll_timeout().is_some() && !self.flushing {
                self.flushing = true;
                cx.after(numbering::PATIENCE.as_millis() as Millis + 1, Timer::Flush);
            }
        }
    }

    fn packet(&mut self, packet: &Packet, cx: &mut Context<'_>) {
        let Some(mine) = self.link else { return };
        if let Some(epoch) = numbering::ended(packet) {
            let session = self.sessions.get(&packet.from).copied();
            if let Some(session) = session.filter(|it| self.peers[it].out.epoch() == epoch) {
                self.end_session(session, false, cx);
            }
            return;
        }
        if let Some(epoch) = numbering::opening(packet) {
            if let Some(earlier) = self.sessions.get(&packet.from).copied() {
                self.end_session(earlier, false, cx);
            }
            self.right.await_proof(cx.now.boot());
            let session = self.attempts.open_session();
            self.sessions.insert(packet.from, session);
            let peer = Peer {
                out: Outbound::new(mine, packet.from, epoch),
                logged_on: false,
                takes_mail: false,
                asks: false,
                row: 0,
                rows: VecDeque::new(),
                answered: cx.now.ms,
            };
            self.peers.insert(session, peer);
        }
        let session = self.sessions.get(&packet.from).copied();
        let Some((session, peer)) = session.and_then(|it| Some((it, self.peers.get_mut(&it)?)))
        else {
            if let Some(epoch) = numbering::epoch_of(packet) {
                let end = numbering::no_session(mine, packet.from, epoch);
                cx.act(Effect::Send(end));
            }
            return;
        };
        match peer.out.handle_packet(packet) {
            Heard::Stale => return,
            Heard::Broken => return self.end_session(session, true, cx),
            Heard::InOrder => {}
        }
        for frame in &packet.frames {
            if let Payload::Verb(verb) = &frame.payload {
                self.verb(session, frame, verb.clone(), cx);
            }
        }
    }

    fn verb(&mut self, session: Session, frame: &Frame, verb: Verb, cx: &mut Context<'_>) {
        let correlation = frame.correlation;
        match verb {
            Verb::TransportLogon(_) => {
                let accepted = LogonAccepted {
                    version: 1,
                    instance: self.instance,
                    poll: false,
                    idle: false,
                    resolve: false,
                    hold_in_doubt: false,
                    credit: self.credit(session),
                };
                if let Some(peer) = self.peers.get_mut(&session) {
                    peer.logged_on = true;
                }
                self.say(session, correlation, Verb::LogonReply(Ok(accepted)));
                self.send_row(session, &[], cx);
            }
            Verb::AddressTypes => {
                let takes = self.kind.takes();
                self.say(session, correlation, Verb::AddressTypesReply(takes));
            }
            Verb::TransportNotify(said) => self.transport_notify(session, said),
            Verb::SubmitMessage(submit) => self.submit(session, correlation, submit, cx),
            Verb::EndMessage {
                id,
                fence,
                reference,
            } => self.end_message(session, correlation, (id, fence).into(), reference, cx),
            Verb::Adopt(mut tenancies) => {
                let mut answers = Vec::new();
                if cx.broken(Sabotage::UnknownWithoutTombstone) {
                    (tenancies, answers) = self.careless_answers(tenancies);
                }
                answers.extend(self.attempts.handle_adopt(&tenancies));
                self.say(session, correlation, Verb::AdoptReply(answers));
            }
            Verb::AskAtTheDot => {
                if let Some(peer) = self.peers.get_mut(&session) {
                    peer.asks = true;
                }
            }
            Verb::Go(tenancy) => self.go(tenancy, cx),
            Verb::Settled(tenancies) => self.settled(&tenancies),
            Verb::StatusAnswer { row } => self.status_answered(session, row, cx),
            Verb::StartMessage => self.start_message(session, correlation, cx),
            Verb::TransportLogoff => self.end_session(session, false, cx),
            _ => {}
        }
    }

    fn transport_notify(&mut self, session: Session, said: TransportNotification) {
        match said {
            TransportNotification::BeginInbound => {
                if let Some(peer) = self.peers.get_mut(&session) {
                    peer.takes_mail = true;
                }
            }
            TransportNotification::CancelMessage {
                message, reference, ..
            } => self.cancel_message(message, reference),
            _ => {}
        }
    }

    /// The spooler's incarnation lives, and did when this row was sent.
    fn status_answered(&mut self, session: Session, row: u64, cx: &mut Context<'_>) {
        // An answer that comes after a lapse must not undo it.
        self.look_for_a_lapse(cx);
        let Some(peer) = self.peers.get_mut(&session) else {
            return;
        };
        while let Some((number, sent_at)) = peer.rows.front().copied() {
            if number > row {
                return;
            }
            peer.rows.pop_front();
            if number == row {
                peer.answered = cx.now.ms;
                self.answered = self.answered.max(Some(sent_at));
                let sent_at = std::time::Duration::from_millis(sent_at);
                self.right.prove(sent_at);
            }
        }
    }

    /// Nobody has answered for too long: what is under way has lost its right for good, and so have the sessions.
    fn look_for_a_lapse(&mut self, cx: &mut Context<'_>) {
        if self.kind == Kind::Door || !self.right.has_lapsed(cx.now.boot()) {
            return;
        }
        for session in self.peers.keys().copied().collect::<Vec<_>>() {
            self.end_session(session, true, cx);
        }
        self.greet(cx);
    }

    fn returned(&mut self, packet: &Packet, cx: &mut Context<'_>) {
        let session = self.sessions.get(&packet.to).copied();
        let epoch = numbering::epoch_of(packet);
        if let Some(session) = session.filter(|it| Some(self.peers[it].out.epoch()) == epoch) {
            self.end_session(session, false, cx);
        }
    }

    /// What it has spent stays spent; what it was told of is told to another one.
    fn end_session(&mut self, session: Session, say_so: bool, cx: &mut Context<'_>) {
        let (Some(mine), Some(peer)) = (self.link, self.peers.remove(&session)) else {
            return;
        };
        if say_so {
            let end = numbering::no_session(mine, peer.out.peer(), peer.out.epoch());
            cx.act(Effect::Send(end));
        }
        self.sessions.remove(&peer.out.peer());
        self.attempts.handle_session_ended(session);
        self.end_permits(session);
    }

    fn end_all(&mut self, _: &mut Context<'_>) {
        for session in std::mem::take(&mut self.peers).into_keys() {
            self.attempts.handle_session_ended(session);
            self.end_permits(session);
        }
        self.sessions.clear();
    }
}
