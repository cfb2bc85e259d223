//! The store's contract, one behaviour a test: the same tests on SQLite and on PostgreSQL, and what each has of its own.

mod support;

/// On a file.
#[path = "."]
mod sqlite {
    pub use self::backend::*;

    #[path = "on_sqlite.rs"]
    mod backend;
    #[path = "failures.rs"]
    mod failures;

    #[path = "claims.rs"]
    mod claims;
    #[path = "ledger.rs"]
    mod ledger;
    #[path = "listing.rs"]
    mod listing;
    #[path = "marks.rs"]
    mod marks;
    #[path = "model/mod.rs"]
    mod model;
    #[path = "parts.rs"]
    mod parts;
    #[path = "people.rs"]
    mod people;
    #[path = "records.rs"]
    mod records;
    #[path = "takeover.rs"]
    mod takeover;
    #[path = "thread.rs"]
    mod thread;
}

/// On a server.
#[cfg(feature = "postgres")]
#[allow(clippy::duplicate_mod, reason = "the same tests again are the point")]
#[path = "."]
mod postgres {
    pub use self::backend::*;

    #[path = "away.rs"]
    mod away;
    #[path = "on_postgres.rs"]
    mod backend;
    #[path = "server.rs"]
    mod server;

    #[path = "claims.rs"]
    mod claims;
    #[path = "ledger.rs"]
    mod ledger;
    #[path = "listing.rs"]
    mod listing;
    #[path = "marks.rs"]
    mod marks;
    #[path = "model/mod.rs"]
    mod model;
    #[path = "parts.rs"]
    mod parts;
    #[path = "people.rs"]
    mod people;
    #[path = "records.rs"]
    mod records;
    #[path = "takeover.rs"]
    mod takeover;
    #[path = "thread.rs"]
    mod thread;
}
