//! What can go wrong below libtorch.

use cudarc::driver::DriverError;

/// Why something could not be done on the GPU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The NVIDIA driver is not there.
    #[error(
        "there is no NVIDIA driver (libcuda.so.1) on this machine: the fused kernels run on NVIDIA GPUs only"
    )]
    NoDriver,

    /// The driver refused.
    #[error("{action}: CUDA says {error}")]
    Driver {
        /// What was being done.
        action: String,
        /// The driver's word for it.
        error: String,
    },

    /// A library of the CUDA toolkit is not there.
    #[error(
        "{name} cannot be loaded; looked for {tried}. It comes with PyTorch's CUDA wheels and with the CUDA toolkit; \
         name its folder in CUDA_LIB"
    )]
    Library {
        /// Such as `NVRTC`.
        name: &'static str,
        /// What was tried, and what the loader said last.
        tried: String,
    },

    /// NVRTC did not take the kernels.
    #[error("NVRTC cannot compile {source_name} for {target}: {log}")]
    Compile {
        /// The file of the kernels.
        source_name: String,
        /// Such as `sm_90`.
        target: String,
        /// The compiler's messages.
        log: String,
    },

    /// cuBLASLt refused.
    #[error("{action}: cuBLASLt answers with status {status}")]
    Blas {
        /// What was being done.
        action: &'static str,
        /// `cublasStatus_t`.
        status: i32,
    },

    /// A kernel did, on the emulated GPU of the tests, what it must not.
    #[cfg(test)]
    #[error("emulated {0}")]
    Emulation(String),

    /// Sizes that the kernels are not made for.
    #[error("{what}: expected {expected}, found {found}")]
    Argument {
        /// Which size.
        what: &'static str,
        /// What fits.
        expected: String,
        /// What came.
        found: String,
    },
}

impl CudaError {
    pub(crate) fn driver(action: impl Into<String>) -> impl FnOnce(DriverError) -> Self {
        let action = action.into();
        move |error| Self::Driver { action, error: format!("{error:?}") }
    }

    pub(crate) fn argument(what: &'static str, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Argument { what, expected: expected.into(), found: found.to_string() }
    }
}
