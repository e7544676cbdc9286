//! ONNX to plan to a folder of engines.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{
    calibration::plan::Int8Plan,
    graph::{EngineGraph, Typing},
    progress::ProgressLog,
};
use crate::{
    checkpoint::Checkpoint,
    engine::{
        BuilderRecord, CalibrationRecord, CheckpointRecord, EngineError, EngineNeeds, EngineRecord,
        EngineStore, PlanRecord, Precision, RECORD_FORMAT, calibration::CalibrationMethod, check_precision,
    },
    model::tensorrt::TensorRtDevice,
    onnx::{ElementType, Written},
    tensorrt::{BuildOptions, BuildReport, F32Layers, Int8Calibration, TensorRtError, build_from_onnx},
};

/// How an engine is built.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// From which graph; its typing says who decides on types.
    pub graph: EngineGraph,
    pub precision: Precision,
    /// Memory that one layer may use while it runs, in bytes.
    pub workspace: Option<usize>,
    pub optimisation_level: Option<u8>,
    pub timing_cache: Option<PathBuf>,
    pub f32_layers: F32Layers,
    pub tf32: bool,
    pub version_compatible: bool,
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
    /// Writes the graph into `folder`, and finds the ranges of an INT8 engine: `int8` says how.
    ///
    /// # Errors
    /// A checkpoint that lacks something, calibration inputs that cannot be read or do not fit, a folder that cannot be
    /// written.
    pub fn prepare(
        &self,
        checkpoint: &Checkpoint,
        int8: Option<&Int8Plan>,
        folder: &Path,
        say: &mut dyn FnMut(&str),
    ) -> anyhow::Result<PreparedGraph> {
        let export = || self.graph.export(checkpoint, folder);
        let (onnx, calibration, record) = match int8 {
            Some(plan) if plan.method == CalibrationMethod::Explicit => {
                let (ranges, record) = plan.ranges(&*plan.inputs()?, say)?;
                (plan.export(&ranges, self.graph.typing, folder)?, None, Some(record))
            }
            Some(plan) => {
                let (calibration, record) = plan.calibrator(plan.inputs()?, say)?;
                (export()?, Some(calibration), Some(record))
            }
            None => (export()?, None, None),
        };
        Ok(PreparedGraph { onnx, calibration, record })
    }

    /// What the builder is told, for records.
    pub fn builder_record(&self) -> BuilderRecord {
        BuilderRecord {
            workspace: self.workspace.map(|bytes| bytes as u64),
            optimisation_level: self.optimisation_level,
            tf32: self.tf32,
            version_compatible: self.version_compatible,
            strongly_typed: self.graph.typing.is_strong(),
            f32_layers: match self.graph.typing {
                Typing::Weak => f32_layers(&self.f32_layers),
                Typing::Strong(ElementType::F32) => Vec::new(),
                // What the graph itself keeps in f32.
                Typing::Strong(_) => {
                    f32_layers(&F32Layers { normalisation: true, softmax: true, ..F32Layers::default() })
                }
            },
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
        let graph = &self.graph;
        let version = here.version();
        let capability = here.device.compute_capability();
        let check = |what| {
            check_precision(what, graph.kind(), capability, (version.major, version.minor), self.forced)
        };
        check(self.precision)?;
        let network = match graph.typing {
            Typing::Weak => self.precision,
            Typing::Strong(_) => Precision::StronglyTyped,
        };
        check(network)?;
        let mut options = BuildOptions::new(network);
        options.workspace = self.workspace;
        options.optimisation_level = self.optimisation_level;
        options.timing_cache = self.timing_cache.clone();
        options.profiles = graph.profile(checkpoint).into_iter().collect();
        if !graph.typing.is_strong() {
            // A typed graph has its norms and softmax in f32 by itself.
            options.f32_layers = self.f32_layers.clone();
        }
        options.tf32 = self.tf32;
        options.version_compatible = self.version_compatible;
        let progress = ProgressLog::start();
        options.progress = Some(progress.monitor());
        options.calibration = calibration;
        let (plan, report) = build_from_onnx(&here.library, &here.device, &onnx.model, options)?;
        drop(progress);
        let needs = graph.needs(here, checkpoint, checkpoint_hash, self.precision);
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
            shapes: graph.shapes(checkpoint),
            tensorrt: version,
            cuda: format!("{major}.{minor}"),
            gpu: here.gpu(),
            builder: self.builder_record(),
            calibration: calibration_record,
            accuracy: None,
            latency: None,
            notes: Vec::new(),
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
    use crate::engine_builder::{
        graph::{GraphPart, GraphRequest},
        lengths::Lengths,
    };

    #[test]
    fn the_record_says_who_decided_on_types_and_what_stays_in_f32() {
        let both = ["normalisation", "softmax"].as_slice();
        for (typing, norms_f32, layers) in [
            (Typing::Weak, false, &[][..]),
            (Typing::Weak, true, both),
            (Typing::Strong(ElementType::F16), false, both),
            (Typing::Strong(ElementType::F32), true, &[]),
        ] {
            let (text, image) = (Lengths::fixed(9), Lengths::fixed(14));
            let part = GraphPart::Fused(GraphRequest { embodiment: 0, text, image });
            let request = BuildRequest {
                graph: EngineGraph { part, typing },
                precision: Precision::Int8,
                workspace: None,
                optimisation_level: None,
                timing_cache: None,
                f32_layers: F32Layers {
                    normalisation: norms_f32,
                    softmax: norms_f32,
                    ..F32Layers::default()
                },
                tf32: false,
                version_compatible: false,
                forced: false,
            };
            let record = request.builder_record();
            assert_eq!(record.strongly_typed, typing.is_strong(), "{typing:?}");
            assert_eq!(record.f32_layers, layers, "{typing:?}");
        }
    }
}
