//! ONNX to plan to a folder of engines.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{
    calibration::plan::Int8Plan,
    graph::{GraphRequest, INT8_STEM, STEM},
};
use crate::{
    checkpoint::Checkpoint,
    engine::{
        BuilderRecord, CalibrationRecord, CheckpointRecord, EngineError, EngineNeeds, EngineRecord,
        EngineStore, GraphKind, PlanRecord, Precision, RECORD_FORMAT, calibration::CalibrationMethod,
        check_precision,
    },
    model::tensorrt::TensorRtDevice,
    onnx::{Data, ElementType, Written, write},
    tensorrt::{
        BuildOptions, BuildProgress, BuildReport, F32Layers, Int8Calibration, TensorRtError, build_from_onnx,
    },
};

/// The first major version of TensorRT in which the graph alone says what is computed in which type.
const TYPED_ALONE: u32 = 11;

/// How an engine is built.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    pub graph: GraphRequest,
    pub precision: Precision,
    /// Memory that one layer may use while it runs, in bytes.
    pub workspace: Option<usize>,
    pub optimisation_level: Option<u8>,
    pub timing_cache: Option<PathBuf>,
    pub f32_layers: F32Layers,
    pub tf32: bool,
    pub version_compatible: bool,
    /// Spell the types out in the graph, for TensorRT 10; from 11 on that is done in any case.
    pub strongly_typed: bool,
    /// Build what is known to give wrong results.
    pub forced: bool,
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    TensorRt(#[from] TensorRtError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A graph on disk with what its builder needs.
#[derive(Debug)]
pub struct PreparedGraph {
    pub onnx: Written,
    /// Of INT8 by TensorRT's own calibrators.
    pub calibration: Option<Int8Calibration>,
    /// Of any INT8, for the engine's record.
    pub record: Option<CalibrationRecord>,
}

/// A saved engine.
#[derive(Debug, Clone)]
pub struct Built {
    /// The record beside it.
    pub path: PathBuf,
    pub needs: EngineNeeds,
    pub record: EngineRecord,
    pub report: BuildReport,
}

impl BuildRequest {
    /// Whether the graph's own types rule in a TensorRT of this major version, rather than what the builder is told.
    pub fn is_typed(&self, major: u32) -> bool {
        self.strongly_typed || self.precision == Precision::StronglyTyped || major >= TYPED_ALONE
    }

    /// The type in which the graph is written for a TensorRT of this major version.
    pub fn graph_kind(&self, major: u32) -> ElementType {
        match self.precision {
            _ if !self.is_typed(major) => ElementType::F32,
            // What is not in INT8 is in f16, as weakly typed builders choose too.
            Precision::Fp16 | Precision::Int8 => ElementType::F16,
            Precision::Bf16 => ElementType::Bf16,
            Precision::Fp32 | Precision::StronglyTyped => ElementType::F32,
        }
    }

    /// Writes the graph into `folder` as a TensorRT of this major version wants it, and finds the ranges of an INT8 engine:
    /// `int8` says how.
    ///
    /// # Errors
    /// A checkpoint that lacks something, calibration inputs that cannot be read or do not fit, a folder that cannot be
    /// written.
    pub fn prepare(
        &self,
        checkpoint: &Checkpoint,
        int8: Option<&Int8Plan>,
        major: u32,
        folder: &Path,
        say: &mut dyn FnMut(&str),
    ) -> anyhow::Result<PreparedGraph> {
        let kind = self.graph_kind(major);
        let (graph, stem, calibration, record) = match int8 {
            Some(plan) if plan.method == CalibrationMethod::Explicit => {
                let inputs = plan.inputs()?;
                let (ranges, record) = plan.ranges(&*inputs, say)?;
                (plan.quantised(self.graph, &ranges, kind)?, INT8_STEM, None, Some(record))
            }
            Some(plan) => {
                let (calibration, record) = plan.calibrator(plan.inputs()?, say)?;
                (self.graph.graph(checkpoint, kind)?, STEM, Some(calibration), Some(record))
            }
            None => (self.graph.graph(checkpoint, kind)?, STEM, None, None),
        };
        let onnx = write(&graph, folder, stem, Data::Full)?;
        Ok(PreparedGraph { onnx, calibration, record })
    }

    /// What a builder of this major version is told, for records.
    pub fn builder_record(&self, major: u32) -> BuilderRecord {
        BuilderRecord {
            strongly_typed: self.is_typed(major),
            workspace: self.workspace.map(|bytes| bytes as u64),
            optimisation_level: self.optimisation_level,
            tf32: self.tf32,
            version_compatible: self.version_compatible,
            f32_layers: f32_layers(&self.f32_layers),
        }
    }

    /// Builds the engine of an exported graph and saves it into `store`.
    ///
    /// # Errors
    /// A precision that cannot work here, or what TensorRT refuses.
    pub fn build(
        &self,
        here: &TensorRtDevice,
        checkpoint: &Checkpoint,
        checkpoint_hash: &str,
        prepared: PreparedGraph,
        store: &EngineStore,
    ) -> Result<Built, BuildError> {
        let PreparedGraph { onnx, calibration, record: calibration_record } = prepared;
        let version = here.version();
        let capability = here.device.compute_capability();
        let kind = GraphKind::DitFused;
        check_precision(self.precision, kind, capability, (version.major, version.minor), self.forced)?;
        let typed = self.is_typed(version.major);
        let mut options = BuildOptions::new(if typed { Precision::StronglyTyped } else { self.precision });
        options.workspace = self.workspace;
        options.optimisation_level = self.optimisation_level;
        options.timing_cache = self.timing_cache.clone();
        options.profiles = self.graph.profile(&checkpoint.config).into_iter().collect();
        if !typed {
            // A typed graph has its norms and softmax in f32 by itself.
            options.f32_layers = self.f32_layers.clone();
        }
        options.tf32 = self.tf32;
        options.version_compatible = self.version_compatible;
        options.progress = Some(std::sync::Arc::new(|progress: &BuildProgress| {
            if let BuildProgress::Started { phase, steps, .. } = progress {
                tracing::info!("TensorRT: {phase} ({steps} steps)");
            }
            true
        }));
        options.calibration = calibration;
        let (plan, report) = build_from_onnx(&here.library, &here.device, &onnx.model, options)?;
        let needs = here.needs(checkpoint, checkpoint_hash, self.graph.embodiment, self.precision);
        let (major, minor) = here.device.driver_cuda();
        let record = EngineRecord {
            format: RECORD_FORMAT,
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            built_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            checkpoint: CheckpointRecord {
                path: checkpoint.dir.display().to_string(),
                hash: checkpoint_hash.to_owned(),
            },
            model_config: needs.model_config.clone(),
            graph: needs.graph.clone(),
            precision: self.precision,
            shapes: self.graph.shapes(&checkpoint.config),
            tensorrt: version,
            cuda: format!("{major}.{minor}"),
            gpu: here.gpu(),
            builder: self.builder_record(version.major),
            calibration: calibration_record,
            accuracy: None,
            latency: None,
            plan: PlanRecord { file: String::new(), bytes: 0, sha256: String::new() },
        };
        let path = store.save(&needs, &record, &plan)?;
        drop(plan);
        // With the plan's name and hash, which saving filled in.
        let record = store.load(&needs)?.record;
        Ok(Built { path, needs, record, report })
    }
}

fn f32_layers(layers: &F32Layers) -> Vec<String> {
    let kinds = [("normalisation", layers.normalisation), ("softmax", layers.softmax)];
    let kinds = kinds.into_iter().filter(|(_, kept)| *kept).map(|(name, _)| name.to_owned());
    kinds.chain(layers.name_contains.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine_builder::lengths::Lengths;

    fn request(precision: Precision, strongly_typed: bool) -> BuildRequest {
        BuildRequest {
            graph: GraphRequest { embodiment: 0, text: Lengths::fixed(9), image: Lengths::fixed(14) },
            precision,
            workspace: None,
            optimisation_level: None,
            timing_cache: None,
            f32_layers: F32Layers::default(),
            tf32: false,
            version_compatible: false,
            strongly_typed,
            forced: false,
        }
    }

    #[test]
    fn the_graph_says_the_types_where_tensorrt_no_longer_chooses_and_where_it_shall_not() {
        use ElementType::{Bf16, F16, F32};
        for (precision, strongly_typed, major, typed, kind) in [
            (Precision::Int8, false, 8, false, F32),
            (Precision::Int8, false, 10, false, F32),
            (Precision::Int8, true, 10, true, F16),
            (Precision::Int8, false, 11, true, F16),
            (Precision::Fp16, false, 10, false, F32),
            (Precision::Fp16, false, 11, true, F16),
            (Precision::Bf16, false, 11, true, Bf16),
            (Precision::Fp32, false, 11, true, F32),
            (Precision::StronglyTyped, false, 10, true, F32),
        ] {
            let request = request(precision, strongly_typed);
            assert_eq!(request.is_typed(major), typed, "{precision} in {major}");
            assert_eq!(request.graph_kind(major), kind, "{precision} in {major}");
            assert_eq!(request.builder_record(major).strongly_typed, typed);
        }
    }
}
