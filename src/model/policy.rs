//! The whole policy: an observation in, physical actions out.

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use ndarray::{Array2, Array3, ArrayView3};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use tch::{Kind, Tensor};
use thiserror::Error;

use super::{
    ModelError,
    action_head::ActionHead,
    backbone::Backbone,
    default_kind, device,
    network::{Network, StageTimes},
    preprocess::Preprocessor,
    probe::Probe,
};
use crate::{
    checkpoint::{Checkpoint, CheckpointError, OpenOptions},
    engine::EngineChoice,
    execution::{ExecutionMode, Preprocessing},
    observation::Observation,
    processor::{
        ModelInputs, NamedActions, Processor, ProcessorError,
        guidance::{Guidance, PlannedActions},
    },
};

/// Where a policy comes from and how it runs.
#[derive(Debug, Clone, Default)]
pub struct PolicyOptions {
    /// The checkpoint's directory.
    pub checkpoint: PathBuf,
    /// Folder of vocab.json and merges.txt; None looks in the checkpoint.
    pub tokenizer: Option<PathBuf>,
    /// A file that replaces the built-in Eagle configuration.
    pub eagle_config: Option<PathBuf>,
    /// Embodiment tag, e.g. `new_embodiment`.
    pub embodiment: String,
    /// `auto`, `cpu`, `cuda` or `cuda:N`; empty is `auto`.
    pub device: String,
    /// The network's type; None is f32 on the CPU and bf16 on CUDA.
    pub kind: Option<Kind>,
    /// Denoising steps; None is the checkpoint's.
    pub denoising_steps: Option<usize>,
    /// The TensorRT engine that denoises; None is libtorch.
    pub engine: Option<EngineChoice>,
    /// How the network is executed.
    pub mode: ExecutionMode,
    /// Who makes images of frames.
    pub preprocessing: Preprocessing,
}

/// Why there is no policy, or no prediction.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Observation and checkpoint do not fit, or the actions cannot be decoded.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// The network cannot be built or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The engine has to be built, and cannot be.
    #[error("the TensorRT engine had to be built, since {because}; and that failed: {reason}")]
    EngineBuild {
        /// Why it had to be.
        because: String,
        /// Why it could not be.
        reason: String,
    },
    /// A newer observation took this one's place before its turn came.
    #[error("superseded by a newer observation")]
    Superseded,
    /// The policy's thread has stopped.
    #[error("the policy has been shut down")]
    Stopped,
    /// A defect: the prediction panicked. The policy goes on.
    #[error("the prediction panicked: {0}. This is a defect of groot_policy, please report it")]
    Panicked(String),
}

/// The noise a chunk is denoised from.
#[derive(Debug, Clone)]
pub enum Noise {
    /// Standard normal from a seed; equal seeds give equal noise on every machine.
    Seed(u64),
    /// Given values, shape (action horizon, max action dim).
    Given(Array2<f32>),
}

/// What the policy is asked.
#[derive(Debug, Clone)]
pub struct PredictRequest {
    /// What the robot saw.
    pub observation: Observation,
    /// What the chunk is denoised from.
    pub noise: Noise,
    /// Actions that the chunk is to agree with, for real-time chunking.
    pub planned: Option<PlannedActions>,
    /// Denoising steps from this request on; None leaves them as they are.
    pub denoising_steps: Option<usize>,
    /// What the network reads of the observation, where that was made before; None: it is made when the request is answered.
    pub prepared: Option<Prepared>,
}

/// What the network reads of one observation.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Model inputs of one sample.
    pub inputs: ModelInputs,
    /// What it took to make them.
    pub took: Duration,
}

impl Prepared {
    /// Pre-processes an observation: CPU work, without the network.
    ///
    /// # Errors
    /// What is missing in the observation or does not fit the checkpoint.
    pub fn new(processor: &Processor, observation: &Observation) -> Result<Self, PolicyError> {
        let start = Instant::now();
        let inputs = processor.prepare(observation)?;
        Ok(Self { inputs, took: start.elapsed() })
    }
}

/// Makes [`Prepared`] of observations, on any thread and while the policy predicts.
#[derive(Clone)]
pub struct Preparation(Arc<Prepare>);

type Prepare = dyn Fn(&Observation) -> Result<Prepared, PolicyError> + Send + Sync;

impl Preparation {
    /// Prepares by a function.
    pub fn new(
        prepare: impl Fn(&Observation) -> Result<Prepared, PolicyError> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(prepare))
    }

    /// See [`Prepared::new`].
    ///
    /// # Errors
    /// As there.
    pub fn prepare(&self, observation: &Observation) -> Result<Prepared, PolicyError> {
        (self.0)(observation)
    }
}

impl fmt::Debug for Preparation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Preparation")
    }
}

impl PredictRequest {
    /// A request for a chunk that is free of earlier ones.
    pub fn new(observation: Observation, noise: Noise) -> Self {
        Self { observation, noise, planned: None, denoising_steps: None, prepared: None }
    }
}

/// Standard normal noise from a seed, shape `rows` x `columns`, independent of machine and device.
pub fn seeded_noise(seed: u64, (rows, columns): (usize, usize)) -> Array2<f32> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((rows, columns), || StandardNormal.sample(&mut generator))
}

/// A seed that no other run has.
pub fn entropy_seed() -> u64 {
    rand::rng().next_u64()
}

/// Wall-clock time of a tick's stages.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// Images, text and state to model inputs; of inputs that came with the request, what they took before, which is no part
    /// of the total.
    pub preprocess: Duration,
    /// Vision tower and connector, upload included.
    pub vision: Duration,
    /// Language model.
    pub language: Duration,
    /// State encoder, denoising, download.
    pub action_head: Duration,
    /// All of it, decoding included.
    pub total: Duration,
}

impl Timing {
    /// Stage names and durations, in order; the names are those of `StageTiming.msg`.
    pub fn stages(&self) -> [(&'static str, Duration); 5] {
        [
            ("preprocess", self.preprocess),
            ("vision", self.vision),
            ("language", self.language),
            ("action_head", self.action_head),
            ("total", self.total),
        ]
    }
}

/// What the policy says of one observation.
#[derive(Debug, Clone)]
pub struct Prediction {
    /// Physical actions per action key, each (steps, dimension), SI units.
    pub actions: NamedActions,
    /// The network's own output (action horizon, max action dim), normalised.
    pub normalised: Array2<f32>,
    /// Seed of the noise; None where the caller gave the noise itself.
    pub seed: Option<u64>,
    /// Where the time went.
    pub timing: Timing,
}

/// A way to load a policy: [`load_policy`], or one that builds what is missing.
pub type LoadPolicy = fn(&PolicyOptions) -> Result<Policy, PolicyError>;

/// [`Policy::load`], by the name of the one that builds engines before.
///
/// # Errors
/// As there.
pub fn load_policy(options: &PolicyOptions) -> Result<Policy, PolicyError> {
    Policy::load(options)
}

/// A loaded policy of one embodiment.
pub struct Policy {
    preprocessor: Preprocessor,
    processor: Arc<Processor>,
    network: Network,
}

impl Policy {
    /// Loads everything that inference needs.
    ///
    /// # Errors
    /// What is wrong with the checkpoint, the tokenizer, the embodiment or the device.
    pub fn load(options: &PolicyOptions) -> Result<Self, PolicyError> {
        let device = device::select(if options.device.is_empty() { "auto" } else { &options.device })?;
        let kind = options.kind.unwrap_or_else(|| default_kind(device));
        let checkpoint = Checkpoint::open(
            &options.checkpoint,
            &OpenOptions { eagle_config: options.eagle_config.clone(), ..OpenOptions::default() },
        )?;
        let processor = Processor::load(&checkpoint, options.tokenizer.as_deref(), &options.embodiment)?;
        let embodiment = processor.embodiment_index();
        let engine = options.engine.as_ref();
        let mut network =
            Network::open(&Arc::new(checkpoint), embodiment, device, kind, engine, options.mode)?;
        if let Some(steps) = options.denoising_steps {
            network.set_denoising_steps(steps)?;
        }
        let preprocessor = Preprocessor::new(options.preprocessing, &network, &processor)?;
        Ok(Self { preprocessor, processor: Arc::new(processor), network })
    }

    /// What turns observations into inputs and outputs into actions.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// Chooses who makes images of frames from now on. The actions are the same.
    ///
    /// # Errors
    /// See [`Preprocessor::new`].
    pub fn set_preprocessing(&mut self, on: Preprocessing) -> Result<(), PolicyError> {
        self.preprocessor = Preprocessor::new(on, &self.network, &self.processor)?;
        Ok(())
    }

    /// Who makes images of frames.
    pub fn preprocessing(&self) -> Preprocessing {
        self.preprocessor.on()
    }

    /// The pre-processing on the CPU alone, for other threads.
    pub fn preparation(&self) -> Preparation {
        let processor = self.processor.clone();
        Preparation::new(move |observation| Prepared::new(&processor, observation))
    }

    /// The network.
    pub fn network(&mut self) -> &mut Network {
        &mut self.network
    }

    /// The backbone.
    pub fn backbone(&mut self) -> &mut Backbone {
        self.network.backbone()
    }

    /// The action head.
    pub fn head(&mut self) -> &mut ActionHead {
        self.network.head()
    }

    /// Where the network runs.
    pub fn device(&self) -> tch::Device {
        self.network.device()
    }

    /// Where and how the network runs, e.g. `Cpu Float, mode eager, DiT: libtorch Float on Cpu`.
    pub fn identity(&self) -> String {
        self.network.identity()
    }

    /// What runs the backbone and what runs the DiT, for people.
    pub fn identities(&self) -> (String, String) {
        self.network.identities()
    }

    /// Denoising steps in force.
    pub fn denoising_steps(&self) -> usize {
        self.network.denoising_steps()
    }

    /// Rows and columns of the noise: (action horizon, max action dim).
    pub fn noise_shape(&self) -> (usize, usize) {
        self.network.noise_shape()
    }

    /// Denoising steps that the checkpoint asks for.
    pub fn default_denoising_steps(&self) -> usize {
        self.network.default_denoising_steps()
    }

    /// Changes the number of denoising steps.
    pub fn set_denoising_steps(&mut self, steps: usize) -> Result<(), PolicyError> {
        Ok(self.network.set_denoising_steps(steps)?)
    }

    /// How often an observation must be predicted until the next prediction of its kind takes its usual time.
    pub fn warm_up_predictions(&self) -> usize {
        if self.network.runner().is_some() { 2 } else { 1 }
    }

    /// One tick.
    ///
    /// # Errors
    /// What does not fit, or [`ModelError::NonFinite`]: a chunk with NaN or infinity is never handed out.
    pub fn predict(&mut self, request: &PredictRequest) -> Result<Prediction, PolicyError> {
        let start = Instant::now();
        let PredictRequest { observation, noise, planned, denoising_steps, prepared } = request;
        if let Some(steps) = *denoising_steps {
            self.network.set_denoising_steps(steps)?;
        }
        let made;
        let (inputs, images, took) = match prepared {
            Some(Prepared { inputs, took }) => (inputs, None, *took),
            None => {
                let observations = std::slice::from_ref(observation);
                let (inputs, images) =
                    self.preprocessor.prepare(&self.processor, observations, &self.network)?;
                made = inputs;
                (&made, images, start.elapsed())
            }
        };
        let guiding = Instant::now();
        let shape = self.noise_shape();
        let guidance = planned
            .as_ref()
            .map(|planned| self.processor.action().guidance(planned, &observation.state, shape))
            .transpose()
            .map_err(ProcessorError::from)?;
        let preprocess = took + guiding.elapsed();
        let (noise, seed) = match noise {
            Noise::Given(noise) => (noise.clone(), None),
            Noise::Seed(seed) => (seeded_noise(*seed, shape), Some(*seed)),
        };
        let noise = noise.insert_axis(ndarray::Axis(0));
        let (normalised, mut timing) =
            self.run_images(inputs, images.as_ref(), noise.view(), guidance.as_ref(), &mut Probe::off())?;
        let normalised = normalised.index_axis_move(ndarray::Axis(0), 0);
        let actions = self.processor.decode(normalised.view(), &observation.state)?;
        timing.preprocess = preprocess;
        timing.total = start.elapsed();
        Ok(Prediction { actions, normalised, seed, timing })
    }

    /// The network alone: inputs of B samples and noise (B, horizon, action dim) → normalised actions of the same shape.
    ///
    /// # Errors
    /// See [`predict`](Self::predict).
    pub fn run(
        &mut self,
        inputs: &ModelInputs,
        noise: ArrayView3<f32>,
        probe: &mut Probe,
    ) -> Result<(Array3<f32>, Timing), PolicyError> {
        self.run_guided(inputs, noise, None, probe)
    }

    /// [`run`](Self::run), pulled to `guidance`, which holds for all samples alike.
    ///
    /// # Errors
    /// See [`predict`](Self::predict).
    pub fn run_guided(
        &mut self,
        inputs: &ModelInputs,
        noise: ArrayView3<f32>,
        guidance: Option<&Guidance>,
        probe: &mut Probe,
    ) -> Result<(Array3<f32>, Timing), PolicyError> {
        self.run_images(inputs, None, noise, guidance, probe)
    }

    fn run_images(
        &mut self,
        inputs: &ModelInputs,
        images: Option<&Tensor>,
        noise: ArrayView3<f32>,
        guidance: Option<&Guidance>,
        probe: &mut Probe,
    ) -> Result<(Array3<f32>, Timing), PolicyError> {
        let start = Instant::now();
        let (actions, StageTimes { vision, language, action_head }) =
            self.network.run_with_images(inputs, images, noise, guidance, probe)?;
        let total = start.elapsed();
        Ok((actions, Timing { vision, language, action_head, total, ..Timing::default() }))
    }
}
