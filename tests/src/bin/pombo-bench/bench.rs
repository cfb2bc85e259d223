//! What all cases share: the broker, the sink, the samples, and the relays that run.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use pombo_tests::Broker;

use crate::{
    relay::{Relay, Run, relaying},
    samples::Samples,
    sink::Sink,
};

/// Nothing happens for so long: the run has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How much is done.
#[derive(Clone, Debug)]
pub struct Amount {
    /// Few messages, few runs.
    pub quick: bool,
    /// Runs that count, of each contender.
    pub runs: Option<usize>,
    /// Only these contenders; none: all.
    pub contenders: Vec<String>,
    /// Where files are kept from run to run.
    pub out: PathBuf,
}

/// What all cases share.
pub struct Bench {
    /// How much is done.
    pub amount: Amount,
    /// RabbitMQ.
    pub broker: Broker,
    /// The far end.
    pub sink: Sink,
    /// What was measured.
    pub samples: Samples,
    /// Relays that run on from case to case; those that could not be started are not tried again.
    relays: Vec<Relay>,
    missing: Vec<String>,
    start: Instant,
}

impl Bench {
    /// Starts the broker and the sink.
    ///
    /// # Errors
    /// RabbitMQ is not installed, or does not start.
    pub async fn start(amount: Amount) -> anyhow::Result<Self> {
        Ok(Self {
            amount,
            broker: Broker::start().await?,
            sink: Sink::start()?,
            samples: Samples::default(),
            relays: Vec::new(),
            missing: Vec::new(),
            start: Instant::now(),
        })
    }

    /// A line of progress.
    pub fn say(&self, text: &str) {
        eprintln!("[{:4} s] {text}", self.start.elapsed().as_secs());
    }

    /// When it all began, for lines of progress.
    pub fn start_time(&self) -> Instant {
        self.start
    }

    /// Runs that count.
    pub fn runs(&self) -> usize {
        let usual = if self.amount.quick { 2 } else { 5 };
        self.amount.runs.unwrap_or(usual).max(1)
    }

    /// A number of messages: a tenth of it when it has to be quick.
    pub fn messages(&self, usual: u64) -> u64 {
        if self.amount.quick {
            (usual / 10).max(1)
        } else {
            usual
        }
    }

    /// Whether this contender takes part.
    pub fn wants(&self, contender: &str) -> bool {
        self.amount.contenders.is_empty() || self.amount.contenders.iter().any(|it| it == contender)
    }

    /// Takes the relays of these names, started now if they do not run yet; those that are not wanted or cannot be had are
    /// left out, and it is said. To be given back with [`Self::give_back`].
    pub async fn relays(&mut self, names: &[&str]) -> anyhow::Result<Vec<Relay>> {
        let mut taken = Vec::new();
        for &name in names {
            if !self.wants(name) || self.missing.iter().any(|it| it == name) {
                continue;
            }
            if let Some(at) = self.relays.iter().position(|it| it.name == name) {
                taken.push(self.relays.swap_remove(at));
                continue;
            }
            self.say(&format!("starting {name}"));
            let started = match name {
                "pombo" => {
                    let builder = relaying(&self.broker, &self.sink, 1);
                    // Without it there is nothing to measure.
                    Ok(Relay::pombo(name, builder, &self.broker).await?)
                }
                "exim" => Relay::exim(&self.sink, &self.amount.out.join("exim")).await,
                _ => Relay::postfix(&self.sink).await,
            };
            match started {
                Ok(relay) => taken.push(relay),
                Err(error) => {
                    self.say(&format!("without {name}: {error:#}"));
                    self.missing.push(name.to_owned());
                }
            }
        }
        Ok(taken)
    }

    /// Keeps relays for the next case.
    pub fn give_back(&mut self, relays: Vec<Relay>) {
        self.relays.extend(relays);
    }

    /// Stops all relays that were kept.
    pub fn stop_relays(&mut self) {
        self.relays.clear();
    }

    /// CPU and memory of one run.
    pub fn record(&mut self, case: &str, contender: &str, messages: u64, run: &Run) {
        const CPU: &str = "us CPU/message";
        let per_message = |cpu: Duration| cpu.as_secs_f64() * 1e6 / messages as f64;
        let own = run.cpu.iter().filter(|(_, own, _)| *own);
        let sum: Duration = own.map(|(.., cpu)| *cpu).sum();
        self.samples.add(case, contender, CPU, per_message(sum));
        if run.cpu.len() > 1 {
            for (name, _, cpu) in &run.cpu {
                let who = format!("{contender}/{name}");
                self.samples.add(case, &who, CPU, per_message(*cpu));
            }
            for (name, peak) in &run.peaks {
                // The broker's wrapper script is not the broker.
                if name != "broker" {
                    let who = format!("{contender}/{name}");
                    self.samples.add(case, &who, "MiB peak", *peak);
                }
            }
        }
    }
}
