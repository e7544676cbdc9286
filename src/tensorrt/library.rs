//! TensorRT's libraries, found and loaded when they are first wanted.

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libloading::Library as Shared;

use super::error::TensorRtError;
use super::ffi;
use super::log;
use super::version::Version;

/// Major versions that might be met; only for messages.
const PROBED: std::ops::RangeInclusive<i32> = 5..=15;

/// Where TensorRT is looked for, and which of its runtimes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LoadOptions {
    /// Folder with the libraries. Without it the system's loader looks (LD_LIBRARY_PATH, ld.so.conf).
    pub folder: Option<PathBuf>,
    /// The lean runtime instead of the whole: it runs engines that were built `version_compatible`, and builds none.
    pub lean: bool,
}

impl LoadOptions {
    /// The folder from the environment variable `TENSORRT_LIB`, if it is set and not empty.
    pub fn from_env() -> Self {
        let folder = std::env::var_os("TENSORRT_LIB").filter(|folder| !folder.is_empty()).map(PathBuf::from);
        Self { folder, lean: false }
    }
}

/// TensorRT, loaded. It stays in the process until the end: its libraries do not take being unloaded.
///
/// Send and Sync: TensorRT's entry points may be called from any thread.
pub struct Library {
    pub(super) table: &'static ffi::Table,
    pub(super) logger: NonNull<ffi::Logger>,
    create_runtime: NonNull<c_void>,
    /// None in the lean runtime.
    create_builder: Option<NonNull<c_void>>,
    parser: OnceLock<Result<NonNull<c_void>, String>>,
    version: Version,
    path: PathBuf,
    folder: Option<PathBuf>,
}

// SAFETY: the table is constant, the logger is made for calls from any thread (it locks), and the rest are addresses of
// functions.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library")
            .field("version", &self.version)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Library {
    /// Loads TensorRT, or hands out what was loaded before with the same options.
    ///
    /// Of several versions on the machine, the newest is taken whose headers this program was built with.
    ///
    /// # Errors
    /// [`TensorRtError::NoHeaders`], [`LibraryMissing`](TensorRtError::LibraryMissing),
    /// [`WrongMajor`](TensorRtError::WrongMajor), [`TooOld`](TensorRtError::TooOld) or
    /// [`EntryPoint`](TensorRtError::EntryPoint).
    pub fn load(options: &LoadOptions) -> Result<Arc<Self>, TensorRtError> {
        static LOADED: Mutex<Option<HashMap<LoadOptions, Arc<Library>>>> = Mutex::new(None);
        // Nothing that holds the lock leaves it half done.
        let mut guard = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = guard.get_or_insert_with(HashMap::new);
        if let Some(library) = loaded.get(options) {
            return Ok(Arc::clone(library));
        }
        let library = Arc::new(Self::find(options)?);
        tracing::info!(
            "TensorRT {} ({}), with the shim for {}",
            library.version,
            library.path.display(),
            version_of(library.table)
        );
        loaded.insert(options.clone(), Arc::clone(&library));
        Ok(library)
    }

    fn find(options: &LoadOptions) -> Result<Self, TensorRtError> {
        let tables = ffi::tables();
        if tables.is_empty() {
            return Err(TensorRtError::NoHeaders);
        }
        let mut problems = Vec::new();
        let mut wanted = Vec::new();
        for table in &tables {
            let path = candidate(options, Some(table.header_major));
            wanted.push(path.display().to_string());
            match open(&path) {
                Ok(shared) => return Self::from_shared(shared, path, options, &tables),
                Err(problem) => problems.push(problem),
            }
        }
        // Another version is worth more words than none.
        let others = PROBED.rev().map(|major| candidate(options, Some(major)));
        for path in others.chain([candidate(options, None)]) {
            if let Ok(shared) = open(&path) {
                return Self::from_shared(shared, path, options, &tables);
            }
        }
        Err(TensorRtError::LibraryMissing { wanted: wanted.join(" or "), problem: problems.join("; ") })
    }

    fn from_shared(
        shared: Shared,
        path: PathBuf,
        options: &LoadOptions,
        tables: &[&'static ffi::Table],
    ) -> Result<Self, TensorRtError> {
        let number = symbol(&shared, &path, "getInferLibVersion")?;
        // SAFETY: TensorRT declares it `int32_t getInferLibVersion() noexcept` in all versions.
        let number = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> i32>(number.as_ptr()) }();
        let version = Version::from_library(number);
        let table = table_for(version, &path, tables)?;
        let create_runtime = symbol(&shared, &path, "createInferRuntime_INTERNAL")?;
        let create_builder =
            if options.lean { None } else { Some(symbol(&shared, &path, "createInferBuilder_INTERNAL")?) };
        // SAFETY: the callback takes no user data, so any address will do.
        let logger = unsafe { (table.logger_create)(log::callback, std::ptr::null_mut()) };
        let logger = NonNull::new(logger).ok_or_else(|| TensorRtError::Refused {
            action: "making TensorRT's logger".to_owned(),
            log: log::LogLines::default(),
        })?;
        std::mem::forget(shared);
        Ok(Self {
            table,
            logger,
            create_runtime,
            create_builder,
            parser: OnceLock::new(),
            version,
            path,
            folder: options.folder.clone(),
        })
    }

    /// The version that the library says it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The version of the headers that the shim in use was compiled with.
    pub fn header_version(&self) -> Version {
        version_of(self.table)
    }

    /// The file that was loaded: a bare name if the system's loader found it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both the library and the headers that the shim was compiled with are of this version or newer.
    pub(super) fn has(&self, major: u32, minor: u32) -> bool {
        self.version.at_least(major, minor) && self.header_version().at_least(major, minor)
    }

    pub(super) fn create_runtime(&self) -> *mut c_void {
        self.create_runtime.as_ptr()
    }

    pub(super) fn create_builder(&self) -> Result<*mut c_void, TensorRtError> {
        self.create_builder.map(NonNull::as_ptr).ok_or(TensorRtError::Unsupported {
            version: self.version,
            what: "building an engine with the lean runtime".to_owned(),
            advice: "Load the whole TensorRT",
        })
    }

    /// The ONNX parser's entry point. Its library is loaded at the first call: running engines does not need it.
    pub(super) fn create_parser(&self) -> Result<*mut c_void, TensorRtError> {
        let loaded = self.parser.get_or_init(|| {
            let in_folder = |name: String| match &self.folder {
                Some(folder) => folder.join(name),
                None => PathBuf::from(name),
            };
            let path = in_folder(format!("libnvonnxparser.so.{}", self.version.major));
            let shared = open(&path)?;
            let entry =
                symbol(&shared, &path, "createNvOnnxParser_INTERNAL").map_err(|error| error.to_string())?;
            std::mem::forget(shared);
            Ok(entry)
        });
        match loaded {
            Ok(entry) => Ok(entry.as_ptr()),
            Err(problem) => {
                Err(TensorRtError::ParserMissing { version: self.version, problem: problem.clone() })
            }
        }
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // Only reached when loading fails half-way or at the end of the process: `load` keeps every library.
        // SAFETY: the logger came from the same table, and all that used it held this library.
        unsafe { (self.table.logger_destroy)(self.logger.as_ptr()) };
    }
}

fn version_of(table: &ffi::Table) -> Version {
    Version {
        major: table.header_major.unsigned_abs(),
        minor: table.header_minor.unsigned_abs(),
        patch: table.header_patch.unsigned_abs(),
    }
}

/// The shim for a library, if there is one.
fn table_for(
    found: Version,
    path: &Path,
    tables: &[&'static ffi::Table],
) -> Result<&'static ffi::Table, TensorRtError> {
    let Some(table) = tables.iter().find(|table| table.header_major.unsigned_abs() == found.major) else {
        let compiled: Vec<String> = tables.iter().map(|table| version_of(table).to_string()).collect();
        return Err(TensorRtError::WrongMajor {
            path: path.to_path_buf(),
            found,
            compiled: compiled.join(" and "),
        });
    };
    // What the shim calls without asking for the version was there from these on.
    let (minor, least) = match found.major {
        8 => (5, "8.5"),
        10 => (1, "10.1"),
        _ => (0, "11.0"),
    };
    if !found.at_least(found.major, minor) {
        return Err(TensorRtError::TooOld { path: path.to_path_buf(), found, least });
    }
    Ok(table)
}

fn candidate(options: &LoadOptions, major: Option<i32>) -> PathBuf {
    let stem = if options.lean { "libnvinfer_lean.so" } else { "libnvinfer.so" };
    let name = match major {
        Some(major) => format!("{stem}.{major}"),
        None => stem.to_owned(),
    };
    match &options.folder {
        Some(folder) => folder.join(name),
        None => PathBuf::from(name),
    }
}

fn open(path: &Path) -> Result<Shared, String> {
    // SAFETY: the initialisers of NVIDIA's libraries are trusted as much as the libraries themselves.
    unsafe { Shared::new(path) }.map_err(|error| error.to_string())
}

fn symbol(shared: &Shared, path: &Path, name: &'static str) -> Result<NonNull<c_void>, TensorRtError> {
    let missing =
        |problem: String| TensorRtError::EntryPoint { path: path.to_path_buf(), symbol: name, problem };
    // SAFETY: only the address is taken here; who calls it states its signature.
    let found =
        unsafe { shared.get::<*mut c_void>(name.as_bytes()) }.map_err(|error| missing(error.to_string()))?;
    NonNull::new(*found).ok_or_else(|| missing("its address is null".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_tensorrt_is_reported_with_what_was_expected_and_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let options = LoadOptions { folder: Some(folder.path().to_path_buf()), lean: false };
        match Library::load(&options) {
            Err(TensorRtError::NoHeaders) => eprintln!("skipped in part: built without TensorRT headers"),
            Err(error @ TensorRtError::LibraryMissing { .. }) => {
                let text = error.to_string();
                assert!(text.contains("libnvinfer.so."), "{text}");
                assert!(text.contains("TENSORRT_LIB"), "{text}");
                assert!(text.contains(&folder.path().display().to_string()), "{text}");
            }
            other => panic!("expected an error, found {other:?}"),
        }
    }

    #[test]
    fn a_library_of_another_major_version_is_refused_with_both_versions_named() {
        let tables = ffi::tables();
        let found = Version { major: 7, minor: 2, patch: 3 };
        let error =
            table_for(found, Path::new("libnvinfer.so.7"), &tables).err().expect("an error").to_string();
        assert!(error.contains("7.2.3"), "{error}");
        for table in tables {
            assert!(error.contains(&version_of(table).to_string()), "{error}");
        }
    }

    #[test]
    fn a_version_too_old_for_its_major_is_refused() {
        for table in ffi::tables() {
            let (found, least) = match table.header_major {
                8 => (Version { major: 8, minor: 4, patch: 3 }, "8.5"),
                10 => (Version { major: 10, minor: 0, patch: 1 }, "10.1"),
                _ => continue,
            };
            let error =
                table_for(found, Path::new("libnvinfer.so"), &[table]).err().expect("an error").to_string();
            assert!(error.contains(least), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_reported_and_not_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        for table in ffi::tables() {
            let name = format!("libnvinfer.so.{}", table.header_major);
            std::fs::write(folder.path().join(name), b"not an ELF file").expect("written");
        }
        let options = LoadOptions { folder: Some(folder.path().to_path_buf()), lean: false };
        let error = Library::load(&options).expect_err("no library");
        assert!(matches!(error, TensorRtError::LibraryMissing { .. } | TensorRtError::NoHeaders), "{error}");
    }
}
