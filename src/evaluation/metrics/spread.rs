//! How much recorded values vary.

use serde::{Deserialize, Serialize};

/// Streaming mean and variance (Welford's method; merging by Chan and others).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Spread {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Spread {
    /// Takes a value; one that is not finite is left out.
    pub(super) fn push(&mut self, value: f64) {
        if value.is_finite() {
            self.count += 1;
            let from_old_mean = value - self.mean;
            self.mean += from_old_mean / self.count as f64;
            self.squares += from_old_mean * (value - self.mean);
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        // Taken as it is, so that a constant stays one: 0.3 · 3 / 3 need not be 0.3.
        if self.count == 0 {
            *self = other;
            return;
        }
        let count = self.count + other.count;
        let (mine, theirs) = (self.count as f64, other.count as f64);
        let between = other.mean - self.mean;
        self.mean += between * theirs / count as f64;
        self.squares += other.squares + between * between * mine * theirs / count as f64;
        self.count = count;
    }

    /// Standard deviation (of the whole population); None where nothing varied.
    pub(super) fn deviation(self) -> Option<f64> {
        (self.squares > 0.0).then(|| (self.squares / self.count as f64).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn spread(values: &[f64]) -> Spread {
        let mut spread = Spread::default();
        values.iter().for_each(|&value| spread.push(value));
        spread
    }

    #[test]
    fn the_deviation_is_that_of_the_population() {
        assert_eq!(spread(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).deviation(), Some(2.0));
    }

    #[test]
    fn constant_or_absent_values_have_no_spread() {
        assert_eq!(spread(&[]).deviation(), None);
        assert_eq!(spread(&[0.3, 0.3, 0.3, f64::NAN]).deviation(), None);
    }

    #[test]
    fn a_constant_over_several_trajectories_has_no_spread() {
        let mut merged = Spread::default();
        (0..5).for_each(|_| merged.merge(spread(&[0.3, 0.3, 0.3])));
        assert_eq!(merged.deviation(), None);
    }

    proptest! {
        #[test]
        fn merged_parts_have_the_spread_of_the_whole(
            first in vec(-100.0..100.0f64, 0..20), second in vec(-100.0..100.0f64, 2..20),
        ) {
            let mut merged = spread(&first);
            merged.merge(spread(&second));
            let whole = spread(&[first, second].concat()).deviation().unwrap_or(0.0);
            prop_assert!((merged.deviation().unwrap_or(0.0) - whole).abs() <= 1e-9 * whole.max(1.0));
        }
    }
}
