//! Which part of the model an engine holds.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::EngineError;

/// The graphs that engines are built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphKind {
    /// One denoising step, from actions to velocity, with all constants folded.
    DitFused,
    /// The DiT alone, with the inputs of the public export.
    DitReference,
    /// Vision tower and language model.
    Backbone,
}

impl GraphKind {
    /// All graphs.
    pub const ALL: [Self; 3] = [Self::DitFused, Self::DitReference, Self::Backbone];

    /// The name in files and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DitFused => "dit_fused",
            Self::DitReference => "dit_reference",
            Self::Backbone => "backbone",
        }
    }
}

impl fmt::Display for GraphKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for GraphKind {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| EngineError::Invalid {
            what: "graph".to_owned(),
            expected: Self::ALL.map(Self::as_str).join(", "),
            found: format!("{text:?}"),
        })
    }
}
