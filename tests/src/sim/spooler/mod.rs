//! A spooler: what its actors do, in one structure, around the product's own state machines.
//!
//! | file | the actors that it stands for |
//! |---|---|
//! | `mod` | switchboard: the link's events |
//! | `session` | session |
//! | `dispatch` | dispatcher, outbox, reception |
//! | `drain` | service, as far as it goes down |
//! | `record` | recorder |
//! | `adoption` | adoption |
//! | `membership` | membership |

mod adoption;
mod dispatch;
mod drain;
mod membership;
mod record;
mod session;

use std::collections::{BTreeMap, VecDeque};

use pombo_proto::{
    gate::{TurnOptions, Turns},
    ids::{Incarnation, Instance},
    tenure::Ordinal,
    verbs::{Hello, Role, Tenancy, VERSIONS},
};
use pombo_spooler::{
    job::{Job, Ordinals},
    router::Router,
    schedule::Schedule,
};

use super::{
    context::{Context, Effect, Input, Timer},
    options::Millis,
    store::{Answer, Ask},
};
use adoption::Adoption;
use dispatch::Ready;
use drain::Going;
use membership::Membership;
use record::Pending;
pub use record::reports_in;
use session::Session;

const TICK: Millis = 500;
/// What the store refused is asked for again after this.
const REPEAT_AFTER: Millis = 1_000;
const HELLO_EVERY: Millis = 10_000;
/// How often it looks for due rows without a reason.
const LOOK_EVERY: Millis = 1_000;

/// Whether doubt about this transport waits for a person.
fn holds_doubt(transport: &str, cx: &Context<'_>) -> bool {
    cx.options.hold && transport == "smtp"
}

/// A spooler.
pub struct Spooler {
    schedule: Schedule,
    ordinals: Ordinals,
    term: Option<Term>,
    adoption: Adoption,
    tickets: u64,
    greeted: Millis,
    flushing: bool,
    going: Option<Going>,
    /// The broker holds publishes back.
    blocked: bool,
}

/// One incarnation. With it goes everything that the spooler knows, but what agents have said that they take.
struct Term {
    me: Incarnation,
    entered: bool,
    router: Router,
    sessions: BTreeMap<Incarnation, Session>,
    ready: VecDeque<Ready>,
    asked: BTreeMap<u64, Asked>,
    failed: Vec<Pending>,
    /// In doubt, and the list of agents could not be read.
    unasked: Vec<Job>,
    membership: Membership,
    turns: Turns<Incarnation>,
    leasing: bool,
    claiming: bool,
    kicked: bool,
    trouble: bool,
}

/// What is done with the store's answer.
enum Asked {
    /// When it was asked for.
    Enter(Millis),
    Renew {
        at: Millis,
        /// The sessions whose agents it names.
        keys: Vec<Incarnation>,
    },
    TakeOver,
    /// Then a session is opened with it.
    List(Hello, Millis),
    /// Then it is known what became of it.
    LookUp(Instance),
    Claim,
    Commit(Box<Pending>),
    /// Then this session is given its go.
    Note(Incarnation, Tenancy),
    /// Those that are recorded are settled there.
    Recorded(Incarnation),
    /// Then these are asked for.
    Suspects(Vec<Job>),
    /// It has logged off.
    Forgotten,
    /// Then the process ends.
    Left,
}

impl Spooler {
    /// A new run of it.
    pub fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            ordinals: Ordinals::default(),
            term: None,
            adoption: Adoption::new(),
            tickets: 0,
            greeted: 0,
            flushing: false,
            going: None,
            blocked: false,
        }
    }

    /// Something happens.
    pub fn handle(&mut self, input: Input, cx: &mut Context<'_>) {
        match input {
            Input::Started => cx.after(TICK, Timer::Tick),
            Input::LinkUp(incarnation) => self.begin_term(incarnation, cx),
            Input::LinkDown => self.end_term(cx),
            Input::Packet(packet) => self.packet(&packet, cx),
            Input::Returned(packet) => self.returned(&packet, cx),
            Input::Hello(hello) => self.hello(hello, cx),
            Input::Leases(leases) => self.leases(leases, cx),
            Input::Answer(ticket, answer) => self.answered(ticket, answer, cx),
            Input::Timer(timer) => self.timer(timer, cx),
            Input::Blocked(blocked) => self.set_blocked(blocked, cx),
            Input::Drain => self.go_down(cx),
            Input::Confirmed(_) | Input::Mail(_) | Input::File(_) => {}
        }
        self.give_permits(cx);
        self.pump(cx);
        self.adjust_leasing(cx);
        self.flush(cx);
    }

    fn timer(&mut self, timer: Timer, cx: &mut Context<'_>) {
        match timer {
            Timer::Tick => {
                cx.after(TICK, Timer::Tick);
                self.look_at_membership(cx);
                self.look_at_sessions(cx);
                self.park_the_slow(cx);
                self.look_at_doubts(cx);
                self.drain_beat(cx);
                if self.term.is_some() && cx.now.ms >= self.greeted + HELLO_EVERY {
                    self.greet(cx);
                }
            }
            Timer::Look => {
                cx.after(LOOK_EVERY, Timer::Look);
                self.claim(cx);
            }
            Timer::Flush => self.flushing = false,
            Timer::Repeat => {
                self.repeat(cx);
                self.enter(cx);
                let unasked = self.term.as_mut().map(|it| std::mem::take(&mut it.unasked));
                self.look_for_suspects(unasked.unwrap_or_default(), cx);
            }
            _ => {}
        }
    }

    fn begin_term(&mut self, me: Incarnation, cx: &mut Context<'_>) {
        let first = self.tickets == 0;
        self.term = Some(Term {
            me,
            entered: false,
            router: Router::new(["smtp", "spare"]),
            sessions: BTreeMap::new(),
            ready: VecDeque::new(),
            asked: BTreeMap::new(),
            failed: Vec::new(),
            unasked: Vec::new(),
            membership: Membership::default(),
            turns: Turns::new(TurnOptions::default()),
            leasing: false,
            claiming: false,
            kicked: false,
            trouble: false,
        });
        self.enter(cx);
        if first {
            cx.after(LOOK_EVERY, Timer::Look);
        }
    }

    fn enter(&mut self, cx: &mut Context<'_>) {
        if let Some(me) = self.term.as_ref().filter(|it| !it.entered).map(|it| it.me) {
            self.ask(Ask::Enter(me), Asked::Enter(cx.now.ms), cx);
        }
    }

    /// Everything in process is dropped; its claims are given back.
    fn end_term(&mut self, cx: &mut Context<'_>) {
        if let Some(term) = self.term.take() {
            self.blocked = false;
            self.adoption.end_term();
            self.tickets += 1;
            cx.act(Effect::Store(self.tickets, Ask::End(term.me, None)));
        }
    }

    fn ask(&mut self, ask: Ask, then: Asked, cx: &mut Context<'_>) {
        let Some(term) = &mut self.term else { return };
        self.tickets += 1;
        term.asked.insert(self.tickets, then);
        cx.act(Effect::Store(self.tickets, ask));
    }

    fn greet(&mut self, cx: &mut Context<'_>) {
        let Some(term) = &self.term else { return };
        self.greeted = cx.now.ms;
        cx.act(Effect::Hello(Hello {
            role: Role::Spooler,
            instance: Instance(term.me.0),
            incarnation: term.me,
            versions: VERSIONS,
            host: "host".to_owned(),
        }));
    }

    /// An answer of the store; those to an earlier term are to nobody.
    fn answered(&mut self, ticket: u64, answer: Answer, cx: &mut Context<'_>) {
        let Some(asked) = self.term.as_mut().and_then(|it| it.asked.remove(&ticket)) else {
            return;
        };
        match (asked, answer) {
            (Asked::Enter(at), Answer::Done) => self.entered(at, cx),
            (Asked::Enter(_), _) => cx.after(REPEAT_AFTER, Timer::Repeat),
            (Asked::Renew { at, keys }, answer) => self.renewed(at, &keys, answer, cx),
            (Asked::TakeOver, Answer::Ended(true)) => self.claim(cx),
            (Asked::LookUp(instance), Answer::Suspects(all)) => self.looked_up(instance, &all, cx),
            (Asked::List(hello, at), Answer::Done) => self.log_on(&hello, at, cx),
            (Asked::List(hello, _), _) => {
                if let Some(term) = &mut self.term {
                    term.sessions.remove(&hello.incarnation);
                }
            }
            (Asked::Claim, answer) => self.claimed(answer, cx),
            (Asked::Commit(pending), answer) => self.committed(*pending, &answer, cx),
            (Asked::Note(key, tenancy), Answer::Written(written)) => {
                self.noted(key, tenancy, &written, cx);
            }
            (Asked::Recorded(session), Answer::Recorded(tenancies)) => {
                self.settle(session, tenancies);
            }
            (Asked::Suspects(jobs), Answer::Suspects(suspects)) => self.doubt(jobs, &suspects, cx),
            (Asked::Suspects(jobs), _) => {
                self.suspects_refused(jobs);
                cx.after(REPEAT_AFTER, Timer::Repeat);
            }
            (Asked::Left, _) => cx.act(Effect::Exit),
            (
                Asked::Forgotten
                | Asked::TakeOver
                | Asked::Recorded(_)
                | Asked::LookUp(_)
                | Asked::Note(..),
                _,
            ) => {}
        }
    }

    fn entered(&mut self, at: Millis, cx: &mut Context<'_>) {
        if let Some(term) = &mut self.term {
            term.entered = true;
            term.membership.entered(at);
        }
        self.greet(cx);
    }

    fn next_ordinal(&self) -> Ordinal {
        self.ordinals.next()
    }
}
