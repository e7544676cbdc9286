//! Recordings through the policy, and what the fused graph was given at each denoising step into a set of files.
//!
//! Observations come from the code that replays and from the policy itself: images, prompt and state are processed as on the
//! robot, and the backbone and the denoising run on libtorch. The set is written beside its own place and moved there when it
//! is whole, so that whoever interrupts the run leaves the set that was there before, or none.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde::Serialize;
use tempfile::TempDir;

use super::{
    super::{lengths::Lengths, synthetic::SyntheticTick, verify::torch_head},
    inputs::TickRecorder,
};
use crate::{
    checkpoint::{Checkpoint, OpenOptions, Parts},
    engine::{
        CheckpointHasher, GraphKind,
        calibration::{
            CalibrationMeta, CalibrationSample, CalibrationWriter, StagedSample, StratifiedSample,
        },
    },
    evaluation::{Interrupt, Progress},
    execution::ExecutionMode,
    model::{
        ModelError, default_kind, device,
        network::to_tensor,
        policy::{Policy, PolicyOptions, seeded_noise},
        probe::Probe,
        tick,
    },
    node::{arguments::RosArguments, tool_command::Tool},
    recording::bag::TruthSource,
    replay::options::{PreparedRecording, RecordingOptions},
    ros::transport::NodeName,
};

/// The list of a set: the sign that a folder holds one.
const LIST: &str = "calibration.json";

/// Collects inputs for INT8 from recordings.
///
/// Replays rosbag2 recordings or a LeRobot dataset through the policy on libtorch, and keeps what the denoising step's engine
/// would have been given: so many samples, chosen evenly over the denoising steps and with equal chance within each. Also takes
/// --ros-args with parameters calibrate.NAME, where NAME is that of an option here (calibrate.bag, calibrate.samples, ...), and
/// all parameters of policy_node.
#[derive(Debug, Clone, Parser)]
#[command(name = "engine_builder calibrate collect", version)]
pub struct CollectCommand {
    #[command(flatten)]
    pub recording: RecordingOptions,
    /// Take so many ticks of synthetic inputs instead of a recording: for trying things out, not for robots
    #[arg(long, value_name = "N", conflicts_with_all = ["bag", "dataset"])]
    pub synthetic: Option<u64>,
    /// Tokens of a synthetic prompt that are not of images: only the middle one of three numbers counts
    #[arg(long, value_name = "N", default_value = "40")]
    pub text_tokens: Lengths,
    /// Image tokens of a synthetic prompt
    #[arg(long, value_name = "N", default_value = "162")]
    pub image_tokens: Lengths,
    /// New folder for the set
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Samples to keep, of all denoising steps together
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub samples: u64,
    /// Seed of the noise and of the choice
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Replace the set that is in the folder
    #[arg(long)]
    pub force: bool,
}

impl CollectCommand {
    /// Reads the options: those of the command line, which ROS arguments do not belong to, win over the parameters below
    /// `calibrate`.
    ///
    /// # Errors
    /// What clap says, help and version among it, or parameters that cannot be read.
    pub fn read(arguments: &RosArguments, node: &NodeName) -> Result<Self> {
        const TOOL: Tool = Tool {
            program: "engine_builder calibrate collect",
            parameters: "calibrate",
            paths: &["bag", "dataset", "checkpoint", "tokenizer", "eagle_config", "out"],
            joined: &["episodes"],
        };
        Ok(Self::try_parse_from(TOOL.command_line(arguments, node)?)?)
    }
}

/// How the collecting ended.
#[derive(Debug)]
pub enum Collected {
    /// The set is there.
    Whole(CollectedSet),
    /// Somebody asked it to end, and nothing was changed.
    Interrupted,
}

/// What was collected.
#[derive(Debug, Clone, Serialize)]
pub struct CollectedSet {
    /// Its folder.
    pub folder: PathBuf,
    /// Identity of the set.
    pub hash: String,
    /// Samples of each denoising step.
    pub samples: Vec<u64>,
    /// Of so many that were offered.
    pub offered: Vec<u64>,
}

/// Carries the command out; `say` gets a line where there is something to say.
///
/// # Errors
/// Options, recordings, checkpoints and folders that cannot be used.
pub fn run(
    command: &CollectCommand,
    arguments: &RosArguments,
    node: &NodeName,
    interrupt: &Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<Collected> {
    let place = Place::new(&command.out, command.force)?;
    match command.synthetic {
        Some(ticks) => synthetic(command, ticks, place, interrupt, say),
        None => {
            // The node whose parameters and topics are meant is the policy's, unless another was named.
            let policy = NodeName::new("", "policy_node")?;
            let node = if arguments.node_name.is_some() { node } else { &policy };
            ensure!(
                command.recording.is_given(),
                "expected a recording, found none; give --bag PATH, --dataset DIR, or --synthetic N"
            );
            let prepared = command.recording.prepare(TruthSource::Nothing, arguments, node)?;
            recorded(command, prepared, place, interrupt, say)
        }
    }
}

fn recorded(
    command: &CollectCommand,
    prepared: PreparedRecording,
    place: Place,
    interrupt: &Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<Collected> {
    let PreparedRecording { recording, policy, processor, .. } = prepared;
    let checkpoint = action_head(&policy.checkpoint, policy.eagle_config.as_deref())?;
    let embodiment = processor.embodiment_index();
    drop(processor);
    let mut policy = Policy::load(&PolicyOptions { engine: None, mode: ExecutionMode::Eager, ..policy })?;
    let device = policy.device();
    let recorder = TickRecorder::new(&checkpoint, embodiment, policy.head(), device)?;
    let mut set = Set::new(command, &checkpoint, embodiment, policy.head().steps(), &place)?;
    let names = recording.trajectories();
    let most = command.recording.steps;
    let expected: Vec<u64> = (0..names.len()).map(|index| recording.expected(index).min(most)).collect();
    let mut progress = Progress::new("observations", expected.iter().sum(), 0);
    let mut before = 0;
    for (index, name) in names.iter().enumerate() {
        let mut stream = recording.open(index)?;
        for number in 0..most {
            if interrupt.is_asked() {
                progress.finish();
                return Ok(Collected::Interrupted);
            }
            let Some(sample) = stream.next().transpose()? else { break };
            let inputs = policy.processor().prepare(&sample.observation)?;
            // As in a replay: the noise of observation k of a run has the seed + k.
            let noise = seeded_noise(command.seed.wrapping_add(number), policy.noise_shape());
            let noise = to_tensor(noise.insert_axis(ndarray::Axis(0)).view())?;
            let state = to_tensor(inputs.state.view())?;
            let tick::Parts { backbone, head, .. } = policy.network().parts();
            let features = backbone.forward(
                inputs.images.view(),
                inputs.input_ids.view(),
                inputs.attention_mask.view(),
                &mut Probe::off(),
            )?;
            let tick = recorder.record(head, &features.features, features.layout, &state, &noise)?;
            let source = format!("{name}, observation {number}");
            for step in 0..tick.steps() {
                set.offer(step, || tick.sample(step, &source))?;
            }
            progress.set(before + number + 1);
        }
        before += expected.get(index).copied().unwrap_or(0);
    }
    progress.finish();
    set.finish(place, say)
}

fn synthetic(
    command: &CollectCommand,
    ticks: u64,
    place: Place,
    interrupt: &Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<Collected> {
    let options = &command.recording;
    let folder = options.checkpoint.as_deref().context("expected --checkpoint DIR, found none")?;
    let checkpoint = action_head(folder, options.eagle_config.as_deref())?;
    let tag = options.embodiment.as_deref().context("expected --embodiment TAG, found none")?;
    let embodiment = checkpoint.embodiments.index(tag, checkpoint.config.max_num_embodiments)?;
    let device = device::select(options.device.as_deref().unwrap_or("auto"))?;
    let mut head = torch_head(&checkpoint, embodiment, device, default_kind(device))?;
    if let Some(steps) = options.denoising_steps {
        head.set_steps(steps)?;
    }
    let recorder = TickRecorder::new(&checkpoint, embodiment, &head, device)?;
    let mut set = Set::new(command, &checkpoint, embodiment, head.steps(), &place)?;
    let mut progress = Progress::new("ticks", ticks, 0);
    for number in 0..ticks {
        if interrupt.is_asked() {
            progress.finish();
            return Ok(Collected::Interrupted);
        }
        let seed = command.seed.wrapping_add(number);
        let (text, image) = (command.text_tokens.usual(), command.image_tokens.usual());
        let tick = SyntheticTick::new(&checkpoint.config, seed, text, image)?;
        let (layout, features) = (tick.layout(device)?, head.adopt(&tick.features)?);
        let inputs = recorder.record(&mut head, &features, &layout, &tick.state, &tick.noise)?;
        for step in 0..inputs.steps() {
            set.offer(step, || inputs.sample(step, &format!("synthetic tick of seed {seed}")))?;
        }
        progress.advance();
    }
    progress.finish();
    set.finish(place, say)
}

fn action_head(folder: &Path, eagle_config: Option<&Path>) -> Result<Checkpoint> {
    let options = OpenOptions { eagle_config: eagle_config.map(Path::to_owned), parts: Parts::ActionHead };
    Ok(Checkpoint::open(folder, &options)?)
}

/// The set while it grows: on disk, so that memory holds one observation however many samples are kept.
struct Set {
    writer: CalibrationWriter,
    chosen: StratifiedSample<StagedSample>,
    wanted: u64,
}

impl Set {
    fn new(
        command: &CollectCommand,
        checkpoint: &Checkpoint,
        embodiment: usize,
        steps: usize,
        place: &Place,
    ) -> Result<Self> {
        let meta = CalibrationMeta {
            graph: GraphKind::DitFused,
            checkpoint_hash: CheckpointHasher::new(None).hash(&checkpoint.dir)?,
            embodiment,
            steps,
            seed: command.seed,
        };
        let writer = CalibrationWriter::create(place.staging.path(), meta)?;
        let samples = usize::try_from(command.samples)?;
        Ok(Self {
            writer,
            chosen: StratifiedSample::new(steps, samples, command.seed),
            wanted: command.samples,
        })
    }

    /// Offers a sample, which is made and written only if it is kept for now.
    fn offer(
        &mut self,
        step: usize,
        make: impl FnOnce() -> Result<CalibrationSample, ModelError>,
    ) -> Result<()> {
        let writer = &mut self.writer;
        self.chosen.offer(step, || -> Result<StagedSample> { Ok(writer.stage(&make()?)?) })?;
        Ok(())
    }

    fn finish(mut self, place: Place, say: &mut dyn FnMut(&str)) -> Result<Collected> {
        let offered = self.chosen.offered();
        let mut samples = vec![0_u64; offered.len()];
        for (step, sample) in self.chosen.into_items() {
            if let Some(count) = samples.get_mut(step) {
                *count += 1;
            }
            self.writer.keep(sample)?;
        }
        let kept: u64 = samples.iter().sum();
        ensure!(
            kept > 0,
            "expected at least one observation in the recording, found none: no set was written"
        );
        if kept < self.wanted {
            say(&format!(
                "{kept} samples where {} were asked for: the recording has no more; --stride and --steps say how densely and how \
                 far it is read",
                self.wanted
            ));
        }
        let hash = self.writer.finish()?;
        let folder = place.take()?;
        say(&format!("{}: {kept} samples, {hash}", folder.display()));
        Ok(Collected::Whole(CollectedSet { folder, hash, samples, offered }))
    }
}

/// Where the set goes, and where it is until it is whole.
struct Place {
    out: PathBuf,
    staging: TempDir,
}

impl Place {
    fn new(out: &Path, force: bool) -> Result<Self> {
        // Without links and dots, so that it has a parent and the set can be moved there.
        let out = std::path::absolute(out).with_context(|| format!("--out {}", out.display()))?;
        if out.is_dir() && fs::read_dir(&out)?.next().is_some() {
            ensure!(
                force && is_set(&out)?,
                "--out: expected a new or empty folder, found files in {}; name another{}",
                out.display(),
                if is_set(&out)? { ", or give --force to replace the set" } else { "" }
            );
        } else if out.exists() && !out.is_dir() {
            bail!("--out: expected a folder or nothing, found a file at {}", out.display());
        }
        let parent = out.parent().with_context(|| format!("--out: {} has no parent", out.display()))?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let staging = tempfile::Builder::new()
            .prefix(".calibration-")
            // It becomes the set's own folder, which others may read as far as the umask says.
            .permissions(fs::Permissions::from_mode(0o777))
            .tempdir_in(parent)
            .with_context(|| format!("cannot write into {}", parent.display()))?;
        Ok(Self { out, staging })
    }

    /// Moves the set to its place.
    fn take(self) -> Result<PathBuf> {
        let Self { out, staging } = self;
        let moved = |result: std::io::Result<()>| {
            result.with_context(|| format!("cannot put the set into {}", out.display()))
        };
        // What is there was looked at before: an empty folder, or a set that is to be replaced.
        if out.exists() {
            let old = staging.path().with_extension("old");
            moved(fs::rename(&out, &old))?;
            moved(fs::rename(staging.keep(), &out))?;
            // The new set is in its place; the old one only takes space.
            let _ = fs::remove_dir_all(old);
        } else {
            moved(fs::rename(staging.keep(), &out))?;
        }
        Ok(out)
    }
}

/// Whether a folder holds a set and nothing else.
fn is_set(folder: &Path) -> Result<bool> {
    let mut whole = false;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        whole |= name == LIST;
        if name != LIST && !(name.starts_with("sample-") && name.ends_with(".safetensors")) {
            return Ok(false);
        }
    }
    Ok(whole)
}
