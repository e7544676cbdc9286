//! The tensors of a checkpoint, memory-mapped.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use super::error::Problems;
use super::scan::scan;
use super::{CheckpointError, shape_text};

/// Element type of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightKind {
    Bf16,
    F16,
    F32,
}

impl WeightKind {
    /// The type with this name in a safetensors header.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "BF16" => Some(Self::Bf16),
            "F16" => Some(Self::F16),
            "F32" => Some(Self::F32),
            _ => None,
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// One tensor, in the mapped file.
#[derive(Clone, Copy, PartialEq)]
pub struct TensorView<'a> {
    pub kind: WeightKind,
    /// Row-major, outermost dimension first.
    pub shape: &'a [usize],
    /// Little-endian values. Reading them is what brings the pages into memory.
    pub bytes: &'a [u8],
}

impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, shape_text(self.shape))
    }
}

/// All tensors of a directory, whichever of its files they lie in.
pub struct Weights {
    pub(super) files: Vec<MappedFile>,
    pub(super) tensors: BTreeMap<String, Stored>,
}

pub(super) struct MappedFile {
    pub name: String,
    pub map: Mmap,
}

/// Where a tensor lies.
#[derive(Clone)]
pub(super) struct Stored {
    /// Index into [`Weights::files`].
    pub file: usize,
    /// The type, or the name of one that the network cannot read.
    pub kind: Result<WeightKind, String>,
    pub shape: Vec<usize>,
    /// Inside the file's map: checked when the header was read.
    pub bytes: Range<usize>,
}

impl Weights {
    /// Maps the safetensors files of a directory: `model.safetensors`, or else the shards that
    /// `model.safetensors.index.json` names. Reads their headers only.
    ///
    /// # Errors
    /// A file is missing, truncated or corrupt, or two shards hold the same tensor; all such problems in one error.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let scan = scan(dir)?;
        if scan.problems.is_empty() {
            return Ok(scan.into_weights());
        }
        Err(CheckpointError::Invalid { dir: dir.to_owned(), problems: Problems(scan.problems) })
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// No file holds it, or its element type is none of [`WeightKind`].
    pub fn get(&self, name: &str) -> Result<TensorView<'_>, CheckpointError> {
        let no_such = || CheckpointError::NoSuchTensor { tensor: name.to_owned() };
        let stored = self.tensors.get(name).ok_or_else(no_such)?;
        let file = self.files.get(stored.file).ok_or_else(no_such)?;
        let kind = stored.kind.clone().map_err(|found| CheckpointError::UnsupportedKind {
            file: file.name.clone(),
            tensor: name.to_owned(),
            found,
        })?;
        let bytes = file.map.get(stored.bytes.clone()).ok_or_else(no_such)?;
        Ok(TensorView { kind, shape: &stored.shape, bytes })
    }

    /// The names of all tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: Vec<&str> = self.files.iter().map(|file| file.name.as_str()).collect();
        f.debug_struct("Weights").field("files", &files).field("tensors", &self.tensors.len()).finish()
    }
}
