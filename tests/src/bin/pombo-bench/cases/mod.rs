//! What is measured: one line each, and how it is run.

mod arriving;
mod submitted;
mod timed;
mod waiting;

use anyhow::ensure;
use pombo_proto::message::Priority;
use pombo_tests::installation::Agent;

use crate::{
    bench::Bench,
    load::Job,
    relay::{Relay, alternate, relaying},
};

/// A case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// As it is called by `--case`.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Belongs to `--quick`.
    pub quick: bool,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Direct,
    Limit,
    Relay(Job),
    Scale(usize),
    SubmitNull,
    SubmitMaildir,
    Priorities,
    Poll,
    Backlog,
    Waiting,
    Laden,
    Flood,
    Latency,
}

/// The size that most cases have.
pub const USUAL: usize = 10 * KIB;
const KIB: usize = 1 << 10;

const fn case(name: &'static str, quick: bool, about: &'static str, kind: Kind) -> Case {
    Case {
        name,
        about,
        quick,
        kind,
    }
}

const fn relay(messages: u64, size: usize, recipients: u64) -> Kind {
    Kind::Relay(Job {
        messages,
        size,
        recipients,
    })
}

/// All of them.
pub const CASES: &[Case] = &[
    case(
        "direct",
        true,
        "the load straight into the sink, and into smtp-sink: what no contender can pass",
        Kind::Direct,
    ),
    case(
        "limit",
        true,
        "a bare program on the broker: one durable hop; all that one message needs",
        Kind::Limit,
    ),
    case(
        "smtp-10k",
        true,
        "SMTP in, queue, SMTP out: 10 KiB, 40 persistent connections",
        relay(20_000, USUAL, 1),
    ),
    case(
        "smtp-2k",
        false,
        "the same with 2 KiB",
        relay(20_000, 2 * KIB, 1),
    ),
    case(
        "smtp-100k",
        true,
        "the same with 100 KiB",
        relay(6_000, 100 * KIB, 1),
    ),
    case(
        "smtp-5m",
        false,
        "the same with 5 MiB",
        relay(200, 5 * KIB * KIB, 1),
    ),
    case(
        "rcpt-10",
        false,
        "10 recipients in one message, one destination, 10 KiB",
        relay(8_000, USUAL, 10),
    ),
    case(
        "rcpt-100",
        true,
        "100 recipients in one message, one destination, 10 KiB",
        relay(2_000, USUAL, 100),
    ),
    case(
        "submit-null",
        true,
        "submission over AMQP to a transport that does nothing, over one raw durable hop",
        Kind::SubmitNull,
    ),
    case(
        "submit-maildir",
        false,
        "submission over AMQP into 100 Maildirs",
        Kind::SubmitMaildir,
    ),
    case(
        "priorities-3",
        false,
        "submission over AMQP in three priorities, over the same in one",
        Kind::Priorities,
    ),
    case(
        "poll",
        false,
        "a drop folder that is polled, over one that is watched",
        Kind::Poll,
    ),
    case(
        "scale-2",
        false,
        "two spoolers, two agents of each kind, over one",
        Kind::Scale(2),
    ),
    case(
        "scale-4",
        false,
        "four spoolers, four agents of each kind, over one",
        Kind::Scale(4),
    ),
    case(
        "latency",
        true,
        "accepted to delivered, at half of each contender's full load",
        Kind::Latency,
    ),
    case(
        "backlog",
        false,
        "100,000 messages in the spool drained, over steady throughput",
        Kind::Backlog,
    ),
    case(
        "waiting-1m",
        false,
        "1,000,000 messages waiting in the outbox, over none",
        Kind::Waiting,
    ),
    case(
        "laden",
        false,
        "100,000 messages in the spool drained beside 1,000,000 in the outbox: memory, over a light load's",
        Kind::Laden,
    ),
    case(
        "flood",
        false,
        "one transport floods notifications, another one receives, over no flood",
        Kind::Flood,
    ),
];

impl Case {
    /// Runs it.
    ///
    /// # Errors
    /// Something did not start, or messages were lost or repeated.
    pub async fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let name = self.name;
        match self.kind {
            Kind::Direct => arriving::direct(bench, name).await,
            Kind::Limit => submitted::limit(bench, name).await,
            Kind::Relay(job) => relays(bench, name, job).await,
            Kind::Scale(each) => scale(bench, name, each).await,
            Kind::SubmitNull => {
                let agent = Agent::of_kind("null", "null");
                submitted::submit(bench, name, agent, 1).await
            }
            Kind::SubmitMaildir => {
                let agent = Agent::maildir("maildir", &["SMTP:*@sink.example"]);
                submitted::submit(bench, name, agent, 100).await
            }
            Kind::Priorities => {
                let three = [Priority::Urgent, Priority::Normal, Priority::Bulk];
                submitted::priorities(bench, name, &three).await
            }
            Kind::Poll => arriving::drop_folders(bench, name).await,
            Kind::Backlog => waiting::backlog(bench, name).await,
            Kind::Waiting => waiting::outbox(bench, name).await,
            Kind::Laden => waiting::laden(bench, name).await,
            Kind::Flood => timed::flood(bench, name).await,
            Kind::Latency => timed::latency(bench, name).await,
        }
    }
}

async fn relays(bench: &mut Bench, case: &str, job: Job) -> anyhow::Result<()> {
    let job = Job {
        messages: bench.messages(job.messages),
        ..job
    };
    for contender in ["pombo", "exim"] {
        bench.samples.compare(case, contender, "postfix");
    }
    let relays = bench.relays(&["pombo", "postfix", "exim"]).await?;
    ensure!(!relays.is_empty(), "no contender takes part");
    let all: Vec<_> = relays.iter().collect();
    let done = alternate(bench, case, &all, job).await;
    bench.give_back(relays);
    done
}

async fn scale(bench: &mut Bench, case: &str, each: usize) -> anyhow::Result<()> {
    let many = format!("pombo-x{each}");
    bench.samples.compare(case, &many, "pombo");
    let builder = relaying(&bench.broker, &bench.sink, each);
    let many = Relay::pombo(&many, builder, &bench.broker).await?;
    let relays = bench.relays(&["pombo"]).await?;
    let all: Vec<_> = relays.iter().chain([&many]).collect();
    let job = Job {
        messages: bench.messages(20_000),
        size: USUAL,
        recipients: 1,
    };
    let done = alternate(bench, case, &all, job).await;
    bench.give_back(relays);
    done
}
