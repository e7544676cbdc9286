//! A folder of engines: each a record (`NAME.json`) and the plan that it names (`NAME.HASH.engine`).
//!
//! The plan's name holds the beginning of its hash, so a new plan never overwrites the one that an older record speaks of:
//! the record is replaced last, in one step, and with it the engine. A process killed at any point leaves the old engine or
//! the new one.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::error::EngineError;
use super::rebuild::RebuildCommand;
use super::record::{Differences, EngineNeeds, EngineRecord, PlanRecord, RECORD_FORMAT};
use crate::atomic_file::write_atomically;

/// Largest record that is read. A real one takes some 4 kB.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// Age from which a file that no record speaks of is taken for left behind.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);

/// Most records of a folder that are read to find the one that comes nearest.
const MAX_RECORDS: usize = 256;

/// Hexadecimal digits of the hash in a plan's name.
const DIGITS_IN_NAME: usize = 12;

/// A folder of engines.
#[derive(Clone, Debug)]
pub struct EngineStore {
    folder: PathBuf,
}

/// The bytes of an engine that was checked, mapped from its file.
pub struct StoredPlan {
    map: Mmap,
    path: PathBuf,
    /// What the engine was built from and for.
    pub record: EngineRecord,
    /// Differences that do not forbid its use.
    pub differences: Differences,
}

impl std::ops::Deref for StoredPlan {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl std::fmt::Debug for StoredPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredPlan")
            .field("path", &self.path)
            .field("bytes", &self.map.len())
            .finish_non_exhaustive()
    }
}

impl StoredPlan {
    /// The plan's file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl EngineStore {
    /// The engines in `folder`, which is made when the first is saved.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the record of an engine for these needs lies: one file for each checkpoint, embodiment, graph, precision, GPU
    /// and version of TensorRT, so that several robots may share a folder.
    pub fn record_path(&self, needs: &EngineNeeds) -> PathBuf {
        let hash = needs.checkpoint_hash.rsplit(':').next().unwrap_or_default();
        let checkpoint: String =
            hash.chars().filter(char::is_ascii_alphanumeric).take(DIGITS_IN_NAME).collect();
        // Folded into the graph, where there is one: robots of different embodiments may share a checkpoint.
        let embodiment = needs.graph.parameters.get("embodiment");
        let embodiment = embodiment.map_or_else(String::new, |index| format!("-e{index}"));
        self.folder.join(format!(
            "{}-{}-{checkpoint}{embodiment}-sm{}{}-trt{}.json",
            needs.graph.kind,
            needs.precision,
            needs.gpu.compute_capability.major,
            needs.gpu.compute_capability.minor,
            needs.tensorrt,
        ))
    }

    /// Writes an engine. `record.plan` is filled in here. Returns the record's path.
    ///
    /// # Errors
    /// [`EngineError::File`]; the engine that was there before stays.
    pub fn save(
        &self,
        needs: &EngineNeeds,
        record: &EngineRecord,
        plan: &[u8],
    ) -> Result<PathBuf, EngineError> {
        let path = self.record_path(needs);
        self.save_as(&path, record, plan)?;
        Ok(path)
    }

    fn save_as(&self, path: &Path, record: &EngineRecord, plan: &[u8]) -> Result<(), EngineError> {
        fs::create_dir_all(&self.folder)
            .map_err(EngineError::file(&self.folder, "the folder cannot be made"))?;
        let before = read_record(path).ok().map(|record| record.plan.file);
        let sha256 = sha256(plan);
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let file = format!("{stem}.{}.engine", &sha256[..DIGITS_IN_NAME]);
        let plan_path = self.folder.join(&file);
        write_atomically(&plan_path, plan)
            .map_err(EngineError::file(&plan_path, "the engine cannot be written"))?;
        let record = EngineRecord {
            plan: PlanRecord { file: file.clone(), bytes: plan.len() as u64, sha256 },
            ..record.clone()
        };
        write_record(path, &record)?;
        if let Some(old) = before.filter(|old| *old != file && is_file_name(old)) {
            // It takes gigabytes and nothing speaks of it any more.
            let _ = fs::remove_file(self.folder.join(old));
        }
        self.sweep(&stem, &file);
        Ok(())
    }

    /// Removes what writers that were killed left of this engine. Fresh files may be those of a writer at work.
    fn sweep(&self, stem: &str, keep: &str) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let left = name != keep
                && (name.starts_with(&format!("{stem}.")) && name.ends_with(".engine")
                    || name.starts_with(&format!(".{stem}.")) && name.ends_with(".partial"));
            let age = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .ok()
                .and_then(|at| at.elapsed().ok());
            if left && age.is_some_and(|age| age > LEFT_BEHIND) {
                tracing::info!("{name}: left by a build that was interrupted; removed");
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Replaces the record of an engine, for instance with its accuracy and latency, once they are measured.
    ///
    /// # Errors
    /// [`EngineError::File`].
    pub fn update(&self, needs: &EngineNeeds, record: &EngineRecord) -> Result<(), EngineError> {
        write_record(&self.record_path(needs), record)
    }

    /// The engine for these needs, if it is there, fits, and is the very one that was built. Where there is none for the loaded
    /// TensorRT, one of the same folder will do that was built to be run by later versions.
    ///
    /// # Errors
    /// [`EngineError::Missing`], [`EngineError::Unreadable`], [`EngineError::Mismatch`], [`EngineError::Damaged`]; each names
    /// the command that builds the engine anew.
    pub fn load(&self, needs: &EngineNeeds) -> Result<StoredPlan, EngineError> {
        let path = match self.load_from(&self.record_path(needs), needs) {
            Err(EngineError::Missing { path, .. }) => path,
            result => return result,
        };
        match self.nearest(needs) {
            Some((other, _, differences)) if differences.fatal.is_empty() => self.load_from(&other, needs),
            Some((other, record, differences)) => {
                // Options are taken over where only what they were chosen for is another.
                let graph = |field: &str| field.starts_with("graph") || field.starts_with("model_config");
                let same = !differences.fatal.iter().any(|difference| graph(&difference.field));
                let rebuild = RebuildCommand::new(needs, &self.folder, same.then_some(&record));
                Err(EngineError::Missing { path, nearest: Some(Box::new((other, differences))), rebuild })
            }
            None => {
                let rebuild = RebuildCommand::new(needs, &self.folder, None);
                Err(EngineError::Missing { path, nearest: None, rebuild })
            }
        }
    }

    /// The engine of the folder for the same kind of graph that differs in the fewest fields, the newest of them.
    fn nearest(&self, needs: &EngineNeeds) -> Option<(PathBuf, EngineRecord, Differences)> {
        let entries = fs::read_dir(&self.folder).ok()?.flatten().map(|entry| entry.path());
        let named = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(needs.graph.kind.as_str()) && name.ends_with(".json")
        };
        entries
            .filter(named)
            .take(MAX_RECORDS)
            .filter_map(|path| {
                let record = read_record(&path).ok()?;
                let differences = record.compare(needs);
                Some((path, record, differences))
            })
            .min_by_key(|(_, record, differences)| {
                (differences.fatal.len(), std::cmp::Reverse(record.built_at))
            })
    }

    /// As [`load`](Self::load), with the record at `path`: an engine that somebody named. Its plan lies beside it.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_from(&self, path: &Path, needs: &EngineNeeds) -> Result<StoredPlan, EngineError> {
        let before = modified(path);
        match self.load_once(path, needs) {
            // Another process has put a new engine in its place meanwhile.
            Err(EngineError::Damaged { .. }) if modified(path) != before => self.load_once(path, needs),
            result => result,
        }
    }

    fn load_once(&self, path: &Path, needs: &EngineNeeds) -> Result<StoredPlan, EngineError> {
        let folder = path.parent().unwrap_or(&self.folder);
        if !path.exists() {
            let rebuild = RebuildCommand::new(needs, folder, None);
            return Err(EngineError::Missing { path: path.to_path_buf(), nearest: None, rebuild });
        }
        let record = match read_record(path) {
            Ok(record) => record,
            Err(RecordProblem::File(source)) => {
                return Err(EngineError::file(path, "cannot be read")(source));
            }
            Err(RecordProblem::Content(problem)) => {
                let rebuild = RebuildCommand::new(needs, folder, None);
                return Err(EngineError::Unreadable { path: path.to_path_buf(), problem, rebuild });
            }
        };
        let rebuild = || RebuildCommand::new(needs, folder, Some(&record));
        let differences = record.compare(needs);
        if !differences.fatal.is_empty() {
            return Err(EngineError::Mismatch { path: path.to_path_buf(), differences, rebuild: rebuild() });
        }
        for difference in &differences.minor {
            tracing::warn!(
                "{}: {difference}; the engine runs, but may be slower than one built here",
                path.display()
            );
        }
        let plan_path = folder.join(&record.plan.file);
        let damaged = |expected: String, found: String| EngineError::Damaged {
            path: plan_path.clone(),
            expected,
            found,
            rebuild: rebuild(),
        };
        let file = match File::open(&plan_path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(damaged("the engine's file".to_owned(), error.to_string()));
            }
            Err(error) => return Err(EngineError::file(&plan_path, "cannot be read")(error)),
        };
        let size = file.metadata().map_err(EngineError::file(&plan_path, "cannot be read"))?.len();
        if size != record.plan.bytes {
            return Err(damaged(format!("{} bytes", record.plan.bytes), format!("{size} bytes")));
        }
        // SAFETY: files of engines are written once and replaced by rename, never changed in place; a file that is cut
        // short while it is mapped ends the process, as it would in any program that maps it.
        let map = unsafe { Mmap::map(&file) }.map_err(EngineError::file(&plan_path, "cannot be mapped"))?;
        let found = sha256(&map);
        if found != record.plan.sha256 {
            return Err(damaged(format!("SHA-256 {}", record.plan.sha256), found));
        }
        Ok(StoredPlan { map, path: plan_path, record, differences })
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// SHA-256 as `sha256sum` prints it.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_record(path: &Path, record: &EngineRecord) -> Result<(), EngineError> {
    let json = serde_json::to_vec_pretty(record).map_err(|error| EngineError::Invalid {
        what: "record of the engine".to_owned(),
        expected: "values that JSON can hold".to_owned(),
        found: error.to_string(),
    })?;
    write_atomically(path, &json).map_err(EngineError::file(path, "the record cannot be written"))
}

/// Why there is no record.
enum RecordProblem {
    /// The system gives no bytes: building anew would not help.
    File(std::io::Error),
    /// They are no record.
    Content(String),
}

fn read_record(path: &Path) -> Result<EngineRecord, RecordProblem> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_RECORD_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(RecordProblem::File)?;
    parse_record(&bytes).map_err(RecordProblem::Content)
}

fn parse_record(bytes: &[u8]) -> Result<EngineRecord, String> {
    if bytes.len() as u64 > MAX_RECORD_BYTES {
        return Err(format!("expected at most {MAX_RECORD_BYTES} bytes of JSON, found more"));
    }
    // The version first: a newer file may have other fields.
    #[derive(serde::Deserialize)]
    struct Format {
        format: u32,
    }
    let Format { format } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if format != RECORD_FORMAT {
        return Err(format!(
            "expected format {RECORD_FORMAT}, found {format}: another version of this program wrote it"
        ));
    }
    let record: EngineRecord = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if !is_file_name(&record.plan.file) {
        return Err(format!(
            "expected the name of a file beside it as plan.file, found {:?}",
            record.plan.file
        ));
    }
    Ok(record)
}

/// Whether `name` is a plain name: a record must not lead to files elsewhere.
fn is_file_name(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|last| last == name) && !name.contains('\0')
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
