//! One instant of a recording, as the policy and its judge see it.

use ndarray::Array2;

use crate::{observation::Observation, ros::Stamp};

/// An observation out of a recording, with the actions that were recorded from there on.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The trajectory this instant belongs to: a bag's name, or `episode 12` of a dataset.
    pub episode: String,
    /// Number of the instant within its trajectory, counted in the source's own steps (anchors or dataset rows).
    pub step: u64,
    /// The observation's own time.
    pub stamp: Stamp,
    /// What the policy would have seen.
    pub observation: Observation,
    /// What the robot did.
    pub truth: Truth,
}

/// Recorded actions from an observation on, at the policy's step time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Truth {
    /// Per action key, in the checkpoint's order: rows are steps (row k: the target that a chunk's row k aims at),
    /// columns the key's dimensions, in the units of the policy's physical actions.
    pub groups: Vec<(String, Array2<f32>)>,
}

impl Truth {
    /// Steps that the recording holds; near its end fewer than the action horizon.
    pub fn steps(&self) -> usize {
        self.groups.iter().map(|(_, rows)| rows.nrows()).min().unwrap_or(0)
    }
}
