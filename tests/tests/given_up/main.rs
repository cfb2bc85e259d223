//! Who dies or is given up, what he had, and what becomes of that. One program, because its tests wait most of their time (for rights to
//! run out, for claims to be taken over) and can wait together.

#[path = "../relay/mod.rs"]
mod relay;
mod support;

mod in_doubt;
mod poison;
mod right;
