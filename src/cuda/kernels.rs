//! The kernels of `kernels/` and how they are launched.
//!
//! The structures are the kernels' parameters, field by field; addresses are device memory. bf16 is what the network
//! stores, f32 what is computed in.

use super::error::CudaError;
use super::gpu::Gpu;
use super::module::Kernel;
use super::queue::Queue;
use super::source::{self, Source};

const ATTENTION: &str = include_str!("kernels/attention.cu");
const NORM: &str = include_str!("kernels/norm.cu");
const ELEMENTWISE: &str = include_str!("kernels/elementwise.cu");
pub(super) const GEMM: &str = include_str!("kernels/gemm.cu");
/// What Hopper alone has.
pub(super) const WARPGROUP: &str = include_str!("kernels/warpgroup.cuh");
pub(super) const GEMM_WARPGROUP: &str = include_str!("kernels/gemm_warpgroup.cu");

/// Head widths that the attention is compiled for.
pub(super) const HEAD_WIDTHS: [usize; 6] = [16, 32, 48, 64, 96, 128];
/// Quads of neighbours that a thread of a norm holds at most: `VECTORS` of norm.cu.
const NORM_VECTORS: usize = 3;
/// Queries of a block of the attention.
const QUERY_TILE: usize = 16;
/// Warps of a block of the attention.
const ATTENTION_WARPS: usize = 8;
/// Threads of a block of an elementwise kernel.
const THREADS: u32 = 256;

/// All files but that of products.
#[cfg(test)]
pub(super) fn sources() -> Vec<Source> {
    let mut all = vec![
        attention_source(&HEAD_WIDTHS),
        Source::plain("norm.cu", NORM),
        Source::plain("elementwise.cu", ELEMENTWISE),
    ];
    // The narrowest, those of the network, the widest.
    all.extend([8, 72, 128].map(super::sequence_attention::source));
    all
}

fn attention_source(widths: &[usize]) -> Source {
    let instance = |width: &usize| format!("ATTENTION_KERNEL(attention_{width}, {width})\n");
    Source { instances: widths.iter().map(instance).collect(), ..Source::plain("attention.cu", ATTENTION) }
}

/// `Ahead` of common.cuh: memory that a kernel asks into the L2 cache for one that comes after it, where the GPU can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ahead {
    /// Zero: nothing.
    pub from: u64,
    /// A multiple of 16.
    pub bytes: u64,
}

/// `AttentionArguments` of attention.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct AttentionArguments {
    /// bf16, rows `columns` apart, (samples · queries).
    pub queries: u64,
    /// bf16, rows `key_stride` apart, (samples · keys).
    pub keys: u64,
    pub values: u64,
    /// i32 (samples): keys that count; zero: all.
    pub lengths: u64,
    /// bf16 (samples · queries, heads · width).
    pub out: u64,
    /// What a product after it reads.
    pub ahead: Ahead,
    pub columns: i32,
    pub key_stride: i32,
    pub query_count: i32,
    pub key_count: i32,
    /// Whether keys, values and lengths were there long before the predecessor.
    pub early: i32,
    /// Of the scores, times log2(e).
    pub scale: f32,
}

/// `NormArguments` of norm.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct NormArguments {
    /// f32 (samples · tokens, width).
    pub residual: u64,
    /// f32 (splits, samples · tokens, width) to be added, or zero.
    pub parts: u64,
    /// f32 (width), added with the parts, or zero.
    pub bias: u64,
    /// f32 (width), or zero.
    pub multiply: u64,
    /// f32 (width), or zero.
    pub add: u64,
    /// bf16 (samples · count, width).
    pub out: u64,
    pub part_stride: i64,
    pub splits: i32,
    pub width: i32,
    /// Rows of a sample.
    pub tokens: i32,
    /// First of the rows that are normed.
    pub first: i32,
    /// Number of the rows of a sample that are normed.
    pub count: i32,
    /// Whether the sum is written back.
    pub keep: i32,
    pub eps: f32,
}

/// `StartArguments` of norm.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct StartArguments {
    /// f32 (samples · (states + horizon), width), written.
    pub residual: u64,
    /// bf16 (samples · states, width).
    pub states: u64,
    /// f32 (splits, samples · horizon, width).
    pub parts: u64,
    /// f32 (width).
    pub bias: u64,
    /// f32 (horizon, width), or zero.
    pub positions: u64,
    pub multiply: u64,
    pub add: u64,
    /// bf16, as `residual`.
    pub out: u64,
    pub part_stride: i64,
    pub splits: i32,
    pub width: i32,
    pub state_count: i32,
    pub horizon: i32,
    pub eps: f32,
}

/// `BackboneNormArguments` of norm.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BackboneNormArguments {
    /// bf16 (rows, width); the addend is added to it.
    pub residual: u64,
    /// bf16, or zero.
    pub addend: u64,
    pub weight: u64,
    /// bf16, or zero.
    pub bias: u64,
    pub out: u64,
    pub width: i32,
    /// 1: RMSNorm; 0: LayerNorm.
    pub root_mean_square: i32,
    pub eps: f32,
}

/// `EulerArguments` of elementwise.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct EulerArguments {
    /// f32 (rows, dim): where the accumulator starts; zero: it goes on.
    pub noise: u64,
    /// f32 (rows, dim): the accumulator.
    pub actions: u64,
    /// f32 (splits, rows, columns): the velocity; zero: none yet.
    pub parts: u64,
    /// f32 (columns).
    pub bias: u64,
    /// f32 (rows, dim), or zero.
    pub velocity: u64,
    /// bf16 (rows, padded).
    pub rounded: u64,
    pub part_stride: i64,
    pub splits: i32,
    pub rows: i32,
    pub dim: i32,
    pub columns: i32,
    pub padded: i32,
    /// One over the number of steps.
    pub factor: f32,
}

/// `FinishArguments` of elementwise.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct FinishArguments {
    /// f32 (splits, rows, columns).
    pub parts: u64,
    /// f32 (columns), or zero.
    pub bias: u64,
    /// bf16 (rows, columns).
    pub out: u64,
    pub part_stride: i64,
    /// rows · columns.
    pub count: i64,
    pub splits: i32,
    pub columns: i32,
    /// An [`Activation`](super::Activation).
    pub activation: i32,
}

/// `BiasActivationArguments` of elementwise.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BiasActivationArguments {
    pub input: u64,
    /// bf16 (columns), or zero.
    pub bias: u64,
    pub out: u64,
    pub count: i64,
    pub columns: i32,
    /// An [`Activation`](super::Activation).
    pub activation: i32,
}

/// `SwigluArguments` of elementwise.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct SwigluArguments {
    /// bf16 (rows, columns), rows `stride` apart.
    pub gate: u64,
    pub up: u64,
    /// bf16 (rows, columns).
    pub out: u64,
    pub count: i64,
    pub stride: i64,
    pub columns: i32,
}

/// `RotaryHeads` of elementwise.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RotaryHeads {
    /// bf16 (width), of their norm.
    pub weight: u64,
    /// bf16 (samples, heads, tokens, width), written.
    pub out: u64,
    pub heads: i32,
}

/// `RotaryArguments` of elementwise.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RotaryArguments {
    /// bf16 (samples · tokens, heads · width), rows `stride` apart: the queries' heads, then the keys'.
    pub input: u64,
    /// bf16 (tokens, width).
    pub cos: u64,
    pub sin: u64,
    pub query: RotaryHeads,
    pub key: RotaryHeads,
    pub stride: i64,
    /// samples · tokens.
    pub rows: i32,
    pub tokens: i32,
    pub width: i32,
    pub eps: f32,
}

/// `PatchArguments` of elementwise.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct PatchArguments {
    /// Bytes (images, rows · side, columns · side, 3).
    pub frames: u64,
    /// bf16 (images, rows · columns, padded), written.
    pub out: u64,
    /// images · rows · columns · padded.
    pub count: i64,
    /// Patches above each other, and side by side.
    pub rows: i32,
    pub columns: i32,
    /// Pixels of a patch's side.
    pub side: i32,
    /// Columns of the output, a multiple of 4: behind side · side · 3 of them are zeros.
    pub padded: i32,
}

/// `FillArguments` of elementwise.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct FillArguments {
    out: u64,
    count: i64,
    seed: u32,
    spread: f32,
}

/// Bytes of shared memory of the attention over `keys` keys, heads `width` wide.
pub fn attention_shared(width: usize, keys: usize) -> usize {
    let rows = QUERY_TILE + 2 * keys.next_multiple_of(16);
    // Afterwards the warps' sums, tops and weights.
    let results = ATTENTION_WARPS * QUERY_TILE * (width + 2) * 4;
    (rows * (width + 8) * 2).max(results)
}

/// Threads of a norm over rows of `width`.
fn norm_threads(width: usize) -> Result<u32, CudaError> {
    if width == 0 || !width.is_multiple_of(4) || width > 4 * NORM_VECTORS * 1024 {
        let expected = format!("a multiple of 4, at most {}", 4 * NORM_VECTORS * 1024);
        return Err(CudaError::argument("width of a norm", expected, width));
    }
    let quads = width / 4;
    // As few passes as a block of at most 512 threads allows, and evenly filled.
    let passes = quads.div_ceil(512).min(NORM_VECTORS);
    Ok(quads.div_ceil(passes).next_multiple_of(32) as u32)
}

/// The kernel for rows of this width.
fn of_width(kernels: &[Kernel; 2], width: i32) -> &Kernel {
    &kernels[usize::from(width > 4 * 512)]
}

fn blocks(values: i64) -> [usize; 3] {
    [(values.max(0) as usize).div_ceil(4 * THREADS as usize), 1, 1]
}

fn quads(what: &'static str, columns: i32) -> Result<(), CudaError> {
    if columns > 0 && columns % 4 == 0 {
        return Ok(());
    }
    Err(CudaError::argument(what, "a multiple of 4", columns))
}

/// The kernels, compiled and loaded, but for those of products ([`Gemms`](super::Gemms)). Clones share them.
#[derive(Clone)]
pub struct Kernels {
    gpu: Gpu,
    /// For rows of one vector a thread, and for wider ones.
    residual_norm: [Kernel; 2],
    start_norm: [Kernel; 2],
    backbone_norm: Kernel,
    euler: Kernel,
    finish: Kernel,
    bias_activation: Kernel,
    swiglu: Kernel,
    norm_rotary: Kernel,
    patches: Kernel,
    fill: Kernel,
}

impl Kernels {
    /// Compiles for `gpu`: seconds.
    ///
    /// # Errors
    /// No NVRTC, or one that refuses.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let norm = source::compile(gpu, &Source::plain("norm.cu", NORM))?;
        let elementwise = source::compile(gpu, &Source::plain("elementwise.cu", ELEMENTWISE))?;
        Ok(Self {
            gpu: gpu.clone(),
            residual_norm: [norm.kernel("residual_norm", 0)?, norm.kernel("residual_norm_wide", 0)?],
            start_norm: [norm.kernel("start_norm", 0)?, norm.kernel("start_norm_wide", 0)?],
            backbone_norm: norm.kernel("backbone_norm", 0)?,
            euler: elementwise.kernel("euler", 0)?,
            finish: elementwise.kernel("finish", 0)?,
            bias_activation: elementwise.kernel("bias_activation", 0)?,
            swiglu: elementwise.kernel("swiglu", 0)?,
            norm_rotary: elementwise.kernel("norm_rotary", 0)?,
            patches: elementwise.kernel("patches", 0)?,
            fill: elementwise.kernel("fill", 0)?,
        })
    }

    /// The attention for heads of `width`.
    ///
    /// # Errors
    /// As [`new`](Self::new); a width that it is not made for.
    pub fn attention(&self, width: usize) -> Result<Kernel, CudaError> {
        if !HEAD_WIDTHS.contains(&width) {
            return Err(CudaError::argument("width of a head", format!("one of {HEAD_WIDTHS:?}"), width));
        }
        // The one that is wanted, or all if that takes no longer.
        let together = HEAD_WIDTHS.chunks(source::group(&self.gpu)).find(|widths| widths.contains(&width));
        source::compile(&self.gpu, &attention_source(together.unwrap_or(&[width])))?
            .kernel(&format!("attention_{width}"), self.gpu.shared_per_block())
    }

    /// Queues attention with a kernel of [`attention`](Self::attention).
    ///
    /// # Errors
    /// More keys than fit into shared memory.
    ///
    /// # Safety
    /// Here and below: the addresses are device memory of the sizes that the fields say, until the kernel has run.
    pub unsafe fn attend(
        &self,
        queue: &Queue,
        kernel: &Kernel,
        (samples, heads, width): (usize, usize, usize),
        arguments: &AttentionArguments,
    ) -> Result<(), CudaError> {
        let (queries, keys) = (arguments.query_count.max(0) as usize, arguments.key_count.max(0) as usize);
        let shared = attention_shared(width, keys);
        if queries == 0 || keys == 0 || shared > self.gpu.shared_per_block() as usize {
            let expected = format!("1 or more, in {} bytes of shared memory", self.gpu.shared_per_block());
            return Err(CudaError::argument("queries and keys", expected, format!("{queries} and {keys}")));
        }
        let grid = [heads, queries.div_ceil(QUERY_TILE), samples];
        // SAFETY: by this function's contract.
        unsafe { queue.launch(kernel, grid, ATTENTION_WARPS as u32 * 32, shared as u32, arguments) }
    }

    /// Residual, adaptive norm: one block per row of the result, `samples` · `count` of them.
    ///
    /// # Errors
    /// A width that the norm is not made for.
    ///
    /// # Safety
    /// As [`attend`](Self::attend).
    pub unsafe fn residual_norm(
        &self,
        queue: &Queue,
        samples: usize,
        arguments: &NormArguments,
    ) -> Result<(), CudaError> {
        let threads = norm_threads(arguments.width.max(0) as usize)?;
        let rows = samples * arguments.count.max(0) as usize;
        // SAFETY: by this function's contract.
        unsafe {
            queue.launch(of_width(&self.residual_norm, arguments.width), [rows, 1, 1], threads, 0, arguments)
        }
    }

    /// State and action tokens into the residual, and the first norm of them.
    ///
    /// # Errors
    /// As [`residual_norm`](Self::residual_norm).
    ///
    /// # Safety
    /// As [`attend`](Self::attend).
    pub unsafe fn start_norm(
        &self,
        queue: &Queue,
        samples: usize,
        arguments: &StartArguments,
    ) -> Result<(), CudaError> {
        let width = arguments.width.max(0) as usize;
        let threads = norm_threads(width)?;
        if threads > 512 {
            // Its kernel needs more registers than so many threads have.
            let expected = format!("at most {}", 4 * NORM_VECTORS * 512);
            return Err(CudaError::argument("width of the first norm", expected, width));
        }
        let rows = samples * (arguments.state_count + arguments.horizon).max(0) as usize;
        // SAFETY: by this function's contract.
        unsafe {
            queue.launch(of_width(&self.start_norm, arguments.width), [rows, 1, 1], threads, 0, arguments)
        }
    }

    /// Residual and LayerNorm or RMSNorm of the backbone.
    ///
    /// # Errors
    /// As [`residual_norm`](Self::residual_norm).
    ///
    /// # Safety
    /// As [`attend`](Self::attend).
    pub unsafe fn backbone_norm(
        &self,
        queue: &Queue,
        rows: usize,
        arguments: &BackboneNormArguments,
    ) -> Result<(), CudaError> {
        let threads = norm_threads(arguments.width.max(0) as usize)?;
        // SAFETY: by this function's contract.
        unsafe { queue.launch(&self.backbone_norm, [rows, 1, 1], threads, 0, arguments) }
    }

    /// One step of the integration.
    ///
    /// # Errors
    /// A number of columns that is no multiple of 4.
    ///
    /// # Safety
    /// As [`attend`](Self::attend).
    pub unsafe fn euler(&self, queue: &Queue, arguments: &EulerArguments) -> Result<(), CudaError> {
        for columns in [arguments.dim, arguments.columns, arguments.padded] {
            quads("columns of actions", columns)?;
        }
        let values = i64::from(arguments.rows) * i64::from(arguments.padded);
        // SAFETY: by this function's contract.
        unsafe { queue.launch(&self.euler, blocks(values), THREADS, 0, arguments) }
    }

    /// Sum, bias and activation of a split product.
    ///
    /// # Errors
    /// A number of columns that is no multiple of 4.
    ///
    /// # Safety
    /// As [`attend`](Self::attend).
    pub unsafe fn finish(&self, queue: &Queue, arguments: &FinishArguments) -> Result<(), CudaError> {
        quads("columns of a product", arguments.columns)?;
        // SAFETY: by this function's contract.
        unsafe { queue.launch(&self.finish, blocks(arguments.count), THREADS, 0, arguments) }
    }

    /// Bias and activation.
    ///
    /// # Errors
    /// A number of columns that is no multiple of 4.
    ///
    /// # Safety
    /// As [`attend`](Self::attend).
    pub unsafe fn bias_activation(
        &self,
        queue: &Queue,
        arguments: &BiasActivationArguments,
    ) -> Result<(), CudaError> {
        quads("columns of an activation", arguments.columns)?;
        // SAFETY: by this function's contract.
        unsafe { queue.launch(&self.bias_activation, blocks(arguments.count), THREADS, 0, arguments) }
    }

    /// silu(gate) · up.
    ///
    /// # Errors
    /// A number of columns that is no multiple of 4.
    ///
    /// # Safety
    /// As [`attend`](Self::attend).
    pub unsafe fn swiglu(&self, queue: &Queue, arguments: &SwigluArguments) -> Result<(), CudaError> {
        quads("columns of a gate", arguments.columns)?;
        // SAFETY: by this function's contract.
        unsafe { queue.launch(&self.swiglu, blocks(arguments.count), THREADS, 0, arguments) }
    }

    /// RMSNorm of each head of queries and keys, then its rotation.
    ///
    /// # Errors
    /// Heads that are not 4 to 256 wide, a multiple of 4; rows that do not begin at a multiple of 4 bytes.
    ///
    /// # Safety
    /// As [`attend`](Self::attend).
    pub unsafe fn norm_rotary(&self, queue: &Queue, arguments: &RotaryArguments) -> Result<(), CudaError> {
        if !(4..=256).contains(&arguments.width) || arguments.width % 4 != 0 {
            return Err(CudaError::argument("width of a head", "a multiple of 4, 4 to 256", arguments.width));
        }
        if !arguments.input.is_multiple_of(4) || arguments.stride % 2 != 0 {
            let found = format!("address {:x}, {} values a row", arguments.input, arguments.stride);
            return Err(CudaError::argument("rows of heads", "beginning at multiples of 4 bytes", found));
        }
        let heads = arguments.query.heads.max(0) as usize + arguments.key.heads.max(0) as usize;
        let warps = arguments.rows.max(0) as usize * heads;
        let grid = [warps.div_ceil(THREADS as usize / 32), 1, 1];
        // SAFETY: by this function's contract.
        unsafe { queue.launch(&self.norm_rotary, grid, THREADS, 0, arguments) }
    }

    /// Frames to vectors of patches.
    ///
    /// # Errors
    /// A number of columns that is no multiple of 4.
    ///
    /// # Safety
    /// As [`attend`](Self::attend).
    pub unsafe fn patches(&self, queue: &Queue, arguments: &PatchArguments) -> Result<(), CudaError> {
        quads("columns of a patch", arguments.padded)?;
        // SAFETY: by this function's contract.
        unsafe { queue.launch(&self.patches, blocks(arguments.count), THREADS, 0, arguments) }
    }

    /// Pseudo-random bf16 values in ±`spread`, for timings.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Safety
    /// As [`attend`](Self::attend): `count` values at `out`.
    pub unsafe fn fill(
        &self,
        queue: &Queue,
        out: u64,
        count: usize,
        seed: u32,
        spread: f32,
    ) -> Result<(), CudaError> {
        let arguments = FillArguments { out, count: count as i64, seed, spread };
        let grid = [count.div_ceil(THREADS as usize).clamp(1, 4096), 1, 1];
        // SAFETY: by this function's contract.
        unsafe { queue.launch(&self.fill, grid, THREADS, 0, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_has_a_thread_for_every_four_values_of_its_row() {
        for width in [64, 1152, 1536, 2048, 4608, 12_288] {
            let threads = norm_threads(width).unwrap() as usize;
            let passes = (width / 4).div_ceil(threads);
            assert!(
                threads <= 1024 && threads.is_multiple_of(32) && passes <= NORM_VECTORS,
                "{width}: {threads}"
            );
        }
        assert_eq!(norm_threads(1536).unwrap(), 384);
        assert!(norm_threads(0).is_err() && norm_threads(30).is_err() && norm_threads(12_292).is_err());
    }

    #[test]
    fn keys_values_and_queries_of_the_attention_fit_side_by_side() {
        // Few keys: the 8 warps' 16 rows of 48 sums, a top and a weight, f32, need more. Many: 16 queries, then keys and values
        // in whole tiles of 16 rows, 56 bf16 each.
        assert_eq!(attention_shared(48, 51), 8 * 16 * 50 * 4);
        assert_eq!(attention_shared(48, 200), (16 + 416) * 56 * 2);
        assert_eq!(attention_shared(48, 400), (16 + 800) * 56 * 2);
    }
}
