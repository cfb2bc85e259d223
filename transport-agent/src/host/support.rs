//! The support object: what the transport calls back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use pombo_proto::{
    ids::{MessageId, RecipientIndex, Reference},
    outcome::{Diagnosis, RecipientStatus},
    verbs::TransportState,
};

use super::{
    permits::Permits,
    told::{Teller, Told},
};
use crate::provider::{Reception, Support};

/// References that are not in use: never the same one twice in the life of an agent.
#[derive(Debug)]
pub(super) struct References(AtomicU64);

impl Default for References {
    fn default() -> Self {
        Self(AtomicU64::new(Reference::FIRST.0))
    }
}

impl References {
    /// The next one.
    pub fn next(&self) -> Reference {
        Reference(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// Stands behind [`Support`].
pub(super) struct HostSupport {
    pub teller: Teller,
    pub permits: Arc<Permits>,
    pub references: Arc<References>,
    pub host: String,
}

impl Support for HostSupport {
    fn new_mail(&self) {
        self.teller.tell(Told::NewMail);
    }

    fn ready_to_send(&self) {
        self.teller.tell(Told::ReadyToSend);
    }

    fn critical_error(&self, error: Diagnosis) {
        self.teller.tell(Told::CriticalError(error));
    }

    fn sent_deferred(&self, id: MessageId, statuses: Vec<(RecipientIndex, RecipientStatus)>) {
        self.teller.tell(Told::SentDeferred(id, statuses));
    }

    fn config_change(&self) {
        self.teller.tell(Told::ConfigChange);
    }

    fn critical_section(&self, inside: bool) {
        self.teller.tell(Told::CriticalSection(inside));
    }

    fn status(&self, state: TransportState, error: Option<String>) {
        self.teller.tell(Told::Status(state, error));
    }

    fn next_reference(&self) -> Reference {
        self.references.next()
    }

    fn permit(&self, patience: Duration) -> BoxFuture<'static, Option<Arc<Reception>>> {
        Permits::take(&self.permits, patience)
    }

    fn host(&self) -> &str {
        &self.host
    }
}
