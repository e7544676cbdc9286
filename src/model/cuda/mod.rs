//! What tensors do not offer of CUDA: streams, captured graphs, events, pinned memory, memory counters.
//!
//! All of it is libtorch's own machinery, so that what is captured and what is allocated is known to its allocator. The
//! program reaches it through a C++ shim that the build compiles against libtorch's headers, and that is opened where
//! libtorch's CUDA half is: on any other machine each function here returns the reason why it cannot work.

mod event;
mod ffi;
mod graph;
mod memory;
mod pinned;
mod stream;

pub use event::Event;
pub use ffi::MemoryUsage;
pub use graph::{CapturedGraph, Pool};
pub use memory::{memory_usage, reset_memory_peaks, trim_memory};
pub use pinned::Pinned;
pub use stream::{EnteredStream, Stream};

use super::ModelError;

/// Whether graphs can be captured here.
///
/// # Errors
/// Why not: no usable GPU, or a program that was built without the headers of libtorch's CUDA half.
pub fn available() -> Result<(), ModelError> {
    ffi::table().map(drop)
}
