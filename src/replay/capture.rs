//! What a mode's action head was given and what it made of it, step by step, so that another mode can be given the same.

use std::time::{Duration, Instant};

use ndarray::{Array2, Array3};
use tch::{Device, Kind, Tensor};

use super::runner::ReplayError;
use crate::{
    evaluation::DenoisingErrors,
    model::{
        ModelError,
        device::synchronize,
        network::{Network, to_array, to_tensor},
        probe::Probe,
    },
    processor::ModelInputs,
};

/// One tick of the reference mode. Everything is f32 on the CPU: a bf16 value is the same number there, so a bf16 engine that
/// is fed with it again gets what it would have got.
#[derive(Debug)]
pub struct Capture {
    input_ids: Array2<i64>,
    attention_mask: Array2<bool>,
    state: Array3<f32>,
    /// Backbone features (1, S, D).
    features: Tensor,
    steps: Vec<CapturedStep>,
}

#[derive(Debug)]
struct CapturedStep {
    /// The accumulator before the step, (1, horizon, action dim).
    actions: Tensor,
    /// What the head made of it, same shape.
    velocity: Vec<f32>,
}

impl Capture {
    /// Runs a tick with the probe on; returns the normalised actions too.
    ///
    /// # Errors
    /// See [`Network::run`].
    pub fn record(
        network: &mut Network,
        inputs: &ModelInputs,
        noise: &Array3<f32>,
    ) -> Result<(Self, Array3<f32>), ReplayError> {
        let mut probe = Probe::on();
        let (normalised, _) = network.run(inputs, noise.view(), None, &mut probe)?;
        let kept = |name: String| -> Result<Tensor, ModelError> {
            let tensor = probe.get(&name).ok_or_else(|| ModelError::Input {
                what: "capture",
                expected: format!("an intermediate named {name}"),
                found: "none; this mode does not show its steps and cannot be the reference".to_owned(),
            })?;
            Ok(tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?)
        };
        let steps = (0..network.head().steps())
            .map(|step| {
                let velocity = to_array(&kept(format!("head.step{step}.velocity"))?)?;
                Ok(CapturedStep {
                    actions: kept(format!("head.step{step}.actions_acc_in"))?,
                    velocity: velocity.into_iter().collect(),
                })
            })
            .collect::<Result<_, ModelError>>()?;
        let capture = Self {
            input_ids: inputs.input_ids.clone(),
            attention_mask: inputs.attention_mask.clone(),
            state: inputs.state.clone(),
            features: kept("backbone_features".to_owned())?,
            steps,
        };
        Ok((capture, normalised))
    }

    /// Gives a mode's action head the captured inputs at each step and adds what differs to `errors`.
    ///
    /// # Errors
    /// The head refuses, or has another number of steps.
    pub fn compare(&self, network: &mut Network, errors: &mut DenoisingErrors) -> Result<(), ReplayError> {
        let found = network.head().steps();
        if found != self.steps.len() {
            let expected = self.steps.len().to_string();
            let found = found.to_string();
            return Err(ModelError::Input { what: "denoising steps", expected, found }.into());
        }
        let _entered = network.enter()?;
        let tokens = self.condition(network)?;
        for (step, captured) in self.steps.iter().enumerate() {
            let actions = captured.actions.f_to_device(tokens.device()).map_err(ModelError::from)?;
            let velocity = network.head().velocity(&tokens, &actions, step, &mut Probe::off())?;
            let tested: Vec<f32> = to_array(&velocity)?.into_iter().collect();
            errors.push(step, &captured.velocity, &tested)?;
        }
        Ok(())
    }

    /// The time of all denoising steps of one tick, from the captured state on: the DiT with action encoder and decoder, which
    /// a fused engine does not keep apart.
    ///
    /// # Errors
    /// The head refuses.
    pub fn time_denoising(&self, network: &mut Network) -> Result<Duration, ReplayError> {
        let _entered = network.enter()?;
        let tokens = self.condition(network)?;
        let Some(first) = self.steps.first() else { return Ok(Duration::ZERO) };
        let device = tokens.device();
        let noise = first.actions.f_to_device(device).map_err(ModelError::from)?;
        synchronize(device);
        let start = Instant::now();
        let actions = network.head().denoise(&tokens, &noise, &mut Probe::off())?;
        synchronize(device);
        let time = start.elapsed();
        drop(actions);
        Ok(time)
    }

    fn condition(&self, network: &mut Network) -> Result<Tensor, ReplayError> {
        let layout = network.backbone().layout(self.input_ids.view(), self.attention_mask.view())?;
        let head = network.head();
        let features = head.adopt(&self.features)?;
        let state = to_tensor(self.state.view())?;
        Ok(head.condition(&features, &layout, &state, &mut Probe::off())?)
    }
}
