//! What the log and the metrics say of an attempt: one line and one count per recipient. The log says what was heard; what is counted is
//! what was recorded, so that of two who heard it only one counts it.

use std::{collections::BTreeMap, time::Duration};

use pombo_proto::{ids::RecipientIndex, message::Envelope, outcome::Diagnosis, time::UnixMillis};
use tracing::info;

use crate::{
    progress::{Progress, RecipientState},
    router,
    verdict::{self, Happened},
};

/// The transports that tried, and whom each of them had.
pub(super) struct About {
    attempts: Vec<(String, Vec<RecipientIndex>)>,
}

impl About {
    pub(super) fn of(happened: &Happened) -> Self {
        let attempts = match happened {
            Happened::Attempt {
                transport,
                considered,
                ..
            } => vec![(transport.clone(), considered.clone())],
            Happened::Adopted(attempts)
            | Happened::LostAtTheDot {
                found: attempts, ..
            }
            | Happened::Deadly {
                found: attempts, ..
            } => attempts
                .iter()
                .map(|it| (it.transport.clone(), verdict::named(&it.result)))
                .collect(),
            _ => Vec::new(),
        };
        Self { attempts }
    }

    pub(super) fn log(
        self,
        envelope: &Envelope,
        progress: &Progress,
        now: UnixMillis,
        took: Duration,
    ) -> Outcomes {
        let mut outcomes = BTreeMap::new();
        for (transport, considered) in self.attempts {
            for outcome in Self::log_one(&transport, considered, envelope, progress, now, took) {
                *outcomes.entry((transport.clone(), outcome)).or_default() += 1;
            }
        }
        Outcomes {
            outcomes,
            doubted: BTreeMap::new(),
        }
    }

    fn log_one(
        transport: &str,
        considered: Vec<RecipientIndex>,
        envelope: &Envelope,
        progress: &Progress,
        now: UnixMillis,
        took: Duration,
    ) -> Vec<&'static str> {
        let mut outcomes = Vec::with_capacity(considered.len());
        for index in considered {
            let (Some(recipient), Some(known)) = (
                envelope.recipients.get(index.get()),
                progress.recipients.get(index.get()),
            ) else {
                continue;
            };
            let (outcome, text) = match &known.state {
                RecipientState::Delivered(delivery) => ("delivered", delivery.reply.as_str()),
                RecipientState::Failed { diagnosis, .. } => ("failed", said(diagnosis)),
                RecipientState::Expired { diagnosis, .. } => ("expired", said(diagnosis)),
                RecipientState::Cancelled { .. } => ("cancelled", ""),
                RecipientState::Kept { .. } => ("kept", ""),
                RecipientState::Pending { .. } => {
                    ("deferred", known.last.as_ref().map_or("", said))
                }
            };
            outcomes.push(outcome);
            info!(
                id = %envelope.id,
                recipient = recipient.address,
                transport,
                destination = router::destination(recipient),
                trace = progress.trace(),
                outcome,
                text,
                tries = known.tries,
                age_ms = now.since(envelope.submitted_at).as_millis() as u64,
                took_ms = took.as_millis() as u64,
                "attempt"
            );
        }
        metrics::histogram!("pombo_attempt_seconds", "transport" => transport.to_owned())
            .record(took);
        outcomes
    }
}

/// How many recipients came to what, by transport.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcomes {
    outcomes: BTreeMap<(String, &'static str), u64>,
    doubted: BTreeMap<String, u32>,
}

impl Outcomes {
    /// And how many of them may have been sent to.
    pub(super) fn with_doubted(self, doubted: BTreeMap<String, u32>) -> Self {
        Self { doubted, ..self }
    }

    /// They have been recorded, and by us.
    pub(super) fn count(&self) {
        for ((transport, outcome), recipients) in &self.outcomes {
            metrics::counter!(
                "pombo_outcomes_total", "transport" => transport.clone(), "outcome" => *outcome
            )
            .increment(*recipients);
        }
        for (transport, recipients) in &self.doubted {
            metrics::counter!("pombo_in_doubt_total", "transport" => transport.clone())
                .increment(u64::from(*recipients));
        }
    }
}

fn said(diagnosis: &Diagnosis) -> &str {
    diagnosis.reply.as_deref().unwrap_or(&diagnosis.text)
}
