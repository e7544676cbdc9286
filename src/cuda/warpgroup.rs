//! The own kernel of products with few rows for Hopper (compute capability 9.0): its shapes, and what they need.

use std::ffi::c_void;
use std::fmt::Write as _;

use cudarc::driver::sys;

use super::error::CudaError;
use super::gpu::Gpu;
use super::kernels;
use super::module::Kernel;
use super::source::{self, Source};

/// Columns of a warpgroup.
const GROUP_COLUMNS: usize = 64;
/// k of a box: 128 bytes, what the hardware swizzles.
const BOX_DEPTH: usize = 64;

/// A shape of the kernel: the template's parameters of gemm_warpgroup.cu but for the number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Warpgroup {
    /// Warpgroups, 64 columns each.
    pub groups: usize,
    /// Boxes of 64 k in a chunk.
    pub depth: usize,
    /// Chunks that are on their way or being multiplied.
    pub stages: usize,
    /// Blocks that share the k of a part and sum through each other's shared memory.
    pub cluster: usize,
}

const fn shape(groups: usize, depth: usize, stages: usize) -> Warpgroup {
    Warpgroup { groups, depth, stages, cluster: 1 }
}

impl Warpgroup {
    /// The shapes that are tried, each alone and in clusters: those that were best of some product on an H100. Some are so
    /// small that two of them fit a multiprocessor beside each other, so that the next kernel's blocks can begin early.
    pub const ALL: [Self; 8] = [
        shape(1, 1, 7),
        shape(1, 2, 3),
        shape(1, 2, 6),
        shape(1, 3, 4),
        shape(1, 4, 3),
        shape(2, 1, 4),
        shape(2, 2, 4),
        shape(3, 1, 7),
    ];

    /// Sizes of clusters that are tried.
    pub const CLUSTERS: [usize; 5] = [2, 3, 4, 6, 8];

    /// The same in clusters of so many blocks.
    pub fn in_clusters(self, cluster: usize) -> Self {
        Self { cluster, ..self }
    }

    /// Columns of the output that a block makes.
    pub fn columns(&self) -> usize {
        GROUP_COLUMNS * self.groups
    }

    /// k that is copied and multiplied at once.
    pub fn chunk(&self) -> usize {
        BOX_DEPTH * self.depth
    }

    /// Threads of a block: the warpgroups, and a warp that copies.
    pub fn threads(&self) -> u32 {
        128 * self.groups as u32 + 32
    }

    /// Bytes of dynamic shared memory of a block that holds so many tiles of 8 tokens.
    pub fn shared(&self, tiles: usize) -> usize {
        let stage = (self.columns() + tiles * 8) * self.chunk() * 2;
        let sums = tiles * 8 * (self.columns() + 4) * 4;
        (stage * self.stages).max(sums)
    }

    /// Its name for people.
    pub fn name(&self) -> String {
        format!("warpgroups {}x{} {} stages", self.columns(), self.chunk(), self.stages)
    }

    fn symbol(&self, tiles: usize) -> String {
        let Self { groups, depth, stages, cluster } = self;
        format!("warpgroup_{groups}_{depth}_{stages}_{cluster}_{tiles}")
    }

    /// Whether a block fits on the GPU; its barriers are beside what is counted.
    pub(super) fn fits(&self, gpu: &Gpu, tiles: usize) -> bool {
        self.shared(tiles) + 1024 <= gpu.shared_per_block() as usize
    }
}

/// Whether a GPU has what the kernel needs: no other generation has, later ones neither.
pub(super) fn runs_on(gpu: &Gpu) -> bool {
    (gpu.capability().major, gpu.capability().minor) == (9, 0)
}

/// The product of a warpgroup for so many tiles of tokens: its assembler text names each register of the sums.
fn product(tiles: usize) -> String {
    let registers = tiles * 4;
    let names: Vec<String> = (0..registers).map(|i| format!("%{i}")).collect();
    let sums: Vec<String> = (0..registers).map(|i| format!("\"+f\"(sums[{}][{}])", i / 4, i % 4)).collect();
    let mut text = format!(
        "// sums (64, {0}) += a (64, 16) · bᵀ ({0}, 16); warp w has rows 16w to 16w+15, its lanes as those of `mma`.\n",
        tiles * 8
    );
    let _ = write!(
        text,
        "DEVICE void multiply(float (&sums)[{tiles}][4], u64 a, u64 b)\n{{\n    asm volatile(\"{{\\n\\t.reg .pred add;\\n\\t\
         setp.eq.u32 add, 0, 0;\\n\\twgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16 {{{}}}, %{registers}, %{}, add, \
         1, 1, 0, 0;\\n\\t}}\" : {} : \"l\"(a), \"l\"(b));\n}}\n",
        tiles * 8,
        names.join(", "),
        registers + 1,
        sums.join(", ")
    );
    text
}

/// The kernels of these shapes for blocks of so many tiles of tokens.
pub(super) fn source(shapes: &[Warpgroup], tiles: usize) -> Source {
    let mut instances = String::new();
    for shape in shapes {
        let Warpgroup { groups, depth, stages, cluster } = shape;
        let parameters = format!("{}, {groups}, {depth}, {stages}, {tiles}", shape.symbol(tiles));
        let _ = match cluster {
            1 => writeln!(instances, "WARPGROUP_KERNEL({parameters})"),
            _ => writeln!(instances, "WARPGROUP_CLUSTER_KERNEL({parameters}, {cluster})"),
        };
    }
    let hardware = kernels::WARPGROUP.to_owned() + &product(tiles);
    Source { hardware, instances, ..Source::plain("gemm_warpgroup.cu", kernels::GEMM_WARPGROUP) }
}

/// All shapes, alone and in clusters.
pub(super) fn all() -> Vec<Warpgroup> {
    let sizes =
        |shape: Warpgroup| [1].into_iter().chain(Warpgroup::CLUSTERS).map(move |n| shape.in_clusters(n));
    Warpgroup::ALL.into_iter().flat_map(sizes).collect()
}

/// Compiles those of `shapes` that fit for blocks of so many tiles of tokens, side by side on the machine's cores.
pub(super) fn compile(
    gpu: &Gpu,
    shapes: &[Warpgroup],
    tiles: usize,
) -> Result<Vec<(Warpgroup, Kernel)>, CudaError> {
    let shapes: Vec<Warpgroup> = shapes.iter().copied().filter(|shape| shape.fits(gpu, tiles)).collect();
    let groups: Vec<&[Warpgroup]> = shapes.chunks(source::group(gpu).max(3)).collect();
    let sources: Vec<Source> = groups.iter().map(|group| source(group, tiles)).collect();
    let modules = source::compile_specific(gpu, &sources)?;
    let mut kernels = Vec::with_capacity(shapes.len());
    for (group, module) in groups.into_iter().zip(modules) {
        for &shape in group {
            kernels.push((shape, module.kernel(&shape.symbol(tiles), shape.shared(tiles) as u32)?));
        }
    }
    Ok(kernels)
}

/// `TensorMap` of warpgroup.cuh.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct TensorMap([u64; 16]);

impl TensorMap {
    /// bf16 (rows, k) at `address`, copied in swizzled boxes of `box_rows` rows and 64 k.
    ///
    /// # Errors
    /// [`CudaError::Driver`]: an address or a k that is no multiple of 16 bytes.
    pub fn new(_gpu: &Gpu, address: u64, rows: usize, k: usize, box_rows: usize) -> Result<Self, CudaError> {
        #[cfg(test)]
        if _gpu.is_emulated() {
            let mut map = [0; 16];
            map[..4].copy_from_slice(&[address, rows as u64, k as u64, box_rows as u64]);
            return Ok(Self(map));
        }
        let mut map = sys::CUtensorMap_st { opaque: [0; 16] };
        let (sizes, strides) = ([k as u64, rows as u64], [2 * k as u64]);
        let (lengths, steps) = ([BOX_DEPTH as u32, box_rows as u32], [1, 1]);
        // SAFETY: two axes, and as many sizes, lengths and steps; one stride, between the rows. Nothing is read at the address.
        let code = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                lengths.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        code.result()
            .map_err(CudaError::driver(format!("describing a matrix of {rows} x {k} to the GPU")))?;
        Ok(Self(map.opaque))
    }
}

/// `WarpgroupArguments` of gemm_warpgroup.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct WarpgroupArguments {
    pub weight: TensorMap,
    pub activations: TensorMap,
    pub bias: u64,
    pub out: u64,
    pub ahead: super::kernels::Ahead,
    pub rows: i32,
    pub n: i32,
    pub k: i32,
    pub split: i32,
    pub finished: i32,
    pub activation: i32,
}
