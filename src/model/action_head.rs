//! Flow-matching action head: features, state and noise to a normalised action chunk.

use ndarray::Array2;
use tch::{Device, Kind, Tensor};

use super::{
    ModelError,
    cuda::Stream,
    dit::{DitEngine, TorchDit},
    embodiment::Mlp,
    layers::{LayerNorm, Loader},
    probe::Probe,
    tokens::TokenLayout,
    velocity::{LayeredVelocity, VelocityEngine},
};
pub use crate::checkpoint::timesteps;
use crate::{checkpoint::ModelConfig, processor::guidance::Guidance};

/// Epsilon of the norm over the backbone's features.
const CONTEXT_EPS: f64 = 1e-5;

/// Everything after the backbone.
pub struct ActionHead {
    context_norm: LayerNorm,
    state_encoder: Mlp,
    engine: Box<dyn VelocityEngine>,
    timesteps: Vec<i64>,
    buckets: usize,
    horizon: i64,
    action_dim: i64,
    device: Device,
    kind: Kind,
}

impl ActionHead {
    /// Loads the module `action_head` for one embodiment; the transformer comes from outside.
    pub fn load(
        at: &Loader,
        config: &ModelConfig,
        embodiment: usize,
        dit: Box<dyn DitEngine>,
    ) -> Result<Self, ModelError> {
        let engine = Box::new(LayeredVelocity::load(at, config, embodiment, dit)?);
        Self::with_engine(at, config, embodiment, engine)
    }

    /// As [`load`](Self::load), with the transformer on libtorch too, layer by layer.
    ///
    /// # Errors
    /// A tensor is missing, or there is no memory.
    pub fn on_libtorch(at: &Loader, config: &ModelConfig, embodiment: usize) -> Result<Self, ModelError> {
        Self::load(at, config, embodiment, Box::new(TorchDit::load(&at.at("model"), config)?))
    }

    /// As [`load`](Self::load), with an engine for the whole denoising step: of the module's weights only the norm of the
    /// context and the state encoder are read.
    pub fn with_engine(
        at: &Loader,
        config: &ModelConfig,
        embodiment: usize,
        engine: Box<dyn VelocityEngine>,
    ) -> Result<Self, ModelError> {
        let mut head = Self {
            context_norm: LayerNorm::load(&at.at("vlln"), CONTEXT_EPS)?,
            state_encoder: Mlp::load(&at.at("state_encoder"), embodiment)?,
            engine,
            timesteps: Vec::new(),
            buckets: config.num_timestep_buckets,
            horizon: config.action_horizon as i64,
            action_dim: config.max_action_dim as i64,
            device: at.device(),
            kind: at.kind(),
        };
        head.set_steps(config.num_inference_timesteps)?;
        Ok(head)
    }

    /// Changes the number of denoising steps.
    pub fn set_steps(&mut self, steps: usize) -> Result<(), ModelError> {
        if steps == 0 || steps > self.buckets {
            return Err(ModelError::Input {
                what: "denoising steps",
                expected: format!("1 to {}", self.buckets),
                found: steps.to_string(),
            });
        }
        let timesteps = timesteps(steps, self.buckets);
        if timesteps != self.timesteps {
            self.engine.set_timesteps(&timesteps)?;
            self.timesteps = timesteps;
        }
        Ok(())
    }

    /// Number of denoising steps.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// Rows and columns of the noise of one sample: (action horizon, max action dim).
    pub fn noise_shape(&self) -> (usize, usize) {
        (self.horizon as usize, self.action_dim as usize)
    }

    /// What runs the denoising steps.
    pub fn engine(&self) -> &dyn VelocityEngine {
        &*self.engine
    }

    /// See [`VelocityEngine::queue_on`].
    ///
    /// # Errors
    /// The stream belongs to another device.
    pub fn queue_on(&mut self, stream: &Stream) -> Result<(), ModelError> {
        self.engine.queue_on(stream)
    }

    /// The norm over the backbone's features, (B, S, D).
    pub fn context(&self, features: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.context_norm.forward(features)?)
    }

    /// The state encoder.
    pub fn state_encoder(&self) -> &Mlp {
        &self.state_encoder
    }

    /// A tensor from elsewhere on the head's device and in its type.
    pub fn adopt(&self, tensor: &Tensor) -> Result<Tensor, ModelError> {
        Ok(tensor.f_to_device(self.device)?.f_to_kind(self.kind)?)
    }

    /// Encodes the state (B, T_state, max state dim) and hands the tick's context to the engine.
    ///
    /// Returns the state tokens (B, T_state, width).
    pub fn condition(
        &mut self,
        features: &Tensor,
        layout: &TokenLayout,
        state: &Tensor,
        probe: &mut Probe,
    ) -> Result<Tensor, ModelError> {
        let context = self.context(features)?;
        probe.record(|| "head.vl_embeds".to_owned(), &context);
        let state = state.f_to_device(self.device)?.f_to_kind(self.kind)?;
        if probe.is_on() {
            probe.record(|| "head.state_in".to_owned(), &state);
            probe.record(|| "head.state_hidden".to_owned(), &self.state_encoder.hidden(&state)?);
        }
        let tokens = self.state_encoder.forward(&state)?;
        probe.record(|| "head.state_features".to_owned(), &tokens);
        self.engine.condition(&context, layout, probe)?;
        Ok(tokens)
    }

    /// Velocity (B, horizon, action dim), in the engine's type, of noisy actions at denoising step `step`.
    pub fn velocity(
        &mut self,
        state_tokens: &Tensor,
        actions: &Tensor,
        step: usize,
        probe: &mut Probe,
    ) -> Result<Tensor, ModelError> {
        let velocity = self.engine.velocity(step, state_tokens, actions, probe)?;
        probe.record(|| format!("head.step{step}.velocity"), &velocity);
        Ok(velocity)
    }

    /// Euler integration from `noise` (B, horizon, action dim), f32, to the normalised actions of the same shape.
    ///
    /// The accumulator is f32 whatever the model's type: in bf16 each step would round to three digits.
    pub fn denoise(
        &mut self,
        state_tokens: &Tensor,
        noise: &Tensor,
        probe: &mut Probe,
    ) -> Result<Tensor, ModelError> {
        self.denoise_guided(state_tokens, noise, None, probe)
    }

    /// [`denoise`](Self::denoise), pulled to `guidance`, (horizon, action dim) for all samples alike.
    ///
    /// From the actions a at time τ and the velocity v, the flow would end at x = a + (1 - τ) · v. That end is moved to
    /// x + w · (target - x), and the velocity becomes the one that leads there. With a weight of 1 the last step ends at the
    /// target but for rounding; with 0 nothing changes but for rounding; without guidance nothing changes at all.
    pub fn denoise_guided(
        &mut self,
        state_tokens: &Tensor,
        noise: &Tensor,
        guidance: Option<&Guidance>,
        probe: &mut Probe,
    ) -> Result<Tensor, ModelError> {
        let pull =
            guidance.map(|guidance| Pull::new(guidance, self.noise_shape(), self.device)).transpose()?;
        self.denoise_pulled(state_tokens, noise, pull.as_ref(), probe)
    }

    /// [`denoise_guided`](Self::denoise_guided) by guidance that is on the device already.
    pub fn denoise_pulled(
        &mut self,
        state_tokens: &Tensor,
        noise: &Tensor,
        pull: Option<&Pull>,
        probe: &mut Probe,
    ) -> Result<Tensor, ModelError> {
        let size = noise.size();
        if size.len() != 3 || size[1] != self.horizon || size[2] != self.action_dim {
            return Err(ModelError::Input {
                what: "noise",
                expected: format!("(batch, {}, {})", self.horizon, self.action_dim),
                found: format!("{size:?}"),
            });
        }
        let mut actions = noise.f_to_device(self.device)?.f_to_kind(Kind::Float)?;
        if pull.is_none()
            && !probe.is_on()
            && let Some(actions) = self.engine.denoise(state_tokens, &actions)?
        {
            return Ok(actions);
        }
        let steps = self.steps();
        for step in 0..steps {
            probe.record(|| format!("head.step{step}.actions_acc_in"), &actions);
            let velocity = self.velocity(state_tokens, &actions, step, probe)?;
            let mut velocity = velocity.f_to_kind(Kind::Float)?;
            if let Some(pull) = pull {
                // The integration's own time, not the truncated one that the network is told: so the last step ends at 1.
                velocity = pull.velocity(&actions, &velocity, (steps - step) as f64 / steps as f64)?;
            }
            let change = velocity.f_mul_scalar(1.0 / steps as f64)?;
            actions = actions.f_add(&change)?;
            probe.record(|| format!("head.step{step}.actions_out"), &actions);
        }
        probe.record(|| "action_pred".to_owned(), &actions);
        Ok(actions)
    }
}

/// [`Guidance`] on the device, f32, (horizon, action dim).
#[derive(Debug)]
pub struct Pull {
    /// Where the flow is to end.
    pub target: Tensor,
    /// How much each value counts, 0 to 1.
    pub weights: Tensor,
}

impl Pull {
    /// Refuses guidance of another shape than (horizon, action dim), and values that are not finite.
    ///
    /// # Errors
    /// Which of the two it is, and where.
    pub fn check(guidance: &Guidance, shape: (usize, usize)) -> Result<(), ModelError> {
        for (what, values) in [("guidance target", &guidance.target), ("guidance weights", &guidance.weights)]
        {
            if values.dim() != shape {
                let (expected, found) = (format!("{shape:?}"), format!("{:?}", values.dim()));
                return Err(ModelError::Input { what, expected, found });
            }
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                let expected = "finite values".to_owned();
                return Err(ModelError::Input { what, expected, found: value.to_string() });
            }
        }
        Ok(())
    }

    fn new(guidance: &Guidance, shape: (usize, usize), device: Device) -> Result<Self, ModelError> {
        Self::check(guidance, shape)?;
        let upload = |values: &Array2<f32>| -> Result<Tensor, ModelError> {
            let flat: Vec<f32> = values.iter().copied().collect();
            let size = [shape.0 as i64, shape.1 as i64];
            Ok(Tensor::f_from_slice(&flat)?.f_reshape(size)?.f_to_device(device)?)
        };
        Ok(Self { target: upload(&guidance.target)?, weights: upload(&guidance.weights)? })
    }

    /// The velocity that leads to the moved end, `left` = 1 - τ before it.
    fn velocity(&self, actions: &Tensor, velocity: &Tensor, left: f64) -> Result<Tensor, ModelError> {
        let end = velocity.f_mul_scalar(left)?.f_add(actions)?;
        let away = self.target.f_sub(&end)?.f_mul(&self.weights)?;
        Ok(end.f_add(&away)?.f_sub(actions)?.f_div_scalar(left)?)
    }
}
