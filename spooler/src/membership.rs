//! Keeps this incarnation alive in the store, and ends those of spoolers that died.
//!
//! An incarnation lives while it renews its row. One that cannot must end its sessions and start over, because others
//! may have taken its claims: it holds until [`HOLDS`] after its latest renewal was *sent*, and not a moment longer. Who sees a
//! row unchanged for [`SILENCE_MAX`] on its own clock ends it by a conditional write; no two clocks are compared.
//!
//! The same transaction carries the agents that are answered here ([`crate::horizon`]); the same call then reads those of all.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use actix::{
    Actor, AsyncContext, Context, Handler, Message, Recipient, ResponseFuture, WrapFuture,
};
use pombo_proto::{
    ids::Incarnation,
    service::http::Health,
    time::{UnixMillis, boot_time},
};
use tracing::{error, info, warn};

use crate::{
    adoption::Listed,
    horizon::{Horizon, Horizons},
    store::{ListedInstance, Member, StoreThread},
};

/// How often the row is renewed. A fifth of the silence, so that three may be late.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// L of the design: a row unchanged for this long belongs to nobody.
pub const SILENCE_MAX: Duration = pombo_proto::right::SILENCE;
/// How long a renewal holds, counted from when it was sent. Below [`SILENCE_MAX`] by one renewal, so that the sessions of an incarnation
/// that cannot renew are ended (at the latest by the tick after this) before anybody takes over.
pub const HOLDS: Duration = Duration::from_secs(8);
const _: () = assert!(HOLDS.as_millis() + RENEW_EVERY.as_millis() <= SILENCE_MAX.as_millis());

/// Whether this incarnation's renewal holds. Sessions answer status rows only while it does. It runs out by itself: nobody has to be
/// awake to end it.
#[derive(Clone, Debug, Default)]
pub struct Alive(Arc<AtomicU64>);

impl Alive {
    /// Whether it holds now.
    pub fn holds(&self) -> bool {
        self.holds_at(boot_time())
    }

    fn holds_at(&self, now: Duration) -> bool {
        now < Duration::from_millis(self.0.load(Ordering::Acquire))
    }

    /// A renewal that was sent at this time of the boot clock has been written.
    fn renewed(&self, sent_at: Duration) {
        let until = sent_at.saturating_add(HOLDS).as_millis();
        let until = u64::try_from(until).unwrap_or(0);
        self.0.store(until, Ordering::Release);
    }

    fn end(&self) {
        self.0.store(0, Ordering::Release);
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
    renewing: bool,
    others: HashMap<Incarnation, (u64, Instant)>,
    told: Told,
    health: Health,
    horizons: Horizons,
}

/// Who is told what.
pub struct Told {
    /// The switchboard: our own end.
    pub ended: Recipient<Ended>,
    /// The outbox: another one's, with what it had.
    pub taken_over: Recipient<TakenOver>,
    /// Adoption: the agents that are listed.
    pub listed: Recipient<Listed>,
}

impl Membership {
    /// Not a member of anything yet.
    pub fn new(
        store: StoreThread,
        name: String,
        alive: Alive,
        told: Told,
        health: Health,
        horizons: Horizons,
    ) -> Self {
        Self {
            store,
            name,
            alive,
            current: None,
            renewing: false,
            others: HashMap::new(),
            told,
            health,
            horizons,
        }
    }

    fn lose(&mut self, why: &str) {
        if let Some(current) = self.current.take() {
            self.health.set("membership", Err(why.to_owned()));
            self.alive.end();
            error!(incarnation = %current, why, "membership lost: ending all sessions");
            self.told.ended.do_send(Ended(current));
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
        let health = self.health.clone();
        Box::pin(async move {
            let sent_at = boot_time();
            let entered = store
                .call(move |store| store.renew(incarnation, &name, true, &[]))
                .await;
            match entered {
                Ok(_) => me
                    .send(Entered {
                        incarnation,
                        sent_at,
                    })
                    .await
                    .is_ok(),
                Err(error) => {
                    warn!(%error, "cannot enter the store");
                    health.set("membership", Err(error.to_string()));
                    false
                }
            }
        })
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Entered {
    incarnation: Incarnation,
    sent_at: Duration,
}

impl Handler<Entered> for Membership {
    type Result = ();

    fn handle(&mut self, entered: Entered, _: &mut Self::Context) {
        self.current = Some(entered.incarnation);
        self.alive.renewed(entered.sent_at);
        self.health.set("membership", Ok(()));
    }
}

impl Handler<Leave> for Membership {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Leave(incarnation): Leave, _: &mut Self::Context) -> Self::Result {
        if self.current == Some(incarnation) {
            self.current = None;
            self.alive.end();
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
        if self.current.is_some() && !self.alive.holds() {
            self.lose("the store could not be written in time");
        }
        if self.renewing {
            return;
        }
        self.renewing = true;
        let (store, name, current) = (self.store.clone(), self.name.clone(), self.current);
        let answered = match current {
            Some(_) => self.horizons.due(),
            None => Vec::new(),
        };
        let renewed: Vec<ListedInstance> = answered.iter().map(|it| it.listed().clone()).collect();
        let me = ctx.address();
        let sent_at = boot_time();
        let work = async move {
            let seen = store
                .call(move |store| {
                    let held = current
                        .map(|it| store.renew(it, &name, false, &renewed))
                        .transpose()?;
                    Ok(Seen {
                        held,
                        members: store.members()?,
                        instances: store.instances()?,
                    })
                })
                .await;
            me.do_send(Renewed {
                current,
                sent_at,
                answered,
                seen: seen.map_err(|error| error.to_string()),
            });
        };
        ctx.spawn(work.into_actor(self));
    }
}

struct Renewed {
    current: Option<Incarnation>,
    sent_at: Duration,
    answered: Vec<Horizon>,
    seen: Result<Seen, String>,
}

struct Seen {
    held: Option<bool>,
    members: Vec<Member>,
    instances: Vec<ListedInstance>,
}

impl Message for Renewed {
    type Result = ();
}

impl Handler<Renewed> for Membership {
    type Result = ();

    fn handle(&mut self, renewed: Renewed, ctx: &mut Self::Context) {
        self.renewing = false;
        let Seen {
            held,
            members,
            instances,
        } = match renewed.seen {
            Ok(seen) => seen,
            Err(error) => {
                warn!(%error, "cannot renew the membership");
                return;
            }
        };
        if renewed.current == self.current {
            match held {
                Some(true) => {
                    self.alive.renewed(renewed.sent_at);
                    for horizon in &renewed.answered {
                        horizon.renewed(renewed.sent_at);
                    }
                }
                Some(false) => self.lose("another spooler has ended it"),
                None => {}
            }
        }
        // Who is no member may be the one that is cut off: then agents stand still for him alone, or for everybody, and are not
        // to be struck off for it.
        if renewed.current.is_some() && renewed.current == self.current {
            self.told.listed.do_send(Listed(instances));
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
    fn take_over(&mut self, member: Member, ctx: &mut Context<Self>) {
        self.others.remove(&member.incarnation);
        let (store, taken_over) = (self.store.clone(), self.told.taken_over.clone());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_holds_from_its_sending_and_ends_before_others_may_take_over() {
        let alive = Alive::default();
        let at = Duration::from_secs(100);
        assert!(!alive.holds_at(at), "never entered");
        alive.renewed(at);
        assert!(alive.holds_at(at + HOLDS - Duration::from_millis(1)));
        // Nobody told it: it ran out, and the tick that notices comes before SILENCE_MAX.
        assert!(!alive.holds_at(at + HOLDS));
        assert!(!alive.holds_at(at + SILENCE_MAX - RENEW_EVERY));

        alive.renewed(at + Duration::from_secs(2));
        assert!(alive.holds_at(at + HOLDS));
        let other_handle = alive.clone();
        alive.end();
        assert!(!other_handle.holds_at(at + HOLDS));
    }

    #[test]
    fn without_a_clock_nothing_holds() {
        let alive = Alive::default();
        alive.renewed(boot_time());
        assert!(alive.holds());
        assert!(!alive.holds_at(Duration::MAX));
        alive.renewed(Duration::MAX);
        assert!(!alive.holds());
    }
}
