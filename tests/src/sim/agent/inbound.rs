//! A door: mail that clients bring and files that lie in a folder, permits, SaveChanges, confirms.
//!
//! A client is told "accepted" after the confirm. Where the confirm does not come, the same id is published again, marked. A
//! file's id is derived from it, so that whoever brings it twice brings one message.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pombo_proto::{
    attempt::Session,
    gate::Gate,
    ids::{Correlation, Issue, MessageId, Reference},
    message::{
        Body, Content, Envelope, Message, MessageClass, Priority, Recipient, ReportReturn, Source,
    },
    time::UnixMillis,
    verbs::{SpoolerNotification, StartResult, Verb},
};

use super::{Agent, Kind};
use crate::sim::{
    checks::Seen,
    context::{Context, Effect, Timer},
    options::{Millis, Sabotage},
};

/// The shortest interval between two notifications.
const FLOOR: Millis = 1_000;

/// A mail at this door: whether it is a file, and its number.
type Mail = (bool, u32);

/// The door.
pub(super) struct Inbound {
    gate: Gate<Session>,
    gate_timer: bool,
    notified: Option<Millis>,
    door: u32,
    sequence: u64,
    references: u64,
    /// Told of, and in nobody's hands.
    waiting: VecDeque<Mail>,
    /// Being written under a permit.
    filling: BTreeMap<(Session, Correlation), Mail>,
    /// Published, and not confirmed.
    unconfirmed: BTreeMap<u64, Published>,
    known: BTreeSet<Mail>,
    token: u64,
    /// It takes no mail any more.
    closed: bool,
}

struct Published {
    mail: Mail,
    message: Message,
    /// Who is told that StartMessage has returned.
    permit: Option<(Session, Correlation)>,
}

impl Inbound {
    pub(super) fn new(door: u32) -> Self {
        Self {
            gate: Gate::new(std::time::Duration::from_millis(FLOOR)),
            gate_timer: false,
            notified: None,
            door,
            sequence: 0,
            references: Reference::FIRST.0,
            waiting: VecDeque::new(),
            filling: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            known: BTreeSet::new(),
            token: 0,
            closed: false,
        }
    }

    /// No mail from now on; who waits goes to another door.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.waiting.clear();
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.filling.is_empty() && self.unconfirmed.is_empty()
    }
}

impl Agent {
    /// There is mail.
    pub(super) fn mail(&mut self, number: u32, file: bool, cx: &mut Context<'_>) {
        let inbound = &mut self.inbound;
        if self.kind != Kind::Door || inbound.closed || !inbound.known.insert((file, number)) {
            return;
        }
        cx.show(Seen::Arrived(file, number));
        inbound.waiting.push_back((file, number));
        let soon = inbound.notified.is_some_and(|at| cx.now.ms < at + FLOOR);
        if !(soon && cx.broken(Sabotage::ForgetLastNotification)) {
            inbound.gate.handle_notify();
        }
    }

    pub(super) fn gate_timer_fired(&mut self) {
        self.inbound.gate_timer = false;
    }

    /// Notifies one session, as soon as the gate opens.
    pub(super) fn look_at_the_gate(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.instant();
        if self.inbound.gate.poll_action(now) {
            let taking = self.peers.iter().filter(|(_, peer)| peer.takes_mail);
            let taking: Vec<Session> = taking.map(|(session, _)| *session).collect();
            if !taking.is_empty() {
                let session = taking[cx.random.usize(..taking.len())];
                self.inbound.gate.handle_sent(now, session);
                self.inbound.notified = Some(cx.now.ms);
                let verb = Verb::SpoolerNotify(SpoolerNotification::NewMail);
                self.say(session, Correlation(0), verb);
            }
        }
        if let Some(at) = self.inbound.gate.poll_timeout()
            && at > now
            && !self.inbound.gate_timer
        {
            self.inbound.gate_timer = true;
            cx.after((at - now).as_millis() as Millis + 1, Timer::Gate);
        }
    }

    /// A permit.
    pub(super) fn start_message(
        &mut self,
        session: Session,
        correlation: Correlation,
        cx: &mut Context<'_>,
    ) {
        let inbound = &mut self.inbound;
        inbound.gate.handle_fetch(session);
        let Some(mail) = inbound.waiting.pop_front() else {
            return self.say(session, correlation, Verb::StartReply(StartResult::Nothing));
        };
        inbound.references += 1;
        let reference = Reference(inbound.references);
        inbound.filling.insert((session, correlation), mail);
        self.say(session, correlation, Verb::StartReference { reference });
        let takes = cx.random.u64(1..400);
        cx.after(takes, Timer::Filled(session, correlation));
    }

    /// The content is there: SaveChanges.
    pub(super) fn filled(
        &mut self,
        session: Session,
        correlation: Correlation,
        cx: &mut Context<'_>,
    ) {
        let inbound = &mut self.inbound;
        let Some(mail) = inbound.filling.remove(&(session, correlation)) else {
            return;
        };
        if cx.broken(Sabotage::PermitUsedTwice) {
            inbound.filling.insert((session, correlation), mail);
            cx.after(1, Timer::Filled(session, correlation));
        }
        let id = if mail.0 {
            MessageId::derived("folder", &mail.1.to_be_bytes())
        } else {
            inbound.sequence += 1;
            MessageId::issued(Issue {
                at: cx.now.unix(),
                door: inbound.door,
                sequence: inbound.sequence,
            })
        };
        cx.show(Seen::Saved(self.instance, session, correlation));
        if cx.broken(Sabotage::DoneBeforeConfirm) {
            Self::done(id, mail, cx);
        }
        let message = letter(id, mail, cx.now.unix());
        let published = Published {
            mail,
            message,
            permit: Some((session, correlation)),
        };
        self.publish(published, false, cx);
    }

    fn publish(&mut self, published: Published, marked: bool, cx: &mut Context<'_>) {
        self.inbound.token += 1;
        let token = self.inbound.token;
        cx.act(Effect::Publish {
            token,
            message: published.message.clone(),
            marked,
        });
        self.inbound.unconfirmed.insert(token, published);
    }

    /// A new link: what was never confirmed may have arrived, or may still.
    pub(super) fn publish_unconfirmed(&mut self, cx: &mut Context<'_>) {
        for published in std::mem::take(&mut self.inbound.unconfirmed).into_values() {
            self.publish(published, true, cx);
        }
    }

    /// Accepted.
    pub(super) fn confirmed(&mut self, token: u64, cx: &mut Context<'_>) {
        let Some(published) = self.inbound.unconfirmed.remove(&token) else {
            return;
        };
        let id = published.message.envelope.id;
        cx.show(Seen::Confirmed(id));
        Self::done(id, published.mail, cx);
        let more = !self.inbound.waiting.is_empty();
        if let Some((session, correlation)) = published.permit {
            let size = published.message.inline.len() as u64;
            let saved = StartResult::Saved { id, size, more };
            self.say(session, correlation, Verb::StartReply(saved));
        }
    }

    /// Whoever brought it is told that it is accepted.
    fn done(id: MessageId, (file, number): Mail, cx: &mut Context<'_>) {
        cx.show(Seen::Done(id, file, number));
        if file {
            cx.act(Effect::Remove(number));
        } else {
            cx.act(Effect::Accept(number));
        }
    }

    /// A session is over: what was being written is discarded, and what it was told of is announced in another one.
    pub(super) fn end_permits(&mut self, session: Session) {
        let inbound = &mut self.inbound;
        inbound.gate.handle_session_ended(session);
        let mine: Vec<_> = inbound
            .filling
            .keys()
            .filter(|(of, _)| *of == session)
            .copied()
            .collect();
        for key in mine {
            if let Some(mail) = inbound.filling.remove(&key) {
                inbound.waiting.push_back(mail);
            }
        }
        if !inbound.waiting.is_empty() {
            inbound.gate.handle_notify();
        }
    }
}

/// What a client sends: who gets it follows from its number.
fn letter(id: MessageId, (file, number): Mail, now: UnixMillis) -> Message {
    let recipients = 1 + number as usize % 3;
    let address = |index: usize| Recipient::smtp(format!("r{index}@d{}.test", number % 2));
    let body = format!("Subject: {number}\r\n\r\n{file}\r\n");
    let envelope = Envelope {
        id,
        class: MessageClass::Note,
        sender: "ann@home.test".to_owned(),
        recipients: (0..recipients).map(address).collect(),
        priority: Priority::ALL[number as usize % 3],
        submitted_at: now,
        deferred_until: None,
        expires_at: None,
        report_return: ReportReturn::Headers,
        envelope_id: None,
        content: Content::default(),
        source: Source::default(),
        body: Body::Inline {
            size: body.len() as u64,
        },
        properties: Vec::new(),
    };
    pombo_proto::frame::encode_message(envelope, body.as_bytes())
}
