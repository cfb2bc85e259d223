//! TLS to the broker: whom we believe, and who we are.
//!
//! Files are read whenever a link is built, so that a certificate that was renewed counts from the next reconnect on.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

/// How `amqps://` addresses are spoken to. By default: the system's certificates are believed (or those in
/// `SSL_CERT_FILE`), and we show none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file of the authorities that are believed, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM files of our certificate (with its chain) and of its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the broker's certificate must carry, instead of the address's host.
    pub server_name: Option<String>,
    /// Log in by the certificate (SASL EXTERNAL), not by user and password.
    pub external: bool,
}

/// What is wrong with the files. Names them, and shows nothing of what is in them.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is none of the kind.
    #[error("{}: {reason}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The system has no certificates to believe.
    #[error("the system has no trusted certificates; name a ca_file")]
    NoRoots,
    /// Not a name that a certificate can carry.
    #[error("{0:?} is no name of a server")]
    Name(String),
    /// Certificate and key do not fit, or are of no use.
    #[error("certificate and key: {0}")]
    Identity(rustls::Error),
}

impl Tls {
    /// Reads the files, to see whether they are good.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn check(&self) -> Result<(), TlsError> {
        if let Some(name) = &self.server_name {
            ServerName::try_from(name.as_str()).map_err(|_| TlsError::Name(name.clone()))?;
        }
        if self.ca_file.is_some() {
            self.roots()?;
        }
        if self.identity.is_some() {
            self.identify(rustls::RootCertStore::empty())?;
        }
        Ok(())
    }

    /// The configuration of a connection. Blocks.
    pub(super) fn config(&self) -> Result<ClientConfig, TlsError> {
        self.identify(self.roots()?)
    }

    fn identify(&self, roots: RootCertStore) -> Result<ClientConfig, TlsError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Identity)?
            .with_root_certificates(roots);
        let Some((certificate, key)) = &self.identity else {
            return Ok(builder.with_no_client_auth());
        };
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error))?;
        let chain = certificates(certificate)?;
        let config = builder.with_client_auth_cert(chain, private);
        config.map_err(TlsError::Identity)
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        match &self.ca_file {
            Some(file) => {
                for certificate in certificates(file)? {
                    roots
                        .add(certificate)
                        .map_err(|error| failed(file, error))?;
                }
            }
            None => {
                let native = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(native.certs);
                if roots.is_empty() {
                    return Err(TlsError::NoRoots);
                }
            }
        }
        Ok(roots)
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| failed(file, error))?;
    if found.is_empty() {
        return Err(failed(file, "no certificate in it"));
    }
    Ok(found)
}

fn failed(file: &Path, reason: impl std::fmt::Display) -> TlsError {
    TlsError::File {
        file: file.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (none, empty) = (dir.path().join("none"), dir.path().join("empty"));
        std::fs::write(&empty, "no PEM").unwrap();
        for file in [&none, &empty] {
            for tls in [
                Tls {
                    ca_file: Some(file.clone()),
                    ..Tls::default()
                },
                Tls {
                    identity: Some((file.clone(), file.clone())),
                    ..Tls::default()
                },
            ] {
                let error = tls.check().unwrap_err().to_string();
                assert!(error.contains(&*file.to_string_lossy()), "{error}");
            }
        }
        let named = Tls {
            server_name: Some("not a name".to_owned()),
            ..Tls::default()
        };
        assert_eq!(named.check(), Err(TlsError::Name("not a name".to_owned())));
        assert_eq!(Tls::default().check(), Ok(()));
    }
}
