//! The smtp transports through the whole chain: a client, the listener, the spool, a spooler, the smtp transport, the outside world;
//! with encryption and a login on both sides, and by the MX records of a name server.

use std::{net::Ipv4Addr, os::unix::fs::PermissionsExt as _, time::Duration};

use pombo_tests::{
    Installation, Sink, client,
    installation::{Agent, quoted_path},
    mail::{self, Mail},
    names::{NameServer, Record},
    scratch::Scratch,
    sink::{Stage, at},
    tls::Certificate,
};

const SOON: Duration = Duration::from_secs(30);
const QUICK: &str =
    "[schedule]\nfirst = \"1s\"\nmax = \"2s\"\njitter = 0.0\n[destinations]\nrest = \"1s\"\n";

/// To `world` with STARTTLS and this password, trusting its certificate alone.
fn secure_smtp(dir: &Scratch, world: &Sink, password: &str) -> anyhow::Result<Agent> {
    let certificate = world.certificate().expect("the sink has one");
    let authority = dir.write("world.crt", &certificate.certificate_pem)?;
    let secret = dir.write("password", format!("{password}\n"))?;
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600))?;
    Ok(Agent::smtp("smtp")
        .smarthost(world.address())
        .line("tls.mode = \"required\"")
        .line(&format!("tls.ca_file = {}", quoted_path(&authority)))
        .line("auth.username = \"pombo\"")
        .line(&format!("auth.password_file = {}", quoted_path(&secret))))
}

#[tokio::test(flavor = "multi_thread")]
async fn starttls_in_and_starttls_with_auth_out_carry_a_message_unchanged() -> anyhow::Result<()> {
    let dir = Scratch::new("smtp")?;
    let world = Sink::builder()
        .starttls(Certificate::for_localhost()?)
        .tls_required()
        .login_required("pombo", "s3cret")
        .start()
        .await?;
    let ours = Certificate::for_localhost()?;
    let door = Agent::smtp_listener("door")
        .relay_for_everyone()
        .certificate(&dir.join("door"), &ours)?;
    let pombo = Installation::builder()
        .agent(door)
        .agent(secure_smtp(&dir, &world, "s3cret")?)
        .start()
        .await?;
    pombo.has_sessions(2, SOON).await;

    let sent = Mail::with_dots();
    let mut session = client::Session::hello(pombo.door()).await;
    let offered = session.says("EHLO laptop.example", 250).await;
    assert!(offered.offers("STARTTLS"), "{offered}");
    session.starttls(&ours).await;
    let offered = session.says("EHLO laptop.example", 250).await;
    assert!(!offered.offers("STARTTLS"), "not twice: {offered}");
    session
        .envelope("alice@home.example", &["bob@far.example"])
        .await;
    session.message(&sent.bytes(), 250).await;
    session.quits().await;

    let taken = world.mail_for("bob@far.example", SOON).await;
    assert!(taken.tls);
    assert_eq!(taken.user.as_deref(), Some("pombo"));
    assert_eq!(taken.from, "alice@home.example");
    assert_eq!(mail::is_intact(&taken.data, &sent.bytes()), Ok(()));
    let received = taken.header("Received").unwrap_or_default();
    assert!(received.contains("ESMTPS"), "RFC 3848: {received}");
    assert!(world.look(|seen| seen.complaints().is_empty()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_go_securely_does_not_go_at_all_and_waits() -> anyhow::Result<()> {
    let dir = Scratch::new("smtp")?;
    let world = Sink::builder()
        .starttls(Certificate::for_localhost()?)
        .login_required("pombo", "s3cret")
        .start()
        .await?;
    let pombo = Installation::builder()
        .spooler_lines(QUICK)
        .agent(secure_smtp(&dir, &world, "s3cret")?)
        .start()
        .await?;
    // Once it offers no encryption that works, then it does not know us, then all is well.
    world.rule(at(Stage::StartTls).first(1).reply("454 4.7.0 not now"));
    world.rule(
        at(Stage::Auth)
            .first(1)
            .reply("454 4.7.0 cannot tell who you are"),
    );
    let id = pombo.submit(&[], &["bob@far.example"], &Mail::new()).await;
    let trace = pombo.in_state(&id, "finished", SOON).await;
    assert_eq!(trace["recipients"][0]["state"], "delivered", "{trace}");
    assert!(
        trace["recipients"][0]["tries"].as_u64() >= Some(1),
        "deferred before: {trace}"
    );
    let taken = world.mail_for("bob@far.example", SOON).await;
    assert!(taken.tls && taken.user.as_deref() == Some("pombo"));
    // Neither mail nor password went in the clear.
    let transcript = world.transcript();
    let words = |word: &str| transcript.matches(word).count();
    assert_eq!(words("< MAIL FROM"), 1, "{transcript}");
    assert_eq!(words("< AUTH"), 2, "{transcript}");
    assert_eq!(words("< STARTTLS"), 3, "{transcript}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mx_records_of_a_name_server_say_where_mail_goes() -> anyhow::Result<()> {
    let world = Sink::start().await?;
    // The best host has nobody at the port; its equal is tried, then the next one.
    let names = NameServer::start(vec![
        Record::mx("far.example", 20, "second.far.example"),
        Record::mx("far.example", 10, "first.far.example"),
        Record::mx("none.example", 0, ""),
        Record::a("first.far.example", Ipv4Addr::new(127, 0, 0, 77)),
        Record::a("second.far.example", Ipv4Addr::LOCALHOST),
        Record::a("alone.example", Ipv4Addr::LOCALHOST),
    ])
    .await?;
    let smtp = Agent::smtp("smtp")
        .line(&format!("port = {}", world.port()))
        .line("addresses = \"ipv4-only\"")
        .line(&format!("dns.nameservers = [\"{}\"]", names.address()));
    let pombo = Installation::builder()
        .spooler_lines(QUICK)
        .agent(Agent::smtp_listener("door").relay_for_everyone())
        .agent(smtp)
        .agent(Agent::maildir("local", &["SMTP:*@home.example"]))
        .transport_order(&["door", "local", "smtp"])
        .start()
        .await?;
    pombo.has_sessions(3, SOON).await;
    let sent = Mail::new();
    let to = ["bob@far.example", "carol@alone.example"];
    client::send(pombo.door(), "alice@home.example", &to, &sent.bytes()).await?;
    for recipient in to {
        let taken = world.mail_for(recipient, SOON).await;
        assert_eq!(mail::is_intact(&taken.data, &sent.bytes()), Ok(()));
        assert_eq!(taken.to(), [recipient], "a transaction for each domain");
    }
    let asked = names.asked();
    for question in [
        "MX far.example",
        "A first.far.example",
        "A second.far.example",
        "MX alone.example",
        "A alone.example",
    ] {
        assert!(
            asked.iter().any(|it| it == question),
            "{question}: {asked:?}"
        );
    }

    // Null MX, and a domain that does not exist: reported, not tried.
    let to = ["dan@none.example", "erin@nowhere.example"];
    let id = pombo.submit(&[], &to, &Mail::new()).await;
    let trace = pombo.in_state(&id, "finished", SOON).await;
    let said: Vec<String> = (0..2)
        .map(|n| trace["recipients"][n]["text"].to_string())
        .collect();
    assert!(said[0].contains("5.1.10"), "RFC 7505: {trace}");
    assert!(said[1].contains("5.1.2"), "{trace}");
    Ok(())
}
