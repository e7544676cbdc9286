//! The network of a case, made from random weights or from a checkpoint, ready to run in a mode.

use std::{path::PathBuf, sync::Arc};

use tch::{Device, Kind};

use super::{
    cases::Case,
    mode::Mode,
    model_sizes::{KnownModel, ModelSizes},
};
use crate::{
    checkpoint::{Checkpoint, ModelConfig, OpenOptions},
    engine::EngineChoice,
    evaluation::CheckpointIdentity,
    execution::ExecutionMode,
    model::{ModelError, network::Network, policy::PolicyError, random::RandomWeights},
    processor::ProcessorError,
};

/// Why a mode is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum ModeError {
    /// An engine is bound to the files of a checkpoint.
    #[error("engines are built from a checkpoint's files; give --checkpoint in place of --random-weights")]
    RandomWeights,
    /// Nowhere to look for engines.
    #[error("expected the folder of engine_builder's engines, found none; give --engines DIR")]
    NoEngines,
    /// The checkpoint's engines have another horizon than the case.
    #[error(
        "expected a case of horizon {engine}, which the checkpoint's engines are built for, found {case}"
    )]
    Horizon {
        /// The checkpoint's.
        engine: usize,
        /// The case's.
        case: usize,
    },
    /// The network cannot be built.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// A model to be measured.
pub struct Candidate {
    sizes: ModelSizes,
    source: Source,
}

enum Source {
    Random { name: &'static str, seed: u64 },
    Checkpoint { checkpoint: Arc<Checkpoint>, tag: String, embodiment: usize, engines: Option<PathBuf> },
}

/// Where a checkpoint's model comes from.
#[derive(Debug, Clone, Default)]
pub struct CheckpointOptions {
    /// Its directory.
    pub checkpoint: PathBuf,
    /// A file that replaces the built-in configuration of the backbone.
    pub eagle_config: Option<PathBuf>,
    /// Embodiment tag.
    pub embodiment: String,
    /// Folder of engines, for the modes that have one.
    pub engines: Option<PathBuf>,
}

impl Candidate {
    /// Random weights of a model whose sizes are known; equal seeds give equal weights.
    pub fn random(known: KnownModel, seed: u64) -> Self {
        Self { sizes: known.sizes(), source: Source::Random { name: known.name(), seed } }
    }

    /// The weights of a checkpoint.
    ///
    /// # Errors
    /// What is wrong with it, or no such embodiment.
    pub fn open(options: CheckpointOptions) -> Result<Self, PolicyError> {
        let CheckpointOptions { checkpoint: path, eagle_config, embodiment: tag, engines } = options;
        let open = OpenOptions { eagle_config, ..OpenOptions::default() };
        let checkpoint = Checkpoint::open(&path, &open)?;
        let rows = checkpoint.config.max_num_embodiments;
        let embodiment = checkpoint.embodiments.index(&tag, rows).map_err(ProcessorError::from)?;
        let sizes = ModelSizes { model: checkpoint.config.clone(), eagle: checkpoint.eagle.clone() };
        let source = Source::Checkpoint { checkpoint: Arc::new(checkpoint), tag, embodiment, engines };
        Ok(Self { sizes, source })
    }

    /// Its sizes; the horizon is a case's own.
    pub fn sizes(&self) -> &ModelSizes {
        &self.sizes
    }

    /// What it is, for a report.
    pub fn identity(&self) -> CheckpointIdentity {
        match &self.source {
            Source::Random { name, .. } => CheckpointIdentity {
                name: (*name).to_owned(),
                random_weights: true,
                ..CheckpointIdentity::default()
            },
            Source::Checkpoint { checkpoint, tag, .. } => CheckpointIdentity {
                name: checkpoint
                    .dir
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default(),
                path: checkpoint.dir.display().to_string(),
                embodiment: tag.clone(),
                ..CheckpointIdentity::default()
            },
        }
    }

    /// The network of a case in a mode.
    ///
    /// # Errors
    /// Why this mode is not to be had here.
    pub fn network(&self, mode: Mode, case: &Case, device: Device) -> Result<Network, ModeError> {
        let mut network = match mode {
            Mode::F32 => self.without_engine(case, device, Kind::Float, ExecutionMode::Eager)?,
            Mode::Eager => self.without_engine(case, device, Kind::BFloat16, ExecutionMode::Eager)?,
            Mode::Graph => self.without_engine(case, device, Kind::BFloat16, ExecutionMode::Graph)?,
            Mode::GraphFused => {
                self.without_engine(case, device, Kind::BFloat16, ExecutionMode::GraphFused)?
            }
            Mode::TensorRt(precision) => {
                let Source::Checkpoint { checkpoint, embodiment, engines, .. } = &self.source else {
                    return Err(ModeError::RandomWeights);
                };
                let folder = engines.clone().ok_or(ModeError::NoEngines)?;
                let engine = self.sizes.model.action_horizon;
                if engine != case.horizon {
                    return Err(ModeError::Horizon { engine, case: case.horizon });
                }
                let choice = EngineChoice { folder, precision, auto_build: false };
                // As the node runs it.
                let mode = ExecutionMode::Auto;
                Network::open(checkpoint, *embodiment, device, Kind::BFloat16, Some(&choice), mode)?
            }
        };
        if let Some(steps) = case.steps {
            network.set_denoising_steps(steps)?;
        }
        Ok(network)
    }

    fn without_engine(
        &self,
        case: &Case,
        device: Device,
        kind: Kind,
        mode: ExecutionMode,
    ) -> Result<Network, ModelError> {
        // No tensor's shape depends on the horizon.
        let model = ModelConfig { action_horizon: case.horizon, ..self.sizes.model.clone() };
        let eagle = &self.sizes.eagle;
        match &self.source {
            Source::Random { seed, .. } => {
                let weights = RandomWeights::new(&model, eagle, *seed);
                Network::load_for(mode, &weights, &model, eagle, 0, device, kind)
            }
            Source::Checkpoint { checkpoint, embodiment, .. } => {
                Network::load_for(mode, &checkpoint.weights, &model, eagle, *embodiment, device, kind)
            }
        }
    }
}
