//! CANCEL_MESSAGE at every stage, and the right to finish.

use super::*;

#[tokio::test]
async fn cancel_in_the_content_stops_on_the_wire() {
    let script = format!(
        "{HELLO}C: MAIL FROM:<ann@a.test>\nC: RCPT TO:<bob@b.test>\nC: DATA\nS: 250 ok\nS: 250 ok\nS: 354 go\nN\nW\nP"
    );
    let server = Server::play([script]).await;
    let rig = Rig::smarthost(&server, "").await;
    // More than any socket buffer takes while the server does not read.
    let message = Arc::new(Message::new(
        &["bob@b.test"],
        b"line of text\r\n".repeat(2_000_000),
    ));
    let submission = tokio::spawn({
        let (rig, message) = (rig, Arc::clone(&message));
        async move { rig.submit(&message).await }
    });
    server.reached.notified().await;
    message.cancel();
    assert_eq!(told(submission.await.unwrap()), ["cancelled nobody"]);
    assert_eq!(message.asked_to_finish.load(Ordering::SeqCst), 0);
    server.go.notify_one();
    let contents = server.finish().await;
    assert!(contents[0].len() < message.content.len());
}

#[tokio::test]
async fn cancel_before_and_while_commands_are_answered() {
    let server = Server::play([format!(
        "{HELLO}C: MAIL FROM:<ann@a.test>\nC: RCPT TO:<bob@b.test>\nC: DATA\nN\nE"
    )])
    .await;
    let rig = Rig::smarthost(&server, "").await;
    let early = Arc::new(Message::to_bob());
    early.cancel();
    assert_eq!(told(rig.submit(&early).await), ["cancelled nobody"]);
    let message = Arc::new(Message::to_bob());
    let (result, ()) = tokio::join!(rig.submit(&message), async {
        server.reached.notified().await;
        message.cancel();
    });
    assert_eq!(told(result), ["cancelled nobody"]);
    server.finish().await;
}

#[tokio::test]
async fn cancel_keeps_the_results_of_other_destinations() {
    let done = Server::play([format!("{HELLO}{TAKEN}N\nE")]).await;
    let stuck = Server::play(["N\nE"]).await;
    let config = format!(
        "[domains]\n\"b.test\" = \"{}\"\n\"c.test\" = \"{}\"",
        done.address, stuck.address
    );
    let rig = Rig::new(&config).await;
    let message = Arc::new(Message::new(&["cy@c.test", "bob@b.test"], *b"x\r\n"));
    let (result, ()) = tokio::join!(rig.submit(&message), async {
        done.reached.notified().await;
        stuck.reached.notified().await;
        message.cancel();
    });
    assert_eq!(
        told(result),
        ["cancelled 1 delivered 127.0.0.1: 250 2.0.0 queued"]
    );
    drop(rig);
    done.finish().await;
    stuck.finish().await;
}

#[tokio::test]
async fn cancel_behind_the_final_dot_waits_for_the_answer() {
    let script = format!("{HELLO}{}", TAKEN.replace("B\n", "B\nN\nW\n"));
    let server = Server::play([script]).await;
    let rig = Rig::smarthost(&server, "").await;
    let message = Arc::new(Message::to_bob());
    let (result, ()) = tokio::join!(rig.submit(&message), async {
        server.reached.notified().await;
        message.cancel();
        server.go.notify_one();
    });
    assert_eq!(told(result), ["0 delivered 127.0.0.1: 250 2.0.0 queued"]);
    server.finish().await;
}

#[tokio::test]
async fn cancel_behind_the_final_dot_does_not_wait_for_ever() {
    let script = format!(
        "{HELLO}{}",
        TAKEN.replace("B\nS: 250 2.0.0 queued\n", "B\nN\nE\n")
    );
    let server = Server::play([script]).await;
    let rig = Rig::smarthost(&server, "[timeouts]\nafter_cancel = \"50ms\"").await;
    let message = Arc::new(Message::to_bob());
    let (result, ()) = tokio::join!(rig.submit(&message), async {
        server.reached.notified().await;
        message.cancel();
    });
    let lines = told(result);
    assert_begins(&lines, &["0 in doubt 4.4.2 "]);
    assert!(lines[0].contains("may have been received"), "{lines:?}");
    server.finish().await;
}

#[tokio::test]
async fn no_right_to_finish_no_final_dot() {
    let script = format!(
        "{HELLO}C: MAIL FROM:<ann@a.test>\nC: RCPT TO:<bob@b.test>\nC: DATA\nS: 250 ok\nS: 250 ok\nS: 354 go\nP"
    );
    let server = Server::play([script]).await;
    let rig = Rig::smarthost(&server, "").await;
    let message = Message::to_bob();
    message.may_finish.store(false, Ordering::SeqCst);
    assert_begins(
        &rig.send(message).await,
        &["0 deferred 4.4.0 stopped before the final dot"],
    );
    assert_eq!(server.finish().await, [b""]);
}

#[tokio::test]
async fn a_large_content_is_held_before_its_last_piece() {
    let script = format!(
        "{HELLO}C: MAIL FROM:<ann@a.test>\nC: RCPT TO:<bob@b.test>\nC: DATA\nS: 250 ok\nS: 250 ok\nS: 354 go\nP"
    );
    let server = Server::play([script]).await;
    let rig = Rig::smarthost(&server, "").await;
    let message = Message::new(&["bob@b.test"], b"line of text\r\n".repeat(100_000));
    message.may_finish.store(false, Ordering::SeqCst);
    let message = Arc::new(message);
    assert_begins(&told(rig.submit(&message).await), &["0 deferred 4.4.0 "]);
    assert_eq!(message.asked_to_finish.load(Ordering::SeqCst), 1);
    let contents = server.finish().await;
    assert!(contents[0].len() < message.content.len());
}
