//! Compiled kernels, loaded.

use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

#[cfg(test)]
use super::emulation;
use super::error::CudaError;
use super::gpu::Gpu;
use super::nvrtc::Code;

/// Shared memory that every block may have without asking.
const UNASKED_SHARED: u32 = 48 << 10;

/// Compiled code in the GPU.
pub struct Module(Loaded);

enum Loaded {
    Device {
        context: Arc<CudaContext>,
        module: sys::CUmodule,
    },
    #[cfg(test)]
    Emulated(Arc<emulation::Library>),
}

// SAFETY: CUDA's modules have no ties to a thread.
unsafe impl Send for Module {}
// SAFETY: nothing changes a module after it is loaded.
unsafe impl Sync for Module {}

impl Module {
    /// Loads what NVRTC made for this GPU.
    ///
    /// # Errors
    /// [`CudaError::Driver`], if it was made for another one for instance.
    pub fn load(gpu: &Gpu, code: &Code) -> Result<Arc<Self>, CudaError> {
        let failed = || CudaError::driver("loading compiled kernels");
        gpu.context().bind_to_thread().map_err(failed())?;
        // SAFETY: a cubin, or PTX that ends with a zero: `Code` holds nothing else.
        let module = unsafe { result::module::load_data(code.0.as_ptr().cast()) }.map_err(failed())?;
        Ok(Arc::new(Self(Loaded::Device { context: Arc::clone(gpu.context()), module })))
    }

    #[cfg(test)]
    pub(super) fn emulated(library: Arc<emulation::Library>) -> Arc<Self> {
        Arc::new(Self(Loaded::Emulated(library)))
    }

    /// A kernel by its name, `shared` bytes of dynamic shared memory allowed.
    ///
    /// # Errors
    /// [`CudaError::Driver`]: there is no such kernel, or so much shared memory is not to be had.
    pub fn kernel(self: &Arc<Self>, name: &str, shared: u32) -> Result<Kernel, CudaError> {
        let (context, module) = match &self.0 {
            Loaded::Device { context, module } => (context, *module),
            #[cfg(test)]
            Loaded::Emulated(library) => {
                let function = Function::Emulated(emulation::Function::new(library, name)?);
                return Ok(Kernel { function, name: name.to_owned(), shared: shared.max(UNASKED_SHARED) });
            }
        };
        let failed =
            || CudaError::driver(format!("taking the kernel {name} with {shared} bytes of shared memory"));
        let c_name = CString::new(name).map_err(|_| CudaError::argument("kernel", "a name", name))?;
        context.bind_to_thread().map_err(failed())?;
        use sys::CUfunction_attribute as A;
        // SAFETY: the module is loaded, and kept by the kernel.
        let function = unsafe { result::module::get_function(module, c_name) }.map_err(failed())?;
        let set = |attribute, value: u32| {
            // SAFETY: a function of a module that is loaded.
            unsafe { result::function::set_function_attribute(function, attribute, value as i32) }
                .map_err(failed())
        };
        if shared > UNASKED_SHARED {
            set(A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)?;
        }
        // All kernels divide a multiprocessor's memory alike: it can only be divided anew while nothing runs on it, and
        // kernels are to run side by side.
        set(A::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100)?;
        Ok(Kernel {
            function: Function::Device { _module: Arc::clone(self), function },
            name: name.to_owned(),
            shared: shared.max(UNASKED_SHARED),
        })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        match &self.0 {
            Loaded::Device { context, module } => {
                if context.bind_to_thread().is_ok() {
                    // SAFETY: loaded once, unloaded only here. Kernels keep the module.
                    let _ = unsafe { result::module::unload(*module) };
                }
            }
            #[cfg(test)]
            Loaded::Emulated(..) => {}
        }
    }
}

#[derive(Clone)]
pub(super) enum Function {
    Device {
        _module: Arc<Module>,
        function: sys::CUfunction,
    },
    #[cfg(test)]
    Emulated(emulation::Function),
}

/// One kernel.
#[derive(Clone)]
pub struct Kernel {
    pub(super) function: Function,
    pub(super) name: String,
    /// Bytes of dynamic shared memory that a launch may ask for.
    pub(super) shared: u32,
}

// SAFETY: a handle into a module that is itself Send and Sync.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}
