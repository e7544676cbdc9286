//! Which TensorRT headers are on this machine. Used by the build script, and by the test that compiles the shim against
//! every set of them; it knows nothing but the standard library.

use std::path::{Path, PathBuf};

/// The crate whose package carries TensorRT's newest headers. It is no dependency (building it needs libclang):
/// `cargo info` unpacks its sources, and they are found in Cargo's registry folder.
pub const HEADER_CRATE: &str = "trtx-sys";

/// A folder with TensorRT's headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    pub folder: PathBuf,
    /// Major, minor, patch.
    pub version: (u32, u32, u32),
}

/// All sets of headers, the wanted first: those named in `TENSORRT_INCLUDE` (folders separated as in `PATH`), the
/// system's, those of [`HEADER_CRATE`].
pub fn find() -> Vec<Headers> {
    let mut folders: Vec<PathBuf> = Vec::new();
    if let Some(named) = std::env::var_os("TENSORRT_INCLUDE") {
        folders.extend(std::env::split_paths(&named));
    }
    folders.extend(
        [
            "/usr/include/aarch64-linux-gnu",
            "/usr/include/x86_64-linux-gnu",
            "/usr/include",
            "/usr/local/tensorrt/include",
            "/usr/local/TensorRT/include",
            "/usr/local/cuda/include",
            "/opt/tensorrt/include",
        ]
        .map(PathBuf::from),
    );
    folders.extend(unpacked_by_cargo());
    let mut found: Vec<Headers> = Vec::new();
    for folder in folders {
        if let Some(headers) = read(&folder)
            && !found.contains(&headers)
        {
            found.push(headers);
        }
    }
    found
}

/// The headers in `folder`, if all that the shim includes are there.
pub fn read(folder: &Path) -> Option<Headers> {
    for file in ["NvInfer.h", "NvOnnxParser.h"] {
        if !folder.join(file).is_file() {
            return None;
        }
    }
    let text = std::fs::read_to_string(folder.join("NvInferVersion.h")).ok()?;
    // Newer headers define NV_TENSORRT_MAJOR through TRT_MAJOR_ENTERPRISE.
    let number = |part: &str| {
        defined(&text, &format!("NV_TENSORRT_{part}"))
            .or_else(|| defined(&text, &format!("TRT_{part}_ENTERPRISE")))
    };
    Some(Headers {
        folder: folder.to_path_buf(),
        version: (number("MAJOR")?, number("MINOR")?, number("PATCH")?),
    })
}

fn defined(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("#define") && words.next() == Some(name))
            .then(|| words.next()?.parse().ok())
            .flatten()
    })
}

/// Cargo unpacks packages under `registry/src/<registry>/<name>-<version>` of its home folder.
fn unpacked_by_cargo() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let Some(home) = home else {
        return Vec::new();
    };
    let mut folders = Vec::new();
    for registry in entries(&home.join("registry").join("src")) {
        for package in entries(&registry) {
            let is_it = package
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.strip_prefix(HEADER_CRATE))
                .is_some_and(|rest| rest.starts_with('-'));
            if is_it {
                // Beside them lie those of another product, TensorRT-RTX.
                let sets = entries(&package.join("TensorRT-Headers"));
                folders.extend(sets.into_iter().filter(|set| {
                    set.file_name()
                        .and_then(|name| name.to_str())
                        .is_some_and(|name| name.starts_with("TRT-Enterprise-"))
                }));
            }
        }
    }
    folders
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    // The newest version last in the alphabet first, and the same order on every machine.
    found.sort_by(|a, b| b.cmp(a));
    found
}
