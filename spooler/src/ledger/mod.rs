//! The ledger: what was accepted, and what became of it.
//!
//! ```text
//! session (status row), control (the submit door) --DoorSaid--> this --> store.record_doors, every two seconds
//! store.ledger() --> gauges;  one spooler at a time: the broker's count + everybody's Held + the store --> audit --> alarm
//! ```
//!
//! Rows enter themselves into the accounts: the store does that with every commit. What comes from here is the other side,
//! the doors' word, and the comparison. What bounds it: doors, which are as many as there are lives of agents and spoolers in the
//! time that history is kept; and [`audit::SOUGHT_MAX`] numbers.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, ResponseFuture,
    WrapFuture,
};
use pombo_proto::{
    control::{Audited, Control as Said, LedgerView, Question},
    frame::{Frame, Packet, Payload},
    ids::{Correlation, Incarnation},
    ledger::{Account, Balance, DoorNumber},
    link::Link,
    time::UnixMillis,
};
use tokio::sync::oneshot;
use tracing::{debug, error, info};

use crate::{
    config::Config,
    dispatcher::{Dispatcher, Holds, HoldsWhich},
    store::{self, DoorReport, StoreThread},
};

pub mod audit;
mod round;

use audit::{Audit, Observation};
use round::{AskOthers, Round, Seen};

/// How often what doors have said is written down.
const RECORD_EVERY: Duration = Duration::from_secs(2);
/// A door that says nothing new is written down all the same, so that the store knows that it is alive.
const REFRESH_EVERY: Duration = Duration::from_secs(3600);
/// A door that has not been heard of for so long is not kept in memory.
const GONE_AFTER: Duration = Duration::from_secs(600);
/// The other spoolers have so long to say what they hold.
const HELD_MAX: Duration = Duration::from_secs(3);
/// Accounts that have gauges of their own: those that changed last.
const GAUGES_MAX: usize = 64;
/// Numbers named in one line of the log.
const LOGGED_MAX: usize = 20;

/// A door has said where it stands.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct DoorSaid(pub DoorReport);

/// Audit under this incarnation from now on.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct AuditAs(pub Option<Incarnation>);

/// Another spooler's answer.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct HeldBy {
    /// Whose.
    pub from: Incarnation,
    /// To which question.
    pub correlation: Correlation,
    /// Those of the asked numbers that it moves.
    pub held: Vec<DoorNumber>,
}

/// The ledger for people.
#[derive(Message)]
#[rtype(result = "Result<LedgerView, store::Error>")]
pub struct Look;

struct Known {
    report: DoorReport,
    /// What has been written down of it.
    recorded: Option<(DoorReport, Instant)>,
    heard: Instant,
}

/// The actor.
pub struct Ledger {
    desk: Desk,
    doors: HashMap<u32, Known>,
    recording: bool,
    term: Option<Incarnation>,
    audit: Audit,
    /// This spooler makes the audit, as far as it knows.
    auditor: bool,
    auditing: bool,
    asked: HashMap<Correlation, Asked>,
    correlation: u64,
    /// Named in the log before.
    told: Audited,
    gauges: BTreeSet<Account>,
}

struct Asked {
    open: BTreeSet<Incarnation>,
    held: BTreeSet<DoorNumber>,
    done: oneshot::Sender<Option<BTreeSet<DoorNumber>>>,
}

/// What looking needs.
#[derive(Clone)]
struct Desk {
    config: Arc<Config>,
    store: StoreThread,
    link: Link,
    dispatcher: Addr<Dispatcher>,
}

impl Ledger {
    /// Over the given parts.
    pub fn new(
        config: Arc<Config>,
        store: StoreThread,
        link: Link,
        dispatcher: Addr<Dispatcher>,
    ) -> Self {
        Self {
            audit: Audit::new(config.spooler.ledger_patience),
            desk: Desk {
                config,
                store,
                link,
                dispatcher,
            },
            doors: HashMap::new(),
            recording: false,
            term: None,
            auditor: false,
            auditing: false,
            asked: HashMap::new(),
            correlation: 0,
            told: Audited::default(),
            gauges: BTreeSet::new(),
        }
    }

    fn record(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        self.doors.retain(|_, known| now - known.heard < GONE_AFTER);
        let due = |known: &&Known| {
            known
                .recorded
                .as_ref()
                .is_none_or(|(recorded, at)| *recorded != known.report || now - *at > REFRESH_EVERY)
        };
        let due: Vec<&Known> = self.doors.values().filter(due).collect();
        if due.is_empty() || self.recording {
            return;
        }
        let full: Vec<DoorReport> = due.iter().map(|known| known.report.clone()).collect();
        // Runs of void numbers are written down once.
        let news: Vec<DoorReport> = due.iter().map(|known| known.news()).collect();
        self.recording = true;
        let store = self.desk.store.clone();
        let work = async move {
            let at = UnixMillis::now();
            store.call(move |store| store.record_doors(at, &news)).await
        };
        let recorded = work.into_actor(self).map(move |recorded, this, _| {
            this.recording = false;
            match recorded {
                Ok(()) => {
                    for report in full {
                        if let Some(known) = this.doors.get_mut(&report.door) {
                            known.recorded = Some((report, now));
                        }
                    }
                }
                Err(error) => debug!(%error, "cannot write down what doors have confirmed"),
            }
        });
        ctx.spawn(recorded);
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        if self.auditing {
            return;
        }
        let Some(me) = self.term else { return };
        self.auditing = true;
        let round = Round {
            desk: self.desk.clone(),
            ledger: ctx.address(),
            me,
            sought: self.audit.sought(),
        };
        let work = async move { round.observe().await };
        let seen = work.into_actor(self).map(move |seen, this, _| {
            this.auditing = false;
            match seen {
                Ok(Seen::Audited(observation)) => this.audited(&observation),
                Ok(Seen::Books(accounts)) => {
                    this.leave_to_others();
                    this.show(&accounts);
                }
                Err(error) => debug!(%error, "the ledger cannot be read"),
            }
        });
        ctx.spawn(seen);
    }

    /// Somebody else audits: what this one has found says nothing any more.
    fn leave_to_others(&mut self) {
        if std::mem::take(&mut self.auditor) {
            metrics::gauge!("pombo_ledger_missing").set(0.0);
            metrics::gauge!("pombo_ledger_unsound").set(0.0);
            self.told = Audited::default();
        }
    }

    fn audited(&mut self, seen: &Observation) {
        if !self.auditor {
            // Somebody else did it before; what we knew is old.
            self.auditor = true;
            self.audit = Audit::new(self.desk.config.spooler.ledger_patience);
        }
        self.show(&seen.accounts);
        let found = self.audit.handle_observation(UnixMillis::now(), seen);
        metrics::gauge!("pombo_ledger_missing").set(found.missing_count as f64);
        metrics::gauge!("pombo_ledger_unsound").set(found.unsound.len() as f64);
        metrics::gauge!("pombo_ledger_broker_ready").set(seen.ready as f64);
        let same = |a: &Audited, b: &Audited| {
            (&a.missing, a.missing_count, &a.unsound) == (&b.missing, b.missing_count, &b.unsound)
        };
        if same(found, &self.told) {
            return;
        }
        let names = |all: &[DoorNumber]| {
            let named = all.iter().take(LOGGED_MAX).map(ToString::to_string);
            named.collect::<Vec<_>>().join(" ")
        };
        if found.missing_count > 0 {
            error!(
                missing = found.missing_count,
                named = names(&found.missing),
                "the ledger does not close: accepted, not in the store, and nobody has it"
            );
        }
        for account in &found.unsound {
            error!(%account, "the ledger's books contradict themselves");
        }
        if found.missing_count == 0 && found.unsound.is_empty() {
            info!("the ledger closes again");
        }
        self.told = found.clone();
    }

    /// Every spooler exports them: they are the store's.
    fn show(&mut self, accounts: &[Balance]) {
        let mut newest: Vec<&Balance> = accounts.iter().collect();
        newest.sort_by_key(|it| std::cmp::Reverse(it.changed));
        newest.truncate(GAUGES_MAX);
        let mut shown = BTreeSet::new();
        for balance in newest {
            shown.insert(balance.account);
            export(balance);
        }
        // A door that is shown no more must not keep on saying that something of it moves.
        for account in self.gauges.difference(&shown) {
            let nothing = Balance {
                account: *account,
                name: String::new(),
                confirmed: 0,
                voided: 0,
                beyond: 0,
                rows: 0,
                holes: 0,
                messages: Default::default(),
                recipients: Default::default(),
                changed: UnixMillis(0),
            };
            export(&nothing);
        }
        self.gauges = shown;
    }

    fn ask(
        &mut self,
        question: AskOthers,
    ) -> Option<oneshot::Receiver<Option<BTreeSet<DoorNumber>>>> {
        let me = self.term.filter(|term| *term == question.me)?;
        self.correlation += 1;
        let correlation = Correlation(self.correlation);
        for other in &question.others {
            let frame = Frame {
                correlation,
                payload: Payload::Control(Said::Question(Question::Held(question.sought.clone()))),
                tail: bytes::Bytes::new(),
            };
            self.desk.link.send(&Packet::single(me, *other, frame));
        }
        let (done, answered) = oneshot::channel();
        let asked = Asked {
            open: question.others,
            held: BTreeSet::new(),
            done,
        };
        self.asked.insert(correlation, asked);
        Some(answered)
    }
}

impl Known {
    fn news(&self) -> DoorReport {
        let mut news = self.report.clone();
        if let Some((recorded, _)) = &self.recorded {
            news.voided.retain(|run| !recorded.voided.contains(run));
        }
        news
    }
}

fn export(balance: &Balance) {
    let account = balance.account.to_string();
    let set = |state: &'static str, count: u64| {
        metrics::gauge!("pombo_ledger_messages", "account" => account.clone(), "state" => state)
            .set(count as f64);
    };
    set("accepted", balance.accepted());
    set("delivered", balance.messages.delivered);
    set("failed", balance.messages.failed);
    set("expired", balance.messages.expired);
    set("cancelled", balance.messages.cancelled);
    set("waiting", balance.waiting());
    set("moving", balance.moving());
}

impl Actor for Ledger {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(RECORD_EVERY, |this, ctx| this.record(ctx));
        // As often as the patience needs to see a thing several times, and no more often than is cheap.
        let every = self.desk.config.spooler.ledger_patience / 6;
        let every = every.clamp(Duration::from_millis(500), Duration::from_secs(10));
        ctx.run_interval(every, |this, ctx| this.look(ctx));
    }
}

impl Handler<DoorSaid> for Ledger {
    type Result = ();

    fn handle(&mut self, DoorSaid(report): DoorSaid, _: &mut Self::Context) {
        let now = Instant::now();
        match self.doors.get_mut(&report.door) {
            Some(known) => {
                known.heard = now;
                if report.confirmed >= known.report.confirmed {
                    known.report = report;
                }
            }
            None => {
                let known = Known {
                    report: report.clone(),
                    recorded: None,
                    heard: now,
                };
                self.doors.insert(report.door, known);
            }
        }
    }
}

impl Handler<AuditAs> for Ledger {
    type Result = ();

    fn handle(&mut self, AuditAs(term): AuditAs, _: &mut Self::Context) {
        self.term = term;
        if term.is_none() {
            self.leave_to_others();
        }
    }
}

impl Handler<AskOthers> for Ledger {
    type Result = ResponseFuture<Option<BTreeSet<DoorNumber>>>;

    fn handle(&mut self, question: AskOthers, ctx: &mut Self::Context) -> Self::Result {
        let Some(answered) = self.ask(question) else {
            return Box::pin(async { None });
        };
        let correlation = Correlation(self.correlation);
        ctx.run_later(HELD_MAX, move |this, _| {
            if let Some(asked) = this.asked.remove(&correlation) {
                debug!(
                    silent = asked.open.len(),
                    "not every spooler says what it holds"
                );
                let _ = asked.done.send(None);
            }
        });
        Box::pin(async move { answered.await.ok()? })
    }
}

impl Handler<HeldBy> for Ledger {
    type Result = ();

    fn handle(&mut self, answer: HeldBy, _: &mut Self::Context) {
        let Some(asked) = self.asked.get_mut(&answer.correlation) else {
            return;
        };
        if !asked.open.remove(&answer.from) {
            return;
        }
        asked.held.extend(answer.held);
        if asked.open.is_empty()
            && let Some(asked) = self.asked.remove(&answer.correlation)
        {
            let _ = asked.done.send(Some(asked.held));
        }
    }
}

impl Handler<Look> for Ledger {
    type Result = ResponseFuture<Result<LedgerView, store::Error>>;

    fn handle(&mut self, _: Look, _: &mut Self::Context) -> Self::Result {
        let desk = self.desk.clone();
        let audit = self.auditor.then(|| self.audit.found().clone());
        Box::pin(async move {
            let ready = desk.link.ready().await;
            let holds = desk.dispatcher.send(HoldsWhich(Vec::new())).await;
            let leased = holds.map_or(0, |Holds { leased, .. }| leased);
            let accounts = desk.store.call(|store| store.ledger()).await?;
            Ok(LedgerView {
                spooler: desk.config.spooler.name(),
                accounts,
                ready: ready.map(|ready| ready.iter().sum()),
                leased,
                audit,
            })
        })
    }
}
