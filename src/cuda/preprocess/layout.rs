//! Tables and frames as the kernels of preprocess.cu read them, at addresses that somebody else gives out.

use super::super::error::CudaError;
use crate::processor::image::tables::{AxisTable, FrameTables, ResizeTables};

/// Columns and rows of the tile that a block of `finish_frames` makes.
const TILE: [usize; 2] = [32, 16];
/// Threads of a block.
pub(super) const THREADS: u32 = 256;
/// Alignment of everything in device memory, in bytes.
const ALIGNMENT: usize = 256;

/// `Axis` of preprocess.cu.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Axis {
    table: u64,
    length: i32,
    taps: i32,
}

/// `Resize` of preprocess.cu.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Resize {
    x: Axis,
    y: Axis,
    method: i32,
    left: i32,
    top: i32,
    across: i32,
    down: i32,
    factor: f32,
}

/// `Method` of preprocess.cu.
mod method {
    pub const COPY: i32 = 0;
    pub const BLOCKS: i32 = 1;
    pub const SHRINK: i32 = 2;
    pub const ENLARGE: i32 = 3;
}

/// `Frame` of preprocess.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct FrameArguments {
    frame: u64,
    cropped: u64,
    out: u64,
    resize: Resize,
    restore: Resize,
    x: Axis,
    y: Axis,
    frame_stride: i64,
    cropped_width: i32,
    cropped_height: i32,
    width: i32,
    height: i32,
}

/// `FrameArguments` of preprocess.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct LaunchArguments {
    /// One [`FrameArguments`] per frame.
    pub frames: u64,
}

/// The tables of one frame size, with the words that lie in memory.
#[derive(Debug)]
pub struct FramePlan {
    tables: FrameTables,
    words: Vec<u32>,
}

impl FramePlan {
    /// The words of these tables.
    pub fn new(tables: FrameTables) -> Self {
        let mut words = Vec::new();
        for axis in axes(&tables).into_iter().flatten() {
            words.extend(axis.starts.iter().chain(&axis.counts).chain(&axis.weights));
        }
        Self { tables, words }
    }

    /// What has to lie in memory.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// (width, height) of the frame.
    pub fn frame(&self) -> (u32, u32) {
        self.tables.frame
    }

    /// (width, height) of the result.
    pub fn output(&self) -> (u32, u32) {
        self.tables.output
    }

    /// (width, height) once the shortest edge is restored, in which all frames of an observation must agree.
    pub fn restored(&self) -> (u32, u32) {
        self.tables.restored
    }

    /// Bytes of the frame.
    pub fn frame_bytes(&self) -> usize {
        bytes(self.tables.frame)
    }

    /// Bytes of the result.
    pub fn output_bytes(&self) -> usize {
        bytes(self.tables.output)
    }

    /// Bytes that the kernels need between them.
    pub fn scratch_bytes(&self) -> usize {
        if self.is_copied() { 0 } else { bytes(self.tables.cropped) }
    }

    fn is_copied(&self) -> bool {
        matches!(self.tables.resize, ResizeTables::Copy { .. })
    }

    /// The kernels' view of a frame; `words` is where [`words`](Self::words) lie, the others are where the bytes of
    /// [`frame_bytes`](Self::frame_bytes), [`scratch_bytes`](Self::scratch_bytes) and [`output_bytes`](Self::output_bytes) lie.
    pub fn arguments(&self, words: u64, [frame, cropped, out]: [u64; 3]) -> FrameArguments {
        let FrameTables { frame: size, cropped: cropped_size, output, .. } = &self.tables;
        let mut next = words;
        let [resize_x, resize_y, restore_x, restore_y, x, y] = axes(&self.tables).map(|axis| {
            let Some(axis) = axis else { return Axis::default() };
            let table = next;
            next += 4 * (2 * axis.len() + axis.weights.len()) as u64;
            Axis { table, length: axis.len() as i32, taps: axis.taps as i32 }
        });
        FrameArguments {
            frame,
            cropped,
            out,
            resize: resize(&self.tables.resize, resize_x, resize_y),
            restore: resize(&self.tables.restore, restore_x, restore_y),
            x,
            y,
            frame_stride: i64::from(size.0) * 3,
            // Sides of images are far below 2³¹.
            cropped_width: cropped_size.0 as i32,
            cropped_height: cropped_size.1 as i32,
            width: output.0 as i32,
            height: output.1 as i32,
        }
    }

    /// Rows that the largest tile needs between its two passes.
    fn rows_between(&self) -> usize {
        let height = self.tables.output.1 as usize;
        let [_, Some(y)] = &self.tables.tokens else { return TILE[1].min(height) };
        // There are as many destinations as rows.
        let rows = (0..height).step_by(TILE[1]).map(|top| {
            let last = (top + TILE[1]).min(height) - 1;
            (y.starts[last] + y.counts[last] - y.starts[top]) as usize
        });
        rows.max().unwrap_or(0)
    }
}

fn bytes((width, height): (u32, u32)) -> usize {
    width as usize * height as usize * 3
}

fn pair(resize: &ResizeTables) -> [Option<&AxisTable>; 2] {
    match resize {
        ResizeTables::Shrink { x, y } | ResizeTables::Enlarge { x, y } => [Some(x), Some(y)],
        ResizeTables::Copy { .. } | ResizeTables::Blocks { .. } => [None, None],
    }
}

/// In the order in which their words lie.
fn axes(tables: &FrameTables) -> [Option<&AxisTable>; 6] {
    let ([a, b], [c, d]) = (pair(&tables.resize), pair(&tables.restore));
    let [x, y] = &tables.tokens;
    [a, b, c, d, x.as_ref(), y.as_ref()]
}

fn resize(tables: &ResizeTables, x: Axis, y: Axis) -> Resize {
    let axes = Resize { x, y, ..Resize::default() };
    match *tables {
        ResizeTables::Copy { left, top } => {
            Resize { method: method::COPY, left: left as i32, top: top as i32, ..axes }
        }
        ResizeTables::Blocks { left, top, across, down, factor } => Resize {
            method: method::BLOCKS,
            left: left as i32,
            top: top as i32,
            across: across as i32,
            down: down as i32,
            factor,
            ..axes
        },
        ResizeTables::Shrink { .. } => Resize { method: method::SHRINK, ..axes },
        ResizeTables::Enlarge { .. } => Resize { method: method::ENLARGE, ..axes },
    }
}

/// How the kernels are launched for frames of these plans, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launches {
    /// Grid of `resize_frames`; none where no frame is resized.
    pub resize: Option<[usize; 3]>,
    /// Grid of `finish_frames`.
    pub finish: [usize; 3],
    /// Its bytes of shared memory.
    pub shared: u32,
}

impl Launches {
    /// For frames of these plans.
    pub fn new<'a>(plans: impl Iterator<Item = &'a FramePlan>) -> Self {
        let (mut count, mut pixels, mut width, mut height, mut rows) = (0, 0, 1, 1, 0);
        for plan in plans {
            count += 1;
            pixels = pixels.max(plan.scratch_bytes() / 3);
            width = width.max(plan.output().0 as usize);
            height = height.max(plan.output().1 as usize);
            rows = rows.max(plan.rows_between());
        }
        Self {
            resize: (pixels > 0).then(|| [pixels.div_ceil(THREADS as usize), 1, count]),
            finish: [width.div_ceil(TILE[0]), height.div_ceil(TILE[1]), count],
            shared: (rows * TILE[0] * 3) as u32,
        }
    }
}

/// Where the parts of a batch lie in memory, in bytes from its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Frames, and what is between the kernels, one each per frame.
    pub frames: Vec<usize>,
    pub scratch: Vec<usize>,
    /// The [`FrameArguments`].
    pub arguments: usize,
    /// Up to here from the start: what is uploaded for each tick.
    pub uploaded: usize,
    /// All of it.
    pub bytes: usize,
}

impl Places {
    /// Frames come first, so that they are uploaded as one piece.
    pub fn new<'a>(plans: impl Iterator<Item = &'a FramePlan> + Clone) -> Result<Self, CudaError> {
        let mut end = 0usize;
        let mut place = |bytes: usize| {
            let at = end;
            end += bytes.next_multiple_of(ALIGNMENT);
            at
        };
        let frames: Vec<usize> = plans.clone().map(|plan| place(plan.frame_bytes())).collect();
        if frames.is_empty() {
            return Err(CudaError::argument("frames of an observation", "at least one", "none"));
        }
        let uploaded =
            frames.last().copied().unwrap_or(0) + plans.clone().last().map_or(0, FramePlan::frame_bytes);
        let scratch = plans.map(|plan| place(plan.scratch_bytes())).collect();
        let arguments = place(size_of::<FrameArguments>() * frames.len());
        Ok(Self { frames, scratch, arguments, uploaded, bytes: end })
    }
}
