//! TensorRT: building engines from ONNX files and running them.
//!
//! A shim in C++ (`shim/`) turns TensorRT's classes into a table of C functions, once for each major version whose headers
//! were there when the program was built: 8 (from 8.5), 10 (from 10.1), 11. The libraries are loaded when they are first
//! wanted, so the program starts without them, and the shim is chosen by the version found.
//!
//! | step | owner | holds |
//! |---|---|---|
//! | load the libraries | [`Library`] | nothing; stays until the process ends |
//! | open the GPU | [`Device`] | CUDA's primary context, shared with libtorch |
//! | ONNX → plan | [`Builder`] → [`Plan`] | library, device |
//! | plan → engine | [`Runtime`] → [`Engine`] | library, device |
//! | run | [`Context`], [`CapturedContext`] | engine, and the memory bound to it |
//!
//! Each owner holds what it needs, so context, engine, runtime and CUDA context go in this order whatever order the caller
//! drops them in; the other way round TensorRT crashes.
//!
//! Threads: [`Library`], [`Runtime`] and [`Engine`] may be shared; [`Context`] and [`CapturedContext`] may move between
//! threads but be used by one at a time; [`Builder`] stays where it was made.
//!
//! Streams and memory are CUDA's own. Those of libtorch are used in place: [`Device::external_stream`] takes its stream,
//! [`DeviceMemory::external`] its tensors, and nothing goes through the host.

mod builder;
mod calibrator;
mod capture;
mod context;
mod device;
mod engine;
mod error;
mod ffi;
mod library;
mod log;
mod options;
mod tensor;
#[cfg(test)]
mod tests;
mod timer;
mod version;

pub use builder::{BuildReport, Builder, Plan, build_from_onnx};
pub use calibrator::{CalibrationAlgorithm, CalibrationBatches, Int8Calibration};
pub use capture::{CapturedContext, Launch};
pub use context::Context;
pub use device::{Device, DeviceBuffer, DeviceMemory};
pub use engine::{Engine, Runtime};
pub use error::TensorRtError;
pub use library::{Library, LoadOptions};
pub use log::{LogLines, Severity};
pub use options::{BuildOptions, BuildProgress, F32Layers, Layer, Profile, ProgressFn, ShapeRange};
pub use tensor::{DataType, IoTensor};
pub use timer::DeviceTimer;
pub use version::Version;
