//! Lists, and changes of all that a filter means: slice by slice.
//!
//! The store's thread does one thing at a time, and a membership ends if its renewal waits for some seconds. So nobody who asks what
//! waits, or changes it, has the thread for longer than one slice takes: each is a call of its own, and what else is to be
//! done comes between. What changes between two slices may be seen before or after; nothing is seen twice.

use pombo_proto::{
    control::{QueueFilter, QueueState},
    time::UnixMillis,
};

use super::{Change, Error, Place, Row, Store, StoreThread};

/// Rows in a list, if the filter says nothing.
const LISTED_DEFAULT: usize = 1_000;
/// Rows in a list, whatever the filter says.
const LISTED_MAX: usize = 10_000;
/// Rows that one slice gives at most; how many it looks at is the store's affair.
const SLICE_ROWS: usize = 1_000;
/// Rows that are changed in one call, and one transaction: some tens of milliseconds.
const CHANGED_AT_ONCE: usize = 100;

/// A list that is being read.
#[derive(Debug)]
pub struct Listing {
    filter: QueueFilter,
    left: usize,
    after: Option<Place>,
    ended: bool,
}

impl Listing {
    /// Of what a filter means, up to its limit.
    pub fn new(filter: QueueFilter) -> Self {
        let left = match filter.limit as usize {
            0 => LISTED_DEFAULT,
            limit => limit.min(LISTED_MAX),
        };
        Self {
            filter,
            left,
            after: None,
            ended: false,
        }
    }

    /// Whether that was all.
    pub fn is_over(&self) -> bool {
        self.ended || self.left == 0
    }

    /// The next slice, of so many rows at most; it may be empty, and more follow.
    ///
    /// # Errors
    /// The store's. The same slice may be asked for again.
    pub fn next(&mut self, store: &mut dyn Store, rows: usize) -> Result<Vec<Row>, Error> {
        if self.is_over() {
            return Ok(Vec::new());
        }
        let slice = store.list(&self.filter, rows.min(self.left), self.after.as_ref())?;
        self.left = self.left.saturating_sub(slice.rows.len());
        self.ended = slice.next.is_none();
        self.after = slice.next;
        Ok(slice.rows)
    }
}

impl StoreThread {
    /// What a filter means, oldest first, each row as `of` makes it.
    ///
    /// # Errors
    /// See [`StoreThread::call`].
    pub async fn list<T: Send + 'static>(
        &self,
        filter: QueueFilter,
        of: impl Fn(&Row) -> T + Clone + Send + 'static,
    ) -> Result<Vec<T>, Error> {
        let newest_first = filter.state == Some(QueueState::Finished);
        let slices = self
            .in_slices(filter, SLICE_ROWS, move |_, rows| {
                Ok(rows.iter().map(&of).collect::<Vec<_>>())
            })
            .await?;
        let mut all: Vec<T> = slices.into_iter().flatten().collect();
        if newest_first {
            all.reverse();
        }
        Ok(all)
    }

    /// Changes what a filter means, in the state that the change is for: how many rows.
    ///
    /// # Errors
    /// See [`StoreThread::call`]. What had been changed by then stays so.
    pub async fn change_matching(
        &self,
        now: UnixMillis,
        mut filter: QueueFilter,
        change: Change,
    ) -> Result<u64, Error> {
        filter.state = Some(match change {
            Change::Retry | Change::Hold | Change::Cancel => QueueState::Waiting,
            Change::Release => QueueState::Held,
            Change::Requeue | Change::Drop => QueueState::Dead,
        });
        if filter.limit == 0 {
            // Asked again, it goes on.
            filter.limit = LISTED_MAX as u32;
        }
        let doubted_too = filter.in_doubt;
        let counts = self
            .in_slices(filter, CHANGED_AT_ONCE, move |store, rows| {
                // What may have been sent is sent again only by a person who means it.
                let meant =
                    |row: &&Row| change != Change::Release || doubted_too || row.data.in_doubt == 0;
                let ids: Vec<_> = rows.iter().filter(meant).map(|row| row.id).collect();
                store.change_all(now, &ids, change)
            })
            .await?;
        Ok(counts.into_iter().sum())
    }

    /// What `work` makes of each slice, in the call that read it.
    async fn in_slices<T: Send + 'static>(
        &self,
        filter: QueueFilter,
        rows: usize,
        work: impl Fn(&mut dyn Store, Vec<Row>) -> Result<T, Error> + Clone + Send + 'static,
    ) -> Result<Vec<T>, Error> {
        let mut listing = Listing::new(filter);
        let mut made = Vec::new();
        while !listing.is_over() {
            let work = work.clone();
            let slice = move |store: &mut dyn Store| {
                let rows = listing.next(store, rows)?;
                Ok((work(store, rows)?, listing))
            };
            let (done, rest) = self.call(slice).await?;
            listing = rest;
            made.push(done);
        }
        Ok(made)
    }
}
