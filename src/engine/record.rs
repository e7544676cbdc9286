//! What an engine was built from and for, kept as JSON beside it, and its comparison with what is needed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::calibration::CalibrationMethod;
use super::graph::GraphKind;
use super::precision::{ComputeCapability, Precision};

/// Version of the JSON. Raised when a field changes its meaning; files of other versions are refused.
pub const RECORD_FORMAT: u32 = 2;

/// The provenance of one engine.
///
/// | compared with what is needed | for people |
/// |---|---|
/// | checkpoint's hash, model's configuration, graph (kind, version, parameters), precision, shapes, TensorRT's version, GPU's compute capability; builder's options and calibration where they are asked for; accuracy with its own limit | checkpoint's path, CUDA's version, GPU's name, latency, notes, the program's version, the date |
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineRecord {
    /// [`RECORD_FORMAT`].
    pub format: u32,
    /// Version of the program that built the engine.
    pub tool_version: String,
    /// Seconds since 1970.
    pub built_at: u64,
    pub checkpoint: CheckpointRecord,
    /// The fields of the model's configuration that the graph depends on.
    pub model_config: BTreeMap<String, Value>,
    pub graph: GraphRecord,
    pub precision: Precision,
    /// The shapes of each input that the engine takes.
    pub shapes: BTreeMap<String, ShapeRecord>,
    pub tensorrt: VersionRecord,
    /// The newest CUDA that the driver served when the engine was built.
    pub cuda: String,
    pub gpu: GpuRecord,
    pub builder: BuilderRecord,
    /// Where the ranges of an INT8 engine come from.
    pub calibration: Option<CalibrationRecord>,
    /// How far it was from the reference, if that was measured.
    pub accuracy: Option<AccuracyRecord>,
    /// How long it took, if that was measured.
    pub latency: Option<LatencyRecord>,
    /// What a reader must know, such as why nothing was measured.
    pub notes: Vec<String>,
    pub plan: PlanRecord,
}

/// The weights that went in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// Where it lay; for people, not compared.
    pub path: String,
    /// See [`CheckpointHasher`](super::CheckpointHasher).
    pub hash: String,
}

/// The graph that was exported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GraphRecord {
    pub kind: GraphKind,
    /// Version of the exporter's graph: raised when its inputs, outputs or arithmetic change.
    pub version: u32,
    /// What was folded into it: embodiment, number of denoising steps, ...
    pub parameters: BTreeMap<String, Value>,
}

/// Least, best and greatest shape of an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShapeRecord {
    pub min: Vec<i64>,
    pub opt: Vec<i64>,
    pub max: Vec<i64>,
}

impl ShapeRecord {
    fn contains(&self, shape: &[i64]) -> bool {
        shape.len() == self.min.len()
            && shape.len() == self.max.len()
            && shape
                .iter()
                .zip(self.min.iter().zip(&self.max))
                .all(|(extent, (min, max))| min <= extent && extent <= max)
    }
}

impl fmt::Display for ShapeRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{:?}", self.min)
        } else {
            write!(f, "{:?} to {:?}", self.min, self.max)
        }
    }
}

/// A version of TensorRT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VersionRecord {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl fmt::Display for VersionRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRecord {
    pub name: String,
    pub compute_capability: ComputeCapability,
}

/// What the builder was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuilderRecord {
    /// Bytes; none: all of the GPU's memory.
    pub workspace: Option<u64>,
    /// None: TensorRT's default.
    pub optimisation_level: Option<u8>,
    pub tf32: bool,
    pub version_compatible: bool,
    /// The graph itself says what is computed in which type; otherwise TensorRT chose.
    pub strongly_typed: bool,
    /// Layers kept in f32: `normalisation`, `softmax`, or parts of names.
    pub f32_layers: Vec<String>,
}

/// The data behind an INT8 engine's ranges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationRecord {
    /// BLAKE3 of the inputs.
    pub hash: String,
    /// Where they come from.
    pub source: CalibrationSource,
    /// Who found the ranges.
    pub method: CalibrationMethod,
    /// By which rule: `entropy`, `min-max`, `percentile:99.99`, ...
    pub ranges: String,
    /// Inputs that were looked at.
    pub samples: u64,
    pub seed: u64,
    /// Strength of the smoothing; none: not smoothed.
    pub smooth_quant: Option<f32>,
    /// Products that stayed as they are, by part of their weights' names.
    pub skipped: Vec<String>,
}

/// Where the inputs of a calibration come from; for the command that rebuilds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CalibrationSource {
    /// A set of collected ones, which lay in this folder.
    Collected(String),
    /// So many synthetic ticks.
    Synthetic(u64),
}

/// Distance from a reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AccuracyRecord {
    /// What it was compared with, such as `libtorch bf16`.
    pub against: String,
    /// On what inputs, such as `synthetic, seed 0`.
    pub inputs: String,
    pub mse: f64,
    pub cosine: f64,
    /// Below this the engine counts as wrong, and is not run.
    pub least_cosine: f64,
    pub max_error: f64,
    /// Mean square error after each denoising step; one for a graph that runs once.
    pub mse_per_step: Vec<f64>,
    /// The last of them over the first.
    pub growth: f64,
}

impl AccuracyRecord {
    /// Whether the engine computes what it should.
    pub fn is_right(&self) -> bool {
        self.cosine >= self.least_cosine
    }
}

/// Durations in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyRecord {
    /// What was timed, such as `4 steps, CUDA graph, device events`.
    pub of: String,
    pub iterations: u64,
    pub median_ms: f64,
    pub mean_ms: f64,
    pub p90_ms: f64,
}

/// The engine's own file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanRecord {
    /// Its name in the folder of the record.
    pub file: String,
    pub bytes: u64,
    /// SHA-256, in hexadecimal as `sha256sum` prints it.
    pub sha256: String,
}

/// What is asked of an engine: the other side of the comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineNeeds {
    /// The checkpoint's folder, for the command that rebuilds.
    pub checkpoint: PathBuf,
    /// A file that replaced the backbone's configuration, for the same.
    pub eagle_config: Option<PathBuf>,
    /// The GPU as the command line calls it, for the same; none where it is the first.
    pub device: Option<String>,
    /// The checkpoint's hash.
    pub checkpoint_hash: String,
    pub model_config: BTreeMap<String, Value>,
    pub graph: GraphRecord,
    pub precision: Precision,
    /// Shapes that will be run, each input with one or more; all must lie in the engine's range.
    pub shapes: BTreeMap<String, Vec<Vec<i64>>>,
    /// The TensorRT that is loaded.
    pub tensorrt: VersionRecord,
    /// The GPU that will run it.
    pub gpu: GpuRecord,
    /// Asked for, if it matters to the user.
    pub builder: Option<BuilderRecord>,
    /// The calibration that an INT8 engine must come from, if it matters to the user.
    pub calibration_hash: Option<String>,
}

/// One field in which an engine is not what is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub field: String,
    /// What the engine was built for.
    pub built: String,
    /// What is needed.
    pub needed: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: built for {}, needed {}", self.field, self.built, self.needed)
    }
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// The engine must not be used.
    pub fatal: Vec<Difference>,
    /// It can be used, at a loss that is worth a warning.
    pub minor: Vec<Difference>,
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, difference) in self.fatal.iter().chain(&self.minor).enumerate() {
            write!(f, "{}{difference}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl EngineRecord {
    /// Compares everything with what is needed.
    pub fn compare(&self, needs: &EngineNeeds) -> Differences {
        let mut fatal = Vec::new();
        let mut differ = |field: &str, built: &dyn fmt::Display, needed: &dyn fmt::Display| {
            fatal.push(Difference {
                field: field.to_owned(),
                built: built.to_string(),
                needed: needed.to_string(),
            });
        };
        if self.checkpoint.hash != needs.checkpoint_hash {
            differ("checkpoint", &self.checkpoint.hash, &needs.checkpoint_hash);
        }
        compare_values("model_config", &self.model_config, &needs.model_config, &mut differ);
        if self.graph.kind != needs.graph.kind {
            differ("graph", &self.graph.kind, &needs.graph.kind);
        }
        if self.graph.version != needs.graph.version {
            differ("graph.version", &self.graph.version, &needs.graph.version);
        }
        compare_values("graph", &self.graph.parameters, &needs.graph.parameters, &mut differ);
        if self.precision != needs.precision {
            differ("precision", &self.precision, &needs.precision);
        }
        self.compare_shapes(needs, &mut differ);
        if !self.runs_with(needs.tensorrt) {
            differ("tensorrt", &self.tensorrt, &needs.tensorrt);
        }
        if self.gpu.compute_capability != needs.gpu.compute_capability {
            let text = |gpu: &GpuRecord| format!("{} ({})", gpu.compute_capability, gpu.name);
            differ("gpu.compute_capability", &text(&self.gpu), &text(&needs.gpu));
        }
        if let Some(builder) = needs.builder.as_ref().filter(|builder| **builder != self.builder) {
            differ("builder", &format!("{:?}", self.builder), &format!("{builder:?}"));
        }
        if let Some(hash) = &needs.calibration_hash {
            let built = self.calibration.as_ref().map_or("no calibration", |calibration| &calibration.hash);
            if built != hash {
                differ("calibration", &built, hash);
            }
        }
        if let Some(accuracy) = self.accuracy.as_ref().filter(|accuracy| !accuracy.is_right()) {
            let built =
                format!("{} against {}, measured when it was built", accuracy.cosine, accuracy.against);
            differ("accuracy.cosine", &built, &format!("{} or more", accuracy.least_cosine));
        }
        let mut minor = Vec::new();
        if self.gpu.name != needs.gpu.name && fatal.iter().all(|d| d.field != "gpu.compute_capability") {
            // It runs, but its kernels were chosen by timing them on the other.
            let (built, needed) = (self.gpu.name.clone(), needs.gpu.name.clone());
            minor.push(Difference { field: "gpu.name".to_owned(), built, needed });
        }
        Differences { fatal, minor }
    }

    fn compare_shapes(
        &self,
        needs: &EngineNeeds,
        differ: &mut impl FnMut(&str, &dyn fmt::Display, &dyn fmt::Display),
    ) {
        for (input, shapes) in &needs.shapes {
            let field = format!("shapes.{input}");
            let Some(range) = self.shapes.get(input) else {
                differ(&field, &"no such input", &format!("{shapes:?}"));
                continue;
            };
            for shape in shapes.iter().filter(|shape| !range.contains(shape)) {
                differ(&field, range, &format!("{shape:?}"));
            }
        }
        for (input, range) in self.shapes.iter().filter(|(input, _)| !needs.shapes.contains_key(*input)) {
            differ(&format!("shapes.{input}"), range, &"no such input");
        }
    }

    /// Plans are tied to the very version that built them; version-compatible ones to the major, from that version on.
    fn runs_with(&self, loaded: VersionRecord) -> bool {
        if self.builder.version_compatible {
            return loaded.major == self.tensorrt.major && loaded >= self.tensorrt;
        }
        loaded == self.tensorrt
    }
}

fn compare_values(
    section: &str,
    built: &BTreeMap<String, Value>,
    needed: &BTreeMap<String, Value>,
    differ: &mut impl FnMut(&str, &dyn fmt::Display, &dyn fmt::Display),
) {
    let absent = Value::String("absent".to_owned());
    let mut keys: Vec<&String> = built.keys().chain(needed.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let (was, is) = (built.get(key).unwrap_or(&absent), needed.get(key).unwrap_or(&absent));
        if was != is {
            differ(&format!("{section}.{key}"), was, is);
        }
    }
}
