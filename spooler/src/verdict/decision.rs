//! A verdict in the making: the rules that do not depend on what a transport said.

use std::collections::BTreeMap;

use pombo_proto::{
    ids::RecipientIndex,
    outcome::{Diagnosis, EnhancedStatus, NdrReason, Relayed, TEXT_BYTES_MAX},
    time::UnixMillis,
};

use super::{
    Case, Disposition, Happened, REPORT_RECIPIENTS_MAX, ReportKind, ReportSpec, Verdict, Waiting,
};
use crate::{
    progress::{Progress, RecipientProgress, RecipientState},
    router::Route,
};

/// Reasons and timeline entries are for a line of a table.
const DETAIL_BYTES_MAX: usize = 240;

/// Unable to route (RFC 3463 X.4.4).
const NO_ROUTE: EnhancedStatus = EnhancedStatus::new(5, 4, 4);
/// Delivery time expired (RFC 3463 X.4.7).
const TOO_LATE: EnhancedStatus = EnhancedStatus::new(5, 4, 7);
/// Other or undefined mail system status (RFC 3463 X.3.0).
const GIVEN_UP: EnhancedStatus = EnhancedStatus::new(5, 3, 0);

/// Where a message goes that a person has to see.
pub(super) enum PutAway {
    Held(String),
    Dead(String),
}

pub(super) struct Decision<'a> {
    pub(super) case: &'a Case<'a>,
    pub(super) progress: Progress,
    /// Decided by this verdict.
    decided: Vec<RecipientIndex>,
    warned: Vec<RecipientIndex>,
    /// See [`Verdict::doubted`].
    pub(super) doubted: BTreeMap<String, u32>,
    /// Why a person has to see it, if transports said that they are in doubt.
    pub(super) held: Option<String>,
    /// Why it waits, if that is not for a transport's sake.
    pub(super) parked: Option<String>,
}

impl<'a> Decision<'a> {
    pub(super) fn new(case: &'a Case<'a>, mut progress: Progress) -> Self {
        // One entry per recipient, whatever was stored.
        let count = case.envelope.recipients.len();
        progress
            .recipients
            .resize_with(count, RecipientProgress::default);
        Self {
            case,
            progress,
            decided: Vec::new(),
            warned: Vec::new(),
            doubted: BTreeMap::new(),
            held: None,
            parked: None,
        }
    }

    /// What happened.
    pub(super) fn take_in(&mut self, happened: Happened) -> Option<PutAway> {
        let put_away = self.take_in_all(happened);
        put_away.or_else(|| self.held.take().map(PutAway::Held))
    }

    fn take_in_all(&mut self, happened: Happened) -> Option<PutAway> {
        match happened {
            Happened::Nothing => {}
            Happened::Attempt {
                transport,
                considered,
                result,
                interrupted,
                hold,
            } => self.attempt(&transport, &considered, result, interrupted, hold),
            Happened::Adopted(attempts) => self.adopted(attempts),
            // Nothing is decided: see [`Self::unknown`].
            Happened::Unknown { .. } => {}
            Happened::SentDeferred {
                transport,
                statuses,
            } => self.sent_deferred(&transport, statuses),
            Happened::SessionLost {
                transport,
                considered,
                in_doubt,
                hold,
            } => return self.session_lost(&transport, &considered, in_doubt, hold),
            Happened::LostAtTheDot {
                transport,
                considered,
                found,
            } => {
                self.adopted(found);
                return self.session_lost(&transport, &considered, true, true);
            }
            Happened::Deadly { reason, found } => {
                self.adopted(found);
                self.note("dead", reason.clone());
                return Some(PutAway::Dead(reason));
            }
            Happened::Parked { reason, recipients } => self.park(reason, &recipients),
            Happened::Unreadable { transport } => {
                let reason = format!("the agent of {transport} cannot read the message");
                self.note("submitmessage", reason.clone());
                return Some(PutAway::Dead(reason));
            }
            Happened::GivenUp { reason } => self.give_up(&reason),
        }
        None
    }

    /// Due now, whatever is marked or over: only who has adopted it may decide.
    pub(super) fn unknown(mut self, transport: &str) -> Verdict {
        let detail = format!("with {transport}: its agents are asked what became of it");
        self.note("sessionlost", detail);
        let now = self.case.now;
        let waiting = Waiting {
            due: now,
            wake: now,
            reason: format!("{transport} was lost under it: to be asked for"),
            transport: None,
            destination: None,
            again_now: false,
        };
        Verdict {
            progress: self.progress,
            disposition: Disposition::Waiting(waiting),
            reports: Vec::new(),
            doubted: self.doubted,
        }
    }

    fn session_lost(
        &mut self,
        transport: &str,
        considered: &[RecipientIndex],
        in_doubt: bool,
        hold: bool,
    ) -> Option<PutAway> {
        let mut marked = 0;
        for &index in considered {
            if self.begin(index, transport) {
                marked += 1;
                let known = self.known(index);
                known.in_doubt |= in_doubt;
                known.state = RecipientState::Pending {
                    not_before: UnixMillis(0),
                };
            }
        }
        let how = if in_doubt {
            "; it may have been sent"
        } else {
            ""
        };
        self.note("sessionlost", format!("{transport}{how}"));
        (in_doubt && hold && marked > 0).then(|| {
            PutAway::Held(format!(
                "in doubt: {transport} was lost while it was sending; release sends it again, drop gives it up"
            ))
        })
    }

    fn park(&mut self, reason: String, recipients: &[(RecipientIndex, UnixMillis)]) {
        for (index, until) in recipients {
            if let Some(known) = self.progress.recipients.get_mut(index.get())
                && let RecipientState::Pending { not_before } = &mut known.state
            {
                *not_before = (*not_before).max(*until);
            }
        }
        self.note("park", reason.clone());
        self.parked = Some(reason);
    }

    fn give_up(&mut self, reason: &str) {
        let at = self.case.now;
        for index in self.all() {
            let diagnosis = Diagnosis::new(GIVEN_UP, NdrReason::TransferFailed, reason);
            self.settle(index, RecipientState::Failed { at, diagnosis });
        }
        self.note("giveup", reason);
    }

    /// A marked message: what was not sent is not sent any more.
    pub(super) fn cancel(&mut self) {
        if !self.case.cancelled {
            return;
        }
        let before = self.decided.len();
        let at = self.case.now;
        for index in self.all() {
            self.settle(index, RecipientState::Cancelled { at });
        }
        let count = self.decided.len() - before;
        self.note("cancel", format!("{count} not sent"));
    }

    /// Transports that have kept a recipient for too long without a word: it is offered again.
    pub(super) fn give_up_on_keepers(&mut self) {
        let now = self.case.now;
        let mut count = 0;
        for known in &mut self.progress.recipients {
            if matches!(known.state, RecipientState::Kept { deadline } if deadline <= now) {
                count += 1;
                known.state = RecipientState::Pending {
                    not_before: UnixMillis(0),
                };
            }
        }
        if count > 0 {
            self.note("keptlong", format!("{count} not heard of in time"));
        }
    }

    /// The end of the message's life, or PR_EXPIRY_TIME.
    pub(super) fn expire(&mut self) {
        let now = self.case.now;
        if now < self.case.schedule.expires_at(self.case.envelope) {
            return;
        }
        let before = self.decided.len();
        for index in self.all() {
            let known = self.known(index);
            if let RecipientState::Pending { .. } = known.state {
                let diagnosis = too_late(known.last.as_ref());
                self.settle(index, RecipientState::Expired { at: now, diagnosis });
            }
        }
        let count = self.decided.len() - before;
        if count > 0 {
            self.note("expire", format!("{count} not delivered in time"));
        }
    }

    /// Recipients that are due and that no transport takes, or that all have left.
    pub(super) fn fail_what_nobody_takes(&mut self) {
        let (case, now) = (self.case, self.case.now);
        let mut count = 0;
        for index in self.all() {
            let known = &self.progress.recipients[index.get()];
            let due = self
                .not_before(known)
                .is_some_and(|not_before| not_before <= now);
            if !due {
                continue;
            }
            let recipient = &case.envelope.recipients[index.get()];
            match case.router.route(recipient, &known.passed) {
                Route::Transport(_) => {}
                Route::Unknown(_) => {
                    let not_before = case.schedule.after_busy(now);
                    self.known(index).state = RecipientState::Pending { not_before };
                }
                Route::Nobody => {
                    count += 1;
                    let text = if known.passed.is_empty() {
                        "no transport takes this recipient".to_owned()
                    } else {
                        format!("no transport is left after {}", known.passed.join(", "))
                    };
                    let diagnosis = Diagnosis::new(NO_ROUTE, NdrReason::TransferImpossible, text);
                    self.settle(index, RecipientState::Failed { at: now, diagnosis });
                }
            }
        }
        if count > 0 {
            self.note("route", format!("nobody takes {count}"));
        }
    }

    /// It takes long: once per message.
    pub(super) fn warn(&mut self) {
        let due = self.warns_at().is_some_and(|at| at <= self.case.now);
        if !due {
            return;
        }
        self.progress.delay_reported = true;
        self.warned = self
            .all()
            .filter(|index| self.is_owed(*index) && self.notify(*index).delay)
            .collect();
    }

    /// Puts it together.
    pub(super) fn finish(mut self, put_away: Option<PutAway>) -> Verdict {
        let reports = self.reports();
        for report in &reports {
            let what = match report.kind {
                ReportKind::Failure => "failure",
                ReportKind::Delay => "delay",
                ReportKind::Success => "success",
                ReportKind::Relayed => "relay",
            };
            self.note(
                "report",
                format!("{what} of {} to the sender", report.recipients.len()),
            );
        }
        let disposition = match put_away {
            _ if self.progress.is_finished() => Disposition::Finished,
            Some(PutAway::Held(reason)) => Disposition::Held { reason },
            Some(PutAway::Dead(reason)) => Disposition::Dead { reason },
            None => Disposition::Waiting(self.waiting()),
        };
        Verdict {
            progress: self.progress,
            disposition,
            reports,
            doubted: self.doubted,
        }
    }

    fn reports(&self) -> Vec<ReportSpec> {
        if !self.is_reportable() {
            return Vec::new();
        }
        let state = |index: &RecipientIndex| &self.progress.recipients[index.get()].state;
        let of_kind = |kind: ReportKind| -> Vec<RecipientIndex> {
            let belongs = |index: &RecipientIndex| match (state(index), kind) {
                (
                    RecipientState::Failed { .. } | RecipientState::Expired { .. },
                    ReportKind::Failure,
                ) => self.notify(*index).failure,
                (RecipientState::Delivered(delivery), ReportKind::Success) => {
                    self.notify(*index).success && delivery.relayed == Relayed::No
                }
                (RecipientState::Delivered(delivery), ReportKind::Relayed) => {
                    self.notify(*index).success && delivery.relayed == Relayed::Unreported
                }
                _ => false,
            };
            let mut chosen: Vec<RecipientIndex> =
                self.decided.iter().copied().filter(belongs).collect();
            chosen.sort_unstable();
            chosen
        };
        [
            (ReportKind::Failure, of_kind(ReportKind::Failure)),
            (ReportKind::Delay, self.warned.clone()),
            (ReportKind::Success, of_kind(ReportKind::Success)),
            (ReportKind::Relayed, of_kind(ReportKind::Relayed)),
        ]
        .iter()
        .flat_map(|(kind, recipients)| {
            recipients
                .chunks(REPORT_RECIPIENTS_MAX)
                .zip(0..)
                .map(|(recipients, part)| ReportSpec {
                    kind: *kind,
                    recipients: recipients.to_vec(),
                    part,
                })
        })
        .collect()
    }

    /// When an undecided recipient may be tried; `None`: it is decided, or a transport keeps it.
    pub(super) fn not_before(&self, known: &RecipientProgress) -> Option<UnixMillis> {
        match known.state {
            RecipientState::Pending { not_before } => {
                let deferred = self.case.envelope.deferred_until.unwrap_or_default();
                Some(not_before.max(deferred))
            }
            _ => None,
        }
    }

    /// When the sender is to be told that it takes long; `None`: never, or it was.
    pub(super) fn warns_at(&self) -> Option<UnixMillis> {
        if self.progress.delay_reported || !self.is_reportable() {
            return None;
        }
        let wanted = |index: RecipientIndex| self.is_owed(index) && self.notify(index).delay;
        self.all()
            .any(wanted)
            .then(|| self.case.schedule.warns_at(self.case.envelope))
            .flatten()
    }

    fn is_owed(&self, index: RecipientIndex) -> bool {
        !self.progress.recipients[index.get()].state.is_decided()
    }

    fn is_reportable(&self) -> bool {
        let envelope = self.case.envelope;
        !envelope.class.is_report() && !envelope.sender.is_empty()
    }

    fn notify(&self, index: RecipientIndex) -> pombo_proto::message::Notify {
        self.case.envelope.recipients[index.get()].notify
    }

    /// All recipients.
    pub(super) fn all(&self) -> impl Iterator<Item = RecipientIndex> + use<> {
        (0..self.progress.recipients.len() as u32).map(RecipientIndex)
    }

    /// An attempt with it has ended. False: there is no such recipient, or it was decided before.
    pub(super) fn begin(&mut self, index: RecipientIndex, transport: &str) -> bool {
        let now = self.case.now;
        let Some(known) = self.progress.recipients.get_mut(index.get()) else {
            return false;
        };
        if known.state.is_decided() {
            return false;
        }
        known.tried_at = Some(now);
        if known.transport.as_deref() != Some(transport) {
            known.transport = Some(transport.to_owned());
        }
        true
    }

    /// One that exists.
    pub(super) fn known(&mut self, index: RecipientIndex) -> &mut RecipientProgress {
        &mut self.progress.recipients[index.get()]
    }

    /// Decides a recipient, unless it is decided.
    pub(super) fn settle(&mut self, index: RecipientIndex, state: RecipientState) {
        let known = self.known(index);
        if known.state.is_decided() {
            return;
        }
        if let RecipientState::Failed { diagnosis, .. } = &state {
            known.last = Some(diagnosis.clone());
        }
        known.was_kept = false;
        known.state = state;
        self.decided.push(index);
    }

    pub(super) fn note(&mut self, what: &str, detail: impl Into<String>) {
        self.progress
            .note(self.case.now, what, clipped(detail.into()));
    }
}

/// It took too long: in our words, and with the last remote words.
fn too_late(last: Option<&Diagnosis>) -> Diagnosis {
    let text = match last {
        Some(last) => format!(
            "not delivered in time; the last try ended with {} {}",
            last.status, last.text
        ),
        None => "not delivered in time".to_owned(),
    };
    let mut diagnosis = Diagnosis::new(TOO_LATE, NdrReason::TransferFailed, text);
    if let Some(last) = last {
        diagnosis.remote.clone_from(&last.remote);
        diagnosis.reply.clone_from(&last.reply);
    }
    diagnosis
}

pub(super) fn clipped(mut text: String) -> String {
    const { assert!(DETAIL_BYTES_MAX < TEXT_BYTES_MAX) };
    if text.len() > DETAIL_BYTES_MAX {
        text.truncate(text.floor_char_boundary(DETAIL_BYTES_MAX));
    }
    text
}
