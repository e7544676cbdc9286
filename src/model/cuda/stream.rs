//! Streams: the order in which a device works off what is queued.

use std::{ffi::c_void, marker::PhantomData};

use super::{
    super::ModelError,
    ffi::{RawStream, call},
};

/// One of the streams that libtorch keeps for a device. It does not wait for the default stream, nor that one for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    pub(super) raw: RawStream,
}

impl Stream {
    /// A stream for `cuda:device`.
    ///
    /// # Errors
    /// See [`available`](super::available).
    pub fn take(device: usize) -> Result<Self, ModelError> {
        Self::take_with(device, false)
    }

    /// A stream for `cuda:device` whose kernels go before those that wait on other streams.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn take_urgent(device: usize) -> Result<Self, ModelError> {
        Self::take_with(device, true)
    }

    fn take_with(device: usize, urgent: bool) -> Result<Self, ModelError> {
        let mut raw = RawStream::default();
        // SAFETY: `raw` is there to be written to.
        call("taking a stream", |table, reason, capacity| unsafe {
            (table.stream_take)(ordinal(device), i32::from(urgent), &mut raw, reason, capacity)
        })?;
        Ok(Self { raw })
    }

    /// The stream on which libtorch queues this thread's work for `cuda:device`.
    ///
    /// # Errors
    /// See [`available`](super::available).
    pub fn current(device: usize) -> Result<Self, ModelError> {
        let mut raw = RawStream::default();
        // SAFETY: `raw` is there to be written to.
        call("asking for the current stream", |table, reason, capacity| unsafe {
            (table.stream_current)(ordinal(device), &mut raw, reason, capacity)
        })?;
        Ok(Self { raw })
    }

    /// The device's number.
    pub fn device(&self) -> usize {
        usize::try_from(self.raw.device).unwrap_or_default()
    }

    /// The stream's `cudaStream_t`, null for the default stream.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn handle(&self) -> Result<*mut c_void, ModelError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the stream came from libtorch, and `handle` is there to be written to.
        call("asking for a stream's handle", |table, reason, capacity| unsafe {
            (table.stream_raw)(&self.raw, &mut handle, reason, capacity)
        })?;
        Ok(handle)
    }

    /// Waits until all that was queued is done.
    ///
    /// # Errors
    /// What the device reports of the work that was queued.
    pub fn wait(&self) -> Result<(), ModelError> {
        // SAFETY: the stream came from libtorch.
        call("waiting for the GPU", |table, reason, capacity| unsafe {
            (table.stream_wait)(&self.raw, reason, capacity)
        })
    }

    /// Makes this the stream on which libtorch queues this thread's work, and its device the current one, until the
    /// returned value is dropped.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn enter(&self) -> Result<EnteredStream, ModelError> {
        let mut device = 0;
        // SAFETY: `device` is there to be written to.
        call("asking for the current device", |table, reason, capacity| unsafe {
            (table.device_current)(&mut device, reason, capacity)
        })?;
        let entered = EnteredStream { stream: Self::current(self.device())?, device, not_send: PhantomData };
        enter_device(ordinal(self.device()))?;
        enter_stream(&self.raw)?;
        Ok(entered)
    }
}

/// While this lives, another stream is the current one; then the one before is again.
#[derive(Debug)]
pub struct EnteredStream {
    stream: Stream,
    device: i32,
    /// Which stream is current is a matter of each thread.
    not_send: PhantomData<*const ()>,
}

impl Drop for EnteredStream {
    fn drop(&mut self) {
        for restored in [enter_stream(&self.stream.raw), enter_device(self.device)] {
            if let Err(error) = restored {
                tracing::error!("the stream in use before cannot be taken up again: {error}");
            }
        }
    }
}

/// Device numbers are small; one that is not is refused by libtorch.
pub(super) fn ordinal(device: usize) -> i32 {
    i32::try_from(device).unwrap_or(i32::MAX)
}

fn enter_stream(stream: &RawStream) -> Result<(), ModelError> {
    // SAFETY: the stream came from libtorch.
    call("choosing a stream", |table, reason, capacity| unsafe {
        (table.stream_enter)(stream, reason, capacity)
    })
}

fn enter_device(device: i32) -> Result<(), ModelError> {
    // SAFETY: a plain number goes in.
    call("choosing a device", |table, reason, capacity| unsafe {
        (table.device_enter)(device, reason, capacity)
    })
}
