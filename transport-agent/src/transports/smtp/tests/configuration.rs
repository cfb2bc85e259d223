//! What may be configured, and what is refused.

use super::*;

fn config(text: &str) -> Config {
    toml::from_str(text).unwrap()
}

#[test]
fn everything_has_a_default_and_durations_are_words() {
    let defaults = config("");
    assert_eq!(defaults.default_port(), 25);
    assert_eq!(config("[tls]\nmode = \"implicit\"").default_port(), 465);
    assert_eq!(defaults.timeouts.data_end, Duration::from_secs(600));
    let changed = config(
        "[timeouts]\ndata_end = \"1m 30s\"\n[dns]\nnameservers = [\"127.0.0.1:5353\", \"::1\", \"[::1]:54\"]",
    );
    assert_eq!(changed.timeouts.data_end, Duration::from_secs(90));
    assert_eq!(changed.timeouts.mail, Duration::from_secs(300));
    let servers: Vec<u16> = changed
        .nameservers()
        .unwrap()
        .iter()
        .map(|at| at.port())
        .collect();
    assert_eq!(servers, [5353, 53, 54]);
}

#[test]
fn unknown_keys_and_values_are_refused() {
    for text in [
        "rout = \"mx\"",
        "route = \"smarthost\"",
        "route = { smarthost = \"a\", port = 1 }",
        "[tls]\nmode = \"sometimes\"",
        "[tls]\nmod = \"off\"",
        "[timeouts]\nmail = 5",
        "[timeouts]\nmail = \"soon\"",
        "[auth]\nusername = \"x\"",
        "bare_newlines = \"drop\"",
    ] {
        assert!(toml::from_str::<Config>(text).is_err(), "{text}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_its_key() {
    let auth = "[auth]\nusername = \"u\"\npassword_file = \"/p\"\n";
    for (text, key) in [
        ("capacity = 0".to_owned(), "capacity"),
        ("capacity = 10001".to_owned(), "capacity"),
        (
            "recipients_per_transaction = 0".to_owned(),
            "recipients_per_transaction",
        ),
        ("[connections]\ntotal = 0".to_owned(), "connections.total"),
        (
            "[connections]\nuses_max = 0".to_owned(),
            "connections.uses_max",
        ),
        ("helo = \"a b\"".to_owned(), "helo"),
        (
            "[dns]\nnameservers = [\"dns.test\"]".to_owned(),
            "dns.nameservers",
        ),
        ("route = { smarthost = \"\" }".to_owned(), "route.smarthost"),
        (
            "route = { smarthost = \"a:b\" }".to_owned(),
            "route.smarthost",
        ),
        (
            "route = { smarthost = \"a:0\" }".to_owned(),
            "route.smarthost",
        ),
        (
            "[domains]\n\"b.test\" = \"a b\"".to_owned(),
            "domains.\"b.test\"",
        ),
        (
            "[domains]\n\"*b.test\" = \"a\"".to_owned(),
            "domains.\"*b.test\"",
        ),
        (auth.to_owned(), "auth"),
        (format!("route = {{ smarthost = \"a\" }}\n{auth}"), "auth"),
    ] {
        let error = SmtpTransport::new(config(&text))
            .err()
            .map(|error| error.key);
        assert_eq!(error.as_deref(), Some(key), "{text}");
    }
    let fine = format!("route = {{ smarthost = \"a\" }}\n{auth}allow_plaintext_auth = true");
    assert!(SmtpTransport::new(config(&fine)).is_ok());
    let fine = format!(
        "route = {{ smarthost = \"[::1]:587, b.test\" }}\n{auth}[tls]\nmode = \"required\""
    );
    assert!(SmtpTransport::new(config(&fine)).is_ok());
}

#[tokio::test]
async fn logon_says_what_is_missing_and_what_it_takes() {
    use pombo_proto::verbs::LogonError;
    let logon = async |text: &str| {
        let transport = SmtpTransport::new(config(text))
            .unwrap()
            .with_lookup(Arc::new(Names::default()));
        let reply = transport.logon(Arc::new(Told::default())).await;
        (transport, reply)
    };
    for missing in [
        "route = { smarthost = \"a\" }\n[auth]\nusername = \"u\"\npassword_file = \"/nowhere/p\"\nallow_plaintext_auth = true",
        "[tls]\nmode = \"required\"\nca_file = \"/nowhere/ca.pem\"",
    ] {
        assert!(
            matches!(logon(missing).await.1, Err(LogonError::Unconfigured(_))),
            "{missing}"
        );
    }
    let (transport, reply) = logon("capacity = 7\naddress_types = [\"SMTP:*@b.test\"]").await;
    let reply = reply.unwrap();
    assert_eq!(
        (reply.outbound, reply.inbound, reply.poll, reply.capacity),
        (true, false, false, 7)
    );
    assert_eq!(transport.address_types().types.unwrap(), ["SMTP:*@b.test"]);
}

#[tokio::test]
async fn nothing_is_sent_before_logon() {
    let transport = SmtpTransport::new(config("")).unwrap();
    let submission = Arc::new(Submission::new(Handle(Arc::new(Message::to_bob()))));
    assert_eq!(
        transport.submit_message(submission).await,
        SubmitResult::Busy
    );
}
