//! Which transport takes a recipient.
use pombo_proto::{message::Recipient, verbs::AddressTypes};

#[derive(Debug)]
pub struct Router {}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    Transport(&'a str),
    Nobody,
    /// This transport might, and has not yet told its address types.
    Unknown(&'a str),
}
impl Router {
    /// The configured transport order. Others may join by `set_address_types`; they go after these, by name.
    pub fn new(order: &[String]) -> Self { let _ = order; unimplemented!() }
    pub fn set_address_types(&mut self, transport: &str, types: &AddressTypes) { let _ = (transport, types); unimplemented!() }
    /// Whether there is a session to it. Routes do not depend on it; the order in which a message's transports are tried does.
    pub fn set_available(&mut self, transport: &str, available: bool) { let _ = (transport, available); unimplemented!() }
    pub fn is_available(&self, transport: &str) -> bool { let _ = transport; unimplemented!() }
    pub fn route(&self, recipient: &Recipient, passed: &[String]) -> Route<'_> { let _ = (recipient, passed); unimplemented!() }
}
/// The domain for SMTP; "" for others.
pub fn destination(recipient: &Recipient) -> &str { let _ = recipient; unimplemented!() }
