//! The kinds of faults: what each is called, what it needs, what it must not break, how often it happens, and how it is made.
//!
//! A fault's function makes it once (or a few times at once), lets time pass with it and after it, and says how often it has
//! struck. Whatever it leaves broken is healed at the end.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{
    options::Length,
    stage::{Needs, Stage},
    verdict::Promise,
};

mod agent;
mod broker;
mod host;
mod listener;
mod network;
mod spooler;
mod store;
mod upgrade;

/// Within this, mail comes through again after most faults.
const BACK: Duration = Duration::from_secs(120);

/// Makes the fault; how often it has struck.
pub type Strike = for<'a> fn(&'a mut Stage) -> BoxFuture<'a, anyhow::Result<u32>>;

/// A kind of fault.
#[derive(Debug)]
pub struct Fault {
    /// As in `--fault NAME`.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// What its stage consists of.
    pub needs: Needs,
    /// What it must not break.
    pub promise: Promise,
    /// Takes away at once (-9, or for good) who writes a large body before its message is accepted, or who deletes one after its
    /// finish is committed: each strike may leave one. The sweep of the blob store removes it, which is seen to at the end.
    pub abandons: bool,
    /// How often it strikes.
    pub times: Times,
    /// About how long one strike takes: the longest faults are begun first.
    pub seconds_each: f64,
    /// Makes it.
    pub strike: Strike,
}

/// How often a fault strikes in each length of run; 0: not at all. The short run is over in a minute and a half, so it has none of
/// those after which a message may wait as long (an unknown confirm is cleared by a marked twin, which waits 90 s).
#[derive(Clone, Copy, Debug)]
pub struct Times {
    short: u32,
    normal: u32,
    long: u32,
}

impl Times {
    /// In this one.
    pub fn of(self, length: Length) -> u32 {
        match length {
            Length::Short => self.short,
            Length::Normal => self.normal,
            Length::Long => self.long,
        }
    }
}

const fn times(short: u32, normal: u32, long: u32) -> Times {
    Times {
        short,
        normal,
        long,
    }
}

/// All of them, in the order of the table.
pub static FAULTS: &[Fault] = &[
    Fault {
        name: "spooler-kill",
        about: "one of three spoolers is killed with -9 and started again",
        needs: Needs::PLAIN,
        promise: Promise::Once,
        abandons: true,
        times: times(4, 10, 100),
        seconds_each: 2.5,
        strike: spooler::kill,
    },
    Fault {
        name: "spooler-stall",
        about: "two of three spoolers are stopped (SIGSTOP) until everybody has given them up, then go on",
        needs: Needs::PLAIN,
        promise: Promise::Once,
        abandons: true,
        times: times(0, 2, 6),
        seconds_each: 20.0,
        strike: spooler::stall,
    },
    Fault {
        name: "agent-kill",
        about: "one of three smtp agents is killed with -9 and started again",
        needs: Needs::PLAIN,
        promise: Promise::TwiceInDoubt,
        abandons: false,
        times: times(2, 10, 100),
        seconds_each: 2.0,
        strike: agent::kill,
    },
    Fault {
        name: "agent-kill-hold",
        about: "the same with in_doubt = \"hold\": a person asks the other side, and releases or cancels",
        needs: Needs::HOLD,
        promise: Promise::OnceThoughInDoubt,
        abandons: false,
        times: times(0, 10, 100),
        seconds_each: 2.0,
        strike: agent::kill,
    },
    Fault {
        name: "agent-stall",
        about: "two of three smtp agents are stopped (SIGSTOP) until they are given up, then go on",
        needs: Needs::PLAIN,
        promise: Promise::TwiceInDoubt,
        abandons: false,
        times: times(0, 2, 6),
        seconds_each: 38.0,
        strike: agent::stall,
    },
    Fault {
        name: "agent-cut-off",
        about: "two of three smtp agents lose the broker, not the Internet, until they are given up",
        needs: Needs::NETWORKS,
        promise: Promise::TwiceInDoubt,
        abandons: false,
        times: times(0, 2, 6),
        seconds_each: 38.0,
        strike: agent::cut_off,
    },
    Fault {
        name: "agent-cut-off-hold",
        about: "the same with in_doubt = \"hold\"",
        needs: Needs {
            hold: true,
            ..Needs::NETWORKS
        },
        promise: Promise::OnceThoughInDoubt,
        abandons: false,
        times: times(0, 2, 6),
        seconds_each: 25.0,
        strike: agent::cut_off,
    },
    Fault {
        name: "listener-kill",
        about: "the listener is killed with -9 and started again; clients send again what was not answered",
        needs: Needs::PLAIN,
        promise: Promise::TwiceUnanswered,
        abandons: true,
        times: times(3, 10, 30),
        seconds_each: 2.5,
        strike: listener::kill,
    },
    Fault {
        name: "host-power-loss",
        about: "a spooler and an smtp agent are killed with -9 in one moment, and come back",
        needs: Needs::PLAIN,
        promise: Promise::TwiceInDoubt,
        abandons: true,
        times: times(0, 3, 10),
        seconds_each: 5.0,
        strike: host::power_loss,
    },
    Fault {
        name: "rolling-restart",
        about: "every process is ended with SIGTERM and started again, one after the other",
        needs: Needs {
            doors: 2,
            ..Needs::PLAIN
        },
        promise: Promise::Gently,
        abandons: false,
        times: times(1, 8, 24),
        seconds_each: 4.0,
        strike: upgrade::rolling_restart,
    },
    Fault {
        name: "connection-cut",
        about: "the broker closes every connection, or the network loses those of some",
        needs: Needs::NETWORKS,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 3, 10),
        seconds_each: 6.0,
        strike: broker::connection_cut,
    },
    Fault {
        name: "channel-closed",
        about: "a channel of any service dies in the broker",
        needs: Needs::PLAIN,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 3, 10),
        seconds_each: 5.0,
        strike: broker::channel_closed,
    },
    Fault {
        name: "consumer-cancelled",
        about: "any service's inbox is deleted, and the broker cancels its consumer",
        needs: Needs::PLAIN,
        promise: Promise::Once,
        abandons: false,
        times: times(2, 3, 10),
        seconds_each: 5.0,
        strike: broker::consumer_cancelled,
    },
    Fault {
        name: "queue-deleted",
        about: "the spool's queue is deleted while all that was in it is leased; when the spoolers say so, somebody imports the definitions again",
        needs: Needs::PLAIN,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 2, 5),
        seconds_each: 8.0,
        strike: broker::queue_deleted,
    },
    Fault {
        name: "broker-restart",
        about: "the only node is stopped and started",
        needs: Needs::PLAIN,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 2, 5),
        seconds_each: 20.0,
        strike: broker::restart,
    },
    Fault {
        name: "broker-kill",
        about: "the only node is killed with -9 and started",
        needs: Needs::PLAIN,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 2, 5),
        seconds_each: 20.0,
        strike: broker::kill,
    },
    Fault {
        name: "broker-node-kill",
        about: "one node of a cluster of three is killed with -9 and started",
        needs: Needs::CLUSTER,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 3, 20),
        seconds_each: 15.0,
        strike: broker::node_kill,
    },
    Fault {
        name: "broker-pause",
        about: "one node of a cluster of three is stopped (SIGSTOP) until the others go on without it: two holders of one lease",
        needs: Needs::CLUSTER,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 2, 5),
        seconds_each: 40.0,
        strike: broker::node_pause,
    },
    Fault {
        name: "broker-majority-lost",
        about: "two nodes of a cluster of three are stopped (SIGSTOP): what is published is not confirmed, and may surface later",
        needs: Needs::CLUSTER,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 1, 5),
        seconds_each: 45.0,
        strike: broker::majority_lost,
    },
    Fault {
        name: "broker-partition",
        about: "one node of a cluster of three cannot reach the others, clients reach all",
        needs: Needs::CLUSTER,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 2, 5),
        seconds_each: 40.0,
        strike: broker::node_partition,
    },
    Fault {
        name: "memory-alarm",
        about: "the broker's memory alarm is raised and cleared, after seconds or after 50 s: publishers are blocked",
        needs: Needs::PLAIN,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 2, 6),
        seconds_each: 45.0,
        strike: broker::memory_alarm,
    },
    Fault {
        name: "partition",
        about: "nothing passes between any service and the broker",
        needs: Needs::NETWORKS,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 4, 10),
        seconds_each: 18.0,
        strike: network::partition,
    },
    Fault {
        name: "partition-outside",
        about: "nothing passes between the agents and the outside world for 8, 20 or 40 s; after 30 s they give up what is not answered",
        needs: Needs::NETWORKS,
        promise: Promise::TwiceInDoubt,
        abandons: false,
        times: times(0, 3, 6),
        seconds_each: 30.0,
        strike: network::partition_outside,
    },
    Fault {
        name: "remote-hangs-up",
        about: "the outside world takes some messages and closes the connection without an answer to their dots",
        needs: Needs::PLAIN,
        promise: Promise::TwiceInDoubt,
        abandons: false,
        times: times(0, 2, 8),
        seconds_each: 12.0,
        strike: network::remote_hangs_up,
    },
    Fault {
        name: "remote-hangs-up-hold",
        about: "the same with in_doubt = \"hold\"",
        needs: Needs::HOLD,
        promise: Promise::OnceThoughInDoubt,
        abandons: false,
        times: times(0, 2, 8),
        seconds_each: 12.0,
        strike: network::remote_hangs_up,
    },
    Fault {
        name: "half-open",
        about: "any service speaks to the broker and does not hear it",
        needs: Needs::NETWORKS,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 2, 6),
        seconds_each: 18.0,
        strike: network::half_open,
    },
    Fault {
        name: "latency",
        about: "200 ms each way to the broker for everybody, and stalls as after lost segments",
        needs: Needs::NETWORKS,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 2, 5),
        seconds_each: 15.0,
        strike: network::latency,
    },
    Fault {
        name: "throttle",
        about: "50 KiB a second to the broker for two spoolers and two agents",
        needs: Needs::NETWORKS,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 2, 5),
        seconds_each: 15.0,
        strike: network::throttle,
    },
    Fault {
        name: "store-locked",
        about: "somebody else locks the store for seconds",
        needs: Needs::PLAIN,
        promise: Promise::Once,
        abandons: false,
        times: times(1, 2, 5),
        seconds_each: 14.0,
        strike: store::locked,
    },
    Fault {
        name: "store-slow",
        about: "every commit waits for somebody else's lock",
        needs: Needs::PLAIN,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 2, 5),
        seconds_each: 14.0,
        strike: store::slow,
    },
    Fault {
        name: "disk-full",
        about: "the disk with store, large bodies and logs is full for seconds (needs root, for a small disk)",
        needs: Needs {
            small_disk: true,
            ..Needs::PLAIN
        },
        promise: Promise::Once,
        abandons: false,
        times: times(0, 2, 5),
        seconds_each: 16.0,
        strike: store::disk_full,
    },
    Fault {
        name: "spooler-kill-postgres",
        about: "one of three spoolers over PostgreSQL is killed with -9 and started again",
        needs: Needs::POSTGRES,
        promise: Promise::Once,
        abandons: true,
        times: times(0, 10, 100),
        seconds_each: 2.5,
        strike: spooler::kill,
    },
    Fault {
        name: "agent-kill-hold-postgres",
        about: "one of three smtp agents is killed with -9 and started again, with in_doubt = \"hold\" over PostgreSQL",
        needs: Needs::POSTGRES_HOLD,
        promise: Promise::OnceThoughInDoubt,
        abandons: false,
        times: times(0, 5, 50),
        seconds_each: 2.5,
        strike: agent::kill,
    },
    Fault {
        name: "postgres-restart",
        about: "the PostgreSQL server is stopped for seconds, and started",
        needs: Needs::POSTGRES,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 2, 6),
        seconds_each: 14.0,
        strike: store::postgres_restart,
    },
    Fault {
        name: "postgres-kill",
        about: "all processes of the PostgreSQL server are killed with -9, and it is started",
        needs: Needs::POSTGRES,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 2, 10),
        seconds_each: 8.0,
        strike: store::postgres_kill,
    },
    Fault {
        name: "postgres-stall",
        about: "all processes of the PostgreSQL server are stopped (SIGSTOP) for seconds, then go on",
        needs: Needs::POSTGRES,
        promise: Promise::Once,
        abandons: false,
        times: times(0, 2, 6),
        seconds_each: 14.0,
        strike: store::postgres_stall,
    },
];

/// The end of a fault that has struck once: mail comes through again, and a little more of it before the next one.
async fn mail_flows_again(stage: &mut Stage) -> anyhow::Result<u32> {
    stage.flows(BACK).await?;
    stage.pass(Duration::from_secs(3)).await;
    Ok(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_every_fault_is_in_the_long_run_five_times_or_more() {
        let names: BTreeSet<_> = FAULTS.iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), FAULTS.len());
        for fault in FAULTS {
            assert!(fault.times.long >= 5, "{}", fault.name);
            assert!(fault.times.normal >= 1, "{}", fault.name);
        }
    }
}
