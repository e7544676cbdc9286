//! The layers that exist once per embodiment: state encoder, action encoder, action decoder.
//!
//! The checkpoint stores them stacked over all embodiments; only the slices of the one in use are loaded.

use tch::{Device, Kind, Tensor};

use super::{
    ModelError,
    layers::{Loader, sinusoids},
    probe::Probe,
};

/// The longest period of the sinusoids, as in the reference.
const MAX_PERIOD: f32 = 10_000.0;

/// y = x·W + b with W stored (in, out).
#[derive(Debug)]
struct Projection {
    weight: Tensor,
    bias: Tensor,
}

impl Projection {
    fn load(at: &Loader, embodiment: usize) -> Result<Self, ModelError> {
        Ok(Self { weight: at.slice("W", embodiment)?, bias: at.slice("b", embodiment)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(x.f_matmul(&self.weight)?.f_add(&self.bias)?)
    }
}

/// Two projections with a ReLU between: the state encoder and the action decoder.
#[derive(Debug)]
pub struct Mlp {
    layer1: Projection,
    layer2: Projection,
}

impl Mlp {
    /// Reads `layer1` and `layer2` of one embodiment.
    pub fn load(at: &Loader, embodiment: usize) -> Result<Self, ModelError> {
        Ok(Self {
            layer1: Projection::load(&at.at("layer1"), embodiment)?,
            layer2: Projection::load(&at.at("layer2"), embodiment)?,
        })
    }

    /// The first layer before its ReLU.
    pub fn hidden(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        self.layer1.forward(x)
    }

    /// (…, in) → (…, out).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        self.layer2.forward(&self.hidden(x)?.f_relu()?)
    }
}

/// Time features of the action encoder: [sin(t·f), cos(t·f)] with f_i = exp(−i·ln(10000)/half), f32, (steps, width).
pub fn action_time_features(timesteps: &[i64], width: usize) -> Result<Tensor, ModelError> {
    let half = (width / 2) as i64;
    let options = (Kind::Float, Device::Cpu);
    // Logarithm and division in f32, as the reference has them.
    let rate = MAX_PERIOD.ln() / half as f32;
    let exponent = Tensor::f_arange(half, options)?.f_neg()?.f_mul_scalar(rate as f64)?;
    let (sin, cos) = sinusoids(timesteps, &exponent)?;
    Ok(Tensor::f_cat(&[sin, cos], -1)?)
}

/// Noisy actions and a timestep to action tokens.
#[derive(Debug)]
pub struct ActionEncoder {
    w1: Projection,
    /// The rows of W2 that multiply the embedded actions, (width, width).
    w2_actions: Tensor,
    /// The rows of W2 that multiply the time features, (width, width).
    w2_time: Tensor,
    b2: Tensor,
    w3: Projection,
    width: usize,
    /// Per denoising step: time features times their half of W2, plus the bias, (width).
    time_terms: Vec<Tensor>,
    /// Per denoising step: the time features themselves, for probes, (1, 1, width).
    time_features: Vec<Tensor>,
}

impl ActionEncoder {
    /// Reads `W1`, `W2`, `W3` of one embodiment.
    pub fn load(at: &Loader, embodiment: usize) -> Result<Self, ModelError> {
        let w2 = Projection::load(&at.at("W2"), embodiment)?;
        let width = w2.weight.size()[1];
        Ok(Self {
            w1: Projection::load(&at.at("W1"), embodiment)?,
            w2_actions: w2.weight.f_narrow(0, 0, width)?.f_contiguous()?,
            w2_time: w2.weight.f_narrow(0, width, width)?.f_contiguous()?,
            b2: w2.bias,
            w3: Projection::load(&at.at("W3"), embodiment)?,
            width: width as usize,
            time_terms: Vec::new(),
            time_features: Vec::new(),
        })
    }

    /// Computes what depends on the timesteps alone.
    pub fn set_timesteps(&mut self, timesteps: &[i64]) -> Result<(), ModelError> {
        let all = action_time_features(timesteps, self.width)?;
        self.time_terms.clear();
        self.time_features.clear();
        for step in 0..timesteps.len() as i64 {
            let features = all.f_narrow(0, step, 1)?;
            let own = features.f_to_device(self.w2_time.device())?.f_to_kind(self.w2_time.f_kind()?)?;
            self.time_terms.push(own.f_matmul(&self.w2_time)?.f_add(&self.b2)?.f_squeeze_dim(0)?);
            self.time_features.push(features.f_unsqueeze(0)?);
        }
        Ok(())
    }

    /// What depends on the timesteps alone, as long as somebody needs it.
    pub fn retained(&self) -> Vec<Tensor> {
        self.time_terms.iter().map(Tensor::shallow_clone).collect()
    }

    /// Actions (B, H, action dim) at denoising step `step` → tokens (B, H, width), without position embedding.
    pub fn forward(&self, actions: &Tensor, step: usize, probe: &mut Probe) -> Result<Tensor, ModelError> {
        let Some(time) = self.time_terms.get(step) else {
            return Err(ModelError::Input {
                what: "denoising step",
                expected: format!("below {}", self.time_terms.len()),
                found: step.to_string(),
            });
        };
        let embedded = self.w1.forward(actions)?;
        if probe.is_on() {
            probe.record(|| format!("head.step{step}.action_W1"), &embedded);
            probe.record(|| format!("head.step{step}.action_tau"), &self.time_features[step]);
        }
        let shape = embedded.size();
        let rows = embedded.f_reshape([-1, self.width as i64])?;
        let mixed = time.f_addmm(&rows, &self.w2_actions)?.f_silu()?.f_reshape(shape)?;
        self.w3.forward(&mixed)
    }
}
