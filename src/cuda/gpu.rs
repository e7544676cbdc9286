//! The GPU, and memory of it.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, result, sys};

use super::error::CudaError;
use crate::capturing;
use crate::engine::ComputeCapability;

/// `CU_STREAM_PER_THREAD`: the stream that each thread has of its own, which begins after what the default stream has queued. To
/// copy on it and to wait for it is allowed beside a capture of another thread; to wait for the whole GPU is not.
const THREAD_STREAM: sys::CUstream = std::ptr::without_provenance_mut(2);

#[derive(Clone)]
enum Place {
    Device(Arc<CudaContext>),
    #[cfg(test)]
    Emulated,
}

/// A GPU with its primary context, the one that libtorch uses too.
#[derive(Clone)]
pub struct Gpu {
    place: Place,
    capability: ComputeCapability,
    multiprocessors: u32,
    shared_per_block: u32,
    shared_per_multiprocessor: u32,
    l2: u32,
}

impl Gpu {
    /// The GPU with this number, as CUDA counts.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::Driver`].
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        // SAFETY: loading the driver runs only its own initialisers. Without this question cudarc would panic where there
        // is no driver.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        let context =
            CudaContext::new(ordinal).map_err(CudaError::driver(format!("opening GPU {ordinal}")))?;
        // SAFETY: this is a matter of cudarc's own slices, which this crate does not use. With it, the first stream would wait
        // for the whole GPU, beside whatever another thread captures.
        unsafe { context.disable_event_tracking() };
        use sys::CUdevice_attribute as A;
        let ask = |attribute| {
            let answer =
                context.attribute(attribute).map_err(CudaError::driver("asking what the GPU can do"));
            answer.map(i32::unsigned_abs)
        };
        Ok(Self {
            capability: ComputeCapability {
                major: ask(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                minor: ask(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            },
            multiprocessors: ask(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_per_block: ask(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            shared_per_multiprocessor: ask(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
            l2: ask(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            place: Place::Device(context),
        })
    }

    /// What the tests have: the kernels run on the CPU, on its memory. It is so small that small products fill it.
    #[cfg(test)]
    pub fn emulated() -> Self {
        Self::emulated_with(ComputeCapability { major: 9, minor: 0 }, 227 << 10)
    }

    /// Such a one with the limits of another generation.
    #[cfg(test)]
    pub(super) fn emulated_with(capability: ComputeCapability, shared_per_block: u32) -> Self {
        Self {
            place: Place::Emulated,
            capability,
            multiprocessors: 4,
            shared_per_block,
            shared_per_multiprocessor: shared_per_block + (1 << 10),
            l2: 50 << 20,
        }
    }

    #[cfg(test)]
    pub(super) fn is_emulated(&self) -> bool {
        matches!(self.place, Place::Emulated)
    }

    /// The primary context.
    pub fn context(&self) -> &Arc<CudaContext> {
        match &self.place {
            Place::Device(context) => context,
            #[cfg(test)]
            Place::Emulated => panic!("an emulated GPU has no context"),
        }
    }

    /// Such as 9.0.
    pub fn capability(&self) -> ComputeCapability {
        self.capability
    }

    /// Streaming multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Bytes of shared memory that one block can have.
    pub fn shared_per_block(&self) -> u32 {
        self.shared_per_block
    }

    /// Bytes of shared memory of a multiprocessor.
    pub fn shared_per_multiprocessor(&self) -> u32 {
        self.shared_per_multiprocessor
    }

    /// Bytes of the L2 cache.
    pub fn l2(&self) -> u32 {
        self.l2
    }

    /// Whether a kernel can start before its predecessor on the stream has ended.
    pub fn overlaps(&self) -> bool {
        self.capability.major >= 9
    }

    /// A stream that does not wait for the default stream.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new_stream(&self) -> Result<Arc<CudaStream>, CudaError> {
        self.context().new_stream().map_err(CudaError::driver("making a stream"))
    }

    /// Someone else's stream; null is the default stream.
    ///
    /// # Safety
    /// A stream of this GPU's primary context that outlives what is returned.
    pub unsafe fn external_stream(&self, stream: *mut std::ffi::c_void) -> Arc<CudaStream> {
        // SAFETY: by this function's contract.
        unsafe { self.context().wrap_borrowed_stream(stream.cast()) }
    }

    /// Waits for all work of the GPU.
    ///
    /// # Errors
    /// What went wrong with it.
    pub fn wait(&self) -> Result<(), CudaError> {
        wait_for_all(self.context())
    }

    /// Memory that is not initialised.
    ///
    /// # Errors
    /// [`CudaError::Driver`], for instance when there is not enough.
    pub fn allocate(&self, bytes: usize) -> Result<Memory, CudaError> {
        #[cfg(test)]
        if self.is_emulated() {
            // Nobody has written to it.
            let mut values = vec![u128::MAX; bytes.div_ceil(16).max(1)];
            let address = values.as_mut_ptr() as u64;
            return Ok(Memory { place: Held::Emulated(values), address, bytes });
        }
        let failed = || CudaError::driver(format!("allocating {bytes} bytes on the GPU"));
        self.context().bind_to_thread().map_err(failed())?;
        // SAFETY: the address is freed once, by what is returned. CUDA refuses zero bytes.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(failed())?;
        Ok(Memory { place: Held::Device(Arc::clone(self.context())), address, bytes })
    }
}

/// Waits for all work of the GPU. Not in the middle of a tick: it waits for captures of other threads, too.
///
/// # Errors
/// [`CudaError::Driver`].
pub(super) fn wait_for_all(context: &CudaContext) -> Result<(), CudaError> {
    capturing::clear_of_captures(|| context.synchronize()).map_err(CudaError::driver("waiting for the GPU"))
}

enum Held {
    Device(Arc<CudaContext>),
    #[cfg(test)]
    Emulated(Vec<u128>),
}

/// Device memory, freed when dropped, which waits for the GPU.
pub struct Memory {
    place: Held,
    address: u64,
    bytes: usize,
}

impl Memory {
    /// On the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts values at byte `at`, after what the default stream has queued, and waits for it.
    ///
    /// # Errors
    /// More than there is room for; [`CudaError::Driver`].
    pub(super) fn write<T: Copy>(&self, at: usize, values: &[T]) -> Result<(), CudaError> {
        let address = self.address_of(at, size_of_val(values))?;
        let failed = || CudaError::driver("writing to the GPU's memory");
        match &self.place {
            Held::Device(context) => {
                context.bind_to_thread().map_err(failed())?;
                // SAFETY: the memory has room for them, and they are borrowed until the copy is done.
                unsafe { result::memcpy_htod_async(address, values, THREAD_STREAM) }.map_err(failed())?;
                // SAFETY: the stream always is.
                unsafe { result::stream::synchronize(THREAD_STREAM) }.map_err(failed())
            }
            #[cfg(test)]
            Held::Emulated(_) => {
                // SAFETY: the memory is the process's own and has room for them; the vector is kept.
                unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), address as *mut T, values.len()) };
                Ok(())
            }
        }
    }

    /// What it holds, once the work that writes it is done, and what the default stream has queued.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub(super) fn read(&self) -> Result<Vec<u8>, CudaError> {
        let mut bytes = vec![0; self.bytes];
        match &self.place {
            Held::Device(context) => {
                let failed = || CudaError::driver(format!("reading {} bytes from the GPU", self.bytes));
                context.bind_to_thread().map_err(failed())?;
                // SAFETY: so many bytes were allocated there, and as many are borrowed until the copy is done.
                unsafe { result::memcpy_dtoh_async(&mut bytes, self.address, THREAD_STREAM) }
                    .map_err(failed())?;
                // SAFETY: the stream always is.
                unsafe { result::stream::synchronize(THREAD_STREAM) }.map_err(failed())?;
            }
            #[cfg(test)]
            // SAFETY: as above; the vector is kept.
            Held::Emulated(_) => unsafe {
                std::ptr::copy_nonoverlapping(self.address as *const u8, bytes.as_mut_ptr(), self.bytes);
            },
        }
        Ok(bytes)
    }

    fn address_of(&self, at: usize, bytes: usize) -> Result<u64, CudaError> {
        if at.checked_add(bytes).is_some_and(|end| end <= self.bytes) {
            return Ok(self.address + at as u64);
        }
        let expected = format!("at most {} bytes", self.bytes);
        Err(CudaError::argument("copy between host and GPU", expected, format!("{bytes} at byte {at}")))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match &self.place {
            Held::Device(context) => {
                if context.bind_to_thread().is_ok() {
                    // SAFETY: the address came from `malloc_sync` and is freed only here. `cuMemFree` waits for the work
                    // queued.
                    let _ = unsafe { result::free_sync(self.address) };
                }
            }
            #[cfg(test)]
            Held::Emulated(values) => debug_assert_eq!(values.as_ptr() as u64, self.address),
        }
    }
}
