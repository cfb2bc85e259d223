//! What the holder of a tenure notes in the store about an attempt before it happens, so that whoever takes over knows how far
//! it may have come.

use pombo_proto::{
    frame,
    ids::{Fence, Instance, RecipientIndex},
    verbs::Tenancy,
};
use serde::{Deserialize, Serialize};

use crate::store::Written;

/// The note of one attempt; the store keeps it until a verdict is recorded that is not in doubt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The final dot may have been written: only for transports whose doubt is held. Nothing noted means nothing sent, by those that
    /// [`Asks`] names.
    pub dot: Option<Dot>,
    /// It was tried alone.
    pub alone: Option<Alone>,
}

/// The transports about which a spooler is asked at the dot, because doubt about them is held. Each claim writes it into the row, so that
/// whoever finds the row knows what it means that nothing is noted, whatever is configured by then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asks(String);

impl Asks {
    /// About these.
    pub fn about<'a>(transports: impl IntoIterator<Item = &'a str>) -> Self {
        let mut names: Vec<&str> = transports.into_iter().collect();
        names.sort_unstable();
        Self(names.join("\n"))
    }

    /// As the store has it.
    pub fn stored(text: String) -> Self {
        Self(text)
    }

    /// For the store: the same for the same transports.
    pub fn to_stored(&self) -> String {
        self.0.clone()
    }

    /// Whether nothing noted means nothing sent by this transport.
    pub fn is_about(&self, transport: &str) -> bool {
        self.0.split('\n').any(|it| it == transport)
    }
}

/// A trial of a suspect. Two deaths speak against the message: that of the agent that tried it, and that of the spooler that
/// had it tried. Any other one meanwhile does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alone {
    /// Deaths that it had seen before.
    pub deaths: u32,
    /// Which run of which agent was to try it.
    pub instance: Instance,
    /// Under which fence.
    pub fence: Fence,
}

impl Alone {
    /// Whether the spooler that had it tried has died in the trial, by what the claim after it says: nobody has had the message
    /// since.
    pub fn has_killed_its_spooler(&self, claimed: Fence, deaths: u32) -> bool {
        deaths > self.deaths && claimed.0 == self.fence.0 + 1
    }

    /// Whether it was this agent's trial.
    pub fn was_by(&self, instance: Instance) -> bool {
        self.instance == instance
    }
}

/// As it was written by spoolers that did not note whose trial it was.
#[derive(Deserialize)]
struct Older {
    dot: Option<Dot>,
    #[allow(dead_code)]
    alone: Option<u32>,
}

impl Note {
    /// As the store has it.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, frame::Error> {
        frame::decode_all(bytes).or_else(|error| {
            let older = frame::decode_all::<Older>(bytes).map_err(|_| error)?;
            Ok(Self {
                dot: older.dot,
                alone: None,
            })
        })
    }
}

/// An attempt that was at its dot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dot {
    /// With which transport.
    pub transport: String,
    /// Which run of which agent had it.
    pub instance: Instance,
    /// Whom it was to consider.
    pub considered: Vec<RecipientIndex>,
}

/// The store's answer to a note, for the session that asked.
#[derive(actix::Message)]
#[rtype(result = "()")]
pub struct Noted {
    /// About which message, under which fence.
    pub tenancy: Tenancy,
    /// Whether it is noted. Lost: somebody else decides about the message, or the store is away.
    pub written: Written,
    /// Which of the two was noted.
    pub what: NotedWhat,
}

/// The two things that are noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotedWhat {
    /// That the final dot is about to be written.
    Dot,
    /// That it is about to be tried alone.
    Alone,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspect_dies_of_its_own_trial_alone() {
        let trial = Alone {
            deaths: 3,
            instance: Instance::random(),
            fence: Fence(7),
        };
        assert!(trial.was_by(trial.instance) && !trial.was_by(Instance::random()));
        for (claimed, deaths, killed) in [
            (8, 4, true),
            // Nobody died.
            (8, 3, false),
            // Somebody died who had only asked what became of it.
            (9, 4, false),
        ] {
            let said = trial.has_killed_its_spooler(Fence(claimed), deaths);
            assert_eq!(said, killed, "{claimed} {deaths}");
        }
    }

    #[test]
    fn notes_of_older_spoolers_are_read_without_their_trial() {
        #[derive(Serialize)]
        struct Before {
            dot: Option<Dot>,
            alone: Option<u32>,
        }
        let dot = Dot {
            transport: "out".to_owned(),
            instance: Instance::random(),
            considered: vec![RecipientIndex(0), RecipientIndex(300)],
        };
        for dot in [None, Some(dot)] {
            for alone in [None, Some(0), Some(3), Some(70_000)] {
                let dot = dot.clone();
                let bytes = frame::encode(&Before {
                    dot: dot.clone(),
                    alone,
                });
                assert_eq!(Note::decode(&bytes).unwrap(), Note { dot, alone: None });
            }
            let note = Note {
                dot: dot.clone(),
                alone: Some(Alone {
                    deaths: 3,
                    instance: Instance::random(),
                    fence: Fence(7),
                }),
            };
            assert_eq!(Note::decode(&frame::encode(&note)).unwrap(), note);
        }
        assert!(Note::decode(b"\x07").is_err());
    }
}
