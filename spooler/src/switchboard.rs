//! Knows the link and the sessions: what comes in goes to the session it belongs to, and new agents get one.
//!
//! One incarnation of the link is one term: it begins with an entry in the store, and when it ends, everything that was
//! in process ends with it. Leases come again by themselves; claims are given back in doubt.

use std::{collections::HashMap, sync::Arc, time::Duration};

use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, ResponseFuture,
    WrapFuture,
};
use pombo_proto::{
    blob::Blobs,
    control::{Answer, Control as Said, Question, SessionRow, ValidationRow},
    frame::{Frame, Packet, Payload},
    ids::{Incarnation, Instance},
    link::{Audience, Event, Link},
    service::http::Health,
    time::boot_time,
    verbs::{Flush, Hello, Role, Verb, VersionRange},
};
use tracing::{debug, info, warn};

use crate::{
    adoption::{self, Adoption},
    config::Config,
    control::{AnswerAs, Asked, Control},
    dispatcher::{BeginTerm, Dispatcher, EndTerm, LeaseEnded, Leases},
    gather::Gathered,
    horizon::Horizons,
    job::{Ordinals, SessionKey},
    ledger::{AuditAs, HeldBy, Ledger},
    membership::{Alive, Ended, Enter, Leave, Membership},
    orphans::{Orphans, SweepAs},
    outbox::{ClaimAs, Outbox},
    reception::Reception,
    recorder::Recorder,
    session::{self, Session},
    store::{ListedInstance, StoreThread},
};

/// The rest of the process; handed to the switchboard once everything stands, and by it to sessions.
#[derive(Clone)]
pub struct Parts {
    /// The link.
    pub link: Link,
    /// The configuration.
    pub config: Arc<Config>,
    /// The store.
    pub store: StoreThread,
    /// The protocol versions that this process speaks.
    pub versions: VersionRange,
    /// Large bodies.
    pub blobs: Blobs,
    /// Shared counter of sessions and tenures.
    pub ordinals: Ordinals,
    /// Whether the membership holds.
    pub alive: Alive,
    /// Until when agents are answered.
    pub horizons: Horizons,
    /// Conditions behind `/readyz`.
    pub health: Health,
    /// Gives sessions their work.
    pub dispatcher: Addr<Dispatcher>,
    /// Takes their results.
    pub recorder: Addr<Recorder>,
    /// Asks them about doubts.
    pub adoption: Addr<Adoption>,
    /// Gives them permits.
    pub reception: Addr<Reception>,
    /// Claims.
    pub outbox: Addr<Outbox>,
    /// Renews.
    pub membership: Addr<Membership>,
    /// Answers people.
    pub control: Addr<Control>,
    /// Keeps account of the doors.
    pub ledger: Addr<Ledger>,
    /// Removes bodies that nothing refers to.
    pub orphans: Addr<Orphans>,
}

/// The parts are there.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wire(pub Parts);

/// A session is over.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionOver {
    /// With which agent.
    pub key: SessionKey,
    /// Which of its sessions.
    pub addr: Addr<Session>,
    /// Why.
    pub reason: String,
}

/// What every spooler shows of its sessions.
#[derive(Message)]
#[rtype(result = "Vec<SessionRow>")]
pub struct ListSessions;

/// FlushQueues on some sessions; says on how many.
#[derive(Message)]
#[rtype(result = "u64")]
pub struct FlushSessions {
    /// Of this transport; `None`: all.
    pub transport: Option<String>,
    /// Outbound.
    pub upload: bool,
    /// Inbound.
    pub download: bool,
}

/// ValidateState on some sessions; what each returned.
#[derive(Message)]
#[rtype(result = "Vec<ValidationRow>")]
pub struct ValidateSessions {
    /// Of this transport; `None`: all.
    pub transport: Option<String>,
}

/// No new sessions; log off all, and resolve when that is said.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LogoffAll;

struct Open {
    addr: Addr<Session>,
    instance: Instance,
    transport: String,
}

/// The actor.
pub struct Switchboard {
    instance: Instance,
    parts: Option<Parts>,
    term: Option<Incarnation>,
    sessions: HashMap<SessionKey, Open>,
    /// Agents whose entry in the store is being written; no second session meanwhile.
    listing: HashMap<SessionKey, Instance>,
    /// Events that came before the parts were there.
    early: Vec<Event>,
    draining: bool,
}

impl Default for Switchboard {
    fn default() -> Self {
        Self {
            instance: Instance::random(),
            parts: None,
            term: None,
            sessions: HashMap::new(),
            listing: HashMap::new(),
            early: Vec::new(),
            draining: false,
        }
    }
}

impl Actor for Switchboard {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Jitter, so that a hundred processes that started together do not greet together.
        let every = Duration::from_millis(fastrand::u64(10_000..20_000));
        ctx.run_interval(every, |this, _| this.greet());
    }
}

impl Handler<Wire> for Switchboard {
    type Result = ();

    fn handle(&mut self, Wire(parts): Wire, ctx: &mut Self::Context) {
        self.parts = Some(parts);
        for event in std::mem::take(&mut self.early) {
            self.event(event, ctx);
        }
    }
}

impl Handler<Gathered<Event>> for Switchboard {
    type Result = ();

    fn handle(&mut self, events: Gathered<Event>, ctx: &mut Self::Context) {
        for event in events.take() {
            if self.parts.is_some() {
                self.event(event, ctx);
            } else {
                self.early.push(event);
            }
        }
    }
}

impl Switchboard {
    fn event(&mut self, event: Event, ctx: &mut Context<Self>) {
        let Some(parts) = &self.parts else { return };
        match event {
            Event::Up(incarnation) => self.enter(incarnation, ctx),
            Event::Down(reason) => self.end_term(&reason, ctx),
            Event::Packets(packets) => {
                for packet in packets {
                    self.packet(packet, ctx);
                }
            }
            Event::Leases(leases) => parts.dispatcher.do_send(Leases(leases)),
            Event::LeaseEnded(class) => parts.dispatcher.do_send(LeaseEnded(class)),
            Event::Returned { peer, first } => {
                if let Some(open) = self.sessions.get(&peer) {
                    open.addr.do_send(session::InboxGone { unheard: first });
                }
            }
            Event::Blocked(blocked) => {
                let state = if blocked {
                    Err("the broker holds publishes back".to_owned())
                } else {
                    Ok(())
                };
                parts.health.set("broker-alarm", state);
                parts.adoption.do_send(adoption::Blocked(blocked));
                for open in self.sessions.values() {
                    open.addr.do_send(session::Blocked(blocked));
                }
            }
            Event::PollTurn(_) => {}
        }
    }

    fn enter(&mut self, incarnation: Incarnation, ctx: &mut Context<Self>) {
        let Some(parts) = self.parts.clone() else {
            return;
        };
        self.term = Some(incarnation);
        let entering = async move {
            parts
                .membership
                .send(Enter(incarnation))
                .await
                .unwrap_or(false)
        };
        let entered = entering.into_actor(self).map(move |entered, this, ctx| {
            if this.term != Some(incarnation) {
                return;
            }
            if !entered {
                // The store is away: nothing can be recorded, so nothing is leased. Try again.
                let again = Duration::from_secs(1);
                ctx.run_later(again, move |this, ctx| {
                    if this.term == Some(incarnation) {
                        this.enter(incarnation, ctx);
                    }
                });
                return;
            }
            let Some(parts) = &this.parts else { return };
            info!(%incarnation, "the link is up");
            parts.health.set("broker", Ok(()));
            parts.dispatcher.do_send(BeginTerm(incarnation));
            parts.outbox.do_send(ClaimAs(Some(incarnation)));
            parts.control.do_send(AnswerAs(Some(incarnation)));
            parts.ledger.do_send(AuditAs(Some(incarnation)));
            parts.orphans.do_send(SweepAs(Some(incarnation)));
            this.greet();
        });
        ctx.spawn(entered);
    }

    fn end_term(&mut self, reason: &str, ctx: &mut Context<Self>) {
        let Some(parts) = &self.parts else { return };
        parts
            .health
            .set("broker", Err(format!("not connected: {reason}")));
        // Without a term it never stood, or has not come back: the link itself has logged that.
        let Some(term) = self.term.take() else { return };
        warn!(incarnation = %term, reason, "the link is down");
        parts.outbox.do_send(ClaimAs(None));
        parts.control.do_send(AnswerAs(None));
        parts.ledger.do_send(AuditAs(None));
        parts.orphans.do_send(SweepAs(None));
        for (_, open) in self.sessions.drain() {
            open.addr.do_send(session::End("the link is down"));
        }
        self.listing.clear();
        let (dispatcher, recorder, adoption) = (
            parts.dispatcher.clone(),
            parts.recorder.clone(),
            parts.adoption.clone(),
        );
        let membership = parts.membership.clone();
        // At once, so that no delivery of the next incarnation comes to the dispatcher before this.
        dispatcher.do_send(EndTerm);
        // What was in process is dropped before the claims are given back, so that nothing is recorded in between under
        // a fence that somebody else may have raised. (It would lose; this only spares the work.)
        let work = async move {
            let _ = adoption.send(EndTerm).await;
            let _ = recorder.send(EndTerm).await;
            let _ = membership.send(Leave(term)).await;
        };
        ctx.spawn(work.into_actor(self));
    }

    fn greet(&self) {
        let (Some(parts), Some(term), false) = (&self.parts, self.term, self.draining) else {
            return;
        };
        let hello = Hello {
            role: Role::Spooler,
            instance: self.instance,
            incarnation: term,
            versions: parts.versions,
            host: parts.config.spooler.host(),
        };
        let frame = Frame::new(Payload::Hello(hello));
        parts.link.announce(
            Audience::Agents,
            &Packet::single(term, Incarnation::EVERYONE, frame),
        );
    }

    fn packet(&mut self, packet: Packet, ctx: &mut Context<Self>) {
        if let Some(open) = self.sessions.get(&packet.from) {
            open.addr.do_send(session::Received(packet));
            return;
        }
        let (from, mut stray) = (packet.from, false);
        for frame in packet.frames {
            match frame.payload {
                Payload::Hello(hello) => self.hello(hello, ctx),
                Payload::Control(Said::Question(question)) => {
                    self.question(from, frame.correlation, question, frame.tail);
                }
                Payload::Control(Said::Answer(Ok(Answer::Held(held)))) => {
                    if let Some(parts) = &self.parts {
                        let correlation = frame.correlation;
                        parts.ledger.do_send(HeldBy {
                            from,
                            correlation,
                            held,
                        });
                    }
                }
                Payload::Control(Said::Answer(_)) | Payload::Verb(Verb::NoSession) => {}
                Payload::Verb(_) => stray = true,
            }
        }
        if let (true, Some(parts), Some(term)) = (stray, &self.parts, self.term) {
            let frame = Frame::new(Payload::Verb(Verb::NoSession));
            parts.link.send(&Packet::single(term, from, frame));
        }
    }

    fn question(
        &self,
        from: Incarnation,
        correlation: pombo_proto::ids::Correlation,
        question: Question,
        tail: bytes::Bytes,
    ) {
        if let Some(parts) = &self.parts {
            parts.control.do_send(Asked {
                from,
                correlation,
                question,
                tail,
            });
        }
    }

    fn hello(&mut self, hello: Hello, ctx: &mut Context<Self>) {
        let (Some(parts), Some(term)) = (&self.parts, self.term) else {
            return;
        };
        let Role::Agent { transport } = hello.role else {
            return;
        };
        let key = hello.incarnation;
        let known = self.sessions.contains_key(&key) || self.listing.contains_key(&key);
        if known || self.draining || !parts.alive.holds() {
            return;
        }
        if parts.config.transport(&transport).is_none() {
            debug!(
                transport,
                "an agent of a transport that is not in the transport order"
            );
            return;
        }
        // An agent has one inbox: its older incarnation, if we still know one, is over.
        for open in self
            .sessions
            .values()
            .filter(|open| open.instance == hello.instance)
        {
            open.addr
                .do_send(session::End("the agent has a new incarnation"));
        }
        self.listing.insert(key, hello.instance);
        let listed = ListedInstance {
            instance: hello.instance,
            transport: transport.clone(),
            host: hello.host.clone(),
            counter: 0,
        };
        let store = parts.store.clone();
        let (written, sent_at) = (listed.clone(), boot_time());
        let listing = async move { store.call(move |store| store.list_instance(&written)).await };
        let opened = listing.into_actor(self).map(move |written, this, ctx| {
            this.listing.remove(&key);
            if let Err(error) = written {
                warn!(%error, transport, "cannot list an agent in the store: no session yet");
                return;
            }
            let wanted = this.term == Some(term) && !this.draining;
            let (Some(parts), true) = (&this.parts, wanted) else {
                return;
            };
            let peer = session::Peer {
                key,
                instance: hello.instance,
                transport: transport.clone(),
                host: hello.host,
                horizon: parts.horizons.open(listed, sent_at),
            };
            let (parts, switchboard) = (parts.clone(), ctx.address());
            let addr = Session::create(|session| {
                Session::new(parts, switchboard, session.address(), term, peer)
            });
            let open = Open {
                addr,
                instance: hello.instance,
                transport,
            };
            this.sessions.insert(key, open);
        });
        ctx.spawn(opened);
    }
}

impl Handler<SessionOver> for Switchboard {
    type Result = ();

    fn handle(&mut self, over: SessionOver, _: &mut Self::Context) {
        let SessionOver { key, addr, reason } = over;
        if self.sessions.get(&key).is_none_or(|it| it.addr != addr) {
            return;
        }
        if let Some(open) = self.sessions.remove(&key) {
            info!(transport = open.transport, agent = %open.instance, reason, "session ended");
        }
    }
}

impl Handler<Ended> for Switchboard {
    type Result = ();

    fn handle(&mut self, Ended(incarnation): Ended, ctx: &mut Self::Context) {
        if self.term == Some(incarnation) {
            self.end_term("the store no longer counts this incarnation as alive", ctx);
            if let Some(parts) = &self.parts {
                parts.link.restart();
            }
        }
    }
}

impl Handler<ListSessions> for Switchboard {
    type Result = ResponseFuture<Vec<SessionRow>>;

    fn handle(&mut self, _: ListSessions, _: &mut Self::Context) -> Self::Result {
        let asked: Vec<_> = self
            .sessions
            .values()
            .map(|open| open.addr.send(session::Describe))
            .collect();
        Box::pin(async move {
            let rows = futures_util::future::join_all(asked).await;
            rows.into_iter().filter_map(Result::ok).flatten().collect()
        })
    }
}

impl Switchboard {
    /// The sessions of one transport, or all.
    fn of<'a>(&'a self, transport: Option<&'a str>) -> impl Iterator<Item = &'a Open> {
        let all = self.sessions.values();
        all.filter(move |open| transport.is_none_or(|it| it == open.transport))
    }
}

impl Handler<ValidateSessions> for Switchboard {
    type Result = ResponseFuture<Vec<ValidationRow>>;

    fn handle(&mut self, validate: ValidateSessions, _: &mut Self::Context) -> Self::Result {
        let asked: Vec<_> = self
            .of(validate.transport.as_deref())
            .map(|open| open.addr.send(session::Validate))
            .collect();
        Box::pin(async move {
            let rows = futures_util::future::join_all(asked).await;
            rows.into_iter().filter_map(Result::ok).flatten().collect()
        })
    }
}

impl Handler<FlushSessions> for Switchboard {
    type Result = u64;

    fn handle(&mut self, flush: FlushSessions, _: &mut Self::Context) -> u64 {
        let mut count = 0;
        for open in self.of(flush.transport.as_deref()) {
            count += 1;
            open.addr.do_send(session::FlushQueues(Flush {
                upload: flush.upload,
                download: flush.download,
                force: true,
            }));
        }
        count
    }
}

impl Handler<LogoffAll> for Switchboard {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: LogoffAll, _: &mut Self::Context) -> Self::Result {
        self.draining = true;
        let asked: Vec<_> = self
            .sessions
            .drain()
            .map(|(_, open)| open.addr.send(session::Logoff))
            .collect();
        Box::pin(async move {
            futures_util::future::join_all(asked).await;
        })
    }
}

/// The last incarnation, when everything else is done.
#[derive(Message)]
#[rtype(result = "Option<Incarnation>")]
pub struct LeaveTerm;

impl Handler<LeaveTerm> for Switchboard {
    type Result = Option<Incarnation>;

    fn handle(&mut self, _: LeaveTerm, _: &mut Self::Context) -> Self::Result {
        self.term.take()
    }
}
