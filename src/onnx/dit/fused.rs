//! One denoising step, noisy actions to velocity, with everything folded that is constant per model, step or tick.

use super::terms::{check_steps, rows, step_terms};
use super::{BLOCK_EPS, DIT, Extent, OUTPUT_EPS, block_module};
use crate::checkpoint::{BlockContext, Checkpoint, ModelConfig, Weights};
use crate::onnx::element::ElementType;
use crate::onnx::error::OnnxError;
use crate::onnx::graph::{Dim, Graph, Source, Value};
use crate::onnx::host::{embodiment_slice, matrix, narrow, vector};
use crate::onnx::layers::{Builder, Style};

use ndarray::s;

/// How a step's own terms (see [`step_terms`]) come into the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StepInput {
    /// As the input `step_terms` (rows, width), f32: the tables of all steps lie on the device and each step gets the
    /// address of its own. The graph then serves any number of steps, and has neither an integer input nor a lookup.
    #[default]
    Terms,
    /// As the input `step` (1), i64, which chooses a row of a constant: nothing to prepare, but the graph serves this
    /// number of steps alone.
    Index { steps: usize },
}

/// What the graph gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StepOutput {
    /// `velocity`, f32.
    #[default]
    Velocity,
    /// `actions_out` = actions + velocity / steps, f32.
    Actions { steps: usize },
}

/// The layout in which the graph takes keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyValueLayout {
    /// (batch, tokens, width): the projections as they are.
    #[default]
    Tokens,
    /// (batch, heads, tokens, head width): nothing is left to turn at every step but the keys' last two axes.
    Heads,
}

/// What the fused graph is for.
#[derive(Debug, Clone, PartialEq)]
pub struct FusedOptions {
    /// Index of the embodiment whose encoder and decoder are built in.
    pub embodiment: usize,
    /// Samples at once. All must have as many text and image tokens: there are no masks.
    pub batch: Extent,
    /// Tokens that are neither image nor padding.
    pub text_tokens: Extent,
    /// Image tokens, of all images.
    pub image_tokens: Extent,
    /// Rows of the state, usually one.
    pub state_tokens: usize,
    pub step: StepInput,
    pub output: StepOutput,
    pub key_values: KeyValueLayout,
    pub style: Style,
    /// Every block's intermediate values as further outputs, f32, for comparisons.
    pub expose: bool,
}

impl FusedOptions {
    /// A graph of these lengths for one sample; everything else as it is by default.
    pub fn new(embodiment: usize, text_tokens: Extent, image_tokens: Extent) -> Self {
        Self {
            embodiment,
            batch: Extent::Fixed(1),
            text_tokens,
            image_tokens,
            state_tokens: 1,
            step: StepInput::default(),
            output: StepOutput::default(),
            key_values: KeyValueLayout::default(),
            style: Style::default(),
            expose: false,
        }
    }
}

/// The graph of one denoising step.
///
/// With H the model's action horizon, W its width and `kind` the graph's own type:
///
/// | input | type | shape |
/// |---|---|---|
/// | `actions` | f32 | (batch, H, max action dim) |
/// | `state_tokens` | f32 | (batch, state tokens, W): the encoded state, constant over a tick |
/// | `step_terms` or `step` | f32, i64 | see [`StepInput`] |
/// | `keys_{i}`, `values_{i}` for each even block i | `kind` | (batch, text or image tokens, W): the block's projections of the tick's context, see [`KeyValueLayout`] |
///
/// | output | type | shape |
/// |---|---|---|
/// | `velocity` or `actions_out` | f32 | (batch, H, max action dim) |
///
/// Folded, exactly but for rounding: the action encoder's first two layers into one, its last bias into the position
/// embedding, the scaling of the scores into the queries, the output projection into the decoder's first layer. The
/// state's rows are dropped before the output norm.
///
/// # Errors
/// Options that do not fit the checkpoint, or a checkpoint that lacks a tensor.
pub fn fused<'w>(checkpoint: &'w Checkpoint, options: &FusedOptions) -> Result<Graph<'w>, OnnxError> {
    let config = &checkpoint.config;
    let style = options.style;
    let (width, horizon) = (config.input_embedding_dim, config.action_horizon);
    let (blocks, action_dim) = (config.diffusion.num_layers, config.max_action_dim);
    let batch = options.batch.dim("batch")?;
    let text = options.text_tokens.dim("text_tokens")?;
    let image = options.image_tokens.dim("image_tokens")?;
    Extent::Fixed(options.state_tokens).dim("state_tokens")?;

    let mut b = Builder::new("dit_fused", &checkpoint.weights, style)?;
    describe(&mut b.graph, config, options);
    let action_shape = [batch, horizon.into(), action_dim.into()];
    let actions = b.input("actions", ElementType::F32, action_shape)?;
    let state_shape = [batch, options.state_tokens.into(), width.into()];
    let state = b.input("state_tokens", ElementType::F32, state_shape)?;
    let terms = step_rows(&mut b, checkpoint, options)?;

    let tokens =
        b.at("action_encoder", |b| action_tokens(b, config, options.embodiment, actions, terms[0]))?;
    b.expose(options.expose, "action_tokens", tokens)?;
    let state = b.narrow(state)?;
    let mut x = b.concat(&[state, tokens], 1)?;
    b.expose(options.expose, "sa_embs", x)?;

    for block in 0..blocks {
        let (module, name) = (block_module(block), format!("block{block}"));
        let (scale, shift) = (terms[1 + 2 * block], terms[2 + 2 * block]);
        x = b.at(&name, |b| {
            let normed = b.modulated(x, scale, shift, BLOCK_EPS)?;
            b.expose(options.expose, &format!("{name}.adaln"), normed)?;
            let normed = b.narrow(normed)?;
            let attended = match BlockContext::of(block, config.attend_text_every_n_blocks) {
                BlockContext::Own => b.self_attention(normed, &module, config)?,
                BlockContext::Text => {
                    cross_attention(b, normed, block, text, batch, config, options.key_values)?
                }
                BlockContext::Image => {
                    cross_attention(b, normed, block, image, batch, config, options.key_values)?
                }
            };
            let attended = b.attention_out(attended, &module)?;
            b.expose(options.expose, &format!("{name}.attn"), attended)?;
            let x = b.add(x, attended)?;
            let x = b.feed_forward(x, &module, &name, options.expose)?;
            b.expose(options.expose, &format!("{name}.out"), x)?;
            Ok(x)
        })?;
    }

    let (scale, shift) = (terms[1 + 2 * blocks], terms[2 + 2 * blocks]);
    let velocity = b.at("action_decoder", |b| {
        let rows = b.slice(x, 1, options.state_tokens, options.state_tokens + horizon)?;
        let normed = b.modulated(rows, scale, shift, OUTPUT_EPS)?;
        decode(b, config, options.embodiment, normed)
    })?;
    let velocity = b.cast(velocity, ElementType::F32)?;
    match options.output {
        StepOutput::Velocity => b.output("velocity", velocity)?,
        StepOutput::Actions { steps } => {
            check_steps(steps, config)?;
            let length = b.scalar(1.0 / steps as f64, ElementType::F32)?;
            let change = b.mul(velocity, length)?;
            let next = b.add(actions, change)?;
            b.output("actions_out", next)?;
        }
    }
    Ok(b.graph)
}

fn describe(graph: &mut Graph, config: &ModelConfig, options: &FusedOptions) {
    graph.describe("graph", "dit_fused");
    graph.describe("kind", options.style.kind.name());
    graph.describe("embodiment", options.embodiment);
    graph.describe("state_tokens", options.state_tokens);
    graph.describe("action_horizon", config.action_horizon);
    match options.step {
        StepInput::Terms => graph.describe("steps", "any"),
        StepInput::Index { steps } => graph.describe("steps", steps),
    }
}

/// The rows of the step's terms, each (1, width), in the norms' type (row 0 in the graph's own).
fn step_rows(
    b: &mut Builder,
    checkpoint: &Checkpoint,
    options: &FusedOptions,
) -> Result<Vec<Value>, OnnxError> {
    let config = &checkpoint.config;
    let (rows, width) = (rows(config), config.input_embedding_dim);
    // Reading the embodiment's slice says whether there is one.
    embodiment_slice(&checkpoint.weights, "action_head.action_encoder.W2.b", options.embodiment)?;
    let terms = match options.step {
        StepInput::Terms => b.input("step_terms", ElementType::F32, [Dim::Fixed(rows), width.into()])?,
        StepInput::Index { steps } => {
            check_steps(steps, config)?;
            let step = b.input("step", ElementType::I64, [Dim::Fixed(1)])?;
            let values = step_terms(checkpoint, options.embodiment, steps)?;
            let source = Source::Values(values.into_iter().collect());
            let table = b.initializer("step_terms", ElementType::F32, [steps, rows, width], source)?;
            let chosen = b.gather(table, step)?;
            b.reshape(chosen, &[rows.into(), width.into()])?
        }
    };
    let split = b.split(terms, 0, &vec![1; rows])?;
    let norm_kind = b.style.norm_kind();
    split
        .into_iter()
        .enumerate()
        .map(|(row, value)| if row == 0 { b.narrow(value) } else { b.cast(value, norm_kind) })
        .collect()
}

/// Noisy actions (B, H, action dim) to tokens (B, H, width), position embedding included.
fn action_tokens(
    b: &mut Builder,
    config: &ModelConfig,
    embodiment: usize,
    actions: Value,
    time_term: Value,
) -> Result<Value, OnnxError> {
    const MODULE: &str = "action_head.action_encoder";
    let (width, action_dim) = (config.input_embedding_dim, config.max_action_dim);
    let weights = b.weights;
    let slice = move |name: &str| embodiment_slice(weights, &format!("{MODULE}.{name}"), embodiment);
    let (w1, w2, w3) = (slice("W1.W")?, slice("W2.W")?, slice("W3.W")?);
    let folded = move || {
        let w2 = matrix(MODULE, &w2)?;
        Ok(narrow(&matrix(MODULE, &w1)?.dot(&w2.slice(s![..w2.ncols(), ..]))))
    };
    let source = Source::Compute(Box::new(folded));
    let mixed = b.affine(actions, &format!("{MODULE}.W1W2"), (action_dim, width), source, None)?;
    let mixed = b.add(mixed, time_term)?;
    let mixed = b.silu(mixed)?;
    let tokens = b.affine(mixed, &format!("{MODULE}.W3"), (width, width), Source::Stored(w3), None)?;
    let positions = positions(weights, config, &slice("W3.b")?)?;
    let shape = [config.action_horizon, width];
    let kind = b.style.kind;
    let positions = b.initializer(&format!("{MODULE}.positions"), kind, shape, Source::Values(positions))?;
    b.add(tokens, positions)
}

/// Position embedding of each action row plus the encoder's last bias, (H, width).
fn positions(
    weights: &Weights,
    config: &ModelConfig,
    bias: &crate::checkpoint::TensorView,
) -> Result<Vec<f32>, OnnxError> {
    const POSITIONS: &str = "action_head.position_embedding.weight";
    let bias = vector(bias);
    let horizon = config.action_horizon;
    let rows = if config.add_pos_embed {
        matrix(POSITIONS, &weights.get(POSITIONS)?)?
    } else {
        ndarray::Array2::zeros((horizon, bias.len()))
    };
    // `max_seq_len` is at least the horizon: checked when the configuration was read.
    Ok(narrow(&(&rows.slice(s![..horizon, ..]) + &bias)))
}

fn cross_attention(
    b: &mut Builder,
    normed: Value,
    block: usize,
    tokens: Dim,
    batch: Dim,
    config: &ModelConfig,
    layout: KeyValueLayout,
) -> Result<Value, OnnxError> {
    let heads = config.diffusion.num_attention_heads;
    let (width, kind) = (config.input_embedding_dim, b.style.kind);
    let shape = match layout {
        KeyValueLayout::Tokens => vec![batch, tokens, width.into()],
        KeyValueLayout::Heads => {
            vec![batch, heads.into(), tokens, config.diffusion.attention_head_dim.into()]
        }
    };
    let k = b.input(&format!("keys_{block}"), kind, shape.clone())?;
    let v = b.input(&format!("values_{block}"), kind, shape)?;
    let q = b.queries(normed, &block_module(block), config)?;
    let (k, v) = match layout {
        KeyValueLayout::Tokens => (b.split_heads_turned(k, heads)?, b.split_heads(v, heads)?),
        KeyValueLayout::Heads => (b.transpose(k, &[0, 1, 3, 2])?, v),
    };
    b.attention(q, k, v, None)
}

/// Output projection and decoder's first layer as one, ReLU, second layer.
fn decode(b: &mut Builder, config: &ModelConfig, embodiment: usize, x: Value) -> Result<Value, OnnxError> {
    const MODULE: &str = "action_head.action_decoder";
    let (width, hidden) = (config.input_embedding_dim, config.hidden_size);
    let weights = b.weights;
    let slice = move |name: &str| embodiment_slice(weights, &format!("{MODULE}.{name}"), embodiment);
    let out = b.part(&format!("{DIT}.proj_out_2"), true, 1.0)?;
    let (w1, b1) = (slice("layer1.W")?, slice("layer1.b")?);
    let weight = move || Ok(narrow(&matrix(MODULE, &out.weight)?.t().dot(&matrix(MODULE, &w1)?)));
    let bias = match &out.bias {
        Some(bias) => narrow(&(vector(bias).dot(&matrix(MODULE, &w1)?) + vector(&b1))),
        None => narrow(&vector(&b1)),
    };
    let name = format!("{MODULE}.proj_out_layer1");
    let inner = b.affine(x, &name, (width, hidden), Source::Compute(Box::new(weight)), Some(bias))?;
    let inner = b.relu(inner)?;
    let shape = (hidden, config.max_action_dim);
    let bias = narrow(&vector(&slice("layer2.b")?));
    b.affine(inner, &format!("{MODULE}.layer2"), shape, Source::Stored(slice("layer2.W")?), Some(bias))
}
