//! Lets the binaries find libtorch where they were linked against it, so that nobody has to set LD_LIBRARY_PATH, and
//! compiles the shims over libtorch's CUDA half and over TensorRT's C++ interfaces.

#[cfg(feature = "tensorrt")]
#[path = "src/tensorrt/shim/headers.rs"]
mod headers;

#[cfg(feature = "torch")]
#[path = "src/model/cuda/shim/compile.rs"]
mod torch_cuda;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // torch-sys publishes the library folder it used (`links = "tch"`).
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
    println!("cargo:rustc-check-cfg=cfg(tensorrt_headers, values(\"8\", \"10\", \"11\"))");
    println!("cargo:rustc-check-cfg=cfg(torch_cuda_headers)");
    #[cfg(feature = "torch")]
    match torch_cuda::compile() {
        Ok(()) => println!("cargo:rustc-cfg=torch_cuda_headers"),
        Err(reason) => println!("cargo:warning=the program is built without CUDA graphs: {reason}"),
    }
    #[cfg(feature = "tensorrt")]
    compile_tensorrt_shim();
}

/// Compiles the shim once for each major version whose headers are here, so that one binary serves them all.
#[cfg(feature = "tensorrt")]
fn compile_tensorrt_shim() {
    const SUPPORTED: [u32; 3] = [8, 10, 11];
    println!("cargo:rerun-if-env-changed=TENSORRT_INCLUDE");
    for file in ["shim.cpp", "shim.h", "headers.rs", "cuda/cuda_runtime_api.h"] {
        println!("cargo:rerun-if-changed=src/tensorrt/shim/{file}");
    }
    let mut compiled = Vec::new();
    for headers in headers::find() {
        let (major, minor, patch) = headers.version;
        if !SUPPORTED.contains(&major) || compiled.contains(&major) || (major == 8 && minor < 5) {
            continue;
        }
        println!("cargo:rerun-if-changed={}", headers.folder.join("NvInferVersion.h").display());
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .file("src/tensorrt/shim/shim.cpp")
            // `-isystem`: warnings of NVIDIA's headers are not ours to mend.
            .flag("-isystem")
            .flag(headers.folder.as_os_str())
            .flag("-isystem")
            .flag("src/tensorrt/shim/cuda")
            .flag("-Wno-deprecated-declarations")
            .flag("-fvisibility=hidden")
            .compile(&format!("groot_tensorrt_{major}"));
        println!("cargo:rustc-cfg=tensorrt_headers=\"{major}\"");
        println!("cargo:rustc-env=GROOT_TENSORRT_HEADERS_{major}={major}.{minor}.{patch}");
        compiled.push(major);
    }
    if compiled.is_empty() {
        println!(
            "cargo:warning=no TensorRT headers were found: the program is built, but TensorRT engines cannot be built \
             or run with it. Install libnvinfer-dev and libnvonnxparsers-dev, or name the folder of the headers in \
             TENSORRT_INCLUDE, or unpack those of the newest version with `cargo info {}`.",
            headers::HEADER_CRATE
        );
    }
}
