//! The schema: whose it is, which version, and the tables that are there from the start.

use pombo_proto::time::UnixMillis;

use super::{
    super::{Error, stored},
    Failure, Result, ledger,
    session::Session,
};

/// What `meta` says of a schema that is ours.
const APPLICATION: &str = "pombo";

/// Everybody who changes tables stands in line here; the number is "Pomb".
pub(super) const LOCK: &str =
    "SELECT pg_advisory_xact_lock(1349479778, hashtext(current_schema()))";

/// One step per version: the n-th leads from version n to n + 1. Steps are only ever added.
const MIGRATIONS: [&str; 6] = [FIRST, STRUCK, LEDGER, LISTS, ASKS, LATE];

/// `messages` holds one row per message, waiting or finished: the only arbiter. Its message is not compressed (mail hardly
/// shrinks) and lies beside the row once it is large, so that a claim does not rewrite it. What waits is found by partial indexes: a
/// message that finishes at once costs its primary key alone.
///
/// `tallies` holds differences: how many rows have come into each state, a line per transaction that moved any. Their sum is
/// what `counts` says. One line that everybody changes would make all spoolers stand in line.
const FIRST: &str = "
CREATE TABLE messages (
    id uuid NOT NULL,
    changed int8 NOT NULL,
    since int8 NOT NULL,
    fence int8 NOT NULL,
    due int8,
    wake int8,
    recorded_fence int8,
    part int4 NOT NULL,
    in_doubt int4 NOT NULL,
    deaths int4 NOT NULL,
    state int2 NOT NULL,
    priority int2 NOT NULL,
    cancel int2 NOT NULL,
    recorded_state int2,
    hold bool NOT NULL,
    doubt bool NOT NULL,
    holder uuid,
    recorded_by uuid,
    reason text NOT NULL,
    transport text COLLATE \"C\",
    destination text COLLATE \"C\",
    note bytea,
    progress bytea NOT NULL,
    message bytea NOT NULL,
    PRIMARY KEY (part, id)
) PARTITION BY LIST (part);
ALTER TABLE messages ALTER COLUMN message SET STORAGE EXTERNAL;
CREATE INDEX messages_order ON messages (priority, due, id) WHERE state = 1;
CREATE INDEX messages_lane ON messages (coalesce(transport, ''), coalesce(destination, ''), priority, due) WHERE state = 1;
CREATE INDEX messages_wake ON messages (wake) WHERE state = 1 AND wake IS NOT NULL;
CREATE INDEX messages_holder ON messages (holder) WHERE state = 2;
CREATE INDEX messages_since ON messages (since, id) WHERE state < 5;
CREATE INDEX messages_in_doubt ON messages (since, id) WHERE state < 5 AND in_doubt > 0;
CREATE TABLE messages_0 PARTITION OF messages FOR VALUES IN (0);
CREATE INDEX messages_0_age ON messages_0 (changed, id) WHERE state = 5;
CREATE TABLE tallies (
    waiting int8 NOT NULL,
    claimed int8 NOT NULL,
    held int8 NOT NULL,
    dead int8 NOT NULL
);
CREATE TABLE members (
    incarnation uuid PRIMARY KEY,
    counter int8 NOT NULL,
    name text NOT NULL
);
CREATE TABLE instances (
    instance uuid PRIMARY KEY,
    counter int8 NOT NULL,
    transport text NOT NULL,
    host text NOT NULL
);
";

/// Who was struck off, and when: null for who is listed; and since when a message may have been with somebody. What is in doubt
/// already may have been with anybody.
const STRUCK: &str = "
ALTER TABLE instances ADD COLUMN struck int8;
ALTER TABLE messages ADD COLUMN unsure_since int8 NOT NULL DEFAULT 0;
";

/// The ledger, and who does what one does at a time. `complete`: how many pages from the first on are complete, and not kept. The
/// columns `to_...` count recipients, those before them messages. `entries` holds what commits have left to be added up.
const LEDGER: &str = "
CREATE TABLE accounts (
    account int8 PRIMARY KEY,
    name text NOT NULL,
    confirmed int8 NOT NULL,
    voided int8 NOT NULL,
    complete int8 NOT NULL,
    rows int8 NOT NULL,
    delivered int8 NOT NULL,
    failed int8 NOT NULL,
    expired int8 NOT NULL,
    cancelled int8 NOT NULL,
    to_delivered int8 NOT NULL,
    to_failed int8 NOT NULL,
    to_expired int8 NOT NULL,
    to_cancelled int8 NOT NULL,
    changed int8 NOT NULL
);
CREATE TABLE pages (
    account int8 NOT NULL,
    page int8 NOT NULL,
    bits bytea NOT NULL,
    PRIMARY KEY (account, page)
);
CREATE TABLE entries (
    account int8 NOT NULL,
    rows int8 NOT NULL,
    delivered int8 NOT NULL,
    failed int8 NOT NULL,
    expired int8 NOT NULL,
    cancelled int8 NOT NULL,
    to_delivered int8 NOT NULL,
    to_failed int8 NOT NULL,
    to_expired int8 NOT NULL,
    to_cancelled int8 NOT NULL,
    changed int8 NOT NULL,
    numbers int8[] NOT NULL
);
CREATE TABLE chores (
    name text PRIMARY KEY,
    holder uuid,
    ended int8 NOT NULL
);
";

/// What does not wait is found among a million that do.
const LISTS: &str = "
CREATE INDEX messages_apart ON messages (state, since, id) WHERE state IN (2, 3, 4);
";

/// Who asks at the dot. Of what is there already nobody is known to have asked.
const ASKS: &str = "
ALTER TABLE messages ADD COLUMN asks text NOT NULL DEFAULT '';
";

/// What finished on a later day than that of its issue, by its last change: a part is dropped whole once nothing of it did so of
/// late. What finishes on its own day, as nearly everything does, is not in it.
const LATE: &str = "
CREATE INDEX messages_late ON messages (changed)
    WHERE state = 5 AND part > 0 AND changed >= (part::int8 + 1) * 86400000;
";

/// Makes the schema, or brings it up to date, under the lock: another process may be doing so.
pub(super) async fn migrate(session: &mut Session, schema: &str) -> Result<()> {
    if version(session, schema).await? == Some(MIGRATIONS.len()) {
        return Ok(());
    }
    session.begin().await?;
    // The schema may not be there yet, so the lock goes by the name that it will have.
    let lock = "SELECT pg_advisory_xact_lock(1349479778, hashtext($1))";
    session.client.execute(lock, &[&schema]).await?;
    let known = version(session, schema).await?;
    let from = known.unwrap_or_default();
    if known != Some(MIGRATIONS.len()) {
        let mut steps = String::from("SET LOCAL statement_timeout = '10min';");
        if known.is_none() {
            // Asked for only where it is needed: to make a schema takes a right that its owner need not have.
            if !exists(session, schema).await? {
                steps.push_str(&format!("CREATE SCHEMA \"{schema}\";"));
            }
            steps.push_str(
                "CREATE TABLE meta (application text NOT NULL, version int4 NOT NULL); \
                 INSERT INTO meta VALUES ('pombo', 0);",
            );
        }
        for step in &MIGRATIONS[from..] {
            steps.push_str(step);
        }
        steps.push_str(&format!("UPDATE meta SET version = {};", MIGRATIONS.len()));
        session.client.batch_execute(&steps).await?;
        if known.is_some_and(|version| version < 3) {
            ledger::begin(session, UnixMillis::now()).await?;
        }
        tracing::info!(schema, from, to = MIGRATIONS.len(), "store: migrated");
    }
    session.commit().await
}

async fn exists(session: &mut Session, schema: &str) -> Result<bool> {
    let found = session
        .client
        .query_opt("SELECT 1 FROM pg_namespace WHERE nspname = $1", &[&schema])
        .await?;
    Ok(found.is_some())
}

/// The version of a schema that is ours; `None` for one that is empty, or not there.
async fn version(session: &mut Session, schema: &str) -> Result<Option<usize>> {
    let unusable = |text: String| Err(Failure::Store(Error::Unusable(text)));
    let row = session
        .client
        .query_one(
            "SELECT count(*), count(*) FILTER (WHERE c.relname = 'meta') FROM pg_class c \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v')",
            &[&schema],
        )
        .await?;
    let (tables, meta): (i64, i64) = (row.get(0), row.get(1));
    if tables == 0 {
        return Ok(None);
    }
    let foreign = || unusable(format!("the schema {schema} is not one of ours"));
    if meta == 0 {
        return foreign();
    }
    let asked = session
        .client
        .query_one("SELECT application::text, version::int4 FROM meta", &[])
        .await;
    let row = match asked {
        Ok(row) => row,
        Err(error) if error.code().is_none() => return Err(error.into()),
        // Other columns than ours, or not one row.
        Err(_) => return foreign(),
    };
    if row.get::<_, &str>(0) != APPLICATION {
        return foreign();
    }
    let version: i32 = row.get(1);
    match usize::try_from(version) {
        Ok(version) if version <= MIGRATIONS.len() => Ok(Some(version)),
        _ => unusable(format!(
            "the schema has version {version}; this build knows up to {}",
            MIGRATIONS.len()
        )),
    }
}

/// What stands in the texts above and is a constant elsewhere.
const _: () = assert!(stored::WAITING == 1 && stored::CLAIMED == 2 && stored::FINISHED == 5);
