//! When a message is tried again, warned about, given up.
use std::time::Duration;
use pombo_proto::{ids::MessageId, message::Envelope, time::UnixMillis};

#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pub first: Duration, pub factor: f64, pub max: Duration, pub jitter: f64,
    pub life: Duration, pub delay_warning: Duration, pub kept: Duration,
    pub busy: Duration, pub wait_min: Duration, pub wait_max: Duration,
}
impl Schedule {
    pub fn next_try(&self, now: UnixMillis, tries: u32, id: MessageId) -> UnixMillis { let _ = (now, tries, id); unimplemented!() }
    /// WAIT(n).
    pub fn wait(&self, now: UnixMillis, asked: Duration, tries: u32, id: MessageId) -> UnixMillis { let _ = (now, asked, tries, id); unimplemented!() }
    pub fn expires_at(&self, envelope: &Envelope) -> UnixMillis { let _ = envelope; unimplemented!() }
    pub fn warns_at(&self, envelope: &Envelope) -> Option<UnixMillis> { let _ = envelope; unimplemented!() }
}
