//! Camera frames to the network's size on the GPU, the same bytes as [`ImageTransform::apply`]: raw frames go up, and two
//! kernels make of them what the vision tower reads.
//!
//! | file | part |
//! |---|---|
//! | `layout` | tables and frames as the kernels read them; grids |
//! | this one | tables kept per frame size, memory per set of frames, the queue |
//!
//! The tables are those of the CPU's own loops ([`tables`](crate::processor::image::tables)).

mod layout;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cudarc::driver::{CudaEvent, result, sys};
use image::RgbImage;

use self::layout::{FrameArguments, FramePlan, LaunchArguments, Launches, Places, THREADS};
use super::error::CudaError;
use super::gpu::{Gpu, Memory};
use super::module::Kernel;
use super::queue::Queue;
use super::source::{self, Source};
use crate::processor::image::{ImageError, ImageTransform};

/// The kernels' file.
fn source() -> Source {
    Source::plain("preprocess.cu", include_str!("../kernels/preprocess.cu"))
}

/// Frame sizes whose tables are kept on the GPU. Cameras seldom differ in more.
const PLANS_KEPT: usize = 8;

/// Why frames cannot be processed on the GPU.
#[derive(Debug, thiserror::Error)]
pub enum PreprocessError {
    /// A frame that the CPU refuses as well.
    #[error("frame {index}: {error}")]
    Frame {
        /// Which one.
        index: usize,
        /// What is wrong with it.
        error: ImageError,
    },
    /// Something below.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// A plan with its words on the GPU.
struct Uploaded {
    plan: FramePlan,
    words: Memory,
}

/// The kernels, and the tables of the frame sizes used last.
pub struct FramePreprocessor {
    gpu: Gpu,
    transform: ImageTransform,
    resize: Kernel,
    finish: Kernel,
    /// The most recently used one comes first.
    plans: Vec<Arc<Uploaded>>,
}

impl FramePreprocessor {
    /// Compiles the kernels for `gpu`; frames go through `transform`.
    ///
    /// # Errors
    /// No NVRTC, or one that refuses.
    pub fn new(gpu: &Gpu, transform: &ImageTransform) -> Result<Self, CudaError> {
        let module = source::compile(gpu, &source())?;
        Ok(Self {
            gpu: gpu.clone(),
            transform: transform.clone(),
            resize: module.kernel("resize_frames", 0)?,
            finish: module.kernel("finish_frames", 0)?,
            plans: Vec::new(),
        })
    }

    /// Memory for frames of these sizes (width, height), in this order, and all that depends on the sizes alone. Waits for what the
    /// default stream has queued: not to be made in every tick.
    ///
    /// # Errors
    /// Frames that [`ImageTransform::apply`] refuses, or whose results differ in size; no memory.
    pub fn batch(&mut self, sizes: &[(u32, u32)]) -> Result<FrameBatch, PreprocessError> {
        self.batch_to(sizes, None)
    }

    /// [`batch`](Self::batch), whose results go to `out`.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// `out` is memory of this GPU for all results, as long as the batch is queued.
    pub unsafe fn batch_into(
        &mut self,
        sizes: &[(u32, u32)],
        out: u64,
    ) -> Result<FrameBatch, PreprocessError> {
        self.batch_to(sizes, Some(out))
    }

    /// (frames, height, width, 3) of the results of frames of these sizes.
    ///
    /// # Errors
    /// As [`batch`](Self::batch).
    pub fn shape(&self, sizes: &[(u32, u32)]) -> Result<[usize; 4], PreprocessError> {
        let output = |&(width, height): &(u32, u32)| {
            let output = self.transform.output_size(width, height);
            output.map_err(|error| PreprocessError::Frame { index: 0, error })
        };
        let (width, height) = sizes.first().map_or(Ok((0, 0)), output)?;
        Ok([sizes.len(), height as usize, width as usize, 3])
    }

    fn batch_to(&mut self, sizes: &[(u32, u32)], out: Option<u64>) -> Result<FrameBatch, PreprocessError> {
        let plans = sizes
            .iter()
            .enumerate()
            .map(|(index, &size)| self.plan(index, size))
            .collect::<Result<Vec<_>, _>>()?;
        let places = Places::new(plans.iter().map(|uploaded| &uploaded.plan))?;
        if let Some(other) = plans.iter().find(|other| other.plan.restored() != plans[0].plan.restored()) {
            let ((width, height), found) = (plans[0].plan.restored(), other.plan.restored());
            return Err(CudaError::argument(
                "size of an observation's frames once resized",
                format!("{width}x{height}, as of the first one"),
                format!("{}x{}; use frames of one aspect ratio", found.0, found.1),
            )
            .into());
        }
        let shape = self.shape(sizes)?;
        let own = if out.is_none() { Some(self.gpu.allocate(shape.iter().product())?) } else { None };
        let out = out.or(own.as_ref().map(Memory::address)).unwrap_or_default();
        let memory = self.gpu.allocate(places.bytes)?;
        let mut next = out;
        let at = |place: usize| memory.address() + place as u64;
        let arguments: Vec<FrameArguments> = plans
            .iter()
            .zip(places.frames.iter().zip(&places.scratch))
            .map(|(uploaded, (&frame, &scratch))| {
                let out = next;
                next += uploaded.plan.output_bytes() as u64;
                uploaded.plan.arguments(uploaded.words.address(), [at(frame), at(scratch), out])
            })
            .collect();
        memory.write(places.arguments, &arguments)?;
        let launches = Launches::new(plans.iter().map(|uploaded| &uploaded.plan));
        let staging = Staging::new(&self.gpu, places.uploaded)?;
        Ok(FrameBatch {
            sizes: sizes.to_vec(),
            launches,
            places,
            shape,
            copied: None,
            staging,
            out,
            _own: own,
            memory,
            _plans: plans,
        })
    }

    /// Queues the kernels on the frames that were [uploaded](FrameBatch::upload) before on the same stream.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn queue(&self, queue: &Queue, batch: &FrameBatch) -> Result<(), CudaError> {
        let arguments = LaunchArguments { frames: batch.memory.address() + batch.places.arguments as u64 };
        // SAFETY: the arguments lie where they were written, and all addresses in them are the batch's own memory and the tables
        // that it keeps. The batch frees them only after the GPU is done (`Memory`).
        unsafe {
            if let Some(grid) = batch.launches.resize {
                queue.launch(&self.resize, grid, THREADS, 0, &arguments)?;
            }
            queue.launch(&self.finish, batch.launches.finish, THREADS, batch.launches.shared, &arguments)
        }
    }

    fn plan(&mut self, index: usize, (width, height): (u32, u32)) -> Result<Arc<Uploaded>, PreprocessError> {
        if let Some(found) = self.plans.iter().position(|kept| kept.plan.frame() == (width, height)) {
            self.plans[..=found].rotate_right(1);
            return Ok(Arc::clone(&self.plans[0]));
        }
        let tables =
            self.transform.tables(width, height).map_err(|error| PreprocessError::Frame { index, error })?;
        let plan = FramePlan::new(tables);
        let words = self.gpu.allocate(4 * plan.words().len())?;
        words.write(0, plan.words())?;
        let uploaded = Arc::new(Uploaded { plan, words });
        self.plans.insert(0, Arc::clone(&uploaded));
        self.plans.truncate(PLANS_KEPT);
        Ok(uploaded)
    }
}

/// A set of frames of certain sizes: where they wait for the copy, where they lie on the GPU, and what becomes of them.
pub struct FrameBatch {
    sizes: Vec<(u32, u32)>,
    launches: Launches,
    places: Places,
    shape: [usize; 4],
    /// Passed when the last upload has read the staging memory. Before it, so that it is dropped first.
    copied: Option<CudaEvent>,
    staging: Staging,
    out: u64,
    /// What is there, unless it is somebody else's.
    _own: Option<Memory>,
    memory: Memory,
    /// Whose tables the kernels read.
    _plans: Vec<Arc<Uploaded>>,
}

impl FrameBatch {
    /// (width, height) of the frames.
    pub fn sizes(&self) -> &[(u32, u32)] {
        &self.sizes
    }

    /// (frames, height, width, 3) of the results.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Where the results lie, u8 in this [`shape`](Self::shape) without gaps.
    pub fn address(&self) -> u64 {
        self.out
    }

    /// Bytes of the raw frames, which are uploaded, and of the results.
    pub fn bytes(&self) -> (usize, usize) {
        (self.places.uploaded, self.shape.iter().product())
    }

    /// Puts frames of the batch's sizes into pinned memory and queues their copy. Waits for the copy before, where it is not done.
    ///
    /// # Errors
    /// Frames of other sizes; [`CudaError::Driver`].
    pub fn upload<'a>(
        &mut self,
        queue: &Queue,
        frames: impl ExactSizeIterator<Item = &'a RgbImage> + Clone,
    ) -> Result<(), CudaError> {
        let found: Vec<(u32, u32)> = frames.clone().map(RgbImage::dimensions).collect();
        if found != self.sizes {
            let (expected, found) = (format!("{:?}", self.sizes), format!("{found:?}"));
            return Err(CudaError::argument("sizes of frames", expected, found));
        }
        if let Some(copied) = self.copied.take() {
            copied.synchronize().map_err(CudaError::driver("waiting for the upload of frames"))?;
        }
        #[cfg(test)]
        let emulated = self.staging.gpu.is_emulated();
        let staged = self.staging.bytes_mut();
        for (frame, &place) in frames.zip(&self.places.frames) {
            let bytes = frame.as_raw();
            // The sizes are those that the places were made for.
            staged[place..place + bytes.len()].copy_from_slice(bytes);
        }
        #[cfg(test)]
        if emulated {
            return self.memory.write(0, staged);
        }
        let failed = || CudaError::driver("uploading frames");
        let stream = queue.stream();
        stream.context().bind_to_thread().map_err(failed())?;
        // SAFETY: the memory has room for them (`Places`), and the staging memory is not written to or freed before the event that
        // follows has passed.
        unsafe { result::memcpy_htod_async(self.memory.address(), staged, stream.cu_stream()) }
            .map_err(failed())?;
        // Something else than a kernel of the queue: the next one waits for it.
        queue.interrupted();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        self.copied = Some(stream.record_event(Some(flags)).map_err(failed())?);
        Ok(())
    }
}

impl Drop for FrameBatch {
    fn drop(&mut self) {
        if let Some(copied) = self.copied.take()
            && let Err(error) = copied.synchronize()
        {
            tracing::warn!("waiting for the upload of frames: {error:?}");
        }
    }
}

/// Host memory that the GPU reads by itself.
struct Staging {
    gpu: Gpu,
    memory: *mut u8,
    bytes: usize,
}

// SAFETY: the memory has no ties to a thread; it is written through `&mut`.
unsafe impl Send for Staging {}

impl Staging {
    fn new(gpu: &Gpu, bytes: usize) -> Result<Self, CudaError> {
        #[cfg(test)]
        if gpu.is_emulated() {
            let memory = Box::into_raw(vec![0u8; bytes].into_boxed_slice()).cast::<u8>();
            return Ok(Self { gpu: gpu.clone(), memory, bytes });
        }
        let failed = || CudaError::driver(format!("allocating {bytes} bytes of pinned memory"));
        gpu.context().bind_to_thread().map_err(failed())?;
        // SAFETY: freed once, by what is returned.
        let memory = unsafe { result::malloc_host(bytes.max(1), 0) }.map_err(failed())?.cast::<u8>();
        // SAFETY: as many bytes were just allocated.
        unsafe { memory.write_bytes(0, bytes) };
        Ok(Self { gpu: gpu.clone(), memory, bytes })
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as many bytes were allocated and set to zero; `&mut self` is the only way to them.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.bytes) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        #[cfg(test)]
        if self.gpu.is_emulated() {
            let bytes = std::ptr::slice_from_raw_parts_mut(self.memory, self.bytes);
            // SAFETY: what `new` made, freed only here.
            return drop(unsafe { Box::from_raw(bytes) });
        }
        if self.gpu.context().bind_to_thread().is_ok() {
            // SAFETY: allocated by `new`, freed only here.
            let _ = unsafe { result::free_host(self.memory.cast()) };
        }
    }
}
