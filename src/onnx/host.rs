//! Arithmetic on weights while exporting: products that are folded into one weight, and what depends on the denoising
//! step alone. In f64, so that folding rounds once.

use ndarray::{Array1, Array2};

use super::element;
use super::error::OnnxError;
use crate::checkpoint::{CheckpointError, TensorView, Weights};

/// The slice of one embodiment of a weight that is stored for all, (embodiment, …).
pub fn embodiment_slice<'w>(
    weights: &'w Weights,
    name: &str,
    embodiment: usize,
) -> Result<TensorView<'w>, OnnxError> {
    let view = weights.get(name)?;
    let missing = || {
        OnnxError::request(
            "embodiment index",
            format!("below the first axis of {name}"),
            embodiment.to_string(),
        )
    };
    let (count, shape) = view.shape.split_first().ok_or_else(missing)?;
    if embodiment >= *count {
        return Err(missing());
    }
    let length = view.bytes.len() / count;
    let bytes = view.bytes.get(embodiment * length..(embodiment + 1) * length).ok_or_else(missing)?;
    Ok(TensorView { kind: view.kind, shape, bytes })
}

/// A vector in f64.
pub fn vector(view: &TensorView) -> Array1<f64> {
    element::decode(view).into_iter().map(f64::from).collect()
}

/// A matrix in f64.
pub fn matrix(name: &str, view: &TensorView) -> Result<Array2<f64>, OnnxError> {
    let wrong = || {
        // The key table of an opened checkpoint says which tensors are matrices.
        OnnxError::Checkpoint(CheckpointError::NoSuchTensor { tensor: format!("{name} as a matrix") })
    };
    let [rows, columns] = *view.shape else { return Err(wrong()) };
    let values = element::decode(view).into_iter().map(f64::from).collect();
    Array2::from_shape_vec((rows, columns), values).map_err(|_| wrong())
}

/// f64 values as the f32 that a graph stores.
pub fn narrow<'a>(values: impl IntoIterator<Item = &'a f64>) -> Vec<f32> {
    values.into_iter().map(|value| *value as f32).collect()
}

/// W·x + b of a Linear with W stored (out, in), for each of several vectors.
pub fn linear(weights: &Weights, name: &str, inputs: &[Array1<f64>]) -> Result<Vec<Array1<f64>>, OnnxError> {
    let weight = matrix(name, &weights.get(&format!("{name}.weight"))?)?;
    let bias = vector(&weights.get(&format!("{name}.bias"))?);
    Ok(inputs.iter().map(|x| weight.dot(x) + &bias).collect())
}

/// x·sigmoid(x).
pub fn silu(x: &Array1<f64>) -> Array1<f64> {
    x.mapv(|x| x / (1.0 + (-x).exp()))
}

/// Values of `view` (rows, columns) times `scale`, transposed to (columns, rows).
pub fn transposed(view: &TensorView, scale: f64) -> Vec<f32> {
    /// Side of the square that is turned at once, so that reads and writes stay in the cache.
    const TILE: usize = 32;
    let [rows, columns] = *view.shape else { return Vec::new() };
    let source = element::decode(view);
    let mut out = vec![0f32; source.len()];
    for row in (0..rows).step_by(TILE) {
        for column in (0..columns).step_by(TILE) {
            for r in row..rows.min(row + TILE) {
                for c in column..columns.min(column + TILE) {
                    let value = source[r * columns + c];
                    out[c * rows + r] = if scale == 1.0 { value } else { (f64::from(value) * scale) as f32 };
                }
            }
        }
    }
    out
}
