//! MAIL, RCPT, DATA and the dot.

use std::time::Instant;

use bytes::Bytes;

use super::{
    super::{
        data::{Transfer, Unstuffing},
        record::{Recipient, Transaction, Unfinished},
        script::{End, Extension, Plan, Protocol, Stage},
    },
    CLOSE, Flow, GO_ON, Session,
};

/// A transaction under way.
pub(super) struct Mail {
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
    pub(super) async fn mail(&mut self, rest: &str) -> Flow {
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

    pub(super) async fn rcpt(&mut self, rest: &str) -> Flow {
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

    pub(super) async fn data(&mut self) -> Flow {
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
                    return self.settle(Stage::Content, plan, "").await.and(CLOSE);
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
