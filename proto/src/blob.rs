//! Large bodies, by reference: an object store that spoolers and agents share, keyed by message id.
//!
//! A body is written before its message is accepted and deleted, by whoever won the finish, after the commit. A process that
//! dies in between leaves an orphan, which [`Blobs::older_than`] finds. Names are `xx/id`, where `xx` is the id's last byte:
//! its first ones are a time, the same for decades.

use std::{path::Path as FilePath, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use object_store::{
    MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutPayload, local::LocalFileSystem,
    path::Path,
};
use uuid::Uuid;

use crate::{ids::MessageId, time::UnixMillis};

/// The object that holds the store's identity.
const IDENTITY: &str = "pombo-blob-store";
/// Parts of an upload are collected up to this size: object stores elsewhere refuse smaller ones.
const PART_BYTES: usize = 5 * 1024 * 1024;
/// Orphans found in one call.
const OLDER_MAX: usize = 10_000;

/// What can go wrong with the blob store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such body.
    #[error("no body for {0} in the blob store")]
    Missing(MessageId),
    /// The body is larger than the caller can take.
    #[error("the body of {id} has more than {limit} bytes")]
    TooLarge {
        /// Whose body.
        id: MessageId,
        /// The caller's limit, in bytes.
        limit: u64,
    },
    /// What is there is not one of ours.
    #[error("the blob store's identity file is damaged")]
    Damaged,
    /// The store is full, read-only or away.
    #[error("the blob store is not available: {0}")]
    Unavailable(String),
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// The blob store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    identity: Arc<str>,
}

impl Blobs {
    /// Opens (and creates, if it is not there) a directory, with fsync. The identity is a random id kept in a file in it.
    ///
    /// # Errors
    /// The directory cannot be made or written, or its identity cannot be read.
    pub async fn directory(path: &FilePath) -> Result<Self, Error> {
        make_private(path)
            .map_err(|error| Error::Unavailable(format!("{}: {error}", path.display())))?;
        let store = LocalFileSystem::new_with_prefix(path)?.with_fsync(true);
        Self::new(Arc::new(store)).await
    }

    async fn new(store: Arc<dyn ObjectStore>) -> Result<Self, Error> {
        let identity = identity(&*store).await?;
        Ok(Self {
            store,
            identity: identity.to_string().into(),
        })
    }

    /// What both sides compare at logon.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Keeps a body, durable when it returns. Overwriting the same id with the same bytes is fine.
    ///
    /// # Errors
    /// It could not be written.
    pub async fn put(&self, id: MessageId, body: Bytes) -> Result<(), Error> {
        self.store.put(&name(id), body.into()).await?;
        Ok(())
    }

    /// Reads a body whole, if it has no more than `limit` bytes.
    ///
    /// # Errors
    /// Missing, too large, or the store is away.
    pub async fn get(&self, id: MessageId, limit: u64) -> Result<Bytes, Error> {
        let found = match self.store.get(&name(id)).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Err(Error::Missing(id)),
            Err(error) => return Err(error.into()),
        };
        if found.meta.size > limit {
            return Err(Error::TooLarge { id, limit });
        }
        Ok(found.bytes().await?)
    }

    /// Reads the beginning of a body: at most `bytes` bytes of it.
    ///
    /// # Errors
    /// Missing, or the store is away.
    pub async fn get_head(&self, id: MessageId, bytes: u64) -> Result<Bytes, Error> {
        match self.store.get_range(&name(id), 0..bytes).await {
            Ok(head) => Ok(head),
            Err(object_store::Error::NotFound { .. }) => Err(Error::Missing(id)),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes a body; fine if it is not there.
    ///
    /// # Errors
    /// The store is away.
    pub async fn delete(&self, id: MessageId) -> Result<(), Error> {
        match self.store.delete(&name(id)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Begins a body that comes in parts, of at most `limit` bytes in all. Nobody sees it before [`Upload::finish`].
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn begin(&self, id: MessageId, limit: u64) -> Result<Upload, Error> {
        Ok(Upload {
            id,
            limit,
            size: 0,
            collected: BytesMut::new(),
            upload: self.store.put_multipart(&name(id)).await?,
        })
    }

    /// Bodies that were written longer ago than `age`: candidates for orphans, since nothing lives that long. At most
    /// 10,000, in no order; foreign files are passed over.
    ///
    /// # Errors
    /// The store is away.
    pub async fn older_than(&self, age: Duration) -> Result<Vec<MessageId>, Error> {
        let before = UnixMillis::now().before(age);
        let mut objects = self.store.list(None);
        let mut old = Vec::new();
        while old.len() < OLDER_MAX
            && let Some(object) = objects.try_next().await?
        {
            let written = u64::try_from(object.last_modified.timestamp_millis()).unwrap_or(0);
            let id = object
                .location
                .filename()
                .and_then(|name| name.parse().ok());
            if let Some(id) = id.filter(|id| name(*id) == object.location)
                && UnixMillis(written) < before
            {
                old.push(id);
            }
        }
        Ok(old)
    }
}

/// A body that comes in parts. Dropped unfinished, it leaves nothing behind.
#[derive(Debug)]
pub struct Upload {
    id: MessageId,
    limit: u64,
    size: u64,
    collected: BytesMut,
    upload: Box<dyn MultipartUpload>,
}

impl Upload {
    /// Whose body it is going to be.
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// How many bytes it has so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds to it. Holds no more than one part of 5 MiB (and the one given) in memory.
    ///
    /// # Returns
    /// How many bytes it has now.
    ///
    /// # Errors
    /// Over the limit (nothing was added), or it cannot be written: abandon it then.
    pub async fn part(&mut self, bytes: Bytes) -> Result<u64, Error> {
        let size = self.size + bytes.len() as u64;
        if size > self.limit {
            return Err(Error::TooLarge {
                id: self.id,
                limit: self.limit,
            });
        }
        self.size = size;
        self.collected.extend_from_slice(&bytes);
        while self.collected.len() >= PART_BYTES {
            let part = self.collected.split_to(PART_BYTES).freeze();
            self.upload.put_part(PutPayload::from(part)).await?;
        }
        Ok(size)
    }

    /// Makes it the body of its id, durable when it returns.
    ///
    /// # Returns
    /// How many bytes it has.
    ///
    /// # Errors
    /// It could not be written; nothing is there then.
    pub async fn finish(mut self) -> Result<u64, Error> {
        if !self.collected.is_empty() {
            let last = self.collected.split().freeze();
            self.upload.put_part(PutPayload::from(last)).await?;
        }
        self.upload.complete().await?;
        Ok(self.size)
    }

    /// Throws it away.
    ///
    /// # Errors
    /// What was uploaded could not be deleted.
    pub async fn abandon(mut self) -> Result<(), Error> {
        Ok(self.upload.abort().await?)
    }
}

fn name(id: MessageId) -> Path {
    let last = id.0.as_bytes()[15];
    Path::from(format!("{last:02x}/{id}"))
}

/// Bodies are people's mail: for their owner alone.
fn make_private(path: &FilePath) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// The store's identity; drawn if it has none. Of two processes that start at once, one creates and both read.
async fn identity(store: &dyn ObjectStore) -> Result<Uuid, Error> {
    let path = Path::from(IDENTITY);
    match store.get(&path).await {
        Ok(found) => return parse_identity(&found.bytes().await?),
        Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let drawn = Uuid::new_v4();
    let text = PutPayload::from(format!("{drawn}\n").into_bytes());
    match store.put_opts(&path, text, PutMode::Create.into()).await {
        Ok(_) => Ok(drawn),
        Err(object_store::Error::AlreadyExists { .. }) => {
            parse_identity(&store.get(&path).await?.bytes().await?)
        }
        Err(error) => Err(error.into()),
    }
}

fn parse_identity(bytes: &[u8]) -> Result<Uuid, Error> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::Damaged)?;
    Uuid::try_parse(text.trim()).map_err(|_| Error::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 64 * 1024 * 1024;

    async fn blobs() -> (tempfile::TempDir, Blobs) {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Blobs::directory(&directory.path().join("blobs"))
            .await
            .unwrap();
        (directory, blobs)
    }

    fn id(n: u64) -> MessageId {
        MessageId::derived("test", &n.to_be_bytes())
    }

    #[tokio::test]
    async fn a_body_is_kept_replaced_and_deleted() {
        let (_directory, blobs) = blobs().await;
        assert!(
            matches!(blobs.get(id(1), LIMIT).await, Err(Error::Missing(missing)) if missing == id(1))
        );
        for _ in 0..2 {
            blobs.put(id(1), Bytes::from_static(b"body")).await.unwrap();
        }
        assert_eq!(blobs.get(id(1), 4).await.unwrap(), "body");
        for _ in 0..2 {
            blobs.delete(id(1)).await.unwrap();
        }
        assert!(matches!(
            blobs.get(id(1), LIMIT).await,
            Err(Error::Missing(_))
        ));
    }

    #[tokio::test]
    async fn a_body_over_the_readers_limit_is_not_read() {
        let (_directory, blobs) = blobs().await;
        blobs.put(id(1), Bytes::from_static(b"body")).await.unwrap();
        let refused = blobs.get(id(1), 3).await;
        assert!(matches!(refused, Err(Error::TooLarge { limit: 3, .. })));
    }

    #[tokio::test]
    async fn the_identity_is_drawn_once_whoever_comes_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shared");
        let both = tokio::join!(
            Blobs::directory(&path),
            Blobs::directory(&path),
            Blobs::directory(&path)
        );
        let first = both.0.unwrap();
        assert_eq!(first.identity(), both.1.unwrap().identity());
        assert_eq!(first.identity(), both.2.unwrap().identity());
        assert_eq!(
            first.identity(),
            Blobs::directory(&path).await.unwrap().identity()
        );
        let other = Blobs::directory(&directory.path().join("other"))
            .await
            .unwrap();
        assert_ne!(first.identity(), other.identity());
    }

    #[tokio::test]
    async fn a_damaged_identity_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(IDENTITY), b"\xffno id").unwrap();
        let refused = Blobs::directory(directory.path()).await;
        assert!(matches!(refused, Err(Error::Damaged)));
    }

    #[tokio::test]
    async fn a_store_that_is_away_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blobs");
        let blobs = Blobs::directory(&path).await.unwrap();
        // A file where the directory was: nothing can be written there, whoever runs this test.
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::write(&path, b"").unwrap();
        let refused = blobs.put(id(1), Bytes::from_static(b"body")).await;
        assert!(matches!(refused, Err(Error::Unavailable(_))));
        let refused = Blobs::directory(&path).await;
        assert!(matches!(refused, Err(Error::Unavailable(_))));
    }

    #[tokio::test]
    async fn an_upload_in_parts_appears_whole_when_it_is_finished() {
        let (_directory, blobs) = blobs().await;
        let part = Bytes::from((0..=255).cycle().take(3_000_000).collect::<Vec<u8>>());
        let mut upload = blobs.begin(id(1), LIMIT).await.unwrap();
        for n in 1..=4 {
            let size = upload.part(part.clone()).await.unwrap();
            assert_eq!(size, n * 3_000_000);
            assert!(upload.collected.len() < PART_BYTES);
        }
        assert!(matches!(
            blobs.get(id(1), LIMIT).await,
            Err(Error::Missing(_))
        ));
        assert_eq!(upload.finish().await.unwrap(), 12_000_000);
        assert_eq!(blobs.get(id(1), LIMIT).await.unwrap(), part.repeat(4));
    }

    #[tokio::test]
    async fn an_upload_over_its_limit_is_refused_and_goes_on_without_what_was_too_much() {
        let (_directory, blobs) = blobs().await;
        let mut upload = blobs.begin(id(1), 6).await.unwrap();
        upload.part(Bytes::from_static(b"four")).await.unwrap();
        let refused = upload.part(Bytes::from_static(b"three")).await;
        assert!(matches!(refused, Err(Error::TooLarge { limit: 6, .. })));
        assert_eq!(upload.size(), 4);
        upload.part(Bytes::from_static(b"as")).await.unwrap();
        assert_eq!(upload.finish().await.unwrap(), 6);
        assert_eq!(blobs.get(id(1), LIMIT).await.unwrap(), "fouras");
    }

    #[tokio::test]
    async fn an_empty_upload_is_an_empty_body() {
        let (_directory, blobs) = blobs().await;
        let upload = blobs.begin(id(1), 0).await.unwrap();
        assert_eq!(upload.finish().await.unwrap(), 0);
        assert_eq!(blobs.get(id(1), 0).await.unwrap(), "");
    }

    #[tokio::test]
    async fn an_abandoned_upload_leaves_nothing() {
        let (directory, blobs) = blobs().await;
        let mut upload = blobs.begin(id(1), LIMIT).await.unwrap();
        upload.part(Bytes::from(vec![7; PART_BYTES])).await.unwrap();
        upload.abandon().await.unwrap();
        let folder = directory
            .path()
            .join("blobs")
            .join(&name(id(1)).as_ref()[..2]);
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn old_bodies_are_found_and_foreign_files_are_not() {
        let (directory, blobs) = blobs().await;
        blobs.put(id(1), Bytes::from_static(b"old")).await.unwrap();
        blobs.put(id(2), Bytes::from_static(b"new")).await.unwrap();
        let root = directory.path().join("blobs");
        let old = std::time::SystemTime::now() - Duration::from_secs(3_600);
        let file = std::fs::File::options()
            .write(true)
            .open(root.join(name(id(1)).as_ref()))
            .unwrap();
        file.set_modified(old).unwrap();
        std::fs::write(root.join("stranger"), b"").unwrap();
        let found = blobs.older_than(Duration::from_secs(600)).await.unwrap();
        assert_eq!(found, [id(1)]);
    }

    #[test]
    fn names_are_spread_by_what_differs() {
        let mut door = crate::ids::DoorSequence::default();
        let now = UnixMillis::now();
        let folders: std::collections::HashSet<_> = (0..256)
            .map(|_| name(door.issue(now)).as_ref()[..2].to_owned())
            .collect();
        assert_eq!(folders.len(), 256);
    }
}
