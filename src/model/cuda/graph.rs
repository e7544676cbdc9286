//! Captured graphs: what was queued once, queued again in one call.

use std::ptr::NonNull;

use super::{
    super::ModelError,
    ffi::{RawGraph, RawPool, call, table},
};
use crate::capturing;

/// Memory that graphs keep for themselves between runs.
///
/// Graphs that share it must run in the order in which they were captured, never at the same time.
#[derive(Debug, Clone, Copy)]
pub struct Pool {
    raw: RawPool,
}

impl Pool {
    /// Memory of its own.
    ///
    /// # Errors
    /// See [`available`](super::available).
    pub fn new() -> Result<Self, ModelError> {
        let mut raw = RawPool::default();
        // SAFETY: `raw` is there to be written to.
        call("setting memory apart for a graph", |table, reason, capacity| unsafe {
            (table.pool_new)(&mut raw, reason, capacity)
        })?;
        Ok(Self { raw })
    }
}

/// Work that can be queued again as often as wanted. It reads and writes the memory that it did when it was captured: the
/// tensors made outside the capture must be kept as long as the graph, and what was made inside is the graph's.
///
/// Dropping it while it runs is a mistake: wait for its stream first.
#[derive(Debug)]
pub struct CapturedGraph {
    raw: NonNull<RawGraph>,
    nodes: usize,
}

// SAFETY: a graph has no ties to the thread that captured it; it is used by one at a time, since it is not Sync.
unsafe impl Send for CapturedGraph {}

/// A capture under way.
struct Capture(Option<NonNull<RawGraph>>);

impl Drop for Capture {
    fn drop(&mut self) {
        if let (Some(graph), Ok(table)) = (self.0.take(), table()) {
            // SAFETY: the capture was begun and is not ended; the graph is not used again.
            unsafe { (table.graph_abandon)(graph.as_ptr()) };
        }
    }
}

impl CapturedGraph {
    /// Captures what `work` queues on the current stream, which must not be the default one, and returns it with what
    /// `work` returned. Nothing is run.
    ///
    /// # Errors
    /// Those of `work`; or something that cannot be captured was queued, such as a wait for the device.
    pub fn capture<T>(
        pool: &Pool,
        work: impl FnOnce() -> Result<T, ModelError>,
    ) -> Result<(Self, T), ModelError> {
        // The shim captures in thread-local mode. Before the capture, so that it is dropped after it.
        let _capturing = capturing::begin();
        let mut graph = std::ptr::null_mut();
        // SAFETY: the pool came from libtorch, and `graph` is there to be written to.
        call("beginning the capture of a graph", |table, reason, capacity| unsafe {
            (table.graph_begin)(&pool.raw, &mut graph, reason, capacity)
        })?;
        let mut capture = Capture(NonNull::new(graph));
        let result = work()?;
        let raw = capture.0.take().ok_or_else(|| ModelError::Cuda {
            what: "beginning the capture of a graph",
            reason: "no graph came back".to_owned(),
        })?;
        let mut nodes = 0;
        // SAFETY: the graph is being captured; where this fails it is gone, and not used again.
        call("ending the capture of a graph", |table, reason, capacity| unsafe {
            (table.graph_end)(raw.as_ptr(), &mut nodes, reason, capacity)
        })?;
        Ok((Self { raw, nodes }, result))
    }

    /// Number of its nodes: kernels, copies and fills.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Queues the work on the current stream and comes back at once.
    ///
    /// # Errors
    /// libtorch refuses. Faults during the run show up when the stream is waited for.
    pub fn replay(&self) -> Result<(), ModelError> {
        // SAFETY: the graph is complete. That the memory it works on is still there is the contract of `capture`.
        call("queueing a captured graph", |table, reason, capacity| unsafe {
            (table.graph_replay)(self.raw.as_ptr(), reason, capacity)
        })
    }
}

impl Drop for CapturedGraph {
    fn drop(&mut self) {
        if let Ok(table) = table() {
            // SAFETY: the graph is complete and not used again; its owner waited for it.
            unsafe { (table.graph_delete)(self.raw.as_ptr()) };
        }
    }
}
