//! What transports have said of messages that they keep (SENTDEFERRED), until whoever claims such a message learns it.
//!
//! Every spooler with a session of the agent hears it, and one of them claims the message. What is remembered is about one
//! keep, which its deadline names: it holds until that deadline, which then decides instead, and is never taken for a later keep.

use std::collections::{HashMap, VecDeque};

use pombo_proto::{ids::MessageId, time::UnixMillis};

use super::SentDeferred;
use crate::progress::{Progress, RecipientState};

/// Of so many messages at most; the oldest is forgotten first, and its deadline decides.
const MESSAGES_MAX: usize = 20_000;

/// What was said.
#[derive(Default)]
pub(super) struct Said {
    of: HashMap<MessageId, SentDeferred>,
    order: VecDeque<MessageId>,
}

impl Said {
    /// A transport has said something.
    pub fn hear(&mut self, said: SentDeferred) {
        match self.of.get_mut(&said.id) {
            // It says more than fits into one frame.
            Some(known) if known.transport == said.transport && known.until == said.until => {
                known.statuses.extend(said.statuses);
            }
            Some(known) => *known = said,
            None => {
                self.order.push_back(said.id);
                self.of.insert(said.id, said);
            }
        }
        while self.order.len() > MESSAGES_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.of.remove(&oldest);
            }
        }
    }

    /// What was said of a message that is claimed now, if it is about what is still kept.
    pub fn take(&mut self, id: MessageId, progress: &Progress) -> Option<SentDeferred> {
        if self.of.is_empty() {
            return None;
        }
        let said = self.of.remove(&id)?;
        self.order.retain(|it| *it != id);
        let kept = kept_until(progress, &said.transport)?;
        (kept <= said.until).then_some(said)
    }

    /// Time has passed.
    pub fn forget_old(&mut self, now: UnixMillis) {
        let before = self.of.len();
        self.of.retain(|_, said| said.until > now);
        if self.of.len() < before {
            self.order.retain(|id| self.of.contains_key(id));
        }
    }
}

/// Until when a transport may keep recipients of a message without a word; `None`: it keeps none.
pub(crate) fn kept_until(progress: &Progress, transport: &str) -> Option<UnixMillis> {
    let by_it = progress
        .recipients
        .iter()
        .filter(|it| it.transport.as_deref() == Some(transport));
    by_it
        .filter_map(|it| match it.state {
            RecipientState::Kept { deadline } => Some(deadline),
            _ => None,
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::RecipientProgress;

    fn id(number: u128) -> MessageId {
        MessageId(uuid::Uuid::from_u128(number))
    }

    fn said(number: u128, until: u64) -> SentDeferred {
        SentDeferred {
            id: id(number),
            transport: "fax".to_owned(),
            until: UnixMillis(until),
            statuses: Vec::new(),
        }
    }

    fn kept(deadline: u64) -> Progress {
        let recipient = RecipientProgress {
            state: RecipientState::Kept {
                deadline: UnixMillis(deadline),
            },
            transport: Some("fax".to_owned()),
            ..RecipientProgress::default()
        };
        Progress {
            recipients: vec![RecipientProgress::default(), recipient],
            ..Progress::default()
        }
    }

    #[test]
    fn it_is_taken_once_by_whoever_claims_the_message_it_is_about() {
        let mut all = Said::default();
        all.hear(said(1, 100));
        all.hear(said(2, 100));
        assert!(all.take(id(3), &kept(100)).is_none());
        assert!(all.take(id(1), &kept(100)).is_some());
        assert!(all.take(id(1), &kept(100)).is_none());
        assert!(all.take(id(2), &Progress::fresh(2)).is_none(), "not kept");
    }

    #[test]
    fn it_lasts_until_the_deadline_of_the_keep_and_is_not_taken_for_a_later_one() {
        let mut all = Said::default();
        all.hear(said(1, 100));
        all.forget_old(UnixMillis(99));
        assert_eq!(all.of.len(), 1);
        assert!(all.take(id(1), &kept(101)).is_none(), "kept again since");
        all.hear(said(1, 100));
        all.forget_old(UnixMillis(100));
        assert!(all.of.is_empty() && all.order.is_empty());
    }

    #[test]
    fn the_oldest_goes_first() {
        let mut all = Said::default();
        for number in 0..=MESSAGES_MAX as u128 {
            all.hear(said(number, 100));
        }
        assert_eq!(
            (all.of.len(), all.order.len()),
            (MESSAGES_MAX, MESSAGES_MAX)
        );
        assert!(all.take(id(0), &kept(100)).is_none());
        assert!(all.take(id(MESSAGES_MAX as u128), &kept(100)).is_some());
    }
}
