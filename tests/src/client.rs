//! An SMTP client for tests that read like transcripts.
//!
//! ```no_run
//! # async fn test(listener: std::net::SocketAddr) {
//! use pombo_tests::client::Session;
//!
//! let mut client = Session::connect(listener).await;
//! client.says("EHLO laptop.example", 250).await;
//! client.says("MAIL FROM:<alice@example.org>", 250).await;
//! client.says("RCPT TO:<nobody@example.net>", 550).await;
//! client.says("QUIT", 221).await;
//! # }
//! ```
//!
//! Methods that expect something panic with the whole transcript if it does not come; those that [`try_`](Session::try_command)
//! give an error, for conversations that a test cuts.

use std::{fmt, io, net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::rustls::pki_types::ServerName;

use crate::{tls::Certificate, wire::Wire};

/// A reply that takes longer does not come. (A confirm of a busy broker may take seconds.)
const LIMIT: Duration = Duration::from_secs(60);
const LINE_MAX: usize = 8 << 10;
const LINES_MAX: usize = 200;

/// A server's reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Its three digits.
    pub code: u16,
    /// The lines' texts without the codes.
    pub lines: Vec<String>,
}

impl Reply {
    /// The texts, with line feeds between them.
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// Whether EHLO's reply offers this extension.
    pub fn offers(&self, keyword: &str) -> bool {
        self.lines.iter().skip(1).any(|line| {
            line.split(' ')
                .next()
                .is_some_and(|word| word.eq_ignore_ascii_case(keyword))
        })
    }

    /// Whether it is a 2xx.
    pub fn is_ok(&self) -> bool {
        (200..300).contains(&self.code)
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.text())
    }
}

/// One connection to an SMTP server.
pub struct Session {
    /// `None` only while TLS is put around it.
    wire: Option<Wire>,
    transcript: Vec<String>,
}

impl Session {
    /// Connects and reads the greeting, which must be 220.
    pub async fn connect(server: SocketAddr) -> Self {
        let (session, greeting) = Self::try_connect(server)
            .await
            .unwrap_or_else(|e| panic!("{e:#}"));
        session.check(&greeting, 220, "the connection")
    }

    /// Connects and reads the greeting, whatever it is.
    ///
    /// # Errors
    /// No connection, or no greeting.
    pub async fn try_connect(server: SocketAddr) -> anyhow::Result<(Self, Reply)> {
        let stream = timeout(LIMIT, TcpStream::connect(server))
            .await?
            .with_context(|| format!("connecting to {server}"))?;
        let mut session = Self {
            wire: Some(Wire::tcp(stream)),
            transcript: Vec::new(),
        };
        let greeting = session
            .try_reply()
            .await
            .with_context(|| format!("the greeting of {server}"))?;
        Ok((session, greeting))
    }

    /// Connects and says EHLO.
    pub async fn hello(server: SocketAddr) -> Self {
        let mut session = Self::connect(server).await;
        session.says("EHLO client.example", 250).await;
        session
    }

    /// Says a line, and expects this code.
    pub async fn says(&mut self, line: &str, code: u16) -> Reply {
        let reply = self.command(line).await;
        assert!(
            reply.code == code,
            "{line:.200} was answered {reply}, not {code}\n{}",
            self.transcript()
        );
        reply
    }

    /// Says a line, and takes whatever is the reply.
    pub async fn command(&mut self, line: &str) -> Reply {
        self.try_command(line)
            .await
            .unwrap_or_else(|e| panic!("after {line:.200}: {e}\n{}", self.transcript()))
    }

    /// Says a line, and takes whatever comes.
    ///
    /// # Errors
    /// The connection was cut, or no reply came in time.
    pub async fn try_command(&mut self, line: &str) -> io::Result<Reply> {
        self.put(line);
        self.wire().flush().await?;
        self.try_reply().await
    }

    /// Says several lines at once, and takes a reply to each.
    pub async fn pipelines(&mut self, lines: &[&str]) -> Vec<Reply> {
        for line in lines {
            self.put(line);
        }
        let mut replies = Vec::new();
        for line in lines {
            match self.reply_after_flush().await {
                Ok(reply) => replies.push(reply),
                Err(e) => panic!(
                    "waiting for the reply to the pipelined {line:.200}: {e}\n{}",
                    self.transcript()
                ),
            }
        }
        replies
    }

    /// Says MAIL, RCPT for each and DATA, and expects to be asked for the message.
    pub async fn envelope(&mut self, from: &str, to: &[&str]) {
        self.says(&format!("MAIL FROM:<{from}>"), 250).await;
        for recipient in to {
            self.says(&format!("RCPT TO:<{recipient}>"), 250).await;
        }
        self.says("DATA", 354).await;
    }

    /// Sends a message, dots stuffed and with the final dot, after a 354; expects this code.
    pub async fn message(&mut self, message: &[u8], code: u16) -> Reply {
        let reply = self
            .try_message(message)
            .await
            .unwrap_or_else(|e| panic!("after the final dot: {e}\n{}", self.transcript()));
        assert!(
            reply.code == code,
            "the message was answered {reply}, not {code}\n{}",
            self.transcript()
        );
        reply
    }

    /// Sends a message, and takes whatever comes.
    ///
    /// # Errors
    /// The connection was cut, or no reply came in time.
    pub async fn try_message(&mut self, message: &[u8]) -> io::Result<Reply> {
        self.transcript
            .push(format!("C: ({} bytes)", message.len()));
        let stuffed = stuffed(message);
        self.wire().put(&stuffed);
        self.wire().flush().await?;
        self.try_reply().await
    }

    /// Sends bytes as they are, and waits for nothing.
    pub async fn raw(&mut self, bytes: &[u8]) {
        self.transcript.push(format!(
            "C: (raw) {:?}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(300)])
        ));
        self.wire().put(bytes);
        if let Err(e) = self.wire().flush().await {
            panic!("sending raw bytes: {e}\n{}", self.transcript());
        }
    }

    /// Takes the next reply.
    pub async fn reply(&mut self) -> Reply {
        self.try_reply()
            .await
            .unwrap_or_else(|e| panic!("waiting for a reply: {e}\n{}", self.transcript()))
    }

    /// Takes the next reply, if one comes within `limit`: to see that none does.
    pub async fn reply_within(&mut self, limit: Duration) -> Option<Reply> {
        timeout(limit, self.try_reply()).await.ok()?.ok()
    }

    /// Takes the next reply.
    ///
    /// # Errors
    /// The connection was cut, or no reply came in time.
    pub async fn try_reply(&mut self) -> io::Result<Reply> {
        timeout(LIMIT, self.read_reply()).await.map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no reply within {LIMIT:?}"),
            )
        })?
    }

    /// STARTTLS, trusting this certificate. EHLO has to be said again.
    pub async fn starttls(&mut self, certificate: &Certificate) {
        self.says("STARTTLS", 220).await;
        if let Err(e) = self.handshake(certificate).await {
            panic!("TLS: {e:#}\n{}", self.transcript());
        }
        self.transcript.push("(TLS from here)".into());
    }

    /// AUTH PLAIN, expecting this code.
    pub async fn login(&mut self, user: &str, password: &str, code: u16) {
        let initial = STANDARD.encode(format!("\0{user}\0{password}"));
        self.says(&format!("AUTH PLAIN {initial}"), code).await;
    }

    /// AUTH LOGIN, expecting this code in the end.
    pub async fn login_step_by_step(&mut self, user: &str, password: &str, code: u16) {
        self.says("AUTH LOGIN", 334).await;
        self.says(&STANDARD.encode(user), 334).await;
        self.says(&STANDARD.encode(password), code).await;
    }

    /// QUIT, and the end of the connection.
    pub async fn quits(mut self) {
        self.says("QUIT", 221).await;
        self.is_closed().await;
    }

    /// Expects that the server closes the connection without another word.
    pub async fn is_closed(mut self) {
        match self.try_reply().await {
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                panic!("the connection stays open\n{}", self.transcript())
            }
            Err(_) => {}
            Ok(reply) => panic!(
                "{reply} instead of the end of the connection\n{}",
                self.transcript()
            ),
        }
    }

    /// What was said so far.
    pub fn transcript(&self) -> String {
        self.transcript.join("\n")
    }

    async fn handshake(&mut self, certificate: &Certificate) -> anyhow::Result<()> {
        let Some(wire) = self.wire.take() else {
            bail!("the connection is gone")
        };
        let name = ServerName::try_from(certificate.name().to_owned())?;
        let stream = timeout(
            LIMIT,
            certificate.connector()?.connect(name, wire.into_inner()),
        )
        .await??;
        self.wire = Some(Wire::new(stream));
        Ok(())
    }

    async fn reply_after_flush(&mut self) -> io::Result<Reply> {
        self.wire().flush().await?;
        self.try_reply().await
    }

    async fn read_reply(&mut self) -> io::Result<Reply> {
        let mut lines = Vec::new();
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = self.wire().read_line(&mut line, LINE_MAX).await?;
            if read == 0 || line.last() != Some(&b'\n') {
                self.transcript.push("S: (closed)".into());
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the server closed the connection",
                ));
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            self.transcript.push(format!("S: {text}"));
            let malformed =
                || io::Error::new(io::ErrorKind::InvalidData, format!("not a reply: {text:?}"));
            let code = text
                .get(..3)
                .and_then(|code| code.parse::<u16>().ok())
                .ok_or_else(malformed)?;
            lines.push(text.get(4..).unwrap_or_default().to_owned());
            match text.as_bytes().get(3) {
                None | Some(b' ') => return Ok(Reply { code, lines }),
                Some(b'-') if lines.len() < LINES_MAX => {}
                Some(_) => return Err(malformed()),
            }
        }
    }

    fn put(&mut self, line: &str) {
        self.transcript.push(format!("C: {line:.300}"));
        let wire = self.wire();
        wire.put(line.as_bytes());
        wire.put(b"\r\n");
    }

    fn check(self, reply: &Reply, code: u16, what: &str) -> Self {
        assert!(
            reply.code == code,
            "{what} was answered {reply}, not {code}"
        );
        self
    }

    fn wire(&mut self) -> &mut Wire {
        self.wire
            .as_mut()
            .expect("only STARTTLS takes it, and panics if it cannot put it back")
    }
}

/// Sends one message on a connection of its own, and gives the reply to it.
///
/// # Errors
/// Whatever was not accepted, with the reply; or the connection was cut.
pub async fn send(
    server: SocketAddr,
    from: &str,
    to: &[&str],
    message: &[u8],
) -> anyhow::Result<Reply> {
    let (mut session, greeting) = Session::try_connect(server).await?;
    accepted("the connection", greeting)?;
    let hello = accepted("EHLO", session.try_command("EHLO client.example").await?)?;
    let mut params = String::new();
    if !message.is_ascii() && hello.offers("8BITMIME") {
        params.push_str(" BODY=8BITMIME");
    }
    if !(from.is_ascii() && to.iter().all(|address| address.is_ascii())) {
        params.push_str(" SMTPUTF8");
    }
    accepted(
        "MAIL",
        session
            .try_command(&format!("MAIL FROM:<{from}>{params}"))
            .await?,
    )?;
    for recipient in to {
        accepted(
            recipient,
            session
                .try_command(&format!("RCPT TO:<{recipient}>"))
                .await?,
        )?;
    }
    let go = session.try_command("DATA").await?;
    if go.code != 354 {
        bail!("DATA was answered {go}");
    }
    let reply = accepted("the message", session.try_message(message).await?)?;
    // The message is theirs; how they say good-bye is not the point.
    let _ = session.try_command("QUIT").await;
    Ok(reply)
}

fn accepted(what: &str, reply: Reply) -> anyhow::Result<Reply> {
    if !reply.is_ok() {
        bail!("{what} was answered {reply}");
    }
    Ok(reply)
}

/// With dots doubled at the start of lines (after CRLF only, as the standard has it), and `CRLF . CRLF` at the end.
pub fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + message.len() / 64 + 8);
    let mut line_start = true;
    let mut rest = message;
    while !rest.is_empty() {
        let end = rest
            .iter()
            .position(|&byte| byte == b'\n')
            .map_or(rest.len(), |at| at + 1);
        let (line, after) = rest.split_at(end);
        if line_start && line.first() == Some(&b'.') {
            out.push(b'.');
        }
        out.extend_from_slice(line);
        line_start = line.ends_with(b"\r\n");
        rest = after;
    }
    if !line_start {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dots_at_line_starts_are_doubled() {
        assert_eq!(stuffed(b".a\r\nb.\r\n..\r\n"), b"..a\r\nb.\r\n...\r\n.\r\n");
        assert_eq!(stuffed(b"a\n.b"), b"a\n.b\r\n.\r\n");
        assert_eq!(stuffed(b""), b".\r\n");
    }
}
