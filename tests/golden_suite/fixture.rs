//! The one loader of golden data: finds the fixture directory and reads tensors and JSON out of it.
//!
//! `GROOT_GOLDEN_DIR` names any directory laid out like `tests/golden/tiny` (the default); the tokenizer lies in its
//! `tokenizer/`, beside it, or else is our own copy.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// A golden directory and its manifest.
pub struct Fixture {
    pub dir: PathBuf,
    pub manifest: Manifest,
}

// Only the suites of the network read the list of tensors.
#[cfg_attr(not(feature = "torch"), allow(dead_code))]
#[derive(Deserialize)]
pub struct Manifest {
    pub observations: Vec<ObservationInfo>,
    pub image_table: Vec<ImageRow>,
    pub tensors: Vec<TensorInfo>,
}

// Each test binary reads what it needs.
#[allow(dead_code)]
#[derive(Deserialize, Clone)]
pub struct ObservationInfo {
    pub name: String,
    pub embodiment_tag: String,
    pub batch: usize,
    pub cameras: Vec<String>,
    pub language: OneOrMany,
    pub seq_len: usize,
    pub num_images: usize,
    /// Height and width of every image given to the network; all images of the first sample first.
    pub pixel_hw: Vec<[usize; 2]>,
}

#[derive(Deserialize, Clone)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub fn to_vec(&self) -> Vec<String> {
        match self {
            OneOrMany::One(text) => vec![text.clone()],
            OneOrMany::Many(texts) => texts.clone(),
        }
    }
}

#[allow(dead_code)]
#[derive(Deserialize)]
pub struct ImageRow {
    pub raw: [u32; 2],
    pub s1: [u32; 2],
    pub s2: [u32; 2],
    pub s3: [u32; 2],
    pub s4: [u32; 2],
    pub tokens: usize,
}

#[cfg_attr(not(feature = "torch"), allow(dead_code))]
#[derive(Deserialize)]
pub struct TensorInfo {
    pub file: String,
    pub name: String,
    pub dtype: String,
}

impl Fixture {
    pub fn load() -> Self {
        let dir = std::env::var_os("GROOT_GOLDEN_DIR")
            .map(PathBuf::from)
            .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny"));
        let path = dir.join("golden/manifest.json");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let manifest = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { dir, manifest }
    }

    /// The folder that holds vocab.json and merges.txt.
    pub fn tokenizer_dir(&self) -> PathBuf {
        [self.dir.join("tokenizer"), self.dir.join("../tokenizer")]
            .into_iter()
            .find(|folder| folder.join("vocab.json").is_file())
            .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer"))
    }

    /// Opens `golden/{stem}.safetensors`.
    pub fn file(&self, stem: &str) -> GoldenFile {
        let path = self.dir.join(format!("golden/{stem}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        GoldenFile { stem: stem.to_owned(), bytes }
    }
}

/// One safetensors file of golden tensors.
pub struct GoldenFile {
    stem: String,
    bytes: Vec<u8>,
}

impl GoldenFile {
    fn view(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap_or_else(|e| panic!("{}: {e}", self.stem))
    }

    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.view().names().iter().map(|n| n.to_string()).collect();
        names.sort();
        names
    }

    pub fn contains(&self, name: &str) -> bool {
        self.view().tensor(name).is_ok()
    }

    fn get(&self, name: &str) -> (Dtype, Vec<usize>, Vec<u8>) {
        let view = self.view();
        let tensor = view.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", self.stem));
        (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec())
    }

    /// A tensor of bytes.
    pub fn u8(&self, name: &str) -> ArrayD<u8> {
        let (dtype, shape, data) = self.get(name);
        assert_eq!(dtype, Dtype::U8, "{}: {name}", self.stem);
        ArrayD::from_shape_vec(IxDyn(&shape), data).unwrap()
    }

    /// An integer or boolean tensor.
    pub fn i64(&self, name: &str) -> ArrayD<i64> {
        let (dtype, shape, data) = self.get(name);
        let values = match dtype {
            Dtype::BOOL | Dtype::U8 => data.iter().map(|&b| b as i64).collect(),
            Dtype::I64 => data.chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().unwrap())).collect(),
            other => panic!("{}: {name}: {other:?} is no integer type", self.stem),
        };
        ArrayD::from_shape_vec(IxDyn(&shape), values).unwrap()
    }

    /// A floating-point tensor of any width, without loss.
    pub fn f64(&self, name: &str) -> ArrayD<f64> {
        let (dtype, shape, data) = self.get(name);
        let values: Vec<f64> = match dtype {
            Dtype::F64 => data.chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().unwrap())).collect(),
            Dtype::F32 => {
                data.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap()) as f64).collect()
            }
            Dtype::BF16 => {
                data.chunks_exact(2).map(|c| bf16::from_le_bytes(c.try_into().unwrap()).to_f64()).collect()
            }
            Dtype::F16 => {
                data.chunks_exact(2).map(|c| f16::from_le_bytes(c.try_into().unwrap()).to_f64()).collect()
            }
            other => panic!("{}: {name}: {other:?} is no floating-point type", self.stem),
        };
        ArrayD::from_shape_vec(IxDyn(&shape), values).unwrap()
    }

    /// A tensor of f32 (or narrower) values.
    pub fn f32(&self, name: &str) -> ArrayD<f32> {
        self.f64(name).mapv(|v| v as f32)
    }
}

/// Largest absolute difference; panics with `what` where the shapes differ or a value is not a number.
pub fn max_abs_diff(what: &str, got: &ArrayD<f64>, want: &ArrayD<f64>) -> f64 {
    assert_eq!(got.shape(), want.shape(), "{what}: shape");
    got.iter().zip(want).fold(0.0, |worst, (g, w)| {
        let diff = (g - w).abs();
        assert!(!diff.is_nan(), "{what}: {g} against {w}");
        f64::max(worst, diff)
    })
}
