//! Keeps this incarnation alive in the store, and ends those of spoolers that died.
//!
//! An incarnation lives while it renews its row. One that cannot must end its sessions and start over, because others
//! may have taken its claims. Who sees a row unchanged for [`SILENCE_MAX`] on its own clock ends it by a conditional write; no two
//! clocks are compared.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use actix::{
    Actor, AsyncContext, Context, Handler, Message, Recipient, ResponseFuture, WrapFuture,
};
use pombo_proto::{ids::Incarnation, time::UnixMillis};
use tracing::{error, info, warn};

use crate::store::StoreThread;

/// How often the row is renewed. A fifth of the silence, so that four may be late.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// L of the design: a row unchanged for this long belongs to nobody.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Whether this incarnation's renewal holds. Sessions answer status rows only while it does.
#[derive(Clone, Debug, Default)]
pub struct Alive(Arc<AtomicBool>);

impl Alive {
    /// Whether it holds now.
    pub fn holds(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, alive: bool) {
        self.0.store(alive, Ordering::Release);
    }
}

/// The link is up under this incarnation: enter it into the store. True once that is done.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct Enter(pub Incarnation);

/// The incarnation is over: give back its claims. Resolves when the store has it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Leave(pub Incarnation);

/// The incarnation was ended by others, or could not be renewed in time: start over.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Ended(pub Incarnation);

/// Something was taken over: there may be work in the outbox.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct TakenOver;

struct Tick;
impl Message for Tick {
    type Result = ();
}

/// The actor. Spoken to by the switchboard; speaks to it and to the outbox.
pub struct Membership {
    store: StoreThread,
    name: String,
    alive: Alive,
    current: Option<Incarnation>,
    renewed: Instant,
    renewing: bool,
    others: HashMap<Incarnation, (u64, Instant)>,
    ended: Recipient<Ended>,
    taken_over: Recipient<TakenOver>,
}

impl Membership {
    /// Not a member of anything yet.
    pub fn new(
        store: StoreThread,
        name: String,
        alive: Alive,
        ended: Recipient<Ended>,
        taken_over: Recipient<TakenOver>,
    ) -> Self {
        Self {
            store,
            name,
            alive,
            current: None,
            renewed: Instant::now(),
            renewing: false,
            others: HashMap::new(),
            ended,
            taken_over,
        }
    }

    fn lose(&mut self, why: &str) {
        if let Some(current) = self.current.take() {
            self.alive.set(false);
            error!(incarnation = %current, why, "membership lost: ending all sessions");
            self.ended.do_send(Ended(current));
        }
    }
}

impl Actor for Membership {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(RENEW_EVERY, |_, ctx| ctx.notify(Tick));
    }
}

impl Handler<Enter> for Membership {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, Enter(incarnation): Enter, ctx: &mut Self::Context) -> Self::Result {
        let (store, name, me) = (self.store.clone(), self.name.clone(), ctx.address());
        Box::pin(async move {
            let entered = store
                .call(move |store| store.renew(incarnation, &name, true))
                .await;
            match entered {
                Ok(_) => me.send(Entered(incarnation)).await.is_ok(),
                Err(error) => {
                    warn!(%error, "cannot enter the store");
                    false
                }
            }
        })
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Entered(Incarnation);

impl Handler<Entered> for Membership {
    type Result = ();

    fn handle(&mut self, Entered(incarnation): Entered, _: &mut Self::Context) {
        self.current = Some(incarnation);
        self.renewed = Instant::now();
        self.alive.set(true);
    }
}

impl Handler<Leave> for Membership {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Leave(incarnation): Leave, _: &mut Self::Context) -> Self::Result {
        if self.current == Some(incarnation) {
            self.current = None;
            self.alive.set(false);
        }
        let store = self.store.clone();
        Box::pin(async move {
            let now = UnixMillis::now();
            // If this fails, the others end it once it has been silent for long enough.
            if let Err(error) = store
                .call(move |s| s.end_member(now, incarnation, None))
                .await
            {
                warn!(%error, %incarnation, "cannot leave the store");
            }
        })
    }
}

impl Handler<Tick> for Membership {
    type Result = ();

    fn handle(&mut self, _: Tick, ctx: &mut Self::Context) {
        if self.current.is_some() && self.renewed.elapsed() > SILENCE_MAX {
            self.lose("the store could not be written in time");
        }
        if self.renewing {
            return;
        }
        self.renewing = true;
        let (store, name, current) = (self.store.clone(), self.name.clone(), self.current);
        let me = ctx.address();
        let asked = Instant::now();
        let work = async move {
            let seen = store
                .call(move |store| {
                    let held = current
                        .map(|it| store.renew(it, &name, false))
                        .transpose()?;
                    Ok((held, store.members()?))
                })
                .await;
            me.do_send(Renewed {
                current,
                asked,
                seen: seen.map_err(|error| error.to_string()),
            });
        };
        ctx.spawn(work.into_actor(self));
    }
}

struct Renewed {
    current: Option<Incarnation>,
    asked: Instant,
    seen: Result<(Option<bool>, Vec<crate::store::Member>), String>,
}
impl Message for Renewed {
    type Result = ();
}

impl Handler<Renewed> for Membership {
    type Result = ();

    fn handle(&mut self, renewed: Renewed, ctx: &mut Self::Context) {
        self.renewing = false;
        let (held, members) = match renewed.seen {
            Ok(seen) => seen,
            Err(error) => {
                warn!(%error, "cannot renew the membership");
                return;
            }
        };
        if renewed.current == self.current {
            match held {
                Some(true) => self.renewed = renewed.asked,
                Some(false) => self.lose("another spooler has ended it"),
                None => {}
            }
        }
        let now = Instant::now();
        self.others
            .retain(|who, _| members.iter().any(|member| member.incarnation == *who));
        for member in members {
            if Some(member.incarnation) == self.current {
                continue;
            }
            let seen = self
                .others
                .entry(member.incarnation)
                .or_insert((member.counter, now));
            if seen.0 != member.counter {
                *seen = (member.counter, now);
            } else if now - seen.1 > SILENCE_MAX {
                self.take_over(member, ctx);
            }
        }
    }
}

impl Membership {
    fn take_over(&mut self, member: crate::store::Member, ctx: &mut Context<Self>) {
        self.others.remove(&member.incarnation);
        let (store, taken_over) = (self.store.clone(), self.taken_over.clone());
        let work = async move {
            let (who, counter) = (member.incarnation, member.counter);
            let now = UnixMillis::now();
            match store
                .call(move |s| s.end_member(now, who, Some(counter)))
                .await
            {
                Ok(true) => {
                    info!(spooler = member.name, incarnation = %who, "ended a silent spooler, its claims are due");
                    taken_over.do_send(TakenOver);
                }
                Ok(false) => {}
                Err(error) => warn!(%error, "cannot end a silent spooler"),
            }
        };
        ctx.spawn(work.into_actor(self));
    }
}
