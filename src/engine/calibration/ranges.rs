//! Measured ranges on disk: made once for a checkpoint, a set of inputs and a rule, and used again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::method::RangeRule;
use crate::atomic_file::write_atomically;
use crate::engine::EngineError;

const FORMAT: u32 = 1;
/// Largest file that is read. With smoothing factors of the 3B model a real one takes some 8 MB.
const MAX_BYTES: u64 = 256 << 20;
/// Hexadecimal digits of the key in a file's name.
const DIGITS: usize = 16;

/// All that measured ranges depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RangesKey {
    pub checkpoint_hash: String,
    /// Identity of the inputs.
    pub calibration_hash: String,
    /// Version of the graph whose products were measured.
    pub graph_version: u32,
    /// Index of the embodiment that is folded into it.
    pub embodiment: usize,
    pub rule: RangeRule,
    /// Strength of the smoothing; none: not smoothed.
    pub smooth_quant: Option<f32>,
}

impl RangesKey {
    /// Where the ranges for this key lie in a folder.
    pub fn path(&self, folder: &Path) -> PathBuf {
        let parts = [
            self.checkpoint_hash.clone(),
            self.calibration_hash.clone(),
            self.graph_version.to_string(),
            self.embodiment.to_string(),
            self.rule.to_string(),
            format!("{:?}", self.smooth_quant),
        ];
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let digest = hasher.finalize().to_hex();
        folder.join(format!("int8-{}.ranges.json", &digest[..DIGITS]))
    }
}

/// Ranges of the activations of a graph's products.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActivationRanges {
    /// Largest magnitude of each product's activations, by the name of its weight; after smoothing, if there is one.
    pub ranges: BTreeMap<String, f32>,
    /// Smoothing factors of each product's input channels, by the name of its weight.
    pub factors: BTreeMap<String, Vec<f32>>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    key: RangesKey,
    #[serde(flatten)]
    ranges: ActivationRanges,
}

impl ActivationRanges {
    /// The ranges that were kept in `folder` under `key`; None if there are none.
    ///
    /// # Errors
    /// A file that cannot be read, or says something else than `key`.
    pub fn load(folder: &Path, key: &RangesKey) -> Result<Option<Self>, EngineError> {
        let path = key.path(folder);
        let failed =
            |source| EngineError::File { path: path.clone(), action: "the ranges cannot be read", source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        let invalid = |expected: String, found: String| EngineError::Invalid {
            what: path.display().to_string(),
            expected: format!("{expected} (remove the file to have the ranges measured again)"),
            found,
        };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(invalid(format!("at most {MAX_BYTES} bytes"), "more".to_owned()));
        }
        let stored: Stored = serde_json::from_slice(&bytes)
            .map_err(|error| invalid("measured ranges".to_owned(), error.to_string()))?;
        if stored.format != FORMAT || stored.key != *key {
            let found = format!("format {}, {:?}", stored.format, stored.key);
            return Err(invalid(format!("format {FORMAT}, {key:?}"), found));
        }
        Ok(Some(stored.ranges))
    }

    /// Keeps the ranges in `folder` under `key`. Returns the file's path.
    ///
    /// # Errors
    /// [`EngineError::File`].
    pub fn save(&self, folder: &Path, key: &RangesKey) -> Result<PathBuf, EngineError> {
        let path = key.path(folder);
        let stored = Stored { format: FORMAT, key: key.clone(), ranges: self.clone() };
        let json = serde_json::to_vec_pretty(&stored).map_err(|error| EngineError::Invalid {
            what: "ranges".to_owned(),
            expected: "values that JSON can hold".to_owned(),
            found: error.to_string(),
        })?;
        write_atomically(&path, &json).map_err(EngineError::file(&path, "the ranges cannot be written"))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> RangesKey {
        RangesKey {
            checkpoint_hash: "blake3:01".to_owned(),
            calibration_hash: "blake3:02".to_owned(),
            graph_version: 1,
            embodiment: 3,
            rule: RangeRule::Percentile(99.99),
            smooth_quant: Some(0.5),
        }
    }

    #[test]
    fn ranges_are_read_back_under_their_own_key_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let ranges = ActivationRanges {
            ranges: BTreeMap::from([("a.weight".to_owned(), 0.1_f32)]),
            factors: BTreeMap::from([("a.weight".to_owned(), vec![1.5_f32, 1e-5])]),
        };
        assert_eq!(ActivationRanges::load(folder.path(), &key()).expect("nothing"), None);
        let path = ranges.save(folder.path(), &key()).expect("saved");
        assert_eq!(ActivationRanges::load(folder.path(), &key()).expect("read"), Some(ranges));
        for other in [
            RangesKey { checkpoint_hash: "blake3:03".to_owned(), ..key() },
            RangesKey { calibration_hash: "blake3:03".to_owned(), ..key() },
            RangesKey { graph_version: 2, ..key() },
            RangesKey { embodiment: 4, ..key() },
            RangesKey { rule: RangeRule::Entropy, ..key() },
            RangesKey { smooth_quant: None, ..key() },
        ] {
            assert_eq!(ActivationRanges::load(folder.path(), &other).expect("nothing"), None, "{other:?}");
            // Under another's name it is noticed.
            std::fs::copy(&path, other.path(folder.path())).expect("copied");
            let error = ActivationRanges::load(folder.path(), &other).expect_err("refused").to_string();
            assert!(error.contains("measured again"), "{error}");
        }
        std::fs::write(&path, "{").expect("written");
        assert!(ActivationRanges::load(folder.path(), &key()).is_err());
    }
}
