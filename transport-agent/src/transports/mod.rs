//! The transports that come with Pombo, one folder each.

pub mod maildir;
pub mod null;
pub mod skeleton;
pub mod smtp;
pub mod smtp_listener;
