//! The engine against libtorch on the same inputs, and how long both take.

use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::synthetic::SyntheticTick;
use crate::{
    checkpoint::Checkpoint,
    evaluation::{DenoisingErrors, DenoisingSummary, LatencySamples, LatencySummary, MetricError},
    model::{
        ModelError,
        action_head::ActionHead,
        device::{synchronize, to_host},
        layers::Loader,
        probe::Probe,
    },
    tensorrt::{DeviceTimer, TensorRtError},
};

/// Why nothing could be compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Metric(#[from] MetricError),
    #[error(transparent)]
    TensorRt(#[from] TensorRtError),
    #[error("the capture lacks {0}: a defect of groot_policy, please report it")]
    Missing(String),
}

impl From<tch::TchError> for VerifyError {
    fn from(error: tch::TchError) -> Self {
        Self::Model(error.into())
    }
}

/// The action head on libtorch alone.
///
/// # Errors
/// The checkpoint lacks something, or there is no memory for it.
pub fn torch_head(
    checkpoint: &Checkpoint,
    embodiment: usize,
    device: Device,
    kind: Kind,
) -> Result<ActionHead, ModelError> {
    let at = Loader::new(&checkpoint.weights, device, kind).at("action_head");
    ActionHead::on_libtorch(&at, &checkpoint.config, embodiment)
}

/// What a head made of a tick, step by step, f32 on the CPU.
pub struct Trace {
    /// The accumulator before each step.
    before: Vec<Tensor>,
    velocity: Vec<Vec<f32>>,
    /// The accumulator after each step.
    after: Vec<Vec<f32>>,
}

impl Trace {
    /// Denoises a tick and keeps what happens at each step.
    ///
    /// # Errors
    /// The head refuses.
    pub fn record(head: &mut ActionHead, tick: &SyntheticTick, device: Device) -> Result<Self, VerifyError> {
        let tokens = condition(head, tick, device)?;
        let mut probe = Probe::on();
        drop(head.denoise(&tokens, &tick.noise, &mut probe)?);
        let kept = |name: String| -> Result<Tensor, VerifyError> {
            let tensor = probe.get(&name).ok_or(VerifyError::Missing(name))?;
            Ok(tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?)
        };
        let mut trace = Self { before: Vec::new(), velocity: Vec::new(), after: Vec::new() };
        for step in 0..head.steps() {
            trace.before.push(kept(format!("head.step{step}.actions_acc_in"))?);
            trace.velocity.push(to_host(&kept(format!("head.step{step}.velocity"))?)?);
            trace.after.push(to_host(&kept(format!("head.step{step}.actions_out"))?)?);
        }
        Ok(trace)
    }

    /// The velocity of each step, flattened.
    pub fn velocities(&self) -> &[Vec<f32>] {
        &self.velocity
    }

    /// Root of the mean square of the velocities, to know what size of error matters.
    pub fn velocity_rms(&self) -> f64 {
        let all = self.velocity.iter().flatten();
        let (sum, count) = all.fold((0.0, 0u64), |(sum, n), v| (sum + f64::from(*v).powi(2), n + 1));
        (sum / count.max(1) as f64).sqrt()
    }
}

/// How far a head is from another.
#[derive(Debug, Clone, Default)]
pub struct Distance {
    /// Velocities from the same inputs at each step: the error of the step alone.
    pub velocity: DenoisingErrors,
    /// Actions after each step, each head on its own way: the error as it adds up.
    pub actions: DenoisingErrors,
}

impl Distance {
    /// Holds `head` against the trace of the reference for the same tick.
    ///
    /// # Errors
    /// The head refuses, or gives something of another size.
    pub fn add(
        &mut self,
        reference: &Trace,
        head: &mut ActionHead,
        tick: &SyntheticTick,
        device: Device,
    ) -> Result<(), VerifyError> {
        let tokens = condition(head, tick, device)?;
        for (step, (before, expected)) in reference.before.iter().zip(&reference.velocity).enumerate() {
            let actions = before.f_to_device(device)?;
            let velocity = head.velocity(&tokens, &actions, step, &mut Probe::off())?;
            self.velocity.push(step, expected, &to_host(&velocity)?)?;
        }
        let own = Trace::record(head, tick, device)?;
        for (step, (expected, found)) in reference.after.iter().zip(&own.after).enumerate() {
            self.actions.push(step, expected, found)?;
        }
        Ok(())
    }

    /// The figures: velocities, actions.
    pub fn summaries(&self) -> (DenoisingSummary, DenoisingSummary) {
        (self.velocity.summary().unwrap_or_default(), self.actions.summary().unwrap_or_default())
    }
}

/// Latencies of a head.
#[derive(Debug, Clone, Default)]
pub struct HeadLatency {
    /// All denoising steps of a tick by the host's clock, synchronised before and after.
    pub denoising: LatencySamples,
    /// The same by the GPU's clock; empty on the CPU.
    pub on_device: LatencySamples,
    /// State encoder, norm and projections of the context: once per tick.
    pub conditioning: LatencySamples,
}

impl HeadLatency {
    /// Measures `iterations` ticks after `warm_up` ones.
    ///
    /// # Errors
    /// The head refuses.
    pub fn measure(
        head: &mut ActionHead,
        tick: &SyntheticTick,
        device: Device,
        warm_up: usize,
        iterations: usize,
    ) -> Result<Self, VerifyError> {
        let layout = tick.layout(device)?;
        let features = head.adopt(&tick.features)?;
        let (state, noise) = (tick.state.f_to_device(device)?, tick.noise.f_to_device(device)?);
        let timer = match device {
            Device::Cuda(ordinal) => Some(DeviceTimer::new(ordinal)?),
            _ => None,
        };
        let mut latency = Self::default();
        for iteration in 0..warm_up + iterations {
            synchronize(device);
            let start = Instant::now();
            let tokens = head.condition(&features, &layout, &state, &mut Probe::off())?;
            synchronize(device);
            let conditioned = Instant::now();
            timer.as_ref().map(DeviceTimer::start).transpose()?;
            let actions = head.denoise(&tokens, &noise, &mut Probe::off())?;
            let on_device = timer.as_ref().map(DeviceTimer::stop).transpose()?;
            synchronize(device);
            let end = Instant::now();
            drop(actions);
            if iteration >= warm_up {
                on_device.into_iter().for_each(|on_device| latency.on_device.push(on_device));
                latency.conditioning.push(conditioned - start);
                latency.denoising.push(end - conditioned);
            }
        }
        Ok(latency)
    }

    /// Figures of the denoising; all zero without measurements.
    pub fn summary(&self) -> LatencySummary {
        self.denoising.summary().unwrap_or_default()
    }
}

fn condition(head: &mut ActionHead, tick: &SyntheticTick, device: Device) -> Result<Tensor, VerifyError> {
    let layout = tick.layout(device)?;
    let features = head.adopt(&tick.features)?;
    Ok(head.condition(&features, &layout, &tick.state, &mut Probe::off())?)
}
