//! Finds out what became of messages that an earlier holder may have submitted, before anybody submits them again.
//!
//! Every listed agent instance of a transport that could have such a message must answer Adopt, or have lost its
//! right to send: until that right is enforced by the store, an instance that has not answered for [`GONE_AFTER`] counts
//! as gone, and what it may have had is sent again and counted as in doubt. An attempt that is found is ended by us with
//! EndMessage, and recorded as if we had made it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, WrapFuture};
use pombo_proto::{
    ids::{Instance, MessageId, Reference},
    ladder::submission::AttemptResult,
    message::Recipient,
    outcome::EndMessageFlag,
    time::UnixMillis,
    verbs::{AdoptAnswer, Adopted, Refusal, Tenancy},
};
use tracing::{info, warn};

use crate::{
    config::Config,
    dispatcher::{Dispatcher, EndTerm, Jobs, TakesAddresses},
    job::{Job, SessionKey},
    recorder::{Conclude, Recorder},
    router::{Route, Router},
    session::{self, Session},
    store::{ListedInstance, StoreThread},
    verdict::{AdoptedAttempt, Happened},
};

/// An instance that has not answered for so long counts as gone.
pub const GONE_AFTER: Duration = Duration::from_secs(60);
/// How often those that are under way are asked for again.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Ids in one Adopt frame.
const ASK_MAX: usize = 1_000;

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

/// What one instance knows of one message.
#[derive(Debug)]
enum Knows {
    /// Not yet answered; or under way, ask again.
    Asked { since: Instant },
    /// Done, and EndMessage is under way.
    Ending {
        transport: String,
        result: AttemptResult,
        session: SessionKey,
    },
    /// Done.
    Done {
        transport: String,
        result: AttemptResult,
        session: SessionKey,
    },
    /// It has nothing, and will refuse anything older.
    Nothing,
    /// It never answered.
    Gone { transport: String },
}

struct Doubt {
    job: Job,
    instances: HashMap<Instance, (String, Knows)>,
}

impl Doubt {
    fn is_settled(&self) -> bool {
        let open = |knows: &Knows| matches!(knows, Knows::Asked { .. } | Knows::Ending { .. });
        !self.instances.values().any(|(_, knows)| open(knows))
    }
}

/// The actor. Fed by the outbox, answered by sessions; hands on to the dispatcher or the recorder.
pub struct Adoption {
    store: StoreThread,
    dispatcher: Addr<Dispatcher>,
    recorder: Addr<Recorder>,
    router: Router,
    sessions: HashMap<Instance, (SessionKey, Addr<Session>)>,
    doubts: HashMap<MessageId, Doubt>,
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
        let router = Router::new(config.transport_order());
        Self {
            store,
            dispatcher,
            recorder,
            router,
            sessions: HashMap::new(),
            doubts: HashMap::new(),
            beginning: 0,
            term: 0,
        }
    }

    /// Whether a transport could have been given a recipient: it takes it, or has never said what it takes.
    fn could_have(&self, transport: &str, recipient: &Recipient) -> bool {
        let others: Vec<String> = self
            .router
            .transports()
            .filter(|(name, _)| *name != transport)
            .map(|(name, _)| name.to_owned())
            .collect();
        matches!(
            self.router.route(recipient, &others),
            Route::Transport(name) | Route::Unknown(name) if name == transport
        )
    }

    /// The instances that could have a message: those of transports that could take an undecided recipient.
    fn suspects(&self, job: &Job, listed: &[ListedInstance]) -> HashMap<Instance, (String, Knows)> {
        let envelope = &job.message.envelope;
        let undecided: Vec<_> = envelope
            .recipients
            .iter()
            .zip(&job.progress.recipients)
            .filter(|(_, progress)| !progress.state.is_decided())
            .map(|(recipient, _)| recipient)
            .collect();
        let since = Instant::now();
        listed
            .iter()
            .filter(|it| {
                undecided
                    .iter()
                    .any(|recipient| self.could_have(&it.transport, recipient))
            })
            .map(|it| (it.instance, (it.transport.clone(), Knows::Asked { since })))
            .collect()
    }

    fn begin(&mut self, jobs: Vec<Job>, listed: &[ListedInstance]) {
        let mut free = Vec::new();
        for job in jobs {
            let instances = self.suspects(&job, listed);
            info!(id = %job.id(), instances = instances.len(), "in doubt: asking who has it");
            let doubt = Doubt { job, instances };
            let id = doubt.job.id();
            let fence = doubt.job.tenure.fence();
            if doubt.is_settled() {
                free.push(doubt.job);
            } else if self
                .doubts
                .get(&id)
                .is_none_or(|it| it.job.tenure.fence() < fence)
            {
                // Of two claims of one message the later one is ours: the other one was given back.
                self.doubts.insert(id, doubt);
            }
        }
        if !free.is_empty() {
            self.dispatcher.do_send(Jobs(free));
        }
        self.ask();
    }

    fn ask(&mut self) {
        let mut asked: HashMap<Instance, Vec<Tenancy>> = HashMap::new();
        for doubt in self.doubts.values() {
            for (instance, (_, knows)) in &doubt.instances {
                if matches!(knows, Knows::Asked { .. }) {
                    let tenancy = doubt.job.tenure.tenancy();
                    asked.entry(*instance).or_default().push(tenancy);
                }
            }
        }
        for (instance, tenancies) in asked {
            if let Some((_, addr)) = self.sessions.get(&instance) {
                for some in tenancies.chunks(ASK_MAX) {
                    addr.do_send(session::Adopt(some.to_vec()));
                }
            }
        }
    }

    /// Who has been silent for too long counts as gone.
    fn give_up_on_the_silent(&mut self) {
        let mut gone = HashSet::new();
        for doubt in self.doubts.values_mut() {
            for (instance, (transport, knows)) in &mut doubt.instances {
                let silent =
                    matches!(knows, Knows::Asked { since } if since.elapsed() > GONE_AFTER);
                if silent && !self.sessions.contains_key(instance) {
                    *knows = Knows::Gone {
                        transport: transport.clone(),
                    };
                    gone.insert(*instance);
                }
            }
        }
        for instance in gone {
            warn!(agent = %instance, "an agent has not answered Adopt: it counts as gone");
            let store = self.store.clone();
            actix::spawn(async move {
                if let Err(error) = store.call(move |s| s.strike_instance(instance)).await {
                    warn!(%error, "cannot strike off an agent");
                }
            });
        }
        self.resolve_settled();
    }

    fn resolve_settled(&mut self) {
        let settled: Vec<_> = self
            .doubts
            .iter()
            .filter(|(_, doubt)| doubt.is_settled())
            .map(|(id, _)| *id)
            .collect();
        for doubt in settled
            .iter()
            .filter_map(|id| self.doubts.remove(id))
            .collect::<Vec<_>>()
        {
            self.resolve(doubt);
        }
    }

    fn resolve(&mut self, doubt: Doubt) {
        let Doubt { mut job, instances } = doubt;
        job.doubt = false;
        let now = UnixMillis::now();
        let (mut found, mut sessions) = (Vec::new(), Vec::new());
        for (_, knows) in instances.into_values() {
            match knows {
                Knows::Done {
                    transport,
                    result,
                    session,
                } => {
                    found.push(AdoptedAttempt { transport, result });
                    sessions.push(session);
                }
                Knows::Gone { transport } => self.mark_in_doubt(&mut job, &transport, now),
                _ => {}
            }
        }
        if found.is_empty() {
            self.dispatcher.do_send(Jobs(vec![job]));
            return;
        }
        for attempt in &found {
            let detail = format!("an attempt by {}", attempt.transport);
            job.progress.note(now, "adopted", detail);
        }
        let happened = Happened::Adopted(found);
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

    fn mark_in_doubt(&self, job: &mut Job, transport: &str, now: UnixMillis) {
        let envelope = job.message.envelope.clone();
        let mut marked = 0;
        for (recipient, progress) in envelope.recipients.iter().zip(&mut job.progress.recipients) {
            if !progress.state.is_decided() && self.could_have(transport, recipient) {
                progress.in_doubt = true;
                marked += 1;
            }
        }
        metrics::counter!("pombo_in_doubt_total", "transport" => transport.to_owned())
            .increment(marked);
        job.progress.note(
            now,
            "in doubt",
            format!("an agent of {transport} never answered"),
        );
    }
}

impl Actor for Adoption {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(ASK_EVERY, |this, _| {
            this.give_up_on_the_silent();
            this.ask();
        });
    }
}

impl Handler<Jobs> for Adoption {
    type Result = ();

    fn handle(&mut self, Jobs(jobs): Jobs, ctx: &mut Self::Context) {
        let (store, term) = (self.store.clone(), self.term);
        let asking = async move {
            loop {
                match store.call(|store| store.instances()).await {
                    Ok(listed) => return listed,
                    Err(error) => warn!(%error, "cannot read the list of agents"),
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let count = jobs.len();
        self.beginning += count;
        let begun = asking.into_actor(self).map(move |listed, this, _| {
            this.beginning -= count;
            if this.term == term {
                this.begin(jobs, &listed);
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
        for Adopted { id, fence, answer } in answers {
            let Some(doubt) = self.doubts.get_mut(&id) else {
                continue;
            };
            let tenancy = doubt.job.tenure.tenancy();
            if tenancy.fence != fence {
                continue;
            }
            let Some((transport, knows)) = doubt.instances.get_mut(&instance) else {
                continue;
            };
            if !matches!(knows, Knows::Asked { .. }) {
                continue;
            }
            match answer {
                AdoptAnswer::Unknown => *knows = Knows::Nothing,
                AdoptAnswer::UnderWay => {
                    *knows = Knows::Asked {
                        since: Instant::now(),
                    }
                }
                AdoptAnswer::Fenced => {
                    // Somebody claimed it after us: whatever we would record is lost.
                    info!(id = %id, "lost: an agent has seen a higher fence");
                    self.doubts.remove(&id);
                    self.dispatcher.do_send(crate::dispatcher::Forget(id));
                }
                AdoptAnswer::Done {
                    reference,
                    result,
                    statuses,
                    ended,
                } => {
                    let end_follows = matches!(result, pombo_proto::outcome::SubmitResult::Ok(_));
                    let (transport, session) = (transport.clone(), key);
                    let result = AttemptResult {
                        result,
                        end: ended,
                        statuses,
                    };
                    if ended.is_none() && end_follows {
                        *knows = Knows::Ending {
                            transport,
                            result,
                            session,
                        };
                        end_adopted(self.sessions.get(&instance), tenancy, reference);
                    } else {
                        *knows = Knows::Done {
                            transport,
                            result,
                            session,
                        };
                    }
                }
            }
        }
        self.resolve_settled();
    }
}

fn end_adopted(
    session: Option<&(SessionKey, Addr<Session>)>,
    tenancy: Tenancy,
    reference: Reference,
) {
    if let Some((_, addr)) = session {
        addr.do_send(session::EndAdopted { tenancy, reference });
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
        let Some(doubt) = self.doubts.get_mut(&tenancy.id) else {
            return;
        };
        let Some((_, knows)) = doubt.instances.get_mut(&instance) else {
            return;
        };
        let before = std::mem::replace(knows, Knows::Nothing);
        *knows = match before {
            Knows::Ending {
                transport,
                result: mut attempt,
                session,
            } => {
                // Refused: the reference was ended before, and what its flag was follows from the outcomes.
                attempt.end = result.ok();
                Knows::Done {
                    transport,
                    result: attempt,
                    session,
                }
            }
            other => other,
        };
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
        // What was being ended there is asked for again in the agent's next session.
        for doubt in self.doubts.values_mut() {
            if let Some((_, knows)) = doubt.instances.get_mut(&instance)
                && matches!(knows, Knows::Ending { .. })
            {
                *knows = Knows::Asked {
                    since: Instant::now(),
                };
            }
        }
    }
}

impl Handler<TakesAddresses> for Adoption {
    type Result = ();

    fn handle(&mut self, takes: TakesAddresses, _: &mut Self::Context) {
        self.router
            .set_address_types(&takes.transport, &takes.types);
    }
}

impl Handler<EndTerm> for Adoption {
    type Result = ();

    fn handle(&mut self, _: EndTerm, _: &mut Self::Context) {
        self.term += 1;
        self.doubts.clear();
        self.sessions.clear();
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
