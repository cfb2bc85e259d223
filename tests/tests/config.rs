//! What is wrong with a configuration stops the start, with file, line and key, and exit code 78; the samples are good.

use std::path::{Path, PathBuf};

use pombo_tests::{
    scratch::Scratch,
    service::{self, Output},
};

const SPOOLER: &str = r#"[broker]
addresses = ["amqp://127.0.0.1:1/%2f"]

[store]
path = "{dir}/store.sqlite"

[blobs]
path = "{dir}/blobs"

[[transport]]
name = "out"
"#;

const AGENT: &str = r#"[broker]
addresses = ["amqp://127.0.0.1:1/%2f"]

[transport]
name = "out"
kind = "smtp"

[blobs]
path = "{dir}/blobs"

[smtp]
capacity = 10
"#;

/// Which program, its good file, and one change to it: what is replaced, by what; what is said, and at which line.
struct Case {
    replace: &'static str,
    with: &'static str,
    said: &'static [&'static str],
}

const fn case(replace: &'static str, with: &'static str, said: &'static [&'static str]) -> Case {
    Case {
        replace,
        with,
        said,
    }
}

const SPOOLER_CASES: [Case; 19] = [
    // One store, and only what belongs to it.
    case(
        "path = \"{dir}/store.sqlite\"",
        "history = \"1day\"",
        &[":4:", "store", "path", "url"],
    ),
    case(
        "[store]",
        "[store]\nurl = \"postgres://pombo@db.example/pombo\"",
        &[":5:", "store.url", "path"],
    ),
    case(
        "[store]",
        "[store]\nschema = \"x\"",
        &[":5:", "store.schema"],
    ),
    case(
        "path = \"{dir}/store.sqlite\"",
        "url = \"postgres://pombo:open-sesame@db.example/pombo\"",
        &[":5:", "store.url", "password_file"],
    ),
    case(
        "path = \"{dir}/store.sqlite\"",
        "url = \"postgres://pombo@db.example/pombo?sslmode=disable\"",
        &[":5:", "store.url", "parameters"],
    ),
    case(
        "path = \"{dir}/store.sqlite\"",
        "url = \"postgres://pombo@db.example/pombo\"\npassword_file = \"{dir}/none\"",
        &[":6:", "store.password_file", "none"],
    ),
    case(
        "path = \"{dir}/store.sqlite\"",
        "url = \"postgres://pombo@db.example/pombo\"\nca_file = \"{dir}/none\"",
        &[":6:", "store.ca_file", "none"],
    ),
    case(
        "path = \"{dir}/store.sqlite\"",
        "url = \"postgres://pombo@db.example/pombo\"\nschema = \"Mine\"",
        &[":6:", "store.schema", "lower-case"],
    ),
    // Unknown keys and sections.
    case("[store]", "[store]\npaht = \"x\"", &[":5:", "paht"]),
    case("[store]", "[stores]\n[store]", &[":4:", "stores"]),
    case("[broker]", "[broker]\nPrefix = \"x\"", &[":2:", "Prefix"]),
    // Bad values.
    case(
        "[broker]",
        "[broker]\nheartbeat = \"soon\"",
        &[":2:", "broker.heartbeat"],
    ),
    case(
        "[broker]",
        "[broker]\nheartbeat = \"0s\"",
        &[":2:", "broker.heartbeat"],
    ),
    case(
        "amqp://",
        "http://",
        &[":2:", "broker.addresses", "amqp://"],
    ),
    case(
        "name = \"out\"",
        "name = \"\"",
        &[":11:", "transport", "name"],
    ),
    case(
        "name = \"out\"",
        "name = \"out\"\n[[transport]]\nname = \"out\"",
        &[":13:", "transport", "twice"],
    ),
    // Missing sections.
    case("[[transport]]\nname = \"out\"\n", "", &["transport"]),
    case("[store]\npath = \"{dir}/store.sqlite\"\n", "", &["store"]),
    // Not TOML at all.
    case("[blobs]", "[blobs", &[":7:"]),
];

const AGENT_CASES: [Case; 11] = [
    case("[smtp]", "[smtp]\ncapasity = 1", &[":12:", "capasity"]),
    case("[smtp]", "[smpt]\n[smtp]", &[":11:", "smpt"]),
    case("[broker]", "[broker]\nPrefix = \"x\"", &[":2:", "Prefix"]),
    case(
        "[broker]",
        "[broker]\nheartbeat = \"soon\"",
        &[":2:", "broker.heartbeat"],
    ),
    case(
        "amqp://",
        "http://",
        &[":2:", "broker.addresses", "amqp://"],
    ),
    case("capacity = 10", "capacity = 0", &["smtp", "capacity"]),
    case(
        "capacity = 10",
        "capacity = \"many\"",
        &[":12:", "smtp.capacity"],
    ),
    case(
        "kind = \"smtp\"",
        "kind = \"smtq\"",
        &[":6:", "transport.kind", "smtp-listener"],
    ),
    case(
        "name = \"out\"",
        "name = \"o u t\"",
        &[":5:", "transport.name"],
    ),
    case(
        "[blobs]\npath = \"{dir}/blobs\"\n",
        "",
        &["blobs", "missing"],
    ),
    case(
        "[transport]\nname = \"out\"\nkind = \"smtp\"\n",
        "",
        &["transport", "missing"],
    ),
];

async fn run(program: &str, args: &[&str]) -> anyhow::Result<Output> {
    service::run(&service::binary(program), args, b"").await
}

fn at(scratch: &Scratch, file: &str, text: &str) -> anyhow::Result<PathBuf> {
    scratch.write(
        file,
        text.replace("{dir}", &scratch.path().to_string_lossy()),
    )
}

/// By the service at its start, by its `--check`, and by `pombo config check`: each refuses it and says the same.
async fn refused_by_all(program: &str, file: &Path, said: &[&str]) -> anyhow::Result<()> {
    let name = file.to_string_lossy();
    let outputs = [
        run(program, &["--config", &name]).await?,
        run(program, &["--check", "--config", &name]).await?,
        run("pombo", &["config", "check", &name]).await?,
    ];
    for output in outputs {
        assert_eq!(output.code, 78, "{output:?}");
        assert!(output.stderr.contains(&*name), "names its file: {output:?}");
        for words in said {
            assert!(output.stderr.contains(words), "says {words:?}: {output:?}");
        }
    }
    Ok(())
}

async fn accepted_by_all(program: &str, file: &Path) -> anyhow::Result<()> {
    let name = file.to_string_lossy();
    run(program, &["--check", "--config", &name])
        .await?
        .succeeds();
    run("pombo", &["config", "check", &name]).await?.succeeds();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_file_stops_the_start_with_file_line_and_key() -> anyhow::Result<()> {
    for (program, good, cases) in [
        ("pombo-spooler", SPOOLER, &SPOOLER_CASES[..]),
        ("pombo-agent", AGENT, &AGENT_CASES[..]),
    ] {
        let scratch = Scratch::new("config")?;
        accepted_by_all(program, &at(&scratch, "good.toml", good)?).await?;
        for (number, case) in cases.iter().enumerate() {
            assert!(
                good.contains(case.replace),
                "{} of case {number}",
                case.replace
            );
            let text = good.replacen(case.replace, case.with, 1);
            let file = at(&scratch, &format!("bad-{number}.toml"), &text)?;
            refused_by_all(program, &file, case.said).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_not_there_stops_the_start() -> anyhow::Result<()> {
    for program in ["pombo-spooler", "pombo-agent"] {
        let output = run(program, &["--config", "/nonexistent/pombo.toml"]).await?;
        assert_eq!(output.code, 78, "{output:?}");
        assert!(
            output.stderr.contains("/nonexistent/pombo.toml"),
            "{output:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn secrets_are_not_shown_in_refusals() -> anyhow::Result<()> {
    let scratch = Scratch::new("config")?;
    for (program, good) in [("pombo-spooler", SPOOLER), ("pombo-agent", AGENT)] {
        let text = good
            .replace("amqp://127", "amqp://pombo:hunter2@127")
            .replace("[broker]", "[broker]\nuser = \"pombo\"");
        let file = at(&scratch, &format!("{program}.toml"), &text)?;
        let output = run(program, &["--check", "--config", &file.to_string_lossy()]).await?;
        assert_eq!(output.code, 78, "{output:?}");
        assert!(output.stderr.contains("broker.user"), "{output:?}");
        assert!(!output.stderr.contains("hunter2"), "{output:?}");
    }
    Ok(())
}

#[tokio::test]
async fn samples_are_good() -> anyhow::Result<()> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    accepted_by_all("pombo-spooler", &deploy.join("spooler.sample.toml")).await?;
    accepted_by_all("pombo-agent", &deploy.join("agent.sample.toml")).await?;
    Ok(())
}
