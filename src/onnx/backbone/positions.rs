//! The vision tower's position embedding, resized to an image's grid of patches.

use ndarray::{Array2, ArrayView3};

/// The cells of `from` that one cell of a resized axis reads: the first one, and a weight for each.
fn taps(from: usize, to: usize, index: usize) -> (usize, Vec<f64>) {
    let scale = from as f64 / to as f64;
    // Shrinking averages over what the cell covers; growing interpolates between neighbours.
    let support = scale.max(1.0);
    let centre = (index as f64 + 0.5) * scale;
    let first = (centre - support + 0.5).max(0.0) as usize;
    let end = ((centre + support + 0.5) as usize).min(from);
    let weights: Vec<f64> =
        (first..end).map(|cell| (1.0 - ((cell as f64 - centre + 0.5) / support).abs()).max(0.0)).collect();
    let total: f64 = weights.iter().sum();
    (first, weights.into_iter().map(|weight| weight / total).collect())
}

/// Resizes a grid (side, side, D) to `rows` x `columns`, raster order (rows·columns, D): antialiased bilinear with
/// half-pixel centres, as the reference does it (in f32; here in f64, rounded once).
pub fn resize_positions(grid: ArrayView3<f32>, rows: usize, columns: usize) -> Array2<f32> {
    let (height, width, depth) = grid.dim();
    let mut out = Array2::<f64>::zeros((rows * columns, depth));
    let across: Vec<_> = (0..columns).map(|column| taps(width, columns, column)).collect();
    for row in 0..rows {
        let (top, down) = taps(height, rows, row);
        for (column, (left, along)) in across.iter().enumerate() {
            let mut cell = out.row_mut(row * columns + column);
            for (y, vertical) in down.iter().enumerate() {
                for (x, horizontal) in along.iter().enumerate() {
                    let source = grid.slice(ndarray::s![top + y, left + x, ..]);
                    cell.zip_mut_with(&source, |cell, value| {
                        *cell += vertical * horizontal * f64::from(*value)
                    });
                }
            }
        }
    }
    out.mapv(|value| value as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_of_its_own_size_is_unchanged() {
        let grid = ndarray::Array3::from_shape_fn((4, 4, 3), |(y, x, d)| (y * 12 + x * 3 + d) as f32);
        let same = resize_positions(grid.view(), 4, 4);
        assert!(same.iter().zip(&grid).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn weights_of_every_cell_add_up_to_one_and_stay_inside() {
        for (from, to) in [(16, 18), (16, 24), (16, 1), (16, 7), (1, 5), (3, 100)] {
            for index in 0..to {
                let (first, weights) = taps(from, to, index);
                assert!(!weights.is_empty() && first + weights.len() <= from, "{from} {to} {index}");
                assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            }
        }
    }
}
