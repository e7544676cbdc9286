//! Points in time as one number, and their conversion to and from the messages' pair of numbers.

use std::fmt;
use std::time::Duration;

use super::msg;

const NANOSECONDS: i64 = 1_000_000_000;

/// Nanoseconds since the epoch of the clock in use: the system's, or a simulation's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp(pub i64);

impl Stamp {
    /// The stamp of a message whose publisher set none.
    pub const UNSET: Self = Self(0);

    /// Nanoseconds from `earlier` to `self`; negative where `self` is the earlier one.
    pub fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// How far two stamps lie apart.
    pub fn distance(self, other: Self) -> Duration {
        Duration::from_nanos(self.0.abs_diff(other.0))
    }

    /// The time from `earlier` to `self`, zero where `self` is the earlier one.
    pub fn elapsed_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.since(earlier)).unwrap_or(0))
    }
}

impl std::ops::Add<Duration> for Stamp {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)))
    }
}

impl std::ops::Sub<Duration> for Stamp {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)))
    }
}

impl std::ops::Add<&msg::Duration> for Stamp {
    type Output = Self;

    /// A message's span may be negative; any `nanosec` is taken at its value.
    fn add(self, span: &msg::Duration) -> Self {
        // At most 2³¹·10⁹ + 2³², far from the end of i64.
        Self(self.0.saturating_add(i64::from(span.sec) * NANOSECONDS + i64::from(span.nanosec)))
    }
}

impl From<&msg::Time> for Stamp {
    /// Any `nanosec` is taken at its value, also one that breaks the rule of staying below 10⁹.
    fn from(time: &msg::Time) -> Self {
        // At most 2³¹·10⁹ + 2³², far from the end of i64.
        Self(i64::from(time.sec) * NANOSECONDS + i64::from(time.nanosec))
    }
}

impl From<Stamp> for msg::Time {
    /// Saturates at the ends of the message's range, about 68 years around the epoch.
    fn from(stamp: Stamp) -> Self {
        let (sec, nanosec) = split(stamp.0);
        msg::Time { sec, nanosec }
    }
}

impl From<Duration> for msg::Duration {
    /// Saturates at the end of the message's range, about 68 years.
    fn from(span: Duration) -> Self {
        let (sec, nanosec) = split(i64::try_from(span.as_nanos()).unwrap_or(i64::MAX));
        msg::Duration { sec, nanosec }
    }
}

fn split(nanoseconds: i64) -> (i32, u32) {
    let seconds = nanoseconds.div_euclid(NANOSECONDS);
    match i32::try_from(seconds) {
        // The remainder of a division by 10⁹ fits into u32.
        Ok(sec) => (sec, nanoseconds.rem_euclid(NANOSECONDS) as u32),
        Err(_) if seconds < 0 => (i32::MIN, 0),
        Err(_) => (i32::MAX, (NANOSECONDS - 1) as u32),
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let nanoseconds = self.0.unsigned_abs();
        write!(f, "{sign}{}.{:09} s", nanoseconds / NANOSECONDS as u64, nanoseconds % NANOSECONDS as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_message_time_survives_the_round_trip(sec in any::<i32>(), nanosec in 0u32..1_000_000_000) {
            let time = msg::Time { sec, nanosec };
            prop_assert_eq!(msg::Time::from(Stamp::from(&time)), time);
        }

        #[test]
        fn no_pair_of_stamps_overflows(a in any::<i64>(), b in any::<i64>(), span in any::<u64>()) {
            let (a, b, span) = (Stamp(a), Stamp(b), Duration::from_nanos(span));
            prop_assert_eq!(a.distance(b), b.distance(a));
            prop_assert!(a.elapsed_since(b).is_zero() || b.elapsed_since(a).is_zero());
            let _ = (a + span, a - span, msg::Time::from(a), msg::Duration::from(span), a.to_string());
        }
    }

    #[test]
    fn a_time_before_the_epoch_counts_its_nanoseconds_upwards() {
        assert_eq!(msg::Time::from(Stamp(-1)), msg::Time { sec: -1, nanosec: 999_999_999 });
    }

    #[test]
    fn a_broken_nanosecond_field_is_taken_at_its_value() {
        assert_eq!(Stamp::from(&msg::Time { sec: 1, nanosec: 2_500_000_000 }), Stamp(3_500_000_000));
    }

    #[test]
    fn a_span_of_a_message_may_lead_backwards() {
        let span = |sec, nanosec| msg::Duration { sec, nanosec };
        assert_eq!(Stamp(5) + &span(1, 7), Stamp(1_000_000_012));
        assert_eq!(Stamp(0) + &span(-1, 999_999_999), Stamp(-1));
        assert_eq!(Stamp(i64::MAX) + &span(1, 0), Stamp(i64::MAX));
    }

    #[test]
    fn times_beyond_the_message_saturate() {
        assert_eq!(msg::Time::from(Stamp(i64::MAX)), msg::Time { sec: i32::MAX, nanosec: 999_999_999 });
        assert_eq!(msg::Time::from(Stamp(i64::MIN)), msg::Time { sec: i32::MIN, nanosec: 0 });
    }

    #[test]
    fn a_stamp_reads_as_seconds() {
        assert_eq!(Stamp(1_500_000_000).to_string(), "1.500000000 s");
        assert_eq!(Stamp(-1).to_string(), "-0.000000001 s");
    }
}
