//! The action head's weights as the fused kernels want them: queries, keys and values side by side, linear layers without
//! anything between them multiplied out, biases in f32.

use tch::{Kind, Tensor};

use super::super::{
    ModelError,
    dit::{BlockContext, timestep_features},
    embodiment::action_time_features,
    layers::Loader,
};
use crate::checkpoint::ModelConfig;

/// Width multiple of what tensor cores read, in elements.
const ALIGNMENT: i64 = 8;

/// y = x·Wᵀ + b.
#[derive(Debug)]
pub struct Linear {
    /// bf16 (out, in).
    pub weight: Tensor,
    /// f32 (out).
    pub bias: Tensor,
    /// bf16 (out), where the bias has that type.
    pub bias_bf16: Option<Tensor>,
}

impl Linear {
    fn load(at: &Loader) -> Result<Self, ModelError> {
        Self::joined(std::slice::from_ref(at))
    }

    /// Several layers with the same input as one.
    fn joined(parts: &[Loader]) -> Result<Self, ModelError> {
        let all = |name| parts.iter().map(|at| at.tensor(name)).collect::<Result<Vec<_>, _>>();
        let (weights, biases) = (all("weight")?, all("bias")?);
        let bias = Tensor::f_cat(&biases, 0)?;
        Ok(Self {
            weight: Tensor::f_cat(&weights, 0)?,
            bias: bias.f_to_kind(Kind::Float)?,
            bias_bf16: Some(bias),
        })
    }

    /// From f32 (in, out) and (out): rounded, both sides padded with zeros.
    fn rounded(weight: &Tensor, bias: &Tensor, out: i64, input: i64) -> Result<Self, ModelError> {
        let weight = weight.f_transpose(0, 1)?;
        let size = weight.size();
        let pad = [0, input - size[1], 0, out - size[0]];
        Ok(Self {
            weight: weight.f_constant_pad_nd(pad)?.f_to_kind(Kind::BFloat16)?.f_contiguous()?,
            bias: bias.f_constant_pad_nd([0, out - size[0]])?.f_contiguous()?,
            bias_bf16: None,
        })
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.weight.size()[0] as usize
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.weight.size()[1] as usize
    }
}

/// Which tokens of the prompt a group of cross-attending blocks reads, and all their keys and values as one layer.
#[derive(Debug)]
pub struct CrossGroup {
    /// bf16 (blocks · 2 · width, context width): keys, then values, block by block.
    pub weight: Tensor,
    /// bf16.
    pub bias: Tensor,
}

/// One block of the transformer.
#[derive(Debug)]
pub struct Block {
    pub reads: BlockContext,
    /// Place in its [`CrossGroup`].
    pub place: usize,
    /// Queries, for self-attention with keys and values.
    pub input: Linear,
    pub out: Linear,
    pub ff_in: Linear,
    pub ff_out: Linear,
    adaptive: (Tensor, Tensor),
}

/// What the timesteps alone decide, f32.
#[derive(Debug)]
pub struct StepTerms {
    /// (steps, blocks + 1, 2, width): what each norm is multiplied by and what is added; the output's last.
    pub modulation: Tensor,
    /// (steps, width): bias of the first product of the action encoder.
    pub embedding: Tensor,
}

/// Everything.
pub struct HeadWeights {
    pub blocks: Vec<Block>,
    pub text: Option<CrossGroup>,
    pub image: Option<CrossGroup>,
    /// Actions (padded) to the middle of the action encoder, its first two layers in one; the bias is in [`StepTerms`].
    pub embed: Linear,
    pub token: Linear,
    /// f32 (horizon, width).
    pub positions: Option<Tensor>,
    /// The transformer's output layer and the decoder's first in one.
    pub decode: Linear,
    /// To velocities (padded).
    pub velocity: Linear,
    time_in: (Tensor, Tensor),
    time_out: (Tensor, Tensor),
    output: (Tensor, Tensor),
    /// bf16 (width, width) and f32 (width): the part of the action encoder's second layer that multiplies time features,
    /// and the biases that come with it.
    embed_time: (Tensor, Tensor),
}

fn wide(x: &Tensor) -> Result<Tensor, ModelError> {
    Ok(x.f_to_kind(Kind::Float)?)
}

fn pair(at: &Loader) -> Result<(Tensor, Tensor), ModelError> {
    Ok((at.tensor("weight")?, at.tensor("bias")?))
}

/// In f32 from bf16 weights.
fn linear(x: &Tensor, (weight, bias): &(Tensor, Tensor)) -> Result<Tensor, ModelError> {
    Ok(x.f_linear(&wide(weight)?, Some(&wide(bias)?))?)
}

impl HeadWeights {
    /// Reads the module `action_head` for one embodiment; the loader's type is bf16.
    pub fn load(at: &Loader, config: &ModelConfig, embodiment: usize) -> Result<Self, ModelError> {
        let dit = at.at("model");
        let mut blocks = Vec::new();
        let (mut text, mut image) = (Vec::new(), Vec::new());
        for i in 0..config.diffusion.num_layers {
            let block = dit.at(format!("transformer_blocks.{i}"));
            let attention = block.at("attn1");
            let [q, k, v] = ["to_q", "to_k", "to_v"].map(|name| attention.at(name));
            let reads = BlockContext::of(i, config.attend_text_every_n_blocks);
            let mut place = 0;
            let input = if reads == BlockContext::Own {
                Linear::joined(&[q, k, v])?
            } else {
                let group = if reads == BlockContext::Text { &mut text } else { &mut image };
                place = group.len() / 2;
                group.extend([k, v]);
                Linear::load(&q)?
            };
            blocks.push(Block {
                reads,
                place,
                input,
                out: Linear::load(&attention.at("to_out.0"))?,
                ff_in: Linear::load(&block.at("ff.net.0.proj"))?,
                ff_out: Linear::load(&block.at("ff.net.2"))?,
                adaptive: pair(&block.at("norm1.linear"))?,
            });
        }
        let group = |parts: &[Loader]| -> Result<Option<CrossGroup>, ModelError> {
            if parts.is_empty() {
                return Ok(None);
            }
            let joined = Linear::joined(parts)?;
            Ok(joined.bias_bf16.map(|bias| CrossGroup { weight: joined.weight, bias }))
        };
        let stacked = |module: &str, layer: &str| -> Result<(Tensor, Tensor), ModelError> {
            let at = at.at(module).at(layer);
            Ok((wide(&at.slice("W", embodiment)?)?, wide(&at.slice("b", embodiment)?)?))
        };
        // (action dim, width) · (width, width): nothing lies between the encoder's first two layers.
        let (w1, b1) = stacked("action_encoder", "W1")?;
        let (w2, b2) = stacked("action_encoder", "W2")?;
        let (w3, b3) = stacked("action_encoder", "W3")?;
        let width = w3.size()[1];
        let (w2_actions, w2_time) = (w2.f_narrow(0, 0, width)?, w2.f_narrow(0, width, width)?);
        let embed_bias = b1.f_unsqueeze(0)?.f_matmul(&w2_actions)?.f_squeeze_dim(0)?.f_add(&b2)?;
        let padded = |n: i64| (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        let action_dim = padded(w1.size()[0]);
        let embed = Linear::rounded(&w1.f_matmul(&w2_actions)?, &embed_bias, width, action_dim)?;
        let token = Linear::rounded(&w3, &b3, width, width)?;
        // (width, output) · (output, hidden): nothing lies between transformer and decoder either.
        let (out_weight, out_bias) = pair(&dit.at("proj_out_2"))?;
        let (out_weight, out_bias) = (wide(&out_weight)?, wide(&out_bias)?);
        let (d1, d1_bias) = stacked("action_decoder", "layer1")?;
        let (d2, d2_bias) = stacked("action_decoder", "layer2")?;
        let hidden = d1.size()[1];
        let decode_bias = out_bias.f_unsqueeze(0)?.f_matmul(&d1)?.f_squeeze_dim(0)?.f_add(&d1_bias)?;
        let decode_weight = out_weight.f_transpose(0, 1)?.f_matmul(&d1)?;
        let decode = Linear::rounded(&decode_weight, &decode_bias, padded(hidden), width)?;
        let velocity = Linear::rounded(&d2, &d2_bias, action_dim, padded(hidden))?;
        let positions = if config.add_pos_embed {
            let all = at.at("position_embedding").tensor("weight")?;
            Some(wide(&all.f_narrow(0, 0, config.action_horizon as i64)?)?.f_contiguous()?)
        } else {
            None
        };
        let embedder = dit.at("timestep_encoder.timestep_embedder");
        Ok(Self {
            text: group(&text)?,
            image: group(&image)?,
            blocks,
            embed,
            token,
            positions,
            decode,
            velocity,
            time_in: pair(&embedder.at("linear_1"))?,
            time_out: pair(&embedder.at("linear_2"))?,
            output: pair(&dit.at("proj_out_1"))?,
            embed_time: (w2_time.f_to_kind(Kind::BFloat16)?.f_contiguous()?, embed_bias),
        })
    }

    /// What depends on the timesteps alone, in f32.
    pub fn step_terms(&self, timesteps: &[i64]) -> Result<StepTerms, ModelError> {
        let device = self.output.0.device();
        let features = timestep_features(timesteps)?.f_to_device(device)?;
        let temb = linear(&linear(&features, &self.time_in)?.f_silu()?, &self.time_out)?.f_silu()?;
        let mut all = Vec::new();
        for block in &self.blocks {
            // The blocks' pair comes scale first.
            let pair = linear(&temb, &block.adaptive)?.f_chunk(2, -1)?;
            all.push(Tensor::f_stack(&[&pair[0].f_add_scalar(1.0)?, &pair[1]], 1)?);
        }
        // The output's pair comes shift first.
        let pair = linear(&temb, &self.output)?.f_chunk(2, -1)?;
        all.push(Tensor::f_stack(&[&pair[1].f_add_scalar(1.0)?, &pair[0]], 1)?);
        let (weight, bias) = &self.embed_time;
        let features = action_time_features(timesteps, weight.size()[1] as usize)?.f_to_device(device)?;
        Ok(StepTerms {
            modulation: Tensor::f_stack(&all, 1)?.f_contiguous()?,
            embedding: features.f_matmul(&wide(weight)?)?.f_add(bias)?.f_contiguous()?,
        })
    }
}
