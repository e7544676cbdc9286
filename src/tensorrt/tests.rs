//! With real libraries, where they are: the whole TensorRT (`TENSORRT_LIB` or installed), and the lean runtime of the PyPI
//! package `tensorrt-lean-cu12-libs` (in `.venv`, or the folder `TENSORRT_LEAN_LIB`). No GPU is needed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::engine::Precision;

fn whole() -> Option<Arc<Library>> {
    match Library::load(&LoadOptions::from_env()) {
        Ok(library) => Some(library),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn lean_folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("TENSORRT_LEAN_LIB") {
        return Some(PathBuf::from(folder));
    }
    let entries = |folder: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(folder)
            .map(|all| all.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default()
    };
    let environment = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv").join("lib");
    entries(&environment)
        .iter()
        .flat_map(|python| entries(&python.join("site-packages")))
        .find(|package| package.file_name().is_some_and(|name| name == "tensorrt_lean_libs"))
}

fn lean() -> Option<Arc<Library>> {
    let Some(folder) = lean_folder() else {
        eprintln!("skipped: tensorrt-lean-cu12-libs is not installed");
        return None;
    };
    match Library::load(&LoadOptions { folder: Some(folder), lean: true }) {
        Ok(library) => Some(library),
        Err(error @ (TensorRtError::NoHeaders | TensorRtError::WrongMajor { .. })) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_lean_runtime_loads_and_says_its_version() {
    let Some(library) = lean() else {
        return;
    };
    assert!(library.version().at_least(10, 0), "{}", library.version());
    assert_eq!(library.version().major, library.header_version().major);
}

#[test]
fn the_lean_runtime_says_that_it_builds_nothing() {
    let Some(library) = lean() else {
        return;
    };
    let Err(error) = Builder::start(&library, None, Precision::StronglyTyped) else {
        panic!("the lean runtime made a builder");
    };
    assert!(error.to_string().contains("lean runtime"), "{error}");
}

#[test]
fn a_runtime_without_a_gpu_fails_with_tensorrts_own_words() {
    // The whole runtime of 8.6 reads through a null pointer when CUDA cannot start, so only the lean one is asked.
    let Some(library) = lean() else {
        return;
    };
    if Device::new(0).is_ok() {
        eprintln!("skipped: this machine has a GPU");
        return;
    }
    let Err(error) = Runtime::start(&library, None) else {
        panic!("TensorRT made a runtime without a GPU");
    };
    assert!(matches!(error, TensorRtError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("TensorRT wrote:"), "{error}");
}

#[test]
fn a_builder_without_a_gpu_fails_with_tensorrts_own_words() {
    let Some(library) = whole() else {
        return;
    };
    if Device::new(0).is_ok() {
        eprintln!("skipped: this machine has a GPU");
        return;
    }
    let Err(error) = Builder::start(&library, None, Precision::Fp32) else {
        panic!("TensorRT made a builder without a GPU");
    };
    let text = error.to_string();
    assert!(text.contains("TensorRT wrote:") && text.contains("CUDA"), "{text}");
}

#[test]
fn precisions_that_the_version_does_not_have_are_refused_before_anything_is_built() {
    let Some(library) = whole() else {
        return;
    };
    let lacking: &[Precision] = match library.version().major {
        8 => &[Precision::Bf16, Precision::StronglyTyped],
        11 => &[Precision::Fp16, Precision::Bf16, Precision::Int8],
        _ => &[],
    };
    for &precision in lacking {
        match Builder::start(&library, None, precision) {
            Err(error @ TensorRtError::Unsupported { .. }) => {
                assert!(error.to_string().contains(&library.version().to_string()), "{error}");
            }
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("{precision} was accepted"),
        }
    }
}

#[test]
fn the_library_is_loaded_once() {
    let (Some(first), Some(second)) = (whole(), whole()) else {
        return;
    };
    assert!(Arc::ptr_eq(&first, &second));
}

#[test]
fn the_onnx_parser_loads_or_says_what_it_lacks() {
    let Some(library) = whole() else {
        return;
    };
    match library.create_parser() {
        Ok(_) => {}
        Err(error @ TensorRtError::ParserMissing { .. }) => {
            eprintln!("skipped in part: {error}");
            assert!(error.to_string().contains("libnvonnxparser"), "{error}");
        }
        Err(error) => panic!("{error}"),
    }
}
