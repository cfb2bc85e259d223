//! What the link counts.

use metrics::{counter, gauge};

use super::PublishError;

pub(super) fn up(up: bool) {
    gauge!("pombo_link_up").set(if up { 1.0 } else { 0.0 });
}

/// An attempt to build the link after it was lost, or after an attempt that failed.
pub(super) fn reconnect() {
    counter!("pombo_link_reconnects_total").increment(1);
}

pub(super) fn packets_in(count: usize) {
    counter!("pombo_link_packets_total", "direction" => "in").increment(count as u64);
}

pub(super) fn packet_out() {
    counter!("pombo_link_packets_total", "direction" => "out").increment(1);
}

/// A packet that nobody wrote, because the broker takes nothing.
pub(super) fn packet_dropped() {
    counter!("pombo_link_packets_dropped_total").increment(1);
}

pub(super) fn packets_returned(count: usize) {
    counter!("pombo_link_packets_returned_total").increment(count as u64);
}

/// `what` is `packet` or `message`.
pub(super) fn unreadable(what: &'static str) {
    counter!("pombo_link_unreadable_total", "what" => what).increment(1);
}

/// Bytes for the dead queue that found no room while the broker was away.
pub(super) fn burial_dropped() {
    counter!("pombo_link_burials_dropped_total").increment(1);
}

pub(super) fn leases(count: usize) {
    counter!("pombo_link_leases_total").increment(count as u64);
}

pub(super) fn unconfirmed(count: usize) {
    gauge!("pombo_link_confirms_outstanding").set(count as f64);
}

pub(super) fn published(result: &Result<(), PublishError>) {
    let result = match result {
        Ok(()) => "confirmed",
        Err(PublishError::NotConnected) => "not_connected",
        Err(PublishError::Unknown(_)) => "unknown",
        Err(PublishError::Refused(_)) => "refused",
    };
    counter!("pombo_link_publishes_total", "result" => result).increment(1);
}
