//! The loop: modes, trajectories, observations.
//!
//! Modes come one after the other, so that only one policy is in memory; each reads the recording anew. The first mode is the
//! reference. All modes start from the same noise: that of observation k of a run has the seed `noise_seed` + k.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use ndarray::{Array2, Axis};
use thiserror::Error;

use super::{
    capture::Capture,
    mode::Mode,
    source::{Recording, SampleStream},
};
use crate::{
    evaluation::{
        ActionErrors, ActionGroup, Component, ErrorStats, MetricError, ModeMeasurement, RunError, Tick,
        TrajectoryRecorder, TrajectoryResult,
    },
    model::{
        ModelError,
        policy::{
            LoadPolicy, Noise, Policy, PolicyError, PolicyOptions, PredictRequest, Prediction, seeded_noise,
        },
    },
    processor::ProcessorError,
    recording::{
        Sample,
        bag::{BagError, SamplesError},
        lerobot::LeRobotError,
    },
};

/// Normalised chunks of the reference mode that are kept for the others to be held against; of more observations, these are
/// the first. Some 25 kB each.
const KEPT_CHUNKS: usize = 4096;

/// Why a replay cannot go on.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// The policy cannot be loaded or refuses.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A bag does not fit the configuration.
    #[error(transparent)]
    Samples(#[from] SamplesError),
    /// A bag cannot be read on.
    #[error(transparent)]
    Bag(#[from] BagError),
    /// A dataset is damaged or does not fit the checkpoint.
    #[error(transparent)]
    Dataset(#[from] LeRobotError),
    /// Figures that do not fit together.
    #[error(transparent)]
    Metric(#[from] MetricError),
    /// Results that do not belong to the run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Results cannot be kept.
    #[error("the results cannot be kept: {0:#}")]
    Keep(anyhow::Error),
    /// No such trajectory.
    #[error("expected a trajectory of the recording, found number {0}, which it does not have")]
    Trajectory(usize),
}

impl From<ModelError> for ReplayError {
    fn from(error: ModelError) -> Self {
        Self::Policy(error.into())
    }
}

impl From<ProcessorError> for ReplayError {
    fn from(error: ProcessorError) -> Self {
        Self::Policy(error.into())
    }
}

/// How it is replayed.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// What is measured; the first is the reference.
    pub modes: Vec<Mode>,
    /// Where the policy comes from.
    pub policy: PolicyOptions,
    /// Folder of engines, for the modes that have one.
    pub engines: PathBuf,
    /// Whether engines that are missing or do not fit are built.
    pub auto_build: bool,
    /// Steps of an action chunk that are compared and shown.
    pub horizon: usize,
    /// Most observations replayed per trajectory; `None` for all.
    pub steps_per_trajectory: Option<u64>,
    /// Observations per trajectory on which the DiT is compared step by step and components are timed.
    pub component_steps_per_trajectory: u64,
    /// Passes before the first measurement.
    pub warm_up: u32,
    /// Timed passes per component and observation that is chosen for it.
    pub iterations: u32,
    /// Seed of the noise.
    pub noise_seed: u64,
    /// Time between two steps of a chunk.
    pub step_time: Duration,
    /// Action keys and their dimensions, named for people.
    pub groups: Vec<ActionGroup>,
}

/// What the loop tells whoever started it.
pub trait Observer {
    /// A mode's policy is loaded.
    fn loaded(&mut self, mode: Mode, policy: &Policy);
    /// An observation of a trajectory was replayed.
    fn replayed(&mut self, mode: Mode, trajectory: &str, observations: u64);
    /// What a trajectory gave for one mode; not the whole of it where the observer stopped the loop.
    ///
    /// # Errors
    /// It cannot be kept.
    fn measured(&mut self, result: TrajectoryResult, whole: bool) -> anyhow::Result<()>;
    /// A mode has read a trajectory.
    fn read(&mut self, trajectory: &str, stream: &dyn SampleStream, mode: Mode);
    /// A prediction, for whoever writes it down.
    fn predicted(&mut self, mode: Mode, sample: &Sample, prediction: &Prediction) -> Result<(), ReplayError>;
    /// Whether results of this mode and trajectory are there already.
    fn is_done(&self, mode: Mode, trajectory: &str) -> bool;
    /// Whether to stop at the next opportunity.
    fn stop(&self) -> bool;
}

/// What the reference mode leaves to the others.
#[derive(Default)]
struct Reference {
    captures: BTreeMap<(usize, u64), Capture>,
    chunks: BTreeMap<(usize, u64), Array2<f32>>,
}

/// Replays a recording through policies that `load` loads. Returns whether everything was measured; false where the observer stopped it.
///
/// # Errors
/// The first thing that cannot be gone on with. What the observer was told before stays valid.
pub fn run(
    recording: &Recording,
    options: &ReplayOptions,
    load: LoadPolicy,
    observer: &mut dyn Observer,
) -> Result<bool, ReplayError> {
    let trajectories = recording.trajectories();
    let mut reference = Reference::default();
    for (index, &mode) in options.modes.iter().enumerate() {
        let is_reference = index == 0;
        // The reference's inputs are needed for every trajectory that another mode still lacks.
        let wanted: Vec<usize> = (0..trajectories.len())
            .filter(|&t| {
                let lacks = |mode: &Mode| !observer.is_done(*mode, &trajectories[t]);
                if is_reference { options.modes.iter().any(lacks) } else { lacks(&mode) }
            })
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let mut policy = load(&mode.options(&options.policy, &options.engines, options.auto_build))?;
        observer.loaded(mode, &policy);
        let blank = policy.processor().blank_observation();
        for _ in 0..options.warm_up {
            policy.predict(&PredictRequest::new(blank.clone(), Noise::Seed(options.noise_seed)))?;
        }
        for trajectory in wanted {
            let name = &trajectories[trajectory];
            let mut pass = Pass {
                options,
                mode,
                is_reference,
                trajectory,
                policy: &mut policy,
                reference: &mut reference,
                measurement: ModeMeasurement::new(mode.name()),
                recorder: TrajectoryRecorder::new(name, options.step_time.as_secs_f64(), &options.groups),
                start: None,
            };
            let mut stream = recording.open(trajectory)?;
            let mut observations = 0;
            let mut whole = true;
            while options.steps_per_trajectory.is_none_or(|most| observations < most) {
                if observer.stop() {
                    whole = false;
                    break;
                }
                let Some(sample) = stream.next().transpose()? else { break };
                let prediction = pass.observe(&sample, observations)?;
                observer.predicted(mode, &sample, &prediction)?;
                observations += 1;
                observer.replayed(mode, name, observations);
            }
            let Pass { measurement, recorder, .. } = pass;
            observer.read(name, &*stream, mode);
            if observations > 0 && !observer.is_done(mode, name) {
                let plot = Some(recorder.finish());
                let result = TrajectoryResult { name: name.clone(), measurements: vec![measurement], plot };
                observer.measured(result, whole).map_err(ReplayError::Keep)?;
            }
            if !whole {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// One mode on one trajectory.
struct Pass<'a> {
    options: &'a ReplayOptions,
    mode: Mode,
    is_reference: bool,
    trajectory: usize,
    policy: &'a mut Policy,
    reference: &'a mut Reference,
    measurement: ModeMeasurement,
    recorder: TrajectoryRecorder,
    /// Stamp of the first observation.
    start: Option<crate::ros::Stamp>,
}

impl Pass<'_> {
    /// Replays one observation, the `number`-th of its trajectory.
    fn observe(&mut self, sample: &Sample, number: u64) -> Result<Prediction, ReplayError> {
        let seed = self.options.noise_seed.wrapping_add(number);
        let request = PredictRequest::new(sample.observation.clone(), Noise::Seed(seed));
        let prediction = self.policy.predict(&request)?;
        self.time(&prediction);
        let mse = self.judge(sample, &prediction)?;
        let start = *self.start.get_or_insert(sample.stamp);
        let time = sample.stamp.elapsed_since(start);
        self.measurement.timeline.push(Tick {
            time_s: time.as_secs_f64(),
            latency_ms: prediction.timing.total.as_secs_f64() * 1e3,
            mse,
            ..Tick::default()
        });
        self.draw(sample, &prediction, time);
        self.hold_against_reference(number, &prediction)?;
        if number < self.options.component_steps_per_trajectory {
            self.components(sample, number, seed)?;
        }
        Ok(prediction)
    }

    fn time(&mut self, prediction: &Prediction) {
        let timing = &prediction.timing;
        for (component, time) in [
            (Component::DataProcessing, timing.preprocess),
            (Component::Vision, timing.vision),
            (Component::Language, timing.language),
            (Component::Backbone, timing.vision + timing.language),
            (Component::ActionHead, timing.action_head),
            (Component::EndToEnd, timing.total),
        ] {
            self.measurement.latency(component).push(time);
        }
    }

    /// Errors against the recording; the chunk's mean squared error, where anything was recorded.
    fn judge(&mut self, sample: &Sample, prediction: &Prediction) -> Result<Option<f64>, ReplayError> {
        let recorded = &sample.truth.groups;
        let has = |group: &&ActionGroup| recorded.iter().any(|(key, _)| *key == group.key);
        let groups: Vec<ActionGroup> = self.options.groups.iter().filter(has).cloned().collect();
        if groups.is_empty() {
            return Ok(None);
        }
        let mut own = ActionErrors::new(&groups, self.options.horizon);
        if own.push(&prediction.actions, recorded)? == 0 {
            return Ok(None);
        }
        let mse = own.summary().and_then(|summary| summary.total.mse);
        match &mut self.measurement.recorded {
            Some(all) => all.merge(&own)?,
            none => *none = Some(own),
        }
        Ok(mse)
    }

    fn draw(&mut self, sample: &Sample, prediction: &Prediction, time: Duration) {
        let step_time = self.options.step_time.as_secs_f64();
        let first = if step_time > 0.0 { (time.as_secs_f64() / step_time).round() as u64 } else { 0 };
        self.recorder.recorded(first, &sample.truth.groups);
        self.recorder.predicted(self.mode.name(), first, self.options.horizon, &prediction.actions);
    }

    /// The chunk beside that of the reference mode for the same observation and noise.
    fn hold_against_reference(&mut self, number: u64, prediction: &Prediction) -> Result<(), ReplayError> {
        let place = (self.trajectory, number);
        if self.is_reference {
            if self.reference.chunks.len() < KEPT_CHUNKS {
                self.reference.chunks.insert(place, prediction.normalised.clone());
            }
        } else if let Some(reference) = self.reference.chunks.get(&place) {
            let mut own = ErrorStats::default();
            own.push_pairs(reference.iter().copied().zip(prediction.normalised.iter().copied()));
            self.measurement.actions.merge(&own);
        }
        Ok(())
    }

    /// The DiT on the reference's inputs, and repeated passes with everything timed.
    fn components(&mut self, sample: &Sample, number: u64, seed: u64) -> Result<(), ReplayError> {
        let place = (self.trajectory, number);
        if self.is_reference {
            let inputs = self.policy.processor().prepare(&sample.observation)?;
            let noise = seeded_noise(seed, self.policy.noise_shape()).insert_axis(Axis(0));
            let (capture, _) = Capture::record(self.policy.network(), &inputs, &noise)?;
            self.reference.captures.insert(place, capture);
        }
        let Some(capture) = self.reference.captures.get(&place) else { return Ok(()) };
        if !self.is_reference {
            capture.compare(self.policy.network(), &mut self.measurement.denoising)?;
        }
        for _ in 0..self.options.iterations {
            let time = capture.time_denoising(self.policy.network())?;
            self.measurement.latency(Component::Dit).push(time);
        }
        let request = PredictRequest::new(sample.observation.clone(), Noise::Seed(seed));
        for _ in 0..self.options.iterations {
            let prediction = self.policy.predict(&request)?;
            self.time(&prediction);
        }
        Ok(())
    }
}
