//! Errors of predicted actions against the recorded ones.

use ndarray::{Array2, ArrayView2, Axis, s};
use serde::{Deserialize, Serialize};

use super::{ErrorStats, ErrorSummary, MetricError, spread::Spread};

/// Longest action horizon that is taken; the models in use have a few dozen steps.
pub const MAX_HORIZON: usize = 4096;

/// One column of an action key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dimension {
    /// The joint's name, or what else the column means.
    pub name: String,
    /// Its unit, `rad` for instance; empty where none is known.
    pub unit: String,
}

impl Dimension {
    /// A dimension of this name and unit.
    pub fn new(name: impl Into<String>, unit: impl Into<String>) -> Self {
        Self { name: name.into(), unit: unit.into() }
    }
}

/// An action key and its columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ActionGroup {
    /// The action key, as in the checkpoint.
    pub key: String,
    /// Its columns, in order.
    pub dimensions: Vec<Dimension>,
}

/// Physical actions per key: rows are steps, columns the key's dimensions.
pub type Actions = [(String, Array2<f32>)];

/// Streaming errors of action chunks against what was recorded, per key, dimension and horizon step.
///
/// All values are physical (radians, metres, whatever the key has). The total over keys of different units, which the
/// published studies give as "end-to-end MSE", adds them as they are; the figures per dimension and the normalised ones are
/// those to judge a robot by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActionErrors {
    horizon: usize,
    chunks: u64,
    total: ErrorStats,
    per_step: Vec<ErrorStats>,
    groups: Vec<GroupErrors>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct GroupErrors {
    group: ActionGroup,
    total: ErrorStats,
    per_step: Vec<ErrorStats>,
    per_dimension: Vec<ErrorStats>,
    recorded: Vec<Spread>,
}

impl ActionErrors {
    /// For chunks of these keys. Of each chunk the first `horizon` steps are compared (at most [`MAX_HORIZON`]).
    pub fn new(groups: &[ActionGroup], horizon: usize) -> Self {
        let groups = groups.iter().map(|group| GroupErrors {
            total: ErrorStats::default(),
            per_step: Vec::new(),
            per_dimension: vec![ErrorStats::default(); group.dimensions.len()],
            recorded: vec![Spread::default(); group.dimensions.len()],
            group: group.clone(),
        });
        Self {
            horizon: horizon.min(MAX_HORIZON),
            chunks: 0,
            total: ErrorStats::default(),
            per_step: Vec::new(),
            groups: groups.collect(),
        }
    }

    /// Takes one predicted chunk with the actions recorded from the same instant on, and gives the number of steps compared:
    /// as many as both have, near the end of a recording fewer than the horizon. With none nothing is taken.
    ///
    /// One sample of the total is the whole chunk; of a step, that step's values; of a dimension, its values over the steps.
    ///
    /// # Errors
    /// A key that is missing on a side or has another number of columns; nothing is taken then.
    pub fn push(&mut self, predicted: &Actions, recorded: &Actions) -> Result<usize, MetricError> {
        let mut pairs = Vec::with_capacity(self.groups.len());
        let mut steps = self.horizon;
        for entry in &self.groups {
            let predicted = columns(predicted, &entry.group, "predicted")?;
            let recorded = columns(recorded, &entry.group, "recorded")?;
            steps = steps.min(predicted.nrows()).min(recorded.nrows());
            pairs.push((recorded, predicted));
        }
        if steps == 0 || pairs.is_empty() {
            return Ok(0);
        }
        for (recorded, predicted) in &mut pairs {
            recorded.slice_axis_inplace(Axis(0), (..steps).into());
            predicted.slice_axis_inplace(Axis(0), (..steps).into());
        }
        for (entry, (recorded, predicted)) in self.groups.iter_mut().zip(&pairs) {
            entry.push(recorded, predicted);
        }
        self.chunks += 1;
        self.total.push_pairs(pairs.iter().flat_map(|(recorded, predicted)| zip(recorded, predicted)));
        grow(&mut self.per_step, steps);
        for (step, stats) in self.per_step.iter_mut().enumerate().take(steps) {
            stats.push_pairs(
                pairs.iter().flat_map(|(recorded, predicted)| row_pairs(recorded, predicted, step)),
            );
        }
        Ok(steps)
    }

    /// Takes what another one has taken.
    ///
    /// # Errors
    /// [`MetricError::Groups`] where it was made for other keys or another horizon.
    pub fn merge(&mut self, other: &Self) -> Result<(), MetricError> {
        let same = self.horizon == other.horizon
            && self.groups.len() == other.groups.len()
            && self.groups.iter().zip(&other.groups).all(|(mine, theirs)| mine.fits(theirs));
        if !same {
            return Err(MetricError::Groups { expected: self.describe(), found: other.describe() });
        }
        self.chunks += other.chunks;
        self.total.merge(&other.total);
        merge_all(&mut self.per_step, &other.per_step);
        self.groups.iter_mut().zip(&other.groups).for_each(|(mine, theirs)| mine.merge(theirs));
        Ok(())
    }

    fn describe(&self) -> String {
        let keys =
            self.groups.iter().map(|entry| format!("{} ({})", entry.group.key, entry.group.dimensions.len()));
        format!("{} steps of {}", self.horizon, keys.collect::<Vec<_>>().join(", "))
    }

    /// The figures; None where nothing was compared.
    pub fn summary(&self) -> Option<ActionSummary> {
        if self.chunks == 0 {
            return None;
        }
        Some(ActionSummary {
            chunks: self.chunks,
            total: self.total.summary(),
            per_step: summaries(&self.per_step),
            groups: self.groups.iter().map(GroupErrors::summary).collect(),
        })
    }
}

impl GroupErrors {
    fn push(&mut self, recorded: &ArrayView2<f32>, predicted: &ArrayView2<f32>) {
        self.total.push_pairs(zip(recorded, predicted));
        grow(&mut self.per_step, recorded.nrows());
        for (step, stats) in self.per_step.iter_mut().enumerate().take(recorded.nrows()) {
            stats.push_pairs(row_pairs(recorded, predicted, step));
        }
        let columns = recorded.columns().into_iter().zip(predicted.columns());
        let entries = self.per_dimension.iter_mut().zip(&mut self.recorded);
        for ((recorded, predicted), (stats, spread)) in columns.zip(entries) {
            stats.push_pairs(recorded.iter().copied().zip(predicted.iter().copied()));
            recorded.iter().for_each(|&value| spread.push(f64::from(value)));
        }
    }

    /// Whether the two were made for the same group, and have what such a one has (a file may say anything).
    fn fits(&self, other: &Self) -> bool {
        let dimensions = self.group.dimensions.len();
        self.group == other.group
            && [
                self.per_dimension.len(),
                other.per_dimension.len(),
                self.recorded.len(),
                other.recorded.len(),
            ]
            .iter()
            .all(|&length| length == dimensions)
    }

    fn merge(&mut self, other: &Self) {
        self.total.merge(&other.total);
        merge_all(&mut self.per_step, &other.per_step);
        merge_all(&mut self.per_dimension, &other.per_dimension);
        self.recorded.iter_mut().zip(&other.recorded).for_each(|(mine, theirs)| mine.merge(*theirs));
    }

    fn summary(&self) -> GroupSummary {
        let entries = self.per_dimension.iter().zip(&self.recorded).zip(&self.group.dimensions);
        let dimensions = entries.map(|((stats, spread), dimension)| {
            let (error, deviation) = (stats.summary(), spread.deviation());
            DimensionSummary {
                name: dimension.name.clone(),
                unit: dimension.unit.clone(),
                nrmse: error.rmse().zip(deviation).map(|(rmse, deviation)| rmse / deviation),
                recorded_deviation: deviation,
                error,
            }
        });
        GroupSummary {
            key: self.group.key.clone(),
            total: self.total.summary(),
            per_step: summaries(&self.per_step),
            dimensions: dimensions.collect(),
        }
    }
}

/// The values of a group's key, with as many columns as the group has.
fn columns<'a>(
    actions: &'a Actions,
    group: &ActionGroup,
    side: &'static str,
) -> Result<ArrayView2<'a, f32>, MetricError> {
    let found = actions.iter().find(|(key, _)| *key == group.key);
    let (key, values) = found.ok_or_else(|| MetricError::Key { side, key: group.key.clone() })?;
    if values.ncols() != group.dimensions.len() {
        return Err(MetricError::Dimension {
            side,
            key: key.clone(),
            expected: group.dimensions.len(),
            found: values.ncols(),
        });
    }
    Ok(values.slice(s![.., ..]))
}

fn zip<'a>(
    recorded: &'a ArrayView2<f32>,
    predicted: &'a ArrayView2<f32>,
) -> impl Iterator<Item = (f32, f32)> + 'a {
    recorded.iter().copied().zip(predicted.iter().copied())
}

/// The pairs of one row; none for a row that is not there.
fn row_pairs<'a>(
    recorded: &'a ArrayView2<f32>,
    predicted: &'a ArrayView2<f32>,
    row: usize,
) -> impl Iterator<Item = (f32, f32)> + 'a {
    let columns = if row < recorded.nrows().min(predicted.nrows()) { recorded.ncols() } else { 0 };
    (0..columns)
        .filter_map(move |column| Some((*recorded.get((row, column))?, *predicted.get((row, column))?)))
}

fn grow(stats: &mut Vec<ErrorStats>, steps: usize) {
    if stats.len() < steps {
        stats.resize_with(steps, ErrorStats::default);
    }
}

fn merge_all(mine: &mut Vec<ErrorStats>, theirs: &[ErrorStats]) {
    grow(mine, theirs.len());
    mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| mine.merge(theirs));
}

fn summaries(stats: &[ErrorStats]) -> Vec<ErrorSummary> {
    stats.iter().map(ErrorStats::summary).collect()
}

/// The figures of [`ActionErrors`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ActionSummary {
    /// Chunks compared.
    pub chunks: u64,
    /// Over all values of all keys, each in its own unit; one sample is one chunk.
    pub total: ErrorSummary,
    /// Per horizon step, over all keys.
    pub per_step: Vec<ErrorSummary>,
    /// Per action key.
    pub groups: Vec<GroupSummary>,
}

impl ActionSummary {
    /// Mean of the dimensions' [`nrmse`](DimensionSummary::nrmse): unit-free. Dimensions that the recording never moves are
    /// left out; None where it moves none, or where a dimension that moves was not measured.
    pub fn nrmse(&self) -> Option<f64> {
        let dimensions = self.groups.iter().flat_map(|group| &group.dimensions);
        let moving = dimensions.filter(|dimension| dimension.recorded_deviation.is_some());
        let all: Vec<f64> = moving.map(|dimension| dimension.nrmse).collect::<Option<_>>()?;
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    }
}

/// Errors of one action key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupSummary {
    /// The action key.
    pub key: String,
    /// Over all its values.
    pub total: ErrorSummary,
    /// Per horizon step.
    pub per_step: Vec<ErrorSummary>,
    /// Per dimension.
    pub dimensions: Vec<DimensionSummary>,
}

impl GroupSummary {
    /// The unit that all dimensions share; None where they differ or none is known.
    pub fn unit(&self) -> Option<&str> {
        let unit = self.dimensions.first()?.unit.as_str();
        (!unit.is_empty() && self.dimensions.iter().all(|dimension| dimension.unit == unit)).then_some(unit)
    }
}

/// Errors of one dimension.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DimensionSummary {
    /// The joint's name, or what else the column means.
    pub name: String,
    /// Unit of the values and their errors.
    pub unit: String,
    /// The errors.
    pub error: ErrorSummary,
    /// Standard deviation of the recorded values that were compared; None where they never changed.
    pub recorded_deviation: Option<f64>,
    /// RMSE divided by that deviation: 0 is perfect, 1 is no better than always predicting the recording's mean.
    pub nrmse: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn groups() -> Vec<ActionGroup> {
        vec![
            ActionGroup {
                key: "arm".into(),
                dimensions: vec![Dimension::new("a", "rad"), Dimension::new("b", "rad")],
            },
            ActionGroup { key: "grip".into(), dimensions: vec![Dimension::new("g", "m")] },
        ]
    }

    fn recorded() -> Vec<(String, Array2<f32>)> {
        vec![
            ("arm".into(), array![[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]]),
            ("grip".into(), array![[1.0], [1.0], [4.0]]),
        ]
    }

    /// The recording with errors: arm a +1 at step 0; arm b +2 at step 1; grip -3 at step 2.
    fn predicted() -> Vec<(String, Array2<f32>)> {
        vec![
            ("grip".into(), array![[1.0], [1.0], [1.0]]),
            ("arm".into(), array![[1.0, 1.0], [2.0, 3.0], [4.0, 1.0]]),
        ]
    }

    #[test]
    fn errors_are_split_by_key_dimension_and_step() {
        let mut errors = ActionErrors::new(&groups(), 50);
        assert_eq!(errors.push(&predicted(), &recorded()).unwrap(), 3);
        let summary = errors.summary().unwrap();
        assert_eq!(summary.total.mse, Some((1.0 + 4.0 + 9.0) / 9.0));
        assert_eq!(summary.total.mae, Some((1.0 + 2.0 + 3.0) / 9.0));
        assert_eq!((summary.chunks, summary.total.samples, summary.total.count), (1, 1, 9));
        let per_step: Vec<_> = summary.per_step.iter().map(|step| step.mse.unwrap()).collect();
        assert_eq!(per_step, [1.0 / 3.0, 4.0 / 3.0, 9.0 / 3.0]);
        let [arm, grip] = summary.groups.as_slice() else { panic!("{:?}", summary.groups) };
        assert_eq!((arm.key.as_str(), arm.total.mse), ("arm", Some(5.0 / 6.0)));
        assert_eq!(arm.per_step[1].mse, Some(2.0));
        assert_eq!(arm.dimensions[0].error.mse, Some(1.0 / 3.0));
        assert_eq!(arm.dimensions[1].error.max_abs, Some(2.0));
        assert_eq!((grip.total.mse, grip.unit()), (Some(3.0), Some("m")));
    }

    #[test]
    fn the_normalised_error_is_the_rmse_over_the_recordings_deviation() {
        let mut errors = ActionErrors::new(&groups(), 50);
        errors.push(&predicted(), &recorded()).unwrap();
        let summary = errors.summary().unwrap();
        let arm = &summary.groups[0].dimensions;
        // Recorded 0, 2, 4: deviation sqrt(8/3); RMSE sqrt(1/3).
        assert!((arm[0].nrmse.unwrap() - (1.0f64 / 8.0).sqrt()).abs() < 1e-15);
        assert_eq!((arm[1].recorded_deviation, arm[1].nrmse), (None, None));
        // Recorded 1, 1, 4: deviation sqrt(2); RMSE sqrt(3).
        let grip = summary.groups[1].dimensions[0].nrmse.unwrap();
        assert!((grip - 1.5f64.sqrt()).abs() < 1e-15);
        assert!((summary.nrmse().unwrap() - (grip + (1.0f64 / 8.0).sqrt()) / 2.0).abs() < 1e-15);
    }

    #[test]
    fn always_predicting_the_mean_has_a_normalised_error_of_one() {
        let groups = [ActionGroup { key: "k".into(), dimensions: vec![Dimension::new("x", "")] }];
        let mut errors = ActionErrors::new(&groups, 8);
        let recorded = [("k".to_owned(), array![[1.0], [2.0], [3.0], [6.0]])];
        errors.push(&[("k".to_owned(), Array2::from_elem((4, 1), 3.0))], &recorded).unwrap();
        assert!((errors.summary().unwrap().nrmse().unwrap() - 1.0).abs() < 1e-15);
    }

    #[test]
    fn only_steps_that_both_have_and_the_horizon_allows_are_compared() {
        let mut errors = ActionErrors::new(&groups(), 2);
        assert_eq!(errors.push(&predicted(), &recorded()).unwrap(), 2);
        let mut short = recorded();
        short[0].1 = array![[0.0, 1.0]];
        assert_eq!(errors.push(&predicted(), &short).unwrap(), 1);
        short[1].1 = Array2::zeros((0, 1));
        assert_eq!(errors.push(&predicted(), &short).unwrap(), 0);
        let summary = errors.summary().unwrap();
        assert_eq!(summary.chunks, 2);
        assert_eq!(summary.per_step.iter().map(|step| step.samples).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn missing_keys_and_columns_are_named_and_nothing_is_taken() {
        let mut errors = ActionErrors::new(&groups(), 8);
        let message = |error: MetricError| error.to_string();
        assert_eq!(
            message(errors.push(&predicted()[..1], &recorded()).unwrap_err()),
            "expected the action key \"arm\" in the predicted actions, found none; the layout and the actions must come from one checkpoint"
        );
        let mut narrow = recorded();
        narrow[0].1 = array![[0.0]];
        assert_eq!(
            message(errors.push(&predicted(), &narrow).unwrap_err()),
            "expected 2 columns for the action key \"arm\" in the recorded actions, found 1"
        );
        assert_eq!(errors, ActionErrors::new(&groups(), 8));
        assert_eq!(errors.summary(), None);
    }

    #[test]
    fn merged_trajectories_equal_one_pass_over_both() {
        let (mut first, mut second, mut whole) = (
            ActionErrors::new(&groups(), 8),
            ActionErrors::new(&groups(), 8),
            ActionErrors::new(&groups(), 8),
        );
        first.push(&predicted(), &recorded()).unwrap();
        second.push(&recorded(), &predicted()).unwrap();
        whole.push(&predicted(), &recorded()).unwrap();
        whole.push(&recorded(), &predicted()).unwrap();
        first.merge(&second).unwrap();
        let (merged, whole) = (first.summary().unwrap(), whole.summary().unwrap());
        assert_eq!(merged.total, whole.total);
        assert_eq!(merged.per_step, whole.per_step);
        assert!((merged.nrmse().unwrap() - whole.nrmse().unwrap()).abs() < 1e-12);
    }

    #[test]
    fn errors_of_other_keys_do_not_merge() {
        let mut errors = ActionErrors::new(&groups(), 8);
        let error = errors.merge(&ActionErrors::new(&groups()[..1], 8)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "expected errors over 8 steps of arm (2), grip (1), found some over 8 steps of arm (2); they cannot be merged"
        );
        assert!(errors.merge(&ActionErrors::new(&groups(), 9)).is_err());
    }
}
