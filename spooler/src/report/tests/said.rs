//! What a report says to people and to programs, kind by kind.

use super::*;
use crate::verdict::samples;

#[test]
fn a_failure_as_it_is_sent() {
    let mut original = envelope(2, ORIGINAL);
    original.envelope_id = Some("QQ314159".to_owned());
    original.recipients[0].original_recipient = Some("rfc822;alias@example.net".to_owned());
    let unrouted = Diagnosis::new(
        EnhancedStatus::new(5, 4, 4),
        NdrReason::TransferImpossible,
        "no transport takes this recipient",
    );
    let report = failure(
        &original,
        ORIGINAL,
        vec![failed(refusal()), failed(unrouted)],
    );
    read(&report);
    let text = String::from_utf8(report.inline.to_vec()).unwrap();
    assert_eq!(text.replace("\r\n", "\n"), include_str!("../failure.eml"));
}

#[test]
fn its_envelope_goes_to_the_sender_from_nobody() {
    let original = envelope(1, ORIGINAL);
    let report = failure(&original, ORIGINAL, vec![failed(refusal())]);
    let envelope = &report.envelope;
    assert_eq!(envelope.id, reporter().id);
    assert_eq!(envelope.recipients[0].address, original.sender);
    assert_eq!(envelope.class, MessageClass::NonDeliveryReport);
    assert_eq!(envelope.source.about, Some(original.id));
    assert_eq!(envelope.submitted_at, NOW);
    assert_eq!(envelope.content, Content::default());
}

#[test]
fn the_mapi_properties_say_the_same() {
    let original = envelope(2, ORIGINAL);
    let report = failure(
        &original,
        ORIGINAL,
        vec![failed(refusal()), failed(refusal())],
    );
    let properties = &report.envelope.properties;
    let get = |properties: &[Property], tag| {
        let found = properties.iter().find(|property| property.tag == tag);
        found.map(|property| property.value.clone())
    };
    assert_eq!(
        get(properties, prop::PR_ORIGINAL_SUBJECT),
        Some(PropValue::Text("Grüße".to_owned()))
    );
    assert_eq!(
        get(properties, prop::PR_ORIGINAL_SUBMIT_TIME),
        Some(PropValue::Time(SUBMITTED))
    );
    assert_eq!(
        get(properties, prop::PR_REPORT_TIME),
        Some(PropValue::Time(NOW))
    );
    assert_eq!(
        get(properties, prop::PR_MESSAGE_CLASS),
        Some(PropValue::Text("REPORT.IPM.Note.NDR".to_owned()))
    );
    let groups: Vec<&[Property]> = recipient_groups(properties).collect();
    assert_eq!(groups.len(), 2);
    for (at, group) in groups.into_iter().enumerate() {
        let address = PropValue::Text(original.recipients[at].address.clone());
        assert_eq!(get(group, prop::PR_EMAIL_ADDRESS), Some(address));
        assert_eq!(
            get(group, prop::PR_NDR_REASON_CODE),
            Some(PropValue::Long(1))
        );
        assert_eq!(get(group, prop::PR_NDR_DIAG_CODE), Some(PropValue::Long(0)));
        let Some(PropValue::Text(words)) = get(group, prop::PR_SUPPLEMENTARY_INFO) else {
            panic!("the server's own words");
        };
        assert!(
            words.starts_with("550-5.1.1 No such user here. 550"),
            "{words}"
        );
    }
}

#[test]
fn delay_tells_until_when_it_is_tried() {
    let original = envelope(1, ORIGINAL);
    let mut waiting = known(RecipientState::Pending { not_before: NOW });
    waiting.last = Some(samples::diagnosis());
    let spec = spec(ReportKind::Delay, 1);
    let report = build(
        &reporter(),
        &original,
        ORIGINAL,
        &spec,
        &progress(vec![waiting]),
    );
    let read = read(&report);
    assert_eq!(report.envelope.class, MessageClass::DelayReport);
    let block = blocks(&read).remove(0);
    assert!(block.contains(&"Action: delayed".to_owned()), "{block:?}");
    assert!(block.contains(&"Status: 4.4.1".to_owned()), "{block:?}");
    let until = format!("Will-Retry-Until: {}", date(reporter().retry_until));
    assert!(block.contains(&until), "{block:?}");
    assert!(read.texts[1].contains("It will be tried until"));
}

#[test]
fn success_and_relay_tell_what_the_server_said() {
    for (kind, action) in [
        (ReportKind::Success, "Action: delivered"),
        (ReportKind::Relayed, "Action: relayed"),
    ] {
        let original = Envelope {
            report_return: ReportReturn::Full,
            ..envelope(1, ORIGINAL)
        };
        let delivery = Delivery::new(NOW, "mx.example.org", "250 2.0.0 queued as 1");
        let known = known(RecipientState::Delivered(delivery));
        let report = build(
            &reporter(),
            &original,
            ORIGINAL,
            &spec(kind, 1),
            &progress(vec![known]),
        );
        let read = read(&report);
        assert_eq!(report.envelope.class, MessageClass::DeliveryReport);
        let block = blocks(&read).remove(0);
        for line in [
            action,
            "Status: 2.0.0",
            "Remote-MTA: dns; mx.example.org",
            "Diagnostic-Code: smtp; 250 2.0.0 queued as 1",
        ] {
            assert!(block.contains(&line.to_owned()), "{block:?}");
        }
        // RET=FULL is for failures.
        assert_eq!(read.types[3], "text/rfc822-headers");
    }
}

#[test]
fn other_address_types_are_named_as_such() {
    let mut original = envelope(1, ORIGINAL);
    original.recipients[0].address_type = "FAX".to_owned();
    original.recipients[0].address = "+49 30 1".to_owned();
    let read = read(&failure(&original, ORIGINAL, vec![failed(refusal())]));
    let line = "Final-Recipient: x-fax; +49 30 1".to_owned();
    assert!(blocks(&read)[0].contains(&line));
}

#[test]
fn very_many_recipients_are_all_in_the_status_and_the_first_in_the_text() {
    let original = envelope(1_000, ORIGINAL);
    let long = "x".repeat(5_000);
    let diagnosis = refusal().said_by(&long, &long);
    let recipients = vec![failed(diagnosis); 1_000];
    let report = failure(&original, ORIGINAL, recipients);
    let read = read(&report);
    assert_eq!(blocks(&read).len(), 1_000);
    assert!(read.texts[1].contains("... and 900 more"));
    assert!(
        report.encoded.len() < 6 * 1024 * 1024,
        "{}",
        report.encoded.len()
    );
}
