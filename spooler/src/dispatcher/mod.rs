//! Decides what goes next: leases and claims in, submissions out to the session with most credit.
//!
//! ```text
//! lease --+                                        +--> session (credit, destination open)
//!         +--> intake: cancelled? due? routed? ----+--> ready lane (waits for credit or room)
//! claim --+                                        +--> recorder (nothing to send: expired, nobody takes it, parked)
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | `messages` | what it is told and asked |
//! | `intake` | what to do with a message that has come |
//! | `ready`, `suspects` | what waits for credit or room, and what is tried alone |
//! | `pump` | what goes now, and what stands in others' way |
//! | `sessions` | where to, and their credit |
//! | `moving`, `said` | where each message is, and what transports have said of those that they keep |
//!
//! What bounds it: the prefetch of the leases, and the appetite that the outbox asks for before it claims.
//! Nothing waits here behind a closed destination; that is what the outbox is for.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor, Addr, AsyncContext, Context, Handler};
use pombo_proto::{
    ids::Incarnation, link::Link, message::Priority, time::UnixMillis, topology::SpoolClass,
    verbs::Tenancy,
};
use tracing::{debug, info};

use crate::{
    config::Config,
    destination::{Destinations, Reach, Ticket},
    gather::Gathered,
    job::{Job, Ordinals, SessionKey},
    pick::{Pick, Shares},
    recorder::{Availability, Conclude, Moved, Recorded, Recorder, Spent},
    router::Router,
    session,
    store::Written,
    verdict::Happened,
};

mod intake;
mod messages;
mod moving;
mod pump;
mod ready;
mod said;
mod sessions;
mod suspects;

pub use messages::*;
pub use moving::{CancelMoving, Holds, HoldsWhich, ListMoving, MovingView, WhereIs};
use moving::{Moving, Stage};
use ready::{LaneKey, Ready, ReadyJob};
use said::Said;
pub(crate) use said::kept_until;
use sessions::Sessions;
use suspects::Suspects;

/// How often jobs that could not go are looked at without a reason.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Nothing is ready for longer than this: the broker closes the channel of a delivery that is not acked for half an hour,
/// and a claim keeps others from it.
const READY_MAX: Duration = Duration::from_secs(600);
/// Rows that need no credit (cancelled, expired, nobody's) are claimed even when there is none, so many at a time.
const APPETITE_MIN: usize = 16;
/// So many of them may be ready besides what is leased.
const READY_CLAIMS_MAX: usize = 128;

/// Why a drain parks.
const GOING_DOWN: &str = "moved here because its spooler was going down";

/// What one submitted message occupies, by destination.
type Tickets = Vec<(Arc<str>, Ticket)>;

/// The actor.
pub struct Dispatcher {
    config: Arc<Config>,
    name: String,
    link: Link,
    ordinals: Ordinals,
    recorder: Addr<Recorder>,
    term: Option<Incarnation>,
    router: Router,
    sessions: Sessions,
    destinations: Destinations,
    ready: Ready,
    suspects: Suspects,
    pick: Pick,
    slow: HashMap<LaneKey, Instant>,
    said: Said,
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
            name: config.spooler.name(),
            config,
            link,
            ordinals,
            recorder,
            term: None,
            sessions: Sessions::default(),
            ready: Ready::default(),
            suspects: Suspects::default(),
            pick: Pick::new(Shares {
                urgent_credit: 0,
                ..Shares::default()
            }),
            slow: HashMap::new(),
            said: Said::default(),
            tickets: HashMap::new(),
            leasing: false,
            store_trouble: false,
            draining: false,
        }
    }

    /// Leases while somebody could take something and the store can record it; otherwise the backlog belongs in the broker.
    fn adjust_leasing(&mut self) {
        let wanted = self.term.is_some()
            && self.sessions.any_sends()
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

    /// Told to the recorder as well: its verdicts say what a message waits for.
    fn set_available(&mut self, transport: &str, available: bool) {
        self.router.set_available(transport, available);
        self.recorder.do_send(Availability {
            transport: transport.to_owned(),
            available,
        });
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
}

impl Actor for Dispatcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(LOOK_EVERY, |this, _| {
            this.ready.wake_all();
            this.pump();
            this.try_a_suspect();
            this.park_the_slow();
            this.moving.forget_marks();
            this.said.forget_old(UnixMillis::now());
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
        let dropped = self.ready.drain().len() + self.suspects.clear();
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

impl Handler<Appetite> for Dispatcher {
    type Result = Hunger;

    fn handle(&mut self, _: Appetite, _: &mut Self::Context) -> Hunger {
        if self.draining || self.term.is_none() || self.store_trouble {
            return Hunger::default();
        }
        let free = self.sessions.free_credit();
        let limit = free.saturating_sub(self.ready.len() + self.suspects.len());
        // What is claimed without credit adds up, so there is an end to it.
        let prefetch = SpoolClass::ALL.map(|it| usize::from(self.config.spooler.prefetch.of(it)));
        let roof = prefetch.iter().sum::<usize>() + READY_CLAIMS_MAX;
        let least = if self.ready.len() + self.suspects.len() < roof {
            APPETITE_MIN
        } else {
            0
        };
        // One that only brings mail in never has credit, and what has waited for its word waits for it no more.
        let without = |name: &&str| {
            !self.sessions.has_credit(name, Priority::Normal) && !self.router.takes_nobody(name)
        };
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
        let available = self.sessions.is_available(&transport);
        self.set_available(&transport, available);
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
        if let Some(session) = self.suspects.handle_over(over.tenancy) {
            self.sessions.release(session);
        }
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
        self.said.hear(said);
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
        for ready in self.ready.drain().into_iter().chain(self.suspects.drain()) {
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
