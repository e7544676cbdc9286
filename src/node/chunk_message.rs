//! Action chunks as the message that carries all that is known about them.
//!
//! The actions were validated as a [`MotionChunk`](crate::motion::MotionChunk) before: one number of rows, one column per
//! joint, every value finite.

use std::collections::BTreeMap;
use std::time::Duration;

use ndarray::Array2;

use super::config::NodeConfig;
use crate::ros::Stamp;
use crate::ros::msg::{ActionChunk, ActionGroup, Header, StageTiming};

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
pub struct ChunkBuilder {
    /// The joints that each action key moves; none for a base velocity, for instance.
    pub joints: BTreeMap<String, Vec<String>>,
    /// Time between two steps.
    pub step_time: Duration,
    /// Embodiment tag.
    pub embodiment: String,
}

impl ChunkBuilder {
    /// The builder for a configuration and the checkpoint's action keys.
    pub fn new<'a>(config: &NodeConfig, action_keys: impl IntoIterator<Item = &'a str>) -> Self {
        let joints = |key: &str| (key.to_owned(), config.action_joints(key).to_vec());
        Self {
            joints: action_keys.into_iter().map(joints).collect(),
            step_time: config.step_time,
            embodiment: config.embodiment.clone(),
        }
    }

    /// The whole chunk with everything that is known about it. `actions` are (key, values of shape (horizon, dimension)) in
    /// SI units.
    pub fn action_chunk(&self, actions: &[(String, Array2<f32>)], info: ChunkInfo) -> ActionChunk {
        let horizon = actions.first().map_or(0, |(_, values)| values.nrows());
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
        ActionChunk {
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
        }
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

    fn builder() -> ChunkBuilder {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        ChunkBuilder {
            joints: BTreeMap::from([
                ("arm".into(), names(&["shoulder", "elbow"])),
                ("base".into(), vec![]),
                ("gripper".into(), names(&["finger"])),
            ]),
            step_time: Duration::from_millis(400),
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
        let chunk = builder().action_chunk(&actions(), info);
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
        let chunk = builder().action_chunk(&[("arm".into(), values)], ChunkInfo::default());
        assert_eq!(chunk.groups[0].data, [1.0, 2.0, 1.5, 2.5, 1.75, 2.75]);
    }
}
