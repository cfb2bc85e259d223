//! The `maildir` transport: delivers into Maildirs, and picks messages up from a folder.
//!
//! | | what it promises |
//! |---|---|
//! | delivery | a message that was submitted twice is one file, even if the first was read, moved or deleted (`copy`) |
//! | | an address cannot choose a place outside the configured one (`address`) |
//! | pick-up | a file leaves the folder only after SaveChanges, and gives the same id whenever it is read (`pickup`) |
//! | | a file is not taken while it is written (`shelf`), found soon (`watch`), and never lost: what cannot be sent lies in `failed` with the reason (`dispose`) |
//!
//! [`config::Config`] documents the settings.

mod address;
pub mod config;
mod copy;
mod deliver;
mod dispose;
mod envelope;
#[cfg(test)]
pub(crate) mod fakes;
mod fields;
#[doc(hidden)]
pub mod fuzzing;
mod pickup;
mod shelf;
#[cfg(test)]
mod tests;
mod tidy;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use pombo_proto::{
    outcome::SubmitResult,
    verbs::{AddressTypes, Flush, LogonError, TransportState, Validation},
};
use tokio::task::JoinHandle;

pub use self::config::{Config, Error};
use self::{
    address::{Mailboxes, Template},
    config::{Mode, Style},
    deliver::{Deliverer, blocking},
    pickup::PickUp,
};
use crate::provider::{Flow, LogonReply, Received, Reception, Submission, Support, Transport};

/// The transport.
pub struct Maildir {
    addresses: Vec<String>,
    capacity: u32,
    deliverer: Option<Deliverer>,
    pick_up: Option<Arc<PickUp>>,
    life: Mutex<Life>,
}

/// What comes with logon and goes with shutdown.
#[derive(Default)]
struct Life {
    support: Option<Arc<dyn Support>>,
    watcher: Option<JoinHandle<()>>,
}

impl Maildir {
    /// A transport from its section of the configuration.
    ///
    /// # Errors
    /// The settings contradict each other, or one of them is out of its range.
    pub fn new(config: Config) -> Result<Self, Error> {
        config.check()?;
        let deliverer = match &config.path {
            Some(path) => {
                let template: Template = path.parse()?;
                Some(Deliverer::new(&config, Mailboxes::new(&config, template)))
            }
            None => None,
        };
        Ok(Self {
            deliverer,
            addresses: config.addresses,
            capacity: config.capacity,
            pick_up: config.pick_up.map(|pick_up| Arc::new(PickUp::new(pick_up))),
            life: Mutex::default(),
        })
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn support(&self) -> Option<Arc<dyn Support>> {
        self.life().support.clone()
    }

    /// Why this transport cannot do its work, if so.
    async fn ailment(&self) -> Option<String> {
        let place = self
            .deliverer
            .as_ref()
            .map(|deliverer| deliverer.place.clone());
        let folder = self.pick_up.as_ref().map(|pick_up| pick_up.places.clone());
        let look = move || {
            let of_folder = |folder: dispose::Places| {
                let error = folder.prepare().err()?;
                Some(format!("{}: {error}", folder.source.display()))
            };
            place
                .and_then(|place| place.ailment())
                .or_else(|| folder.and_then(of_folder))
        };
        blocking(look)
            .await
            .unwrap_or_else(|error| Some(error.to_string()))
    }

    fn begin_watching(&self, pick_up: &Arc<PickUp>, support: &Arc<dyn Support>) {
        let delivers = self.deliverer.is_some();
        let (shown, row) = (Arc::clone(pick_up), Arc::clone(support));
        let says = move || show(&shown, row.as_ref(), delivers);
        let watching = watch::run(Arc::clone(pick_up), Arc::clone(support), says);
        let before = self.life().watcher.replace(tokio::spawn(watching));
        if let Some(before) = before {
            before.abort();
        }
    }
}

/// Puts the pick-up folder's health into the status row. While the transport can still deliver it is no failure.
fn show(pick_up: &PickUp, support: &dyn Support, delivers: bool) {
    let trouble = pick_up.trouble();
    let state = if trouble.is_some() && !delivers {
        TransportState::Failure
    } else {
        TransportState::Available
    };
    support.status(state, trouble);
}

#[async_trait]
impl Transport for Maildir {
    async fn logon(&self, support: Arc<dyn Support>) -> Result<LogonReply, LogonError> {
        if let Some(deliverer) = &self.deliverer {
            let place = deliverer.place.clone();
            let _ = blocking(move || place.prepare()).await;
        }
        if let Some(ailment) = self.ailment().await {
            return Err(LogonError::FailOneProvider(ailment));
        }
        self.life().support = Some(Arc::clone(&support));
        let mut poll = false;
        if let Some(pick_up) = &self.pick_up {
            let places = pick_up.places.clone();
            let recovered = blocking(move || places.recover()).await;
            if let Err(error) = recovered.and_then(|recovered| recovered) {
                return Err(LogonError::FailOneProvider(error.to_string()));
            }
            poll = pick_up.config.mode == Mode::Poll;
            if !poll {
                self.begin_watching(pick_up, &support);
            }
            if pick_up.config.style == Style::Maildir
                && pick_up.config.recipients == config::Recipients::Headers
            {
                tracing::warn!(
                    "mail from a Maildir goes to whom its headers name; a mailbox's own mail would go round"
                );
            }
        }
        support.status(TransportState::Available, None);
        Ok(LogonReply {
            poll,
            idle: self.deliverer.is_some(),
            resolve: false,
            outbound: self.deliverer.is_some(),
            inbound: self.pick_up.is_some(),
            capacity: self.capacity,
        })
    }

    fn address_types(&self) -> AddressTypes {
        let types = if self.addresses.is_empty() {
            vec![String::new()]
        } else {
            self.addresses.clone()
        };
        AddressTypes {
            types: Some(types),
            uids: Vec::new(),
        }
    }

    async fn inbound(&self, flow: Flow) {
        if let Some(pick_up) = &self.pick_up {
            pick_up.set_open(flow == Flow::Begin);
        }
    }

    async fn submit_message(&self, message: Arc<Submission>) -> SubmitResult {
        let Some(support) = self.support() else {
            return SubmitResult::Busy;
        };
        message.assign_reference(support.next_reference());
        match &self.deliverer {
            Some(deliverer) => deliverer.submit(&message, support.host()).await,
            None => SubmitResult::NotMe,
        }
    }

    async fn start_message(&self, message: Arc<Reception>) -> Received {
        let (Some(support), Some(pick_up)) = (self.support(), &self.pick_up) else {
            return Received::Nothing;
        };
        message.assign_reference(support.next_reference());
        let before = pick_up.trouble();
        let received = pick_up.start(&message, support.host()).await;
        if pick_up.trouble() != before {
            show(pick_up, support.as_ref(), self.deliverer.is_some());
        }
        received
    }

    async fn poll(&self) -> u32 {
        let (Some(support), Some(pick_up)) = (self.support(), &self.pick_up) else {
            return 0;
        };
        if !pick_up.is_open() {
            return 0;
        }
        let looked = pick_up.look().await;
        let trouble = looked.as_ref().err().map(|error| {
            let folder = pick_up.config.folder.display();
            format!("{folder} cannot be read: {error}")
        });
        if pick_up.set_trouble(trouble) {
            show(pick_up, support.as_ref(), self.deliverer.is_some());
        }
        looked.map_or(0, |ready| u32::try_from(ready).unwrap_or(u32::MAX))
    }

    async fn idle(&self) {
        if let Some(deliverer) = &self.deliverer {
            let tidy = Arc::clone(&deliverer.tidy);
            if let Err(error) = blocking(move || tidy.run()).await {
                tracing::error!(%error, "housekeeping failed");
            }
        }
    }

    async fn flush_queues(&self, flush: Flush) {
        let (Some(support), Some(pick_up)) = (self.support(), &self.pick_up) else {
            return;
        };
        if flush.download && pick_up.is_open() {
            let pick_up = Arc::clone(pick_up);
            tokio::spawn(async move {
                if pick_up.look().await.is_ok_and(|ready| ready > 0) {
                    support.new_mail();
                }
            });
        }
    }

    async fn validate_state(&self, _config_changed: bool) -> Validation {
        let trouble = self.pick_up.as_ref().and_then(|pick_up| pick_up.trouble());
        match trouble.or(self.ailment().await) {
            Some(ailment) => Validation::Failing(ailment),
            None => Validation::Ok,
        }
    }

    async fn shutdown(&self) {
        let life = std::mem::take(&mut *self.life());
        if let Some(watcher) = life.watcher {
            watcher.abort();
            // Its end releases the watch; an abort is what was asked for.
            let _ = watcher.await;
        }
        if let Some(pick_up) = &self.pick_up {
            pick_up.set_open(false);
        }
    }
}
