//! Where camera frames become images: on the processor's cores, or on the GPU by kernels that make the same bytes.

#[cfg(feature = "cuda")]
mod gpu;

#[cfg(feature = "cuda")]
pub use gpu::GpuFrames;
use tch::Tensor;

use super::{ModelError, network::Network, policy::PolicyError};
use crate::{
    execution::Preprocessing,
    observation::Observation,
    processor::{ModelInputs, Processor},
};

/// What makes images of frames, and the rest of the model inputs.
#[derive(Default)]
pub struct Preprocessor {
    #[cfg(feature = "cuda")]
    gpu: Option<GpuFrames>,
    /// Whether the CPU takes over where the GPU fails.
    #[cfg(feature = "cuda")]
    or_cpu: bool,
}

impl Preprocessor {
    /// For observations that go through `processor` to `network`. What the GPU is to do is tried first, on random frames: with
    /// [`Preprocessing::Auto`] one that fails leaves it to the CPU, and says so in the log.
    ///
    /// # Errors
    /// The GPU is to, and the network is not on one, what compiles its kernels is missing, or they do not make the bytes of the CPU.
    pub fn new(on: Preprocessing, network: &Network, processor: &Processor) -> Result<Self, ModelError> {
        match (on, network.device(), network.runner().is_some()) {
            (Preprocessing::Cpu, ..) | (Preprocessing::Auto, _, false) => Ok(Self::default()),
            #[cfg(feature = "cuda")]
            (Preprocessing::Auto, tch::Device::Cuda(ordinal), true) => {
                let gpu = try_gpu(ordinal, network, processor).inspect_err(leave_to_cpu).ok();
                Ok(Self { gpu, or_cpu: true })
            }
            #[cfg(feature = "cuda")]
            (Preprocessing::Gpu, tch::Device::Cuda(ordinal), _) => {
                Ok(Self { gpu: Some(try_gpu(ordinal, network, processor)?), or_cpu: false })
            }
            (Preprocessing::Auto, ..) => Ok(Self::default()),
            (Preprocessing::Gpu, device, _) => {
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

    /// Who makes the images now.
    pub fn on(&self) -> Preprocessing {
        #[cfg(feature = "cuda")]
        if self.gpu.is_some() {
            return Preprocessing::Gpu;
        }
        Preprocessing::Cpu
    }

    /// Model inputs of one batch; and their images, where they are made on the GPU: the inputs' own have no channels then. Comes
    /// back when they lie in memory, so that what it took is known.
    ///
    /// # Errors
    /// What is missing in an observation or does not fit the checkpoint, or CUDA refuses.
    pub fn prepare(
        &mut self,
        processor: &Processor,
        observations: &[Observation],
        network: &Network,
    ) -> Result<(ModelInputs, Option<Tensor>), PolicyError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &mut self.gpu {
            let raw = processor.prepare_raw(observations)?;
            let stream = stream_of(network)?;
            let made = gpu.images(&raw.frames, &stream).and_then(|images| {
                stream.wait()?;
                Ok(images)
            });
            match made {
                Ok(images) => return Ok((raw.inputs, Some(images))),
                Err(error) if self.or_cpu => {
                    leave_to_cpu(&error);
                    self.gpu = None;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let _ = network;
        Ok((processor.prepare_batch(observations)?, None))
    }
}

/// Kernels that have proved themselves on random frames of the sizes that a policy is warmed up with.
#[cfg(feature = "cuda")]
fn try_gpu(ordinal: usize, network: &Network, processor: &Processor) -> Result<GpuFrames, ModelError> {
    let mut gpu = GpuFrames::new(ordinal, processor.image_transform())?;
    let sizes: Vec<_> =
        processor.blank_observation().video.values().flatten().map(|frame| frame.dimensions()).collect();
    gpu.make_ready(&sizes, &stream_of(network)?)?;
    tracing::info!("images are made of camera frames on the GPU");
    Ok(gpu)
}

#[cfg(feature = "cuda")]
fn stream_of(network: &Network) -> Result<super::cuda::Stream, ModelError> {
    network.stream()?.ok_or_else(|| ModelError::Cuda {
        what: "pre-processing on the GPU",
        reason: "libtorch tells no stream".to_owned(),
    })
}

#[cfg(feature = "cuda")]
fn leave_to_cpu(error: &ModelError) {
    tracing::warn!("images are made of camera frames on the CPU: {error}");
}
