//! One session with one agent, from the spooler's side: logon, rows, the ladders of its submissions and receptions.

mod ends;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use pombo_proto::{
    frame::{Frame, Packet, Payload},
    gate::{Permit, StartReply},
    ids::{Correlation, Incarnation, Instance, MessageId, RecipientIndex, Reference},
    ladder::{
        reception::Reception,
        submission::{Action, Submission},
    },
    outbound::{self as numbering, Heard, Outbound},
    tenure::Ordinal,
    verbs::{
        AddressTypes, Hello, Logon, Role, SpoolerNotification, StartResult, StatusRow, Submit,
        Tenancy, TransportNotification, VERSIONS, Verb,
    },
};
use pombo_spooler::{
    job::Job,
    membership::HOLDS,
    note::Dot,
    store::{ListedInstance, Write, Written},
    verdict::{self, Happened, Tried},
};

use super::{Asked, Spooler, holds_doubt, membership::ms, record::Conclude};
use crate::sim::{
    context::Context,
    options::{Millis, Sabotage},
    store::Ask,
};

/// One attempt.
struct UnderWay {
    job: Job,
    number: u64,
    considered: Vec<RecipientIndex>,
    ladder: Submission,
}

/// See the module.
pub(super) struct Session {
    pub instance: Instance,
    pub transport: String,
    out: Outbound,
    /// When it opened, in the order of this process; `None`: it is not open yet.
    opened: Option<Ordinal>,
    began: Millis,
    heard: Millis,
    /// A status row has come since the last renewal.
    pub row_heard: bool,
    /// Until when its rows are answered: as long as a renewal holds that has raised the agent's counter.
    pub answered_until: Millis,
    credit: u32,
    outstanding: u32,
    under_way: BTreeMap<MessageId, UnderWay>,
    receiving: BTreeMap<Correlation, (Permit, Reception)>,
}

impl Session {
    /// A verb that nothing answers.
    pub fn say(&mut self, verb: Verb) {
        self.out.push(Frame::verb(Correlation(0), verb));
    }

    fn ask(&mut self, verb: Verb) -> Correlation {
        let correlation = self.out.correlate();
        self.out.push(Frame::verb(correlation, verb));
        correlation
    }

    /// Whether it is open, with this instance.
    pub fn is_open_with(&self, instance: Instance) -> bool {
        self.opened.is_some() && self.instance == instance
    }

    /// Messages that may be submitted now.
    pub fn free(&self) -> u32 {
        match self.opened {
            Some(_) => self.credit.saturating_sub(self.outstanding),
            None => 0,
        }
    }

    /// When it opened.
    pub fn opened(&self) -> Option<Ordinal> {
        self.opened
    }

    /// Whether something is submitted here.
    pub fn has_submitted(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// What can be said now.
    pub fn packets(&mut self, now: Instant) -> Vec<Packet> {
        std::iter::from_fn(|| self.out.poll_packet(now)).collect()
    }

    /// A credit that was spent in the session opened then is free again.
    pub fn give_back(&mut self, opened: Ordinal) {
        if self.opened == Some(opened) {
            self.outstanding = self.outstanding.saturating_sub(1);
        }
    }

    /// SubmitMessage.
    pub fn submit(&mut self, job: Job, considered: Vec<RecipientIndex>, begin_deferred: bool) {
        let submit = Submit {
            id: job.id(),
            fence: job.tenure.fence(),
            begin_deferred,
            recipients: considered.clone(),
        };
        let number = self
            .out
            .push(Frame::verb(Correlation(0), Verb::SubmitMessage(submit)));
        self.outstanding += 1;
        let ladder = Submission::new(&considered);
        let under_way = UnderWay {
            job,
            number,
            considered,
            ladder,
        };
        self.under_way.insert(under_way.job.id(), under_way);
    }

    /// Settled.
    pub fn settle(&mut self, tenancies: Vec<Tenancy>) {
        self.say(Verb::Settled(tenancies));
    }

    /// Adopt.
    pub fn adopt(&mut self, tenancies: Vec<Tenancy>) {
        self.ask(Verb::Adopt(tenancies));
    }

    /// EndMessage of an adopted attempt.
    pub fn end_message(&mut self, Tenancy { id, fence }: Tenancy, reference: Reference) {
        self.say(Verb::EndMessage {
            id,
            fence,
            reference,
        });
    }

    /// A permit.
    pub fn start_message(&mut self, permit: Permit) {
        let correlation = self.ask(Verb::StartMessage);
        self.receiving
            .insert(correlation, (permit, Reception::new()));
    }
}

impl Spooler {
    /// An agent says hello: it is listed in the store first, then the session is opened.
    pub(super) fn hello(&mut self, hello: Hello, cx: &mut Context<'_>) {
        let Role::Agent { transport } = &hello.role else {
            return;
        };
        if self.going.is_some() {
            return;
        }
        let epoch = u32::try_from(self.next_ordinal().0 + 1).unwrap_or(u32::MAX);
        let Some(term) = self.term.as_mut().filter(|it| it.entered) else {
            return;
        };
        if term.sessions.contains_key(&hello.incarnation) {
            return;
        }
        // An agent has one inbox: its older incarnation, if it is still known, is over.
        let older = |it: &&Session| it.instance == hello.instance;
        let older = term.sessions.values().filter(older);
        for key in older.map(|it| it.out.peer()).collect::<Vec<_>>() {
            self.end_session(key, cx);
        }
        let Some(term) = &mut self.term else { return };
        let session = Session {
            instance: hello.instance,
            transport: transport.clone(),
            out: Outbound::new(term.me, hello.incarnation, epoch),
            opened: None,
            began: cx.now.ms,
            heard: cx.now.ms,
            row_heard: false,
            answered_until: 0,
            credit: 0,
            outstanding: 0,
            under_way: BTreeMap::new(),
            receiving: BTreeMap::new(),
        };
        term.sessions.insert(hello.incarnation, session);
        let listed = ListedInstance {
            instance: hello.instance,
            transport: transport.clone(),
            host: hello.host.clone(),
            counter: 0,
        };
        self.ask(Ask::List(listed), Asked::List(hello, cx.now.ms), cx);
    }

    pub(super) fn log_on(&mut self, hello: &Hello, at: Millis, cx: &mut Context<'_>) {
        let session = self
            .term
            .as_mut()
            .and_then(|it| it.sessions.get_mut(&hello.incarnation));
        if let Some(session) = session {
            session.began = cx.now.ms;
            session.answered_until = at + ms(HOLDS);
            session.ask(Verb::TransportLogon(Logon {
                versions: VERSIONS,
                spooler: "spooler".to_owned(),
                no_connect: false,
                no_inbound: true,
                no_outbound: true,
                blobs: String::new(),
            }));
        }
    }

    /// The open session with this instance.
    pub(super) fn session_with(&mut self, instance: Instance) -> Option<&mut Session> {
        let all = &mut self.term.as_mut()?.sessions;
        all.values_mut().find(|it| it.is_open_with(instance))
    }

    pub(super) fn session(&mut self, key: Incarnation) -> Option<&mut Session> {
        self.term.as_mut()?.sessions.get_mut(&key)
    }

    pub(super) fn packet(&mut self, packet: &Packet, cx: &mut Context<'_>) {
        let (key, now) = (packet.from, cx.now.ms);
        let Some(session) = self.session(key) else {
            return;
        };
        if let Some(epoch) = numbering::ended(packet) {
            if epoch == session.out.epoch() {
                self.end_session(key, cx);
            }
            return;
        }
        match session.out.handle_packet(packet) {
            Heard::Stale => return,
            Heard::Broken => return self.end_session(key, cx),
            Heard::InOrder => session.heard = now,
        }
        for frame in &packet.frames {
            if let Payload::Verb(verb) = &frame.payload {
                self.verb(key, frame.correlation, verb.clone(), cx);
            }
        }
    }

    pub(super) fn returned(&mut self, packet: &Packet, cx: &mut Context<'_>) {
        let epoch = numbering::epoch_of(packet);
        let session = self.session(packet.to);
        let Some(session) = session.filter(|it| Some(it.out.epoch()) == epoch) else {
            return;
        };
        let spent = session.opened.map(|opened| (packet.to, opened));
        let unheard = session
            .under_way
            .extract_if(.., |_, it| it.number >= packet.first);
        for UnderWay {
            job, considered, ..
        } in unheard.map(|(_, it)| it).collect::<Vec<_>>()
        {
            let now = cx.now.unix();
            let recipients = considered.into_iter().map(|index| (index, now)).collect();
            let happened = Happened::Parked {
                reason: "it came back".to_owned(),
                recipients,
            };
            let conclude = Conclude {
                spent,
                ..Conclude::new(job, happened)
            };
            self.conclude(conclude, cx);
        }
        self.end_session(packet.to, cx);
    }

    fn verb(
        &mut self,
        key: Incarnation,
        correlation: Correlation,
        verb: Verb,
        cx: &mut Context<'_>,
    ) {
        match verb {
            Verb::LogonReply(Ok(accepted)) => {
                if let Some(session) = self.session(key) {
                    session.credit = accepted.credit;
                    session.ask(Verb::AddressTypes);
                }
            }
            Verb::AddressTypesReply(types) => self.open(key, &types, cx),
            Verb::ModifyStatusRow(row) => self.status_row(key, row, cx),
            Verb::Reference {
                id,
                fence,
                reference,
            } => self.feed(key, (id, fence).into(), cx, |ladder| {
                ladder.handle_reference(reference).is_ok()
            }),
            Verb::SubmitReply { id, fence, result } => {
                self.feed(key, (id, fence).into(), cx, |ladder| {
                    ladder.handle_submit_reply(result).is_ok()
                });
            }
            Verb::EndReply { id, fence, result } => {
                let mine = self
                    .session(key)
                    .is_some_and(|it| it.under_way.contains_key(&id));
                if !mine {
                    return self.adopted_ended(key, id, result, cx);
                }
                self.feed(key, (id, fence).into(), cx, |ladder| {
                    ladder.handle_end_reply(result).is_ok()
                });
            }
            Verb::AtTheDot(tenancy) => self.at_the_dot(key, tenancy, cx),
            Verb::AdoptReply(answers) => self.adopt_replied(key, answers, cx),
            Verb::SpoolerNotify(SpoolerNotification::NewMail) => {
                if let Some(term) = &mut self.term {
                    term.turns.handle_new_mail(key);
                }
            }
            Verb::StartReference { reference } => {
                let session = self.session(key);
                if let Some((_, ladder)) = session.and_then(|it| it.receiving.get_mut(&correlation))
                    && ladder.handle_reference(reference).is_err()
                {
                    self.end_session(key, cx);
                }
            }
            Verb::StartReply(result) => self.start_replied(key, correlation, result, cx),
            Verb::LoggedOff { kept } => self.logged_off(key, kept, cx),
            _ => {}
        }
    }

    fn open(&mut self, key: Incarnation, types: &AddressTypes, cx: &mut Context<'_>) {
        let now = cx.now.ms;
        if let Some(it) = self.session(key) {
            let (instance, transport) = (it.instance, it.transport.clone());
            self.takes_addresses(instance, &transport, types);
        }
        let late = |it: &mut Session| now >= it.answered_until;
        if self.session(key).is_some_and(late) {
            // Others may not have seen this agent in the store for long.
            return self.end_session(key, cx);
        }
        let ordinal = self.next_ordinal();
        let Some(term) = &mut self.term else { return };
        let Some(session) = term.sessions.get_mut(&key) else {
            return;
        };
        session.opened = Some(ordinal);
        if holds_doubt(&session.transport, cx) {
            session.say(Verb::AskAtTheDot);
        }
        for begin in [
            TransportNotification::BeginInbound,
            TransportNotification::BeginOutbound,
        ] {
            session.say(Verb::TransportNotify(begin));
        }
        if session.transport != "door" {
            term.router.set_address_types(&session.transport, types);
            term.router.set_available(&session.transport, true);
        }
        self.adoption_opened();
    }

    /// It is about to be sent, and doubt is held: that is noted first.
    fn at_the_dot(&mut self, key: Incarnation, tenancy: Tenancy, cx: &mut Context<'_>) {
        let Some(session) = self.session(key) else {
            return;
        };
        let Some(it) = session.under_way.get_mut(&tenancy.id) else {
            return;
        };
        if it.job.tenure.tenancy() != tenancy {
            return;
        }
        it.job.note.dot = Some(Dot {
            transport: session.transport.clone(),
            instance: session.instance,
            considered: it.considered.clone(),
        });
        let write = Write::Note {
            tenancy,
            holder: it.job.tenure.holder(),
            note: pombo_proto::frame::encode(&it.job.note),
        };
        if cx.broken(Sabotage::GoBeforeNote) {
            session.say(Verb::Go(tenancy));
        }
        let ask = Ask::Commit(vec![write]);
        self.ask(ask, Asked::Note(key, tenancy), cx);
    }

    pub(super) fn noted(
        &mut self,
        key: Incarnation,
        tenancy: Tenancy,
        written: &[Written],
        cx: &mut Context<'_>,
    ) {
        let lives = |it: &super::Term| it.membership.lives(cx.now.ms);
        if written != [Written::Won] || !self.term.as_ref().is_some_and(lives) {
            return;
        }
        if let Some(session) = self.session(key)
            && let Some(it) = session.under_way.get(&tenancy.id)
            && it.job.tenure.tenancy() == tenancy
        {
            session.say(Verb::Go(tenancy));
        }
    }

    fn status_row(&mut self, key: Incarnation, row: StatusRow, cx: &mut Context<'_>) {
        let now = cx.now.ms;
        let Some(term) = &mut self.term else { return };
        let Some(session) = term.sessions.get_mut(&key) else {
            return;
        };
        session.row_heard = true;
        if term.membership.lives(now) && now < session.answered_until {
            session.say(Verb::StatusAnswer { row: row.row });
        }
        session.credit = row.credit;
        if !row.unsettled.is_empty() && !cx.broken(Sabotage::SettledLost) {
            self.ask(Ask::Recorded(row.unsettled), Asked::Recorded(key), cx);
        }
    }

    /// The store has recorded these.
    pub(super) fn settle(&mut self, key: Incarnation, tenancies: Vec<Tenancy>) {
        if let Some(session) = self.session(key).filter(|_| !tenancies.is_empty()) {
            session.settle(tenancies);
        }
    }

    /// Feeds a ladder and carries out what it asks for.
    fn feed(
        &mut self,
        key: Incarnation,
        tenancy: Tenancy,
        cx: &mut Context<'_>,
        feed: impl FnOnce(&mut Submission) -> bool,
    ) {
        let Some(session) = self.session(key) else {
            return;
        };
        let under_way = session.under_way.get_mut(&tenancy.id);
        let Some(it) = under_way.filter(|it| it.job.tenure.fence() == tenancy.fence) else {
            return;
        };
        if !feed(&mut it.ladder) {
            return self.end_session(key, cx);
        }
        self.drain(key, tenancy, cx);
    }

    fn drain(&mut self, key: Incarnation, tenancy: Tenancy, cx: &mut Context<'_>) {
        loop {
            let Some(session) = self.session(key) else {
                return;
            };
            let under_way = session.under_way.get_mut(&tenancy.id);
            let Some(action) = under_way.and_then(|it| it.ladder.poll_action()) else {
                return;
            };
            match action {
                Action::SendEndMessage { reference } => session.end_message(tenancy, reference),
                Action::SendCancel { reference } => {
                    session.say(Verb::TransportNotify(
                        TransportNotification::CancelMessage {
                            message: tenancy,
                            reference,
                            abort_deferred: false,
                        },
                    ));
                }
                Action::AskAgain => {}
                Action::Ended(ended) => {
                    let (opened, transport) = (session.opened, session.transport.clone());
                    let Some(it) = session.under_way.remove(&tenancy.id) else {
                        return;
                    };
                    let tried = Tried {
                        hold: holds_doubt(&transport, cx),
                        transport,
                        considered: it.considered,
                        interrupted: false,
                    };
                    let pause = Duration::from_millis(cx.random.u64(500..2_000));
                    let meaning = verdict::ended(tried, ended, cx.now.unix(), pause);
                    let conclude = Conclude {
                        doubt: meaning.doubt,
                        sessions: meaning.kept.then_some(key).into_iter().collect(),
                        spent: opened.map(|opened| (key, opened)),
                        ..Conclude::new(it.job, meaning.happened)
                    };
                    self.conclude(conclude, cx);
                }
            }
        }
    }

    fn start_replied(
        &mut self,
        key: Incarnation,
        correlation: Correlation,
        result: StartResult,
        cx: &mut Context<'_>,
    ) {
        let Some(session) = self.session(key) else {
            return;
        };
        let Some((permit, mut ladder)) = session.receiving.remove(&correlation) else {
            return;
        };
        if ladder.handle_reply(result.clone()).is_err() {
            return self.end_session(key, cx);
        }
        let reply = match result {
            StartResult::Saved { size, more, .. } if more => StartReply::More { bytes: size },
            StartResult::Saved { size, .. } => StartReply::Last { bytes: size },
            _ => StartReply::Nothing,
        };
        if let Some(term) = &mut self.term {
            term.turns.handle_start_reply(key, permit, reply);
        }
    }
}
