//! Rows to put into a store, and the short ways to say it.

use pombo_proto::{
    control::{QueueFilter, QueueState},
    frame::{encode_message, encoded_head},
    ids::{Fence, Incarnation, MessageId},
    message::{
        Body, Content, Envelope, Message, MessageClass, Priority, Recipient, ReportReturn, Source,
    },
    time::UnixMillis,
    verbs::Tenancy,
};
use pombo_spooler::store::{
    ClaimRequest, Claimed, Listing, Pruned, Row, RowData, Store, Tally, Write, Written,
};

pub const NOW: UnixMillis = UnixMillis(1_790_000_000_000);
pub const DAY: u64 = 86_400_000;

pub fn message(sender: &str, recipient: &str, body: &[u8]) -> Message {
    let envelope = Envelope {
        id: MessageId::derived("test", body),
        class: MessageClass::Note,
        sender: sender.to_owned(),
        recipients: vec![Recipient::smtp(recipient)],
        priority: Priority::Normal,
        submitted_at: NOW,
        deferred_until: None,
        expires_at: None,
        report_return: ReportReturn::Headers,
        envelope_id: None,
        content: Content::default(),
        source: Source::default(),
        body: Body::Inline {
            size: body.len() as u64,
        },
        properties: Vec::new(),
    };
    encode_message(envelope, body)
}

pub fn waiting(due: UnixMillis) -> RowData {
    RowData {
        state: QueueState::Waiting,
        due: Some(due),
        wake: None,
        reason: "later".to_owned(),
        transport: Some("smtp".to_owned()),
        destination: Some("example.org".to_owned()),
        priority: Priority::Normal,
        doubt: false,
        unsure_since: UnixMillis(0),
        in_doubt: 0,
        deaths: 0,
        message: message("ann@example.org", "bob@example.net", b"hello").encoded,
        progress: b"progress".to_vec(),
        tally: Tally::default(),
    }
}

pub fn finished() -> RowData {
    RowData {
        state: QueueState::Finished,
        due: None,
        reason: String::new(),
        message: encoded_head(&message("ann@example.org", "bob@example.net", b"hello")),
        tally: Tally {
            recipients: [1, 0, 0, 0].into(),
            is_report: false,
        },
        ..waiting(NOW)
    }
}

pub fn to(transport: &str, destination: &str, due: UnixMillis) -> RowData {
    RowData {
        transport: Some(transport.to_owned()),
        destination: Some(destination.to_owned()),
        ..waiting(due)
    }
}

pub fn tenancy(id: MessageId, fence: u32) -> Tenancy {
    Tenancy {
        id,
        fence: Fence(fence),
    }
}

pub fn record(id: MessageId, fence: u32, holder: Incarnation, row: RowData) -> Write {
    Write::Record {
        tenancy: tenancy(id, fence),
        holder,
        row,
        reports: Vec::new(),
    }
}

pub fn everything(holder: Incarnation, now: UnixMillis) -> ClaimRequest {
    ClaimRequest {
        holder,
        now,
        limit: 1_000,
        bytes: usize::MAX,
        excluded: Vec::new(),
        asks: String::new(),
    }
}

/// All steps of it.
pub fn prune(store: &mut impl Store, before: u32) -> Pruned {
    let mut pruned = Pruned::default();
    loop {
        pruned = pruned.and(store.prune(before).unwrap());
        if !pruned.more {
            return pruned;
        }
    }
}

/// A list, slice by slice.
pub fn all_of(store: &mut impl Store, filter: QueueFilter) -> Vec<Row> {
    let mut listing = Listing::new(filter);
    let mut rows = Vec::new();
    while !listing.is_over() {
        rows.extend(listing.next(store, 1_000).unwrap());
    }
    rows
}

/// The short ways to say it.
pub trait Ask {
    fn one(&mut self, write: Write) -> Written;
    fn moved(&mut self, id: MessageId, row: RowData);
    fn finish_at(&mut self, now: UnixMillis, id: MessageId, fence: u32, holder: Incarnation);
    fn row(&mut self, id: MessageId) -> Row;
    fn claim_all(&mut self, holder: Incarnation) -> Vec<Claimed>;
}

impl<S: Store> Ask for S {
    fn one(&mut self, write: Write) -> Written {
        self.commit(NOW, &[write]).unwrap()[0]
    }

    fn moved(&mut self, id: MessageId, row: RowData) {
        assert_eq!(self.one(Write::Move { id, row }), Written::Won);
    }

    fn finish_at(&mut self, now: UnixMillis, id: MessageId, fence: u32, holder: Incarnation) {
        let write = record(id, fence, holder, finished());
        assert_eq!(self.commit(now, &[write]).unwrap(), [Written::Won]);
    }

    fn row(&mut self, id: MessageId) -> Row {
        self.get(id).unwrap().unwrap()
    }

    fn claim_all(&mut self, holder: Incarnation) -> Vec<Claimed> {
        self.claim(&everything(holder, NOW)).unwrap()
    }
}
