//! `config.json`: the sizes of the network and of its action head.

use std::cell::RefCell;
use std::path::Path;

use serde_json::{Value, json};

use super::error::Problem;
use super::fields::Fields;
use super::{CheckpointError, EagleConfig, file_name, side_file::read_json};

/// The parts of `config.json` that rule inference, named as there.
///
/// A checkpoint stores only the keys that were set when it was trained; an absent key has the default of the
/// reference's `Gr00tN1d6Config`, noted at each field. Keys not listed (training, preprocessing) are ignored. Choices of which
/// only one value is supported are checked when the file is read and have no field: `use_alternate_vl_dit` true,
/// `use_vlln` true, and in `diffusion_model_cfg` `norm_type` "ada_norm", `interleave_self_attention` true,
/// `positional_embeddings` null.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Width of the padded state vector. Default 29.
    pub max_state_dim: usize,
    /// Width of the padded action vector. Default 29.
    pub max_action_dim: usize,
    /// Action rows that the network denoises at once. Default 16.
    pub action_horizon: usize,
    /// Rows of the per-embodiment weight tables. Default 32.
    pub max_num_embodiments: usize,
    /// Width of the backbone's output. Default 2048.
    pub backbone_embedding_dim: usize,
    /// Hidden width of the state encoder and the action decoder. Default 1024.
    pub hidden_size: usize,
    /// Width of a DiT token: heads x head width. Default 1536.
    pub input_embedding_dim: usize,
    /// The DiT, `diffusion_model_cfg`.
    pub diffusion: DiffusionConfig,
    /// Which DiT blocks attend to text instead of image tokens: those whose index is a multiple of twice this.
    /// Default 2.
    pub attend_text_every_n_blocks: usize,
    /// Whether action tokens carry a learnt position embedding. Default true.
    pub add_pos_embed: bool,
    /// Rows of the position embedding. Default 1024.
    pub max_seq_len: usize,
    /// Denoising steps. Default 4.
    pub num_inference_timesteps: usize,
    /// Scale of the integer timestep. Default 1000.
    pub num_timestep_buckets: usize,
    /// Language model layers that are kept. Default 16.
    pub select_layer: usize,
    /// Probability of hiding the state in training; nothing at inference. Default 0.
    pub state_dropout_prob: f64,
    /// Whether relative actions are turned into absolute ones. Default false.
    pub use_relative_action: bool,
    /// Whether the state keys that ask for it are encoded as sine and cosine. Default false.
    pub apply_sincos_state_encoding: bool,
}

/// Sizes of the diffusion transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct DiffusionConfig {
    /// Blocks; even ones cross-attend to the backbone, odd ones attend to themselves. Default 32.
    pub num_layers: usize,
    /// Default 32.
    pub num_attention_heads: usize,
    /// Default 48.
    pub attention_head_dim: usize,
    /// Width of the DiT's output. Default 1024.
    pub output_dim: usize,
}

impl ModelConfig {
    /// The published GR00T N1.6-3B.
    pub fn n1d6_3b() -> Self {
        Self {
            max_state_dim: 128,
            max_action_dim: 128,
            action_horizon: 50,
            max_num_embodiments: 32,
            backbone_embedding_dim: 2048,
            hidden_size: 1024,
            input_embedding_dim: 1536,
            diffusion: DiffusionConfig {
                num_layers: 32,
                num_attention_heads: 32,
                attention_head_dim: 48,
                output_dim: 1024,
            },
            attend_text_every_n_blocks: 2,
            add_pos_embed: true,
            max_seq_len: 1024,
            num_inference_timesteps: 4,
            num_timestep_buckets: 1000,
            select_layer: 16,
            state_dropout_prob: 0.8,
            use_relative_action: true,
            apply_sincos_state_encoding: true,
        }
    }

    /// Reads `config.json`.
    ///
    /// # Errors
    /// The file is absent or not JSON; or, all in one error, each key with an impossible or unsupported value.
    pub fn from_file(path: &Path) -> Result<Self, CheckpointError> {
        Self::from_json(&read_json(path)?, path)
    }

    /// Takes the configuration from a parsed document; `path` is only for messages.
    ///
    /// # Errors
    /// As [`ModelConfig::from_file`].
    pub fn from_json(document: &Value, path: &Path) -> Result<Self, CheckpointError> {
        let problems = RefCell::new(Vec::new());
        let config = read(&Fields::new(&file_name(path), document, &problems));
        match problems.into_inner() {
            problems if problems.is_empty() => Ok(config),
            problems => Err(CheckpointError::in_file(path, problems)),
        }
    }

    /// Where this network and the backbone do not fit each other.
    pub(super) fn mismatches(&self, eagle: &EagleConfig, file: &str) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.backbone_embedding_dim != eagle.text.hidden_size {
            problems.push(Problem::item(
                file,
                "backbone_embedding_dim",
                format!("{}, the hidden_size of the Eagle language model", eagle.text.hidden_size),
                self.backbone_embedding_dim.to_string(),
            ));
        }
        if self.select_layer > eagle.text.num_hidden_layers {
            problems.push(Problem::item(
                file,
                "select_layer",
                format!("at most {}, the Eagle language model's layers", eagle.text.num_hidden_layers),
                self.select_layer.to_string(),
            ));
        }
        problems
    }
}

fn read(fields: &Fields) -> ModelConfig {
    fields.only("use_alternate_vl_dit", json!(true), json!(true));
    fields.only("use_vlln", json!(true), json!(true));
    let config = ModelConfig {
        max_state_dim: fields.dimension("max_state_dim", Some(29)),
        max_action_dim: fields.dimension("max_action_dim", Some(29)),
        action_horizon: fields.dimension("action_horizon", Some(16)),
        max_num_embodiments: fields.dimension("max_num_embodiments", Some(32)),
        backbone_embedding_dim: fields.dimension("backbone_embedding_dim", Some(2048)),
        hidden_size: fields.dimension("hidden_size", Some(1024)),
        input_embedding_dim: fields.dimension("input_embedding_dim", Some(1536)),
        diffusion: read_diffusion(fields),
        attend_text_every_n_blocks: fields.dimension("attend_text_every_n_blocks", Some(2)),
        add_pos_embed: fields.boolean("add_pos_embed", true),
        max_seq_len: fields.dimension("max_seq_len", Some(1024)),
        num_inference_timesteps: fields.dimension("num_inference_timesteps", Some(4)),
        num_timestep_buckets: fields.dimension("num_timestep_buckets", Some(1000)),
        select_layer: fields.layers("select_layer", Some(16)),
        state_dropout_prob: fields.number("state_dropout_prob", Some(0.0), 0.0..=1.0),
        use_relative_action: fields.boolean("use_relative_action", false),
        apply_sincos_state_encoding: fields.boolean("apply_sincos_state_encoding", false),
    };
    if fields.sound() {
        check_relations(fields, &config);
    }
    config
}

/// The reference has two sets of defaults: the configuration's for an absent block, and the transformer class's for a
/// key missing from a block that is there.
fn read_diffusion(fields: &Fields) -> DiffusionConfig {
    let Some(block) = fields.section("diffusion_model_cfg") else {
        return DiffusionConfig {
            num_layers: 32,
            num_attention_heads: 32,
            attention_head_dim: 48,
            output_dim: 1024,
        };
    };
    block.only("norm_type", json!("ada_norm"), json!("ada_norm"));
    block.only("interleave_self_attention", json!(false), json!(true));
    block.only("positional_embeddings", json!("sinusoidal"), Value::Null);
    block.only("activation_fn", json!("gelu-approximate"), json!("gelu-approximate"));
    block.only("attention_bias", json!(true), json!(true));
    block.only("norm_elementwise_affine", json!(false), json!(false));
    block.only("norm_eps", json!(1e-5), json!(1e-5));
    DiffusionConfig {
        num_layers: block.layers("num_layers", Some(12)),
        num_attention_heads: block.dimension("num_attention_heads", Some(8)),
        attention_head_dim: block.dimension("attention_head_dim", Some(64)),
        output_dim: block.dimension("output_dim", Some(26)),
    }
}

fn check_relations(fields: &Fields, config: &ModelConfig) {
    let width = config.input_embedding_dim;
    let DiffusionConfig { num_attention_heads: heads, attention_head_dim: head_dim, output_dim, .. } =
        config.diffusion;
    if width != heads * head_dim {
        fields.problem(
            "input_embedding_dim",
            format!("{heads} heads x {head_dim} = {} (diffusion_model_cfg)", heads * head_dim),
            width.to_string(),
        );
    }
    if !width.is_multiple_of(2) {
        fields.problem(
            "input_embedding_dim",
            "an even number: half of the timestep features are sines",
            width.to_string(),
        );
    }
    if output_dim != config.hidden_size {
        fields.problem(
            "diffusion_model_cfg.output_dim",
            format!("{}, the hidden_size that the action decoder takes", config.hidden_size),
            output_dim.to_string(),
        );
    }
    if config.add_pos_embed && config.max_seq_len < config.action_horizon {
        fields.problem(
            "max_seq_len",
            format!("at least {}, the action_horizon", config.action_horizon),
            config.max_seq_len.to_string(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(document: Value) -> Result<ModelConfig, CheckpointError> {
        ModelConfig::from_json(&document, Path::new("config.json"))
    }

    fn complaint(document: Value) -> String {
        parse(document).unwrap_err().to_string()
    }

    #[test]
    fn the_built_in_sizes_are_the_defaults_with_the_keys_that_the_published_checkpoint_sets() {
        let published = parse(json!({
            "max_state_dim": 128, "max_action_dim": 128, "action_horizon": 50, "state_dropout_prob": 0.8,
            "use_relative_action": true, "apply_sincos_state_encoding": true,
        }));
        assert_eq!(published.unwrap(), ModelConfig::n1d6_3b());
    }

    #[test]
    fn absent_keys_take_the_defaults_of_the_reference() {
        let config = parse(json!({"some_training_key": [1, 2]})).unwrap();
        assert_eq!(
            config,
            ModelConfig {
                max_state_dim: 29,
                max_action_dim: 29,
                action_horizon: 16,
                max_num_embodiments: 32,
                backbone_embedding_dim: 2048,
                hidden_size: 1024,
                input_embedding_dim: 1536,
                diffusion: DiffusionConfig {
                    num_layers: 32,
                    num_attention_heads: 32,
                    attention_head_dim: 48,
                    output_dim: 1024,
                },
                attend_text_every_n_blocks: 2,
                add_pos_embed: true,
                max_seq_len: 1024,
                num_inference_timesteps: 4,
                num_timestep_buckets: 1000,
                select_layer: 16,
                state_dropout_prob: 0.0,
                use_relative_action: false,
                apply_sincos_state_encoding: false,
            }
        );
    }

    #[test]
    fn every_wrong_value_is_named_with_key_expected_and_found() {
        let text = complaint(json!({
            "max_state_dim": "many", "action_horizon": 0, "state_dropout_prob": 1.5, "add_pos_embed": 1,
            "max_action_dim": 1u64 << 40, "diffusion_model_cfg": {"num_layers": 2.5, "positional_embeddings": null,
            "interleave_self_attention": true},
        }));
        for wanted in [
            "6 problems",
            "max_state_dim: expected a whole number from 1 to 1048576, found \"many\"",
            "action_horizon: expected a whole number from 1 to 1048576, found 0",
            "state_dropout_prob: expected a number from 0.0 to 1.0, found 1.5",
            "add_pos_embed: expected true or false, found 1",
            "max_action_dim: expected a whole number from 1 to 1048576, found 1099511627776",
            "diffusion_model_cfg.num_layers: expected a whole number from 1 to 1024, found 2.5",
        ] {
            assert!(text.contains(wanted), "{wanted} not in {text}");
        }
    }

    #[test]
    fn unsupported_variants_name_key_supported_and_found_value() {
        let text = complaint(json!({
            "use_alternate_vl_dit": false, "use_vlln": false,
            "diffusion_model_cfg": {"norm_type": "layer_norm", "interleave_self_attention": false,
            "positional_embeddings": "sinusoidal", "num_layers": 32, "num_attention_heads": 32,
            "attention_head_dim": 48, "output_dim": 1024},
        }));
        for wanted in [
            "5 problems",
            "use_alternate_vl_dit: expected true, the only variant supported, found false",
            "use_vlln: expected true, the only variant supported, found false",
            "diffusion_model_cfg.norm_type: expected \"ada_norm\", the only variant supported, found \"layer_norm\"",
            "diffusion_model_cfg.interleave_self_attention: expected true, the only variant supported, found false",
            "diffusion_model_cfg.positional_embeddings: expected null, the only variant supported, found \"sinusoidal\"",
        ] {
            assert!(text.contains(wanted), "{wanted} not in {text}");
        }
    }

    #[test]
    fn a_key_missing_from_a_given_diffusion_block_means_the_transformers_own_default() {
        let text = complaint(json!({"diffusion_model_cfg": {"num_layers": 32}}));
        assert!(
            text.contains("diffusion_model_cfg.positional_embeddings: expected null, the only variant supported, found no such key, which means \"sinusoidal\""),
            "{text}"
        );
    }

    #[test]
    fn widths_that_do_not_fit_each_other_are_refused() {
        let diffusion = |heads: usize, output: usize| {
            json!({"num_layers": 2, "num_attention_heads": heads, "attention_head_dim": 3, "output_dim": output,
                   "interleave_self_attention": true, "positional_embeddings": null})
        };
        let config = |width: usize, heads: usize, output: usize| json!({"input_embedding_dim": width, "hidden_size": 5, "diffusion_model_cfg": diffusion(heads, output)});
        assert!(parse(config(12, 4, 5)).is_ok());
        assert!(complaint(config(12, 5, 5)).contains("input_embedding_dim: expected 5 heads x 3 = 15"));
        assert!(complaint(config(15, 5, 5)).contains("input_embedding_dim: expected an even number"));
        assert!(complaint(config(12, 4, 7)).contains("diffusion_model_cfg.output_dim: expected 5"));
        let text = complaint(json!({"max_seq_len": 15}));
        assert!(text.contains("max_seq_len: expected at least 16, the action_horizon, found 15"), "{text}");
        assert!(parse(json!({"max_seq_len": 15, "add_pos_embed": false})).is_ok());
    }

    #[test]
    fn a_document_that_is_no_object_gives_one_problem() {
        assert_eq!(complaint(json!([1])), ".: config.json: expected a JSON object, found [1]");
    }
}
