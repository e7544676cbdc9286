//! TensorRT's own INT8 calibration (before version 11): batches go in, a cache with one range per tensor comes out.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::atomic_file::write_atomically;

use super::device::DeviceMemory;
use super::error::TensorRtError;
use super::ffi;
use super::options::Profile;

/// Largest cache that is read. A real one takes some 50 bytes for each tensor.
const MAX_CACHE_BYTES: u64 = 64 << 20;

/// How TensorRT turns what it saw into ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CalibrationAlgorithm {
    /// Loses the least information (TensorRT's entropy calibrator 2). For convolutions and most networks.
    Entropy,
    /// The whole range seen. What NVIDIA advises for language models.
    MinMax,
}

/// Where calibration batches come from.
pub trait CalibrationBatches: Send {
    /// Samples per batch.
    fn batch_size(&self) -> usize;

    /// The next batch: device memory for each of the inputs, in the order of `inputs`; None after the last.
    ///
    /// The memory is kept until the next call.
    ///
    /// # Errors
    /// A text for the user; the build ends with it.
    fn next(&mut self, inputs: &[&str]) -> Result<Option<Vec<DeviceMemory>>, String>;
}

/// INT8 ranges by TensorRT's own calibrators.
pub struct Int8Calibration {
    pub algorithm: CalibrationAlgorithm,
    pub batches: Box<dyn CalibrationBatches>,
    /// File of the ranges. If it is there, it is used and no batch is asked for; else it is written.
    pub cache: Option<PathBuf>,
    /// The shapes of the batches, needed where the graph leaves dimensions free.
    pub shapes: Option<Profile>,
}

impl fmt::Debug for Int8Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Int8Calibration")
            .field("algorithm", &self.algorithm)
            .field("batch_size", &self.batches.batch_size())
            .field("cache", &self.cache)
            .field("shapes", &self.shapes)
            .finish()
    }
}

/// What stands behind the calls of a calibrator during a build.
pub(super) struct Bridge {
    batches: Box<dyn CalibrationBatches>,
    cache: Option<PathBuf>,
    cached: Option<Vec<u8>>,
    /// Keeps a batch's memory until TensorRT asks for the next.
    current: Vec<DeviceMemory>,
    /// The first thing that went wrong.
    problem: Option<TensorRtError>,
}

impl Bridge {
    pub(super) fn new(
        batches: Box<dyn CalibrationBatches>,
        cache: Option<PathBuf>,
    ) -> Result<Self, TensorRtError> {
        let cached = match &cache {
            Some(path) => read_cache(path)?,
            None => None,
        };
        Ok(Self { batches, cache, cached, current: Vec::new(), problem: None })
    }

    pub(super) fn take_problem(&mut self) -> Option<TensorRtError> {
        self.problem.take()
    }

    /// The calls that lead to `bridge`, which must stay where it is until the builder is gone.
    pub(super) fn calls(bridge: *mut Self, batch_size: usize) -> Result<ffi::CalibratorCalls, TensorRtError> {
        let batch_size =
            i32::try_from(batch_size).ok().filter(|&size| size > 0).ok_or(TensorRtError::Invalid {
                what: "batch size of the calibration",
                expected: "a positive number".to_owned(),
                found: batch_size.to_string(),
            })?;
        Ok(ffi::CalibratorCalls {
            user: bridge.cast(),
            batch_size,
            next,
            read_cache: cached,
            write_cache: keep,
        })
    }

    fn next(&mut self, inputs: &[&str]) -> Option<&[DeviceMemory]> {
        if self.problem.is_some() {
            return None;
        }
        match self.batches.next(inputs) {
            Ok(Some(batch)) if batch.len() == inputs.len() => {
                self.current = batch;
                Some(&self.current)
            }
            Ok(Some(batch)) => {
                self.problem = Some(TensorRtError::Calibration(format!(
                    "expected memory for each of {} inputs ({}), found {}",
                    inputs.len(),
                    inputs.join(", "),
                    batch.len()
                )));
                None
            }
            Ok(None) => None,
            Err(problem) => {
                self.problem = Some(TensorRtError::Calibration(problem));
                None
            }
        }
    }
}

fn read_cache(path: &Path) -> Result<Option<Vec<u8>>, TensorRtError> {
    let failed = |source| TensorRtError::File {
        path: path.to_path_buf(),
        action: "the calibration cache cannot be read",
        source,
    };
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if size > MAX_CACHE_BYTES {
        return Err(TensorRtError::Invalid {
            what: "size of the calibration cache",
            expected: format!("at most {MAX_CACHE_BYTES} bytes"),
            found: size.to_string(),
        });
    }
    std::fs::read(path).map(Some).map_err(failed)
}

unsafe extern "C" fn next(
    user: *mut c_void,
    bindings: *mut *mut c_void,
    names: *const *const c_char,
    count: i32,
) -> i32 {
    // A panic of the caller's code must not unwind into C++.
    catch_unwind(AssertUnwindSafe(|| {
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: `user` is the bridge that `calls` was given, which outlives the builder and is used by nobody else while
        // TensorRT builds; TensorRT passes `count` names and room for as many addresses.
        let (bridge, names, bindings) = unsafe {
            (
                &mut *user.cast::<Bridge>(),
                std::slice::from_raw_parts(names, count),
                std::slice::from_raw_parts_mut(bindings, count),
            )
        };
        let names: Vec<&str> = names
            .iter()
            // SAFETY: TensorRT passes C strings.
            .map(
                |&name| {
                    if name.is_null() { "" } else { unsafe { CStr::from_ptr(name) }.to_str().unwrap_or("") }
                },
            )
            .collect();
        let Some(batch) = bridge.next(&names) else {
            return 0;
        };
        for (binding, memory) in bindings.iter_mut().zip(batch) {
            *binding = memory.address() as *mut c_void;
        }
        1
    }))
    .unwrap_or(0)
}

unsafe extern "C" fn cached(user: *mut c_void, size: *mut usize) -> *const c_void {
    // SAFETY: as in `next`; the bytes stay where they are, since `cached` is never changed.
    let bridge = unsafe { &*user.cast::<Bridge>() };
    match &bridge.cached {
        Some(bytes) => {
            // SAFETY: the shim passes the address of a `size_t`.
            unsafe { *size = bytes.len() };
            bytes.as_ptr().cast()
        }
        None => std::ptr::null(),
    }
}

unsafe extern "C" fn keep(user: *mut c_void, data: *const c_void, size: usize) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: as in `next`; TensorRT passes `size` readable bytes.
        let (bridge, bytes) = unsafe {
            (
                &mut *user.cast::<Bridge>(),
                std::slice::from_raw_parts(data.cast::<u8>(), if data.is_null() { 0 } else { size }),
            )
        };
        let Some(path) = &bridge.cache else {
            return;
        };
        if let Err(source) = write_atomically(path, bytes) {
            let problem = TensorRtError::File {
                path: path.clone(),
                action: "the calibration cache cannot be written",
                source,
            };
            bridge.problem.get_or_insert(problem);
        }
    }));
}
