//! What the fused graph takes once per tick: keys and values of the cross-attending blocks, and the encoded state.

use super::fused::KeyValueLayout;
use super::{CONTEXT_EPS, Extent, block_module};
use crate::checkpoint::{BlockContext, Checkpoint};
use crate::onnx::element::ElementType;
use crate::onnx::error::OnnxError;
use crate::onnx::graph::{Graph, Source, Value};
use crate::onnx::host::{embodiment_slice, narrow, vector};
use crate::onnx::layers::{Builder, Style};

/// What the companion of the fused graph is for; the same choices as there.
#[derive(Debug, Clone, PartialEq)]
pub struct ConditionOptions {
    pub embodiment: usize,
    pub batch: Extent,
    pub text_tokens: Extent,
    pub image_tokens: Extent,
    pub state_tokens: usize,
    pub key_values: KeyValueLayout,
    pub style: Style,
}

/// The graph of a tick's constants.
///
/// | input | type | shape |
/// |---|---|---|
/// | `text_features` | f32 | (batch, text tokens, backbone width): the backbone's output at text tokens |
/// | `image_features` | f32 | (batch, image tokens, backbone width): at image tokens |
/// | `state` | f32 | (batch, state tokens, max state dim): normalised and padded |
///
/// | output | type | shape |
/// |---|---|---|
/// | `state_tokens` | f32 | (batch, state tokens, W) |
/// | `keys_{i}`, `values_{i}` for each even block i | the graph's own | as the fused graph takes them |
///
/// # Errors
/// As [`fused`](super::fused).
pub fn condition<'w>(checkpoint: &'w Checkpoint, options: &ConditionOptions) -> Result<Graph<'w>, OnnxError> {
    let config = &checkpoint.config;
    let mut b = Builder::new("dit_condition", &checkpoint.weights, options.style)?;
    b.describe("graph", "dit_condition");
    b.describe("kind", options.style.kind.name());
    b.describe("embodiment", options.embodiment);
    let batch = options.batch.dim("batch")?;
    let width = config.backbone_embedding_dim.into();
    let text = [batch, options.text_tokens.dim("text_tokens")?, width];
    let image = [batch, options.image_tokens.dim("image_tokens")?, width];
    let rows = Extent::Fixed(options.state_tokens).dim("state_tokens")?;
    let text = b.input("text_features", ElementType::F32, text)?;
    let image = b.input("image_features", ElementType::F32, image)?;
    let state = b.input("state", ElementType::F32, [batch, rows, config.max_state_dim.into()])?;

    let tokens = b.at("state_encoder", |b| state_tokens(b, checkpoint, options.embodiment, state))?;
    let tokens = b.cast(tokens, ElementType::F32)?;
    b.output("state_tokens", tokens)?;
    // One set of the norm's weights serves both groups of tokens.
    let (text, image) = b.at("context_norm", |b| context_norms(b, text, image))?;
    for block in 0..config.diffusion.num_layers {
        let context = match BlockContext::of(block, config.attend_text_every_n_blocks) {
            BlockContext::Own => continue,
            BlockContext::Text => text,
            BlockContext::Image => image,
        };
        b.at(&format!("block{block}"), |b| {
            for (part, name) in [("to_k", "keys"), ("to_v", "values")] {
                let mut projected = b.linear(context, &format!("{}.attn1.{part}", block_module(block)))?;
                if options.key_values == KeyValueLayout::Heads {
                    projected = b.split_heads(projected, config.diffusion.num_attention_heads)?;
                }
                b.output(&format!("{name}_{block}"), projected)?;
            }
            Ok(())
        })?;
    }
    Ok(b.graph)
}

/// The norm over the backbone's features, of both groups of tokens.
fn context_norms(b: &mut Builder, text: Value, image: Value) -> Result<(Value, Value), OnnxError> {
    let kind = b.style.norm_kind();
    let scale = b.stored("action_head.vlln.weight", kind)?;
    let bias = b.stored("action_head.vlln.bias", kind)?;
    let mut norm = |x: Value| {
        let normed = b.layer_norm(x, None, CONTEXT_EPS)?;
        let scaled = b.mul(normed, scale)?;
        let shifted = b.add(scaled, bias)?;
        b.narrow(shifted)
    };
    Ok((norm(text)?, norm(image)?))
}

/// The state encoder of one embodiment.
fn state_tokens(
    b: &mut Builder,
    checkpoint: &Checkpoint,
    embodiment: usize,
    state: Value,
) -> Result<Value, OnnxError> {
    const MODULE: &str = "action_head.state_encoder";
    let config = &checkpoint.config;
    let weights = b.weights;
    let slice = |name: &str| embodiment_slice(weights, &format!("{MODULE}.{name}"), embodiment);
    let bias = |name: &str| Ok::<_, OnnxError>(Some(narrow(&vector(&slice(name)?))));
    let (inputs, hidden, width) = (config.max_state_dim, config.hidden_size, config.input_embedding_dim);
    let first = Source::Stored(slice("layer1.W")?);
    let inner = b.affine(state, &format!("{MODULE}.layer1"), (inputs, hidden), first, bias("layer1.b")?)?;
    let inner = b.relu(inner)?;
    let second = Source::Stored(slice("layer2.W")?);
    b.affine(inner, &format!("{MODULE}.layer2"), (hidden, width), second, bias("layer2.b")?)
}
