//! What the tests begin and end with.

use pombo_proto::{
    ids::DoorSequence,
    message::{Body, Content, Envelope, MessageClass, Priority, Recipient, ReportReturn, Source},
    time::UnixMillis,
};
use pombo_tests::{Installation, Sink, client, mail::Mail};

use crate::relay::{self, LONG};

pub fn envelope(recipients: Vec<Recipient>, body: Body) -> Envelope {
    Envelope {
        id: DoorSequence::default().issue(UnixMillis::now()),
        class: MessageClass::Note,
        sender: "alice@example.org".into(),
        recipients,
        priority: Priority::Normal,
        submitted_at: UnixMillis::now(),
        deferred_until: None,
        expires_at: None,
        report_return: ReportReturn::Headers,
        envelope_id: None,
        content: Content::default(),
        source: Source::default(),
        body,
        properties: Vec::new(),
    }
}

pub async fn still_works(pombo: &mut Installation, world: &Sink) -> anyhow::Result<()> {
    for service in pombo.spoolers() {
        assert!(service.is_running(), "{} died", service.name());
    }
    for service in pombo.agents() {
        assert!(service.is_running(), "{} died", service.name());
    }
    pombo.ready(LONG).await?;
    relay::takes_mail(pombo).await;
    let mail = Mail::new();
    client::send(
        pombo.door(),
        "alice@example.org",
        &["after@example.net"],
        &mail.bytes(),
    )
    .await?;
    world
        .wait_for(LONG, "the mail after all this", |seen| {
            seen.copies(mail.id(), "after@example.net") == 1
        })
        .await;
    Ok(())
}
