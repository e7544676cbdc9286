//! Products of few activations with large weights, each by what is fastest for its shape.

use std::collections::HashMap;

use super::Activation;
use super::blas::{Blas, LibraryGemm};
use super::error::CudaError;
use super::gpu::{Gpu, Memory};
use super::kernels::{Ahead, FinishArguments, Kernels};
use super::module::Kernel;
use super::queue::Queue;
use super::skinny::{self, Skinny};
use super::tune::Tuned;
use super::warpgroup::{self, TensorMap, Warpgroup, WarpgroupArguments};

/// Bytes of cuBLASLt's workspace.
pub(super) const WORKSPACE: usize = 32 << 20;
/// Parts that a product is split into at most.
pub(super) const MOST_PARTS: usize = 16;

/// A product: activations (rows, k) · weightᵀ (n, k).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GemmShape {
    pub rows: usize,
    pub n: usize,
    pub k: usize,
    /// Some: the output is bf16 (rows, n), with bias and this activation. None: f32 (parts, rows, n), to be summed, bias and
    /// all, by what reads it.
    pub finish: Option<Activation>,
}

impl std::fmt::Display for GemmShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {} x {}", self.rows, self.n, self.k)?;
        match self.finish {
            Some(activation) => write!(f, " {activation:?}"),
            None => write!(f, " parts"),
        }
    }
}

/// `GemmArguments` of gemm.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct SkinnyArguments {
    activations: u64,
    weight: u64,
    bias: u64,
    out: u64,
    ahead: Ahead,
    rows: i32,
    n: i32,
    k: i32,
    stride: i32,
    split: i32,
    finished: i32,
    activation: i32,
    prefetch: i32,
}

/// Where a product's operands are, device addresses.
#[derive(Debug, Clone, Copy)]
pub struct GemmCall {
    /// bf16 (rows, k).
    pub activations: u64,
    /// bf16 (n, k).
    pub weight: u64,
    /// f32 (n), for a shape with `finish`.
    pub bias: u64,
    /// bf16 (n), the same values, or zero where they are no bf16 values.
    pub bias_bf16: u64,
    pub out: u64,
    /// f32 (parts, rows, n): scratch for a shape with `finish`.
    pub parts: u64,
    /// What the next product reads: the own kernel asks the L2 cache for it.
    pub ahead: Ahead,
}

/// How a product is computed.
pub enum Plan {
    /// The own kernel, k in parts of `split`.
    Own {
        /// Its shape.
        skinny: Skinny,
        /// k of a block.
        split: usize,
        /// Blocks that share k.
        depth: usize,
        /// Whether the L2 cache is asked for weights ahead.
        prefetch: bool,
    },
    /// The own kernel for Hopper, k in parts of `split`.
    Warpgroup {
        /// Its shape.
        shape: Warpgroup,
        /// k of a block.
        split: usize,
        /// Blocks that share k.
        depth: usize,
    },
    /// cuBLASLt, which does its splitting inside.
    Library(LibraryGemm),
}

impl Plan {
    /// Parts of the output of a shape without `finish`.
    pub fn parts(&self) -> usize {
        match self {
            // A cluster sums what its blocks make.
            Self::Own { skinny: Skinny { cluster, .. }, depth, .. }
            | Self::Warpgroup { shape: Warpgroup { cluster, .. }, depth, .. } => depth / cluster,
            Self::Library(_) => 1,
        }
    }

    /// Whether it differs from another in details only.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Own { skinny: a, .. }, Self::Own { skinny: b, .. }) => a.columns() == b.columns(),
            (Self::Warpgroup { shape: a, .. }, Self::Warpgroup { shape: b, .. }) => {
                (a.columns(), a.cluster) == (b.columns(), b.cluster)
            }
            (Self::Library(_), Self::Library(_)) => true,
            _ => false,
        }
    }

    /// For tables.
    pub fn name(&self) -> String {
        match self {
            Self::Own { skinny, prefetch, .. } => {
                let ahead = if *prefetch { ", L2 ahead" } else { "" };
                format!("{}, {} parts{ahead}", skinny.name(), self.parts())
            }
            Self::Warpgroup { shape, depth, .. } => {
                format!("{}, k by {depth}, {} parts", shape.name(), self.parts())
            }
            Self::Library(gemm) => format!("cuBLASLt, workspace {} KiB", gemm.workspace >> 10),
        }
    }
}

/// A product with its plan.
pub struct Gemm {
    pub shape: GemmShape,
    pub plan: Plan,
}

/// Everything that products are made with.
pub struct Gemms {
    pub(super) gpu: Gpu,
    /// Shapes of the own kernel that are tried.
    shapes: Vec<Skinny>,
    /// The same of Hopper's.
    groups: Vec<Warpgroup>,
    /// By token tiles of a block.
    pub(super) own: HashMap<usize, Vec<(Skinny, Kernel)>>,
    /// The same of Hopper's own kernel; none on other generations.
    pub(super) warpgroups: HashMap<usize, Vec<(Warpgroup, Kernel)>>,
    /// Why cuBLASLt is not there, or itself and its workspace.
    pub(super) blas: Result<(Blas, Memory), String>,
    /// What was tuned, for tables.
    pub(super) table: Vec<Tuned>,
    /// What is right, fastest first.
    pub(super) cached: HashMap<GemmShape, Vec<std::sync::Arc<Gemm>>>,
}

impl Gemms {
    /// cuBLASLt is used where it is there.
    ///
    /// # Errors
    /// No memory for the workspace.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        gpu.context().bind_to_thread().map_err(CudaError::driver("choosing the GPU"))?;
        let blas = match Blas::new() {
            Ok(blas) => Ok((blas, gpu.allocate(WORKSPACE)?)),
            Err(error) => {
                tracing::warn!("products run on own kernels alone: {error}");
                Err(error.to_string())
            }
        };
        Ok(Self::with(gpu, skinny::all(), warpgroup::all(), blas))
    }

    /// These shapes of the own kernel alone, on the emulated GPU of the tests; compiled together for so many tiles of
    /// tokens.
    #[cfg(test)]
    pub fn emulated(shapes: Vec<Skinny>, groups: Vec<Warpgroup>, tiles: &[usize]) -> Self {
        let none = Err("the emulated GPU has none".to_owned());
        let mut gemms = Self::with(&Gpu::emulated(), shapes, groups, none);
        gemms.compile_tiles(tiles).unwrap();
        gemms
    }

    fn with(
        gpu: &Gpu,
        shapes: Vec<Skinny>,
        groups: Vec<Warpgroup>,
        blas: Result<(Blas, Memory), String>,
    ) -> Self {
        Self {
            gpu: gpu.clone(),
            shapes,
            groups,
            own: HashMap::new(),
            warpgroups: HashMap::new(),
            blas,
            table: Vec::new(),
            cached: HashMap::new(),
        }
    }

    /// What was measured so far.
    pub fn table(&self) -> &[Tuned] {
        &self.table
    }

    /// Version of cuBLASLt, or why there is none.
    pub fn library(&self) -> Result<usize, &str> {
        self.blas.as_ref().map(|(blas, _)| blas.version()).map_err(String::as_str)
    }

    /// Compiles the own kernels for so many rows, once.
    pub(super) fn compile(&mut self, rows: usize) -> Result<usize, CudaError> {
        let (tiles, _) = skinny::token_tiles(rows);
        if !self.own.contains_key(&tiles) {
            self.compile_tiles(&[tiles])?;
        }
        Ok(tiles)
    }

    fn compile_tiles(&mut self, all: &[usize]) -> Result<(), CudaError> {
        let kernels = skinny::compile(&self.gpu, &self.shapes, all)?;
        for &tiles in all {
            self.own.entry(tiles).or_default();
        }
        for (shape, tiles, kernel) in kernels {
            self.own.entry(tiles).or_default().push((shape, kernel));
        }
        Ok(())
    }

    /// Shapes of the own kernel that fit the GPU, compiled for so many rows.
    ///
    /// # Errors
    /// No NVRTC, or one that refuses.
    pub fn compiled(&mut self, rows: usize) -> Result<Vec<Skinny>, CudaError> {
        let tiles = self.compile(rows)?;
        Ok(self.own.get(&tiles).into_iter().flatten().map(|(skinny, _)| *skinny).collect())
    }

    /// Shapes of Hopper's own kernel, compiled for so many rows: none on another GPU, or where the compiler is too old.
    pub fn compiled_warpgroups(&mut self, rows: usize) -> Vec<Warpgroup> {
        let (tiles, _) = skinny::token_tiles(rows);
        if !warpgroup::runs_on(&self.gpu) {
            return Vec::new();
        }
        let kernels = self.warpgroups.entry(tiles).or_insert_with(|| {
            warpgroup::compile(&self.gpu, &self.groups, tiles).unwrap_or_else(|error| {
                tracing::warn!("products run without the kernel for this GPU's generation: {error}");
                Vec::new()
            })
        });
        kernels.iter().map(|(shape, _)| *shape).collect()
    }

    /// Queues a product.
    ///
    /// # Errors
    /// [`CudaError`] of what computes it.
    ///
    /// # Safety
    /// Device memory of the sizes that [`GemmCall`] and the shape say, until the product is done.
    pub unsafe fn multiply(
        &self,
        kernels: &Kernels,
        queue: &Queue,
        gemm: &Gemm,
        call: &GemmCall,
    ) -> Result<(), CudaError> {
        let GemmShape { rows, n, k, finish } = gemm.shape;
        let finished = finish.filter(|_| match &gemm.plan {
            Plan::Library(library) => library.gelu,
            plan => plan.parts() == 1,
        });
        // A part of a finished product would need the others: they are summed by another kernel.
        let apart = finish.is_some() && finished.is_none();
        let out = if apart { call.parts } else { call.out };
        let activation = finished.unwrap_or(Activation::None) as i32;
        let (tiles, blocks) = skinny::token_tiles(rows);
        match &gemm.plan {
            Plan::Own { skinny, split, depth, prefetch } => {
                let kernel = compiled(&self.own, tiles, skinny)?;
                let arguments = SkinnyArguments {
                    activations: call.activations,
                    weight: call.weight,
                    bias: call.bias,
                    out,
                    ahead: call.ahead,
                    rows: rows as i32,
                    n: n as i32,
                    k: k as i32,
                    stride: k as i32,
                    split: *split as i32,
                    finished: i32::from(finished.is_some()),
                    activation,
                    prefetch: i32::from(*prefetch),
                };
                let grid = [n.div_ceil(skinny.columns()), *depth, blocks];
                let shared = skinny.shared(tiles) as u32;
                // SAFETY: by this function's contract.
                unsafe { queue.launch(kernel, grid, skinny.threads(), shared, &arguments)? };
            }
            Plan::Warpgroup { shape, split, depth } => {
                let kernel = compiled(&self.warpgroups, tiles, shape)?;
                let arguments = WarpgroupArguments {
                    weight: TensorMap::new(&self.gpu, call.weight, n, k, 64)?,
                    activations: TensorMap::new(&self.gpu, call.activations, rows, k, tiles * 8)?,
                    bias: call.bias,
                    out,
                    ahead: call.ahead,
                    rows: rows as i32,
                    n: n as i32,
                    k: k as i32,
                    split: *split as i32,
                    finished: i32::from(finished.is_some()),
                    activation,
                };
                let grid = [n.div_ceil(shape.columns()), *depth, blocks];
                let shared = shape.shared(tiles) as u32;
                // SAFETY: by this function's contract.
                unsafe { queue.launch(kernel, grid, shape.threads(), shared, &arguments)? };
            }
            Plan::Library(library) => {
                let (blas, workspace) = self
                    .blas
                    .as_ref()
                    .map_err(|reason| CudaError::Library { name: "cuBLASLt", tried: reason.clone() })?;
                let addresses = [call.activations, call.weight, call.bias_bf16, out, workspace.address()];
                // SAFETY: by this function's contract; the workspace has the size that was allowed.
                unsafe { blas.multiply(queue, library, addresses)? };
            }
        }
        if apart {
            // SAFETY: by this function's contract.
            unsafe { self.finish(kernels, queue, gemm, call)? };
        }
        Ok(())
    }

    /// # Safety
    /// As [`multiply`](Self::multiply).
    unsafe fn finish(
        &self,
        kernels: &Kernels,
        queue: &Queue,
        gemm: &Gemm,
        call: &GemmCall,
    ) -> Result<(), CudaError> {
        let GemmShape { rows, n, finish, .. } = gemm.shape;
        let arguments = FinishArguments {
            parts: call.parts,
            bias: call.bias,
            out: call.out,
            part_stride: (rows * n) as i64,
            count: (rows * n) as i64,
            splits: gemm.plan.parts() as i32,
            columns: n as i32,
            activation: finish.unwrap_or(Activation::None) as i32,
        };
        // SAFETY: by this function's contract.
        unsafe { kernels.finish(queue, &arguments) }
    }
}

/// The kernel of a shape for blocks of so many tiles of tokens.
fn compiled<'a, Shape: PartialEq>(
    all: &'a HashMap<usize, Vec<(Shape, Kernel)>>,
    tiles: usize,
    shape: &Shape,
) -> Result<&'a Kernel, CudaError> {
    let found = all.get(&tiles).and_then(|all| all.iter().find(|(known, _)| known == shape));
    found.map(|(_, kernel)| kernel).ok_or_else(|| {
        CudaError::argument("product", "a kernel that was compiled for its rows", format!("{tiles} tiles"))
    })
}
