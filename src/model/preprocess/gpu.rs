//! Camera frames to the images that the vision tower reads, on the GPU: bit by bit what the processor makes on the CPU.

use std::collections::VecDeque;

use image::RgbImage;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use super::super::{ModelError, cuda::Stream};
use crate::{
    cuda::{
        Gpu, Queue,
        preprocess::{FrameBatch, FramePreprocessor, PreprocessError},
    },
    processor::image::ImageTransform,
};

/// Sets of frame sizes whose memory is kept. A node has one.
const BATCHES_KEPT: usize = 4;

/// Sets of random frames that are tried when frames of new sizes come.
const TRIALS: u64 = 2;

/// Raw frames in, images out, both in memory whose addresses stay.
pub struct GpuFrames {
    /// The most recently used one comes first. Before the kernels, so that it is dropped first.
    kept: VecDeque<Kept>,
    preprocessor: FramePreprocessor,
    transform: ImageTransform,
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
        Ok(Self { kept: VecDeque::new(), preprocessor, transform: transform.clone(), gpu, ordinal })
    }

    /// Makes ready for frames of these sizes (width, height): what depends on sizes alone, and a trial on random frames. Waits for
    /// the GPU. What is done later for other sizes is done now.
    ///
    /// # Errors
    /// Frames that the processor refuses as well, CUDA refuses, or a byte is not that of the CPU.
    pub fn make_ready(&mut self, sizes: &[(u32, u32)], stream: &Stream) -> Result<(), ModelError> {
        let queue = self.queue(stream)?;
        let kept = self.take(sizes, &queue, stream)?;
        self.kept.push_front(kept);
        Ok(())
    }

    fn queue(&self, stream: &Stream) -> Result<Queue, ModelError> {
        // SAFETY: libtorch keeps its streams until the process ends, and they belong to the primary context.
        Ok(Queue::new(unsafe { self.gpu.external_stream(stream.handle()?) }, self.gpu.overlaps()))
    }

    /// Memory for frames of these sizes out of those kept, or new and tried.
    fn take(&mut self, sizes: &[(u32, u32)], queue: &Queue, stream: &Stream) -> Result<Kept, ModelError> {
        if let Some(kept) = self
            .kept
            .iter()
            .position(|kept| kept.batch.sizes() == sizes)
            .and_then(|place| self.kept.remove(place))
        {
            return Ok(kept);
        }
        // Before memory for another is taken.
        self.kept.truncate(BATCHES_KEPT - 1);
        let mut kept = self.keep(sizes)?;
        for seed in 0..TRIALS {
            self.try_out(&mut kept, seed, queue, stream)?;
        }
        Ok(kept)
    }

    /// Random frames through the kernels and through the CPU's loops.
    fn try_out(&self, kept: &mut Kept, seed: u64, queue: &Queue, stream: &Stream) -> Result<(), ModelError> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let frames: Vec<RgbImage> = kept
            .batch
            .sizes()
            .iter()
            .map(|&(width, height)| {
                let mut frame = RgbImage::new(width, height);
                random.fill_bytes(&mut frame);
                frame
            })
            .collect();
        self.process(kept, queue, frames.iter())?;
        stream.wait()?;
        let found = Vec::<u8>::try_from(kept.images.f_to_device(Device::Cpu)?.f_flatten(0, -1)?)?;
        let mut expected = Vec::with_capacity(found.len());
        for (index, frame) in frames.iter().enumerate() {
            let image =
                self.transform.apply(frame).map_err(|error| PreprocessError::Frame { index, error })?;
            expected.extend_from_slice(image.as_raw());
        }
        let wrong = found.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
        if wrong == 0 && found.len() == expected.len() {
            return Ok(());
        }
        Err(ModelError::Cuda {
            what: "pre-processing on the GPU",
            reason: format!(
                "{wrong} of {} bytes are not those of the CPU for frames of {:?}; pre-process on the CPU, and please report \
                 the device",
                expected.len(),
                kept.batch.sizes()
            ),
        })
    }

    fn process<'a>(
        &self,
        kept: &mut Kept,
        queue: &Queue,
        frames: impl ExactSizeIterator<Item = &'a RgbImage> + Clone,
    ) -> Result<(), ModelError> {
        kept.batch.upload(queue, frames)?;
        Ok(self.preprocessor.queue(queue, &kept.batch)?)
    }

    /// Queues copy and processing of `frames` on `stream` and returns where the images will be, u8 (frames, height, width, 3):
    /// the same tensor whenever the frames have the same sizes. Always the same stream must be given, which reads the images too.
    /// Frames of sizes that are not kept are [made ready](Self::make_ready) for first.
    ///
    /// # Errors
    /// Frames that the processor refuses as well, or CUDA refuses.
    pub fn images(&mut self, frames: &[&RgbImage], stream: &Stream) -> Result<Tensor, ModelError> {
        let queue = self.queue(stream)?;
        let sizes: Vec<(u32, u32)> = frames.iter().map(|frame| frame.dimensions()).collect();
        let mut kept = self.take(&sizes, &queue, stream)?;
        let done = self.process(&mut kept, &queue, frames.iter().copied());
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
