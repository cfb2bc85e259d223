//! Whatever comes from outside, by the broker or by the doors: no process dies of it, what was a message is kept for a person
//! to look at, and mail goes on.

#[path = "../relay/mod.rs"]
mod relay;
mod support;

mod limits;
mod messages;
mod packets;
mod smuggling;
