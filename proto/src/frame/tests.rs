use super::*;
use crate::{
    ids::{Fence, MessageId},
    message::{Content, MessageClass, Priority, Recipient, ReportReturn, Source},
    time::UnixMillis,
    verbs::{Submit, Tenancy},
};

fn message() -> Message {
    let body = b"Subject: x\r\n\r\nhello\r\n";
    let envelope = Envelope {
        id: MessageId::derived("test", b"1"),
        class: MessageClass::Note,
        sender: "ann@example.org".to_owned(),
        recipients: vec![Recipient::smtp("bob@example.net")],
        priority: Priority::Normal,
        submitted_at: UnixMillis(1_700_000_000_000),
        deferred_until: None,
        expires_at: None,
        report_return: ReportReturn::Headers,
        envelope_id: None,
        content: Content::default(),
        source: Source {
            door: "test".to_owned(),
            client: String::new(),
            about: None,
        },
        body: Body::Inline {
            size: body.len() as u64,
        },
        properties: Vec::new(),
    };
    encode_message(envelope, body)
}

fn packet() -> Packet {
    let id = message().envelope.id;
    let submit = Verb::SubmitMessage(Submit {
        id,
        fence: Fence(3),
        begin_deferred: false,
        recipients: vec![crate::ids::RecipientIndex(0)],
    });
    Packet {
        version: 1,
        from: Incarnation(Uuid::from_u128(1)),
        to: Incarnation(Uuid::from_u128(2)),
        first: 7,
        seen: 5,
        frames: vec![
            Frame::verb(Correlation(300), submit).with_tail(message().encoded),
            Frame::verb(
                Correlation(0),
                Verb::Settled(vec![Tenancy {
                    id,
                    fence: Fence(0),
                }]),
            ),
        ],
    }
}

#[test]
fn a_packet_survives_the_wire() {
    let bytes = Bytes::from(packet().encode());
    assert_eq!(Packet::decode(&bytes).unwrap(), packet());
    let tail = Packet::decode(&bytes).unwrap().frames[0].tail.clone();
    assert_eq!(decode_message(tail).unwrap().envelope, message().envelope);
}

#[test]
fn one_message_of_a_batch_does_not_keep_the_packet_and_one_alone_is_not_copied() {
    let submit = packet().frames[0].clone();
    let of = |count: usize, body: usize| {
        let tail = Bytes::from(vec![b'x'; body]);
        let frame = submit.clone().with_tail(tail);
        let frames = vec![frame; count];
        Bytes::from(Packet { frames, ..packet() }.encode())
    };
    let batch = of(32, 32 * 1024);
    let slow = Packet::decode(&batch).unwrap().frames.swap_remove(7);
    assert_eq!(slow.tail, vec![b'x'; 32 * 1024]);
    assert!(batch.is_unique(), "one tail keeps {} bytes", batch.len());
    let alone = of(1, 32 * 1024);
    let frame = Packet::decode(&alone).unwrap().frames.swap_remove(0);
    assert!(alone.as_ptr_range().contains(&frame.tail.as_ptr()));
}

/// The bytes on the wire are a contract between versions: whoever changes them raises [`VERSION`].
#[test]
fn golden_bytes() {
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    assert_eq!(
        hex(&packet().encode()),
        include_str!("../golden/packet.hex").trim()
    );
    assert_eq!(
        hex(&message().encoded),
        include_str!("../golden/message.hex").trim()
    );
}

#[test]
fn every_truncation_and_every_addition_is_refused() {
    let bytes = packet().encode();
    for end in 0..bytes.len() {
        assert!(
            Packet::decode(&Bytes::copy_from_slice(&bytes[..end])).is_err(),
            "{end}"
        );
    }
    let mut longer = bytes;
    longer.push(0);
    assert_eq!(Packet::decode(&longer.into()), Err(Error::Trailing));
    let encoded = message().encoded;
    for end in 0..encoded.len() {
        assert!(decode_message(encoded.slice(..end)).is_err(), "{end}");
    }
}

#[test]
fn a_head_alone_keeps_the_envelope() {
    let message = message();
    let head = encoded_head(&message);
    assert_eq!(head.len() + message.inline.len(), message.encoded.len());
    assert_eq!(head_length(&head), Ok(head.len()));
    assert_eq!(decode_head(&head).unwrap(), *message.envelope);
    assert_eq!(decode_head(&message.encoded).unwrap(), *message.envelope);
    for end in 0..head.len() {
        assert!(decode_head(&head[..end]).is_err(), "{end}");
    }
    assert!(decode_message(head).is_err());
}

/// What a door takes, a spooler reads.
#[test]
fn the_largest_head_is_read_again() {
    let mut envelope = (*message().envelope).clone();
    let address = |length| Recipient::smtp("a".repeat(length));
    // Longer than 250, so that a longer one's length takes no more bytes.
    envelope.recipients = vec![address(300); RECIPIENTS_MAX];
    let head = |envelope: &Envelope| encoded_head(&encode_message(envelope.clone(), b"")).len();
    let most = MESSAGE_HEADER + HEAD_BYTES_MAX;
    let more = (most - head(&envelope)) / RECIPIENTS_MAX;
    envelope.recipients = vec![address(300 + more - 1); RECIPIENTS_MAX];
    let short = most - head(&envelope);
    envelope.sender.push_str(&"a".repeat(short - 4));
    envelope.body = Body::Inline { size: 0 };
    let largest = encode_message(envelope, b"");
    assert!((most - 4..=most).contains(&largest.encoded.len()));
    assert_eq!(decode_head(&largest.encoded).unwrap(), *largest.envelope);
    assert!(decode_message(largest.encoded).is_ok());
}

#[test]
fn other_versions_and_strangers_are_refused() {
    let mut bytes = packet().encode();
    bytes[2] = 9;
    assert_eq!(
        Packet::decode(&bytes.clone().into()),
        Err(Error::Version(9))
    );
    bytes[0] = b'X';
    assert_eq!(Packet::decode(&bytes.into()), Err(Error::Magic));
    let mut encoded = message().encoded.to_vec();
    encoded[2] = MESSAGE_VERSION_MAX + 1;
    let newer = Error::Version(MESSAGE_VERSION_MAX + 1);
    assert_eq!(head_length(&encoded), Err(newer));
    assert_eq!(decode_message(encoded.into()).unwrap_err(), newer);
}

#[test]
fn a_packet_is_read_in_every_version_that_is_spoken_and_says_which_it_was() {
    let written = |version| {
        Bytes::from(
            Packet {
                version,
                ..packet()
            }
            .encode(),
        )
    };
    let two = VersionRange { min: 1, max: 2 };
    for version in [1, 2] {
        let read = Packet::decode_within(&written(version), two).unwrap();
        assert_eq!(read.version, version);
        assert_eq!(read.frames, packet().frames);
    }
    for (version, spoken) in [(3, two), (1, VersionRange { min: 2, max: 3 })] {
        let refused = Packet::decode_within(&written(version), spoken);
        assert_eq!(refused, Err(Error::Version(version)));
    }
}

/// What this build writes, it reads; and it reads no less than it has ever written.
#[test]
fn ranges_fit() {
    assert!((MESSAGE_VERSION_MIN..=MESSAGE_VERSION_MAX).contains(&VERSION));
    assert_eq!(MESSAGE_VERSION_MIN, 1);
    let (oldest, newest) = (VERSIONS.min, VERSIONS.max);
    assert!((oldest..=oldest + 1).contains(&newest));
}

#[test]
fn hostile_bytes_neither_panic_nor_allocate() {
    fastrand::seed(1);
    let good = packet().encode();
    for _ in 0..200_000 {
        let mut bytes = good.clone();
        for _ in 0..fastrand::usize(1..6) {
            let at = fastrand::usize(..bytes.len());
            bytes[at] = fastrand::u8(..);
        }
        let _ = Packet::decode(&bytes.into());
    }
}
