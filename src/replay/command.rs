//! The command `benchmark_replay`: its options, from the command line or from parameters, to a recording and how to replay it.

use std::{path::PathBuf, time::Duration};

use anyhow::{bail, ensure};
use clap::Parser;

use super::{
    mode::Mode,
    options::{PreparedRecording, RecordingOptions},
    predictions::PredictionNames,
    runner::ReplayOptions,
    source::Recording,
};
use crate::{
    evaluation::{ActionGroup, Gate},
    model::policy::PolicyOptions,
    node::{arguments::RosArguments, config::NodeConfig, tool_command::Tool},
    processor::Processor,
    recording::bag::TruthSource,
    ros::transport::NodeName,
};

/// How accurate and how fast is this policy on my recordings?
///
/// Replays rosbag2 recordings or a LeRobot dataset through the code that runs on the robot, in one or several modes. The
/// first mode is the reference for the others. Also takes --ros-args with parameters replay.NAME, where NAME is that of an
/// option here (replay.modes, replay.bag, ...), and all parameters of policy_node.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "benchmark_replay",
    version,
    after_help = "benchmark_replay bench --help: all modes on random inputs, without recording or checkpoint\n\
                  benchmark_replay roofline --help: the least time that bytes and FLOPs allow"
)]
pub struct Command {
    #[command(flatten)]
    pub recording: RecordingOptions,
    /// What runs the network, the reference first: auto (as policy_node does by default), torch, torch-graph,
    /// torch-graph-fused, torch-f32, torch-bf16, tensorrt-fp32, tensorrt-fp16, tensorrt-bf16, tensorrt-int8
    #[arg(long, value_delimiter = ',', default_value = "auto", value_name = "MODE,..")]
    pub modes: Vec<Mode>,
    /// Folder of engine_builder's engines, for the tensorrt modes; wins over tensorrt.engines
    #[arg(long, value_name = "DIR")]
    pub engines: Option<PathBuf>,
    /// Build engines that are missing or do not fit, which takes minutes; so does tensorrt.auto_build
    #[arg(long)]
    pub auto_build: bool,
    /// Steps of a chunk that are compared with the recording; all where it is not given
    #[arg(long, value_name = "STEPS")]
    pub horizon: Option<usize>,
    /// Observations per trajectory on which the DiT is compared step by step and components are timed
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub component_steps: u64,
    /// Passes before the first measurement of a mode
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub warm_up: u32,
    /// Timed passes on each observation that is chosen for components
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub iterations: u32,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Recorded actions of a bag: joint-states (measured positions), none, or a topic of commands
    #[arg(long, value_name = "SOURCE", default_value = "joint-states")]
    pub truth: String,
    /// Folder for report.html, run.json and the tables as CSV
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// File for the self-contained HTML page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Folder for the tables as CSV
    #[arg(long, value_name = "DIR")]
    pub csv: Option<PathBuf>,
    /// File for everything that was measured, as JSON; --compare reads it
    #[arg(long, value_name = "FILE")]
    pub save_run: Option<PathBuf>,
    /// Print the run as JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// Compare two saved runs and stop
    #[arg(long, num_args = 2, value_names = ["RUN_A", "RUN_B"], conflicts_with_all = ["bag", "dataset"])]
    pub compare: Vec<PathBuf>,
    /// Conditions under which the exit code is 1, e.g. 'dit_cosine<0.9999,e2e_mse_ratio>1.02'
    #[arg(long, value_name = "CONDITIONS")]
    pub fail_if: Option<Gate>,
    /// Write the reference mode's predictions as a rosbag2 recording into this new folder
    #[arg(long, value_name = "DIR")]
    pub write_bag: Option<PathBuf>,
    /// Keep what was measured in this file while measuring, and go on from it after an interruption
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
    /// What to call the run in headings
    #[arg(long)]
    pub title: Option<String>,
}

impl Command {
    /// Reads the options: those of the command line, which ROS arguments do not belong to, win over the parameters below
    /// `replay`.
    ///
    /// # Errors
    /// What clap says, help and version among it, or parameters that cannot be read.
    pub fn read(arguments: &RosArguments, node: &NodeName) -> anyhow::Result<Self> {
        const TOOL: Tool = Tool {
            program: "benchmark_replay",
            parameters: "replay",
            paths: &["bag", "dataset", "checkpoint", "tokenizer", "eagle_config", "engines"],
            joined: &["modes", "episodes"],
        };
        let line = TOOL.command_line(arguments, node)?;
        Ok(Self::try_parse_from(line)?)
    }

    /// The recording and how it is replayed.
    ///
    /// # Errors
    /// Options that are missing or do not fit each other, the checkpoint or the recording.
    pub fn prepare(&self, arguments: &RosArguments, node: &NodeName) -> anyhow::Result<Prepared> {
        let truth = match self.truth.as_str() {
            "joint-states" => TruthSource::JointStates,
            "none" => TruthSource::Nothing,
            topic => TruthSource::Topic(topic.to_owned()),
        };
        let PreparedRecording { recording, policy, processor, groups, step_time, config } =
            self.recording.prepare(truth, arguments, node)?;
        let replay = self.replay_options(policy, &processor, groups, step_time)?;
        Ok(Prepared { recording, replay, config })
    }

    fn replay_options(
        &self,
        policy: PolicyOptions,
        processor: &Processor,
        groups: Vec<ActionGroup>,
        step_time: Duration,
    ) -> anyhow::Result<ReplayOptions> {
        for (index, mode) in self.modes.iter().enumerate() {
            ensure!(
                !self.modes[..index].contains(mode),
                "--modes: expected each mode once, found {mode} twice"
            );
        }
        let own = policy.engine.as_ref().map(|choice| choice.folder.clone());
        let auto_build = self.auto_build || policy.engine.as_ref().is_some_and(|choice| choice.auto_build);
        let engines = self.engines.clone().or(own);
        if let (Some(mode), None) = (self.modes.iter().find(|mode| mode.precision().is_some()), &engines) {
            bail!(
                "--modes {mode}: expected the folder of engine_builder's engines, found none; give --engines DIR"
            );
        }
        let longest = processor.action().horizon();
        let horizon = self.horizon.unwrap_or(longest);
        ensure!(
            (1..=longest).contains(&horizon),
            "--horizon: expected 1 to {longest} steps, found {horizon}"
        );
        Ok(ReplayOptions {
            modes: self.modes.clone(),
            policy,
            engines: engines.unwrap_or_default(),
            auto_build,
            horizon,
            steps_per_trajectory: Some(self.recording.steps),
            component_steps_per_trajectory: self.component_steps,
            warm_up: self.warm_up,
            iterations: self.iterations,
            noise_seed: self.seed,
            step_time,
            groups,
        })
    }
}

/// What [`Command::prepare`] made of the options.
pub struct Prepared {
    /// What is replayed.
    pub recording: Recording,
    /// How.
    pub replay: ReplayOptions,
    /// The node's configuration, for bags.
    pub config: Option<NodeConfig>,
}

impl Prepared {
    /// Names for written predictions: those of the node, or what they would be for a dataset.
    ///
    /// # Errors
    /// A topic's name that is none.
    pub fn prediction_names(&self, node: &NodeName) -> anyhow::Result<PredictionNames> {
        let embodiment = self.replay.policy.embodiment.clone();
        let topic = |name: &str| node.resolve(name).map_err(anyhow::Error::from);
        let keys = self.replay.groups.iter().map(|group| &group.key);
        Ok(match &self.config {
            Some(config) => PredictionNames {
                trajectory_topic: topic(&config.trajectory_topic)?,
                chunk_topic: topic(&config.chunk_topic)?,
                frame_id: config.frame_id.clone(),
                embodiment,
                moving: keys.filter(|key| !config.action_joints(key).is_empty()).cloned().collect(),
            },
            None => PredictionNames {
                trajectory_topic: topic("~/joint_trajectory")?,
                chunk_topic: topic("~/action_chunk")?,
                frame_id: String::new(),
                embodiment,
                moving: keys.cloned().collect(),
            },
        })
    }
}
