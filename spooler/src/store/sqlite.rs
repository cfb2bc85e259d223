//! x
pub struct Sqlite;
