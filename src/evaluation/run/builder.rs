//! From trajectories to a run.

use serde::{Deserialize, Serialize};

use super::{
    super::metrics::{ActionErrors, DenoisingErrors, ErrorStats, LatencySamples, MetricError},
    Component, ComponentLatency, MAX_PLOTTED_TRAJECTORIES, ModeIdentity, ModeResult, Partial, Run, SCHEMA,
    Tick, TrajectoryPlot, plot,
};

/// A trajectory's results that do not belong to the run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RunError {
    /// A mode that was not announced.
    #[error("expected results of the modes {known}, found some of {found:?}")]
    Mode {
        /// The run's modes.
        known: String,
        /// The unknown one.
        found: String,
    },
    /// Errors that do not fit those before.
    #[error("mode {mode}: {error}")]
    Metric {
        /// The mode.
        mode: String,
        /// What does not fit.
        error: MetricError,
    },
}

/// What one mode gave on one trajectory, or on several that were merged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModeMeasurement {
    /// The mode's name.
    pub mode: String,
    /// Latencies per component. Use [`latency`](Self::latency) to add to them.
    pub latencies: Vec<(Component, LatencySamples)>,
    /// The DiT's outputs against the reference mode's; left empty for the reference mode.
    pub denoising: DenoisingErrors,
    /// Normalised action chunks against the reference mode's; left empty for the reference mode.
    pub actions: ErrorStats,
    /// Physical actions against the recorded ones.
    pub recorded: Option<ActionErrors>,
    /// The replayed observations; their trajectory and tick numbers are given by the [`RunBuilder`].
    pub timeline: Vec<Tick>,
    /// Most device memory in use so far, in bytes.
    pub peak_device_bytes: Option<u64>,
}

impl ModeMeasurement {
    /// Nothing measured yet.
    pub fn new(mode: impl Into<String>) -> Self {
        Self { mode: mode.into(), ..Self::default() }
    }

    /// The samples of a component, to which a measurement can be added.
    pub fn latency(&mut self, component: Component) -> &mut LatencySamples {
        let place = self.latencies.iter().position(|(known, _)| *known == component);
        let place = place.unwrap_or_else(|| {
            self.latencies.push((component, LatencySamples::default()));
            self.latencies.len() - 1
        });
        // `place` was found in this vector or is its new last element.
        &mut self.latencies[place].1
    }

    fn merge(&mut self, other: Self) -> Result<(), MetricError> {
        match (&mut self.recorded, &other.recorded) {
            (Some(mine), Some(theirs)) => mine.merge(theirs)?,
            (mine @ None, Some(theirs)) => *mine = Some(theirs.clone()),
            (_, None) => {}
        }
        for (component, samples) in &other.latencies {
            self.latency(component.clone()).merge(samples);
        }
        self.denoising.merge(&other.denoising);
        self.actions.merge(&other.actions);
        self.timeline.extend(other.timeline);
        self.peak_device_bytes = self.peak_device_bytes.max(other.peak_device_bytes);
        Ok(())
    }

    fn into_result(self, identity: ModeIdentity) -> ModeResult {
        let actions = self.actions.summary();
        let mut latencies: Vec<ComponentLatency> = self
            .latencies
            .into_iter()
            .filter_map(|(component, samples)| ComponentLatency::new(component, &samples))
            .collect();
        latencies.sort_by(|a, b| a.component.cmp(&b.component));
        ModeResult {
            latencies,
            denoising: self.denoising.summary(),
            actions: (actions.count + actions.non_finite > 0).then_some(actions),
            recorded: self.recorded.and_then(|recorded| recorded.summary()),
            timeline: plot::thin_ticks(self.timeline),
            peak_device_bytes: self.peak_device_bytes,
            ..ModeResult::new(identity)
        }
    }
}

/// Everything that one trajectory gave, for all modes or some of them. Goes into the journal as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrajectoryResult {
    /// Bag or episode.
    pub name: String,
    /// Per mode.
    pub measurements: Vec<ModeMeasurement>,
    /// Its motion, where it is to be shown.
    pub plot: Option<TrajectoryPlot>,
}

/// Gathers trajectories into a [`Run`].
///
/// The modes of a trajectory may come in one result or in several of the same name; everything is merged.
#[derive(Debug, Clone)]
pub struct RunBuilder {
    run: Run,
    modes: Vec<(ModeIdentity, ModeMeasurement, Option<String>, Vec<String>)>,
    /// Names of the trajectories in the order in which they came.
    trajectories: Vec<String>,
}

impl RunBuilder {
    /// A run of these modes. Of `head` everything is taken that is not measured: machine, checkpoint, source, options,
    /// reference, notes; its schema, and its date where it has none, are set.
    pub fn new(mut head: Run, modes: impl IntoIterator<Item = ModeIdentity>) -> Self {
        head.schema = SCHEMA;
        if head.created.is_empty() {
            head.created = now();
        }
        let modes = modes.into_iter().map(|identity| {
            let measurement = ModeMeasurement::new(&identity.name);
            (identity, measurement, None, Vec::new())
        });
        Self { run: head, modes: modes.collect(), trajectories: Vec::new() }
    }

    /// The run's head, to be completed while measuring: damage found on the way, clocks, notes.
    pub fn head(&mut self) -> &mut Run {
        &mut self.run
    }

    /// Takes a trajectory.
    ///
    /// # Errors
    /// Results of a mode that the run does not have, or for other action keys than before.
    pub fn add(&mut self, result: TrajectoryResult) -> Result<(), RunError> {
        let place = self.trajectories.iter().position(|name| *name == result.name);
        let trajectory = place.unwrap_or_else(|| {
            self.trajectories.push(result.name.clone());
            self.trajectories.len() - 1
        });
        for mut measurement in result.measurements {
            let known = self.modes.iter_mut().find(|(identity, ..)| identity.name == measurement.mode);
            let Some((_, gathered, ..)) = known else {
                let known: Vec<_> = self.modes.iter().map(|(identity, ..)| identity.name.as_str()).collect();
                return Err(RunError::Mode { known: known.join(", "), found: measurement.mode });
            };
            let first = gathered.timeline.len() as u64;
            for (tick, number) in measurement.timeline.iter_mut().zip(first..) {
                (tick.trajectory, tick.tick) = (trajectory as u64, number);
            }
            let mode = measurement.mode.clone();
            gathered.merge(measurement).map_err(|error| RunError::Metric { mode, error })?;
        }
        if let Some(plot) = result.plot {
            self.add_plot(plot);
        }
        Ok(())
    }

    /// Takes a plot; lines of further modes are put beside those of the same trajectory.
    fn add_plot(&mut self, plot: TrajectoryPlot) {
        let Some(known) = self.run.trajectories.iter_mut().find(|known| known.name == plot.name) else {
            if self.run.trajectories.len() < MAX_PLOTTED_TRAJECTORIES {
                self.run.trajectories.push(plot);
            }
            return;
        };
        for (mine, theirs) in known.dimensions.iter_mut().zip(plot.dimensions) {
            let new = theirs.predicted.into_iter();
            let new: Vec<_> =
                new.filter(|new| mine.predicted.iter().all(|old| old.mode != new.mode)).collect();
            mine.predicted.extend(new);
        }
    }

    /// Says why a mode was not measured or only in part.
    pub fn fail(&mut self, mode: &str, reason: impl Into<String>) {
        if let Some((_, _, failure, _)) = self.modes.iter_mut().find(|(identity, ..)| identity.name == mode) {
            *failure = Some(reason.into());
        }
    }

    /// Says what runs a mode, once that is known.
    pub fn identify(&mut self, identity: ModeIdentity) {
        if let Some((known, ..)) = self.modes.iter_mut().find(|(known, ..)| known.name == identity.name) {
            *known = identity;
        }
    }

    /// Adds a sentence that a reader of a mode's figures must know.
    pub fn note(&mut self, mode: &str, note: impl Into<String>) {
        if let Some((.., notes)) = self.modes.iter_mut().find(|(identity, ..)| identity.name == mode) {
            notes.push(note.into());
        }
    }

    /// Number of trajectories taken.
    pub fn trajectories(&self) -> usize {
        self.trajectories.len()
    }

    /// The run as far as it has come; `partial` where it ended early.
    pub fn finish(self, partial: Option<Partial>) -> Run {
        let modes = self.modes.into_iter().map(|(identity, measurement, failure, notes)| ModeResult {
            failure,
            notes,
            ..measurement.into_result(identity)
        });
        Run { modes: modes.collect(), partial, trajectories_done: self.trajectories.len() as u64, ..self.run }
    }
}

/// The time now: RFC 3339, UTC, whole seconds.
fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::{ActionGroup, Dimension, DimensionPlot, PredictedSeries};
    use ndarray::array;
    use std::time::Duration;

    fn identity(name: &str) -> ModeIdentity {
        ModeIdentity { name: name.into(), backbone: "b".into(), dit: "d".into() }
    }

    fn builder() -> RunBuilder {
        let head = Run { reference: "torch".into(), ..Run::default() };
        RunBuilder::new(head, [identity("torch"), identity("fast")])
    }

    fn measurement(mode: &str, ms: u64) -> ModeMeasurement {
        let mut measurement = ModeMeasurement::new(mode);
        measurement.latency(Component::EndToEnd).push(Duration::from_millis(ms));
        measurement.latency(Component::Vision).push(Duration::from_millis(ms / 2));
        let group = ActionGroup { key: "k".into(), dimensions: vec![Dimension::new("x", "m")] };
        let mut recorded = ActionErrors::new(&[group], 4);
        recorded.push(&[("k".into(), array![[1.0]])], &[("k".into(), array![[ms as f32]])]).unwrap();
        measurement.recorded = Some(recorded);
        measurement.timeline.push(Tick { latency_ms: ms as f64, ..Tick::default() });
        measurement.peak_device_bytes = Some(ms);
        measurement
    }

    fn plot(name: &str, mode: &str) -> TrajectoryPlot {
        let predicted = vec![PredictedSeries { mode: mode.into(), values: vec![1.0] }];
        let dimensions = vec![DimensionPlot { predicted, ..DimensionPlot::default() }];
        TrajectoryPlot { name: name.into(), dimensions, ..TrajectoryPlot::default() }
    }

    fn result(name: &str, measurements: Vec<ModeMeasurement>) -> TrajectoryResult {
        let plot = measurements.first().map(|first| plot(name, &first.mode));
        TrajectoryResult { name: name.into(), measurements, plot }
    }

    #[test]
    fn trajectories_are_merged_per_mode() {
        let mut builder = builder();
        builder.add(result("one", vec![measurement("torch", 10), measurement("fast", 4)])).unwrap();
        builder.add(result("two", vec![measurement("torch", 30)])).unwrap();
        builder.add(result("two", vec![measurement("fast", 6)])).unwrap();
        let run = builder.finish(None);
        assert_eq!((run.schema, run.trajectories_done, run.modes.len()), (SCHEMA, 2, 2));
        let torch = run.reference_mode().unwrap();
        assert_eq!(torch.latency(&Component::EndToEnd).unwrap().median, 20.0);
        assert_eq!(torch.latencies[0].component, Component::Vision);
        assert_eq!(torch.recorded.as_ref().unwrap().total.mse, Some((81.0 + 841.0) / 2.0));
        assert_eq!(torch.peak_device_bytes, Some(30));
        assert_eq!((torch.denoising.as_ref(), torch.actions.as_ref()), (None, None));
        let fast = run.mode("fast").unwrap();
        let ticks: Vec<_> = fast.timeline.iter().map(|tick| (tick.trajectory, tick.tick)).collect();
        assert_eq!(ticks, [(0, 0), (1, 1)]);
        let second = &run.trajectories[1];
        let modes: Vec<_> = second.dimensions[0].predicted.iter().map(|line| line.mode.as_str()).collect();
        assert_eq!((second.name.as_str(), modes), ("two", vec!["torch", "fast"]));
    }

    #[test]
    fn the_motion_of_the_first_trajectories_is_kept() {
        let mut builder = builder();
        for number in 0..20 {
            builder.add(result(&number.to_string(), vec![measurement("torch", 1)])).unwrap();
        }
        let run = builder.finish(Some(Partial { reason: "interrupted".into(), done: 20, planned: Some(30) }));
        assert_eq!((run.trajectories.len(), run.trajectories_done), (MAX_PLOTTED_TRAJECTORIES, 20));
        assert_eq!(run.partial.unwrap().to_string(), "interrupted after 20 of 30 trajectories");
    }

    #[test]
    fn a_mode_that_was_not_announced_is_refused() {
        let error = builder().add(result("one", vec![measurement("slow", 1)])).unwrap_err();
        assert_eq!(error.to_string(), "expected results of the modes torch, fast, found some of \"slow\"");
    }

    #[test]
    fn failures_and_notes_stand_with_their_mode() {
        let mut builder = builder();
        builder.fail("fast", "no engine");
        builder.note("torch", "slow clocks");
        let run = builder.finish(None);
        assert_eq!(run.mode("fast").unwrap().failure.as_deref(), Some("no engine"));
        assert_eq!(run.mode("torch").unwrap().notes, ["slow clocks"]);
    }

    #[test]
    fn a_trajectorys_result_survives_the_journal() {
        let result = result("one", vec![measurement("torch", 10)]);
        let text = serde_json::to_string(&result).unwrap();
        assert_eq!(serde_json::from_str::<TrajectoryResult>(&text).unwrap(), result);
    }

    #[test]
    fn the_date_is_set_in_utc() {
        let created = builder().finish(None).created;
        assert!(created.len() == 20 && created.ends_with('Z'), "{created}");
    }
}
