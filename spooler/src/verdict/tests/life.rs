//! A message's whole life under any behaviour of its transports, by seeds.

use super::*;

/// A message's whole life under any behaviour of its transports, checked against the invariants at each verdict.
#[test]
fn any_life_ends_in_time_with_one_final_report_each() {
    for seed in 0..6_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        Life::new(&mut random).live(&mut random, seed);
    }
}

struct Life {
    fixture: Fixture,
    final_reports: Vec<u32>,
    delay_reports: Vec<u32>,
}

impl Life {
    fn new(random: &mut fastrand::Rng) -> Self {
        let mut fixture = Fixture::new(random.usize(1..6));
        for recipient in &mut fixture.envelope.recipients {
            recipient.notify = Notify {
                success: random.bool(),
                failure: random.u8(0..4) > 0,
                delay: random.bool(),
            };
            recipient.address = format!("a@d{}.example", random.u8(0..3));
            if random.u8(0..10) == 0 {
                recipient.address_type = "FAX".to_owned();
            }
        }
        if random.u8(0..8) == 0 {
            fixture.envelope.sender.clear();
        }
        if random.u8(0..4) == 0 {
            fixture.envelope.deferred_until =
                Some(NOW.after(Duration::from_secs(random.u64(0..200_000))));
        }
        if random.u8(0..4) == 0 {
            fixture.envelope.expires_at =
                Some(NOW.after(Duration::from_secs(random.u64(0..200_000))));
        }
        let count = fixture.envelope.recipients.len();
        Self {
            fixture,
            final_reports: vec![0; count],
            delay_reports: vec![0; count],
        }
    }

    fn live(&mut self, random: &mut fastrand::Rng, seed: u64) {
        let mut progress = self.fixture.fresh();
        let end = self.fixture.schedule.expires_at(&self.fixture.envelope);
        for step in 0.. {
            assert!(step < 5_000, "seed {seed}: no end");
            for name in [FIRST, SECOND] {
                self.fixture.router.set_available(name, random.u8(0..5) > 0);
            }
            self.fixture.cancelled |= random.u16(0..400) == 0;
            let happened = match self.fixture.next(&progress) {
                Next::Submit(plan) => self.submit(&plan, &progress, random, seed),
                Next::Decide => Happened::Nothing,
            };
            let verdict = self.fixture.decide(progress.clone(), happened);
            self.check(&progress, &verdict, seed);
            progress = verdict.progress;
            match verdict.disposition {
                Disposition::Finished => break,
                Disposition::Waiting(waiting) => {
                    let now = self.fixture.now;
                    assert!(
                        waiting.due <= waiting.wake && waiting.wake <= end,
                        "seed {seed}"
                    );
                    assert!(
                        waiting.due <= end && waiting.due >= now,
                        "seed {seed}: {waiting:?}"
                    );
                    assert!(!waiting.again_now || waiting.due <= now, "seed {seed}");
                    // Nothing due and not again at once: its transport is away. It comes back at some time.
                    let idle = u64::from(waiting.due == now && !waiting.again_now);
                    self.fixture.now = waiting
                        .due
                        .after(Duration::from_secs(idle * random.u64(1..9_000)));
                }
                Disposition::Held { .. } => {}
                Disposition::Dead { .. } => panic!("seed {seed}: nobody made it so"),
            }
        }
        self.check_end(&progress, seed);
    }

    fn submit(
        &self,
        plan: &Plan,
        progress: &Progress,
        random: &mut fastrand::Rng,
        seed: u64,
    ) -> Happened {
        let now = self.fixture.now;
        assert!(!plan.recipients.is_empty(), "seed {seed}");
        assert!(
            self.fixture.router.is_available(&plan.transport),
            "seed {seed}"
        );
        for index in &plan.recipients {
            let known = &progress.recipients[index.get()];
            let due =
                matches!(known.state, RecipientState::Pending { not_before } if not_before <= now);
            assert!(
                due && !known.passed.contains(&plan.transport),
                "seed {seed}"
            );
        }
        if random.u8(0..12) == 0 {
            return Happened::SessionLost {
                transport: plan.transport.clone(),
                considered: plan.recipients.clone(),
                in_doubt: random.bool(),
                hold: random.bool(),
            };
        }
        let any = |random: &mut fastrand::Rng| match random.u8(0..10) {
            0 => delivered(),
            1 => failed(),
            2 => Outcome::Left,
            3 => Outcome::Kept,
            4 => Outcome::InDoubt(diagnosis()),
            _ => deferred(),
        };
        let outcomes: Vec<RecipientOutcome> = (0..random.usize(0..plan.recipients.len() + 2))
            .map(|_| RecipientOutcome {
                recipient: RecipientIndex(random.u32(0..8)),
                outcome: any(random),
            })
            .collect();
        let mut statuses = Vec::new();
        for at in 0..random.u32(0..3) {
            let status = if random.bool() {
                RecipientStatus::NotDelivered(refusal())
            } else {
                RecipientStatus::Delivered(Delivery::new(now, "mx", "ok"))
            };
            if random.u8(0..6) == 0 {
                statuses.push((RecipientIndex(at), status));
            }
        }
        if random.u8(0..12) == 0 {
            return Happened::SentDeferred {
                transport: plan.transport.clone(),
                statuses,
            };
        }
        let asked = Duration::from_secs(random.u64(0..20_000));
        let result = match random.u8(0..20) {
            0 => SubmitResult::Busy,
            1 => SubmitResult::NotMe,
            2 => SubmitResult::Cancelled(outcomes),
            3 => SubmitResult::Wait(asked, None),
            4 => SubmitResult::NetworkError(asked, diagnosis()),
            5 => SubmitResult::CriticalError(diagnosis()),
            _ => SubmitResult::Ok(outcomes),
        };
        let end = random.choice([
            None,
            SENT,
            Some(EndMessageFlag::ResendNow),
            Some(EndMessageFlag::ResendLater),
            Some(EndMessageFlag::DontResend),
        ]);
        let result = AttemptResult {
            result,
            end: end.flatten(),
            statuses,
        };
        Happened::Attempt {
            transport: plan.transport.clone(),
            considered: plan.recipients.clone(),
            result,
            interrupted: false,
            hold: random.bool(),
        }
    }

    fn check(&mut self, before: &Progress, verdict: &Verdict, seed: u64) {
        let kinds: Vec<ReportKind> = verdict.reports.iter().map(|report| report.kind).collect();
        for (at, kind) in kinds.iter().enumerate() {
            assert!(!kinds[..at].contains(kind), "seed {seed}: two of {kind:?}");
        }
        for report in &verdict.reports {
            assert!(!self.fixture.envelope.sender.is_empty(), "seed {seed}");
            for index in &report.recipients {
                let notify = self.fixture.envelope.recipients[index.get()].notify;
                let known = &verdict.progress.recipients[index.get()].state;
                match report.kind {
                    ReportKind::Delay => {
                        assert!(notify.delay && !known.is_decided(), "seed {seed}");
                        self.delay_reports[index.get()] += 1;
                    }
                    ReportKind::Failure => {
                        assert!(notify.failure, "seed {seed}");
                        let fits = matches!(
                            known,
                            RecipientState::Failed { .. } | RecipientState::Expired { .. }
                        );
                        assert!(fits, "seed {seed}: {known:?}");
                        self.final_reports[index.get()] += 1;
                    }
                    ReportKind::Success | ReportKind::Relayed => {
                        assert!(notify.success, "seed {seed}");
                        assert!(matches!(known, RecipientState::Delivered(_)), "seed {seed}");
                        self.final_reports[index.get()] += 1;
                    }
                }
            }
        }
        let finished = verdict.disposition == Disposition::Finished;
        assert_eq!(finished, verdict.progress.is_finished(), "seed {seed}");
        for (before, after) in before.recipients.iter().zip(&verdict.progress.recipients) {
            if before.state.is_decided() {
                assert_eq!(before.state, after.state, "seed {seed}: decided twice");
            }
            assert!(
                after.passed.len() <= 2 && after.passed.starts_with(&before.passed),
                "seed {seed}"
            );
            assert!(after.in_doubt >= before.in_doubt, "seed {seed}");
        }
        let newly = before.recipients.iter().zip(&verdict.progress.recipients);
        let newly = newly.filter(|(before, after)| after.in_doubt && !before.in_doubt);
        let lost = verdict.progress.timeline.iter().rev().take(3);
        if !lost.clone().any(|it| it.what == "sessionlost") {
            let counted: u32 = verdict.doubted.values().sum();
            assert!(
                newly.count() <= counted as usize,
                "seed {seed}: not counted"
            );
        }
        assert!(verdict.progress.timeline.len() <= crate::progress::TIMELINE_MAX);
    }

    fn check_end(&self, progress: &Progress, seed: u64) {
        for (at, known) in progress.recipients.iter().enumerate() {
            let notify = self.fixture.envelope.recipients[at].notify;
            let asked = match known.state {
                RecipientState::Delivered(_) => notify.success,
                RecipientState::Failed { .. } | RecipientState::Expired { .. } => notify.failure,
                _ => false,
            };
            let expected = u32::from(asked && !self.fixture.envelope.sender.is_empty());
            assert_eq!(
                self.final_reports[at], expected,
                "seed {seed}: recipient {at}"
            );
            assert!(self.delay_reports[at] <= 1, "seed {seed}: recipient {at}");
        }
    }
}
