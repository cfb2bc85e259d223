//! The load: Postfix's own generator, the same for every contender.

use std::{net::SocketAddr, path::Path, process::Stdio};

use anyhow::{Context as _, ensure};

const PROGRAM: &str = "/usr/sbin/smtp-source";
/// Sessions at a time, each kept for all its messages.
pub const SESSIONS: usize = 40;

/// What a run sends.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// How many messages.
    pub messages: u64,
    /// Their size in bytes.
    pub size: usize,
    /// Recipients of each, all in one domain.
    pub recipients: u64,
}

/// Whether the generator is installed.
///
/// # Errors
/// It is not.
pub fn installed() -> anyhow::Result<()> {
    ensure!(
        Path::new(PROGRAM).exists(),
        "{PROGRAM} is missing: it comes with Postfix (apt-get install postfix, or let tests/run install it)"
    );
    Ok(())
}

/// Sends it all, an equal part to each server; returns when the last message was accepted.
///
/// # Errors
/// A server refused something.
pub async fn send(servers: &[SocketAddr], job: Job) -> anyhow::Result<()> {
    let count = servers.len().max(1) as u64;
    let parts = servers.iter().zip(0..).map(|(server, at)| {
        let messages = job.messages / count + u64::from(at < job.messages % count);
        let sessions = (SESSIONS / count as usize).max(1);
        send_part(*server, Job { messages, ..job }, sessions)
    });
    futures_util::future::try_join_all(parts).await.map(drop)
}

async fn send_part(server: SocketAddr, job: Job, sessions: usize) -> anyhow::Result<()> {
    if job.messages == 0 {
        return Ok(());
    }
    let sessions = sessions.min(job.messages as usize);
    let mut command = tokio::process::Command::new(PROGRAM);
    command
        .args(["-d", "-M", "source.example"])
        .args(["-f", "ann@source.example", "-t", "bob@sink.example"])
        .args(["-s", &sessions.to_string()])
        .args(["-m", &job.messages.to_string()])
        .args(["-l", &job.size.to_string()]);
    if job.recipients > 1 {
        command.args(["-r", &job.recipients.to_string()]);
    }
    let output = command
        .arg(format!("inet:{}:{}", server.ip(), server.port()))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("starting smtp-source")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "smtp-source ({}): {said}",
        output.status
    );
    Ok(())
}
