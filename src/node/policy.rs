//! The policy node: subscriptions fill the observation assembler, ticks ask the policy's thread, answers are published.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use thiserror::Error;
use tokio::{task::JoinSet, time::MissedTickBehavior};

use super::{
    assembly::{Assembled, AssemblerConfig, NotReady, ObservationAssembler},
    config::{CheckpointKeys, ConfigError, Device, ImageTransport, NodeConfig},
    status::StatusWindow,
    trajectory::{ChunkInfo, TrajectoryBuilder, TrajectoryError},
};
use crate::{
    model::{
        policy::{Noise, Policy, PolicyError, PolicyOptions, PredictRequest, entropy_seed},
        thread::{PolicyThread, Predict, Readiness},
    },
    processor::text::MAX_INSTRUCTION_CHARS,
    ros::{
        Stamp,
        image::CameraMessage,
        msg::{self, ActionChunk, CompressedImage, Image, JointState, JointTrajectory, Message},
        transport::{Publisher, Qos, RosError, RosNode, Subscription},
    },
};

/// Unread joint messages that are kept: a second's worth at 100 Hz.
const JOINT_MESSAGES: usize = 100;

/// Why the node cannot start.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The configuration does not fit the checkpoint.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The policy cannot be loaded.
    #[error("{0}")]
    Policy(String),
    /// The network refuses.
    #[error(transparent)]
    Ros(#[from] RosError),
    /// The system gives no thread.
    #[error("the policy's thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Why a tick that had an observation gave no chunk.
#[derive(Debug, Error)]
enum TickError {
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Trajectory(#[from] TrajectoryError),
    #[error("the chunk cannot be published: {0}")]
    Publish(#[from] RosError),
}

/// What the node needs to know of the loaded policy.
#[derive(Debug, Clone)]
pub struct PolicyInfo {
    /// What the embodiment reads and writes.
    pub keys: CheckpointKeys,
    /// Delta indices of the frames.
    pub video_deltas: Vec<i64>,
    /// Delta indices of the state.
    pub state_deltas: Vec<i64>,
    /// Where and how the network runs.
    pub identity: String,
}

impl PolicyInfo {
    fn of(policy: &mut Policy) -> Self {
        let processor = policy.processor();
        let owned = |key: &str, dim: usize| (key.to_owned(), dim);
        Self {
            keys: CheckpointKeys {
                video: processor.cameras().to_vec(),
                state: processor.state().keys().map(|(key, dim)| owned(key, dim)).collect(),
                action: processor.action().keys().iter().map(|key| owned(key.name(), key.dim())).collect(),
            },
            video_deltas: processor.video_deltas().to_vec(),
            state_deltas: processor.state_deltas().to_vec(),
            identity: policy.identity(),
        }
    }
}

/// How the configuration asks for a policy.
pub fn policy_options(config: &NodeConfig) -> PolicyOptions {
    PolicyOptions {
        checkpoint: config.checkpoint.path.clone(),
        tokenizer: config.checkpoint.tokenizer.clone(),
        eagle_config: config.checkpoint.eagle_config.clone(),
        embodiment: config.embodiment.clone(),
        device: match config.device {
            Device::Auto => "auto".to_owned(),
            Device::Cpu => "cpu".to_owned(),
            Device::Cuda(index) => format!("cuda:{index}"),
        },
        kind: None,
        denoising_steps: config.denoising_steps,
    }
}

/// Loads a policy, warms it up and returns it as the thread wants it.
///
/// # Errors
/// What is wrong with checkpoint, tokenizer, embodiment, device or the first prediction.
pub fn load(options: &PolicyOptions) -> Result<(Predict, PolicyInfo), PolicyError> {
    let mut policy = Policy::load(options)?;
    // The first prediction allocates and, on a GPU, compiles and tunes: not to be done in front of a moving robot.
    let blank = policy.processor().blank_observation();
    policy.predict(&PredictRequest::new(blank, Noise::Seed(0)))?;
    let info = PolicyInfo::of(&mut policy);
    Ok((Box::new(move |request| policy.predict(request)), info))
}

/// State that the node's tasks share.
struct Shared {
    node: RosNode,
    assembler: Mutex<ObservationAssembler>,
    window: Mutex<StatusWindow>,
    chunks: AtomicU64,
}

impl Shared {
    fn assembler(&self) -> MutexGuard<'_, ObservationAssembler> {
        // Every method leaves the assembler whole, so a panic elsewhere has not broken it.
        self.assembler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn window(&self) -> MutexGuard<'_, StatusWindow> {
        // Counters only: usable whatever happened.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Stamp {
        Stamp::from(&self.node.now())
    }
}

/// Runs the node until `stop` completes.
///
/// `load` runs on the policy's own thread; see [`load`] for the one that the binary uses.
///
/// # Errors
/// Why it could not start. Once it runs, nothing that arrives ends it.
pub async fn run(
    config: NodeConfig,
    node: RosNode,
    load: impl FnOnce() -> Result<(Predict, PolicyInfo), PolicyError> + Send + 'static,
    stop: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    tokio::pin!(stop);
    tracing::info!("loading {}", config.checkpoint.path.display());
    let started = Instant::now();
    let policy = PolicyThread::spawn(load)?;
    let mut readiness = policy.readiness();
    let state = tokio::select! {
        state = readiness.wait_for(|state| !matches!(state, Readiness::Loading)) => match state {
            Ok(state) => state.clone(),
            Err(_) => return Err(NodeError::Policy("the policy's thread ended while loading".to_owned())),
        },
        () = &mut stop => return Ok(()),
    };
    let info = match state {
        Readiness::Ready(info) => info,
        Readiness::Failed(reason) => return Err(NodeError::Policy(reason)),
        Readiness::Loading => return Err(NodeError::Policy("the policy's thread said nothing".to_owned())),
    };
    tracing::info!("policy ready in {:.1} s: {}", started.elapsed().as_secs_f64(), info.identity);
    config.check_against(&info.keys)?;

    let mut assembler =
        ObservationAssembler::new(AssemblerConfig::new(&config, &info.video_deltas, &info.state_deltas));
    assembler.set_instruction(config.instruction.clone());
    let shared = Arc::new(Shared {
        node: node.clone(),
        assembler: Mutex::new(assembler),
        window: Mutex::default(),
        chunks: AtomicU64::new(0),
    });
    let mut tasks = JoinSet::new();
    subscribe(&config, &node, &shared, &mut tasks)?;
    let keys = info.keys.action.iter().map(|(key, _)| key.as_str());
    let ticker = Ticker {
        shared: shared.clone(),
        policy,
        builder: TrajectoryBuilder::new(&config, keys),
        trajectories: node.publisher(&config.trajectory_topic, Qos::reliable(1))?,
        chunks: node.publisher(&config.chunk_topic, Qos::reliable(1))?,
        first_seed: config.noise_seed.unwrap_or_else(entropy_seed),
    };
    tracing::info!("publishing on {} and {}", ticker.trajectories.topic(), ticker.chunks.topic());
    tasks.spawn(report(shared.clone(), config.status_period, config.status_note.clone()));
    tokio::select! {
        () = ticker.run(config.rate) => {}
        () = &mut stop => {}
    }
    tasks.shutdown().await;
    tracing::info!("stopping after {} chunks", shared.chunks.load(Ordering::Relaxed));
    Ok(())
}

/// Subscribes all inputs, each drained by a task of its own.
fn subscribe(
    config: &NodeConfig,
    node: &RosNode,
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<()>,
) -> Result<(), NodeError> {
    for (key, camera) in &config.cameras {
        let topic = camera.subscribed_topic();
        let key = key.clone();
        match camera.transport {
            ImageTransport::Raw => {
                let images = node.subscribe::<Image>(&topic, Qos::camera(), 1)?;
                tracing::info!("camera {key}: {} (sensor_msgs/Image)", images.topic());
                drain(images, shared, tasks, move |shared, received, message| {
                    take_image(shared, &key, received, CameraMessage::Raw(message));
                });
            }
            ImageTransport::Compressed => {
                let images = node.subscribe::<CompressedImage>(&topic, Qos::camera(), 1)?;
                tracing::info!("camera {key}: {} (sensor_msgs/CompressedImage)", images.topic());
                drain(images, shared, tasks, move |shared, received, message| {
                    take_image(shared, &key, received, CameraMessage::Compressed(message));
                });
            }
        }
    }
    let joints =
        node.subscribe::<JointState>(&config.joint_states_topic, Qos::sensor_data(), JOINT_MESSAGES)?;
    tracing::info!("joint states: {}", joints.topic());
    let mut complaint: Option<String> = None;
    drain(joints, shared, tasks, move |shared, received, message| {
        match shared.assembler().on_joints(received, &message) {
            Ok(_) => complaint = None,
            Err(error) => {
                let text = error.to_string();
                if complaint.as_ref() != Some(&text) {
                    tracing::warn!("joint states: {text}");
                    complaint = Some(text);
                }
            }
        }
    });
    // A latched reader hears only latched writers, a plain one misses what was said before it came: so both.
    for qos in [Qos::latched(), Qos::reliable(1)] {
        let instructions = node.subscribe::<msg::String>(&config.instruction_topic, qos, 1)?;
        drain(instructions, shared, tasks, |shared, _, message| take_instruction(shared, message.data));
    }
    Ok(())
}

fn drain<M: Message>(
    subscription: Subscription<M>,
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<()>,
    mut take: impl FnMut(&Shared, Stamp, M) + Send + 'static,
) {
    let shared = shared.clone();
    tasks.spawn(async move {
        while let Some(received) = subscription.recv().await {
            take(&shared, Stamp::from(&received.time), received.message);
        }
    });
}

fn take_image(shared: &Shared, camera: &str, received: Stamp, message: CameraMessage) {
    if let Err(error) = shared.assembler().on_image(camera, received, message) {
        tracing::warn!("{error}");
    }
}

fn take_instruction(shared: &Shared, text: std::string::String) {
    let length = text.chars().count();
    if length > MAX_INSTRUCTION_CHARS {
        tracing::warn!(
            "instruction refused: expected at most {MAX_INSTRUCTION_CHARS} characters, found {length}; the old one \
             stays in force"
        );
        return;
    }
    let mut assembler = shared.assembler();
    if assembler.instruction() != text {
        tracing::info!("instruction: {text:?}");
        assembler.set_instruction(text);
    }
}

async fn report(shared: Arc<Shared>, period: std::time::Duration, note: String) {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = interval.tick().await;
    loop {
        let now = interval.tick().await;
        let window = std::mem::take(&mut *shared.window());
        let inputs = shared.assembler().report(shared.now());
        let chunks = shared.chunks.load(Ordering::Relaxed);
        tracing::info!("{}", window.line(now - last, &inputs, chunks, &note));
        last = now;
    }
}

/// Asks the policy at a fixed rate and publishes its answers.
struct Ticker {
    shared: Arc<Shared>,
    policy: PolicyThread<PolicyInfo>,
    builder: TrajectoryBuilder,
    trajectories: Publisher<JointTrajectory>,
    chunks: Publisher<ActionChunk>,
    first_seed: u64,
}

impl Ticker {
    async fn run(&self, rate: f64) {
        let mut interval = tokio::time::interval(std::time::Duration::from_secs_f64(1.0 / rate));
        interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut complaint: Option<String> = None;
        loop {
            interval.tick().await;
            match self.tick().await {
                Ok(()) => complaint = None,
                Err(error) => {
                    let text = error.to_string();
                    // Once in full; then the status line repeats it.
                    if complaint.as_ref() != Some(&text) {
                        tracing::error!("{text}");
                    }
                    self.shared.window().failed(&text);
                    complaint = Some(text);
                }
            }
        }
    }

    /// One tick: nothing to do without an observation, an error where there was one and no chunk came of it.
    async fn tick(&self) -> Result<(), TickError> {
        let assembled = match self.observe().await {
            Ok(assembled) => assembled,
            Err(reason) => {
                self.shared.window().blocked(&reason);
                return Ok(());
            }
        };
        let sequence = self.shared.chunks.load(Ordering::Relaxed);
        let seed = self.first_seed.wrapping_add(sequence);
        let instruction = assembled.observation.instruction.clone();
        let request = PredictRequest::new(assembled.observation, Noise::Seed(seed));
        let prediction = self.policy.predict(request).await?;
        let stages = prediction.timing.stages();
        let trajectory = self.builder.joint_trajectory(&prediction.actions, assembled.image_stamp)?;
        let chunk = self.builder.action_chunk(
            &prediction.actions,
            ChunkInfo {
                published: self.shared.now(),
                image_stamp: assembled.image_stamp,
                state_stamp: assembled.state_stamp,
                sequence,
                noise_seed: seed,
                instruction,
                timing: stages.iter().map(|(stage, time)| ((*stage).to_owned(), *time)).collect(),
            },
        )?;
        if !trajectory.points.is_empty() {
            self.trajectories.publish(trajectory)?;
        }
        self.chunks.publish(chunk)?;
        self.shared.chunks.store(sequence + 1, Ordering::Relaxed);
        self.shared.window().predicted(stages);
        Ok(())
    }

    /// The newest observation. Frames are decoded where they block no other task; one that cannot be decoded is dropped
    /// and the next best set is taken.
    async fn observe(&self) -> Result<Assembled, NotReady> {
        loop {
            let selection = {
                let now = self.shared.now();
                self.shared.assembler().select(now)?
            };
            match tokio::task::block_in_place(|| selection.decode()) {
                Ok(assembled) => return Ok(assembled),
                Err(failure) => {
                    tracing::warn!("{failure}");
                    self.shared.assembler().discard(&failure);
                }
            }
        }
    }
}
