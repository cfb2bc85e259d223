//! The store's contract, on SQLite, one behaviour a test.

mod claims;
mod failures;
mod marks;
mod model;
mod parts;
mod people;
mod records;
mod support;
mod takeover;
mod thread;
