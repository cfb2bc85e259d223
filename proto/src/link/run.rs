//! x
use super::*;
pub(super) struct Shared;
pub(super) fn start(_: Options, _: Box<dyn Fn(Event) + Send + Sync>) -> Arc<Shared> {
    unimplemented!()
}
impl Shared {
    pub fn send(&self, _: &Packet) {}
    pub fn announce(&self, _: Audience, _: &Packet) {}
    pub fn publish(
        &self,
        _: SpoolPublish,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static {
        async { Ok(()) }
    }
    pub fn ack(&self, _: Vec<LeaseTag>) {}
    pub fn lease(&self, _: SpoolClass, _: u16) {}
    pub fn poll_turn(&self, _: &str, _: bool) {}
    pub fn bury(&self, _: Bytes, _: &str) {}
    pub fn restart(&self) {}
    pub fn is_up(&self) -> bool {
        false
    }
    pub async fn close(&self) {}
}
