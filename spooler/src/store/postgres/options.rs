//! Where the server is, and who we both are: TLS, certificates, the password.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use tokio_postgres::config::{Config, Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::Error;

/// How the server is reached. Passwords stand in a file of their own, read at every connection.
#[derive(Clone, Debug)]
pub struct Options {
    /// `postgres://user@host:port/database`; several `host:port`, separated by commas, are tried in turn until one can be written
    /// to. No password, and no parameters: what there is to say has keys of its own.
    pub url: String,
    /// The password's file.
    pub password_file: Option<PathBuf>,
    /// The certificates (PEM) that the server's must come from. Not set: the system's. On loopback TLS is used only if this, or
    /// a certificate of our own, is set.
    pub ca_file: Option<PathBuf>,
    /// Our certificate (PEM), for servers that ask for one.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Other hosts are spoken to in plain text, too.
    pub plain_text: bool,
    /// The schema within the database; made if it is not there. Installations that share a database have one each.
    pub schema: String,
    /// How long one request may take, and how long a lock is waited for.
    pub patience: Duration,
}

impl Options {
    /// For this address, and nothing else said.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            password_file: None,
            ca_file: None,
            certificate: None,
            key: None,
            plain_text: false,
            schema: "pombo".to_owned(),
            // As long as the SQLite store waits for another process: half of what makes a member count as silent.
            patience: Duration::from_secs(5),
        }
    }

    /// Whether it all makes sense and can be read.
    ///
    /// # Errors
    /// The key within `[store]`, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        self.address()?;
        self.tls()?;
        self.password()?;
        let mut characters = self.schema.chars();
        let first = characters.next().is_some_and(|c| c.is_ascii_lowercase());
        let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !first || !characters.all(rest) || self.schema.len() > 63 {
            let text = "a lower-case letter, then letters, digits and _, at most 63";
            return Err(("schema", text.to_owned()));
        }
        // Names of this kind are the server's own.
        if self.schema.starts_with("pg_") || self.schema == "information_schema" {
            return Err(("schema", "it belongs to the server".to_owned()));
        }
        Ok(())
    }

    /// The address alone.
    fn address(&self) -> Result<Config, (&'static str, String)> {
        let bad = |text: &str| ("url", text.to_owned());
        if !self.url.starts_with("postgres://") && !self.url.starts_with("postgresql://") {
            return Err(bad("it begins with postgres://"));
        }
        // Before it is parsed: an error of the parser may repeat what it was given.
        if self.url.contains('?') {
            let text = "no parameters: what can be said has keys of its own beside url";
            return Err(bad(text));
        }
        let config: Config = self
            .url
            .parse()
            .map_err(|_| bad("not of the form postgres://user@host:port/database"))?;
        if config.get_password().is_some() {
            return Err(bad("no password in it: name its file by password_file"));
        }
        if config.get_user().is_none_or(str::is_empty) {
            return Err(bad("it names no user"));
        }
        if config.get_dbname().is_none_or(str::is_empty) {
            return Err(bad("it names no database"));
        }
        if config.get_hosts().is_empty() {
            return Err(bad("it names no host"));
        }
        Ok(config)
    }

    fn is_encrypted(&self, config: &Config) -> bool {
        let asked = self.ca_file.is_some() || self.certificate.is_some();
        asked || !self.plain_text && !config.get_hosts().iter().all(is_local)
    }

    fn password(&self) -> Result<Option<String>, (&'static str, String)> {
        let Some(path) = &self.password_file else {
            return Ok(None);
        };
        let bad = |text: String| ("password_file", format!("{}: {text}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(bad("it is empty".to_owned()));
        }
        Ok(Some(password.to_owned()))
    }

    fn tls(&self) -> Result<ClientConfig, (&'static str, String)> {
        let roots = self.roots()?;
        let builder = ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|error| ("ca_file", error.to_string()))?
            .with_root_certificates(roots);
        let (certificate, key) = match (&self.certificate, &self.key) {
            (None, None) => return Ok(builder.with_no_client_auth()),
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(_), None) => return Err(("certificate", "it needs a key".to_owned())),
            (None, Some(_)) => return Err(("key", "it needs a certificate".to_owned())),
        };
        let at =
            |path: &PathBuf, text: &dyn std::fmt::Display| format!("{}: {text}", path.display());
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| ("certificate", at(certificate, &error)))?;
        let private =
            PrivateKeyDer::from_pem_file(key).map_err(|error| ("key", at(key, &error)))?;
        builder
            .with_client_auth_cert(chain, private)
            .map_err(|error| ("key", at(key, &error)))
    }

    fn roots(&self) -> Result<RootCertStore, (&'static str, String)> {
        let mut roots = RootCertStore::empty();
        let Some(path) = &self.ca_file else {
            let native = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(native.certs);
            return Ok(roots);
        };
        let bad = |text: String| ("ca_file", format!("{}: {text}", path.display()));
        let found = CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))?;
        for certificate in found {
            let certificate = certificate.map_err(|error| bad(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| bad(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(bad("no certificate in it".to_owned()));
        }
        Ok(roots)
    }

    /// What a connection is made with; files are read anew, so that a new password or certificate needs no restart.
    pub(super) fn connector(&self) -> Result<(Config, MakeRustlsConnect), Error> {
        let away = |(key, text): (&'static str, String)| {
            Error::Unavailable(format!("store.{key}: {text}"))
        };
        let mut config = self.address().map_err(away)?;
        if let Some(password) = self.password().map_err(away)? {
            config.password(password);
        }
        let tls = MakeRustlsConnect::new(self.tls().map_err(away)?);
        let mode = if self.is_encrypted(&config) {
            SslMode::Require
        } else {
            SslMode::Disable
        };
        config
            .ssl_mode(mode)
            .application_name("pombo-spooler")
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .connect_timeout(self.patience)
            .tcp_user_timeout(self.patience)
            .keepalives_idle(self.patience)
            .keepalives_interval(Duration::from_secs(1));
        Ok((config, tls))
    }
}

/// A socket of this machine, or its loopback interface.
fn is_local(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => {
            let bare = name.trim_start_matches('[').trim_end_matches(']');
            bare == "localhost" || bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
        }
        #[cfg(unix)]
        Host::Unix(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        let (key, text) = Options::new(url).check().unwrap_err();
        assert_eq!(key, "url", "{url}");
        text
    }

    #[test]
    fn an_address_names_user_host_and_database_and_no_secret() {
        Options::new("postgres://pombo@db.example:5433/mail")
            .check()
            .unwrap();
        Options::new("postgres://pombo@a.example,b.example:5433/mail")
            .check()
            .unwrap();
        Options::new("postgresql://pombo@%2Frun%2Fpostgresql/mail")
            .check()
            .unwrap();
        refused("mysql://pombo@db/mail");
        refused("postgres://db.example/mail");
        refused("postgres://pombo@db.example");
        refused("postgres://pombo@db:port/mail");
        refused("postgres://pombo@db/mail?sslmode=disable");
        for url in [
            "postgres://pombo:open-sesame@db/mail",
            "postgres://pombo:open-sesame@db:x/mail",
        ] {
            assert!(!refused(url).contains("open-sesame"));
        }
    }

    #[test]
    fn plain_text_stays_on_this_host_unless_the_configuration_says_so() {
        let encrypted = |url: &str, change: &dyn Fn(&mut Options)| {
            let mut options = Options::new(url);
            change(&mut options);
            let config = options.address().unwrap();
            options.is_encrypted(&config)
        };
        let nothing: &dyn Fn(&mut Options) = &|_| {};
        for local in [
            "127.0.0.1",
            "127.1.2.3:5433",
            "[::1]",
            "localhost",
            "%2Frun%2Fpostgresql",
        ] {
            assert!(
                !encrypted(&format!("postgres://p@{local}/mail"), nothing),
                "{local}"
            );
        }
        for far in [
            "192.0.2.1",
            "db.example",
            "localhost.example",
            "localhost,db.example",
        ] {
            let url = format!("postgres://p@{far}/mail");
            assert!(encrypted(&url, nothing), "{far}");
            assert!(!encrypted(&url, &|options| options.plain_text = true));
        }
        let ca = |options: &mut Options| options.ca_file = Some("ca.pem".into());
        assert!(encrypted("postgres://p@localhost/mail", &ca));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_key() {
        let with = |change: fn(&mut Options)| {
            let mut options = Options::new("postgres://p@localhost/mail");
            change(&mut options);
            options.check().unwrap_err().0
        };
        assert_eq!(
            with(|o| o.password_file = Some("/nowhere".into())),
            "password_file"
        );
        assert_eq!(with(|o| o.ca_file = Some("/nowhere".into())), "ca_file");
        assert_eq!(with(|o| o.ca_file = Some("/dev/null".into())), "ca_file");
        assert_eq!(with(|o| o.key = Some("/nowhere".into())), "key");
        assert_eq!(
            with(|o| o.certificate = Some("/nowhere".into())),
            "certificate"
        );
        for schema in ["", "Pombo", "a\"b", "1st", "pg_mine"] {
            let mut options = Options::new("postgres://p@localhost/mail");
            options.schema = schema.to_owned();
            assert_eq!(options.check().unwrap_err().0, "schema", "{schema}");
        }
    }
}
