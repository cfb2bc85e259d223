//! Who lives: this incarnation by renewing its row, the others by theirs. And which agents it answers meanwhile.
//!
//! No two clocks are compared. A renewal holds for a while from when it was asked for; it raises the counters of the agents
//! that are answered under it.

use std::{collections::BTreeMap, time::Duration};

use pombo_proto::{ids::Incarnation, right::SILENCE};
use pombo_spooler::{membership::HOLDS, store::ListedInstance};

use super::{Asked, Spooler};
use crate::sim::{
    context::{Context, Effect},
    options::Millis,
    store::{Answer, Ask},
};

const RENEW_EVERY: Millis = 2_000;

/// See the module.
#[derive(Default)]
pub(super) struct Membership {
    /// When the renewal was asked for that succeeded last.
    renewed: Option<Millis>,
    renewing: bool,
    asked: Millis,
    others: BTreeMap<Incarnation, (u64, Millis)>,
}

/// In this world's time.
pub(super) fn ms(duration: Duration) -> Millis {
    duration.as_millis() as Millis
}

impl Membership {
    pub fn entered(&mut self, at: Millis) {
        self.renewed = Some(at);
    }

    /// Whether this incarnation lives, by the clock and not by what it last heard.
    pub fn lives(&self, now: Millis) -> bool {
        self.renewed.is_some_and(|at| now < at + ms(HOLDS))
    }
}

impl Spooler {
    pub(super) fn look_at_membership(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.ms;
        let Some(term) = self.term.as_mut().filter(|it| it.entered) else {
            return;
        };
        if !term.membership.lives(now) {
            return self.lose_membership(cx);
        }
        if term.membership.renewing || now < term.membership.asked + RENEW_EVERY {
            return;
        }
        term.membership.renewing = true;
        term.membership.asked = now;
        let (mut keys, mut answered) = (Vec::new(), Vec::new());
        for (key, session) in &mut term.sessions {
            if std::mem::take(&mut session.row_heard) {
                keys.push(*key);
                answered.push(ListedInstance {
                    instance: session.instance,
                    transport: session.transport.clone(),
                    host: "host".to_owned(),
                    counter: 0,
                });
            }
        }
        let me = term.me;
        self.ask(Ask::Renew(me, answered), Asked::Renew { at: now, keys }, cx);
    }

    fn lose_membership(&mut self, cx: &mut Context<'_>) {
        self.end_term(cx);
        cx.act(Effect::CloseLink);
    }

    pub(super) fn renewed(
        &mut self,
        at: Millis,
        keys: &[Incarnation],
        answer: Answer,
        cx: &mut Context<'_>,
    ) {
        let now = cx.now.ms;
        let Some(term) = &mut self.term else { return };
        let me = term.me;
        let membership = &mut term.membership;
        membership.renewing = false;
        let Answer::Renewed {
            lives,
            members,
            listed,
        } = answer
        else {
            return;
        };
        if !lives {
            return self.lose_membership(cx);
        }
        membership.renewed = Some(at);
        for key in keys {
            if let Some(session) = term.sessions.get_mut(key) {
                session.answered_until = session.answered_until.max(at + ms(HOLDS));
            }
        }
        let known = |who: &Incarnation| members.iter().any(|member| member.incarnation == *who);
        membership.others.retain(|who, _| known(who));
        let mut silent = Vec::new();
        for member in members.iter().filter(|it| it.incarnation != me) {
            let (who, counter) = (member.incarnation, member.counter);
            let seen = membership.others.entry(who).or_insert((counter, now));
            if seen.0 != counter {
                *seen = (counter, now);
            } else if now > seen.1 + ms(SILENCE) {
                silent.push((who, counter));
            }
        }
        for (who, counter) in silent {
            self.ask(Ask::End(who, Some(counter)), Asked::TakeOver, cx);
        }
        self.listed(&listed, cx);
    }
}
