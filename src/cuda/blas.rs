//! cuBLASLt, as libtorch loaded it.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use libloading::os::unix::Library;

use super::error::CudaError;
use super::library;
use super::queue::Queue;

type Handle = *mut c_void;
type Object = *mut c_void;
type Status = c_int;

/// Constants of cublasLt.h and library_types.h.
mod constants {
    pub const COMPUTE_32F: i32 = 68;
    pub const R_32F: i32 = 0;
    pub const R_16BF: i32 = 14;
    pub const DESC_TRANSA: i32 = 3;
    pub const DESC_EPILOGUE: i32 = 7;
    pub const DESC_BIAS_POINTER: i32 = 8;
    pub const OP_T: i32 = 1;
    pub const EPILOGUE_NONE: i32 = 1;
    pub const EPILOGUE_BIAS: i32 = 4;
    pub const EPILOGUE_GELU: i32 = 32;
    pub const PREFERENCE_MAX_WORKSPACE: i32 = 1;
    pub const PREFERENCE_REDUCTIONS: i32 = 3;
    pub const REDUCTION_IN_COMPUTE_TYPE: u32 = 2;
}
use constants as c;

/// `cublasLtMatmulAlgo_t`: opaque.
type Algorithm = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

struct Functions {
    create: unsafe extern "C" fn(*mut Handle) -> Status,
    version: unsafe extern "C" fn() -> usize,
    desc_create: unsafe extern "C" fn(*mut Object, i32, i32) -> Status,
    desc_set: unsafe extern "C" fn(Object, i32, *const c_void, usize) -> Status,
    desc_destroy: unsafe extern "C" fn(Object) -> Status,
    layout_create: unsafe extern "C" fn(*mut Object, i32, u64, u64, i64) -> Status,
    layout_destroy: unsafe extern "C" fn(Object) -> Status,
    preference_create: unsafe extern "C" fn(*mut Object) -> Status,
    preference_set: unsafe extern "C" fn(Object, i32, *const c_void, usize) -> Status,
    preference_destroy: unsafe extern "C" fn(Object) -> Status,
    heuristic: unsafe extern "C" fn(
        Handle,
        Object,
        Object,
        Object,
        Object,
        Object,
        Object,
        c_int,
        *mut Heuristic,
        *mut c_int,
    ) -> Status,
    matmul: unsafe extern "C" fn(
        Handle,
        Object,
        *const c_void,
        *const c_void,
        Object,
        *const c_void,
        Object,
        *const c_void,
        *const c_void,
        Object,
        *mut c_void,
        Object,
        *const Algorithm,
        *mut c_void,
        usize,
        *mut c_void,
    ) -> Status,
    _library: Library,
}

fn functions() -> Result<&'static Functions, CudaError> {
    static LOADED: OnceLock<Functions> = OnceLock::new();
    if let Some(loaded) = LOADED.get() {
        return Ok(loaded);
    }
    let library = library::open("cuBLASLt", "cublasLt", None)?;
    let missing =
        |error: libloading::Error| CudaError::Library { name: "cuBLASLt", tried: error.to_string() };
    // SAFETY: the types are those of cublasLt.h, the same since CUDA 11; the library is kept as long as they are.
    let opened = unsafe {
        Functions {
            create: *library.get(b"cublasLtCreate\0").map_err(missing)?,
            version: *library.get(b"cublasLtGetVersion\0").map_err(missing)?,
            desc_create: *library.get(b"cublasLtMatmulDescCreate\0").map_err(missing)?,
            desc_set: *library.get(b"cublasLtMatmulDescSetAttribute\0").map_err(missing)?,
            desc_destroy: *library.get(b"cublasLtMatmulDescDestroy\0").map_err(missing)?,
            layout_create: *library.get(b"cublasLtMatrixLayoutCreate\0").map_err(missing)?,
            layout_destroy: *library.get(b"cublasLtMatrixLayoutDestroy\0").map_err(missing)?,
            preference_create: *library.get(b"cublasLtMatmulPreferenceCreate\0").map_err(missing)?,
            preference_set: *library.get(b"cublasLtMatmulPreferenceSetAttribute\0").map_err(missing)?,
            preference_destroy: *library.get(b"cublasLtMatmulPreferenceDestroy\0").map_err(missing)?,
            heuristic: *library.get(b"cublasLtMatmulAlgoGetHeuristic\0").map_err(missing)?,
            matmul: *library.get(b"cublasLtMatmul\0").map_err(missing)?,
            _library: library,
        }
    };
    Ok(LOADED.get_or_init(|| opened))
}

fn check(action: &'static str, status: Status) -> Result<(), CudaError> {
    if status == 0 { Ok(()) } else { Err(CudaError::Blas { action, status }) }
}

/// A description of cuBLASLt's, destroyed when dropped.
struct Owned {
    object: Object,
    destroy: unsafe extern "C" fn(Object) -> Status,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed only here.
        unsafe { (self.destroy)(self.object) };
    }
}

/// What is done to a product before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Epilogue {
    /// Nothing: f32.
    Sums,
    /// Bias and GELU (tanh), each where it is wanted: bf16, rounded once.
    Finished { bias: bool, gelu: bool },
}

impl Epilogue {
    /// With both.
    const GELU_BIAS: Self = Self::Finished { bias: true, gelu: true };

    fn has_bias(self) -> bool {
        matches!(self, Self::Finished { bias: true, .. })
    }

    /// cuBLASLt's number.
    fn number(self) -> i32 {
        match self {
            Self::Sums | Self::Finished { bias: false, gelu: false } => c::EPILOGUE_NONE,
            Self::Finished { bias, gelu } => {
                (if bias { c::EPILOGUE_BIAS } else { 0 }) | (if gelu { c::EPILOGUE_GELU } else { 0 })
            }
        }
    }
}

/// activations (rows, k) · weightᵀ (n, k) as cuBLASLt computes it, with one of its algorithms.
pub struct LibraryGemm {
    desc: Owned,
    weight: Owned,
    activations: Owned,
    out: Owned,
    algorithm: Algorithm,
    /// Bytes of workspace.
    pub(super) workspace: usize,
    /// Whether bias and GELU (tanh) are applied and the output is bf16; otherwise it is f32.
    pub(super) gelu: bool,
    epilogue: Epilogue,
}

// SAFETY: descriptions are plain memory of cuBLASLt's, which nothing changes once they are made.
unsafe impl Send for LibraryGemm {}
// SAFETY: as above.
unsafe impl Sync for LibraryGemm {}

/// cuBLASLt on the current GPU. Its handle stays until the process ends.
pub struct Blas {
    functions: &'static Functions,
    handle: Handle,
}

// SAFETY: a handle of cuBLASLt may be used from any thread.
unsafe impl Send for Blas {}
// SAFETY: as above, also at once.
unsafe impl Sync for Blas {}

impl Blas {
    /// Opens cuBLASLt on the GPU that is current on this thread.
    ///
    /// # Errors
    /// [`CudaError::Library`], [`CudaError::Blas`].
    pub fn new() -> Result<Self, CudaError> {
        let functions = functions()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the address of a handle.
        check("opening cuBLASLt", unsafe { (functions.create)(&mut handle) })?;
        Ok(Self { functions, handle })
    }

    /// As 130100 or 12.9.1's 120901.
    pub fn version(&self) -> usize {
        // SAFETY: no arguments.
        unsafe { (self.functions.version)() }
    }

    fn layout(&self, kind: i32, rows: usize, columns: usize, stride: usize) -> Result<Owned, CudaError> {
        let mut object = std::ptr::null_mut();
        // SAFETY: the address of a pointer, and numbers.
        let status = unsafe {
            (self.functions.layout_create)(&mut object, kind, rows as u64, columns as u64, stride as i64)
        };
        check("describing a matrix", status)?;
        Ok(Owned { object, destroy: self.functions.layout_destroy })
    }

    fn desc(&self, epilogue: Epilogue) -> Result<Owned, CudaError> {
        let mut object = std::ptr::null_mut();
        // SAFETY: the address of a pointer, and constants.
        check("describing a product", unsafe {
            (self.functions.desc_create)(&mut object, c::COMPUTE_32F, c::R_32F)
        })?;
        let desc = Owned { object, destroy: self.functions.desc_destroy };
        self.set(&desc, c::DESC_TRANSA, &c::OP_T)?;
        self.set(&desc, c::DESC_EPILOGUE, &epilogue.number())?;
        Ok(desc)
    }

    fn set<T>(&self, desc: &Owned, attribute: i32, value: &T) -> Result<(), CudaError> {
        // SAFETY: the value has the size that is told, and is copied.
        check("describing a product", unsafe {
            (self.functions.desc_set)(
                desc.object,
                attribute,
                std::ptr::from_ref(value).cast(),
                std::mem::size_of::<T>(),
            )
        })
    }

    fn prefer<T>(&self, preference: &Owned, attribute: i32, value: &T) -> Result<(), CudaError> {
        let (bytes, size) = (std::ptr::from_ref(value).cast(), std::mem::size_of::<T>());
        // SAFETY: the value has the size that is told, and is copied.
        check("describing what is preferred", unsafe {
            (self.functions.preference_set)(preference.object, attribute, bytes, size)
        })
    }

    /// Up to `count` ways to multiply, the most promising first. Strides are in elements.
    ///
    /// # Errors
    /// [`CudaError::Blas`].
    pub(super) fn candidates(
        &self,
        shape: (usize, usize, usize),
        gelu: bool,
        workspace: usize,
        count: usize,
    ) -> Result<Vec<LibraryGemm>, CudaError> {
        let epilogue = if gelu { Epilogue::GELU_BIAS } else { Epilogue::Sums };
        self.ways(shape, epilogue, None, workspace, count)
    }

    /// The same of products that are finished in bf16, without those ways that sum parts which they have rounded to bf16.
    ///
    /// # Errors
    /// As there.
    pub(super) fn finished(
        &self,
        shape: (usize, usize, usize),
        (bias, gelu): (bool, bool),
        workspace: usize,
        count: usize,
    ) -> Result<Vec<LibraryGemm>, CudaError> {
        let epilogue = Epilogue::Finished { bias, gelu };
        self.ways(shape, epilogue, Some(c::REDUCTION_IN_COMPUTE_TYPE), workspace, count)
    }

    fn ways(
        &self,
        (rows, n, k): (usize, usize, usize),
        epilogue: Epilogue,
        reductions: Option<u32>,
        workspace: usize,
        count: usize,
    ) -> Result<Vec<LibraryGemm>, CudaError> {
        let kind = if epilogue == Epilogue::Sums { c::R_32F } else { c::R_16BF };
        let make = || -> Result<_, CudaError> {
            // cuBLASLt's matrices lie by columns: it multiplies the transposed ones in the other order.
            Ok((
                self.desc(epilogue)?,
                self.layout(c::R_16BF, k, n, k)?,
                self.layout(c::R_16BF, k, rows, k)?,
                self.layout(kind, n, rows, n)?,
            ))
        };
        let (desc, weight, activations, out) = make()?;
        let mut object = std::ptr::null_mut();
        // SAFETY: the address of a pointer.
        check("describing what is preferred", unsafe { (self.functions.preference_create)(&mut object) })?;
        let preference = Owned { object, destroy: self.functions.preference_destroy };
        self.prefer(&preference, c::PREFERENCE_MAX_WORKSPACE, &workspace)?;
        if let Some(reductions) = reductions {
            self.prefer(&preference, c::PREFERENCE_REDUCTIONS, &reductions)?;
        }
        let mut found = vec![Heuristic::default(); count];
        let mut number = 0;
        // SAFETY: all descriptions are alive, and there is room for `count` answers.
        unsafe {
            check(
                "asking for ways to multiply",
                (self.functions.heuristic)(
                    self.handle,
                    desc.object,
                    weight.object,
                    activations.object,
                    out.object,
                    out.object,
                    preference.object,
                    count as c_int,
                    found.as_mut_ptr(),
                    &mut number,
                ),
            )?;
        }
        found.truncate(number.max(0) as usize);
        found
            .into_iter()
            .filter(|found| found.state == 0 && found.workspace <= workspace)
            .map(|found| {
                let (desc, weight, activations, out) = make()?;
                let (algorithm, workspace) = (found.algorithm, found.workspace);
                let gelu = epilogue == Epilogue::GELU_BIAS;
                Ok(LibraryGemm { desc, weight, activations, out, algorithm, workspace, gelu, epilogue })
            })
            .collect()
    }

    /// Queues the product.
    ///
    /// # Errors
    /// [`CudaError::Blas`].
    ///
    /// # Safety
    /// Device memory of the sizes of the plan: bf16 `activations` and `weight`, bf16 `bias` (n) where there is one, `out`,
    /// and the plan's workspace.
    pub(super) unsafe fn multiply(
        &self,
        queue: &Queue,
        gemm: &LibraryGemm,
        [activations, weight, bias, out, workspace]: [u64; 5],
    ) -> Result<(), CudaError> {
        queue.stream().context().bind_to_thread().map_err(CudaError::driver("choosing the GPU"))?;
        // The bias is part of the description, of which each call then has its own.
        let own = if gemm.epilogue.has_bias() {
            let desc = self.desc(gemm.epilogue)?;
            self.set(&desc, c::DESC_BIAS_POINTER, &bias)?;
            Some(desc)
        } else {
            None
        };
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: by this function's contract; the descriptions are alive, the factors are copied.
        let status = unsafe {
            (self.functions.matmul)(
                self.handle,
                own.as_ref().unwrap_or(&gemm.desc).object,
                std::ptr::from_ref(&one).cast(),
                weight as *const c_void,
                gemm.weight.object,
                activations as *const c_void,
                gemm.activations.object,
                std::ptr::from_ref(&zero).cast(),
                out as *const c_void,
                gemm.out.object,
                out as *mut c_void,
                gemm.out.object,
                &gemm.algorithm,
                workspace as *mut c_void,
                gemm.workspace,
                queue.stream().cu_stream().cast(),
            )
        };
        // Its kernels know nothing of ours, so the next of ours starts after them.
        queue.interrupted();
        check("multiplying", status)
    }
}
