//! Options that name a recording and the policy that sees it, the same for every tool that replays.

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::Args;

use super::source::Recording;
use crate::{
    checkpoint::{Checkpoint, OpenOptions},
    evaluation::{ActionGroup, Dimension},
    execution::{ExecutionMode, Preprocessing},
    model::policy::PolicyOptions,
    node::{arguments::RosArguments, config::NodeConfig, policy_options::policy_options},
    processor::Processor,
    recording::{
        bag::{Bag, SamplesOptions, Stride, TruthSource},
        lerobot::{DatasetKeys, LeRobotDataset, SampleOptions},
    },
    ros::transport::NodeName,
};

/// The file with the node's parameters that a bag may carry in its folder.
pub const BAG_PARAMETERS: &str = "policy.yaml";

/// A recording, how densely it is replayed, and through which policy.
#[derive(Debug, Clone, Args)]
pub struct RecordingOptions {
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
    /// Sets of camera frames (bag) or rows (dataset) from one observation to the next [default: the node's rate, or the horizon]
    #[arg(long, value_name = "N")]
    pub stride: Option<NonZeroU32>,
    /// Most observations per trajectory
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub steps: u64,
    /// Most trajectories
    #[arg(long, value_name = "N")]
    pub trajectories: Option<usize>,
    /// Denoising steps; the checkpoint's where it is not given
    #[arg(long, value_name = "N")]
    pub denoising_steps: Option<usize>,
}

impl RecordingOptions {
    /// Whether any recording was named.
    pub fn is_given(&self) -> bool {
        self.dataset.is_some() || !self.bag.is_empty()
    }

    /// The recording and the policy that sees it; `truth` is what a bag's predictions are held against.
    ///
    /// # Errors
    /// Options that are missing or do not fit each other, the checkpoint or the recording.
    pub fn prepare(
        &self,
        truth: TruthSource,
        arguments: &RosArguments,
        node: &NodeName,
    ) -> anyhow::Result<PreparedRecording> {
        match (&self.dataset, self.bag.is_empty()) {
            (Some(dataset), true) => self.prepare_dataset(dataset, arguments, node),
            (None, false) => self.prepare_bags(truth, arguments, node),
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

    fn prepare_bags(
        &self,
        truth: TruthSource,
        arguments: &RosArguments,
        node: &NodeName,
    ) -> anyhow::Result<PreparedRecording> {
        let config = self.node_config(arguments, node)?;
        let policy = policy_options(&config);
        let (_, processor) = open(&policy)?;
        let mut options = SamplesOptions::new(&config, node.clone(), &processor);
        if let Some(stride) = self.stride {
            options.stride = Stride::Sets(stride);
        }
        options.truth = truth;
        let groups = options.action.iter().map(|(key, dim)| {
            let joints = config.action_joints(key);
            group(key, *dim, joints)
        });
        let groups = groups.collect();
        let bags = self.bag.iter().take(self.trajectories.unwrap_or(usize::MAX));
        let bags =
            bags.map(|path| Ok((path.clone(), Bag::open(path)?))).collect::<anyhow::Result<Vec<_>>>()?;
        let recording = Recording::Bags { bags, options: Box::new(options) };
        let step_time = config.step_time;
        Ok(PreparedRecording { recording, policy, processor, groups, step_time, config: Some(config) })
    }

    fn prepare_dataset(
        &self,
        path: &Path,
        arguments: &RosArguments,
        node: &NodeName,
    ) -> anyhow::Result<PreparedRecording> {
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
                preprocessing: Preprocessing::Auto,
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
        let recording = Recording::Dataset {
            path: path.to_owned(),
            dataset: Box::new(dataset),
            episodes,
            options: SampleOptions { stride: stride.max(1), ..SampleOptions::default() },
            keys: Box::new(keys),
        };
        let step_time = Duration::from_secs_f64(1.0 / fps);
        Ok(PreparedRecording { recording, policy, processor, groups, step_time, config: None })
    }
}

/// What [`RecordingOptions::prepare`] made of the options.
pub struct PreparedRecording {
    /// What is replayed.
    pub recording: Recording,
    /// The policy that sees it.
    pub policy: PolicyOptions,
    /// What turns observations into inputs.
    pub processor: Processor,
    /// Action keys and their dimensions, named for people.
    pub groups: Vec<ActionGroup>,
    /// Time between two steps of a chunk.
    pub step_time: Duration,
    /// The node's configuration, for bags.
    pub config: Option<NodeConfig>,
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
