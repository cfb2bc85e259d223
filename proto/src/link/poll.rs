//! The turn to poll: one agent of a transport at a time has it.
//!
//! A single-active-consumer queue picks a consumer but does not tell it. So there is a **token** in the queue, and whoever
//! holds it, unacked, has the turn. When the holder dies or gives up, its channel closes, the broker puts the token back and
//! delivers it to the next active consumer.
//!
//! The token is never acked, so it is never lost; and whoever comes puts one in, in case there is none (the queue is new, or
//! was purged). More than one does no harm: only the active consumer is delivered anything, and it takes one (prefetch 1).
//! They are bounded all the same: the queue refuses a second ready one (`x-max-length` 1, `reject-publish`).
//!
//! A token held for long would run into the broker's consumer timeout (30 minutes), so it is put back every few minutes. It
//! returns to the same consumer, which stays the active one. Turns save work; they are not a lock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    Channel, Connection,
    options::{BasicConsumeOptions, BasicQosOptions, BasicRejectOptions},
    types::{FieldTable, ShortString},
};
use tokio::sync::watch;
use tracing::{debug, error};

use super::{
    Event, PublishError, declare,
    error::{Error, within},
    publish::{Publish, Publisher},
    run::Tell,
};
use crate::topology::Topology;

/// Well below the broker's 30 minutes.
const RENEW: Duration = Duration::from_secs(300);
/// After a declaration that was refused, or a queue that was deleted.
const RETRY: Duration = Duration::from_secs(5);
/// For what takes one round trip.
const SETUP_MAX: Duration = Duration::from_secs(20);
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// What the task needs.
pub(super) struct Poll {
    pub(super) connection: Arc<Connection>,
    pub(super) publisher: Publisher,
    pub(super) topology: Topology,
    pub(super) tell: Tell,
    /// Whether we have the turn: who ends the incarnation takes it back.
    pub(super) turn: Arc<AtomicBool>,
}

/// Waits for wishes and turns until the connection is lost, or until `drain`.
pub(super) async fn run(
    poll: Poll,
    mut wish: watch::Receiver<Option<String>>,
    mut drain: watch::Receiver<bool>,
) -> String {
    loop {
        let transport = wish.borrow_and_update().clone();
        let channel = match &transport {
            None => None,
            Some(_) => match poll.connection.create_channel().await {
                Ok(channel) => Some(channel),
                Err(error) => return format!("opening a channel: {error}"),
            },
        };
        let end = tokio::select! {
            Err(error) = poll.attend(channel.as_ref(), transport.as_deref()) => Some(error),
            Ok(()) = wish.changed() => None,
            () = super::run::set(&mut drain) => {
                poll.give_up(channel).await;
                return "no turns any more".to_owned();
            }
        };
        poll.give_up(channel).await;
        if let Some(error) = end {
            // Others poll meanwhile, or nobody; mail that was pushed still flows. No reason to end the link.
            error!(%error, transport, "the poll queue is not usable; trying again");
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                Ok(()) = wish.changed() => {}
                () = super::run::set(&mut drain) => return "no turns any more".to_owned(),
            }
        }
    }
}

impl Poll {
    /// Queues up for the turn and keeps it. Never ends well.
    async fn attend(
        &self,
        channel: Option<&Channel>,
        transport: Option<&str>,
    ) -> Result<(), Error> {
        let (Some(channel), Some(transport)) = (channel, transport) else {
            return std::future::pending().await;
        };
        let queue = declare::name(self.topology.poll_queue(transport))?;
        let setup = async {
            declare::polled(channel, &self.topology, transport).await?;
            channel.basic_qos(1, BasicQosOptions::default()).await?;
            let consumer = channel.basic_consume(
                queue.clone(),
                ShortString::default(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            );
            Ok::<_, Error>(consumer.await?)
        };
        let mut tokens = within("queueing for the poll turn", SETUP_MAX, setup).await?;
        let hold = async {
            let mut renew = tokio::time::interval(RENEW);
            let mut held = None;
            loop {
                tokio::select! {
                    token = tokens.next() => {
                        let token = token.ok_or(Error::Ended("the poll queue"))??;
                        held = Some(token.delivery_tag);
                        if !self.turn.swap(true, Ordering::AcqRel) {
                            debug!(transport, "our turn to poll");
                            (self.tell)(Event::PollTurn(true));
                        }
                    }
                    _ = renew.tick() => if let Some(tag) = held.take() {
                        channel.basic_reject(tag, BasicRejectOptions { requeue: true }).await?;
                    }
                }
            }
        };
        tokio::select! {
            result = hold => result,
            never = self.mint(&queue) => never,
        }
    }

    /// Puts a token in, if there is none.
    async fn mint(&self, queue: &ShortString) -> Result<(), Error> {
        let exchange = declare::name(self.topology.session_exchange())?;
        let token = || Publish::turn(exchange.clone(), queue.clone());
        loop {
            match self.publisher.publish(token()).await {
                // Refused: there is one.
                Ok(()) | Err(PublishError::Refused(_)) => return std::future::pending().await,
                Err(PublishError::NotConnected | PublishError::Unknown(_)) => {
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// We stop before somebody else starts: first the word, then the channel.
    async fn give_up(&self, channel: Option<Channel>) {
        if self.turn.swap(false, Ordering::AcqRel) {
            (self.tell)(Event::PollTurn(false));
        }
        if let Some(channel) = channel
            && channel.status().connected()
        {
            let close = channel.close(200, "OK".into());
            let _ = tokio::time::timeout(CLOSE_MAX, close).await;
        }
    }
}
