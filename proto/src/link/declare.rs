//! The topology as the broker has it: declared at every start of an incarnation, so that what somebody deleted comes back.
//!
//! Nothing here is refused by RabbitMQ 4.x, and nothing depends on its defaults: the delivery limit of a quorum queue, for
//! one, is none in 3.10 and 20 in 4.0, and a crash of ours charges every message that we had prefetched.

use lapin::{
    Channel, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{Audience, error::Error};
use crate::{
    ids::Incarnation,
    message::Priority,
    topology::{SpoolClass, Topology},
};

/// Attempts are counted by the fence; the broker's own count must never decide. -1 means "none at all" in 3.10.
const DELIVERY_LIMIT: i32 = 1_000_000;

/// A string as AMQP's short string.
pub(super) fn name(text: String) -> Result<ShortString, Error> {
    ShortString::try_new(text.as_str()).map_err(|_| Error::Name(text))
}

/// Everything that outlives us.
pub(super) async fn topology(channel: &Channel, names: &Topology) -> Result<(), Error> {
    let unrouted = name(names.unrouted_exchange())?;
    let dead = name(names.dead_exchange())?;
    let spool = name(names.spool_exchange())?;
    let none = FieldTable::default;
    exchange(channel, &dead, ExchangeKind::Fanout, none()).await?;
    exchange(channel, &unrouted, ExchangeKind::Fanout, none()).await?;
    // The broker confirms what it cannot route; so there is nothing it cannot route.
    let alternate = table([("alternate-exchange", text(unrouted.as_str()))]);
    exchange(channel, &spool, ExchangeKind::Direct, alternate).await?;
    let session = name(names.session_exchange())?;
    exchange(channel, &session, ExchangeKind::Direct, none()).await?;
    for fanout in [names.spoolers_exchange(), names.agents_exchange()] {
        exchange(channel, &name(fanout)?, ExchangeKind::Fanout, none()).await?;
    }

    let dead_queue = name(names.dead_queue())?;
    queue(channel, &dead_queue, quorum([])).await?;
    bind(channel, &dead_queue, &dead, ShortString::default()).await?;
    let mortal = || quorum([("x-dead-letter-exchange", text(dead.as_str()))]);
    for priority in Priority::ALL {
        let queue_name = name(names.spool_queue(SpoolClass::Priority(priority)))?;
        queue(channel, &queue_name, mortal()).await?;
        bind(channel, &queue_name, &spool, priority.name().into()).await?;
    }
    let unrouted_queue = name(names.spool_queue(SpoolClass::Unrouted))?;
    queue(channel, &unrouted_queue, mortal()).await?;
    bind(channel, &unrouted_queue, &unrouted, ShortString::default()).await
}

/// The queue that lives as long as the connection that declares it.
pub(super) async fn inbox(
    channel: &Channel,
    names: &Topology,
    incarnation: Incarnation,
    audience: Audience,
) -> Result<ShortString, Error> {
    let inbox = name(names.inbox(incarnation))?;
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    declare(channel, &inbox, options, FieldTable::default()).await?;
    let session = name(names.session_exchange())?;
    bind(channel, &inbox, &session, inbox.clone()).await?;
    if let Some(fanout) = fanout(names, audience) {
        bind(channel, &inbox, &name(fanout)?, ShortString::default()).await?;
    }
    Ok(inbox)
}

/// The exchange of an audience.
pub(super) fn fanout(names: &Topology, audience: Audience) -> Option<String> {
    match audience {
        Audience::Spoolers => Some(names.spoolers_exchange()),
        Audience::Agents => Some(names.agents_exchange()),
        Audience::Nobody => None,
    }
}

/// The queue whose one active consumer polls; see [`super::poll`] for its token.
pub(super) async fn poll_queue(channel: &Channel, poll: &ShortString) -> Result<(), Error> {
    let arguments = quorum([
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-max-length", AMQPValue::LongInt(1)),
        ("x-overflow", text("reject-publish")),
    ]);
    queue(channel, poll, arguments).await
}

fn quorum<const N: usize>(more: [(&'static str, AMQPValue); N]) -> FieldTable {
    let mut arguments = table(more);
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert(
        "x-delivery-limit".into(),
        AMQPValue::LongInt(DELIVERY_LIMIT),
    );
    arguments
}

fn table<const N: usize>(entries: [(&'static str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in entries {
        table.insert(key.into(), value);
    }
    table
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

async fn exchange(
    channel: &Channel,
    exchange: &ShortString,
    kind: ExchangeKind,
    arguments: FieldTable,
) -> Result<(), Error> {
    let options = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    channel
        .exchange_declare(exchange.clone(), kind, options, arguments)
        .await
        .map_err(|error| Error::while_declaring(exchange.as_str(), error))
}

async fn queue(channel: &Channel, queue: &ShortString, arguments: FieldTable) -> Result<(), Error> {
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    declare(channel, queue, options, arguments).await
}

async fn declare(
    channel: &Channel,
    queue: &ShortString,
    options: QueueDeclareOptions,
    arguments: FieldTable,
) -> Result<(), Error> {
    let declared = channel
        .queue_declare(queue.clone(), options, arguments)
        .await;
    declared
        .map(drop)
        .map_err(|error| Error::while_declaring(queue.as_str(), error))
}

async fn bind(
    channel: &Channel,
    queue: &ShortString,
    exchange: &ShortString,
    key: ShortString,
) -> Result<(), Error> {
    channel
        .queue_bind(
            queue.clone(),
            exchange.clone(),
            key,
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .map_err(Error::from)
}
