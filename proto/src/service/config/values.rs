//! Values as people write them: secrets by reference, durations, sizes.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de::Error as _};

/// Far beyond any password.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// A secret that does not stand in the configuration itself: `{ file = "/etc/pombo/password" }` or `{ env = "PASSWORD" }`.
/// Read while the configuration is parsed, so that an error names the key. Line ends at its end are
/// not part of it.
#[derive(Clone, Debug)]
pub struct Secret(SecretString);

impl Secret {
    /// The secret itself: for the party that asks for it and nobody else.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self(SecretString::from(secret))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretSource {
    file: Option<PathBuf>,
    env: Option<String>,
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let source = SecretSource::deserialize(from)?;
        let text = match (source.file, source.env) {
            (Some(file), None) => read(&file)
                .map_err(|error| D::Error::custom(format!("{}: {error}", file.display())))?,
            (None, Some(variable)) => std::env::var(&variable).map_err(|_| {
                D::Error::custom(format!("the environment has no variable {variable}"))
            })?,
            _ => {
                return Err(D::Error::custom(
                    "either { file = \"...\" } or { env = \"...\" }",
                ));
            }
        };
        let secret = text.trim_end_matches(['\r', '\n']);
        if secret.is_empty() {
            return Err(D::Error::custom("the secret is empty"));
        }
        Ok(Self::from(secret.to_owned()))
    }
}

/// Not more than a secret can be: some files never end.
fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let length = File::open(file)?
        .take(SECRET_BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    if length as u64 > SECRET_BYTES_MAX {
        return Err(std::io::Error::other("more than 64 KiB: no secret"));
    }
    Ok(text)
}

/// `#[serde(with = "duration")]`: a duration as in `"1m 30s"`.
pub mod duration {
    use super::*;

    /// See the module.
    ///
    /// # Errors
    /// Not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_duration(&text).map_err(|error| {
            D::Error::custom(format!("{text:?} is no duration such as \"30s\": {error}"))
        })
    }
}

/// The same for an `Option<Duration>`; use it together with `#[serde(default)]`.
pub mod duration_option {
    use super::*;

    /// See the module.
    ///
    /// # Errors
    /// Not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        duration::deserialize(from).map(Some)
    }
}

/// `#[serde(with = "size")]`: a size in bytes as in `"32KiB"`, or a number; for any integer type.
pub mod size {
    use super::*;

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a size such as \"32KiB\" or a number of bytes")]
    enum Written {
        Number(u64),
        Text(String),
    }

    /// See the module.
    ///
    /// # Errors
    /// Not a size, or too large for the type.
    pub fn deserialize<'de, D, T>(from: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: TryFrom<u64>,
    {
        let bytes = match Written::deserialize(from)? {
            Written::Number(bytes) => bytes,
            Written::Text(text) => parse(&text).ok_or_else(|| {
                D::Error::custom(format!(
                    "{text:?} is no size such as \"32KiB\" or \"50MiB\""
                ))
            })?,
        };
        T::try_from(bytes).map_err(|_| D::Error::custom(format!("{bytes} bytes are too many")))
    }

    fn parse(text: &str) -> Option<u64> {
        let text = text.trim();
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit.trim() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(factor)
    }
}
