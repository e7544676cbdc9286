//! Latency figures.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Latencies of one component in the order in which they were measured, warm-up left out by the caller.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LatencySamples {
    milliseconds: Vec<f64>,
}

impl LatencySamples {
    /// Takes a measurement.
    pub fn push(&mut self, latency: Duration) {
        self.milliseconds.push(latency.as_nanos() as f64 / 1e6);
    }

    /// Takes what another one has taken, after its own.
    pub fn merge(&mut self, other: &Self) {
        self.milliseconds.extend_from_slice(&other.milliseconds);
    }

    /// The measurements in milliseconds.
    pub fn milliseconds(&self) -> &[f64] {
        &self.milliseconds
    }

    /// The figures; None without a measurement.
    pub fn summary(&self) -> Option<LatencySummary> {
        // What came from a file may be anything; a latency is a finite number.
        let mut sorted: Vec<f64> =
            self.milliseconds.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        Some(LatencySummary {
            count: sorted.len() as u64,
            median: percentile(&sorted, 0.5)?,
            p90: percentile(&sorted, 0.9)?,
            p99: percentile(&sorted, 0.99)?,
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
            min,
            max,
        })
    }
}

impl Extend<Duration> for LatencySamples {
    fn extend<T: IntoIterator<Item = Duration>>(&mut self, latencies: T) {
        latencies.into_iter().for_each(|latency| self.push(latency));
    }
}

/// Latency figures in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencySummary {
    /// Measurements.
    pub count: u64,
    /// Median: [`percentile`] 0.5.
    pub median: f64,
    /// [`percentile`] 0.9.
    pub p90: f64,
    /// [`percentile`] 0.99; with fewer than 100 measurements it lies between the two largest.
    pub p99: f64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl LatencySummary {
    /// How often per second one such step after the other can be done: 1000 / median. None for a median of zero.
    pub fn hz(&self) -> Option<f64> {
        (self.median > 0.0).then(|| 1000.0 / self.median)
    }
}

/// Percentile by linear interpolation between the two nearest ranks: at position q · (n − 1) of the sorted values, as
/// NumPy's default is (Hyndman and Fan's type 7), so that figures compare with those of Python tools. None for no values.
///
/// `sorted` ascends; `q` is 0 to 1 and is clamped to it.
pub fn percentile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let position = if q.is_nan() { last as f64 } else { q.clamp(0.0, 1.0) * last as f64 };
    let below = position.floor() as usize;
    let (low, high) = (*sorted.get(below)?, *sorted.get((below + 1).min(last))?);
    Some(low + (high - low) * (position - position.floor()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn samples(milliseconds: &[u64]) -> LatencySamples {
        let mut samples = LatencySamples::default();
        samples.extend(milliseconds.iter().map(|&ms| Duration::from_millis(ms)));
        samples
    }

    #[test]
    fn the_figures_agree_with_those_worked_out_by_hand() {
        // Sorted 10 20 30 40; positions 1.5, 2.7 and 2.97.
        let summary = samples(&[40, 10, 30, 20]).summary().unwrap();
        assert_eq!((summary.count, summary.min, summary.max, summary.mean), (4, 10.0, 40.0, 25.0));
        assert_eq!(summary.median, 25.0);
        assert!((summary.p90 - 37.0).abs() < 1e-12);
        assert!((summary.p99 - 39.7).abs() < 1e-12);
        assert_eq!(summary.hz(), Some(40.0));
    }

    #[test]
    fn one_measurement_is_all_its_figures() {
        let summary = samples(&[7]).summary().unwrap();
        assert_eq!([summary.median, summary.p90, summary.p99, summary.mean], [7.0; 4]);
    }

    #[test]
    fn without_a_measurement_there_are_no_figures() {
        assert_eq!(samples(&[]).summary(), None);
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(samples(&[0]).summary().unwrap().hz(), None);
    }

    #[test]
    fn nanoseconds_are_kept() {
        let mut samples = LatencySamples::default();
        samples.push(Duration::from_nanos(1_234_567));
        assert_eq!(samples.milliseconds(), [1.234567]);
    }

    #[test]
    fn a_senseless_percentile_is_the_nearest_sensible_one() {
        assert_eq!(percentile(&[1.0, 2.0], -1.0), Some(1.0));
        assert_eq!(percentile(&[1.0, 2.0], 9.0), Some(2.0));
        assert_eq!(percentile(&[1.0, 2.0], f64::NAN), Some(2.0));
    }

    proptest! {
        #[test]
        fn percentiles_rise_and_stay_between_the_extremes(milliseconds in vec(0u64..10_000, 1..200)) {
            let summary = samples(&milliseconds).summary().unwrap();
            let rising = [summary.min, summary.median, summary.p90, summary.p99, summary.max];
            prop_assert!(rising.windows(2).all(|pair| pair[0] <= pair[1]), "{:?}", rising);
        }
    }
}
