//! The kept Qwen3 layers: token embeddings in, features after the final norm out.

use super::rotary::{inverse_frequencies, rotary_tables};
use crate::checkpoint::{Checkpoint, TextConfig};
use crate::onnx::dit::Extent;
use crate::onnx::element::ElementType;
use crate::onnx::error::OnnxError;
use crate::onnx::graph::{Dim, Graph, Source, Value};
use crate::onnx::layers::{Builder, Style};

const MODULE: &str = "backbone.model.language_model.model";
/// Longest prompt that a dynamic graph may be asked to hold tables for.
const MOST_TOKENS: usize = 8192;

/// What the language graph is for.
#[derive(Debug, Clone, PartialEq)]
pub struct LanguageOptions {
    pub batch: Extent,
    /// Tokens of a prompt, images and padding included.
    pub tokens: Extent,
    /// The longest prompt of a graph with a dynamic number of tokens: for so many, rotary tables and causal mask are
    /// built in. Of no account where the number is fixed.
    pub max_tokens: usize,
    /// Whether prompts may be padded: adds the input `attention_mask`.
    pub padding: bool,
    /// What the rotary frequencies are rounded to: bf16 is what a policy in bf16 was evaluated with.
    pub frequencies: ElementType,
    pub style: Style,
    /// Every layer's intermediate values as further outputs, f32, for comparisons.
    pub expose: bool,
}

impl LanguageOptions {
    /// One unpadded prompt of this length, in f32 with exact frequencies.
    pub fn new(tokens: Extent) -> Self {
        Self {
            batch: Extent::Fixed(1),
            tokens,
            max_tokens: 1024,
            padding: false,
            frequencies: ElementType::F32,
            style: Style::default(),
            expose: false,
        }
    }
}

/// The language model up to the kept layer, with explicit causal attention and without a vocabulary head.
///
/// | input | type | shape |
/// |---|---|---|
/// | `inputs_embeds` | f32 | (batch, tokens, D): token embeddings with the image embeddings in their places |
/// | `attention_mask`, with padding only | bool | (batch, tokens): false at padding |
///
/// | output | type | shape |
/// |---|---|---|
/// | `hidden_states` | f32 | (batch, tokens, D) |
///
/// # Errors
/// Options that make no sense, or a checkpoint that lacks a tensor.
pub fn language<'w>(checkpoint: &'w Checkpoint, options: &LanguageOptions) -> Result<Graph<'w>, OnnxError> {
    let text = &checkpoint.eagle.text;
    let (batch, tokens) = (options.batch.dim("batch")?, options.tokens.dim("tokens")?);
    let width = text.hidden_size;
    let mut b = Builder::new("language", &checkpoint.weights, options.style)?;
    b.describe("graph", "language");
    b.describe("kind", options.style.kind.name());
    b.describe("rotary_frequencies", options.frequencies.name());
    let embeds = b.input("inputs_embeds", ElementType::F32, [batch, tokens, width.into()])?;
    let valid = match options.padding {
        true => Some(b.input("attention_mask", ElementType::Bool, [batch, tokens])?),
        false => None,
    };
    let context = b.at("context", |b| Context::new(b, text, options, embeds, valid))?;
    let mut x = b.narrow(embeds)?;
    for layer in 0..checkpoint.config.select_layer {
        let name = format!("llm.layer{layer}");
        let module = format!("{MODULE}.layers.{layer}");
        x = b.at(&format!("layer{layer}"), |b| {
            let normed = rms_norm(b, x, &format!("{module}.input_layernorm"), text)?;
            let attended = attention(b, text, &context, normed, &module, &name, options.expose)?;
            b.expose(options.expose, &format!("{name}.attn_out"), attended)?;
            let x = b.add(x, attended)?;
            let normed = rms_norm(b, x, &format!("{module}.post_attention_layernorm"), text)?;
            let fed = feed_forward(b, text, normed, &module)?;
            b.expose(options.expose, &format!("{name}.mlp_out"), fed)?;
            b.add(x, fed)
        })?;
        b.expose(options.expose, &format!("{name}.out"), x)?;
    }
    let features = b.at("norm", |b| rms_norm(b, x, &format!("{MODULE}.norm"), text))?;
    let features = b.cast(features, ElementType::F32)?;
    b.output("hidden_states", features)?;
    Ok(b.graph)
}

/// What all layers share.
struct Context {
    /// Cosines and sines for keys, each (tokens, head width / 2).
    keys: [Value; 2],
    /// The same for queries, multiplied by the scale of the scores.
    queries: [Value; 2],
    /// What is added to the scores, (tokens, tokens) or (batch, 1, tokens, tokens).
    bias: Value,
    /// 1 for tokens and 0 for padding, (batch, tokens, 1).
    keep: Option<Value>,
}

impl Context {
    fn new(
        b: &mut Builder,
        text: &TextConfig,
        options: &LanguageOptions,
        embeds: Value,
        valid: Option<Value>,
    ) -> Result<Self, OnnxError> {
        let rows = match options.tokens {
            Extent::Fixed(tokens) => tokens,
            Extent::Dynamic => options.max_tokens,
        };
        if rows == 0 || rows > MOST_TOKENS {
            return Err(OnnxError::request(
                "longest prompt",
                format!("1 to {MOST_TOKENS} tokens"),
                rows.to_string(),
            ));
        }
        let dynamic = options.tokens == Extent::Dynamic;
        let kind = b.style.kind;
        let frequencies = inverse_frequencies(text.rope_theta, text.head_dim, options.frequencies);
        let tables = |b: &mut Builder, what: &str, scale: f64| {
            let (cos, sin) = rotary_tables(&frequencies, rows, scale);
            let mut table = |name: &str, values: ndarray::Array2<f32>| {
                let shape = [rows, text.head_dim / 2];
                let source = Source::Values(values.into_iter().collect());
                let table = b.initializer(&format!("{what}_{name}"), kind, shape, source)?;
                if dynamic { b.slice_like(table, 0, embeds, 1) } else { Ok(table) }
            };
            Ok::<_, OnnxError>([table("cos", cos)?, table("sin", sin)?])
        };
        let keys = tables(b, "keys", 1.0)?;
        let queries = tables(b, "queries", (text.head_dim as f64).powf(-0.5))?;

        let causal = (0..rows * rows).map(|i| i % rows <= i / rows).collect();
        let causal = b.initializer("causal", ElementType::Bool, [rows, rows], Source::Booleans(causal))?;
        let causal = if dynamic {
            let rows = b.slice_like(causal, 0, embeds, 1)?;
            b.slice_like(rows, 1, embeds, 1)?
        } else {
            causal
        };
        let (visible, keep) = match valid {
            None => (causal, None),
            Some(valid) => {
                let keys = b.unsqueeze(valid, &[1, 2])?;
                let visible = b.and(causal, keys)?;
                let keep = b.unsqueeze(valid, &[2])?;
                (visible, Some(b.cast(keep, kind)?))
            }
        };
        Ok(Self { keys, queries, bias: b.bias_of(visible)?, keep })
    }
}

/// Root-mean-square norm over the last axis: root in the norms' type, then the weight in the graph's own, as the
/// reference has it.
fn rms_norm(b: &mut Builder, x: Value, module: &str, text: &TextConfig) -> Result<Value, OnnxError> {
    let norm_kind = b.style.norm_kind();
    let wide = b.cast(x, norm_kind)?;
    let square = b.mul(wide, wide)?;
    let mean = b.reduce_mean(square)?;
    let eps = b.scalar(text.rms_norm_eps, norm_kind)?;
    let mean = b.add(mean, eps)?;
    let root = b.sqrt(mean)?;
    let normed = b.div(wide, root)?;
    let normed = b.narrow(normed)?;
    let kind = b.style.kind;
    let weight = b.stored(&format!("{module}.weight"), kind)?;
    b.mul(normed, weight)
}

/// Halves [x1, x2] of the last axis → [x1·cos − x2·sin, x2·cos + x1·sin].
fn rotate(b: &mut Builder, x: Value, [cos, sin]: [Value; 2], head_dim: usize) -> Result<Value, OnnxError> {
    let halves = b.split(x, -1, &[head_dim / 2; 2])?;
    let (x1, x2) = (halves[0], halves[1]);
    let (a, c) = (b.mul(x1, cos)?, b.mul(x2, sin)?);
    let first = b.sub(a, c)?;
    let (a, c) = (b.mul(x2, cos)?, b.mul(x1, sin)?);
    let second = b.add(a, c)?;
    b.concat(&[first, second], -1)
}

/// (B, kv heads, T, width) → (B, heads, T, width): each head as often as there are queries that read it.
fn repeat_heads(b: &mut Builder, x: Value, heads: usize) -> Result<Value, OnnxError> {
    match *b.shape(x) {
        [batch, Dim::Fixed(kv_heads), tokens, width] if kv_heads > 0 && heads.is_multiple_of(kv_heads) => {
            if kv_heads == heads {
                return Ok(x);
            }
            let apart = b.unsqueeze(x, &[2])?;
            let repeated = b.concat(&vec![apart; heads / kv_heads], 2)?;
            b.reshape(repeated, &[batch, heads.into(), tokens, width])
        }
        _ => {
            let found = b.info(x).to_string();
            Err(b.error("Concat", format!("(B, a divisor of {heads} heads, T, width)"), found))
        }
    }
}

fn attention(
    b: &mut Builder,
    text: &TextConfig,
    context: &Context,
    x: Value,
    module: &str,
    name: &str,
    expose: bool,
) -> Result<Value, OnnxError> {
    let (heads, kv_heads, head_dim) = (text.num_attention_heads, text.num_key_value_heads, text.head_dim);
    let parts = ["q_proj", "k_proj", "v_proj"]
        .into_iter()
        .map(|part| b.part(&format!("{module}.self_attn.{part}"), false, 1.0))
        .collect::<Result<_, _>>()?;
    let joined = b.joined(x, &format!("{module}.self_attn.qkv_proj"), parts)?;
    let parts = b.split(joined, -1, &[heads * head_dim, kv_heads * head_dim, kv_heads * head_dim])?;
    let normed = |b: &mut Builder, x: Value, heads: usize, which: &str| {
        let x = b.with_heads(x, heads)?;
        let x = rms_norm(b, x, &format!("{module}.self_attn.{which}_norm"), text)?;
        b.expose(expose, &format!("{name}.{which}_normed"), x)?;
        b.transpose(x, &[0, 2, 1, 3])
    };
    let q = normed(b, parts[0], heads, "q")?;
    let k = normed(b, parts[1], kv_heads, "k")?;
    let v = b.split_heads(parts[2], kv_heads)?;
    let q = rotate(b, q, context.queries, head_dim)?;
    let k = rotate(b, k, context.keys, head_dim)?;
    let (k, v) = (repeat_heads(b, k, heads)?, repeat_heads(b, v, heads)?);
    let k = b.transpose(k, &[0, 1, 3, 2])?;
    let attended = b.attention(q, k, v, Some(context.bias))?;
    let mut merged = b.merge_heads(attended)?;
    if let Some(keep) = context.keep {
        // A padded query has no key to attend to; its output is zero, as in the reference.
        merged = b.mul(merged, keep)?;
    }
    b.linear_without_bias(merged, &format!("{module}.self_attn.o_proj"))
}

/// down(silu(gate)·up), gate and up as one product.
fn feed_forward(b: &mut Builder, text: &TextConfig, x: Value, module: &str) -> Result<Value, OnnxError> {
    let parts = ["gate_proj", "up_proj"]
        .into_iter()
        .map(|part| b.part(&format!("{module}.mlp.{part}"), false, 1.0))
        .collect::<Result<_, _>>()?;
    let joined = b.joined(x, &format!("{module}.mlp.gate_up_proj"), parts)?;
    let halves = b.split(joined, -1, &[text.intermediate_size; 2])?;
    let gate = b.silu(halves[0])?;
    let inner = b.mul(gate, halves[1])?;
    b.linear_without_bias(inner, &format!("{module}.mlp.down_proj"))
}
