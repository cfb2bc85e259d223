//! What happened becomes a verdict, and the verdict one row; then the lease is acked, and the agent is told.

use pombo_proto::{
    ids::{Incarnation, MessageId},
    message::{Body, Envelope, Message, MessageClass, Recipient, Source},
    tenure::{LeaseTag, Ordinal, Origin},
    time::UnixMillis,
    verbs::Tenancy,
};
use pombo_spooler::{
    job::Job,
    rows,
    store::{RowData, Write, Written},
    verdict::{self, Case, Disposition, Happened, ReportKind, ReportSpec},
};

use super::{Asked, REPEAT_AFTER, Spooler};
use crate::sim::{
    checks::Seen,
    context::{Context, Effect, Timer},
    options::Sabotage,
    store::{Answer, Ask},
};

/// Something happened to a message: decide and record.
pub(super) struct Conclude {
    pub job: Job,
    pub happened: Happened,
    /// The attempt's result was not learned.
    pub doubt: bool,
    /// The sessions that keep an attempt of it.
    pub sessions: Vec<Incarnation>,
    /// The session whose credit it used.
    pub spent: Option<(Incarnation, Ordinal)>,
}

impl Conclude {
    /// Of a message that was not submitted.
    pub fn new(job: Job, happened: Happened) -> Self {
        Self {
            job,
            happened,
            doubt: false,
            sessions: Vec::new(),
            spent: None,
        }
    }
}

/// One commit under way; kept until it has succeeded.
pub(super) struct Pending {
    pub write: Write,
    pub then: Then,
}

/// What follows it.
pub(super) enum Then {
    Moved(LeaseTag),
    Recorded {
        tenancy: Tenancy,
        lease: Option<LeaseTag>,
        sessions: Vec<Incarnation>,
        spent: Option<(Incarnation, Ordinal)>,
        kick: bool,
        /// The broken rule: they are written only now.
        reports: Vec<(MessageId, RowData)>,
    },
    Nothing,
}

impl Spooler {
    pub(super) fn conclude(&mut self, conclude: Conclude, cx: &mut Context<'_>) {
        let Conclude {
            mut job,
            happened,
            doubt,
            sessions,
            spent,
        } = conclude;
        let Some(term) = &mut self.term else { return };
        if matches!(happened, Happened::Attempt { .. }) {
            job.deaths = 0;
        }
        let now = cx.now.unix();
        let envelope = job.message.envelope.clone();
        let case = Case {
            envelope: &envelope,
            schedule: &self.schedule,
            router: &term.router,
            cancelled: job.cancelled,
            now,
        };
        let progress = std::mem::take(&mut job.progress);
        let verdict = verdict::decide(&case, progress, happened);
        let tenancy = job.tenure.tenancy();
        let mut reports: Vec<_> = verdict
            .reports
            .iter()
            .map(|spec| {
                let report = report(spec, tenancy, &envelope, now);
                let row = rows::fresh(&report, now, "a report, not yet tried");
                (report.envelope.id, row)
            })
            .collect();
        let due = matches!(&verdict.disposition, Disposition::Waiting(it) if it.due <= now);
        let kick = due || !reports.is_empty();
        let mut late = Vec::new();
        if cx.broken(Sabotage::ReportOutsideTransaction) {
            late = std::mem::take(&mut reports);
        }
        let write = Write::Record {
            tenancy,
            holder: job.tenure.holder(),
            row: RowData {
                deaths: job.deaths,
                ..rows::judged(&job.message, &verdict, doubt, job.unsure_since)
            },
            reports,
        };
        let lease = match job.tenure.origin() {
            Origin::Lease(tag) => Some(tag),
            Origin::Claim => None,
        };
        let then = Then::Recorded {
            tenancy,
            lease,
            sessions,
            spent,
            kick,
            reports: late,
        };
        self.commit(Pending { write, then }, cx);
    }

    pub(super) fn commit(&mut self, pending: Pending, cx: &mut Context<'_>) {
        let ask = Ask::Commit(vec![pending.write.clone()]);
        self.ask(ask, Asked::Commit(Box::new(pending)), cx);
    }

    pub(super) fn repeat(&mut self, cx: &mut Context<'_>) {
        let Some(term) = &mut self.term else { return };
        for pending in std::mem::take(&mut term.failed) {
            self.commit(pending, cx);
        }
    }

    pub(super) fn committed(&mut self, pending: Pending, answer: &Answer, cx: &mut Context<'_>) {
        let Some(term) = &mut self.term else { return };
        let Answer::Written(written) = answer else {
            if term.failed.is_empty() {
                cx.after(REPEAT_AFTER, Timer::Repeat);
            }
            term.trouble = true;
            term.failed.push(pending);
            return;
        };
        term.trouble = false;
        let won = written.first() == Some(&Written::Won);
        match pending.then {
            Then::Nothing => {}
            Then::Moved(tag) => {
                if won || !cx.broken(Sabotage::LoserDoesNotAck) {
                    cx.act(Effect::Ack(vec![tag.delivery]));
                }
                self.claim(cx);
            }
            Then::Recorded {
                tenancy,
                lease,
                sessions,
                spent,
                kick,
                reports,
            } => {
                if let Some(tag) = lease.filter(|_| won || !cx.broken(Sabotage::LoserDoesNotAck)) {
                    cx.act(Effect::Ack(vec![tag.delivery]));
                }
                if let Some((key, opened)) = spent
                    && let Some(session) = term.sessions.get_mut(&key)
                {
                    session.give_back(opened);
                }
                // Who lost settles nothing: the attempt belongs to whoever won.
                let finished = matches!(
                    &pending.write,
                    Write::Record { row, .. } if row.due.is_none()
                );
                let forgets = finished && cx.broken(Sabotage::FinishedNeverSettled);
                for key in sessions.into_iter().filter(|_| won && !forgets) {
                    self.settle(key, vec![tenancy]);
                }
                for (id, row) in reports.into_iter().filter(|_| won) {
                    let write = Write::Move { id, row };
                    let then = Then::Nothing;
                    self.commit(Pending { write, then }, cx);
                }
                if kick {
                    self.claim(cx);
                }
            }
        }
    }
}

/// A report, as far as this world cares: to whom, and about whom.
fn report(spec: &ReportSpec, about: Tenancy, envelope: &Envelope, now: UnixMillis) -> Message {
    let final_one = spec.kind != ReportKind::Delay;
    let whom: Vec<String> = spec.recipients.iter().map(|it| it.0.to_string()).collect();
    let report = Envelope {
        id: spec.id(about.id, about.fence),
        class: if final_one {
            MessageClass::NonDeliveryReport
        } else {
            MessageClass::DelayReport
        },
        sender: String::new(),
        recipients: vec![Recipient::smtp(envelope.sender.clone())],
        submitted_at: now,
        deferred_until: None,
        expires_at: None,
        envelope_id: None,
        source: Source {
            door: "report".to_owned(),
            client: whom.join(","),
            about: Some(about.id),
        },
        body: Body::Inline { size: 0 },
        ..envelope.clone()
    };
    pombo_proto::frame::encode_message(report, b"")
}

/// What a commit says of reports, for the checks.
pub fn reports_in(write: &Write) -> Vec<Seen> {
    let told = |id: &MessageId, row: &RowData| {
        let message = pombo_proto::frame::decode_message(row.message.clone()).ok()?;
        let envelope = &message.envelope;
        let about = envelope.source.about?;
        let whom = envelope.source.client.split(',');
        (envelope.class == MessageClass::NonDeliveryReport).then(|| Seen::Reported {
            report: *id,
            about,
            recipients: whom
                .filter_map(|it| it.parse().ok().map(pombo_proto::ids::RecipientIndex))
                .collect(),
        })
    };
    match write {
        Write::Note { .. } => Vec::new(),
        Write::Move { id, row } => told(id, row).into_iter().collect(),
        Write::Record { reports, .. } => reports
            .iter()
            .filter_map(|(id, row)| told(id, row))
            .collect(),
    }
}
