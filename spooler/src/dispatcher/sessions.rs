//! The sessions that submissions can go to, and their credit.

use std::collections::HashMap;

use actix::Addr;
use pombo_proto::{
    ids::MessageId,
    message::Priority,
    tenure::{Ordinal, Tenure},
    verbs::Tenancy,
};

use super::{SessionOpened, SessionStatus};
use crate::{
    job::SessionKey,
    session::{AbortDeferred, Cancel, Session, Settle, Submission, Submit},
};

/// One part in so many of a transport's credit is kept for urgent messages.
const URGENT_SHARE: u32 = 16;

#[derive(Debug)]
struct View {
    transport: String,
    agent: String,
    opened: Ordinal,
    credit: u32,
    outstanding: u32,
    usable: bool,
    /// Kept for one message alone.
    reserved: bool,
    sends: bool,
    addr: Addr<Session>,
}

impl View {
    fn free(&self) -> u32 {
        if self.usable && self.sends && !self.reserved {
            self.credit.saturating_sub(self.outstanding)
        } else {
            0
        }
    }
}

/// All open sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    views: HashMap<SessionKey, View>,
}

impl Sessions {
    pub fn open(&mut self, opened: SessionOpened) {
        let view = View {
            transport: opened.transport,
            agent: opened.agent,
            opened: opened.opened,
            credit: opened.credit,
            outstanding: 0,
            usable: true,
            reserved: false,
            sends: opened.sends,
            addr: opened.addr,
        };
        self.views.insert(opened.key, view);
    }

    /// Forgets a session; names its transport. Not the one that the same agent has opened since.
    pub fn close(&mut self, key: SessionKey, opened: Ordinal) -> Option<String> {
        if self.views.get(&key)?.opened != opened {
            return None;
        }
        self.views.remove(&key).map(|view| view.transport)
    }

    /// Whether a transport has a session that messages may go to.
    pub fn is_available(&self, transport: &str) -> bool {
        self.of(transport).any(|(_, view)| view.sends)
    }

    pub fn clear(&mut self) {
        self.views.clear();
    }

    /// Whether any session may be given messages.
    pub fn any_sends(&self) -> bool {
        self.views.values().any(|view| view.sends)
    }

    /// Takes a status row's credit; names the transport if that may let something go.
    pub fn update(&mut self, status: SessionStatus) -> Option<String> {
        let view = self.views.get_mut(&status.key)?;
        let before = view.free();
        (view.credit, view.usable) = (status.credit, status.usable);
        (view.free() > before).then(|| view.transport.clone())
    }

    fn of<'a>(&'a self, transport: &'a str) -> impl Iterator<Item = (&'a SessionKey, &'a View)> {
        self.views
            .iter()
            .filter(move |(_, view)| view.transport == transport)
    }

    /// Whether a message of this class may go to a transport.
    pub fn has_credit(&self, transport: &str, class: Priority) -> bool {
        let (mut free, mut all) = (0, 0);
        for (_, view) in self.of(transport) {
            free += view.free();
            all += view.credit;
        }
        let reserve = if class == Priority::Urgent {
            0
        } else {
            all / URGENT_SHARE
        };
        free > reserve
    }

    pub fn any_credit(&self) -> bool {
        self.views.values().any(|view| view.free() > 0)
    }

    pub fn free_credit(&self) -> usize {
        self.views.values().map(|view| view.free() as usize).sum()
    }

    /// The session with most credit among those that the tenure may use.
    pub fn choose(&self, transport: &str, tenure: &Tenure) -> Option<SessionKey> {
        self.of(transport)
            .filter(|(_, view)| view.free() > 0 && tenure.may_use_session(view.opened))
            .max_by_key(|(_, view)| view.free())
            .map(|(key, _)| *key)
    }

    /// Keeps a session for one message alone: the one that has least to finish before.
    pub fn reserve(&mut self, transport: &str, tenure: &Tenure) -> Option<SessionKey> {
        let fits = |view: &View| {
            view.transport == transport
                && view.usable
                && view.sends
                && view.credit > 0
                && tenure.may_use_session(view.opened)
        };
        let candidates = self.views.iter_mut().filter(|(_, view)| fits(view));
        let (key, view) = candidates.min_by_key(|(_, view)| view.outstanding)?;
        view.reserved = true;
        Some(*key)
    }

    /// Whether nothing is submitted in a session that is kept; `None`: it is over, though the same agent may have opened another.
    pub fn is_idle(&self, key: SessionKey) -> Option<bool> {
        let kept = self.views.get(&key).filter(|view| view.reserved);
        kept.map(|view| view.outstanding == 0)
    }

    /// Everybody may use it again.
    pub fn release(&mut self, key: SessionKey) {
        if let Some(view) = self.views.get_mut(&key) {
            view.reserved = false;
        }
    }

    pub fn spend(&mut self, key: SessionKey) {
        if let Some(view) = self.views.get_mut(&key) {
            view.outstanding += 1;
        }
    }

    pub fn give_back(&mut self, key: SessionKey, opened: Ordinal) {
        if let Some(view) = self.views.get_mut(&key)
            && view.opened == opened
        {
            view.outstanding = view.outstanding.saturating_sub(1);
        }
    }

    pub fn agent(&self, key: SessionKey) -> String {
        self.views
            .get(&key)
            .map(|view| view.agent.clone())
            .unwrap_or_default()
    }

    pub fn submit(&self, key: SessionKey, submissions: Vec<Submission>) {
        if let Some(view) = self.views.get(&key) {
            view.addr.do_send(Submit(submissions));
        }
    }

    pub fn cancel(&self, key: SessionKey, id: MessageId) {
        if let Some(view) = self.views.get(&key) {
            view.addr.do_send(Cancel(id));
        }
    }

    /// Whichever agent of the transport keeps the message hears that it is cancelled.
    pub fn abort_deferred(&self, transport: &str, tenancy: Tenancy) {
        for (_, view) in self.of(transport) {
            view.addr.do_send(AbortDeferred(tenancy));
        }
    }

    /// Tells the agent; names the transport whose credit has grown.
    pub fn settle(&self, key: SessionKey, tenancies: Vec<Tenancy>) -> Option<String> {
        let view = self.views.get(&key)?;
        view.addr.do_send(Settle(tenancies));
        Some(view.transport.clone())
    }
}
