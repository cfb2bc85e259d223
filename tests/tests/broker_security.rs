//! TLS to RabbitMQ, logging in by certificate, and what the users of the shipped definitions may and may not do.

use std::{collections::BTreeSet, path::Path, time::Duration};

use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
        QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::FieldTable,
};
use pombo_proto::{
    link::{Audience, Event, Link},
    service::config::{Broker as Config, Source},
    topology::{Argument, Durable, Kind, Topology},
};
use pombo_tests::{
    Broker, Installation, Sink,
    broker::{Role, SHIPPED_DEFINITIONS},
    client,
    installation::Agent,
    mail::Mail,
    ports,
    scratch::Scratch,
    tls::Authority,
};
use serde_json::{Map, Value};
use tokio::sync::mpsc;

/// Generous: other things compile on the same cores.
const LIMIT: Duration = Duration::from_secs(60);

/// A node that speaks TLS and believes its own authority.
struct Secured {
    broker: Broker,
    port: u16,
    authority: Authority,
    dir: Scratch,
}

impl Secured {
    async fn start() -> Self {
        let dir = Scratch::new("broker-tls").unwrap();
        let authority = Authority::new(dir.path()).unwrap();
        let (certificate, key) = authority
            .certify("broker", &["localhost", "127.0.0.1"])
            .unwrap();
        let port = ports::free_port();
        let config = format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
             ssl_options.keyfile = {}\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = false\n\
             auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = EXTERNAL\nssl_cert_login_from = common_name\n",
            authority.file().display(),
            certificate.display(),
            key.display()
        );
        let broker = Broker::start_with_plugin(&config, "rabbitmq_auth_mechanism_ssl")
            .await
            .unwrap();
        broker.provide("t1").await.unwrap();
        Self {
            broker,
            port,
            authority,
            dir,
        }
    }

    fn ca(&self) -> String {
        format!("ca_file = {:?}\n", self.authority.file())
    }

    /// `[broker]` for this role with its password, and these lines of `[broker.tls]`.
    fn by_password(&self, role: Role, host: &str, tls: &str) -> String {
        let file = self.dir.path().join(role.user());
        std::fs::write(&file, role.password()).unwrap();
        format!(
            "[broker]\naddresses = [\"amqps://{host}:{}\"]\nprefix = \"t1\"\nuser = \"{role}\"\npassword = {{ file = {file:?} }}\n[broker.tls]\n{tls}",
            self.port
        )
    }

    fn by_certificate(&self, name: &str) -> String {
        let (certificate, key) = self.authority.certify(name, &[]).unwrap();
        format!(
            "[broker]\naddresses = [\"amqps://localhost:{}\"]\nprefix = \"t1\"\nauth = \"external\"\n[broker.tls]\n{}certificate = {certificate:?}\nkey = {key:?}\n",
            self.port,
            self.ca()
        )
    }
}

fn config(text: &str) -> Config {
    #[derive(serde::Deserialize)]
    struct File {
        broker: Config,
    }
    let file: File = Source::new("test.toml", text).parse().unwrap();
    file.broker
}

/// The first thing that a link with this configuration tells: up, or why not.
async fn first_word(text: &str, audience: Audience) -> Result<Link, String> {
    let (tell, mut events) = mpsc::unbounded_channel();
    let options = config(text).options(audience, "test").unwrap();
    let link = Link::start(options, move |event| {
        let _ = tell.send(event);
    });
    let first = async {
        loop {
            match events.recv().await.expect("the link lives") {
                Event::Up(_) => return Ok(()),
                Event::Down(reason) => return Err(reason),
                _ => {}
            }
        }
    };
    let word = tokio::time::timeout(LIMIT, first)
        .await
        .expect("neither up nor down");
    match word {
        Ok(()) => Ok(link),
        Err(reason) => {
            link.close().await;
            Err(reason)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_is_verified_and_verifies() {
    pombo_proto::service::install_tls();
    let secured = Secured::start().await;
    let ca = secured.ca();
    for (host, tls) in [
        ("localhost", ca.clone()),
        ("127.0.0.1", ca.clone()),
        ("127.0.0.1", format!("{ca}server_name = \"localhost\"\n")),
    ] {
        let text = secured.by_password(Role::Spooler, host, &tls);
        let link = first_word(&text, Audience::Spoolers).await.unwrap();
        link.close().await;
    }
    // Somebody else's authority, no authority, another name.
    let others = Scratch::new("others").unwrap();
    let other = Authority::new(others.path()).unwrap();
    for tls in [
        format!("ca_file = {:?}\n", other.file()),
        String::new(),
        format!("{ca}server_name = \"mq.example.org\"\n"),
    ] {
        let text = secured.by_password(Role::Spooler, "localhost", &tls);
        let reason = first_word(&text, Audience::Spoolers)
            .await
            .err()
            .expect(&tls);
        let said = reason.to_lowercase();
        assert!(
            said.contains("certificate") || said.contains("issuer"),
            "{reason}"
        );
        assert!(!reason.contains(&Role::Spooler.password()));
    }

    // By certificate: as the user of its common name, and as nobody else.
    let text = secured.by_certificate(Role::Agent.user());
    let link = first_word(&text, Audience::Agents).await.unwrap();
    let connections = ["list_connections", "user", "auth_mechanism", "ssl"];
    let connections = secured.broker.rabbitmqctl(&connections).await.unwrap();
    let ours: Vec<_> = connections
        .lines()
        .filter(|line| line.contains("EXTERNAL"))
        .collect();
    assert_eq!(ours, ["pombo-agent\tEXTERNAL\ttrue"; 2], "{connections}");
    link.close().await;
    let text = secured.by_certificate("nobody-here");
    let reason = first_word(&text, Audience::Agents).await.err().unwrap();
    assert!(reason.contains("refuses"), "{reason}");

    // Several addresses: the first that can be reached and is who it says it is.
    let text = secured.by_password(Role::Agent, "localhost", &ca);
    let dead = format!("amqps://localhost:{}", ports::free_port());
    let plain = format!("amqps://localhost:{}", secured.broker.port());
    let text = text.replace(
        "addresses = [",
        &format!("addresses = [\"{dead}\", \"{plain}\", "),
    );
    let (tell, mut events) = mpsc::unbounded_channel();
    let options = config(&text).options(Audience::Agents, "test").unwrap();
    let link = Link::start(options, move |event| {
        let _ = tell.send(event);
    });
    let mut downs = 0;
    while let Ok(Some(event)) = tokio::time::timeout(LIMIT, events.recv()).await {
        match event {
            Event::Up(_) => break,
            Event::Down(_) => downs += 1,
            _ => {}
        }
    }
    assert_eq!(downs, 2, "the dead one, and the one that speaks no TLS");
    assert!(link.is_up());
    link.close().await;
}

/// One thing that a user tries on a channel of its own.
#[derive(Clone, Copy, Debug)]
enum Try {
    Publish(&'static str, &'static str),
    Consume(&'static str),
    DeclareQueue(&'static str),
    DeclareExchange(&'static str),
    Delete(&'static str),
    Bind(&'static str, &'static str),
}

async fn attempt(connection: &Connection, what: Try) -> lapin::Result<()> {
    let channel = connection.create_channel().await?;
    let none = FieldTable::default;
    match what {
        Try::Publish(exchange, key) => {
            channel
                .confirm_select(ConfirmSelectOptions::default())
                .await?;
            let options = BasicPublishOptions::default();
            let publish = channel.basic_publish(
                exchange.into(),
                key.into(),
                options,
                b"x",
                BasicProperties::default(),
            );
            publish.await?.await.map(drop)
        }
        Try::Consume(queue) => channel
            .basic_consume(
                queue.into(),
                "".into(),
                BasicConsumeOptions::default(),
                none(),
            )
            .await
            .map(drop),
        Try::DeclareQueue(queue) => {
            let options = QueueDeclareOptions {
                exclusive: true,
                ..QueueDeclareOptions::default()
            };
            channel
                .queue_declare(queue.into(), options, none())
                .await
                .map(drop)
        }
        Try::DeclareExchange(exchange) => {
            let options = ExchangeDeclareOptions::default();
            channel
                .exchange_declare(
                    exchange.into(),
                    lapin::ExchangeKind::Fanout,
                    options,
                    none(),
                )
                .await
        }
        Try::Delete(queue) => channel
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await
            .map(drop),
        Try::Bind(queue, exchange) => {
            channel
                .queue_bind(
                    queue.into(),
                    exchange.into(),
                    "".into(),
                    QueueBindOptions::default(),
                    none(),
                )
                .await
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_user_may_do_its_work_and_nothing_else() {
    use Try::*;
    let broker = Broker::shared().await;
    let prefix = broker.fresh_prefix();
    broker.provide(&prefix).await.unwrap();
    let named = |text: &'static str| -> &'static str {
        Box::leak(text.replace("P.", &format!("{prefix}.")).into_boxed_str())
    };
    let all = [
        // What somebody may, and who that is.
        (
            Publish("P.spool", "normal"),
            &[Role::Spooler, Role::Agent][..],
        ),
        (Publish("P.session", ""), &Role::ALL),
        (Publish("P.dead", ""), &Role::ALL),
        (Publish("P.agents", ""), &[Role::Spooler]),
        (Publish("P.spoolers", ""), &[Role::Agent, Role::CommandLine]),
        (Consume("P.spool.normal"), &[Role::Spooler]),
        (Consume("P.spool.unrouted"), &[Role::Spooler]),
        (DeclareQueue("P.inbox.x"), &Role::ALL),
        (DeclareQueue("P.poll.x"), &[Role::Agent]),
        // What nobody may.
        (Publish("", "P.spool.normal"), &[]),
        (Publish("P.unrouted", ""), &[]),
        (Publish("amq.fanout", ""), &[]),
        (Consume("P.dead"), &[]),
        (DeclareQueue("P.spool.normal"), &[]),
        (DeclareQueue("P.other"), &[]),
        (DeclareQueue("other"), &[]),
        (DeclareExchange("P.inbox"), &[]),
        (DeclareExchange("P.spool"), &[]),
        (Delete("P.spool.normal"), &[]),
        (Delete("P.dead"), &[]),
        (Bind("P.spool.bulk", "P.session"), &[]),
    ];
    for role in Role::ALL {
        let address = broker.address();
        let url = address.replace("//", &format!("//{role}:{}@", role.password()));
        let connection = Connection::connect(&url, ConnectionProperties::default())
            .await
            .unwrap();
        for (what, who) in all {
            let what = match what {
                Publish(exchange, key) => Publish(named(exchange), named(key)),
                Consume(queue) => Consume(named(queue)),
                DeclareQueue(queue) => DeclareQueue(named(queue)),
                DeclareExchange(exchange) => DeclareExchange(named(exchange)),
                Delete(queue) => Delete(named(queue)),
                Bind(queue, exchange) => Bind(named(queue), named(exchange)),
            };
            let result = attempt(&connection, what).await;
            match &result {
                Ok(()) => assert!(who.contains(&role), "{role} may {what:?}"),
                Err(error) => {
                    assert!(!who.contains(&role), "{role} may not {what:?}: {error}");
                    let said = error.to_string();
                    assert!(
                        said.contains("ACCESS_REFUSED") || said.contains("ACCESSREFUSED"),
                        "{role} {what:?}: {said}"
                    );
                }
            }
        }
        connection.close(200, "OK".into()).await.unwrap();
    }
}

#[test]
fn the_shipped_definitions_are_the_topology_and_hold_no_password() {
    let shipped: Value = serde_json::from_str(SHIPPED_DEFINITIONS).unwrap();
    let mut wanted = BTreeSet::new();
    for one in Topology::default().shared() {
        wanted.insert(match one {
            Durable::Exchange {
                name,
                kind,
                alternate,
            } => {
                let kind = match kind {
                    Kind::Direct => "direct",
                    Kind::Fanout => "fanout",
                };
                let arguments = alternate.map(|to| format!("alternate-exchange={to}"));
                format!("exchange {name} {kind} {}", arguments.unwrap_or_default())
            }
            Durable::Queue { name, arguments } => {
                let arguments = arguments.into_iter().map(|(key, value)| match value {
                    Argument::Text(value) => format!("{key}={value}"),
                    Argument::Number(value) => format!("{key}={value}"),
                    Argument::Flag(value) => format!("{key}={value}"),
                });
                format!("queue {name} {}", sorted(arguments))
            }
            Durable::Binding {
                queue,
                exchange,
                key,
            } => format!("binding {exchange} {key} {queue}"),
        });
    }
    let entries = |kind: &str| shipped[kind].as_array().unwrap().clone();
    let arguments = |entry: &Value| {
        let table = entry["arguments"].as_object().unwrap().clone();
        sorted(table.into_iter().map(|(key, value)| match value {
            Value::String(text) => format!("{key}={text}"),
            other => format!("{key}={other}"),
        }))
    };
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
    let mut found = BTreeSet::new();
    for entry in entries("exchanges") {
        assert_eq!(entry["durable"], true);
        found.insert(format!(
            "exchange {} {} {}",
            text(&entry, "name"),
            text(&entry, "type"),
            arguments(&entry)
        ));
    }
    for entry in entries("queues") {
        assert_eq!(entry["durable"], true);
        found.insert(format!(
            "queue {} {}",
            text(&entry, "name"),
            arguments(&entry)
        ));
    }
    for entry in entries("bindings") {
        found.insert(format!(
            "binding {} {} {}",
            text(&entry, "source"),
            text(&entry, "routing_key"),
            text(&entry, "destination")
        ));
    }
    assert_eq!(found, wanted);
    let users: Vec<_> = entries("users")
        .iter()
        .map(|user| text(user, "name"))
        .collect();
    assert_eq!(users, Role::ALL.map(Role::user));
    for user in entries("users") {
        // Nobody can log in by password until somebody sets one.
        assert_eq!(user["password_hash"], "");
        assert_eq!(user["tags"], Value::Array(Vec::new()));
    }
}

fn sorted(arguments: impl Iterator<Item = String>) -> String {
    let mut all: Vec<_> = arguments.collect();
    all.sort();
    all.join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_works_with_the_definitions_as_they_are_shipped() -> anyhow::Result<()> {
    let broker = Broker::start().await?;
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rabbitmq.definitions.json");
    broker
        .rabbitmqctl(&["import_definitions", &shipped.to_string_lossy()])
        .await?;
    for role in Role::ALL {
        // Until now nobody can log in with it.
        broker
            .rabbitmqctl(&["change_password", role.user(), &role.password()])
            .await?;
    }
    let world = Sink::start().await?;
    let address = broker.address().replace("%2f", "pombo");
    let mut pombo = Installation::builder()
        .with_least_rights(&[address], "pombo")
        .agent(Agent::smtp_listener("door").relay_for_everyone())
        .agent(Agent::smtp("out").smarthost(world.address()))
        .agent(Agent::drop_folder("polled").polled())
        .start()
        .await?;
    pombo.has_sessions(3, LIMIT).await;
    let mail = Mail::new().bytes();
    client::send(pombo.door(), "ann@example.org", &["bob@example.net"], &mail).await?;
    world.mail_for("bob@example.net", LIMIT).await;
    // Through the command line, and through a folder that is polled by turns.
    let arguments = ["submit", "-f", "ann@example.org", "carl@example.net"];
    pombo.pombo_with(&arguments, &mail).await.succeeds();
    world.mail_for("carl@example.net", LIMIT).await;
    let letter = b"From: ann@example.org\r\nTo: dora@example.net\r\n\r\nx\r\n";
    let folder = pombo.drop_folder("polled");
    std::fs::write(folder.join("aside"), letter)?;
    std::fs::rename(folder.join("aside"), folder.join("letter.eml"))?;
    world.mail_for("dora@example.net", LIMIT).await;
    // Whoever may not declare says so instead of going on without.
    let missing = first_word(
        &format!(
            "[broker]\naddresses = [\"{}\"]\nprefix = \"t99\"\nuser = \"pombo-agent\"\npassword = {{ file = {:?} }}\n",
            broker.address(),
            pombo.directory().join("pombo-agent.password")
        ),
        Audience::Agents,
    )
    .await;
    let reason = missing.err().expect("there is no topology of this prefix");
    assert!(
        reason.contains("t99.dead") && reason.contains("definitions"),
        "{reason}"
    );
    // What somebody deletes is named, and comes back with the definitions: without their users, who have passwords by now.
    let queue = "pombo.spool.normal";
    broker
        .rabbitmqctl(&["delete_queue", "-p", "pombo", queue])
        .await?;
    let said = format!("{queue} does not exist, and this user may not declare it");
    pombo.spooler(0).wait_for_log(&said, LIMIT).await;
    let mut again: Map<String, Value> = serde_json::from_str(SHIPPED_DEFINITIONS)?;
    again.remove("users");
    let again = serde_json::to_string(&again)?;
    let file = pombo.directory().join("again.json");
    std::fs::write(&file, again)?;
    broker
        .rabbitmqctl(&["import_definitions", &file.to_string_lossy()])
        .await?;
    pombo.has_sessions(3, LIMIT).await;
    let mail = Mail::new().bytes();
    client::send(
        pombo.door(),
        "ann@example.org",
        &["emil@example.net"],
        &mail,
    )
    .await?;
    world.mail_for("emil@example.net", LIMIT).await;
    pombo.stops_cleanly(LIMIT).await;
    Ok(())
}
