//! One connection to the sink: the commands, in the order the standard allows.

use std::{io, ops::ControlFlow, sync::Arc, time::Instant};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::{
    Shared,
    auth::{Exchange, Step},
    data::{Transfer, Unstuffing},
    record::{Recipient, Transaction, Unfinished},
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

/// A transaction under way.
struct Mail {
    from: String,
    from_params: Vec<String>,
    recipients: Vec<Recipient>,
}

impl Mail {
    fn addresses(&self) -> Vec<String> {
        self.recipients
            .iter()
            .map(|recipient| recipient.address.clone())
            .collect()
    }
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

    async fn mail(&mut self, rest: &str) -> Flow {
        if self.helo.is_none() || self.mail.is_some() {
            return self.out_of_order("MAIL");
        }
        let Some((from, params)) = path(rest, "FROM:") else {
            return self.refuse(Stage::Mail, "501 5.5.4 MAIL FROM:<address>");
        };
        if self.shared.options.tls_required && !self.tls {
            return self.refuse(Stage::Mail, "530 5.7.0 STARTTLS first");
        }
        if self.shared.options.login.is_some() && self.user.is_none() {
            return self.refuse(Stage::Mail, "530 5.7.0 AUTH first");
        }
        if let Some(refusal) = self.refuse_params(&params, &from, true) {
            return self.refuse(Stage::Mail, &refusal);
        }
        let plan = self.ask(Stage::Mail, &from, &[]).await;
        let accepted = accepts(&plan);
        let flow = self.settle(Stage::Mail, plan, "250 2.1.0 sender ok").await;
        if accepted {
            self.mail = Some(Mail {
                from,
                from_params: params,
                recipients: Vec::new(),
            });
        }
        flow
    }

    async fn rcpt(&mut self, rest: &str) -> Flow {
        let Some(mail) = &self.mail else {
            return self.out_of_order("RCPT");
        };
        let from = mail.from.clone();
        let utf8 = mail
            .from_params
            .iter()
            .any(|param| param.eq_ignore_ascii_case("SMTPUTF8"));
        let Some((address, params)) = path(rest, "TO:") else {
            return self.refuse(Stage::Rcpt, "501 5.5.4 RCPT TO:<address>");
        };
        self.shared.record(|record| record.attempted(&address));
        if let Some(refusal) = self.refuse_params(&params, if utf8 { "" } else { &address }, false)
        {
            return self.refuse(Stage::Rcpt, &refusal);
        }
        let plan = self
            .ask(Stage::Rcpt, &from, std::slice::from_ref(&address))
            .await;
        if accepts(&plan)
            && let Some(mail) = &mut self.mail
        {
            mail.recipients.push(Recipient { address, params });
        }
        self.settle(Stage::Rcpt, plan, "250 2.1.5 recipient ok")
            .await
    }

    async fn data(&mut self) -> Flow {
        let Some(mail) = &self.mail else {
            return self.out_of_order("DATA");
        };
        let (from, to) = (mail.from.clone(), mail.addresses());
        if to.is_empty() {
            return self.refuse(Stage::Data, "554 5.5.1 no valid recipients");
        }
        let plan = self.ask(Stage::Data, &from, &to).await;
        if !matches!(plan.end, End::Usual) {
            self.mail = None;
            return self.settle(Stage::Data, plan, "").await;
        }
        self.put("354 go ahead");
        self.wire().flush().await?;
        let mut line = Vec::new();
        let mut unstuffing = Unstuffing::new(self.shared.options.size_max);
        let mut first = true;
        let transfer = loop {
            if let Some(end) = unstuffing.read_line(self.wire(), &mut line).await? {
                break end;
            }
            if std::mem::take(&mut first) {
                let plan = self.ask(Stage::Content, &from, &to).await;
                if !matches!(plan.end, End::Usual) {
                    return self
                        .settle(Stage::Content, plan, "")
                        .await
                        .map(|_| ControlFlow::Break(()));
                }
            }
        };
        let Some(mail) = self.mail.take() else {
            return CLOSE;
        };
        match transfer {
            Transfer::CutOff(bytes) => {
                let unfinished = Unfinished {
                    connection: self.number,
                    from,
                    to,
                    bytes,
                };
                self.shared.say(
                    self.number,
                    '<',
                    format!("({bytes} bytes, and no final dot)").as_bytes(),
                );
                self.shared.record(|record| record.unfinished(unfinished));
                CLOSE
            }
            Transfer::TooLarge(bytes) => {
                self.shared
                    .say(self.number, '<', format!("({bytes} bytes)").as_bytes());
                self.refuse(Stage::Dot, "552 5.3.4 too large")
            }
            Transfer::Complete(data) => {
                self.shared.say(
                    self.number,
                    '<',
                    format!("({} bytes)", data.len()).as_bytes(),
                );
                self.dot(mail, data.into()).await
            }
        }
    }

    /// Decides about a whole message: once, or in LMTP once per recipient.
    async fn dot(&mut self, mail: Mail, data: Bytes) -> Flow {
        let to = mail.addresses();
        let usual = "250 2.0.0 taken";
        if self.protocol() != Protocol::Lmtp {
            let plan = self.ask(Stage::Dot, &mail.from, &to).await;
            if accepts(&plan) {
                self.accept(mail, data);
            }
            return self.settle(Stage::Dot, plan, usual).await;
        }
        let mut plans = Vec::new();
        for address in &to {
            plans.push(
                self.ask(Stage::Dot, &mail.from, std::slice::from_ref(address))
                    .await,
            );
        }
        let accepted: Vec<_> = mail
            .recipients
            .iter()
            .zip(&plans)
            .filter(|(_, plan)| accepts(plan))
            .map(|(r, _)| r.clone())
            .collect();
        if !accepted.is_empty() {
            self.accept(
                Mail {
                    recipients: accepted,
                    ..mail
                },
                data,
            );
        }
        for plan in plans {
            if self.settle(Stage::Dot, plan, usual).await?.is_break() {
                return CLOSE;
            }
        }
        GO_ON
    }

    fn accept(&self, mail: Mail, data: Bytes) {
        let transaction = Transaction {
            connection: self.number,
            helo: self.helo.clone().unwrap_or_default(),
            extended: self.extended,
            tls: self.tls,
            user: self.user.clone(),
            from: mail.from,
            from_params: mail.from_params,
            recipients: mail.recipients,
            data,
            at: Instant::now(),
        };
        self.shared.record(|record| record.accepted(transaction));
    }

    /// Refuses parameters of extensions that were not offered, as a real server does.
    fn refuse_params(&self, params: &[String], ascii: &str, of_mail: bool) -> Option<String> {
        let offered =
            |extension| self.extended && self.shared.options.extensions.contains(&extension);
        if !ascii.is_ascii()
            && !params
                .iter()
                .any(|param| param.eq_ignore_ascii_case("SMTPUTF8"))
        {
            return Some("553 5.6.7 address needs SMTPUTF8".into());
        }
        for param in params {
            let (name, value) = param.split_once('=').unwrap_or((param, ""));
            let known = match name.to_ascii_uppercase().as_str() {
                "SIZE" if of_mail => {
                    if offered(Extension::Size)
                        && value
                            .parse()
                            .is_ok_and(|size: usize| size > self.shared.options.size_max)
                    {
                        return Some("552 5.3.4 too large".into());
                    }
                    offered(Extension::Size)
                }
                "BODY" if of_mail => offered(Extension::EightBitMime),
                "SMTPUTF8" if of_mail => offered(Extension::SmtpUtf8),
                "RET" | "ENVID" if of_mail => offered(Extension::Dsn),
                "NOTIFY" | "ORCPT" if !of_mail => offered(Extension::Dsn),
                "AUTH" if of_mail => self.extended && self.shared.options.login.is_some(),
                _ => false,
            };
            if !known {
                return Some(format!("555 5.5.4 {name} was not offered"));
            }
        }
        None
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

fn accepts(plan: &Plan) -> bool {
    match &plan.end {
        End::Usual | End::AcceptAndDrop => true,
        End::Reply(reply) => reply.starts_with('2'),
        End::Drop => false,
    }
}

/// `FROM:<a@b> X=1` as address and parameters.
fn path(rest: &str, keyword: &str) -> Option<(String, Vec<String>)> {
    let head = rest
        .get(..keyword.len())
        .filter(|head| head.eq_ignore_ascii_case(keyword))?;
    let inside = rest[head.len()..].trim_start().strip_prefix('<')?;
    let mut quoted = false;
    let mut escaped = false;
    let end = inside.find(|c| match c {
        _ if escaped => {
            escaped = false;
            false
        }
        '\\' => {
            escaped = quoted;
            false
        }
        '"' => {
            quoted = !quoted;
            false
        }
        c => c == '>' && !quoted,
    })?;
    let params = inside[end + 1..]
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    Some((inside[..end].to_owned(), params))
}

#[cfg(test)]
mod tests {
    use super::path;

    #[test]
    fn path_ends_at_its_own_bracket() {
        let (address, params) = path("from:<\"a>\\\"b\"@x> SIZE=3 BODY=8BITMIME", "FROM:").unwrap();
        assert_eq!(address, "\"a>\\\"b\"@x");
        assert_eq!(params, ["SIZE=3", "BODY=8BITMIME"]);
        assert_eq!(path("FROM:<>", "FROM:"), Some((String::new(), vec![])));
        assert_eq!(path("FROM:a@b", "FROM:"), None);
        assert_eq!(path("TO:<é", "FROM:"), None);
    }
}
