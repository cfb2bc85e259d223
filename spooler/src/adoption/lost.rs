//! What lost agents leave in doubt: plain functions of what is known of them and of the row, and how it is marked and counted.
//!
//! Doubt may be held by one spooler and not by another, or since the last restart only. So it is not our configuration that says what
//! "nothing noted" means, but what the claims have written into the row ([`Asks`]). Of a delivery that came back from the broker nobody knows
//! who had it, and whether he asked.

use std::collections::BTreeMap;

use pombo_proto::{
    ids::{Instance, RecipientIndex},
    time::UnixMillis,
};

use crate::{
    job::Job,
    note::{Asks, Dot},
};

/// An agent that will not answer any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its run.
    pub instance: Instance,
    /// Its transport.
    pub transport: String,
    /// The recipients, by their indices, that it could have had.
    pub recipients: Vec<usize>,
}

/// Those that may have been sent to although nothing is noted about them. What is noted is counted by itself.
pub(super) fn unnoted(mut lost: Vec<Lost>, asks: &Asks, dot: Option<&Dot>) -> Vec<Lost> {
    let noted = |index: usize| {
        dot.is_some_and(|dot| dot.considered.iter().any(|noted| noted.get() == index))
    };
    lost.retain_mut(|it| {
        it.recipients.retain(|index| !noted(*index));
        !it.recipients.is_empty() && !asks.is_about(&it.transport)
    });
    lost
}

/// With which transport, and who, if a person has to see it.
pub(super) fn held(
    lost: &[Lost],
    holds_doubt: impl Fn(&str) -> bool,
) -> Option<(String, Vec<RecipientIndex>)> {
    let it = lost.iter().find(|it| holds_doubt(&it.transport))?;
    let recipients = it.recipients.iter();
    let considered = recipients.map(|index| RecipientIndex(*index as u32));
    Some((it.transport.clone(), considered.collect()))
}

/// Each recipient once, however many agents are lost.
pub(super) fn mark_in_doubt(job: &mut Job, lost: &[Lost], now: UnixMillis) {
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
pub(super) fn count_in_doubt(transport: &str, recipients: usize) {
    metrics::counter!("pombo_in_doubt_total", "transport" => transport.to_owned())
        .increment(recipients as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn had(transport: &str, recipients: &[usize]) -> Lost {
        Lost {
            instance: Instance(uuid::Uuid::nil()),
            transport: transport.to_owned(),
            recipients: recipients.to_vec(),
        }
    }

    fn lost() -> Vec<Lost> {
        vec![had("out", &[0, 2]), had("spare", &[1])]
    }

    #[test]
    fn that_nothing_is_noted_is_believed_of_whoever_asked_and_of_nobody_else() {
        // Doubt was not held when it was submitted; whether it is now does not matter.
        assert_eq!(unnoted(lost(), &Asks::default(), None), lost());
        assert_eq!(unnoted(lost(), &Asks::about(["other"]), None), lost());
        let spare = &lost()[1..];
        assert_eq!(unnoted(lost(), &Asks::about(["out"]), None), spare);
        let both = Asks::about(["spare", "out"]);
        assert_eq!(unnoted(lost(), &both, None), []);
    }

    #[test]
    fn what_is_noted_is_not_counted_twice() {
        let dot = Dot {
            transport: "out".to_owned(),
            instance: Instance::random(),
            considered: vec![RecipientIndex(1), RecipientIndex(2)],
        };
        let rest = [had("out", &[0])];
        assert_eq!(unnoted(lost(), &Asks::default(), Some(&dot)), rest);
    }

    #[test]
    fn what_nobody_was_asked_about_waits_for_a_person_where_doubt_is_held_now() {
        let considered = vec![RecipientIndex(0), RecipientIndex(2)];
        let out = Some(("out".to_owned(), considered));
        assert_eq!(held(&lost(), |it| it == "out"), out);
        assert_eq!(held(&lost(), |_| false), None);
    }
}
