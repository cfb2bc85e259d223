//! The published variants of SMTP smuggling: ends of data that some servers see and others do not.

use super::{
    super::config::{BareLineEnd, Config},
    Rig, config,
};
use crate::provider::Received;

/// False ends of data. What stands behind them would be a message of the attacker's if one were believed.
const VARIANTS: [&str; 12] = [
    "\n.\n",
    "\n.\r\n",
    "\r\n.\n",
    "\r.\r",
    "\r\n.\r",
    "\n.\r",
    "\r.\r\n",
    "\r.\n",
    "\r\n.\r\r\n",
    "\n\n.\n\n",
    "\r\r.\r\r",
    "\n.\n\r\n",
];
const SMUGGLED: &str =
    "MAIL FROM:<evil@example.net>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\nevil\r\n";

#[tokio::test]
async fn a_message_with_a_false_end_is_refused_as_one() {
    let mut rig = Rig::start(config()).await;
    let mut client = rig.greeted().await;
    for variant in VARIANTS {
        client.envelope().await;
        // All in one packet, with a command behind the true end.
        client
            .send(format!("a{variant}{SMUGGLED}.\r\nNOOP\r\n"))
            .await;
        client.expect("550 5.5.2 Bare").await;
        client.expect("250 2.0.0 Ok\r\n").await;
        assert_eq!(rig.finished().await, Received::Nothing);
    }
    client.say("QUIT", "221").await;
    assert_eq!(rig.saved().len(), 0);
    rig.at_rest().await;
}

#[tokio::test]
async fn a_false_end_in_a_packet_of_its_own_is_refused_too() {
    let rig = Rig::start(config()).await;
    let mut client = rig.greeted().await;
    for variant in VARIANTS {
        client.envelope().await;
        client.send("a").await;
        for byte in variant.bytes() {
            client.send([byte]).await;
        }
        client.send(SMUGGLED).await;
        client.send(".\r\n").await;
        client.expect("550 5.5.2 Bare").await;
    }
    client.say("NOOP", "250").await;
    assert_eq!(rig.saved().len(), 0);
}

#[tokio::test]
async fn kept_as_it_is_a_false_end_is_content() {
    let kept = Config {
        bare_lf: BareLineEnd::Keep,
        bare_cr: BareLineEnd::Keep,
        ..config()
    };
    for variant in VARIANTS {
        let rig = Rig::start(kept.clone()).await;
        let mut client = rig.greeted().await;
        client.envelope().await;
        client
            .send(format!("a{variant}{SMUGGLED}.\r\nNOOP\r\n"))
            .await;
        client.expect("250 2.0.0 Ok: queued as").await;
        client.expect("250 2.0.0 Ok\r\n").await;
        // Only a dot behind CRLF was stuffing.
        let wanted = format!("a{variant}{SMUGGLED}").replace("\r\n.", "\r\n");
        assert_eq!(String::from_utf8(rig.only_content()).unwrap(), wanted);
    }
}

#[tokio::test]
async fn a_dot_behind_a_nul_ends_nothing() {
    let rig = Rig::start(config()).await;
    let mut client = rig.greeted().await;
    client.envelope().await;
    client.send(format!("a\r\n\0.\r\n{SMUGGLED}.\r\n")).await;
    client.expect("250 2.0.0 Ok: queued as").await;
    assert_eq!(
        String::from_utf8(rig.only_content()).unwrap(),
        format!("a\r\n\0.\r\n{SMUGGLED}")
    );
}

#[tokio::test]
async fn a_command_with_a_bare_line_feed_ends_the_session() {
    for line in ["NOOP\n", "RCPT TO:<a@b>\nDATA\r\n", "\n"] {
        let rig = Rig::start(config()).await;
        let mut client = rig.greeted().await;
        client.send(line).await;
        client.expect("521 5.5.2").await;
        client.closed().await;
    }
}
