//! The GPU of the tests: kernels compiled by the machine's C++ compiler against `emulation/host.cuh`, which says what is
//! emulated. Device memory is the process's own, so that an address is that of a tensor on the CPU.

mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, OsString, c_char, c_int, c_void};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libloading::os::unix::{Library as Loaded, RTLD_LOCAL, RTLD_NOW};

use super::error::CudaError;
use super::source::{COMMON, Source};

const HOST: &str = include_str!("emulation/host.cuh");

/// In which order warps, lanes and blocks run, as far as nothing makes them wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
    /// By a seed.
    Shuffled(u32),
}

impl Order {
    /// Each warp before and after each other one, and all mixed.
    pub const ALL: [Self; 3] = [Self::Ascending, Self::Descending, Self::Shuffled(1)];

    fn number(self) -> u32 {
        match self {
            Self::Ascending => 0,
            Self::Descending => 1,
            Self::Shuffled(seed) => seed.saturating_add(2),
        }
    }
}

/// `Launch` of host.cuh.
#[repr(C)]
struct Launch {
    arguments: *const c_void,
    argument_bytes: u64,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    order: u32,
}

type Begin = unsafe extern "C" fn(*const c_void, *const Launch, c_int) -> *mut c_void;
type End = unsafe extern "C" fn(*mut c_void, *mut c_char, u64) -> c_int;

/// A compiled file of kernels.
pub struct Library {
    begin: Begin,
    end: End,
    /// One at a time is within the library.
    lock: Mutex<()>,
    loaded: Loaded,
}

/// A kernel of a library.
#[derive(Clone)]
pub struct Function {
    library: Arc<Library>,
    /// `Kernel` of host.cuh, as long as the library is there.
    kernel: *const c_void,
}

// SAFETY: the address of a constant in a library that is kept beside it.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

fn failed(message: impl Into<String>) -> CudaError {
    CudaError::Emulation(message.into())
}

/// Compiles, once per process for the same source.
pub(super) fn compile(source: &Source) -> Result<Arc<Library>, CudaError> {
    type Place = Arc<OnceLock<Result<Arc<Library>, String>>>;
    static DONE: Mutex<Option<HashMap<String, Place>>> = Mutex::new(None);
    let Source { name, file, instances, .. } = source;
    // For the compiler's messages and those of its checks.
    let text = format!(
        "#line 1 \"host.cuh\"\n{HOST}\n#line 1 \"common.cuh\"\n{COMMON}\n#line 1 \"{name}\"\n{file}\n#line 1 \"instances\"\n\
         {instances}"
    );
    let place = {
        let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(done.get_or_insert_default().entry(text.clone()).or_default())
    };
    place.get_or_init(|| build(&text).map(Arc::new)).clone().map_err(|log| CudaError::Compile {
        source_name: (*name).to_owned(),
        target: "the emulation".to_owned(),
        log,
    })
}

fn build(text: &str) -> Result<Library, String> {
    let said = |error: std::io::Error| error.to_string();
    let folder = tempfile::tempdir().map_err(said)?;
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("kernels.cpp"), text).map_err(said)?;
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| OsString::from("c++"));
    let run = |arguments: &[&str]| {
        let output = Command::new(&compiler)
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .map_err(|error| format!("{}: {error}", compiler.display()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // The compiler's checks report to host.cuh, so its library of them is not linked. Jumps between stacks are no errors.
    run(&[
        "-std=c++17",
        "-Og",
        "-fPIC",
        "-fno-strict-aliasing",
        "-ffp-contract=off",
        "-fsanitize=alignment,bounds",
        "-U_FORTIFY_SOURCE",
        "-w",
        "-c",
        "kernels.cpp",
        "-o",
        "kernels.o",
    ])?;
    run(&["-shared", "kernels.o", "-o", "kernels.so"])?;
    // SAFETY: this file's own code, which initialises nothing but its constants.
    let loaded = unsafe { Loaded::open(Some(path("kernels.so")), RTLD_NOW | RTLD_LOCAL) };
    let loaded = loaded.map_err(|error| error.to_string())?;
    let missing = |error: libloading::Error| error.to_string();
    // SAFETY: the types are those of host.cuh; the library is kept beside them.
    unsafe {
        Ok(Library {
            begin: *loaded.get(b"emulation_begin\0").map_err(missing)?,
            end: *loaded.get(b"emulation_end\0").map_err(missing)?,
            lock: Mutex::new(()),
            loaded,
        })
    }
}

impl Function {
    /// The kernel that a file declares with `KERNEL`.
    pub fn new(library: &Arc<Library>, name: &str) -> Result<Self, CudaError> {
        let symbol = format!("{name}_kernel\0");
        // SAFETY: a constant of host.cuh's type; only its address is used.
        let found = unsafe { library.loaded.get::<*const c_void>(symbol.as_bytes()) };
        let kernel = found.map_err(|error| failed(format!("{name}: declared with no KERNEL: {error}")))?;
        Ok(Self { library: Arc::clone(library), kernel: kernel.into_raw().cast_const() })
    }
}

/// A launch that has begun; it must be ended.
struct Run {
    library: Arc<Library>,
    state: *mut c_void,
}

// SAFETY: the state is bound to no thread: the fibers' stacks are its own, and only who holds the library's lock runs them.
unsafe impl Send for Run {}

impl Run {
    fn end(self) -> Result<(), CudaError> {
        let mut message = [0 as c_char; 512];
        let _within = self.library.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: what `emulation_begin` gave, ended once; the message ends with a zero within its bytes.
        let code = unsafe { (self.library.end)(self.state, message.as_mut_ptr(), message.len() as u64) };
        if code == 0 {
            return Ok(());
        }
        // SAFETY: as above.
        Err(failed(unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy()))
    }
}

/// The emulated end of a queue.
pub struct Stream {
    order: Order,
    last: RefCell<Option<Run>>,
}

impl Stream {
    pub fn new(order: Order) -> Self {
        Self { order, last: RefCell::new(None) }
    }

    /// Runs a kernel. With `overlap` it is held back, so that what the next one does before it waits for its predecessor is
    /// done before it; `follows` tells that the one before was held back.
    ///
    /// # Safety
    /// `Arguments` is the kernel's parameter, and the addresses in it are memory of this process, alive until
    /// [`finish`](Self::finish).
    pub unsafe fn launch<Arguments>(
        &self,
        function: &Function,
        (grid, threads, shared): ([usize; 3], u32, u32),
        arguments: &Arguments,
        (overlap, follows): (bool, bool),
    ) -> Result<(), CudaError> {
        let launch = Launch {
            arguments: std::ptr::from_ref(arguments).cast(),
            argument_bytes: std::mem::size_of::<Arguments>() as u64,
            grid: grid.map(|n| n as u32),
            threads,
            shared,
            order: self.order.number(),
        };
        let early = overlap && follows;
        if !early {
            self.finish()?;
        }
        let state = {
            let _within = function.library.lock.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: by this function's contract; the arguments are copied.
            unsafe { (function.library.begin)(function.kernel, &launch, c_int::from(early)) }
        };
        let next = Run { library: Arc::clone(&function.library), state };
        let previous = self.last.replace(Some(next));
        previous.map_or(Ok(()), Run::end)?;
        if overlap { Ok(()) } else { self.finish() }
    }

    /// Ends what was queued.
    pub fn finish(&self) -> Result<(), CudaError> {
        self.last.take().map_or(Ok(()), Run::end)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let done = self.finish();
        assert!(std::thread::panicking() || done.is_ok(), "{done:?}");
    }
}
