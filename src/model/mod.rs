//! The network on libtorch, from pixels and token ids to a denoised action chunk.
//!
//! | file | part |
//! |---|---|
//! | [`vision`] | SigLIP2 tower, pixel unshuffle, connector |
//! | [`language`] | the kept Qwen3 layers |
//! | [`sequence`] | rotary tables, causal mask and padding of one prompt |
//! | [`backbone`] | both, from [`ModelInputs`](crate::processor::ModelInputs) to features |
//! | [`operators`] | what stands between the backbone's products, behind [`BackboneOperators`](operators::BackboneOperators) |
//! | [`dit`] | the diffusion transformer, behind [`DitEngine`](dit::DitEngine) |
//! | [`velocity`] | one denoising step as a whole, behind [`VelocityEngine`](velocity::VelocityEngine) |
//! | [`cuda`] | streams, captured graphs, pinned memory, memory counters |
//! | `tensorrt` | the same as one TensorRT engine (feature `tensorrt`) |
//! | `fused` | the same on own CUDA kernels, all steps in one graph (feature `cuda`) |
//! | [`embodiment`] | state encoder, action encoder and action decoder of one embodiment |
//! | [`action_head`] | denoising: noise in, normalised action chunk out |
//! | [`network`] | all of it: model inputs and noise in, normalised action chunk out |
//! | [`preprocess`] | where frames become images: on the CPU, or on the GPU |
//! | `selection`, `trial` | head and operators by execution mode, trusted once they have agreed with the plain ones |
//! | [`tick`] | the tick in memory that stays, captured as CUDA graphs |
//! | [`random`] | weights from a seed in place of a checkpoint |
//! | [`policy`] | observation in, physical actions out |
//! | [`thread`] | the one OS thread that owns a policy |
//!
//! f32 on the CPU, bf16 on CUDA. Noise and the Euler accumulator are f32 everywhere.

pub mod action_head;
pub mod backbone;
pub mod cuda;
pub mod device;
pub mod dit;
pub mod embodiment;
#[cfg(feature = "cuda")]
pub mod fused;
pub mod language;
pub mod layers;
pub mod network;
pub mod operators;
pub mod policy;
pub mod preprocess;
pub mod probe;
pub mod random;
mod selection;
pub mod sequence;
#[cfg(test)]
mod small;
#[cfg(feature = "tensorrt")]
pub mod tensorrt;
pub mod thread;
pub mod tick;
pub mod tokens;
#[cfg(any(test, feature = "cuda"))]
mod trial;
pub mod velocity;
pub mod vision;

use tch::TchError;
use thiserror::Error;

use crate::checkpoint::CheckpointError;

/// Why the network could not be built or run.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The weights are not what the configuration asks for.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// libtorch refused an operation, out of device memory for instance.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
    /// The requested device is not there.
    #[error("device {requested:?} cannot be used: {reason}")]
    Device {
        /// What was asked for.
        requested: String,
        /// Why it is not to be had, and what to do.
        reason: String,
    },
    /// CUDA refused something that is not an operation on tensors, or cannot be used here.
    #[error("{what}: {reason}")]
    Cuda {
        /// What was being done.
        what: &'static str,
        /// Why it did not work.
        reason: String,
    },
    /// A TensorRT engine could not be loaded or run.
    #[cfg(feature = "tensorrt")]
    #[error(transparent)]
    TensorRt(#[from] crate::tensorrt::TensorRtError),
    /// The fused kernels could not be made or run.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Fused(#[from] crate::cuda::CudaError),
    /// Frames could not be processed on the GPU.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Preprocess(#[from] crate::cuda::preprocess::PreprocessError),
    /// The engine's file is missing, damaged, or was built for something else.
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
    /// What the denoising steps are conditioned on could not be computed from the checkpoint.
    #[error(transparent)]
    Onnx(#[from] crate::onnx::OnnxError),
    /// Two ways to compute the same thing came to different results.
    #[error(
        "{what} disagree with the plain computation on this device: cosine {cosine:.6}, expected at least {least}; \
         choose the mode graph or eager, and please report the device"
    )]
    Disagreement {
        /// What was tried.
        what: &'static str,
        /// Of the angle between the results.
        cosine: f64,
        /// What counts as the same.
        least: f64,
    },
    /// The inputs do not fit the model or each other.
    #[error("{what}: expected {expected}, found {found}")]
    Input {
        /// Which input.
        what: &'static str,
        /// What fits.
        expected: String,
        /// What came.
        found: String,
    },
    /// The network produced NaN or infinity. Nothing of the chunk is handed out.
    #[error(
        "{stage} produced {count} values that are not finite; the action chunk is refused. Check the weights \
         and the inputs of this tick"
    )]
    NonFinite {
        /// Where it was first seen.
        stage: &'static str,
        /// How many of the stage's values are NaN or infinite.
        count: i64,
    },
}

/// The model's own floating-point type on a device: f32 on the CPU, bf16 on CUDA.
pub fn default_kind(device: tch::Device) -> tch::Kind {
    if device.is_cuda() { tch::Kind::BFloat16 } else { tch::Kind::Float }
}
