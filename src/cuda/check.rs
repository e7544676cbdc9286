//! Whether a way to multiply computes the product: one that is wrong must not win by its speed.

use half::bf16;
use rayon::prelude::*;

use super::Activation;
use super::error::CudaError;
use super::gemm::{Gemm, GemmCall, GemmShape, Gemms, MOST_PARTS};
use super::gpu::{Gpu, Memory};
use super::kernels::{Ahead, Kernels, NormArguments};
use super::queue::Queue;

/// How far a product in f32 may be off, as a part of the value and of the root mean square of all values: the order of
/// sums, and what tensor cores cut off.
const SUMMED: f64 = 1e-3;
/// The same of a finished one: four roundings to bf16, as some of cuBLASLt's ways round their parts too.
const FINISHED: f64 = 1.0 / 64.0;

unsafe extern "C" {
    // Of the C library that Rust's own is linked with.
    safe fn erff(x: f32) -> f32;
}

/// Operands of one shape, and their product as the CPU computes it.
pub(super) struct Check {
    shape: GemmShape,
    queue: Queue,
    /// f32 (rows, k): its norm is what is multiplied, so that the product runs behind a kernel that makes its operand.
    residual: Memory,
    activations: Memory,
    weight: Memory,
    bias: Memory,
    bias_bf16: Memory,
    out: Memory,
    parts: Memory,
    /// By column, then row.
    expected: Vec<f32>,
    mean_square: f64,
}

/// Numbers in ±1 that look random, the same every time.
fn values(seed: u64, count: usize) -> impl Iterator<Item = f32> {
    let mut state = seed;
    (0..count).map(move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

fn bytes_of_f32(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

fn bytes_of_bf16(values: &[bf16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn f32_of(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn bf16_of(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Side by side, so that the compiler can use vectors.
    let mut sums = [0.0f32; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

fn activated(x: f32, activation: Activation) -> f32 {
    match activation {
        Activation::None => x,
        Activation::GeluTanh => 0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh()),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluErf => 0.5 * x * (1.0 + erff(x * std::f32::consts::FRAC_1_SQRT_2)),
    }
}

impl Check {
    /// `shape.k` is a multiple of 8.
    pub fn new(gpu: &Gpu, kernels: &Kernels, shape: GemmShape) -> Result<Self, CudaError> {
        let GemmShape { rows, n, k, finish } = shape;
        let mut check = Self {
            shape,
            queue: Queue::of_its_own(gpu)?,
            residual: gpu.allocate(rows * k * 4)?,
            activations: gpu.allocate(rows * k * 2)?,
            weight: gpu.allocate(n * k * 2)?,
            bias: gpu.allocate(n * 4)?,
            bias_bf16: gpu.allocate(n * 2)?,
            out: gpu.allocate(rows * n * 2)?,
            parts: gpu.allocate(MOST_PARTS * rows * n * 4)?,
            expected: Vec::new(),
            mean_square: 0.0,
        };
        // Sums of about the size of the values.
        let spread = (3.0 / k as f32).sqrt();
        let weight: Vec<bf16> = values(1, n * k).map(|value| bf16::from_f32(value * spread)).collect();
        let bias: Vec<bf16> = values(2, n).map(bf16::from_f32).collect();
        check.residual.write(0, &bytes_of_f32(values(3, rows * k)))?;
        check.weight.write(0, &bytes_of_bf16(&weight))?;
        check.bias.write(0, &bytes_of_f32(bias.iter().map(|value| value.to_f32())))?;
        check.bias_bf16.write(0, &bytes_of_bf16(&bias))?;
        check.activate(kernels)?;
        check.queue.finish()?;
        let activations: Vec<f32> = bf16_of(&check.activations.read()?).collect();
        check.expected = weight
            .par_chunks_exact(k)
            .zip(&bias)
            .flat_map_iter(|(weight, bias)| {
                let weight: Vec<f32> = weight.iter().map(|value| value.to_f32()).collect();
                let column: Vec<f32> = activations
                    .chunks_exact(k)
                    .map(|row| {
                        let sum = dot(row, &weight);
                        finish.map_or(sum, |activation| activated(sum + bias.to_f32(), activation))
                    })
                    .collect();
                column
            })
            .collect();
        let squares: f64 = check.expected.iter().map(|&value| f64::from(value).powi(2)).sum();
        check.mean_square = squares / check.expected.len().max(1) as f64;
        Ok(check)
    }

    /// Queues what makes the activations.
    fn activate(&self, kernels: &Kernels) -> Result<(), CudaError> {
        let GemmShape { rows, k, .. } = self.shape;
        let norm = NormArguments {
            residual: self.residual.address(),
            parts: 0,
            bias: 0,
            multiply: 0,
            add: 0,
            out: self.activations.address(),
            part_stride: 0,
            splits: 0,
            width: k as i32,
            tokens: rows as i32,
            first: 0,
            count: rows as i32,
            keep: 0,
            eps: 1e-5,
        };
        // SAFETY: rows · k values of each.
        unsafe { kernels.residual_norm(&self.queue, 1, &norm) }
    }

    /// The largest error of a way to multiply, in what rounding explains.
    ///
    /// # Errors
    /// What went wrong on the way.
    pub fn error(&self, gemms: &Gemms, kernels: &Kernels, gemm: &Gemm) -> Result<f64, CudaError> {
        let GemmShape { rows, n, finish, .. } = self.shape;
        // What is read too early, or not written, is no number.
        for memory in [&self.activations, &self.out, &self.parts] {
            memory.write(0, &vec![0xff_u8; memory.bytes()])?;
        }
        let call = GemmCall {
            activations: self.activations.address(),
            weight: self.weight.address(),
            bias: self.bias.address(),
            bias_bf16: self.bias_bf16.address(),
            out: if finish.is_some() { self.out.address() } else { self.parts.address() },
            parts: self.parts.address(),
            ahead: Ahead::default(),
        };
        self.queue.interrupted();
        self.activate(kernels)?;
        // SAFETY: memory of this shape, kept until the queue has ended.
        let queued = unsafe { gemms.multiply(kernels, &self.queue, gemm, &call) };
        self.queue.finish()?;
        queued?;
        let found: Vec<f32> = if finish.is_some() {
            bf16_of(&self.out.read()?).collect()
        } else {
            let mut sums = vec![0.0; rows * n];
            for part in self.parts.read()?.chunks_exact(rows * n * 4).take(gemm.plan.parts()) {
                sums.iter_mut().zip(f32_of(part)).for_each(|(sum, value)| *sum += value);
            }
            sums
        };
        let bound = if finish.is_some() { FINISHED } else { SUMMED };
        let spread = self.mean_square.sqrt();
        let mut worst = 0.0f64;
        for (at, &found) in found.iter().enumerate() {
            let expected = self.expected.get(at % n * rows + at / n).copied().unwrap_or(f32::NAN);
            let (found, expected) = (f64::from(found), f64::from(expected));
            let error = (found - expected).abs() / (bound * (expected.abs() + spread));
            // What is no number is as wrong as can be.
            worst = worst.max(if error.is_nan() { f64::INFINITY } else { error });
        }
        Ok(worst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::{Plan, Skinny};

    #[test]
    fn a_way_that_leaves_out_a_part_of_the_product_is_found_out() {
        let gpu = Gpu::emulated();
        let kernels = Kernels::new(&gpu).unwrap();
        let skinny = Skinny::ALL[0];
        let clustered = skinny.in_clusters(2);
        let gemms = Gemms::emulated(vec![skinny, clustered], Vec::new(), &[2, 3, 4, 5]);
        for finish in [None, Some(Activation::GeluTanh), Some(Activation::GeluErf)] {
            let shape = GemmShape { rows: 17, n: 36, k: 520, finish };
            let check = Check::new(&gpu, &kernels, shape).unwrap();
            let error = |skinny, split, depth| {
                let plan = Plan::Own { skinny, split, depth, prefetch: false };
                check.error(&gemms, &kernels, &Gemm { shape, plan }).unwrap()
            };
            for error in [error(skinny, 640, 1), error(skinny, 256, 3), error(clustered, 384, 2)] {
                assert!(error <= 1.0, "{finish:?}: {error}");
            }
            // The last 8 of 520 are left out, and 264 of them.
            for error in [error(skinny, 256, 2), error(clustered, 128, 2)] {
                assert!(error > 1.0, "{finish:?}: {error}");
            }
        }
    }
}
