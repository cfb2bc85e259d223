//! One connection to the sink: the commands, in the order the standard allows. Those of a transaction are in `transaction`.

mod transaction;

use std::{io, ops::ControlFlow, sync::Arc};

use tokio::net::TcpStream;

use self::transaction::Mail;
use super::{
    Shared,
    auth::{Exchange, Step},
    script::{End, Extension, Facts, Plan, Protocol, Stage},
};
use crate::wire::Wire;

/// RFC 5321 allows 512; extensions add to it.
const COMMAND_MAX: usize = 8 << 10;

/// `Break` closes the connection.
type Flow = io::Result<ControlFlow<()>>;
const GO_ON: Flow = Ok(ControlFlow::Continue(()));
const CLOSE: Flow = Ok(ControlFlow::Break(()));

/// Speaks with one client until one of the two has enough.
pub(super) async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let number = shared.record(super::record::Record::connected);
    let _open = Open(Arc::clone(&shared));
    let mut session = Session {
        wire: Some(Wire::tcp(stream)),
        number,
        helo: None,
        extended: false,
        tls: false,
        user: None,
        mail: None,
        shared,
    };
    if let Err(e) = session.run().await {
        session.shared.say(number, '-', e.to_string().as_bytes());
    }
}

/// Counts the connection out, also when its task is aborted.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.record(super::record::Record::disconnected);
    }
}

struct Session {
    shared: Arc<Shared>,
    /// `None` only while TLS is put around it.
    wire: Option<Wire>,
    number: u64,
    helo: Option<String>,
    extended: bool,
    tls: bool,
    user: Option<String>,
    mail: Option<Mail>,
}

impl Session {
    async fn run(&mut self) -> io::Result<()> {
        let plan = self.ask(Stage::Connect, "", &[]).await;
        let greeting = format!("220 {} ESMTP", self.shared.options.host);
        if self
            .settle(Stage::Connect, plan, &greeting)
            .await?
            .is_break()
        {
            return self.wire().finish().await;
        }
        let mut line = Vec::new();
        while let Some(command) = self.next_line(&mut line).await? {
            if self.command(&command).await?.is_break() {
                break;
            }
        }
        self.wire().finish().await
    }

    async fn command(&mut self, line: &str) -> Flow {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" if self.protocol() == Protocol::Esmtp => self.hello(rest, true).await,
            "LHLO" if self.protocol() == Protocol::Lmtp => self.hello(rest, true).await,
            "HELO" if self.protocol() != Protocol::Lmtp => self.hello(rest, false).await,
            "STARTTLS" if self.shared.acceptor.is_some() && !self.tls => self.starttls().await,
            "AUTH" if self.shared.options.login.is_some() => self.auth(rest).await,
            "MAIL" => self.mail(rest).await,
            "RCPT" => self.rcpt(rest).await,
            "DATA" => self.data().await,
            "RSET" => {
                self.mail = None;
                self.reply("250 2.0.0 reset")
            }
            "NOOP" => self.reply("250 2.0.0 nothing done"),
            "VRFY" => self.reply("252 2.0.0 try it"),
            "QUIT" => {
                self.put("221 2.0.0 bye");
                CLOSE
            }
            _ => self.reply("500 5.5.2 unknown command"),
        }
    }

    async fn hello(&mut self, name: &str, extended: bool) -> Flow {
        let plan = self.ask(Stage::Ehlo, "", &[]).await;
        self.mail = None;
        self.helo = Some(name.trim().to_owned());
        self.extended = extended;
        let usual = if extended {
            self.capabilities()
        } else {
            format!("250 {}", self.shared.options.host)
        };
        self.settle(Stage::Ehlo, plan, &usual).await
    }

    fn capabilities(&self) -> String {
        let options = &self.shared.options;
        let mut lines = vec![format!("250 {}", options.host)];
        lines.extend(options.extensions.iter().map(|extension| match extension {
            Extension::Pipelining => "PIPELINING".to_owned(),
            Extension::EightBitMime => "8BITMIME".to_owned(),
            Extension::Size => format!("SIZE {}", options.size_max),
            Extension::SmtpUtf8 => "SMTPUTF8".to_owned(),
            Extension::Dsn => "DSN".to_owned(),
            Extension::EnhancedStatusCodes => "ENHANCEDSTATUSCODES".to_owned(),
        }));
        if self.shared.acceptor.is_some() && !self.tls {
            lines.push("STARTTLS".into());
        }
        if options.login.is_some() {
            lines.push("AUTH PLAIN LOGIN".into());
        }
        lines.join("\n")
    }

    async fn starttls(&mut self) -> Flow {
        let plan = self.ask(Stage::StartTls, "", &[]).await;
        if !matches!(plan.end, End::Usual) {
            return self.settle(Stage::StartTls, plan, "").await;
        }
        if self.wire().has_more() {
            self.complain("sent more after STARTTLS without waiting");
        }
        self.put("220 2.0.0 go ahead");
        self.wire().flush().await?;
        let (Some(wire), Some(acceptor)) = (self.wire.take(), &self.shared.acceptor) else {
            return CLOSE;
        };
        let stream = acceptor.0.accept(wire.into_inner()).await?;
        self.shared.say(self.number, '-', b"(TLS from here)");
        self.wire = Some(Wire::new(stream));
        (self.tls, self.helo, self.mail, self.user) = (true, None, None, None);
        GO_ON
    }

    async fn auth(&mut self, arguments: &str) -> Flow {
        let plan = self.ask(Stage::Auth, "", &[]).await;
        if !matches!(plan.end, End::Usual) {
            return self.settle(Stage::Auth, plan, "").await;
        }
        let mut exchange = Exchange::default();
        let mut step = exchange.start(arguments);
        let mut line = Vec::new();
        loop {
            match step {
                Step::Ask(challenge) => {
                    self.put(&format!("334 {challenge}"));
                    let Some(answer) = self.next_line(&mut line).await? else {
                        return CLOSE;
                    };
                    step = exchange.answer(&answer);
                }
                Step::Who(user, password) => {
                    let right = self
                        .shared
                        .options
                        .login
                        .as_ref()
                        .is_some_and(|(u, p)| (u, p) == (&user, &password));
                    if right {
                        self.user = Some(user);
                        return self.reply("235 2.7.0 welcome");
                    }
                    return self.refuse(Stage::Auth, "535 5.7.8 wrong user or password");
                }
                Step::Malformed => return self.refuse(Stage::Auth, "501 5.5.2 malformed"),
                Step::Unknown => return self.refuse(Stage::Auth, "504 5.5.4 unknown mechanism"),
            }
        }
    }

    /// Asks the rules, and does of their plan what comes before the reply.
    async fn ask(&mut self, stage: Stage, sender: &str, recipients: &[String]) -> Plan {
        let plan = self.shared.plan(stage, Facts { sender, recipients });
        if plan.hold.is_some() || plan.wait.is_some() {
            // What was answered before must not wait with it. A connection that is gone shows at the next read.
            let _ = self.wire().flush().await;
        }
        if let Some(gate) = &plan.hold {
            gate.pass().await;
        }
        if let Some(time) = plan.wait {
            tokio::time::sleep(time).await;
        }
        plan
    }

    /// Ends a stage as planned, or with the usual reply.
    async fn settle(&mut self, stage: Stage, plan: Plan, usual: &str) -> Flow {
        match plan.end {
            End::Usual => self.reply(usual),
            End::Drop | End::AcceptAndDrop => {
                self.shared.say(self.number, '>', b"(connection dropped)");
                CLOSE
            }
            End::Reply(reply) if reply.starts_with(['4', '5']) => {
                let flow = self.refuse(stage, &reply);
                if reply.starts_with("421") || stage == Stage::Connect {
                    CLOSE
                } else {
                    flow
                }
            }
            End::Reply(reply) => self.reply(&reply),
        }
    }

    fn refuse(&mut self, stage: Stage, reply: &str) -> Flow {
        self.shared.record(|record| record.refused(stage));
        self.reply(reply)
    }

    fn out_of_order(&mut self, command: &str) -> Flow {
        // After a refused MAIL a pipelining client sends the rest all the same: that is no offence.
        self.reply(&format!("503 5.5.1 {command} out of order"))
    }

    fn complain(&self, about: &str) {
        let complaint = format!("connection {}: {about}", self.number);
        self.shared.record(|record| record.complain(complaint));
    }

    fn reply(&mut self, reply: &str) -> Flow {
        self.put(reply);
        GO_ON
    }

    /// Writes `"250 a\nb\nc"` as `250-a`, `250-b`, `250 c`.
    fn put(&mut self, reply: &str) {
        let (code, text) = reply.split_once(' ').unwrap_or((reply, ""));
        let mut lines = text.split('\n').peekable();
        while let Some(text) = lines.next() {
            let line = format!(
                "{code}{}{text}\r\n",
                if lines.peek().is_some() { '-' } else { ' ' }
            );
            self.shared.say(self.number, '>', line.as_bytes());
            self.wire().put(line.as_bytes());
        }
    }

    /// The next command. Replies go out only when there is nothing more to read: as many as fit in a packet.
    async fn next_line(&mut self, line: &mut Vec<u8>) -> io::Result<Option<String>> {
        if !self.wire().has_more() {
            self.wire().flush().await?;
        }
        line.clear();
        let read = self.wire().read_line(line, COMMAND_MAX).await?;
        if read == 0 || line.last() != Some(&b'\n') {
            return Ok(None);
        }
        self.shared.say(self.number, '<', line);
        if !line.ends_with(b"\r\n") {
            self.complain("ended a command with a bare line feed");
        }
        Ok(Some(
            String::from_utf8_lossy(line)
                .trim_end_matches(['\r', '\n'])
                .to_owned(),
        ))
    }

    fn wire(&mut self) -> &mut Wire {
        self.wire
            .as_mut()
            .expect("only STARTTLS takes it, and puts it back or ends the session")
    }

    fn protocol(&self) -> Protocol {
        self.shared.options.protocol
    }
}
