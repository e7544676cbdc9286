//! Action chunks to the messages that leave the node.
//!
//! Row i of a chunk is the action for the time `stamp` + i · `step_time`, where `stamp` is that of the observation: in the
//! training data, the first action of a chunk is the command given at the moment of the observation, and its effect is seen
//! one step later. A trajectory says when a position is *reached*, so row i has `time_from_start` = (i + 1) · `step_time`.
//! That also fulfils what `joint_trajectory_controller` asks for: times that rise strictly and start above zero.
//!
//! The trajectory's header has the observation's stamp, so that points which passed while the chunk was computed are in the
//! past; the controller skips them and joins in at the present one. It has positions only: the policy makes no velocities,
//! and the controller then interpolates linearly.

use std::collections::BTreeMap;
use std::time::Duration;

use ndarray::Array2;

use super::config::NodeConfig;
use crate::ros::Stamp;
use crate::ros::msg::{ActionChunk, ActionGroup, Header, JointTrajectory, JointTrajectoryPoint, StageTiming};

/// Why actions are not published.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TrajectoryError {
    /// A value is not a number or infinite; the whole chunk is dropped.
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
    /// A key has not as many dimensions as it moves joints.
    #[error("expected {expected} actions per step for the joints of {key}, found {found}")]
    Dimension {
        /// The action key.
        key: String,
        /// Joints that the key moves.
        expected: usize,
        /// Columns.
        found: usize,
    },
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
}

/// What an [`ActionChunk`] says beside the actions.
#[derive(Debug, Clone, Default)]
pub struct ChunkInfo {
    /// When the chunk is published.
    pub published: Stamp,
    /// Stamp of the newest frame.
    pub image_stamp: Stamp,
    /// Stamp of the joint sample.
    pub state_stamp: Stamp,
    /// Counts the chunks, from 0.
    pub sequence: u64,
    /// Seed of the noise.
    pub noise_seed: u64,
    /// Instruction, before formalisation.
    pub instruction: String,
    /// Stage names and their durations.
    pub timing: Vec<(String, Duration)>,
}

/// Makes messages of actions.
#[derive(Debug, Clone)]
pub struct TrajectoryBuilder {
    /// The joints that each action key moves; a key without joints is in the [`ActionChunk`] only.
    pub joints: BTreeMap<String, Vec<String>>,
    /// Time between two steps.
    pub step_time: Duration,
    /// Frame in the trajectory's header.
    pub frame_id: String,
    /// Embodiment tag.
    pub embodiment: String,
}

impl TrajectoryBuilder {
    /// The builder for a configuration and the checkpoint's action keys.
    pub fn new<'a>(config: &NodeConfig, action_keys: impl IntoIterator<Item = &'a str>) -> Self {
        let joints = |key: &str| (key.to_owned(), config.action_joints(key).to_vec());
        Self {
            joints: action_keys.into_iter().map(joints).collect(),
            step_time: config.step_time,
            frame_id: config.frame_id.clone(),
            embodiment: config.embodiment.clone(),
        }
    }

    /// The trajectory of all keys that move joints, in the order of `actions`, which are (key, values of shape (horizon,
    /// dimension)) in SI units. It has no points where no key moves joints.
    ///
    /// # Errors
    /// A value that is not finite, shapes that do not fit.
    pub fn joint_trajectory(
        &self,
        actions: &[(String, Array2<f32>)],
        observation: Stamp,
    ) -> Result<JointTrajectory, TrajectoryError> {
        let horizon = self.check(actions)?;
        let moving: Vec<(&[String], &Array2<f32>)> = actions
            .iter()
            .map(|(key, values)| (self.joints_of(key), values))
            .filter(|(joints, _)| !joints.is_empty())
            .collect();
        let point = |step: usize| JointTrajectoryPoint {
            positions: moving
                .iter()
                .flat_map(|(_, values)| values.row(step).to_vec())
                .map(f64::from)
                .collect(),
            time_from_start: self.time_from_start(step).into(),
            ..JointTrajectoryPoint::default()
        };
        Ok(JointTrajectory {
            header: Header { stamp: observation.into(), frame_id: self.frame_id.clone() },
            joint_names: moving.iter().flat_map(|(joints, _)| joints.iter().cloned()).collect(),
            points: if moving.is_empty() { Vec::new() } else { (0..horizon).map(point).collect() },
        })
    }

    /// The whole chunk with everything that is known about it.
    ///
    /// # Errors
    /// A value that is not finite, shapes that do not fit.
    pub fn action_chunk(
        &self,
        actions: &[(String, Array2<f32>)],
        info: ChunkInfo,
    ) -> Result<ActionChunk, TrajectoryError> {
        let horizon = self.check(actions)?;
        let group = |(key, values): &(String, Array2<f32>)| ActionGroup {
            key: key.clone(),
            names: self.names(key, values.ncols()),
            dimension: narrow(values.ncols()),
            data: values.iter().copied().collect(),
        };
        let timing = info
            .timing
            .into_iter()
            .map(|(stage, time)| StageTiming { stage, milliseconds: (time.as_secs_f64() * 1e3) as f32 });
        Ok(ActionChunk {
            header: Header { stamp: info.published.into(), ..Header::default() },
            observation_stamp: info.image_stamp.into(),
            state_stamp: info.state_stamp.into(),
            sequence: info.sequence,
            noise_seed: info.noise_seed,
            instruction: info.instruction,
            embodiment: self.embodiment.clone(),
            horizon: narrow(horizon),
            step_time: self.step_time.into(),
            groups: actions.iter().map(group).collect(),
            timing: timing.collect(),
        })
    }

    /// When the robot is to have reached row `step`, counted from the observation.
    pub fn time_from_start(&self, step: usize) -> Duration {
        self.step_time.saturating_mul(narrow(step).saturating_add(1))
    }

    fn joints_of(&self, key: &str) -> &[String] {
        self.joints.get(key).map_or(&[], Vec::as_slice)
    }

    fn names(&self, key: &str, dimension: usize) -> Vec<String> {
        match self.joints_of(key) {
            [] => (0..dimension).map(|index| format!("{key}_{index}")).collect(),
            joints => joints.to_vec(),
        }
    }

    /// The common number of steps.
    fn check(&self, actions: &[(String, Array2<f32>)]) -> Result<usize, TrajectoryError> {
        let horizon = actions.first().map_or(0, |(_, values)| values.nrows());
        for (key, values) in actions {
            let key = || key.clone();
            let (rows, columns) = values.dim();
            if rows != horizon {
                return Err(TrajectoryError::Horizon { key: key(), expected: horizon, found: rows });
            }
            let joints = self.joints_of(&key()).len();
            if joints != 0 && joints != columns {
                return Err(TrajectoryError::Dimension { key: key(), expected: joints, found: columns });
            }
            if let Some(((step, dimension), &value)) =
                values.indexed_iter().find(|(_, value)| !value.is_finite())
            {
                return Err(TrajectoryError::NotFinite { key: key(), step, dimension, value });
            }
        }
        Ok(horizon)
    }
}

/// A size as messages carry it. Chunks have some dozen steps and dimensions; none comes near the end of u32.
fn narrow(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros::msg;
    use ndarray::array;

    fn builder() -> TrajectoryBuilder {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        TrajectoryBuilder {
            joints: BTreeMap::from([
                ("arm".into(), names(&["shoulder", "elbow"])),
                ("base".into(), vec![]),
                ("gripper".into(), names(&["finger"])),
            ]),
            step_time: Duration::from_millis(400),
            frame_id: "world".into(),
            embodiment: "gr1".into(),
        }
    }

    fn actions() -> Vec<(String, Array2<f32>)> {
        vec![
            ("gripper".into(), array![[0.5], [0.25], [0.125]]),
            ("base".into(), array![[7.0, 8.0], [7.5, 8.5], [7.75, 8.75]]),
            ("arm".into(), array![[1.0, 2.0], [1.5, 2.5], [1.75, 2.75]]),
        ]
    }

    #[test]
    fn the_trajectory_has_the_moving_keys_in_the_order_of_the_actions() {
        let trajectory = builder().joint_trajectory(&actions(), Stamp(5_000_000_007)).unwrap();
        assert_eq!(trajectory.header.stamp, msg::Time { sec: 5, nanosec: 7 });
        assert_eq!(trajectory.header.frame_id, "world");
        assert_eq!(trajectory.joint_names, ["finger", "shoulder", "elbow"]);
        let positions: Vec<_> = trajectory.points.iter().map(|point| point.positions.clone()).collect();
        assert_eq!(positions, [vec![0.5, 1.0, 2.0], vec![0.25, 1.5, 2.5], vec![0.125, 1.75, 2.75]]);
        assert!(trajectory.points.iter().all(|point| {
            point.velocities.is_empty() && point.accelerations.is_empty() && point.effort.is_empty()
        }));
    }

    #[test]
    fn each_row_is_reached_one_step_after_it_is_commanded() {
        let trajectory = builder().joint_trajectory(&actions(), Stamp(0)).unwrap();
        let times: Vec<_> = trajectory.points.into_iter().map(|point| point.time_from_start).collect();
        let time = |sec, nanosec| msg::Duration { sec, nanosec };
        assert_eq!(times, [time(0, 400_000_000), time(0, 800_000_000), time(1, 200_000_000)]);
    }

    #[test]
    fn the_chunk_has_every_key_and_everything_known_about_it() {
        let info = ChunkInfo {
            published: Stamp(3),
            image_stamp: Stamp(2),
            state_stamp: Stamp(1),
            sequence: 9,
            noise_seed: u64::MAX,
            instruction: "Pick it up!".into(),
            timing: vec![("total".into(), Duration::from_micros(1500))],
        };
        let chunk = builder().action_chunk(&actions(), info).unwrap();
        let nanosec = |nanosec| msg::Time { sec: 0, nanosec };
        let stamps = (chunk.header.stamp, chunk.observation_stamp, chunk.state_stamp);
        assert_eq!(stamps, (nanosec(3), nanosec(2), nanosec(1)));
        assert_eq!(chunk.header.frame_id, "");
        assert_eq!((chunk.sequence, chunk.noise_seed, chunk.horizon), (9, u64::MAX, 3));
        assert_eq!((chunk.instruction.as_str(), chunk.embodiment.as_str()), ("Pick it up!", "gr1"));
        assert_eq!(chunk.step_time, msg::Duration { sec: 0, nanosec: 400_000_000 });
        assert_eq!(chunk.timing, [StageTiming { stage: "total".into(), milliseconds: 1.5 }]);
        let groups: Vec<_> = chunk.groups.iter().map(|group| (group.key.as_str(), group.dimension)).collect();
        assert_eq!(groups, [("gripper", 1), ("base", 2), ("arm", 2)]);
        assert_eq!(chunk.groups[1].names, ["base_0", "base_1"]);
        assert_eq!(chunk.groups[1].data, [7.0, 8.0, 7.5, 8.5, 7.75, 8.75]);
        assert_eq!(chunk.groups[2].names, ["shoulder", "elbow"]);
    }

    #[test]
    fn the_rows_of_a_transposed_array_are_still_rows() {
        let values = array![[1.0, 1.5, 1.75], [2.0, 2.5, 2.75]].reversed_axes();
        let chunk = builder().action_chunk(&[("arm".into(), values)], ChunkInfo::default()).unwrap();
        assert_eq!(chunk.groups[0].data, [1.0, 2.0, 1.5, 2.5, 1.75, 2.75]);
    }

    #[test]
    fn one_value_that_is_not_finite_drops_the_whole_chunk_even_of_a_key_that_moves_nothing() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut actions = actions();
            actions[1].1[(2, 1)] = value;
            let trajectory = builder().joint_trajectory(&actions, Stamp(0)).unwrap_err();
            let chunk = builder().action_chunk(&actions, ChunkInfo::default()).unwrap_err();
            assert_eq!(trajectory.to_string(), chunk.to_string());
            let expected = format!("found {value} at step 2, dimension 1 of base");
            assert!(chunk.to_string().contains(&expected), "{chunk}");
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let mut short = actions();
        short[2].1 = array![[1.0, 2.0]];
        assert_eq!(
            builder().joint_trajectory(&short, Stamp(0)),
            Err(TrajectoryError::Horizon { key: "arm".into(), expected: 3, found: 1 })
        );
        let mut narrow = actions();
        narrow[2].1 = array![[1.0], [2.0], [3.0]];
        assert_eq!(
            builder().action_chunk(&narrow, ChunkInfo::default()),
            Err(TrajectoryError::Dimension { key: "arm".into(), expected: 2, found: 1 })
        );
    }

    #[test]
    fn without_moving_keys_there_are_no_points() {
        let base = vec![actions().remove(1)];
        let trajectory = builder().joint_trajectory(&base, Stamp(0)).unwrap();
        assert_eq!((trajectory.joint_names.len(), trajectory.points.len()), (0, 0));
        assert_eq!(builder().joint_trajectory(&[], Stamp(0)).unwrap().points.len(), 0);
    }
}
