//! The kernels for x86-64 processors with AVX2.
//!
//! The horizontal ones hold one row in each 128-bit half of a register: a destination pixel of two rows is computed at
//! once, red, green, blue and an unused value in each half. A shuffle with constant indices fetches a tap (or two) of
//! both rows. Pixels are stored in whole words, each over the unused end of the one before.

use std::arch::x86_64::*;

use super::area::{self, AreaAxis, PIXELS_PER_WORD};
use super::bicubic::{self, BicubicAxis, LOW_BITS, PRECISION};
use super::linear::{self, LinearAxis};

/// Proof that the processor has AVX2: [`Avx2::detect`] is the only way to get one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Avx2 {
    pub fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }

    pub fn area_horizontal(self, axis: &AreaAxis, from: [&[u8]; 2], to: [&mut [f32]; 2]) {
        // SAFETY: `self` proves that the processor has AVX2.
        unsafe {
            match axis.taps {
                1 => area_horizontal::<1>(axis, from, to),
                2 => area_horizontal::<2>(axis, from, to),
                3 => area_horizontal::<3>(axis, from, to),
                4 => area_horizontal::<4>(axis, from, to),
                5 => area_horizontal::<5>(axis, from, to),
                _ => area_horizontal::<ANY>(axis, from, to),
            }
        }
    }

    pub fn accumulate(self, sums: &mut [f32], row: &[f32], weight: f32, first: bool) {
        #[target_feature(enable = "avx2")]
        fn with_avx2(sums: &mut [f32], row: &[f32], weight: f32, first: bool) {
            area::accumulate(sums, row, weight, first);
        }
        // SAFETY: `self` proves that the processor has AVX2.
        unsafe { with_avx2(sums, row, weight, first) }
    }

    pub fn round(self, sums: &[f32], to: &mut [u8]) {
        #[target_feature(enable = "avx2")]
        fn with_avx2(sums: &[f32], to: &mut [u8]) {
            area::round(sums, to);
        }
        // SAFETY: `self` proves that the processor has AVX2.
        unsafe { with_avx2(sums, to) }
    }

    pub fn linear_horizontal(self, axis: &LinearAxis, from: [&[u8]; 2], to: [&mut [i16]; 2]) {
        // SAFETY: `self` proves that the processor has AVX2.
        unsafe { linear_horizontal(axis, from, to) }
    }

    pub fn linear_vertical(self, rows: [&[i16]; 2], weights: [i16; 2], to: &mut [u8]) {
        #[target_feature(enable = "avx2")]
        fn with_avx2(rows: [&[i16]; 2], weights: [i16; 2], to: &mut [u8]) {
            linear::vertical(rows, weights, to);
        }
        // SAFETY: `self` proves that the processor has AVX2.
        unsafe { with_avx2(rows, weights, to) }
    }

    pub fn bicubic_horizontal(self, axis: &BicubicAxis, from: [&[u8]; 2], to: [&mut [u8]; 2]) {
        // SAFETY: `self` proves that the processor has AVX2.
        unsafe {
            match axis.taps {
                4 => bicubic_horizontal::<4>(axis, from, to),
                6 => bicubic_horizontal::<6>(axis, from, to),
                _ => bicubic_horizontal::<ANY>(axis, from, to),
            }
        }
    }

    pub fn bicubic_vertical(self, from: &[u8], stride: usize, weights: &[i32], to: &mut [u8]) {
        #[target_feature(enable = "avx2")]
        fn with_avx2(from: &[u8], stride: usize, weights: &[i32], to: &mut [u8]) {
            bicubic::vertical(from, stride, weights, to);
        }
        // SAFETY: `self` proves that the processor has AVX2.
        unsafe { with_avx2(from, stride, weights, to) }
    }
}

/// As a const number of taps: known only at run time.
const ANY: usize = 0;

/// Shuffle index that yields zero.
const Z: i8 = -1;

/// Red, green and blue of the pixel at byte `at`, as 32-bit numbers.
const fn one_pixel(at: i8) -> [i8; 16] {
    [at, Z, Z, Z, at + 1, Z, Z, Z, at + 2, Z, Z, Z, Z, Z, Z, Z]
}

/// Red, green and blue of the pixel at byte `at` and the next one, as pairs of 16-bit numbers.
const fn two_pixels(at: i8) -> [i8; 16] {
    [at, Z, at + 3, Z, at + 1, Z, at + 4, Z, at + 2, Z, at + 5, Z, Z, Z, Z, Z]
}

const ONE_PIXEL: [[i8; 16]; PIXELS_PER_WORD] =
    [one_pixel(0), one_pixel(3), one_pixel(6), one_pixel(9), one_pixel(12)];
const TWO_PIXELS: [[i8; 16]; 2] = [two_pixels(0), two_pixels(6)];
/// Two pixels of four 16-bit numbers → two of three.
const DROP_FOURTH_I16: [i8; 16] = [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, Z, Z, Z, Z];
/// Two pixels of four bytes → two of three.
const DROP_FOURTH_U8: [i8; 16] = [0, 1, 2, 4, 5, 6, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z];

/// The same 16 shuffle indices for both rows.
#[inline]
#[target_feature(enable = "avx2")]
fn both(indices: &[i8; 16]) -> __m256i {
    // SAFETY: reads the 16 bytes of the array.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(indices.as_ptr().cast()) })
}

/// 16 bytes of each row.
///
/// # Safety
/// Both rows have at least `at` + 16 bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(rows: [&[u8]; 2], at: usize) -> __m256i {
    debug_assert!(rows.iter().all(|row| at + 16 <= row.len()));
    // SAFETY: in bounds by the caller's promise.
    unsafe { _mm256_loadu2_m128i(rows[1].as_ptr().add(at).cast(), rows[0].as_ptr().add(at).cast()) }
}

#[target_feature(enable = "avx2")]
fn area_horizontal<const TAPS: usize>(axis: &AreaAxis, from: [&[u8]; 2], to: [&mut [f32]; 2]) {
    let taps = if TAPS == ANY { axis.taps } else { TAPS };
    let pixels = axis.starts.len();
    assert!(taps == axis.taps && axis.weights.len() == pixels * taps);
    assert!(from.iter().all(|row| row.len() >= axis.reach));
    assert!(to.iter().all(|row| row.len() > pixels * 3));
    let [to_a, to_b] = to;
    let indices = ONE_PIXEL.each_ref().map(|indices| both(indices));
    for (d, (&start, weights)) in axis.starts.iter().zip(axis.weights.chunks_exact(taps)).enumerate() {
        let mut sum = _mm256_setzero_ps();
        for (word, weights) in weights.chunks(PIXELS_PER_WORD).enumerate() {
            // SAFETY: `reach` counts 16 bytes from the last word of the last pixel, and the rows have as much.
            let bytes = unsafe { load(from, (start as usize + word * PIXELS_PER_WORD) * 3) };
            for (&weight, &indices) in weights.iter().zip(&indices) {
                let values = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(bytes, indices));
                sum = _mm256_add_ps(sum, _mm256_mul_ps(values, _mm256_set1_ps(weight)));
            }
        }
        // SAFETY: d < pixels, so d * 3 + 4 <= pixels * 3 + 1, the length asserted above.
        unsafe {
            _mm_storeu_ps(to_a.as_mut_ptr().add(d * 3), _mm256_castps256_ps128(sum));
            _mm_storeu_ps(to_b.as_mut_ptr().add(d * 3), _mm256_extractf128_ps(sum, 1));
        }
    }
}

#[target_feature(enable = "avx2")]
fn linear_horizontal(axis: &LinearAxis, from: [&[u8]; 2], to: [&mut [i16]; 2]) {
    let pixels = axis.starts.len();
    assert!(pixels.is_multiple_of(2) && axis.weights.len() == pixels);
    assert!(from.iter().all(|row| row.len() >= axis.reach));
    assert!(to.iter().all(|row| row.len() >= pixels * 3 + 2));
    let [to_a, to_b] = to;
    let (indices, drop_fourth) = (both(&TWO_PIXELS[0]), both(&DROP_FOURTH_I16));
    let pairs = axis.starts.chunks_exact(2).zip(axis.weights.chunks_exact(2));
    for (d, (starts, weights)) in pairs.enumerate() {
        let [a, b] = [0, 1].map(|i| {
            // SAFETY: `reach` counts 16 bytes from the last pixel, and the rows have as much.
            let bytes = unsafe { load(from, starts[i] as usize * 3) };
            let [first, second] = weights[i].map(|weight| i32::from(weight as u16));
            let weights = _mm256_set1_epi32(first | second << 16);
            _mm256_srli_epi32(_mm256_madd_epi16(_mm256_shuffle_epi8(bytes, indices), weights), 4)
        });
        let both = _mm256_shuffle_epi8(_mm256_packs_epi32(a, b), drop_fourth);
        // SAFETY: d < pixels / 2, so d * 6 + 8 <= pixels * 3 + 2, the length asserted above.
        unsafe {
            _mm_storeu_si128(to_a.as_mut_ptr().add(d * 6).cast(), _mm256_castsi256_si128(both));
            _mm_storeu_si128(to_b.as_mut_ptr().add(d * 6).cast(), _mm256_extracti128_si256(both, 1));
        }
    }
}

/// Products of 16-bit halves are exact in 32 bits: the sum of low parts, plus the sum of high parts shifted up, is the
/// sum that Pillow has, modulo 2³² like Pillow's.
#[target_feature(enable = "avx2")]
fn bicubic_horizontal<const TAPS: usize>(axis: &BicubicAxis, from: [&[u8]; 2], to: [&mut [u8]; 2]) {
    let pairs = (if TAPS == ANY { axis.taps } else { TAPS }) / 2;
    let pixels = axis.starts.len();
    assert!(pixels.is_multiple_of(2) && pairs * 2 == axis.taps && axis.halves.len() == pixels * pairs);
    assert!(from.iter().all(|row| row.len() >= axis.reach));
    assert!(to.iter().all(|row| row.len() >= pixels * 3 + 2));
    let [to_a, to_b] = to;
    let indices = TWO_PIXELS.each_ref().map(|indices| both(indices));
    let drop_fourth = both(&DROP_FOURTH_U8);
    let pixel = |start: u32, halves: &[[i32; 2]]| {
        let mut low = _mm256_set1_epi32(1 << (PRECISION - 1));
        let mut high = _mm256_setzero_si256();
        for (word, halves) in halves.chunks(2).enumerate() {
            // SAFETY: `reach` counts 16 bytes from the last word of the last pixel, and the rows have as much.
            let bytes = unsafe { load(from, start as usize * 3 + word * 12) };
            for (&[low_weights, high_weights], &indices) in halves.iter().zip(&indices) {
                let values = _mm256_shuffle_epi8(bytes, indices);
                low = _mm256_add_epi32(low, _mm256_madd_epi16(values, _mm256_set1_epi32(low_weights)));
                high = _mm256_add_epi32(high, _mm256_madd_epi16(values, _mm256_set1_epi32(high_weights)));
            }
        }
        let sum = _mm256_add_epi32(low, _mm256_slli_epi32(high, LOW_BITS as i32));
        _mm256_srai_epi32(sum, PRECISION as i32)
    };
    let destinations = axis.starts.chunks_exact(2).zip(axis.halves.chunks_exact(pairs * 2));
    for (d, (starts, halves)) in destinations.enumerate() {
        let (a, b) = (pixel(starts[0], &halves[..pairs]), pixel(starts[1], &halves[pairs..]));
        let words = _mm256_packs_epi32(a, b);
        let bytes = _mm256_shuffle_epi8(_mm256_packus_epi16(words, words), drop_fourth);
        // SAFETY: d < pixels / 2, so d * 6 + 8 <= pixels * 3 + 2, the length asserted above.
        unsafe {
            _mm_storel_epi64(to_a.as_mut_ptr().add(d * 6).cast(), _mm256_castsi256_si128(bytes));
            _mm_storel_epi64(to_b.as_mut_ptr().add(d * 6).cast(), _mm256_extracti128_si256(bytes, 1));
        }
    }
}
