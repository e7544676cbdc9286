//! The shim over libtorch's CUDA half, as the build compiled it: see `shim/shim.h`.

use std::{ffi::c_char, ffi::c_void, sync::OnceLock};

use super::super::{ModelError, device};

/// The version of the functions below.
const ABI: u32 = 2;

/// A stream as libtorch packs it into numbers.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawStream {
    pub id: i64,
    pub device: i64,
    pub kind: i64,
}

/// Which memory of the allocator a graph keeps for itself.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct RawPool {
    pub first: u64,
    pub second: u64,
}

/// Bytes of libtorch's allocator on a device.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// In use by tensors.
    pub allocated: i64,
    /// The most that was in use since the peaks were reset.
    pub allocated_peak: i64,
    /// Taken from the device: in use, or kept for later.
    pub reserved: i64,
    /// The most that was taken since the peaks were reset.
    pub reserved_peak: i64,
}

/// A captured graph, opaque.
#[repr(C)]
pub struct RawGraph {
    _opaque: [u8; 0],
}

/// Bytes of a reason, its closing zero included.
const REASON: usize = 1024;

macro_rules! table {
    ($($name:ident: $symbol:literal = fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The shim's functions.
        pub struct Table {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        #[cfg(all(test, torch_cuda_headers))]
        pub const SYMBOLS: &[&str] = &[$($symbol),*];

        impl Table {
            #[cfg_attr(not(torch_cuda_headers), allow(dead_code))]
            fn of(library: &libloading::os::unix::Library) -> Result<Self, libloading::Error> {
                $(
                    // SAFETY: the shim defines the symbol with this signature; see `shim.h` and `ABI`.
                    let $name = *unsafe {
                        library.get::<unsafe extern "C" fn($($argument),*) $(-> $result)?>(
                            concat!($symbol, "\0").as_bytes(),
                        )
                    }?;
                )*
                Ok(Self { $($name),* })
            }
        }
    };
}

table! {
    abi: "groot_torch_cuda_abi" = fn() -> u32;
    stream_take: "groot_stream_take" = fn(i32, i32, *mut RawStream, *mut c_char, usize) -> i32;
    stream_current: "groot_stream_current" = fn(i32, *mut RawStream, *mut c_char, usize) -> i32;
    stream_enter: "groot_stream_enter" = fn(*const RawStream, *mut c_char, usize) -> i32;
    stream_wait: "groot_stream_wait" = fn(*const RawStream, *mut c_char, usize) -> i32;
    stream_raw: "groot_stream_raw" = fn(*const RawStream, *mut *mut c_void, *mut c_char, usize) -> i32;
    device_current: "groot_device_current" = fn(*mut i32, *mut c_char, usize) -> i32;
    device_enter: "groot_device_enter" = fn(i32, *mut c_char, usize) -> i32;
    pool_new: "groot_pool_new" = fn(*mut RawPool, *mut c_char, usize) -> i32;
    graph_begin: "groot_graph_begin" = fn(*const RawPool, *mut *mut RawGraph, *mut c_char, usize) -> i32;
    graph_end: "groot_graph_end" = fn(*mut RawGraph, *mut usize, *mut c_char, usize) -> i32;
    graph_abandon: "groot_graph_abandon" = fn(*mut RawGraph);
    graph_replay: "groot_graph_replay" = fn(*mut RawGraph, *mut c_char, usize) -> i32;
    graph_delete: "groot_graph_delete" = fn(*mut RawGraph);
    event_new: "groot_event_new" = fn(*mut *mut c_void, *mut c_char, usize) -> i32;
    event_record: "groot_event_record" = fn(*mut c_void, *const RawStream, *mut c_char, usize) -> i32;
    event_wait: "groot_event_wait" = fn(*mut c_void, *mut c_char, usize) -> i32;
    event_hold: "groot_event_hold" = fn(*mut c_void, *const RawStream, *mut c_char, usize) -> i32;
    event_elapsed: "groot_event_elapsed" = fn(*mut c_void, *mut c_void, *mut f32, *mut c_char, usize) -> i32;
    event_delete: "groot_event_delete" = fn(*mut c_void);
    pinned_new: "groot_pinned_new" = fn(usize, *mut *mut c_void, *mut c_char, usize) -> i32;
    pinned_delete: "groot_pinned_delete" = fn(*mut c_void);
    copy: "groot_copy" =
        fn(*mut c_void, *const c_void, usize, *const RawStream, *mut c_char, usize) -> i32;
    memory: "groot_memory" = fn(i32, *mut MemoryUsage, *mut c_char, usize) -> i32;
    memory_reset_peaks: "groot_memory_reset_peaks" = fn(i32, *mut c_char, usize) -> i32;
    memory_trim: "groot_memory_trim" = fn(*mut c_char, usize) -> i32;
}

/// The shim, opened once per process.
///
/// # Errors
/// No usable GPU, or a program that was built without the shim.
pub fn table() -> Result<&'static Table, ModelError> {
    static TABLE: OnceLock<Result<Table, String>> = OnceLock::new();
    let opened = TABLE.get_or_init(|| {
        device::cuda_loaded()?;
        open()
    });
    opened.as_ref().map_err(|reason| ModelError::Cuda {
        what: "using CUDA graphs, streams and memory counters",
        reason: reason.clone(),
    })
}

#[cfg(torch_cuda_headers)]
pub(super) const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/groot_torch_cuda.so"));

/// Opens the shim, whose open symbols those of libtorch's CUDA half must fill.
#[cfg(torch_cuda_headers)]
pub(super) fn open() -> Result<Table, String> {
    use std::{fs::File, io::Write, os::fd::AsRawFd, os::fd::FromRawFd};

    let failed = |what: &str, error: &dyn std::fmt::Display| {
        format!("the program's own shim over libtorch's CUDA half cannot be {what}: {error}")
    };
    // SAFETY: the name is a C string, and nothing else is asked of the call.
    let file = unsafe { libc::memfd_create(c"groot_torch_cuda".as_ptr(), libc::MFD_CLOEXEC) };
    if file < 0 {
        return Err(failed("kept in memory", &std::io::Error::last_os_error()));
    }
    // SAFETY: the descriptor was just made and is nobody else's.
    let mut file = unsafe { File::from_raw_fd(file) };
    file.write_all(OBJECT).map_err(|error| failed("kept in memory", &error))?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: the object has no initialisers of its own.
    let library = unsafe {
        use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
        Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL)
    };
    let library = library.map_err(|error| {
        failed(
            "loaded",
            &format!(
                "{error}. It needs libtorch_cuda.so of the libtorch that the program was built with; build the program \
                 anew on this machine"
            ),
        )
    })?;
    let table = Table::of(&library).map_err(|error| failed("used", &error))?;
    // The functions stay in use until the process ends.
    std::mem::forget(library);
    // SAFETY: the function takes nothing.
    let abi = unsafe { (table.abi)() };
    if abi != ABI {
        return Err(failed("used", &format!("expected version {ABI} of it, found {abi}")));
    }
    Ok(table)
}

#[cfg(not(torch_cuda_headers))]
pub(super) fn open() -> Result<Table, String> {
    Err(format!(
        "the program was built without its shim over libtorch's CUDA half (version {ABI}), because the headers of \
         libtorch's CUDA half or of the CUDA runtime were not found; set CUDA_HOME or install them, and build again"
    ))
}

/// Calls a function of the shim; its reason, where it fails, becomes the error's.
pub fn call(
    what: &'static str,
    function: impl FnOnce(&Table, *mut c_char, usize) -> i32,
) -> Result<(), ModelError> {
    let table = table()?;
    let mut reason: [u8; REASON] = [0; REASON];
    if function(table, reason.as_mut_ptr().cast(), REASON) == 0 {
        return Ok(());
    }
    let length = reason.iter().position(|&byte| byte == 0).unwrap_or(REASON);
    let reason = String::from_utf8_lossy(&reason[..length]);
    // libtorch appends advice on debugging, line by line.
    let first = reason.lines().next().unwrap_or_default().trim();
    let reason = if first.is_empty() { "no reason was given".to_owned() } else { first.to_owned() };
    Err(ModelError::Cuda { what, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(torch_cuda_headers)]
    #[test]
    fn the_shim_exports_every_function_that_is_looked_up() {
        for symbol in SYMBOLS {
            let name = [b"\0", symbol.as_bytes(), b"\0"].concat();
            assert!(OBJECT.windows(name.len()).any(|bytes| bytes == name), "{symbol}");
        }
    }

    #[test]
    fn without_libtorchs_cuda_half_the_shim_is_refused_with_what_is_missing() {
        if device::cuda_loaded().is_ok() {
            assert!(table().is_ok());
            return;
        }
        let reason = open().err().expect("the shim has open symbols");
        let said = if cfg!(torch_cuda_headers) { "needs libtorch_cuda.so" } else { "CUDA_HOME" };
        assert!(reason.contains(said), "{reason}");
        let Err(ModelError::Cuda { reason, .. }) = table() else { panic!("there is no GPU here") };
        assert!(reason.contains("driver") || reason.contains("GPU"), "{reason}");
    }
}
