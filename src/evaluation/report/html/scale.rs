//! Axes: from values to places, and the ticks between.

/// An axis over a range of values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    min: f64,
    max: f64,
    log: bool,
}

impl Scale {
    /// An axis over all finite values, with a little air; None without any.
    pub(super) fn linear(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let (min, max) = range(values)?;
        let air = (max - min) * 0.04;
        let air = if air > 0.0 { air } else { (max.abs() * 0.1).max(1e-9) };
        Some(Self { min: min - air, max: max + air, log: false })
    }

    /// An axis over exactly this range.
    pub(super) fn exact(min: f64, max: f64) -> Self {
        let max = if max > min { max } else { min + 1.0 };
        Self { min, max, log: false }
    }

    /// For values that are never below zero: logarithmic where they span more than `span` times, else from zero on.
    pub(super) fn positive(values: impl IntoIterator<Item = f64>, span: f64) -> Option<Self> {
        let values: Vec<f64> =
            values.into_iter().filter(|value| value.is_finite() && *value >= 0.0).collect();
        let (_, max) = range(values.iter().copied())?;
        let smallest = values.iter().copied().filter(|&value| value > 0.0).min_by(f64::total_cmp);
        match smallest {
            // Zeros have no place on a logarithmic axis.
            Some(min) if max / min > span && values.iter().all(|&value| value > 0.0) => {
                Some(Self { min: min / 1.3, max: max * 1.3, log: true })
            }
            _ => Some(Self { min: 0.0, max: if max > 0.0 { max * 1.06 } else { 1.0 }, log: false }),
        }
    }

    pub(super) fn is_log(self) -> bool {
        self.log
    }

    pub(super) fn range(self) -> (f64, f64) {
        (self.min, self.max)
    }

    /// Place of a value: 0 at the axis' beginning, 1 at its end; None for what has no place on it.
    pub(super) fn place(self, value: f64) -> Option<f64> {
        let place = if self.log {
            (value.ln() - self.min.ln()) / (self.max.ln() - self.min.ln())
        } else {
            (value - self.min) / (self.max - self.min)
        };
        place.is_finite().then(|| place.clamp(0.0, 1.0))
    }

    /// The value at a place.
    pub(super) fn value(self, place: f64) -> f64 {
        if self.log {
            (self.min.ln() + place * (self.max.ln() - self.min.ln())).exp()
        } else {
            self.min + place * (self.max - self.min)
        }
    }

    /// Round values along the axis with their labels, about `wanted` of them.
    pub(super) fn ticks(self, wanted: usize) -> Vec<(f64, String)> {
        if self.log { self.log_ticks(wanted) } else { self.linear_ticks(wanted) }
    }

    fn linear_ticks(self, wanted: usize) -> Vec<(f64, String)> {
        let rough = (self.max - self.min) / wanted.max(1) as f64;
        let power = 10f64.powf(rough.log10().floor());
        // The first round step that is coarse enough, or a finer one where it leaves fewer than three ticks.
        let nice = [1.0, 2.0, 5.0, 10.0].map(|nice| nice * power);
        let coarse = nice.into_iter().find(|step| *step >= rough).unwrap_or(power);
        let steps = [10.0, 5.0, 2.0, 1.0, 0.5, 0.2].map(|nice| nice * power);
        let candidates = steps.into_iter().filter(|step| *step <= coarse && step.is_finite() && *step > 0.0);
        let ticks = |step: f64| -> Vec<(f64, String)> {
            let first = (self.min / step).ceil();
            let values = (0..=2 * wanted).map(|i| (first + i as f64) * step);
            let values = values.take_while(|value| *value <= self.max + step * 1e-9);
            values.map(|value| (value, linear_label(value, step))).collect()
        };
        candidates.map(ticks).find(|ticks| ticks.len() >= 3).unwrap_or_default()
    }

    fn log_ticks(self, wanted: usize) -> Vec<(f64, String)> {
        let decades = (self.max / self.min).log10();
        let nice: &[f64] = if decades <= 1.2 {
            &[1.0, 2.0, 3.0, 5.0]
        } else if decades <= 2.5 {
            &[1.0, 3.0]
        } else {
            &[1.0]
        };
        let (first, last) = (self.min.log10().floor() as i32, self.max.log10().ceil() as i32);
        let every = ((decades / wanted.max(1) as f64).ceil() as usize).max(1);
        let powers = (first..=last).step_by(every);
        let values = powers.flat_map(|power| nice.iter().map(move |nice| nice * 10f64.powi(power)));
        let values = values.filter(|value| (self.min..=self.max).contains(value));
        values.map(|value| (value, log_label(value))).collect()
    }
}

fn range(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.into_iter().filter(|value| value.is_finite());
    finite.fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((min, max)) => Some((f64::min(min, value), f64::max(max, value))),
    })
}

fn linear_label(value: f64, step: f64) -> String {
    // A tick at zero may come out as -0 or as a rounding error.
    if value.abs() < step * 1e-6 {
        return "0".to_owned();
    }
    if !(1e-3..1e5).contains(&step) {
        // As many digits as tell neighbours apart; the rounding takes away what the multiplication brought.
        let digits = (value.abs().log10().floor() - step.log10().floor()).clamp(0.0, 6.0) as usize;
        return format!("{value:.digits$e}").replace(".0e", "e");
    }
    let decimals = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{value:.decimals$}")
}

fn log_label(value: f64) -> String {
    if (1e-2..1e5).contains(&value) {
        format!("{}", (value * 1e6).round() / 1e6)
    } else {
        format!("{value:.0e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, wanted: usize) -> Vec<String> {
        scale.ticks(wanted).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(labels(Scale::exact(0.0, 10.0), 5), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(labels(Scale::exact(-0.12, 0.11), 5), ["-0.10", "-0.05", "0", "0.05", "0.10"]);
        assert_eq!(labels(Scale::exact(0.0, 2.4e-5), 3), ["0", "1e-5", "2e-5"]);
        assert_eq!(labels(Scale::exact(-0.49, 0.49), 4), ["-0.4", "-0.2", "0", "0.2", "0.4"]);
        assert_eq!(labels(Scale::exact(995.0, 1006.0), 3), ["995", "1000", "1005"]);
    }

    #[test]
    fn wide_positive_ranges_are_logarithmic_and_narrow_ones_begin_at_zero() {
        let wide = Scale::positive([1e-6, 1e-2], 30.0).unwrap();
        assert!(wide.is_log());
        assert_eq!(labels(wide, 5), ["1e-6", "1e-5", "1e-4", "1e-3", "0.01"]);
        let narrow = Scale::positive([2.0, 4.0], 30.0).unwrap();
        assert_eq!((narrow.is_log(), narrow.range().0), (false, 0.0));
        assert!(!Scale::positive([0.0, 1e-6, 1.0], 30.0).unwrap().is_log());
        assert_eq!(Scale::positive([f64::NAN], 30.0), None);
    }

    #[test]
    fn places_and_values_are_inverse_and_stay_on_the_axis() {
        for scale in [Scale::exact(-3.0, 5.0), Scale::positive([1.0, 1e4], 10.0).unwrap()] {
            for place in [0.0, 0.25, 0.7, 1.0] {
                assert!((scale.place(scale.value(place)).unwrap() - place).abs() < 1e-12);
            }
            assert_eq!(scale.place(1e9), Some(1.0));
            assert_eq!(scale.place(f64::NAN), None);
        }
    }

    #[test]
    fn degenerate_ranges_still_make_an_axis() {
        for value in [0.0, 5.0, -1e-30, 1e300] {
            let scale = Scale::linear([value]).unwrap();
            assert!(scale.place(value).is_some_and(|place| (0.0..=1.0).contains(&place)), "{value}");
            assert!(scale.ticks(4).len() <= 9, "{value}");
        }
        assert!(Scale::positive([0.0], 10.0).unwrap().ticks(4).len() > 1);
    }
}
