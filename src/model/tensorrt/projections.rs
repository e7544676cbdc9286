//! Keys and values of the cross-attending blocks, from libtorch into the engine's inputs.

use tch::Tensor;

use super::super::{
    ModelError,
    layers::{Loader, split_heads},
    tokens::{TokenGroup, TokenLayout},
};
use super::buffers::Buffer;
use crate::{
    checkpoint::{BlockContext, ModelConfig},
    engine::fused::{cross_blocks, names},
    tensorrt::{Context, Engine},
};

/// Projections of all blocks that read the same tokens, as one product.
struct Group {
    reads: BlockContext,
    /// (2 · blocks · width, context width): keys, then values, block by block.
    weight: Tensor,
    bias: Tensor,
    /// In the order of the weight's rows.
    inputs: Vec<Buffer>,
}

/// Keys and values of a tick.
pub struct CrossProjections {
    groups: Vec<Group>,
    width: i64,
    heads: i64,
}

impl CrossProjections {
    /// Reads the projections of the module `action_head.model`, and gives memory to the engine's inputs.
    pub fn load(
        at: &Loader,
        config: &ModelConfig,
        engine: &Engine,
        context: &mut Context,
    ) -> Result<Self, ModelError> {
        let mut groups = Vec::new();
        for reads in [BlockContext::Text, BlockContext::Image] {
            let (mut weights, mut biases, mut inputs) = (Vec::new(), Vec::new(), Vec::new());
            for (block, _) in cross_blocks(config).filter(|(_, own)| *own == reads) {
                let attention = at.at(format!("transformer_blocks.{block}.attn1"));
                for (part, name) in [("to_k", names::keys(block)), ("to_v", names::values(block))] {
                    weights.push(attention.at(part).tensor("weight")?);
                    biases.push(attention.at(part).tensor("bias")?);
                    let input = Buffer::new(engine, &name, at.device())?;
                    input.bind(context)?;
                    if input.range().min != input.range().max {
                        context.set_shape(&name, &input.range().max)?;
                    }
                    inputs.push(input);
                }
            }
            if !weights.is_empty() {
                let (weight, bias) = (Tensor::f_cat(&weights, 0)?, Tensor::f_cat(&biases, 0)?);
                groups.push(Group { reads, weight, bias, inputs });
            }
        }
        let width = config.input_embedding_dim as i64;
        Ok(Self { groups, width, heads: config.diffusion.num_attention_heads as i64 })
    }

    /// Projects a tick's context (1, S, D).
    pub fn condition(
        &mut self,
        context: &Tensor,
        layout: &TokenLayout,
        engine: &mut Context,
    ) -> Result<(), ModelError> {
        if layout.batch() != 1 {
            return Err(ModelError::Input {
                what: "batch of a TensorRT engine",
                expected: "1 observation: the fused graph has no masks".to_owned(),
                found: layout.batch().to_string(),
            });
        }
        for group in &mut self.groups {
            let (what, tokens): (_, &TokenGroup) = match group.reads {
                BlockContext::Image => ("image tokens of the prompt", &layout.image),
                _ => ("text tokens of the prompt", &layout.text),
            };
            group.project(&tokens.gather(context)?, what, self.width, self.heads, engine)?;
        }
        Ok(())
    }

    /// The engine's inputs as they are now.
    pub fn inputs(&self) -> Result<Vec<(String, Tensor)>, ModelError> {
        let buffers = self.groups.iter().flat_map(|group| &group.inputs);
        buffers.map(|buffer| Ok((buffer.name().to_owned(), buffer.view()?))).collect()
    }
}

impl Group {
    fn project(
        &mut self,
        tokens: &Tensor,
        what: &'static str,
        width: i64,
        heads: i64,
        engine: &mut Context,
    ) -> Result<(), ModelError> {
        let length = tokens.size()[1];
        let all = tokens.f_linear(&self.weight, Some(&self.bias))?;
        for (index, input) in self.inputs.iter_mut().enumerate() {
            let mut own = all.f_narrow(-1, index as i64 * width, width)?;
            // (1, tokens, width), or (1, heads, tokens, head width).
            let axis = input.range().max.len().saturating_sub(2);
            if input.range().max.len() == 4 {
                own = split_heads(&own, heads)?;
            }
            let (least, most) = (input.range().min[axis], input.range().max[axis]);
            if !(least..=most).contains(&length) {
                return Err(ModelError::Input {
                    what,
                    expected: format!(
                        "{least} to {most}, which the TensorRT engine was built for; for other prompts or cameras build one \
                         with `engine_builder --text-tokens MIN,OPT,MAX --image-tokens MIN,OPT,MAX`"
                    ),
                    found: length.to_string(),
                });
            }
            input.resize(&own.size(), engine)?;
            input.fill(&own)?;
        }
        Ok(())
    }
}
