//! From a folder of engines to the one that fits the checkpoint, the GPU and the TensorRT that are here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::{ModelError, action_head::ActionHead, layers::Loader};
use super::{Queueing, TensorRtVelocity};
use crate::{
    checkpoint::Checkpoint,
    engine::{
        CheckpointHasher, EngineChoice, EngineNeeds, EngineRecord, EngineStore, GpuRecord, Precision,
        VersionRecord, fused::FusedEngine,
    },
    tensorrt::{Device, Engine, Library, LoadOptions, Runtime, TensorRtError},
};

/// TensorRT and the GPU that it works on.
#[derive(Debug, Clone)]
pub struct TensorRtDevice {
    pub library: Arc<Library>,
    pub device: Device,
}

impl TensorRtDevice {
    /// Loads TensorRT and opens a GPU, which libtorch calls `cuda:ordinal`.
    ///
    /// # Errors
    /// No TensorRT or no such GPU, with what to install.
    pub fn open(ordinal: usize) -> Result<Self, TensorRtError> {
        let library = Library::load(&LoadOptions::from_env())?;
        Ok(Self { device: Device::new(ordinal)?, library })
    }

    /// The loaded version, for records.
    pub fn version(&self) -> VersionRecord {
        let version = self.library.version();
        VersionRecord { major: version.major, minor: version.minor, patch: version.patch }
    }

    /// The GPU, for records.
    pub fn gpu(&self) -> GpuRecord {
        GpuRecord {
            name: self.device.name().to_owned(),
            compute_capability: self.device.compute_capability(),
        }
    }

    /// What is asked of an engine of the fused graph for this checkpoint, here.
    pub fn needs(
        &self,
        checkpoint: &Checkpoint,
        checkpoint_hash: &str,
        embodiment: usize,
        precision: Precision,
    ) -> EngineNeeds {
        let fused = FusedEngine {
            checkpoint: checkpoint.dir.clone(),
            checkpoint_hash: checkpoint_hash.to_owned(),
            config: &checkpoint.config,
            embodiment,
            state_tokens: 1,
            precision,
            tensorrt: self.version(),
            gpu: self.gpu(),
        };
        let ordinal = self.device.ordinal();
        EngineNeeds {
            eagle_config: checkpoint.eagle_file.clone(),
            device: (ordinal != 0).then(|| format!("cuda:{ordinal}")),
            ..fused.needs()
        }
    }

    /// The engine of a folder that fits what is needed, with its record.
    ///
    /// # Errors
    /// No engine that fits, with the command that builds it, or what TensorRT refuses.
    pub fn engine(
        &self,
        store: &EngineStore,
        needs: &EngineNeeds,
    ) -> Result<(Engine, EngineRecord), ModelError> {
        let plan = store.load(needs)?;
        let runtime = Runtime::new(&self.library, &self.device)?;
        if plan.record.builder.version_compatible {
            // Such an engine brings code of its own; its hash was compared with the record's.
            runtime.allow_host_code()?;
        }
        // The plan goes with this function: where host and GPU share memory, every gigabyte counts.
        Ok((runtime.deserialise(&plan)?, plan.record))
    }
}

/// Where the hashes of a folder's checkpoints are remembered.
pub(crate) fn hashes_in(folder: &Path) -> PathBuf {
    folder.join("checkpoint-hashes.json")
}

/// An action head whose denoising steps run on the engine that fits; `at` is the module `action_head`.
///
/// # Errors
/// No TensorRT, or no engine that fits: both sides of every difference, and the command that builds the engine.
pub fn load(
    at: &Loader,
    checkpoint: &Arc<Checkpoint>,
    embodiment: usize,
    choice: &EngineChoice,
) -> Result<ActionHead, ModelError> {
    let tch::Device::Cuda(ordinal) = at.device() else {
        return Err(ModelError::Device {
            requested: format!("{:?}", at.device()),
            reason: "TensorRT engines run on NVIDIA GPUs only: choose cuda, or run without an engine"
                .to_owned(),
        });
    };
    let here = TensorRtDevice::open(ordinal)?;
    let hash = CheckpointHasher::new(Some(hashes_in(&choice.folder))).hash(&checkpoint.dir)?;
    let needs = here.needs(checkpoint, &hash, embodiment, choice.precision);
    let (engine, _) = here.engine(&EngineStore::new(&choice.folder), &needs)?;
    let identity = format!("TensorRT {} {} on cuda:{ordinal}", here.library.version(), choice.precision);
    let checkpoint_head = Arc::clone(checkpoint);
    let velocity =
        TensorRtVelocity::new(at, checkpoint_head, embodiment, &engine, Queueing::default(), identity)?;
    ActionHead::with_engine(at, &checkpoint.config, embodiment, Box::new(velocity))
}
