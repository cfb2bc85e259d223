//! The store as processes see it: questions that take time, are refused, or are carried out although the answer says no.
//!
//! Behind it stands the product's own trait, over the model or over SQLite.

use pombo_proto::{
    ids::{Incarnation, Instance},
    time::UnixMillis,
    verbs::Tenancy,
};
use pombo_spooler::store::{
    ClaimRequest, Claimed, Error, ListedInstance, Member, Store, Suspect, Write, Written,
};

/// A question.
#[derive(Clone, Debug)]
pub enum Ask {
    /// A new incarnation.
    Enter(Incarnation),
    /// It lives, and answers the rows of these.
    Renew(Incarnation, Vec<ListedInstance>),
    /// It has ended, if its counter still stands there.
    End(Incarnation, Option<u64>),
    /// There is this agent.
    List(ListedInstance),
    /// What became of this agent? Its right to send has run out, if its counter still stands there.
    LookUp(Instance, Option<u64>),
    /// This agent has logged off, and keeps nothing.
    Forget(Instance),
    /// Which agents are there, and which were struck off since then?
    Suspects(UnixMillis),
    /// Claims.
    Claim(ClaimRequest),
    /// Commits.
    Commit(Vec<Write>),
    /// Which of these are recorded?
    Recorded(Vec<Tenancy>),
}

/// An answer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Done.
    Done,
    /// Of a renewal: whether it holds, who is there, and which agents were answered, by their counters.
    Renewed {
        /// Whether this incarnation lives.
        lives: bool,
        /// Everybody.
        members: Vec<Member>,
        /// All agents, by the counters that whoever answers them raises.
        listed: Vec<ListedInstance>,
    },
    /// Of an end: whether it applied.
    Ended(bool),
    /// The agents.
    Suspects(Vec<Suspect>),
    /// The claims.
    Claimed(Vec<Claimed>),
    /// What became of each write.
    Written(Vec<Written>),
    /// Those that are.
    Recorded(Vec<Tenancy>),
    /// The store is not available. It may have been carried out all the same.
    Failed,
}

/// See the module.
pub struct Host {
    /// The store itself.
    pub store: Box<dyn Store>,
}

impl Host {
    /// Over a store.
    pub fn new(store: Box<dyn Store>) -> Self {
        Self { store }
    }

    /// Carries out a question.
    pub fn run(&mut self, now: UnixMillis, ask: &Ask) -> Answer {
        self.carry_out(now, ask).unwrap_or(Answer::Failed)
    }

    fn carry_out(&mut self, now: UnixMillis, ask: &Ask) -> Result<Answer, Error> {
        let store = &mut self.store;
        Ok(match ask {
            Ask::Enter(me) => {
                store.renew(*me, "spooler", true, &[])?;
                Answer::Done
            }
            Ask::Renew(me, named) => {
                let lives = store.renew(*me, "spooler", false, named)?;
                Answer::Renewed {
                    lives,
                    members: store.members()?,
                    listed: store.instances()?,
                }
            }
            Ask::End(who, counter) => Answer::Ended(store.end_member(now, *who, *counter)?),
            Ask::List(instance) => {
                store.list_instance(instance)?;
                Answer::Done
            }
            Ask::LookUp(instance, counter) => {
                if counter.is_some() {
                    store.strike_instance(now, *instance, *counter)?;
                }
                Answer::Suspects(store.suspects(UnixMillis(0))?)
            }
            Ask::Forget(instance) => {
                store.strike_instance(now, *instance, None)?;
                Answer::Done
            }
            Ask::Suspects(since) => Answer::Suspects(store.suspects(*since)?),
            Ask::Claim(request) => Answer::Claimed(store.claim(request)?),
            Ask::Commit(writes) => Answer::Written(store.commit(now, writes)?),
            Ask::Recorded(tenancies) => Answer::Recorded(store.recorded(tenancies)?),
        })
    }
}
