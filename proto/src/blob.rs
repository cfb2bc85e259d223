//! Large bodies, by reference: an object store that spoolers and agents share, keyed by message id.
//!
//! A body is written before its message is accepted and deleted, by whoever won the finish, after the commit. A process that
//! dies in between leaves an orphan, which [`Blobs::older_than`] finds. Names are `xx/id`, where `xx` is the id's last byte:
//! its first ones are a time, the same for decades.
//!
//! The store is a directory, or a bucket that speaks S3 ([`Place`]). Both say who they are by an object of their own, so that
//! two processes that mean different ones find out at logon.

use std::{
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, TryStreamExt, future::ready};
use object_store::{
    MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutPayload, local::LocalFileSystem,
    path::Path,
};
use uuid::Uuid;

use crate::{ids::MessageId, time::UnixMillis};

mod place;

pub use place::{Place, S3};

/// The object that holds the store's identity.
const IDENTITY: &str = "pombo-blob-store";
/// Parts of an upload are collected up to this size: object stores elsewhere refuse smaller ones.
const PART_BYTES: usize = 5 * 1024 * 1024;
/// In a bucket, larger bodies go in parts of this size: a request that fails is repeated whole, and has a time limit.
const PUT_PART_BYTES: usize = 8 * 1024 * 1024;

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
    /// Where it is one.
    directory: Option<Arc<FilePath>>,
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
        Self::new(Arc::new(store), Some(path)).await
    }

    /// Opens the store at this place. A bucket must exist; its identity is an object in it.
    ///
    /// # Errors
    /// It cannot be reached or written, or its identity cannot be read.
    pub async fn open(place: &Place) -> Result<Self, Error> {
        match place {
            Place::Directory(path) => Self::directory(path).await,
            Place::S3(s3) => Self::new(s3.open()?, None).await,
        }
    }

    async fn new(store: Arc<dyn ObjectStore>, directory: Option<&FilePath>) -> Result<Self, Error> {
        let identity = identity(&*store).await?;
        Ok(Self {
            store,
            identity: identity.to_string().into(),
            directory: directory.map(Into::into),
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
        if self.directory.is_some() || body.len() <= 2 * PUT_PART_BYTES {
            self.store.put(&name(id), body.into()).await?;
            return Ok(());
        }
        let mut upload = self.store.put_multipart(&name(id)).await?;
        match put_parts(&mut *upload, &body).await {
            Ok(()) => Ok(()),
            Err(error) => {
                // If this fails too, the bucket's own rule for uploads that were never completed takes them away.
                let _ = upload.abort().await;
                Err(error.into())
            }
        }
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

    /// Bodies that were written longer ago than `age`: candidates for orphans, since nothing lives that long. In no order; foreign
    /// files are passed over.
    ///
    /// # Errors
    /// The store is away.
    pub fn older_than(
        &self,
        age: Duration,
    ) -> impl Stream<Item = Result<MessageId, Error>> + use<> {
        let before = UnixMillis::now().before(age);
        self.written()
            .try_filter_map(move |(id, written)| ready(Ok((written < before).then_some(id))))
    }

    /// All bodies, and when they were written by the store's clock. In no order; foreign files are passed over.
    ///
    /// # Errors
    /// The store is away.
    pub fn written(&self) -> impl Stream<Item = Result<(MessageId, UnixMillis), Error>> + use<> {
        let objects = self.store.list(None);
        let all = objects.try_filter_map(move |object| {
            let written = u64::try_from(object.last_modified.timestamp_millis()).unwrap_or(0);
            let id = object
                .location
                .filename()
                .and_then(|name| name.parse().ok());
            let ours = id.filter(|id| name(*id) == object.location);
            ready(Ok(ours.map(|id| (id, UnixMillis(written)))))
        });
        all.map_err(Error::from)
    }

    /// Removes what uploads have left that began longer ago than `age` and never ended. In a directory only: a bucket has a rule for
    /// that (see `deploy/README.md`).
    ///
    /// # Returns
    /// How many.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn remove_unfinished(&self, age: Duration) -> Result<u64, Error> {
        let Some(directory) = self.directory.clone() else {
            return Ok(0);
        };
        let work = move || remove_staged(&directory, age);
        let removed = tokio::task::spawn_blocking(work).await;
        removed
            .map_err(|panic| Error::Unavailable(panic.to_string()))?
            .map_err(|error| Error::Unavailable(error.to_string()))
    }
}

/// The parts of a body that is in memory: no copies.
async fn put_parts(
    upload: &mut dyn MultipartUpload,
    body: &Bytes,
) -> Result<(), object_store::Error> {
    for start in (0..body.len()).step_by(PUT_PART_BYTES) {
        let end = body.len().min(start + PUT_PART_BYTES);
        upload
            .put_part(PutPayload::from(body.slice(start..end)))
            .await?;
    }
    upload.complete().await.map(drop)
}

/// What is being written has the name of its body, `#` and a number.
fn remove_staged(directory: &FilePath, age: Duration) -> std::io::Result<u64> {
    let now = SystemTime::now();
    let mut removed = 0;
    for folder in std::fs::read_dir(directory)? {
        let folder: PathBuf = folder?.path();
        let is_ours = folder
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.len() == 2 && u8::from_str_radix(name, 16).is_ok());
        if !is_ours {
            continue;
        }
        for file in std::fs::read_dir(folder)? {
            let file = file?;
            let name = file.file_name();
            let staged = name
                .to_str()
                .and_then(|name| name.split_once('#'))
                .is_some_and(|(id, number)| {
                    id.parse::<MessageId>().is_ok() && number.parse::<u64>().is_ok()
                });
            let old = |at: SystemTime| now.duration_since(at).is_ok_and(|since| since > age);
            // One that is gone has just become a body.
            let is_old = || {
                let written = file.metadata().and_then(|it| it.modified());
                written.is_ok_and(old)
            };
            if staged && is_old() {
                std::fs::remove_file(file.path())?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// A body that comes in parts. Dropped unfinished, it leaves nothing in a directory; what it leaves in a bucket, the bucket's own rule
/// takes away.
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
    let created = store.put_opts(&path, text, PutMode::Create.into()).await;
    // What is there counts, not what was drawn: a server that takes no conditions has kept the last of several, and one that does
    // refuses in its own way (412, 409, even 403 to who does not sign). Only where nothing is there is the refusal the answer.
    match (store.get(&path).await, created) {
        (Ok(found), _) => parse_identity(&found.bytes().await?),
        (Err(_), Err(refused)) => Err(refused.into()),
        (Err(error), Ok(_)) => Err(error.into()),
    }
}

fn parse_identity(bytes: &[u8]) -> Result<Uuid, Error> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::Damaged)?;
    Uuid::try_parse(text.trim()).map_err(|_| Error::Damaged)
}

#[cfg(test)]
mod tests;
