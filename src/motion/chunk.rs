//! One prediction as positions over time.

use std::{ops::Range, sync::Arc, time::Duration};

use ndarray::{Array2, ArrayView2, s};

use crate::ros::Stamp;

/// The most rows a chunk may have; the models in use have a few dozen.
pub const MAX_ROWS: usize = 4096;

/// Actions that make no chunk.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ChunkError {
    /// The step time is zero.
    #[error(
        "expected a step time above zero, found {0:?}; set `step_time` to the frame period of the training data"
    )]
    StepTime(Duration),
    /// No row, or far too many.
    #[error("expected 1 to {MAX_ROWS} steps, found {0}")]
    Rows(usize),
    /// Two keys have different numbers of steps.
    #[error("expected {expected} steps as the first action key has, found {found} for {key}")]
    Horizon {
        /// The action key.
        key: String,
        /// Rows of the first key.
        expected: usize,
        /// Rows of this key.
        found: usize,
    },
    /// A key moves another number of joints than it has values.
    #[error("expected {expected} values per step for the joints of {key}, found {found}")]
    Joints {
        /// The action key.
        key: String,
        /// Joints that the key moves.
        expected: usize,
        /// Columns.
        found: usize,
    },
    /// A key occurs twice.
    #[error("expected each action key once, found {0} twice")]
    Duplicate(String),
    /// A value is not a number or infinite; the whole chunk is refused.
    #[error(
        "expected finite actions, found {value} at step {step}, dimension {dimension} of {key}; the chunk is dropped"
    )]
    NotFinite {
        /// The action key.
        key: String,
        /// Row.
        step: usize,
        /// Column.
        dimension: usize,
        /// The value.
        value: f32,
    },
    /// A pose has another number of values than the chunk has columns.
    #[error("expected {expected} finite values for the start pose, found {found:?}")]
    Origin {
        /// Columns of all keys together.
        expected: usize,
        /// What came.
        found: Vec<f64>,
    },
}

/// Physical actions of one key.
#[derive(Debug, Clone, PartialEq)]
pub struct MotionGroup {
    /// The action key.
    pub key: String,
    /// Joints in the order of the columns; empty for a key that moves none, a base velocity for instance.
    pub joints: Vec<String>,
    /// Absolute values, shape (steps, dimension), SI units.
    pub values: Array2<f32>,
}

/// Where one key stands in a pose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLayout {
    /// The action key.
    pub key: String,
    /// Its joints, or none.
    pub joints: Vec<String>,
    /// Its values in a pose.
    pub columns: Range<usize>,
}

/// How the values of all keys stand in one pose, key after key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// The keys in the order of their columns.
    pub keys: Vec<KeyLayout>,
}

impl Layout {
    /// The layout of keys with their joints and dimensions.
    pub fn new(keys: impl IntoIterator<Item = (String, Vec<String>, usize)>) -> Self {
        let mut first = 0;
        let keys = keys.into_iter().map(|(key, joints, dimension)| {
            let columns = first..first + dimension;
            first = columns.end;
            KeyLayout { key, joints, columns }
        });
        Self { keys: keys.collect() }
    }

    /// Number of values of a pose.
    pub fn dimension(&self) -> usize {
        self.keys.last().map_or(0, |key| key.columns.end)
    }

    /// The values of `key` in `pose`; None for a key that is not there or a pose that is too short.
    pub fn values<'a>(&self, pose: &'a [f64], key: &str) -> Option<&'a [f64]> {
        let layout = self.keys.iter().find(|layout| layout.key == key)?;
        pose.get(layout.columns.clone())
    }
}

/// A prediction: row i is the pose to be reached at `start` + (i + 1) · `step_time`.
///
/// `start` is the observation's stamp. In the training data, the first action of a chunk is the command given at the moment
/// of the observation, and its effect is seen one step later. That also fulfils what `joint_trajectory_controller` asks of a
/// trajectory: times that rise strictly and start above zero.
#[derive(Debug, Clone, PartialEq)]
pub struct MotionChunk {
    start: Stamp,
    step_time: Duration,
    sequence: u64,
    layout: Arc<Layout>,
    /// (steps, values of all keys): at least one row, all finite.
    values: Array2<f32>,
    origin: Option<Vec<f64>>,
}

impl MotionChunk {
    /// A chunk of the observation at `start`; `sequence` is that of the request it answers.
    ///
    /// # Errors
    /// Shapes that do not fit, values that are not finite, no rows, no step time.
    pub fn new(
        start: Stamp,
        step_time: Duration,
        sequence: u64,
        groups: Vec<MotionGroup>,
    ) -> Result<Self, ChunkError> {
        if step_time.is_zero() {
            return Err(ChunkError::StepTime(step_time));
        }
        let rows = groups.first().map_or(0, |group| group.values.nrows());
        if rows == 0 || rows > MAX_ROWS {
            return Err(ChunkError::Rows(rows));
        }
        for (index, group) in groups.iter().enumerate() {
            check(group, rows)?;
            if groups.iter().take(index).any(|other| other.key == group.key) {
                return Err(ChunkError::Duplicate(group.key.clone()));
            }
        }
        let width = groups.iter().map(|group| group.values.ncols()).sum();
        let mut values = Array2::zeros((rows, width));
        let mut first = 0;
        for group in &groups {
            let end = first + group.values.ncols();
            values.slice_mut(s![.., first..end]).assign(&group.values);
            first = end;
        }
        let keys = groups.into_iter().map(|group| (group.key, group.joints, group.values.ncols()));
        let layout = Arc::new(Layout::new(keys));
        Ok(Self { start, step_time, sequence, layout, values, origin: None })
    }

    /// The chunk with the pose at its `start`, from which the first row is approached.
    ///
    /// # Errors
    /// Another number of values than the chunk has columns, or values that are not finite.
    pub fn with_origin(mut self, pose: Vec<f64>) -> Result<Self, ChunkError> {
        let expected = self.layout.dimension();
        if pose.len() != expected || pose.iter().any(|value| !value.is_finite()) {
            return Err(ChunkError::Origin { expected, found: pose });
        }
        self.origin = Some(pose);
        Ok(self)
    }

    /// The observation's stamp.
    pub fn start(&self) -> Stamp {
        self.start
    }

    /// Time between two rows; never zero.
    pub fn step_time(&self) -> Duration {
        self.step_time
    }

    /// Which request it answers.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How a row's values stand.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// All values, (steps, values of all keys): at least one row.
    pub fn values(&self) -> ArrayView2<'_, f32> {
        self.values.view()
    }

    /// Number of rows, at least one.
    pub fn horizon(&self) -> usize {
        self.values.nrows()
    }

    /// The pose at `start`, where it is known.
    pub fn origin(&self) -> Option<&[f64]> {
        self.origin.as_deref()
    }

    /// When `row` is to be reached.
    pub fn time_of(&self, row: usize) -> Stamp {
        row_time(self.start, self.step_time, row)
    }

    /// When the last row is to be reached.
    pub fn end(&self) -> Stamp {
        self.time_of(self.horizon() - 1)
    }
}

/// When row `row` of a chunk that starts at `start` is to be reached: `start` + (row + 1) · `step_time`.
pub fn row_time(start: Stamp, step_time: Duration, row: usize) -> Stamp {
    let steps = u32::try_from(row).unwrap_or(u32::MAX).saturating_add(1);
    start + step_time.saturating_mul(steps)
}

fn check(group: &MotionGroup, rows: usize) -> Result<(), ChunkError> {
    let key = || group.key.clone();
    let (found, columns) = group.values.dim();
    if found != rows {
        return Err(ChunkError::Horizon { key: key(), expected: rows, found });
    }
    if !group.joints.is_empty() && group.joints.len() != columns {
        return Err(ChunkError::Joints { key: key(), expected: group.joints.len(), found: columns });
    }
    match group.values.indexed_iter().find(|(_, value)| !value.is_finite()) {
        Some(((step, dimension), &value)) => {
            Err(ChunkError::NotFinite { key: key(), step, dimension, value })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ndarray::array;

    pub const STEP: Duration = Duration::from_millis(100);

    pub fn ms(milliseconds: i64) -> Stamp {
        Stamp(milliseconds * 1_000_000)
    }

    /// A chunk of one joint with a step time of 100 ms.
    pub fn chunk(start: Stamp, sequence: u64, rows: &[f32]) -> MotionChunk {
        let values = Array2::from_shape_vec((rows.len(), 1), rows.to_vec()).unwrap();
        let group = MotionGroup { key: "arm".into(), joints: vec!["elbow".into()], values };
        MotionChunk::new(start, STEP, sequence, vec![group]).unwrap()
    }

    fn group(key: &str, joints: &[&str], values: Array2<f32>) -> MotionGroup {
        let joints = joints.iter().map(|joint| (*joint).to_owned()).collect();
        MotionGroup { key: key.to_owned(), joints, values }
    }

    #[test]
    fn keys_stand_side_by_side_in_a_row() {
        let groups = vec![
            group("base", &[], array![[7.0, 8.0], [7.5, 8.5]]),
            group("arm", &["elbow"], array![[1.0], [2.0]]),
        ];
        let chunk = MotionChunk::new(ms(1000), STEP, 3, groups).unwrap();
        assert_eq!(chunk.values(), array![[7.0, 8.0, 1.0], [7.5, 8.5, 2.0]]);
        assert_eq!(chunk.layout().dimension(), 3);
        assert_eq!(chunk.layout().values(&[1.0, 2.0, 3.0], "arm"), Some(&[3.0][..]));
        assert_eq!(chunk.layout().values(&[1.0, 2.0, 3.0], "base"), Some(&[1.0, 2.0][..]));
        assert_eq!(chunk.layout().values(&[1.0, 2.0], "arm"), None);
        assert_eq!(chunk.layout().values(&[1.0, 2.0, 3.0], "leg"), None);
        assert_eq!((chunk.sequence(), chunk.horizon()), (3, 2));
    }

    #[test]
    fn each_row_is_reached_one_step_after_it_is_commanded() {
        let chunk = chunk(ms(1000), 0, &[1.0, 2.0, 3.0]);
        assert_eq!([0, 1, 2].map(|row| chunk.time_of(row)), [ms(1100), ms(1200), ms(1300)]);
        assert_eq!(chunk.end(), ms(1300));
        assert_eq!(row_time(Stamp(i64::MAX), Duration::MAX, usize::MAX), Stamp(i64::MAX));
    }

    #[test]
    fn actions_that_make_no_chunk_are_refused_with_the_reason() {
        let one = || group("arm", &["elbow"], array![[1.0], [2.0]]);
        let new = |step, groups| MotionChunk::new(ms(0), step, 0, groups).unwrap_err().to_string();
        for (message, part) in [
            (new(Duration::ZERO, vec![one()]), "a step time above zero"),
            (new(STEP, vec![]), "1 to 4096 steps, found 0"),
            (new(STEP, vec![group("arm", &[], Array2::zeros((0, 1)))]), "found 0"),
            (new(STEP, vec![group("arm", &[], Array2::zeros((4097, 1)))]), "found 4097"),
            (
                new(STEP, vec![one(), group("hand", &[], array![[1.0]])]),
                "2 steps as the first action key has, found 1",
            ),
            (
                new(STEP, vec![group("arm", &["a", "b"], array![[1.0]])]),
                "2 values per step for the joints of arm, found 1",
            ),
            (new(STEP, vec![one(), one()]), "found arm twice"),
            (
                new(STEP, vec![group("arm", &[], array![[1.0, f32::NAN]])]),
                "found NaN at step 0, dimension 1 of arm",
            ),
        ] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_start_pose_must_fit_the_columns() {
        let chunk = || chunk(ms(0), 0, &[1.0]);
        assert_eq!(chunk().with_origin(vec![0.5]).unwrap().origin(), Some(&[0.5][..]));
        for pose in [vec![], vec![1.0, 2.0], vec![f64::NAN]] {
            assert!(chunk().with_origin(pose).unwrap_err().to_string().contains("expected 1 finite values"));
        }
    }
}
