//! Execution contexts: shapes, memory, and runs on a stream.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::builder::{c_name, refused};
use super::device::{Device, DeviceMemory};
use super::engine::{Engine, EngineInner};
use super::error::TensorRtError;
use super::ffi;
use super::log::Mark;
use super::tensor;

/// What TensorRT asks of a tensor's address.
const ALIGNMENT: u64 = 256;

/// One line of work with an engine.
///
/// Send but not Sync: TensorRT's contexts may move between threads, and be used by one at a time.
pub struct Context {
    raw: NonNull<ffi::Context>,
    engine: Arc<EngineInner>,
    bound: HashMap<String, DeviceMemory>,
    /// Counts the changes of shapes and addresses: what was captured before a change is out of date.
    generation: u64,
    /// The generation that was found complete.
    checked: Option<u64>,
}

// SAFETY: a context has no ties to the thread that made it; `&mut self` keeps its use to one thread at a time.
unsafe impl Send for Context {}

impl Context {
    /// A context of the engine, with its own working memory.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`], for instance when the GPU's memory does not suffice.
    pub fn new(engine: &Engine) -> Result<Self, TensorRtError> {
        let engine = Arc::clone(&engine.inner);
        if let Some(device) = engine.device() {
            device.make_current()?;
        }
        if let Some(tensor) = engine.tensors().iter().find(|tensor| tensor.on_host) {
            return Err(TensorRtError::Shape {
                tensor: tensor.name.clone(),
                expected: "inputs and outputs in device memory".to_owned(),
                found: "one that shapes depend on, in host memory: export the graph without it".to_owned(),
            });
        }
        let mark = Mark::now();
        let mut status = ffi::OK;
        // SAFETY: the engine is alive and kept.
        let raw = unsafe { (engine.library().table.context_create)(engine.raw(), &mut status) };
        let raw = NonNull::new(raw).ok_or_else(|| refused("making an execution context", mark))?;
        Ok(Self { raw, engine, bound: HashMap::new(), generation: 0, checked: None })
    }

    /// The GPU that the context runs on, unless TensorRT chose it.
    pub fn device(&self) -> Option<&Device> {
        self.engine.device()
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    fn table(&self) -> &'static ffi::Table {
        self.engine.library().table
    }

    /// Chooses one of the engine's profiles. The shapes must be set again afterwards.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`].
    pub fn set_profile(&mut self, profile: usize, stream: &CudaStream) -> Result<(), TensorRtError> {
        let mark = Mark::now();
        self.generation += 1;
        let number = i32::try_from(profile).unwrap_or(i32::MAX);
        // SAFETY: the context is alive, and the stream is one of its device.
        let status = unsafe {
            (self.table().context_set_profile)(self.raw.as_ptr(), number, stream.cu_stream().cast::<c_void>())
        };
        if status == ffi::OK { Ok(()) } else { Err(refused(&format!("choosing profile {profile}"), mark)) }
    }

    /// Sets the shape of an input whose dimensions the engine leaves free.
    ///
    /// # Errors
    /// [`TensorRtError::Shape`] for another rank or fixed dimension, [`TensorRtError::Refused`] outside the profile.
    pub fn set_shape(&mut self, input: &str, shape: &[i64]) -> Result<(), TensorRtError> {
        let known = self.engine.tensor(input)?;
        let fits = known.is_input
            && known.shape.len() == shape.len()
            && known.shape.iter().zip(shape).all(|(&fixed, &set)| set >= 0 && (fixed < 0 || fixed == set));
        if !fits {
            return Err(TensorRtError::Shape {
                tensor: format!("{} {input:?}", if known.is_input { "input" } else { "output" }),
                expected: format!("a shape that fits {:?} (-1: free) of an input", known.shape),
                found: format!("{shape:?}"),
            });
        }
        let name = c_name(input)?;
        let mark = Mark::now();
        self.generation += 1;
        // The rank was compared with the engine's, which is at most 8.
        let rank = i32::try_from(shape.len()).unwrap_or(i32::MAX);
        // SAFETY: the context is alive, and `shape` has `rank` dimensions.
        let status = unsafe {
            (self.table().context_set_shape)(self.raw.as_ptr(), name.as_ptr(), shape.as_ptr(), rank)
        };
        if status == ffi::OK {
            Ok(())
        } else {
            Err(refused(&format!("setting the shape of {input:?} to {shape:?}"), mark))
        }
    }

    /// The shape of an input or output, given the inputs' shapes. Dimensions that these do not fix are -1.
    ///
    /// # Errors
    /// [`TensorRtError::NoSuchTensor`], [`TensorRtError::Refused`].
    pub fn shape(&self, name: &str) -> Result<Vec<i64>, TensorRtError> {
        self.engine.tensor(name)?;
        let text = c_name(name)?;
        let mark = Mark::now();
        let (mut dims, mut rank) = ([0; ffi::MAX_DIMS], -1);
        // SAFETY: the context is alive; `dims` has room for the eight dimensions that the shim may write.
        let status = unsafe {
            (self.table().context_shape)(self.raw.as_ptr(), text.as_ptr(), dims.as_mut_ptr(), &mut rank)
        };
        if status == ffi::OK {
            Ok(tensor::dims(&dims, rank))
        } else {
            Err(refused(&format!("asking for the shape of {name:?}"), mark))
        }
    }

    /// Bytes of an input or output, given the inputs' shapes.
    ///
    /// # Errors
    /// [`TensorRtError::Shape`] while its shape is not known.
    pub fn bytes(&self, name: &str) -> Result<usize, TensorRtError> {
        let shape = self.shape(name)?;
        let data_type = self.engine.tensor(name)?.data_type;
        data_type.bytes(&shape).ok_or_else(|| TensorRtError::Shape {
            tensor: name.to_owned(),
            expected: "a shape and type of known size: set the shapes of all inputs first".to_owned(),
            found: format!("{shape:?} of {data_type}"),
        })
    }

    /// Gives an input or output its memory. What was bound before is let go.
    ///
    /// # Errors
    /// [`TensorRtError::NoSuchTensor`], [`TensorRtError::Invalid`] for an address that is not a multiple of 256.
    pub fn bind(&mut self, name: &str, memory: impl Into<DeviceMemory>) -> Result<(), TensorRtError> {
        self.engine.tensor(name)?;
        let memory = memory.into();
        let address = memory.address();
        if address == 0 || address % ALIGNMENT != 0 {
            return Err(TensorRtError::Invalid {
                what: "address of a tensor on the GPU",
                expected: format!("a multiple of {ALIGNMENT}, as allocations have (a view into one may not)"),
                found: format!("{address:#x} for {name:?}"),
            });
        }
        if self.bound.get(name).is_some_and(|old| old.address() == address && old.bytes() == memory.bytes()) {
            // The same place again, as when a caching allocator hands it out anew: what was captured stays valid.
            self.bound.insert(name.to_owned(), memory);
            return Ok(());
        }
        let text = c_name(name)?;
        let mark = Mark::now();
        self.generation += 1;
        // SAFETY: the context is alive. That the memory is there is the contract of whoever made the `DeviceMemory`; it is
        // kept below until another is bound. Its size is compared before a run.
        let status = unsafe {
            (self.table().context_set_address)(self.raw.as_ptr(), text.as_ptr(), address as *mut c_void)
        };
        if status != ffi::OK {
            return Err(refused(&format!("binding memory to {name:?}"), mark));
        }
        self.bound.insert(name.to_owned(), memory);
        Ok(())
    }

    /// Whether everything is set that a run needs: shapes, and enough memory for each tensor.
    ///
    /// # Errors
    /// [`TensorRtError::NotReady`] with all that is missing.
    pub fn check(&mut self) -> Result<(), TensorRtError> {
        if self.checked == Some(self.generation) {
            return Ok(());
        }
        let mut missing = Vec::new();
        for tensor in self.engine.tensors() {
            let Some(memory) = self.bound.get(&tensor.name) else {
                missing.push(format!("{:?} has no memory", tensor.name));
                continue;
            };
            match self.bytes(&tensor.name) {
                Ok(bytes) if bytes > memory.bytes() => {
                    missing.push(format!("{:?} needs {bytes} bytes and has {}", tensor.name, memory.bytes()));
                }
                Ok(_) => {}
                Err(problem) => missing.push(problem.to_string()),
            }
        }
        if missing.is_empty() {
            let mark = Mark::now();
            let mut names: Vec<String> = Vec::new();
            // SAFETY: the context is alive; `collect_text` is given the vector that it expects.
            let status = unsafe {
                (self.table().context_missing)(self.raw.as_ptr(), ffi::collect_text, (&raw mut names).cast())
            };
            if status != ffi::OK {
                return Err(refused("inferring the shapes", mark));
            }
            missing.extend(names.into_iter().map(|name| format!("{name:?} has no shape")));
        }
        if !missing.is_empty() {
            return Err(TensorRtError::NotReady(missing.join("; ")));
        }
        self.checked = Some(self.generation);
        Ok(())
    }

    /// Queues a run on `stream` and comes back at once. Inputs may be written again, and outputs read, by work queued
    /// later on the same stream, or after it was waited for.
    ///
    /// # Errors
    /// [`TensorRtError::NotReady`], [`TensorRtError::Refused`]. Faults during the run show up when the stream is waited for.
    pub fn enqueue(&mut self, stream: &CudaStream) -> Result<(), TensorRtError> {
        self.check()?;
        if let Some(device) = self.engine.device() {
            device.make_current()?;
        }
        let mark = Mark::now();
        // SAFETY: the context is alive and complete, and the stream is one of its device.
        let status =
            unsafe { (self.table().context_enqueue)(self.raw.as_ptr(), stream.cu_stream().cast::<c_void>()) };
        if status == ffi::OK { Ok(()) } else { Err(refused("queueing a run", mark)) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by the same table, destroyed once; engine, runtime and CUDA context are dropped after this. Runs
        // still under way end first: freeing the context's memory waits for the GPU.
        unsafe { (self.table().context_destroy)(self.raw.as_ptr()) };
    }
}
