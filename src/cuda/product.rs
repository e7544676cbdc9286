//! Products of many activations by cuBLASLt, in the way that is fastest for their size on the GPU that is there.
//!
//! cuBLASLt knows many ways to multiply and guesses which is best; measured, another one often is. [`Gemms`](super::Gemms)
//! are for few rows, where own kernels compete.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::blas::{Blas, LibraryGemm};
use super::error::CudaError;
use super::gpu::{Gpu, Memory};
use super::kernels::Kernels;
use super::queue::{Queue, Recording};
use super::tune::{CHAIN, POOL, SPREAD, microseconds};

/// Bytes of workspace that a way may take.
const WORKSPACE: usize = 32 << 20;
/// Ways that are tried.
const CANDIDATES: usize = 32;
/// What the addresses of operands are multiples of, as cuBLASLt takes for granted.
const ALIGNMENT: u64 = 256;

/// A product: activations (rows, k) · weightᵀ (n, k) → bf16 (rows, n), rounded once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProductShape {
    pub rows: usize,
    pub n: usize,
    pub k: usize,
    /// Whether a bias is added,
    pub bias: bool,
    /// and whether the tanh form of GELU follows.
    pub gelu: bool,
}

impl std::fmt::Display for ProductShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {} x {}", self.rows, self.n, self.k)?;
        f.write_str(if self.bias { " with bias" } else { "" })?;
        f.write_str(if self.gelu { ", GELU" } else { "" })
    }
}

/// Where a product's operands are, device addresses.
#[derive(Debug, Clone, Copy)]
pub struct ProductCall {
    /// bf16 (rows, k).
    pub activations: u64,
    /// bf16 (n, k).
    pub weight: u64,
    /// bf16 (n), for a shape with a bias.
    pub bias: u64,
    /// bf16 (rows, n).
    pub out: u64,
}

impl ProductCall {
    /// Whether cuBLASLt takes operands that lie there.
    pub fn is_aligned(&self) -> bool {
        [self.activations, self.weight, self.bias, self.out]
            .iter()
            .all(|address| address.is_multiple_of(ALIGNMENT))
    }

    fn addresses(&self, workspace: &Memory) -> [u64; 5] {
        [self.activations, self.weight, self.bias, self.out, workspace.address()]
    }
}

/// cuBLASLt with the ways that were chosen. One queue at a time works with it: there is one workspace.
pub struct Products {
    gpu: Gpu,
    blas: Blas,
    workspace: Memory,
    /// None where no way will do.
    chosen: HashMap<ProductShape, Option<LibraryGemm>>,
}

impl Products {
    /// Opens cuBLASLt.
    ///
    /// # Errors
    /// There is none, or no memory for its workspace.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        gpu.context().bind_to_thread().map_err(CudaError::driver("choosing the GPU"))?;
        let blas = Blas::new()?;
        let workspace = gpu.allocate(WORKSPACE)?;
        Ok(Self { gpu: gpu.clone(), blas, workspace, chosen: HashMap::new() })
    }

    /// Whether this size was [tuned](Self::tune), with success or without.
    pub fn knows(&self, shape: &ProductShape) -> bool {
        self.chosen.contains_key(shape)
    }

    /// Queues a product and says so; false: no way was chosen for this size, and nothing is queued.
    ///
    /// # Errors
    /// [`CudaError::Blas`].
    ///
    /// # Safety
    /// Device memory of the sizes that the shape says, until the product is done; all on one stream.
    pub unsafe fn multiply(
        &self,
        queue: &Queue,
        shape: &ProductShape,
        call: &ProductCall,
    ) -> Result<bool, CudaError> {
        let Some(Some(way)) = self.chosen.get(shape) else { return Ok(false) };
        // SAFETY: by this function's contract; the workspace has the size that was allowed.
        unsafe { self.blas.multiply(queue, way, call.addresses(&self.workspace))? };
        Ok(true)
    }

    /// Chooses the fastest way for a size of which `error` says that its result is right: after each try at `call`, on
    /// `queue`, it tells how far the result is off, 1.0 being what rounding explains. Not to be done during a capture; takes a
    /// fraction of a second and, for as long, a few hundred megabytes.
    ///
    /// # Errors
    /// No memory, or CUDA refuses; then, too, the size counts as known and has no way.
    ///
    /// # Safety
    /// As [`multiply`](Self::multiply).
    pub unsafe fn tune<E: From<CudaError>>(
        &mut self,
        kernels: &Kernels,
        queue: &Queue,
        shape: ProductShape,
        call: &ProductCall,
        mut error: impl FnMut() -> Result<f64, E>,
    ) -> Result<(), E> {
        self.chosen.insert(shape, None);
        let timed = self.timed(kernels, shape)?;
        let guessed = timed.iter().find(|timed| timed.rank == 0).map_or(f64::NAN, |timed| timed.time);
        let count = timed.len();
        let chosen = first_right(timed, |Timed { way, .. }| {
            // SAFETY: by this function's contract; the workspace has the size that was allowed.
            unsafe { self.blas.multiply(queue, way, call.addresses(&self.workspace))? };
            error()
        })?;
        match chosen {
            Some(Timed { way, time, .. }) => {
                tracing::info!(
                    "{shape}: {time:.1} us by the fastest of {count} ways of cuBLASLt, {guessed:.1} us by the one it \
                     would take"
                );
                self.chosen.insert(shape, Some(way));
            }
            None => tracing::warn!("{shape}: none of {count} ways of cuBLASLt is right"),
        }
        Ok(())
    }

    /// All ways that work, fastest first.
    fn timed(&self, kernels: &Kernels, shape: ProductShape) -> Result<Vec<Timed>, CudaError> {
        let ProductShape { rows, n, k, bias, gelu } = shape;
        let bench = Bench::new(&self.gpu, kernels, shape)?;
        let ways = self.blas.finished((rows, n, k), (bias, gelu), WORKSPACE, CANDIDATES)?;
        let mut timed: Vec<Timed> = Vec::with_capacity(ways.len());
        for (rank, way) in ways.into_iter().enumerate() {
            match bench.time(self, &way) {
                Ok(time) => timed.push(Timed { rank, time, way }),
                Err(error) => tracing::debug!("{shape}: way {rank} of cuBLASLt: {error}"),
            }
        }
        timed.sort_by(|a, b| a.time.total_cmp(&b.time));
        Ok(timed)
    }
}

/// A way to multiply, and how long it took.
struct Timed {
    /// Its place in cuBLASLt's own order.
    rank: usize,
    /// Microseconds.
    time: f64,
    way: LibraryGemm,
}

/// The first whose error is what rounding explains. What is no number is an error.
fn first_right<T, E>(all: Vec<T>, mut error: impl FnMut(&T) -> Result<f64, E>) -> Result<Option<T>, E> {
    for one in all {
        if error(&one)? <= 1.0 {
            return Ok(Some(one));
        }
    }
    Ok(None)
}

/// Memory and operands for timing one size.
struct Bench {
    shape: ProductShape,
    pool: Memory,
    weights: usize,
    activations: Memory,
    bias: Memory,
    out: Memory,
    stream: Arc<CudaStream>,
}

impl Bench {
    fn new(gpu: &Gpu, kernels: &Kernels, shape: ProductShape) -> Result<Self, CudaError> {
        let ProductShape { rows, n, k, .. } = shape;
        let bytes = n * k * 2;
        let weights = (POOL / bytes.max(1)).clamp(2, CHAIN);
        let bench = Self {
            shape,
            pool: gpu.allocate(weights * bytes)?,
            weights,
            activations: gpu.allocate(rows * k * 2)?,
            bias: gpu.allocate(n * 2)?,
            out: gpu.allocate(rows * n * 2)?,
            stream: gpu.new_stream()?,
        };
        let queue = Queue::new(Arc::clone(&bench.stream), false);
        for (seed, memory) in [(1, &bench.pool), (2, &bench.activations), (3, &bench.bias)] {
            // SAFETY: as many values as the memory holds.
            unsafe { kernels.fill(&queue, memory.address(), memory.bytes() / 2, seed, SPREAD)? };
        }
        queue.finish()?;
        Ok(bench)
    }

    /// Microseconds of a product, one after the other with weights that are not in the cache.
    fn time(&self, products: &Products, way: &LibraryGemm) -> Result<f64, CudaError> {
        let ProductShape { n, k, bias, .. } = self.shape;
        let call = |turn: usize| ProductCall {
            activations: self.activations.address(),
            weight: self.pool.address() + (turn % self.weights * n * k * 2) as u64,
            bias: if bias { self.bias.address() } else { 0 },
            out: self.out.address(),
        };
        let multiply = |queue: &Queue, turn| {
            // SAFETY: the memory was allocated for this size, and is kept until the recording is dropped, which waits.
            unsafe { products.blas.multiply(queue, way, call(turn).addresses(&products.workspace)) }
        };
        // Once, so that all is loaded before it is recorded.
        let queue = Queue::new(Arc::clone(&self.stream), false);
        multiply(&queue, 0)?;
        queue.finish()?;
        let mut recording = Recording::new(&self.stream, false, |queue| {
            (0..CHAIN).try_for_each(|turn| multiply(queue, turn))
        })?;
        microseconds(&mut recording)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_way_that_is_right_is_chosen_and_what_is_no_number_is_not_right() {
        let choose = |errors: Vec<f64>| first_right(errors, |&error| Ok::<f64, CudaError>(error)).unwrap();
        assert_eq!(choose(vec![1.5, f64::NAN, 0.75, 0.1]), Some(0.75));
        assert_eq!(choose(vec![f64::INFINITY, f64::NAN]), None);
        let failed = first_right(vec![0, 1], |_| Err(CudaError::Blas { action: "multiplying", status: 7 }));
        assert!(failed.is_err());
    }
}
