//! Time between two events on the device's default stream, which operator-by-operator runs are queued on.
//!
//! Runs on other streams end before the second event is queued, since their actions are on the host by then; the time is then
//! that between the two calls as the device saw it.

use std::time::Duration;

use tch::Device;

/// A pair of events; none on a device or in a program that has no events.
pub struct DeviceTimer {
    #[cfg(feature = "tensorrt")]
    events: Option<cuda::Events>,
}

impl DeviceTimer {
    /// Events for this device.
    pub fn new(device: Device) -> Self {
        #[cfg(not(feature = "tensorrt"))]
        let _ = device;
        Self {
            #[cfg(feature = "tensorrt")]
            events: match device {
                Device::Cuda(ordinal) => cuda::Events::new(ordinal),
                _ => None,
            },
        }
    }

    /// Queues the first event.
    pub fn start(&mut self) {
        #[cfg(feature = "tensorrt")]
        if let Some(events) = &mut self.events {
            events.start();
        }
    }

    /// Queues the second event.
    pub fn stop(&mut self) {
        #[cfg(feature = "tensorrt")]
        if let Some(events) = &mut self.events {
            events.stop();
        }
    }

    /// The time between the two; waits for the second.
    pub fn elapsed(&self) -> Option<Duration> {
        #[cfg(feature = "tensorrt")]
        return self.events.as_ref()?.elapsed();
        #[cfg(not(feature = "tensorrt"))]
        None
    }
}

#[cfg(feature = "tensorrt")]
mod cuda {
    use std::{sync::Arc, time::Duration};

    use cudarc::driver::{CudaEvent, CudaStream, sys};

    use crate::tensorrt::Device;

    pub struct Events {
        stream: Arc<CudaStream>,
        first: CudaEvent,
        second: CudaEvent,
        /// Whether both were queued.
        complete: bool,
    }

    impl Events {
        /// None where the driver refuses.
        pub fn new(ordinal: usize) -> Option<Self> {
            let device = Device::new(ordinal).ok()?;
            // SAFETY: null is the default stream, which lives as long as the context.
            let stream = unsafe { device.external_stream(std::ptr::null_mut()) };
            let event = || device.context().new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).ok();
            Some(Self { stream, first: event()?, second: event()?, complete: false })
        }

        pub fn start(&mut self) {
            self.complete = self.first.record(&self.stream).is_ok();
        }

        pub fn stop(&mut self) {
            self.complete &= self.second.record(&self.stream).is_ok();
        }

        pub fn elapsed(&self) -> Option<Duration> {
            if !self.complete {
                return None;
            }
            let milliseconds = self.first.elapsed_ms(&self.second).ok()?;
            Duration::try_from_secs_f32(milliseconds / 1e3).ok()
        }
    }
}
