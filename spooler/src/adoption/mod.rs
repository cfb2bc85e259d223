//! Finds out what became of messages that an earlier holder may have submitted, before anybody submits them again.
//!
//! Every listed agent instance must answer Adopt, whatever it takes now ([`who`]), or have lost its
//! right to send: that is read from its row in the store, which the spoolers that answer it keep moving ([`crate::horizon`]), and
//! not from its silence towards us. What an agent that is gone may have had is sent again and counted as in doubt; where everybody
//! who may have submitted it was asked at the dot, only what was noted there is in doubt (module `lost`). What is in doubt waits
//! for a person where doubt is held. An attempt that is found is ended by us with EndMessage, and recorded as if we had made it.
//!
//! A message may be found long after an agent that had it was given up for another one's sake. So the store remembers who was
//! struck off, and when: whoever was it before the first tenure of which nothing is recorded ([`Job::unsure_since`]) never had the
//! message, and of the others nobody can say that they did not. Two clocks are compared here, and only to count: an agent
//! that had it wrote its last dot [`pombo_proto::right::MARGIN`] before it was struck off, so far they may be apart. Of a
//! lease that is found again nobody knows since when its holder had it, so it counts from when the message was issued.
//!
//! | module | what it decides |
//! |---|---|
//! | [`who`] | who could have a message |
//! | [`doubts`] | what is known of each, by whom, and what to ask next |
//! | [`resolve`] | what follows once all is known |
//!
//! Those are without IO, and the simulation drives them; the actor asks, and carries out.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, WrapFuture};
use pombo_proto::{
    ids::Instance,
    outcome::EndMessageFlag,
    time::UnixMillis,
    verbs::{Adopted, Refusal, Tenancy},
};
use tracing::{info, warn};

use crate::{
    config::Config,
    dispatcher::{Dispatcher, EndTerm, Jobs, TakesAddresses},
    horizon::Observed,
    job::{Job, SessionKey},
    recorder::{Conclude, Recorder},
    router::Router,
    session::{self, Session},
    store::{ListedInstance, StoreThread, Suspect},
    verdict::Happened,
};

pub mod doubts;
pub mod lost;
pub mod resolve;
pub mod who;

use doubts::{Doubt, Doubts, End, Next, Silent};
use resolve::Resolved;
use who::Who;

/// How often those that are under way are asked for again.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Ids in one Adopt frame.
const ASK_MAX: usize = 1_000;
/// An agent that lives, by its row in the store, and has no session with us does not answer us: after so long somebody else may
/// ask it, and the claim is given back, still in doubt.
const STRANGER_MAX: Duration = Duration::from_secs(120);

/// The agents that the store lists now.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Listed(pub Vec<ListedInstance>);

/// A session with an instance stands.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Opened {
    /// The agent's run.
    pub instance: Instance,
    /// Its session.
    pub key: SessionKey,
    /// Its transport.
    pub transport: String,
    /// Whom to ask.
    pub addr: Addr<Session>,
}

/// The session with an instance is over.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Closed {
    /// The agent's run.
    pub instance: Instance,
    /// Which of its sessions.
    pub key: SessionKey,
}

/// Answers to Adopt.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Answers {
    /// Who answers.
    pub instance: Instance,
    /// In which session.
    pub key: SessionKey,
    /// What.
    pub answers: Vec<Adopted>,
}

/// EndMessage of an adopted attempt returned.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AdoptedEnded {
    /// Who answers.
    pub instance: Instance,
    /// Which message.
    pub tenancy: Tenancy,
    /// What it returned.
    pub result: Result<EndMessageFlag, Refusal>,
}

/// The actor. Fed by the outbox, answered by sessions; hands on to the dispatcher or the recorder.
pub struct Adoption {
    config: Arc<Config>,
    store: StoreThread,
    observed: Observed,
    /// The broker holds publishes back.
    blocked: bool,
    dispatcher: Addr<Dispatcher>,
    recorder: Addr<Recorder>,
    who: Who,
    sessions: HashMap<Instance, (SessionKey, Addr<Session>)>,
    doubts: Doubts,
    /// Messages for which the list of agents is being read.
    beginning: usize,
    term: u64,
}

impl Adoption {
    /// Knows nobody yet.
    pub fn new(
        config: &Arc<Config>,
        store: StoreThread,
        dispatcher: Addr<Dispatcher>,
        recorder: Addr<Recorder>,
    ) -> Self {
        let who = Who::new(Router::new(config.transport_order()));
        Self {
            config: config.clone(),
            store,
            observed: Observed::default(),
            blocked: false,
            dispatcher,
            recorder,
            who,
            sessions: HashMap::new(),
            doubts: Doubts::new(config.spooler.attempt_max),
            beginning: 0,
            term: 0,
        }
    }

    fn begin(&mut self, jobs: Vec<Job>, suspects: &[Suspect]) {
        for job in jobs {
            let has_session = |it| self.sessions.contains_key(&it);
            let instances = self.who.suspects(&job, suspects, has_session);
            info!(id = %job.id(), instances = instances.len(), "in doubt: asking who has it");
            if let Some(settled) = self.doubts.begin(job, instances, Instant::now()) {
                self.resolve(settled);
            }
        }
        self.ask();
    }

    fn ask(&mut self) {
        for (instance, tenancies) in self.doubts.questions() {
            if let Some((_, addr)) = self.sessions.get(&instance) {
                for some in tenancies.chunks(ASK_MAX) {
                    addr.do_send(session::Adopt(some.to_vec()));
                }
            }
        }
    }

    /// Who answers "under way" for too long is asked to return.
    fn cancel_the_long(&mut self) {
        for (instance, tenancy, transport) in self.doubts.poll_long(Instant::now()) {
            if let Some((_, addr)) = self.sessions.get(&instance) {
                warn!(id = %tenancy.id, transport, agent = %instance, "an adopted attempt takes too long: cancelled");
                addr.do_send(session::CancelAdopted(tenancy));
            }
        }
    }

    /// Strikes off those that have lost their right to send, whether anything waits for them or not.
    fn strike_the_gone(&mut self, ctx: &mut Context<Self>) {
        let Silent { gone, missing } = self.doubts.handle_listed(&self.observed, Instant::now());
        if gone.is_empty() && missing.is_empty() {
            return;
        }
        let (store, me) = (self.store.clone(), ctx.address());
        actix::spawn(async move {
            let ended: Vec<Instance> = gone.keys().copied().chain(missing).collect();
            let look = move |store: &mut dyn crate::store::Store| {
                for (instance, counter) in gone {
                    store.strike_instance(UnixMillis::now(), instance, Some(counter))?;
                }
                store.suspects(UnixMillis(0))
            };
            match store.call(look).await {
                Ok(all) => {
                    for instance in ended {
                        me.do_send(Ended(instance, End::of(instance, &all)));
                    }
                }
                Err(error) => warn!(%error, "cannot strike off agents"),
            }
        });
    }

    /// Gives back what waits for agents that talk only to others.
    fn leave_to_others(&mut self) {
        let sessions = &self.sessions;
        let can_ask = |instance| sessions.contains_key(&instance);
        for (job, transport) in self
            .doubts
            .take_strangers(Instant::now(), STRANGER_MAX, can_ask)
        {
            let id = job.id();
            info!(id = %id, transport, "in doubt: an agent that lives has no session here, others may ask it");
            let took = job.since.elapsed();
            self.recorder.do_send(Conclude {
                job,
                happened: Happened::Unknown { transport },
                doubt: true,
                sessions: Vec::new(),
                spent: None,
                took,
            });
        }
    }

    fn resolve_settled(&mut self) {
        for doubt in self.doubts.take_settled() {
            self.resolve(doubt);
        }
    }

    fn resolve(&mut self, doubt: Doubt) {
        let now = UnixMillis::now();
        let holds_doubt = |transport: &str| self.config.holds_doubt(transport);
        let Resolved {
            job,
            happened,
            sessions,
            ..
        } = resolve::resolve(doubt, &self.who, holds_doubt, now);
        let Some(happened) = happened else {
            self.dispatcher.do_send(Jobs(vec![job]));
            return;
        };
        let took = job.since.elapsed();
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

#[derive(Message)]
#[rtype(result = "()")]
struct Ended(Instance, End);

impl Handler<Ended> for Adoption {
    type Result = ();

    fn handle(&mut self, Ended(instance, end): Ended, _: &mut Self::Context) {
        let waited = self.doubts.handle_end(instance, end);
        if waited > 0 {
            match end {
                End::Struck => {
                    warn!(agent = %instance, messages = waited, "an agent is gone: it has lost its right to send");
                }
                End::LoggedOff => {
                    info!(agent = %instance, messages = waited, "an agent that was asked has logged off");
                }
                End::Listed => {}
            }
        }
        self.resolve_settled();
    }
}

impl Handler<Listed> for Adoption {
    type Result = ();

    fn handle(&mut self, Listed(listed): Listed, ctx: &mut Self::Context) {
        if self.blocked {
            return;
        }
        self.observed.handle_listed(&listed, Instant::now());
        self.strike_the_gone(ctx);
    }
}

impl Actor for Adoption {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(ASK_EVERY, |this, _| {
            // Questions would only gather.
            if this.blocked {
                return;
            }
            this.leave_to_others();
            this.cancel_the_long();
            this.ask();
        });
    }
}

impl Handler<Jobs> for Adoption {
    type Result = ();

    fn handle(&mut self, Jobs(jobs): Jobs, ctx: &mut Self::Context) {
        let (store, term) = (self.store.clone(), self.term);
        let unsure = jobs.iter().map(|job| job.unsure_since).min();
        let since = unsure.unwrap_or_default();
        let asking = async move {
            loop {
                match store.call(move |store| store.suspects(since)).await {
                    Ok(suspects) => return suspects,
                    Err(error) => warn!(%error, "cannot read the list of agents"),
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let count = jobs.len();
        self.beginning += count;
        let begun = asking.into_actor(self).map(move |suspects, this, _| {
            this.beginning -= count;
            if this.term == term {
                this.begin(jobs, &suspects);
            }
        });
        ctx.spawn(begun);
    }
}

impl Handler<Answers> for Adoption {
    type Result = ();

    fn handle(
        &mut self,
        Answers {
            instance,
            key,
            answers,
        }: Answers,
        _: &mut Self::Context,
    ) {
        for answer in answers {
            match self.doubts.handle_answer(instance, key, answer) {
                Next::Wait => {}
                Next::End(tenancy, reference) => {
                    if let Some((_, addr)) = self.sessions.get(&instance) {
                        addr.do_send(session::EndAdopted { tenancy, reference });
                    }
                }
                Next::Lost(id) => {
                    info!(id = %id, "lost: an agent has seen a higher fence");
                    self.dispatcher.do_send(crate::dispatcher::Forget(id));
                }
            }
        }
        self.resolve_settled();
    }
}

impl Handler<AdoptedEnded> for Adoption {
    type Result = ();

    fn handle(&mut self, ended: AdoptedEnded, _: &mut Self::Context) {
        let AdoptedEnded {
            instance,
            tenancy,
            result,
        } = ended;
        self.doubts.handle_ended(instance, tenancy.id, result);
        self.resolve_settled();
    }
}

impl Handler<Opened> for Adoption {
    type Result = ();

    fn handle(&mut self, opened: Opened, _: &mut Self::Context) {
        self.sessions
            .insert(opened.instance, (opened.key, opened.addr));
        self.ask();
    }
}

impl Handler<Closed> for Adoption {
    type Result = ();

    fn handle(&mut self, Closed { instance, key }: Closed, _: &mut Self::Context) {
        if self.sessions.get(&instance).is_none_or(|it| it.0 != key) {
            // Its successor stands already.
            return;
        }
        self.sessions.remove(&instance);
        self.doubts.handle_session_over(instance);
        if self.who.only_brings(instance) {
            self.doubts.let_go(instance);
            self.resolve_settled();
        }
    }
}

impl Handler<TakesAddresses> for Adoption {
    type Result = ();

    fn handle(&mut self, takes: TakesAddresses, _: &mut Self::Context) {
        let TakesAddresses {
            instance,
            transport,
            types,
        } = takes;
        let sessions = &self.sessions;
        let has_session = |it| sessions.contains_key(&it);
        self.who
            .handle_word(instance, &transport, &types, has_session);
    }
}

impl Handler<EndTerm> for Adoption {
    type Result = ();

    fn handle(&mut self, _: EndTerm, _: &mut Self::Context) {
        self.term += 1;
        self.doubts.clear();
        self.sessions.clear();
        // Nobody could be answered meanwhile. Agents that come back with us are not to be struck off before they can say so.
        self.observed = Observed::default();
        self.blocked = false;
    }
}

/// The broker holds publishes back, or takes them again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Blocked(pub bool);

impl Handler<Blocked> for Adoption {
    type Result = ();

    fn handle(&mut self, Blocked(blocked): Blocked, _: &mut Self::Context) {
        self.blocked = blocked;
        // As without a broker: nobody is answered, and nobody is to be struck off for it.
        self.observed = Observed::default();
    }
}

/// How many doubts are open; a bound for claims.
#[derive(Message)]
#[rtype(result = "usize")]
pub struct OpenDoubts;

impl Handler<OpenDoubts> for Adoption {
    type Result = usize;

    fn handle(&mut self, _: OpenDoubts, _: &mut Self::Context) -> usize {
        self.doubts.len() + self.beginning
    }
}
