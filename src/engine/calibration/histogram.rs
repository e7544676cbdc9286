//! A histogram of absolute values that is filled as the values come, without knowing their range beforehand.

/// Bins. A power of two, so that a range can be doubled by adding up neighbours.
const BINS: usize = 2048;

/// How often which absolute value was seen.
///
/// When a value beyond the range comes, the range is doubled until it fits, and each two bins become one: counts stay exact,
/// and memory the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    pub(super) bins: Vec<u64>,
    /// Upper end of the last bin; a power of two, so that halves and doubles are exact. Zero before the first value that
    /// is not zero.
    pub(super) range: f64,
    max_abs: f64,
    count: u64,
    non_finite: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { bins: vec![0; BINS], range: 0.0, max_abs: 0.0, count: 0, non_finite: 0 }
    }
}

impl Histogram {
    /// Adds values. Infinities and NaN are counted apart.
    pub fn observe(&mut self, values: impl IntoIterator<Item = f32>) {
        for value in values {
            if !value.is_finite() {
                self.non_finite += 1;
                continue;
            }
            let value = f64::from(value).abs();
            self.count += 1;
            self.max_abs = self.max_abs.max(value);
            if value > self.range {
                self.grow(value);
            }
            // The first bin holds zero; each holds its upper end and not its lower. The last index covers the range's end.
            let bin = if self.range == 0.0 { 0.0 } else { value / self.range * BINS as f64 };
            // `bin` is between 0 and BINS.
            self.bins[(bin.ceil() as usize).saturating_sub(1).min(BINS - 1)] += 1;
        }
    }

    /// Doubles the range until `value` fits.
    fn grow(&mut self, value: f64) {
        if self.range == 0.0 {
            // All before were zero, and are in the first bin whatever its width.
            self.range = value.log2().ceil().exp2();
        }
        while self.range < value {
            self.range *= 2.0;
            for i in 0..BINS / 2 {
                self.bins[i] = self.bins[2 * i] + self.bins[2 * i + 1];
            }
            self.bins[BINS / 2..].fill(0);
        }
    }

    /// Adds what another histogram saw, as of another thread or file.
    pub fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        match (self.range == 0.0, other.range == 0.0) {
            (true, _) => {
                let zeros = self.bins[0];
                self.bins.clone_from(&other.bins);
                self.bins[0] += zeros;
                self.range = other.range;
            }
            (false, true) => self.bins[0] += other.bins[0],
            (false, false) => {
                self.grow(other.range);
                other.grow(self.range);
                self.bins.iter_mut().zip(&other.bins).for_each(|(bin, more)| *bin += more);
            }
        }
        self.count += other.count;
        self.non_finite += other.non_finite;
        self.max_abs = self.max_abs.max(other.max_abs);
    }

    /// Values seen, without those that are not finite.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Infinities and NaN seen: a range chosen in spite of them hides a fault.
    pub fn non_finite(&self) -> u64 {
        self.non_finite
    }

    /// The greatest absolute value: the range of the min-max method.
    pub fn max_abs(&self) -> f64 {
        self.max_abs
    }

    /// Width of a bin.
    pub(super) fn width(&self) -> f64 {
        self.range / BINS as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.observe(values.iter().copied());
        histogram
    }

    #[test]
    fn values_fall_into_the_bins_that_hold_them() {
        // Range 1, bins of 1/2048: 1.0 is the end of the last, 0.25 of bin 511, zero is in the first.
        let histogram = of(&[1.0, -0.25, 0.0, 0.25]);
        assert_eq!(histogram.range, 1.0);
        assert_eq!(histogram.bins[2047], 1);
        assert_eq!(histogram.bins[511], 2);
        assert_eq!(histogram.bins[0], 1);
    }

    #[test]
    fn a_greater_value_doubles_the_range_and_keeps_the_counts() {
        let mut histogram = of(&[1.0, 0.25]);
        histogram.observe([3.0]);
        assert_eq!(histogram.range, 4.0);
        // 1.0 of 4 ends bin 511, 0.25 bin 127, 3.0 bin 1535.
        assert_eq!([histogram.bins[511], histogram.bins[127], histogram.bins[1535]], [1, 1, 1]);
        assert_eq!(histogram.bins.iter().sum::<u64>(), 3);
    }

    #[test]
    fn zeros_before_the_first_value_do_not_fix_the_range() {
        let mut histogram = of(&[0.0, 0.0]);
        assert_eq!(histogram.max_abs(), 0.0);
        histogram.observe([1e-6]);
        assert!(histogram.range < 2e-6);
        assert_eq!(histogram.count(), 3);
    }

    #[test]
    fn values_that_are_not_finite_are_counted_and_change_nothing_else() {
        let mut histogram = of(&[0.5]);
        let before = histogram.clone();
        histogram.observe([f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        assert_eq!(histogram.non_finite(), 3);
        assert_eq!(Histogram { non_finite: 0, ..histogram }, before);
    }

    #[test]
    fn the_least_and_the_greatest_floats_fit() {
        let histogram = of(&[f32::MIN_POSITIVE / 8.0, f32::MAX]);
        assert_eq!(histogram.bins.iter().sum::<u64>(), 2);
        assert!(histogram.range >= f64::from(f32::MAX));
    }

    proptest! {
        #[test]
        fn every_value_is_in_a_bin_and_the_order_of_arrival_does_not_matter(
            mut values in prop::collection::vec(-1e4_f32..1e4, 1..200)
        ) {
            let histogram = of(&values);
            prop_assert_eq!(histogram.bins.iter().sum::<u64>(), values.len() as u64);
            values.reverse();
            let mut reversed = of(&values);
            // A range that began at the greatest value cannot differ, one that grew to it neither.
            prop_assert_eq!(&reversed.bins, &histogram.bins);
            prop_assert_eq!(reversed.range, histogram.range);
            let (left, right) = values.split_at(values.len() / 2);
            reversed = of(left);
            reversed.merge(&of(right));
            prop_assert_eq!(reversed, histogram);
        }
    }
}
