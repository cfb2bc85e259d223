//! What follows from a doubt of which all is known: a plain function, without clock or channel. It counts, and says so in the log.

use std::collections::BTreeMap;

use pombo_proto::{ids::Instance, time::UnixMillis};
use tracing::{debug, warn};

use super::{
    doubts::{Doubt, Knows, Suspected},
    who::Who,
};
use crate::{
    job::{Job, SessionKey},
    verdict::{AdoptedAttempt, Happened},
};

/// See the module.
#[derive(Debug)]
pub struct Resolved {
    /// The message, not in doubt any more.
    pub job: Job,
    /// To be recorded. `None`: nobody has an attempt of it, it goes on as if it had just been claimed.
    pub happened: Option<Happened>,
    /// The sessions that keep an attempt of it: to be told once this is recorded.
    pub sessions: Vec<SessionKey>,
    /// Who may have sent it, and is lost.
    pub lost: Vec<Lost>,
}

/// An agent that will not answer any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its run.
    pub instance: Instance,
    /// Its transport.
    pub transport: String,
    /// The recipients, by their indices, that it may have sent to: these are in doubt.
    pub recipients: Vec<usize>,
}

/// Decides. `holds_doubt`: whether doubt about a transport waits for a person.
pub fn resolve(
    doubt: Doubt,
    who: &Who,
    holds_doubt: impl Fn(&str) -> bool,
    now: UnixMillis,
) -> Resolved {
    let Doubt {
        mut job, instances, ..
    } = doubt;
    job.doubt = false;
    let note = std::mem::take(&mut job.note);
    let mut dot = note.dot;
    let trial = note.alone;
    let mut died_alone =
        trial.is_some_and(|it| it.has_killed_its_spooler(job.tenure.fence(), job.deaths));
    // Whatever was before has been found, or is counted.
    job.unsure_since = now;
    let (mut found, mut sessions, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    let mut died = false;
    let mut could_have = who.lost(&job, &instances);
    for (instance, Suspected { transport, knows }) in instances {
        debug!(id = %job.id(), agent = %instance, transport, ?knows, "in doubt: found out");
        match knows {
            Knows::Done { result, session } => {
                job.progress
                    .note(now, "adopted", format!("an attempt by {transport}"));
                // It has a result: no doubt about that one.
                dot = dot.filter(|it| it.instance != instance);
                found.push(AdoptedAttempt {
                    hold: holds_doubt(&transport),
                    transport,
                    result,
                });
                sessions.push(session);
            }
            lost_as @ (Knows::Gone | Knows::Struck) => {
                let recipients = could_have.remove(&instance).unwrap_or_default();
                let tried_alone = trial.is_some_and(|it| it.was_by(instance));
                // Whoever had been struck off before may have died of another message: no death of this one.
                let with_it = matches!(lost_as, Knows::Gone)
                    && !recipients.is_empty()
                    && who.takes_it(instance, &transport, &job);
                died |= tried_alone || with_it;
                died_alone |= tried_alone;
                lost.push(Lost {
                    instance,
                    transport,
                    recipients,
                });
            }
            _ => {}
        }
    }
    job.deaths += u32::from(died);
    // Where doubt is held, what was not noted was not sent.
    lost.retain(|it| !holds_doubt(&it.transport));
    mark_in_doubt(&mut job, &lost, now);
    let happened = if let Some(dot) = dot {
        count_in_doubt(&dot.transport, dot.considered.len());
        Some(Happened::LostAtTheDot {
            transport: dot.transport,
            considered: dot.considered,
            found,
        })
    } else if died_alone {
        let deaths = job.deaths;
        let reason =
            format!("whoever had it died {deaths} times, the last time it was tried alone");
        warn!(id = %job.id(), deaths, "dead: tried alone, and that died again");
        Some(Happened::Deadly { reason, found })
    } else if found.is_empty() {
        None
    } else {
        Some(Happened::Adopted(found))
    };
    Resolved {
        job,
        happened,
        sessions,
        lost,
    }
}

/// Each recipient once, however many agents are lost.
fn mark_in_doubt(job: &mut Job, lost: &[Lost], now: UnixMillis) {
    let mut marked: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, progress) in job.progress.recipients.iter_mut().enumerate() {
        let mut lost = lost.iter();
        if let Some(it) = lost.find(|it| it.recipients.contains(&index)) {
            progress.in_doubt = true;
            *marked.entry(&it.transport).or_default() += 1;
        }
    }
    for (transport, marked) in marked {
        count_in_doubt(transport, marked);
        let detail = format!("an agent of {transport} was lost; {marked} may have been sent to");
        job.progress.note(now, "indoubt", detail);
    }
}

/// Recipients that may have been sent to, by attempts whose results nobody will learn.
fn count_in_doubt(transport: &str, recipients: usize) {
    metrics::counter!("pombo_in_doubt_total", "transport" => transport.to_owned())
        .increment(recipients as u64);
}
