//! One denoising step as a whole, behind the trait that every way of running it implements.

use std::any::Any;

use tch::{Kind, Tensor};

use super::{
    ModelError,
    cuda::Stream,
    dit::DitEngine,
    embodiment::{ActionEncoder, Mlp},
    layers::Loader,
    probe::Probe,
    tokens::TokenLayout,
};
use crate::checkpoint::ModelConfig;

/// Something that is kept because its memory is in use. Dropped, it may be freed at once.
pub type Retained = Box<dyn Any + Send>;

/// Noisy actions to velocity: action encoder, diffusion transformer and action decoder of one embodiment.
///
/// Call order: [`set_timesteps`](Self::set_timesteps) at load and whenever the number of denoising steps changes,
/// [`condition`](Self::condition) once per tick, [`velocity`](Self::velocity) once per denoising step.
pub trait VelocityEngine: Send {
    /// What the engine is, for logs and diagnostics, e.g. `TensorRT 10.3.0 fp16 on cuda:0`.
    fn identity(&self) -> String;

    /// Fixes the timestep bucket of each denoising step and computes what depends on it alone.
    fn set_timesteps(&mut self, timesteps: &[i64]) -> Result<(), ModelError>;

    /// What the last tick worked on and the engine may let go: what depends on the timesteps alone, and memory of its own
    /// for ticks of that shape. Whoever captured the tick keeps it, since the graph holds its addresses.
    fn retained(&self) -> Vec<Retained> {
        Vec::new()
    }

    /// Queues work that libtorch does not queue itself on `stream`, libtorch's current one from now on.
    ///
    /// # Errors
    /// The stream belongs to another device.
    fn queue_on(&mut self, _stream: &Stream) -> Result<(), ModelError> {
        Ok(())
    }

    /// Whether [`condition`](Self::condition) and [`velocity`](Self::velocity) may be captured as parts of a CUDA graph: they
    /// queue work of fixed shape on libtorch's current stream, and neither wait for it nor read the host's memory.
    fn capturable(&self) -> bool {
        false
    }

    /// Takes the context (B, S, D) of a tick, after its norm, tokens sorted by `layout`.
    fn condition(
        &mut self,
        context: &Tensor,
        layout: &TokenLayout,
        probe: &mut Probe,
    ) -> Result<(), ModelError>;

    /// State tokens (B, T_state, width) and noisy actions (B, horizon, action dim) at denoising step `step` → velocity
    /// (B, horizon, action dim), in the engine's type, at most f32.
    fn velocity(
        &mut self,
        step: usize,
        state_tokens: &Tensor,
        actions: &Tensor,
        probe: &mut Probe,
    ) -> Result<Tensor, ModelError>;

    /// All denoising steps at once, where the engine can: state tokens (B, T_state, width) and f32 noise (B, horizon,
    /// action dim) on the engine's device → f32 actions of the same shape. None: step by step.
    fn denoise(&mut self, _state_tokens: &Tensor, _noise: &Tensor) -> Result<Option<Tensor>, ModelError> {
        Ok(None)
    }
}

/// The step on libtorch, layer by layer, with the transformer behind a trait of its own.
pub struct LayeredVelocity {
    action_encoder: ActionEncoder,
    action_decoder: Mlp,
    /// (1, horizon, width).
    positions: Option<Tensor>,
    dit: Box<dyn DitEngine>,
    horizon: i64,
    kind: Kind,
}

impl LayeredVelocity {
    /// Loads encoder and decoder of one embodiment from the module `action_head`; the transformer comes from outside.
    pub fn load(
        at: &Loader,
        config: &ModelConfig,
        embodiment: usize,
        dit: Box<dyn DitEngine>,
    ) -> Result<Self, ModelError> {
        let horizon = config.action_horizon as i64;
        let positions = if config.add_pos_embed {
            let all = at.at("position_embedding").tensor("weight")?;
            Some(all.f_narrow(0, 0, horizon)?.f_unsqueeze(0)?.f_contiguous()?)
        } else {
            None
        };
        Ok(Self {
            action_encoder: ActionEncoder::load(&at.at("action_encoder"), embodiment)?,
            action_decoder: Mlp::load(&at.at("action_decoder"), embodiment)?,
            positions,
            dit,
            horizon,
            kind: at.kind(),
        })
    }
}

impl VelocityEngine for LayeredVelocity {
    fn identity(&self) -> String {
        self.dit.identity()
    }

    fn set_timesteps(&mut self, timesteps: &[i64]) -> Result<(), ModelError> {
        self.action_encoder.set_timesteps(timesteps)?;
        self.dit.set_timesteps(timesteps)
    }

    fn retained(&self) -> Vec<Retained> {
        let mut retained = self.dit.retained();
        retained
            .extend(self.action_encoder.retained().into_iter().map(|tensor| Box::new(tensor) as Retained));
        retained
    }

    fn capturable(&self) -> bool {
        self.dit.capturable()
    }

    fn condition(
        &mut self,
        context: &Tensor,
        layout: &TokenLayout,
        probe: &mut Probe,
    ) -> Result<(), ModelError> {
        self.dit.condition(context, layout, probe)
    }

    fn velocity(
        &mut self,
        step: usize,
        state_tokens: &Tensor,
        actions: &Tensor,
        probe: &mut Probe,
    ) -> Result<Tensor, ModelError> {
        let actions = actions.f_to_kind(self.kind)?;
        probe.record(|| format!("head.step{step}.actions_in"), &actions);
        let mut tokens = self.action_encoder.forward(&actions, step, probe)?;
        probe.record(|| format!("head.step{step}.action_encoder_out"), &tokens);
        if let Some(positions) = &self.positions {
            tokens = tokens.f_add(positions)?;
        }
        let tokens = Tensor::f_cat(&[state_tokens, &tokens], 1)?;
        probe.record(|| format!("head.step{step}.sa_embs"), &tokens);
        let hidden = self.dit.step(step, &tokens, probe)?;
        let decoded = self.action_decoder.forward(&hidden)?;
        probe.record(|| format!("head.step{step}.decoder_out"), &decoded);
        let first = decoded.size()[1] - self.horizon;
        Ok(decoded.f_narrow(1, first, self.horizon)?)
    }
}
