//! The diffusion transformer, behind the trait that every engine implements.

use tch::{Device, Kind, Tensor};

use super::{
    ModelError,
    layers::{Linear, Loader, attention, merge_heads, plain_layer_norm, sinusoids, split_heads},
    probe::Probe,
    tokens::{TokenGroup, TokenLayout},
    velocity::Retained,
};
use crate::checkpoint::ModelConfig;

pub use crate::checkpoint::BlockContext;

/// Epsilon of the blocks' norms.
const BLOCK_EPS: f64 = 1e-5;
/// Epsilon of the norm before the output projection.
const OUTPUT_EPS: f64 = 1e-6;
/// Width of the sinusoidal timestep features.
const TIME_FEATURES: i64 = 256;
/// The longest period of the sinusoids.
const MAX_PERIOD: f64 = 10_000.0;

/// An implementation of the diffusion transformer.
///
/// Call order: [`set_timesteps`](Self::set_timesteps) at load and whenever the number of denoising steps changes,
/// [`condition`](Self::condition) once per tick, [`step`](Self::step) once per denoising step.
pub trait DitEngine: Send {
    /// What the engine is, for logs and diagnostics, e.g. `libtorch bf16 on cuda:0`.
    fn identity(&self) -> String;

    /// Fixes the timestep bucket of each denoising step and computes what depends on it alone.
    fn set_timesteps(&mut self, timesteps: &[i64]) -> Result<(), ModelError>;

    /// What a captured tick needs: see [`VelocityEngine::retained`](super::velocity::VelocityEngine::retained).
    fn retained(&self) -> Vec<Retained> {
        Vec::new()
    }

    /// Whether a step may be captured: see [`VelocityEngine::capturable`](super::velocity::VelocityEngine::capturable).
    fn capturable(&self) -> bool {
        false
    }

    /// Takes the context (B, S, D) of a tick, tokens sorted by `layout`.
    fn condition(
        &mut self,
        context: &Tensor,
        layout: &TokenLayout,
        probe: &mut Probe,
    ) -> Result<(), ModelError>;

    /// State and action tokens (B, T, width) at denoising step `step` → hidden states (B, T, output width).
    fn step(&mut self, step: usize, tokens: &Tensor, probe: &mut Probe) -> Result<Tensor, ModelError>;
}

/// Timestep features [cos(t·g), sin(t·g)] with g_i = exp(−i·ln(10000)/127), f32, (timesteps, 256).
pub fn timestep_features(timesteps: &[i64]) -> Result<Tensor, ModelError> {
    let half = TIME_FEATURES / 2;
    let exponent = Tensor::f_arange(half, (Kind::Float, Device::Cpu))?
        .f_mul_scalar(-MAX_PERIOD.ln())?
        .f_div_scalar((half - 1) as f64)?;
    let (sin, cos) = sinusoids(timesteps, &exponent)?;
    Ok(Tensor::f_cat(&[cos, sin], -1)?)
}

/// Keys and values of one attention, each (B, heads, L, head width).
#[derive(Debug)]
pub struct KeyValues {
    keys: Tensor,
    values: Tensor,
}

/// One block: adaptive norm, attention, norm, feed-forward.
#[derive(Debug)]
pub struct DitBlock {
    adaptive: Linear,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    ff_in: Linear,
    ff_out: Linear,
    heads: i64,
}

impl DitBlock {
    fn load(at: &Loader, heads: usize) -> Result<Self, ModelError> {
        let (attn, ff) = (at.at("attn1"), at.at("ff.net"));
        Ok(Self {
            adaptive: Linear::load(&at.at("norm1.linear"))?,
            query: Linear::load(&attn.at("to_q"))?,
            key: Linear::load(&attn.at("to_k"))?,
            value: Linear::load(&attn.at("to_v"))?,
            out: Linear::load(&attn.at("to_out.0"))?,
            ff_in: Linear::load(&ff.at("0.proj"))?,
            ff_out: Linear::load(&ff.at(2))?,
            heads: heads as i64,
        })
    }

    /// [scale, shift] (B, 2·width) of the adaptive norm for time embeddings (B, width).
    pub fn modulation(&self, temb: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.adaptive.forward(&temb.f_silu()?)?)
    }

    /// Projected keys, (B, L, width).
    pub fn keys(&self, context: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.key.forward(context)?)
    }

    /// Projected values, (B, L, width).
    pub fn values(&self, context: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.value.forward(context)?)
    }

    /// Keys and values of a context (B, L, D), split into heads.
    pub fn key_values(&self, context: &Tensor) -> Result<KeyValues, ModelError> {
        Ok(KeyValues {
            keys: split_heads(&self.keys(context)?, self.heads)?,
            values: split_heads(&self.values(context)?, self.heads)?,
        })
    }

    /// Attention of normed tokens (B, T, width) over keys and values; `mask` (B, 1, 1, L), true = attend.
    pub fn attend(&self, x: &Tensor, over: &KeyValues, mask: Option<&Tensor>) -> Result<Tensor, ModelError> {
        let q = split_heads(&self.query.forward(x)?, self.heads)?;
        Ok(self.out.forward(&merge_heads(&attention(&q, &over.keys, &over.values, mask)?)?)?)
    }

    /// The first feed-forward layer before its GELU.
    pub fn feed_forward_in(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.ff_in.forward(x)?)
    }

    /// The feed-forward half, (B, T, width), without norm and residual.
    pub fn feed_forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.ff_out.forward(&self.feed_forward_in(x)?.f_gelu("tanh")?)?)
    }

    /// Tokens (B, T, width) through the block. `cross` is None for self-attention.
    pub fn forward(
        &self,
        x: &Tensor,
        modulation: &Modulation,
        cross: Option<(&KeyValues, Option<&Tensor>)>,
        name: &str,
        probe: &mut Probe,
    ) -> Result<Tensor, ModelError> {
        let normed = modulation.apply(x, BLOCK_EPS)?;
        probe.record(|| format!("{name}.adaln"), &normed);
        let attended = match cross {
            Some((over, mask)) => self.attend(&normed, over, mask)?,
            None => self.attend(&normed, &self.key_values(&normed)?, None)?,
        };
        probe.record(|| format!("{name}.attn"), &attended);
        let x = x.f_add(&attended)?;
        let normed = plain_layer_norm(&x, BLOCK_EPS)?;
        probe.record(|| format!("{name}.norm3"), &normed);
        let fed = self.feed_forward(&normed)?;
        probe.record(|| format!("{name}.ff"), &fed);
        Ok(x.f_add(&fed)?)
    }
}

/// What an adaptive norm multiplies by and adds, (B or 1, 1, width) each.
#[derive(Debug)]
pub struct Modulation {
    one_plus_scale: Tensor,
    shift: Tensor,
}

impl Modulation {
    /// From scale and shift (B, width).
    pub fn new(scale: &Tensor, shift: &Tensor) -> Result<Self, ModelError> {
        Ok(Self { one_plus_scale: scale.f_add_scalar(1.0)?.f_unsqueeze(1)?, shift: shift.f_unsqueeze(1)? })
    }

    /// LN(x)·(1 + scale) + shift.
    pub fn apply(&self, x: &Tensor, eps: f64) -> Result<Tensor, ModelError> {
        Ok(plain_layer_norm(x, eps)?.f_mul(&self.one_plus_scale)?.f_add(&self.shift)?)
    }
}

/// Everything that a denoising step's timestep alone decides.
#[derive(Debug)]
struct StepConstants {
    blocks: Vec<Modulation>,
    output: Modulation,
    /// (1, 256), (1, width), (1, 2·width): kept for probes.
    features: Tensor,
    temb: Tensor,
    output_modulation: Tensor,
}

/// The diffusion transformer on libtorch.
pub struct TorchDit {
    time_in: Linear,
    time_out: Linear,
    blocks: Vec<DitBlock>,
    contexts: Vec<BlockContext>,
    proj_out_1: Linear,
    proj_out_2: Linear,
    steps: Vec<StepConstants>,
    /// Per block: keys and values of this tick's context; None for self-attention.
    cross: Vec<Option<KeyValues>>,
    text_mask: Option<Tensor>,
    image_mask: Option<Tensor>,
    device: Device,
    kind: Kind,
}

impl TorchDit {
    /// Loads the module `action_head.model`.
    pub fn load(at: &Loader, config: &ModelConfig) -> Result<Self, ModelError> {
        let diffusion = &config.diffusion;
        let embedder = at.at("timestep_encoder.timestep_embedder");
        Ok(Self {
            time_in: Linear::load(&embedder.at("linear_1"))?,
            time_out: Linear::load(&embedder.at("linear_2"))?,
            blocks: (0..diffusion.num_layers)
                .map(|i| {
                    DitBlock::load(&at.at(format!("transformer_blocks.{i}")), diffusion.num_attention_heads)
                })
                .collect::<Result<_, _>>()?,
            contexts: (0..diffusion.num_layers)
                .map(|i| BlockContext::of(i, config.attend_text_every_n_blocks))
                .collect(),
            proj_out_1: Linear::load(&at.at("proj_out_1"))?,
            proj_out_2: Linear::load(&at.at("proj_out_2"))?,
            steps: Vec::new(),
            cross: Vec::new(),
            text_mask: None,
            image_mask: None,
            device: at.device(),
            kind: at.kind(),
        })
    }

    /// The blocks.
    pub fn blocks(&self) -> &[DitBlock] {
        &self.blocks
    }

    /// Time embeddings (timesteps, width) of f32 features (timesteps, 256).
    pub fn time_embedding(&self, features: &Tensor) -> Result<Tensor, ModelError> {
        let features = features.f_to_device(self.device)?.f_to_kind(self.kind)?;
        Ok(self.time_out.forward(&self.time_in.forward(&features)?.f_silu()?)?)
    }

    fn constants(&self, timestep: i64) -> Result<StepConstants, ModelError> {
        let features = timestep_features(&[timestep])?;
        let temb = self.time_embedding(&features)?;
        let blocks = self
            .blocks
            .iter()
            .map(|block| {
                // The blocks' pair comes scale first.
                let pair = block.modulation(&temb)?.f_chunk(2, -1)?;
                Modulation::new(&pair[0], &pair[1])
            })
            .collect::<Result<_, _>>()?;
        let output_modulation = self.proj_out_1.forward(&temb.f_silu()?)?;
        // The output's pair comes shift first.
        let pair = output_modulation.f_chunk(2, -1)?;
        let output = Modulation::new(&pair[1], &pair[0])?;
        Ok(StepConstants { blocks, output, features, temb, output_modulation })
    }
}

impl DitEngine for TorchDit {
    fn identity(&self) -> String {
        format!("libtorch {:?} on {:?}", self.kind, self.device)
    }

    fn set_timesteps(&mut self, timesteps: &[i64]) -> Result<(), ModelError> {
        self.steps = timesteps.iter().map(|&t| self.constants(t)).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn retained(&self) -> Vec<Retained> {
        let modulations = self.steps.iter().flat_map(|step| step.blocks.iter().chain([&step.output]));
        let tensors = modulations.flat_map(|modulation| [&modulation.one_plus_scale, &modulation.shift]);
        tensors.map(|tensor| Box::new(tensor.shallow_clone()) as Retained).collect()
    }

    fn capturable(&self) -> bool {
        true
    }

    fn condition(
        &mut self,
        context: &Tensor,
        layout: &TokenLayout,
        probe: &mut Probe,
    ) -> Result<(), ModelError> {
        let gather = |group: &TokenGroup| group.gather(context);
        let (text, image) = (gather(&layout.text)?, gather(&layout.image)?);
        self.text_mask = layout.text.mask.as_ref().map(Tensor::shallow_clone);
        self.image_mask = layout.image.mask.as_ref().map(Tensor::shallow_clone);
        self.cross = self
            .blocks
            .iter()
            .zip(&self.contexts)
            .map(|(block, reads)| match reads {
                BlockContext::Text => block.key_values(&text).map(Some),
                BlockContext::Image => block.key_values(&image).map(Some),
                BlockContext::Own => Ok(None),
            })
            .collect::<Result<_, _>>()?;
        if probe.is_on() {
            for (i, (block, reads)) in self.blocks.iter().zip(&self.contexts).enumerate() {
                if *reads != BlockContext::Own {
                    probe.record(|| format!("head.cross_k.block{i}"), &block.keys(context)?);
                    probe.record(|| format!("head.cross_v.block{i}"), &block.values(context)?);
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, step: usize, tokens: &Tensor, probe: &mut Probe) -> Result<Tensor, ModelError> {
        let Some(constants) = self.steps.get(step) else {
            return Err(ModelError::Input {
                what: "denoising step",
                expected: format!("below {}", self.steps.len()),
                found: step.to_string(),
            });
        };
        if self.cross.len() != self.blocks.len() {
            return Err(ModelError::Input {
                what: "diffusion transformer",
                expected: "a context (`condition`) before the first step".to_owned(),
                found: "none".to_owned(),
            });
        }
        let name = format!("head.step{step}");
        probe.record(|| format!("{name}.time_proj"), &constants.features);
        probe.record(|| format!("{name}.temb"), &constants.temb);
        probe.record(|| format!("{name}.dit_mod"), &constants.output_modulation);
        let mut x = tokens.shallow_clone();
        for (i, block) in self.blocks.iter().enumerate() {
            let mask = match self.contexts[i] {
                BlockContext::Text => self.text_mask.as_ref(),
                BlockContext::Image => self.image_mask.as_ref(),
                BlockContext::Own => None,
            };
            let cross = self.cross[i].as_ref().map(|over| (over, mask));
            x = block.forward(&x, &constants.blocks[i], cross, &format!("{name}.block{i}"), probe)?;
            probe.record(|| format!("{name}.block{i}.out"), &x);
        }
        if probe.is_on() {
            probe.record(|| format!("{name}.dit_norm_out"), &plain_layer_norm(&x, OUTPUT_EPS)?);
        }
        let out = self.proj_out_2.forward(&constants.output.apply(&x, OUTPUT_EPS)?)?;
        probe.record(|| format!("{name}.dit_out"), &out);
        Ok(out)
    }
}
