//! The harness itself: what the other tests stand on must stand.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use pombo_tests::{
    Broker, Sink,
    broker::Cluster,
    client::{Session, send},
    eventually,
    load::{Python, SmtpSource},
    mail::{self, Mail},
    ports::free_address,
    scratch::Scratch,
    service::Service,
    sink::{Extension, Gate, Stage, at},
    tls::Certificate,
};

const SOON: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(120);

#[tokio::test]
async fn sink_takes_what_the_client_sends_and_remembers_it() -> anyhow::Result<()> {
    let sink = Sink::start().await?;
    let mail = Mail::with_dots();

    let mut client = Session::connect(sink.address()).await;
    let hello = client.says("EHLO laptop.example", 250).await;
    assert!(hello.offers("PIPELINING") && hello.offers("8BITMIME") && !hello.offers("STARTTLS"));
    client
        .says("MAIL FROM:<alice@example.org> SIZE=400", 250)
        .await;
    client.says("RCPT TO:<bob@example.net>", 250).await;
    client.says("DATA", 354).await;
    client.message(&mail.bytes(), 250).await;
    client.quits().await;

    let taken = sink.mail_for("Bob@example.net", SOON).await;
    assert_eq!(
        (taken.from.as_str(), taken.to()),
        ("alice@example.org", vec!["bob@example.net"])
    );
    assert_eq!(
        (taken.helo.as_str(), taken.extended, taken.tls),
        ("laptop.example", true, false)
    );
    assert_eq!(taken.from_params, ["SIZE=400"]);
    assert_eq!(taken.data, mail.bytes());
    assert_eq!(
        sink.look(|seen| seen.copies(mail.id(), "bob@example.net")),
        1
    );
    sink.wait_for(SOON, "the end of the connection", |seen| {
        seen.open_connections() == 0
    })
    .await;
    assert!(
        sink.transcript()
            .contains("1< RCPT TO:<bob@example.net>\n1> 250 2.1.5 recipient ok\n"),
        "{}",
        sink.transcript()
    );
    assert!(sink.look(|seen| seen.complaints().is_empty()));
    Ok(())
}

#[tokio::test]
async fn peculiar_messages_pass_byte_for_byte() -> anyhow::Result<()> {
    let sink = Sink::start().await?;
    for (what, message) in Mail::peculiar() {
        let to = format!("{}@example.net", message.id());
        send(
            sink.address(),
            "alice@example.org",
            &[&to],
            &message.bytes(),
        )
        .await?;
        let taken = sink.mail_for(&to, SOON).await;
        assert_eq!(
            mail::is_intact(&taken.data, &message.bytes()),
            Ok(()),
            "{what}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn rules_refuse_greylist_and_drop_as_told() -> anyhow::Result<()> {
    let sink = Sink::start().await?;
    sink.rule(
        at(Stage::Rcpt)
            .recipient("gone@example.net")
            .reply("550 5.1.1 no such user\nreally not"),
    );
    sink.rule(
        at(Stage::Rcpt)
            .domain("grey.example")
            .first_of_each(2)
            .reply("451 4.7.1 come back"),
    );
    sink.rule(
        at(Stage::Dot)
            .domain("doubt.example")
            .first(1)
            .accept_and_drop(),
    );
    sink.rule(
        at(Stage::Dot)
            .domain("full.example")
            .reply("452 4.3.1 disk full"),
    );
    sink.rule(at(Stage::Content).domain("cut.example").drop_connection());

    let mut client = Session::hello(sink.address()).await;
    client.says("MAIL FROM:<a@example.org>", 250).await;
    let refusal = client.says("RCPT TO:<gone@example.net>", 550).await;
    assert_eq!(refusal.text(), "5.1.1 no such user\nreally not");
    client.says("RCPT TO:<b@grey.example>", 451).await;
    client.says("RCPT TO:<b@grey.example>", 451).await;
    client.says("RCPT TO:<b@grey.example>", 250).await;
    client.says("DATA", 354).await;
    client.message(&Mail::new().bytes(), 250).await;
    client.envelope("a@example.org", &["b@full.example"]).await;
    client.message(&Mail::new().bytes(), 452).await;

    for to in ["b@doubt.example", "b@cut.example"] {
        send(sink.address(), "a@example.org", &[to], &Mail::new().bytes())
            .await
            .expect_err("the connection is dropped");
    }
    sink.look(|seen| {
        assert_eq!(seen.accepted(), 2, "{}", seen.summary());
        assert_eq!(seen.mail_for("b@doubt.example").count(), 1);
        assert_eq!(seen.attempts("b@grey.example").len(), 3);
        assert_eq!(
            (seen.refused(Stage::Rcpt), seen.refused(Stage::Dot)),
            (3, 1)
        );
    });
    Ok(())
}

#[tokio::test]
async fn gate_holds_a_conversation_until_it_is_opened() -> anyhow::Result<()> {
    let sink = Sink::start().await?;
    let gate = Gate::closed();
    sink.rule(at(Stage::Dot).hold(&gate));
    let address = sink.address();
    let sending = tokio::spawn(async move {
        send(
            address,
            "a@example.org",
            &["b@example.net"],
            &Mail::new().bytes(),
        )
        .await
    });
    gate.reached_by(1, SOON).await;
    assert_eq!(sink.look(|seen| seen.accepted()), 0);
    gate.open();
    assert_eq!(sending.await??.code, 250);
    assert_eq!(sink.look(|seen| seen.accepted()), 1);
    Ok(())
}

#[tokio::test]
async fn transfer_cut_before_its_dot_is_unfinished_and_smuggling_ends_nothing() -> anyhow::Result<()>
{
    let sink = Sink::start().await?;
    let mut client = Session::hello(sink.address()).await;
    client.envelope("a@example.org", &["b@example.net"]).await;
    client
        .raw(b"Subject: x\r\n\r\nhello\n.\r\nMAIL FROM:<evil@example.org>\r\n")
        .await;
    drop(client);
    sink.wait_for(SOON, "an unfinished transfer", |seen| {
        seen.unfinished().len() == 1
    })
    .await;
    sink.look(|seen| {
        assert_eq!(seen.unfinished()[0].bytes, 53, "{:?}", seen.unfinished());
        assert_eq!(seen.accepted(), 0);
    });
    Ok(())
}

#[tokio::test]
async fn starttls_and_login_are_required_in_that_order() -> anyhow::Result<()> {
    let certificate = Certificate::for_localhost()?;
    let sink = Sink::builder()
        .starttls(certificate.clone())
        .tls_required()
        .login_required("alice", "secret")
        .start()
        .await?;

    let mut client = Session::hello(sink.address()).await;
    client.says("MAIL FROM:<alice@example.org>", 530).await;
    client.starttls(&certificate).await;
    let hello = client.says("EHLO laptop.example", 250).await;
    assert!(hello.offers("AUTH") && !hello.offers("STARTTLS"));
    client.says("MAIL FROM:<alice@example.org>", 530).await;
    client.login("alice", "wrong", 535).await;
    client.login_step_by_step("alice", "secret", 235).await;
    client
        .envelope("alice@example.org", &["bob@example.net"])
        .await;
    client
        .message(&Mail::new().size(200_000).bytes(), 250)
        .await;
    client.quits().await;

    let taken = sink.mail_for("bob@example.net", SOON).await;
    assert!(taken.tls);
    assert_eq!(taken.user.as_deref(), Some("alice"));
    assert_eq!(taken.data.len(), 200_000);
    Ok(())
}

#[tokio::test]
async fn old_servers_refuse_what_they_do_not_know() -> anyhow::Result<()> {
    let sink = Sink::builder().helo_only().start().await?;
    let mut client = Session::connect(sink.address()).await;
    client.says("EHLO laptop.example", 500).await;
    client.says("HELO laptop.example", 250).await;
    client.says("MAIL FROM:<a@example.org> SIZE=3", 555).await;
    client.says("MAIL FROM:<a@example.org>", 250).await;

    let sink = Sink::builder()
        .without(Extension::EightBitMime)
        .without(Extension::Pipelining)
        .size_max(1_000)
        .start()
        .await?;
    let mut client = Session::hello(sink.address()).await;
    client
        .says("MAIL FROM:<a@example.org> BODY=8BITMIME", 555)
        .await;
    client.says("MAIL FROM:<ä@example.org>", 553).await;
    client
        .says("MAIL FROM:<a@example.org> SIZE=1001", 552)
        .await;
    client.envelope("a@example.org", &["b@example.net"]).await;
    client.message(&Mail::new().size(1_001).bytes(), 552).await;
    client.envelope("a@example.org", &["b@example.net"]).await;
    client.message(&Mail::new().size(1_000).bytes(), 250).await;
    Ok(())
}

#[tokio::test]
async fn lmtp_answers_once_per_recipient() -> anyhow::Result<()> {
    let sink = Sink::builder().lmtp().start().await?;
    sink.rule(
        at(Stage::Dot)
            .recipient("full@example.net")
            .reply("552 5.2.2 over quota"),
    );
    let mut client = Session::connect(sink.address()).await;
    client.says("EHLO laptop.example", 500).await;
    client.says("LHLO laptop.example", 250).await;
    let lines = [
        "MAIL FROM:<a@example.org>",
        "RCPT TO:<full@example.net>",
        "RCPT TO:<bob@example.net>",
        "DATA",
    ];
    let codes: Vec<u16> = client
        .pipelines(&lines)
        .await
        .iter()
        .map(|reply| reply.code)
        .collect();
    assert_eq!(codes, [250, 250, 250, 354]);
    client.message(&Mail::new().bytes(), 552).await;
    assert_eq!(client.reply().await.code, 250);
    assert_eq!(
        sink.mail_for("bob@example.net", SOON).await.to(),
        ["bob@example.net"]
    );
    Ok(())
}

#[tokio::test]
async fn sink_that_went_away_refuses_connections_until_it_is_back() -> anyhow::Result<()> {
    let sink = Sink::start().await?;
    let client = Session::hello(sink.address()).await;
    sink.go_away();
    client.is_closed().await;
    eventually(SOON, "connection refused", || async {
        Session::try_connect(sink.address()).await.is_err()
    })
    .await;
    sink.listen_again().await?;
    Session::hello(sink.address()).await.quits().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn smtp_source_sends_500_messages_byte_for_byte() -> anyhow::Result<()> {
    let sink = Sink::start().await?;
    let sent = SmtpSource::messages(500).send(sink.address()).await?;
    sink.wait_for(LONG, "500 messages", |seen| seen.accepted() == 500)
        .await;
    let arrival = sent.arrived_in(&sink);
    arrival.is_complete_and_intact();
    assert_eq!(arrival.intact, 500);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn python_sends_mixed_sizes_byte_for_byte_in_spite_of_refusals() -> anyhow::Result<()> {
    let sink = Sink::start().await?;
    sink.rule(at(Stage::Dot).first(5).reply("451 4.3.0 not now"));
    sink.rule(at(Stage::Mail).first(3).drop_connection());
    let sent = Python::messages(100)
        .to(&["bob@example.net", "carol{n}@example.net"])
        .send(sink.address())
        .await?;
    let arrival = sent.arrived_in(&sink);
    arrival.is_complete_and_intact();
    assert_eq!((sent.accepted(), arrival.intact), (100, 200));
    let tries: u32 = sent.messages.iter().map(|message| message.tries).sum();
    assert_eq!(tries, 108);
    Ok(())
}

/// Serves `/readyz` and `/metrics` as our services do, and drains on SIGTERM: exit code 7, to be told from any other end.
const STAND_IN: &str = r#"#!/usr/bin/env python3
import http.server, os, signal, sys
port = int(open(sys.argv[2]).read())
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path in ("/readyz", "/metrics") else 404)
        self.end_headers()
        self.wfile.write(b"lives 9\n")
    def log_message(self, *ignored): pass
def drain(*ignored):
    print("drained", flush=True)
    os._exit(7)
signal.signal(signal.SIGTERM, drain)
print("up as", os.environ["ROLE"], flush=True)
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"#;

#[tokio::test]
async fn service_gets_ready_is_stopped_killed_drained_and_started_again() -> anyhow::Result<()> {
    let scratch = Scratch::new("service")?;
    let http = free_address();
    let program = scratch.write("stand-in", STAND_IN)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let config = scratch.write("config", http.port().to_string())?;
    let environment = [("ROLE".to_owned(), "stand-in".to_owned())];
    let mut service = Service::start_with(
        "stand-in",
        &program,
        &config,
        http,
        &scratch.join("log"),
        &environment,
    )?;

    service.ready(SOON).await?;
    assert_eq!(service.get("/elsewhere").await?.status, 404);
    assert_eq!(service.metric("lives").await?, 9.0);
    assert_eq!(service.wait_for_log("up as", SOON).await, "up as stand-in");
    service.sigstop();
    tokio::time::timeout(Duration::from_millis(300), service.get("/readyz"))
        .await
        .expect_err("it is stopped");
    service.sigcont();
    service.ready(SOON).await?;
    assert_eq!(service.terminate_and_wait(SOON).await?, 7);
    assert!(service.log().ends_with("drained\n"));

    service.start_again()?;
    service.ready(SOON).await?;
    service.kill9();
    assert!(!service.is_running());
    assert_eq!(service.wait(SOON).await?, -1);
    Ok(())
}

#[tokio::test]
async fn service_that_ends_early_is_not_waited_for() -> anyhow::Result<()> {
    let scratch = Scratch::new("service")?;
    let config = scratch.write("config", "")?;
    let mut service = Service::start(
        "false",
        Path::new("/bin/false"),
        &config,
        free_address(),
        &scratch.join("log"),
    )?;
    let start = Instant::now();
    let failure = service.ready(LONG).await.expect_err("it ended");
    assert!(
        failure.to_string().contains("instead of getting ready"),
        "{failure}"
    );
    assert!(start.elapsed() < SOON);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_broker_keeps_its_users_apart() -> anyhow::Result<()> {
    let broker = Broker::shared().await;
    assert_ne!(broker.fresh_prefix(), broker.fresh_prefix());
    let vhost = broker.fresh_vhost().await?;
    let inside =
        lapin::Connection::connect(&vhost.url, lapin::ConnectionProperties::default()).await?;
    let channel = inside.create_channel().await?;
    channel
        .queue_declare("only-here".into(), Default::default(), Default::default())
        .await?;
    assert!(!broker.queue_exists("only-here").await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_survives_stop_kill_and_alarm_with_its_queues() -> anyhow::Result<()> {
    let broker = Broker::start().await?;
    let connection = broker.connect().await?;
    let channel = connection.create_channel().await?;
    let mut quorum = lapin::types::FieldTable::default();
    quorum.insert(
        "x-queue-type".into(),
        lapin::types::AMQPValue::LongString("quorum".into()),
    );
    channel
        .queue_declare(
            "q".into(),
            lapin::options::QueueDeclareOptions::durable(),
            quorum,
        )
        .await?;
    let persistent = || lapin::BasicProperties::default().with_delivery_mode(2);
    broker.publish("", "q", persistent(), b"one").await?;
    broker
        .publish("", "nowhere", persistent(), b"lost")
        .await
        .expect_err("no queue of that name");
    assert_eq!(broker.queue_messages("q").await?, 1);

    broker.close_all_connections().await?;
    eventually(SOON, "the client notices", || async {
        !connection.status().connected()
    })
    .await;

    broker.stop().await?;
    broker.connect().await.expect_err("it is stopped");
    broker.start_again().await?;
    eventually(SOON, "the queue's leader is back", || async {
        match broker.queue_messages("q").await {
            Ok(1) => Ok(()),
            other => Err(other),
        }
    })
    .await;

    broker.raise_memory_alarm().await?;
    let blocked = tokio::time::timeout(
        Duration::from_secs(1),
        broker.publish("", "q", persistent(), b"two"),
    )
    .await;
    assert!(blocked.is_err(), "publishers are blocked");
    broker.clear_memory_alarm().await?;

    broker.kill9();
    broker.start_again().await?;
    eventually(SOON, "the queue's leader is back", || async {
        broker
            .queue_messages("q")
            .await
            .is_ok_and(|count| count >= 1)
    })
    .await;
    assert_eq!(
        broker.take("q").await?.map(|taken| taken.body),
        Some(b"one".to_vec())
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_of_three_is_one_broker() -> anyhow::Result<()> {
    let start = Instant::now();
    let cluster = Cluster::start(3).await?;
    println!("cluster ready after {:?}", start.elapsed());
    let running = cluster[2]
        .eval("length(rabbit_nodes:all_running()).")
        .await?;
    assert_eq!(running.trim(), "3");
    assert_eq!(cluster.urls().len(), 3);
    Ok(())
}
