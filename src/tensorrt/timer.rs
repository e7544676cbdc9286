//! How long the GPU itself works, by its own clock.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaEvent, CudaStream, sys::CUevent_flags};

use super::{device::Device, error::TensorRtError};

/// Two marks in the default stream: the time between them is the GPU's, whatever the host does meanwhile.
///
/// With work that is queued piece by piece it includes the gaps in which the GPU waits for the host.
pub struct DeviceTimer {
    stream: Arc<CudaStream>,
    start: CudaEvent,
    end: CudaEvent,
}

impl DeviceTimer {
    /// For the GPU with this number.
    ///
    /// # Errors
    /// [`TensorRtError::NoDriver`] or [`TensorRtError::Cuda`].
    pub fn new(ordinal: usize) -> Result<Self, TensorRtError> {
        let device = Device::new(ordinal)?;
        // SAFETY: null is the default stream, which always is.
        let stream = unsafe { device.external_stream(std::ptr::null_mut()) };
        // cudarc's own default leaves the clock out.
        let event = || {
            let event = device.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
            event.map_err(|error| TensorRtError::cuda("making an event", error))
        };
        Ok(Self { stream, start: event()?, end: event()? })
    }

    /// Sets the first mark.
    ///
    /// # Errors
    /// [`TensorRtError::Cuda`].
    pub fn start(&self) -> Result<(), TensorRtError> {
        self.start.record(&self.stream).map_err(|error| TensorRtError::cuda("recording an event", error))
    }

    /// Sets the second mark, waits for it, and gives the time since the first.
    ///
    /// # Errors
    /// [`TensorRtError::Cuda`].
    pub fn stop(&self) -> Result<Duration, TensorRtError> {
        let failed = |error| TensorRtError::cuda("timing with events", error);
        self.end.record(&self.stream).map_err(failed)?;
        let milliseconds = self.start.elapsed_ms(&self.end).map_err(failed)?;
        Ok(Duration::try_from_secs_f64(f64::from(milliseconds) / 1e3).unwrap_or_default())
    }
}
