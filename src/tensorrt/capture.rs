//! Runs as one CUDA graph: the driver then launches a network's hundreds of kernels in one call.

use std::sync::Arc;

use cudarc::driver::{CudaGraph, CudaStream, DriverError, result, sys};

use super::context::Context;
use super::error::TensorRtError;
use crate::capturing;

/// How a run was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// As a captured graph.
    Graph,
    /// Kernel by kernel.
    Enqueue,
}

/// A context that captures its run as a CUDA graph, and runs without where that is not possible.
///
/// The graph holds shapes and addresses. If one of them changes, the next run is queued plainly (TensorRT needs one such
/// run before it may be captured) and captured anew.
///
/// Send but not Sync, as [`Context`].
pub struct CapturedContext {
    /// Dropped before the context whose memory it uses.
    graph: Option<(u64, CudaGraph)>,
    context: Context,
    /// Where graphs are captured: the default stream allows no capture. They are launched on the caller's stream.
    private: Option<Arc<CudaStream>>,
    /// Why graphs are not used, once that is clear.
    fallback: Option<String>,
}

// SAFETY: CUDA's graphs have no ties to a thread; `&mut self` keeps their use to one at a time, as CUDA demands.
unsafe impl Send for CapturedContext {}

impl CapturedContext {
    /// Runs `context` as graphs from the second run on.
    pub fn new(context: Context) -> Self {
        Self { graph: None, context, private: None, fallback: None }
    }

    /// Runs `context` without graphs, for `reason`.
    pub fn without_graph(context: Context, reason: impl Into<String>) -> Self {
        let mut plain = Self::new(context);
        plain.fallback = Some(reason.into());
        plain
    }

    /// The context, to set shapes and memory.
    pub fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    /// Why graphs are not used, if they are not.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Queues a run on `stream` and comes back at once, except in a run after a change of shapes or addresses: that one
    /// waits for the GPU, to capture.
    ///
    /// # Errors
    /// As [`Context::enqueue`]. A capture that fails is no error: see [`fallback`](Self::fallback).
    pub fn run(&mut self, stream: &Arc<CudaStream>) -> Result<Launch, TensorRtError> {
        let generation = self.context.generation();
        if let Some((captured, graph)) = &self.graph
            && *captured == generation
        {
            let failed = |error| TensorRtError::cuda("launching the captured run", error);
            stream.context().bind_to_thread().map_err(failed)?;
            // SAFETY: the graph is instantiated, and kept as long as it may run: it is only replaced after the private
            // stream and the caller's were waited for.
            unsafe { result::graph::launch(graph.cu_graph_exec(), stream.cu_stream()) }.map_err(failed)?;
            return Ok(Launch::Graph);
        }
        self.enqueue(stream)?;
        if self.fallback.is_none() {
            // Also waits for the graph that is about to be replaced.
            stream.synchronize().map_err(|error| TensorRtError::cuda("waiting for a run", error))?;
            self.graph = None;
            match self.capture(stream) {
                Ok(graph) => self.graph = Some((generation, graph)),
                Err(reason) => {
                    tracing::warn!(
                        "runs are queued kernel by kernel, since they cannot be captured: {reason}"
                    );
                    self.fallback = Some(reason);
                }
            }
        }
        Ok(Launch::Enqueue)
    }

    /// Queues a run kernel by kernel. On the default stream TensorRT would wait for the GPU again and again: there the run
    /// goes to a stream of its own, before and after which the default stream's work is put in order by events.
    fn enqueue(&mut self, stream: &Arc<CudaStream>) -> Result<(), TensorRtError> {
        if !stream.cu_stream().is_null() {
            return self.context.enqueue(stream);
        }
        let failed = |error| TensorRtError::cuda("ordering two streams", error);
        let private = self.private(stream).map_err(failed)?;
        private.join(stream).map_err(failed)?;
        self.context.enqueue(&private)?;
        stream.join(&private).map_err(failed)
    }

    fn private(&mut self, beside: &Arc<CudaStream>) -> Result<Arc<CudaStream>, DriverError> {
        match &self.private {
            Some(stream) => Ok(Arc::clone(stream)),
            None => Ok(Arc::clone(self.private.insert(beside.context().new_stream()?))),
        }
    }

    fn capture(&mut self, beside: &Arc<CudaStream>) -> Result<CudaGraph, String> {
        let said = |what: &str| {
            let what = what.to_owned();
            move |error| format!("{what}: CUDA says: {error:?}")
        };
        let private = self.private(beside).map_err(said("making a stream"))?;
        // Other threads (libtorch's allocator, for one) may go on with what a capture of the whole process would forbid.
        let _capturing = capturing::begin();
        private
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(said("beginning the capture"))?;
        let queued = self.context.enqueue(&private);
        // Ended in any case, or the stream stays in capture mode.
        let ended = private.end_capture(sys::CUgraphInstantiate_flags(0));
        queued.map_err(|error| error.to_string())?;
        ended.map_err(said("ending the capture"))?.ok_or_else(|| "the capture is empty".to_owned())
    }
}

impl Drop for CapturedContext {
    fn drop(&mut self) {
        // A graph may still run on the caller's stream; destroying it early is allowed, freeing what it works on is not.
        if self.graph.is_some()
            && let Some(private) = &self.private
            && let Err(error) = capturing::clear_of_captures(|| private.context().synchronize())
        {
            tracing::warn!("waiting for the GPU before its work is taken down: {error:?}");
        }
    }
}
