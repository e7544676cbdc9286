//! Inputs of denoising runs for INT8: what the engine will be given, from libtorch.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::synthetic::SyntheticTick;
use crate::{
    checkpoint::Checkpoint,
    engine::{CalibrationRecord, EngineError, GraphKind, calibration::CalibrationSet, fused::names},
    model::{
        ModelError,
        action_head::ActionHead,
        device::synchronize,
        layers::Loader,
        probe::Probe,
        tensorrt::{CrossProjections, step_terms_tensor},
    },
    tensorrt::{CalibrationBatches, DeviceMemory},
};

/// The inputs of single denoising steps, f32 on the GPU.
pub struct DenoisingInputs {
    device: Device,
    samples: std::vec::IntoIter<Vec<(String, Tensor)>>,
    /// Of the samples, for the engine's record.
    hash: String,
}

impl DenoisingInputs {
    /// Denoises each tick with `head` and keeps what each step was given.
    ///
    /// # Errors
    /// The head refuses, or there is no memory.
    pub fn record(
        checkpoint: &Checkpoint,
        embodiment: usize,
        head: &mut ActionHead,
        device: Device,
        ticks: &[SyntheticTick],
    ) -> Result<Self, ModelError> {
        let at = Loader::new(&checkpoint.weights, device, Kind::Float).at("action_head");
        let projections = CrossProjections::load(&at.at("model"), &checkpoint.config)?;
        let steps = head.steps();
        let terms = step_terms_tensor(checkpoint, embodiment, steps)?.f_to_device(device)?;
        let wide = |x: &Tensor| x.f_to_device(device)?.f_to_kind(Kind::Float)?.f_contiguous();
        let mut samples = Vec::new();
        let mut hasher = blake3::Hasher::new();
        for tick in ticks {
            let layout = tick.layout(device)?;
            let features = head.adopt(&tick.features)?;
            let context = wide(&head.context(&features)?)?;
            let tokens = head.condition(&features, &layout, &tick.state, &mut Probe::off())?;
            let mut probe = Probe::on();
            drop(head.denoise(&tokens, &tick.noise, &mut probe)?);
            let cross = projections
                .project(&context, &layout)?
                .into_iter()
                .map(|projected| Ok((projected.input.to_owned(), wide(&projected.tokens)?)))
                .collect::<Result<Vec<_>, ModelError>>()?;
            let tokens = wide(&tokens)?;
            for step in 0..steps {
                let name = format!("head.step{step}.actions_acc_in");
                let actions = probe.get(&name).ok_or_else(|| ModelError::Input {
                    what: "calibration",
                    expected: format!("an intermediate named {name}"),
                    found: "none".to_owned(),
                })?;
                let actions = wide(actions)?;
                hash_values(&mut hasher, &actions)?;
                let mut sample = vec![
                    (names::ACTIONS.to_owned(), actions),
                    (names::STATE_TOKENS.to_owned(), tokens.shallow_clone()),
                    (
                        names::STEP_TERMS.to_owned(),
                        wide(&terms.f_select(0, step as i64)?)?.f_add_scalar(0.0)?,
                    ),
                ];
                sample.extend(cross.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())));
                samples.push(sample);
            }
        }
        // TensorRT reads on streams of its own.
        synchronize(device);
        let hash = format!("blake3:{}", hasher.finalize().to_hex());
        Ok(Self { device, samples: samples.into_iter(), hash })
    }

    /// Identity of the inputs.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The samples that are left: each input by name.
    pub fn samples(&self) -> &[Vec<(String, Tensor)>] {
        self.samples.as_slice()
    }

    /// Samples left.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.samples.len() == 0
    }
}

impl CalibrationBatches for DenoisingInputs {
    fn batch_size(&self) -> usize {
        1
    }

    fn next(&mut self, inputs: &[&str]) -> Result<Option<Vec<DeviceMemory>>, String> {
        let Some(sample) = self.samples.next() else { return Ok(None) };
        synchronize(self.device);
        let of = |input: &&str| {
            let named = sample.iter().find(|(name, _)| name == input);
            let (_, tensor) =
                named.ok_or_else(|| format!("expected one of the fused graph's inputs, found {input:?}"))?;
            Ok(memory(tensor.shallow_clone()))
        };
        inputs.iter().map(of).collect::<Result<Vec<_>, String>>().map(Some)
    }
}

fn hash_values(hasher: &mut blake3::Hasher, tensor: &Tensor) -> Result<(), ModelError> {
    let tensor = tensor.f_to_device(Device::Cpu)?;
    let mut values = vec![0f32; tensor.numel()];
    let count = values.len();
    tensor.f_copy_data(&mut values, count)?;
    values.iter().for_each(|value| {
        hasher.update(&value.to_le_bytes());
    });
    Ok(())
}

/// Inputs that were collected earlier, read one sample at a time.
pub struct CollectedInputs {
    set: CalibrationSet,
    next: usize,
    device: Device,
}

impl CollectedInputs {
    /// Opens the set in `folder`, which must come from the checkpoint with this hash unless that is `forced`.
    ///
    /// # Errors
    /// No set, one of another graph, or one of another checkpoint.
    pub fn open(folder: &Path, hash: &str, forced: bool, device: Device) -> Result<Self, EngineError> {
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
            let expected = format!("inputs made with the checkpoint {hash} (or --force)");
            return refuse(expected, meta.checkpoint_hash.clone());
        }
        Ok(Self { set, next: 0, device })
    }

    /// What the engine's record says of it.
    pub fn record(&self, algorithm: &str) -> CalibrationRecord {
        CalibrationRecord {
            hash: self.set.hash(),
            algorithm: algorithm.to_owned(),
            samples: self.set.len() as u64,
            seed: self.set.meta().seed,
        }
    }
}

impl CalibrationBatches for CollectedInputs {
    fn batch_size(&self) -> usize {
        1
    }

    fn next(&mut self, inputs: &[&str]) -> Result<Option<Vec<DeviceMemory>>, String> {
        if self.next >= self.set.len() {
            return Ok(None);
        }
        let sample = self.set.read(self.next).map_err(|error| error.to_string())?;
        self.next += 1;
        let mut memories = Vec::with_capacity(inputs.len());
        for input in inputs {
            let tensor = sample
                .tensors
                .get(*input)
                .ok_or_else(|| format!("expected the input {input:?} in {}, found none", sample.source))?;
            let values = tensor
                .to_f32()
                .ok_or_else(|| format!("expected f32 for {input:?}, found {:?}", tensor.dtype))?;
            let uploaded = Tensor::f_from_slice(&values).and_then(|values| values.f_to_device(self.device));
            memories.push(memory(uploaded.map_err(|error| error.to_string())?));
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
