//! The diffusion transformer as graphs.
//!
//! [`fused`] is made for engines: a denoising step with everything folded that can be. [`reference()`] has the interface
//! of the public export script, for other people's tools. [`condition`] computes what [`fused`] takes once per tick.

mod condition;
mod fused;
mod reference;
mod terms;

pub use condition::{ConditionOptions, condition};
pub use fused::{FusedOptions, KeyValueLayout, StepInput, StepOutput, fused};
pub use reference::{ReferenceOptions, reference};
pub use terms::{rows, step_terms};

use super::error::OnnxError;
use super::graph::{Dim, Value};
use super::layers::Builder;
use crate::checkpoint::ModelConfig;
use terms::DIT;

/// Epsilon of the blocks' norms.
const BLOCK_EPS: f64 = 1e-5;
/// Epsilon of the norm before the output projection.
const OUTPUT_EPS: f64 = 1e-6;
/// Epsilon of the norm over the backbone's features.
const CONTEXT_EPS: f64 = 1e-5;

/// A dimension of a graph's inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// One size, fixed in the graph.
    Fixed(usize),
    /// Chosen when the graph runs.
    Dynamic,
}

impl Extent {
    pub(super) fn dim(self, symbol: &'static str) -> Result<Dim, OnnxError> {
        match self {
            Self::Fixed(0) => {
                Err(OnnxError::request("size of a graph's input", "1 or more", format!("0 for {symbol}")))
            }
            Self::Fixed(size) => Ok(Dim::Fixed(size)),
            Self::Dynamic => Ok(Dim::Symbol(symbol)),
        }
    }
}

impl Builder<'_> {
    /// The feed-forward half of a block with its norm and its residual.
    fn feed_forward(&mut self, x: Value, block: &str, name: &str, expose: bool) -> Result<Value, OnnxError> {
        let normed = self.layer_norm(x, None, BLOCK_EPS)?;
        self.expose(expose, &format!("{name}.norm3"), normed)?;
        let inner = self.linear(normed, &format!("{block}.ff.net.0.proj"))?;
        let inner = self.gelu_tanh(inner)?;
        let fed = self.linear(inner, &format!("{block}.ff.net.2"))?;
        self.expose(expose, &format!("{name}.ff"), fed)?;
        self.add(x, fed)
    }

    /// Queries of a block (B, T, width) as heads, divided by the root of the head width.
    fn queries(&mut self, x: Value, block: &str, config: &ModelConfig) -> Result<Value, OnnxError> {
        let module = format!("{block}.attn1.to_q");
        let part = self.part(&module, true, query_scale(config))?;
        let q = self.joined(x, &module, vec![part])?;
        self.split_heads(q, config.diffusion.num_attention_heads)
    }

    /// Self-attention with one product for queries, keys and values.
    fn self_attention(&mut self, x: Value, block: &str, config: &ModelConfig) -> Result<Value, OnnxError> {
        let (width, heads) = (config.input_embedding_dim, config.diffusion.num_attention_heads);
        let parts = [("to_q", query_scale(config)), ("to_k", 1.0), ("to_v", 1.0)]
            .into_iter()
            .map(|(name, scale)| self.part(&format!("{block}.attn1.{name}"), true, scale))
            .collect::<Result<_, _>>()?;
        let joined = self.joined(x, &format!("{block}.attn1.to_qkv"), parts)?;
        let parts = self.split(joined, -1, &[width; 3])?;
        let q = self.split_heads(parts[0], heads)?;
        let k = self.split_heads_turned(parts[1], heads)?;
        let v = self.split_heads(parts[2], heads)?;
        self.attention(q, k, v, None)
    }

    /// Heads together again and through the output projection.
    fn attention_out(&mut self, attended: Value, block: &str) -> Result<Value, OnnxError> {
        let merged = self.merge_heads(attended)?;
        self.linear(merged, &format!("{block}.attn1.to_out.0"))
    }

    /// LN(x)·(1 + scale) + shift in the norms' type, given 1 + scale and shift in it.
    fn modulated(
        &mut self,
        x: Value,
        one_plus_scale: Value,
        shift: Value,
        eps: f64,
    ) -> Result<Value, OnnxError> {
        let normed = self.layer_norm(x, None, eps)?;
        let scaled = self.mul(normed, one_plus_scale)?;
        self.add(scaled, shift)
    }

    /// Makes an intermediate value an output, in f32, where that is asked for.
    pub(super) fn expose(&mut self, wanted: bool, name: &str, x: Value) -> Result<(), OnnxError> {
        if !wanted {
            return Ok(());
        }
        let x = self.cast(x, super::ElementType::F32)?;
        let copy = self.identity(x)?;
        self.output(name, copy)
    }
}

/// What the queries are multiplied by instead of the scores: head width to the power −1/2.
fn query_scale(config: &ModelConfig) -> f64 {
    (config.diffusion.attention_head_dim as f64).powf(-0.5)
}

/// The module of a block.
fn block_module(block: usize) -> String {
    format!("{DIT}.transformer_blocks.{block}")
}
