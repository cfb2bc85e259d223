//! Silence, and how a session ends.

use pombo_proto::{ids::Incarnation, outbound as numbering, verbs::Tenancy};

use super::{Session, Spooler};
use crate::sim::{
    checks::Seen,
    context::{Context, Effect, Timer},
    options::{Millis, Sabotage},
};

/// A session is over when no status row has come for so long.
const SILENCE_MAX: Millis = 15_000;
const LOGON_MAX: Millis = 30_000;

impl Spooler {
    pub(in crate::sim::spooler) fn look_at_sessions(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.ms;
        let Some(term) = &self.term else { return };
        let most = cx.options.capacity as usize;
        for session in term.sessions.values() {
            let submitted = session.under_way.len();
            cx.show(Seen::Held(
                "messages submitted in a session",
                submitted,
                most,
            ));
        }
        let over = |session: &Session| match session.opened {
            Some(_) => now > session.heard + SILENCE_MAX && !self.blocked,
            None => now > session.began + LOGON_MAX,
        };
        let over: Vec<Incarnation> = term
            .sessions
            .iter()
            .filter(|(_, session)| over(session))
            .map(|(key, _)| *key)
            .collect();
        for key in over {
            self.end_session(key, cx);
        }
    }

    /// The broker holds publishes back, or takes them again.
    pub(in crate::sim::spooler) fn set_blocked(&mut self, blocked: bool, cx: &mut Context<'_>) {
        let Some(term) = &mut self.term else { return };
        self.blocked = blocked;
        for session in term.sessions.values_mut() {
            session.heard = cx.now.ms;
        }
        if !cx.broken(Sabotage::BlockIgnored) {
            self.adoption.set_blocked(blocked);
        }
    }

    /// The session is over: whatever is under way is unknown, and will be asked for by Adopt.
    pub(in crate::sim::spooler) fn end_session(&mut self, key: Incarnation, cx: &mut Context<'_>) {
        let Some(session) = self.session(key) else {
            return;
        };
        let all: Vec<Tenancy> = session
            .under_way
            .values()
            .map(|it| it.job.tenure.tenancy())
            .collect();
        for tenancy in all {
            if let Some(it) = self
                .session(key)
                .and_then(|it| it.under_way.get_mut(&tenancy.id))
            {
                it.ladder.handle_session_ended();
            }
            self.drain(key, tenancy, cx);
        }
        let Some(term) = &mut self.term else { return };
        let Some(session) = term.sessions.remove(&key) else {
            return;
        };
        term.turns.handle_session_ended(key);
        cx.act(Effect::Send(numbering::no_session(
            term.me,
            key,
            session.out.epoch(),
        )));
        let transport = session.transport;
        let same = |it: &Session| it.opened.is_some() && it.transport == transport;
        if transport != "door" && !term.sessions.values().any(same) {
            term.router.set_available(&transport, false);
            self.reconsider(&transport, cx);
        }
        if session.opened.is_some() {
            self.adoption_closed(session.instance, cx);
        }
    }

    pub(in crate::sim::spooler) fn flush(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.instant();
        let Some(term) = &mut self.term else { return };
        for session in term.sessions.values_mut() {
            while let Some(packet) = session.out.poll_packet(now) {
                cx.act(Effect::Send(packet));
            }
            if session.out.poll_timeout().is_some() && !self.flushing {
                self.flushing = true;
                cx.after(numbering::PATIENCE.as_millis() as Millis + 1, Timer::Flush);
            }
        }
    }
}
