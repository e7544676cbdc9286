//! The table of functions that the shim (`shim/shim.h`) hands out, field by field, and nothing else.
//!
//! Everything here is raw; the owners in the sibling modules are what the crate uses.

use std::ffi::{c_char, c_void};

pub(super) const OK: i32 = 0;
pub(super) const UNSUPPORTED: i32 = 2;
pub(super) const ARGUMENT: i32 = 4;

/// Switches of a build, as numbered by the shim.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(super) enum Flag {
    Fp16 = 0,
    Bf16 = 1,
    Int8 = 2,
    Tf32 = 3,
    ObeyPrecision = 4,
    PreferPrecision = 5,
    VersionCompatible = 6,
    DetailedProfiling = 7,
}

pub(super) type LogFn = unsafe extern "C" fn(user: *mut c_void, severity: i32, text: *const c_char);
pub(super) type TextFn = unsafe extern "C" fn(user: *mut c_void, text: *const c_char, size: usize);

#[repr(C)]
pub(super) struct ProgressCalls {
    pub user: *mut c_void,
    pub start: unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char, i32),
    pub step: unsafe extern "C" fn(*mut c_void, *const c_char, i32) -> i32,
    pub finish: unsafe extern "C" fn(*mut c_void, *const c_char),
}

#[repr(C)]
pub(super) struct CalibratorCalls {
    pub user: *mut c_void,
    pub batch_size: i32,
    pub next: unsafe extern "C" fn(*mut c_void, *mut *mut c_void, *const *const c_char, i32) -> i32,
    pub read_cache: unsafe extern "C" fn(*mut c_void, *mut usize) -> *const c_void,
    pub write_cache: unsafe extern "C" fn(*mut c_void, *const c_void, usize),
}

/// Most dimensions that a tensor of TensorRT has.
pub(super) const MAX_DIMS: usize = 8;

#[repr(C)]
pub(super) struct Tensor {
    pub name: *const c_char,
    pub is_input: i32,
    pub data_type: i32,
    pub on_host: i32,
    pub rank: i32,
    pub dims: [i64; MAX_DIMS],
}

impl Tensor {
    pub(super) const EMPTY: Self = Self {
        name: std::ptr::null(),
        is_input: 0,
        data_type: -1,
        on_host: 0,
        rank: -1,
        dims: [0; MAX_DIMS],
    };
}

macro_rules! opaque {
    ($($name:ident),*) => {$(
        /// Owned by the shim, known only by its address.
        #[repr(C)]
        pub(super) struct $name { _opaque: [u8; 0] }
    )*};
}
opaque!(Logger, Builder, Blob, Runtime, Engine, Context);

#[repr(C)]
pub(super) struct Table {
    pub table_size: u64,
    pub header_major: i32,
    pub header_minor: i32,
    pub header_patch: i32,

    pub logger_create: unsafe extern "C" fn(LogFn, *mut c_void) -> *mut Logger,
    pub logger_destroy: unsafe extern "C" fn(*mut Logger),

    pub builder_create: unsafe extern "C" fn(*mut c_void, *mut Logger, i32, *mut i32) -> *mut Builder,
    pub builder_destroy: unsafe extern "C" fn(*mut Builder),
    pub builder_has_fast: unsafe extern "C" fn(*mut Builder, i32) -> i32,
    pub builder_parse:
        unsafe extern "C" fn(*mut Builder, *mut c_void, *const c_char, TextFn, *mut c_void) -> i32,
    pub builder_tensor_count: unsafe extern "C" fn(*mut Builder) -> i32,
    pub builder_tensor: unsafe extern "C" fn(*mut Builder, i32, *mut Tensor) -> i32,
    pub builder_layer_count: unsafe extern "C" fn(*mut Builder) -> i32,
    pub builder_layer: unsafe extern "C" fn(*mut Builder, i32, *mut *const c_char, *mut *const c_char) -> i32,
    pub builder_layer_in_f32: unsafe extern "C" fn(*mut Builder, i32) -> i32,
    pub builder_set_flag: unsafe extern "C" fn(*mut Builder, i32, i32) -> i32,
    pub builder_set_workspace: unsafe extern "C" fn(*mut Builder, usize) -> i32,
    pub builder_set_optimisation_level: unsafe extern "C" fn(*mut Builder, i32) -> i32,
    pub builder_add_profile:
        unsafe extern "C" fn(*mut Builder, *const *const c_char, *const i32, *const i64, i32, i32) -> i32,
    pub builder_set_timing_cache: unsafe extern "C" fn(*mut Builder, *const c_void, usize) -> i32,
    pub builder_timing_cache: unsafe extern "C" fn(*mut Builder) -> *mut Blob,
    pub builder_set_calibrator: unsafe extern "C" fn(*mut Builder, i32, *const CalibratorCalls) -> i32,
    pub builder_set_progress: unsafe extern "C" fn(*mut Builder, *const ProgressCalls) -> i32,
    pub builder_build: unsafe extern "C" fn(*mut Builder, *mut i32) -> *mut Blob,

    pub blob_data: unsafe extern "C" fn(*const Blob) -> *const c_void,
    pub blob_size: unsafe extern "C" fn(*const Blob) -> usize,
    pub blob_destroy: unsafe extern "C" fn(*mut Blob),

    pub runtime_create: unsafe extern "C" fn(*mut c_void, *mut Logger, *mut i32) -> *mut Runtime,
    pub runtime_destroy: unsafe extern "C" fn(*mut Runtime),
    pub runtime_allow_host_code: unsafe extern "C" fn(*mut Runtime) -> i32,
    pub runtime_deserialise:
        unsafe extern "C" fn(*mut Runtime, *const c_void, usize, *mut i32) -> *mut Engine,

    pub engine_destroy: unsafe extern "C" fn(*mut Engine),
    pub engine_tensor_count: unsafe extern "C" fn(*mut Engine) -> i32,
    pub engine_tensor: unsafe extern "C" fn(*mut Engine, i32, *mut Tensor) -> i32,
    pub engine_tensor_format: unsafe extern "C" fn(*mut Engine, *const c_char) -> *const c_char,
    pub engine_profile_count: unsafe extern "C" fn(*mut Engine) -> i32,
    pub engine_profile_shape:
        unsafe extern "C" fn(*mut Engine, *const c_char, i32, i32, *mut i64, *mut i32) -> i32,
    pub engine_layer_count: unsafe extern "C" fn(*mut Engine) -> i32,
    pub engine_device_memory: unsafe extern "C" fn(*mut Engine) -> u64,
    pub engine_inspect: unsafe extern "C" fn(*mut Engine, TextFn, *mut c_void) -> i32,

    pub context_create: unsafe extern "C" fn(*mut Engine, *mut i32) -> *mut Context,
    pub context_destroy: unsafe extern "C" fn(*mut Context),
    pub context_set_profile: unsafe extern "C" fn(*mut Context, i32, *mut c_void) -> i32,
    pub context_set_shape: unsafe extern "C" fn(*mut Context, *const c_char, *const i64, i32) -> i32,
    pub context_shape: unsafe extern "C" fn(*mut Context, *const c_char, *mut i64, *mut i32) -> i32,
    pub context_set_address: unsafe extern "C" fn(*mut Context, *const c_char, *mut c_void) -> i32,
    pub context_missing: unsafe extern "C" fn(*mut Context, TextFn, *mut c_void) -> i32,
    pub context_enqueue: unsafe extern "C" fn(*mut Context, *mut c_void) -> i32,
}

#[cfg(any(tensorrt_headers = "8", tensorrt_headers = "10", tensorrt_headers = "11"))]
unsafe extern "C" {
    #[cfg(tensorrt_headers = "8")]
    fn groot_tensorrt_8() -> *const Table;
    #[cfg(tensorrt_headers = "10")]
    fn groot_tensorrt_10() -> *const Table;
    #[cfg(tensorrt_headers = "11")]
    fn groot_tensorrt_11() -> *const Table;
}

/// The shims in this program, the newest major version first.
pub(super) fn tables() -> Vec<&'static Table> {
    let found: Vec<&'static Table> = [
        #[cfg(tensorrt_headers = "11")]
        // SAFETY: the shim returns the address of a constant.
        unsafe {
            &*groot_tensorrt_11()
        },
        #[cfg(tensorrt_headers = "10")]
        // SAFETY: as above.
        unsafe {
            &*groot_tensorrt_10()
        },
        #[cfg(tensorrt_headers = "8")]
        // SAFETY: as above.
        unsafe {
            &*groot_tensorrt_8()
        },
    ]
    .into();
    // `Table` and shim.h are two descriptions of one thing: a field added to one of them only must not get past the
    // first use.
    for table in &found {
        assert_eq!(
            table.table_size,
            size_of::<Table>() as u64,
            "the shim's table and its description in Rust differ"
        );
    }
    found
}

/// Collects the texts that the shim passes to a [`TextFn`]; pass the address of a `Vec<String>` as `user`.
pub(super) unsafe extern "C" fn collect_text(user: *mut c_void, text: *const c_char, size: usize) {
    if user.is_null() || text.is_null() {
        return;
    }
    // SAFETY: the callers in this crate pass a `Vec<String>` that nothing else borrows during the call, and the shim
    // passes `size` readable bytes.
    let (texts, bytes) =
        unsafe { (&mut *user.cast::<Vec<String>>(), std::slice::from_raw_parts(text.cast(), size)) };
    texts.push(String::from_utf8_lossy(bytes).into_owned());
}

/// The text at `text`, or nothing if the address is null.
///
/// # Safety
/// `text` is null or points to bytes that end in a zero.
pub(super) unsafe fn text_at(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by the function's contract.
    unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
