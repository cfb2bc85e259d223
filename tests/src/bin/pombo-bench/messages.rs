//! Messages as doors publish them: encoded, each with an id of its own.

use bytes::Bytes;
use pombo_proto::{
    frame::encode_message,
    ids::DoorSequence,
    message::{Body, Content, Envelope, MessageClass, Priority, Recipient, ReportReturn, Source},
    time::UnixMillis,
    topology::Topology,
};
use pombo_tests::mail::Mail;

use crate::amqp::Publish;

/// Makes one after the other.
pub struct Messages {
    door: DoorSequence,
    body: Bytes,
    exchange: String,
    /// Taken in turn.
    priorities: Vec<Priority>,
    /// Local parts are `u0` to `u(boxes - 1)`, in turn.
    boxes: u64,
    made: u64,
}

impl Messages {
    /// For the installation with this prefix: content of this size.
    pub fn new(prefix: &str, size: usize) -> Self {
        Self {
            door: DoorSequence::default(),
            body: Mail::new().size(size).bytes().into(),
            exchange: Topology::new(prefix).spool_exchange(),
            priorities: vec![Priority::Normal],
            boxes: 1,
            made: 0,
        }
    }

    /// With these priorities, in turn.
    pub fn priorities(mut self, priorities: &[Priority]) -> Self {
        self.priorities = priorities.to_vec();
        self
    }

    /// For so many mailboxes, in turn.
    pub fn boxes(mut self, count: u64) -> Self {
        self.boxes = count;
        self
    }

    /// The next one's envelope.
    pub fn envelope(&mut self, domain: &str) -> Envelope {
        let turn = self.made;
        self.made += 1;
        let now = UnixMillis::now();
        let at = turn as usize % self.priorities.len();
        Envelope {
            id: self.door.issue(now),
            class: MessageClass::Note,
            sender: "ann@source.example".to_owned(),
            recipients: vec![Recipient::smtp(format!("u{}@{domain}", turn % self.boxes))],
            priority: self.priorities[at],
            submitted_at: now,
            deferred_until: None,
            expires_at: None,
            report_return: ReportReturn::Headers,
            envelope_id: None,
            content: Content::default(),
            source: Source {
                door: "bench".to_owned(),
                ..Source::default()
            },
            body: Body::Inline {
                size: self.body.len() as u64,
            },
            properties: Vec::new(),
        }
    }

    /// The content that all have.
    pub fn body(&self) -> &Bytes {
        &self.body
    }
}

impl Iterator for Messages {
    type Item = Publish;

    fn next(&mut self) -> Option<Publish> {
        let envelope = self.envelope("sink.example");
        let (id, key) = (envelope.id.to_string(), envelope.priority.name().to_owned());
        let message = encode_message(envelope, &self.body);
        Some(Publish {
            exchange: self.exchange.clone(),
            key,
            id,
            body: message.encoded,
        })
    }
}
