//! RFC 3464 reports.
use crate::{progress::Progress, verdict::ReportSpec};
use pombo_proto::{
    ids::MessageId,
    message::{Envelope, Message},
    time::UnixMillis,
};

/// Who reports, when, under which id, and until when it is tried.
pub struct Reporter<'a> {
    /// The reporting MTA's host name.
    pub host: &'a str,
    pub now: UnixMillis,
    /// The report's own id ([`ReportSpec::id`]).
    pub id: MessageId,
    /// Will-Retry-Until ([`crate::schedule::Schedule::expires_at`]).
    pub retry_until: UnixMillis,
}

/// Builds the report. `head`: the original's body, or as much of its beginning as is at hand (may be empty).
pub fn build(
    reporter: &Reporter<'_>,
    original: &Envelope,
    head: &[u8],
    spec: &ReportSpec,
    progress: &Progress,
) -> Message {
    let _ = (reporter, original, head, spec, progress);
    unimplemented!()
}
