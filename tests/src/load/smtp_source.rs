//! Postfix's `smtp-source`: the fastest client there is, and not one of ours. It stops at the first refusal.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, ensure};

use super::{Sent, SentMessage};
use crate::{
    mail::{self, Mail},
    scratch::Scratch,
    service,
};

const PROGRAM: &str = "/usr/sbin/smtp-source";

/// A load by smtp-source: one message, each time to another recipient.
#[derive(Clone, Debug)]
pub struct SmtpSource {
    messages: usize,
    from: String,
    to: String,
    size: usize,
    sessions: usize,
    limit: Duration,
}

impl SmtpSource {
    /// So many messages of 2 KiB, over 10 connections at a time, to `1bob@example.net`, `2bob@example.net`, ...
    pub fn messages(count: usize) -> Self {
        Self {
            messages: count,
            from: "source@example.org".into(),
            to: "bob@example.net".into(),
            size: 2 << 10,
            sessions: 10,
            limit: Duration::from_secs(900),
        }
    }

    /// The reverse-path.
    pub fn from(mut self, address: &str) -> Self {
        self.from = address.into();
        self
    }

    /// The recipient; a number is put in front of it.
    pub fn to(mut self, address: &str) -> Self {
        self.to = address.into();
        self
    }

    /// The size of the message in bytes.
    pub fn size(mut self, bytes: usize) -> Self {
        self.size = bytes;
        self
    }

    /// How many connections at a time.
    pub fn sessions(mut self, count: usize) -> Self {
        self.sessions = count.max(1);
        self
    }

    /// Sends them all, one connection per `DATA` kept for the next.
    ///
    /// # Errors
    /// smtp-source is not installed, or a server refused something.
    pub async fn send(self, server: SocketAddr) -> anyhow::Result<Sent> {
        // It reads lines, puts CRLF after each, and an empty line after the last.
        let message = Mail::new().size(self.size.saturating_sub(2));
        let (id, mut bytes) = (message.id().to_owned(), message.bytes());
        let scratch = Scratch::new("source")?;
        let file = scratch.write(
            "message",
            String::from_utf8(bytes.clone())?.replace("\r\n", "\n"),
        )?;
        bytes.extend_from_slice(b"\r\n");
        let (count, sessions) = (
            self.messages.to_string(),
            self.sessions.min(self.messages.max(1)).to_string(),
        );
        let (file, server) = (
            file.to_string_lossy().into_owned(),
            format!("inet:{}:{}", server.ip(), server.port()),
        );
        let args = [
            "-N",
            "-d",
            "-M",
            "source.example",
            "-s",
            &sessions,
            "-m",
            &count,
            "-F",
            &file,
            "-f",
            &self.from,
            "-t",
            &self.to,
            &server,
        ];
        let output = service::run_within(self.limit, Path::new(PROGRAM), &args, b"")
            .await
            .context("smtp-source comes with Postfix")?;
        ensure!(
            output.code == 0,
            "smtp-source failed ({}):\n{}",
            output.code,
            output.stderr
        );
        let sha256 = mail::sha256(&bytes);
        let sent = (1..=self.messages).map(|number| SentMessage {
            id: id.clone(),
            from: self.from.clone(),
            to: vec![format!("{number}{}", self.to)],
            size: bytes.len(),
            sha256: sha256.clone(),
            code: 250,
            tries: 1,
        });
        Ok(Sent {
            messages: sent.collect(),
        })
    }
}
