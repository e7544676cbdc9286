//! The element-wise maps between physical values and the network's range.
//!
//! Every number type is the reference's (NumPy, f32 arrays and f64 statistics), because a different one shows in the
//! last digit:
//!
//! | rule | normalise | restore |
//! |---|---|---|
//! | mean and deviation | (x - mean) / std in f64 | x · std + mean in f64, rounded to f32 |
//! | zero deviation | x | x |
//! | bounds | 2n - 1 in the type of x, n = (x - low) / (high - low) in f64 rounded to it | n · (high - low) + low in f64, n = (clip(x) + 1) / 2 in f32 |
//! | equal bounds | 0 | as above, which gives low |

use ndarray::{Array2, ArrayView2, Zip};

use super::setup::SetupError;
use crate::checkpoint::statistics::{KeyStatistics, StatisticsGroup};

/// The map of one value.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rule {
    MeanStd { mean: f64, std: f64 },
    Keep,
    Bounds { low: f64, high: f64 },
}

/// Which statistics a key is normalised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    MeanStd,
    MinMax,
    Percentiles,
}

/// Names a key's statistics in messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyName<'a> {
    pub embodiment: &'a str,
    pub group: StatisticsGroup,
    pub key: &'a str,
}

/// The maps of one key: one row for all time steps, or a row per time step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Normalisation {
    rules: Array2<Rule>,
}

impl Normalisation {
    pub fn new(name: KeyName, statistics: &KeyStatistics, method: Method) -> Result<Self, SetupError> {
        let (low, high) = match method {
            Method::MeanStd => {
                let rules = Zip::from(&statistics.mean).and(&statistics.std).map_collect(|&mean, &std| {
                    if std == 0.0 { Rule::Keep } else { Rule::MeanStd { mean, std } }
                });
                return Ok(Self { rules });
            }
            Method::MinMax => (&statistics.min, &statistics.max),
            Method::Percentiles => match (&statistics.q01, &statistics.q99) {
                (Some(low), Some(high)) => (low, high),
                _ => {
                    return Err(SetupError::NoPercentiles {
                        embodiment: name.embodiment.to_owned(),
                        group: name.group,
                        key: name.key.to_owned(),
                    });
                }
            },
        };
        if let Some(((row, column), &low, &high)) = low
            .indexed_iter()
            .zip(high)
            .map(|((at, low), high)| (at, low, high))
            .find(|&(_, &low, &high)| high < low && !is_constant(low, high))
        {
            return Err(SetupError::InvertedBounds {
                embodiment: name.embodiment.to_owned(),
                group: name.group,
                key: name.key.to_owned(),
                row,
                column,
                low,
                high,
            });
        }
        Ok(Self { rules: Zip::from(low).and(high).map_collect(|&low, &high| Rule::Bounds { low, high }) })
    }

    pub fn dim(&self) -> usize {
        self.rules.ncols()
    }

    /// f32 values to normalised f32 values. The shape must be that of the statistics, or
    /// have more rows where these have one.
    pub fn normalise(&self, values: ArrayView2<f32>) -> Array2<f32> {
        Zip::from(values).and_broadcast(&self.rules).map_collect(|&x, rule| match *rule {
            Rule::MeanStd { mean, std } => ((f64::from(x) - mean) / std) as f32,
            Rule::Keep => x,
            Rule::Bounds { low, high } if is_constant(low, high) => 0.0,
            Rule::Bounds { low, high } => 2.0 * (((f64::from(x) - low) / (high - low)) as f32) - 1.0,
        })
    }

    /// f64 values to normalised f64 values. The shape must be that of the statistics, or
    /// have more rows where these have one.
    pub fn normalise_f64(&self, values: ArrayView2<f64>) -> Array2<f64> {
        Zip::from(values).and_broadcast(&self.rules).map_collect(|&x, rule| match *rule {
            Rule::MeanStd { mean, std } => (x - mean) / std,
            Rule::Keep => x,
            Rule::Bounds { low, high } if is_constant(low, high) => 0.0,
            Rule::Bounds { low, high } => 2.0 * ((x - low) / (high - low)) - 1.0,
        })
    }

    /// Normalised values to physical values; bounded ones are clipped first. The shape must be that of the statistics, or
    /// have more rows where these have one.
    pub fn restore(&self, values: ArrayView2<f32>) -> Array2<f64> {
        Zip::from(values).and_broadcast(&self.rules).map_collect(|&x, rule| match *rule {
            Rule::MeanStd { mean, std } => f64::from((f64::from(x) * std + mean) as f32),
            Rule::Keep => f64::from(x),
            Rule::Bounds { low, high } => f64::from((x.clamp(-1.0, 1.0) + 1.0) / 2.0) * (high - low) + low,
        })
    }
}

/// `numpy.isclose(high, low)`: relative to the lower bound.
fn is_constant(low: f64, high: f64) -> bool {
    (high - low).abs() <= 1e-8 + 1e-5 * low.abs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;

    const NAME: KeyName<'static> = KeyName { embodiment: "robot", group: StatisticsGroup::State, key: "arm" };

    fn statistics() -> KeyStatistics {
        KeyStatistics {
            mean: array![[0.25, 3.0, -1.0]],
            std: array![[0.5, 0.0, 2.0]],
            min: array![[-1.0, 2.0, 0.0]],
            max: array![[3.0, 2.0, 1e-9]],
            q01: Some(array![[0.0, 1.0, -4.0]]),
            q99: Some(array![[2.0, 1.5, 4.0]]),
        }
    }

    fn with(method: Method) -> Normalisation {
        Normalisation::new(NAME, &statistics(), method).unwrap()
    }

    #[test]
    fn mean_and_deviation_leave_values_without_deviation_alone() {
        let map = with(Method::MeanStd);
        // (1 - 0.25) / 0.5 = 1.5; kept; (2 + 1) / 2 = 1.5, nothing clipped.
        assert_eq!(map.normalise(array![[1.0, 7.0, 2.0]].view()), array![[1.5, 7.0, 1.5]]);
        assert_eq!(map.normalise_f64(array![[1.0, 7.0, 2.0]].view()), array![[1.5, 7.0, 1.5]]);
        assert_eq!(map.restore(array![[1.5, 7.0, 1.5]].view()), array![[1.0, 7.0, 2.0]]);
    }

    #[test]
    fn constant_values_normalise_to_zero_and_restore_to_the_lower_bound() {
        let map = with(Method::MinMax);
        // (0 + 1) / 4 = 0.25, twice that minus 1 = -0.5. The second range is empty, the third below the tolerance.
        assert_eq!(map.normalise(array![[0.0, 9.0, 9.0]].view()), array![[-0.5, 0.0, 0.0]]);
        assert_eq!(map.normalise_f64(array![[0.0, 9.0, 9.0]].view()), array![[-0.5, 0.0, 0.0]]);
        // 0.25 · 4 - 1 = 0; 2; the third range is used as it is: 1 · 1e-9 + 0.
        assert_eq!(map.restore(array![[-0.5, 0.3, 1.0]].view()), array![[0.0, 2.0, 1e-9]]);
    }

    #[test]
    fn percentiles_replace_minimum_and_maximum() {
        let map = with(Method::Percentiles);
        // (3 - 0) / 2 = 1.5 -> 2; (1.25 - 1) / 0.5 = 0.5 -> 0; (-2 + 4) / 8 = 0.25 -> -0.5. No clipping here.
        assert_eq!(map.normalise(array![[3.0, 1.25, -2.0]].view()), array![[2.0, 0.0, -0.5]]);
        // Clipped to 1 -> 2; 0 -> 1.25; -0.5 -> -2.
        assert_eq!(map.restore(array![[5.0, 0.0, -0.5]].view()), array![[2.0, 1.25, -2.0]]);
    }

    #[test]
    fn percentiles_that_are_absent_are_an_error_with_the_keys_name() {
        let statistics = KeyStatistics { q99: None, ..statistics() };
        let message = Normalisation::new(NAME, &statistics, Method::Percentiles).unwrap_err().to_string();
        assert!(message.contains("robot") && message.contains("state.arm"), "{message}");
    }

    #[test]
    fn inverted_bounds_are_an_error_with_the_values() {
        let statistics = KeyStatistics { min: array![[-1.0, 2.5, 0.0]], ..statistics() };
        let message = Normalisation::new(NAME, &statistics, Method::MinMax).unwrap_err().to_string();
        assert!(message.contains("found 2.5 and 2 (row 0, value 1)"), "{message}");
    }

    #[test]
    fn the_tolerance_of_equal_bounds_is_relative_to_the_lower_one() {
        // 1e-8 + 1e-5 · |low|, as numpy.isclose has it.
        assert!(is_constant(100.0, 100.001) && !is_constant(100.0, 100.0011));
        assert!(is_constant(0.0, 1e-8) && !is_constant(0.0, 1.1e-8));
        assert!(is_constant(-100.0, -99.999) && !is_constant(-100.0, -99.998));
    }

    #[test]
    fn a_row_per_time_step_is_applied_row_by_row() {
        let statistics = KeyStatistics {
            mean: array![[0.0], [0.0]],
            std: array![[1.0], [1.0]],
            min: array![[0.0], [10.0]],
            max: array![[2.0], [30.0]],
            q01: None,
            q99: None,
        };
        let map = Normalisation::new(NAME, &statistics, Method::MinMax).unwrap();
        assert_eq!(map.restore(array![[0.0], [0.0]].view()), array![[1.0], [20.0]]);
        assert_eq!(map.normalise(array![[1.0], [15.0]].view()), array![[0.0], [-0.5]]);
    }

    fn bounds() -> impl Strategy<Value = (f64, f64)> {
        (-100.0..100.0f64, 0.1..50.0f64).prop_map(|(low, width)| (low, low + width))
    }

    fn bounded((low, high): (f64, f64)) -> Normalisation {
        Normalisation { rules: array![[Rule::Bounds { low, high }]] }
    }

    proptest! {
        #[test]
        fn restored_values_stay_inside_the_bounds((low, high) in bounds(), x in -1e6f32..1e6) {
            let restored = bounded((low, high)).restore(array![[x]].view())[[0, 0]];
            let slack = 1e-12 * (low.abs() + high.abs());
            prop_assert!(restored >= low - slack && restored <= high + slack);
        }

        #[test]
        fn restoring_undoes_normalising_inside_the_bounds((low, high) in bounds(), share in 0.0..1.0f64) {
            let map = bounded((low, high));
            let x = (low + share * (high - low)) as f32;
            let normalised = map.normalise(array![[x]].view());
            prop_assert!(normalised[[0, 0]].abs() <= 1.0 + 1e-4);
            let restored = map.restore(normalised.view())[[0, 0]];
            // One rounding to f32 on the way there, of a number of size 1 that spans the range, and one of x itself.
            prop_assert!((restored - f64::from(x)).abs() <= 2.5e-7 * (high - low + low.abs().max(high.abs())));
        }

        #[test]
        fn normalising_keeps_the_order((low, high) in bounds(), a in -200.0f32..200.0, b in -200.0f32..200.0) {
            let normalised = bounded((low, high)).normalise(array![[a.min(b)], [a.max(b)]].view());
            prop_assert!(normalised[[0, 0]] <= normalised[[1, 0]]);
        }

        #[test]
        fn restoring_undoes_mean_and_deviation(mean in -10.0..10.0f64, std in 0.01..10.0f64, x in -20.0f32..20.0) {
            let map = Normalisation { rules: array![[Rule::MeanStd { mean, std }]] };
            let restored = map.restore(map.normalise(array![[x]].view()).view())[[0, 0]];
            prop_assert!((restored - f64::from(x)).abs() <= 1e-5);
        }
    }
}
