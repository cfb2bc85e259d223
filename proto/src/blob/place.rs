//! Where the blob store is: a directory, or a bucket that speaks S3.

use std::{path::PathBuf, sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig, aws::AmazonS3Builder, path::Path,
    prefix::PrefixStore,
};
use secrecy::{ExposeSecret, SecretString};

use super::Error;

/// A server that does not accept a connection within this is away.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// One request: a part of 8 MiB over a slow line.
const REQUEST_MAX: Duration = Duration::from_secs(60);
/// A request that failed is repeated for so long: doors have somebody waiting.
const RETRY_MAX: Duration = Duration::from_secs(20);
const RETRIES: usize = 4;

/// Where large bodies lie.
#[derive(Clone, Debug)]
pub enum Place {
    /// A directory of this host; made if it is not there.
    Directory(PathBuf),
    /// A bucket.
    S3(S3),
}

/// A bucket, and how to reach it.
#[derive(Clone, Debug)]
pub struct S3 {
    /// Its name.
    pub bucket: String,
    /// What all names in it begin with; may be empty.
    pub prefix: String,
    /// The server; `None`: Amazon's, by region.
    pub endpoint: Option<String>,
    /// The region; `None`: `us-east-1`, which servers of one's own usually call themselves.
    pub region: Option<String>,
    /// Key and secret; `None`: requests are not signed.
    pub credentials: Option<(SecretString, SecretString)>,
    /// Over plain HTTP: bodies and their names are readable on the way.
    pub allow_http: bool,
}

impl S3 {
    /// The client. TLS by the process's provider, with the system's certificates.
    pub(super) fn open(&self) -> Result<Arc<dyn ObjectStore>, Error> {
        crate::service::install_tls();
        let options = ClientOptions::new()
            .with_allow_http(self.allow_http)
            .with_connect_timeout(CONNECT_MAX)
            .with_timeout(REQUEST_MAX);
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: RETRIES,
            retry_timeout: RETRY_MAX,
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.bucket)
            .with_region(self.region.as_deref().unwrap_or("us-east-1"))
            .with_client_options(options)
            .with_retry(retry);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        }
        builder = match &self.credentials {
            Some((key, secret)) => builder
                .with_access_key_id(key.expose_secret())
                .with_secret_access_key(secret.expose_secret()),
            None => builder.with_skip_signature(true),
        };
        let store = builder.build()?;
        if self.prefix.is_empty() {
            return Ok(Arc::new(store));
        }
        Ok(Arc::new(PrefixStore::new(
            store,
            Path::from(self.prefix.as_str()),
        )))
    }
}
