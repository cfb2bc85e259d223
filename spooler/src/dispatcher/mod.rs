//! Decides what goes next: leases and claims in, submissions out to the session with most credit.
//!
//! ```text
//! lease --+                                        +--> session (credit, destination open)
//!         +--> intake: cancelled? due? routed? ----+--> ready lane (waits for credit or room)
//! claim --+                                        +--> recorder (nothing to send: expired, nobody takes it, parked)
//! ```
//!
//! What bounds it: the prefetch of the leases, and the appetite that the outbox asks for before it claims.
//! Nothing waits here behind a closed destination; that is what the outbox is for.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use pombo_proto::{
    ids::{Incarnation, MessageId, RecipientIndex},
    link::{Lease, Link},
    message::Priority,
    outcome::RecipientStatus,
    tenure::{Ordinal, Tenure},
    time::UnixMillis,
    topology::SpoolClass,
    verbs::{AddressTypes, Tenancy},
};
use tracing::{debug, info};

use crate::{
    config::Config,
    destination::{Destinations, MayStart, Reach, Ticket},
    gather::Gathered,
    job::{Job, Ordinals, SessionKey},
    pick::{Credit, Pick, Shares},
    progress::{Progress, RecipientState},
    recorder::{Availability, Conclude, Move, Moved, Recorded, Recorder, Spent},
    router::{self, Router},
    session::{self, Session},
    store::Written,
    verdict::{self, Case, Happened, Next, Plan},
};

mod moving;
mod ready;
mod sessions;

pub use moving::{CancelMoving, ListMoving, MovingView, WhereIs};
use moving::{Moving, Stage};
use ready::{LaneKey, Ready, ReadyJob};
use sessions::Sessions;

/// How often jobs that could not go are looked at without a reason.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A job that stood so long in others' way is parked in the outbox.
const PATIENCE: Duration = Duration::from_secs(2);
/// Nothing is ready for longer than this: the broker closes the channel of a delivery that is not acked for half an hour,
/// and a claim keeps others from it.
const READY_MAX: Duration = Duration::from_secs(600);
/// A destination that made others wait is not waited for again so soon: what follows is parked at once.
const SLOW_FOR: Duration = Duration::from_secs(60);
/// Rows that need no credit (cancelled, expired, nobody's) are claimed even when there is none, so many at a time.
const APPETITE_MIN: usize = 16;
/// So many of them may be ready besides what is leased.
const READY_CLAIMS_MAX: usize = 128;

/// Why a drain parks.
const GOING_DOWN: &str = "moved here because its spooler was going down";

/// The pick's own reserve is over all credit; ours is per transport ([`sessions`]).
const PLENTY: Credit = Credit { free: 1, total: 1 };
/// What a transport said of a message that nobody claimed meanwhile is forgotten after this; its deadline then decides.
const SAID_FOR: Duration = Duration::from_secs(300);
/// Of so many messages at most.
const SAID_MAX: usize = 20_000;

/// What one submitted message occupies, by destination.
type Tickets = Vec<(Arc<str>, Ticket)>;

/// Messages obtained by claims.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Jobs(pub Vec<Job>);

/// Deliveries from the spool.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Leases(pub Vec<Lease>);

/// A consumer ended without our wish.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LeaseEnded(pub SpoolClass);

/// A new incarnation of the link: leases may be taken.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct BeginTerm(pub Incarnation);

/// The incarnation is over: everything in process is dropped.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct EndTerm;

/// How much the outbox may claim now.
#[derive(Message)]
#[rtype(result = "Hunger")]
pub struct Appetite;

/// The answer.
#[derive(Debug, Default, actix::MessageResponse)]
pub struct Hunger {
    /// At most so many rows.
    pub limit: usize,
    /// Not those of these.
    pub excluded: Vec<(String, Option<String>)>,
}

/// A session can be used.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionOpened {
    /// Which.
    pub key: SessionKey,
    /// Its transport.
    pub transport: String,
    /// For people.
    pub agent: String,
    /// When, in the order of this process.
    pub opened: Ordinal,
    /// How much may be outstanding.
    pub credit: u32,
    /// Whom to tell.
    pub addr: Addr<Session>,
}

/// A session has ended. Its jobs come back through the recorder. Answered by [`session::Farewell`]: what had been submitted
/// to it before this is in its mailbox, and comes back first.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionClosed {
    /// With which agent.
    pub key: SessionKey,
    /// Which of its sessions; `None`: it never stood.
    pub opened: Option<Ordinal>,
    /// Whom to answer.
    pub addr: Addr<Session>,
}

/// What a transport takes.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub struct TakesAddresses {
    /// Which transport.
    pub transport: String,
    /// What.
    pub types: AddressTypes,
}

/// A status row: the credit, and whether messages may be submitted.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionStatus {
    /// Which session.
    pub key: SessionKey,
    /// How much may be outstanding.
    pub credit: u32,
    /// False after a critical error, or while the agent drains.
    pub usable: bool,
}

/// SpoolerNotify(SENTDEFERRED): kept until the message is claimed, by this spooler or by another one that heard it too.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SentDeferred {
    /// Which message.
    pub id: MessageId,
    /// Who says it.
    pub transport: String,
    /// What became of its recipients; none: it is wanted again.
    pub statuses: Vec<(RecipientIndex, RecipientStatus)>,
}

/// Somebody else decides about this message: it does not move here any more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Forget(pub MessageId);

/// An attempt has left its session; what it held at its destinations is free.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AttemptOver {
    /// Which message, under which fence.
    pub tenancy: Tenancy,
    /// What it means for its destinations.
    pub results: Vec<(Arc<str>, Reach)>,
}

/// The store cannot be written (true), or can again (false).
#[derive(Message)]
#[rtype(result = "()")]
pub struct StoreTrouble(pub bool);

/// No new work from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Drain;

/// How many messages are in process: ready, submitted, and being recorded.
#[derive(Message)]
#[rtype(result = "(usize, Vec<String>)")]
pub struct InProcess;

/// The actor.
pub struct Dispatcher {
    config: Arc<Config>,
    link: Link,
    ordinals: Ordinals,
    recorder: Addr<Recorder>,
    term: Option<Incarnation>,
    router: Router,
    sessions: Sessions,
    destinations: Destinations,
    ready: Ready,
    pick: Pick,
    slow: HashMap<LaneKey, Instant>,
    sent_deferred: HashMap<MessageId, (SentDeferred, Instant)>,
    moving: Moving,
    /// What submitted messages occupy. By fence too: a lease may still be under way when its twin is claimed.
    tickets: HashMap<Tenancy, (Arc<str>, Tickets)>,
    leasing: bool,
    store_trouble: bool,
    draining: bool,
}

impl Dispatcher {
    /// Does nothing before the first term.
    pub fn new(
        config: Arc<Config>,
        link: Link,
        ordinals: Ordinals,
        recorder: Addr<Recorder>,
    ) -> Self {
        Self {
            router: Router::new(config.transport_order()),
            destinations: Destinations::new(config.destinations.clone()),
            moving: Moving::new(config.spooler.name()),
            config,
            link,
            ordinals,
            recorder,
            term: None,
            sessions: Sessions::default(),
            ready: Ready::default(),
            pick: Pick::new(Shares {
                urgent_credit: 0,
                ..Shares::default()
            }),
            slow: HashMap::new(),
            sent_deferred: HashMap::new(),
            tickets: HashMap::new(),
            leasing: false,
            store_trouble: false,
            draining: false,
        }
    }

    /// Leases while somebody could take something and the store can record it; otherwise the backlog belongs in the broker.
    fn adjust_leasing(&mut self) {
        let wanted = self.term.is_some()
            && !self.sessions.is_empty()
            && !self.store_trouble
            && !self.draining;
        if wanted == self.leasing {
            return;
        }
        self.leasing = wanted;
        debug!(leasing = wanted, "leasing");
        for class in SpoolClass::ALL {
            let prefetch = if wanted {
                self.config.spooler.prefetch.of(class)
            } else {
                0
            };
            self.link.lease(class, prefetch);
        }
    }

    fn intake(&mut self, mut job: Job, now: UnixMillis) {
        let id = job.id();
        job.cancelled |= self.moving.is_cancelled(id);
        if job.cancelled {
            self.abort_deferred(&job);
        }
        if let Some((said, _)) = self.sent_deferred.remove(&id) {
            let happened = Happened::SentDeferred {
                transport: said.transport,
                statuses: said.statuses,
            };
            return self.conclude(job, happened);
        }
        if job.dropped {
            let reason = "given up by the administrator".to_owned();
            return self.conclude(job, Happened::GivenUp { reason });
        }
        let envelope = job.message.envelope.clone();
        let case = Case {
            envelope: &envelope,
            schedule: &self.config.schedule,
            router: &self.router,
            cancelled: job.cancelled,
            now,
        };
        match verdict::next(&case, &job.progress) {
            Next::Submit(plan) => self.enqueue(job, plan, now),
            Next::Decide => self.conclude(job, Happened::Nothing),
        }
    }

    /// Told to the recorder as well: its verdicts say what a message waits for.
    fn set_available(&mut self, transport: &str, available: bool) {
        self.router.set_available(transport, available);
        self.recorder.do_send(Availability {
            transport: transport.to_owned(),
            available,
        });
    }

    /// Transports that keep recipients of a cancelled message forget them.
    fn abort_deferred(&self, job: &Job) {
        let mut told: Vec<&str> = Vec::new();
        for known in &job.progress.recipients {
            let kept = matches!(known.state, RecipientState::Kept { .. });
            if let (true, Some(transport)) = (kept, known.transport.as_deref())
                && !told.contains(&transport)
            {
                told.push(transport);
                let tenancy = job.tenure.tenancy();
                self.sessions.abort_deferred(transport, tenancy);
            }
        }
    }

    /// Into its lane, unless everything it is for is given a rest.
    fn enqueue(&mut self, job: Job, plan: Plan, now: UnixMillis) {
        if self.draining {
            // Delivered or claimed just before the drain began, or adopted since.
            let recipients = plan.recipients.into_iter().map(|it| (it, now)).collect();
            let reason = GOING_DOWN.to_owned();
            return self.conclude(job, Happened::Parked { reason, recipients });
        }
        let transport: Arc<str> = plan.transport.as_str().into();
        let (mut considered, mut resting) = (Vec::new(), Vec::new());
        let mut lane = None;
        for index in plan.recipients {
            let recipient = &job.message.envelope.recipients[index.get()];
            let destination = router::destination(recipient);
            match self.destinations.may_start(now, &transport, destination) {
                MayStart::ClosedUntil(until) => resting.push((index, until)),
                MayStart::Yes | MayStart::Full => {
                    considered.push(index);
                    lane.get_or_insert_with(|| Arc::<str>::from(destination));
                }
            }
        }
        let Some(destination) = lane else {
            let reason = format!("{transport} gives its destination a rest");
            return self.conclude(
                job,
                Happened::Parked {
                    reason,
                    recipients: resting,
                },
            );
        };
        let key = LaneKey {
            transport,
            destination,
        };
        self.moving.stage(
            job.id(),
            Stage::Ready {
                transport: key.transport.clone(),
            },
        );
        let (queued, begin_deferred) = (Instant::now(), plan.begin_deferred);
        self.ready.push(
            key,
            ReadyJob {
                job,
                considered,
                begin_deferred,
                queued,
            },
        );
    }

    /// A transport is away: what was ready for it waits in the outbox, or goes to the next one.
    fn reconsider(&mut self, transport: &str) {
        let now = UnixMillis::now();
        for key in self.ready.keys() {
            if &*key.transport == transport {
                for ready in self.ready.take_older(&key, Instant::now()) {
                    self.intake(ready.job, now);
                }
            }
        }
    }

    /// Not now: back into (or for the first time into) the outbox.
    fn park(&mut self, ready: ReadyJob, reason: String, until: UnixMillis) {
        let recipients = ready
            .considered
            .into_iter()
            .map(|index| (index, until))
            .collect();
        self.conclude(ready.job, Happened::Parked { reason, recipients });
    }

    fn conclude(&mut self, job: Job, happened: Happened) {
        self.moving.stage(job.id(), Stage::Recording);
        let (sessions, took) = (Vec::new(), Duration::ZERO);
        self.recorder.do_send(Conclude {
            job,
            happened,
            doubt: false,
            sessions,
            spent: None,
            took,
        });
    }

    /// Starts everything that can go now.
    fn pump(&mut self) {
        let now = UnixMillis::now();
        let mut batches: HashMap<SessionKey, Vec<session::Submission>> = HashMap::new();
        let mut parked = Vec::new();
        loop {
            let ready = Priority::ALL.map(|class| self.ready.has(class));
            // Credit is looked at per transport, below.
            let Some(class) = self.pick.next(ready, PLENTY) else {
                break;
            };
            let Some(key) = self.ready.next_lane(class) else {
                continue;
            };
            if !self.sessions.has_credit(&key.transport, class) {
                continue;
            }
            match self
                .destinations
                .may_start(now, &key.transport, &key.destination)
            {
                MayStart::Yes => {}
                MayStart::Full => continue,
                MayStart::ClosedUntil(until) => {
                    let reason = format!("{} is given a rest", shown(&key));
                    let all = self.ready.take_older(&key, Instant::now());
                    parked.extend(all.into_iter().map(|it| (it, reason.clone(), until)));
                    continue;
                }
            }
            let Some(ready) = self.ready.pop(&key, class) else {
                continue;
            };
            self.ready.wake_lane(&key);
            match self.sessions.choose(&key.transport, &ready.job.tenure) {
                Some(session) => {
                    let submission = self.start(ready, &key, session, now);
                    batches.entry(session).or_default().push(submission);
                }
                None => {
                    // Every session with credit was opened after the tenure was obtained: claim anew.
                    let reason = "to be claimed anew for a session that is newer".to_owned();
                    parked.push((ready, reason, now));
                }
            }
        }
        for (ready, reason, until) in parked {
            self.park(ready, reason, until);
        }
        for (session, submissions) in batches {
            self.sessions.submit(session, submissions);
        }
    }

    fn start(
        &mut self,
        ready: ReadyJob,
        key: &LaneKey,
        session: SessionKey,
        now: UnixMillis,
    ) -> session::Submission {
        let ReadyJob {
            job,
            mut considered,
            begin_deferred,
            ..
        } = ready;
        let mut destinations: Vec<Arc<str>> = vec![key.destination.clone()];
        if considered.len() > 1 {
            // Another destination that is full or closed keeps only its own recipients waiting.
            let envelope = &job.message.envelope;
            considered.retain(|index| {
                let destination = router::destination(&envelope.recipients[index.get()]);
                if destinations.iter().any(|it| **it == *destination) {
                    return true;
                }
                let open = self
                    .destinations
                    .may_start(now, &key.transport, destination);
                if open == MayStart::Yes {
                    destinations.push(destination.into());
                }
                open == MayStart::Yes
            });
        }
        let tickets = destinations
            .iter()
            .map(|it| {
                (
                    it.clone(),
                    self.destinations.handle_started(now, &key.transport, it),
                )
            })
            .collect();
        let transport = key.transport.clone();
        self.tickets
            .insert(job.tenure.tenancy(), (transport.clone(), tickets));
        self.sessions.spend(session);
        let agent = self.sessions.agent(session);
        let stage = Stage::Submitted {
            transport,
            agent,
            session,
        };
        self.moving.stage(job.id(), stage);
        session::Submission {
            job,
            considered,
            begin_deferred,
        }
    }

    /// Parks what stands in others' way: behind a full window or without credit, while somebody else could go.
    fn park_the_slow(&mut self) {
        let now = Instant::now();
        self.slow.retain(|_, since| now - *since < SLOW_FOR);
        let mut parked = Vec::new();
        if let Some(until) = now.checked_sub(READY_MAX) {
            for key in self.ready.keys() {
                let taken = self.ready.take_older(&key, until);
                let reason = format!("{} had no room for too long", shown(&key));
                parked.extend(taken.into_iter().map(|it| (it, reason.clone())));
            }
        }
        let crowded = self.ready.len() * 2 >= usize::from(self.config.spooler.prefetch.normal);
        if crowded {
            self.take_the_slow(now, &mut parked);
        }
        let now = UnixMillis::now();
        for (ready, reason) in parked {
            let until = now.after(Duration::from_millis(fastrand::u64(1_000..4_000)));
            self.park(ready, reason, until);
        }
    }

    fn take_the_slow(&mut self, now: Instant, parked: &mut Vec<(ReadyJob, String)>) {
        for key in self.ready.keys() {
            let credit = self.sessions.has_credit(&key.transport, Priority::Urgent);
            if !credit && !self.sessions.any_credit() {
                continue;
            }
            let patience = if self.slow.contains_key(&key) {
                Duration::ZERO
            } else {
                PATIENCE
            };
            let Some(until) = now.checked_sub(patience) else {
                continue;
            };
            let taken = self.ready.take_older(&key, until);
            if !taken.is_empty() {
                self.slow.insert(key.clone(), now);
            }
            let what = if credit {
                "is busy"
            } else {
                "has no agent with credit"
            };
            parked.extend(
                taken
                    .into_iter()
                    .map(|it| (it, format!("{} {what}", shown(&key)))),
            );
        }
    }
}

fn shown(key: &LaneKey) -> String {
    if key.destination.is_empty() {
        key.transport.to_string()
    } else {
        format!("{} of {}", key.destination, key.transport)
    }
}

impl Actor for Dispatcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(LOOK_EVERY, |this, _| {
            this.ready.wake_all();
            this.pump();
            this.park_the_slow();
            this.moving.forget_marks();
            this.sent_deferred
                .retain(|_, (_, at)| at.elapsed() < SAID_FOR);
        });
    }
}

impl Handler<BeginTerm> for Dispatcher {
    type Result = ();

    fn handle(&mut self, BeginTerm(incarnation): BeginTerm, _: &mut Self::Context) {
        self.term = Some(incarnation);
        self.adjust_leasing();
    }
}

impl Handler<EndTerm> for Dispatcher {
    type Result = ();

    fn handle(&mut self, _: EndTerm, _: &mut Self::Context) {
        self.term = None;
        self.sessions.clear();
        let all: Vec<String> = self
            .router
            .transports()
            .map(|(name, _)| name.to_owned())
            .collect();
        for transport in all {
            self.set_available(&transport, false);
        }
        self.adjust_leasing();
        let dropped = self.ready.drain().len();
        self.destinations = Destinations::new(self.config.destinations.clone());
        self.tickets.clear();
        self.moving.clear();
        if dropped > 0 {
            info!(
                dropped,
                "leases and claims of the ended incarnation will come again"
            );
        }
    }
}

impl Handler<Leases> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Leases(leases): Leases, _: &mut Self::Context) {
        let now = UnixMillis::now();
        for lease in leases {
            if self.term.is_some_and(|it| it != lease.tag.incarnation) {
                // It comes again.
                continue;
            }
            let id = lease.message.envelope.id;
            let since = self.ordinals.next();
            let unrouted = lease.tag.class == SpoolClass::Unrouted;
            let marked = lease.marked || unrouted;
            match Tenure::leased(id, lease.redelivered, marked, lease.tag, since) {
                Some(tenure) => {
                    let envelope = &lease.message.envelope;
                    let mut progress = Progress::fresh(envelope.recipients.len());
                    let origin = format!("{} {}", envelope.source.door, envelope.source.client);
                    progress.note(envelope.submitted_at, "accepted", origin.trim());
                    progress.note(now, "leased", self.config.spooler.name());
                    self.moving
                        .begin(id, tenure.fence(), &lease.message.envelope, now);
                    let (message, since) = (lease.message, Instant::now());
                    let job = Job {
                        tenure,
                        message,
                        progress,
                        cancelled: false,
                        dropped: false,
                        doubt: false,
                        since,
                    };
                    self.intake(job, now);
                }
                None => self.recorder.do_send(Move(lease)),
            }
        }
        self.pump();
    }
}

impl Handler<Jobs> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Jobs(jobs): Jobs, _: &mut Self::Context) {
        let now = UnixMillis::now();
        for job in jobs {
            if self.term != Some(job.tenure.holder()) {
                continue;
            }
            self.moving
                .begin(job.id(), job.tenure.fence(), &job.message.envelope, now);
            self.intake(job, now);
        }
        self.pump();
    }
}

impl Handler<Appetite> for Dispatcher {
    type Result = Hunger;

    fn handle(&mut self, _: Appetite, _: &mut Self::Context) -> Hunger {
        if self.draining || self.term.is_none() || self.store_trouble {
            return Hunger::default();
        }
        let free = self.sessions.free_credit();
        let limit = free.saturating_sub(self.ready.len());
        // What is claimed without credit adds up, so there is an end to it.
        let prefetch = SpoolClass::ALL.map(|it| usize::from(self.config.spooler.prefetch.of(it)));
        let roof = prefetch.iter().sum::<usize>() + READY_CLAIMS_MAX;
        let least = if self.ready.len() < roof {
            APPETITE_MIN
        } else {
            0
        };
        let without = |name: &&str| !self.sessions.has_credit(name, Priority::Normal);
        let names = self.config.transports.iter().map(|it| it.name.as_str());
        let mut excluded: Vec<(String, Option<String>)> = names
            .filter(without)
            .map(|name| (name.to_owned(), None))
            .collect();
        let now = UnixMillis::now();
        let closed = self.destinations.closed(now);
        excluded
            .extend(closed.map(|(transport, it, _)| (transport.to_owned(), Some(it.to_owned()))));
        Hunger {
            limit: limit.max(least),
            excluded,
        }
    }
}

impl Handler<SessionOpened> for Dispatcher {
    type Result = ();

    fn handle(&mut self, opened: SessionOpened, _: &mut Self::Context) {
        let transport = opened.transport.clone();
        self.sessions.open(opened);
        self.set_available(&transport, true);
        self.adjust_leasing();
        self.ready.wake_transport(&transport);
        self.pump();
    }
}

impl Handler<SessionClosed> for Dispatcher {
    type Result = ();

    fn handle(&mut self, closed: SessionClosed, _: &mut Self::Context) {
        let SessionClosed { key, opened, addr } = closed;
        if let Some(transport) = opened.and_then(|it| self.sessions.close(key, it)) {
            let available = self.sessions.is_available(&transport);
            self.set_available(&transport, available);
            if !available {
                self.reconsider(&transport);
            }
        }
        addr.do_send(session::Farewell);
        self.adjust_leasing();
    }
}

impl Handler<TakesAddresses> for Dispatcher {
    type Result = ();

    fn handle(&mut self, takes: TakesAddresses, _: &mut Self::Context) {
        self.router
            .set_address_types(&takes.transport, &takes.types);
    }
}

impl Handler<SessionStatus> for Dispatcher {
    type Result = ();

    fn handle(&mut self, status: SessionStatus, _: &mut Self::Context) {
        if let Some(transport) = self.sessions.update(status) {
            self.ready.wake_transport(&transport);
            self.pump();
        }
    }
}

impl Handler<AttemptOver> for Dispatcher {
    type Result = ();

    fn handle(&mut self, over: AttemptOver, _: &mut Self::Context) {
        let now = UnixMillis::now();
        let Some((transport, tickets)) = self.tickets.remove(&over.tenancy) else {
            return;
        };
        for (destination, ticket) in tickets {
            let result = over.results.iter().find(|(name, _)| *name == destination);
            let reach = result.map_or(Reach::Untold, |(_, it)| *it);
            self.destinations.handle_result(now, ticket, reach);
            self.ready.wake_lane(&LaneKey {
                transport: transport.clone(),
                destination,
            });
        }
        if self.moving.is_under(over.tenancy) {
            self.moving.stage(over.tenancy.id, Stage::Recording);
        }
    }
}

impl Handler<SentDeferred> for Dispatcher {
    type Result = ();

    fn handle(&mut self, said: SentDeferred, _: &mut Self::Context) {
        let now = Instant::now();
        let full = self.sent_deferred.len() >= SAID_MAX;
        match self.sent_deferred.get_mut(&said.id) {
            // It says more than fits into one frame.
            Some((known, at)) if known.transport == said.transport => {
                known.statuses.extend(said.statuses);
                *at = now;
            }
            None if full => {}
            _ => {
                self.sent_deferred.insert(said.id, (said, now));
            }
        }
    }
}

impl Handler<Forget> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Forget(id): Forget, _: &mut Self::Context) {
        self.moving.end(id);
    }
}

impl Handler<Gathered<Recorded>> for Dispatcher {
    type Result = ();

    fn handle(&mut self, recorded: Gathered<Recorded>, _: &mut Self::Context) {
        let mut acks = Vec::new();
        let mut settled: HashMap<SessionKey, Vec<Tenancy>> = HashMap::new();
        for done in recorded.take() {
            acks.extend(done.lease);
            if self.moving.is_under(done.tenancy) {
                self.moving.end(done.tenancy.id);
            }
            if let Some(Spent { key, opened }) = done.spent {
                self.sessions.give_back(key, opened);
            }
            // Who lost settles nothing: the attempt belongs to whoever won.
            if done.written == Written::Won {
                for session in done.sessions {
                    settled.entry(session).or_default().push(done.tenancy);
                }
            }
        }
        self.link.ack(acks);
        for (session, tenancies) in settled {
            if let Some(transport) = self.sessions.settle(session, tenancies) {
                self.ready.wake_transport(&transport);
            }
        }
        self.pump();
    }
}

impl Handler<Gathered<Moved>> for Dispatcher {
    type Result = ();

    fn handle(&mut self, moved: Gathered<Moved>, _: &mut Self::Context) {
        self.link
            .ack(moved.take().into_iter().map(|it| it.0).collect());
    }
}

impl Handler<StoreTrouble> for Dispatcher {
    type Result = ();

    fn handle(&mut self, StoreTrouble(trouble): StoreTrouble, _: &mut Self::Context) {
        self.store_trouble = trouble;
        self.adjust_leasing();
    }
}

impl Handler<LeaseEnded> for Dispatcher {
    type Result = ();

    fn handle(&mut self, LeaseEnded(class): LeaseEnded, _: &mut Self::Context) {
        if self.leasing {
            self.link
                .lease(class, self.config.spooler.prefetch.of(class));
        }
    }
}

impl Handler<Drain> for Dispatcher {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.draining = true;
        self.adjust_leasing();
        let now = UnixMillis::now();
        for ready in self.ready.drain() {
            self.park(ready, GOING_DOWN.to_owned(), now);
        }
    }
}

impl Handler<InProcess> for Dispatcher {
    type Result = actix::MessageResult<InProcess>;

    fn handle(&mut self, _: InProcess, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult((self.moving.len(), self.moving.summary()))
    }
}
