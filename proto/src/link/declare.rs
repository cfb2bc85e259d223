//! The topology as the broker has it: declared at every start of an incarnation, so that what somebody deleted comes back.
//!
//! Nothing here is refused by RabbitMQ 4.x, and nothing depends on its defaults: the delivery limit of a quorum queue, for
//! one, is none in 3.10 and 20 in 4.0, and a crash of ours charges every message that we had prefetched.

use lapin::{
    Channel, Connection, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};

use tracing::debug;

use super::{Audience, error::Error};
use crate::{
    ids::Incarnation,
    topology::{Argument, Durable, Kind, Topology},
};

/// A string as AMQP's short string.
pub(super) fn name(text: String) -> Result<ShortString, Error> {
    ShortString::try_new(text.as_str()).map_err(|_| Error::Name(text))
}

/// Everything that outlives us. Spoolers declare it, so that what somebody deleted comes back and what differs is noticed;
/// if they may not, it is enough that it is there. For all others it is enough that it is there; if it is not, they declare it.
pub(super) async fn topology(
    connection: &Connection,
    names: &Topology,
    audience: Audience,
) -> Result<(), Error> {
    let shared = names.shared();
    let declares = audience == Audience::Spoolers;
    let first = match attempt(connection, &shared, declares).await {
        Err(Stop { error, .. }) if declares && error.is_forbidden() => None,
        Err(stop) if !declares && stop.error.is_not_found() => Some(stop.at),
        settled => return settled.map_err(|stop| stop.error),
    };
    debug!(declares, "topology: trying the other way");
    match (attempt(connection, &shared, !declares).await, first) {
        (Err(stop), None) if stop.error.is_not_found() => Err(Error::Missing(stop.at)),
        (Err(stop), Some(missing)) if stop.error.is_forbidden() => Err(Error::Missing(missing)),
        (settled, _) => settled.map_err(|stop| stop.error),
    }
}

/// Where an attempt came to its end, and why.
struct Stop {
    at: String,
    error: Error,
}

/// On a channel of its own: the first refusal closes it.
async fn attempt(connection: &Connection, shared: &[Durable], declares: bool) -> Result<(), Stop> {
    let channel = connection.create_channel().await.map_err(|error| Stop {
        at: "a channel".to_owned(),
        error: error.into(),
    })?;
    for one in shared {
        let declared = durable(&channel, one, !declares).await;
        declared.map_err(|error| Stop {
            at: one.name().to_owned(),
            error,
        })?;
    }
    // The refusals of others do not matter any more.
    let _ = channel.close(200, "OK".into()).await;
    Ok(())
}

/// Declares one thing, or with `passive` asks only whether it is there. The broker cannot be asked about a binding.
async fn durable(channel: &Channel, one: &Durable, passive: bool) -> Result<(), Error> {
    match one {
        Durable::Exchange {
            name: called,
            kind,
            alternate,
        } => {
            let options = ExchangeDeclareOptions {
                durable: true,
                passive,
                ..ExchangeDeclareOptions::default()
            };
            let kind = match kind {
                Kind::Direct => ExchangeKind::Direct,
                Kind::Fanout => ExchangeKind::Fanout,
            };
            let mut arguments = FieldTable::default();
            if let Some(alternate) = alternate {
                arguments.insert("alternate-exchange".into(), text(alternate));
            }
            let exchange = name(called.clone())?;
            let declared = channel.exchange_declare(exchange, kind, options, arguments);
            let declared = declared.await;
            declared.map_err(|error| Error::while_declaring(called, error))
        }
        Durable::Queue {
            name: called,
            arguments,
        } => {
            let options = QueueDeclareOptions {
                durable: true,
                passive,
                ..QueueDeclareOptions::default()
            };
            declare(channel, &name(called.clone())?, options, table(arguments)).await
        }
        Durable::Binding { .. } if passive => Ok(()),
        Durable::Binding {
            queue,
            exchange,
            key,
        } => {
            let (queue, exchange) = (name(queue.clone())?, name(exchange.clone())?);
            bind(channel, &queue, &exchange, name(key.clone())?).await
        }
    }
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
pub(super) async fn polled(
    channel: &Channel,
    names: &Topology,
    transport: &str,
) -> Result<(), Error> {
    for one in names.polled(transport) {
        durable(channel, &one, false).await?;
    }
    Ok(())
}

fn table(arguments: &[(&'static str, Argument)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in arguments {
        let value = match value {
            Argument::Text(value) => text(value),
            Argument::Number(value) => AMQPValue::LongInt(*value),
            Argument::Flag(value) => AMQPValue::Boolean(*value),
        };
        table.insert((*key).into(), value);
    }
    table
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
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
