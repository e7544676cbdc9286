//! CUDA without a toolkit: own kernels compiled when the program runs, products tuned on the GPU that is there, both queued
//! on any stream and captured as graphs. Knows no libtorch; memory is addresses.
//!
//! | file | part |
//! |---|---|
//! | [`Gpu`] | the primary context, which libtorch uses too, and what the GPU can do |
//! | `nvrtc` | CUDA C++ to machine code, with the NVRTC beside the CUDA libraries of the process |
//! | [`Queue`] | kernels on a stream, each starting while its predecessor ends |
//! | [`Recording`] | a queue's work as one CUDA graph |
//! | [`Kernels`] | the kernels of `kernels/`, with their arguments as Rust structures |
//! | [`SequenceAttention`] | attention of many queries, for the backbone |
//! | [`preprocess`] | camera frames to the network's size, bit by bit as on the CPU |
//! | [`Products`] | activations · weightᵀ for many rows, by the fastest of cuBLASLt's ways |
//! | [`Gemms`] | activations · weightᵀ for few rows: own kernels and cuBLASLt, whichever is faster |
//!
//! The driver, NVRTC and cuBLASLt are loaded when they are first wanted.

mod blas;
mod check;
#[cfg(test)]
mod compiled;
#[cfg(test)]
pub(crate) mod emulation;
mod error;
mod gemm;
mod gpu;
mod kernels;
mod library;
mod module;
mod nvrtc;
pub mod preprocess;
mod product;
mod queue;
mod sequence_attention;
mod skinny;
mod source;
mod tune;
mod warpgroup;

pub use blas::Blas;
pub use error::CudaError;
pub use gemm::{Gemm, GemmCall, GemmShape, Gemms, Plan};
pub use gpu::{Gpu, Memory};
pub use kernels::{
    Ahead, AttentionArguments, BackboneNormArguments, BiasActivationArguments, EulerArguments,
    FinishArguments, Kernels, NormArguments, PatchArguments, RotaryArguments, RotaryHeads, StartArguments,
    SwigluArguments, attention_shared,
};
pub use module::{Kernel, Module};
pub use nvrtc::{Code, Nvrtc, Target};
pub use product::{ProductCall, ProductShape, Products};
pub use queue::{Queue, Recording};
pub use sequence_attention::{SequenceAttention, SequenceAttentionArguments, Strides};
pub use skinny::Skinny;
pub use tune::{Candidate, Tuned};
pub use warpgroup::Warpgroup;

/// What is done to each value of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Activation {
    None = 0,
    /// With the tanh approximation.
    GeluTanh = 1,
    Relu = 2,
    Silu = 3,
    /// The exact one.
    GeluErf = 4,
}
