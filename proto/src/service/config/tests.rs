use std::{io::Write, time::Duration};

use secrecy::ExposeSecret;
use serde::Deserialize;

use super::*;
use crate::link::Audience;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    broker: Broker,
    #[serde(default)]
    log: Log,
    blobs: Option<Blobs>,
    #[serde(default, deserialize_with = "duration_option::deserialize")]
    pause: Option<Duration>,
    #[serde(default)]
    smtp: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Smtp {
    port: u16,
}

fn parse(text: &str) -> Result<Config, String> {
    Source::new("agent.toml", text)
        .parse()
        .map_err(|error| error.to_string())
}

#[test]
fn everything_has_a_default_that_works_on_one_host() {
    let config = parse("").unwrap();
    let options = config.broker.options(Audience::Agents, "smtp").unwrap();
    let address = options.addresses[0].expose_secret();
    assert_eq!(address, "amqp://guest:guest@127.0.0.1:5672/%2f");
    assert_eq!(
        (options.heartbeat, config.log.filter.as_str()),
        (10, "info")
    );
}

#[test]
fn values_are_read_as_people_write_them() {
    let text = r#"
        pause = "1m 30s"
        [blobs]
        path = "/var/lib/pombo/blobs"
        inline_max = "64KiB"
        [log]
        format = "json"
    "#;
    let config = parse(text).unwrap();
    assert_eq!(config.pause, Some(Duration::from_secs(90)));
    assert_eq!(config.blobs.unwrap().inline_max, 65_536);
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn an_error_names_file_line_column_and_key() {
    for (text, parts) in [
        (
            "\n[broker]\nprefiks = \"x\"\n",
            ["agent.toml:3:1: ", "unknown field `prefiks`"],
        ),
        (
            "[broker]\nheartbeat = \"soon\"\n",
            [
                "agent.toml:2:13: broker.heartbeat: ",
                "\"soon\" is no duration",
            ],
        ),
        (
            "[broker]\naddresses = [\"a\", 7]\n",
            ["agent.toml:2:19: broker.addresses[1]: ", "invalid type"],
        ),
        (
            "[blobs]\npath = \"/x\"\ninline_max = \"32kb\"\n",
            ["agent.toml:3:14: blobs.inline_max: ", "\"32kb\" is no size"],
        ),
        ("[broker\n", ["agent.toml:1:8: ", ""]),
        (
            "[blobs]\n",
            ["agent.toml:1:1: blobs: ", "missing field `path`"],
        ),
        ("extra = 1\n", ["agent.toml:1:1: ", "unknown field `extra`"]),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(parts[0]), "{error}");
        assert!(error.contains(parts[1]), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn a_section_is_parsed_later_with_its_lines() {
    let source = Source::new("agent.toml", "pause = \"1s\"\n[smtp]\nport = 99999\n");
    assert!(source.parse::<Config>().unwrap().smtp.is_some());
    let error = source.section::<Smtp>("smtp").unwrap_err().to_string();
    assert!(error.starts_with("agent.toml:3:8: smtp.port: "), "{error}");
    assert!(source.section::<Smtp>("imap").unwrap().is_none());
    let source = Source::new("agent.toml", "[smtp]\nport = 25\n");
    assert_eq!(source.section::<Smtp>("smtp").unwrap().unwrap().port, 25);
}

#[test]
fn a_value_that_makes_no_sense_is_found_by_its_key() {
    let source = Source::new("agent.toml", "[broker]\naddresses = []\n");
    let config: Config = source.parse().unwrap();
    let bad = config.broker.options(Audience::Agents, "x").unwrap_err();
    let error = source.bad(bad.key, &bad).to_string();
    assert_eq!(error, "agent.toml:2:13: broker.addresses: there is none");
}

#[test]
fn a_secret_comes_from_a_file_and_shows_nowhere() {
    let mut file = tempfile();
    writeln!(file.1, "s3cr/t").unwrap();
    let text = format!(
        "[broker]\naddresses = [\"amqps://mq.example.org/mail\"]\nuser = \"p:b\"\npassword = {{ file = {:?} }}\n",
        file.0
    );
    let config = parse(&text).unwrap();
    assert!(!format!("{config:?}").contains("s3cr"), "{config:?}");
    let options = config.broker.options(Audience::Spoolers, "x").unwrap();
    let address = options.addresses[0].expose_secret();
    assert_eq!(address, "amqps://p%3Ab:s3cr%2Ft@mq.example.org/mail");
    std::fs::remove_file(&file.0).unwrap();
    let error = parse(&text).unwrap_err();
    assert!(
        error.starts_with("agent.toml:4:12: broker.password"),
        "{error}"
    );
}

fn tempfile() -> (std::path::PathBuf, std::fs::File) {
    let name = format!("pombo-secret-{}", uuid::Uuid::new_v4());
    let path = std::env::temp_dir().join(name);
    let file = std::fs::File::create_new(&path).unwrap();
    (path, file)
}

#[test]
fn credentials_are_asked_for_off_this_host_and_never_doubled() {
    let options = |address: &str, user: Option<&str>, password: Option<&str>| {
        let broker = Broker {
            addresses: vec![address.to_owned()],
            user: user.map(str::to_owned),
            password: password.map(|password| Secret::from(password.to_owned())),
            ..Broker::default()
        };
        let options = broker.options(Audience::Agents, "x");
        options
            .map(|options| options.addresses[0].expose_secret().to_owned())
            .map_err(|error| error.key)
    };
    let ok = |text: &str| Ok(text.to_owned());
    assert_eq!(
        options("amqp://[::1]:1", None, None),
        ok("amqp://guest:guest@[::1]:1/%2f")
    );
    assert_eq!(options("amqp://mq", None, None), Err("broker.user"));
    assert_eq!(
        options("amqp://a:b@mq/v", None, None),
        ok("amqp://a:b@mq/v")
    );
    assert_eq!(
        options("amqp://a@mq/v", None, Some("c")),
        ok("amqp://a:c@mq/v")
    );
    assert_eq!(
        options("amqp://a:b@mq", Some("a"), Some("c")),
        Err("broker.user")
    );
    assert_eq!(
        options("amqp://a:b@mq", None, Some("c")),
        Err("broker.password")
    );
    assert_eq!(
        options("amqp://mq", None, Some("c")),
        Err("broker.password")
    );
    assert_eq!(options("http://mq", None, None), Err("broker.addresses"));
    assert_eq!(options("amqp:///x", None, None), Err("broker.addresses"));
}
