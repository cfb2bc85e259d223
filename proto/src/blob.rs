//! Large bodies, by reference: an object store that spoolers and agents share, keyed by message id.

use bytes::Bytes;

use crate::ids::MessageId;

/// What can go wrong with the blob store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such body.
    #[error("no body for {0} in the blob store")]
    Missing(MessageId),
    /// The store is full, read-only or away.
    #[error("the blob store is not available: {0}")]
    Unavailable(String),
}

/// The blob store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Blobs {
    store: std::sync::Arc<dyn object_store::ObjectStore>,
    identity: String,
}
impl Blobs {
    /// Opens (and creates, if it is not there) a directory, with fsync. The identity is a random id kept in a file in it.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub async fn directory(path: &std::path::Path) -> Result<Self, Error> {
        let _ = path;
        Err(Error::Unavailable(String::new()))
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
        let _ = (id, body, &self.store);
        Err(Error::Unavailable(String::new()))
    }
    /// Reads a body whole.
    ///
    /// # Errors
    /// Missing, or the store is away.
    pub async fn get(&self, id: MessageId) -> Result<Bytes, Error> {
        Err(Error::Missing(id))
    }
    /// Deletes a body; fine if it is not there.
    ///
    /// # Errors
    /// The store is away.
    pub async fn delete(&self, id: MessageId) -> Result<(), Error> {
        let _ = id;
        Ok(())
    }
}
