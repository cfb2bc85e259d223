//! A transport that accepts everything and does nothing: for benchmarks, and for trying a configuration.
//!
//! It sends to every address, takes as long as it is told to, and returns the outcome that it is told to.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use pombo_proto::{
    outcome::{
        Delivery, Diagnosis, EnhancedStatus, NdrReason, Outcome, RecipientOutcome, SubmitResult,
    },
    service::config::duration,
    time::UnixMillis,
    verbs::{AddressTypes, LogonError},
};
use serde::Deserialize;

use crate::provider::{LogonReply, Submission, Support, Transport};

/// `[null]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long a message takes.
    #[serde(deserialize_with = "duration::deserialize")]
    pub delay: Duration,
    /// What becomes of it.
    pub outcome: Always,
    /// How many at a time, 1 to 10,000.
    pub capacity: u32,
    /// Which recipients it takes, as in `SMTP:*@example.org`; none: all.
    pub address_types: Option<Vec<String>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            outcome: Always::Delivered,
            capacity: 1_000,
            address_types: None,
        }
    }
}

/// The outcome of every recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Always {
    /// Delivered, to nowhere.
    Delivered,
    /// Failed for good.
    Failed,
    /// Try again later.
    Deferred,
    /// Left to the next transport.
    Left,
}

/// The transport.
#[derive(Debug)]
pub struct Null {
    config: Config,
}

impl Null {
    /// Checks the configuration.
    ///
    /// # Errors
    /// The capacity is out of range.
    pub fn new(config: Config) -> Result<Self, &'static str> {
        if (1..=10_000).contains(&config.capacity) {
            Ok(Self { config })
        } else {
            Err("the capacity is 1 to 10,000")
        }
    }

    fn outcome(&self) -> Outcome {
        let diagnosis = |class| {
            let status = EnhancedStatus::new(class, 3, 0);
            Diagnosis::new(
                status,
                NdrReason::TransferFailed,
                "the null transport was told so",
            )
        };
        match self.config.outcome {
            Always::Delivered => Outcome::Delivered(Delivery::new(UnixMillis::now(), "null", "ok")),
            Always::Failed => Outcome::Failed(diagnosis(5)),
            Always::Deferred => Outcome::Deferred {
                diagnosis: diagnosis(4),
                destination_down: false,
            },
            Always::Left => Outcome::Left,
        }
    }
}

#[async_trait]
impl Transport for Null {
    async fn logon(&self, _: Arc<dyn Support>) -> Result<LogonReply, LogonError> {
        Ok(LogonReply {
            poll: false,
            idle: false,
            resolve: false,
            outbound: true,
            inbound: false,
            capacity: self.config.capacity,
        })
    }

    fn address_types(&self) -> AddressTypes {
        AddressTypes {
            types: self.config.address_types.clone(),
            uids: Vec::new(),
        }
    }

    async fn submit_message(&self, message: Arc<Submission>) -> SubmitResult {
        if !self.config.delay.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(self.config.delay) => {}
                () = message.cancelled() => return SubmitResult::Cancelled(Vec::new()),
            }
        }
        if !message.may_finish().await {
            return SubmitResult::Busy;
        }
        let outcomes = message.recipients().map(|(recipient, _)| RecipientOutcome {
            recipient,
            outcome: self.outcome(),
        });
        SubmitResult::Ok(outcomes.collect())
    }
}
