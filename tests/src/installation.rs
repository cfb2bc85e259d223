//! A whole Pombo on this machine: configuration files in a private directory, spoolers, agents, and the command line.
//!
//! ```no_run
//! # async fn test() -> anyhow::Result<()> {
//! use pombo_tests::{Sink, client, installation::{Agent, Installation}, mail::Mail};
//! use std::time::Duration;
//!
//! let world = Sink::start().await?;
//! let pombo = Installation::builder()
//!     .spoolers(2)
//!     .agent(Agent::smtp_listener("door").relay_for_everyone())
//!     .agent(Agent::smtp("smtp").smarthost(world.address()))
//!     .start()
//!     .await?;
//! client::send(pombo.door(), "alice@example.org", &["bob@example.net"], &Mail::new().bytes()).await?;
//! world.mail_for("bob@example.net", Duration::from_secs(10)).await;
//! # Ok(()) }
//! ```
//!
//! All texts of configuration files are in this file; what runs is in `running`.

mod messages;
mod running;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

pub use self::running::Installation;
use crate::{Broker, Postgres, broker::Role, ports, tls::Certificate};

/// Builds an [`Installation`]. Without anything said: one spooler, no agents, the shared broker with a prefix of its own.
#[derive(Clone, Debug)]
pub struct Builder {
    spoolers: usize,
    agents: Vec<Agent>,
    broker: Option<(Vec<String>, String)>,
    store_lines: Option<String>,
    /// Log in as the users of [`Role`]; otherwise as the addresses say.
    roles: bool,
    broker_lines: String,
    /// By the service's name: its own addresses of the broker.
    routes: BTreeMap<String, Vec<String>>,
    directory_in: Option<PathBuf>,
    spooler_lines: String,
    blobs: Option<String>,
    more_of_blobs: String,
    spooler_section: String,
    transport_lines: Vec<(String, String)>,
    every_lines: String,
    order: Option<Vec<String>>,
    log_filter: String,
    environment: Vec<(String, String)>,
    ready_limit: Duration,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            spoolers: 1,
            agents: Vec::new(),
            broker: None,
            store_lines: None,
            roles: false,
            broker_lines: String::new(),
            routes: BTreeMap::new(),
            directory_in: None,
            spooler_lines: String::new(),
            blobs: None,
            more_of_blobs: String::new(),
            spooler_section: String::new(),
            transport_lines: Vec::new(),
            every_lines: String::new(),
            order: None,
            log_filter: "info,pombo=debug,pombo_proto=debug,pombo_spooler=debug,pombo_agent=debug"
                .into(),
            environment: Vec::new(),
            ready_limit: Duration::from_secs(180),
        }
    }
}

impl Builder {
    /// How many spoolers share the work.
    pub fn spoolers(mut self, count: usize) -> Self {
        self.spoolers = count;
        self
    }

    /// One more agent. Transports are tried in the order in which their first agents come here.
    pub fn agent(mut self, agent: Agent) -> Self {
        self.agents.push(agent);
        self
    }

    /// Another transport order than that of the agents.
    pub fn transport_order(mut self, names: &[&str]) -> Self {
        self.order = Some(names.iter().map(|&name| name.to_owned()).collect());
        self
    }

    /// A broker of the test's own, instead of the shared one.
    pub fn broker(self, broker: &Broker) -> Self {
        let prefix = broker.fresh_prefix();
        self.broker_at(&[broker.url()], &prefix)
    }

    /// Any broker: the nodes of a cluster, or an address where there is none.
    pub fn broker_at(mut self, addresses: &[String], prefix: &str) -> Self {
        self.broker = Some((addresses.to_vec(), prefix.to_owned()));
        self.roles = false;
        self
    }

    /// The store is PostgreSQL, in a schema of its own.
    pub fn postgres(self, server: &Postgres) -> Self {
        let schema = server.fresh_schema();
        self.postgres_schema(server, &schema)
    }

    /// The same, in this schema.
    pub fn postgres_schema(mut self, server: &Postgres, schema: &str) -> Self {
        self.store_lines = Some(format!(
            "url = {}\npassword_file = {}\nschema = {}",
            quoted(&server.url()),
            quoted_path(&server.password_file()),
            quoted(schema)
        ));
        self
    }

    /// A broker whose users are those of [`Role`], and whose topology is there already: each process logs in as the one of
    /// its kind. So it is on the shared broker.
    pub fn with_least_rights(self, addresses: &[String], prefix: &str) -> Self {
        Self {
            roles: true,
            ..self.broker_at(addresses, prefix)
        }
    }

    /// Other addresses of the broker for one service (`spooler-1`, or an agent's name): the network between the two.
    pub fn route(mut self, service: &str, addresses: &[String]) -> Self {
        self.routes.insert(service.to_owned(), addresses.to_vec());
        self
    }

    /// More lines of every service's `[broker]`.
    pub fn broker_lines(mut self, lines: &str) -> Self {
        let _ = writeln!(self.broker_lines, "{lines}");
        self
    }

    /// Keeps everything (store, bodies, logs) in a new directory in this one.
    pub fn directory_in(mut self, parent: &Path) -> Self {
        self.directory_in = Some(parent.to_owned());
        self
    }

    /// More lines of `spooler.toml`, with their section's headings.
    pub fn spooler_lines(mut self, lines: &str) -> Self {
        let _ = writeln!(self.spooler_lines, "{lines}");
        self
    }

    /// Another `[blobs]` than a directory: the section's lines.
    pub fn blobs(mut self, lines: &str) -> Self {
        self.blobs = Some(lines.to_owned());
        self
    }

    /// More lines of every service's `[blobs]`.
    pub fn blobs_lines(mut self, lines: &str) -> Self {
        let _ = writeln!(self.more_of_blobs, "{lines}");
        self
    }

    /// One more line of the section `[spooler]`.
    pub fn spooler_line(mut self, line: &str) -> Self {
        let _ = writeln!(self.spooler_section, "{line}");
        self
    }

    /// One more line of a transport's `[[transport]]` in `spooler.toml`.
    pub fn transport_line(mut self, transport: &str, line: &str) -> Self {
        self.transport_lines.push((transport.into(), line.into()));
        self
    }

    /// More lines of every service's file, with their section's headings.
    pub fn every_lines(mut self, lines: &str) -> Self {
        let _ = writeln!(self.every_lines, "{lines}");
        self
    }

    /// What is logged.
    pub fn log_filter(mut self, filter: &str) -> Self {
        filter.clone_into(&mut self.log_filter);
        self
    }

    /// An environment variable of every service.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Writes the files, starts all processes, and returns when each is ready.
    ///
    /// # Errors
    /// One did not get ready; with the end of its log.
    pub async fn start(self) -> anyhow::Result<Installation> {
        let limit = self.ready_limit;
        let mut installation = self.start_unready().await?;
        installation.ready(limit).await?;
        Ok(installation)
    }

    /// Writes the files and starts all processes, ready or not: for a broker that is not there yet.
    ///
    /// # Errors
    /// A file cannot be written, or a process not started.
    pub async fn start_unready(mut self) -> anyhow::Result<Installation> {
        if self.broker.is_none() {
            let shared = Broker::shared().await;
            let prefix = shared.fresh_prefix();
            shared.provide(&prefix).await?;
            self = self.with_least_rights(&[shared.address()], &prefix);
        }
        Installation::start(self)
    }

    fn order(&self) -> Vec<String> {
        if let Some(order) = &self.order {
            return order.clone();
        }
        let mut names: Vec<String> = Vec::new();
        for agent in &self.agents {
            if !names.contains(&agent.transport) {
                names.push(agent.transport.clone());
            }
        }
        names
    }
}

/// An agent to be: its transport's name and kind, and its section.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The name of this process, unique in the installation.
    name: String,
    /// The transport it works for; several agents may share one.
    transport: String,
    kind: String,
    /// Another program than the kind's.
    program: Option<&'static str>,
    lines: String,
    /// Of the section `[agent]`.
    host_lines: String,
    listen: Option<SocketAddr>,
}

impl Agent {
    /// Of any kind: the section `[kind]` gets the lines added later.
    pub fn of_kind(name: &str, kind: &str) -> Self {
        Self {
            name: name.into(),
            transport: name.into(),
            kind: kind.into(),
            program: None,
            lines: String::new(),
            host_lines: String::new(),
            listen: None,
        }
    }

    /// Sends by SMTP; where to, is said by [`smarthost`](Self::smarthost), [`host_of`](Self::host_of), or MX records.
    pub fn smtp(name: &str) -> Self {
        Self::of_kind(name, "smtp")
    }

    /// Takes mail by SMTP, on a free port of 127.0.0.1; for nobody yet.
    pub fn smtp_listener(name: &str) -> Self {
        let listen = ports::free_address();
        let agent = Self::of_kind(name, "smtp-listener")
            .line(&format!("listen = [{}]", quoted(&listen.to_string())));
        Self {
            listen: Some(listen),
            ..agent
        }
    }

    /// Delivers these address spaces (`SMTP:*@example.org`) into Maildirs: see [`Installation::delivered_to`].
    pub fn maildir(name: &str, address_spaces: &[&str]) -> Self {
        Self::of_kind(name, "maildir")
            .line(&format!("addresses = {}", list(address_spaces)))
            .line("path = \"{state}/maildir/{domain}/{local}\"")
            .line("create = true")
    }

    /// Picks up what is put into a folder, see [`Installation::drop_folder`], told of it by inotify.
    pub fn drop_folder(name: &str) -> Self {
        Self::of_kind(name, "maildir")
            .line(&format!("pick_up.folder = \"{{state}}/drop/{name}\""))
            .line("pick_up.style = \"drop\"")
    }

    /// Of a drop folder: looked into when the spooler polls, without inotify.
    pub fn polled(self) -> Self {
        self.line("pick_up.mode = \"poll\"")
    }

    /// A transport of a company's own, which does what recipients' addresses say: see [`crate::scripted`]. Read its journal by
    /// [`Installation::journal`], open its gates by [`Installation::open_gate`].
    pub fn scripted(name: &str) -> Self {
        Self::of_kind(name, "scripted")
            .line(&format!("journal = \"{{state}}/{name}.journal\""))
            .line(&format!("gates = \"{{state}}/drop/{name}\""))
    }

    /// The same by a neighbouring release: it speaks version 1 of the protocol, and a version 2 that nobody else knows yet.
    pub fn neighbour(name: &str) -> Self {
        Self {
            program: Some("pombo-neighbour-agent"),
            ..Self::scripted(name)
        }
    }

    /// Of a scripted one: delivers what is put into its folder, see [`Installation::drop_folder`].
    pub fn delivers(self) -> Self {
        let line = format!("inbound = \"{{state}}/drop/{}\"", self.name);
        self.line(&line)
    }

    /// Works for this transport; by default for one named as the agent is.
    pub fn transport(mut self, name: &str) -> Self {
        self.transport = name.into();
        self
    }

    /// One more line of its section, tables inside it with dotted keys (`tls.mode = "required"`). `{state}` becomes the
    /// installation's directory.
    pub fn line(mut self, line: &str) -> Self {
        let _ = writeln!(self.lines, "{line}");
        self
    }

    /// One more line of its section `[agent]`.
    pub fn host_line(mut self, line: &str) -> Self {
        let _ = writeln!(self.host_lines, "{line}");
        self
    }

    /// Of smtp: everything goes to this server.
    pub fn smarthost(self, server: SocketAddr) -> Self {
        self.line(&format!(
            "route = {{ smarthost = {} }}",
            quoted(&server.to_string())
        ))
    }

    /// Of smtp: mail for this domain goes to this server.
    pub fn host_of(self, domain: &str, server: SocketAddr) -> Self {
        self.line(&format!(
            "domains.{} = {}",
            quoted(domain),
            quoted(&server.to_string())
        ))
    }

    /// Of a listener: clients on this machine may send to anyone.
    pub fn relay_for_everyone(self) -> Self {
        self.line("relay_clients = [\"127.0.0.0/8\", \"::1\"]")
    }

    /// Of a listener: takes mail for these domains from anyone.
    pub fn local_domains(self, domains: &[&str]) -> Self {
        self.line(&format!("local_domains = {}", list(domains)))
    }

    /// Of a listener: offers STARTTLS with this certificate, whose files are written into `dir`.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn certificate(self, dir: &Path, certificate: &Certificate) -> anyhow::Result<Self> {
        let (certificate, key) = certificate.write_to(dir)?;
        Ok(self.line(&format!(
            "tls_certificate = {}\ntls_key = {}",
            quoted_path(&certificate),
            quoted_path(&key)
        )))
    }
}

impl Agent {
    /// Which program hosts it.
    fn binary(&self) -> &'static str {
        match (self.program, self.kind.as_str()) {
            (Some(program), _) => program,
            (None, "scripted") => "pombo-scripted-agent",
            (None, _) => "pombo-agent",
        }
    }
}

/// Where an installation keeps its things.
#[derive(Clone, Debug)]
struct State<'a> {
    dir: &'a Path,
}

impl State<'_> {
    fn store(&self) -> PathBuf {
        self.dir.join("store.sqlite")
    }

    fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    fn maildir(&self) -> PathBuf {
        self.dir.join("maildir")
    }

    fn password(&self, role: Role) -> PathBuf {
        self.dir.join(format!("{role}.password"))
    }

    fn drop_folder(&self, agent: &str) -> PathBuf {
        self.dir.join("drop").join(agent)
    }
}

/// What every service's file begins with.
fn common(
    builder: &Builder,
    state: &State<'_>,
    role: Role,
    service: &str,
    http: SocketAddr,
) -> String {
    format!(
        r#"{broker}
[http]
listen = {http}

[log]
format = "text"
filter = {filter}

[blobs]
{blobs}
{more_of_blobs}
"#,
        broker = broker_toml(builder, state, role, service),
        http = quoted(&http.to_string()),
        filter = quoted(&builder.log_filter),
        more_of_blobs = builder.more_of_blobs,
        blobs = builder
            .blobs
            .clone()
            .unwrap_or_else(|| format!("path = {}", quoted_path(&state.blobs()))),
    )
}

/// `[broker]`.
fn broker_toml(builder: &Builder, state: &State<'_>, role: Role, service: &str) -> String {
    let (shared, prefix) = builder.broker.clone().unwrap_or_default();
    let addresses = builder.routes.get(service).unwrap_or(&shared);
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let mut text = format!(
        "[broker]\naddresses = {}\nprefix = {}\n",
        list(&addresses),
        quoted(&prefix)
    );
    if builder.roles {
        let _ = writeln!(
            text,
            "user = {}\npassword = {{ file = {} }}",
            quoted(role.user()),
            quoted_path(&state.password(role))
        );
    }
    text.push_str(&builder.broker_lines);
    text
}

/// `spooler.toml`.
fn spooler_toml(builder: &Builder, state: &State<'_>, name: &str, http: SocketAddr) -> String {
    let mut text = common(builder, state, Role::Spooler, name, http);
    let _ = write!(
        text,
        r#"
[store]
{store}

[spooler]
name = {name}
{section}"#,
        section = builder.spooler_section,
        store = builder
            .store_lines
            .clone()
            .unwrap_or_else(|| format!("path = {}", quoted_path(&state.store()))),
        name = quoted(name),
    );
    for transport in builder.order() {
        let _ = write!(text, "\n[[transport]]\nname = {}\n", quoted(&transport));
        let lines = builder.transport_lines.iter();
        for (_, line) in lines.filter(|(name, _)| *name == transport) {
            let _ = writeln!(text, "{line}");
        }
    }
    let _ = write!(text, "\n{}{}", builder.every_lines, builder.spooler_lines);
    text
}

/// `agent.toml`.
fn agent_toml(builder: &Builder, state: &State<'_>, agent: &Agent, http: SocketAddr) -> String {
    let mut text = common(builder, state, Role::Agent, &agent.name, http);
    let lines = agent.lines.replace("{state}", &state.dir.to_string_lossy());
    let _ = write!(
        text,
        r#"
[agent]
{host}
[transport]
name = {name}
kind = {kind}

[{section}]
{lines}
{every}"#,
        name = quoted(&agent.transport),
        kind = quoted(&agent.kind),
        host = agent.host_lines,
        section = agent.kind,
        every = builder.every_lines,
    );
    text
}

/// `pombo.toml`: what the command line needs.
fn command_toml(builder: &Builder, state: &State<'_>) -> String {
    format!(
        "{}\n[blobs]\npath = {}\n",
        broker_toml(builder, state, Role::CommandLine, "pombo"),
        quoted_path(&state.blobs())
    )
}

/// A TOML array of strings.
fn list(texts: &[&str]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", texts.join(", "))
}

/// A TOML basic string.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A path as a TOML basic string.
pub fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports_are_ordered_as_their_first_agents_are() {
        let builder = Builder::default()
            .agent(Agent::smtp("a").transport("out"))
            .agent(Agent::maildir("local", &["SMTP:*@example.org"]))
            .agent(Agent::smtp("b").transport("out"));
        assert_eq!(builder.order(), ["out", "local"]);
        assert_eq!(
            builder.transport_order(&["local", "out"]).order(),
            ["local", "out"]
        );
    }

    #[test]
    fn strings_are_quoted_for_toml() {
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\u000A""#);
    }
}
