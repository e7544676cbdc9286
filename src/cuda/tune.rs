//! Finding what is fastest for a shape, by trying on the GPU that is there.
//!
//! What is timed is a chain as it occurs: the product, then a norm that sums its parts, many times over, as one CUDA graph,
//! the weights different each time so that they come from memory and not from the cache.

use std::sync::Arc;

use super::Activation;
use super::check::Check;
use super::error::CudaError;
use super::gemm::{Gemm, GemmCall, GemmShape, Gemms, MOST_PARTS, Plan, WORKSPACE};
use super::kernels::{Ahead, Kernels, NormArguments};
use super::queue::{Queue, Recording};
use super::skinny;

/// Ways of cuBLASLt that are tried.
const LIBRARY_CANDIDATES: usize = 16;
/// Bytes of weights in rotation: several times any L2 cache, as they come from memory in a tick.
pub(super) const POOL: usize = 192 << 20;
/// Products of a recording.
pub(super) const CHAIN: usize = 24;
/// Launches of a recording that warm up, and that count.
const WARM_UP: usize = 2;
const ROUNDS: usize = 5;
/// Ways that are kept for a shape, and of those that are much alike.
const WAYS: usize = 10;
const ALIKE: usize = 3;
/// Spread of the values: products stay small.
pub(super) const SPREAD: f32 = 0.05;

/// One way to compute a product, and how long it took.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// [`Plan::name`].
    pub name: String,
    /// Whether it is cuBLASLt.
    pub library: bool,
    /// Microseconds of the product with the norm behind it, or what went wrong.
    pub time: Result<f64, String>,
}

/// What was measured for a shape.
#[derive(Debug, Clone)]
pub struct Tuned {
    pub shape: GemmShape,
    /// Fastest first, failed ones last.
    pub candidates: Vec<Candidate>,
}

impl Tuned {
    /// Bytes of the weight.
    pub fn weight_bytes(&self) -> usize {
        self.shape.n * self.shape.k * 2
    }
}

impl Gemms {
    /// The fastest plan for a shape; measured the first time, a fraction of a second.
    ///
    /// # Errors
    /// No way works, or no memory.
    pub fn tuned(&mut self, kernels: &Kernels, shape: GemmShape) -> Result<Arc<Gemm>, CudaError> {
        if let Some(known) = self.ways(shape).first() {
            return Ok(Arc::clone(known));
        }
        if shape.n == 0
            || shape.rows == 0
            || shape.k == 0
            || !shape.k.is_multiple_of(8)
            || !shape.n.is_multiple_of(4)
        {
            let expected = "rows, a multiple of 4 columns, a multiple of 8 for k";
            return Err(CudaError::argument("product", expected, shape));
        }
        let plans = self.plans(shape)?;
        #[cfg(test)]
        if self.gpu.is_emulated() {
            return self.untimed(shape, plans);
        }
        let bench = Bench::new(self, kernels, shape)?;
        let check = Check::new(&self.gpu, kernels, shape)?;
        let mut timed: Vec<(Gemm, Result<f64, String>)> = plans
            .into_iter()
            .map(|plan| {
                let gemm = Gemm { shape, plan };
                let time = bench.time(self, kernels, &gemm).map_err(|error| error.to_string());
                (gemm, time)
            })
            .collect();
        let key = |time: &Result<f64, String>| time.as_ref().copied().unwrap_or(f64::INFINITY);
        timed.sort_by(|a, b| key(&a.1).total_cmp(&key(&b.1)));
        let mut ways = Vec::new();
        let mut candidates = Vec::new();
        for (gemm, mut time) in timed {
            let (name, library) = (gemm.plan.name(), matches!(gemm.plan, Plan::Library(_)));
            // Only what may be chosen is worth the look.
            let alike = ways.iter().filter(|way: &&Arc<Gemm>| way.plan.is_like(&gemm.plan)).count();
            if time.is_ok() && ways.len() < WAYS && alike < ALIKE {
                match check.error(self, kernels, &gemm) {
                    Ok(error) if error <= 1.0 => ways.push(Arc::new(gemm)),
                    Ok(error) => {
                        time = Err(format!("its result is off by {error:.1} times what rounding explains"));
                    }
                    Err(error) => time = Err(error.to_string()),
                }
                if let Err(reason) = &time {
                    tracing::warn!("{shape}: {name} is not used: {reason}");
                }
            }
            candidates.push(Candidate { name, library, time });
        }
        // What failed goes last.
        candidates.sort_by_key(|candidate| candidate.time.is_err());
        self.table.push(Tuned { shape, candidates });
        let Some(best) = ways.first().cloned() else {
            let reasons = self.table.last().and_then(|tuned| tuned.candidates.first());
            let found = reasons.and_then(|candidate| candidate.time.as_ref().err().cloned());
            return Err(CudaError::argument(
                "ways to multiply",
                format!("one that works for {shape}"),
                found.unwrap_or_else(|| "none".to_owned()),
            ));
        };
        self.cached.insert(shape, ways);
        Ok(best)
    }

    /// The ways that are right, fastest first: which is best beside other kernels only these can tell.
    pub fn ways(&self, shape: GemmShape) -> &[Arc<Gemm>] {
        self.cached.get(&shape).map_or(&[], Vec::as_slice)
    }

    /// On the emulated GPU nothing is fast: one or the other, so that different shapes try different ways.
    #[cfg(test)]
    fn untimed(&mut self, shape: GemmShape, plans: Vec<Plan>) -> Result<Arc<Gemm>, CudaError> {
        let count = plans.len().max(1);
        let plan = plans.into_iter().nth((shape.rows + shape.n / 4 + shape.k / 8) % count);
        let plan = plan.ok_or_else(|| CudaError::argument("ways to multiply", "some", shape))?;
        let gemm = Arc::new(Gemm { shape, plan });
        self.cached.insert(shape, vec![Arc::clone(&gemm)]);
        Ok(gemm)
    }

    /// Everything worth trying.
    fn plans(&mut self, shape: GemmShape) -> Result<Vec<Plan>, CudaError> {
        let GemmShape { rows, n, k, finish } = shape;
        let mut plans = Vec::new();
        let (_, blocks) = skinny::token_tiles(rows);
        for skinny in self.compiled(rows)? {
            let across = n.div_ceil(skinny.columns()) * blocks;
            if skinny.cluster > 1 {
                let split = k.div_ceil(skinny.cluster).next_multiple_of(skinny.chunk());
                // Only where every block has something to do, and there are enough blocks and not too many.
                let blocks = across * skinny.cluster;
                let multiprocessors = self.gpu.multiprocessors() as usize;
                let fills = (multiprocessors / 2..=3 * multiprocessors).contains(&blocks);
                if split * (skinny.cluster - 1) < k && fills {
                    let ahead = split > skinny.chunk() * (skinny.stages - 1);
                    for prefetch in [false, true].into_iter().take(1 + usize::from(ahead)) {
                        plans.push(Plan::Own { skinny, split, depth: skinny.cluster, prefetch });
                    }
                }
                continue;
            }
            for (split, depth) in splits(k, skinny.chunk(), across, self.gpu.multiprocessors() as usize) {
                // A finished product in parts costs another kernel: only where one part leaves the GPU idle.
                if finish.is_some() && depth > 1 && across * 2 >= self.gpu.multiprocessors() as usize {
                    continue;
                }
                let ahead = self.gpu.overlaps() && split > skinny.chunk() * (skinny.stages - 1);
                plans.push(Plan::Own { skinny, split, depth, prefetch: false });
                if ahead {
                    plans.push(Plan::Own { skinny, split, depth, prefetch: true });
                }
            }
        }
        let multiprocessors = self.gpu.multiprocessors() as usize;
        for shape in self.compiled_warpgroups(rows) {
            let across = n.div_ceil(shape.columns()) * blocks;
            let chunks = k.div_ceil(shape.chunk());
            for depth in 1..=MOST_PARTS.min(chunks) {
                let split = chunks.div_ceil(depth) * shape.chunk();
                // Every block has something to do, and there are enough blocks and not too many.
                let fits = split * (depth - 1) < k && depth.is_multiple_of(shape.cluster);
                let blocks = across * depth;
                if !fits || !(multiprocessors / 6..=3 * multiprocessors).contains(&blocks) {
                    continue;
                }
                if finish.is_some() && depth != shape.cluster {
                    continue;
                }
                plans.push(Plan::Warpgroup { shape, split, depth });
            }
        }
        if let Ok((blas, _)) = &self.blas {
            let ways = |gelu| blas.candidates((rows, n, k), gelu, WORKSPACE, LIBRARY_CANDIDATES);
            // The library's epilogue needs the bias in bf16, which only plain layers have.
            match ways(finish == Some(Activation::GeluTanh)) {
                Ok(found) => plans.extend(found.into_iter().map(Plan::Library)),
                Err(error) => tracing::warn!("{shape}: {error}"),
            }
        }
        Ok(plans)
    }
}

/// (k of a part, parts) that fill the GPU once or twice, best filled first.
fn splits(k: usize, chunk: usize, across: usize, multiprocessors: usize) -> Vec<(usize, usize)> {
    let mut all: Vec<(usize, usize)> = Vec::new();
    for wanted in 1..=MOST_PARTS {
        let split = k.div_ceil(wanted).next_multiple_of(chunk);
        let parts = k.div_ceil(split);
        if !all.contains(&(split, parts)) {
            all.push((split, parts));
        }
    }
    // Time in units of a multiprocessor's whole k: waves of blocks, two of which a multiprocessor may hold.
    let cost = |&(split, parts): &(usize, usize)| {
        let blocks = across * parts;
        let waves = blocks.div_ceil(multiprocessors);
        waves as f64 * split as f64 + 0.02 * k as f64 * parts as f64
    };
    all.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
    all.truncate(3);
    all
}

/// Microseconds of each of the [`CHAIN`] products of a recording.
pub(super) fn microseconds(recording: &mut Recording) -> Result<f64, CudaError> {
    Ok(f64::from(recording.median(WARM_UP, ROUNDS)?) * 1000.0 / CHAIN as f64)
}

/// Memory and operands for timing one shape.
struct Bench {
    pool: super::Memory,
    weights: usize,
    activations: super::Memory,
    bias: super::Memory,
    out: super::Memory,
    parts: super::Memory,
    residual: super::Memory,
    stream: Arc<cudarc::driver::CudaStream>,
    width: usize,
}

impl Bench {
    fn new(gemms: &Gemms, kernels: &Kernels, shape: GemmShape) -> Result<Self, CudaError> {
        let GemmShape { rows, n, k, .. } = shape;
        let gpu = &gemms.gpu;
        let weights = (POOL / (n * k * 2)).clamp(2, CHAIN);
        let stream = gpu.new_stream()?;
        let bench = Self {
            pool: gpu.allocate(weights * n * k * 2)?,
            weights,
            activations: gpu.allocate(rows * k * 2)?,
            bias: gpu.allocate(n * 4)?,
            out: gpu.allocate(rows * n * 4)?,
            parts: gpu.allocate(MOST_PARTS * rows * n * 4)?,
            residual: gpu.allocate(rows * n * 4)?,
            stream,
            width: n.min(4608) / 4 * 4,
        };
        let queue = Queue::new(Arc::clone(&bench.stream), false);
        for (seed, memory) in [(1, &bench.pool), (2, &bench.activations)] {
            // SAFETY: as many values as the memory holds.
            unsafe { kernels.fill(&queue, memory.address(), memory.bytes() / 2, seed, SPREAD)? };
        }
        for memory in [&bench.bias, &bench.residual, &bench.parts, &bench.out] {
            // SAFETY: as above. Zeros are f32 values too.
            unsafe { kernels.fill(&queue, memory.address(), memory.bytes() / 2, 3, 0.0)? };
        }
        Ok(bench)
    }

    /// Microseconds of a product with a norm behind it.
    fn time(&self, gemms: &Gemms, kernels: &Kernels, gemm: &Gemm) -> Result<f64, CudaError> {
        let GemmShape { rows, n, k, finish } = gemm.shape;
        let mut recording = Recording::new(&self.stream, gemms.gpu.overlaps(), |queue| {
            for turn in 0..CHAIN {
                let call = GemmCall {
                    activations: self.activations.address(),
                    weight: self.pool.address() + (turn % self.weights * n * k * 2) as u64,
                    bias: self.bias.address(),
                    bias_bf16: self.bias.address(),
                    out: if finish.is_some() { self.out.address() } else { self.parts.address() },
                    parts: self.parts.address(),
                    ahead: Ahead::default(),
                };
                let norm = NormArguments {
                    residual: self.residual.address(),
                    parts: if finish.is_some() { 0 } else { self.parts.address() },
                    bias: 0,
                    multiply: 0,
                    add: 0,
                    out: self.out.address(),
                    part_stride: (rows * n) as i64,
                    splits: gemm.plan.parts() as i32,
                    width: self.width as i32,
                    tokens: rows as i32,
                    first: 0,
                    count: rows as i32,
                    keep: 0,
                    eps: 1e-5,
                };
                // SAFETY: the memory was allocated for this shape; the norm reads at most rows · n values of each.
                unsafe {
                    gemms.multiply(kernels, queue, gemm, &call)?;
                    kernels.residual_norm(queue, 1, &norm)?;
                }
            }
            Ok::<(), CudaError>(())
        })?;
        microseconds(&mut recording)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_k_in_whole_chunks_and_none_is_empty() {
        for (k, chunk, across) in
            [(1536, 128, 32), (6144, 64, 16), (128, 128, 48), (520, 64, 3), (20, 128, 1)]
        {
            let all = splits(k, chunk, across, 132);
            assert!(!all.is_empty() && all.len() <= 3);
            for (split, parts) in all {
                assert!(
                    split % chunk == 0 && split * parts >= k && split * (parts - 1) < k,
                    "{k}: {split}, {parts}"
                );
                assert!(parts <= MOST_PARTS);
            }
        }
    }

    #[test]
    fn a_narrow_product_is_split_until_it_fills_the_gpu() {
        // 16 blocks across: 8 parts make 128 of 132.
        let best = splits(6144, 64, 16, 132)[0];
        assert_eq!(best, (768, 8));
        // 128 blocks across fill it in one part.
        assert_eq!(splits(1536, 128, 128, 132)[0], (1536, 1));
    }
}
