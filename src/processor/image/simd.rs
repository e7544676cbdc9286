//! Chooses between the portable kernels and the AVX2 ones.
//!
//! The portable kernels are plain loops that compilers vectorise (NEON, SSE2). For AVX2 the vertical ones are the same
//! loops compiled with it; the horizontal ones are written out in [`super::avx2`], because gathering interleaved RGB
//! is beyond what compilers find. Both give the same bytes: no kernel reorders a floating-point sum, and none fuses a
//! product with one.

use super::area::{self, AreaAxis};
use super::bicubic::{self, BicubicAxis};
use super::linear::{self, LinearAxis};

#[derive(Clone, Copy, Debug)]
pub(super) enum Simd {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(super::avx2::Avx2),
}

/// A pair of rows, processed at once with the same weights.
type Pair<T> = [T; 2];

/// Hands a call to the AVX2 version where there is one, otherwise to the portable expression.
macro_rules! dispatch {
    ($simd:expr, $name:ident($($argument:expr),*), $portable:expr) => {
        match $simd {
            Simd::Portable => $portable,
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(avx2) => avx2.$name($($argument),*),
        }
    };
}

impl Simd {
    /// The best this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = super::avx2::Avx2::detect() {
            return Self::Avx2(avx2);
        }
        Self::Portable
    }

    pub fn area_horizontal(self, axis: &AreaAxis, from: Pair<&[u8]>, to: Pair<&mut [f32]>) {
        dispatch!(self, area_horizontal(axis, from, to), {
            let ([a, b], [to_a, to_b]) = (from, to);
            area::horizontal(axis, a, to_a);
            area::horizontal(axis, b, to_b);
        });
    }

    pub fn accumulate(self, sums: &mut [f32], row: &[f32], weight: f32, first: bool) {
        dispatch!(self, accumulate(sums, row, weight, first), area::accumulate(sums, row, weight, first));
    }

    pub fn round(self, sums: &[f32], to: &mut [u8]) {
        dispatch!(self, round(sums, to), area::round(sums, to));
    }

    pub fn linear_horizontal(self, axis: &LinearAxis, from: Pair<&[u8]>, to: Pair<&mut [i16]>) {
        dispatch!(self, linear_horizontal(axis, from, to), {
            let ([a, b], [to_a, to_b]) = (from, to);
            linear::horizontal(axis, a, to_a);
            linear::horizontal(axis, b, to_b);
        });
    }

    pub fn linear_vertical(self, rows: Pair<&[i16]>, weights: [i16; 2], to: &mut [u8]) {
        dispatch!(self, linear_vertical(rows, weights, to), linear::vertical(rows, weights, to));
    }

    pub fn bicubic_horizontal(self, axis: &BicubicAxis, from: Pair<&[u8]>, to: Pair<&mut [u8]>) {
        dispatch!(self, bicubic_horizontal(axis, from, to), {
            let ([a, b], [to_a, to_b]) = (from, to);
            bicubic::horizontal(axis, a, to_a);
            bicubic::horizontal(axis, b, to_b);
        });
    }

    pub fn bicubic_vertical(self, from: &[u8], stride: usize, weights: &[i32], to: &mut [u8]) {
        dispatch!(
            self,
            bicubic_vertical(from, stride, weights, to),
            bicubic::vertical(from, stride, weights, to)
        );
    }
}
