//! The store's thread: groups, is fair, answers everybody, ends cleanly.

use std::sync::{Arc, Mutex, mpsc};

use pombo_proto::control::QueueState;
use pombo_spooler::store::{Error, StoreThread, Write, Written};

use super::Shared;
use crate::support::*;

/// The thread stands still until the sender is used or dropped.
async fn stand_still(thread: &StoreThread) -> mpsc::Sender<()> {
    let (go, wait) = mpsc::channel();
    let (sender, standing) = tokio::sync::oneshot::channel();
    let handle = thread.clone();
    tokio::spawn(async move {
        let stand = move |_: &mut dyn pombo_spooler::store::Store| {
            let _ = sender.send(());
            let _ = wait.recv();
            Ok(())
        };
        handle.call(stand).await.unwrap();
    });
    standing.await.unwrap();
    go
}

fn spawn(file: &Shared) -> StoreThread {
    StoreThread::spawn(file.open()).unwrap()
}

#[tokio::test]
async fn writes_that_gather_go_in_one_commit() {
    let file = Shared::new();
    let thread = spawn(&file);
    let go = stand_still(&thread).await;
    let (sender, mut answers) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..700 {
        let sender = sender.clone();
        let write = Write::Move {
            id: file.id(),
            row: waiting(NOW),
        };
        thread.commit(write, move |answer| sender.send(answer.unwrap()).unwrap());
    }
    drop((go, sender));
    let mut won = 0;
    while let Some(answer) = answers.recv().await {
        assert_eq!(answer, Written::Won);
        won += 1;
    }
    let counters = thread.counters();
    assert_eq!((won, counters.writes, counters.commits), (700, 700, 2));
    thread.stop().await;
}

#[tokio::test]
async fn a_commit_is_bounded_by_its_bytes_and_takes_at_least_one() {
    let file = Shared::new();
    let thread = spawn(&file);
    let go = stand_still(&thread).await;
    let writes = (0..3).map(|_| {
        let mut row = waiting(NOW);
        row.message = vec![0; 9 * 1024 * 1024].into();
        thread.committed(Write::Move { id: file.id(), row })
    });
    let all = futures_util::future::join_all(writes);
    drop(go);
    for answer in all.await {
        assert_eq!(answer.unwrap(), Written::Won);
    }
    assert_eq!(thread.counters().commits, 3);
}

#[tokio::test]
async fn calls_and_commits_take_turns() {
    let file = Shared::new();
    let thread = spawn(&file);
    let go = stand_still(&thread).await;
    let log = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..2_000 {
        let log = Arc::clone(&log);
        let write = Write::Move {
            id: file.id(),
            row: waiting(NOW),
        };
        thread.commit(write, move |_| log.lock().unwrap().push('w'));
    }
    let calls = (0..8).map(|_| {
        let log = Arc::clone(&log);
        thread.call(move |_| {
            log.lock().unwrap().push('c');
            Ok(())
        })
    });
    let mut calls = Box::pin(futures_util::future::join_all(calls));
    // Polled once, all of them stand in line.
    assert!(futures_util::poll!(&mut calls).is_pending());
    drop(go);
    calls.await;
    thread.stop().await;
    let log = log.lock().unwrap();
    let before = |n: usize| {
        let place = log
            .iter()
            .enumerate()
            .filter(|(_, what)| **what == 'c')
            .nth(n);
        place.unwrap().0
    };
    assert!(before(0) <= 512, "{}", before(0));
    assert!(before(7) <= 1_024 + 7, "{}", before(7));
    assert_eq!(log.len(), 2_008);
}

#[tokio::test]
async fn each_write_has_its_own_answer() {
    let file = Shared::new();
    let (_, me) = file.joined();
    let thread = spawn(&file);
    let go = stand_still(&thread).await;
    let id = file.id();
    let other = pombo_proto::ids::Incarnation::random();
    let first = thread.committed(record(id, 0, me, finished()));
    let second = thread.committed(record(id, 0, other, finished()));
    let mut both = Box::pin(futures_util::future::join(first, second));
    assert!(futures_util::poll!(&mut both).is_pending());
    drop(go);
    let (first, second) = both.await;
    assert_eq!(
        (first.unwrap(), second.unwrap()),
        (Written::Won, Written::Lost)
    );
    let row = thread.call(move |store| store.get(id)).await.unwrap();
    assert_eq!(row.unwrap().data.state, QueueState::Finished);
}

#[tokio::test]
async fn an_error_goes_to_everybody_and_the_next_commit_may_succeed() {
    let file = Shared::new();
    let thread = StoreThread::spawn(file.open_impatient()).unwrap();
    let other = file.lock();
    let write = || Write::Move {
        id: file.id(),
        row: waiting(NOW),
    };
    let both = futures_util::future::join(thread.committed(write()), thread.committed(write()));
    let (first, second) = both.await;
    for error in [first.unwrap_err(), second.unwrap_err()] {
        assert!(matches!(*error, Error::Unavailable(_)));
    }
    drop(other);
    assert_eq!(thread.committed(write()).await.unwrap(), Written::Won);
    let counters = thread.counters();
    assert_eq!(counters.writes, 1);
    assert!(counters.failed >= 1);
}

#[tokio::test]
async fn stopping_finishes_what_has_gathered_and_refuses_what_comes_later() {
    let file = Shared::new();
    let thread = spawn(&file);
    let go = stand_still(&thread).await;
    let (sender, receiver) = mpsc::channel();
    for _ in 0..10 {
        let sender = sender.clone();
        let write = Write::Move {
            id: file.id(),
            row: waiting(NOW),
        };
        thread.commit(write, move |answer| sender.send(answer.is_ok()).unwrap());
    }
    let mut stop = Box::pin(thread.stop());
    assert!(futures_util::poll!(&mut stop).is_pending());
    let late = Write::Move {
        id: file.id(),
        row: waiting(NOW),
    };
    let late = thread.committed(late).await;
    assert!(matches!(*late.unwrap_err(), Error::Unavailable(_)));
    assert!(thread.call(|store| store.counts()).await.is_err());
    drop((go, sender));
    stop.await;
    assert_eq!(receiver.iter().filter(|ok| *ok).count(), 10);
    thread.stop().await;
    use pombo_spooler::store::Store;
    assert_eq!(file.open().counts().unwrap().waiting, 10);
}

#[tokio::test]
async fn a_thread_that_panics_leaves_nobody_waiting() {
    let file = Shared::new();
    let thread = spawn(&file);
    let go = stand_still(&thread).await;
    let broken = thread.call::<()>(|_| panic!("as the test wants it"));
    let mut broken = Box::pin(broken);
    assert!(futures_util::poll!(&mut broken).is_pending());
    let after = thread.call(|store| store.counts());
    let mut after = Box::pin(after);
    assert!(futures_util::poll!(&mut after).is_pending());
    drop(go);
    assert!(matches!(broken.await, Err(Error::Unavailable(_))));
    assert!(matches!(after.await, Err(Error::Unavailable(_))));
    thread.stop().await;
    let write = Write::Move {
        id: file.id(),
        row: waiting(NOW),
    };
    assert!(thread.committed(write).await.is_err());
}

#[tokio::test]
async fn the_thread_ends_with_its_last_handle() {
    let file = Shared::new();
    let thread = spawn(&file);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let write = Write::Move {
        id: file.id(),
        row: waiting(NOW),
    };
    thread.commit(write, move |answer| sender.send(answer.unwrap()).unwrap());
    drop(thread);
    assert_eq!(receiver.await.unwrap(), Written::Won);
}
