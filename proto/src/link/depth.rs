//! How many messages lie ready in the spool, by passive declarations: the leader of a quorum queue answers from its state,
//! where the broker's lists are seconds old.

use std::time::Duration;

use lapin::{Connection, options::QueueDeclareOptions, types::FieldTable};
use tracing::debug;

use super::{
    declare,
    error::{Error, within},
};
use crate::topology::{SpoolClass, Topology};

/// Six round trips.
const ASK_MAX: Duration = Duration::from_secs(10);

/// In the order of [`SpoolClass::ALL`]; `None` if one of the queues could not be asked.
pub(super) async fn ready(
    connection: &Connection,
    names: &Topology,
) -> Option<[u64; SpoolClass::ALL.len()]> {
    let counted = within("counting the spool", ASK_MAX, count(connection, names)).await;
    counted
        .inspect_err(|error| debug!(%error, "the spool cannot be counted"))
        .ok()
}

async fn count(
    connection: &Connection,
    names: &Topology,
) -> Result<[u64; SpoolClass::ALL.len()], Error> {
    // A channel of its own: a queue that somebody has deleted closes it.
    let channel = connection.create_channel().await?;
    let mut counts = [0; SpoolClass::ALL.len()];
    for (count, class) in counts.iter_mut().zip(SpoolClass::ALL) {
        let queue = declare::name(names.spool_queue(class))?;
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel
            .queue_declare(queue, options, FieldTable::default())
            .await?;
        *count = u64::from(declared.message_count());
    }
    channel.close(200, "counted".into()).await?;
    Ok(counts)
}
