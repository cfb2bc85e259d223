//! One session: commands in their sequence (RFC 5321 4.1.4), from the banner to the last reply.
//!
//! ```text
//! banner -> EHLO|HELO -> [STARTTLS -> EHLO] -> [AUTH] -> (MAIL -> RCPT+ -> DATA)* -> QUIT
//! ```
//!
//! All complete lines in the read buffer are handled before the replies are written and more is read. What comes
//! after 354 is in `receive`, and what comes after AUTH in `auth`.

use std::{io, net::IpAddr, sync::Arc, sync::atomic::Ordering, time::Duration};

use pombo_proto::message::Recipient;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::debug;

use super::{
    Files, Shared,
    auth::Begun,
    command::{self, Command, Mail, Rcpt},
    config::Senders,
    doubt::Doubt,
    io::{Io, Line},
    limits::{ClientKey, Grant},
    permit::Slot,
    policy::Verdict,
    users::Users,
};

/// What a recipient occupies besides its text.
const RECIPIENT_BYTES: usize = 128;

/// What goes on in the same connection before and after STARTTLS.
#[derive(Debug)]
pub(super) struct Peer {
    pub ip: IpAddr,
    pub key: ClientKey,
    /// The session's name in log and Received.
    pub id: u64,
    /// 5xx replies so far.
    pub errors: u32,
    /// Wrong passwords so far.
    pub auth_failures: u32,
    /// Messages so far.
    pub messages: u32,
}

/// EHLO or HELO.
#[derive(Debug)]
pub(super) struct Greeting {
    pub name: String,
    pub extended: bool,
}

/// From MAIL to the final dot.
#[derive(Debug)]
pub(super) struct Transaction {
    pub mail: Mail,
    pub recipients: Vec<Recipient>,
    /// What it occupies.
    pub grant: Grant,
}

/// How a session goes on after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Go,
    Data,
    Auth,
    StartTls,
    /// Close; linger, because the client may still be talking.
    Close,
    /// Close after QUIT.
    Bye,
    /// The connection is gone.
    Lost,
}

/// What ended the wait for input.
enum Woken {
    Input,
    Lost,
    TimedOut,
    Stopping,
}

/// One session on one stream.
pub(super) struct Session<S> {
    pub shared: Arc<Shared>,
    files: Files,
    pub peer: Peer,
    pub tls: bool,
    /// Who the client has proved to be.
    pub user: Option<String>,
    /// The exchange that AUTH has asked for.
    pub auth: Option<Begun>,
    pub io: Io<S>,
    pub greeting: Option<Greeting>,
    pub transaction: Option<Transaction>,
    pub slot: Slot,
    pub doubt: Option<Doubt>,
    stop: watch::Receiver<bool>,
    line: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    pub fn new(shared: Arc<Shared>, stream: S, peer: Peer, tls: bool) -> Self {
        Self {
            files: shared.files(),
            peer,
            tls,
            user: None,
            auth: None,
            io: Io::new(stream),
            greeting: None,
            transaction: None,
            slot: Slot::Empty,
            doubt: None,
            stop: shared.stop.subscribe(),
            line: Vec::new(),
            shared,
        }
    }

    /// Runs the session to its end. Returns the stream if it goes on with TLS.
    pub async fn run(mut self, banner: bool) -> Option<(S, Peer)> {
        if banner {
            let banner = format!("220 {} ESMTP Pombo", self.shared.host);
            self.io.say(&banner);
        }
        let patience = self.shared.config.command_timeout;
        let end = self.serve().await;
        // Also when the reply could not be written: that is what it is for.
        self.leave_doubt().await;
        self.slot.clear();
        self.transaction = None;
        match end {
            Ok(Next::StartTls) => return Some((self.io.into_stream(), self.peer)),
            Ok(Next::Close) => self.io.close(patience, true).await,
            Ok(Next::Bye) => self.io.close(patience, false).await,
            Ok(Next::Go | Next::Data | Next::Auth | Next::Lost) => {}
            Err(error) => debug!(session = self.peer.id, %error, "connection lost"),
        }
        None
    }

    async fn serve(&mut self) -> io::Result<Next> {
        loop {
            let mut line = std::mem::take(&mut self.line);
            let found = self
                .io
                .next_line(self.shared.config.command_bytes_max, &mut line);
            let mut next = match found {
                Line::Complete => self.command(&line),
                Line::TooLong => self.say("500 5.5.2 Line too long"),
                Line::BareLf => {
                    self.say("521 5.5.2 Bare <LF>: lines end with <CRLF>");
                    Next::Close
                }
                Line::Incomplete => self.listen().await?,
            };
            self.line = line;
            if next == Next::Data {
                next = self.data().await?;
            }
            if next == Next::Auth {
                next = Box::pin(self.authenticate()).await?;
            }
            if self.peer.errors > self.shared.config.errors_max && next == Next::Go {
                self.close("421 4.7.0", "Too many errors");
                next = Next::Close;
            }
            if next == Next::StartTls {
                self.flush().await?;
            }
            if next != Next::Go {
                return Ok(next);
            }
            if self.io.is_full() {
                self.flush().await?;
            }
        }
    }

    /// Writes what has gathered, then waits until the client says something.
    pub async fn listen(&mut self) -> io::Result<Next> {
        self.flush().await?;
        Ok(match self.wait().await {
            Woken::Input => Next::Go,
            Woken::Lost => Next::Lost,
            Woken::TimedOut => self.close("421 4.4.2", "Timeout, closing connection"),
            Woken::Stopping => self.close("421 4.3.2", "Shutting down, try again"),
        })
    }

    /// Until the next command is complete. What else is going on meanwhile: a permit comes or grows old, a reply stays
    /// unseen, the listener shuts down.
    async fn wait(&mut self) -> Woken {
        let deadline = Instant::now() + self.shared.config.command_timeout;
        loop {
            if *self.stop.borrow_and_update() {
                return Woken::Stopping;
            }
            let doubt_due = self.doubt.as_ref().and_then(Doubt::due);
            let timer = [self.slot.due(), doubt_due]
                .into_iter()
                .flatten()
                .fold(deadline, Instant::min);
            tokio::select! {
                biased;
                read = self.io.fill() => match read {
                    Ok(0) | Err(_) => return Woken::Lost,
                    Ok(_) => {
                        self.heard();
                        // A client that sends its line byte by byte has no more time than others.
                        let input = self.io.input();
                        let is_line = memchr::memchr(b'\n', input).is_some();
                        if is_line || input.len() > self.shared.config.command_bytes_max {
                            return Woken::Input;
                        }
                    }
                },
                () = self.slot.answered(), if self.slot.is_asked() => {}
                changed = self.stop.changed() => {
                    if changed.is_err() {
                        return Woken::Stopping;
                    }
                }
                () = sleep_until(timer) => {
                    let now = Instant::now();
                    if now >= deadline {
                        return Woken::TimedOut;
                    }
                    self.slot.expire(now);
                    if doubt_due.is_some_and(|due| due <= now) {
                        self.record_doubt().await;
                    }
                }
            }
        }
    }

    /// Writes all replies.
    pub async fn flush(&mut self) -> io::Result<()> {
        if self.io.has_replies() {
            self.io.flush(self.shared.config.command_timeout).await?;
            if let Some(doubt) = &mut self.doubt {
                doubt.written = true;
            }
        }
        Ok(())
    }

    /// Replies; a 5xx counts as the client's error.
    pub fn say(&mut self, reply: &str) -> Next {
        if reply.starts_with('5') {
            let admitted = self.shared.errors.admits(self.peer.key);
            self.peer.errors = if admitted {
                self.peer.errors.saturating_add(1)
            } else {
                u32::MAX
            };
        }
        self.io.say(reply);
        Next::Go
    }

    /// The last reply, which names us (RFC 5321 4.2.1).
    pub fn close(&mut self, code: &str, text: &str) -> Next {
        let reply = format!("{code} {} {text}", self.shared.host);
        self.io.say(&reply);
        Next::Close
    }

    fn command(&mut self, line: &[u8]) -> Next {
        let smtputf8 = self.transaction.as_ref().is_some_and(|t| t.mail.smtputf8);
        let command = match command::parse(line, smtputf8) {
            Ok(command) => command,
            Err(refusal) => return self.say(refusal),
        };
        match command {
            Command::Ehlo(name) => self.greet(name, true),
            Command::Helo(name) => self.greet(name, false),
            Command::Mail(mail) => self.mail(mail),
            Command::Rcpt(rcpt) => self.rcpt(rcpt),
            Command::Data => Next::Data,
            Command::Rset => {
                self.abandon();
                self.say("250 2.0.0 Ok")
            }
            Command::Noop => self.say("250 2.0.0 Ok"),
            Command::Vrfy => self.say("252 2.5.0 Cannot verify, but will take mail and try"),
            Command::Help => self.say(
                "214 2.0.0 EHLO HELO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT STARTTLS AUTH; see RFC 5321",
            ),
            Command::Auth(mechanism, initial) => self.begin_auth(mechanism, initial),
            Command::StartTls => self.start_tls(),
            Command::Quit => {
                let reply = format!("221 2.0.0 {} Bye", self.shared.host);
                self.io.say(&reply);
                Next::Bye
            }
        }
    }

    /// Ends the transaction and gives the permit back.
    pub fn abandon(&mut self) {
        self.transaction = None;
        self.slot.clear();
    }

    fn greet(&mut self, name: &str, extended: bool) -> Next {
        self.abandon();
        self.greeting = Some(Greeting {
            name: name.to_owned(),
            extended,
        });
        let host = &self.shared.host;
        if !extended {
            let reply = format!("250 {host}");
            return self.say(&reply);
        }
        let starttls = if self.offers_tls() {
            "\r\n250-STARTTLS"
        } else {
            ""
        };
        let auth = self
            .mechanisms()
            .map_or_else(String::new, |names| format!("\r\n250-AUTH {names}"));
        let size = self.shared.config.message_bytes_max;
        let reply = format!(
            "250-{host}\r\n250-PIPELINING\r\n250-SIZE {size}{starttls}{auth}\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n\
             250-DSN\r\n250 SMTPUTF8"
        );
        self.say(&reply)
    }

    /// Those who may log in, if anybody may.
    pub fn users(&self) -> Option<Arc<Users>> {
        self.files.users.clone()
    }

    /// Why a sender is not taken, if the configuration asks who it is.
    fn sender_refusal(&self, sender: &str) -> Option<&'static str> {
        let config = &self.shared.config;
        match &self.user {
            None if config.auth_required => Some("530 5.7.0 Authentication required"),
            Some(user) if config.auth_senders == Senders::Own => self
                .users()
                .is_none_or(|users| !users.may_send_as(user, sender))
                .then_some("553 5.7.1 Not an address of yours"),
            _ => None,
        }
    }

    fn offers_tls(&self) -> bool {
        self.files.tls.is_some() && !self.tls
    }

    fn start_tls(&mut self) -> Next {
        if self.files.tls.is_none() {
            return self.say("502 5.5.1 STARTTLS is not offered");
        }
        if self.tls {
            return self.say("503 5.5.1 TLS is active already");
        }
        self.abandon();
        self.say("220 2.0.0 Ready to start TLS");
        Next::StartTls
    }

    fn mail(&mut self, mail: Mail) -> Next {
        let config = &self.shared.config;
        if self.greeting.is_none() {
            return self.say("503 5.5.1 EHLO or HELO first");
        }
        if self.transaction.is_some() {
            return self.say("503 5.5.1 Nested MAIL command");
        }
        if let Some(refusal) = self.sender_refusal(&mail.sender) {
            return self.say(refusal);
        }
        if config
            .messages_max
            .is_some_and(|max| self.peer.messages >= max)
        {
            return self.close("421 4.7.0", "Enough messages for one session");
        }
        if !self.shared.open.load(Ordering::Acquire) {
            return self.say("451 4.3.2 Not taking mail now, try again later");
        }
        if mail
            .size
            .is_some_and(|size| size > config.message_bytes_max)
        {
            return self.say("552 5.3.4 Message too large");
        }
        if !self.shared.messages.admits(self.peer.key) {
            return self.say("451 4.7.1 Too much mail from you, slow down");
        }
        self.transaction = Some(Transaction {
            mail,
            recipients: Vec::new(),
            grant: self.shared.budget.grant(),
        });
        self.say("250 2.1.0 Ok")
    }

    fn rcpt(&mut self, rcpt: Rcpt) -> Next {
        let Some(transaction) = &mut self.transaction else {
            return self.say("503 5.5.1 MAIL first");
        };
        let may_relay = self.user.is_some() || self.files.policy.may_relay(self.peer.ip);
        let address = match self.files.policy.recipient(&rcpt.to, may_relay) {
            Verdict::Accepted(address) => address,
            Verdict::Unknown => return self.say("550 5.1.1 No such recipient here"),
            Verdict::RelayDenied => return self.say("550 5.7.1 Relaying denied"),
        };
        if transaction.recipients.len() >= self.shared.config.recipients_max {
            return self.say("452 4.5.3 Too many recipients");
        }
        if !self.shared.recipients.admits(self.peer.key) {
            return self.say("451 4.7.1 Too many recipients from you, slow down");
        }
        let bytes = RECIPIENT_BYTES + address.len() + rcpt.original.as_ref().map_or(0, String::len);
        if !transaction.grant.grow(bytes as u64) {
            return self.say("452 4.3.1 Out of memory, try again later");
        }
        transaction.recipients.push(Recipient {
            notify: rcpt.notify,
            original_recipient: rcpt.original,
            ..Recipient::smtp(address)
        });
        self.ask();
        self.say("250 2.1.5 Ok")
    }

    /// Asks for the permit, unless that was done.
    pub fn ask(&mut self) {
        let patience: Duration = self.shared.config.permit_timeout;
        self.slot.ask(self.shared.support.as_ref(), patience);
    }
}
