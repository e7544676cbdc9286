//! Host memory that a device copies from and to by itself, while the host goes on.

use std::{ffi::c_void, ptr::NonNull};

use tch::{Tensor, kind::Element};

use super::{
    super::ModelError,
    ffi::{call, table},
    stream::Stream,
};

/// Pinned memory for the values of one tensor.
#[derive(Debug)]
pub struct Pinned {
    memory: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: the memory has no ties to a thread; it is used by one at a time, since writing needs `&mut`.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Memory for at least one byte, all zero.
    ///
    /// # Errors
    /// See [`available`](super::available), or there is no memory.
    pub fn new(bytes: usize) -> Result<Self, ModelError> {
        let bytes = bytes.max(1);
        let mut memory = std::ptr::null_mut();
        // SAFETY: `memory` is there to be written to.
        call("allocating pinned memory", |table, reason, capacity| unsafe {
            (table.pinned_new)(bytes, &mut memory, reason, capacity)
        })?;
        let missing =
            || ModelError::Cuda { what: "allocating pinned memory", reason: "none came back".to_owned() };
        let memory = NonNull::new(memory).ok_or_else(missing)?;
        // SAFETY: as many bytes were just allocated.
        unsafe { memory.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { memory, bytes })
    }

    /// Puts values in and queues their copy to `tensor`, contiguous and of the same type and number.
    ///
    /// The memory must not be written to again before `stream` has been waited for.
    ///
    /// # Errors
    /// Values that do not fit, or CUDA refuses.
    pub fn upload<T: Element>(
        &mut self,
        values: &[T],
        tensor: &Tensor,
        stream: &Stream,
    ) -> Result<(), ModelError> {
        let bytes = self.fits::<T>(values.len(), tensor)?;
        // SAFETY: `fits` compared the sizes; both sides are plain values, and they do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(
                values.as_ptr().cast::<u8>(),
                self.memory.cast::<u8>().as_ptr(),
                bytes,
            );
        }
        // SAFETY: both sides have `bytes` bytes, and the caller keeps them until the stream was waited for.
        call("copying to the GPU", |table, reason, capacity| unsafe {
            (table.copy)(tensor.data_ptr(), self.memory.as_ptr(), bytes, &stream.raw, reason, capacity)
        })
    }

    /// Queues the copy of `tensor`, contiguous, to this memory. [`read`](Self::read) it after the stream was waited for.
    ///
    /// # Errors
    /// More values than there is room for, or CUDA refuses.
    pub fn download<T: Element>(&mut self, tensor: &Tensor, stream: &Stream) -> Result<(), ModelError> {
        let bytes = self.fits::<T>(tensor.numel(), tensor)?;
        // SAFETY: both sides have `bytes` bytes, and the caller keeps them until the stream was waited for.
        call("copying from the GPU", |table, reason, capacity| unsafe {
            (table.copy)(self.memory.as_ptr(), tensor.data_ptr(), bytes, &stream.raw, reason, capacity)
        })
    }

    /// Takes the first values out.
    ///
    /// # Errors
    /// More values than there is room for.
    pub fn read<T: Element>(&self, values: &mut [T]) -> Result<(), ModelError> {
        let bytes = std::mem::size_of_val(values);
        if bytes > self.bytes {
            return Err(misfit(self.bytes, bytes));
        }
        // SAFETY: the sizes were just compared, the types libtorch's elements are plain values, and nothing overlaps.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.memory.cast::<u8>().as_ptr(),
                values.as_mut_ptr().cast::<u8>(),
                bytes,
            );
        }
        Ok(())
    }

    fn fits<T: Element>(&self, count: usize, tensor: &Tensor) -> Result<usize, ModelError> {
        let bytes = count * size_of::<T>();
        if tensor.f_kind()? != T::KIND || tensor.numel() != count || !tensor.is_contiguous() {
            return Err(ModelError::Input {
                what: "copy between pinned memory and the GPU",
                expected: format!("a contiguous tensor of {count} values of {:?}", T::KIND),
                found: format!("{tensor:?}"),
            });
        }
        if bytes > self.bytes { Err(misfit(self.bytes, bytes)) } else { Ok(bytes) }
    }
}

fn misfit(room: usize, bytes: usize) -> ModelError {
    ModelError::Input {
        what: "pinned memory",
        expected: format!("at most {room} bytes"),
        found: bytes.to_string(),
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Ok(table) = table() {
            // SAFETY: allocated by the same table and not used again; freeing it waits for copies under way.
            unsafe { (table.pinned_delete)(self.memory.as_ptr()) };
        }
    }
}
