//! The two-tap branch of OpenCV's `INTER_AREA`, taken when an axis grows.
//!
//! Not the usual bilinear filter: the taps do not sit at half-pixel centres. Destination `d` starts in source pixel
//! s = floor(d · scale) and takes the next pixel's share f = (d + 1) − (s + 1) / scale where that is positive.

use std::ops::Range;

use super::rows::{Pixels, for_row_pair};
use super::simd::Simd;
use super::size::Size;

/// One enlargement, planned for one pair of sizes.
pub(super) struct Enlarge {
    pub x: LinearAxis,
    pub y: LinearAxis,
    /// Destinations on x, without padding.
    pub width: usize,
}

/// The taps of one axis: destination `d` lies between source pixels `starts[d]` and `starts[d] + 1`.
pub(super) struct LinearAxis {
    pub starts: Vec<u32>,
    /// Weights of both pixels in 1/2048; the second is zero where there is no second pixel.
    pub weights: Vec<[i16; 2]>,
    /// Bytes of a source row that the horizontal pass may read.
    pub reach: usize,
}

impl LinearAxis {
    fn new(from: u32, to: u32, window: Range<usize>) -> Self {
        let inverse = f64::from(to) / f64::from(from);
        let scale = 1.0 / inverse;
        let last = f64::from(from - 1);
        let (mut starts, mut weights) = (Vec::new(), Vec::new());
        for d in window {
            let start = (d as f64 * scale).floor();
            let share = ((d + 1) as f64 - (start + 1.0) * inverse) as f32;
            let share = if share <= 0.0 { 0.0 } else { share - share.floor() };
            let (start, share) = if start >= last { (last, 0.0) } else { (start, share) };
            starts.push(start as u32);
            weights.push([1.0 - share, share].map(|weight| (weight * 2048.0).round_ties_even() as i16));
        }
        let reach = starts.iter().max().map_or(0, |&start| start as usize * 3) + 16;
        Self { starts, weights, reach }
    }

    /// Rounds the number of destinations up to an even one, as the horizontal pass writes two at a time.
    fn padded(mut self) -> Self {
        if self.starts.len() % 2 == 1 {
            self.starts.push(0);
            self.weights.push([0; 2]);
        }
        self
    }
}

impl Enlarge {
    pub fn new(from: Size, to: Size, columns: Range<usize>, rows: Range<usize>) -> Self {
        Self {
            width: columns.len(),
            x: LinearAxis::new(from.width, to.width, columns).padded(),
            y: LinearAxis::new(from.height, to.height, rows),
        }
    }

    pub fn run(&self, simd: Simd, from: &Pixels, to: &mut [u8]) {
        let values = self.width * 3;
        // The horizontal pass writes pixels in words that reach past the end of a row.
        let row = self.x.starts.len() * 3 + 2;
        // Four slots, filled two rows at a time: source row y lives in slot y % 4.
        let mut rows = vec![0_i16; row * 4];
        let mut next = 0;
        let mut spare = [Vec::new(), Vec::new()];
        for ((&start, &weights), out) in
            self.y.starts.iter().zip(&self.y.weights).zip(to.chunks_exact_mut(values))
        {
            let top = start as usize;
            let bottom = (top + 1).min(from.height - 1);
            while next <= bottom {
                // Pairs start at even rows; rows above `top` are not wanted any more.
                let y = next.max(top & !1);
                let (low, high) = rows[y % 4 * row..].split_at_mut(row);
                for_row_pair(from, y, self.x.reach, &mut spare, |a, b| {
                    simd.linear_horizontal(&self.x, [a, b], [low, &mut high[..row]]);
                });
                next = y + 2;
            }
            let slot = |y: usize| &rows[y % 4 * row..][..values];
            simd.linear_vertical([slot(top), slot(bottom)], weights, out);
        }
    }
}

/// The horizontal pass over one row: sixteenths of the weighted sum, which fit 16 bits.
#[inline(always)]
pub(super) fn horizontal(axis: &LinearAxis, from: &[u8], to: &mut [i16]) {
    for ((&start, weights), to) in axis.starts.iter().zip(&axis.weights).zip(to.chunks_exact_mut(3)) {
        let [a, b] = weights.map(i32::from);
        let start = start as usize * 3;
        let pixels = &from[start..start + 6];
        for (channel, to) in to.iter_mut().enumerate() {
            *to = ((i32::from(pixels[channel]) * a + i32::from(pixels[channel + 3]) * b) >> 4) as i16;
        }
    }
}

/// The vertical pass over one row.
#[inline(always)]
pub(super) fn vertical(rows: [&[i16]; 2], weights: [i16; 2], to: &mut [u8]) {
    // Each product is truncated on its own before the sum, as OpenCV's 16-bit vectors do.
    let part = |value: i16, weight: i16| ((i32::from(value) * i32::from(weight)) >> 16) as i16;
    for ((out, &top), &bottom) in to.iter_mut().zip(rows[0]).zip(rows[1]) {
        *out = ((part(top, weights[0]) + part(bottom, weights[1]) + 2) >> 2) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_always_sum_to_one() {
        for (from, to) in [(243, 256), (323, 340), (1, 28), (2, 2048), (255, 256)] {
            let axis = LinearAxis::new(from, to, 0..to as usize);
            assert!(axis.weights.iter().all(|[a, b]| a + b == 2048 && *a >= 0 && *b >= 0), "{from} to {to}");
        }
    }

    #[test]
    fn the_last_pixel_has_no_successor() {
        let axis = LinearAxis::new(3, 7, 0..7);
        for (&start, &[_, second]) in axis.starts.iter().zip(&axis.weights) {
            assert!(start < 2 || (start == 2 && second == 0));
        }
    }
}
