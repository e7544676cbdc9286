//! Collected inputs on disk: a folder with one safetensors file for each sample and `calibration.json`, the list of them.
//!
//! One file for each sample, since a sample may take tens of megabytes (keys and values of all cross-attentions): neither
//! writer nor reader ever holds more than one. The list is written last: a folder without it was not finished.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::super::error::EngineError;
use super::super::graph::GraphKind;
use crate::atomic_file::write_atomically;

const LIST: &str = "calibration.json";
const FORMAT: u32 = 1;
/// Bounds of what is read. Real sets have some 60 samples of up to 100 MB and 40 tensors.
const MAX_LIST_BYTES: u64 = 16 << 20;
const MAX_SAMPLE_BYTES: u64 = 2 << 30;
const MAX_SAMPLES: usize = 100_000;
const MAX_TENSORS: usize = 4096;

/// Where a set comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalibrationMeta {
    /// The graph whose inputs these are.
    pub graph: GraphKind,
    /// Hash of the checkpoint that produced them.
    pub checkpoint_hash: String,
    /// Index of the embodiment whose action encoder made them.
    pub embodiment: usize,
    /// Denoising steps of the policy.
    pub steps: usize,
    /// Of the choice of samples.
    pub seed: u64,
}

/// A tensor in host memory, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostTensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Little-endian elements.
    pub bytes: Vec<u8>,
}

impl HostTensor {
    /// A tensor of f32.
    pub fn from_f32(shape: impl Into<Vec<usize>>, values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.into(), bytes }
    }

    /// The values, if they are f32.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let value = |bytes: &[u8]| bytes.try_into().map(f32::from_le_bytes).ok();
        (self.dtype == Dtype::F32).then(|| self.bytes.chunks_exact(4).filter_map(value).collect())
    }
}

/// One set of inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalibrationSample {
    /// The denoising step that it belongs to.
    pub step: usize,
    /// Where it was taken, for people: file and time, say.
    pub source: String,
    pub tensors: BTreeMap<String, HostTensor>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    file: String,
    step: usize,
    source: String,
    blake3: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct List {
    format: u32,
    #[serde(flatten)]
    meta: CalibrationMeta,
    samples: Vec<Entry>,
}

/// Writes a set, sample by sample.
#[derive(Debug)]
pub struct CalibrationWriter {
    folder: PathBuf,
    list: List,
    /// Files written so far, for names of their own.
    staged: usize,
}

/// A sample that is on disk and may or may not become one of the set: dropped, its file goes.
#[derive(Debug)]
pub struct StagedSample {
    path: PathBuf,
    entry: Entry,
}

impl Drop for StagedSample {
    fn drop(&mut self) {
        // It is gone already where it became one of the set.
        let _ = fs::remove_file(&self.path);
    }
}

impl CalibrationWriter {
    /// Starts a set in `folder`, which is made if it is not there. A finished set there is no longer one from here on.
    ///
    /// # Errors
    /// [`EngineError::File`].
    pub fn create(folder: impl Into<PathBuf>, meta: CalibrationMeta) -> Result<Self, EngineError> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(EngineError::file(&folder, "the folder cannot be made"))?;
        let list = folder.join(LIST);
        if list.exists() {
            fs::remove_file(&list).map_err(EngineError::file(&list, "the old list cannot be removed"))?;
        }
        Ok(Self { folder, list: List { format: FORMAT, meta, samples: Vec::new() }, staged: 0 })
    }

    /// Writes a sample without making it one of the set yet, for whoever still chooses.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for tensors whose bytes do not fit their shape, [`EngineError::File`].
    pub fn stage(&mut self, sample: &CalibrationSample) -> Result<StagedSample, EngineError> {
        let file = format!("sample-{:06}.staged", self.staged);
        let path = self.folder.join(&file);
        let invalid = |found: String| EngineError::Invalid {
            what: format!("calibration sample of {}, step {}", sample.source, sample.step),
            expected: "at least one tensor, each with as many bytes as its shape says".to_owned(),
            found,
        };
        if sample.tensors.is_empty() {
            return Err(invalid("no tensor".to_owned()));
        }
        let views = sample
            .tensors
            .iter()
            .map(|(name, tensor)| {
                let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
                view.map(|view| (name, view)).map_err(|error| invalid(format!("{name}: {error}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let bytes = safetensors::serialize(views, None).map_err(|error| invalid(error.to_string()))?;
        write_atomically(&path, &bytes).map_err(EngineError::file(&path, "the sample cannot be written"))?;
        self.staged += 1;
        let blake3 = blake3::hash(&bytes).to_hex().to_string();
        Ok(StagedSample {
            path,
            entry: Entry { file, step: sample.step, source: sample.source.clone(), blake3 },
        })
    }

    /// Makes a staged sample the next of the set.
    ///
    /// # Errors
    /// [`EngineError::File`]; [`EngineError::Invalid`] for more samples than a set may have.
    pub fn keep(&mut self, sample: StagedSample) -> Result<(), EngineError> {
        let number = self.list.samples.len();
        if number >= MAX_SAMPLES {
            return Err(EngineError::Invalid {
                what: "calibration samples".to_owned(),
                expected: format!("at most {MAX_SAMPLES}"),
                found: "more".to_owned(),
            });
        }
        let file = format!("sample-{number:06}.safetensors");
        let path = self.folder.join(&file);
        fs::rename(&sample.path, &path).map_err(EngineError::file(&path, "the sample cannot be renamed"))?;
        self.list.samples.push(Entry { file, ..sample.entry.clone() });
        Ok(())
    }

    /// Writes a sample into the set.
    ///
    /// # Errors
    /// Those of [`stage`](Self::stage) and [`keep`](Self::keep).
    pub fn add(&mut self, sample: &CalibrationSample) -> Result<(), EngineError> {
        let staged = self.stage(sample)?;
        self.keep(staged)
    }

    /// Writes the list: from now on the set is one. Returns its hash, as [`CalibrationSet::hash`].
    ///
    /// # Errors
    /// [`EngineError::File`].
    pub fn finish(self) -> Result<String, EngineError> {
        let path = self.folder.join(LIST);
        let json = serde_json::to_vec_pretty(&self.list).map_err(|error| EngineError::Invalid {
            what: "list of calibration samples".to_owned(),
            expected: "values that JSON can hold".to_owned(),
            found: error.to_string(),
        })?;
        write_atomically(&path, &json).map_err(EngineError::file(&path, "the list cannot be written"))?;
        Ok(hash(&self.list))
    }
}

/// A finished set.
#[derive(Debug)]
pub struct CalibrationSet {
    folder: PathBuf,
    list: List,
}

impl CalibrationSet {
    /// Opens the set in `folder`; reads no sample yet.
    ///
    /// # Errors
    /// [`EngineError::File`], [`EngineError::Invalid`].
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, EngineError> {
        let folder = folder.into();
        let path = folder.join(LIST);
        let bytes = read(&path, MAX_LIST_BYTES)?;
        let list: List =
            serde_json::from_slice(&bytes).map_err(|error| invalid(&path, "a list of samples", error))?;
        if list.format != FORMAT {
            return Err(invalid(&path, &format!("format {FORMAT}"), list.format));
        }
        if list.samples.is_empty() || list.samples.len() > MAX_SAMPLES {
            return Err(invalid(&path, &format!("1 to {MAX_SAMPLES} samples"), list.samples.len()));
        }
        for entry in &list.samples {
            if Path::new(&entry.file).file_name().is_none_or(|name| name != entry.file.as_str()) {
                return Err(invalid(&path, "names of files in this folder", format!("{:?}", entry.file)));
            }
            if entry.step >= list.meta.steps {
                let found = format!("step {} in {}", entry.step, entry.file);
                return Err(invalid(&path, &format!("steps below {}", list.meta.steps), found));
            }
        }
        Ok(Self { folder, list })
    }

    /// Where the set comes from.
    pub fn meta(&self) -> &CalibrationMeta {
        &self.list.meta
    }

    /// Samples, at least one.
    #[expect(clippy::len_without_is_empty, reason = "a set without samples does not open")]
    pub fn len(&self) -> usize {
        self.list.samples.len()
    }

    /// Identity of the set: BLAKE3 over where it comes from and the contents of all samples in their order.
    pub fn hash(&self) -> String {
        hash(&self.list)
    }

    /// Reads a sample.
    ///
    /// # Errors
    /// [`EngineError::File`]; [`EngineError::Invalid`] for a number beyond the last, or contents that are not those that were
    /// written.
    pub fn read(&self, index: usize) -> Result<CalibrationSample, EngineError> {
        let Some(entry) = self.list.samples.get(index) else {
            return Err(invalid(&self.folder, &format!("a sample below {}", self.len()), index));
        };
        let path = self.folder.join(&entry.file);
        let bytes = read(&path, MAX_SAMPLE_BYTES)?;
        let found = blake3::hash(&bytes).to_hex();
        if found.as_str() != entry.blake3 {
            return Err(invalid(&path, &format!("BLAKE3 {}, as when it was written", entry.blake3), found));
        }
        let tensors =
            SafeTensors::deserialize(&bytes).map_err(|error| invalid(&path, "safetensors", error))?;
        if tensors.len() > MAX_TENSORS {
            return Err(invalid(&path, &format!("at most {MAX_TENSORS} tensors"), tensors.len()));
        }
        let tensors = tensors
            .iter()
            .map(|(name, view)| {
                let (dtype, shape, bytes) = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
                (name.to_owned(), HostTensor { dtype, shape, bytes })
            })
            .collect();
        Ok(CalibrationSample { step: entry.step, source: entry.source.clone(), tensors })
    }
}

fn hash(list: &List) -> String {
    let mut hasher = blake3::Hasher::new();
    let meta = &list.meta;
    let mut part = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    part(meta.graph.as_str());
    part(&meta.checkpoint_hash);
    part(&meta.embodiment.to_string());
    part(&meta.steps.to_string());
    for entry in &list.samples {
        part(&entry.step.to_string());
        part(&entry.blake3);
    }
    format!("blake3:{}", hasher.finalize().to_hex())
}

fn invalid(path: &Path, expected: &str, found: impl ToString) -> EngineError {
    EngineError::Invalid {
        what: path.display().to_string(),
        expected: expected.to_owned(),
        found: found.to_string(),
    }
}

/// The whole file, unless it is larger than any real one.
fn read(path: &Path, limit: u64) -> Result<Vec<u8>, EngineError> {
    let failed = |source| EngineError::File {
        path: path.to_path_buf(),
        action: "cannot be read (a set of calibration data is made with `calibrate collect`)",
        source,
    };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(invalid(path, &format!("at most {limit} bytes"), "more"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> CalibrationMeta {
        CalibrationMeta {
            graph: GraphKind::DitFused,
            checkpoint_hash: "blake3:00".to_owned(),
            embodiment: 2,
            steps: 4,
            seed: 3,
        }
    }

    fn sample(step: usize) -> CalibrationSample {
        let tensors = BTreeMap::from([
            ("actions".to_owned(), HostTensor::from_f32([1, 2, 3], &[0.5, -1.0, 2.0, 0.0, 4.0, step as f32])),
            ("k".to_owned(), HostTensor { dtype: Dtype::BF16, shape: vec![2], bytes: vec![1, 2, 3, 4] }),
        ]);
        CalibrationSample { step, source: format!("bag at {step} s"), tensors }
    }

    fn written(folder: &Path) -> String {
        let mut writer = CalibrationWriter::create(folder, meta()).expect("created");
        for step in 0..4 {
            writer.add(&sample(step)).expect("added");
        }
        writer.finish().expect("finished")
    }

    #[test]
    fn what_was_written_is_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let hash = written(folder.path());
        let set = CalibrationSet::open(folder.path()).expect("opened");
        assert_eq!((set.len(), set.meta(), set.hash()), (4, &meta(), hash));
        for step in 0..4 {
            assert_eq!(set.read(step).expect("read"), sample(step));
        }
        assert_eq!(set.read(2).expect("read").tensors["actions"].to_f32().expect("f32")[5], 2.0);
        assert!(set.read(4).is_err());
    }

    #[test]
    fn a_set_that_was_not_finished_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        written(folder.path());
        let mut again = CalibrationWriter::create(folder.path(), meta()).expect("created");
        again.add(&sample(0)).expect("added");
        drop(again);
        let error = CalibrationSet::open(folder.path()).expect_err("not finished").to_string();
        assert!(error.contains("calibrate collect"), "{error}");
    }

    #[test]
    fn what_was_staged_and_not_kept_leaves_no_file_and_the_set_is_as_if_it_had_never_been() {
        let (plain, chosen) =
            (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let hash = written(plain.path());
        let mut writer = CalibrationWriter::create(chosen.path(), meta()).expect("created");
        let mut staged: Vec<_> =
            [3, 0, 2, 1, 2].map(|step| writer.stage(&sample(step)).expect("staged")).into_iter().collect();
        drop(staged.remove(4));
        staged.sort_by_key(|sample| sample.entry.step);
        staged.into_iter().for_each(|sample| writer.keep(sample).expect("kept"));
        assert_eq!(writer.finish().expect("finished"), hash);
        let mut names: Vec<_> = fs::read_dir(chosen.path())
            .expect("listed")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
            .collect();
        names.sort();
        let expected = (0..4).map(|i| format!("sample-{i:06}.safetensors"));
        assert_eq!(names, [LIST.to_owned()].into_iter().chain(expected).collect::<Vec<_>>());
    }

    #[test]
    fn every_changed_byte_of_a_sample_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        written(folder.path());
        let set = CalibrationSet::open(folder.path()).expect("opened");
        let path = folder.path().join("sample-000001.safetensors");
        let good = fs::read(&path).expect("read");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, bad).expect("written");
            assert!(set.read(1).is_err(), "byte {at}");
        }
        fs::write(&path, &good[..good.len() - 1]).expect("written");
        assert!(set.read(1).is_err());
    }

    #[test]
    fn lists_that_lead_elsewhere_or_make_no_sense_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        written(folder.path());
        let list = folder.path().join(LIST);
        let good = fs::read_to_string(&list).expect("read");
        for (from, to) in [
            ("sample-000001.safetensors", "../sample-000001.safetensors"),
            ("\"format\": 1", "\"format\": 2"),
            ("\"step\": 3", "\"step\": 4"),
            ("\"samples\": [", "\"samples\": 3, \"x\": ["),
        ] {
            assert!(good.contains(from), "{from} in {good}");
            fs::write(&list, good.replacen(from, to, 1)).expect("written");
            assert!(CalibrationSet::open(folder.path()).is_err(), "{to}");
        }
    }

    #[test]
    fn a_tensor_whose_bytes_do_not_fit_its_shape_is_not_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = CalibrationWriter::create(folder.path(), meta()).expect("created");
        let mut bad = sample(0);
        bad.tensors
            .insert("x".to_owned(), HostTensor { dtype: Dtype::F32, shape: vec![2], bytes: vec![0; 7] });
        let error = writer.add(&bad).expect_err("refused").to_string();
        assert!(error.contains('x'), "{error}");
        bad.tensors.clear();
        assert!(writer.add(&bad).is_err());
    }
}
