//! Sizes of models whose weights are made up.

use std::{fmt, str::FromStr};

use crate::checkpoint::{DiffusionConfig, EagleConfig, ModelConfig, TextConfig, VisionConfig};

/// Sizes of network and backbone.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSizes {
    /// Network and action head.
    pub model: ModelConfig,
    /// Backbone.
    pub eagle: EagleConfig,
}

/// Models whose sizes are built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownModel {
    /// GR00T N1.6-3B as published.
    N1d6_3b,
    /// The same architecture, every kind of layer and block, some 10 million parameters: for machines without a GPU.
    Tiny,
}

impl KnownModel {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::N1d6_3b, Self::Tiny];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::N1d6_3b => "n1d6-3b",
            Self::Tiny => "tiny",
        }
    }

    /// Its sizes.
    pub fn sizes(self) -> ModelSizes {
        match self {
            Self::N1d6_3b => ModelSizes { model: ModelConfig::n1d6_3b(), eagle: EagleConfig::n1d6_3b() },
            Self::Tiny => tiny(),
        }
    }
}

fn tiny() -> ModelSizes {
    let published = EagleConfig::n1d6_3b();
    let vision = VisionConfig {
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        ..published.vision
    };
    let text = TextConfig {
        hidden_size: 56,
        intermediate_size: 128,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 16,
        // The vocabulary is the real one, so that prompts are.
        ..published.text
    };
    let model = ModelConfig {
        max_state_dim: 24,
        max_action_dim: 20,
        max_num_embodiments: 4,
        backbone_embedding_dim: text.hidden_size,
        hidden_size: 48,
        input_embedding_dim: 64,
        diffusion: DiffusionConfig {
            num_layers: 4,
            num_attention_heads: 4,
            attention_head_dim: 16,
            output_dim: 48,
        },
        select_layer: 3,
        ..ModelConfig::n1d6_3b()
    };
    ModelSizes { model, eagle: EagleConfig { vision, text, ..published } }
}

impl fmt::Display for KnownModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that stands for no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected one of the models {known}, found {found:?}")]
pub struct UnknownModel {
    known: String,
    found: String,
}

impl FromStr for KnownModel {
    type Err = UnknownModel;

    fn from_str(name: &str) -> Result<Self, UnknownModel> {
        Self::ALL.into_iter().find(|model| model.name() == name).ok_or_else(|| UnknownModel {
            known: Self::ALL.map(Self::name).join(", "),
            found: name.to_owned(),
        })
    }
}
