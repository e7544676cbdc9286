//! The GPU and its memory, through CUDA's driver interface (loaded at run time).

use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, result, sys};

use crate::engine::ComputeCapability;

use super::error::TensorRtError;

/// A GPU, with its primary context: the one that libtorch and TensorRT use too.
#[derive(Clone)]
pub struct Device {
    context: Arc<CudaContext>,
    name: String,
    compute_capability: ComputeCapability,
    total_memory: usize,
    driver_cuda: (u32, u32),
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}: {}, compute capability {})", self.ordinal(), self.name, self.compute_capability)
    }
}

impl Device {
    /// The GPU with this number (as CUDA counts them, after CUDA_VISIBLE_DEVICES).
    ///
    /// # Errors
    /// [`TensorRtError::NoDriver`] or [`TensorRtError::Cuda`].
    pub fn new(ordinal: usize) -> Result<Self, TensorRtError> {
        // SAFETY: loading the driver runs only its own initialisers. Without this question cudarc would panic where
        // there is no driver.
        if !unsafe { sys::is_culib_present() } {
            return Err(TensorRtError::NoDriver);
        }
        let failed = |what: &str| {
            let action = format!("{what} GPU {ordinal}");
            move |error| TensorRtError::cuda(action, error)
        };
        let context = CudaContext::new(ordinal).map_err(failed("opening"))?;
        // SAFETY: this is a matter of cudarc's own slices, which this crate does not use. With it, the first stream would wait
        // for the whole GPU, beside whatever another thread captures.
        unsafe { context.disable_event_tracking() };
        let (major, minor) =
            context.compute_capability().map_err(failed("asking for the compute capability of"))?;
        let mut version = 0;
        // SAFETY: the address of an integer.
        unsafe { sys::cuDriverGetVersion(&mut version) }
            .result()
            .map_err(failed("asking for the driver of"))?;
        let version = version.unsigned_abs();
        Ok(Self {
            name: context.name().map_err(failed("asking for the name of"))?,
            compute_capability: ComputeCapability {
                major: major.unsigned_abs(),
                minor: minor.unsigned_abs(),
            },
            total_memory: context.total_mem().map_err(failed("asking for the memory of"))?,
            driver_cuda: (version / 1000, version % 1000 / 10),
            context,
        })
    }

    pub fn ordinal(&self) -> usize {
        self.context.ordinal()
    }

    /// Such as `NVIDIA H100 80GB HBM3`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn compute_capability(&self) -> ComputeCapability {
        self.compute_capability
    }

    /// In bytes.
    pub fn total_memory(&self) -> usize {
        self.total_memory
    }

    /// The newest CUDA that the driver serves, as (12, 6).
    pub fn driver_cuda(&self) -> (u32, u32) {
        self.driver_cuda
    }

    /// The primary context, for what is not wrapped here (events, copies).
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Makes this GPU the calling thread's, as CUDA wants it before other calls.
    ///
    /// # Errors
    /// [`TensorRtError::Cuda`].
    pub fn make_current(&self) -> Result<(), TensorRtError> {
        self.context.bind_to_thread().map_err(|error| TensorRtError::cuda("choosing the GPU", error))
    }

    /// A new stream that does not wait for the default stream.
    ///
    /// # Errors
    /// [`TensorRtError::Cuda`].
    pub fn new_stream(&self) -> Result<Arc<CudaStream>, TensorRtError> {
        self.context.new_stream().map_err(|error| TensorRtError::cuda("making a stream", error))
    }

    /// Someone else's stream, such as libtorch's current one, so that both queue their work in one order and the host
    /// never waits between them. Null is the default stream.
    ///
    /// # Safety
    /// `stream` is a `cudaStream_t` of this device's primary context (or null), and outlives what is returned.
    pub unsafe fn external_stream(&self, stream: *mut c_void) -> Arc<CudaStream> {
        // SAFETY: by this function's contract.
        unsafe { self.context.wrap_borrowed_stream(stream.cast()) }
    }

    /// Memory of so many bytes, not initialised.
    ///
    /// # Errors
    /// [`TensorRtError::Cuda`], for instance when there is not enough.
    pub fn allocate(&self, bytes: usize) -> Result<DeviceBuffer, TensorRtError> {
        self.make_current()?;
        // SAFETY: what is returned is only written through its owner, and freed once, by it. CUDA refuses zero bytes.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }
            .map_err(|error| TensorRtError::cuda(format!("allocating {bytes} bytes on the GPU"), error))?;
        Ok(DeviceBuffer { context: Arc::clone(&self.context), address, bytes })
    }
}

/// Device memory that this program owns.
///
/// Freed when dropped, which waits until the GPU has done all its work: make buffers once, not in every tick.
pub struct DeviceBuffer {
    context: Arc<CudaContext>,
    address: u64,
    bytes: usize,
}

impl DeviceBuffer {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies to the GPU, after what `stream` has queued; comes back when `from` may be changed.
    ///
    /// # Errors
    /// [`TensorRtError::Shape`] if `from` is not of the buffer's size, [`TensorRtError::Cuda`].
    pub fn upload(&self, from: &[u8], stream: &CudaStream) -> Result<(), TensorRtError> {
        self.check(from.len())?;
        let failed = |error| TensorRtError::cuda("copying to the GPU", error);
        self.context.bind_to_thread().map_err(failed)?;
        // SAFETY: the buffer has as many bytes as `from`, and `from` is borrowed until the copy is done.
        unsafe { result::memcpy_htod_async(self.address, from, stream.cu_stream()) }.map_err(failed)?;
        stream.synchronize().map_err(failed)
    }

    /// Copies from the GPU, after what `stream` has queued; comes back when `to` is filled.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub fn download(&self, to: &mut [u8], stream: &CudaStream) -> Result<(), TensorRtError> {
        self.check(to.len())?;
        let failed = |error| TensorRtError::cuda("copying from the GPU", error);
        self.context.bind_to_thread().map_err(failed)?;
        // SAFETY: as in `upload`.
        unsafe { result::memcpy_dtoh_async(to, self.address, stream.cu_stream()) }.map_err(failed)?;
        stream.synchronize().map_err(failed)
    }

    fn check(&self, host: usize) -> Result<(), TensorRtError> {
        if host == self.bytes {
            return Ok(());
        }
        Err(TensorRtError::Shape {
            tensor: "host memory of a copy".to_owned(),
            expected: format!("{} bytes, as on the GPU", self.bytes),
            found: format!("{host} bytes"),
        })
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the address came from `malloc_sync` and is freed only here. `cuMemFree` waits for the work queued.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Device memory for a tensor of an engine, and whatever keeps it alive.
pub struct DeviceMemory {
    address: u64,
    bytes: usize,
    /// Dropped with this; never looked at.
    _owner: Option<Box<dyn Any + Send>>,
}

impl DeviceMemory {
    /// Memory that somebody else allocated, such as a libtorch tensor's, without a copy.
    ///
    /// # Safety
    /// `address` is device memory of at least `bytes` bytes on the engine's GPU. It stays allocated while the context that
    /// it is bound to may run: give its owner as `owner`, or see to it. Its owner is written to by the GPU if it is bound
    /// to an output.
    pub unsafe fn external(address: *mut c_void, bytes: usize, owner: Option<Box<dyn Any + Send>>) -> Self {
        Self { address: address as u64, bytes, _owner: owner }
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl From<Arc<DeviceBuffer>> for DeviceMemory {
    fn from(buffer: Arc<DeviceBuffer>) -> Self {
        Self { address: buffer.address, bytes: buffer.bytes, _owner: Some(Box::new(buffer)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_or_gpu_gets_an_error_and_no_panic() {
        match Device::new(0) {
            Ok(device) => eprintln!("skipped: this machine has {device:?}"),
            Err(error @ TensorRtError::NoDriver) => {
                assert!(error.to_string().contains("libcuda.so.1"), "{error}")
            }
            Err(error) => assert!(matches!(error, TensorRtError::Cuda { .. }), "{error}"),
        }
    }
}
