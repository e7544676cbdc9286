//! Events: when a stream came to a point.

use std::{ffi::c_void, ptr::NonNull, time::Duration};

use super::{
    super::ModelError,
    ffi::{call, table},
    stream::Stream,
};

/// A point in a stream's work that remembers when it was passed.
#[derive(Debug)]
pub struct Event {
    raw: NonNull<c_void>,
}

// SAFETY: an event has no ties to a thread; it is used by one at a time, since it is not Sync.
unsafe impl Send for Event {}

impl Event {
    /// An event on the current device.
    ///
    /// # Errors
    /// See [`available`](super::available).
    pub fn new() -> Result<Self, ModelError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is there to be written to.
        call("making an event", |table, reason, capacity| unsafe {
            (table.event_new)(&mut raw, reason, capacity)
        })?;
        let missing =
            || ModelError::Cuda { what: "making an event", reason: "no event came back".to_owned() };
        Ok(Self { raw: NonNull::new(raw).ok_or_else(missing)? })
    }

    /// Marks what comes next on `stream`.
    ///
    /// # Errors
    /// CUDA refuses.
    pub fn record(&self, stream: &Stream) -> Result<(), ModelError> {
        // SAFETY: event and stream are alive.
        call("recording an event", |table, reason, capacity| unsafe {
            (table.event_record)(self.raw.as_ptr(), &stream.raw, reason, capacity)
        })
    }

    /// Waits until the point is passed; one that was never marked is.
    ///
    /// # Errors
    /// What the device reports of the work before it.
    pub fn wait(&self) -> Result<(), ModelError> {
        // SAFETY: the event is alive.
        call("waiting for the GPU", |table, reason, capacity| unsafe {
            (table.event_wait)(self.raw.as_ptr(), reason, capacity)
        })
    }

    /// Has what is queued on `stream` from now on wait until the point is passed.
    ///
    /// # Errors
    /// CUDA refuses.
    pub fn hold(&self, stream: &Stream) -> Result<(), ModelError> {
        // SAFETY: event and stream are alive.
        call("ordering two streams", |table, reason, capacity| unsafe {
            (table.event_hold)(self.raw.as_ptr(), &stream.raw, reason, capacity)
        })
    }

    /// The device's time from `earlier` to this; both must have been passed.
    ///
    /// # Errors
    /// One of them was not recorded or not passed yet.
    pub fn since(&self, earlier: &Event) -> Result<Duration, ModelError> {
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive, and `milliseconds` is there to be written to.
        call("reading the time between two events", |table, reason, capacity| unsafe {
            (table.event_elapsed)(
                earlier.raw.as_ptr(),
                self.raw.as_ptr(),
                &mut milliseconds,
                reason,
                capacity,
            )
        })?;
        Ok(Duration::try_from_secs_f64(f64::from(milliseconds) / 1e3).unwrap_or_default())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(table) = table() {
            // SAFETY: the event is not used again; CUDA keeps one that is still to be passed until it is.
            unsafe { (table.event_delete)(self.raw.as_ptr()) };
        }
    }
}
