//! Attention of many queries to many keys: the patches of an image, the tokens of a prompt.

use super::error::CudaError;
use super::gpu::Gpu;
use super::module::Kernel;
use super::queue::Queue;
use super::source::{self, Source};

const FILE: &str = include_str!("kernels/sequence_attention.cu");
/// Groups of warps that share the keys of a step: `GROUPS` of sequence_attention.cu.
const GROUPS: usize = 4;
/// Warps along the queries, 16 each, of the kernel's instances.
const QUERY_WARPS: [usize; 2] = [3, 1];
/// Head widths that the kernel can be compiled for: multiples of this,
const WIDTH_STEP: usize = 8;
/// and no wider.
const MOST_WIDTH: usize = 128;

/// Elements between neighbours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Strides {
    pub sample: i64,
    /// Queries or keys.
    pub row: i64,
    pub head: i64,
}

/// `SequenceAttentionArguments` of sequence_attention.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct SequenceAttentionArguments {
    /// bf16, as far apart as the strides say.
    pub query: u64,
    pub key: u64,
    pub value: u64,
    /// Bytes (samples, queries, keys), zero where a key is hidden; or zero: all are seen.
    pub mask: u64,
    /// bf16 (samples · queries, heads · width), written.
    pub out: u64,
    pub query_stride: Strides,
    pub key_stride: Strides,
    pub value_stride: Strides,
    pub mask_sample: i64,
    pub mask_row: i64,
    pub queries: i32,
    pub keys: i32,
    /// Key that stands where the first query stands.
    pub first: i32,
    /// Heads that share a key's head.
    pub group: i32,
    /// 1: the keys behind a query's place are hidden.
    pub causal: i32,
    /// Set by [`SequenceAttention::attend`].
    pub slots: i32,
    /// Of the scores, times log2(e).
    pub scale: f32,
}

/// The kernel's instances for heads of one width.
pub struct SequenceAttention {
    gpu: Gpu,
    width: usize,
    /// With their warps along the queries.
    instances: Vec<(usize, Kernel)>,
}

pub(super) fn source(width: usize) -> Source {
    let instance = |warps: usize| {
        let (name, keys) = (name(width, warps), group_keys(width));
        format!("SEQUENCE_ATTENTION_KERNEL({name}, {width}, {warps}, {keys})\n")
    };
    let instances = QUERY_WARPS.into_iter().map(instance).collect();
    Source { instances, ..Source::plain("sequence_attention.cu", FILE) }
}

fn name(width: usize, warps: usize) -> String {
    format!("sequence_attention_{width}_{warps}")
}

/// Keys that a group of warps takes at once: as many as its registers, and a step of them shared memory, have room for.
fn group_keys(width: usize) -> usize {
    if width <= 96 { 48 } else { 32 }
}

/// Bytes of shared memory with room for so many steps.
fn shared(width: usize, query_warps: usize, slots: usize) -> usize {
    let pitch = width.next_multiple_of(16) + 8;
    // Afterwards what all groups but one found.
    let found = (GROUPS - 1) * query_warps * (width / 2 + 4) * 32 * 4;
    (slots * 2 * GROUPS * group_keys(width) * pitch * 2).max(found)
}

impl SequenceAttention {
    /// Whether heads of this width can be had.
    pub fn takes(width: usize) -> bool {
        (WIDTH_STEP..=MOST_WIDTH).contains(&width) && width.is_multiple_of(WIDTH_STEP)
    }

    /// Compiles for heads of `width`: a second.
    ///
    /// # Errors
    /// A width that the kernel is not made for; no NVRTC, or one that refuses.
    pub fn new(gpu: &Gpu, width: usize) -> Result<Self, CudaError> {
        if !Self::takes(width) {
            let expected = format!("a multiple of {WIDTH_STEP}, at most {MOST_WIDTH}");
            return Err(CudaError::argument("width of a head", expected, width));
        }
        let module = source::compile(gpu, &source(width))?;
        let instance = |warps| Ok((warps, module.kernel(&name(width, warps), gpu.shared_per_block())?));
        let instances = QUERY_WARPS.into_iter().map(instance).collect::<Result<_, CudaError>>()?;
        Ok(Self { gpu: gpu.clone(), width, instances })
    }

    /// Queues attention of so many samples and heads.
    ///
    /// # Errors
    /// Operands that are not aligned as the copies want them: the address of keys and values to 16 bytes, that of the queries
    /// to 4, and what lies between neighbours alike; no queries or keys.
    ///
    /// # Safety
    /// The addresses are device memory of the sizes that the fields say, until the kernel has run.
    pub unsafe fn attend(
        &self,
        queue: &Queue,
        (samples, heads): (usize, usize),
        arguments: &SequenceAttentionArguments,
    ) -> Result<(), CudaError> {
        self.check(heads, arguments)?;
        let (queries, keys) = (arguments.queries.max(0) as usize, arguments.keys.max(0) as usize);
        let blocks = |warps: usize| heads * samples * queries.div_ceil(16 * warps);
        // As if each multiprocessor took one block after the other: what a block does once, then its queries.
        let multiprocessors = self.gpu.multiprocessors().max(1) as usize;
        let cost = |warps: usize| blocks(warps).div_ceil(multiprocessors) * (1 + warps);
        let chosen = self.instances.iter().min_by_key(|(warps, _)| cost(*warps));
        let (warps, kernel) =
            chosen.ok_or_else(|| CudaError::argument("attention", "a kernel for it", "none"))?;
        let slots = self.slots(*warps, keys);
        let arguments = SequenceAttentionArguments { slots: slots as i32, ..*arguments };
        let grid = [heads, queries.div_ceil(16 * warps), samples];
        let threads = (GROUPS * warps * 32) as u32;
        // SAFETY: by this function's contract.
        unsafe { queue.launch(kernel, grid, threads, shared(self.width, *warps, slots) as u32, &arguments) }
    }

    /// Steps that shared memory has room for: two, if there are two.
    fn slots(&self, warps: usize, keys: usize) -> usize {
        let steps = keys.div_ceil(GROUPS * group_keys(self.width));
        let two = shared(self.width, warps, 2) <= self.gpu.shared_per_block() as usize;
        if two && steps > 1 { 2 } else { 1 }
    }

    fn check(&self, heads: usize, arguments: &SequenceAttentionArguments) -> Result<(), CudaError> {
        let aligned = |address: u64, strides: &Strides, bytes: u64| {
            let strides = [strides.sample, strides.row, strides.head];
            address.is_multiple_of(bytes) && strides.iter().all(|stride| stride % (bytes as i64 / 2) == 0)
        };
        let SequenceAttentionArguments { query, key, value, queries, keys, group, .. } = *arguments;
        let fits = aligned(query, &arguments.query_stride, 4)
            && aligned(key, &arguments.key_stride, 16)
            && aligned(value, &arguments.value_stride, 16)
            && queries > 0
            && keys > 0
            && group > 0
            && heads > 0;
        if fits {
            return Ok(());
        }
        let expected = "queries aligned to 4 bytes, keys and values to 16, at least one of each";
        Err(CudaError::argument(
            "operands of an attention",
            expected,
            format!("{heads} heads, {arguments:?}"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ComputeCapability;

    #[test]
    fn steps_fit_into_the_shared_memory_of_every_generation() {
        for ((major, minor), kilobytes) in [((8, 0), 163), ((8, 9), 99), ((9, 0), 227)] {
            let gpu = Gpu::emulated_with(ComputeCapability { major, minor }, kilobytes << 10);
            for width in (WIDTH_STEP..=MOST_WIDTH).step_by(WIDTH_STEP) {
                let attention = SequenceAttention { gpu: gpu.clone(), width, instances: Vec::new() };
                for warps in QUERY_WARPS {
                    for keys in [1, 64, 65, 324, 5000] {
                        let bytes = shared(width, warps, attention.slots(warps, keys));
                        assert!(bytes <= (kilobytes << 10) as usize, "{width}, {keys}: {bytes}");
                    }
                }
            }
        }
    }

    #[test]
    fn keys_of_one_image_lie_in_shared_memory_all_at_once() {
        for (capability, kilobytes) in [((9, 0), 227), ((8, 7), 163)] {
            let capability = ComputeCapability { major: capability.0, minor: capability.1 };
            let gpu = Gpu::emulated_with(capability, kilobytes << 10);
            let attention = SequenceAttention { gpu, width: 72, instances: Vec::new() };
            assert_eq!(attention.slots(3, 324), 2);
            assert_eq!(attention.slots(1, 122), 1);
        }
    }
}
