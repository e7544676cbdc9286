//! Sums that lose nothing on the way.

use serde::{Deserialize, Serialize};

/// A sum in f64 with the rounding errors carried beside it (Neumaier's variant of Kahan's).
///
/// Long replays add millions of small squares to a large sum; with the correction the result is as good as one rounding of
/// the exact sum, and sums made in parts and merged agree with one made in one go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "(f64, f64)", into = "(f64, f64)")]
pub(super) struct Sum {
    sum: f64,
    correction: f64,
}

impl Sum {
    pub(super) fn add(&mut self, value: f64) {
        let sum = self.sum + value;
        self.correction +=
            if self.sum.abs() >= value.abs() { (self.sum - sum) + value } else { (value - sum) + self.sum };
        self.sum = sum;
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.add(other.sum);
        self.correction += other.correction;
    }

    pub(super) fn total(self) -> f64 {
        self.sum + self.correction
    }
}

impl From<(f64, f64)> for Sum {
    fn from((sum, correction): (f64, f64)) -> Self {
        Self { sum, correction }
    }
}

impl From<Sum> for (f64, f64) {
    fn from(sum: Sum) -> Self {
        (sum.sum, sum.correction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_terms_are_not_lost_beside_large_ones() {
        let mut sum = Sum::default();
        sum.add(1.0);
        (0..1000).for_each(|_| sum.add(1e-17));
        sum.add(1e20);
        sum.add(-1e20);
        assert!((sum.total() - (1.0 + 1e-14)).abs() < 1e-16, "{}", sum.total());
    }
}
