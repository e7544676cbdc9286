//! The files of kernels, and what is compiled of them.

use std::sync::Arc;

use super::error::CudaError;
use super::gpu::Gpu;
use super::module::Module;
use super::nvrtc::{Nvrtc, Target};

/// What the kernels need of the hardware. The emulation has its own.
const HARDWARE: &str = include_str!("kernels/ptx.cuh");
/// What they share.
pub(super) const COMMON: &str = include_str!("kernels/common.cuh");

/// A file of kernels, and which instances of its templates are wanted.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// Of the file, for messages.
    pub name: &'static str,
    pub file: &'static str,
    /// More of what the kernels need of the hardware, which the emulation has too.
    pub hardware: String,
    /// Lines that name the instances; none where the file's kernels are no templates.
    pub instances: String,
}

impl Source {
    /// A file without templates.
    pub fn plain(name: &'static str, file: &'static str) -> Self {
        Self { name, file, hardware: String::new(), instances: String::new() }
    }

    /// What NVRTC is given.
    pub fn cuda(&self) -> String {
        [HARDWARE, COMMON, &self.hardware, self.file, &self.instances].concat()
    }
}

/// Instances that are best compiled together.
pub(super) fn group(_gpu: &Gpu) -> usize {
    #[cfg(test)]
    if _gpu.is_emulated() {
        return 16;
    }
    1
}

/// Compiles and loads.
///
/// # Errors
/// No NVRTC, or one that refuses; what the driver says.
pub(super) fn compile(gpu: &Gpu, source: &Source) -> Result<Arc<Module>, CudaError> {
    let mut all = compile_all(gpu, std::slice::from_ref(source))?;
    all.pop().ok_or_else(|| CudaError::argument("kernels", "one module for one source", "none"))
}

/// Compiles side by side on the machine's cores, and loads.
///
/// # Errors
/// As [`compile`].
pub(super) fn compile_all(gpu: &Gpu, sources: &[Source]) -> Result<Vec<Arc<Module>>, CudaError> {
    #[cfg(test)]
    if gpu.is_emulated() {
        let library = |source| Ok(Module::emulated(super::emulation::compile(source)?));
        use rayon::prelude::*;
        return sources.par_iter().map(library).collect();
    }
    let target = Nvrtc::load()?.target(gpu.capability());
    compile_for(gpu, sources, target)
}

/// The same with what the GPU's generation alone has.
///
/// # Errors
/// As [`compile`].
pub(super) fn compile_specific(gpu: &Gpu, sources: &[Source]) -> Result<Vec<Arc<Module>>, CudaError> {
    #[cfg(test)]
    if gpu.is_emulated() {
        return compile_all(gpu, sources);
    }
    compile_for(gpu, sources, Target::Specific(gpu.capability()))
}

fn compile_for(gpu: &Gpu, sources: &[Source], target: Target) -> Result<Vec<Arc<Module>>, CudaError> {
    use rayon::prelude::*;
    let nvrtc = Nvrtc::load()?;
    let code: Vec<_> = sources
        .par_iter()
        .map(|source| nvrtc.compile(source.name, &source.cuda(), target))
        .collect::<Result<_, _>>()?;
    code.iter().map(|code| Module::load(gpu, code)).collect()
}
