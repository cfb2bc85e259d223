//! What both kinds of process need to be a service: configuration, logs, health and metrics, and the way down.

pub mod config;
pub mod http;
pub mod log;
pub mod shutdown;

/// Makes ring the process's TLS provider. Once, first thing in `main`; more often changes nothing.
pub fn install_tls() {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
}
