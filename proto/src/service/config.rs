//! Configuration files: TOML, one per service. Whatever is wrong is said with file, line, column and key.
//!
//! A service reads a [`Source`] and parses it into its own type, built from the common sections here; types deny
//! unknown fields. A part whose type is known only later (the section of a transport, say) is parsed from the same source by
//! [`Source::section`], so that its errors have their lines, too.

use std::{
    marker::PhantomData,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, Visitor};

mod sections;
mod values;

pub use sections::{
    Blobs, BlobsError, Broker, BrokerAuth, BrokerError, BrokerTls, Http, Log, LogFormat,
};
pub use values::{Secret, duration, duration_option, size};

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A value, a key or the syntax is wrong.
    #[error("{}:{line}:{column}: {}{message}", path.display(), prefix(key))]
    Bad {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// As in `broker.addresses[0]`; empty for the syntax.
        key: String,
        /// What is wrong.
        message: String,
    },
}

fn prefix(key: &str) -> String {
    if key.is_empty() {
        String::new()
    } else {
        format!("{key}: ")
    }
}

/// Reads a configuration file.
///
/// # Errors
/// See [`Error`].
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    Source::read(path)?.parse()
}

/// The text of a configuration file.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::new(path, text))
    }

    /// A text that came from elsewhere; errors name it by `path`.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
        }
    }

    /// The whole file as a value.
    ///
    /// # Errors
    /// [`Error::Bad`].
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        self.run(PhantomData::<T>)
    }

    /// One section as a value; `None` if the file has none of that name.
    ///
    /// # Errors
    /// [`Error::Bad`].
    pub fn section<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        self.run(Section {
            name,
            value: PhantomData,
        })
    }

    /// An error about a value that parses and yet makes no sense. `key` as in `transport.name`.
    pub fn bad(&self, key: &str, message: impl std::fmt::Display) -> Error {
        let span = self.find(key).unwrap_or(0..0);
        self.error(Some(span), key.to_owned(), message.to_string())
    }

    fn run<'a, S: DeserializeSeed<'a>>(&'a self, seed: S) -> Result<S::Value, Error> {
        let syntax = |error: toml::de::Error| {
            self.error(error.span(), String::new(), error.message().into())
        };
        let deserializer = toml::Deserializer::parse(&self.text).map_err(syntax)?;
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(deserializer, &mut track);
        seed.deserialize(tracked).map_err(|error| {
            let key = track.path().to_string();
            let key = if key == "." { String::new() } else { key };
            let span = error.span().or_else(|| self.find(&key));
            self.error(span, key, error.message().to_owned())
        })
    }

    /// Where the value of a key stands, or the nearest thing around it. Entries of arrays are named by their number, as in
    /// `transport.0.name` or `transport[0].name`.
    fn find(&self, key: &str) -> Option<Range<usize>> {
        use toml::de::DeValue;
        let document = toml::de::DeTable::parse(&self.text).ok()?;
        let mut parts = key.split(['.', '[', ']']).filter(|part| !part.is_empty());
        let mut value = document.get_ref().get(parts.next()?)?;
        for part in parts {
            let inner = match value.get_ref() {
                DeValue::Table(table) => table.get(part),
                DeValue::Array(array) => part.parse().ok().and_then(|at: usize| array.get(at)),
                _ => None,
            };
            let Some(inner) = inner else { break };
            value = inner;
        }
        Some(value.span())
    }

    fn error(&self, span: Option<Range<usize>>, key: String, message: String) -> Error {
        let at = span.map_or(0, |span| span.start).min(self.text.len());
        let before = &self.text.as_bytes()[..at];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before
            .iter()
            .rev()
            .take_while(|byte| **byte != b'\n')
            .count()
            + 1;
        Error::Bad {
            path: self.path.clone(),
            line,
            column,
            key: one_line(&key),
            message: one_line(&message.replace('\n', ", ")),
        }
    }
}

/// A quoted key may hold what would break a log's line, or dress up a terminal.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Deserialises one entry of the top-level table and ignores the others.
struct Section<'n, T> {
    name: &'n str,
    value: PhantomData<T>,
}

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Section<'_, T> {
    type Value = Option<T>;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Option<T>, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for Section<'_, T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a table")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<T>, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == self.name {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
