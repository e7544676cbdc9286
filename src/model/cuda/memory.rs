//! The counters of libtorch's allocator.

use super::{
    super::ModelError,
    ffi::{MemoryUsage, call},
    stream::ordinal,
};

/// What tensors use and used of `cuda:device`.
///
/// # Errors
/// See [`available`](super::available).
pub fn memory_usage(device: usize) -> Result<MemoryUsage, ModelError> {
    let mut usage = MemoryUsage::default();
    // SAFETY: `usage` is there to be written to.
    call("reading the memory counters", |table, reason, capacity| unsafe {
        (table.memory)(ordinal(device), &mut usage, reason, capacity)
    })?;
    Ok(usage)
}

/// Lets the peaks of `cuda:device` count from what is in use now.
///
/// # Errors
/// See [`available`](super::available).
pub fn reset_memory_peaks(device: usize) -> Result<(), ModelError> {
    // SAFETY: a plain number goes in.
    call("resetting the memory counters", |table, reason, capacity| unsafe {
        (table.memory_reset_peaks)(ordinal(device), reason, capacity)
    })
}

/// Gives memory that the allocator keeps for later back to the devices.
///
/// # Errors
/// See [`available`](super::available).
pub fn trim_memory() -> Result<(), ModelError> {
    // SAFETY: nothing goes in.
    call("giving memory back", |table, reason, capacity| unsafe { (table.memory_trim)(reason, capacity) })
}
