//! Rotary position embedding: frequencies and tables.

use half::bf16;
use ndarray::Array2;

use crate::onnx::ElementType;

/// Inverse frequencies theta^(−2·i/width) for i < width/2, rounded to `kind`.
///
/// The reference's policy runs in bf16 and rounds this buffer too, and checkpoints were evaluated with it so.
pub fn inverse_frequencies(theta: f64, width: usize, kind: ElementType) -> Vec<f32> {
    (0..width / 2)
        .map(|i| {
            // Exponent, power and reciprocal in f32, as the reference has them.
            let exponent = (2 * i) as f32 / width as f32;
            let exact = 1.0 / (theta.powf(f64::from(exponent)) as f32);
            match kind {
                ElementType::Bf16 => bf16::from_f32(exact).to_f32(),
                ElementType::F16 => half::f16::from_f32(exact).to_f32(),
                _ => exact,
            }
        })
        .collect()
}

/// Cosines and sines (positions, width/2) of position times frequency, both multiplied by `scale`.
pub fn rotary_tables(frequencies: &[f32], positions: usize, scale: f64) -> (Array2<f32>, Array2<f32>) {
    let table = |f: fn(f64) -> f64| {
        Array2::from_shape_fn((positions, frequencies.len()), |(position, i)| {
            (f(f64::from(position as f32 * frequencies[i])) * scale) as f32
        })
    };
    (table(f64::cos), table(f64::sin))
}
