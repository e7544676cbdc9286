//! The transformer with the interface of the public export script of Isaac-GR00T: masks and timestep as inputs.

use super::terms::{TIME_FEATURES, frequencies};
use super::{BLOCK_EPS, DIT, Extent, OUTPUT_EPS, block_module};
use crate::checkpoint::{BlockContext, Checkpoint, ModelConfig};
use crate::onnx::element::ElementType;
use crate::onnx::error::OnnxError;
use crate::onnx::graph::{Graph, Source, Value};
use crate::onnx::host::narrow;
use crate::onnx::layers::{Builder, Style};

/// What the reference graph is for.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceOptions {
    pub batch: Extent,
    /// State and action tokens together.
    pub action_tokens: Extent,
    /// Tokens of the backbone, padding included.
    pub context_tokens: Extent,
    pub style: Style,
    /// Every block's intermediate values as further outputs, f32, for comparisons.
    pub expose: bool,
}

impl Default for ReferenceOptions {
    /// All lengths dynamic, f32: what the public script exports.
    fn default() -> Self {
        Self {
            batch: Extent::Dynamic,
            action_tokens: Extent::Dynamic,
            context_tokens: Extent::Dynamic,
            style: Style::default(),
            expose: false,
        }
    }
}

/// The transformer alone: no encoder, no decoder, no embodiment.
///
/// | input | type | shape |
/// |---|---|---|
/// | `sa_embs` | the graph's own | (batch_size, sa_seq_len, W): state and action tokens |
/// | `vl_embs` | the graph's own | (batch_size, vl_seq_len, backbone width): the backbone's features after their norm |
/// | `timestep` | i64 | (batch_size): the bucket |
/// | `image_mask` | bool | (batch_size, vl_seq_len): true at image tokens |
/// | `backbone_attention_mask` | bool | (batch_size, vl_seq_len): false at padding |
///
/// | output | type | shape |
/// |---|---|---|
/// | `output` | the graph's own | (batch_size, sa_seq_len, output width) |
///
/// Names, order and types are those of the public script, which exports bf16 or f32.
///
/// # Errors
/// Options that make no sense, or a checkpoint that lacks a tensor.
pub fn reference<'w>(checkpoint: &'w Checkpoint, options: &ReferenceOptions) -> Result<Graph<'w>, OnnxError> {
    let config = &checkpoint.config;
    let kind = options.style.kind;
    let mut b = Builder::new("dit_reference", &checkpoint.weights, options.style)?;
    b.describe("graph", "dit_reference");
    b.describe("kind", kind.name());
    let batch = options.batch.dim("batch_size")?;
    let tokens = options.action_tokens.dim("sa_seq_len")?;
    let context = options.context_tokens.dim("vl_seq_len")?;
    let mut x = b.input("sa_embs", kind, [batch, tokens, config.input_embedding_dim.into()])?;
    let vl = b.input("vl_embs", kind, [batch, context, config.backbone_embedding_dim.into()])?;
    let timestep = b.input("timestep", ElementType::I64, [batch])?;
    let image = b.input("image_mask", ElementType::Bool, [batch, context])?;
    let valid = b.input("backbone_attention_mask", ElementType::Bool, [batch, context])?;

    let temb = b.at("timestep_encoder", |b| time_embedding(b, timestep))?;
    b.expose(options.expose, "temb", temb)?;
    let activated = b.silu(temb)?;
    let (text_bias, image_bias) = b.at("masks", |b| {
        let image_keys = b.and(image, valid)?;
        let other = b.not(image)?;
        let text_keys = b.and(other, valid)?;
        let mut bias = |keep: Value| {
            let keep = b.unsqueeze(keep, &[1, 2])?;
            b.bias_of(keep)
        };
        Ok((bias(text_keys)?, bias(image_keys)?))
    })?;
    for block in 0..config.diffusion.num_layers {
        let (module, name) = (block_module(block), format!("block{block}"));
        x = b.at(&name, |b| {
            let pair = modulation(b, activated, &format!("{module}.norm1.linear"), config)?;
            // Scale first.
            let normed = b.modulated(x, pair[0], pair[1], BLOCK_EPS)?;
            b.expose(options.expose, &format!("{name}.adaln"), normed)?;
            let normed = b.narrow(normed)?;
            let attended = match BlockContext::of(block, config.attend_text_every_n_blocks) {
                BlockContext::Own => b.self_attention(normed, &module, config)?,
                BlockContext::Text => cross_attention(b, normed, vl, text_bias, block, config)?,
                BlockContext::Image => cross_attention(b, normed, vl, image_bias, block, config)?,
            };
            let attended = b.attention_out(attended, &module)?;
            b.expose(options.expose, &format!("{name}.attn"), attended)?;
            let x = b.add(x, attended)?;
            let x = b.feed_forward(x, &module, &name, options.expose)?;
            b.expose(options.expose, &format!("{name}.out"), x)?;
            Ok(x)
        })?;
    }
    let output = b.at("output", |b| {
        // The output's pair comes shift first.
        let parts = b.linear(activated, &format!("{DIT}.proj_out_1"))?;
        let pair = rows_of_pair(b, parts, config, 1)?;
        let normed = b.modulated(x, pair[1], pair[0], OUTPUT_EPS)?;
        b.linear(normed, &format!("{DIT}.proj_out_2"))
    })?;
    b.output("output", output)?;
    Ok(b.graph)
}

/// The time embedding (B, W) of timesteps (B).
fn time_embedding(b: &mut Builder, timestep: Value) -> Result<Value, OnnxError> {
    let t = b.cast(timestep, ElementType::F32)?;
    let t = b.unsqueeze(t, &[1])?;
    let values = Source::Values(narrow(&frequencies()));
    let frequencies = b.initializer("frequencies", ElementType::F32, [1, TIME_FEATURES / 2], values)?;
    let angles = b.mul(t, frequencies)?;
    let (cos, sin) = (b.cos(angles)?, b.sin(angles)?);
    // Cosines first.
    let features = b.concat(&[cos, sin], -1)?;
    let embedder = format!("{DIT}.timestep_encoder.timestep_embedder");
    let inner = b.linear(features, &format!("{embedder}.linear_1"))?;
    let inner = b.silu(inner)?;
    b.linear(inner, &format!("{embedder}.linear_2"))
}

/// 1 + scale and shift of an adaptive norm, each (B, 1, W) in the norms' type, scale first in the weights.
fn modulation(
    b: &mut Builder,
    activated: Value,
    module: &str,
    config: &ModelConfig,
) -> Result<[Value; 2], OnnxError> {
    let both = b.linear(activated, module)?;
    rows_of_pair(b, both, config, 0)
}

/// Cuts (B, 2·W) in two, each (B, 1, W), and adds one to the half that is the scale.
fn rows_of_pair(
    b: &mut Builder,
    both: Value,
    config: &ModelConfig,
    scale: usize,
) -> Result<[Value; 2], OnnxError> {
    let kind = b.style.norm_kind();
    let both = b.cast(both, kind)?;
    let both = b.unsqueeze(both, &[1])?;
    let halves = b.split(both, -1, &[config.input_embedding_dim; 2])?;
    let one = b.scalar(1.0, kind)?;
    let mut pair = [halves[0], halves[1]];
    pair[scale] = b.add(pair[scale], one)?;
    Ok(pair)
}

fn cross_attention(
    b: &mut Builder,
    normed: Value,
    context: Value,
    bias: Value,
    block: usize,
    config: &ModelConfig,
) -> Result<Value, OnnxError> {
    let (module, heads) = (block_module(block), config.diffusion.num_attention_heads);
    let q = b.queries(normed, &module, config)?;
    let k = b.linear(context, &format!("{module}.attn1.to_k"))?;
    let k = b.split_heads_turned(k, heads)?;
    let v = b.linear(context, &format!("{module}.attn1.to_v"))?;
    let v = b.split_heads(v, heads)?;
    b.attention(q, k, v, Some(bias))
}
