//! The parts whose time is taken.

use serde::{Deserialize, Serialize};

/// A part of a tick.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// Frames, text and state to the network's inputs, on the CPU.
    DataProcessing,
    /// Vision tower with its projector.
    Vision,
    /// Language model.
    Language,
    /// Vision and language together.
    Backbone,
    /// All passes of the DiT in one tick.
    Dit,
    /// Encoders, all denoising steps with the DiT in them, decoder.
    ActionHead,
    /// Observation in, physical actions out: everything.
    EndToEnd,
    /// A part that only one mode or version knows; shown after the others.
    #[serde(untagged)]
    Other(String),
}

impl Component {
    /// Those that every mode may have, in the order in which they are shown.
    pub const ALL: [Self; 7] = [
        Self::DataProcessing,
        Self::Vision,
        Self::Language,
        Self::Backbone,
        Self::Dit,
        Self::ActionHead,
        Self::EndToEnd,
    ];

    /// Name in files and in the names of metrics.
    pub fn key(&self) -> &str {
        match self {
            Self::DataProcessing => "data_processing",
            Self::Vision => "vision",
            Self::Language => "language",
            Self::Backbone => "backbone",
            Self::Dit => "dit",
            Self::ActionHead => "action_head",
            Self::EndToEnd => "end_to_end",
            Self::Other(name) => name,
        }
    }

    /// Name for people.
    pub fn label(&self) -> &str {
        match self {
            Self::DataProcessing => "data processing",
            Self::Vision => "vision",
            Self::Language => "language model",
            Self::Backbone => "backbone",
            Self::Dit => "DiT",
            Self::ActionHead => "action head",
            Self::EndToEnd => "end to end",
            Self::Other(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_files_are_the_keys_and_unknown_ones_are_kept() {
        for component in Component::ALL.into_iter().chain([Component::Other("image decode".into())]) {
            let text = serde_json::to_string(&component).unwrap();
            assert_eq!(text, format!("{:?}", component.key()));
            assert_eq!(serde_json::from_str::<Component>(&text).unwrap(), component);
        }
    }
}
