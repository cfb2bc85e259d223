//! Who may deliver next: gives StartMessage permits to the sessions that have mail, in turns.
//!
//! Spoken to by sessions (NEWMAIL, Poll's answers, what StartMessage returned); speaks to them. What bounds it: the
//! window per session and the permits over all sessions ([`TurnOptions`]).

use std::collections::HashMap;

use actix::{Actor, Addr, Context, Handler, Message};
use pombo_proto::gate::{Permit, StartReply, TurnOptions, Turns};

use crate::{
    job::SessionKey,
    session::{Session, StartMessages},
};

/// A session is open for mail.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Opened {
    /// Which.
    pub key: SessionKey,
    /// Whom to tell.
    pub addr: Addr<Session>,
}

/// A session is over, and its permits with it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Closed(pub SessionKey);

/// A session's transport has mail.
#[derive(Message)]
#[rtype(result = "()")]
pub struct HasMail(pub SessionKey);

/// StartMessage returned.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Started {
    /// In which session.
    pub key: SessionKey,
    /// Which permit.
    pub permit: Permit,
    /// What.
    pub reply: StartReply,
}

/// No more permits.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop;

/// The actor.
pub struct Reception {
    turns: Turns<SessionKey>,
    sessions: HashMap<SessionKey, Addr<Session>>,
    stopped: bool,
}

impl Reception {
    /// Nobody has mail yet.
    pub fn new(options: TurnOptions) -> Self {
        Self {
            turns: Turns::new(options),
            sessions: HashMap::new(),
            stopped: false,
        }
    }

    fn give(&mut self) {
        if self.stopped {
            return;
        }
        let mut permits: HashMap<SessionKey, Vec<Permit>> = HashMap::new();
        while let Some(turn) = self.turns.next() {
            permits.entry(turn.session).or_default().push(turn.permit);
        }
        for (key, permits) in permits {
            if let Some(addr) = self.sessions.get(&key) {
                addr.do_send(StartMessages(permits));
            }
        }
    }
}

impl Actor for Reception {
    type Context = Context<Self>;
}

impl Handler<Opened> for Reception {
    type Result = ();

    fn handle(&mut self, Opened { key, addr }: Opened, _: &mut Self::Context) {
        self.sessions.insert(key, addr);
    }
}

impl Handler<Closed> for Reception {
    type Result = ();

    fn handle(&mut self, Closed(key): Closed, _: &mut Self::Context) {
        self.sessions.remove(&key);
        self.turns.handle_session_ended(key);
        self.give();
    }
}

impl Handler<HasMail> for Reception {
    type Result = ();

    fn handle(&mut self, HasMail(key): HasMail, _: &mut Self::Context) {
        if self.sessions.contains_key(&key) {
            self.turns.handle_new_mail(key);
            self.give();
        }
    }
}

impl Handler<Started> for Reception {
    type Result = ();

    fn handle(&mut self, Started { key, permit, reply }: Started, _: &mut Self::Context) {
        self.turns.handle_start_reply(key, permit, reply);
        self.give();
    }
}

impl Handler<Stop> for Reception {
    type Result = ();

    fn handle(&mut self, _: Stop, _: &mut Self::Context) {
        self.stopped = true;
    }
}
