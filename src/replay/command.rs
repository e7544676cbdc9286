//! The command `benchmark_replay`: its options, from the command line or from parameters, to a recording and how to replay it.

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::Parser;

use super::{mode::Mode, predictions::PredictionNames, runner::ReplayOptions, source::Recording};
use crate::{
    checkpoint::{Checkpoint, OpenOptions},
    evaluation::{ActionGroup, Dimension, Gate},
    execution::ExecutionMode,
    model::policy::PolicyOptions,
    node::{arguments::RosArguments, config::NodeConfig, policy_options::policy_options, tool_command::Tool},
    processor::Processor,
    recording::{
        bag::{Bag, SamplesOptions, Stride, TruthSource},
        lerobot::{DatasetKeys, LeRobotDataset, SampleOptions},
    },
    ros::transport::NodeName,
};

/// The file with the node's parameters that a bag may carry in its folder.
pub const BAG_PARAMETERS: &str = "policy.yaml";

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
    /// A rosbag2 folder, .mcap or .db3 file; may be given several times
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with = "dataset")]
    pub bag: Vec<PathBuf>,
    /// A LeRobot dataset (v2.0, v2.1, v3.0)
    #[arg(long, value_name = "DIR")]
    pub dataset: Option<PathBuf>,
    /// Episodes of the dataset, e.g. 0,1,2; all where none is given
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    pub episodes: Vec<u64>,
    /// Checkpoint directory; wins over checkpoint.path
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// Folder of the tokenizer, where it is not in the checkpoint
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// A file that replaces the built-in configuration of the backbone
    #[arg(long, value_name = "FILE")]
    pub eagle_config: Option<PathBuf>,
    /// Embodiment tag of the checkpoint
    #[arg(long, value_name = "TAG")]
    pub embodiment: Option<String>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long)]
    pub device: Option<String>,
    /// What runs the network, the reference first: torch, torch-graph, torch-f32, torch-bf16, tensorrt-fp32, tensorrt-fp16,
    /// tensorrt-bf16, tensorrt-int8
    #[arg(long, value_delimiter = ',', default_value = "torch", value_name = "MODE,..")]
    pub modes: Vec<Mode>,
    /// Folder of engine_builder's engines, for the tensorrt modes; wins over tensorrt.engines
    #[arg(long, value_name = "DIR")]
    pub engines: Option<PathBuf>,
    /// Steps of a chunk that are compared with the recording; all where it is not given
    #[arg(long, value_name = "STEPS")]
    pub horizon: Option<usize>,
    /// Sets of camera frames (bag) or rows (dataset) from one observation to the next [default: the node's rate, or the horizon]
    #[arg(long, value_name = "N")]
    pub stride: Option<NonZeroU32>,
    /// Most observations per trajectory
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub steps: u64,
    /// Observations per trajectory on which the DiT is compared step by step and components are timed
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub component_steps: u64,
    /// Most trajectories
    #[arg(long, value_name = "N")]
    pub trajectories: Option<usize>,
    /// Passes before the first measurement of a mode
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub warm_up: u32,
    /// Timed passes on each observation that is chosen for components
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub iterations: u32,
    /// Denoising steps; the checkpoint's where it is not given
    #[arg(long, value_name = "N")]
    pub denoising_steps: Option<usize>,
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
        match (&self.dataset, self.bag.is_empty()) {
            (Some(dataset), true) => self.prepare_dataset(dataset, arguments, node),
            (None, false) => self.prepare_bags(arguments, node),
            _ => bail!("expected a recording, found none; give --bag PATH or --dataset DIR"),
        }
    }

    fn node_config(&self, arguments: &RosArguments, node: &NodeName) -> anyhow::Result<NodeConfig> {
        let mut files = arguments.params_files.clone();
        if files.is_empty() {
            files.extend(self.bag.iter().map(|bag| bag.join(BAG_PARAMETERS)).find(|file| file.is_file()));
        }
        ensure!(
            !files.is_empty(),
            "expected the parameters of the node that is to be replayed (topics, cameras, joint names), found none; give \
             --params-file FILE as for policy_node, or put the file as {BAG_PARAMETERS} into the bag's folder"
        );
        // Text is always in quotes: a folder may be called 12.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let path = |path: &Path| quoted(&path.display().to_string());
        let mut parameters = arguments.parameters.clone();
        let given = [
            ("checkpoint.path", self.checkpoint.as_deref().map(path)),
            ("checkpoint.tokenizer", self.tokenizer.as_deref().map(path)),
            ("checkpoint.eagle_config", self.eagle_config.as_deref().map(path)),
            ("embodiment", self.embodiment.as_deref().map(quoted)),
            ("device", self.device.as_deref().map(quoted)),
            ("denoising_steps", self.denoising_steps.map(|steps| steps.to_string())),
        ];
        parameters.extend(given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        Ok(NodeConfig::load_for(&node.qualified(), &files, &parameters)?)
    }

    fn prepare_bags(&self, arguments: &RosArguments, node: &NodeName) -> anyhow::Result<Prepared> {
        let config = self.node_config(arguments, node)?;
        let policy = policy_options(&config);
        let (_, processor) = open(&policy)?;
        let mut options = SamplesOptions::new(&config, node.clone(), &processor);
        if let Some(stride) = self.stride {
            options.stride = Stride::Sets(stride);
        }
        options.truth = match self.truth.as_str() {
            "joint-states" => TruthSource::JointStates,
            "none" => TruthSource::Nothing,
            topic => TruthSource::Topic(topic.to_owned()),
        };
        let groups = options.action.iter().map(|(key, dim)| {
            let joints = config.action_joints(key);
            group(key, *dim, joints)
        });
        let groups = groups.collect();
        let bags = self.bag.iter().take(self.trajectories.unwrap_or(usize::MAX));
        let bags =
            bags.map(|path| Ok((path.clone(), Bag::open(path)?))).collect::<anyhow::Result<Vec<_>>>()?;
        let recording = Recording::Bags { bags, options: Box::new(options) };
        let replay = self.replay_options(policy, &processor, groups, config.step_time)?;
        Ok(Prepared { recording, replay, config: Some(config) })
    }

    fn prepare_dataset(
        &self,
        path: &Path,
        arguments: &RosArguments,
        node: &NodeName,
    ) -> anyhow::Result<Prepared> {
        let policy = if arguments.params_files.is_empty() {
            PolicyOptions {
                checkpoint: self.checkpoint.clone().context("expected --checkpoint DIR, found none")?,
                tokenizer: self.tokenizer.clone(),
                eagle_config: self.eagle_config.clone(),
                embodiment: self.embodiment.clone().context(
                    "expected --embodiment TAG (the data that the checkpoint was trained on), found none",
                )?,
                device: self.device.clone().unwrap_or_default(),
                kind: None,
                denoising_steps: self.denoising_steps,
                engine: None,
                // Each mode of the replay has its own.
                mode: ExecutionMode::Eager,
            }
        } else {
            policy_options(&self.node_config(arguments, node)?)
        };
        let (checkpoint, processor) = open(&policy)?;
        let dataset = LeRobotDataset::open(path)?;
        let keys = DatasetKeys::new(&checkpoint.processor, &checkpoint.statistics, &policy.embodiment)?;
        let episodes: Vec<u64> = match self.episodes.is_empty() {
            true => dataset.episodes().map(|(number, _)| number).collect(),
            false => self.episodes.clone(),
        };
        let episodes = episodes.into_iter().take(self.trajectories.unwrap_or(usize::MAX)).collect();
        let horizon = processor.action().horizon() as u64;
        let stride = self.stride.map_or(horizon, |stride| u64::from(stride.get()));
        let groups = keys.action.iter().map(|(key, dim)| group(key, *dim, &[])).collect();
        let fps = dataset.info().fps;
        ensure!(fps.is_finite() && fps > 0.0, "{}: expected fps above zero, found {fps}", path.display());
        let replay = self.replay_options(policy, &processor, groups, Duration::from_secs_f64(1.0 / fps))?;
        let recording = Recording::Dataset {
            path: path.to_owned(),
            dataset: Box::new(dataset),
            episodes,
            options: SampleOptions { stride: stride.max(1), ..SampleOptions::default() },
            keys: Box::new(keys),
        };
        Ok(Prepared { recording, replay, config: None })
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
            horizon,
            steps_per_trajectory: Some(self.steps),
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

fn open(policy: &PolicyOptions) -> anyhow::Result<(Checkpoint, Processor)> {
    let options = OpenOptions { eagle_config: policy.eagle_config.clone(), ..OpenOptions::default() };
    let checkpoint = Checkpoint::open(&policy.checkpoint, &options)?;
    let processor = Processor::load(&checkpoint, policy.tokenizer.as_deref(), &policy.embodiment)?;
    Ok((checkpoint, processor))
}

fn group(key: &str, dim: usize, joints: &[String]) -> ActionGroup {
    let name = |index: usize| joints.get(index).cloned().unwrap_or_else(|| format!("{key} {index}"));
    ActionGroup {
        key: key.to_owned(),
        dimensions: (0..dim).map(|index| Dimension::new(name(index), "")).collect(),
    }
}
