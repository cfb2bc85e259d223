//! The agent against scripted spoolers and a scripted transport; the tests play the broker.

mod kit;
mod life;
mod reception;
mod submission;
