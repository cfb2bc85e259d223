//! The actor that holds all sessions of this agent.
//!
//! Spoken to by the link ([`Linked`]), by the transport's threads (one wake for all that they have told) and by the service
//! ([`Drain`], [`Stop`]). Speaks to the link and spawns onto the transport's runtime. What bounds it: the inbox's prefetch,
//! the transport's capacity, the spoolers' windows of permits.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use actix::{Actor, ActorContext, AsyncContext, Context, Handler};
use futures_util::FutureExt;
use pombo_proto::{
    attempt::{Attempts, Session},
    blob::Blobs,
    frame::{Frame, Packet, Payload},
    gate::{Average, Gate},
    ids::{Correlation, Incarnation, Instance, MessageId, RecipientIndex},
    link::{Audience, Event},
    outcome::{Diagnosis, RecipientStatus},
    service::http::Health,
    time::UnixMillis,
    verbs::{Hello, LogonError, Role, SpoolerNotification, TransportState, Verb},
};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::{
    cancel::Cancel,
    door::Door,
    permits::Permits,
    right::Right,
    submission::{Room, Tools},
    support::{HostSupport, References},
    told::{LOOK_EVERY, Teller, Told},
    wire::Wire,
};
use crate::provider::{Flow, LogonReply, Support, Transport};

mod drain;
mod inbound;
mod messages;
mod outbound_flow;
mod packets;
mod session;
mod status;

use drain::Draining;
use messages::Wake;
pub use messages::{Counters, Drain, Drained, GetCounters, Linked, Parts, Settings, Stop};
use outbound_flow::{Ending, Running};
use session::Peer;

/// How often time is looked at: overdue packets, silence, the drain.
const BEAT: Duration = Duration::from_millis(100);
/// Between two status rows.
const ROW_EVERY: Duration = Duration::from_secs(1);
/// Between two hellos, give or take a fifth.
const HELLO_EVERY: Duration = Duration::from_secs(15);
/// Pauses between two logons of a transport that cannot work, doubling.
const LOGON_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Notifications that wait for a session, at most; more are dropped, and a spooler's deadline replaces them.
const NOTIFICATIONS_MAX: usize = 10_000;

/// The actor. See the module.
pub struct Agent {
    settings: Settings,
    transport: Arc<dyn Transport>,
    wire: Arc<dyn Wire>,
    runtime: tokio::runtime::Handle,
    health: Health,
    done: Option<oneshot::Sender<Drained>>,
    instance: Instance,
    tools: Tools,
    support: Arc<HostSupport>,
    permits: Arc<Permits>,
    right: Arc<Right>,
    door: Arc<Door>,
    blobs_identity: String,

    incarnation: Option<Incarnation>,
    blocked: bool,
    /// What logon returned, or why it has not.
    logon: Result<LogonReply, LogonError>,
    peers: BTreeMap<Session, Peer>,
    sessions: HashMap<Incarnation, Session>,

    attempts: Attempts,
    running: HashMap<MessageId, Running>,
    ending: HashMap<MessageId, Ending>,
    /// Of submissions that have returned S_OK, until EndMessage returns.
    cancels: HashMap<MessageId, Cancel>,
    submit_time: Average,

    gate: Gate<Session>,
    gate_armed: bool,
    /// What is held back goes when this runs.
    flush_armed: bool,
    announced_last: Session,
    receiving: usize,

    flows: mpsc::UnboundedSender<(Direction, Flow)>,
    /// Those that the transport has not returned from.
    flows_open: Arc<AtomicUsize>,
    begun: [bool; 2],
    poll_turn: bool,
    poller: Option<Session>,
    critical_section: bool,
    critical_error: Option<Diagnosis>,
    idling: bool,
    /// FlushQueues that have not returned, by [`Direction`].
    flushing: [u32; 2],
    state: TransportState,
    last_error: Option<(UnixMillis, String)>,
    waiting: VecDeque<SpoolerNotification>,
    /// SENTDEFERRED of messages whose attempt is not settled: nobody could find them yet.
    early: HashMap<MessageId, Vec<(RecipientIndex, RecipientStatus)>>,

    row_at: Instant,
    hello_at: Instant,
    draining: Option<Draining>,
    counters: Counters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Inbound = 0,
    Outbound = 1,
}

impl Agent {
    /// The actor, with what it needs; `ctx` is its own.
    pub fn new(parts: Parts, ctx: &mut Context<Self>) -> Self {
        let Parts {
            settings,
            transport,
            wire,
            runtime,
            blobs,
            health,
            done,
        } = parts;
        let me = ctx.address();
        let teller = Teller::new(move || me.do_send(Wake));
        let references = Arc::new(References::default());
        let right = Arc::new(Right::new(settings.right_to_send));
        let blobs_identity = blobs.as_ref().map_or("", Blobs::identity).to_owned();
        let door = Arc::new(Door {
            name: settings.name.clone(),
            wire: Arc::clone(&wire),
            blobs: blobs.clone(),
            inline_max: settings.inline_max,
            message_max: settings.message_max,
            patience: settings.confirm_patience,
            account: Default::default(),
        });
        let permits = Arc::new(Permits {
            door: Arc::clone(&door),
            teller: teller.clone(),
            references: Arc::clone(&references),
            standing: transport.takes_permits(),
            state: Default::default(),
        });
        let support = Arc::new(HostSupport {
            teller: teller.clone(),
            permits: Arc::clone(&permits),
            references: Arc::clone(&references),
            host: settings.host.clone(),
        });
        let (flows, turn) = mpsc::unbounded_channel();
        let flows_open = Arc::new(AtomicUsize::new(0));
        runtime.spawn(in_order(
            Arc::clone(&transport),
            turn,
            Arc::clone(&flows_open),
        ));
        let now = Instant::now();
        Self {
            gate: Gate::new(settings.notify_interval),
            tools: Tools {
                teller,
                right: Arc::clone(&right),
                blobs,
                references,
                room: Room::new(settings.bodies_max),
            },
            settings,
            transport,
            wire,
            runtime,
            health,
            done: Some(done),
            instance: Instance::random(),
            support,
            permits,
            right,
            door,
            blobs_identity,
            incarnation: None,
            blocked: false,
            logon: Err(LogonError::Unconfigured("not yet logged on".to_owned())),
            peers: BTreeMap::new(),
            sessions: HashMap::new(),
            attempts: Attempts::new(0),
            running: HashMap::new(),
            ending: HashMap::new(),
            cancels: HashMap::new(),
            submit_time: Average::default(),
            gate_armed: false,
            flush_armed: false,
            announced_last: Session(0),
            receiving: 0,
            flows,
            flows_open,
            begun: [false; 2],
            poll_turn: false,
            poller: None,
            critical_section: false,
            critical_error: None,
            idling: false,
            flushing: [0; 2],
            state: TransportState::Available,
            last_error: None,
            waiting: VecDeque::new(),
            early: HashMap::new(),
            row_at: now,
            hello_at: now,
            draining: None,
            counters: Counters::default(),
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Up(incarnation) => self.up(incarnation),
            Event::Down(reason) => self.down(&reason),
            Event::Packets(packets) => {
                for packet in packets {
                    self.packet(packet);
                }
            }
            Event::Returned { peer, .. } => {
                if let Some(session) = self.sessions.get(&peer) {
                    self.end_session(*session, "its inbox is gone");
                }
            }
            Event::PollTurn(turn) => {
                self.poll_turn = turn;
                self.choose_poller();
            }
            Event::Blocked(blocked) => self.set_blocked(blocked),
            // An agent leases nothing.
            Event::Leases(_) | Event::LeaseEnded(_) => {}
        }
    }

    fn up(&mut self, incarnation: Incarnation) {
        info!(%incarnation, "the link is up");
        self.incarnation = Some(incarnation);
        self.blocked = false;
        self.health.set("broker", Ok(()));
        if self.logon.as_ref().is_ok_and(|reply| reply.poll) {
            self.wire.poll_turn(&self.settings.name, true);
        }
        self.greet(Incarnation::EVERYONE);
    }

    fn down(&mut self, reason: &str) {
        self.health
            .set("broker", Err(format!("not connected: {reason}")));
        if self.incarnation.take().is_none() {
            // It never stood, or has not come back: the link itself has logged that.
            return;
        }
        warn!(reason, sessions = self.peers.len(), "the link is down");
        self.poll_turn = false;
        for session in self.open_sessions() {
            self.forget_session(session);
        }
    }

    fn set_blocked(&mut self, blocked: bool) {
        self.blocked = blocked;
        let state = match blocked {
            true => Err("the broker holds publishes back".to_owned()),
            false => Ok(()),
        };
        self.health.set("broker-alarm", state);
        let now = Instant::now();
        for peer in self.peers.values_mut() {
            peer.answered = now;
        }
    }

    /// Something for a spooler, unless its session has ended.
    fn say(&mut self, session: Session, verb: Verb) {
        self.reply(session, Correlation(0), verb);
    }

    fn reply(&mut self, session: Session, correlation: Correlation, verb: Verb) {
        if let Some(peer) = self.peers.get_mut(&session) {
            peer.out.push(Frame::verb(correlation, verb));
        }
    }

    fn told(&mut self, told: Told) {
        match told {
            Told::LoggedOn(result) => self.logged_on(result),
            Told::Reference(id, reference) => self.reference(id, reference),
            Told::Statuses(id, statuses) => self.statuses(id, statuses),
            Told::AtTheDot(id) => self.at_the_dot(id),
            Told::Returned(id, result) => self.returned(id, result),
            Told::Ended(id, flag) => self.ended(id, flag),
            Told::StartReference(permit, reference) => self.start_reference(permit, reference),
            Told::Started(permit, result, took) => self.started(permit, result, took),
            Told::Polled(session, correlation, incoming) => {
                self.reply(session, correlation, Verb::PollReply { incoming });
            }
            Told::Validated(session, correlation, validation) => {
                self.reply(session, correlation, Verb::ValidateReply(validation));
            }
            Told::Flushed(flush) => self.flushed(flush),
            Told::Idled => self.idling = false,
            Told::NewMail => {
                metrics::counter!("pombo_agent_notifications_total").increment(1);
                self.gate.handle_notify();
            }
            Told::ReadyToSend => self.ready_to_send(),
            Told::CriticalError(diagnosis) => self.set_critical_error(diagnosis),
            Told::SentDeferred(id, statuses) => self.sent_deferred(id, statuses),
            Told::ConfigChange => self.broadcast(SpoolerNotification::ConfigChange),
            Told::CriticalSection(inside) => self.set_critical_section(inside),
            Told::Status(state, error) => self.set_status(state, error),
        }
    }

    /// Takes what was told, and looks again soon, until there is nothing.
    fn listen(&mut self, ctx: &mut Context<Self>) {
        let all = self.tools.teller.take();
        if all.is_empty() {
            return;
        }
        for told in all {
            self.told(told);
        }
        self.flush(ctx);
        ctx.run_later(LOOK_EVERY, Self::listen);
    }

    fn greet(&self, to: Incarnation) {
        let (Some(incarnation), Ok(_), None) = (self.incarnation, &self.logon, &self.draining)
        else {
            return;
        };
        let hello = Hello {
            role: Role::Agent {
                transport: self.settings.name.clone(),
            },
            instance: self.instance,
            incarnation,
            versions: self.settings.versions,
            host: self.settings.host.clone(),
        };
        let packet = Packet::single(incarnation, to, Frame::new(Payload::Hello(hello)));
        if to == Incarnation::EVERYONE {
            self.wire.announce(Audience::Spoolers, &packet);
        } else {
            self.wire.send(&packet);
        }
    }

    /// At the end of every handler: what there is to say goes out.
    fn flush(&mut self, ctx: &mut Context<Self>) {
        self.announce(ctx);
        self.send_due_rows();
        let now = Instant::now();
        for peer in self.peers.values_mut() {
            while let Some(packet) = peer.out.poll_packet(now) {
                self.wire.send(&packet);
            }
        }
        let held = self
            .peers
            .values()
            .filter_map(|peer| peer.out.poll_timeout());
        if let Some(at) = held.min().filter(|_| !self.flush_armed) {
            self.flush_armed = true;
            ctx.run_later(at.saturating_duration_since(now), |this, ctx| {
                this.flush_armed = false;
                this.flush(ctx);
            });
        }
    }

    fn beat(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        for told in self.tools.teller.take_mentions() {
            self.told(told);
        }
        if now >= self.row_at {
            self.row_at = now + ROW_EVERY;
            self.tick(now);
        }
        if now >= self.hello_at {
            let fifth = HELLO_EVERY / 5;
            let jitter = fifth.mul_f64(fastrand::f64() * 2.0);
            self.hello_at = now + HELLO_EVERY - fifth + jitter;
            self.greet(Incarnation::EVERYONE);
        }
        self.flush(ctx);
        self.drain_beat(now, ctx);
    }

    /// TransportLogon, again and again until it succeeds.
    fn log_transport_on(&self) {
        let (transport, teller) = (Arc::clone(&self.transport), self.tools.teller.clone());
        let support: Arc<dyn Support> = Arc::clone(&self.support) as Arc<dyn Support>;
        self.runtime.spawn(async move {
            let (mut pause, most) = LOGON_PAUSES;
            loop {
                let logon = AssertUnwindSafe(transport.logon(Arc::clone(&support))).catch_unwind();
                let result = logon.await.unwrap_or_else(|_| {
                    let text = "the transport panicked".to_owned();
                    Err(LogonError::FailOneProvider(text))
                });
                let over = result.is_ok();
                teller.tell(Told::LoggedOn(result));
                if over {
                    return;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(most);
            }
        });
    }

    fn logged_on(&mut self, result: Result<LogonReply, LogonError>) {
        match result {
            Ok(reply) => {
                let capacity = reply.capacity.clamp(1, 10_000);
                info!(capacity, "the transport is logged on");
                self.attempts = Attempts::new(capacity);
                self.attempts.set_closed(self.draining.is_some());
                self.logon = Ok(LogonReply { capacity, ..reply });
                self.health.set("transport", Ok(()));
                if reply.poll && self.incarnation.is_some() {
                    self.wire.poll_turn(&self.settings.name, true);
                }
                self.greet(Incarnation::EVERYONE);
            }
            Err(error) => {
                warn!(%error, "the transport does not log on; trying again");
                self.health.set("transport", Err(error.to_string()));
                self.logon = Err(error);
            }
        }
    }
}

/// BEGIN and END of each direction, one after another.
async fn in_order(
    transport: Arc<dyn Transport>,
    mut turn: mpsc::UnboundedReceiver<(Direction, Flow)>,
    open: Arc<AtomicUsize>,
) {
    while let Some((direction, flow)) = turn.recv().await {
        let call = async {
            match direction {
                Direction::Inbound => transport.inbound(flow).await,
                Direction::Outbound => transport.outbound(flow).await,
            }
        };
        if AssertUnwindSafe(call).catch_unwind().await.is_err() {
            tracing::error!(?direction, ?flow, "the transport panicked");
        }
        open.fetch_sub(1, Ordering::Release);
    }
}

impl Actor for Agent {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let waiting = || Err("not yet".to_owned());
        self.health.set("broker", waiting());
        self.health.set("transport", waiting());
        self.health.set("session", waiting());
        self.log_transport_on();
        ctx.run_interval(BEAT, Self::beat);
    }
}

impl Handler<Linked> for Agent {
    type Result = ();

    fn handle(&mut self, Linked(event): Linked, ctx: &mut Self::Context) {
        self.event(event);
        self.flush(ctx);
    }
}

impl Handler<Wake> for Agent {
    type Result = ();

    fn handle(&mut self, _: Wake, ctx: &mut Self::Context) {
        self.listen(ctx);
    }
}

impl Handler<Drain> for Agent {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.drain();
        self.flush(ctx);
    }
}

impl Handler<Stop> for Agent {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.log_off();
        ctx.stop();
    }
}

impl Handler<GetCounters> for Agent {
    type Result = actix::MessageResult<GetCounters>;

    fn handle(&mut self, _: GetCounters, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(self.counters)
    }
}
