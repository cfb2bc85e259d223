//! The decoders of what is picked up, as a fuzzer calls them; see [`crate::fuzzing`].

use pombo_proto::time::UnixMillis;

use super::{
    config::Recipients,
    envelope::{self, Rules},
    fields,
};

/// A file in a drop folder.
pub fn file(file: &[u8]) {
    let header = fields::header(file);
    assert!(file.starts_with(header));
    let split: Vec<u8> = fields::split(header)
        .flat_map(|field| field.whole().to_vec())
        .collect();
    assert!(header.starts_with(&split));
    let fixed = Recipients::Fixed(vec!["ann@example.org".to_owned()]);
    for recipients in [Recipients::Headers, fixed] {
        let rules = Rules {
            recipients,
            sender: None,
        };
        let now = UnixMillis(1_700_000_000_000);
        let Ok(letter) = envelope::read(file, &rules, "mx.example.org", now) else {
            continue;
        };
        assert!(!letter.recipients.is_empty());
        for address in letter.recipients.iter().chain([&letter.sender]) {
            assert!(!address.chars().any(char::is_control), "{address:?}");
        }
        let private = fields::split(fields::header(&letter.body)).any(|field| field.is("bcc"));
        assert!(!(private && rules.recipients == Recipients::Headers));
    }
}
