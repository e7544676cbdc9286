//! The network as ONNX graphs, written without torch: structure from the configuration, weights straight from the
//! checkpoint's files.
//!
//! | graph | what it is |
//! |---|---|
//! | [`dit::fused`] | one denoising step for engines: no masks, step and tick constants as inputs |
//! | [`dit::condition`] | what [`dit::fused`] takes once per tick |
//! | [`dit::reference`] | the transformer with the inputs and outputs of the public export script |
//! | [`backbone::vision`] | vision tower and connector, explicit attention |
//! | [`backbone::language`] | the kept language model layers, explicit causal attention |
//!
//! Opset 17 and IR version 8 ([`proto`]): what TensorRT 8.6 reads, and new enough for LayerNormalization and for bf16 in
//! every operator used. [`write()`] puts a graph into `{stem}.onnx` and its weights into `{stem}.onnx.data`, one weight in
//! memory at a time.
//!
//! [`quantise`] turns products of a graph into INT8, [`smooth`](mod@smooth) moves outliers of their activations into their
//! weights before, [`validate`] compares two runs layer by layer, and `session` (feature
//! `onnxruntime`) runs a graph.
//!
//! A graph computes in one type, f32, f16 or bf16 ([`Style`]), with casts where it meets inputs and outputs that are
//! always f32. An f32 graph is the right one for TensorRT's weakly typed builder, which chooses precisions itself; the
//! others are for strongly typed networks and other runtimes.

pub mod backbone;
pub mod dit;
mod element;
mod error;
mod graph;
mod host;
mod layers;
pub mod proto;
pub mod quantise;
#[cfg(feature = "onnxruntime")]
pub mod session;
pub mod smooth;
pub mod validate;
mod writer;

pub use element::ElementType;
pub use error::OnnxError;
pub use graph::{Attribute, Dim, Graph, Initializer, Node, Source, Value, ValueInfo};
pub use layers::{NormStyle, Style};
pub use writer::{Data, Written, write};
