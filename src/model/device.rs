//! Which device the network runs on.
//!
//! The binaries link only libtorch's CPU half. Its CUDA half is opened at run time where there is a GPU, so that one
//! build serves both kinds of machine and a machine without a GPU needs none of the CUDA libraries.

use std::{path::Path, sync::OnceLock};

use tch::{Cuda, Device, Kind, Tensor};

use super::ModelError;
use crate::capturing;

/// Files of the NVIDIA driver that exist only where there is a GPU: desktop and server, then Tegra.
const DRIVER_FILES: [&str; 3] = ["/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvmap"];

/// Whether the machine has an NVIDIA driver.
pub fn driver_present() -> bool {
    DRIVER_FILES.iter().any(|file| Path::new(file).exists())
}

/// Opens libtorch's CUDA half, once per process; the reason why not is kept.
///
/// Must happen before anything asks libtorch whether CUDA is there: the answer is decided at the first question.
fn cuda() -> &'static Result<i64, String> {
    static STATE: OnceLock<Result<i64, String>> = OnceLock::new();
    STATE.get_or_init(|| {
        if !driver_present() {
            return Err("the machine has no NVIDIA driver".to_owned());
        }
        // SAFETY: loading a library runs its initialisers; these are libtorch's own, made to be run this way (Python
        // loads the same file), and no other thread uses CUDA yet because every use goes through this function.
        let library = unsafe {
            libloading::os::unix::Library::open(
                Some("libtorch_cuda.so"),
                libloading::os::unix::RTLD_NOW | libloading::os::unix::RTLD_GLOBAL,
            )
        };
        match library {
            // The operators registered by the library stay in use until the process ends.
            Ok(library) => std::mem::forget(library),
            Err(error) => {
                return Err(format!(
                    "there is an NVIDIA driver, but libtorch_cuda.so cannot be loaded ({error}); run `make setup` \
                     on this machine, or point LIBTORCH at a PyTorch with CUDA"
                ));
            }
        }
        if !Cuda::is_available() {
            return Err("libtorch_cuda.so is loaded but finds no usable GPU; `nvidia-smi` tells more".to_owned());
        }
        Ok(Cuda::device_count())
    })
}

/// Whether libtorch's CUDA half is loaded and finds a GPU; loads it where it can be.
///
/// # Errors
/// The reason why not.
pub fn cuda_loaded() -> Result<(), String> {
    cuda().as_ref().map(drop).map_err(String::clone)
}

/// Resolves `auto`, `cpu`, `cuda` or `cuda:N`. `auto` is the first GPU where one can be used, else the CPU.
///
/// # Errors
/// [`ModelError::Device`] where the text is none of these or the GPU asked for cannot be used.
pub fn select(requested: &str) -> Result<Device, ModelError> {
    let refuse = |reason: String| Err(ModelError::Device { requested: requested.to_owned(), reason });
    let index = match requested {
        "cpu" => return Ok(Device::Cpu),
        "auto" => match cuda() {
            Ok(_) => 0,
            Err(reason) => {
                if driver_present() {
                    tracing::warn!("running on the CPU: {reason}");
                }
                return Ok(Device::Cpu);
            }
        },
        "cuda" => 0,
        other => match other.strip_prefix("cuda:").and_then(|n| n.parse::<usize>().ok()) {
            Some(index) => index,
            None => return refuse("expected auto, cpu, cuda or cuda:N".to_owned()),
        },
    };
    match cuda() {
        Ok(count) if (index as i64) < *count => Ok(Device::Cuda(index)),
        Ok(count) => refuse(format!("there are {count} GPUs, counted from 0")),
        Err(reason) => refuse(reason.clone()),
    }
}

/// Waits until the device has finished what was queued on it. The CPU never queues.
pub fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        capturing::clear_of_captures(|| Cuda::synchronize(index as i64));
    }
}

/// The values of a tensor as f32, row by row, in host memory.
///
/// # Errors
/// No memory.
pub fn to_host(tensor: &Tensor) -> Result<Vec<f32>, ModelError> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut values = vec![0f32; tensor.numel()];
    let count = values.len();
    tensor.f_copy_data(&mut values, count)?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_does_not_exist_is_refused_with_the_choices() {
        let error = select("gpu").unwrap_err().to_string();
        assert!(error.contains("\"gpu\"") && error.contains("auto, cpu, cuda or cuda:N"), "{error}");
    }

    #[test]
    fn auto_always_finds_a_device() {
        assert!(select("auto").is_ok());
    }
}
