//! What samples are taken of a bag.

use std::{num::NonZeroU32, time::Duration};

use crate::{node::config::NodeConfig, processor::Processor, ros::transport::NodeName};

/// Which of the complete sets of images become samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stride {
    /// Every n-th set.
    Sets(NonZeroU32),
    /// The first set at or after each multiple of this span of recorded time.
    Period(Duration),
}

/// Where the recorded actions are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TruthSource {
    /// Nowhere: samples have no truth.
    Nothing,
    /// The measured positions in the joint states.
    #[default]
    JointStates,
    /// Recorded commands: a topic of `trajectory_msgs/JointTrajectory`, `sensor_msgs/JointState` or
    /// `std_msgs/Float64MultiArray`. A position array has its joints in the order of `forward_position.joints`, or else all moved
    /// joints in the order of the action keys.
    Topic(String),
}

/// What samples are taken of a bag.
#[derive(Debug, Clone)]
pub struct SamplesOptions {
    /// The node's configuration: topics, joints, limits, rate.
    pub config: NodeConfig,
    /// The node whose relative and private topics are meant, with its remappings.
    pub node: NodeName,
    /// When the frames of one observation were taken, in steps from the present, oldest first.
    pub video_deltas: Vec<i64>,
    /// When the joint samples of one observation were taken, in steps from the present, oldest first.
    pub state_deltas: Vec<i64>,
    /// Action keys in the checkpoint's order with their dimensions.
    pub action: Vec<(String, usize)>,
    /// Steps of truth.
    pub horizon: usize,
    /// Which sets become samples.
    pub stride: Stride,
    /// Where the recorded actions are.
    pub truth: TruthSource,
    /// Longest time without a sample of the truth's source; a longer one ends the truth.
    pub max_gap: Duration,
    /// Most bytes of decoded frames in samples that wait for their truth. Beyond it the oldest gets what is known by then.
    pub waiting_bytes: usize,
}

impl SamplesOptions {
    /// Samples at the node's rate for a checkpoint, with the measured joint positions as truth, gaps of at most 0.5 s and
    /// 1 GiB of waiting frames. `node` is the node's fully qualified name, e.g. `/policy_node`, whose topics are meant.
    pub fn new(config: &NodeConfig, node: NodeName, processor: &Processor) -> Self {
        let keys = processor.action().keys().iter();
        Self {
            config: config.clone(),
            node,
            video_deltas: processor.video_deltas().to_vec(),
            state_deltas: processor.state_deltas().to_vec(),
            action: keys.map(|key| (key.name().to_owned(), key.dim())).collect(),
            horizon: processor.action().horizon(),
            stride: Stride::Period(Duration::try_from_secs_f64(1.0 / config.rate).unwrap_or_default()),
            truth: TruthSource::default(),
            max_gap: Duration::from_millis(500),
            waiting_bytes: 1 << 30,
        }
    }
}
