//! The four messages, and the two machines that speak them.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ring::hmac::{self, HMAC_SHA256};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use super::{
    Error, KEY_BYTES, Key, Keys, MESSAGE_BYTES_MAX, SALT_BYTES_RANGE, Verifier, acceptable, hash,
    nonce, number, prepared, sign,
};

/// The longest nonce that is taken.
const NONCE_BYTES_MAX: usize = 256;

/// The first message, as a server reads it.
#[derive(Clone)]
pub struct ClientFirst {
    user: String,
    acting_as: Option<String>,
    /// The header that the client repeats in its second message.
    header: String,
    bare: String,
    nonce: String,
}

impl ClientFirst {
    /// Reads `n,[a=other],n=user,r=nonce[,extensions]`.
    ///
    /// # Errors
    /// Malformed, a channel binding, or a name that cannot be one.
    pub fn parse(message: &[u8]) -> Result<Self, Error> {
        let text = text(message)?;
        let (flag, rest) = text.split_once(',').ok_or(Error::Malformed)?;
        match flag {
            "n" | "y" => {}
            _ if flag.starts_with("p=") => return Err(Error::ChannelBinding),
            _ => return Err(Error::Malformed),
        }
        let (acting_as, bare) = rest.split_once(',').ok_or(Error::Malformed)?;
        let acting_as = match acting_as {
            "" => None,
            named => Some(name(named.strip_prefix("a=").ok_or(Error::Malformed)?)?),
        };
        // An `m=` here would be an extension that must be understood.
        let mut parts = bare.split(',');
        let mut next = |key: &str| {
            let part = parts.next().and_then(|part| part.strip_prefix(key));
            part.ok_or(Error::Malformed)
        };
        let user = name(next("n=")?)?;
        let nonce = a_nonce(next("r=")?)?.to_owned();
        Ok(Self {
            user,
            acting_as,
            header: text[..text.len() - bare.len()].to_owned(),
            bare: bare.to_owned(),
            nonce,
        })
    }

    /// Who the client says it is, prepared for comparison.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// As whom it wants to act, if that is not itself.
    pub fn acting_as(&self) -> Option<&str> {
        self.acting_as
            .as_deref()
            .filter(|other| *other != self.user)
    }

    /// The server's first message.
    ///
    /// # Errors
    /// No randomness.
    pub fn challenge(self, verifier: &Verifier) -> Result<(Challenge, String), Error> {
        let ours = nonce()?;
        Ok(self.challenge_with(verifier, &ours))
    }

    pub(super) fn challenge_with(self, verifier: &Verifier, ours: &str) -> (Challenge, String) {
        let nonce = format!("{}{ours}", self.nonce);
        let salt = BASE64.encode(&verifier.salt);
        let message = format!("r={nonce},s={salt},i={}", verifier.iterations);
        let challenge = Challenge {
            header: self.header,
            transcript: format!("{},{message},", self.bare),
            nonce,
            stored_key: verifier.stored_key,
            server_key: verifier.server_key,
        };
        (challenge, message)
    }
}

impl fmt::Debug for ClientFirst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientFirst").finish_non_exhaustive()
    }
}

/// A server that has asked for the proof.
pub struct Challenge {
    header: String,
    /// Both first messages, as they are signed.
    transcript: String,
    nonce: String,
    stored_key: Key,
    server_key: Key,
}

impl Challenge {
    /// Reads `c=header,r=nonce[,extensions],p=proof`, and gives the server's last message if the proof holds.
    ///
    /// # Errors
    /// Malformed, another nonce, or another password.
    pub fn finish(self, message: &[u8]) -> Result<String, Error> {
        let text = text(message)?;
        let (signed, proof) = text.rsplit_once(",p=").ok_or(Error::Malformed)?;
        let proof: Key = super::key(proof).ok_or(Error::Malformed)?;
        let mut parts = signed.split(',');
        let mut next = |key: &str| {
            let part = parts.next().and_then(|part| part.strip_prefix(key));
            part.ok_or(Error::Malformed)
        };
        let header = BASE64.decode(next("c=")?).map_err(|_| Error::Malformed)?;
        if header != self.header.as_bytes() {
            return Err(Error::ChannelBinding);
        }
        if next("r=")? != self.nonce {
            return Err(Error::Nonce);
        }
        if parts.any(|part| part.starts_with("m=")) {
            return Err(Error::Malformed);
        }
        let transcript = format!("{}{signed}", self.transcript);
        let stored_key = hmac::Key::new(HMAC_SHA256, &self.stored_key);
        let client_key = xor(proof, &sign(&stored_key, transcript.as_bytes()));
        if !bool::from(hash(&client_key).ct_eq(&self.stored_key)) {
            return Err(Error::Proof);
        }
        let server_key = hmac::Key::new(HMAC_SHA256, &self.server_key);
        let signature = sign(&server_key, transcript.as_bytes());
        Ok(format!("v={}", BASE64.encode(signature)))
    }
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenge").finish_non_exhaustive()
    }
}

/// A client at the beginning of an exchange.
pub struct Client {
    bare: String,
    nonce: String,
    password: SecretString,
}

impl Client {
    /// # Errors
    /// The name or the password cannot be one; no randomness.
    pub fn new(user: &str, password: &str) -> Result<Self, Error> {
        let ours = nonce()?;
        Self::with_nonce(user, password, ours)
    }

    pub(super) fn with_nonce(user: &str, password: &str, nonce: String) -> Result<Self, Error> {
        let user = prepared(user)?.replace('=', "=3D").replace(',', "=2C");
        Ok(Self {
            bare: format!("n={user},r={nonce}"),
            nonce,
            password: prepared(password)?.into(),
        })
    }

    /// The first message.
    pub fn first(&self) -> String {
        format!("n,,{}", self.bare)
    }

    /// The second message, and what the server has to answer. Takes as long as the server's iteration count says, at most
    /// a second.
    ///
    /// # Errors
    /// Malformed, another nonce, or a count or salt that is not acceptable.
    pub fn answer(self, challenge: &[u8]) -> Result<(String, Expected), Error> {
        let challenge = text(challenge)?;
        let mut parts = challenge.split(',');
        let mut next = |key: &str| {
            let part = parts.next().and_then(|part| part.strip_prefix(key));
            part.ok_or(Error::Malformed)
        };
        let both = a_nonce(next("r=")?)?;
        let salt = BASE64.decode(next("s=")?).map_err(|_| Error::Malformed)?;
        let iterations = number(next("i=")?).ok_or(Error::Malformed)?;
        if !both.starts_with(&self.nonce) || both.len() == self.nonce.len() {
            return Err(Error::Nonce);
        }
        if !SALT_BYTES_RANGE.contains(&salt.len()) {
            return Err(Error::Weak);
        }
        let keys = Keys::derive(
            self.password.expose_secret(),
            &salt,
            acceptable(iterations)?,
        );
        // biws: base64 of "n,,".
        let unsigned = format!("c=biws,r={both}");
        let transcript = format!("{},{challenge},{unsigned}", self.bare);
        let stored_key = hmac::Key::new(HMAC_SHA256, &keys.stored());
        let proof = xor(keys.client, &sign(&stored_key, transcript.as_bytes()));
        let server_key = hmac::Key::new(HMAC_SHA256, &keys.server);
        let expected = Expected(sign(&server_key, transcript.as_bytes()));
        Ok((format!("{unsigned},p={}", BASE64.encode(proof)), expected))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// What only a server that knows the password can say.
pub struct Expected(Key);

impl Expected {
    /// Reads `v=signature`.
    ///
    /// # Errors
    /// It is not that, or another one.
    pub fn check(&self, message: &[u8]) -> Result<(), Error> {
        let text = text(message)?;
        let said = text
            .split(',')
            .next()
            .and_then(|part| part.strip_prefix("v="));
        let said: Key = said.and_then(super::key).ok_or(Error::Server)?;
        if said.ct_eq(&self.0).into() {
            Ok(())
        } else {
            Err(Error::Server)
        }
    }
}

impl fmt::Debug for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expected").finish_non_exhaustive()
    }
}

fn text(message: &[u8]) -> Result<&str, Error> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(Error::Malformed);
    }
    let text = std::str::from_utf8(message).map_err(|_| Error::Malformed)?;
    if text.contains('\0') {
        return Err(Error::Malformed);
    }
    Ok(text)
}

/// A name in which `=2C` stands for a comma and `=3D` for itself.
fn name(encoded: &str) -> Result<String, Error> {
    let mut name = String::with_capacity(encoded.len());
    let mut pieces = encoded.split('=');
    name.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let (char, rest) = match piece.get(..2) {
            Some("2C") => (',', &piece[2..]),
            Some("3D") => ('=', &piece[2..]),
            _ => return Err(Error::Malformed),
        };
        name.push(char);
        name.push_str(rest);
    }
    prepared(&name)
}

fn a_nonce(text: &str) -> Result<&str, Error> {
    let sound = (1..=NONCE_BYTES_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b',');
    sound.then_some(text).ok_or(Error::Nonce)
}

fn xor(mut left: Key, right: &[u8; KEY_BYTES]) -> Key {
    for (left, right) in left.iter_mut().zip(right) {
        *left ^= right;
    }
    left
}
