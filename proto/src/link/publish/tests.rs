use super::*;
use crate::{ids::MessageId, message::Priority};

fn body(size: usize) -> Publish {
    Publish {
        body: Bytes::from(vec![0; size]),
        ..Publish::turn("x".into(), "q".into())
    }
}

#[tokio::test]
async fn what_was_never_written_is_not_unknown() {
    let (publisher, requests) = Publisher::new();
    let publish = publisher.publish(body(1));
    drop(requests);
    assert_eq!(publish.await, Err(PublishError::NotConnected));
    let after = publisher.publish(body(1)).await;
    assert_eq!(after, Err(PublishError::NotConnected));
}

#[tokio::test]
async fn what_waits_is_bounded_and_its_place_is_given_back() {
    let (publisher, mut requests) = Publisher::new();
    let waiting: Vec<_> = (0..PENDING_MAX)
        .map(|_| publisher.publish(body(0)))
        .collect();
    let refused = publisher.publish(body(0)).await;
    assert_eq!(refused, Err(PublishError::NotConnected));
    drop(requests.0.recv().await);
    let admitted = publisher.publish(body(0));
    drop(waiting);
    while requests.0.try_recv().is_ok() {}
    assert_eq!(admitted.await, Err(PublishError::NotConnected));
    assert_eq!(publisher.load.messages.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn what_no_broker_takes_is_refused() {
    let (publisher, _requests) = Publisher::new();
    let refused = publisher.publish(body(PACKET_BYTES_MAX + 1)).await;
    assert!(matches!(refused, Err(PublishError::Refused(_))));
}

#[test]
fn a_spooled_message_is_persistent_and_carries_its_id_and_mark() {
    let id = MessageId::derived("test", b"1");
    let publish = |marked| {
        Publish::spool(
            "x".into(),
            SpoolPublish {
                id,
                priority: Priority::Bulk,
                encoded: Bytes::from_static(b"m"),
                marked,
            },
        )
    };
    let properties = publish(false).properties;
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(*properties.message_id(), Some(id.to_string().into()));
    let headers = |marked| publish(marked).properties.headers().clone().unwrap();
    let trace = TraceParent::of(id).to_string();
    let trace = AMQPValue::LongString(trace.into());
    for marked in [false, true] {
        let headers = headers(marked);
        assert_eq!(headers.inner().get(TRACEPARENT), Some(&trace));
        assert_eq!(headers.inner().contains_key(MARKED), marked);
    }
    assert_eq!(publish(true).routing_key.as_str(), "bulk");
}

#[test]
fn a_long_reason_is_cut_at_a_character() {
    let dead = Publish::dead("x".into(), Bytes::new(), &"\u{e4}".repeat(200));
    let headers = dead.properties.headers().clone().unwrap();
    let Some(AMQPValue::LongString(reason)) = headers.inner().get(REASON) else {
        panic!("no reason in {headers:?}");
    };
    assert_eq!(reason.len(), 254);
}
