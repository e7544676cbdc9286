//! The configuration of the Eagle vision-language backbone.
//!
//! A real checkpoint does not carry it: the reference reads it from its own code tree. So the 3B model's values are
//! built in, and a file of the same structure replaces them.

use std::cell::RefCell;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::fields::Fields;
use super::{CheckpointError, file_name, side_file::read_json};

/// Colour channels of a patch.
const NUM_CHANNELS: usize = 3;

/// SigLIP2 vision tower, connector and Qwen3 language model.
///
/// Choices of which only one value is supported are checked when a file is read and have no field: no rotary embedding
/// and no windowed attention in the vision tower (the classes' defaults are the opposite), its last layer's output is
/// what the connector takes, no biases and no sliding window in the language model.
#[derive(Debug, Clone, PartialEq)]
pub struct EagleConfig {
    pub vision: VisionConfig,
    pub text: TextConfig,
    /// Side of the token grid over side of the patch grid. 1/this is a whole number: see
    /// [`EagleConfig::unshuffle_factor`].
    pub downsample_ratio: f64,
    /// Id of the token whose embedding is replaced by an image embedding.
    pub image_token_index: u32,
}

/// SigLIP2 vision tower.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VisionConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Cells of the square grid of learnt position embeddings; a square number.
    pub num_patches: usize,
    pub layer_norm_eps: f64,
}

/// Qwen3 language model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TextConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    /// Layers before the model's `select_layer` cuts them.
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub vocab_size: usize,
}

impl EagleConfig {
    /// The backbone of GR00T N1.6-3B: "Eagle-Block2A-2B-v2" of the Isaac-GR00T tree.
    pub fn n1d6_3b() -> Self {
        Self {
            vision: VisionConfig {
                hidden_size: 1152,
                intermediate_size: 4304,
                num_hidden_layers: 27,
                num_attention_heads: 16,
                patch_size: 14,
                num_patches: 256,
                layer_norm_eps: 1e-6,
            },
            text: TextConfig {
                hidden_size: 2048,
                intermediate_size: 6144,
                num_hidden_layers: 28,
                num_attention_heads: 16,
                num_key_value_heads: 8,
                head_dim: 128,
                rms_norm_eps: 1e-6,
                rope_theta: 1e6,
                vocab_size: 151_680,
            },
            downsample_ratio: 0.5,
            image_token_index: 151_669,
        }
    }

    /// Reads a file of the structure of the reference's own `config.json` of the backbone.
    ///
    /// # Errors
    /// The file is absent or not JSON; or, all in one error, each key that is missing, impossible or unsupported.
    pub fn from_file(path: &Path) -> Result<Self, CheckpointError> {
        Self::from_json(&read_json(path)?, path)
    }

    /// Takes the configuration from a parsed document; `path` is only for messages.
    ///
    /// # Errors
    /// As [`EagleConfig::from_file`].
    pub fn from_json(document: &Value, path: &Path) -> Result<Self, CheckpointError> {
        let problems = RefCell::new(Vec::new());
        let config = read(&Fields::new(&file_name(path), document, &problems));
        match (problems.into_inner(), config) {
            (problems, Some(config)) if problems.is_empty() => Ok(config),
            (problems, _) => Err(CheckpointError::in_file(path, problems)),
        }
    }

    /// Side of the square of patches that becomes one image token: 2 for a downsample ratio of 0.5.
    pub fn unshuffle_factor(&self) -> usize {
        // The ratio lies in [1/64, 1] (checked when read), so the cast loses nothing.
        (1.0 / self.downsample_ratio).round() as usize
    }
}

impl VisionConfig {
    /// Length of a flattened RGB patch.
    pub fn patch_dim(&self) -> usize {
        NUM_CHANNELS * self.patch_size * self.patch_size
    }

    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

/// `None` where a section is missing, which is then among the problems.
fn read(fields: &Fields) -> Option<EagleConfig> {
    fields.only("select_layer", json!(-4), json!(-1));
    fields.only("use_backbone_lora", json!(0), json!(0));
    fields.only("use_llm_lora", json!(0), json!(0));
    let downsample_ratio = fields.number("downsample_ratio", None, 1.0 / 64.0..=1.0);
    let image_token_index = fields.dimension("image_token_index", None);
    let vision = fields.required_section("vision_config").map(|section| read_vision(&section));
    let text = fields.required_section("text_config").map(|section| read_text(&section));
    let config = EagleConfig {
        vision: vision?,
        text: text?,
        downsample_ratio,
        // A dimension is at most 2^20.
        image_token_index: image_token_index as u32,
    };
    if fields.sound() {
        check_relations(fields, &config);
    }
    Some(config)
}

fn read_vision(section: &Fields) -> VisionConfig {
    section.only("model_type", json!("siglip2_vision_model"), json!("siglip2_vision_model"));
    section.only("hidden_act", json!("gelu_pytorch_tanh"), json!("gelu_pytorch_tanh"));
    section.only("use_rope", json!(true), json!(false));
    section.only("use_windows_attn", json!(true), json!(false));
    section.only("num_channels", json!(NUM_CHANNELS), json!(NUM_CHANNELS));
    VisionConfig {
        hidden_size: section.dimension("hidden_size", None),
        intermediate_size: section.dimension("intermediate_size", None),
        num_hidden_layers: section.layers("num_hidden_layers", None),
        num_attention_heads: section.dimension("num_attention_heads", None),
        patch_size: section.side("patch_size"),
        num_patches: section.dimension("num_patches", None),
        layer_norm_eps: section.number("layer_norm_eps", None, 0.0..=1.0),
    }
}

fn read_text(section: &Fields) -> TextConfig {
    section.only("architectures", json!(["Qwen3ForCausalLM"]), json!(["Qwen3ForCausalLM"]));
    section.only("hidden_act", json!("silu"), json!("silu"));
    section.only("attention_bias", json!(false), json!(false));
    section.only("use_sliding_window", json!(false), json!(false));
    section.only("rope_scaling", Value::Null, Value::Null);
    TextConfig {
        hidden_size: section.dimension("hidden_size", None),
        intermediate_size: section.dimension("intermediate_size", None),
        num_hidden_layers: section.layers("num_hidden_layers", None),
        num_attention_heads: section.dimension("num_attention_heads", None),
        num_key_value_heads: section.dimension("num_key_value_heads", None),
        head_dim: section.dimension("head_dim", None),
        rms_norm_eps: section.number("rms_norm_eps", None, 0.0..=1.0),
        rope_theta: section.number("rope_theta", None, 1.0..=1e12),
        vocab_size: section.dimension("vocab_size", None),
    }
}

fn check_relations(fields: &Fields, config: &EagleConfig) {
    let EagleConfig { vision, text, downsample_ratio, image_token_index } = config;
    let (hidden, heads) = (vision.hidden_size, vision.num_attention_heads);
    if !hidden.is_multiple_of(heads) {
        let expected = format!("a multiple of the {heads} attention heads");
        fields.problem("vision_config.hidden_size", expected, hidden.to_string());
    }
    if vision.num_patches.isqrt().pow(2) != vision.num_patches {
        let expected = "a square number: the position grid is square";
        fields.problem("vision_config.num_patches", expected, vision.num_patches.to_string());
    }
    let (heads, kv_heads) = (text.num_attention_heads, text.num_key_value_heads);
    if !heads.is_multiple_of(kv_heads) {
        let expected = format!("a multiple of the {kv_heads} key-value heads");
        fields.problem("text_config.num_attention_heads", expected, heads.to_string());
    }
    if !text.head_dim.is_multiple_of(2) {
        let expected = "an even number: the rotary embedding turns pairs";
        fields.problem("text_config.head_dim", expected, text.head_dim.to_string());
    }
    if (1.0 / downsample_ratio).fract() != 0.0 {
        let expected = "1 divided by a whole number, such as 0.5";
        fields.problem("downsample_ratio", expected, downsample_ratio.to_string());
    }
    if *image_token_index as usize >= text.vocab_size {
        let expected = format!("an id below the vocab_size, {}", text.vocab_size);
        fields.problem("image_token_index", expected, image_token_index.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 3B backbone written out as a file, for tests to change.
    fn document() -> Value {
        json!({
            "select_layer": -1, "downsample_ratio": 0.5, "image_token_index": 151669,
            "vision_config": {
                "model_type": "siglip2_vision_model", "hidden_act": "gelu_pytorch_tanh", "use_rope": false,
                "use_windows_attn": false, "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
                "num_attention_heads": 16, "patch_size": 14, "num_patches": 256, "layer_norm_eps": 1e-6,
            },
            "text_config": {
                "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu", "attention_bias": false,
                "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
                "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1000000,
                "vocab_size": 151680,
            },
        })
    }

    fn complaint(pointer: &str, value: Option<Value>) -> String {
        let mut document = document();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = document.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => parent.insert(key.to_owned(), value),
            None => parent.remove(key),
        };
        EagleConfig::from_json(&document, Path::new("eagle.json")).unwrap_err().to_string()
    }

    #[test]
    fn the_built_in_values_are_those_of_the_written_out_file() {
        let config = EagleConfig::from_json(&document(), Path::new("eagle.json")).unwrap();
        assert_eq!(config, EagleConfig::n1d6_3b());
        assert_eq!(config.unshuffle_factor(), 2);
        assert_eq!(config.vision.patch_dim(), 588);
        assert_eq!(config.vision.head_dim(), 72);
    }

    #[test]
    fn unsupported_variants_are_refused_whether_written_or_the_classes_default() {
        for (pointer, value, wanted) in [
            (
                "/vision_config/use_rope",
                Some(json!(true)),
                "vision_config.use_rope: expected false, the only variant supported, found true",
            ),
            (
                "/vision_config/use_rope",
                None,
                "vision_config.use_rope: expected false, the only variant supported, found no such key, which means true",
            ),
            (
                "/vision_config/use_windows_attn",
                Some(json!(true)),
                "vision_config.use_windows_attn: expected false",
            ),
            ("/vision_config/use_windows_attn", None, "vision_config.use_windows_attn: expected false"),
            (
                "/vision_config/hidden_act",
                Some(json!("gelu")),
                "vision_config.hidden_act: expected \"gelu_pytorch_tanh\", the only variant supported, found \"gelu\"",
            ),
            ("/text_config/hidden_act", Some(json!("gelu")), "text_config.hidden_act: expected \"silu\""),
            ("/text_config/attention_bias", Some(json!(true)), "text_config.attention_bias: expected false"),
            (
                "/select_layer",
                Some(json!(-4)),
                "select_layer: expected -1, the only variant supported, found -4",
            ),
            ("/use_llm_lora", Some(json!(16)), "use_llm_lora: expected 0"),
        ] {
            let text = complaint(pointer, value);
            assert!(text.starts_with(".: eagle.json: ") && text.contains(wanted), "{wanted} not in {text}");
        }
    }

    #[test]
    fn numbers_that_are_missing_or_do_not_divide_are_refused() {
        for (pointer, value, wanted) in [
            (
                "/text_config/vocab_size",
                None,
                "text_config.vocab_size: expected a whole number from 1 to 1048576, found no such key",
            ),
            ("/text_config", None, "text_config: expected a JSON object, found no such key"),
            ("/text_config", Some(json!(3)), "text_config: expected a JSON object, found 3"),
            (
                "/vision_config/hidden_size",
                Some(json!(1150)),
                "vision_config.hidden_size: expected a multiple of the 16 attention heads, found 1150",
            ),
            (
                "/vision_config/num_patches",
                Some(json!(255)),
                "vision_config.num_patches: expected a square number",
            ),
            (
                "/text_config/num_key_value_heads",
                Some(json!(7)),
                "text_config.num_attention_heads: expected a multiple of the 7 key-value heads, found 16",
            ),
            ("/text_config/head_dim", Some(json!(127)), "text_config.head_dim: expected an even number"),
            (
                "/downsample_ratio",
                Some(json!(0.4)),
                "downsample_ratio: expected 1 divided by a whole number, such as 0.5, found 0.4",
            ),
            (
                "/image_token_index",
                Some(json!(151680)),
                "image_token_index: expected an id below the vocab_size, 151680, found 151680",
            ),
        ] {
            let text = complaint(pointer, value);
            assert!(text.contains(wanted) && !text.contains("problems"), "{wanted} not alone in {text}");
        }
    }
}
