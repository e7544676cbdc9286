//! Which part of the model an engine holds.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::EngineError;

/// The graphs that are exported and that engines are built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphKind {
    /// One denoising step, from actions to velocity, with all constants folded.
    DitFused,
    /// What the fused graph takes once per tick: keys, values and the encoded state.
    DitCondition,
    /// The DiT alone, with the inputs of the public export.
    DitReference,
    /// Vision tower and connector.
    BackboneVision,
    /// The kept layers of the language model.
    BackboneLanguage,
}

impl GraphKind {
    /// All graphs.
    pub const ALL: [Self; 5] = [
        Self::DitFused,
        Self::DitCondition,
        Self::DitReference,
        Self::BackboneVision,
        Self::BackboneLanguage,
    ];

    /// The name in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DitFused => "dit_fused",
            Self::DitCondition => "dit_condition",
            Self::DitReference => "dit_reference",
            Self::BackboneVision => "backbone_vision",
            Self::BackboneLanguage => "backbone_language",
        }
    }

    /// Whether it is a part of the backbone.
    pub fn is_backbone(self) -> bool {
        matches!(self, Self::BackboneVision | Self::BackboneLanguage)
    }
}

impl fmt::Display for GraphKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for GraphKind {
    type Err = EngineError;

    /// Takes hyphens for underscores, and the DiT's graphs without `dit_`.
    fn from_str(text: &str) -> Result<Self, EngineError> {
        let plain = text.replace('-', "_");
        let named = |kind: &Self| {
            let name = kind.as_str();
            name == plain || name.strip_prefix("dit_") == Some(&plain)
        };
        Self::ALL.into_iter().find(named).ok_or_else(|| EngineError::Invalid {
            what: "graph".to_owned(),
            expected: Self::ALL.map(Self::as_str).join(", "),
            found: format!("{text:?}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphs_are_known_by_their_names_with_hyphens_too_and_others_are_refused_with_the_list() {
        for kind in GraphKind::ALL {
            assert_eq!(kind.as_str().parse::<GraphKind>().expect("its name"), kind);
            assert_eq!(kind.as_str().replace('_', "-").parse::<GraphKind>().expect("hyphens"), kind);
            assert_eq!(serde_json::to_value(kind).expect("json"), kind.as_str());
        }
        assert_eq!("reference".parse::<GraphKind>().expect("short"), GraphKind::DitReference);
        let error = "backbone".parse::<GraphKind>().expect_err("two graphs").to_string();
        assert!(error.contains("backbone_vision") && error.contains("\"backbone\""), "{error}");
    }
}
