//! Finds the weight files of a directory, maps them and reads their headers, gathering everything wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path};

use memmap2::{Mmap, MmapOptions};
use serde::Deserialize;
use serde_json::Value;

use super::entries::Entries;
use super::error::{Problem, quote};
use super::header::{Header, read_header};
use super::side_file::read_json;
use super::weights::{MappedFile, Stored, WeightKind, Weights};
use super::{CheckpointError, listing};

/// The only file of an undivided checkpoint.
pub(super) const SINGLE_FILE: &str = "model.safetensors";

/// Says which shard holds which tensor.
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// What a directory's weight files hold.
pub(super) struct Scan {
    /// Where tensors are meant to be listed: [`SINGLE_FILE`] or [`INDEX_FILE`].
    pub root: &'static str,
    pub files: Vec<MappedFile>,
    /// `None` for a tensor that a file should hold but, for a reason already among the problems, cannot give.
    pub tensors: BTreeMap<String, Option<Stored>>,
    /// Nothing is known of the tensors of some file, so that absence proves nothing.
    pub incomplete: bool,
    pub problems: Vec<Problem>,
}

impl Scan {
    fn new(root: &'static str) -> Self {
        Self { root, files: Vec::new(), tensors: BTreeMap::new(), incomplete: false, problems: Vec::new() }
    }

    /// The tensors, once there is no problem.
    pub fn into_weights(self) -> Weights {
        let tensors = self.tensors.into_iter().filter_map(|(name, stored)| Some((name, stored?)));
        Weights { files: self.files, tensors: tensors.collect() }
    }

    /// Takes over the tensors of one mapped file and gives back their names; `None` where its header is unreadable.
    fn add(&mut self, name: &str, map: Mmap) -> Option<BTreeSet<String>> {
        let Header { entries, broken, unreadable, problems } = read_header(name, &map);
        self.problems.extend(problems);
        let file = self.files.len();
        let mut held = BTreeSet::new();
        for entry in entries {
            held.insert(entry.name.clone());
            if let Some(Some(first)) = self.tensors.get(&entry.name) {
                let other = self.files.get(first.file).map_or("another shard", |file| file.name.as_str());
                let found = format!("it in {} too", quote(other));
                self.problems.push(Problem::item(name, &entry.name, "each tensor in one shard only", found));
                continue;
            }
            let kind = WeightKind::from_name(&entry.dtype).ok_or(entry.dtype);
            let stored = Stored { file, kind, shape: entry.shape, bytes: entry.bytes };
            self.tensors.insert(entry.name, Some(stored));
        }
        for tensor in broken {
            self.tensors.entry(tensor.clone()).or_insert(None);
            held.insert(tensor);
        }
        self.files.push(MappedFile { name: name.to_owned(), map });
        (!unreadable).then_some(held)
    }
}

/// Maps all weight files of `dir`. As the reference's loader does, it prefers the single file where both kinds exist.
///
/// # Errors
/// Neither kind of checkpoint is there, or the index cannot be read. What is wrong in the weight files themselves is in
/// the result.
pub(super) fn scan(dir: &Path) -> Result<Scan, CheckpointError> {
    let (single, index) = (dir.join(SINGLE_FILE), dir.join(INDEX_FILE));
    match (single.exists(), index.exists()) {
        (true, both) => {
            if both {
                tracing::warn!("{}: using {SINGLE_FILE}, ignoring {INDEX_FILE} beside it", dir.display());
            }
            Ok(scan_single(dir))
        }
        (false, true) => Ok(scan_shards(dir, read_json(&index)?)),
        (false, false) => Err(CheckpointError::MissingFile { path: single, found: listing(dir) }),
    }
}

fn scan_single(dir: &Path) -> Scan {
    let mut scan = Scan::new(SINGLE_FILE);
    match map_file(&dir.join(SINGLE_FILE)) {
        Ok(map) => scan.incomplete = scan.add(SINGLE_FILE, map).is_none(),
        Err(error) => {
            scan.problems.push(Problem::file(SINGLE_FILE, "a readable file", error.to_string()));
            scan.incomplete = true;
        }
    }
    scan
}

#[derive(Deserialize)]
struct Index {
    weight_map: Entries<Value>,
}

fn scan_shards(dir: &Path, index: Index) -> Scan {
    let mut scan = Scan::new(INDEX_FILE);
    // Which tensors each shard is said to hold.
    let mut promised: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut seen: BTreeMap<String, Value> = BTreeMap::new();
    for (tensor, shard) in index.weight_map.0 {
        if let Some(first) = seen.insert(tensor.clone(), shard.clone()) {
            let found = format!("{first} and {shard}");
            scan.problems.push(Problem::item(INDEX_FILE, &tensor, "each tensor in one shard only", found));
            continue;
        }
        match shard.as_str().filter(|name| is_plain_shard_name(name)) {
            Some(name) => {
                promised.entry(name.to_owned()).or_default().insert(tensor);
            }
            None => {
                let expected = "the name of a .safetensors file inside the directory";
                scan.problems.push(Problem::item(INDEX_FILE, &tensor, expected, shard.to_string()));
                scan.tensors.insert(tensor, None);
            }
        }
    }
    for (shard, tensors) in promised {
        let held = match map_file(&dir.join(&shard)) {
            Ok(map) => scan.add(&shard, map),
            Err(error) => {
                scan.problems.push(unreadable_shard(&shard, &tensors, &error));
                None
            }
        };
        for tensor in tensors {
            if held.as_ref().is_some_and(|held| !held.contains(&tensor)) {
                let expected = format!("the tensor, which {INDEX_FILE} places here");
                scan.problems.push(Problem::item(&shard, &tensor, expected, "no such tensor in the shard"));
            }
            // Reported above or with its shard; the later comparison need not tell it again.
            scan.tensors.entry(tensor).or_insert(None);
        }
    }
    scan
}

fn unreadable_shard(shard: &str, tensors: &BTreeSet<String>, error: &io::Error) -> Problem {
    let expected = match tensors.first() {
        Some(first) => {
            format!("the shard that holds {} tensors, among them {}", tensors.len(), quote(first))
        }
        None => "the shard".to_owned(),
    };
    match error.kind() {
        io::ErrorKind::NotFound => Problem::file(shard, expected, "no such file")
            .with_advice("the download is incomplete: fetch the missing shard"),
        _ => Problem::file(shard, expected, error.to_string()),
    }
}

/// Whether an index may name this file: one path component, so that it cannot lead out of the directory.
fn is_plain_shard_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let single = matches!(components.next(), Some(Component::Normal(only)) if only == name);
    single
        && components.next().is_none()
        && name.ends_with(".safetensors")
        && !name.contains(['/', '\\', '\0'])
}

fn map_file(path: &Path) -> io::Result<Mmap> {
    // Asked before opening: opening a pipe would wait for its other end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let file = File::open(path)?;
    // SAFETY: the map is read-only and is only ever handed out as bytes, for which every content is valid. What cannot
    // be excluded is another process changing the file while it is mapped: rewriting it changes the weights under us,
    // and truncating it makes a read fault. Both break the checkpoint for any reader; a checkpoint is to be replaced by
    // renaming a new file over the old one, which leaves the mapped one untouched.
    unsafe { MmapOptions::new().map(&file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_cannot_lead_out_of_the_directory() {
        assert!(is_plain_shard_name("model-00001-of-00002.safetensors"));
        for escape in [
            "../model.safetensors",
            "/etc/model.safetensors",
            "sub/model.safetensors",
            "./model.safetensors",
            "model.safetensors/",
            "..\\model.safetensors",
            "model\0.safetensors",
            "..",
            "",
            "pytorch_model.bin",
        ] {
            assert!(!is_plain_shard_name(escape), "{escape:?}");
        }
    }
}
