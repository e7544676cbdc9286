//! Every tensor of a checkpoint, with its shape, as the configuration implies it.

use super::{EagleConfig, ModelConfig};

/// Features of the DiT's sinusoidal timestep embedding; fixed in the reference.
const TIMESTEP_FEATURES: usize = 256;

/// Width of the DiT's feed-forward network over its token width; fixed in the reference.
const FEED_FORWARD_FACTOR: usize = 4;

/// What a tensor is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Inference reads it: it must be there, with this shape.
    Inference,
    /// Left over from training; may be absent, and is never read.
    Unused,
}

/// One expected tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The state-dict key.
    pub name: String,
    /// Linear weights are (out, in); per-embodiment weights (embodiment, in, out).
    pub shape: Vec<usize>,
    pub purpose: Purpose,
}

impl TensorSpec {
    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// All tensors that a checkpoint of this configuration has or may have, ordered by component.
///
/// Names and shapes follow the state dict of the reference (Isaac-GR00T N1.6). The sizes must be those of
/// configurations that were read from a file or built in: their bounds keep every product below overflow.
pub fn key_table(model: &ModelConfig, eagle: &EagleConfig) -> Vec<TensorSpec> {
    let mut table = Table { specs: Vec::new(), purpose: Purpose::Inference };
    vision_tower(&mut table, eagle);
    connector(&mut table, eagle);
    language_model(&mut table, model, eagle);
    diffusion_transformer(&mut table, model);
    embodiment_layers(&mut table, model);
    table.unused(|table| {
        pooling_head(table, eagle);
        table.add(
            "backbone.model.language_model.lm_head.weight",
            &[eagle.text.vocab_size, eagle.text.hidden_size],
        );
        // Made by training with state dropout; checkpoints exist with and without it whatever the configuration says.
        table.add("action_head.mask_token", &[1, 1, model.input_embedding_dim]);
    });
    table.specs
}

struct Table {
    specs: Vec<TensorSpec>,
    /// Given to every tensor added.
    purpose: Purpose,
}

impl Table {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.specs.push(TensorSpec { name: name.into(), shape: shape.to_vec(), purpose: self.purpose });
    }

    /// A Linear with a bias.
    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) {
        self.add(format!("{name}.weight"), &[outputs, inputs]);
        self.add(format!("{name}.bias"), &[outputs]);
    }

    /// A LayerNorm with weight and bias.
    fn layer_norm(&mut self, name: &str, width: usize) {
        self.add(format!("{name}.weight"), &[width]);
        self.add(format!("{name}.bias"), &[width]);
    }

    /// One Linear per embodiment.
    fn embodiment_linear(&mut self, name: &str, embodiments: usize, inputs: usize, outputs: usize) {
        self.add(format!("{name}.W"), &[embodiments, inputs, outputs]);
        self.add(format!("{name}.b"), &[embodiments, outputs]);
    }

    fn unused(&mut self, add: impl FnOnce(&mut Self)) {
        self.purpose = Purpose::Unused;
        add(self);
        self.purpose = Purpose::Inference;
    }
}

/// The module path occurs twice: a wrapper and the transformer inside it have the same name.
const VISION: &str = "backbone.model.vision_model.vision_model";

fn vision_tower(table: &mut Table, eagle: &EagleConfig) {
    let vision = &eagle.vision;
    let (width, inner) = (vision.hidden_size, vision.intermediate_size);
    table.linear(&format!("{VISION}.embeddings.patch_embedding"), vision.patch_dim(), width);
    table.add(format!("{VISION}.embeddings.position_embedding.weight"), &[vision.num_patches, width]);
    for i in 0..vision.num_hidden_layers {
        let layer = format!("{VISION}.encoder.layers.{i}");
        table.layer_norm(&format!("{layer}.layer_norm1"), width);
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            table.linear(&format!("{layer}.self_attn.{projection}"), width, width);
        }
        table.layer_norm(&format!("{layer}.layer_norm2"), width);
        table.linear(&format!("{layer}.mlp.fc1"), width, inner);
        table.linear(&format!("{layer}.mlp.fc2"), inner, width);
    }
    table.layer_norm(&format!("{VISION}.post_layernorm"), width);
}

/// SigLIP2's attention pooling, which a vision-language model has no use for.
fn pooling_head(table: &mut Table, eagle: &EagleConfig) {
    let (width, inner) = (eagle.vision.hidden_size, eagle.vision.intermediate_size);
    table.add(format!("{VISION}.head.probe"), &[1, 1, width]);
    table.add(format!("{VISION}.head.attention.in_proj_weight"), &[3 * width, width]);
    table.add(format!("{VISION}.head.attention.in_proj_bias"), &[3 * width]);
    table.linear(&format!("{VISION}.head.attention.out_proj"), width, width);
    table.layer_norm(&format!("{VISION}.head.layernorm"), width);
    table.linear(&format!("{VISION}.head.mlp.fc1"), width, inner);
    table.linear(&format!("{VISION}.head.mlp.fc2"), inner, width);
}

/// `mlp1`: LayerNorm (0), Linear (1), GELU (2, no tensors), Linear (3).
fn connector(table: &mut Table, eagle: &EagleConfig) {
    let unshuffled = eagle.vision.hidden_size * eagle.unshuffle_factor().pow(2);
    let width = eagle.text.hidden_size;
    table.layer_norm("backbone.model.mlp1.0", unshuffled);
    table.linear("backbone.model.mlp1.1", unshuffled, width);
    table.linear("backbone.model.mlp1.3", width, width);
}

fn language_model(table: &mut Table, model: &ModelConfig, eagle: &EagleConfig) {
    const PREFIX: &str = "backbone.model.language_model.model";
    let text = &eagle.text;
    let width = text.hidden_size;
    let queries = text.num_attention_heads * text.head_dim;
    let keys = text.num_key_value_heads * text.head_dim;
    table.add(format!("{PREFIX}.embed_tokens.weight"), &[text.vocab_size, width]);
    for i in 0..model.select_layer {
        let layer = format!("{PREFIX}.layers.{i}");
        for (name, shape) in [
            ("input_layernorm", [width].as_slice()),
            ("self_attn.q_proj", &[queries, width]),
            ("self_attn.k_proj", &[keys, width]),
            ("self_attn.v_proj", &[keys, width]),
            ("self_attn.o_proj", &[width, queries]),
            ("self_attn.q_norm", &[text.head_dim]),
            ("self_attn.k_norm", &[text.head_dim]),
            ("post_attention_layernorm", &[width]),
            ("mlp.gate_proj", &[text.intermediate_size, width]),
            ("mlp.up_proj", &[text.intermediate_size, width]),
            ("mlp.down_proj", &[width, text.intermediate_size]),
        ] {
            table.add(format!("{layer}.{name}.weight"), shape);
        }
    }
    table.add(format!("{PREFIX}.norm.weight"), &[width]);
}

fn diffusion_transformer(table: &mut Table, model: &ModelConfig) {
    const PREFIX: &str = "action_head.model";
    let width = model.input_embedding_dim;
    let timestep = format!("{PREFIX}.timestep_encoder.timestep_embedder");
    table.linear(&format!("{timestep}.linear_1"), TIMESTEP_FEATURES, width);
    table.linear(&format!("{timestep}.linear_2"), width, width);
    for i in 0..model.diffusion.num_layers {
        let block = format!("{PREFIX}.transformer_blocks.{i}");
        // Even blocks take keys and values from the backbone, odd ones from the DiT's own tokens.
        let context = if i.is_multiple_of(2) { model.backbone_embedding_dim } else { width };
        table.linear(&format!("{block}.norm1.linear"), width, 2 * width);
        table.linear(&format!("{block}.attn1.to_q"), width, width);
        table.linear(&format!("{block}.attn1.to_k"), context, width);
        table.linear(&format!("{block}.attn1.to_v"), context, width);
        table.linear(&format!("{block}.attn1.to_out.0"), width, width);
        table.linear(&format!("{block}.ff.net.0.proj"), width, FEED_FORWARD_FACTOR * width);
        table.linear(&format!("{block}.ff.net.2"), FEED_FORWARD_FACTOR * width, width);
    }
    table.linear(&format!("{PREFIX}.proj_out_1"), width, 2 * width);
    table.linear(&format!("{PREFIX}.proj_out_2"), width, model.diffusion.output_dim);
}

/// What stands between the DiT and the robot: encoders, decoder, position embedding and the norm of its context.
fn embodiment_layers(table: &mut Table, model: &ModelConfig) {
    let embodiments = model.max_num_embodiments;
    let (width, hidden) = (model.input_embedding_dim, model.hidden_size);
    let (state, action) = (model.max_state_dim, model.max_action_dim);
    for (name, inputs, outputs) in [
        ("state_encoder.layer1", state, hidden),
        ("state_encoder.layer2", hidden, width),
        ("action_encoder.W1", action, width),
        // Takes the embedded action beside the embedded timestep.
        ("action_encoder.W2", 2 * width, width),
        ("action_encoder.W3", width, width),
        ("action_decoder.layer1", model.diffusion.output_dim, hidden),
        ("action_decoder.layer2", hidden, action),
    ] {
        table.embodiment_linear(&format!("action_head.{name}"), embodiments, inputs, outputs);
    }
    table.layer_norm("action_head.vlln", model.backbone_embedding_dim);
    if model.add_pos_embed {
        table.add("action_head.position_embedding.weight", &[model.max_seq_len, width]);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn released_3b() -> Vec<TensorSpec> {
        let config = json!({"max_state_dim": 128, "max_action_dim": 128, "state_dropout_prob": 0.8});
        let model = ModelConfig::from_json(&config, Path::new("config.json")).unwrap();
        key_table(&model, &EagleConfig::n1d6_3b())
    }

    /// Tensors and values of all tensors whose name starts with one of the prefixes.
    fn count(table: &[TensorSpec], prefixes: &[&str]) -> (usize, usize) {
        let chosen = table.iter().filter(|spec| prefixes.iter().any(|p| spec.name.starts_with(p)));
        chosen.fold((0, 0), |(keys, values), spec| (keys + 1, values + spec.elements()))
    }

    #[test]
    fn the_released_3b_model_has_1106_tensors_with_3_286_608_832_parameters() {
        let mut table = released_3b();
        // Training makes a mask token, but the released base checkpoint has none.
        table.retain(|spec| spec.name != "action_head.mask_token");
        let names: BTreeSet<_> = table.iter().map(|spec| &spec.name).collect();
        assert_eq!(names.len(), table.len(), "a name occurs twice");
        assert_eq!(count(&table, &[""]), (1106, 3_286_608_832));
        assert_eq!(count(&table, &["backbone.model."]).0, 633);
        assert_eq!(count(&table, &["action_head."]).0, 473);
    }

    #[test]
    fn each_component_of_the_released_3b_model_has_its_published_tensors_and_parameters() {
        let table = released_3b();
        let language = "backbone.model.language_model.model";
        for (what, prefixes, expected) in [
            (
                "vision tower",
                vec![
                    format!("{VISION}.embeddings."),
                    format!("{VISION}.encoder."),
                    format!("{VISION}.post_layernorm."),
                ],
                (437, 412_442_352),
            ),
            ("pooling head", vec![format!("{VISION}.head.")], (11, 15_238_352)),
            ("connector", vec!["backbone.model.mlp1.".into()], (6, 13_644_800)),
            (
                "language model layers",
                vec![format!("{language}.layers."), format!("{language}.norm.")],
                (177, 805_378_048),
            ),
            ("token embedding", vec![format!("{language}.embed_tokens.")], (1, 310_640_640)),
            ("lm_head", vec!["backbone.model.language_model.lm_head.".into()], (1, 310_640_640)),
            ("DiT", vec!["action_head.model.".into()], (456, 1_091_722_240)),
            ("state encoder", vec!["action_head.state_encoder.".into()], (4, 54_607_872)),
            ("action encoder", vec!["action_head.action_encoder.".into()], (6, 232_931_328)),
            ("action decoder", vec!["action_head.action_decoder.".into()], (4, 37_785_600)),
            (
                "context norm and position embedding",
                vec!["action_head.vlln.".into(), "action_head.position_embedding.".into()],
                (3, 1_576_960),
            ),
            ("mask token", vec!["action_head.mask_token".into()], (1, 1536)),
        ] {
            let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
            assert_eq!(count(&table, &prefixes), expected, "{what}");
        }
    }

    #[test]
    fn only_lm_head_pooling_head_and_mask_token_are_not_needed_for_inference() {
        let unused: Vec<_> = released_3b()
            .into_iter()
            .filter(|spec| spec.purpose == Purpose::Unused)
            .map(|s| s.name)
            .collect();
        assert_eq!(unused.len(), 11 + 1 + 1);
        for name in unused {
            assert!(
                name.contains(".head.") || name.contains("lm_head") || name.contains("mask_token"),
                "{name}"
            );
        }
    }

    #[test]
    fn without_position_embedding_only_that_tensor_is_gone() {
        let config = json!({"max_state_dim": 128, "max_action_dim": 128, "add_pos_embed": false});
        let model = ModelConfig::from_json(&config, Path::new("config.json")).unwrap();
        let without: BTreeSet<_> =
            key_table(&model, &EagleConfig::n1d6_3b()).into_iter().map(|s| s.name).collect();
        let gone: Vec<_> =
            released_3b().into_iter().map(|s| s.name).filter(|name| !without.contains(name)).collect();
        assert_eq!(gone, ["action_head.position_embedding.weight"]);
    }
}
