//! NVIDIA's run-time compiler.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use libloading::os::unix::Library;

use super::error::CudaError;
use super::library;
use crate::engine::ComputeCapability;

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Fetch = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
type Count = unsafe extern "C" fn(*mut c_int) -> c_int;

/// What to compile for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Machine code of one generation.
    Machine(ComputeCapability),
    /// The same with what this generation alone has.
    Specific(ComputeCapability),
    /// PTX of one generation, which the driver translates for it and all later ones.
    Virtual(ComputeCapability),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Machine(c) => write!(f, "sm_{}{}", c.major, c.minor),
            Self::Specific(c) => write!(f, "sm_{}{}a", c.major, c.minor),
            Self::Virtual(c) => write!(f, "compute_{}{}", c.major, c.minor),
        }
    }
}

/// What the driver loads: a cubin, or PTX that ends with a zero.
pub struct Code(pub(super) Vec<u8>);

impl Code {
    /// In bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never, of what NVRTC made.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The compiler, loaded; stays until the process ends. Send and Sync: NVRTC's functions may be called from any thread.
pub struct Nvrtc {
    create: Create,
    compile: Compile,
    destroy: Destroy,
    log_size: Size,
    log: Fetch,
    cubin_size: Size,
    cubin: Fetch,
    ptx_size: Size,
    ptx: Fetch,
    version: (i32, i32),
    /// As 87, 90, ascending.
    architectures: Vec<i32>,
    _library: Library,
}

impl Nvrtc {
    /// The compiler of this process.
    ///
    /// # Errors
    /// [`CudaError::Library`].
    pub fn load() -> Result<&'static Self, CudaError> {
        static LOADED: OnceLock<Nvrtc> = OnceLock::new();
        if let Some(loaded) = LOADED.get() {
            return Ok(loaded);
        }
        let opened = Self::open()?;
        Ok(LOADED.get_or_init(|| opened))
    }

    fn open() -> Result<Self, CudaError> {
        let library = library::open("NVRTC", "nvrtc", Some("nvrtc-builtins"))?;
        let missing =
            |error: libloading::Error| CudaError::Library { name: "NVRTC", tried: error.to_string() };
        // SAFETY: the types are those of NVRTC's header, the same since CUDA 11.2; the library is kept as long as they are.
        unsafe {
            let version: Version = *library.get(b"nvrtcVersion\0").map_err(missing)?;
            let count: Count = *library.get(b"nvrtcGetNumSupportedArchs\0").map_err(missing)?;
            let list: Count = *library.get(b"nvrtcGetSupportedArchs\0").map_err(missing)?;
            let (mut major, mut minor, mut number) = (0, 0, 0);
            version(&mut major, &mut minor);
            count(&mut number);
            let mut architectures = vec![0; number.max(0) as usize];
            if !architectures.is_empty() {
                list(architectures.as_mut_ptr());
            }
            Ok(Self {
                create: *library.get(b"nvrtcCreateProgram\0").map_err(missing)?,
                compile: *library.get(b"nvrtcCompileProgram\0").map_err(missing)?,
                destroy: *library.get(b"nvrtcDestroyProgram\0").map_err(missing)?,
                log_size: *library.get(b"nvrtcGetProgramLogSize\0").map_err(missing)?,
                log: *library.get(b"nvrtcGetProgramLog\0").map_err(missing)?,
                cubin_size: *library.get(b"nvrtcGetCUBINSize\0").map_err(missing)?,
                cubin: *library.get(b"nvrtcGetCUBIN\0").map_err(missing)?,
                ptx_size: *library.get(b"nvrtcGetPTXSize\0").map_err(missing)?,
                ptx: *library.get(b"nvrtcGetPTX\0").map_err(missing)?,
                version: (major, minor),
                architectures,
                _library: library,
            })
        }
    }

    /// (major, minor) of its CUDA.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Machine code where this compiler knows the GPU, else PTX of the newest generation before it.
    pub fn target(&self, gpu: ComputeCapability) -> Target {
        let number = (gpu.major * 10 + gpu.minor) as i32;
        if self.architectures.contains(&number) {
            return Target::Machine(gpu);
        }
        let before = self.architectures.iter().copied().filter(|&a| a < number).max().unwrap_or(number);
        Target::Virtual(ComputeCapability { major: before as u32 / 10, minor: before as u32 % 10 })
    }

    /// Compiles CUDA C++ that includes nothing.
    ///
    /// # Errors
    /// [`CudaError::Compile`] with the compiler's messages.
    pub fn compile(&self, name: &str, source: &str, target: Target) -> Result<Code, CudaError> {
        self.compile_with(name, source, target, &[]).map(|(code, _)| code)
    }

    /// The same with more options, and the compiler's messages.
    ///
    /// # Errors
    /// As [`compile`](Self::compile).
    pub(super) fn compile_with(
        &self,
        name: &str,
        source: &str,
        target: Target,
        more: &[&str],
    ) -> Result<(Code, String), CudaError> {
        let failed = |log: String| CudaError::Compile {
            source_name: name.to_owned(),
            target: target.to_string(),
            log,
        };
        let text = |text: &str| CString::new(text).map_err(|_| failed("a zero in the source".to_owned()));
        let (c_source, c_name) = (text(source)?, text(name)?);
        let target_option = format!("--gpu-architecture={target}");
        let options = [target_option.as_str(), "--std=c++17", "--disable-warnings"].into_iter();
        let options: Vec<CString> =
            options.chain(more.iter().copied()).map(text).collect::<Result<_, _>>()?;
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program = std::ptr::null_mut();
        // SAFETY: the strings end with a zero and outlive the program, which is destroyed below; buffers have the sizes
        // that NVRTC asks for.
        unsafe {
            let none = std::ptr::null();
            let code = (self.create)(&mut program, c_source.as_ptr(), c_name.as_ptr(), 0, none, none);
            if code != 0 {
                return Err(failed(format!("nvrtcCreateProgram answers with {code}")));
            }
            let code = (self.compile)(program, options.len() as c_int, options.as_ptr());
            let result = if code == 0 {
                let (size, fetch) = match target {
                    Target::Machine(_) | Target::Specific(_) => (self.cubin_size, self.cubin),
                    Target::Virtual(_) => (self.ptx_size, self.ptx),
                };
                Self::fetch(program, size, fetch).map(Code)
            } else {
                None
            };
            let log = Self::fetch(program, self.log_size, self.log).unwrap_or_default();
            (self.destroy)(&mut program);
            let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
            match result {
                Some(result) => Ok((result, log.into_owned())),
                None => Err(failed(format!("status {code}: {log}"))),
            }
        }
    }

    /// # Safety
    /// `program` is alive, and `size` tells how much `fetch` writes.
    unsafe fn fetch(program: Program, size: Size, fetch: Fetch) -> Option<Vec<u8>> {
        let mut bytes = 0;
        // SAFETY: by this function's contract.
        unsafe {
            if size(program, &mut bytes) != 0 || bytes == 0 {
                return None;
            }
            let mut buffer = vec![0u8; bytes];
            (fetch(program, buffer.as_mut_ptr().cast()) == 0).then_some(buffer)
        }
    }
}
