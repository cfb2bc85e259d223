//! One session with one agent: its ladders, its numbering, its status row.
//!
//! ```text
//! hello -> TransportLogon -> AddressTypes -> BEGIN_INBOUND, BEGIN_OUTBOUND -> messages flow -> END, TransportLogoff
//! ```
//!
//! Spoken to by the switchboard (packets), the dispatcher (submissions, settlements), the adoption and the reception;
//! speaks to all of them and to the recorder. What bounds it is the agent's credit and the reception's window. Everything
//! arrives in order, or the session ends: a gap, a returned packet, NoSession, misbehaviour and silence are one thing, except
//! that what came back was never heard.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use actix::{
    Actor, ActorContext, Addr, AsyncContext, Context, Handler, ResponseFuture, SpawnHandle,
};
use pombo_proto::{
    control::{SessionRow, ValidationRow},
    frame::{Frame, Packet, Payload},
    ids::{Correlation, Incarnation, Instance, MessageId},
    ladder::PeerMisbehaved,
    outbound::{self, Heard, Outbound},
    tenure::Ordinal,
    verbs::{LogonAccepted, StatusRow, Tenancy, TransportNotification, Validation, Verb},
};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use crate::{
    adoption, dispatcher,
    horizon::Horizon,
    job::SessionKey,
    reception,
    recorder::Conclude,
    switchboard::{Parts, SessionOver, Switchboard},
};

mod calls;
mod inbound;
mod messages;
mod notes;
mod submission;

use inbound::Receiving;
pub use messages::*;
use submission::UnderWay;

/// How often time is looked at.
const TICK: Duration = Duration::from_millis(500);
/// A session is over when no status row has come for so long. An agent sends one every second or two.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Logon and AddressTypes must be answered within this.
const LOGON_MAX: Duration = Duration::from_secs(30);
/// A person does not wait longer for ValidateState. Below the patience of `pombo`.
const VALIDATE_MAX: Duration = Duration::from_secs(10);
/// An attempt that takes longer no longer holds its lease: the broker closes the channel of a delivery that is not acked
/// for half an hour.
const LEASED_MAX: Duration = Duration::from_secs(600);

/// The other side of a session.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its incarnation.
    pub key: SessionKey,
    /// Its run.
    pub instance: Instance,
    /// Its transport.
    pub transport: String,
    /// Its host, for people.
    pub host: String,
    /// Until when its status rows are answered.
    pub horizon: Horizon,
}

/// Where on the ladder of a session's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    AwaitingLogon,
    AwaitingAddressTypes,
    Open,
    Over,
}

/// The actor.
pub struct Session {
    parts: Parts,
    switchboard: Addr<Switchboard>,
    me: Addr<Self>,
    peer: Peer,
    mine: Incarnation,
    life: Life,
    out: Outbound,
    since: Instant,
    opened: Option<Ordinal>,
    accepted: Option<LogonAccepted>,
    status: StatusRow,
    heard: Instant,
    blocked: bool,
    critical_section: bool,
    critical_error: bool,
    under_way: HashMap<MessageId, UnderWay>,
    /// About to be tried alone, as soon as that is noted.
    alone: HashMap<MessageId, Submission>,
    concluded: Vec<Conclude>,
    receiving: Receiving,
    polled: Option<(Correlation, Instant)>,
    poll_again: bool,
    validating: HashMap<Correlation, oneshot::Sender<Validation>>,
    idled: Instant,
    busy: Instant,
    flush_timer: Option<SpawnHandle>,
}

impl Session {
    /// A session that says TransportLogon as soon as it starts.
    pub fn new(
        parts: Parts,
        switchboard: Addr<Switchboard>,
        me: Addr<Self>,
        mine: Incarnation,
        peer: Peer,
    ) -> Self {
        let now = Instant::now();
        // Any number that this pair has not used before: the peer's incarnation knows us by ours, which is new in every
        // term, and within one term the session counter only grows.
        let epoch = u32::try_from(parts.ordinals.next().0 + 1).unwrap_or(u32::MAX);
        Self {
            out: Outbound::new(mine, peer.key, epoch),
            parts,
            switchboard,
            me,
            peer,
            mine,
            life: Life::AwaitingLogon,
            since: now,
            opened: None,
            accepted: None,
            status: StatusRow::default(),
            heard: now,
            blocked: false,
            critical_section: false,
            critical_error: false,
            under_way: HashMap::new(),
            alone: HashMap::new(),
            concluded: Vec::new(),
            receiving: Receiving::default(),
            polled: None,
            poll_again: false,
            validating: HashMap::new(),
            idled: now,
            busy: now,
            flush_timer: None,
        }
    }

    fn this(&self) -> Addr<Self> {
        self.me.clone()
    }

    /// For people.
    fn agent(&self) -> String {
        format!("{} {}", self.peer.host, self.peer.instance)
    }

    fn say(&mut self, verb: Verb) {
        self.out.push(Frame::verb(Correlation(0), verb));
    }

    fn ask(&mut self, verb: Verb) -> Correlation {
        let correlation = self.out.correlate();
        self.out.push(Frame::verb(correlation, verb));
        correlation
    }

    fn notify(&mut self, notification: TransportNotification) {
        self.say(Verb::TransportNotify(notification));
    }

    /// Everything that this handler had to say goes in as few packets as the peer's answers allow.
    fn flush(&mut self, ctx: &mut Context<Self>) {
        if self.life == Life::Over {
            return;
        }
        let now = Instant::now();
        while let Some(packet) = self.out.poll_packet(now) {
            self.parts.link.send(&packet);
        }
        if let Some(at) = self.out.poll_timeout()
            && self.flush_timer.is_none()
        {
            let later = at.saturating_duration_since(now);
            self.flush_timer = Some(ctx.run_later(later, |this, ctx| {
                this.flush_timer = None;
                this.flush(ctx);
            }));
        }
    }

    fn end(&mut self, reason: &str, ctx: &mut Context<Self>) {
        if self.life == Life::Over {
            return;
        }
        debug!(transport = self.peer.transport, agent = %self.peer.instance, reason, "ending the session");
        self.life = Life::Over;
        self.validating.clear();
        let key = self.peer.key;
        self.parts.dispatcher.do_send(dispatcher::SessionClosed {
            key,
            opened: self.opened,
            addr: self.this(),
        });
        self.parts.adoption.do_send(adoption::Closed {
            instance: self.peer.instance,
            key,
        });
        self.parts.reception.do_send(reception::Closed(key));
        self.lose_submissions();
        self.switchboard.do_send(SessionOver {
            key,
            addr: self.this(),
            reason: reason.to_owned(),
        });
        let no_session = outbound::no_session(self.mine, key, self.out.epoch());
        self.parts.link.send(&no_session);
        if let Some(timer) = self.flush_timer.take() {
            ctx.cancel_future(timer);
        }
    }

    fn packet(&mut self, packet: Packet, ctx: &mut Context<Self>) -> Result<(), &'static str> {
        if let Some(epoch) = outbound::ended(&packet) {
            return if epoch == self.out.epoch() {
                Err("the agent knows no such session")
            } else {
                Ok(())
            };
        }
        match self.out.handle_packet(&packet) {
            Heard::Stale => return Ok(()),
            Heard::Broken => return Err("a packet is missing"),
            Heard::InOrder => {}
        }
        self.heard = Instant::now();
        for frame in packet.frames {
            let Payload::Verb(verb) = frame.payload else {
                continue;
            };
            if let Err(misbehaved) = self.verb(frame.correlation, verb, ctx) {
                warn!(
                    transport = self.peer.transport, agent = %self.peer.instance,
                    %misbehaved, "an agent broke the protocol"
                );
                return Err("the agent broke the protocol");
            }
            if self.life == Life::Over {
                return Ok(());
            }
        }
        self.hand_over();
        Ok(())
    }

    fn verb(
        &mut self,
        correlation: Correlation,
        verb: Verb,
        ctx: &mut Context<Self>,
    ) -> Result<(), PeerMisbehaved> {
        match verb {
            Verb::LogonReply(reply) => self.logon_replied(reply, ctx),
            Verb::AddressTypesReply(types) => self.address_types_replied(types, ctx),
            Verb::ModifyStatusRow(row) => self.status_row(row),
            Verb::Reference {
                id,
                fence,
                reference,
            } => {
                return self.reference(Tenancy { id, fence }, reference);
            }
            Verb::StatusRecips {
                id,
                fence,
                recipients,
            } => {
                return self.status_recips(Tenancy { id, fence }, recipients);
            }
            Verb::SubmitReply { id, fence, result } => {
                return self.submit_replied(Tenancy { id, fence }, result);
            }
            Verb::EndReply { id, fence, result } => {
                return self.end_replied(Tenancy { id, fence }, result);
            }
            Verb::AdoptReply(answers) => {
                let (instance, key) = (self.peer.instance, self.peer.key);
                self.parts.adoption.do_send(adoption::Answers {
                    instance,
                    key,
                    answers,
                });
            }
            Verb::SpoolerNotify(notification) => self.spooler_notify(notification),
            Verb::StartReference { reference } => {
                return self.receiving.reference(correlation, reference);
            }
            Verb::StartReply(result) => return self.start_replied(correlation, result),
            Verb::PollReply { incoming } => self.poll_replied(correlation, incoming),
            Verb::ValidateReply(validation) => self.validated(correlation, validation),
            Verb::LoggedOff { kept } => {
                self.logged_off(kept);
                self.end("the agent logged off", ctx);
            }
            Verb::AtTheDot(tenancy) => self.at_the_dot(tenancy),
            Verb::NoSession => {}
            _ => return Err(PeerMisbehaved::Unasked),
        }
        Ok(())
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        if self.life == Life::Over {
            return;
        }
        let silent = self.heard.elapsed() > SILENCE_MAX && !self.blocked;
        let stuck = self.life != Life::Open && self.since.elapsed() > LOGON_MAX;
        if silent || stuck {
            self.end(
                if silent {
                    "the agent is silent"
                } else {
                    "logon takes too long"
                },
                ctx,
            );
            return;
        }
        if self.life == Life::Open {
            self.poll_and_idle();
            self.look_at_the_long();
        }
        self.flush(ctx);
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.logon();
        self.flush(ctx);
        ctx.run_interval(TICK, |this, ctx| this.tick(ctx));
    }
}

impl Handler<Received> for Session {
    type Result = ();

    fn handle(&mut self, Received(packet): Received, ctx: &mut Self::Context) {
        if self.life == Life::Over {
            return;
        }
        match self.packet(packet, ctx) {
            Ok(()) => self.flush(ctx),
            Err(reason) => self.end(reason, ctx),
        }
    }
}

impl Handler<End> for Session {
    type Result = ();

    fn handle(&mut self, End(reason): End, ctx: &mut Self::Context) {
        self.end(reason, ctx);
    }
}

impl Handler<InboxGone> for Session {
    type Result = ();

    fn handle(&mut self, InboxGone { unheard }: InboxGone, ctx: &mut Self::Context) {
        if self.life != Life::Over
            && let Some(first) = unheard
        {
            self.take_back_unheard(first);
        }
        self.end("its inbox is gone", ctx);
    }
}

impl Handler<Farewell> for Session {
    type Result = ();

    fn handle(&mut self, _: Farewell, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl Handler<Blocked> for Session {
    type Result = ();

    fn handle(&mut self, Blocked(blocked): Blocked, _: &mut Self::Context) {
        self.blocked = blocked;
        self.heard = Instant::now();
    }
}

impl Handler<FlushQueues> for Session {
    type Result = ();

    fn handle(&mut self, FlushQueues(flush): FlushQueues, ctx: &mut Self::Context) {
        self.flush_queues(flush);
        self.flush(ctx);
    }
}

impl Handler<Validate> for Session {
    type Result = ResponseFuture<Option<ValidationRow>>;

    fn handle(&mut self, _: Validate, ctx: &mut Self::Context) -> Self::Result {
        if self.life != Life::Open {
            return Box::pin(std::future::ready(None));
        }
        let mut row = ValidationRow {
            spooler: self.parts.config.spooler.name(),
            transport: self.peer.transport.clone(),
            agent: self.agent(),
            validation: None,
        };
        let validated = self.validate();
        self.flush(ctx);
        Box::pin(async move {
            let answer = tokio::time::timeout(VALIDATE_MAX, validated).await;
            row.validation = answer.ok().and_then(Result::ok);
            Some(row)
        })
    }
}

impl Handler<Logoff> for Session {
    type Result = ();

    fn handle(&mut self, _: Logoff, ctx: &mut Self::Context) {
        self.cancel_receptions();
        self.notify(TransportNotification::EndInbound);
        self.notify(TransportNotification::EndOutbound);
        self.say(Verb::TransportLogoff);
        self.flush(ctx);
        self.end("this spooler logged off", ctx);
    }
}

impl Handler<Describe> for Session {
    type Result = Option<SessionRow>;

    fn handle(&mut self, _: Describe, _: &mut Self::Context) -> Self::Result {
        let outstanding = u32::try_from(self.under_way.len()).unwrap_or(u32::MAX);
        (self.life == Life::Open).then(|| SessionRow {
            spooler: self.parts.config.spooler.name(),
            transport: self.peer.transport.clone(),
            agent: self.agent(),
            age: self.since.elapsed(),
            credit: self.status.credit.saturating_sub(outstanding),
            outstanding,
            status: self.status.clone(),
        })
    }
}
