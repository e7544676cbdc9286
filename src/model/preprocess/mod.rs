//! Where camera frames become images: on the processor's cores, or on the GPU by kernels that make the same bytes.

#[cfg(feature = "cuda")]
mod gpu;

#[cfg(feature = "cuda")]
pub use gpu::GpuFrames;
use tch::{Device, Tensor};

use super::{ModelError, cuda::Stream, policy::PolicyError};
use crate::{
    observation::Observation,
    processor::{ModelInputs, Processor},
};

/// Who makes images of frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Preprocessing {
    /// The processor's cores: images are uploaded.
    #[default]
    Cpu,
    /// The GPU: raw frames are uploaded.
    Gpu,
}

/// What makes images of frames.
#[derive(Default)]
pub struct Preprocessor {
    #[cfg(feature = "cuda")]
    gpu: Option<GpuFrames>,
}

impl Preprocessor {
    /// For observations that go through `processor` to a network on `device`.
    ///
    /// # Errors
    /// There is no such GPU, or what compiles its kernels is missing.
    pub fn new(on: Preprocessing, device: Device, processor: &Processor) -> Result<Self, ModelError> {
        match (on, device) {
            (Preprocessing::Cpu, _) => Ok(Self::default()),
            #[cfg(feature = "cuda")]
            (Preprocessing::Gpu, Device::Cuda(ordinal)) => {
                Ok(Self { gpu: Some(GpuFrames::new(ordinal, processor.image_transform())?) })
            }
            (Preprocessing::Gpu, device) => {
                let reason = if cfg!(feature = "cuda") {
                    "pre-processing on the GPU is for a network on an NVIDIA GPU: choose cuda, or pre-process on the CPU"
                } else {
                    "this program was built without the feature `cuda`: pre-process on the CPU"
                };
                let _ = processor;
                Err(ModelError::Device { requested: format!("{device:?}"), reason: reason.to_owned() })
            }
        }
    }

    /// Model inputs of one sample; and their images, where they are made on the GPU: that is queued on `stream` then, and the
    /// inputs' own have no channels.
    ///
    /// # Errors
    /// What is missing in the observation or does not fit the checkpoint, or CUDA refuses.
    pub fn prepare(
        &mut self,
        processor: &Processor,
        observation: &Observation,
        stream: impl FnOnce() -> Result<Option<Stream>, ModelError>,
    ) -> Result<(ModelInputs, Option<Tensor>), PolicyError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &mut self.gpu {
            let raw = processor.prepare_raw(std::slice::from_ref(observation))?;
            let Some(stream) = stream()? else {
                let reason = "libtorch tells no stream".to_owned();
                return Err(ModelError::Cuda { what: "pre-processing on the GPU", reason }.into());
            };
            let images = gpu.images(&raw.frames, &stream)?;
            return Ok((raw.inputs, Some(images)));
        }
        let _ = stream;
        Ok((processor.prepare(observation)?, None))
    }
}
