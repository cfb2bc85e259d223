//! What people see.

use pombo_proto::{
    control::{QueueFilter, QueueState},
    frame::{decode_head, encoded_head},
    ids::MessageId,
    message::Recipient,
    time::UnixMillis,
};
use pombo_spooler::store::{Change, Counts, RowData, Store};

use super::{Opened, Shared};
use crate::support::*;

fn listed(store: &mut Opened, filter: QueueFilter) -> Vec<MessageId> {
    let newest_first = filter.state == Some(QueueState::Finished);
    let mut ids: Vec<_> = all_of(store, filter).iter().map(|row| row.id).collect();
    if newest_first {
        ids.reverse();
    }
    ids
}

#[test]
fn a_list_is_filtered_by_what_the_row_and_its_head_say() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let (a, b, c, done) = (file.id(), file.id(), file.id(), file.id());
    let row = |transport, destination, sender, recipient| RowData {
        message: message(sender, recipient, &[b'x'; 9_000]).encoded,
        ..to(transport, destination, NOW)
    };
    store
        .commit(
            NOW,
            &[
                record(
                    a,
                    0,
                    me,
                    row("smtp", "example.net", "Ann@example.org", "bob@example.net"),
                ),
                record(b, 0, me, row("smtp", "example.com", "", "carl@example.com")),
                record(
                    c,
                    0,
                    me,
                    row("maildir", "dora", "ann@example.org", "dora@here.example"),
                ),
                record(done, 0, me, finished()),
            ],
        )
        .unwrap();
    store.change(NOW, c, Change::Hold).unwrap();
    let all = QueueFilter::default;
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(listed(&mut store, all()), [a, b, c]);
    let filter = QueueFilter {
        transport: some("smtp"),
        ..all()
    };
    assert_eq!(listed(&mut store, filter.clone()), [a, b]);
    let filter = QueueFilter {
        destination: some("example.com"),
        ..filter
    };
    assert_eq!(listed(&mut store, filter), [b]);
    let filter = QueueFilter {
        sender: some("ANN@"),
        ..all()
    };
    assert_eq!(listed(&mut store, filter), [a, c]);
    let filter = QueueFilter {
        sender: some("<>"),
        ..all()
    };
    assert_eq!(listed(&mut store, filter), [b]);
    let filter = QueueFilter {
        recipient: some("bob@example.net"),
        ..all()
    };
    assert_eq!(listed(&mut store, filter), [a]);
    let filter = QueueFilter {
        state: Some(QueueState::Held),
        ..all()
    };
    assert_eq!(listed(&mut store, filter), [c]);
    let filter = QueueFilter {
        state: Some(QueueState::Finished),
        sender: some("ann"),
        ..all()
    };
    assert_eq!(listed(&mut store, filter), [done]);
    let filter = QueueFilter { limit: 1, ..all() };
    assert_eq!(listed(&mut store, filter), [a]);
    store.claim_all(me);
    let filter = QueueFilter {
        state: Some(QueueState::Moving),
        ..all()
    };
    assert_eq!(listed(&mut store, filter), [a, b]);
}

#[test]
fn a_list_gives_heads_however_long_they_are_and_shows_what_is_unreadable() {
    let file = Shared::new();
    let (mut store, _) = file.joined();
    let one = message(
        "ann@example.org",
        "bob@example.net",
        b"a body that is not listed",
    );
    let mut many = (*one.envelope).clone();
    many.recipients = (0..3_000)
        .map(|n| Recipient::smtp(format!("{n}@example.net")))
        .collect();
    let many = pombo_proto::frame::encode_message(many, &one.inline);
    for bytes in [&one.encoded, &many.encoded] {
        let row = RowData {
            message: bytes.clone(),
            ..waiting(NOW)
        };
        store.moved(file.id(), row);
    }
    let dead = RowData {
        state: QueueState::Dead,
        due: None,
        message: b"no message".as_slice().into(),
        ..waiting(NOW)
    };
    store.moved(file.id(), dead);
    let rows = all_of(&mut store, QueueFilter::default());
    assert_eq!(rows[0].data.message, encoded_head(&one));
    assert_eq!(rows[1].data.message, encoded_head(&many));
    let head = decode_head(&rows[1].data.message).unwrap();
    assert_eq!(head.recipients.len(), 3_000);
    assert_eq!(rows[2].data.message, b"no message".as_slice());
}

#[test]
fn the_oldest_come_first_and_of_finished_ones_the_newest_are_shown() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let at = |n| UnixMillis(NOW.0 + n);
    let derived = MessageId::derived("test", b"1");
    let (first, last) = (file.id(), file.id());
    for (n, id) in [first, derived, last].into_iter().enumerate() {
        let row = RowData {
            due: Some(at(9)),
            ..waiting(NOW)
        };
        store
            .commit(at(n as u64), &[record(id, 0, me, row)])
            .unwrap();
    }
    assert_eq!(
        listed(&mut store, QueueFilter::default()),
        [first, derived, last]
    );
    let done: Vec<MessageId> = (0..4).map(|_| file.id()).collect();
    for id in &done {
        store.one(record(*id, 0, me, finished()));
    }
    let filter = QueueFilter {
        state: Some(QueueState::Finished),
        limit: 3,
        ..QueueFilter::default()
    };
    assert_eq!(listed(&mut store, filter), done[1..]);
}

#[test]
fn counts_follow_every_state() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let (held, dead) = (file.id(), file.id());
    for id in [
        file.id(),
        file.id(),
        held,
        dead,
        MessageId::derived("test", b"1"),
    ] {
        store.moved(id, waiting(NOW));
    }
    store.change(NOW, held, Change::Hold).unwrap();
    store.claim_all(me);
    let row = RowData {
        state: QueueState::Dead,
        due: None,
        ..waiting(NOW)
    };
    store.one(record(dead, 1, me, row));
    store.one(record(file.id(), 0, me, finished()));
    store.one(record(file.id(), 0, me, waiting(UnixMillis(NOW.0 + 1))));
    let expected = Counts {
        waiting: 1,
        claimed: 3,
        held: 1,
        dead: 1,
        in_doubt: 0,
    };
    assert_eq!(store.counts().unwrap(), expected);
    assert_eq!(file.open().counts().unwrap(), expected);
}
