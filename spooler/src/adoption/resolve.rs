//! What follows from a doubt of which all is known: a plain function, without clock or channel. It counts, and says so in the log.

use pombo_proto::time::UnixMillis;
use tracing::{debug, warn};

use super::{
    doubts::{Doubt, Knows, Suspected},
    lost::{self, Lost},
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
    let lost = lost::unnoted(lost, &job.asks, dot.as_ref());
    lost::mark_in_doubt(&mut job, &lost, now);
    let held = lost::held(&lost, holds_doubt);
    let happened = if let Some(dot) = dot {
        lost::count_in_doubt(&dot.transport, dot.considered.len());
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
    } else if let Some((transport, considered)) = held {
        Some(Happened::LostAtTheDot {
            transport,
            considered,
            found,
        })
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
