//! How far a tested array is from its reference.

use serde::{Deserialize, Serialize};

use super::{MetricError, sum::Sum};

/// Streaming errors of tested values against reference values, in f64.
///
/// Values come in samples: one sample is one whole tensor, flattened. What is reported, with r the reference, t the tested
/// value and N the number of pairs in all samples together:
///
/// | figure | definition |
/// |---|---|
/// | [`mse`](Self::mse) | Σ (t − r)² / N |
/// | [`mae`](Self::mae) | Σ abs(t − r) / N |
/// | [`max_abs`](Self::max_abs) | the largest abs(t − r) |
/// | [`cosine`](Self::cosine) | per sample ⟨t, r⟩ / (‖t‖ ‖r‖) over the whole flattened tensor, then the mean over samples |
/// | [`cosine_min`](Self::cosine_min) | the smallest cosine of any sample |
///
/// Two zero vectors have cosine 1, a zero vector and another one 0.
///
/// A pair with a NaN or an infinity in it is counted in [`non_finite`](Self::non_finite) and enters no figure; and since a
/// figure over the remaining values would hide it, **every figure is `None` from then on**. It is likewise `None` where
/// there was nothing to compare.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorStats {
    count: u64,
    non_finite: u64,
    squared: Sum,
    absolute: Sum,
    largest: f64,
    samples: u64,
    cosine: Sum,
    /// Smallest cosine; meaningless while `samples` is 0.
    smallest_cosine: f64,
}

impl ErrorStats {
    /// Takes one sample: the two tensors, flattened in the same order. An empty sample is no sample.
    ///
    /// # Errors
    /// [`MetricError::Length`] where the two differ in length; nothing is taken then.
    pub fn push(&mut self, reference: &[f32], tested: &[f32]) -> Result<(), MetricError> {
        if reference.len() != tested.len() {
            return Err(MetricError::Length { reference: reference.len(), tested: tested.len() });
        }
        self.push_pairs(reference.iter().copied().zip(tested.iter().copied()));
        Ok(())
    }

    /// Takes one sample of (reference, tested) pairs.
    pub fn push_pairs(&mut self, pairs: impl IntoIterator<Item = (f32, f32)>) {
        let (mut dot, mut reference_squares, mut tested_squares) =
            (Sum::default(), Sum::default(), Sum::default());
        let (mut finite, mut broken) = (0u64, 0u64);
        for (reference, tested) in pairs {
            if !(reference.is_finite() && tested.is_finite()) {
                broken += 1;
                continue;
            }
            finite += 1;
            // The square of a finite f32 is finite in f64, and so is any sum of them that could ever be made.
            let (reference, tested) = (f64::from(reference), f64::from(tested));
            let error = tested - reference;
            self.squared.add(error * error);
            self.absolute.add(error.abs());
            self.largest = self.largest.max(error.abs());
            dot.add(reference * tested);
            reference_squares.add(reference * reference);
            tested_squares.add(tested * tested);
        }
        self.count += finite;
        self.non_finite += broken;
        if finite > 0 && broken == 0 {
            let cosine = cosine(dot.total(), reference_squares.total(), tested_squares.total());
            self.smallest_cosine = if self.samples == 0 { cosine } else { self.smallest_cosine.min(cosine) };
            self.cosine.add(cosine);
            self.samples += 1;
        }
    }

    /// Takes what another one has taken, as if its samples had been pushed here.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.non_finite += other.non_finite;
        self.squared.merge(other.squared);
        self.absolute.merge(other.absolute);
        self.largest = self.largest.max(other.largest);
        if other.samples > 0 {
            self.smallest_cosine = if self.samples == 0 {
                other.smallest_cosine
            } else {
                self.smallest_cosine.min(other.smallest_cosine)
            };
        }
        self.cosine.merge(other.cosine);
        self.samples += other.samples;
    }

    /// Number of pairs of finite values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Number of pairs with a NaN or an infinity in them.
    pub fn non_finite(&self) -> u64 {
        self.non_finite
    }

    /// Number of samples whose cosine counts: those with finite values only.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    fn over_all(&self, value: impl FnOnce() -> f64) -> Option<f64> {
        (self.count > 0 && self.non_finite == 0).then(value)
    }

    /// Mean squared error over all values of all samples.
    pub fn mse(&self) -> Option<f64> {
        self.over_all(|| self.squared.total() / self.count as f64)
    }

    /// Mean absolute error over all values of all samples.
    pub fn mae(&self) -> Option<f64> {
        self.over_all(|| self.absolute.total() / self.count as f64)
    }

    /// Largest absolute error of any value.
    pub fn max_abs(&self) -> Option<f64> {
        self.over_all(|| self.largest)
    }

    /// Mean over the samples of the cosine between the two flattened tensors.
    pub fn cosine(&self) -> Option<f64> {
        self.over_all(|| (self.cosine.total() / self.samples as f64).clamp(-1.0, 1.0))
    }

    /// Cosine of the sample where it is smallest.
    pub fn cosine_min(&self) -> Option<f64> {
        self.over_all(|| self.smallest_cosine)
    }

    /// The figures, for keeping and showing.
    pub fn summary(&self) -> ErrorSummary {
        ErrorSummary {
            count: self.count,
            non_finite: self.non_finite,
            samples: self.samples,
            mse: self.mse(),
            mae: self.mae(),
            max_abs: self.max_abs(),
            cosine: self.cosine(),
            cosine_min: self.cosine_min(),
        }
    }
}

/// Cosine of the angle between two vectors from their dot product and squared lengths.
fn cosine(dot: f64, reference_squares: f64, tested_squares: f64) -> f64 {
    match (reference_squares > 0.0, tested_squares > 0.0) {
        (false, false) => 1.0,
        (true, true) => (dot / (reference_squares.sqrt() * tested_squares.sqrt())).clamp(-1.0, 1.0),
        _ => 0.0,
    }
}

/// The figures of [`ErrorStats`], whose definitions stand there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorSummary {
    /// Pairs of finite values.
    pub count: u64,
    /// Pairs with a NaN or an infinity; above 0 no figure below is given.
    pub non_finite: u64,
    /// Samples whose cosine counts.
    pub samples: u64,
    /// Mean squared error.
    pub mse: Option<f64>,
    /// Mean absolute error.
    pub mae: Option<f64>,
    /// Largest absolute error.
    pub max_abs: Option<f64>,
    /// Mean cosine of the samples.
    pub cosine: Option<f64>,
    /// Smallest cosine of a sample.
    pub cosine_min: Option<f64>,
}

impl ErrorSummary {
    /// Root of the mean squared error, in the unit of the values.
    pub fn rmse(&self) -> Option<f64> {
        self.mse.map(f64::sqrt)
    }

    /// What keeps the figures from being given, in words; None where they are given.
    pub fn missing(&self) -> Option<String> {
        if self.non_finite > 0 {
            let all = self.count.saturating_add(self.non_finite);
            Some(format!("{} of {all} values are NaN or infinite", self.non_finite))
        } else {
            (self.count == 0).then(|| "nothing was compared".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn stats(samples: &[(&[f32], &[f32])]) -> ErrorStats {
        let mut stats = ErrorStats::default();
        samples.iter().for_each(|(reference, tested)| stats.push(reference, tested).unwrap());
        stats
    }

    fn near(found: Option<f64>, expected: f64) {
        let found = found.expect("measured");
        assert!((found - expected).abs() <= 1e-15 * expected.abs().max(1.0), "{found} {expected}");
    }

    #[test]
    fn the_figures_of_a_sample_agree_with_those_worked_out_by_hand() {
        // Errors 1, -2, 0, 3; dot 1*2 + 2*0 + 3*3 + 4*7 = 39; squares 30 and 62.
        let stats = stats(&[(&[1.0, 2.0, 3.0, 4.0], &[2.0, 0.0, 3.0, 7.0])]);
        near(stats.mse(), 14.0 / 4.0);
        near(stats.mae(), 6.0 / 4.0);
        near(stats.max_abs(), 3.0);
        near(stats.cosine(), 39.0 / (30.0f64 * 62.0).sqrt());
        assert_eq!((stats.count(), stats.samples(), stats.non_finite()), (4, 1, 0));
    }

    #[test]
    fn the_cosine_is_taken_per_sample_and_then_averaged() {
        let both = stats(&[(&[1.0, 0.0], &[5.0, 0.0]), (&[0.0, 2.0], &[3.0, 0.0])]);
        near(both.cosine(), 0.5);
        near(both.cosine_min(), 0.0);
    }

    #[test]
    fn zero_vectors_agree_with_each_other_and_with_nothing_else() {
        near(stats(&[(&[0.0, 0.0], &[0.0, 0.0])]).cosine(), 1.0);
        near(stats(&[(&[0.0, 0.0], &[0.0, 1.0])]).cosine(), 0.0);
        near(stats(&[(&[0.0, 1.0], &[0.0, 0.0])]).cosine(), 0.0);
    }

    #[test]
    fn opposite_vectors_have_cosine_minus_one() {
        near(stats(&[(&[1.0, -2.0], &[-1.0, 2.0])]).cosine(), -1.0);
    }

    #[test]
    fn a_value_that_is_not_finite_takes_all_figures_away_and_is_counted() {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let in_tested = stats(&[(&[1.0, 2.0], &[1.0, broken]), (&[1.0], &[1.0])]);
            let in_reference = stats(&[(&[1.0, broken], &[1.0, 2.0]), (&[1.0], &[1.0])]);
            for stats in [in_tested, in_reference] {
                assert_eq!((stats.count(), stats.non_finite(), stats.samples()), (2, 1, 1));
                let summary = stats.summary();
                assert_eq!(
                    [summary.mse, summary.mae, summary.max_abs, summary.cosine, summary.cosine_min],
                    [None; 5]
                );
                assert_eq!(summary.missing().unwrap(), "1 of 3 values are NaN or infinite");
            }
        }
    }

    #[test]
    fn nothing_compared_has_no_figures() {
        let empty = stats(&[(&[], &[])]);
        assert_eq!(empty, ErrorStats::default());
        assert_eq!(empty.summary().missing().unwrap(), "nothing was compared");
        assert_eq!((empty.mse(), empty.cosine()), (None, None));
    }

    #[test]
    fn samples_of_different_lengths_are_refused() {
        let mut stats = ErrorStats::default();
        let error = stats.push(&[1.0, 2.0], &[1.0]).unwrap_err();
        assert_eq!(error.to_string(), "expected as many tested values as reference values, found 1 and 2");
        assert_eq!(stats, ErrorStats::default());
    }

    #[test]
    fn the_largest_floats_do_not_overflow() {
        let stats = stats(&[(&[f32::MAX, 0.0], &[-f32::MAX, 0.0])]);
        near(stats.cosine(), -1.0);
        assert_eq!(stats.mse(), Some((2.0 * f64::from(f32::MAX)).powi(2) / 2.0));
    }

    #[test]
    fn a_small_error_on_large_values_is_measured_exactly() {
        let reference: Vec<f32> = (0..10_000).map(|i| 1e6 + i as f32).collect();
        let tested: Vec<f32> = reference.iter().map(|value| value + 0.5).collect();
        near(stats(&[(&reference, &tested)]).mse(), 0.25);
    }

    fn samples() -> impl Strategy<Value = Vec<Vec<(f32, f32)>>> {
        let value = || -1e3f32..1e3;
        vec(vec((value(), value()), 1..30), 1..12)
    }

    proptest! {
        #[test]
        fn the_streamed_mse_is_that_of_all_values_at_once(samples in samples()) {
            let mut stats = ErrorStats::default();
            samples.iter().for_each(|sample| stats.push_pairs(sample.iter().copied()));
            let errors: Vec<f64> = samples.iter().flatten().map(|&(r, t)| f64::from(t) - f64::from(r)).collect();
            let naive = errors.iter().map(|error| error * error).sum::<f64>() / errors.len() as f64;
            let mse = stats.mse().unwrap();
            prop_assert!((mse - naive).abs() <= 1e-12 * naive.max(1e-12));
            prop_assert!(stats.mae().unwrap() <= mse.sqrt() * (1.0 + 1e-12));
            prop_assert!(mse.sqrt() <= stats.max_abs().unwrap() * (1.0 + 1e-12));
        }

        #[test]
        fn parts_merged_in_any_split_equal_the_whole(samples in samples(), cut in 0usize..12) {
            let (mut whole, mut first, mut second) = <(ErrorStats, ErrorStats, ErrorStats)>::default();
            for (i, sample) in samples.iter().enumerate() {
                whole.push_pairs(sample.iter().copied());
                if i < cut { &mut first } else { &mut second }.push_pairs(sample.iter().copied());
            }
            first.merge(&second);
            prop_assert_eq!((first.count(), first.samples()), (whole.count(), whole.samples()));
            prop_assert_eq!((first.max_abs(), first.cosine_min()), (whole.max_abs(), whole.cosine_min()));
            for (a, b) in [(first.mse(), whole.mse()), (first.mae(), whole.mae()), (first.cosine(), whole.cosine())] {
                let (a, b) = (a.unwrap(), b.unwrap());
                prop_assert!((a - b).abs() <= 1e-14 * b.abs().max(1e-14), "{} {}", a, b);
            }
        }

        #[test]
        fn what_was_measured_survives_json(samples in samples()) {
            let mut stats = ErrorStats::default();
            samples.iter().for_each(|sample| stats.push_pairs(sample.iter().copied()));
            let text = serde_json::to_string(&stats).unwrap();
            prop_assert_eq!(serde_json::from_str::<ErrorStats>(&text).unwrap(), stats);
        }
    }
}
