//! TLS for SMTP: which certificates are believed, and by which name.

use std::sync::Arc;

use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    },
};

use super::config::{self, TlsMode};

/// How connections are encrypted. Cheap to clone; sessions are resumed across all that share it.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    /// Instead of the host's name.
    server_name: Option<String>,
}

impl Tls {
    /// From the configuration; `None` if nothing is ever encrypted. Reads files.
    pub(super) fn load(config: &config::Tls) -> Result<Option<Self>, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let client = match config.mode {
            TlsMode::Off => return Ok(None),
            TlsMode::Opportunistic => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
                .with_no_client_auth(),
            TlsMode::Required | TlsMode::Implicit => builder
                .with_root_certificates(roots(config)?)
                .with_no_client_auth(),
        };
        Ok(Some(Self {
            connector: TlsConnector::from(Arc::new(client)),
            server_name: config.server_name.clone(),
        }))
    }

    pub(super) fn connector(&self) -> &TlsConnector {
        &self.connector
    }

    /// The name to ask for and, where that is done, to verify.
    pub(super) fn name(&self, host: &str) -> Option<ServerName<'static>> {
        let name = self.server_name.as_deref().unwrap_or(host);
        ServerName::try_from(name.to_owned()).ok()
    }
}

fn roots(config: &config::Tls) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &config.ca_file {
        let shown = path.display();
        let certificates =
            CertificateDer::pem_file_iter(path).map_err(|error| format!("{shown}: {error}"))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| format!("{shown}: {error}"))?;
            roots
                .add(certificate)
                .map_err(|error| format!("{shown}: {error}"))?;
        }
        if roots.is_empty() {
            return Err(format!("{shown}: no certificate in it"));
        }
    } else {
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        if roots.is_empty() {
            return Err("the system has no trusted certificates; set tls.ca_file".to_owned());
        }
    }
    Ok(roots)
}

/// Opportunistic TLS (RFC 7435) takes any certificate: the alternative is no encryption at all.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
