//! Those who take mail by SMTP and send it on: Pombo and its peers, and one run of a load through one of them.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use pombo_tests::{
    Broker, Installation,
    client::Session,
    installation::{Agent, Builder},
};

use crate::{
    bench::{Bench, PATIENCE},
    exim::Exim,
    load::{self, Job},
    postfix::Postfix,
    sink::Sink,
    usage::{self, Part},
};

/// How long a contender's last work after a run may take.
const SETTLE: Duration = Duration::from_secs(20);

/// One contender, running.
pub struct Relay {
    /// As it is called in the table.
    pub name: String,
    /// Where it takes mail.
    pub doors: Vec<SocketAddr>,
    /// Its processes.
    pub parts: Vec<Part>,
    /// It gets one message where others get so many.
    pub share: u64,
    keep: Keep,
}

/// What ends with the relay.
enum Keep {
    Pombo(Box<Installation>),
    Peer(#[expect(dead_code, reason = "stops it when dropped")] Box<dyn std::any::Any + Send>),
}

/// Pombo as it comes, apart from addresses, paths, and whose mail is relayed.
pub fn plain(broker: &Broker) -> Builder {
    Installation::builder().broker(broker).log_filter("info")
}

/// So many spoolers, and so many agents of each kind: listeners are `door`, `door-2`, ...; senders `out`, `out-2`, ...
pub fn relaying(broker: &Broker, sink: &Sink, each: usize) -> Builder {
    let mut builder = plain(broker).spoolers(each);
    for number in 1..=each {
        let name = |kind: &str| match number {
            1 => kind.to_owned(),
            more => format!("{kind}-{more}"),
        };
        builder = builder
            .agent(
                Agent::smtp_listener(&name("door"))
                    .transport("door")
                    .relay_for_everyone(),
            )
            .agent(
                Agent::smtp(&name("out"))
                    .transport("out")
                    .smarthost(sink.address()),
            );
    }
    builder
}

/// The processes of an installation, named after what they are; several of one kind have one name.
pub fn parts(pombo: &mut Installation, broker: &Broker) -> Vec<Part> {
    let spoolers: Vec<Part> = pombo
        .spoolers()
        .iter()
        .map(|it| Part::own("spooler", it.pid()))
        .collect();
    let agents = pombo.agents().iter().map(|it| {
        let kind = it.name().split('-').next().unwrap_or_default();
        Part::own(kind, it.pid())
    });
    let mut parts: Vec<Part> = spoolers.into_iter().chain(agents).collect();
    parts.extend(broker.pid().map(|pid| Part::other("broker", pid)));
    parts
}

impl Relay {
    /// Pombo, from its builder.
    ///
    /// # Errors
    /// It does not start, or does not take mail.
    pub async fn pombo(name: &str, builder: Builder, broker: &Broker) -> anyhow::Result<Self> {
        let mut pombo = builder.start().await.context("starting Pombo")?;
        let relay = Self {
            name: name.to_owned(),
            doors: pombo.doors(),
            parts: parts(&mut pombo, broker),
            share: 1,
            keep: Keep::Pombo(Box::new(pombo)),
        };
        for door in &relay.doors {
            takes_mail(*door).await?;
        }
        Ok(relay)
    }

    /// Postfix.
    ///
    /// # Errors
    /// It is missing, or does not start.
    pub async fn postfix(sink: &Sink) -> anyhow::Result<Self> {
        let postfix = Postfix::start(sink.address()).await?;
        Ok(Self {
            name: "postfix".to_owned(),
            doors: vec![postfix.door()],
            parts: vec![Part::own("all", postfix.master())],
            share: 1,
            keep: Keep::Peer(Box::new(postfix)),
        })
    }

    /// Exim: a fifth of Postfix's speed, and so of its messages.
    ///
    /// # Errors
    /// It cannot be fetched, or does not start.
    pub async fn exim(sink: &Sink, cache: &Path) -> anyhow::Result<Self> {
        let exim = Exim::start(sink.address(), cache).await?;
        Ok(Self {
            name: "exim".to_owned(),
            doors: vec![exim.door()],
            parts: vec![Part::own("all", exim.pid())],
            share: 5,
            keep: Keep::Peer(Box::new(exim)),
        })
    }

    /// Looks at the processes again, after one was started anew.
    pub fn find_parts(&mut self, broker: &Broker) {
        if let Keep::Pombo(pombo) = &mut self.keep {
            self.parts = parts(pombo, broker);
        }
    }

    /// The installation, if it is Pombo.
    pub fn installation(&mut self) -> Option<&mut Installation> {
        match &mut self.keep {
            Keep::Pombo(pombo) => Some(pombo),
            Keep::Peer(_) => None,
        }
    }
}

/// A listener needs a spooler to take mail, and is ready before it has met one.
async fn takes_mail(door: SocketAddr) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let attempt = async {
            let (mut session, _) = Session::try_connect(door).await?;
            session.try_command("EHLO client.example").await?;
            let reply = session
                .try_command("MAIL FROM:<ann@source.example>")
                .await?;
            ensure!(reply.is_ok(), "{reply}");
            Ok(())
        };
        match attempt.await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error.context("it takes no mail")),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// What one run showed.
#[derive(Clone, Debug)]
pub struct Run {
    /// From the start of the load to the last arrival.
    pub elapsed: Duration,
    /// CPU by the names of the parts, with whether it is the contender's own.
    pub cpu: Vec<(String, bool, Duration)>,
    /// Peak memory in MiB by the names of the parts.
    pub peaks: Vec<(String, f64)>,
}

/// Watches the parts while something is done, and until they are quiet after it.
pub async fn watched(
    parts: &[Part],
    work: impl Future<Output = anyhow::Result<Duration>>,
) -> anyhow::Result<Run> {
    for part in parts {
        usage::reset_peak(part.pid);
    }
    let before = usage::cpu(parts);
    let elapsed = work.await?;
    // What follows a delivery (commits, acks, files deleted) belongs to it.
    usage::quiet(parts, SETTLE).await;
    let after = usage::cpu(parts);
    let mut cpu: Vec<(String, bool, Duration)> = Vec::new();
    let mut peaks: Vec<(String, f64)> = Vec::new();
    for ((part, before), after) in parts.iter().zip(before).zip(after) {
        let used = after.saturating_sub(before);
        match cpu.iter_mut().find(|(name, ..)| *name == part.name) {
            Some((.., sum)) => *sum += used,
            None => cpu.push((part.name.clone(), part.own, used)),
        }
        let peak = usage::peak_mib(part.pid).unwrap_or_default();
        match peaks.iter_mut().find(|(name, _)| *name == part.name) {
            Some((_, most)) => *most = most.max(peak),
            None => peaks.push((part.name.clone(), peak)),
        }
    }
    Ok(Run {
        elapsed,
        cpu,
        peaks,
    })
}

/// Sends a job through `relay`, and waits for all of it in the sink: once each, and no more.
///
/// # Errors
/// Something was refused, is missing, or came twice.
pub async fn run(sink: &Sink, relay: &Relay, job: Job) -> anyhow::Result<Run> {
    let before = sink.recipients();
    let copies = job.messages * job.recipients;
    let run = watched(&relay.parts, async {
        sink.expect(copies);
        let start = Instant::now();
        let (sent, reached) = tokio::join!(load::send(&relay.doors, job), sink.reached(PATIENCE));
        sent?;
        Ok(reached?.duration_since(start))
    })
    .await
    .with_context(|| format!("{} messages through {}", job.messages, relay.name))?;
    let arrived = sink.recipients() - before;
    ensure!(
        arrived == copies,
        "{} delivered {arrived} copies instead of {copies}",
        relay.name
    );
    Ok(run)
}

/// Alternates between the relays; `rate_unit` counts messages or recipients.
///
/// # Errors
/// As [`run`].
pub async fn alternate(
    bench: &mut Bench,
    case: &str,
    relays: &[&Relay],
    job: Job,
) -> anyhow::Result<()> {
    let (unit, each) = match job.recipients {
        1 => ("msg/s", 1),
        more => ("recipients/s", more),
    };
    for round in 0..=bench.runs() {
        for relay in relays {
            // The first round warms up, and does not count.
            let messages = match round {
                0 => job.messages / 4,
                _ => job.messages,
            };
            let job = Job {
                messages: (messages / relay.share).max(1),
                ..job
            };
            let run = run(&bench.sink, relay, job).await?;
            if round == 0 {
                continue;
            }
            let rate = (job.messages * each) as f64 / run.elapsed.as_secs_f64();
            bench.samples.add(case, &relay.name, unit, rate);
            bench.record(case, &relay.name, job.messages, &run);
            bench.say(&format!(
                "{case} {round}/{}: {} {rate:.0} {unit}{}",
                bench.runs(),
                relay.name,
                shown(&run, job.messages)
            ));
        }
    }
    Ok(())
}

/// CPU by process, for the line about a run.
pub fn shown(run: &Run, messages: u64) -> String {
    let texts = run.cpu.iter().map(|(name, _, cpu)| {
        let micros = cpu.as_secs_f64() * 1e6 / messages as f64;
        format!("{name} {micros:.0}")
    });
    let texts: Vec<String> = texts.collect();
    format!(" (CPU us/message: {})", texts.join(", "))
}
