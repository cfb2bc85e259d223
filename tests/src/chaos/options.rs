//! What a run of chaos is to do.

use std::path::PathBuf;

use super::faults::{FAULTS, Fault};

/// How often each fault happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// A few faults, once or a few times each: for every test run.
    Short,
    /// Every fault a few times.
    Normal,
    /// Every fault as often as its figure in the table of faults needs.
    Long,
}

/// Everything about a run. The same options and seed strike the same victims in the same order; when exactly, the machine decides.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which faults, and how often each.
    pub faults: Vec<(&'static Fault, u32)>,
    /// Chooses victims, pauses and sizes.
    pub seed: u64,
    /// Messages a second that the clients of one fault offer.
    pub rate: u32,
    /// How many faults are worked on side by side, each with processes and a broker of its own.
    pub lanes: usize,
    /// Says what happens while it happens.
    pub verbose: bool,
    /// Where the logs of a fault that broke a promise are kept, in a directory named after it.
    pub logs: Option<PathBuf>,
}

impl Options {
    /// What a length means.
    pub fn of_length(length: Length) -> Self {
        let faults = FAULTS.iter().filter_map(|fault| {
            let times = fault.times.of(length);
            (times > 0).then_some((fault, times))
        });
        Self {
            faults: faults.collect(),
            seed: fastrand::u64(..),
            // Sixty a second in all. Two cores with unoptimised programs carry 160, and then a node of RabbitMQ takes a minute
            // to start; the time for that is what a run has least of.
            rate: match length {
                Length::Short => 15,
                Length::Normal | Length::Long => 20,
            },
            lanes: match length {
                Length::Short => 4,
                Length::Normal | Length::Long => 3,
            },
            verbose: true,
            logs: None,
        }
    }

    /// Only the faults of these names, as often as the length says, but at least once.
    ///
    /// # Errors
    /// The first name that no fault has.
    pub fn only(mut self, names: &[String], length: Length) -> Result<Self, String> {
        self.faults.clear();
        for name in names {
            let fault = FAULTS
                .iter()
                .find(|fault| fault.name == name)
                .ok_or_else(|| name.clone())?;
            self.faults.push((fault, fault.times.of(length).max(1)));
        }
        Ok(self)
    }
}
