//! OpenCV's `INTER_AREA` resize of 8-bit RGB, to the last bit.
//!
//! It is three methods in one, chosen by scale = source / destination:
//!
//! | scale | method | arithmetic |
//! |---|---|---|
//! | an integer on both axes | mean of a block ([`Blocks`]) | integer sum, one product in f32 |
//! | at least 1 on both axes | overlap of pixel areas ([`Shrink`]) | f32, sums in tap order |
//! | otherwise | two taps per axis ([`Enlarge`]) | fixed point, see [`super::linear`] |
//!
//! OpenCV's own source decides every detail here (thresholds, rounding, order of sums): `resize.cpp` of 4.11.

use std::ops::Range;

use super::linear::Enlarge;
use super::rows::{Pixels, for_row_pair, pixels_from};
use super::simd::Simd;
use super::size::{Rect, Size};

/// One resize, planned for one pair of sizes; computes only the part of the result inside a window.
pub(super) enum AreaResize {
    Blocks(Blocks),
    Shrink(Shrink),
    Enlarge(Enlarge),
}

impl AreaResize {
    /// Plans `from` → `to`, of which only `window` is computed.
    pub fn new(from: Size, to: Size, window: Rect) -> Self {
        let scale = [scale(from.width, to.width), scale(from.height, to.height)];
        let columns = window.left as usize..(window.left + window.size.width) as usize;
        let rows = window.top as usize..(window.top + window.size.height) as usize;
        if scale.iter().any(|&scale| scale < 1.0) {
            return Self::Enlarge(Enlarge::new(from, to, columns, rows));
        }
        let whole = scale.map(f64::round_ties_even);
        if scale.iter().zip(whole).all(|(scale, whole)| (scale - whole).abs() < f64::EPSILON) {
            return Self::Blocks(Blocks { block: whole.map(|side| side as usize), columns, rows });
        }
        Self::Shrink(Shrink {
            x: AreaAxis::new(from.width, to.width, columns),
            y: AreaAxis::new(from.height, to.height, rows),
        })
    }

    /// Writes the window's rows, 3 bytes per pixel without gaps.
    pub fn run(&self, simd: Simd, from: &Pixels, to: &mut [u8]) {
        match self {
            Self::Blocks(resize) => resize.run(from, to),
            Self::Shrink(resize) => resize.run(simd, from, to),
            Self::Enlarge(resize) => resize.run(simd, from, to),
        }
    }
}

/// OpenCV takes the reciprocal of a rounded quotient; for some sizes that is not the quotient source / destination.
fn scale(from: u32, to: u32) -> f64 {
    1.0 / (f64::from(to) / f64::from(from))
}

/// The mean of a block of whole pixels.
pub(super) struct Blocks {
    /// Width and height of a block.
    pub block: [usize; 2],
    pub columns: Range<usize>,
    pub rows: Range<usize>,
}

impl Blocks {
    /// What the sum of a block is multiplied by.
    pub fn factor([across, down]: [usize; 2]) -> f32 {
        1.0 / (across * down) as f32
    }

    fn run(&self, from: &Pixels, to: &mut [u8]) {
        let [across, down] = self.block;
        let bytes = self.columns.start * across * 3..self.columns.end * across * 3;
        let factor = Self::factor(self.block);
        let mut sums = vec![0_u32; bytes.len()];
        for (y, out) in self.rows.clone().zip(to.chunks_exact_mut(self.columns.len() * 3)) {
            sums.fill(0);
            for source in y * down..(y + 1) * down {
                for (sum, &value) in sums.iter_mut().zip(&from.row(source)[bytes.clone()]) {
                    *sum += u32::from(value);
                }
            }
            for (out, block) in out.chunks_exact_mut(3).zip(sums.chunks_exact(across * 3)) {
                for (channel, out) in out.iter_mut().enumerate() {
                    let sum: u32 = block.iter().skip(channel).step_by(3).sum();
                    // OpenCV rounds the 2x2 mean half up, every other one half to even.
                    *out = if self.block == [2, 2] {
                        ((sum + 2) >> 2) as u8
                    } else {
                        (sum as f32 * factor).round_ties_even() as u8
                    };
                }
            }
        }
    }
}

/// Source pixels weighted by how much of the destination pixel they cover.
pub(super) struct Shrink {
    pub x: AreaAxis,
    pub y: AreaAxis,
}

/// The taps of one axis: destination `d` is the sum of `weights[d * taps + k]` · source pixel `starts[d] + k`.
pub(super) struct AreaAxis {
    /// First source pixel of each destination.
    pub starts: Vec<u32>,
    /// Number of taps in use of each destination; the weights after them are zero, which changes no sum.
    pub counts: Vec<u32>,
    /// Taps of every destination.
    pub taps: usize,
    pub weights: Vec<f32>,
    /// Bytes of a source row that the horizontal pass may read.
    pub reach: usize,
}

/// Pixels that the horizontal pass takes from one 16-byte word.
pub(super) const PIXELS_PER_WORD: usize = 5;

impl AreaAxis {
    fn new(from: u32, to: u32, window: Range<usize>) -> Self {
        let scale = scale(from, to);
        let from = f64::from(from);
        let mut rows: Vec<(u32, Vec<f32>)> = Vec::with_capacity(window.len());
        for d in window {
            let (left, right) = (d as f64 * scale, d as f64 * scale + scale);
            let cell = scale.min(from - left);
            let last = right.floor().min(from - 1.0);
            let first = left.ceil().min(last);
            let mut start = first;
            let mut weights = Vec::new();
            // A sliver below a thousandth of a pixel is ignored, as OpenCV does.
            if first - left > 1e-3 {
                start -= 1.0;
                weights.push(((first - left) / cell) as f32);
            }
            weights.resize(weights.len() + (last - first) as usize, (1.0 / cell) as f32);
            if right - last > 1e-3 {
                weights.push(((right - last).min(1.0).min(cell) / cell) as f32);
            }
            rows.push((start as u32, weights));
        }
        let taps = rows.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0).max(1);
        let last_start = rows.iter().map(|&(start, _)| start).max().unwrap_or(0) as usize;
        let words = taps.div_ceil(PIXELS_PER_WORD);
        let mut axis = Self {
            starts: Vec::with_capacity(rows.len()),
            counts: Vec::with_capacity(rows.len()),
            taps,
            weights: Vec::with_capacity(rows.len() * taps),
            reach: (last_start + (words - 1) * PIXELS_PER_WORD) * 3 + 16,
        };
        for (start, weights) in rows {
            axis.starts.push(start);
            axis.counts.push(weights.len() as u32);
            axis.weights.extend(&weights);
            axis.weights.resize(axis.starts.len() * taps, 0.0);
        }
        axis
    }

    fn len(&self) -> usize {
        self.starts.len()
    }

    /// (source index, weight) of destination `d`, in order.
    fn taps_of(&self, d: usize) -> impl Iterator<Item = (usize, f32)> {
        let start = self.starts[d] as usize;
        let weights = &self.weights[d * self.taps..][..self.counts[d] as usize];
        weights.iter().enumerate().map(move |(k, &weight)| (start + k, weight))
    }
}

impl Shrink {
    fn run(&self, simd: Simd, from: &Pixels, to: &mut [u8]) {
        let values = self.x.len() * 3;
        // One value more than a row has: pixels are written in fours, each over the spare of the one before.
        let mut pair = [vec![0.0_f32; values + 1], vec![0.0_f32; values + 1]];
        let mut sums = vec![0.0_f32; values];
        let mut spare = [Vec::new(), Vec::new()];
        // Source rows only ever go up, and a row at the border of two destinations is the newest one when the second
        // destination asks for it: two shrunk rows are all that has to be kept.
        let mut held = usize::MAX;
        for (d, out) in to.chunks_exact_mut(values).enumerate() {
            for (k, (row, weight)) in self.y.taps_of(d).enumerate() {
                if held == usize::MAX || row - held > 1 {
                    let [a, b] = &mut pair;
                    for_row_pair(from, row, self.x.reach, &mut spare, |row_a, row_b| {
                        simd.area_horizontal(&self.x, [row_a, row_b], [a, b]);
                    });
                    held = row;
                }
                simd.accumulate(&mut sums, &pair[row - held][..values], weight, k == 0);
            }
            simd.round(&sums, out);
        }
    }
}

/// The horizontal pass over one row: the sums in tap order, in f32. `to` has one value more than the row needs.
#[inline(always)]
pub(super) fn horizontal(axis: &AreaAxis, from: &[u8], to: &mut [f32]) {
    for (d, (&start, weights)) in axis.starts.iter().zip(axis.weights.chunks_exact(axis.taps)).enumerate() {
        let mut sum = [0.0_f32; 4];
        for (&weight, pixel) in weights.iter().zip(pixels_from(from, start)) {
            let values = pixel.map(f32::from);
            for (sum, value) in sum.iter_mut().zip(values) {
                *sum += value * weight;
            }
        }
        to[d * 3..d * 3 + 4].copy_from_slice(&sum);
    }
}

/// sums = weight · row for the first tap, sums + weight · row for the others.
#[inline(always)]
pub(super) fn accumulate(sums: &mut [f32], row: &[f32], weight: f32, first: bool) {
    if first {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum = weight * value;
        }
    } else {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += weight * value;
        }
    }
}

/// Rounds half to even and clamps to 255.
///
/// Adding 1.5·2²³ leaves no room for fractional bits, so that the addition itself rounds; the integer is then in the
/// low bits. The sums are never negative and never much above 255.
#[inline(always)]
pub(super) fn round(sums: &[f32], to: &mut [u8]) {
    for (out, &sum) in to.iter_mut().zip(sums) {
        *out = ((sum + 12_582_912.0).to_bits() & 0xffff).min(255) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_half_to_even_and_clamped() {
        let sums = [0.0, 0.5, 1.5, 2.5, 2.500_001, 254.5, 255.0, 255.4, 256.0];
        let mut out = [0; 9];
        round(&sums, &mut out);
        assert_eq!(out, [0, 0, 2, 2, 3, 254, 255, 255, 255]);
    }

    #[test]
    fn every_destination_is_a_weighted_mean_of_pixels_that_exist() {
        for (from, to) in [(640, 341), (480, 256), (257, 256), (16_384, 28), (1000, 999), (49 * 28, 28)] {
            let axis = AreaAxis::new(from, to, 0..to as usize);
            for d in 0..to as usize {
                let sum: f64 = axis.taps_of(d).map(|(_, weight)| f64::from(weight)).sum();
                assert!((sum - 1.0).abs() < 2e-3, "{from} to {to}, destination {d}: {sum}");
                assert!(axis.taps_of(d).all(|(source, _)| source < from as usize), "{from} to {to}: {d}");
            }
        }
    }

    #[test]
    fn a_window_holds_the_same_taps_as_the_whole() {
        let (whole, part) = (AreaAxis::new(640, 341, 0..341), AreaAxis::new(640, 341, 9..332));
        for d in 0..part.len() {
            assert!(part.taps_of(d).eq(whole.taps_of(d + 9)));
        }
    }
}
