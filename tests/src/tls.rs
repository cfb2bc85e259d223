//! A certificate made on the spot, and the two ends of a TLS connection that trust it and nothing else.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

/// A self-signed certificate with its key.
#[derive(Clone, Debug)]
pub struct Certificate {
    name: String,
    der: CertificateDer<'static>,
    key: Vec<u8>,
    /// The certificate in PEM: for whoever is to trust it.
    pub certificate_pem: String,
    /// The key in PEM.
    pub key_pem: String,
}

impl Certificate {
    /// For these host names or addresses; the first is the one clients ask for.
    ///
    /// # Errors
    /// A name that cannot stand in a certificate.
    pub fn for_names(names: &[&str]) -> anyhow::Result<Self> {
        let owned: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(owned)
            .with_context(|| format!("making a certificate for {names:?}"))?;
        Ok(Self {
            name: names.first().copied().unwrap_or("localhost").to_owned(),
            der: made.cert.der().clone(),
            key: made.signing_key.serialize_der(),
            certificate_pem: made.cert.pem(),
            key_pem: made.signing_key.serialize_pem(),
        })
    }

    /// For `localhost` and `127.0.0.1`.
    ///
    /// # Errors
    /// No randomness.
    pub fn for_localhost() -> anyhow::Result<Self> {
        Self::for_names(&["localhost", "127.0.0.1"])
    }

    /// Writes `tls.crt` and `tls.key` into a directory and gives their paths.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn write_to(&self, dir: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
        let (certificate, key) = (dir.join("tls.crt"), dir.join("tls.key"));
        std::fs::create_dir_all(dir)?;
        std::fs::write(&certificate, &self.certificate_pem)?;
        std::fs::write(&key, &self.key_pem)?;
        Ok((certificate, key))
    }

    /// The name that clients ask for.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![self.der.clone()], key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    pub(crate) fn connector(&self) -> anyhow::Result<TlsConnector> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone())?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// An authority of one's own, and what it certifies.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    /// Keeps its files in `dir`.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn new(dir: &Path) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority of the tests");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("ca.crt"), issuer.pem())?;
        Ok(Self {
            issuer,
            dir: dir.to_owned(),
        })
    }

    /// The file of its own certificate.
    pub fn file(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Certifies somebody of this common name, a server of these names if there are any; the files of certificate and key.
    ///
    /// # Errors
    /// A name that cannot stand in a certificate, or the directory cannot be written.
    pub fn certify(&self, common_name: &str, names: &[&str]) -> anyhow::Result<(PathBuf, PathBuf)> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let usage = if names.is_empty() {
            ExtendedKeyUsagePurpose::ClientAuth
        } else {
            ExtendedKeyUsagePurpose::ServerAuth
        };
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let file = |kind: &str| self.dir.join(format!("{common_name}.{kind}"));
        std::fs::write(file("crt"), certificate.pem())?;
        std::fs::write(file("key"), key.serialize_pem())?;
        Ok((file("crt"), file("key")))
    }
}

/// Named, so that it does not matter what the process has installed as its default.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
