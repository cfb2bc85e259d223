//! The link against a real broker: what is confirmed, leased, acked, told, returned, buried and rebuilt.

mod mischief;
mod peer;

mod closing;
mod connection;
mod packets;
mod queues;
mod spool;
