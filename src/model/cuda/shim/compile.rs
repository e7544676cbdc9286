//! Part of the build script: compiles the shim over libtorch's CUDA half into a shared object, which the program carries
//! inside it and opens only where that half is loaded. The program itself links none of CUDA.

use std::env;
use std::path::{Path, PathBuf};

const FOLDER: &str = "src/model/cuda/shim";

/// Compiles the shim to `groot_torch_cuda.so` in the build's folder.
///
/// # Errors
/// The headers that are missing, or what the compiler says.
pub fn compile() -> Result<(), String> {
    for file in ["compile.rs", "shim.cpp", "shim.h", "toolkit/cuda_runtime.h", "toolkit/crt/host_defines.h"] {
        println!("cargo:rerun-if-changed={FOLDER}/{file}");
    }
    for variable in ["CUDA_HOME", "CUDA_PATH", "LIBTORCH_CXX11_ABI"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // torch-sys publishes the library folder it used.
    let libraries =
        PathBuf::from(env::var_os("DEP_TCH_LIBTORCH_LIB").ok_or("libtorch's folder is not known")?);
    let torch = libraries.parent().ok_or("libtorch's folder has no parent")?;
    let headers = torch.join("include");
    if !headers.join("ATen/cuda/CUDAGraph.h").exists() {
        return Err(format!("{} has no headers of libtorch's CUDA half", headers.display()));
    }
    let cuda = toolkits(torch)
        .into_iter()
        .find(|folder| folder.join("cuda_runtime_api.h").exists())
        .ok_or("no cuda_runtime_api.h was found: set CUDA_HOME to a CUDA toolkit")?;
    println!("cargo:rerun-if-changed={}", headers.join("ATen/cuda/CUDAGraph.h").display());
    println!("cargo:rerun-if-changed={}", cuda.join("cuda_runtime_api.h").display());

    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").pic(true).cargo_metadata(false);
    build.flag("-fvisibility=hidden");
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    build.define("_GLIBCXX_USE_CXX11_ABI", abi.as_str());
    let mut system = vec![headers.clone(), cuda.clone()];
    if !cuda.join("crt/host_defines.h").exists() {
        system.insert(0, Path::new(FOLDER).join("toolkit"));
    }
    for folder in &system {
        // `-isystem`: warnings of others' headers are not ours to mend.
        build.flag("-isystem").flag(folder.as_os_str());
    }
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    let object = Path::new(&out).join("groot_torch_cuda.so");
    let mut command = build.try_get_compiler().map_err(|error| error.to_string())?.to_command();
    // Stripped, so that the only names left are those that are exported or looked up.
    command.args(["-shared", "-s"]).arg(Path::new(FOLDER).join("shim.cpp")).arg("-o").arg(&object);
    let output = command.output().map_err(|error| format!("the C++ compiler cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().find(|line| line.contains("error")).unwrap_or("no reason was given");
    Err(format!("the shim over libtorch's CUDA half cannot be compiled: {first}"))
}

/// Where the CUDA runtime's headers may be: beside libtorch as PyPI's packages lay them out, or in a toolkit.
fn toolkits(torch: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    // The folder may be reached through a link, and the packages lie beside where it is really.
    let real = torch.canonicalize().unwrap_or_else(|_| torch.to_owned());
    if let Some(packages) = real.parent() {
        let packages = packages.join("nvidia");
        let mut names: Vec<PathBuf> =
            packages.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        names.sort();
        folders.extend(names.into_iter().map(|package| package.join("include")));
    }
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    folders.extend(named.map(|folder| Path::new(&folder).join("include")));
    folders.push(PathBuf::from("/usr/local/cuda/include"));
    folders.push(PathBuf::from("/usr/include"));
    folders
}
