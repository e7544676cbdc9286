//! The shim over TensorRT compiles, without a warning of its own, against every set of headers on the machine.
//!
//! A build takes one set of each major version; `TENSORRT_INCLUDE` may name more.

#[path = "../src/tensorrt/shim/headers.rs"]
mod headers;

use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_shim_compiles_against_every_set_of_headers() {
    let all: Vec<_> = headers::find()
        .into_iter()
        .filter(|headers| matches!(headers.version, (8, 5.., _) | (10 | 11, ..)))
        .collect();
    if all.is_empty() {
        eprintln!(
            "skipped: no TensorRT headers (`cargo info {}` brings those of the newest)",
            headers::HEADER_CRATE
        );
        return;
    }
    let shim = root().join("src/tensorrt/shim");
    for headers in all {
        let output = Command::new(std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned()))
            .args([
                "-std=c++17",
                "-fsyntax-only",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-Wno-deprecated-declarations",
            ])
            .arg("-isystem")
            .arg(&headers.folder)
            .arg("-isystem")
            .arg(shim.join("cuda"))
            .arg(shim.join("shim.cpp"))
            .output()
            .expect("a C++ compiler, as the build has one");
        assert!(
            output.status.success(),
            "{:?} in {}:\n{}",
            headers.version,
            headers.folder.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        eprintln!("compiles against {:?}", headers.version);
    }
}

#[test]
fn a_folder_with_only_some_of_the_headers_is_no_set() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(headers::read(folder.path()), None);
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    write("NvInfer.h", "");
    write(
        "NvInferVersion.h",
        "#define NV_TENSORRT_MAJOR 8\n#define NV_TENSORRT_MINOR 6\n#define NV_TENSORRT_PATCH 1\n",
    );
    assert_eq!(headers::read(folder.path()), None);
    write("NvOnnxParser.h", "");
    assert_eq!(headers::read(folder.path()).expect("a set").version, (8, 6, 1));
    write("NvInferVersion.h", "#define NV_TENSORRT_MAJOR eight\n");
    assert_eq!(headers::read(folder.path()), None);
}

#[test]
fn versions_defined_through_other_names_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    write("NvInfer.h", "");
    write("NvOnnxParser.h", "");
    write(
        "NvInferVersion.h",
        "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 4\n#define TRT_PATCH_ENTERPRISE 0\n\
         #define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major\n\
         #define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE\n#define NV_TENSORRT_PATCH TRT_PATCH_ENTERPRISE\n",
    );
    assert_eq!(headers::read(folder.path()).expect("a set").version, (11, 4, 0));
}
