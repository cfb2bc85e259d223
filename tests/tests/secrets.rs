//! No password, no key and nothing of a message is in a log or on a command line, however much is logged.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use pombo_tests::{
    Installation, Sink,
    broker::Role,
    client::Session,
    installation::{Agent, quoted_path},
    mail::Mail,
    scratch::Scratch,
    service,
    sink::{Stage, at},
    tls::Certificate,
};

const LIMIT: Duration = Duration::from_secs(60);
const SUBJECT: &str = "MARKER-subject-5c1f";
const BODY: &str = "MARKER-body-9d2e";
const FIELD: &str = "MARKER-field-77aa";
const USER_PASSWORD: &str = "MARKER-users-password-31";
const RELAY_PASSWORD: &str = "MARKER-relays-password-42";

/// A users file with `ann`, as `pombo passwd` makes it.
async fn users(dir: &Path) -> anyhow::Result<(std::path::PathBuf, String)> {
    let input = format!("{USER_PASSWORD}\n");
    let arguments = ["passwd", "ann", "ann@example.org", "--iterations", "4096"];
    let made = service::run(&service::binary("pombo"), &arguments, input.as_bytes()).await?;
    let line = made.succeeds();
    assert!(line.starts_with("ann:SCRAM-SHA-256$4096:"), "{line}");
    assert!(!line.contains(USER_PASSWORD));
    let file = dir.join("users");
    fs::write(&file, &line)?;
    let key = line
        .rsplit([':', ' '])
        .nth(1)
        .unwrap_or_default()
        .to_owned();
    Ok((file, key))
}

/// Everything that must be nowhere.
fn secrets(key: &str) -> Vec<String> {
    let mut all = vec![SUBJECT, BODY, FIELD, USER_PASSWORD, RELAY_PASSWORD, key]
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>();
    all.extend(Role::ALL.map(Role::password));
    for login in [
        format!("\0ann\0{USER_PASSWORD}"),
        format!("\0relay\0{RELAY_PASSWORD}"),
    ] {
        all.push(BASE64.encode(login));
    }
    all.extend([USER_PASSWORD, RELAY_PASSWORD].map(|password| BASE64.encode(password)));
    all
}

fn command_lines() -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_contents_are_in_no_log_and_on_no_command_line() -> anyhow::Result<()> {
    let dir = Scratch::new("secrets")?;
    let (users, key) = users(dir.path()).await?;
    let certificate = Certificate::for_localhost()?;
    let relay_password = dir.write("relay.password", RELAY_PASSWORD)?;
    let authority = dir.write("ca.pem", &certificate.certificate_pem)?;
    let world = Sink::builder()
        .starttls(certificate.clone())
        .login_required("relay", RELAY_PASSWORD)
        .start()
        .await?;
    world.rule(
        at(Stage::Rcpt)
            .recipient("refused@example.net")
            .reply("550 5.1.1 nobody"),
    );
    world.rule(at(Stage::Data).first(1).reply("451 4.3.0 later"));
    let mut pombo = Installation::builder()
        .log_filter("trace")
        .spooler_lines("[schedule]\nfirst = \"1s\"\nmax = \"2s\"")
        .agent(
            Agent::smtp_listener("door")
                .certificate(dir.path(), &certificate)?
                .line(&format!("users_file = {}", quoted_path(&users)))
                .line("auth_failure_delay = \"1ms\""),
        )
        .agent(
            Agent::smtp("out")
                .smarthost(world.address())
                .line("tls.mode = \"required\"")
                .line(&format!("tls.ca_file = {}", quoted_path(&authority)))
                .line(&format!(
                    "auth = {{ username = \"relay\", password_file = {} }}",
                    quoted_path(&relay_password)
                )),
        )
        .agent(Agent::drop_folder("folder"))
        .start()
        .await?;
    pombo.has_sessions(3, LIMIT).await;

    let mail = || {
        Mail::new()
            .subject(SUBJECT)
            .header("X-Field", FIELD)
            .body(format!("{BODY}\r\n"))
            .bytes()
    };
    let mut session = Session::hello(pombo.door()).await;
    session.starttls(&certificate).await;
    session.says("EHLO laptop.example", 250).await;
    session
        .login("ann", &format!("{USER_PASSWORD}x"), 535)
        .await;
    session.login("ann", USER_PASSWORD, 235).await;
    session
        .envelope(
            "ann@example.org",
            &["bob@example.net", "refused@example.net"],
        )
        .await;
    session.message(&mail(), 250).await;
    session.quits().await;
    let letter = format!(
        "From: ann@example.org\r\nTo: carl@example.net\r\nSubject: {SUBJECT}\r\n\r\n{BODY}\r\n"
    );
    let folder = pombo.drop_folder("folder");
    fs::write(folder.join("aside"), letter)?;
    fs::rename(folder.join("aside"), folder.join("letter.eml"))?;
    let arguments = ["submit", "-f", "ann@example.org", "dora@example.net"];
    pombo.pombo_with(&arguments, &mail()).await.succeeds();
    let mut lines = command_lines();
    for recipient in ["bob@example.net", "carl@example.net", "dora@example.net"] {
        let taken = world.mail_for(recipient, LIMIT).await;
        assert!(String::from_utf8_lossy(&taken.data).contains(BODY));
        assert_eq!(taken.user.as_deref(), Some("relay"));
    }
    // The report about the one who was refused comes back to its sender, with the original's header.
    world.mail_for("ann@example.org", LIMIT).await;
    lines.extend(command_lines());
    assert!(
        lines
            .iter()
            .any(|line| line.contains("pombo-agent --config"))
    );

    let secrets = secrets(&key);
    for line in &lines {
        // Our own check for secrets is no finding.
        for secret in &secrets {
            assert!(!line.contains(secret.as_str()), "{secret} in {line}");
        }
    }
    let mut logs = 0;
    for service in pombo
        .spoolers()
        .iter()
        .map(|it| it.log())
        .collect::<Vec<_>>()
        .into_iter()
        .chain(pombo.agents().iter().map(|it| it.log()).collect::<Vec<_>>())
    {
        assert!(
            service.contains("TRACE") || service.contains("DEBUG"),
            "not much of a log"
        );
        for secret in &secrets {
            let found = service.lines().find(|line| line.contains(secret.as_str()));
            assert_eq!(found, None, "{secret}");
        }
        logs += 1;
    }
    assert_eq!(logs, 4);
    pombo.stops_cleanly(LIMIT).await;
    Ok(())
}

/// Python's own mail library logs in with PLAIN; a few lines of it with SCRAM-SHA-256.
const PYTHON: &str = r#"
import base64, hashlib, hmac, smtplib, ssl, sys, os
port, authority, mechanism = int(sys.argv[1]), sys.argv[2], sys.argv[3]
user, password = "ann", sys.stdin.readline().strip()
context = ssl.create_default_context(cafile=authority)
with smtplib.SMTP("localhost", port) as smtp:
    smtp.starttls(context=context)
    smtp.ehlo()
    if mechanism == "PLAIN":
        smtp.user, smtp.password = user, password
        smtp.auth("PLAIN", smtp.auth_plain)
    else:
        b64 = lambda data: base64.b64encode(data).decode()
        nonce = b64(os.urandom(18))
        bare = f"n={user},r={nonce}"
        code, said = smtp.docmd("AUTH", "SCRAM-SHA-256 " + b64(("n,," + bare).encode()))
        assert code == 334, said
        challenge = base64.b64decode(said).decode()
        parts = dict(part.split("=", 1) for part in challenge.split(","))
        assert parts["r"].startswith(nonce)
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(parts["s"]), int(parts["i"]))
        mac = lambda key, text: hmac.new(key, text.encode(), "sha256").digest()
        client = mac(salted, "Client Key")
        final = "c=biws,r=" + parts["r"]
        signed = f"{bare},{challenge},{final}"
        signature = mac(hashlib.sha256(client).digest(), signed)
        proof = bytes(a ^ b for a, b in zip(client, signature))
        code, said = smtp.docmd(b64((final + ",p=" + b64(proof)).encode()))
        assert code == 334, said
        assert base64.b64decode(said).decode() == "v=" + b64(mac(mac(salted, "Server Key"), signed))
        code, said = smtp.docmd("")
        assert code == 235, said
    smtp.sendmail("ann@example.org", [f"{mechanism.lower()}@example.net"], "Subject: x\r\n\r\nx\r\n")
print("done")
"#;

#[tokio::test(flavor = "multi_thread")]
async fn strangers_log_in_by_plain_and_by_scram() -> anyhow::Result<()> {
    let dir = Scratch::new("strangers")?;
    let (users, _) = users(dir.path()).await?;
    let certificate = Certificate::for_localhost()?;
    let authority = dir.write("ca.pem", &certificate.certificate_pem)?;
    let script = dir.write("login.py", PYTHON)?;
    let world = Sink::start().await?;
    let pombo = Installation::builder()
        .agent(
            Agent::smtp_listener("door")
                .certificate(dir.path(), &certificate)?
                .line(&format!("users_file = {}", quoted_path(&users)))
                .line("auth_required = true")
                .line("auth_senders = \"own\""),
        )
        .agent(Agent::smtp("out").smarthost(world.address()))
        .start()
        .await?;
    pombo.has_sessions(2, LIMIT).await;
    for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
        let mut python = Command::new("python3")
            .arg(&script)
            .arg(pombo.door().port().to_string())
            .arg(&authority)
            .arg(mechanism)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = python.stdin.take().expect("a pipe");
        stdin.write_all(format!("{USER_PASSWORD}\n").as_bytes())?;
        drop(stdin);
        let output = tokio::task::spawn_blocking(move || python.wait_with_output()).await??;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{mechanism}: {said}");
        let recipient = format!("{}@example.net", mechanism.to_lowercase());
        world.mail_for(&recipient, LIMIT).await;
    }
    Ok(())
}
