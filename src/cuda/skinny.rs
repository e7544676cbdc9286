//! The own kernel for products with few rows: its shapes, and what they need.

use super::error::CudaError;
use super::gpu::Gpu;
use super::kernels;
use super::module::Kernel;
use super::source::{self, Source};

/// Tokens of a tile of the tensor core's second operand.
const TOKEN_TILE: usize = 8;
/// Token tiles that a block holds at most: its sums must stay in registers.
pub(super) const MOST_TILES: usize = 8;

/// A shape of the kernel: the template's parameters of gemm.cu but for the number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Skinny {
    /// Tiles of 16 columns of a warp.
    pub column_tiles: usize,
    /// Warps side by side over the columns.
    pub column_warps: usize,
    /// Warps that share the k of a chunk.
    pub depth_warps: usize,
    /// Blocks of 32 k of a warp in a chunk.
    pub depth_blocks: usize,
    /// Chunks that are on their way or being multiplied.
    pub stages: usize,
    /// Warps that copy activations.
    pub producers: usize,
    /// Blocks that share the k of a product and sum through each other's shared memory; 1: each writes a part.
    pub cluster: usize,
}

const fn shape(
    column_tiles: usize,
    column_warps: usize,
    depth_warps: usize,
    depth_blocks: usize,
    stages: usize,
    producers: usize,
) -> Skinny {
    Skinny { column_tiles, column_warps, depth_warps, depth_blocks, stages, producers, cluster: 1 }
}

impl Skinny {
    /// The shapes that are tried, each alone and in clusters.
    pub const ALL: [Self; 14] = [
        // 32 columns
        shape(1, 2, 4, 1, 6, 4),
        // 48
        shape(1, 3, 4, 1, 4, 4),
        shape(1, 3, 4, 1, 8, 4),
        shape(1, 3, 2, 2, 4, 4),
        shape(1, 3, 2, 1, 8, 2),
        // 64
        shape(1, 4, 2, 2, 3, 4),
        shape(1, 4, 2, 2, 6, 4),
        // 96
        shape(1, 6, 2, 1, 5, 4),
        shape(1, 6, 2, 1, 10, 4),
        shape(1, 6, 2, 2, 5, 4),
        shape(2, 3, 2, 2, 3, 4),
        // 144
        shape(1, 9, 1, 2, 4, 3),
        shape(1, 9, 1, 2, 7, 3),
        // 192
        shape(2, 6, 1, 2, 3, 3),
    ];

    /// Sizes of clusters that are tried: more than 8 blocks not every GPU takes.
    pub const CLUSTERS: [usize; 3] = [2, 4, 8];

    /// The same in clusters of so many blocks.
    pub fn in_clusters(self, cluster: usize) -> Self {
        Self { cluster, ..self }
    }

    /// Columns of the output that a block makes.
    pub fn columns(&self) -> usize {
        16 * self.column_tiles * self.column_warps
    }

    /// k that is copied and multiplied at once.
    pub fn chunk(&self) -> usize {
        32 * self.depth_warps * self.depth_blocks
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        32 * (self.column_warps * self.depth_warps + self.producers) as u32
    }

    /// Bytes of shared memory of a block that holds so many tiles of 8 tokens.
    pub fn shared(&self, tiles: usize) -> usize {
        let stage = (self.columns() + tiles * TOKEN_TILE) * self.chunk() * 2;
        let sums = self.depth_warps * tiles * TOKEN_TILE * (self.columns() + 4) * 4;
        (stage * self.stages).max(sums)
    }

    /// Its name for people.
    pub fn name(&self) -> String {
        format!(
            "own {}x{} {} stages, {} warps",
            self.columns(),
            self.chunk(),
            self.stages,
            self.threads() / 32
        )
    }

    fn symbol(&self, tiles: usize) -> String {
        let Self { column_tiles, column_warps, depth_warps, depth_blocks, stages, producers, cluster } = self;
        format!(
            "gemm_{column_tiles}_{column_warps}_{depth_warps}_{depth_blocks}_{stages}_{producers}_{cluster}_{tiles}"
        )
    }

    /// Whether a block fits on the GPU, its accumulators into registers.
    pub(super) fn fits(&self, gpu: &Gpu, tiles: usize) -> bool {
        // Clusters came with the generation that lets kernels overlap.
        (self.cluster == 1 || gpu.overlaps())
            && self.shared(tiles) <= gpu.shared_per_block() as usize
            && self.column_tiles * tiles <= 16
    }
}

/// Tiles of tokens of a block for so many rows, and blocks one above the other.
pub(super) fn token_tiles(rows: usize) -> (usize, usize) {
    let tiles = rows.div_ceil(TOKEN_TILE).max(1);
    let blocks = tiles.div_ceil(MOST_TILES);
    (tiles.div_ceil(blocks), blocks)
}

/// The kernels of these shapes, each for blocks of so many tiles of tokens.
pub(super) fn source(instances: &[(Skinny, usize)]) -> Source {
    let instance = |(shape, tiles): &(Skinny, usize)| {
        let Skinny { column_tiles, column_warps, depth_warps, depth_blocks, stages, producers, cluster } =
            shape;
        let parameters = format!(
            "{}, {column_tiles}, {column_warps}, {depth_warps}, {depth_blocks}, {stages}, {tiles}, {producers}",
            shape.symbol(*tiles)
        );
        match cluster {
            1 => format!("GEMM_KERNEL({parameters})\n"),
            _ => format!("GEMM_CLUSTER_KERNEL({parameters}, {cluster})\n"),
        }
    };
    Source { instances: instances.iter().map(instance).collect(), ..Source::plain("gemm.cu", kernels::GEMM) }
}

/// All shapes, alone and in clusters.
pub(super) fn all() -> Vec<Skinny> {
    let sizes = |shape: Skinny| [1].into_iter().chain(Skinny::CLUSTERS).map(move |n| shape.in_clusters(n));
    Skinny::ALL.into_iter().flat_map(sizes).collect()
}

/// Compiles those of `shapes` that fit for blocks of so many tiles of tokens, side by side on the machine's cores.
pub(super) fn compile(
    gpu: &Gpu,
    shapes: &[Skinny],
    tiles: &[usize],
) -> Result<Vec<(Skinny, usize, Kernel)>, CudaError> {
    let instances: Vec<(Skinny, usize)> = tiles
        .iter()
        .flat_map(|&tiles| shapes.iter().map(move |&shape| (shape, tiles)))
        .filter(|(shape, tiles)| shape.fits(gpu, *tiles))
        .collect();
    let groups: Vec<&[(Skinny, usize)]> = instances.chunks(source::group(gpu)).collect();
    let sources: Vec<Source> = groups.iter().map(|group| source(group)).collect();
    let modules = source::compile_all(gpu, &sources)?;
    let mut kernels = Vec::with_capacity(instances.len());
    for (group, module) in groups.into_iter().zip(modules) {
        for &(shape, tiles) in group {
            let kernel = module.kernel(&shape.symbol(tiles), shape.shared(tiles) as u32)?;
            kernels.push((shape, tiles, kernel));
        }
    }
    Ok(kernels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_spread_evenly_over_blocks() {
        assert_eq!(token_tiles(1), (1, 1));
        assert_eq!(token_tiles(17), (3, 1));
        assert_eq!(token_tiles(51), (7, 1));
        assert_eq!(token_tiles(64), (8, 1));
        assert_eq!(token_tiles(102), (7, 2));
    }

    #[test]
    fn every_shape_has_whole_vectors_and_fits_a_block_of_hopper() {
        for shape in Skinny::ALL {
            assert!(shape.threads() <= 1024, "{shape:?}");
            assert!(shape.stages >= 2, "{shape:?}");
            assert!(shape.shared(7) <= 227 << 10, "{shape:?}: {}", shape.shared(7));
            // Each consuming warp copies its own share of a stage: 16 bytes per lane, tile half and block of k.
            let own =
                shape.column_warps * shape.depth_warps * shape.depth_blocks * shape.column_tiles * 2 * 32;
            assert_eq!(own * 16, shape.columns() * shape.chunk() * 2, "{shape:?}");
            // Columns beyond the first stages are prefetched by the first threads.
            assert!(shape.columns() <= 32 * shape.column_warps * shape.depth_warps, "{shape:?}");
        }
    }
}
