//! From an ONNX file to an engine.

use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::atomic_file::write_atomically;
use crate::engine::Precision;

use super::calibrator::{Bridge, CalibrationAlgorithm, Int8Calibration};
use super::device::Device;
use super::error::TensorRtError;
use super::ffi::{self, Flag};
use super::library::Library;
use super::log::Mark;
use super::options::{BuildOptions, BuildProgress, F32Layers, Layer, Profile, ProgressFn};
use super::tensor::{IoTensor, names};

const STRONG_TYPING: &str = "Export the graph with the types that it shall compute in (casts, or Q/DQ nodes for INT8) and \
                             build it strongly typed";

/// Largest timing cache that is read, in bytes.
const MAX_TIMING_CACHE: u64 = 1 << 30;

/// A serialised engine, in TensorRT's memory.
pub struct Plan {
    library: Arc<Library>,
    blob: NonNull<ffi::Blob>,
}

// SAFETY: plain memory that nothing writes to, freed by one owner.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

impl Plan {
    fn from_blob(library: &Arc<Library>, blob: *mut ffi::Blob) -> Option<Self> {
        Some(Self { library: Arc::clone(library), blob: NonNull::new(blob)? })
    }
}

impl std::ops::Deref for Plan {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let table = self.library.table;
        // SAFETY: the blob is alive, and its memory does not move or change while it is.
        unsafe {
            let data = (table.blob_data)(self.blob.as_ptr());
            let size = (table.blob_size)(self.blob.as_ptr());
            if data.is_null() { &[] } else { std::slice::from_raw_parts(data.cast(), size) }
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by the same table, destroyed once.
        unsafe { (self.library.table.blob_destroy)(self.blob.as_ptr()) };
    }
}

/// What a build did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildReport {
    /// Layers of the network as parsed, before TensorRT fused them.
    pub layers: usize,
    /// How many of them were told to stay in f32.
    pub f32_layers: usize,
    pub plan_bytes: usize,
    pub duration: Duration,
    /// Warnings of TensorRT during the build.
    pub warnings: usize,
}

/// A network on its way to becoming an engine.
///
/// Not Send: TensorRT's builder keeps to the thread that made it.
pub struct Builder {
    library: Arc<Library>,
    raw: NonNull<ffi::Builder>,
    precision: Precision,
    began: Mark,
    /// Held so that the CUDA context outlives the builder.
    _device: Option<Device>,
}

impl Builder {
    /// Starts an empty network for `device`.
    ///
    /// # Errors
    /// [`TensorRtError::Unsupported`] for a precision that this TensorRT does not have, [`TensorRtError::Refused`].
    pub fn new(library: &Arc<Library>, device: &Device, precision: Precision) -> Result<Self, TensorRtError> {
        device.make_current()?;
        Self::start(library, Some(device.clone()), precision)
    }

    /// Without a device TensorRT makes do with the thread's current one.
    pub(super) fn start(
        library: &Arc<Library>,
        device: Option<Device>,
        precision: Precision,
    ) -> Result<Self, TensorRtError> {
        check_precision(library, precision)?;
        let entry = library.create_builder()?;
        // From version 11 on there is no other kind of network.
        let strongly_typed = precision == Precision::StronglyTyped || library.header_version().major >= 11;
        let mark = Mark::now();
        let mut status = ffi::OK;
        // SAFETY: the entry point and the logger belong to this library, which is kept.
        let raw = unsafe {
            (library.table.builder_create)(
                entry,
                library.logger.as_ptr(),
                i32::from(strongly_typed),
                &mut status,
            )
        };
        match NonNull::new(raw) {
            Some(raw) => {
                Ok(Self { library: Arc::clone(library), raw, precision, began: mark, _device: device })
            }
            None if status == ffi::UNSUPPORTED => {
                Err(unsupported(library, "networks of this kind of typing", STRONG_TYPING))
            }
            None => Err(refused("making TensorRT's builder", mark)),
        }
    }

    fn raw(&self) -> *mut ffi::Builder {
        self.raw.as_ptr()
    }

    /// Whether the GPU computes in this precision faster than in f32, if TensorRT says so.
    pub fn is_fast(&self, precision: Precision) -> Option<bool> {
        let flag = match precision {
            Precision::Fp16 => Flag::Fp16,
            Precision::Int8 => Flag::Int8,
            _ => return None,
        };
        // SAFETY: the builder is alive.
        match unsafe { (self.library.table.builder_has_fast)(self.raw(), flag as i32) } {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    /// Adds the network of an ONNX file. Weights in files of their own are found beside it.
    ///
    /// # Errors
    /// [`TensorRtError::Parse`] with what the parser found, [`TensorRtError::ParserMissing`].
    pub fn parse(&mut self, onnx: &Path) -> Result<(), TensorRtError> {
        let entry = self.library.create_parser()?;
        let invalid = |found: String| TensorRtError::Invalid {
            what: "path of the ONNX file",
            expected: "a file's path without zero bytes".to_owned(),
            found,
        };
        if !onnx.is_file() {
            return Err(invalid(format!("{} (no such file)", onnx.display())));
        }
        let path = CString::new(onnx.as_os_str().as_encoded_bytes())
            .map_err(|_| invalid(onnx.display().to_string()))?;
        let mark = Mark::now();
        let mut problems: Vec<String> = Vec::new();
        // SAFETY: the builder is alive; `collect_text` is given the vector that it expects.
        let status = unsafe {
            (self.library.table.builder_parse)(
                self.raw(),
                entry,
                path.as_ptr(),
                ffi::collect_text,
                (&raw mut problems).cast(),
            )
        };
        if status == ffi::OK {
            return Ok(());
        }
        let problems =
            if problems.is_empty() { "it gives no reason".to_owned() } else { problems.join("; ") };
        Err(TensorRtError::Parse { path: onnx.to_path_buf(), problems, log: mark.lines() })
    }

    /// Inputs and outputs of the network.
    pub fn tensors(&self) -> Vec<IoTensor> {
        let table = self.library.table;
        // SAFETY: the builder is alive.
        let count = unsafe { (table.builder_tensor_count)(self.raw()) };
        (0..count)
            .filter_map(|index| {
                let mut raw = ffi::Tensor::EMPTY;
                // SAFETY: as above; the shim fills in the struct.
                let status = unsafe { (table.builder_tensor)(self.raw(), index, &mut raw) };
                (status == ffi::OK).then(|| IoTensor::from_raw(&raw))
            })
            .collect()
    }

    /// The network's layers.
    pub fn layers(&self) -> Vec<Layer> {
        let table = self.library.table;
        // SAFETY: the builder is alive.
        let count = unsafe { (table.builder_layer_count)(self.raw()) };
        (0..count)
            .filter_map(|index| {
                let (mut name, mut kind): (*const c_char, *const c_char) =
                    (std::ptr::null(), std::ptr::null());
                // SAFETY: as above; the shim fills in both addresses.
                let status = unsafe { (table.builder_layer)(self.raw(), index, &mut name, &mut kind) };
                // SAFETY: both are C strings of the network.
                (status == ffi::OK)
                    .then(|| unsafe { Layer { name: ffi::text_at(name), kind: ffi::text_at(kind) } })
            })
            .collect()
    }

    /// Builds the engine. Takes seconds to many minutes.
    ///
    /// # Errors
    /// What TensorRT refuses comes back with its log; [`TensorRtError::Cancelled`] if the progress function said so.
    pub fn build(self, mut options: BuildOptions) -> Result<(Plan, BuildReport), TensorRtError> {
        if options.precision != self.precision {
            return Err(TensorRtError::Invalid {
                what: "precision of the build",
                expected: format!("{}, as the builder was made for", self.precision),
                found: options.precision.to_string(),
            });
        }
        let inputs: Vec<IoTensor> = self.tensors().into_iter().filter(|tensor| tensor.is_input).collect();
        let layers = self.layers();
        let (progress, calibration) = (options.progress.take(), options.calibration.take());
        self.configure(&options)?;
        for profile in &options.profiles {
            self.add_profile(profile, &inputs, false)?;
        }
        if options.profiles.is_empty() {
            Profile::default().check(&inputs)?;
        }
        let f32_layers = self.keep_in_f32(&options.f32_layers, &layers)?;
        if let Some(path) = &options.timing_cache {
            self.read_timing_cache(path)?;
        }
        // Both are called back during the build, from C++: they stay where they are until it is over.
        let mut bridge = self.connect_calibration(calibration, &inputs, &layers)?;
        let monitor = self.connect_progress(progress)?;

        let mark = Mark::now();
        let began = Instant::now();
        let mut status = ffi::OK;
        // SAFETY: the builder is alive, and so is all that it calls back.
        let blob = unsafe { (self.library.table.builder_build)(self.raw(), &mut status) };
        let plan = Plan::from_blob(&self.library, blob);
        let log = mark.lines();
        if let Some(problem) = bridge.as_mut().and_then(|bridge| bridge.take_problem()) {
            return Err(problem);
        }
        if monitor.is_some_and(|monitor| monitor.cancelled.load(Ordering::Relaxed)) {
            return Err(TensorRtError::Cancelled);
        }
        let Some(plan) = plan else {
            return Err(TensorRtError::Refused { action: "building the engine".to_owned(), log });
        };
        if let Some(path) = &options.timing_cache {
            self.write_timing_cache(path)?;
        }
        let report = BuildReport {
            layers: layers.len(),
            f32_layers,
            plan_bytes: plan.len(),
            duration: began.elapsed(),
            warnings: log.0.len(),
        };
        Ok((plan, report))
    }

    fn configure(&self, options: &BuildOptions) -> Result<(), TensorRtError> {
        let weakly_typed = self.library.header_version().major < 11;
        if weakly_typed {
            match options.precision {
                Precision::Fp16 => self.set(Flag::Fp16, true)?,
                Precision::Bf16 => self.set(Flag::Bf16, true)?,
                Precision::Int8 => {
                    self.set(Flag::Int8, true)?;
                    // What has no INT8 kernel, or no range, runs in f16 rather than f32.
                    self.set(Flag::Fp16, true)?;
                }
                Precision::Fp32 | Precision::StronglyTyped => {}
            }
        }
        self.set(Flag::Tf32, options.tf32)?;
        if options.version_compatible {
            self.set(Flag::VersionCompatible, true)?;
        }
        if options.detailed_profiling {
            self.set(Flag::DetailedProfiling, true)?;
        }
        let table = self.library.table;
        if let Some(bytes) = options.workspace {
            // SAFETY: the builder is alive.
            self.done(unsafe { (table.builder_set_workspace)(self.raw(), bytes) }, "setting the workspace")?;
        }
        if let Some(level) = options.optimisation_level {
            if level > 5 {
                return Err(TensorRtError::Invalid {
                    what: "optimisation level",
                    expected: "0 to 5".to_owned(),
                    found: level.to_string(),
                });
            }
            if !self.library.has(8, 6) {
                return Err(unsupported(
                    &self.library,
                    "an optimisation level",
                    "It came with 8.6: leave it out",
                ));
            }
            // SAFETY: the builder is alive, and both library and headers have the function.
            let status = unsafe { (table.builder_set_optimisation_level)(self.raw(), i32::from(level)) };
            self.done(status, "setting the optimisation level")?;
        }
        Ok(())
    }

    fn set(&self, flag: Flag, on: bool) -> Result<(), TensorRtError> {
        let since = match flag {
            Flag::VersionCompatible => (8, 6),
            _ => (8, 5),
        };
        if !self.library.has(since.0, since.1) {
            return Err(unsupported(&self.library, &format!("the option {flag:?}"), "Leave it out"));
        }
        // SAFETY: the builder is alive.
        let status = unsafe { (self.library.table.builder_set_flag)(self.raw(), flag as i32, i32::from(on)) };
        self.done(status, &format!("setting the option {flag:?}"))
    }

    fn add_profile(
        &self,
        profile: &Profile,
        inputs: &[IoTensor],
        for_calibration: bool,
    ) -> Result<(), TensorRtError> {
        profile.check(inputs)?;
        let mut names = Vec::new();
        let mut ranks = Vec::new();
        let mut dims: Vec<[i64; ffi::MAX_DIMS]> = Vec::new();
        for (name, range) in &profile.0 {
            names.push(c_name(name)?);
            // `check` compared the ranks with the network's, which are at most 8.
            ranks.push(i32::try_from(range.opt.len()).unwrap_or(i32::MAX));
            for shape in [&range.min, &range.opt, &range.max] {
                let mut padded = [0; ffi::MAX_DIMS];
                padded.iter_mut().zip(shape).for_each(|(to, from)| *to = *from);
                dims.push(padded);
            }
        }
        let pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let mark = Mark::now();
        // SAFETY: the builder is alive; there are as many names and ranks as `count`, and three times as many shapes.
        let status = unsafe {
            (self.library.table.builder_add_profile)(
                self.raw(),
                pointers.as_ptr(),
                ranks.as_ptr(),
                dims.as_ptr().cast(),
                i32::try_from(names.len()).unwrap_or(i32::MAX),
                i32::from(for_calibration),
            )
        };
        if status == ffi::OK { Ok(()) } else { Err(refused("adding an optimisation profile", mark)) }
    }

    fn keep_in_f32(&self, wanted: &F32Layers, layers: &[Layer]) -> Result<usize, TensorRtError> {
        if wanted.is_empty() || self.precision == Precision::Fp32 {
            return Ok(0);
        }
        if self.precision == Precision::StronglyTyped || self.library.header_version().major >= 11 {
            return Err(unsupported(
                &self.library,
                "constraining layers of a strongly typed network",
                STRONG_TYPING,
            ));
        }
        let mut kept = 0;
        for (index, layer) in layers.iter().enumerate().filter(|(_, layer)| wanted.wants(layer)) {
            let Ok(number) = i32::try_from(index) else {
                break;
            };
            // SAFETY: the builder is alive.
            match unsafe { (self.library.table.builder_layer_in_f32)(self.raw(), number) } {
                ffi::OK => kept += 1,
                // It computes no floating-point numbers, so there is nothing to keep.
                ffi::ARGUMENT => tracing::debug!("layer {:?} has no precision to choose", layer.name),
                status => self.done(status, "keeping a layer in f32")?,
            }
        }
        self.set(if wanted.obey { Flag::ObeyPrecision } else { Flag::PreferPrecision }, true)?;
        Ok(kept)
    }

    fn read_timing_cache(&self, path: &Path) -> Result<(), TensorRtError> {
        let bytes = match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() > MAX_TIMING_CACHE => {
                tracing::warn!("{}: too large for a timing cache; starting anew", path.display());
                Vec::new()
            }
            Ok(_) => std::fs::read(path).map_err(|source| TensorRtError::File {
                path: path.to_path_buf(),
                action: "the timing cache cannot be read",
                source,
            })?,
            Err(_) => Vec::new(),
        };
        let table = self.library.table;
        // SAFETY: the builder is alive; TensorRT copies the bytes.
        let taken =
            unsafe { (table.builder_set_timing_cache)(self.raw(), bytes.as_ptr().cast(), bytes.len()) };
        if taken == ffi::OK || bytes.is_empty() {
            return self.done(taken, "starting a timing cache");
        }
        tracing::warn!("{}: made for another GPU or TensorRT; starting anew", path.display());
        // SAFETY: as above; with no bytes the address is not read.
        let taken = unsafe { (table.builder_set_timing_cache)(self.raw(), std::ptr::null(), 0) };
        self.done(taken, "starting a timing cache")
    }

    fn write_timing_cache(&self, path: &Path) -> Result<(), TensorRtError> {
        // SAFETY: the builder is alive.
        let blob = unsafe { (self.library.table.builder_timing_cache)(self.raw()) };
        let Some(cache) = Plan::from_blob(&self.library, blob) else {
            return Ok(());
        };
        write_atomically(path, &cache).map_err(|source| TensorRtError::File {
            path: path.to_path_buf(),
            action: "the timing cache cannot be written",
            source,
        })
    }

    fn connect_calibration(
        &self,
        calibration: Option<Int8Calibration>,
        inputs: &[IoTensor],
        layers: &[Layer],
    ) -> Result<Option<BridgeBox>, TensorRtError> {
        let quantised = layers.iter().any(|layer| matches!(layer.kind.as_str(), "quantise" | "dequantise"));
        let Some(calibration) = calibration else {
            if self.precision == Precision::Int8 && !quantised {
                return Err(TensorRtError::Invalid {
                    what: "INT8 build",
                    expected: "Q/DQ nodes in the graph, or calibration batches or a calibration cache"
                        .to_owned(),
                    found: "neither".to_owned(),
                });
            }
            return Ok(None);
        };
        if self.precision != Precision::Int8 || quantised {
            return Err(TensorRtError::Invalid {
                what: "calibration",
                expected: "an INT8 build of a graph without Q/DQ nodes (those hold the ranges)".to_owned(),
                found: format!(
                    "precision {}, {} Q/DQ nodes",
                    self.precision,
                    if quantised { "with" } else { "without" }
                ),
            });
        }
        let Int8Calibration { algorithm, batches, cache, shapes } = calibration;
        if let Some(shapes) = &shapes {
            self.add_profile(shapes, inputs, true)?;
        } else if let Some(input) = inputs.iter().find(|input| input.is_dynamic()) {
            return Err(TensorRtError::Shape {
                tensor: format!("calibration of input {:?}", input.name),
                expected: "the shapes of the batches, since the graph leaves them free".to_owned(),
                found: "none".to_owned(),
            });
        }
        let batch_size = batches.batch_size();
        let bridge = BridgeBox(NonNull::from(Box::leak(Box::new(Bridge::new(batches, cache)?))));
        let calls = Bridge::calls(bridge.0.as_ptr(), batch_size)?;
        let min_max = i32::from(algorithm == CalibrationAlgorithm::MinMax);
        // SAFETY: the shim copies the calls; what they lead to stays in its box until the build is over.
        let status = unsafe { (self.library.table.builder_set_calibrator)(self.raw(), min_max, &calls) };
        self.done(status, "setting the calibrator")?;
        Ok(Some(bridge))
    }

    fn connect_progress(&self, progress: Option<ProgressFn>) -> Result<Option<Box<Monitor>>, TensorRtError> {
        let Some(told) = progress else {
            return Ok(None);
        };
        if !self.library.has(10, 0) {
            tracing::info!("TensorRT {} reports no progress; a build takes minutes", self.library.version());
            return Ok(None);
        }
        let monitor = Box::new(Monitor { told, cancelled: AtomicBool::new(false) });
        let calls = ffi::ProgressCalls {
            user: std::ptr::from_ref(&*monitor).cast_mut().cast(),
            start: progress_start,
            step: progress_step,
            finish: progress_finish,
        };
        // SAFETY: the shim copies the calls; the monitor is only read, from any thread, and lives until the build is over.
        let status = unsafe { (self.library.table.builder_set_progress)(self.raw(), &calls) };
        self.done(status, "setting the progress monitor")?;
        Ok(Some(monitor))
    }

    fn done(&self, status: i32, action: &str) -> Result<(), TensorRtError> {
        match status {
            ffi::OK => Ok(()),
            ffi::UNSUPPORTED => {
                Err(unsupported(&self.library, action, "Leave it out, or use a version that has it"))
            }
            _ => Err(TensorRtError::Refused { action: action.to_owned(), log: self.began.lines() }),
        }
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        // SAFETY: made by the same table, destroyed once.
        unsafe { (self.library.table.builder_destroy)(self.raw()) };
    }
}

/// Owns a [`Bridge`] that C++ holds the address of: a `Box` would claim to be the only way to it.
struct BridgeBox(NonNull<Bridge>);

impl BridgeBox {
    fn take_problem(&mut self) -> Option<TensorRtError> {
        // SAFETY: asked for after the build, when C++ no longer calls.
        unsafe { self.0.as_mut() }.take_problem()
    }
}

impl Drop for BridgeBox {
    fn drop(&mut self) {
        // SAFETY: the address came from `Box::leak`, and the build is over.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

struct Monitor {
    told: ProgressFn,
    cancelled: AtomicBool,
}

/// Tells the caller. A panic of its function ends the build rather than unwind into C++.
///
/// # Safety
/// `user` is the address of a [`Monitor`].
unsafe fn tell(user: *mut c_void, progress: BuildProgress) -> bool {
    // SAFETY: by the contract; the monitor is only read.
    let monitor = unsafe { &*user.cast::<Monitor>() };
    let goes_on = catch_unwind(AssertUnwindSafe(|| (monitor.told)(&progress))).unwrap_or(false);
    if !goes_on {
        monitor.cancelled.store(true, Ordering::Relaxed);
    }
    !monitor.cancelled.load(Ordering::Relaxed)
}

unsafe extern "C" fn progress_start(
    user: *mut c_void,
    phase: *const c_char,
    parent: *const c_char,
    steps: i32,
) {
    // SAFETY: TensorRT passes C strings or null, and `connect_progress` a monitor.
    unsafe {
        let (phase, parent) = (ffi::text_at(phase), ffi::text_at(parent));
        tell(user, BuildProgress::Started { phase, parent, steps: usize::try_from(steps).unwrap_or(0) });
    }
}

unsafe extern "C" fn progress_step(user: *mut c_void, phase: *const c_char, step: i32) -> i32 {
    // SAFETY: as in `progress_start`.
    unsafe {
        let phase = ffi::text_at(phase);
        i32::from(tell(user, BuildProgress::Step { phase, step: usize::try_from(step).unwrap_or(0) }))
    }
}

unsafe extern "C" fn progress_finish(user: *mut c_void, phase: *const c_char) {
    // SAFETY: as in `progress_start`.
    unsafe {
        let phase = ffi::text_at(phase);
        tell(user, BuildProgress::Finished { phase });
    }
}

fn check_precision(library: &Library, precision: Precision) -> Result<(), TensorRtError> {
    let major = library.header_version().major;
    match precision {
        Precision::Bf16 if major < 10 => {
            Err(unsupported(library, "bf16", "Use fp16 or fp32, or TensorRT 10"))
        }
        Precision::StronglyTyped if major < 10 => Err(unsupported(
            library,
            "strongly typed networks",
            "They came with TensorRT 10: name a precision",
        )),
        Precision::Fp16 | Precision::Bf16 | Precision::Int8 if major >= 11 => {
            Err(unsupported(library, &format!("choosing {precision} for a graph of f32"), STRONG_TYPING))
        }
        _ => Ok(()),
    }
}

pub(super) fn unsupported(library: &Library, what: &str, advice: &'static str) -> TensorRtError {
    TensorRtError::Unsupported { version: library.version(), what: what.to_owned(), advice }
}

pub(super) fn refused(action: &str, since: Mark) -> TensorRtError {
    TensorRtError::Refused { action: action.to_owned(), log: since.lines() }
}

/// A tensor's name for C.
pub(super) fn c_name(name: &str) -> Result<CString, TensorRtError> {
    CString::new(name).map_err(|_| TensorRtError::Invalid {
        what: "tensor name",
        expected: "a text without zero bytes".to_owned(),
        found: format!("{name:?}"),
    })
}

/// Builds an engine from an ONNX file in one go.
///
/// # Errors
/// As [`Builder::new`], [`Builder::parse`] and [`Builder::build`].
pub fn build_from_onnx(
    library: &Arc<Library>,
    device: &Device,
    onnx: &Path,
    options: BuildOptions,
) -> Result<(Plan, BuildReport), TensorRtError> {
    let mut builder = Builder::new(library, device, options.precision)?;
    builder.parse(onnx)?;
    let tensors = builder.tensors();
    tracing::debug!("{}: inputs and outputs {}", onnx.display(), names(&tensors));
    builder.build(options)
}
