//! A private file, several handles on it (as several processes have), and rows to put into it.

use std::path::PathBuf;

use pombo_proto::{
    control::QueueState,
    frame::{encode_message, encoded_head},
    ids::{DoorSequence, Fence, Incarnation, MessageId},
    message::{
        Body, Content, Envelope, Message, MessageClass, Priority, Recipient, ReportReturn, Source,
    },
    time::UnixMillis,
    verbs::Tenancy,
};
use pombo_spooler::store::{
    ClaimRequest, Claimed, Options, Row, RowData, Sqlite, Store, Write, Written,
};

pub const NOW: UnixMillis = UnixMillis(1_790_000_000_000);
pub const DAY: u64 = 86_400_000;

/// One file, in a directory that goes with it.
pub struct File {
    directory: tempfile::TempDir,
    doors: std::cell::RefCell<DoorSequence>,
}

impl File {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            doors: DoorSequence::default().into(),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("store.db")
    }

    /// What one process has of it.
    pub fn open(&self) -> Sqlite {
        Sqlite::open(self.path(), Options::default()).unwrap()
    }

    /// With a listed incarnation.
    pub fn joined(&self) -> (Sqlite, Incarnation) {
        let mut store = self.open();
        let me = Incarnation::random();
        assert!(store.renew(me, "test", true).unwrap());
        (store, me)
    }

    pub fn id(&self) -> MessageId {
        self.id_at(NOW)
    }

    pub fn id_at(&self, at: UnixMillis) -> MessageId {
        self.doors.borrow_mut().issue(at)
    }

    /// As a person with `sqlite3` would, or another program.
    pub fn raw(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path()).unwrap()
    }
}

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
        message: message("ann@example.org", "bob@example.net", b"hello").encoded,
        progress: b"progress".to_vec(),
    }
}

pub fn finished() -> RowData {
    RowData {
        state: QueueState::Finished,
        due: None,
        reason: String::new(),
        message: encoded_head(&message("ann@example.org", "bob@example.net", b"hello")),
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
    }
}

/// The short ways to say it.
pub trait Ask {
    fn one(&mut self, write: Write) -> Written;
    fn moved(&mut self, id: MessageId, row: RowData);
    fn row(&mut self, id: MessageId) -> Row;
    fn claim_all(&mut self, holder: Incarnation) -> Vec<Claimed>;
}

impl Ask for Sqlite {
    fn one(&mut self, write: Write) -> Written {
        self.commit(NOW, &[write]).unwrap()[0]
    }

    fn moved(&mut self, id: MessageId, row: RowData) {
        assert_eq!(self.one(Write::Move { id, row }), Written::Won);
    }

    fn row(&mut self, id: MessageId) -> Row {
        self.get(id).unwrap().unwrap()
    }

    fn claim_all(&mut self, holder: Incarnation) -> Vec<Claimed> {
        self.claim(&everything(holder, NOW)).unwrap()
    }
}
