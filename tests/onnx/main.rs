//! The exported graphs: accepted by the `onnx` package's checker, and run by ONNX Runtime to the reference's numbers.
//!
//! As the golden suite, it takes sizes and observations from the golden directory (`GROOT_GOLDEN_DIR`).

mod backbone;
#[path = "../support/checkpoint_writer.rs"]
mod checkpoint_writer;
mod dit;
mod files;
// Each test uses a part of what they share.
#[allow(dead_code)]
#[path = "../golden_suite/fixture.rs"]
mod fixture;
#[cfg(all(feature = "tensorrt", feature = "torch"))]
mod int8;
#[path = "../golden_suite/observations.rs"]
mod observations;
mod quantise;
mod runner;
mod samples;
#[cfg(feature = "onnxruntime")]
mod session;
mod smooth;
