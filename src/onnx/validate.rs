//! Two runs of the same network, layer by layer: how far apart they are, and which layers leave the range of f16.

use std::collections::BTreeMap;
use std::fmt;

use half::f16;
use ndarray::ArrayD;
use serde::Serialize;
use thiserror::Error;

/// The values of a run by the name of the layer.
pub type NamedTensors = BTreeMap<String, ArrayD<f32>>;

/// Why two runs cannot be compared.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ValidateError {
    /// Nothing has the same name in both.
    #[error("expected tensors of the same names in both runs, found none among {reference} and {other}")]
    NothingInCommon { reference: usize, other: usize },
    /// A tensor has another shape in the other run.
    #[error("{name}: expected the reference's shape {expected:?}, found {found:?}")]
    Shape { name: String, expected: Vec<usize>, found: Vec<usize> },
}

/// Smallest and largest finite value of a tensor, and how many are none or beyond f16.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Range {
    pub min: f32,
    pub max: f32,
    /// NaN and infinity.
    pub non_finite: usize,
    /// Finite values that f16 cannot hold.
    pub beyond_f16: usize,
}

impl Range {
    /// Of no finite value at all: 0 to 0.
    pub fn of<'a>(values: impl IntoIterator<Item = &'a f32>) -> Self {
        let mut range: Option<(f32, f32)> = None;
        let (mut non_finite, mut beyond_f16) = (0, 0);
        let most = f16::MAX.to_f32();
        for value in values {
            if value.is_finite() {
                let (min, max) = range.unwrap_or((*value, *value));
                range = Some((min.min(*value), max.max(*value)));
                beyond_f16 += usize::from(value.abs() > most);
            } else {
                non_finite += 1;
            }
        }
        let (min, max) = range.unwrap_or((0.0, 0.0));
        Self { min, max, non_finite, beyond_f16 }
    }

    /// The largest magnitude of a finite value.
    pub fn largest(&self) -> f32 {
        self.max.abs().max(self.min.abs())
    }

    /// Whether a value is beyond what f16 can hold (65504), or none at all.
    pub fn overflows_f16(&self) -> bool {
        self.non_finite > 0 || self.beyond_f16 > 0
    }
}

/// One layer in both runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerComparison {
    pub name: String,
    pub elements: usize,
    /// Mean squared difference; not a number where a value of either run is not finite.
    pub mse: f64,
    /// Cosine of the angle between both as vectors; 1 where both are zero, 0 where one is.
    pub cosine: f64,
    /// Largest absolute difference.
    pub max_abs: f64,
    pub reference: Range,
    pub other: Range,
}

/// All layers that both runs have, in the order in which they are computed where that is known, else of their names.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Comparison {
    pub layers: Vec<LayerComparison>,
    /// Names that only one of the runs has.
    pub unmatched: Vec<String>,
}

/// Compares every tensor that both runs have.
///
/// # Errors
/// Shapes differ, or nothing has the same name.
pub fn compare(reference: &NamedTensors, other: &NamedTensors) -> Result<Comparison, ValidateError> {
    let mut layers = Vec::new();
    let mut unmatched: Vec<String> =
        other.keys().filter(|name| !reference.contains_key(*name)).cloned().collect();
    for (name, expected) in reference {
        match other.get(name) {
            Some(found) => layers.push(compare_layer(name, expected, found)?),
            None => unmatched.push(name.clone()),
        }
    }
    if layers.is_empty() {
        return Err(ValidateError::NothingInCommon { reference: reference.len(), other: other.len() });
    }
    layers.sort_by(|a, b| natural(&a.name).cmp(&natural(&b.name)));
    unmatched.sort();
    Ok(Comparison { layers, unmatched })
}

/// As [`compare`], with the layers in the given order: names of both runs that it lacks are left out.
///
/// # Errors
/// As [`compare`].
pub fn compare_in_order(
    order: &[String],
    reference: &NamedTensors,
    other: &NamedTensors,
) -> Result<Comparison, ValidateError> {
    let mut comparison = Comparison::default();
    for name in order {
        match (reference.get(name), other.get(name)) {
            (Some(expected), Some(found)) => comparison.layers.push(compare_layer(name, expected, found)?),
            (None, None) => {}
            _ => comparison.unmatched.push(name.clone()),
        }
    }
    if comparison.layers.is_empty() {
        return Err(ValidateError::NothingInCommon { reference: reference.len(), other: other.len() });
    }
    Ok(comparison)
}

/// A name in pieces such that layer 10 comes after layer 9.
fn natural(name: &str) -> Vec<(u64, &str)> {
    name.split_inclusive(|c: char| !c.is_ascii_digit())
        .map(|piece| {
            let digits = piece.trim_end_matches(|c: char| !c.is_ascii_digit());
            (digits.parse().unwrap_or(0), piece)
        })
        .collect()
}

fn compare_layer(
    name: &str,
    reference: &ArrayD<f32>,
    other: &ArrayD<f32>,
) -> Result<LayerComparison, ValidateError> {
    if reference.shape() != other.shape() {
        return Err(ValidateError::Shape {
            name: name.to_owned(),
            expected: reference.shape().to_vec(),
            found: other.shape().to_vec(),
        });
    }
    let (mut squares, mut product, mut first, mut second, mut max_abs) = (0f64, 0f64, 0f64, 0f64, 0f64);
    for (a, b) in reference.iter().zip(other) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        squares += (a - b).powi(2);
        product += a * b;
        first += a * a;
        second += b * b;
        // `max` would drop what is not a number.
        max_abs = if (a - b).is_nan() { f64::NAN } else { max_abs.max((a - b).abs()) };
    }
    let cosine = match (first == 0.0, second == 0.0) {
        (true, true) => 1.0,
        (false, false) => product / (first.sqrt() * second.sqrt()),
        _ => 0.0,
    };
    Ok(LayerComparison {
        name: name.to_owned(),
        elements: reference.len(),
        mse: squares / reference.len().max(1) as f64,
        cosine,
        max_abs,
        reference: Range::of(reference),
        other: Range::of(other),
    })
}

impl LayerComparison {
    /// Whether the cosine is below `least`, or is none.
    pub fn is_below(&self, least: f64) -> bool {
        !self.cosine.is_finite() || self.cosine < least
    }

    /// Whether all values of both are zero, so that nothing was compared.
    pub fn is_empty(&self) -> bool {
        let zero = |range: &Range| range.largest() == 0.0 && range.non_finite == 0;
        zero(&self.reference) && zero(&self.other)
    }

    /// Share of the values beyond f16 or not finite, in the run that has more of them.
    pub fn share_beyond_f16(&self) -> f64 {
        let count = |range: &Range| range.beyond_f16 + range.non_finite;
        count(&self.reference).max(count(&self.other)) as f64 / self.elements.max(1) as f64
    }
}

impl Comparison {
    /// The first layer whose cosine is below `least`: where an error begins, for later layers only carry it on.
    pub fn first_below(&self, least: f64) -> Option<&LayerComparison> {
        self.layers.iter().find(|layer| layer.is_below(least))
    }

    /// The first layer of either run that f16 cannot hold.
    pub fn first_f16_overflow(&self) -> Option<&LayerComparison> {
        self.layers.iter().find(|layer| layer.reference.overflows_f16() || layer.other.overflows_f16())
    }
}

/// A table with a line for each layer.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = self.layers.iter().map(|layer| layer.name.chars().count()).max().unwrap_or(0).max(5);
        writeln!(
            f,
            "{:widest$}  {:>10}  {:>9}  {:>10}  {:>23}  {:>23}  {:>10}  f16",
            "layer", "MSE", "cosine", "max", "reference range", "other range", "largest"
        )?;
        for layer in &self.layers {
            let range = |range: &Range| format!("{:.4} .. {:.4}", range.min, range.max);
            let non_finite = layer.reference.non_finite + layer.other.non_finite;
            let verdict = match layer.reference.overflows_f16() || layer.other.overflows_f16() {
                _ if non_finite > 0 => format!("{non_finite} values not finite"),
                true => format!("{:.3} % overflow", layer.share_beyond_f16() * 100.0),
                false => "fits".to_owned(),
            };
            writeln!(
                f,
                "{:widest$}  {:>10.3e}  {:>9.6}  {:>10.3e}  {:>23}  {:>23}  {:>10.4}  {verdict}",
                layer.name,
                layer.mse,
                layer.cosine,
                layer.max_abs,
                range(&layer.reference),
                range(&layer.other),
                layer.reference.largest().max(layer.other.largest())
            )?;
        }
        if !self.unmatched.is_empty() {
            writeln!(f, "in one run only: {}", self.unmatched.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(tensors: &[(&str, &[f32])]) -> NamedTensors {
        let tensor = |values: &[f32]| ndarray::arr1(values).into_dyn();
        tensors.iter().map(|(name, values)| ((*name).to_owned(), tensor(values))).collect()
    }

    #[test]
    fn differences_are_measured_as_defined() {
        let comparison = compare(&run(&[("a", &[3.0, 4.0])]), &run(&[("a", &[4.0, 3.0])])).unwrap();
        let layer = &comparison.layers[0];
        assert_eq!((layer.mse, layer.max_abs, layer.elements), (1.0, 1.0, 2));
        assert!((layer.cosine - 24.0 / 25.0).abs() < 1e-12);
        assert_eq!(layer.reference, Range { min: 3.0, max: 4.0, non_finite: 0, beyond_f16: 0 });
        assert_eq!(comparison.first_f16_overflow(), None);
    }

    #[test]
    fn zeros_have_the_cosine_of_equal_or_of_unrelated_vectors() {
        let cosine =
            |a: &[f32], b: &[f32]| compare(&run(&[("a", a)]), &run(&[("a", b)])).unwrap().layers[0].cosine;
        assert_eq!(cosine(&[0.0, 0.0], &[0.0, 0.0]), 1.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
        let empty = |a: &[f32], b: &[f32]| {
            compare(&run(&[("a", a)]), &run(&[("a", b)])).unwrap().layers[0].is_empty()
        };
        assert!(empty(&[0.0, -0.0], &[0.0, 0.0]) && !empty(&[0.0], &[f32::NAN]) && !empty(&[0.0], &[1.0]));
    }

    #[test]
    fn the_first_layer_beyond_f16_is_found_in_the_order_of_the_network() {
        let reference = run(&[("layer2", &[70_000.0]), ("layer10", &[-65_505.0]), ("layer1", &[65_504.0])]);
        let comparison = compare(&reference, &reference).unwrap();
        let names: Vec<_> = comparison.layers.iter().map(|layer| layer.name.as_str()).collect();
        assert_eq!(names, ["layer1", "layer2", "layer10"]);
        assert_eq!(comparison.first_f16_overflow().unwrap().name, "layer2");
        let text = comparison.to_string();
        assert_eq!(text.matches("100.000 % overflow").count(), 2, "{text}");
        assert_eq!(text.matches("fits").count(), 1, "{text}");
    }

    #[test]
    fn layers_come_in_the_given_order_and_the_first_with_a_small_cosine_is_named() {
        let order = ["in", "b", "a", "no tensor", "out"].map(str::to_owned);
        let reference = run(&[("a", &[1.0, 0.0]), ("b", &[2.0, 1.0]), ("in", &[1.0]), ("out", &[1.0, 2.0])]);
        let other = run(&[("a", &[0.0, 1.0]), ("b", &[2.0, 1.0]), ("in", &[1.0]), ("out", &[f32::NAN, 2.0])]);
        let comparison = compare_in_order(&order, &reference, &other).unwrap();
        let names: Vec<_> = comparison.layers.iter().map(|layer| layer.name.as_str()).collect();
        assert_eq!(names, ["in", "b", "a", "out"]);
        assert_eq!(comparison.first_below(0.999).unwrap().name, "a");
        assert_eq!(comparison.first_below(-1.0).unwrap().name, "out", "a cosine that is no number");
        let same = compare_in_order(&order, &reference, &reference).unwrap();
        assert_eq!(same.first_below(0.999), None);
        assert!(compare_in_order(&order[3..4], &reference, &other).is_err());
    }

    #[test]
    fn the_share_beyond_f16_is_of_the_run_that_has_more_and_the_largest_magnitude_has_either_sign() {
        let reference = run(&[("a", &[1.0, 2.0, 3.0, -70_000.0])]);
        let comparison = compare(&reference, &run(&[("a", &[f32::INFINITY, 65_505.0, 3.0, 4.0])])).unwrap();
        let layer = &comparison.layers[0];
        assert_eq!((layer.reference.beyond_f16, layer.other.beyond_f16), (1, 1));
        assert_eq!((layer.reference.largest(), layer.share_beyond_f16()), (70_000.0, 0.5));
    }

    #[test]
    fn values_that_are_no_numbers_are_counted_and_not_hidden() {
        let reference = run(&[("a", &[1.0, 2.0, 3.0])]);
        let comparison = compare(&reference, &run(&[("a", &[f32::NAN, 2.0, f32::INFINITY])])).unwrap();
        let layer = &comparison.layers[0];
        assert!(layer.mse.is_nan() && layer.max_abs.is_infinite() | layer.max_abs.is_nan());
        assert_eq!(layer.other, Range { min: 2.0, max: 2.0, non_finite: 2, beyond_f16: 0 });
        assert!(comparison.to_string().contains("2 values not finite"));
        assert!(comparison.first_f16_overflow().is_some());
    }

    #[test]
    fn runs_that_do_not_fit_each_other_are_refused_with_both_sides() {
        let error = compare(&run(&[("a", &[1.0])]), &run(&[("a", &[1.0, 2.0])])).unwrap_err().to_string();
        assert_eq!(error, "a: expected the reference's shape [1], found [2]");
        let error = compare(&run(&[("a", &[1.0])]), &run(&[("b", &[1.0])])).unwrap_err().to_string();
        assert!(error.contains("same names"), "{error}");
        let comparison =
            compare(&run(&[("a", &[1.0]), ("b", &[1.0])]), &run(&[("a", &[1.0]), ("c", &[1.0])]));
        assert_eq!(comparison.unwrap().unmatched, ["b", "c"]);
    }
}
