//! Values that the tests of several modules need.

use pombo_proto::{
    ids::MessageId,
    message::{
        Body, Content, Envelope, MessageClass, Notify, Priority, Recipient, ReportReturn, Source,
    },
    outcome::{Diagnosis, EnhancedStatus, NdrReason},
    time::UnixMillis,
};

pub(crate) const SUBMITTED: UnixMillis = UnixMillis(1_790_000_000_000);

/// A message to so many recipients, who all want every report.
pub(crate) fn envelope(recipients: usize) -> Envelope {
    let recipient = |at: usize| Recipient {
        notify: Notify {
            success: true,
            ..Notify::default()
        },
        ..Recipient::smtp(format!("r{at}@example.org"))
    };
    Envelope {
        id: MessageId::derived("test", b"1"),
        class: MessageClass::Note,
        sender: "ann@example.com".to_owned(),
        recipients: (0..recipients).map(recipient).collect(),
        priority: Priority::Normal,
        submitted_at: SUBMITTED,
        deferred_until: None,
        expires_at: None,
        report_return: ReportReturn::Headers,
        envelope_id: None,
        content: Content::default(),
        source: Source::default(),
        body: Body::Inline { size: 0 },
        properties: Vec::new(),
    }
}

pub(crate) fn diagnosis() -> Diagnosis {
    Diagnosis::new(
        EnhancedStatus::new(4, 4, 1),
        NdrReason::TransferFailed,
        "no answer from host",
    )
}
