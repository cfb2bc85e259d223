//! Ways in: the load by itself, and drop folders.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use pombo_tests::{installation::Agent, mail::Mail, ports, process::Group};

use super::{USUAL, submitted};
use crate::{
    bench::{Bench, PATIENCE},
    load::{self, Job},
    relay::{parts, plain, shown, watched},
};

const SMTP_SINK: &str = "/usr/sbin/smtp-sink";

/// smtp-source with nothing between it and a sink.
pub async fn direct(bench: &mut Bench, case: &str) -> anyhow::Result<()> {
    bench.samples.compare(case, "sink", "smtp-sink");
    let (_running, other) = smtp_sink().await?;
    let job = Job {
        messages: bench.messages(100_000),
        size: USUAL,
        recipients: 1,
    };
    for round in 0..=bench.runs() {
        for (contender, server) in [("sink", bench.sink.address()), ("smtp-sink", other)] {
            let messages = if round == 0 {
                job.messages / 4
            } else {
                job.messages
            };
            let start = Instant::now();
            // Accepted is arrived.
            load::send(&[server], Job { messages, ..job }).await?;
            let rate = messages as f64 / start.elapsed().as_secs_f64();
            if round > 0 {
                bench.samples.add(case, contender, "msg/s", rate);
                bench.say(&format!(
                    "{case} {round}/{}: {contender} {rate:.0} msg/s",
                    bench.runs()
                ));
            }
        }
    }
    Ok(())
}

/// Postfix's sink.
async fn smtp_sink() -> anyhow::Result<(Group, SocketAddr)> {
    let address = ports::free_address();
    let mut command = Command::new(SMTP_SINK);
    if nix::unistd::geteuid().is_root() {
        command.args(["-u", "nobody"]);
    }
    command.arg(address.to_string()).arg("100");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let group = Group::spawn(&mut command)?;
    let end = Instant::now() + Duration::from_secs(10);
    while let Err(error) = tokio::net::TcpStream::connect(address).await {
        anyhow::ensure!(Instant::now() < end, "smtp-sink does not listen: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok((group, address))
}

/// Files put into a folder that is polled, and into one that is watched; delivered to nowhere.
pub async fn drop_folders(bench: &mut Bench, case: &str) -> anyhow::Result<()> {
    bench.samples.compare(case, "pombo-polled", "pombo-watched");
    let mut pombo = plain(&bench.broker)
        .agent(Agent::drop_folder("polled").polled())
        .agent(Agent::drop_folder("watched"))
        .agent(Agent::of_kind("null", "null"))
        .transport_order(&["null", "polled", "watched"])
        .start()
        .await?;
    pombo.has_sessions(3, PATIENCE).await;
    let parts = parts(&mut pombo, &bench.broker);
    let count = bench.messages(10_000);
    let mut made = 0;
    for round in 0..=bench.runs() {
        for agent in ["polled", "watched"] {
            let count = if round == 0 { count / 4 } else { count };
            let aside = pombo.directory().join("aside");
            let files = prepared(&aside, made, count)?;
            made += count;
            let folder = pombo.drop_folder(agent);
            let before = submitted::delivered(&mut pombo).await?;
            let run = watched(&parts, async {
                let start = Instant::now();
                for name in &files {
                    fs::rename(aside.join(name), folder.join(name))?;
                }
                let end = submitted::all_delivered(&mut pombo, before + count).await?;
                Ok(end.duration_since(start))
            })
            .await?;
            submitted::nothing_is_left(&pombo).await?;
            if round == 0 {
                continue;
            }
            let contender = format!("pombo-{agent}");
            let rate = count as f64 / run.elapsed.as_secs_f64();
            bench.samples.add(case, &contender, "msg/s", rate);
            bench.record(case, &contender, count, &run);
            bench.say(&format!(
                "{case} {round}/{}: {contender} {rate:.0} msg/s{}",
                bench.runs(),
                shown(&run, count)
            ));
        }
    }
    Ok(())
}

/// Writes files, each another message, to be renamed into place.
fn prepared(dir: &Path, first: u64, count: u64) -> anyhow::Result<Vec<String>> {
    fs::create_dir_all(dir)?;
    (first..first + count)
        .map(|number| {
            let mail = Mail::with_id(&number.to_string());
            let mail = mail.header("To", "bob@sink.example").size(USUAL);
            let name = format!("{number}.eml");
            fs::write(dir.join(&name), mail.bytes())?;
            Ok(name)
        })
        .collect()
}
