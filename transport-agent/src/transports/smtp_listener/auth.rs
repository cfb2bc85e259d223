//! AUTH (RFC 4954): SCRAM-SHA-256, and PLAIN within TLS. Only where there is a users file.
//!
//! ```text
//! AUTH SCRAM-SHA-256 [first] -> 334 challenge -> proof -> 334 signature -> (empty) -> 235
//! AUTH PLAIN [message] -> (334 -> message) -> 235
//! ```
//!
//! Who does not exist and who has another password get the same answer after the same work. A failure is answered late, ever later
//! within one session; after a few the session ends; and a client with too many in a minute is not listened to (454). Of what a
//! client says here only the name of who got in is in a log.

use std::{io, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use pombo_proto::scram::{self, ClientFirst, Password};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{sleep, timeout},
};
use tracing::info;

use super::{
    io::Line,
    session::{Next, Session},
};

/// The wait after a failure doubles up to this.
const DELAY_MAX: Duration = Duration::from_secs(30);

/// A mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mechanism {
    Scram,
    Plain,
}

/// An exchange that was asked for.
pub(super) struct Begun {
    mechanism: Mechanism,
    /// What came with the command.
    initial: Option<Vec<u8>>,
}

/// How an exchange ends without a user.
enum End {
    /// The session has something else to do: it is lost, or closed.
    Next(Next),
    /// The client is told this; nothing was tried.
    Refused(&'static str),
    /// The name or the password is wrong.
    Failed,
}

const CANCELLED: End = End::Refused("501 5.7.0 Authentication cancelled");
const NOT_BASE64: End = End::Refused("501 5.5.2 Cannot decode that as base64");
const MALFORMED: End = End::Refused("501 5.5.2 Not a message of this mechanism");
const TOO_LONG: End = End::Refused("500 5.5.6 Authentication exchange line is too long");
const BUSY: End = End::Refused("454 4.7.0 Temporary authentication failure");

type Step<T> = io::Result<Result<T, End>>;

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    /// The mechanisms that are offered now, as in EHLO.
    pub fn mechanisms(&self) -> Option<&'static str> {
        self.users()
            .and(match (self.tls, self.shared.config.auth_without_tls) {
                (true, _) => Some("SCRAM-SHA-256 PLAIN"),
                (false, true) => Some("SCRAM-SHA-256"),
                (false, false) => None,
            })
    }

    /// AUTH: whether it may be, and then what it begins with.
    pub fn begin_auth(&mut self, mechanism: &str, initial: Option<&str>) -> Next {
        if self.users().is_none() {
            return self.say("502 5.5.1 Command not implemented");
        }
        if !self.greeting.as_ref().is_some_and(|it| it.extended) {
            return self.say("503 5.5.1 EHLO first");
        }
        if self.user.is_some() || self.transaction.is_some() {
            return self.say("503 5.5.1 Not now");
        }
        let mechanism = if mechanism.eq_ignore_ascii_case(scram::NAME) {
            Mechanism::Scram
        } else if mechanism.eq_ignore_ascii_case("PLAIN") {
            Mechanism::Plain
        } else {
            return self.say("504 5.5.4 Mechanism not recognized");
        };
        let in_the_clear = mechanism == Mechanism::Scram && self.shared.config.auth_without_tls;
        if !self.tls && !in_the_clear {
            return self.say("538 5.7.11 Encryption required for this mechanism");
        }
        if self.shared.failures.is_over(self.peer.key) {
            return self.say("454 4.7.0 Too many failures, try again later");
        }
        let initial = match initial {
            None => None,
            // An empty one is written so.
            Some("=") => Some(Vec::new()),
            Some(text) => match BASE64.decode(text) {
                Ok(bytes) => Some(bytes),
                Err(_) => return self.refused(NOT_BASE64),
            },
        };
        self.auth = Some(Begun { mechanism, initial });
        Next::Auth
    }

    /// The exchange, to its end.
    pub async fn authenticate(&mut self) -> io::Result<Next> {
        let Some(Begun { mechanism, initial }) = self.auth.take() else {
            return Ok(Next::Go);
        };
        let result = match mechanism {
            Mechanism::Scram => self.scram(initial).await?,
            Mechanism::Plain => self.plain(initial).await?,
        };
        match result {
            Ok(user) => {
                counted("accepted");
                info!(session = self.peer.id, client = %self.peer.ip, user, "authenticated");
                self.user = Some(user);
                Ok(self.say("235 2.7.0 Authentication succeeded"))
            }
            Err(End::Failed) => self.failed().await,
            Err(end) => Ok(self.refused(end)),
        }
    }

    fn refused(&mut self, end: End) -> Next {
        match end {
            End::Next(next) => next,
            End::Refused(reply) => self.say(reply),
            End::Failed => self.say("535 5.7.8 Authentication credentials invalid"),
        }
    }

    async fn failed(&mut self) -> io::Result<Next> {
        counted("failed");
        self.peer.auth_failures += 1;
        let failures = self.peer.auth_failures;
        self.shared.failures.count(self.peer.key);
        info!(session = self.peer.id, client = %self.peer.ip, failures, "authentication failed");
        let config = &self.shared.config;
        let doubled = 1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX);
        let delay = config
            .auth_failure_delay
            .saturating_mul(doubled)
            .min(DELAY_MAX);
        let ended = failures >= config.auth_failures_max;
        // A sleep of nothing takes a millisecond.
        if !delay.is_zero() {
            let mut stop = self.shared.stop.subscribe();
            tokio::select! {
                () = sleep(delay) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        }
        self.refused(End::Failed);
        Ok(if ended {
            self.close("421 4.7.0", "Too many failures")
        } else {
            Next::Go
        })
    }

    async fn plain(&mut self, initial: Option<Vec<u8>>) -> Step<String> {
        let message = match initial {
            Some(message) => message,
            None => match self.ask_for("").await? {
                Ok(message) => message,
                Err(end) => return Ok(Err(end)),
            },
        };
        let Some((acting_as, user, password)) = plain_parts(message) else {
            return Ok(Err(MALFORMED));
        };
        let Ok(user) = scram::prepared(&user) else {
            return Ok(Err(End::Failed));
        };
        let Some(users) = self.users() else {
            return Ok(Err(BUSY));
        };
        let patience = self.shared.config.command_timeout;
        Ok(
            match timeout(patience, users.accepts(&user, password)).await {
                Err(_) => Err(BUSY),
                Ok(true) if acting_as.is_empty() || acting_as == user => Ok(user),
                Ok(_) => Err(End::Failed),
            },
        )
    }

    async fn scram(&mut self, initial: Option<Vec<u8>>) -> Step<String> {
        let message = match initial {
            Some(message) => message,
            None => match self.ask_for("").await? {
                Ok(message) => message,
                Err(end) => return Ok(Err(end)),
            },
        };
        let first = match ClientFirst::parse(&message) {
            Ok(first) => first,
            Err(scram::Error::Credential) => return Ok(Err(End::Failed)),
            Err(_) => return Ok(Err(MALFORMED)),
        };
        let (user, other) = (first.user().to_owned(), first.acting_as().is_some());
        let Some(users) = self.users() else {
            return Ok(Err(BUSY));
        };
        let Ok((challenge, said)) = first.challenge(&users.verifier(&user)) else {
            return Ok(Err(BUSY));
        };
        let proof = match self.ask_for(&said).await? {
            Ok(proof) => proof,
            Err(end) => return Ok(Err(end)),
        };
        let signature = match challenge.finish(&proof) {
            Ok(signature) if !other => signature,
            Ok(_) | Err(scram::Error::Proof) => return Ok(Err(End::Failed)),
            Err(_) => return Ok(Err(MALFORMED)),
        };
        // SMTP has no place for it in the 235.
        Ok(match self.ask_for(&signature).await? {
            Ok(rest) if rest.is_empty() => Ok(user),
            Ok(_) => Err(MALFORMED),
            Err(end) => Err(end),
        })
    }

    /// 334, and what the client says to it.
    async fn ask_for(&mut self, challenge: &str) -> Step<Vec<u8>> {
        let challenge = format!("334 {}", BASE64.encode(challenge));
        self.io.say(&challenge);
        self.flush().await?;
        loop {
            let mut line = Vec::new();
            let max = self.shared.config.command_bytes_max;
            return Ok(match self.io.next_line(max, &mut line) {
                Line::Complete if line == b"*" => Err(CANCELLED),
                Line::Complete => BASE64.decode(&line).map_err(|_| NOT_BASE64),
                Line::TooLong => Err(TOO_LONG),
                Line::BareLf => {
                    self.say("521 5.5.2 Bare <LF>: lines end with <CRLF>");
                    Err(End::Next(Next::Close))
                }
                Line::Incomplete => match self.listen().await? {
                    Next::Go => continue,
                    next => Err(End::Next(next)),
                },
            });
        }
    }
}

/// Authorization identity, user and password of RFC 4616.
fn plain_parts(message: Vec<u8>) -> Option<(String, String, Password)> {
    let text = Password::from(String::from_utf8(message).ok()?);
    let mut parts = text.expose().split('\0');
    let found = (
        parts.next()?.to_owned(),
        parts.next()?.to_owned(),
        parts.next()?.into(),
    );
    (parts.next().is_none() && !found.1.is_empty()).then_some(found)
}

fn counted(result: &'static str) {
    metrics::counter!("pombo_smtp_authentications_total", "result" => result).increment(1);
}
