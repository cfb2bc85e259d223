//! Going down: no new work, what is ready goes back, what is submitted completes; then it logs off, records what was lost by that,
//! and gives its claims back. And an agent that goes down itself.

use pombo_proto::{
    ids::{Incarnation, RecipientIndex},
    verbs::{TransportNotification, Verb},
};
use pombo_spooler::{job::Job, verdict::Happened};

use super::{Asked, Spooler, record::Conclude};
use crate::sim::{
    context::{Context, Effect},
    options::Millis,
    store::Ask,
};

/// So long it waits for what is submitted.
const LIMIT: Millis = 10_000;
/// So long it waits for the store, at each step after that.
const SETTLE_MAX: Millis = 5_000;

/// How far it has come, and since when.
#[derive(Clone, Copy, Debug)]
pub(super) enum Going {
    /// What is submitted completes.
    Draining(Millis),
    /// Logged off: what was lost by that is recorded.
    Settling(Millis),
    /// The claims are given back.
    Leaving(Millis),
}

impl Spooler {
    pub(super) fn go_down(&mut self, cx: &mut Context<'_>) {
        if self.going.is_some() {
            return;
        }
        self.going = Some(Going::Draining(cx.now.ms));
        let ready = self.term.as_mut().map(|it| std::mem::take(&mut it.ready));
        for ready in ready.unwrap_or_default() {
            let (job, recipients) = ready.into_parts();
            self.park_for_good(job, recipients, cx);
        }
    }

    /// Delivered or claimed just before the drain began, or adopted since.
    pub(super) fn park_for_good(
        &mut self,
        job: Job,
        recipients: Vec<RecipientIndex>,
        cx: &mut Context<'_>,
    ) {
        let now = cx.now.unix();
        let happened = Happened::Parked {
            reason: "the spooler goes down".to_owned(),
            recipients: recipients.into_iter().map(|it| (it, now)).collect(),
        };
        self.conclude(Conclude::new(job, happened), cx);
    }

    pub(super) fn drain_beat(&mut self, cx: &mut Context<'_>) {
        let (Some(going), now) = (self.going, cx.now.ms) else {
            return;
        };
        let Some(term) = &self.term else {
            return cx.act(Effect::Exit);
        };
        let commit = |it: &Asked| matches!(it, Asked::Commit(_));
        let commits = !term.failed.is_empty() || term.asked.values().any(commit);
        let moving = term.sessions.values().any(|it| it.has_submitted());
        let me = term.me;
        match going {
            Going::Draining(since) => {
                let waits = commits || moving || term.claiming;
                if !waits || now > since + LIMIT {
                    self.log_off_all(cx);
                    self.going = Some(Going::Settling(now));
                }
            }
            Going::Settling(since) => {
                if !commits || now > since + SETTLE_MAX {
                    self.ask(Ask::End(me, None), Asked::Left, cx);
                    self.going = Some(Going::Leaving(now));
                }
            }
            Going::Leaving(since) if now > since + SETTLE_MAX => cx.act(Effect::Exit),
            Going::Leaving(_) => {}
        }
    }

    fn log_off_all(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.instant();
        let keys: Vec<Incarnation> = match &self.term {
            Some(term) => term.sessions.keys().copied().collect(),
            None => return,
        };
        for key in keys {
            if let Some(session) = self.session(key) {
                for end in [
                    TransportNotification::EndInbound,
                    TransportNotification::EndOutbound,
                ] {
                    session.say(Verb::TransportNotify(end));
                }
                session.say(Verb::TransportLogoff);
                for packet in session.packets(now) {
                    cx.act(Effect::Send(packet));
                }
            }
            self.end_session(key, cx);
        }
    }

    /// The agent goes down. If it keeps nothing, it is forgotten.
    pub(super) fn logged_off(&mut self, key: Incarnation, kept: u32, cx: &mut Context<'_>) {
        if let Some(instance) = self.session(key).map(|it| it.instance)
            && kept == 0
        {
            self.ask(Ask::Forget(instance), Asked::Forgotten, cx);
        }
        self.end_session(key, cx);
    }
}
