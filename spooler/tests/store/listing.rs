//! Lists and changes of many rows: in slices, with other work between.

use std::sync::{Arc, Mutex};

use pombo_proto::{
    control::{QueueFilter, QueueState},
    ids::MessageId,
    time::UnixMillis,
};
use pombo_spooler::store::{Change, RowData, Store, StoreThread, Write};

use super::{Opened, Shared};
use crate::support::*;

/// Rows that one slice looks at, at most: what is said to be "some thousand".
const SLICE: usize = 2_000;

fn to_bob(n: usize) -> RowData {
    RowData {
        message: message(&format!("{n}@example.org"), "bob@example.net", b"hello").encoded,
        ..waiting(NOW)
    }
}

/// So many, a thousand a millisecond, and one more row after them all.
fn fill(file: &Shared, store: &mut Opened, n: usize, last: RowData) -> (Vec<MessageId>, MessageId) {
    let ids: Vec<_> = (0..n).map(|_| file.id()).collect();
    for (at, ids) in ids.chunks(1_000).enumerate() {
        let writes: Vec<_> = ids
            .iter()
            .enumerate()
            .map(|(n, id)| Write::Move {
                id: *id,
                row: to_bob(n),
            })
            .collect();
        store
            .commit(UnixMillis(NOW.0 + at as u64), &writes)
            .unwrap();
    }
    let id = file.id();
    let later = UnixMillis(NOW.0 + n as u64);
    store
        .commit(later, &[Write::Move { id, row: last }])
        .unwrap();
    (ids, id)
}

/// How many rows each slice gave.
fn slices(store: &mut Opened, filter: &QueueFilter, rows: usize) -> (Vec<usize>, Vec<MessageId>) {
    let (mut counts, mut ids, mut after) = (Vec::new(), Vec::new(), None);
    loop {
        let slice = store.list(filter, rows, after.as_ref()).unwrap();
        counts.push(slice.rows.len());
        ids.extend(slice.rows.iter().map(|row| row.id));
        after = slice.next;
        if after.is_none() {
            return (counts, ids);
        }
    }
}

#[test]
fn a_slice_looks_at_some_thousand_rows_whatever_it_finds() {
    let file = Shared::new();
    let mut store = file.open();
    let zoe = RowData {
        message: message("ann@example.org", "zoe@example.net", b"hello").encoded,
        ..to("maildir", "zoe", NOW)
    };
    let (all, last) = fill(&file, &mut store, 2 * SLICE + 500, zoe);
    let some = |text: &str| Some(text.to_owned());
    for filter in [
        QueueFilter {
            recipient: some("zoe@"),
            ..QueueFilter::default()
        },
        QueueFilter {
            sender: some("ann@"),
            state: Some(QueueState::Waiting),
            ..QueueFilter::default()
        },
        QueueFilter {
            transport: some("maildir"),
            ..QueueFilter::default()
        },
        QueueFilter {
            destination: some("zoe"),
            ..QueueFilter::default()
        },
    ] {
        let found = slices(&mut store, &filter, 1_000);
        assert_eq!(found, (vec![0, 0, 1], vec![last]), "{filter:?}");
    }
    // And everything is there once, in order, whatever the size of the slices.
    let (counts, found) = slices(&mut store, &QueueFilter::default(), 700);
    assert_eq!(counts, [700, 700, 700, 700, 700, 700, 301]);
    assert_eq!(found, [&all[..], &[last]].concat());
}

#[test]
fn what_does_not_wait_is_found_at_once_among_what_does() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let dead = RowData {
        state: QueueState::Dead,
        due: None,
        in_doubt: 1,
        ..waiting(NOW)
    };
    let (all, last) = fill(&file, &mut store, SLICE + 500, dead);
    let held = all[SLICE + 400];
    assert!(store.change(NOW, held, Change::Hold).unwrap());
    let request = pombo_spooler::store::ClaimRequest {
        limit: 1,
        ..everything(me, NOW)
    };
    let moving = store.claim(&request).unwrap()[0].id;
    let in_state = |state| QueueFilter {
        state: Some(state),
        ..QueueFilter::default()
    };
    let in_doubt = QueueFilter {
        in_doubt: true,
        ..QueueFilter::default()
    };
    for (filter, id) in [
        (in_state(QueueState::Dead), last),
        (in_state(QueueState::Held), held),
        (in_state(QueueState::Moving), moving),
        (in_doubt, last),
    ] {
        let found = slices(&mut store, &filter, 10);
        assert_eq!(found, (vec![1], vec![id]), "{filter:?}");
    }
}

#[test]
fn a_slice_of_history_is_bounded_by_what_it_steps_over() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    let done: Vec<_> = (0..3).map(|_| file.id()).collect();
    for id in &done {
        store.one(record(*id, 0, me, finished()));
    }
    fill(&file, &mut store, SLICE + 500, waiting(NOW));
    let filter = QueueFilter {
        state: Some(QueueState::Finished),
        ..QueueFilter::default()
    };
    let newest_first: Vec<_> = done.iter().rev().copied().collect();
    let found = slices(&mut store, &filter, 1_000);
    assert_eq!(found, (vec![0, 3], newest_first.clone()));
    let (counts, found) = slices(&mut store, &filter, 2);
    assert_eq!((counts, found), (vec![0, 2, 1], newest_first));
}

#[tokio::test]
async fn a_renewal_waits_for_one_slice_and_not_for_the_list() {
    let file = Shared::new();
    let (mut store, me) = file.joined();
    fill(&file, &mut store, 3 * SLICE, waiting(NOW));
    let thread = StoreThread::spawn(file.open()).unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let filter = QueueFilter {
        limit: 10_000,
        ..QueueFilter::default()
    };
    let rows = Arc::clone(&log);
    let list = thread.list(filter, move |_| rows.lock().unwrap().push("row"));
    let calls = Arc::clone(&log);
    let renewed = thread.call(move |store| {
        calls.lock().unwrap().push("renewal");
        store.renew(me, "test", false, &[])
    });
    // Polled once, the first slice stands in line, and the renewal after it.
    let (mut list, mut renewed) = (Box::pin(list), Box::pin(renewed));
    assert!(futures_util::poll!(&mut list).is_pending());
    assert!(futures_util::poll!(&mut renewed).is_pending());
    let (listed, renewed) = futures_util::join!(list, renewed);
    assert_eq!((listed.unwrap().len(), renewed.unwrap()), (6_001, true));
    let log = std::mem::take(&mut *log.lock().unwrap());
    let before = log.iter().position(|it| *it == "renewal").unwrap();
    assert_eq!((before, log.len()), (1_000, 6_002));

    // What looks at everything in vain has the thread no longer either.
    let before = thread.counters().calls;
    let nobody = QueueFilter {
        recipient: Some("nobody".to_owned()),
        ..QueueFilter::default()
    };
    assert_eq!(thread.list(nobody, |row| row.id).await.unwrap(), []);
    assert_eq!(thread.counters().calls - before, 4);
    thread.stop().await;
}

#[tokio::test]
async fn a_change_of_many_rows_lets_others_in_after_each_hundred() {
    let file = Shared::new();
    let mut store = file.open();
    fill(&file, &mut store, 249, waiting(NOW));
    let thread = StoreThread::spawn(file.open()).unwrap();
    let change = thread.change_matching(NOW, QueueFilter::default(), Change::Hold);
    let counts = thread.call(|store| store.counts());
    let (mut change, mut counts) = (Box::pin(change), Box::pin(counts));
    assert!(futures_util::poll!(&mut change).is_pending());
    assert!(futures_util::poll!(&mut counts).is_pending());
    let (changed, counts) = futures_util::join!(change, counts);
    assert_eq!(changed.unwrap(), 250);
    let counts = counts.unwrap();
    assert_eq!((counts.held, counts.waiting), (100, 150));
    // Each hundred is one call, and one transaction.
    assert_eq!(thread.counters().calls, 4);
    assert_eq!(store.counts().unwrap().held, 250);
    thread.stop().await;
}

#[tokio::test]
async fn what_may_have_been_sent_is_released_only_by_who_means_it() {
    let file = Shared::new();
    let mut store = file.open();
    let held = |in_doubt| RowData {
        state: QueueState::Held,
        due: None,
        in_doubt,
        ..waiting(NOW)
    };
    let (sure, unsure) = (file.id(), file.id());
    store.moved(sure, held(0));
    store.moved(unsure, held(1));
    let thread = StoreThread::spawn(file.open()).unwrap();
    let all = QueueFilter::default();
    let released = thread.change_matching(NOW, all.clone(), Change::Release);
    assert_eq!(released.await.unwrap(), 1);
    assert_eq!(store.row(unsure).data.state, QueueState::Held);
    assert_eq!(store.row(sure).data.state, QueueState::Waiting);
    let meant = QueueFilter {
        in_doubt: true,
        ..all
    };
    let released = thread.change_matching(NOW, meant, Change::Release);
    assert_eq!(released.await.unwrap(), 1);
    assert_eq!(store.counts().unwrap().held, 0);
    thread.stop().await;
}
