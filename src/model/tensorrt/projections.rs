//! Keys and values of the cross-attending blocks, on libtorch.

use tch::Tensor;

use super::super::{
    ModelError,
    layers::Loader,
    tokens::{TokenGroup, TokenLayout},
};
use crate::{
    checkpoint::{BlockContext, ModelConfig},
    engine::fused::{cross_blocks, names},
};

/// Projections of all blocks that read the same tokens, as one product.
struct Group {
    reads: BlockContext,
    /// (2 · blocks · width, context width): keys, then values, block by block.
    weight: Tensor,
    bias: Tensor,
    /// Names of the engine's inputs, in the order of the weight's rows.
    inputs: Vec<String>,
}

/// The projections.
pub struct CrossProjections {
    groups: Vec<Group>,
    width: i64,
}

/// Keys or values of one block.
pub struct Projected<'a> {
    /// Name of the engine's input.
    pub input: &'a str,
    /// What the block reads, for messages.
    pub reads: &'static str,
    /// (1, tokens, width), a view.
    pub tokens: Tensor,
}

impl CrossProjections {
    /// Reads the projections of the module `action_head.model`.
    pub fn load(at: &Loader, config: &ModelConfig) -> Result<Self, ModelError> {
        let mut groups = Vec::new();
        for reads in [BlockContext::Text, BlockContext::Image] {
            let (mut weights, mut biases, mut inputs) = (Vec::new(), Vec::new(), Vec::new());
            for (block, _) in cross_blocks(config).filter(|(_, own)| *own == reads) {
                let attention = at.at(format!("transformer_blocks.{block}.attn1"));
                for (part, name) in [("to_k", names::keys(block)), ("to_v", names::values(block))] {
                    weights.push(attention.at(part).tensor("weight")?);
                    biases.push(attention.at(part).tensor("bias")?);
                    inputs.push(name);
                }
            }
            if !weights.is_empty() {
                let (weight, bias) = (Tensor::f_cat(&weights, 0)?, Tensor::f_cat(&biases, 0)?);
                groups.push(Group { reads, weight, bias, inputs });
            }
        }
        Ok(Self { groups, width: config.input_embedding_dim as i64 })
    }

    /// Names of the engine's inputs.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.groups.iter().flat_map(|group| &group.inputs).map(String::as_str)
    }

    /// Projects a tick's context (1, S, D).
    ///
    /// # Errors
    /// More than one sample: the fused graph has no masks.
    pub fn project(&self, context: &Tensor, layout: &TokenLayout) -> Result<Vec<Projected<'_>>, ModelError> {
        if layout.batch() != 1 {
            return Err(ModelError::Input {
                what: "batch of a TensorRT engine",
                expected: "1 observation: the fused graph has no masks".to_owned(),
                found: layout.batch().to_string(),
            });
        }
        let mut all = Vec::new();
        for group in &self.groups {
            let (reads, tokens): (_, &TokenGroup) = match group.reads {
                BlockContext::Image => ("image tokens of the prompt", &layout.image),
                _ => ("text tokens of the prompt", &layout.text),
            };
            let joined = tokens.gather(context)?.f_linear(&group.weight, Some(&group.bias))?;
            for (index, input) in group.inputs.iter().enumerate() {
                let tokens = joined.f_narrow(-1, index as i64 * self.width, self.width)?;
                all.push(Projected { input, reads, tokens });
            }
        }
        Ok(all)
    }
}
