//! Scales of weights, and the moving of outliers from activations into them (SmoothQuant, Xiao et al. 2022).

use crate::engine::EngineError;

/// The greatest quantised value. -128 is not used, so that the range is symmetric.
pub const LEVELS: f32 = 127.0;

/// Least factor of [`smoothing`]: a channel that is nearly always zero would otherwise blow up the weights' rounding errors.
const LEAST_FACTOR: f32 = 1e-5;

/// `x / scale`, rounded half to even as ONNX's QuantizeLinear does, and cut off at ±127. NaN becomes 0.
pub fn quantise(x: f32, scale: f32) -> i8 {
    // The cast cuts nothing off: the value is within ±127.
    (x / scale).round_ties_even().clamp(-LEVELS, LEVELS) as i8
}

/// The greatest absolute value of each channel, as it is seen.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelMax(Vec<f32>);

impl ChannelMax {
    /// Nothing seen yet of so many channels.
    pub fn new(channels: usize) -> Self {
        Self(vec![0.0; channels])
    }

    /// Adds values of shape (..., channels).
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for values that are no whole number of rows, or not finite.
    pub fn observe(&mut self, values: &[f32]) -> Result<(), EngineError> {
        check("activations", values, self.0.len())?;
        for row in values.chunks_exact(self.0.len().max(1)) {
            self.0.iter_mut().zip(row).for_each(|(max, value)| *max = max.max(value.abs()));
        }
        Ok(())
    }

    /// The maxima so far.
    pub fn values(&self) -> &[f32] {
        &self.0
    }
}

/// The scale of each output channel of a weight matrix of shape (rows, columns), row by row: greatest absolute value / 127.
/// `by_row` if output channels are rows (as in libtorch's Linear), else columns (as in ONNX's MatMul). A channel of zeros
/// gets scale 1: any will do, but zero.
///
/// # Errors
/// [`EngineError::Invalid`] for weights of another size, or not finite.
pub fn channel_scales(weights: &[f32], columns: usize, by_row: bool) -> Result<Vec<f32>, EngineError> {
    check("weights", weights, columns)?;
    let max = if by_row {
        weights.chunks_exact(columns).map(|row| row.iter().fold(0_f32, |max, w| max.max(w.abs()))).collect()
    } else {
        let mut max = ChannelMax::new(columns);
        max.observe(weights)?;
        max.0
    };
    Ok(max
        .into_iter()
        .map(|max| if max > 0.0 { (max / LEVELS).max(f32::MIN_POSITIVE) } else { 1.0 })
        .collect())
}

/// For each input channel, the factor that its weights are multiplied by and its activations divided by:
/// `activation^alpha / weight^(1 - alpha)` of the greatest absolute values. The product stays the same, and outliers are
/// shared between both: alpha 0 leaves all of them in the activations' favour, 1 in the weights'; 0.5 is usual.
///
/// A channel without activations or without weights gets 1.
///
/// # Errors
/// [`EngineError::Invalid`] for lists of different lengths, values that are negative or not finite, or an alpha outside 0 to 1.
pub fn smoothing(activations: &[f32], weights: &[f32], alpha: f32) -> Result<Vec<f32>, EngineError> {
    if activations.len() != weights.len() {
        return Err(EngineError::Invalid {
            what: "input channels of the smoothing".to_owned(),
            expected: format!("as many weights as activations ({})", activations.len()),
            found: weights.len().to_string(),
        });
    }
    if !(0.0..=1.0).contains(&alpha) {
        return Err(EngineError::Invalid {
            what: "alpha of the smoothing".to_owned(),
            expected: "0 to 1".to_owned(),
            found: alpha.to_string(),
        });
    }
    if let Some(value) =
        activations.iter().chain(weights).find(|value| !(value.is_finite() && **value >= 0.0))
    {
        return Err(EngineError::Invalid {
            what: "greatest absolute values of the smoothing".to_owned(),
            expected: "finite values, none negative".to_owned(),
            found: value.to_string(),
        });
    }
    let factor = |(&activation, &weight): (&f32, &f32)| {
        if activation == 0.0 || weight == 0.0 {
            return 1.0;
        }
        (activation.powf(alpha) / weight.powf(1.0 - alpha)).clamp(LEAST_FACTOR, 1.0 / LEAST_FACTOR)
    };
    Ok(activations.iter().zip(weights).map(factor).collect())
}

fn check(what: &str, values: &[f32], columns: usize) -> Result<(), EngineError> {
    if columns == 0 || !values.len().is_multiple_of(columns) {
        return Err(EngineError::Invalid {
            what: what.to_owned(),
            expected: format!("rows of {columns} values (at least 1)"),
            found: format!("{} values", values.len()),
        });
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(EngineError::Invalid {
            what: what.to_owned(),
            expected: "finite values".to_owned(),
            found: format!("{} at {index}", values[index]),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn halves_round_to_even_and_the_range_is_symmetric() {
        assert_eq!([0.5, 1.5, -0.5, -1.5].map(|x| quantise(x, 1.0)), [0, 2, 0, -2]);
        assert_eq!([200.0, -200.0, f32::NAN].map(|x| quantise(x, 1.0)), [127, -127, 0]);
        assert_eq!(quantise(0.254, 0.002), 127);
    }

    #[test]
    fn each_channel_gets_its_own_scale() {
        // Rows (1, -127) and (0, 0); columns (1, 0) and (-127, 0).
        let weights = [1.0, -127.0, 0.0, 0.0];
        assert_eq!(channel_scales(&weights, 2, true).expect("finite"), [1.0, 1.0]);
        assert_eq!(channel_scales(&weights, 2, false).expect("finite"), [1.0 / 127.0, 1.0]);
    }

    #[test]
    fn smoothing_shares_an_outlier_between_activation_and_weight() {
        // sqrt(16)/sqrt(1) = 4, sqrt(1)/sqrt(4) = 0.5; dead channels stay.
        let factors = smoothing(&[16.0, 1.0, 0.0, 3.0], &[1.0, 4.0, 2.0, 0.0], 0.5).expect("sound");
        assert_eq!(factors, [4.0, 0.5, 1.0, 1.0]);
        assert_eq!(smoothing(&[16.0], &[4.0], 1.0).expect("sound"), [16.0]);
        assert_eq!(smoothing(&[16.0], &[4.0], 0.0).expect("sound"), [0.25]);
    }

    #[test]
    fn senseless_input_is_refused() {
        assert!(channel_scales(&[1.0, 2.0, 3.0], 2, true).is_err());
        assert!(channel_scales(&[f32::NAN], 1, true).is_err());
        assert!(channel_scales(&[], 0, true).is_err());
        assert!(smoothing(&[1.0], &[1.0, 2.0], 0.5).is_err());
        assert!(smoothing(&[1.0], &[1.0], 1.5).is_err());
        assert!(smoothing(&[-1.0], &[1.0], 0.5).is_err());
        assert!(ChannelMax::new(2).observe(&[1.0, f32::INFINITY]).is_err());
    }

    proptest! {
        #[test]
        fn quantised_weights_are_within_half_a_scale_of_what_they_were(
            weights in prop::collection::vec(-3_f32..3.0, 12)
        ) {
            let scales = channel_scales(&weights, 4, true).expect("finite");
            for (row, scale) in weights.chunks(4).zip(scales) {
                for &w in row {
                    let back = f32::from(quantise(w, scale)) * scale;
                    prop_assert!((back - w).abs() <= scale * 0.5001, "{} {} {}", w, back, scale);
                }
            }
        }

        #[test]
        fn smoothing_changes_no_product(
            x in prop::collection::vec(-9_f32..9.0, 6), w in prop::collection::vec(-2_f32..2.0, 6), alpha in 0_f32..=1.0
        ) {
            let abs = |values: &[f32]| values.iter().map(|v| v.abs()).collect::<Vec<_>>();
            let factors = smoothing(&abs(&x), &abs(&w), alpha).expect("sound");
            for ((x, w), s) in x.iter().zip(&w).zip(factors) {
                let (plain, smoothed) = (x * w, (x / s) * (w * s));
                prop_assert!((plain - smoothed).abs() <= 1e-5 * plain.abs().max(1e-6));
            }
        }
    }
}
