//! What one replay or benchmark measured: the data behind every table and plot.
//!
//! A [`Run`] is a JSON file that carries its schema number. What is not known to a reader is ignored, and what is not there
//! takes its default, so that versions which only add fields read each other's files; the number rises when the meaning of
//! a field changes, and a file with a higher number is refused.

mod builder;
mod component;
mod file;
mod machine;
mod plot;
mod result;

pub use builder::{ModeMeasurement, RunBuilder, RunError, TrajectoryResult};
pub use component::Component;
pub use file::{MAX_RUN_BYTES, RunFileError};
pub use machine::{Cpu, Gpu, Machine};
pub use plot::{
    DimensionPlot, MAX_PLOT_POINTS, MAX_PLOT_STEPS, MAX_PLOTTED_DIMENSIONS, MAX_PLOTTED_TRAJECTORIES,
    MAX_TICKS, PredictedSeries, Tick, TrajectoryPlot, TrajectoryRecorder,
};
pub use result::{ComponentLatency, MAX_KEPT_SAMPLES, ModeIdentity, ModeResult};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Number of the schema that this version writes, and the highest that it reads.
pub const SCHEMA: u32 = 1;

/// A replay or benchmark with everything it measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// Program that measured.
    pub tool: Tool,
    /// When it began: RFC 3339, UTC.
    pub created: String,
    /// What to call this run in headings; empty for the checkpoint's name.
    pub title: String,
    /// Where it was measured.
    pub machine: Machine,
    /// Which policy.
    pub checkpoint: CheckpointIdentity,
    /// On what.
    pub source: Source,
    /// How.
    pub options: Options,
    /// Name of the mode against which the others are held.
    pub reference: String,
    /// What was measured, mode by mode, in the order asked for.
    pub modes: Vec<ModeResult>,
    /// Recorded and predicted motion; the first [`MAX_PLOTTED_TRAJECTORIES`].
    pub trajectories: Vec<TrajectoryPlot>,
    /// Trajectories measured.
    pub trajectories_done: u64,
    /// Set where the run ended early.
    pub partial: Option<Partial>,
    /// What a reader must know: one sentence each.
    pub notes: Vec<String>,
}

impl Run {
    /// What to call this run: its title, else its checkpoint.
    pub fn title(&self) -> &str {
        match (self.title.as_str(), self.checkpoint.name.as_str()) {
            ("", "") => "replay",
            ("", checkpoint) => checkpoint,
            (title, _) => title,
        }
    }

    /// The mode of this name.
    pub fn mode(&self, name: &str) -> Option<&ModeResult> {
        self.modes.iter().find(|mode| mode.name == name)
    }

    /// The mode against which the others are held, where it was measured.
    pub fn reference_mode(&self) -> Option<&ModeResult> {
        self.mode(&self.reference)
    }

    /// Whether `mode` is the one against which the others are held.
    pub fn is_reference(&self, mode: &ModeResult) -> bool {
        mode.name == self.reference
    }
}

/// A program and its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tool {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
}

impl Default for Tool {
    /// This package.
    fn default() -> Self {
        Self { name: env!("CARGO_PKG_NAME").to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// Which policy was measured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointIdentity {
    /// What to call it.
    pub name: String,
    /// Folder, as given.
    pub path: String,
    /// Fingerprint of its files, or empty.
    pub hash: String,
    /// Embodiment tag.
    pub embodiment: String,
    /// Number of parameters.
    pub parameters: Option<u64>,
    /// Weights that were never trained: the errors against a recording mean nothing then.
    pub random_weights: bool,
}

/// What the observations came from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// `rosbag2 (mcap)`, `LeRobot v3`, `random inputs`, ...
    pub kind: String,
    /// What to call it.
    pub name: String,
    /// File or folder, as given.
    pub path: String,
    /// Fingerprint, or empty.
    pub hash: String,
    /// Length of the recording in seconds.
    pub duration_s: Option<f64>,
    /// Messages (or rows) read, per topic (or column).
    pub messages: BTreeMap<String, u64>,
    /// Observations made of them.
    pub samples: u64,
    /// What was damaged or left out: one sentence each.
    pub damage: Vec<String>,
    /// A recording that a program made up.
    pub synthetic: bool,
}

/// How it was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Steps of an action chunk that are compared.
    pub horizon: u64,
    /// Steps from one replayed observation to the next.
    pub stride: u64,
    /// Most observations replayed per trajectory, or all.
    pub steps_per_trajectory: Option<u64>,
    /// Most observations per trajectory on which components are compared step by step, or all.
    pub component_steps_per_trajectory: Option<u64>,
    /// Trajectories asked for, or all.
    pub trajectories: Option<u64>,
    /// Passes that are not measured, before each measurement series.
    pub warm_up: u64,
    /// Measured passes per component, where passes are repeated.
    pub iterations: u64,
    /// Seed of the noise from which all modes start.
    pub noise_seed: Option<u64>,
    /// Denoising steps of the sampler.
    pub denoising_steps: u64,
    /// Seconds from one action step to the next.
    pub step_time_s: Option<f64>,
    /// Anything else that a reader needs to do the same again.
    pub other: BTreeMap<String, String>,
}

/// How far a run came that ended early.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Partial {
    /// Why: `interrupted`, for instance.
    pub reason: String,
    /// Trajectories done.
    pub done: u64,
    /// Trajectories asked for, where that is known.
    pub planned: Option<u64>,
}

impl std::fmt::Display for Partial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.planned {
            Some(planned) => write!(f, "{} after {} of {planned} trajectories", self.reason, self.done),
            None => write!(f, "{} after {} trajectories", self.reason, self.done),
        }
    }
}
