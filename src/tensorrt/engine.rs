//! Engines: deserialised plans, ready to make execution contexts.

use std::ptr::NonNull;
use std::sync::Arc;

use super::builder::{c_name, refused, unsupported};
use super::device::Device;
use super::error::TensorRtError;
use super::ffi;
use super::library::Library;
use super::log::Mark;
use super::options::ShapeRange;
use super::tensor::{self, IoTensor};

/// TensorRT's runtime on one GPU.
///
/// Send and Sync: the runtime's methods used here may be called from any thread.
pub struct Runtime {
    inner: Arc<RuntimeInner>,
}

/// Dropped after all engines made with it: they hold it.
struct RuntimeInner {
    raw: NonNull<ffi::Runtime>,
    library: Arc<Library>,
    /// Held so that the CUDA context goes last.
    device: Option<Device>,
}

// SAFETY: TensorRT documents `deserializeCudaEngine` as thread-safe; nothing else is called but the destructor.
unsafe impl Send for RuntimeInner {}
// SAFETY: as above.
unsafe impl Sync for RuntimeInner {}

impl Drop for RuntimeInner {
    fn drop(&mut self) {
        // SAFETY: made by the same table, destroyed once; the fields, with the CUDA context, are dropped after this.
        unsafe { (self.library.table.runtime_destroy)(self.raw.as_ptr()) };
    }
}

impl Runtime {
    /// A runtime for engines on `device`.
    ///
    /// Where the driver works but is too old for the library's CUDA, 8.6 crashes here; its [`Builder`](super::Builder) says
    /// so instead.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] with TensorRT's words, for instance if the driver is too old for it.
    pub fn new(library: &Arc<Library>, device: &Device) -> Result<Self, TensorRtError> {
        device.make_current()?;
        Self::start(library, Some(device.clone()))
    }

    pub(super) fn start(library: &Arc<Library>, device: Option<Device>) -> Result<Self, TensorRtError> {
        let mark = Mark::now();
        let mut status = ffi::OK;
        // SAFETY: the entry point and the logger belong to this library, which is kept.
        let raw = unsafe {
            (library.table.runtime_create)(library.create_runtime(), library.logger.as_ptr(), &mut status)
        };
        let raw = NonNull::new(raw).ok_or_else(|| refused("making TensorRT's runtime", mark))?;
        Ok(Self { inner: Arc::new(RuntimeInner { raw, library: Arc::clone(library), device }) })
    }

    /// Lets engines that were built `version_compatible` bring their own runtime code, which then runs in this process: only
    /// for plans that are trusted.
    ///
    /// # Errors
    /// [`TensorRtError::Unsupported`] before 8.6.
    pub fn allow_host_code(&self) -> Result<(), TensorRtError> {
        let library = &self.inner.library;
        if !library.has(8, 6) {
            return Err(unsupported(
                library,
                "engines with code of their own",
                "They came with TensorRT 8.6",
            ));
        }
        // SAFETY: the runtime is alive, and both library and headers have the function.
        unsafe { (library.table.runtime_allow_host_code)(self.inner.raw.as_ptr()) };
        Ok(())
    }

    /// Makes an engine of a plan. The plan's memory is not needed afterwards: free it where host and GPU share memory.
    ///
    /// Check the plan's hash first ([`crate::engine`]): TensorRT trusts what it reads.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] with TensorRT's words, as for a plan of another version or GPU.
    pub fn deserialise(&self, plan: &[u8]) -> Result<Engine, TensorRtError> {
        if let Some(device) = &self.inner.device {
            device.make_current()?;
        }
        let mark = Mark::now();
        let mut status = ffi::OK;
        let table = self.inner.library.table;
        // SAFETY: the runtime is alive, and the plan is readable for the length of the call.
        let raw = unsafe {
            (table.runtime_deserialise)(
                self.inner.raw.as_ptr(),
                plan.as_ptr().cast(),
                plan.len(),
                &mut status,
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| refused("reading the engine", mark))?;
        let mut inner =
            EngineInner { raw, runtime: Arc::clone(&self.inner), tensors: Vec::new(), profiles: 0 };
        inner.tensors = inner.read_tensors();
        // SAFETY: the engine is alive.
        inner.profiles = usize::try_from(unsafe { (table.engine_profile_count)(raw.as_ptr()) }).unwrap_or(0);
        Ok(Engine { inner: Arc::new(inner) })
    }
}

pub(super) struct EngineInner {
    raw: NonNull<ffi::Engine>,
    runtime: Arc<RuntimeInner>,
    tensors: Vec<IoTensor>,
    profiles: usize,
}

// SAFETY: TensorRT documents the const methods of an engine and the making of contexts as thread-safe.
unsafe impl Send for EngineInner {}
// SAFETY: as above.
unsafe impl Sync for EngineInner {}

impl EngineInner {
    pub(super) fn raw(&self) -> *mut ffi::Engine {
        self.raw.as_ptr()
    }

    pub(super) fn library(&self) -> &Arc<Library> {
        &self.runtime.library
    }

    pub(super) fn device(&self) -> Option<&Device> {
        self.runtime.device.as_ref()
    }

    pub(super) fn tensors(&self) -> &[IoTensor] {
        &self.tensors
    }

    pub(super) fn tensor(&self, name: &str) -> Result<&IoTensor, TensorRtError> {
        self.tensors.iter().find(|tensor| tensor.name == name).ok_or_else(|| TensorRtError::NoSuchTensor {
            kind: "input or output of the engine",
            name: name.to_owned(),
            known: tensor::names(&self.tensors),
        })
    }

    fn read_tensors(&self) -> Vec<IoTensor> {
        let table = self.runtime.library.table;
        // SAFETY: the engine is alive.
        let count = unsafe { (table.engine_tensor_count)(self.raw()) };
        (0..count)
            .filter_map(|index| {
                let mut raw = ffi::Tensor::EMPTY;
                // SAFETY: as above; the shim fills in the struct.
                let status = unsafe { (table.engine_tensor)(self.raw(), index, &mut raw) };
                (status == ffi::OK).then(|| IoTensor::from_raw(&raw))
            })
            .collect()
    }
}

impl Drop for EngineInner {
    fn drop(&mut self) {
        // SAFETY: made by the same table, destroyed once; contexts hold this, and the runtime is dropped after it.
        unsafe { (self.runtime.library.table.engine_destroy)(self.raw()) };
    }
}

/// An engine on the GPU. Cheap to clone; it goes when the last clone and the last context are gone.
///
/// Send and Sync: contexts may be made from any thread.
#[derive(Clone)]
pub struct Engine {
    pub(super) inner: Arc<EngineInner>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("tensors", &self.inner.tensors).finish_non_exhaustive()
    }
}

impl Engine {
    /// Inputs and outputs, with the types that the engine wants: give it no others.
    pub fn tensors(&self) -> &[IoTensor] {
        self.inner.tensors()
    }

    /// The input or output of this name.
    ///
    /// # Errors
    /// [`TensorRtError::NoSuchTensor`].
    pub fn tensor(&self, name: &str) -> Result<&IoTensor, TensorRtError> {
        self.inner.tensor(name)
    }

    /// How many optimisation profiles it has.
    pub fn profiles(&self) -> usize {
        self.inner.profiles
    }

    /// The shapes of an input in a profile.
    ///
    /// # Errors
    /// [`TensorRtError::NoSuchTensor`], [`TensorRtError::Invalid`] for a profile that is not there.
    pub fn shape_range(&self, input: &str, profile: usize) -> Result<ShapeRange, TensorRtError> {
        self.tensor(input)?;
        let name = c_name(input)?;
        let shape = |which: i32| {
            let (mut dims, mut rank) = ([0; ffi::MAX_DIMS], -1);
            let number = i32::try_from(profile).unwrap_or(i32::MAX);
            let table = self.inner.library().table;
            // SAFETY: the engine is alive; `dims` has room for the eight dimensions that the shim may write.
            let status = unsafe {
                (table.engine_profile_shape)(
                    self.inner.raw(),
                    name.as_ptr(),
                    number,
                    which,
                    dims.as_mut_ptr(),
                    &mut rank,
                )
            };
            if status == ffi::OK {
                return Ok(tensor::dims(&dims, rank));
            }
            Err(TensorRtError::Invalid {
                what: "profile of an input",
                expected: format!("an input and one of {} profiles", self.inner.profiles),
                found: format!("{input:?}, profile {profile}"),
            })
        };
        Ok(ShapeRange { min: shape(0)?, opt: shape(1)?, max: shape(2)? })
    }

    /// How the memory of a tensor is laid out, in TensorRT's words.
    ///
    /// # Errors
    /// [`TensorRtError::NoSuchTensor`].
    pub fn format(&self, name: &str) -> Result<String, TensorRtError> {
        self.tensor(name)?;
        let name = c_name(name)?;
        // SAFETY: the engine is alive, and gives a C string of its own.
        Ok(unsafe {
            ffi::text_at((self.inner.library().table.engine_tensor_format)(self.inner.raw(), name.as_ptr()))
        })
    }

    /// Layers after fusion.
    pub fn layers(&self) -> usize {
        // SAFETY: the engine is alive.
        let count = unsafe { (self.inner.library().table.engine_layer_count)(self.inner.raw()) };
        usize::try_from(count).unwrap_or(0)
    }

    /// Bytes of GPU memory that a context needs beside the weights.
    pub fn context_memory(&self) -> u64 {
        // SAFETY: the engine is alive.
        unsafe { (self.inner.library().table.engine_device_memory)(self.inner.raw()) }
    }

    /// What the engine inspector says, as JSON: layers, and with `detailed_profiling` their kernels and types.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn inspect(&self) -> Result<String, TensorRtError> {
        let mark = Mark::now();
        let mut texts: Vec<String> = Vec::new();
        // SAFETY: the engine is alive; `collect_text` is given the vector that it expects.
        let status = unsafe {
            (self.inner.library().table.engine_inspect)(
                self.inner.raw(),
                ffi::collect_text,
                (&raw mut texts).cast(),
            )
        };
        texts.pop().filter(|_| status == ffi::OK).ok_or_else(|| refused("inspecting the engine", mark))
    }
}
