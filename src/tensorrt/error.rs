//! What can go wrong with TensorRT, with its own words attached.

use std::path::PathBuf;

use super::log::LogLines;
use super::version::Version;

/// Why something could not be done with TensorRT.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorRtError {
    /// The program was compiled where no TensorRT headers were found.
    #[error(
        "this program was built without TensorRT's headers, so it cannot use TensorRT: install libnvinfer-dev and \
         libnvonnxparsers-dev (or name the headers' folder in TENSORRT_INCLUDE) and build it again"
    )]
    NoHeaders,

    /// TensorRT's library is not on the machine, or cannot be loaded.
    #[error(
        "TensorRT cannot be loaded: expected {wanted}; {problem}. Install TensorRT (on a Jetson: `apt install \
         libnvinfer-bin`; elsewhere the TensorRT package of the CUDA in use) or name the libraries' folder in TENSORRT_LIB"
    )]
    LibraryMissing {
        /// File names that were looked for.
        wanted: String,
        /// What the loader said of each.
        problem: String,
    },

    /// TensorRT is there, but not in a version that this program was built for.
    #[error(
        "{path} is TensorRT {found}, and this program was built with the headers of TensorRT {compiled}: their classes \
         differ. Build the program with the headers of TensorRT {major} (TENSORRT_INCLUDE), or install a TensorRT of a \
         version that it was built for",
        path = path.display(),
        major = found.major
    )]
    WrongMajor { path: PathBuf, found: Version, compiled: String },

    /// TensorRT is older than the oldest version of its major that is supported.
    #[error("{path} is TensorRT {found}; at least {least} is needed", path = path.display())]
    TooOld { path: PathBuf, found: Version, least: &'static str },

    /// A library lacks a function that every TensorRT has.
    #[error("{path} has no function {symbol}: it is no TensorRT library of the expected kind ({problem})", path = path.display())]
    EntryPoint { path: PathBuf, symbol: &'static str, problem: String },

    /// The ONNX parser's library cannot be loaded; only the building of engines needs it.
    #[error(
        "TensorRT's ONNX parser cannot be loaded: {problem}. Install it (libnvonnxparsers) beside TensorRT {version}; it \
         needs libnvinfer_plugin, cuBLAS and cuDNN where its version asks for them"
    )]
    ParserMissing { version: Version, problem: String },

    /// The NVIDIA driver is not there.
    #[error(
        "there is no NVIDIA driver (libcuda.so.1) on this machine: TensorRT engines run on NVIDIA GPUs only"
    )]
    NoDriver,

    /// A call to CUDA failed.
    #[error("{action}: CUDA says: {problem}")]
    Cuda { action: String, problem: String },

    /// TensorRT did not do what was asked.
    #[error("{action} failed. {log}")]
    Refused { action: String, log: LogLines },

    /// The version of TensorRT cannot do what was asked.
    #[error("TensorRT {version} cannot do this: {what}. {advice}")]
    Unsupported { version: Version, what: String, advice: &'static str },

    /// An ONNX file was not accepted.
    #[error("{path}: TensorRT's parser does not accept the file: {problems}. {log}", path = path.display())]
    Parse { path: PathBuf, problems: String, log: LogLines },

    /// An engine or network has no tensor of this name.
    #[error("there is no {kind} named {name:?}; there are: {known}")]
    NoSuchTensor { kind: &'static str, name: String, known: String },

    /// Shapes do not fit.
    #[error("{tensor}: expected {expected}, found {found}")]
    Shape { tensor: String, expected: String, found: String },

    /// Not everything is set that a run needs.
    #[error("the run cannot start: {0}")]
    NotReady(String),

    /// A build was ended by the caller's progress function.
    #[error("the building of the engine was cancelled")]
    Cancelled,

    /// The source of calibration batches failed.
    #[error("the calibration data could not be provided: {0}")]
    Calibration(String),

    /// A value that no version accepts.
    #[error("{what}: expected {expected}, found {found}")]
    Invalid { what: &'static str, expected: String, found: String },

    /// A file could not be read or written.
    #[error("{path}: {action}: {source}", path = path.display())]
    File { path: PathBuf, action: &'static str, source: std::io::Error },
}

impl TensorRtError {
    pub(super) fn cuda(action: impl Into<String>, error: cudarc::driver::DriverError) -> Self {
        // The driver's text needs the driver, which may be what is missing; its number does not.
        Self::Cuda { action: action.into(), problem: format!("{error:?}") }
    }
}
