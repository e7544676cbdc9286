//! The figures and their definitions. Everything is computed in f64.

mod actions;
mod denoising;
mod error_stats;
mod latency;
mod spread;
mod sum;

pub use actions::{
    ActionErrors, ActionGroup, ActionSummary, Actions, Dimension, DimensionSummary, GroupSummary, MAX_HORIZON,
};
pub use denoising::{DenoisingErrors, DenoisingSummary, MAX_DENOISING_STEPS};
pub use error_stats::{ErrorStats, ErrorSummary};
pub use latency::{LatencySamples, LatencySummary, percentile};

/// Arrays that cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetricError {
    /// A sample's sides differ in length.
    #[error("expected as many tested values as reference values, found {tested} and {reference}")]
    Length {
        /// Number of reference values.
        reference: usize,
        /// Number of tested values.
        tested: usize,
    },
    /// No sampler takes so many steps.
    #[error("expected a denoising step below {MAX_DENOISING_STEPS}, found {0}")]
    DenoisingStep(usize),
    /// A key is missing.
    #[error(
        "expected the action key {key:?} in the {side} actions, found none; the layout and the actions must come from one checkpoint"
    )]
    Key {
        /// `predicted` or `recorded`.
        side: &'static str,
        /// The action key.
        key: String,
    },
    /// A key has another number of columns.
    #[error("expected {expected} columns for the action key {key:?} in the {side} actions, found {found}")]
    Dimension {
        /// `predicted` or `recorded`.
        side: &'static str,
        /// The action key.
        key: String,
        /// Columns of the layout.
        expected: usize,
        /// Columns found.
        found: usize,
    },
    /// Errors of different layouts.
    #[error("expected errors over {expected}, found some over {found}; they cannot be merged")]
    Groups {
        /// This side's layout.
        expected: String,
        /// The other side's.
        found: String,
    },
}
