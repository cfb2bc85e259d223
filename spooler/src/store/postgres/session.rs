//! One connection: how it is made, what it is told first, the statements that it has prepared.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use tokio_postgres::{Client, Statement};

use super::{Error, Failure, Options, Result, said};

/// The pauses between two attempts to connect: short, because a member that cannot renew for ten seconds is given up.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How connections are made: not more often than there is sense in it.
#[derive(Debug, Default)]
pub(super) struct Connecting {
    pause: Duration,
    /// Not before then; and why.
    refused: Option<(Instant, String)>,
}

impl Connecting {
    /// A connection that is ready for work.
    pub async fn connect(&mut self, options: &Options) -> Result<Session, Error> {
        if let Some((until, why)) = &self.refused
            && Instant::now() < *until
        {
            return Err(Error::Unavailable(why.clone()));
        }
        let opened = tokio::time::timeout(options.patience, Session::open(options)).await;
        match opened {
            Ok(Ok(session)) => {
                *self = Self::default();
                Ok(session)
            }
            Ok(Err(Error::Unavailable(why))) => Err(self.failed(why)),
            Ok(Err(unusable)) => {
                let _ = self.failed(unusable.to_string());
                Err(unusable)
            }
            Err(_) => Err(self.failed(format!("no answer within {:?}", options.patience))),
        }
    }

    /// It is away: the next attempt comes after a pause, longer each time, and not at the same instant as everybody's.
    pub fn failed(&mut self, why: String) -> Error {
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        let jitter = self.pause.mul_f64(fastrand::f64() / 2.0);
        self.refused = Some((Instant::now() + self.pause - jitter, why.clone()));
        Error::Unavailable(why)
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    pub client: Client,
    /// Moves the bytes; runs while the store's thread waits for an answer.
    driver: JoinHandle<()>,
    statements: HashMap<&'static str, Statement>,
    /// A transaction is open that an error would leave open.
    pub in_transaction: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Session {
    async fn open(options: &Options) -> Result<Self, Error> {
        let (config, tls) = options.connector()?;
        let (client, connection) = config.connect(tls).await.map_err(Failure::from)?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = said(&error), "store: the connection has ended");
            }
        });
        let mut session = Self {
            client,
            driver,
            statements: HashMap::new(),
            in_transaction: false,
        };
        session.set_up(options).await?;
        Ok(session)
    }

    async fn set_up(&mut self, options: &Options) -> Result<(), Error> {
        let row = self
            .client
            .query_one(
                "SELECT current_setting('synchronous_commit'), current_setting('fsync'), \
                 current_setting('server_encoding'), current_setting('server_version_num')::int4",
                &[],
            )
            .await
            .map_err(Failure::from)?;
        let (commit, fsync, encoding): (String, String, String) =
            (row.get(0), row.get(1), row.get(2));
        let version: i32 = row.get(3);
        let refuse = |text: String| Err(Error::Unusable(text));
        if commit == "off" {
            let text = "the server has synchronous_commit=off: what it has committed, it may forget; set it to on";
            return refuse(text.to_owned());
        }
        if fsync == "off" {
            let text =
                "the server has fsync=off: what it has committed, it may forget; set it to on";
            return refuse(text.to_owned());
        }
        if encoding != "UTF8" {
            return refuse(format!(
                "the database's encoding is {encoding}; it must be UTF8"
            ));
        }
        if version < 140_000 {
            return refuse(format!(
                "the server's version is {version}; it must be 14 or newer"
            ));
        }
        let patience = options.patience.as_millis();
        // A lock is given up before the statement, and the statement before we give up the connection.
        let (lock, statement) = (patience * 3 / 5, patience * 4 / 5);
        // Plans: everything here is a look-up by an index. What the statistics of tables that double in an hour suggest instead
        // (sorting all that waits, say) is never better, so the choice is not left to them; nor is a plan made anew each time.
        let settings = format!(
            "SET search_path = \"{schema}\"; \
             SET synchronous_commit = {commit}; \
             SET default_transaction_isolation = 'read committed'; \
             SET statement_timeout = {statement}; SET lock_timeout = {lock}; \
             SET idle_in_transaction_session_timeout = {patience}; SET tcp_user_timeout = {patience}; \
             SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; \
             SET plan_cache_mode = force_generic_plan; SET jit = off; SET work_mem = '32MB'; \
             SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off; \
             SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off; \
             SET client_min_messages = warning",
            schema = options.schema,
        );
        self.client
            .batch_execute(&settings)
            .await
            .map_err(Failure::from)?;
        Ok(())
    }

    /// Whether it has not been closed, as far as we know.
    pub fn stands(&self) -> bool {
        !self.client.is_closed()
    }

    /// After an error: whether it can be used again. Ends what transaction is open.
    pub async fn recover(&mut self, patience: Duration) -> bool {
        if !self.stands() {
            return false;
        }
        if !std::mem::take(&mut self.in_transaction) {
            return true;
        }
        let ended = tokio::time::timeout(patience, self.client.batch_execute("ROLLBACK")).await;
        matches!(ended, Ok(Ok(())))
    }

    /// Prepared once in the life of the connection.
    pub async fn prepared(&mut self, sql: &'static str) -> Result<Statement> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }

    /// Opens a transaction of several round trips.
    pub async fn begin(&mut self) -> Result<()> {
        self.in_transaction = true;
        self.client.batch_execute("BEGIN").await?;
        Ok(())
    }

    /// Commits it. An error here means that it may or may not have happened.
    pub async fn commit(&mut self) -> Result<()> {
        self.client.batch_execute("COMMIT").await?;
        self.in_transaction = false;
        Ok(())
    }

    /// Undoes it.
    pub async fn roll_back(&mut self) -> Result<()> {
        self.client.batch_execute("ROLLBACK").await?;
        self.in_transaction = false;
        Ok(())
    }
}
