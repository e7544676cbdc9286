//! Inputs of denoising steps for INT8: what the engine will be given, from libtorch.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};
use thiserror::Error;

use super::super::{interpreter::NamedTensors, synthetic::SyntheticTick};
use crate::{
    checkpoint::Checkpoint,
    engine::{
        EngineError, GraphKind,
        calibration::{CalibrationSample, CalibrationSet, HostTensor},
        fused::names,
    },
    model::{
        ModelError,
        action_head::ActionHead,
        device::{synchronize, to_host},
        layers::Loader,
        probe::Probe,
        tensorrt::{CrossProjections, step_terms_tensor},
        tokens::TokenLayout,
    },
    tensorrt::{CalibrationBatches, DeviceMemory},
};

/// Why there are no inputs.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InputsError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl From<tch::TchError> for InputsError {
    fn from(error: tch::TchError) -> Self {
        Self::Model(error.into())
    }
}

/// Denoises ticks and keeps what the fused graph is given on the way.
pub struct TickRecorder {
    projections: CrossProjections,
    /// (steps, rows, width).
    terms: Tensor,
    device: Device,
}

/// The fused graph's inputs at each step of one tick, f32 on the device.
pub struct TickInputs {
    /// The same at every step.
    shared: NamedTensors,
    /// The accumulator before each step, (1, horizon, action dim).
    actions: Vec<Tensor>,
    terms: Tensor,
}

impl TickRecorder {
    /// For the denoising of `head`, one embodiment of `checkpoint` on `device`.
    ///
    /// # Errors
    /// The checkpoint lacks something, or there is no memory.
    pub fn new(
        checkpoint: &Checkpoint,
        embodiment: usize,
        head: &ActionHead,
        device: Device,
    ) -> Result<Self, ModelError> {
        let at = Loader::new(&checkpoint.weights, device, Kind::Float).at("action_head");
        let projections = CrossProjections::load(&at.at("model"), &checkpoint.config)?;
        let terms = step_terms_tensor(checkpoint, embodiment, head.steps())?.f_to_device(device)?;
        Ok(Self { projections, terms, device })
    }

    /// Denoises one tick: backbone features (1, S, D) in the head's type, state (1, rows, state dim), noise (1, horizon,
    /// action dim).
    ///
    /// # Errors
    /// The head refuses, or makes something that is not finite.
    pub fn record(
        &self,
        head: &mut ActionHead,
        features: &Tensor,
        layout: &TokenLayout,
        state: &Tensor,
        noise: &Tensor,
    ) -> Result<TickInputs, ModelError> {
        let wide = |x: &Tensor| x.f_to_device(self.device)?.f_to_kind(Kind::Float)?.f_contiguous();
        let context = wide(&head.context(features)?)?;
        let tokens = head.condition(features, layout, state, &mut Probe::off())?;
        let mut probe = Probe::on();
        let last = head.denoise(&tokens, noise, &mut probe)?;
        let bad = last.f_isfinite()?.f_logical_not()?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        if bad > 0 {
            return Err(ModelError::NonFinite { stage: "action head", count: bad });
        }
        let mut shared = NamedTensors::from([(names::STATE_TOKENS.to_owned(), wide(&tokens)?)]);
        for projected in self.projections.project(&context, layout)? {
            shared.insert(projected.input.to_owned(), wide(&projected.tokens)?);
        }
        let actions = (0..head.steps())
            .map(|step| {
                let name = format!("head.step{step}.actions_acc_in");
                let actions = probe.get(&name).ok_or_else(|| ModelError::Input {
                    what: "calibration",
                    expected: format!("an intermediate named {name}"),
                    found: "none".to_owned(),
                })?;
                Ok(wide(actions)?)
            })
            .collect::<Result<_, ModelError>>()?;
        Ok(TickInputs { shared, actions, terms: self.terms.shallow_clone() })
    }
}

impl TickInputs {
    /// Denoising steps.
    pub fn steps(&self) -> usize {
        self.actions.len()
    }

    /// All inputs at a step.
    ///
    /// # Errors
    /// No such step, or no memory.
    pub fn step(&self, step: usize) -> Result<NamedTensors, ModelError> {
        let actions = self.actions.get(step).ok_or_else(|| ModelError::Input {
            what: "denoising step",
            expected: format!("below {}", self.steps()),
            found: step.to_string(),
        })?;
        let mut inputs: NamedTensors =
            self.shared.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        inputs.insert(names::ACTIONS.to_owned(), actions.shallow_clone());
        inputs.insert(names::STEP_TERMS.to_owned(), self.terms.f_select(0, step as i64)?);
        Ok(inputs)
    }

    /// The inputs at a step in host memory; `source` says where the tick comes from.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn sample(&self, step: usize, source: &str) -> Result<CalibrationSample, ModelError> {
        let inputs = self.step(step)?;
        let tensors = inputs.iter().map(|(name, tensor)| {
            let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
            Ok((name.clone(), HostTensor::from_f32(shape, &to_host(tensor)?)))
        });
        Ok(CalibrationSample {
            step,
            source: source.to_owned(),
            tensors: tensors.collect::<Result<_, ModelError>>()?,
        })
    }
}

/// The fused graph's inputs at one step.
#[derive(Debug)]
pub struct StepInputs {
    pub step: usize,
    pub tensors: NamedTensors,
}

impl StepInputs {
    /// The shape of each input.
    pub fn shapes(&self) -> BTreeMap<String, Vec<i64>> {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.size())).collect()
    }
}

/// Inputs that INT8 is calibrated on.
pub trait CalibrationInputs: Send {
    /// Samples.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A sample, f32.
    ///
    /// # Errors
    /// It is not there, or damaged.
    fn read(&self, index: usize) -> Result<StepInputs, InputsError>;

    /// Identity of all of them.
    fn hash(&self) -> String;

    /// What they were chosen or made with.
    fn seed(&self) -> u64;
}

/// The inputs of synthetic ticks, on the device.
pub struct DenoisingInputs {
    samples: Vec<StepInputs>,
    hash: String,
    seed: u64,
}

impl DenoisingInputs {
    /// Denoises each tick with `head` and keeps what each step was given. `seed` is for the record.
    ///
    /// # Errors
    /// The head refuses, or there is no memory.
    pub fn record(
        checkpoint: &Checkpoint,
        embodiment: usize,
        head: &mut ActionHead,
        device: Device,
        ticks: impl IntoIterator<Item = Result<SyntheticTick, ModelError>>,
        seed: u64,
    ) -> Result<Self, ModelError> {
        let recorder = TickRecorder::new(checkpoint, embodiment, head, device)?;
        let mut samples = Vec::new();
        let mut hasher = blake3::Hasher::new();
        for tick in ticks {
            let tick = tick?;
            let layout = tick.layout(device)?;
            let features = head.adopt(&tick.features)?;
            let inputs = recorder.record(head, &features, &layout, &tick.state, &tick.noise)?;
            for step in 0..inputs.steps() {
                let tensors = inputs.step(step)?;
                for value in to_host(&tensors[names::ACTIONS])? {
                    hasher.update(&value.to_le_bytes());
                }
                samples.push(StepInputs { step, tensors });
            }
        }
        // TensorRT reads on streams of its own.
        synchronize(device);
        let hash = format!("blake3:{}", hasher.finalize().to_hex());
        Ok(Self { samples, hash, seed })
    }

    /// The samples, tick by tick and step by step.
    pub fn samples(&self) -> &[StepInputs] {
        &self.samples
    }
}

impl CalibrationInputs for DenoisingInputs {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn read(&self, index: usize) -> Result<StepInputs, InputsError> {
        let sample = self.samples.get(index).ok_or_else(|| beyond(self.len(), index))?;
        let tensors = sample.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        Ok(StepInputs { step: sample.step, tensors: tensors.collect() })
    }

    fn hash(&self) -> String {
        self.hash.clone()
    }

    fn seed(&self) -> u64 {
        self.seed
    }
}

/// Inputs that were collected earlier, read one sample at a time.
pub struct CollectedInputs {
    set: CalibrationSet,
}

impl CollectedInputs {
    /// Opens the set in `folder`, which must come from the checkpoint with this hash unless that is `forced`, and from this
    /// embodiment.
    ///
    /// # Errors
    /// No set, one of another graph or embodiment, or one of another checkpoint.
    pub fn open(folder: &Path, hash: &str, embodiment: usize, forced: bool) -> Result<Self, EngineError> {
        let set = CalibrationSet::open(folder)?;
        let meta = set.meta();
        let refuse = |expected: String, found: String| {
            Err(EngineError::Invalid {
                what: format!("calibration set {}", folder.display()),
                expected,
                found,
            })
        };
        if meta.graph != GraphKind::DitFused {
            return refuse(format!("inputs of {}", GraphKind::DitFused), meta.graph.to_string());
        }
        if meta.checkpoint_hash != hash && !forced {
            let expected = format!(
                "inputs made with the checkpoint {hash} (collect them with it, or give --force to take others)"
            );
            return refuse(expected, meta.checkpoint_hash.clone());
        }
        if meta.embodiment != embodiment {
            let expected = format!("inputs of embodiment {embodiment}, as --embodiment says");
            return refuse(expected, format!("those of {}", meta.embodiment));
        }
        Ok(Self { set })
    }
}

impl CalibrationInputs for CollectedInputs {
    fn len(&self) -> usize {
        self.set.len()
    }

    fn read(&self, index: usize) -> Result<StepInputs, InputsError> {
        let sample = self.set.read(index)?;
        let tensors = sample.tensors.iter().map(|(name, tensor)| {
            let values = tensor.to_f32().ok_or_else(|| EngineError::Invalid {
                what: format!("{name} of {}", sample.source),
                expected: "f32".to_owned(),
                found: format!("{:?}", tensor.dtype),
            })?;
            let shape: Vec<i64> = tensor.shape.iter().map(|&n| n as i64).collect();
            Ok((name.clone(), Tensor::f_from_slice(&values)?.f_reshape(shape)?))
        });
        Ok(StepInputs { step: sample.step, tensors: tensors.collect::<Result<_, InputsError>>()? })
    }

    fn hash(&self) -> String {
        self.set.hash()
    }

    fn seed(&self) -> u64 {
        self.set.meta().seed
    }
}

fn beyond(count: usize, index: usize) -> EngineError {
    EngineError::Invalid {
        what: "calibration sample".to_owned(),
        expected: format!("one below {count}"),
        found: index.to_string(),
    }
}

/// Inputs as TensorRT's calibrators take them: all of one shape.
pub struct Batches {
    inputs: Box<dyn CalibrationInputs>,
    chosen: std::vec::IntoIter<usize>,
    device: Device,
}

impl Batches {
    /// Takes the samples whose shapes are the most frequent ones, and says which shapes those are.
    ///
    /// # Errors
    /// No samples, or some that cannot be read.
    pub fn new(
        inputs: Box<dyn CalibrationInputs>,
        device: Device,
    ) -> Result<(Self, BTreeMap<String, Vec<i64>>), InputsError> {
        let mut groups: BTreeMap<BTreeMap<String, Vec<i64>>, Vec<usize>> = BTreeMap::new();
        for index in 0..inputs.len() {
            groups.entry(inputs.read(index)?.shapes()).or_default().push(index);
        }
        let largest = groups.into_iter().max_by_key(|(_, samples)| samples.len());
        let (shapes, chosen) = largest.ok_or_else(|| beyond(0, 0))?;
        Ok((Self { inputs, chosen: chosen.into_iter(), device }, shapes))
    }

    /// Samples left.
    pub fn len(&self) -> usize {
        self.chosen.len()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl CalibrationBatches for Batches {
    fn batch_size(&self) -> usize {
        1
    }

    fn next(&mut self, inputs: &[&str]) -> Result<Option<Vec<DeviceMemory>>, String> {
        let Some(index) = self.chosen.next() else { return Ok(None) };
        let sample = self.inputs.read(index).map_err(|error| error.to_string())?;
        let mut memories = Vec::with_capacity(inputs.len());
        for input in inputs {
            let tensor = sample.tensors.get(*input);
            let tensor =
                tensor.ok_or_else(|| format!("expected one of the fused graph's inputs, found {input:?}"))?;
            let own = tensor.f_to_device(self.device).and_then(|tensor| tensor.f_contiguous());
            memories.push(memory(own.map_err(|error| error.to_string())?));
        }
        synchronize(self.device);
        Ok(Some(memories))
    }
}

/// Memory of a contiguous f32 tensor on the GPU.
fn memory(tensor: Tensor) -> DeviceMemory {
    let (address, bytes) = (tensor.data_ptr(), tensor.numel() * size_of::<f32>());
    // SAFETY: the tensor has as many bytes on the GPU, and the memory keeps it.
    unsafe { DeviceMemory::external(address, bytes, Some(Box::new(tensor))) }
}
