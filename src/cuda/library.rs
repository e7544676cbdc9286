//! Libraries of the CUDA toolkit, found beside those that the process has loaded already.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::error::CudaError;

/// Majors of CUDA, newest first; NVRTC of 11 has the minor in its name too.
const VERSIONS: [&str; 3] = ["13", "12", "11.2"];

/// Opens `lib{stem}.so` of the CUDA that the process uses; `companion` is loaded before, from the same folder.
pub fn open(name: &'static str, stem: &str, companion: Option<&str>) -> Result<Library, CudaError> {
    let mut tried = Vec::new();
    let mut last = String::new();
    let folders = folders();
    let files = || VERSIONS.iter().map(|version| format!("lib{stem}.so.{version}"));
    // The folders first: the library must be of the same CUDA as the others.
    let candidates = folders
        .iter()
        .flat_map(|folder| files().map(|file| folder.join(file)))
        .filter(|path| path.exists())
        .chain(files().map(PathBuf::from))
        .chain([PathBuf::from(format!("lib{stem}.so"))]);
    for path in candidates {
        if let (Some(stem), Some(folder)) = (companion, path.parent()) {
            load_companions(folder, stem);
        }
        // SAFETY: NVIDIA's libraries have no initialisers but their own, made to be run when they are opened.
        match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) } {
            Ok(library) => return Ok(library),
            Err(error) => last = error.to_string(),
        }
        tried.push(path.display().to_string());
    }
    Err(CudaError::Library { name, tried: format!("{} ({last})", tried.join(", ")) })
}

/// NVRTC looks for its built-in headers by name alone: they are found if they are loaded already.
fn load_companions(folder: &Path, stem: &str) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_one = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
            name.strip_prefix("lib")
                .and_then(|name| name.strip_prefix(stem))
                .is_some_and(|rest| rest.starts_with(".so"))
        });
        if is_one {
            // SAFETY: as in `open`.
            if let Ok(library) = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) } {
                // Stays until the process ends.
                std::mem::forget(library);
            }
        }
    }
}

/// CUDA_LIB, then the folders of the CUDA libraries in the process, then those of PyTorch's wheels beside it, then the
/// toolkit's usual place.
fn folders() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::env::var_os("CUDA_LIB")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from)
        .into_iter()
        .collect();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let loaded: BTreeSet<&Path> =
        maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..]))).collect();
    let named = |path: &&&Path, prefixes: &[&str]| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| prefixes.iter().any(|p| name.starts_with(p)))
    };
    let toolkit = loaded.iter().filter(|path| named(path, &["libcudart.so", "libcublasLt.so"]));
    all.extend(toolkit.filter_map(|path| path.parent()).map(Path::to_path_buf));
    for torch in loaded.iter().filter(|path| named(path, &["libtorch_cpu.so", "libtorch_cuda.so"])) {
        // site-packages/torch/lib → site-packages/nvidia/*/lib
        let Some(packages) = torch.ancestors().nth(3) else { continue };
        let Ok(entries) = std::fs::read_dir(packages.join("nvidia")) else { continue };
        let mut beside: Vec<PathBuf> = entries.flatten().map(|entry| entry.path().join("lib")).collect();
        // The newest CUDA first.
        beside.sort_by(|a, b| b.cmp(a));
        all.extend(beside);
    }
    all.extend(["/usr/local/cuda/lib64", "/usr/local/cuda/targets/aarch64-linux/lib"].map(PathBuf::from));
    let mut seen = BTreeSet::new();
    all.retain(|folder| folder.is_dir() && seen.insert(folder.clone()));
    all
}
