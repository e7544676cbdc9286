//! What the device itself says of a mode: time between events, memory.

use std::time::Duration;

use tch::Device;

use crate::model::{
    cuda::{self, Event, MemoryUsage, Stream},
    device::synchronize,
    network::{Network, StageTimes},
};

/// A pair of events on the stream that the network's work is queued on; none on a device that has no events.
pub struct DeviceTimer {
    events: Option<(Event, Event)>,
    ordinal: usize,
    /// Whether both were queued.
    complete: bool,
}

impl DeviceTimer {
    /// Events for this device.
    pub fn new(device: Device) -> Self {
        let Device::Cuda(ordinal) = device else {
            return Self { events: None, ordinal: 0, complete: false };
        };
        let pair = || Some((Event::new().ok()?, Event::new().ok()?));
        Self { events: pair(), ordinal, complete: false }
    }

    /// Queues the first event.
    pub fn start(&mut self) {
        self.complete = self.record(|(first, _)| first);
    }

    /// Queues the second event.
    pub fn stop(&mut self) {
        self.complete = self.complete && self.record(|(_, second)| second);
    }

    fn record(&self, which: impl Fn(&(Event, Event)) -> &Event) -> bool {
        let Some(events) = &self.events else { return false };
        Stream::current(self.ordinal).and_then(|stream| which(events).record(&stream)).is_ok()
    }

    /// The device's time in the run between the two. A captured run has events of its own, on its own stream.
    pub fn elapsed(&self, network: &Network, stages: &StageTimes) -> Option<Duration> {
        if network.runner().is_some() {
            return Some(stages.vision + stages.language + stages.action_head);
        }
        let (first, second) = self.events.as_ref().filter(|_| self.complete)?;
        synchronize(Device::Cuda(self.ordinal));
        second.since(first).ok()
    }
}

/// Forgets what memory was used before, as far as it is free.
pub fn reset_memory(device: Device) {
    if let Device::Cuda(ordinal) = device {
        // Where there are no counters, `memory` says so by having nothing to say.
        let _ = cuda::trim_memory();
        let _ = cuda::reset_memory_peaks(ordinal);
    }
}

/// What was used since; None on a device without counters.
pub fn memory(device: Device) -> Option<MemoryUsage> {
    let Device::Cuda(ordinal) = device else { return None };
    cuda::memory_usage(ordinal).ok()
}
