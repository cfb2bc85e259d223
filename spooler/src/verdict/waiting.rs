//! What a message that is not finished waits for: its outbox row.

use std::time::Duration;

use pombo_proto::{ids::RecipientIndex, time::UnixMillis};

use super::{
    Waiting,
    decision::{Decision, clipped},
    shared_destination,
};
use crate::{progress::RecipientState, router::Route};

/// A message whose due recipients need several transports, none of which is available, looks again after this: its row can
/// wait for one transport only.
const AWAY_PAUSE: Duration = Duration::from_secs(15);

impl Decision<'_> {
    pub(super) fn waiting(&self) -> Waiting {
        let case = self.case;
        let earliest = self
            .progress
            .recipients
            .iter()
            .filter_map(|known| self.not_before(known))
            .min();
        let wakes = self
            .progress
            .recipients
            .iter()
            .filter_map(|known| match known.state {
                RecipientState::Kept { deadline } => Some(deadline),
                _ => None,
            });
        let end = case.schedule.expires_at(case.envelope);
        let wake = wakes
            .chain(self.warns_at())
            .chain([end])
            .min()
            .unwrap_or(end);
        let Some(earliest) = earliest else {
            return self.waiting_for_keepers(wake);
        };
        // Those who are due next, and by whom.
        let horizon = earliest.max(case.now);
        let next: Vec<RecipientIndex> = self
            .all()
            .filter(|index| {
                self.not_before(&self.progress.recipients[index.get()])
                    .is_some_and(|at| at <= horizon)
            })
            .collect();
        let Towards {
            transport,
            available,
            several,
            silent,
        } = self.towards(&next);
        let stuck = several && !available;
        let due = if stuck {
            horizon.max(case.now.after(AWAY_PAUSE))
        } else {
            horizon
        };
        let chosen = |index: &RecipientIndex| self.route_name(*index) == transport;
        let destination = shared_destination(
            case.envelope,
            next.iter().copied().filter(|index| chosen(index)),
        );
        Waiting {
            due: due.min(wake),
            wake,
            reason: self.reason(&next, transport, available, silent),
            transport: transport.filter(|_| !stuck).map(str::to_owned),
            destination: destination.filter(|_| !stuck).map(str::to_owned),
            again_now: due <= case.now && available,
        }
    }

    fn waiting_for_keepers(&self, wake: UnixMillis) -> Waiting {
        let kept = self
            .progress
            .recipients
            .iter()
            .find(|known| matches!(known.state, RecipientState::Kept { .. }));
        let transport = kept.and_then(|known| known.transport.as_deref());
        let name = transport.unwrap_or("its transport");
        Waiting {
            due: wake,
            wake,
            reason: format!("kept by {name}, which says when it is sent"),
            // No row waits for a transport that has what it needs: it must wake at its deadline even if that is away.
            transport: None,
            destination: None,
            again_now: false,
        }
    }

    /// Which transport those who are due next wait for: an available one if there is any.
    fn towards(&self, next: &[RecipientIndex]) -> Towards<'_> {
        let mut towards = Towards {
            transport: None,
            available: false,
            several: false,
            silent: false,
        };
        for index in next {
            let known = &self.progress.recipients[index.get()];
            let recipient = &self.case.envelope.recipients[index.get()];
            let (name, silent) = match self.case.router.route(recipient, &known.passed) {
                Route::Transport(name) => (name, false),
                Route::Unknown(name) => (name, true),
                Route::Nobody => continue,
            };
            if towards.transport == Some(name) {
                continue;
            }
            towards.several |= towards.transport.is_some();
            let available = !silent && self.case.router.is_available(name);
            if towards.transport.is_none() || available && !towards.available {
                towards.transport = Some(name);
                towards.available = available;
                towards.silent = silent;
            }
        }
        towards
    }

    fn route_name(&self, index: RecipientIndex) -> Option<&str> {
        let known = &self.progress.recipients[index.get()];
        let recipient = &self.case.envelope.recipients[index.get()];
        match self.case.router.route(recipient, &known.passed) {
            Route::Transport(name) | Route::Unknown(name) => Some(name),
            Route::Nobody => None,
        }
    }

    fn reason(
        &self,
        next: &[RecipientIndex],
        transport: Option<&str>,
        available: bool,
        silent: bool,
    ) -> String {
        let case = self.case;
        if let Some(reason) = &self.parked {
            return clipped(reason.clone());
        }
        if case.envelope.deferred_until.is_some_and(|at| at > case.now) {
            return "to be sent later".to_owned();
        }
        let name = transport.unwrap_or("a transport");
        if silent {
            return format!("{name} has not yet said whom it takes");
        }
        let last = next
            .iter()
            .find_map(|index| self.progress.recipients[index.get()].last.as_ref());
        clipped(match last {
            _ if transport.is_some() && !available => format!("{name} is away"),
            Some(last) => format!("{name}: {} {}", last.status, last.text),
            None => format!("goes to {name}"),
        })
    }
}

struct Towards<'a> {
    transport: Option<&'a str>,
    available: bool,
    /// There are others as well.
    several: bool,
    /// It has not said what it takes.
    silent: bool,
}
