//! Kernels on a stream, and a stream's work as one graph.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaGraph, CudaStream, result, sys};

use super::error::CudaError;
use super::gpu::{Gpu, wait_for_all};
use super::module::{Function, Kernel};
use crate::capturing;

enum Place {
    Stream(Arc<CudaStream>),
    #[cfg(test)]
    Emulated(super::emulation::Stream),
}

/// A stream that kernels are queued on, one after the other.
///
/// Where the GPU can, each kernel starts while its predecessor still runs, up to its own `wait_for_predecessor`: every kernel
/// of this crate calls that before it reads what others wrote and before it writes. The first kernel of a queue, and one
/// behind foreign work, waits for everything.
pub struct Queue {
    place: Place,
    overlap: bool,
    follows: Cell<bool>,
}

impl Queue {
    /// Queues on `stream`. `overlap` only where [`Gpu::overlaps`](super::Gpu::overlaps).
    pub fn new(stream: Arc<CudaStream>, overlap: bool) -> Self {
        Self { place: Place::Stream(stream), overlap, follows: Cell::new(false) }
    }

    /// Queues on a new stream, kernels overlapping where the GPU can.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn of_its_own(gpu: &Gpu) -> Result<Self, CudaError> {
        #[cfg(test)]
        if gpu.is_emulated() {
            return Ok(Self::emulated(super::emulation::Order::Descending, true));
        }
        Ok(Self::new(gpu.new_stream()?, gpu.overlaps()))
    }

    /// Queues on the emulated GPU of the tests.
    #[cfg(test)]
    pub fn emulated(order: super::emulation::Order, overlap: bool) -> Self {
        let place = Place::Emulated(super::emulation::Stream::new(order));
        Self { place, overlap, follows: Cell::new(false) }
    }

    /// Waits until what was queued is done.
    ///
    /// # Errors
    /// What went wrong with it.
    pub fn finish(&self) -> Result<(), CudaError> {
        match &self.place {
            Place::Stream(stream) => stream.synchronize().map_err(CudaError::driver("waiting for the GPU")),
            #[cfg(test)]
            Place::Emulated(stream) => stream.finish(),
        }
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<CudaStream> {
        match &self.place {
            Place::Stream(stream) => stream,
            #[cfg(test)]
            Place::Emulated(_) => panic!("an emulated GPU has no streams"),
        }
    }

    /// Tells that something else than this queue's kernels was queued.
    pub fn interrupted(&self) {
        self.follows.set(false);
    }

    /// Tells that what was queued last on the stream is a kernel of this crate, queued through another queue.
    pub fn continued(&self) {
        self.follows.set(true);
    }

    /// Queues a kernel whose one parameter is `arguments`.
    ///
    /// # Errors
    /// [`CudaError::Driver`], [`CudaError::Argument`] for a grid or an amount of shared memory that cannot be.
    ///
    /// # Safety
    /// `Arguments` is the kernel's parameter, and every address in it is device memory of the size that the kernel expects,
    /// alive until the kernel has run.
    pub unsafe fn launch<Arguments>(
        &self,
        kernel: &Kernel,
        grid: [usize; 3],
        threads: u32,
        shared: u32,
        arguments: &Arguments,
    ) -> Result<(), CudaError> {
        let fits =
            (1..=i32::MAX as usize).contains(&grid[0]) && grid[1..].iter().all(|n| (1..=65_535).contains(n));
        if !fits || shared > kernel.shared {
            return Err(CudaError::Argument {
                what: "kernel launch",
                expected: format!(
                    "a grid in CUDA's limits and at most {} bytes of shared memory",
                    kernel.shared
                ),
                found: format!("{grid:?} and {shared} for {}", kernel.name),
            });
        }
        let early = self.overlap && self.follows.get();
        let function = match &kernel.function {
            Function::Device { function, .. } => *function,
            #[cfg(test)]
            Function::Emulated(function) => {
                let Place::Emulated(stream) = &self.place else { panic!("an emulated kernel on a stream") };
                let follows = (self.overlap, self.follows.replace(true));
                // SAFETY: by this function's contract.
                return unsafe { stream.launch(function, (grid, threads, shared), arguments, follows) };
            }
        };
        let stream = self.stream();
        let failed = || CudaError::driver(format!("queueing the kernel {}", kernel.name));
        stream.context().bind_to_thread().map_err(failed())?;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0] as u32,
            gridDimY: grid[1] as u32,
            gridDimZ: grid[2] as u32,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: stream.cu_stream(),
            attrs: &mut attribute,
            numAttrs: u32::from(early),
        };
        let mut parameters: [*mut c_void; 1] = [std::ptr::from_ref(arguments).cast_mut().cast()];
        // SAFETY: CUDA copies configuration and parameters before it comes back; the rest by this function's contract.
        unsafe { sys::cuLaunchKernelEx(&config, function, parameters.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(failed())?;
        self.follows.set(true);
        Ok(())
    }
}

/// A queue's work as a CUDA graph.
pub struct Recording {
    graph: CudaGraph,
    stream: Arc<CudaStream>,
}

// SAFETY: CUDA's graphs have no ties to a thread; they are launched through `&mut self`, one at a time, as CUDA demands.
unsafe impl Send for Recording {}

impl Recording {
    /// Records what `work` queues on `stream`, which is not the default stream, without running it.
    ///
    /// # Errors
    /// Those of `work`; [`CudaError::Driver`] where something cannot be recorded.
    pub fn new<E: From<CudaError>>(
        stream: &Arc<CudaStream>,
        overlap: bool,
        work: impl FnOnce(&Queue) -> Result<(), E>,
    ) -> Result<Self, E> {
        let failed = |what: &str| CudaError::driver(format!("{what} the recording of a CUDA graph"));
        // Other threads, and libtorch's allocator, may go on with what a capture of the whole process would forbid. What remains
        // forbidden, waiting for the whole GPU, waits until this is done.
        let _capturing = capturing::begin();
        stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(failed("beginning"))?;
        let done = work(&Queue::new(Arc::clone(stream), overlap));
        // In any case, or the stream stays in capture mode.
        let ended = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        done?;
        let graph = ended.map_err(failed("ending"))?.ok_or_else(|| {
            E::from(CudaError::argument("recording of a CUDA graph", "at least one kernel", "none"))
        })?;
        Ok(Self { graph, stream: Arc::clone(stream) })
    }

    /// Queues the graph on `stream`, the default stream for instance.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn launch(&mut self, stream: &CudaStream) -> Result<(), CudaError> {
        let failed = || CudaError::driver("launching a CUDA graph");
        stream.context().bind_to_thread().map_err(failed())?;
        // SAFETY: the graph is instantiated, and kept until the GPU is done with it (`drop`).
        unsafe { result::graph::launch(self.graph.cu_graph_exec(), stream.cu_stream()) }.map_err(failed())
    }

    /// Milliseconds of each of `count` launches one after the other on the recording's own stream.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn time(&mut self, count: usize) -> Result<Vec<f32>, CudaError> {
        let failed = || CudaError::driver("timing a CUDA graph");
        let stream = Arc::clone(&self.stream);
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let start = stream.record_event(flags).map_err(failed())?;
            self.launch(&stream)?;
            let end = stream.record_event(flags).map_err(failed())?;
            times.push(start.elapsed_ms(&end).map_err(failed())?);
        }
        Ok(times)
    }

    /// The median of [`time`](Self::time), after `warm_up` launches that do not count.
    ///
    /// # Errors
    /// As there.
    pub fn median(&mut self, warm_up: usize, count: usize) -> Result<f32, CudaError> {
        let mut times = self.time(warm_up + count)?;
        times.drain(..warm_up);
        times.sort_by(f32::total_cmp);
        Ok(times.get(times.len() / 2).copied().unwrap_or(f32::NAN))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // It may still run; what it works on may be freed after this.
        if let Err(error) = wait_for_all(self.stream.context()) {
            tracing::warn!("a graph is taken down: {error}");
        }
    }
}
