//! The broker: the spool as a quorum queue, and the connections that consume it and own an inbox each.
//!
//! Who says what to which inbox, and how long it takes, is the world's business; this is what the broker remembers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pombo_proto::{
    ids::{Incarnation, MessageId},
    message::Message,
};

use super::options::Millis;

/// A message in the spool.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The message.
    pub message: Message,
    /// Its publisher did not know whether it had been published before.
    pub marked: bool,
    /// It was delivered before.
    pub redelivered: bool,
}

/// A delivery.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// By which it is acked.
    pub tag: u64,
    /// What.
    pub stored: Stored,
}

/// A process's link, as the broker sees it.
#[derive(Debug)]
pub struct Connection {
    /// Whose.
    pub process: usize,
    prefetch: usize,
    unacked: BTreeMap<u64, Stored>,
    /// Deliveries that were given to others without its knowing.
    taken: BTreeSet<u64>,
    tags: u64,
}

/// What became of an ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acked {
    /// The message is gone from the spool.
    Gone(MessageId),
    /// It succeeded, and did nothing: somebody else has the message.
    Nothing,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Broker {
    ready: VecDeque<Stored>,
    connections: BTreeMap<Incarnation, Connection>,
    /// Published, and not there yet.
    pub on_the_way: BTreeMap<MessageId, u32>,
    /// When the last message between two inboxes arrives: nothing overtakes within one connection.
    last: BTreeMap<(Incarnation, Incarnation), Millis>,
}

impl Broker {
    /// A process has connected.
    pub fn connect(&mut self, incarnation: Incarnation, process: usize) {
        let connection = Connection {
            process,
            prefetch: 0,
            unacked: BTreeMap::new(),
            taken: BTreeSet::new(),
            tags: 0,
        };
        self.connections.insert(incarnation, connection);
    }

    /// Whose inbox this is; `None`: there is no such queue.
    pub fn owner(&self, incarnation: Incarnation) -> Option<usize> {
        self.connections.get(&incarnation).map(|it| it.process)
    }

    /// A connection is gone: its inbox with it, and its deliveries come again.
    pub fn lose(&mut self, incarnation: Incarnation) -> bool {
        let Some(connection) = self.connections.remove(&incarnation) else {
            return false;
        };
        self.give_back(connection.unacked.into_values().collect());
        true
    }

    /// A node stalls: what this connection holds is given to others, and it is not told.
    pub fn hand_over(&mut self, incarnation: Incarnation) {
        let Some(connection) = self.connections.get_mut(&incarnation) else {
            return;
        };
        let unacked = std::mem::take(&mut connection.unacked);
        connection.taken.extend(unacked.keys());
        self.give_back(unacked.into_values().collect());
    }

    fn give_back(&mut self, all: Vec<Stored>) {
        for stored in all.into_iter().rev() {
            self.ready.push_front(Stored {
                redelivered: true,
                ..stored
            });
        }
    }

    /// A message has arrived.
    pub fn publish(&mut self, message: Message, marked: bool) {
        self.ready.push_back(Stored {
            message,
            marked,
            redelivered: false,
        });
    }

    /// A consumer wants so many.
    pub fn lease(&mut self, incarnation: Incarnation, prefetch: usize) {
        if let Some(connection) = self.connections.get_mut(&incarnation) {
            connection.prefetch = prefetch;
        }
    }

    /// An ack. `None`: the connection is gone, and the ack with it.
    pub fn ack(&mut self, incarnation: Incarnation, tag: u64) -> Option<Acked> {
        let connection = self.connections.get_mut(&incarnation)?;
        if let Some(stored) = connection.unacked.remove(&tag) {
            return Some(Acked::Gone(stored.message.envelope.id));
        }
        connection.taken.remove(&tag).then_some(Acked::Nothing)
    }

    /// Delivers what can be delivered.
    pub fn deliver(&mut self, random: &mut fastrand::Rng) -> Vec<(Incarnation, Delivered)> {
        let mut delivered = Vec::new();
        while !self.ready.is_empty() {
            let free: Vec<Incarnation> = self
                .connections
                .iter()
                .filter(|(_, it)| it.unacked.len() + it.taken.len() < it.prefetch)
                .map(|(incarnation, _)| *incarnation)
                .collect();
            if free.is_empty() {
                break;
            }
            let chosen = free[random.usize(..free.len())];
            let (Some(connection), Some(stored)) =
                (self.connections.get_mut(&chosen), self.ready.pop_front())
            else {
                break;
            };
            connection.tags += 1;
            let tag = connection.tags;
            connection.unacked.insert(tag, stored.clone());
            delivered.push((chosen, Delivered { tag, stored }));
        }
        delivered
    }

    /// How many deliveries a connection has not acked.
    pub fn unacked(&self, incarnation: Incarnation) -> usize {
        self.connections
            .get(&incarnation)
            .map_or(0, |it| it.unacked.len())
    }

    /// All messages in the spool, delivered ones included, and those on their way to it.
    pub fn holds(&self) -> BTreeSet<MessageId> {
        let unacked = self.connections.values().flat_map(|it| it.unacked.values());
        let here = self.ready.iter().chain(unacked);
        here.map(|stored| stored.message.envelope.id)
            .chain(self.on_the_way.keys().copied())
            .collect()
    }

    /// When something said now arrives, if it takes that long: not before what was said earlier.
    pub fn arrival(&mut self, from: Incarnation, to: Incarnation, at: Millis) -> Millis {
        let last = self.last.entry((from, to)).or_default();
        *last = at.max(*last);
        *last
    }
}
