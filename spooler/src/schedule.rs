//! When a message is tried again, when its sender is told that it takes long, and when it is given up.
//!
//! A function of the configuration, the message's id and the number of tries: the jitter is drawn from id and try, so that
//! two spoolers, or one that is asked twice, get the same answer, and there is no generator to keep.

use std::time::Duration;

use pombo_proto::{
    ids::MessageId,
    message::{Envelope, LIFE_MAX},
    time::UnixMillis,
};
use serde::{Deserialize, Serialize};

/// The retry schedule. In configuration, durations are written as in `30s`, `5m`, `4h`, `5d`.
///
/// ```
/// let schedule: pombo_spooler::schedule::Schedule = serde_json::from_str(r#"{"first": "30s", "life": "2d"}"#)?;
/// assert_eq!(schedule.life.as_secs(), 2 * 86_400);
/// assert!(serde_json::from_str::<pombo_spooler::schedule::Schedule>(r#"{"frist": "30s"}"#).is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct Schedule {
    /// The pause after the first try that did not succeed. Default 1 min: most greylisting ends before the second try.
    pub first: Duration,
    /// Each further pause is this many times longer; at least 1. Default 2.
    pub factor: f64,
    /// No pause is longer. Default 1 h: RFC 5321 4.5.4.1 wants at least 30 min for the long run, and a server that is back
    /// should not have to wait for half a day.
    pub max: Duration,
    /// Each pause is up to this fraction longer or shorter, so that what failed together does not come back together.
    /// 0 to 0.5; default 0.2.
    pub jitter: f64,
    /// What is not delivered by then is returned. Default 5 days (RFC 5321 4.5.4.1: at least 4 to 5), at most
    /// [`LIFE_MAX`].
    pub life: Duration,
    /// After this long, the sender is told once that it takes long. Default 4 h; zero: never.
    pub delay_warning: Duration,
    /// How long a transport may keep a message (END_DONT_RESEND) without a word before it is offered again. Default 1 day.
    pub kept: Duration,
    /// The pause after MAPI_E_BUSY, or while a transport has not told what it takes: nothing was done, and soon may be.
    /// Default 2 s.
    pub busy: Duration,
    /// A transport that asks for less (MAPI_E_WAIT) gets this. Default 1 s.
    pub wait_min: Duration,
    /// A transport that asks for more gets this. Default 4 h.
    pub wait_max: Duration,
}

/// Why a schedule makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A first pause of zero would be a busy loop.
    #[error("`first` must be longer than zero")]
    First,
    /// Pauses must not shrink.
    #[error("`factor` must be a number from 1 to 100")]
    Factor,
    /// The longest pause is shorter than the first.
    #[error("`max` must not be shorter than `first`")]
    Max,
    /// More than half a pause of jitter is no schedule any more.
    #[error("`jitter` must be a number from 0 to 0.5")]
    Jitter,
    /// Derived ids are remembered for as long as any message may live.
    #[error("`life` must be longer than zero and at most 30 days")]
    Life,
    /// A kept message must come back.
    #[error("`kept` must be longer than zero")]
    Kept,
    /// A pause of zero would be a busy loop.
    #[error("`busy` must be longer than zero")]
    Busy,
    /// The bounds for WAIT are the wrong way round, or would allow a busy loop.
    #[error("`wait_min` must be longer than zero and not above `wait_max`")]
    Wait,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(60),
            factor: 2.0,
            max: Duration::from_secs(3_600),
            jitter: 0.2,
            life: Duration::from_secs(5 * 86_400),
            delay_warning: Duration::from_secs(4 * 3_600),
            kept: Duration::from_secs(86_400),
            busy: Duration::from_secs(2),
            wait_min: Duration::from_secs(1),
            wait_max: Duration::from_secs(4 * 3_600),
        }
    }
}

impl Schedule {
    /// When a message is tried again after its `tries`-th try (from 1) ended in "later".
    pub fn next_try(&self, now: UnixMillis, tries: u32, id: MessageId) -> UnixMillis {
        // Beyond 1,000 steps every factor above 1 has long reached `max`, and 1 stays 1.
        let exponent = tries.saturating_sub(1).min(1_000) as i32;
        let pause = self.first.as_secs_f64() * self.factor.powi(exponent);
        let pause = pause.min(self.max.as_secs_f64());
        let swing = self.jitter * (2.0 * fraction(tries, id) - 1.0);
        now.after(Duration::from_secs_f64(pause * (1.0 + swing)))
    }

    /// When a message is offered again after MAPI_E_WAIT(`asked`) or MAPI_E_NETWORK_ERROR(`asked`): not earlier than asked
    /// (within the bounds), and a little later by the jitter.
    pub fn wait(&self, now: UnixMillis, asked: Duration, tries: u32, id: MessageId) -> UnixMillis {
        let pause = asked.clamp(self.wait_min, self.wait_max);
        now.after(pause.mul_f64(1.0 + self.jitter * fraction(tries, id)))
    }

    /// When the same call may be made again after MAPI_E_BUSY.
    pub fn after_busy(&self, now: UnixMillis) -> UnixMillis {
        now.after(self.busy)
    }

    /// When a message is given up: its own PR_EXPIRY_TIME, or the end of its life if that comes first.
    pub fn expires_at(&self, envelope: &Envelope) -> UnixMillis {
        let end_of_life = begins_at(envelope).after(self.life);
        envelope
            .expires_at
            .map_or(end_of_life, |expiry| expiry.min(end_of_life))
    }

    /// When the sender is told that it takes long; `None`: never.
    pub fn warns_at(&self, envelope: &Envelope) -> Option<UnixMillis> {
        let warned = self.delay_warning > Duration::ZERO;
        warned.then(|| begins_at(envelope).after(self.delay_warning))
    }

    /// Until when a transport may keep a message without a word; not beyond the message's end.
    pub fn kept_until(&self, now: UnixMillis, envelope: &Envelope) -> UnixMillis {
        now.after(self.kept).min(self.expires_at(envelope))
    }

    /// Whether the values make sense together.
    ///
    /// # Errors
    /// The first that does not.
    pub fn validate(&self) -> Result<(), Error> {
        let checks = [
            (self.first > Duration::ZERO, Error::First),
            ((1.0..=100.0).contains(&self.factor), Error::Factor),
            (self.max >= self.first, Error::Max),
            ((0.0..=0.5).contains(&self.jitter), Error::Jitter),
            (
                self.life > Duration::ZERO && self.life <= LIFE_MAX,
                Error::Life,
            ),
            (self.kept > Duration::ZERO, Error::Kept),
            (self.busy > Duration::ZERO, Error::Busy),
            (
                self.wait_min > Duration::ZERO && self.wait_min <= self.wait_max,
                Error::Wait,
            ),
        ];
        checks
            .into_iter()
            .try_for_each(|(holds, error)| if holds { Ok(()) } else { Err(error) })
    }
}

/// A message that is to be sent later begins its life then.
fn begins_at(envelope: &Envelope) -> UnixMillis {
    let deferred = envelope.deferred_until.unwrap_or_default();
    envelope.submitted_at.max(deferred)
}

/// The same number from 0 to 1 for the same message and try.
fn fraction(tries: u32, id: MessageId) -> f64 {
    let (high, low) = id.0.as_u64_pair();
    let seed = high.rotate_left(32) ^ low ^ (u64::from(tries) << 32);
    fastrand::Rng::with_seed(seed).f64()
}

/// As in configuration.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    #[serde(with = "human")]
    first: Duration,
    factor: f64,
    #[serde(with = "human")]
    max: Duration,
    jitter: f64,
    #[serde(with = "human")]
    life: Duration,
    #[serde(with = "human")]
    delay_warning: Duration,
    #[serde(with = "human")]
    kept: Duration,
    #[serde(with = "human")]
    busy: Duration,
    #[serde(with = "human")]
    wait_min: Duration,
    #[serde(with = "human")]
    wait_max: Duration,
}

impl Default for Raw {
    fn default() -> Self {
        Schedule::default().into()
    }
}

impl From<Schedule> for Raw {
    fn from(schedule: Schedule) -> Self {
        Self {
            first: schedule.first,
            factor: schedule.factor,
            max: schedule.max,
            jitter: schedule.jitter,
            life: schedule.life,
            delay_warning: schedule.delay_warning,
            kept: schedule.kept,
            busy: schedule.busy,
            wait_min: schedule.wait_min,
            wait_max: schedule.wait_max,
        }
    }
}

impl TryFrom<Raw> for Schedule {
    type Error = Error;

    fn try_from(raw: Raw) -> Result<Self, Error> {
        let schedule = Self {
            first: raw.first,
            factor: raw.factor,
            max: raw.max,
            jitter: raw.jitter,
            life: raw.life,
            delay_warning: raw.delay_warning,
            kept: raw.kept,
            busy: raw.busy,
            wait_min: raw.wait_min,
            wait_max: raw.wait_max,
        };
        schedule.validate()?;
        Ok(schedule)
    }
}

/// Durations as people write them.
pub(crate) mod human {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|error| D::Error::custom(format_args!("`{text}` is no duration: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::samples;

    fn pause(schedule: &Schedule, tries: u32, id: MessageId) -> f64 {
        let now = UnixMillis(1_000_000_000_000);
        schedule.next_try(now, tries, id).since(now).as_secs_f64()
    }

    #[test]
    fn pauses_double_up_to_the_longest_without_jitter() {
        let schedule = Schedule {
            jitter: 0.0,
            ..Schedule::default()
        };
        let id = MessageId::derived("test", b"1");
        let pauses: Vec<f64> = (1..=8).map(|tries| pause(&schedule, tries, id)).collect();
        assert_eq!(
            pauses,
            [60.0, 120.0, 240.0, 480.0, 960.0, 1_920.0, 3_600.0, 3_600.0]
        );
    }

    #[test]
    fn jitter_stays_in_its_bounds_and_is_the_same_when_asked_again() {
        let schedule = Schedule::default();
        let mut sum = 0.0;
        for seed in 0..5_000_u32 {
            let id = MessageId::derived("test", &seed.to_be_bytes());
            let tries = 1 + seed % 40;
            let drawn = pause(&schedule, tries, id);
            assert_eq!(drawn, pause(&schedule, tries, id));
            let middle = (60.0 * 2f64.powi(tries as i32 - 1)).min(3_600.0);
            let bounds = middle * 0.799..=middle * 1.201;
            assert!(bounds.contains(&drawn), "seed {seed}: {drawn}");
            sum += drawn / middle;
        }
        assert!((0.99..1.01).contains(&(sum / 5_000.0)), "{sum}");
    }

    #[test]
    fn no_number_of_tries_and_no_valid_schedule_overflows() {
        for seed in 0..5_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let schedule = Schedule {
                first: Duration::from_millis(random.u64(1..100_000_000)),
                factor: 1.0 + random.f64() * 99.0,
                max: Duration::from_secs(u64::MAX / 1_000_000),
                ..Schedule::default()
            };
            schedule.validate().unwrap();
            let now = UnixMillis(random.u64(..));
            let id = MessageId::derived("test", &seed.to_be_bytes());
            for tries in [0, 1, 2, random.u32(..), u32::MAX] {
                assert!(schedule.next_try(now, tries, id) >= now);
            }
        }
    }

    #[test]
    fn wait_is_clamped_and_never_shorter_than_asked() {
        let schedule = Schedule::default();
        let now = UnixMillis(5_000);
        for seed in 0..2_000 {
            let asked = Duration::from_secs(fastrand::Rng::with_seed(seed).u64(0..40_000));
            let id = MessageId::derived("test", &seed.to_be_bytes());
            let pause = schedule.wait(now, asked, 1, id).since(now);
            let clamped = asked.clamp(schedule.wait_min, schedule.wait_max);
            assert!(pause >= clamped && pause <= clamped.mul_f64(1.2), "{seed}");
        }
        assert!(schedule.wait(now, Duration::MAX, 1, MessageId::derived("test", b"")) > now);
    }

    #[test]
    fn a_message_that_is_sent_later_begins_its_life_later() {
        let schedule = Schedule::default();
        let mut envelope = samples::envelope(1);
        let submitted = envelope.submitted_at;
        assert_eq!(
            schedule.expires_at(&envelope),
            submitted.after(schedule.life)
        );
        let later = submitted.after(Duration::from_secs(10 * 86_400));
        envelope.deferred_until = Some(later);
        assert_eq!(schedule.expires_at(&envelope), later.after(schedule.life));
        let expiry = later.after(Duration::from_secs(60));
        envelope.expires_at = Some(expiry);
        assert_eq!(schedule.expires_at(&envelope), expiry);
        assert_eq!(schedule.kept_until(later, &envelope), expiry);
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        let refused = |text: &str| {
            serde_json::from_str::<Schedule>(text)
                .unwrap_err()
                .to_string()
        };
        for (text, named) in [
            (r#"{"first": "0s"}"#, "`first`"),
            (r#"{"factor": 0.5}"#, "`factor`"),
            (r#"{"max": "1s"}"#, "`max`"),
            (r#"{"jitter": 0.9}"#, "`jitter`"),
            (r#"{"life": "31d"}"#, "`life`"),
            (r#"{"kept": "0s"}"#, "`kept`"),
            (r#"{"busy": "0s"}"#, "`busy`"),
            (r#"{"wait_min": "9h"}"#, "`wait_min`"),
            (r#"{"life": "soon"}"#, "`soon`"),
            (r#"{"live": "5d"}"#, "`live`"),
        ] {
            assert!(refused(text).contains(named), "{}", refused(text));
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let text = serde_json::to_string(&Schedule::default()).unwrap();
        assert!(text.contains(r#""life":"5days""#), "{text}");
        assert_eq!(
            serde_json::from_str::<Schedule>(&text).unwrap(),
            Schedule::default()
        );
        assert_eq!(
            serde_json::from_str::<Schedule>("{}").unwrap(),
            Schedule::default()
        );
    }
}
