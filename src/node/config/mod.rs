//! The node's configuration: ROS 2 parameter files and overrides to one validated struct.
//!
//! ```yaml
//! policy_node:               # or /**, or /namespace/policy_node
//!   ros__parameters:
//!     checkpoint:
//!       path: ../checkpoint  # counts from this file's folder
//! ```
//!
//! | step | in | out | where |
//! |---|---|---|---|
//! | read | YAML text | tree with lines | `document` |
//! | select | tree, node name | the node's named values, later ones winning | `section` |
//! | check | named values | [`Parameters`]: each valid by the [`parameter_table()`], defaults added | `parameters`, `spec`, `table` |
//! | build | parameters | [`NodeConfig`] | here |
//! | match | configuration, checkpoint's keys | the same, or what does not fit | [`NodeConfig::check_against`] |
//!
//! No step stops at its first problem. Values follow `rcl_yaml_param_parser`, with two liberties: an integer is taken
//! where a number is expected (`rate: 5`), and a file that has no section for the node is a problem.

mod checkpoint_keys;
mod document;
mod dump;
mod parameters;
mod problem;
mod section;
mod spec;
mod table;
mod value;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::engine::{EngineChoice, Precision};
use crate::execution::{ExecutionMode, Preprocessing};
use crate::motion::HandoverMode;
use crate::safety::limits::{JointLimits, LimitSettings};
use crate::safety::watchdog::{Action, WatchdogConfig};
pub use checkpoint_keys::CheckpointKeys;
pub use dump::effective_yaml;
pub use parameters::{ChangeError, Parameters, TOOLS, tool_parameters};
pub use problem::{ConfigError, Problem};
pub use section::split_override;
pub use spec::{Constraint, ParameterDefault, ParameterSpec};
pub use table::{markdown_table, parameter_table};
pub use value::{ParameterType, ParameterValue};

/// Fully qualified name of the node where nobody gives it another.
pub const DEFAULT_NODE: &str = "/policy_node";

/// Everything the node is told. See [`parameter_table`] for the meaning of each value.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Where the model lies.
    pub checkpoint: CheckpointConfig,
    /// Embodiment tag.
    pub embodiment: String,
    /// Where the model runs.
    pub device: Device,
    /// How the network is executed.
    pub mode: ExecutionMode,
    /// Who makes images of camera frames.
    pub preprocessing: Preprocessing,
    /// The TensorRT engine that denoises; `None` for libtorch.
    pub engine: Option<EngineChoice>,
    /// Ticks per second.
    pub rate: f64,
    /// First instruction; may be empty.
    pub instruction: String,
    /// Topic of later instructions.
    pub instruction_topic: String,
    /// Denoising steps; `None` for the checkpoint's number.
    pub denoising_steps: Option<usize>,
    /// Seed of the noise; `None` for one from the system's entropy.
    pub noise_seed: Option<u64>,
    /// Time between two actions of a chunk.
    pub step_time: Duration,
    /// Cameras by video key.
    pub cameras: BTreeMap<String, CameraConfig>,
    /// Topic of the joint states.
    pub joint_states_topic: String,
    /// Joint names by state key.
    pub state: BTreeMap<String, Vec<String>>,
    /// Joint names by action key, as far as they are given; see [`NodeConfig::action_joints`].
    pub action: BTreeMap<String, Vec<String>>,
    /// Oldest camera frame.
    pub max_age: Duration,
    /// Furthest distance between stamps that belong together.
    pub max_skew: Duration,
    /// Oldest joint sample.
    pub max_state_age: Duration,
    /// Topic of the joint trajectory.
    pub trajectory_topic: String,
    /// Topic of the action chunk.
    pub chunk_topic: String,
    /// Frame in the trajectory's header.
    pub frame_id: String,
    /// DDS domain; `None` for the environment's.
    pub domain_id: Option<u16>,
    /// Whether the node's clock follows `/clock`.
    pub use_sim_time: bool,
    /// Time between two status lines.
    pub status_period: Duration,
    /// Text at the end of each status line.
    pub status_note: String,
    /// How chunks follow each other.
    pub handover: HandoverConfig,
    /// What is commanded beside the joint trajectory.
    pub commands: CommandConfig,
    /// What keeps the motion safe.
    pub safety: SafetyConfig,
    /// Topic of the node's status.
    pub status_topic: String,
    /// The values this was built from.
    pub parameters: Parameters,
}

/// How chunks follow each other.
#[derive(Debug, Clone, PartialEq)]
pub struct HandoverConfig {
    /// How a chunk takes over.
    pub mode: HandoverMode,
    /// Steps after which the next chunk is to be in force; `None` for a new one at each tick.
    pub execute_horizon: Option<usize>,
    /// Steps over which it takes over.
    pub overlap: usize,
    /// Latency that is assumed until one was measured.
    pub initial_latency: Duration,
}

/// What is commanded beside the joint trajectory.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandConfig {
    /// Commands per second.
    pub rate: f64,
    /// Topic of the positions; `None` for none.
    pub positions_topic: Option<String>,
    /// Joints of that topic; `None` for all that are moved.
    pub positions_joints: Option<Vec<String>>,
    /// The base; `None` for none.
    pub base: Option<BaseConfig>,
}

/// A base that is driven by velocities.
#[derive(Debug, Clone, PartialEq)]
pub struct BaseConfig {
    /// Topic of the velocities.
    pub topic: String,
    /// Action key that holds them.
    pub key: String,
    /// What each dimension of the key is.
    pub components: Vec<String>,
    /// Their frame.
    pub frame_id: String,
    /// Greatest speed, m/s.
    pub max_linear: Option<f64>,
    /// Greatest speed of turning, rad/s.
    pub max_angular: Option<f64>,
}

/// What keeps the motion safe.
#[derive(Debug, Clone, PartialEq)]
pub struct SafetyConfig {
    /// Whether everything goes to the dry-run topics.
    pub dry_run: bool,
    /// Whether the node activates itself.
    pub autostart: bool,
    /// Topic of the e-stop.
    pub estop_topic: String,
    /// Topic of the URDF; `None` for none.
    pub robot_description_topic: Option<String>,
    /// Limits of the joints.
    pub limits: LimitSettings,
    /// Limits of the ages.
    pub watchdog: WatchdogConfig,
}

/// Where the model lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointConfig {
    /// Folder of the checkpoint.
    pub path: PathBuf,
    /// Folder of the tokenizer; `None` to look for it in the checkpoint.
    pub tokenizer: Option<PathBuf>,
    /// Configuration of the Eagle backbone; `None` for the built-in one.
    pub eagle_config: Option<PathBuf>,
}

/// A camera.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CameraConfig {
    /// Base topic.
    pub topic: String,
    /// How its images travel.
    pub transport: ImageTransport,
}

impl CameraConfig {
    /// The topic to subscribe: the base topic, with `/compressed` behind it for compressed images unless it is there.
    pub fn subscribed_topic(&self) -> String {
        match self.transport {
            ImageTransport::Compressed if !self.topic.ends_with("/compressed") => {
                format!("{}/compressed", self.topic)
            }
            _ => self.topic.clone(),
        }
    }
}

/// How images travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageTransport {
    /// `sensor_msgs/Image`.
    Raw,
    /// `sensor_msgs/CompressedImage`.
    Compressed,
}

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The first GPU where there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU by its index.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or(())?;
                // Three digits: `parse` alone would take a sign, and no machine has a thousand GPUs.
                let digits = (1..=3).contains(&index.len()) && index.bytes().all(|b| b.is_ascii_digit());
                if digits { index.parse().map(Self::Cuda).map_err(drop) } else { Err(()) }
            }
        }
    }
}

impl NodeConfig {
    /// Reads the configuration of the node [`DEFAULT_NODE`]; see [`NodeConfig::load_for`].
    ///
    /// # Errors
    /// Every problem at once.
    pub fn load(files: &[PathBuf], overrides: &[(String, String)]) -> Result<Self, ConfigError> {
        Self::load_for(DEFAULT_NODE, files, overrides)
    }

    /// Reads the configuration of the node with the fully qualified name `node`, e.g. `/robot/policy_node`.
    ///
    /// A later file wins over an earlier one, an override (`-p name:=value` as name and value) over every file. A relative
    /// path counts from the folder of the file it stands in; in an override, from the current folder.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn load_for(
        node: &str,
        files: &[PathBuf],
        overrides: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        Self::from_parameters(Parameters::load(node, files, overrides)?)
    }

    /// Builds the configuration from values that are each valid.
    ///
    /// # Errors
    /// Values that do not fit together.
    pub fn from_parameters(parameters: Parameters) -> Result<Self, ConfigError> {
        let read = Reader(&parameters);
        let config = Self {
            checkpoint: CheckpointConfig {
                path: read.path("checkpoint.path").unwrap_or_default(),
                tokenizer: read.path("checkpoint.tokenizer"),
                eagle_config: read.path("checkpoint.eagle_config"),
            },
            embodiment: read.string("embodiment"),
            // The table's check let only known devices through.
            device: read.string("device").parse().unwrap_or(Device::Auto),
            // The table's check let only known modes through.
            mode: read.string("mode").parse().unwrap_or_default(),
            preprocessing: read.string("preprocessing").parse().unwrap_or_default(),
            engine: read.path("tensorrt.engines").map(|folder| EngineChoice {
                folder,
                // The table's check let only known precisions through.
                precision: read.string("tensorrt.precision").parse().unwrap_or(Precision::Fp16),
                auto_build: read.bool("tensorrt.auto_build"),
            }),
            rate: read.double("rate"),
            instruction: read.string("instruction"),
            instruction_topic: read.string("instruction_topic"),
            denoising_steps: usize::try_from(read.integer("denoising_steps")).ok().filter(|&steps| steps > 0),
            noise_seed: u64::try_from(read.integer("noise_seed")).ok(),
            step_time: read.seconds("step_time"),
            cameras: read.cameras(),
            joint_states_topic: read.string("joint_states_topic"),
            state: read.joints("state"),
            action: read.joints("action"),
            max_age: read.milliseconds("max_age_ms"),
            max_skew: read.milliseconds("max_skew_ms"),
            max_state_age: read.milliseconds("max_state_age_ms"),
            trajectory_topic: read.string("trajectory_topic"),
            chunk_topic: read.string("chunk_topic"),
            frame_id: read.string("frame_id"),
            domain_id: u16::try_from(read.integer("domain_id")).ok(),
            use_sim_time: read.bool("use_sim_time"),
            status_period: read.seconds("status_period"),
            status_note: read.string("status_note"),
            handover: read.handover(),
            commands: read.commands(),
            safety: read.safety(),
            status_topic: read.string("status_topic"),
            parameters,
        };
        ConfigError::unless_empty(config.contradictions()).map(|()| config)
    }

    /// The joints that an action key moves: those given for it, else those of the state key of the same name; empty where
    /// the key is to stay out of the joint trajectory.
    pub fn action_joints(&self, key: &str) -> &[String] {
        self.action.get(key).or_else(|| self.state.get(key)).map_or(&[], Vec::as_slice)
    }

    /// What single values cannot show.
    fn contradictions(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (key, camera) in &self.cameras {
            if camera.transport == ImageTransport::Raw && camera.topic.ends_with("/compressed") {
                let message = format!(
                    "{:?} looks like a topic of compressed images, but the transport is raw; set \
                     cameras.{key}.transport to compressed",
                    camera.topic
                );
                problems.push(self.parameters.problem(&format!("cameras.{key}.topic"), message));
            }
        }
        let keys: Vec<(&String, &Vec<String>)> = self.action.iter().collect();
        for (i, (key, joints)) in keys.iter().enumerate() {
            for (other, other_joints) in &keys[..i] {
                if let Some(joint) = joints.iter().find(|joint| other_joints.contains(joint)) {
                    let message = format!("the joint {joint:?} already belongs to action.{other}.joints");
                    problems.push(self.parameters.problem(&format!("action.{key}.joints"), message));
                }
            }
        }
        problems
    }
}

/// Reads checked values. Each of its fallbacks is for a case that the table rules out: kinds and presence were checked.
struct Reader<'a>(&'a Parameters);

impl Reader<'_> {
    fn string(&self, name: &str) -> String {
        match self.0.get(name) {
            Some(ParameterValue::String(value)) => value.clone(),
            _ => String::new(),
        }
    }

    fn bool(&self, name: &str) -> bool {
        matches!(self.0.get(name), Some(ParameterValue::Bool(true)))
    }

    fn integer(&self, name: &str) -> i64 {
        match self.0.get(name) {
            Some(ParameterValue::Integer(value)) => *value,
            _ => 0,
        }
    }

    fn double(&self, name: &str) -> f64 {
        match self.0.get(name) {
            Some(ParameterValue::Double(value)) => *value,
            _ => 0.0,
        }
    }

    fn seconds(&self, name: &str) -> Duration {
        Duration::try_from_secs_f64(self.double(name)).unwrap_or_default()
    }

    fn milliseconds(&self, name: &str) -> Duration {
        Duration::try_from_secs_f64(self.double(name) / 1e3).unwrap_or_default()
    }

    /// `None` where the text is empty.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let text = self.string(name);
        let folder = self.0.source(name).and_then(|source| source.file.as_deref()?.parent());
        (!text.is_empty()).then(|| folder.map_or_else(|| PathBuf::from(&text), |folder| folder.join(&text)))
    }

    /// `None` where it is not set.
    fn optional_double(&self, name: &str) -> Option<f64> {
        match self.0.get(name) {
            Some(ParameterValue::Double(value)) => Some(*value),
            _ => None,
        }
    }

    /// `None` where it is zero, which stands for no limit.
    fn limit(&self, name: &str) -> Option<f64> {
        self.optional_double(name).filter(|value| *value > 0.0)
    }

    fn count(&self, name: &str) -> usize {
        usize::try_from(self.integer(name)).unwrap_or(0)
    }

    /// `None` where the text is empty.
    fn optional_string(&self, name: &str) -> Option<String> {
        Some(self.string(name)).filter(|text| !text.is_empty())
    }

    fn strings(&self, name: &str) -> Option<Vec<String>> {
        match self.0.get(name) {
            Some(ParameterValue::StringArray(values)) => Some(values.clone()),
            _ => None,
        }
    }

    fn handover(&self) -> HandoverConfig {
        HandoverConfig {
            // The table's check let only known modes through.
            mode: self.string("handover.mode").parse().unwrap_or(HandoverMode::Blend),
            execute_horizon: Some(self.count("handover.execute_horizon")).filter(|&steps| steps > 0),
            overlap: self.count("handover.overlap"),
            initial_latency: self.milliseconds("handover.initial_latency_ms"),
        }
    }

    fn commands(&self) -> CommandConfig {
        let base = |key| BaseConfig {
            topic: self.string("base_twist.topic"),
            key,
            components: self.strings("base_twist.components").unwrap_or_default(),
            frame_id: self.string("base_twist.frame_id"),
            max_linear: self.limit("base_twist.max_linear"),
            max_angular: self.limit("base_twist.max_angular"),
        };
        CommandConfig {
            rate: self.double("command_rate"),
            positions_topic: self.optional_string("positions_topic"),
            positions_joints: self.strings("positions_joints").filter(|joints| !joints.is_empty()),
            base: self.optional_string("base_twist.key").map(base),
        }
    }

    fn safety(&self) -> SafetyConfig {
        let joint = |joint: String| {
            let of = |field: &str| self.optional_double(&format!("limits.{joint}.{field}"));
            let limits = JointLimits {
                lower: of("lower"),
                upper: of("upper"),
                velocity: of("velocity"),
                step: of("step"),
            };
            (joint, limits)
        };
        SafetyConfig {
            dry_run: self.bool("dry_run"),
            autostart: self.bool("autostart"),
            estop_topic: self.string("estop_topic"),
            robot_description_topic: self.optional_string("robot_description_topic"),
            limits: LimitSettings {
                joints: self.0.group_keys("limits").into_iter().map(joint).collect(),
                default_velocity: self.limit("default_limits.velocity"),
                default_step: self.limit("default_limits.step"),
            },
            watchdog: WatchdogConfig {
                // The table's check let only known actions through.
                action: self.string("watchdog.action").parse().unwrap_or(Action::Hold),
                max_observation_age: self.milliseconds("watchdog.max_observation_age_ms"),
                max_joint_age: self.milliseconds("watchdog.max_state_age_ms"),
                max_inference: self.milliseconds("watchdog.max_inference_ms"),
                max_chunk_age: self.milliseconds("watchdog.max_chunk_age_ms"),
            },
        }
    }

    fn cameras(&self) -> BTreeMap<String, CameraConfig> {
        let camera = |key: String| {
            let transport = match self.string(&format!("cameras.{key}.transport")).as_str() {
                "compressed" => ImageTransport::Compressed,
                _ => ImageTransport::Raw,
            };
            let topic = self.string(&format!("cameras.{key}.topic"));
            (key, CameraConfig { topic, transport })
        };
        self.0.group_keys("cameras").into_iter().map(camera).collect()
    }

    fn joints(&self, group: &str) -> BTreeMap<String, Vec<String>> {
        let joints = |key: String| match self.0.get(&format!("{group}.{key}.joints")) {
            Some(ParameterValue::StringArray(names)) => (key, names.clone()),
            _ => (key, Vec::new()),
        };
        self.0.group_keys(group).into_iter().map(joints).collect()
    }
}

#[cfg(test)]
mod tests;
