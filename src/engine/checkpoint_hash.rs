//! The identity of a checkpoint: a hash over all of its weights, remembered so that it is computed once.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::error::EngineError;
use crate::atomic_file::write_atomically;

/// A file younger than this may still change without its time showing it: its hash is not remembered.
const SETTLED: Duration = Duration::from_secs(2);

/// Largest file of remembered hashes that is read.
const MAX_REMEMBERED_BYTES: u64 = 16 << 20;

/// Hashes checkpoints.
///
/// All bytes of the weights count, not a sample: two fine-tunings may differ in few of them. BLAKE3 over a memory map on all
/// cores takes a second or two for 6 GB in memory. The hash of each file is remembered by path, size, time of change and
/// inode, so that the next start takes none.
#[derive(Clone, Debug)]
pub struct CheckpointHasher {
    remembered: Option<PathBuf>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq)]
struct Remembered {
    size: u64,
    modified_ns: u128,
    inode: u64,
    device: u64,
    hash: String,
}

impl CheckpointHasher {
    /// Remembers hashes in the file `remembered`, if one is given.
    pub fn new(remembered: Option<PathBuf>) -> Self {
        Self { remembered }
    }

    /// `blake3:` and the hash of the model in `folder`: `config.json` and all `*.safetensors`, by name and content. Other
    /// files (processor, statistics, tokenizer) do not change an engine.
    ///
    /// # Errors
    /// [`EngineError::File`]; [`EngineError::Invalid`] if there are no weights. A file of remembered hashes that cannot be
    /// read or written costs time, not the result.
    pub fn hash(&self, folder: &Path) -> Result<String, EngineError> {
        let files = model_files(folder)?;
        let mut remembered = self.recall();
        let mut changed = false;
        let mut whole = blake3::Hasher::new();
        for (name, path) in files {
            let key = path.canonicalize().unwrap_or_else(|_| path.clone()).display().to_string();
            let state = state(&path)?;
            let hash = match remembered.get(&key) {
                Some(known) if known.same_file(&state) => known.hash.clone(),
                _ => {
                    let hash = hash_file(&path)?;
                    if state.settled() {
                        remembered.insert(key, Remembered { hash: hash.clone(), ..state });
                        changed = true;
                    }
                    hash
                }
            };
            // Lengths keep ("a", "bc") and ("ab", "c") apart.
            for part in [name.as_bytes(), hash.as_bytes()] {
                whole.update(&(part.len() as u64).to_le_bytes());
                whole.update(part);
            }
        }
        if changed {
            self.remember(&remembered);
        }
        Ok(format!("blake3:{}", whole.finalize().to_hex()))
    }

    fn recall(&self) -> BTreeMap<String, Remembered> {
        let Some(path) = &self.remembered else {
            return BTreeMap::new();
        };
        let small = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= MAX_REMEMBERED_BYTES);
        let bytes = if small { fs::read(path).unwrap_or_default() } else { Vec::new() };
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    fn remember(&self, hashes: &BTreeMap<String, Remembered>) {
        let Some(path) = &self.remembered else {
            return;
        };
        let made = path.parent().map_or(Ok(()), fs::create_dir_all);
        let written = made.and_then(|()| {
            let json = serde_json::to_vec_pretty(hashes).map_err(std::io::Error::other)?;
            write_atomically(path, &json)
        });
        if let Err(error) = written {
            tracing::warn!(
                "{}: hashes are not remembered, so the next start takes longer: {error}",
                path.display()
            );
        }
    }
}

impl Remembered {
    fn same_file(&self, other: &Self) -> bool {
        Self { hash: String::new(), ..self.clone() } == Self { hash: String::new(), ..other.clone() }
    }

    fn settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_nanos().saturating_sub(self.modified_ns) > SETTLED.as_nanos()
    }
}

fn model_files(folder: &Path) -> Result<BTreeMap<String, PathBuf>, EngineError> {
    let read = |source| EngineError::File {
        path: folder.to_path_buf(),
        action: "the checkpoint's folder cannot be read",
        source,
    };
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "config.json" || name.ends_with(".safetensors") {
            files.insert(name, entry.path());
        }
    }
    if !files.keys().any(|name| name.ends_with(".safetensors")) {
        return Err(EngineError::Invalid {
            what: format!("checkpoint {}", folder.display()),
            expected: "a folder with *.safetensors".to_owned(),
            found: "none".to_owned(),
        });
    }
    Ok(files)
}

fn state(path: &Path) -> Result<Remembered, EngineError> {
    let metadata = fs::metadata(path).map_err(EngineError::file(path, "cannot be read"))?;
    let modified = metadata.modified().map_err(EngineError::file(path, "has no time of change"))?;
    Ok(Remembered {
        size: metadata.len(),
        modified_ns: modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos(),
        inode: metadata.ino(),
        device: metadata.dev(),
        hash: String::new(),
    })
}

fn hash_file(path: &Path) -> Result<String, EngineError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap_rayon(path).map_err(EngineError::file(path, "cannot be read"))?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(weights: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("config.json"), b"{}").expect("written");
        fs::write(folder.path().join("model.safetensors"), weights).expect("written");
        folder
    }

    /// Makes a file look as if it had been there for a minute.
    fn age(path: &Path) {
        let file = fs::File::options().write(true).open(path).expect("opened");
        file.set_modified(SystemTime::now() - Duration::from_secs(60)).expect("aged");
    }

    #[test]
    fn one_bit_of_the_weights_changes_the_hash_and_the_place_does_not() {
        let mut weights = vec![7_u8; 300_000];
        let (a, b) = (checkpoint(&weights), checkpoint(&weights));
        let hasher = CheckpointHasher::new(None);
        let hash = hasher.hash(a.path()).expect("hashed");
        assert!(hash.starts_with("blake3:") && hash.len() == 7 + 64, "{hash}");
        assert_eq!(hash, hasher.hash(b.path()).expect("hashed"));
        weights[150_000] ^= 1;
        assert_ne!(hash, hasher.hash(checkpoint(&weights).path()).expect("hashed"));
    }

    #[test]
    fn side_files_that_no_engine_depends_on_do_not_count() {
        let folder = checkpoint(b"weights");
        let hasher = CheckpointHasher::new(None);
        let before = hasher.hash(folder.path()).expect("hashed");
        fs::write(folder.path().join("processor_config.json"), b"{}").expect("written");
        assert_eq!(before, hasher.hash(folder.path()).expect("hashed"));
        fs::write(folder.path().join("config.json"), b"{\"x\": 1}").expect("written");
        assert_ne!(before, hasher.hash(folder.path()).expect("hashed"));
    }

    #[test]
    fn a_remembered_hash_is_used_until_the_file_changes() {
        let folder = checkpoint(b"weights");
        let remembered = folder.path().join("hashes").join("checkpoints.json");
        for name in ["config.json", "model.safetensors"] {
            age(&folder.path().join(name));
        }
        let hasher = CheckpointHasher::new(Some(remembered.clone()));
        let first = hasher.hash(folder.path()).expect("hashed");
        // Proof that the second time reads it there: put a false hash in.
        let text = fs::read_to_string(&remembered).expect("remembered");
        let real = blake3::hash(b"weights").to_hex().to_string();
        assert!(text.contains(&real), "{text}");
        fs::write(&remembered, text.replace(&real, &"0".repeat(64))).expect("written");
        assert_ne!(hasher.hash(folder.path()).expect("recalled"), first);
        // Same size, other content, other time.
        fs::write(folder.path().join("model.safetensors"), b"weighty").expect("written");
        let changed = hasher.hash(folder.path()).expect("hashed");
        assert_eq!(changed, CheckpointHasher::new(None).hash(folder.path()).expect("hashed"));
    }

    #[test]
    fn a_file_that_was_just_written_is_not_remembered() {
        let folder = checkpoint(b"weights");
        let remembered = folder.path().join("checkpoints.json");
        CheckpointHasher::new(Some(remembered.clone())).hash(folder.path()).expect("hashed");
        assert!(!remembered.exists());
    }

    #[test]
    fn rubbish_among_the_remembered_hashes_costs_only_time() {
        let folder = checkpoint(b"weights");
        let remembered = folder.path().join("checkpoints.json");
        let expected = CheckpointHasher::new(None).hash(folder.path()).expect("hashed");
        for rubbish in [&b"{"[..], b"[1, 2]", b"\xff\xff", b"{\"a\": {\"size\": -1}}"] {
            fs::write(&remembered, rubbish).expect("written");
            assert_eq!(
                CheckpointHasher::new(Some(remembered.clone())).hash(folder.path()).expect("hashed"),
                expected
            );
        }
    }

    #[test]
    fn a_folder_without_weights_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = CheckpointHasher::new(None).hash(folder.path()).expect_err("no weights").to_string();
        assert!(error.contains("safetensors"), "{error}");
    }
}
