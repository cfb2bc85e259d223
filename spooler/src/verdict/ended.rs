//! What the end of an attempt's ladder means for its message.

use std::time::Duration;

use pombo_proto::{
    ids::RecipientIndex, ladder::submission::Ended, time::UnixMillis, verbs::Refusal,
};

use super::Happened;

/// An attempt, as far as its end is concerned.
#[derive(Clone, Debug)]
pub struct Tried {
    /// With which transport.
    pub transport: String,
    /// Whom it was to consider.
    pub considered: Vec<RecipientIndex>,
    /// See [`Happened::Attempt`].
    pub interrupted: bool,
    /// See [`Happened::Attempt`].
    pub hold: bool,
}

/// What to conclude.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// What happened to the message.
    pub happened: Happened,
    /// The agent keeps the attempt: it is told Settled after the commit.
    pub kept: bool,
    /// The result was not learned: Adopt before the next attempt.
    pub doubt: bool,
}

/// What the end of an attempt means. `pause`: until a refused one is tried again.
pub fn ended(tried: Tried, ended: Ended, now: UnixMillis, pause: Duration) -> Meaning {
    let Tried {
        transport,
        considered,
        interrupted,
        hold,
    } = tried;
    let sure = |happened, kept| Meaning {
        happened,
        kept,
        doubt: false,
    };
    match ended {
        Ended::Finished(result) => sure(
            Happened::Attempt {
                transport,
                considered,
                result,
                interrupted,
                hold,
            },
            true,
        ),
        Ended::Refused(Refusal::Unreadable) => sure(Happened::Unreadable { transport }, false),
        // Nothing was done, and no try is counted. If it is fenced, somebody with a higher fence has it, and the
        // store refuses this verdict too: it is the store's word, not an agent's, that lets a lease be acked.
        Ended::Refused(_) => {
            let until = now.after(pause);
            let happened = Happened::Parked {
                reason: format!("an agent of {transport} has no room for it"),
                recipients: considered.into_iter().map(|index| (index, until)).collect(),
            };
            sure(happened, false)
        }
        // What became of it can still be asked: the row is in doubt, and Adopt asks.
        Ended::Lost | Ended::NotThere => Meaning {
            happened: Happened::Unknown { transport },
            kept: false,
            doubt: true,
        },
    }
}
