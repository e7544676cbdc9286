//! What plots need, bounded in size.
//!
//! | what | bound | how |
//! |---|---|---|
//! | trajectories | [`MAX_PLOTTED_TRAJECTORIES`] | the first ones |
//! | steps of a trajectory | [`MAX_PLOT_STEPS`] | the first ones |
//! | points of a line | [`MAX_PLOT_POINTS`] | every n-th step, the same for all lines of a trajectory |
//! | dimensions | [`MAX_PLOTTED_DIMENSIONS`] | the first ones |
//! | points of a timeline | [`MAX_TICKS`] | of each stretch the fastest and the slowest tick, so that no peak is lost |

use serde::{Deserialize, Serialize};

use super::super::metrics::{ActionGroup, Actions};

/// Most trajectories whose motion is kept.
pub const MAX_PLOTTED_TRAJECTORIES: usize = 8;
/// Most steps of a trajectory whose motion is kept.
pub const MAX_PLOT_STEPS: usize = 20_000;
/// Most points per line.
pub const MAX_PLOT_POINTS: usize = 600;
/// Most dimensions of a trajectory that are kept.
pub const MAX_PLOTTED_DIMENSIONS: usize = 64;
/// Most points of a timeline.
pub const MAX_TICKS: usize = 2000;

/// Recorded and predicted motion along one trajectory.
///
/// Of each chunk the rows up to the next replayed observation are shown, as a robot would follow them that asks again then.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrajectoryPlot {
    /// Bag or episode.
    pub name: String,
    /// Seconds from one step to the next.
    pub step_time_s: f64,
    /// Steps of the trajectory that were seen.
    pub steps: u64,
    /// Steps from one kept point to the next.
    pub every: u64,
    /// Steps at which a chunk begins.
    pub boundaries: Vec<u64>,
    /// The lines.
    pub dimensions: Vec<DimensionPlot>,
    /// What was left out to keep the size bounded, in words.
    pub left_out: Vec<String>,
}

/// One dimension along a trajectory. Gaps are `null` in the file and NaN here.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DimensionPlot {
    /// Action key.
    pub key: String,
    /// Joint.
    pub name: String,
    /// Unit.
    pub unit: String,
    /// What the robot did.
    #[serde(with = "gaps")]
    pub recorded: Vec<f32>,
    /// What the modes predicted.
    pub predicted: Vec<PredictedSeries>,
}

/// What one mode predicted for one dimension.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PredictedSeries {
    /// The mode's name.
    pub mode: String,
    /// The values, beside the recorded ones.
    #[serde(with = "gaps")]
    pub values: Vec<f32>,
}

impl PartialEq for DimensionPlot {
    fn eq(&self, other: &Self) -> bool {
        (&self.key, &self.name, &self.unit, &self.predicted)
            == (&other.key, &other.name, &other.unit, &other.predicted)
            && same(&self.recorded, &other.recorded)
    }
}

impl PartialEq for PredictedSeries {
    fn eq(&self, other: &Self) -> bool {
        self.mode == other.mode && same(&self.values, &other.values)
    }
}

/// Equality in which a gap equals a gap.
fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()))
}

/// Collects the chunks of one trajectory into a [`TrajectoryPlot`].
#[derive(Debug, Clone)]
pub struct TrajectoryRecorder {
    name: String,
    step_time_s: f64,
    groups: Vec<ActionGroup>,
    /// Steps seen, also those beyond the bound.
    steps: u64,
    boundaries: Vec<u64>,
    recorded: Vec<Vec<f32>>,
    predicted: Vec<(String, Vec<Vec<f32>>)>,
}

impl TrajectoryRecorder {
    /// For a trajectory of chunks with these keys, one step every `step_time_s` seconds.
    pub fn new(name: impl Into<String>, step_time_s: f64, groups: &[ActionGroup]) -> Self {
        let dimensions = groups.iter().map(|group| group.dimensions.len()).sum::<usize>();
        Self {
            name: name.into(),
            step_time_s,
            groups: groups.to_vec(),
            steps: 0,
            boundaries: Vec::new(),
            recorded: vec![Vec::new(); dimensions.min(MAX_PLOTTED_DIMENSIONS)],
            predicted: Vec::new(),
        }
    }

    /// Takes what was recorded from step `first` on. Rows beyond [`MAX_PLOT_STEPS`] are left out.
    pub fn recorded(&mut self, first: u64, actions: &Actions) {
        let rows = write(&self.groups, &mut self.recorded, first, actions, usize::MAX);
        self.steps = self.steps.max(first.saturating_add(rows));
    }

    /// Takes the first `rows` rows of the chunk that `mode` predicted at step `first`: those up to the next observation.
    pub fn predicted(&mut self, mode: &str, first: u64, rows: usize, actions: &Actions) {
        let position = self.predicted.iter().position(|(name, _)| name == mode).unwrap_or_else(|| {
            self.predicted.push((mode.to_owned(), vec![Vec::new(); self.recorded.len()]));
            self.predicted.len() - 1
        });
        if let Some((_, series)) = self.predicted.get_mut(position) {
            let rows = write(&self.groups, series, first, actions, rows);
            self.steps = self.steps.max(first.saturating_add(rows));
        }
        if first < MAX_PLOT_STEPS as u64
            && let Err(place) = self.boundaries.binary_search(&first)
        {
            self.boundaries.insert(place, first);
        }
    }

    /// The plot, with no more points than allowed.
    pub fn finish(self) -> TrajectoryPlot {
        let lines = self.recorded.iter().chain(self.predicted.iter().flat_map(|(_, series)| series));
        let points = lines.map(Vec::len).max().unwrap_or(0);
        let every = points.div_ceil(MAX_PLOT_POINTS).max(1);
        let kept = points.div_ceil(every);
        let thin = |values: &[f32]| -> Vec<f32> {
            (0..kept).map(|i| values.get(i * every).copied().unwrap_or(f32::NAN)).collect()
        };
        let mut left_out = Vec::new();
        let dimensions = self.groups.iter().map(|group| group.dimensions.len()).sum::<usize>();
        if dimensions > self.recorded.len() {
            left_out.push(format!("the first {} of {dimensions} dimensions are shown", self.recorded.len()));
        }
        if self.steps > points as u64 {
            left_out.push(format!("the first {points} of {} steps are shown", self.steps));
        }
        if every > 1 {
            left_out.push(format!("one in {every} steps is shown"));
        }
        let named = self
            .groups
            .iter()
            .flat_map(|group| group.dimensions.iter().map(move |dimension| (group, dimension)));
        let dimensions = named.zip(&self.recorded).enumerate().map(|(i, ((group, dimension), recorded))| {
            let predicted = self.predicted.iter().filter_map(|(mode, series)| {
                Some(PredictedSeries { mode: mode.clone(), values: thin(series.get(i)?) })
            });
            DimensionPlot {
                key: group.key.clone(),
                name: dimension.name.clone(),
                unit: dimension.unit.clone(),
                recorded: thin(recorded),
                predicted: predicted.collect(),
            }
        });
        TrajectoryPlot {
            dimensions: dimensions.collect(),
            name: self.name,
            step_time_s: self.step_time_s,
            steps: self.steps,
            every: every as u64,
            boundaries: self.boundaries,
            left_out,
        }
    }
}

/// Writes rows into the lines from step `first` on, and gives how many rows there were.
fn write(groups: &[ActionGroup], lines: &mut [Vec<f32>], first: u64, actions: &Actions, most: usize) -> u64 {
    let mut column = 0;
    let mut longest = 0;
    for group in groups {
        let values = actions.iter().find(|(key, _)| *key == group.key).map(|(_, values)| values);
        for dimension in 0..group.dimensions.len() {
            let (Some(line), Some(values)) = (lines.get_mut(column), values) else { break };
            column += 1;
            let rows = values.nrows().min(most);
            longest = longest.max(rows);
            let Ok(first) = usize::try_from(first) else { continue };
            for row in 0..rows.min(MAX_PLOT_STEPS.saturating_sub(first)) {
                let Some(&value) = values.get((row, dimension)) else { break };
                if line.len() <= first + row {
                    line.resize(first + row + 1, f32::NAN);
                }
                if let Some(point) = line.get_mut(first + row) {
                    *point = value;
                }
            }
        }
        if values.is_none() {
            column += group.dimensions.len();
        }
    }
    longest as u64
}

/// One replayed observation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tick {
    /// Trajectory, counted from 0 in the order of the replay.
    pub trajectory: u64,
    /// Observation, counted from 0 over all trajectories.
    pub tick: u64,
    /// Its time from the trajectory's beginning on, in seconds.
    pub time_s: f64,
    /// Latency end to end.
    pub latency_ms: f64,
    /// Mean squared error of its chunk against the recorded actions, where it was compared.
    pub mse: Option<f64>,
}

/// The ticks, thinned out to [`MAX_TICKS`]: of each stretch the fastest and the slowest are kept, in their order.
pub(super) fn thin_ticks(ticks: Vec<Tick>) -> Vec<Tick> {
    if ticks.len() <= MAX_TICKS {
        return ticks;
    }
    let stretch = ticks.len().div_ceil(MAX_TICKS / 2);
    let extremes = ticks.chunks(stretch).flat_map(|stretch| {
        let by_latency = |a: &&Tick, b: &&Tick| a.latency_ms.total_cmp(&b.latency_ms);
        let pair = [stretch.iter().min_by(by_latency), stretch.iter().max_by(by_latency)];
        let mut pair: Vec<Tick> = pair.into_iter().flatten().copied().collect();
        pair.sort_by_key(|tick| tick.tick);
        pair.dedup();
        pair
    });
    extremes.collect()
}

/// NaN and infinities as `null`, which JSON has.
mod gaps {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(values: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(|value| value.is_finite().then_some(*value)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
        let values = Vec::<Option<f32>>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|value| value.unwrap_or(f32::NAN)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::Dimension;
    use ndarray::{Array2, array};

    fn groups() -> Vec<ActionGroup> {
        vec![
            ActionGroup { key: "base".into(), dimensions: vec![Dimension::new("x", "m/s")] },
            ActionGroup {
                key: "arm".into(),
                dimensions: vec![Dimension::new("a", "rad"), Dimension::new("b", "rad")],
            },
        ]
    }

    fn actions(rows: &[[f32; 3]]) -> Vec<(String, Array2<f32>)> {
        let values = Array2::from(rows.to_vec());
        vec![
            ("arm".into(), values.slice(ndarray::s![.., 1..]).to_owned()),
            ("base".into(), values.slice(ndarray::s![.., ..1]).to_owned()),
        ]
    }

    #[test]
    fn chunks_follow_each_other_and_what_nobody_predicted_is_a_gap() {
        let mut recorder = TrajectoryRecorder::new("bag", 0.1, &groups());
        let rows = |from: f32, n: usize| -> Vec<[f32; 3]> {
            (0..n).map(|i| [from + i as f32, 10.0 + from + i as f32, 20.0 + from + i as f32]).collect()
        };
        recorder.recorded(0, &actions(&rows(0.0, 4)));
        recorder.recorded(3, &actions(&rows(3.0, 3)));
        recorder.predicted("m", 0, 2, &actions(&rows(100.0, 4)));
        recorder.predicted("m", 3, 2, &actions(&rows(200.0, 4)));
        let plot = recorder.finish();
        assert_eq!((plot.steps, plot.every, plot.boundaries.as_slice()), (6, 1, [0, 3].as_slice()));
        assert_eq!(plot.left_out, Vec::<String>::new());
        let base = &plot.dimensions[0];
        assert_eq!((base.key.as_str(), base.name.as_str(), base.unit.as_str()), ("base", "x", "m/s"));
        assert_eq!(base.recorded, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(same(&base.predicted[0].values, &[100.0, 101.0, f32::NAN, 200.0, 201.0, f32::NAN]));
        assert_eq!(plot.dimensions[2].recorded[1], 21.0);
        assert_eq!(plot.dimensions[2].predicted[0].values[3], 220.0);
    }

    #[test]
    fn a_long_trajectory_keeps_a_bounded_number_of_points() {
        let mut recorder = TrajectoryRecorder::new("long", 0.1, &groups());
        for first in 0..(MAX_PLOT_STEPS as u64 + 50) {
            recorder.recorded(first, &actions(&[[first as f32, 0.0, 0.0]]));
        }
        recorder.recorded(u64::MAX, &actions(&[[0.0; 3]]));
        let plot = recorder.finish();
        assert_eq!(plot.every, 34);
        assert_eq!(plot.dimensions[0].recorded.len(), MAX_PLOT_STEPS.div_ceil(34));
        assert!(plot.dimensions[0].recorded.len() <= MAX_PLOT_POINTS);
        assert_eq!(plot.dimensions[0].recorded[3], 102.0);
        assert_eq!(
            plot.left_out,
            ["the first 20000 of 18446744073709551615 steps are shown", "one in 34 steps is shown"]
        );
    }

    #[test]
    fn of_very_many_dimensions_the_first_are_kept() {
        let wide = ActionGroup {
            key: "k".into(),
            dimensions: (0..100).map(|i| Dimension::new(i.to_string(), "")).collect(),
        };
        let mut recorder = TrajectoryRecorder::new("wide", 0.1, &[wide]);
        recorder.recorded(0, &[("k".to_owned(), Array2::zeros((1, 100)))]);
        let plot = recorder.finish();
        assert_eq!(plot.dimensions.len(), MAX_PLOTTED_DIMENSIONS);
        assert_eq!(plot.left_out, ["the first 64 of 100 dimensions are shown"]);
    }

    #[test]
    fn a_missing_key_does_not_shift_the_others() {
        let mut recorder = TrajectoryRecorder::new("bag", 0.1, &groups());
        recorder.recorded(0, &[("arm".to_owned(), array![[1.0, 2.0]])]);
        let plot = recorder.finish();
        assert!(plot.dimensions[0].recorded[0].is_nan());
        assert_eq!(plot.dimensions[1].recorded, [1.0]);
        assert_eq!(plot.dimensions[2].recorded, [2.0]);
    }

    #[test]
    fn gaps_survive_json() {
        let plot = DimensionPlot { recorded: vec![0.1, f32::NAN, 2.0], ..DimensionPlot::default() };
        let text = serde_json::to_string(&plot).unwrap();
        assert!(text.contains("[0.1,null,2.0]"), "{text}");
        assert_eq!(serde_json::from_str::<DimensionPlot>(&text).unwrap(), plot);
    }

    #[test]
    fn a_long_timeline_is_thinned_without_losing_its_peaks() {
        let ticks: Vec<Tick> = (0..50_000)
            .map(|tick| Tick {
                tick,
                latency_ms: if tick == 31_415 { 900.0 } else { 50.0 },
                ..Tick::default()
            })
            .collect();
        let thin = thin_ticks(ticks.clone());
        assert!(thin.len() <= MAX_TICKS, "{}", thin.len());
        assert!(thin.iter().any(|tick| tick.tick == 31_415));
        assert!(thin.is_sorted_by_key(|tick| tick.tick));
        assert_eq!(thin_ticks(ticks[..100].to_vec()), ticks[..100]);
    }
}
