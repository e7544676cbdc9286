//! How long the next answer will take, from how long the last ones took.

use std::{collections::VecDeque, time::Duration};

/// A quantile of the last measured latencies.
///
/// A quantile rather than a mean, because the errors cost differently: an answer that comes earlier than predicted has
/// a few more rows frozen than it needed, one that comes later meets rows that nothing tied to the running motion.
#[derive(Debug, Clone, PartialEq)]
pub struct LatencyEstimator {
    initial: Duration,
    window: usize,
    quantile: f64,
    /// Newest last.
    measured: VecDeque<Duration>,
}

impl LatencyEstimator {
    /// `initial` counts until there is a measurement; then the `quantile` (0 to 1; 1 is the maximum) of the last `window`
    /// (at least 1) does.
    pub fn new(initial: Duration, window: usize, quantile: f64) -> Self {
        let quantile = if quantile.is_nan() { 1.0 } else { quantile.clamp(0.0, 1.0) };
        Self { initial, window: window.max(1), quantile, measured: VecDeque::new() }
    }

    /// Takes a measurement.
    pub fn record(&mut self, latency: Duration) {
        while self.measured.len() >= self.window {
            self.measured.pop_front();
        }
        self.measured.push_back(latency);
    }

    /// The latency to be expected, by nearest rank: the smallest measurement that at least the quantile's share of all
    /// does not exceed.
    pub fn predict(&self) -> Duration {
        let mut sorted: Vec<Duration> = self.measured.iter().copied().collect();
        sorted.sort_unstable();
        let rank = (self.quantile * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(self.initial)
    }

    /// Number of measurements in the window.
    pub fn measurements(&self) -> usize {
        self.measured.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn after(window: usize, quantile: f64, measured: &[u64]) -> Duration {
        let mut estimator = LatencyEstimator::new(ms(77), window, quantile);
        measured.iter().for_each(|&latency| estimator.record(ms(latency)));
        estimator.predict()
    }

    #[test]
    fn before_any_measurement_the_configured_value_counts() {
        assert_eq!(after(10, 0.9, &[]), ms(77));
        assert_eq!(after(10, 0.9, &[20]), ms(20));
    }

    #[test]
    fn a_quantile_of_one_is_the_maximum_and_zero_the_minimum() {
        assert_eq!(after(10, 1.0, &[20, 90, 30]), ms(90));
        assert_eq!(after(10, 0.0, &[40, 20, 30]), ms(20));
    }

    #[test]
    fn the_quantile_is_taken_by_nearest_rank() {
        let ten = [10, 9, 8, 7, 6, 5, 4, 3, 2, 1];
        assert_eq!(after(10, 0.9, &ten), ms(9));
        assert_eq!(after(10, 0.91, &ten), ms(10));
        assert_eq!(after(10, 0.5, &ten), ms(5));
    }

    #[test]
    fn only_the_last_measurements_count() {
        assert_eq!(after(3, 1.0, &[500, 20, 40, 30]), ms(40));
        assert_eq!(after(1, 1.0, &[500, 20]), ms(20));
    }

    #[test]
    fn senseless_settings_become_the_nearest_sensible_ones() {
        assert_eq!(after(0, f64::NAN, &[500, 20]), ms(20));
        assert_eq!(after(3, -2.0, &[50, 20]), ms(20));
        assert_eq!(after(3, 7.0, &[50, 20]), ms(50));
    }

    proptest! {
        #[test]
        fn the_prediction_is_one_of_the_last_measurements(
            window in 1usize..20, quantile in 0.0..=1.0f64, measured in proptest::collection::vec(0u64..1000, 1..60),
        ) {
            let recent = &measured[measured.len().saturating_sub(window)..];
            prop_assert!(recent.iter().any(|&latency| ms(latency) == after(window, quantile, &measured)));
        }
    }
}
