//! Authentication with the smart host: SCRAM-SHA-256 (RFC 7677), PLAIN (RFC 4616), and LOGIN.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use pombo_proto::scram;
use secrecy::{ExposeSecret, zeroize::Zeroizing};

use super::{
    config::Mechanism,
    connection::{Connection, Credentials, unwelcome},
    reply::{Capabilities, Reply},
    status::{ConnectionError, Stage},
};

/// What was wished, if it is offered.
fn choose(wished: Mechanism, offered: &Capabilities) -> Option<Mechanism> {
    let is_offered = |mechanism| match mechanism {
        Mechanism::ScramSha256 => offered.auth_scram,
        Mechanism::Plain => offered.auth_plain,
        Mechanism::Login => offered.auth_login,
        Mechanism::Auto => false,
    };
    match wished {
        Mechanism::Auto => [Mechanism::ScramSha256, Mechanism::Plain, Mechanism::Login]
            .into_iter()
            .find(|mechanism| is_offered(*mechanism)),
        mechanism => Some(mechanism).filter(|mechanism| is_offered(*mechanism)),
    }
}

fn line(text: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("{}\r\n", BASE64.encode(text)))
}

impl Connection {
    /// Proves who we are; each answer may take `limit`.
    pub(super) async fn authenticate(
        &mut self,
        credentials: &Credentials,
        limit: Duration,
    ) -> Result<(), ConnectionError> {
        let reply = match choose(credentials.mechanism, &self.offered) {
            Some(Mechanism::ScramSha256) => self.scram(credentials, limit).await?,
            Some(Mechanism::Plain) => self.plain(credentials, limit).await?,
            Some(Mechanism::Login) => self.login(credentials, limit).await?,
            Some(Mechanism::Auto) | None => return Err(ConnectionError::AuthNotOffered),
        };
        if reply.is_positive() {
            Ok(())
        } else {
            Err(unwelcome(Stage::Auth, reply))
        }
    }

    async fn plain(
        &mut self,
        credentials: &Credentials,
        limit: Duration,
    ) -> Result<Reply, ConnectionError> {
        let password = credentials.password.expose_secret();
        let response = Zeroizing::new(format!("\0{}\0{password}", credentials.username));
        let command = Zeroizing::new(format!("AUTH PLAIN {}", *line(&response)));
        self.command(command.as_bytes(), Stage::Auth, limit).await
    }

    async fn login(
        &mut self,
        credentials: &Credentials,
        limit: Duration,
    ) -> Result<Reply, ConnectionError> {
        let mut reply = self.command(b"AUTH LOGIN\r\n", Stage::Auth, limit).await?;
        let password = credentials.password.expose_secret();
        for answer in [credentials.username.as_str(), password] {
            if reply.code != 334 {
                return Ok(reply);
            }
            let answer = line(answer);
            reply = self.command(answer.as_bytes(), Stage::Auth, limit).await?;
        }
        Ok(reply)
    }

    /// A server that cannot prove that it knows the password gets no mail.
    async fn scram(
        &mut self,
        credentials: &Credentials,
        limit: Duration,
    ) -> Result<Reply, ConnectionError> {
        let password = credentials.password.expose_secret();
        let client = scram::Client::new(&credentials.username, password)?;
        let command = format!("AUTH {} {}", scram::NAME, *line(&client.first()));
        let reply = self.command(command.as_bytes(), Stage::Auth, limit).await?;
        if reply.code != 334 {
            return Ok(reply);
        }
        let challenge = said(&reply)?;
        // The server says how much work it is: not on a thread that others wait for.
        let answered = tokio::task::spawn_blocking(move || client.answer(&challenge)).await;
        let (answer, expected) = answered.unwrap_or(Err(scram::Error::Malformed))?;
        let answer = line(&answer);
        let reply = self.command(answer.as_bytes(), Stage::Auth, limit).await?;
        if reply.code != 334 {
            // A 235 now would be from a server that has proved nothing.
            return if reply.is_positive() {
                Err(scram::Error::Server.into())
            } else {
                Ok(reply)
            };
        }
        expected.check(&said(&reply)?)?;
        self.command(b"\r\n", Stage::Auth, limit).await
    }
}

/// What a 334 carries.
fn said(reply: &Reply) -> Result<Vec<u8>, scram::Error> {
    let text = BASE64.decode(reply.text.trim());
    text.map_err(|_| scram::Error::Malformed)
}
