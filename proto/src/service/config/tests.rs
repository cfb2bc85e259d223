use std::{io::Write, time::Duration};

use secrecy::ExposeSecret;
use serde::Deserialize;

use super::*;
use crate::{blob::Place, link::Audience};

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
            "[blobs]\npaht = \"/x\"\n",
            ["agent.toml:2:1: ", "unknown field `paht`"],
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
fn an_error_is_one_line_whatever_a_key_holds() {
    for (text, start) in [
        ("[\"\\n\"]", r"agent.toml:1:2: \n: unknown field"),
        (
            "[log]\n\"a\\u001b[1m\" = 1\n",
            r"agent.toml:2:1: log.a\u{1b}[1m: unknown field",
        ),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(start), "{error:?}");
        assert!(!error.contains(char::is_control), "{error:?}");
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

fn place(lines: &str) -> Result<Place, (&'static str, String)> {
    let config: Config = parse(&format!("[blobs]\n{lines}\n")).unwrap();
    let place = config.blobs.unwrap().place();
    place.map_err(|bad| (bad.key, bad.message))
}

#[test]
fn blobs_lie_in_a_directory_or_in_a_bucket() {
    assert!(
        matches!(place("path = '/x'"), Ok(Place::Directory(path)) if path == std::path::Path::new("/x"))
    );
    let Ok(Place::S3(s3)) = place("url = 's3://mail/a/b/'\nendpoint = 'http://127.0.0.1:9000'")
    else {
        panic!();
    };
    assert_eq!((s3.bucket.as_str(), s3.prefix.as_str()), ("mail", "a/b"));
    assert!(s3.allow_http && s3.credentials.is_none());
    let Ok(Place::S3(s3)) = place("url = 's3://mail'\nregion = 'eu-central-1'") else {
        panic!();
    };
    assert!(!s3.allow_http && s3.prefix.is_empty() && s3.endpoint.is_none());
    let young = "path = '/x'\norphans_after = '2s'\norphans_may_be_young = true";
    assert!(matches!(place(young), Ok(Place::Directory(_))));
    let open = "url = 's3://mail'\nendpoint = 'http://s3.example.org'\nallow_http = true";
    assert!(matches!(place(open), Ok(Place::S3(s3)) if s3.allow_http));
}

#[test]
fn what_is_wrong_with_blobs_is_named() {
    for (lines, key) in [
        ("", "blobs.path"),
        ("path = ''", "blobs.path"),
        ("path = '/x'\nurl = 's3://mail'", "blobs.url"),
        ("path = '/x'\nregion = 'here'", "blobs.region"),
        ("url = 'mail'", "blobs.url"),
        ("url = 's3:///prefix'", "blobs.url"),
        ("url = 's3://ma il'", "blobs.url"),
        (
            "url = 's3://mail'\nendpoint = 'http://s3.example.org'",
            "blobs.endpoint",
        ),
        (
            "url = 's3://mail'\nendpoint = 'http://127.0.0.1.example.org'",
            "blobs.endpoint",
        ),
        (
            "url = 's3://mail'\nendpoint = 'ftp://127.0.0.1'",
            "blobs.endpoint",
        ),
        (
            "url = 's3://mail'\naccess_key_id = { env = 'PATH' }",
            "blobs.secret_access_key",
        ),
        ("path = '/x'\ninline_max = '2MiB'", "blobs.inline_max"),
        ("path = '/x'\norphans_after = '30d'", "blobs.orphans_after"),
        (
            "path = '/x'\norphans_after = '10ms'\norphans_may_be_young = true",
            "blobs.orphans_after",
        ),
    ] {
        assert_eq!(place(lines).unwrap_err().0, key, "{lines}");
    }
}

#[test]
fn an_address_with_a_password_shows_nowhere() {
    let broker = Broker {
        addresses: vec!["amqp://ann:s3cret@mq.example.org/mail".to_owned()],
        ..Broker::default()
    };
    let shown = format!("{broker:?}");
    assert!(
        shown.contains("mq.example.org") && !shown.contains("s3cret"),
        "{shown}"
    );
    for bad in [
        "amqp:/ann:s3cret@mq",
        "http://ann:s3cret@mq",
        "amqp://:s3cret@",
    ] {
        let broker = Broker {
            addresses: vec![bad.to_owned()],
            ..Broker::default()
        };
        let error = broker.options(Audience::Agents, "").unwrap_err();
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}

#[test]
fn a_certificate_instead_of_a_password_needs_tls_and_files() {
    let error = |lines: &str| {
        let config = parse(&format!("[broker]\n{lines}")).unwrap();
        config
            .broker
            .options(Audience::Agents, "")
            .unwrap_err()
            .to_string()
    };
    let amqps = "addresses = [\"amqps://mq.example.org\"]\n";
    let identity = "[broker.tls]\ncertificate = \"/nowhere/c\"\nkey = \"/nowhere/k\"\n";
    for (lines, said) in [
        (
            format!("{amqps}auth = \"external\"\n"),
            "needs a certificate",
        ),
        (
            format!("{amqps}auth = \"external\"\n{identity}"),
            "/nowhere/",
        ),
        (
            format!("{amqps}auth = \"external\"\nuser = \"x\"\n{identity}"),
            "/nowhere/",
        ),
        (
            format!("{amqps}[broker.tls]\nkey = \"/nowhere/k\"\n"),
            "belong together",
        ),
        (format!("auth = \"external\"\n{identity}"), "amqps://"),
        (
            format!("{amqps}[broker.tls]\nca_file = \"/nowhere/ca\"\n"),
            "/nowhere/ca",
        ),
    ] {
        let error = error(&lines);
        assert!(error.contains(said), "{lines}: {error}");
    }
}
