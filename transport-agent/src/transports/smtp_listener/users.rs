//! Who may log in: a file with one line per user, as `pombo passwd` writes it. It holds no password, only what a password
//! can be checked against.
//!
//! ```text
//! # name:SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey [address...]
//! ann:SCRAM-SHA-256$50000:...$...:... ann@example.org sales@example.org
//! ```
//!
//! The addresses are those that the user may send as where `auth_senders` is `own`; a name that is an address counts, too.

use std::{collections::HashMap, fmt, path::Path, sync::Arc};

use pombo_proto::scram::{self, Verifier};
use tokio::sync::Semaphore;

use super::{address, policy::read_bounded};

/// A password is checked on a thread of its own, for some 10 ms: as many at a time. Who comes meanwhile waits.
const CHECKS_MAX: usize = 2;

/// What is wrong with the file. Quotes no line of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("{file}: {reason}")]
    File {
        /// Which file.
        file: String,
        /// Why not.
        reason: String,
    },
    /// A line that is not one.
    #[error("{file}:{line}: {reason}")]
    Line {
        /// Which file.
        file: String,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// One user.
pub(super) struct User {
    verifier: Verifier,
    senders: Vec<String>,
}

/// All users.
pub(super) struct Users {
    by_name: HashMap<String, User>,
    /// For the salts of those who do not exist.
    secret: [u8; 32],
    checks: Arc<Semaphore>,
    check: Check,
}

/// Whether a password is the one that a verifier was made of.
pub(super) type Check = fn(&Verifier, &str) -> bool;

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} users", self.by_name.len())
    }
}

impl Users {
    /// Reads the file. Blocks; call it off the runtime.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let shown = file.display().to_string();
        let text = read_bounded(file).map_err(|error| Error::File {
            file: shown.clone(),
            reason: error.to_string(),
        })?;
        Self::parse(&text).map_err(|(line, reason)| Error::Line {
            file: shown,
            line,
            reason,
        })
    }

    /// The number of the line that is wrong, and why.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut by_name = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |reason: &dyn fmt::Display| (number + 1, reason.to_string());
            let (name, user) = one(line).map_err(|reason| bad(&reason))?;
            if by_name.insert(name, user).is_some() {
                return Err(bad(&"this user is there twice"));
            }
        }
        let mut secret = [0; 32];
        for part in secret.chunks_mut(16) {
            part.copy_from_slice(&uuid::Uuid::new_v4().into_bytes());
        }
        Ok(Self {
            by_name,
            secret,
            checks: Arc::new(Semaphore::new(CHECKS_MAX)),
            check: Verifier::accepts,
        })
    }

    /// With another check than deriving the keys, which takes long by intent: for a fuzzer.
    pub fn checked_by(mut self, check: Check) -> Self {
        self.check = check;
        self
    }

    /// What a proof by this user is checked against: of who does not exist, something that no proof fits.
    pub fn verifier(&self, name: &str) -> Verifier {
        match self.by_name.get(name) {
            Some(user) => user.verifier.clone(),
            None => Verifier::pretended(&self.secret, name),
        }
    }

    /// Whether this is the user's password. Takes as long for who does not exist.
    pub async fn accepts(&self, name: &str, password: scram::Password) -> bool {
        let verifier = self.verifier(name);
        let Ok(_place) = self.checks.acquire().await else {
            return false;
        };
        let accepts = self.check;
        let check = tokio::task::spawn_blocking(move || accepts(&verifier, password.expose()));
        // A check that panicked has accepted nobody.
        check.await.unwrap_or(false)
    }

    /// Whether the user may send as this address; everybody may send as nobody, for notifications.
    pub fn may_send_as(&self, name: &str, sender: &str) -> bool {
        if sender.is_empty() {
            return true;
        }
        let senders = self.by_name.get(name).map_or(&[][..], |user| &user.senders);
        senders.iter().any(|own| own.eq_ignore_ascii_case(sender))
    }
}

fn one(line: &str) -> Result<(String, User), String> {
    let (name, rest) = line.split_once(':').ok_or("no name before a colon")?;
    let name = scram::prepared(name).map_err(|error| error.to_string())?;
    let mut words = rest.split_whitespace();
    let verifier = words.next().unwrap_or_default();
    let verifier: Verifier = verifier
        .parse()
        .map_err(|error: scram::Error| error.to_string())?;
    let canonical = |text: &str| address::mailbox(text).map(address::Mailbox::into_string);
    let mut senders: Vec<String> = canonical(&name).into_iter().collect();
    for word in words {
        senders.push(canonical(word).ok_or("an address that is none")?);
    }
    Ok((name, User { verifier, senders }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the password `pencil`.
    const PENCIL: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    fn users(text: &str) -> Result<Users, (usize, String)> {
        Users::parse(&text.replace("PENCIL", PENCIL))
    }

    #[tokio::test]
    async fn a_user_has_a_password_and_addresses() {
        let users = users(
            "# people\n\nann:PENCIL ann@Example.org  sales@example.org\nbob@example.org:PENCIL\n",
        );
        let users = users.unwrap();
        assert!(users.accepts("ann", "pencil".into()).await);
        assert!(!users.accepts("ann", "pencils".into()).await);
        assert!(!users.accepts("Ann", "pencil".into()).await);
        assert!(!users.accepts("nobody", "pencil".into()).await);
        for (name, sender, may) in [
            ("ann", "ann@example.org", true),
            ("ann", "SALES@example.org", true),
            ("ann", "bob@example.org", false),
            ("ann", "", true),
            ("bob@example.org", "bob@example.org", true),
            ("nobody", "ann@example.org", false),
        ] {
            assert_eq!(users.may_send_as(name, sender), may, "{name} {sender}");
        }
        assert_eq!(format!("{users:?}"), "2 users");
    }

    #[test]
    fn a_bad_line_is_named_and_not_quoted() {
        for (text, line) in [
            ("ann", 1),
            ("\nann:secret", 2),
            (":PENCIL", 1),
            ("ann:PENCIL\nann:PENCIL", 2),
            ("ann:PENCIL not-an-address", 1),
        ] {
            let (at, reason) = users(text).unwrap_err();
            assert_eq!(at, line, "{text}");
            assert!(
                !reason.contains("secret") && !reason.contains("W22Z"),
                "{reason}"
            );
        }
    }
}
