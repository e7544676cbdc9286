//! What was found, for people and for programs.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::{inputs::Inputs, parts::Part};
use crate::onnx::validate::{Comparison, LayerComparison};

/// One part of the network.
#[derive(Debug, Clone, Serialize)]
pub struct PartReport {
    pub part: Part,
    #[serde(flatten)]
    pub comparison: Comparison,
}

/// All parts that were compared.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The checkpoint's directory.
    pub checkpoint: String,
    /// What both were given.
    pub inputs: String,
    /// Cosine below which a layer counts as wrong.
    pub least_cosine: f64,
    /// The first layer of each part whose cosine is smaller.
    pub wrong: Vec<String>,
    /// The first layer of each part with a value that f16 cannot hold.
    pub beyond_f16: Vec<String>,
    /// Layers that are zero throughout in both, so that nothing was compared.
    pub zero: Vec<String>,
    pub parts: Vec<PartReport>,
}

impl Report {
    /// Draws the conclusions.
    pub fn new(checkpoint: &Path, inputs: &Inputs, least_cosine: f64, parts: Vec<PartReport>) -> Self {
        let named = |found: Option<&LayerComparison>| found.map(|layer| layer.name.clone());
        let comparisons = || parts.iter().map(|part| &part.comparison);
        Self {
            checkpoint: checkpoint.display().to_string(),
            inputs: inputs.described.clone(),
            least_cosine,
            wrong: comparisons().filter_map(|c| named(c.first_below(least_cosine))).collect(),
            beyond_f16: comparisons().filter_map(|c| named(c.first_f16_overflow())).collect(),
            zero: comparisons()
                .flat_map(|comparison| &comparison.layers)
                .filter(|layer| layer.is_empty())
                .map(|layer| layer.name.clone())
                .collect(),
            parts,
        }
    }

    /// Whether every layer is what it should be.
    pub fn is_right(&self) -> bool {
        self.wrong.is_empty()
    }
}

/// A table for each part, and the conclusions.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "inputs: {}; reference: libtorch in f32, other: ONNX Runtime in f32", self.inputs)?;
        for PartReport { part, comparison } in &self.parts {
            writeln!(f, "\n{part}\n{comparison}")?;
            let layers = comparison.layers.len();
            match comparison.first_below(self.least_cosine) {
                Some(layer) => writeln!(
                    f,
                    "{part}: WRONG from {} on: cosine {:.6}, expected {} or more",
                    layer.name, layer.cosine, self.least_cosine
                )?,
                None => {
                    writeln!(f, "{part}: all {layers} layers have a cosine of {} or more", self.least_cosine)?
                }
            }
            match comparison.first_f16_overflow() {
                Some(layer) => writeln!(
                    f,
                    "{part}: f16 cannot hold {} ({:.4} % of its values, largest {:.1}): build it in bf16 or fp32",
                    layer.name,
                    layer.share_beyond_f16() * 100.0,
                    layer.reference.largest().max(layer.other.largest())
                )?,
                None => writeln!(f, "{part}: every value is within the range of f16")?,
            }
        }
        if !self.zero.is_empty() {
            writeln!(f, "\nzero throughout, so that nothing was compared: {}", self.zero.join(", "))?;
        }
        Ok(())
    }
}
