//! Gathers what other threads say into one actor message per burst.
//!
//! A store callback or a link event for each message would cost a mailbox message each; with this, the first of a burst
//! sends one, and the actor takes everything that has gathered by the time it gets to it.

use std::sync::{Arc, Mutex, PoisonError};

use actix::{Message, Recipient};

/// There is something to take.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Gathered<T: Send + 'static>(Gather<T>);

impl<T: Send + 'static> Gathered<T> {
    /// Everything since the last time.
    pub fn take(self) -> Vec<T> {
        self.0.take()
    }
}

/// The gathering place; clones share it.
pub struct Gather<T: Send + 'static> {
    items: Arc<Mutex<Vec<T>>>,
    reader: Recipient<Gathered<T>>,
}

impl<T: Send + 'static> Clone for Gather<T> {
    fn clone(&self) -> Self {
        Self {
            items: self.items.clone(),
            reader: self.reader.clone(),
        }
    }
}

impl<T: Send + 'static> Gather<T> {
    /// For an actor that handles `Gathered<T>`.
    pub fn new(reader: Recipient<Gathered<T>>) -> Self {
        Self {
            items: Arc::default(),
            reader,
        }
    }

    /// Adds one. What bounds the number is whatever bounds the requests: leases, credit, claims.
    pub fn push(&self, item: T) {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        items.push(item);
        if items.len() == 1 {
            self.reader.do_send(Gathered(self.clone()));
        }
    }

    fn take(self) -> Vec<T> {
        std::mem::take(&mut *self.items.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
