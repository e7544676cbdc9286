//! Pillow's bicubic resize of 8-bit RGB, to the last bit.
//!
//! Pillow widens the kernel where it shrinks, weighs in 22-bit fixed point, and rounds to bytes after the horizontal
//! pass, which comes first (Pillow 12; version 13 changed the order for some sizes). An axis that keeps its size is
//! left alone. Details follow Pillow's own `Resample.c` of 12.1.

use super::rows::{Pixels, for_row_pair, pixels_from};
use super::simd::Simd;
use super::size::Size;

/// Fractional bits of a weight.
pub(super) const PRECISION: u32 = 22;
/// Low bits of a weight that [`BicubicAxis::halves`] splits off.
pub(super) const LOW_BITS: u32 = 12;
/// Values that the vertical pass computes at once.
const BLOCK: usize = 32;

/// One resize, planned for one pair of sizes.
pub(super) struct Bicubic {
    to: Size,
    pub x: Option<BicubicAxis>,
    pub y: Option<BicubicAxis>,
}

/// The taps of one axis: destination `d` is the sum of `weights[d * taps + k]` · source pixel `starts[d] + k`.
pub(super) struct BicubicAxis {
    pub starts: Vec<u32>,
    /// Taps of every destination, an even number; the unused ones are zero.
    pub taps: usize,
    pub weights: Vec<i32>,
    /// For each pair of taps, two 16-bit numbers twice: the weights' low [`LOW_BITS`] bits, then the rest.
    pub halves: Vec<[i32; 2]>,
    /// Bytes of a source row that the horizontal pass may read.
    pub reach: usize,
}

/// Keys' cubic with a = -1/2.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

impl BicubicAxis {
    fn new(from: u32, to: u32) -> Self {
        let scale = f64::from(from) / f64::from(to);
        let widening = scale.max(1.0);
        let support = 2.0 * widening;
        let shrinking = 1.0 / widening;
        let mut rows: Vec<(u32, Vec<i32>)> = Vec::with_capacity(to as usize);
        for d in 0..to {
            let centre = (f64::from(d) + 0.5) * scale;
            // Truncation towards zero, then the image's borders.
            let first = ((centre - support + 0.5) as i64).max(0);
            let end = ((centre + support + 0.5) as i64).min(i64::from(from));
            let weights: Vec<f64> =
                (first..end).map(|i| cubic((i as f64 - centre + 0.5) * shrinking)).collect();
            let total: f64 = weights.iter().sum();
            let fixed = weights.iter().map(|&weight| {
                let weight = if total != 0.0 { weight / total } else { weight };
                let scaled = weight * f64::from(1 << PRECISION);
                if weight < 0.0 { (scaled - 0.5) as i32 } else { (scaled + 0.5) as i32 }
            });
            rows.push((first as u32, fixed.collect()));
        }
        let taps = rows.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0).max(1);
        let taps = taps.next_multiple_of(2);
        let last_start = rows.iter().map(|&(start, _)| start).max().unwrap_or(0) as usize;
        let mut axis = Self {
            starts: Vec::with_capacity(rows.len()),
            taps,
            weights: Vec::with_capacity(rows.len() * taps),
            halves: Vec::with_capacity(rows.len() * taps / 2),
            // The horizontal pass takes four taps from each 16-byte word.
            reach: last_start * 3 + (taps.div_ceil(4) - 1) * 12 + 16,
        };
        for (start, weights) in rows {
            axis.starts.push(start);
            axis.weights.extend(&weights);
            axis.weights.resize(axis.starts.len() * taps, 0);
        }
        axis.halves = axis.weights.chunks_exact(2).map(|pair| halves([pair[0], pair[1]])).collect();
        axis
    }
}

/// Two weights as (low parts, high parts), each two 16-bit numbers in one 32-bit word, the first in the low half.
fn halves(pair: [i32; 2]) -> [i32; 2] {
    let join = |[a, b]: [i32; 2]| (a & 0xffff) | (b << 16);
    [join(pair.map(|weight| weight & ((1 << LOW_BITS) - 1))), join(pair.map(|weight| weight >> LOW_BITS))]
}

impl Bicubic {
    pub fn new(from: Size, to: Size) -> Self {
        let axis = |from, to| (from != to).then(|| BicubicAxis::new(from, to));
        Self { to, x: axis(from.width, to.width), y: axis(from.height, to.height) }
    }

    /// Writes all rows, 3 bytes per pixel without gaps.
    pub fn run(&self, simd: Simd, from: &Pixels, to: &mut [u8]) {
        let values = self.to.width as usize * 3;
        let Some(y) = &self.y else {
            self.horizontal(simd, from, to, values);
            return;
        };
        // Taps without weight reach up to `taps` rows past the end; whole blocks and words past the end of a row.
        let stride = values.next_multiple_of(BLOCK) + BLOCK;
        let mut between = vec![0_u8; stride * (from.height + y.taps)];
        self.horizontal(simd, from, &mut between, stride);
        for ((&start, weights), out) in
            y.starts.iter().zip(y.weights.chunks_exact(y.taps)).zip(to.chunks_exact_mut(values))
        {
            simd.bicubic_vertical(&between[start as usize * stride..], stride, weights, out);
        }
    }

    /// The horizontal pass over every row, to rows that are `stride` bytes apart.
    fn horizontal(&self, simd: Simd, from: &Pixels, to: &mut [u8], stride: usize) {
        let values = self.to.width as usize * 3;
        let Some(x) = &self.x else {
            for (y, to) in to.chunks_exact_mut(stride).take(from.height).enumerate() {
                to[..values].copy_from_slice(from.row(y));
            }
            return;
        };
        let mut spare = [Vec::new(), Vec::new()];
        // Pixels are written in words that reach past the end of a row.
        let mut pair = [vec![0_u8; values + 8], vec![0_u8; values + 8]];
        for (i, to) in to.chunks_mut(stride * 2).take(from.height.div_ceil(2)).enumerate() {
            let [a, b] = &mut pair;
            for_row_pair(from, i * 2, x.reach, &mut spare, |row_a, row_b| {
                simd.bicubic_horizontal(x, [row_a, row_b], [a, b]);
            });
            for (to, row) in to.chunks_mut(stride).zip(&pair) {
                to[..values].copy_from_slice(&row[..values]);
            }
        }
    }
}

/// The sum with its rounding half as a byte.
#[inline(always)]
fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The horizontal pass over one row.
#[inline(always)]
pub(super) fn horizontal(axis: &BicubicAxis, from: &[u8], to: &mut [u8]) {
    let taps = axis.starts.iter().zip(axis.weights.chunks_exact(axis.taps));
    for ((&start, weights), to) in taps.zip(to.chunks_exact_mut(3)) {
        let mut sums = [1_i32 << (PRECISION - 1); 4];
        for (&weight, pixel) in weights.iter().zip(pixels_from(from, start)) {
            let values = pixel.map(i32::from);
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = sum.wrapping_add(value.wrapping_mul(weight));
            }
        }
        for (to, sum) in to.iter_mut().zip(sums) {
            *to = to_byte(sum);
        }
    }
}

/// The vertical pass to one row: row `k` of the source starts at `from[k * stride]`.
#[inline(always)]
pub(super) fn vertical(from: &[u8], stride: usize, weights: &[i32], to: &mut [u8]) {
    for (block, to) in to.chunks_mut(BLOCK).enumerate() {
        let mut sums = [1_i32 << (PRECISION - 1); BLOCK];
        for (&weight, row) in weights.iter().zip(from.chunks_exact(stride)) {
            for (sum, &value) in sums.iter_mut().zip(&row[block * BLOCK..][..BLOCK]) {
                *sum = sum.wrapping_add(i32::from(value).wrapping_mul(weight));
            }
        }
        let bytes = sums.map(to_byte);
        to.copy_from_slice(&bytes[..to.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_halves_of_a_weight_make_the_weight() {
        for weight in [0, 1, -1, 4095, 4096, -4096, -4097, 4_194_304, -700_000, 5_000_000] {
            let [low, high] = halves([weight, -weight]);
            for (shift, expected) in [(0, weight), (16, -weight)] {
                let part = |half: i32| i32::from((half >> shift) as i16);
                assert_eq!((part(high) << LOW_BITS) + part(low), expected);
            }
        }
    }

    #[test]
    fn the_weights_sum_to_one_but_for_rounding() {
        for (from, to) in [(340, 336), (256, 252), (410, 420), (1, 28), (51_200, 7000), (42, 28)] {
            let axis = BicubicAxis::new(from, to);
            for weights in axis.weights.chunks_exact(axis.taps) {
                let sum: i32 = weights.iter().sum();
                assert!((sum - (1 << PRECISION)).abs() <= axis.taps as i32, "{from} to {to}: {sum}");
            }
        }
    }
}
