//! What the host asks of the link, so that its tests can play the broker.

use futures_util::future::{BoxFuture, FutureExt};
use pombo_proto::{
    frame::Packet,
    link::{Audience, Link, PublishError, SpoolPublish},
};

/// The link, as the host sees it. What comes in comes as [`super::Linked`].
pub trait Wire: Send + Sync + 'static {
    /// To one inbox. Dropped if the link is down.
    fn send(&self, packet: &Packet);
    /// To everybody of an audience. Dropped if the link is down.
    fn announce(&self, audience: Audience, packet: &Packet);
    /// Into the spool; resolves when it is confirmed and routed.
    fn publish(&self, publish: SpoolPublish) -> BoxFuture<'static, Result<(), PublishError>>;
    /// Asks for the turn to poll.
    fn poll_turn(&self, transport: &str, wanted: bool);
}

impl Wire for Link {
    fn send(&self, packet: &Packet) {
        Self::send(self, packet);
    }

    fn announce(&self, audience: Audience, packet: &Packet) {
        Self::announce(self, audience, packet);
    }

    fn publish(&self, publish: SpoolPublish) -> BoxFuture<'static, Result<(), PublishError>> {
        Self::publish(self, publish).boxed()
    }

    fn poll_turn(&self, transport: &str, wanted: bool) {
        Self::poll_turn(self, transport, wanted);
    }
}
