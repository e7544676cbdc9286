//! Writes checkpoint directories for tests: whole, in shards, or broken.
//!
//! Used with `#[path = "support/checkpoint_writer.rs"] mod checkpoint_writer;`.
// Each test binary takes what it needs.
#![allow(dead_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, View};
use serde_json::{Map, Value, json};

pub const SINGLE_FILE: &str = "model.safetensors";
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The tiny checkpoint in the repository.
pub fn tiny_checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny")
}

/// One tensor in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

pub type Tensors = BTreeMap<String, Tensor>;

impl View for &Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        self.data.as_slice().into()
    }
    fn data_len(&self) -> usize {
        self.data.len()
    }
}

impl Tensor {
    /// All zeros.
    pub fn zeros(dtype: Dtype, shape: &[usize]) -> Self {
        let elements: usize = shape.iter().product();
        Self { dtype, shape: shape.to_vec(), data: vec![0; elements * dtype.bitsize() / 8] }
    }

    /// The same values in another floating-point type, rounded to nearest.
    pub fn cast(&self, dtype: Dtype) -> Self {
        let data = self.values().into_iter().flat_map(|value| match dtype {
            Dtype::F32 => value.to_le_bytes().to_vec(),
            Dtype::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            other => panic!("cannot cast to {other}"),
        });
        Self { dtype, shape: self.shape.clone(), data: data.collect() }
    }

    /// The values of a floating-point tensor.
    pub fn values(&self) -> Vec<f32> {
        let pair = |c: &[u8]| [c[0], c[1]];
        match self.dtype {
            Dtype::F32 => {
                self.data.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
            }
            Dtype::BF16 => self.data.chunks_exact(2).map(|c| bf16::from_le_bytes(pair(c)).to_f32()).collect(),
            Dtype::F16 => self.data.chunks_exact(2).map(|c| f16::from_le_bytes(pair(c)).to_f32()).collect(),
            other => panic!("{other} is no floating-point type that a checkpoint uses"),
        }
    }
}

/// All tensors of one safetensors file.
pub fn read_tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, view): (String, safetensors::tensor::TensorView)| {
        (name, Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), data: view.data().to_vec() })
    };
    file.tensors().into_iter().map(tensor).collect()
}

/// Writes one safetensors file.
pub fn write_tensors(path: &Path, tensors: &Tensors) {
    safetensors::serialize_to_file(tensors, None, path).unwrap();
}

/// Writes shards `model-0000K-of-0000N.safetensors` and their index into `dir`; gives back the shards' names.
pub fn write_shards(dir: &Path, shards: &[Tensors]) -> Vec<String> {
    let mut weight_map = Map::new();
    let mut names = Vec::new();
    for (i, tensors) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_tensors(&dir.join(&name), tensors);
        weight_map.extend(tensors.keys().map(|tensor| (tensor.clone(), json!(name))));
        names.push(name);
    }
    let total: usize = shards.iter().flat_map(|tensors| tensors.values()).map(|t| t.data.len()).sum();
    write_json(&dir.join(INDEX_FILE), &json!({"metadata": {"total_size": total}, "weight_map": weight_map}));
    names
}

/// Deals tensors out to `count` shards in turn.
pub fn deal(tensors: Tensors, count: usize) -> Vec<Tensors> {
    let mut shards = vec![Tensors::new(); count];
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        shards[i % count].insert(name, tensor);
    }
    shards
}

/// Copies everything of a checkpoint directory but the weights: the configurations, statistics and the like.
pub fn copy_side_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_file() && !name.ends_with(".safetensors") && name != INDEX_FILE {
            fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

pub fn write_json(path: &Path, value: &Value) {
    fs::write(path, serde_json::to_vec_pretty(value).unwrap()).unwrap();
}

/// Rewrites a JSON file of the directory.
pub fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = read_json(path);
    edit(&mut value);
    write_json(path, &value);
}

/// Rewrites the header of a safetensors file and leaves its tensors' bytes as they are, so that the two can contradict
/// each other.
pub fn edit_header(path: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let bytes = fs::read(path).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    edit(&mut header);
    fs::write(path, raw_file(serde_json::to_string(&header).unwrap().as_bytes(), data)).unwrap();
}

/// A safetensors file of any header text and any data.
pub fn raw_file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}
