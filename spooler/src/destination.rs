//! Which destinations may be sent to, and how many messages at a time.
use std::time::Duration;
use pombo_proto::time::UnixMillis;

#[derive(Clone, Debug, PartialEq)]
pub struct Limits { pub concurrency: u32, pub concurrency_max: u32, pub rest_first: Duration, pub rest_max: Duration }

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MayStart { Yes, Full, ClosedUntil(UnixMillis) }

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It was reached (whatever it answered about recipients).
    Reached,
    /// It could not be reached, or said WAIT: closed for so long at least.
    Down(Duration),
    /// The attempt ended without touching it.
    Untold,
}
#[derive(Debug)]
pub struct Destinations {}
impl Destinations {
    pub fn new(limits: Limits) -> Self { let _ = limits; unimplemented!() }
    pub fn may_start(&self, now: UnixMillis, transport: &str, destination: &str) -> MayStart { let _ = (now, transport, destination); unimplemented!() }
    /// Each needs exactly one handle_result.
    pub fn handle_started(&mut self, now: UnixMillis, transport: &str, destination: &str) { let _ = (now, transport, destination); unimplemented!() }
    pub fn handle_result(&mut self, now: UnixMillis, transport: &str, destination: &str, reach: Reach) { let _ = (now, transport, destination, reach); unimplemented!() }
    /// For ClaimRequest::excluded: (transport, destination, until).
    pub fn closed(&self, now: UnixMillis) -> Vec<(String, String, UnixMillis)> { let _ = now; unimplemented!() }
}
