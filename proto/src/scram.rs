//! SCRAM-SHA-256 (RFC 5802, RFC 7677): both ends of the exchange, and what a server keeps instead of a password.
//!
//! ```text
//! client                                       server
//!   Client::first    n,,n=user,r=nonce      -> ClientFirst::parse
//!   Client::answer <-  r=nonce,s=salt,i=n      ClientFirst::challenge(verifier)
//!                    c=...,r=...,p=proof    -> Challenge::finish
//!   Expected::check <- v=signature
//! ```
//!
//! No IO and no clock; the only thing from outside is randomness for nonces and salts. Texts here are what base64 wraps on
//! the wire. Nothing shows a password, a key or a proof: [`Debug`](std::fmt::Debug) of all types is bare, errors name what
//! was wrong and quote nothing. Secrets are compared in constant time.
//!
//! Without channel binding: a client that asks for one (`p=`) is refused, one that could have used one (`y`) is not, since none
//! is offered.

use std::{fmt, num::NonZeroU32, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ring::{
    digest,
    hmac::{self, HMAC_SHA256},
    pbkdf2,
    rand::{SecureRandom, SystemRandom},
};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

mod messages;
#[cfg(test)]
mod tests;

pub use messages::{Challenge, Client, ClientFirst, Expected};

/// The name of the mechanism.
pub const NAME: &str = "SCRAM-SHA-256";
/// A message of the exchange, before base64. The longest names and salts make less than half of it.
pub const MESSAGE_BYTES_MAX: usize = 1_536;
/// User names and passwords, in UTF-8. RFC 4616 asks for 255 at least.
pub const CREDENTIAL_BYTES_MAX: usize = 512;
/// What a new verifier gets: some 10 ms of work for either side, and for whoever tries a password on a stolen file.
/// RFC 7677 asks for 4,096 at least and recommends 15,000.
pub const ITERATIONS: u32 = 50_000;
/// What is taken from a file or, as a client, from a server: beyond it, a server could keep its clients busy for minutes.
const ITERATIONS_RANGE: std::ops::RangeInclusive<u32> = 4_096..=1_000_000;
const SALT_BYTES: usize = 16;
const SALT_BYTES_RANGE: std::ops::RangeInclusive<usize> = 8..=64;
/// Of randomness in a nonce.
const NONCE_BYTES: usize = 18;
const KEY_BYTES: usize = digest::SHA256_OUTPUT_LEN;

type Key = [u8; KEY_BYTES];

/// What ends an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a message of this mechanism, or not the one that is due.
    #[error("not a message of SCRAM")]
    Malformed,
    /// The client wants a channel binding.
    #[error("channel binding is not offered")]
    ChannelBinding,
    /// The other side's nonce, or its echo of ours, is wrong.
    #[error("the nonce is another one")]
    Nonce,
    /// The iteration count or the salt is outside what is accepted.
    #[error("{NAME} with an iteration count or a salt that is not acceptable")]
    Weak,
    /// A name or a password that cannot be one: empty, too long, with control characters, or refused by SASLprep.
    #[error("a name or password that is empty, too long, or holds forbidden characters")]
    Credential,
    /// The proof is wrong: another password.
    #[error("the password is wrong")]
    Proof,
    /// The server does not know the password either: it is not the one it says it is.
    #[error("the server could not prove that it knows the password")]
    Server,
    /// Not a verifier as in RFC 5803.
    #[error("not of the form {NAME}$iterations:salt$StoredKey:ServerKey")]
    Verifier,
    /// The system gives no random bytes.
    #[error("no random bytes")]
    Random,
}

/// A password, shown nowhere and wiped when it is dropped.
#[derive(Clone, Debug)]
pub struct Password(SecretString);

impl Password {
    /// Itself.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl<T: Into<String>> From<T> for Password {
    fn from(password: T) -> Self {
        Self(SecretString::from(password.into()))
    }
}

/// What is kept of a password: it can be checked, not recovered. Written as in RFC 5803:
/// `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`.
#[derive(Clone)]
pub struct Verifier {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    stored_key: Key,
    server_key: Key,
}

impl Verifier {
    /// For a password, with a new salt. Takes some 10 ms.
    ///
    /// # Errors
    /// The password cannot be one; no randomness.
    pub fn of(password: &str) -> Result<Self, Error> {
        Self::with_iterations(password, ITERATIONS)
    }

    /// The same with another iteration count, 4,096 to 1,000,000.
    ///
    /// # Errors
    /// As [`Self::of`], or another count.
    pub fn with_iterations(password: &str, iterations: u32) -> Result<Self, Error> {
        let mut salt = vec![0; SALT_BYTES];
        random(&mut salt)?;
        Self::derive(&prepared(password)?, salt, acceptable(iterations)?)
    }

    /// For a user who does not exist: an exchange goes its whole way, with the same salt every time, and fails at its end. So
    /// nobody learns who exists. `secret` is the server's own.
    pub fn pretended(secret: &[u8], user: &str) -> Self {
        let key = hmac::Key::new(HMAC_SHA256, secret);
        let of = |what: &str| sign(&key, format!("{what} {user}").as_bytes());
        Self {
            iterations: NonZeroU32::new(ITERATIONS).unwrap_or(NonZeroU32::MIN),
            salt: of("salt")[..SALT_BYTES].to_vec(),
            stored_key: of("stored"),
            server_key: of("server"),
        }
    }

    /// Whether this is the password. Takes as long as deriving the keys.
    pub fn accepts(&self, password: &str) -> bool {
        let Ok(password) = prepared(password) else {
            return false;
        };
        let derived = Self::derive(&password, self.salt.clone(), self.iterations);
        derived.is_ok_and(|derived| derived.stored_key.ct_eq(&self.stored_key).into())
    }

    fn derive(password: &str, salt: Vec<u8>, iterations: NonZeroU32) -> Result<Self, Error> {
        if !SALT_BYTES_RANGE.contains(&salt.len()) {
            return Err(Error::Weak);
        }
        let keys = Keys::derive(password, &salt, iterations);
        Ok(Self {
            iterations,
            salt,
            stored_key: keys.stored(),
            server_key: keys.server,
        })
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{NAME}${}:{}${}:{}",
            self.iterations,
            BASE64.encode(&self.salt),
            BASE64.encode(self.stored_key),
            BASE64.encode(self.server_key)
        )
    }
}

impl FromStr for Verifier {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts = || {
            let mut parts = text.split('$');
            let scheme = parts.next()?;
            let (iterations, salt) = parts.next()?.split_once(':')?;
            let (stored, server) = parts.next()?.split_once(':')?;
            (scheme == NAME && parts.next().is_none()).then_some((iterations, salt, stored, server))
        };
        let (iterations, salt, stored, server) = parts().ok_or(Error::Verifier)?;
        let salt = BASE64.decode(salt).map_err(|_| Error::Verifier)?;
        if !SALT_BYTES_RANGE.contains(&salt.len()) {
            return Err(Error::Weak);
        }
        Ok(Self {
            iterations: acceptable(number(iterations).ok_or(Error::Verifier)?)?,
            salt,
            stored_key: key(stored).ok_or(Error::Verifier)?,
            server_key: key(server).ok_or(Error::Verifier)?,
        })
    }
}

/// What both sides derive from the password.
struct Keys {
    client: Key,
    server: Key,
}

impl Keys {
    fn derive(password: &str, salt: &[u8], iterations: NonZeroU32) -> Self {
        let mut salted = [0; KEY_BYTES];
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            iterations,
            salt,
            password.as_bytes(),
            &mut salted,
        );
        let salted = hmac::Key::new(HMAC_SHA256, &salted);
        Self {
            client: sign(&salted, b"Client Key"),
            server: sign(&salted, b"Server Key"),
        }
    }

    fn stored(&self) -> Key {
        hash(&self.client)
    }
}

/// SASLprep (RFC 4013) of a name or a password: what may be written in several ways becomes one.
///
/// # Errors
/// [`Error::Credential`].
pub fn prepared(text: &str) -> Result<String, Error> {
    if text.is_empty() || text.len() > CREDENTIAL_BYTES_MAX {
        return Err(Error::Credential);
    }
    let prepared = stringprep::saslprep(text).map_err(|_| Error::Credential)?;
    if prepared.is_empty() || prepared.chars().any(char::is_control) {
        return Err(Error::Credential);
    }
    Ok(prepared.into_owned())
}

fn acceptable(iterations: u32) -> Result<NonZeroU32, Error> {
    NonZeroU32::new(iterations)
        .filter(|count| ITERATIONS_RANGE.contains(&count.get()))
        .ok_or(Error::Weak)
}

/// A decimal without sign and leading zeros.
fn number(text: &str) -> Option<u32> {
    let digits = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn key(text: &str) -> Option<Key> {
    BASE64.decode(text).ok()?.try_into().ok()
}

fn sign(key: &hmac::Key, text: &[u8]) -> Key {
    let mut signature = [0; KEY_BYTES];
    signature.copy_from_slice(hmac::sign(key, text).as_ref());
    signature
}

fn hash(bytes: &[u8]) -> Key {
    let mut out = [0; KEY_BYTES];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

fn random(bytes: &mut [u8]) -> Result<(), Error> {
    SystemRandom::new().fill(bytes).map_err(|_| Error::Random)
}

/// Printable, without a comma.
fn nonce() -> Result<String, Error> {
    let mut bytes = [0; NONCE_BYTES];
    random(&mut bytes)?;
    Ok(BASE64.encode(bytes))
}
