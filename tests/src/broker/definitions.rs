//! The users that `deploy/rabbitmq.definitions.json` has, with its permissions, for every prefix of the tests; and the shared
//! topology, declared by somebody who may.

use std::{fmt, sync::LazyLock};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use lapin::{
    Connection, ConnectionProperties, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use pombo_proto::topology::{Argument, Durable, Kind, Topology};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// As shipped.
pub const SHIPPED: &str = include_str!("../../../deploy/rabbitmq.definitions.json");

/// Passwords of this test process: they are known nowhere else.
static SECRET: LazyLock<String> = LazyLock::new(|| format!("{:032x}", fastrand::u128(..)));

/// Which of the shipped users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A spooler.
    Spooler,
    /// An agent.
    Agent,
    /// The command line.
    CommandLine,
}

impl Role {
    /// All.
    pub const ALL: [Self; 3] = [Self::Spooler, Self::Agent, Self::CommandLine];

    /// The user's name.
    pub fn user(self) -> &'static str {
        match self {
            Self::Spooler => "pombo-spooler",
            Self::Agent => "pombo-agent",
            Self::CommandLine => "pombo-cli",
        }
    }

    /// The user's password on all nodes of this process.
    pub fn password(self) -> String {
        format!("{}-{}", self.user(), *SECRET)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.user())
    }
}

/// What a test's node is started with: guest, and the shipped users for all prefixes that tests draw. A node that is
/// given definitions makes neither `/` nor guest by itself.
pub(super) fn of_node() -> anyhow::Result<String> {
    let mut shipped: Value = serde_json::from_str(SHIPPED).context("the shipped definitions")?;
    let mut users = vec![user("guest", "guest", &["administrator"])];
    users.extend(Role::ALL.map(|role| user(role.user(), &role.password(), &[])));
    let mut permissions = vec![json!({
        "user": "guest", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"
    })];
    let entries = shipped["permissions"]
        .as_array_mut()
        .context("permissions")?;
    for entry in entries {
        for right in ["configure", "write", "read"] {
            let pattern = entry[right].as_str().context("a pattern")?;
            entry[right] = pattern.replace(r"^pombo\.", r"^t[0-9]+\.").into();
        }
        entry["vhost"] = "/".into();
        permissions.push(entry.clone());
    }
    Ok(json!({
        "vhosts": [{ "name": "/" }],
        "users": users,
        "permissions": permissions,
    })
    .to_string())
}

fn user(name: &str, password: &str, tags: &[&str]) -> Value {
    let salt: [u8; 4] = fastrand::u32(..).to_be_bytes();
    let hash = Sha256::digest([&salt[..], password.as_bytes()].concat());
    json!({
        "name": name,
        "password_hash": BASE64.encode([&salt[..], &hash[..]].concat()),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": tags,
    })
}

/// Declares what processes share, as somebody who may do everything.
pub(super) async fn declare(url: &str, prefix: &str) -> anyhow::Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    for one in Topology::new(prefix).shared() {
        match one {
            Durable::Exchange {
                name,
                kind,
                alternate,
            } => {
                let kind = match kind {
                    Kind::Direct => ExchangeKind::Direct,
                    Kind::Fanout => ExchangeKind::Fanout,
                };
                let options = ExchangeDeclareOptions {
                    durable: true,
                    ..ExchangeDeclareOptions::default()
                };
                let alternate = alternate.map(|to| ("alternate-exchange", Argument::Text(to)));
                let arguments = table(alternate);
                channel
                    .exchange_declare(name.into(), kind, options, arguments)
                    .await?;
            }
            Durable::Queue { name, arguments } => {
                let options = QueueDeclareOptions {
                    durable: true,
                    ..QueueDeclareOptions::default()
                };
                channel
                    .queue_declare(name.into(), options, table(arguments))
                    .await?;
            }
            Durable::Binding {
                queue,
                exchange,
                key,
            } => {
                let options = QueueBindOptions::default();
                let none = FieldTable::default();
                channel
                    .queue_bind(queue.into(), exchange.into(), key.into(), options, none)
                    .await?;
            }
        }
    }
    connection.close(200, "OK".into()).await?;
    Ok(())
}

fn table(arguments: impl IntoIterator<Item = (&'static str, Argument)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in arguments {
        let value = match value {
            Argument::Text(value) => AMQPValue::LongString(value.into()),
            Argument::Number(value) => AMQPValue::LongInt(value),
            Argument::Flag(value) => AMQPValue::Boolean(value),
        };
        table.insert(key.into(), value);
    }
    table
}
