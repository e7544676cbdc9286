//! ONNX to plan to a folder of engines.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::graph::GraphRequest;
use crate::{
    checkpoint::Checkpoint,
    engine::{
        BuilderRecord, CalibrationRecord, CheckpointRecord, EngineError, EngineNeeds, EngineRecord,
        EngineStore, GraphKind, PlanRecord, Precision, RECORD_FORMAT, check_precision,
    },
    model::tensorrt::TensorRtDevice,
    tensorrt::{
        BuildOptions, BuildProgress, BuildReport, F32Layers, Int8Calibration, TensorRtError, build_from_onnx,
    },
};

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
    /// What the builder is told, for records.
    pub fn builder_record(&self) -> BuilderRecord {
        BuilderRecord {
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
        onnx: &Path,
        calibration: Option<(Int8Calibration, CalibrationRecord)>,
        store: &EngineStore,
    ) -> Result<Built, BuildError> {
        let version = here.version();
        let capability = here.device.compute_capability();
        let kind = GraphKind::DitFused;
        check_precision(self.precision, kind, capability, (version.major, version.minor), self.forced)?;
        let mut options = BuildOptions::new(self.precision);
        options.workspace = self.workspace;
        options.optimisation_level = self.optimisation_level;
        options.timing_cache = self.timing_cache.clone();
        options.profiles = self.graph.profile(&checkpoint.config).into_iter().collect();
        options.f32_layers = self.f32_layers.clone();
        options.tf32 = self.tf32;
        options.version_compatible = self.version_compatible;
        options.progress = Some(std::sync::Arc::new(|progress: &BuildProgress| {
            if let BuildProgress::Started { phase, steps, .. } = progress {
                tracing::info!("TensorRT: {phase} ({steps} steps)");
            }
            true
        }));
        let (calibration, calibration_record) = calibration.unzip();
        options.calibration = calibration;
        let (plan, report) = build_from_onnx(&here.library, &here.device, onnx, options)?;
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
            builder: self.builder_record(),
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
