//! Camera frames to the images that the vision tower reads, on the GPU: bit by bit what the processor makes on the CPU.

use std::collections::VecDeque;

use image::RgbImage;
use tch::{Device, Kind, Tensor};

use super::super::{ModelError, cuda::Stream};
use crate::{
    cuda::{
        Gpu, Queue,
        preprocess::{FrameBatch, FramePreprocessor},
    },
    processor::image::ImageTransform,
};

/// Sets of frame sizes whose memory is kept. A node has one.
const BATCHES_KEPT: usize = 4;

/// Raw frames in, images out, both in memory whose addresses stay.
pub struct GpuFrames {
    /// The most recently used one comes first. Before the kernels, so that it is dropped first.
    kept: VecDeque<Kept>,
    preprocessor: FramePreprocessor,
    gpu: Gpu,
    ordinal: usize,
}

/// Frames of certain sizes. The batch is dropped first, which waits for the GPU.
struct Kept {
    batch: FrameBatch,
    /// u8 (frames, height, width, 3): where the batch's results go.
    images: Tensor,
}

impl GpuFrames {
    /// Compiles the kernels for `cuda:ordinal`; frames go through `transform`.
    ///
    /// # Errors
    /// No GPU, or no NVRTC.
    pub fn new(ordinal: usize, transform: &ImageTransform) -> Result<Self, ModelError> {
        let gpu = Gpu::open(ordinal)?;
        let preprocessor = FramePreprocessor::new(&gpu, transform)?;
        Ok(Self { kept: VecDeque::new(), preprocessor, gpu, ordinal })
    }

    /// Queues copy and processing of `frames` on `stream` and returns where the images will be, u8 (frames, height, width, 3):
    /// the same tensor whenever the frames have the same sizes. Always the same stream must be given, which reads the images too.
    ///
    /// # Errors
    /// Frames that the processor refuses as well, or CUDA refuses.
    pub fn images(&mut self, frames: &[&RgbImage], stream: &Stream) -> Result<Tensor, ModelError> {
        // SAFETY: libtorch keeps its streams until the process ends, and they belong to the primary context.
        let queue = Queue::new(unsafe { self.gpu.external_stream(stream.handle()?) }, self.gpu.overlaps());
        let sizes: Vec<(u32, u32)> = frames.iter().map(|frame| frame.dimensions()).collect();
        let kept = match self.kept.iter().position(|kept| kept.batch.sizes() == sizes) {
            Some(place) => self.kept.remove(place),
            None => None,
        };
        let mut kept = match kept {
            Some(kept) => kept,
            None => {
                // Before memory for another is taken.
                self.kept.truncate(BATCHES_KEPT - 1);
                self.keep(&sizes)?
            }
        };
        let done = kept
            .batch
            .upload(&queue, frames.iter().copied())
            .and_then(|()| self.preprocessor.queue(&queue, &kept.batch));
        let images = kept.images.shallow_clone();
        self.kept.push_front(kept);
        done?;
        Ok(images)
    }

    fn keep(&mut self, sizes: &[(u32, u32)]) -> Result<Kept, ModelError> {
        let shape = self.preprocessor.shape(sizes)?.map(|extent| extent as i64);
        // Made outside of the network's ticks, of memory that only the default stream has used: what libtorch still does with it
        // there is done once the batch is made, which waits for that stream.
        let images = Tensor::f_empty(shape, (Kind::Uint8, Device::Cuda(self.ordinal)))?;
        // SAFETY: the tensor is contiguous, has the shape of the results, and is kept beside the batch.
        let batch = unsafe { self.preprocessor.batch_into(sizes, images.data_ptr() as u64) }?;
        Ok(Kept { batch, images })
    }
}
