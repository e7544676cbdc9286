//! Samples out of a bag, through the code that runs on the robot.
//!
//! Every message goes to the node's own [`ObservationAssembler`] with the bag's log time as the time of its arrival. When
//! every camera has brought a new frame, the assembler is asked for an observation at that moment: the answer is, bit by
//! bit, what a node that ticked then would have seen.
//!
//! A sample waits until what the robot did in its horizon was read. **Memory**: decoded frames of the waiting samples, at
//! most `horizon` · `step_time` / stride + 1 of them (where the truth's source falls silent, for `max_gap` longer), and in
//! all not more than [`SamplesOptions::waiting_bytes`]. 16 steps of 50 ms at five samples a second are 5 samples; with two
//! cameras of 640x480, 9 MB. At every set of 30 Hz they are 25 samples and 46 MB.
//!
//! ```no_run
//! use groot_policy::{
//!     checkpoint::{Checkpoint, OpenOptions},
//!     node::config::NodeConfig,
//!     processor::Processor,
//!     recording::bag::{Bag, Samples, SamplesOptions, Stride},
//!     ros::transport::NodeName,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = NodeConfig::load(&["config/policy.yaml".into()], &[])?;
//! let options = OpenOptions { eagle_config: config.checkpoint.eagle_config.clone(), ..OpenOptions::default() };
//! let checkpoint = Checkpoint::open(&config.checkpoint.path, &options)?;
//! let tokenizer = config.checkpoint.tokenizer.as_deref();
//! let processor = Processor::load(&checkpoint, tokenizer, &config.embodiment)?;
//!
//! let bag = Bag::open("recordings/pick_and_place")?;
//! let mut options = SamplesOptions::new(&config, NodeName::new("/", "policy_node")?, &processor);
//! options.stride = Stride::Period(std::time::Duration::from_millis(200));
//! let mut samples = Samples::new(&bag, options)?;
//! while let Some(sample) = samples.next() {
//!     let sample = sample?;
//!     let inputs = processor.prepare(&sample.observation)?;
//!     println!("{} {}: {} steps of truth, {:?}", sample.episode, sample.step, sample.truth.steps(), inputs.state.dim());
//! }
//! eprint!("{}", samples.report().bag);
//! # Ok(())
//! # }
//! ```

mod options;
mod series;
mod truth;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use thiserror::Error;

pub use options::{SamplesOptions, Stride, TruthSource};

use super::{Bag, BagError, BagReport, DecodeError, Fault, Messages, RawMessage};
use crate::{
    node::{
        assembly::{Arrival, Assembled, AssemblerConfig, Blocked, InputReport, ObservationAssembler},
        config::ImageTransport,
    },
    observation::Observation,
    recording::{Sample, Truth},
    ros::{
        Stamp,
        image::CameraMessage,
        msg::{self, Clock, CompressedImage, Image, JointState, Message},
        transport::RosError,
    },
};
use truth::{TruthFault, Truths, is_command, is_velocity, type_name};

/// The topic of a simulation's time.
const CLOCK: &str = "/clock";

/// Why a bag gives no samples.
#[derive(Debug, Error)]
pub enum SamplesError {
    /// The bag itself, or a topic that is not in it.
    #[error(transparent)]
    Bag(#[from] BagError),
    /// A configured name is none.
    #[error(transparent)]
    Name(#[from] RosError),
    /// A topic has another type than the configuration says.
    #[error("{topic}: expected {expected}, the bag has {found:?}; correct {parameter}")]
    Type {
        /// The topic.
        topic: String,
        /// Types that would do.
        expected: String,
        /// The type in the bag.
        found: String,
        /// What to correct.
        parameter: String,
    },
}

/// What was read and what came of it.
#[derive(Debug, Clone)]
pub struct SamplesReport {
    /// What was wrong with the bag and its messages.
    pub bag: BagReport,
    /// Complete sets of images.
    pub sets: u64,
    /// Samples given so far.
    pub samples: u64,
    /// Samples that got less truth than the recording holds, because too many were waiting.
    pub cut_short: u64,
    /// Action keys of which nothing is recorded: they have no group in the truth.
    pub without_truth: Vec<String>,
    /// How often the assembler was asked in vain, by reason.
    pub blocked: Blocked,
    /// How each input fared.
    pub inputs: Vec<InputReport>,
}

/// What a topic is to the node.
#[derive(Debug, Clone)]
enum Role {
    Camera(String, ImageTransport),
    Joints,
    Instruction,
    Clock,
}

/// The samples of a bag, in the order of their stamps.
pub struct Samples {
    messages: Messages,
    episode: String,
    roles: BTreeMap<String, Vec<Role>>,
    assembler: ObservationAssembler,
    anchors: Anchors,
    truths: Truths,
    options: SamplesOptions,
    /// Samples that wait for their truth, with the stamps of their anchors.
    waiting: VecDeque<Sample>,
    /// Bytes of their frames.
    waiting_bytes: usize,
    /// What may be given now.
    ready: VecDeque<Sample>,
    /// The time of the recording: its log time, or that of the simulation.
    now: Option<Stamp>,
    samples: u64,
    cut_short: u64,
    ended: bool,
}

/// Which sets were seen.
#[derive(Debug, Default)]
struct Anchors {
    /// Cameras that brought a frame since the last set.
    fresh: BTreeSet<String>,
    last: Option<Stamp>,
    sets: u64,
    /// When the next sample is due.
    due: Option<Stamp>,
}

impl Anchors {
    /// Whether the set with this anchor is to become a sample.
    fn is_due(&self, anchor: Stamp, stride: Stride) -> bool {
        match stride {
            Stride::Sets(every) => self.sets.is_multiple_of(u64::from(every.get())),
            Stride::Period(_) => self.due.is_none_or(|due| anchor >= due),
        }
    }

    /// Counts the set with this anchor, from 0.
    fn take(&mut self, anchor: Stamp, stride: Stride) -> u64 {
        if let Stride::Period(period) = stride
            && self.is_due(anchor, stride)
        {
            // In step with the first one, unless the recording paused for longer.
            let next = self.due.unwrap_or(anchor) + period;
            self.due = Some(if next > anchor { next } else { anchor + period });
        }
        self.last = Some(anchor);
        self.fresh.clear();
        self.sets += 1;
        self.sets - 1
    }
}

impl Samples {
    /// Starts reading.
    ///
    /// # Errors
    /// A topic of the configuration that is not in the bag or has another type there.
    pub fn new(bag: &Bag, options: SamplesOptions) -> Result<Self, SamplesError> {
        let config = &options.config;
        let mut roles: BTreeMap<String, Vec<Role>> = BTreeMap::new();
        for (key, camera) in &config.cameras {
            let topic = options.node.resolve(&camera.subscribed_topic())?;
            let parameter = format!("cameras.{key}.topic or .transport");
            match camera.transport {
                ImageTransport::Raw => check::<Image>(bag, &topic, parameter)?,
                ImageTransport::Compressed => check::<CompressedImage>(bag, &topic, parameter)?,
            }
            roles.entry(topic).or_default().push(Role::Camera(key.clone(), camera.transport));
        }
        let joints = options.node.resolve(&config.joint_states_topic)?;
        check::<JointState>(bag, &joints, "joint_states_topic".to_owned())?;
        roles.entry(joints.clone()).or_default().push(Role::Joints);
        let instruction = options.node.resolve(&config.instruction_topic)?;
        roles.entry(instruction).or_default().push(Role::Instruction);
        if config.use_sim_time && bag.topic(CLOCK).is_ok() {
            roles.entry(CLOCK.to_owned()).or_default().push(Role::Clock);
        }

        let command = match &options.truth {
            TruthSource::Topic(topic) => {
                let topic = options.node.resolve(topic)?;
                let expected = "trajectory_msgs/msg/JointTrajectory, sensor_msgs/msg/JointState or \
                                std_msgs/msg/Float64MultiArray";
                check_with(bag, &topic, is_command, expected, "the topic of recorded commands".to_owned())?;
                Some(topic)
            }
            TruthSource::Nothing | TruthSource::JointStates => None,
        };
        let base = match &config.commands.base {
            Some(base) => Some(options.node.resolve(&base.topic)?),
            None => None,
        };
        let base = base.filter(|topic| bag.topic(topic).is_ok_and(|topic| is_velocity(&topic.kind)));
        let truths = Truths::new(&options, &joints, command.as_deref(), base.as_deref());

        let deltas = (options.video_deltas.as_slice(), options.state_deltas.as_slice());
        let mut assembler = ObservationAssembler::new(AssemblerConfig::new(config, deltas.0, deltas.1));
        assembler.set_instruction(config.instruction.clone());
        let topics: BTreeSet<String> = roles.keys().cloned().chain(truths.topics()).collect();
        Ok(Self {
            messages: bag.messages_of(topics),
            episode: bag.name().to_owned(),
            roles,
            assembler,
            anchors: Anchors::default(),
            truths,
            options,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            ready: VecDeque::new(),
            now: None,
            samples: 0,
            cut_short: 0,
            ended: false,
        })
    }

    /// What was read so far and what came of it.
    pub fn report(&self) -> SamplesReport {
        SamplesReport {
            bag: self.messages.report().clone(),
            sets: self.anchors.sets,
            samples: self.samples,
            cut_short: self.cut_short,
            without_truth: self.truths.without(),
            blocked: self.assembler.blocked(),
            inputs: self.assembler.report(self.now.unwrap_or_default()),
        }
    }

    fn take(&mut self, message: RawMessage) {
        let roles = self.roles.get(message.topic()).cloned().unwrap_or_default();
        let simulated = self.options.config.use_sim_time && self.roles.contains_key(CLOCK);
        if simulated {
            if roles.iter().any(|role| matches!(role, Role::Clock))
                && let Some(Clock { clock }) = self.decode(&message)
            {
                self.now = Some(Stamp::from(&clock)).filter(|now| *now != Stamp::UNSET);
            }
        } else {
            self.now = Some(message.log_time);
        }
        // As in the node, nothing is known before the simulation's time is.
        let Some(now) = self.now else { return };
        for role in roles {
            match role {
                Role::Camera(key, ImageTransport::Raw) => {
                    if let Some(image) = self.decode(&message) {
                        self.take_image(&key, now, CameraMessage::Raw(image));
                    }
                }
                Role::Camera(key, ImageTransport::Compressed) => {
                    if let Some(image) = self.decode(&message) {
                        self.take_image(&key, now, CameraMessage::Compressed(image));
                    }
                }
                Role::Joints => {
                    if let Some(joints) = self.decode::<JointState>(&message)
                        && let Err(error) = self.assembler.on_joints(now, &joints)
                    {
                        self.messages.report_mut().topic(message.topic(), Fault::Refused, error);
                    }
                }
                Role::Instruction => {
                    if let Some(msg::String { data }) = self.decode(&message)
                        && let Err(error) = self.assembler.take_instruction(data)
                    {
                        self.messages.report_mut().topic(message.topic(), Fault::Refused, error);
                    }
                }
                Role::Clock => {}
            }
        }
        if let Err(fault) = self.truths.take(now, &message) {
            let kind = match &fault {
                TruthFault::Decode(DecodeError::Type { .. }) => Fault::Type,
                TruthFault::Decode(_) => Fault::Decode,
                TruthFault::Refused(_) => Fault::Refused,
            };
            // What the assembler complains of as well is counted once.
            if !self.roles.contains_key(message.topic()) {
                self.messages.report_mut().topic(message.topic(), kind, fault);
            }
        }
        if self.anchors.fresh.len() == self.options.config.cameras.len() {
            self.look(now);
        }
        self.release(now);
    }

    fn decode<M: Message>(&mut self, message: &RawMessage) -> Option<M> {
        match message.decode() {
            Ok(message) => Some(message),
            Err(error) => {
                let fault =
                    if matches!(error, DecodeError::Type { .. }) { Fault::Type } else { Fault::Decode };
                self.messages.report_mut().topic(message.topic(), fault, error);
                None
            }
        }
    }

    fn take_image(&mut self, key: &str, now: Stamp, message: CameraMessage) {
        match self.assembler.on_image(key, now, message) {
            Ok(Arrival::Duplicate) => {}
            Ok(arrival) => {
                self.anchors.fresh.insert(key.to_owned());
                if arrival == Arrival::ClockJump {
                    (self.anchors.last, self.anchors.due) = (None, None);
                    self.release_all(now);
                    self.truths.clear();
                }
            }
            // Only configured cameras have a role.
            Err(error) => tracing::warn!("{error}"),
        }
    }

    /// Takes the newest complete set if it is a new one.
    fn look(&mut self, now: Stamp) {
        loop {
            let Ok(selection) = self.assembler.select(now) else { return };
            let anchor = selection.image_stamp();
            if self.anchors.last.is_some_and(|last| anchor <= last) {
                return;
            }
            let stride = self.options.stride;
            if !self.anchors.is_due(anchor, stride) {
                self.anchors.take(anchor, stride);
                return;
            }
            match selection.decode() {
                Ok(assembled) => {
                    let step = self.anchors.take(anchor, stride);
                    return self.wait(step, assembled);
                }
                // As in the node, the next best set is tried without it.
                Err(failure) => {
                    let topic = self.camera_topic(&failure.camera);
                    self.messages.report_mut().topic(&topic, Fault::Refused, &failure.error);
                    self.assembler.discard(&failure);
                }
            }
        }
    }

    fn camera_topic(&self, key: &str) -> String {
        let is = |role: &Role| matches!(role, Role::Camera(camera, _) if camera == key);
        let topic = self.roles.iter().find(|(_, roles)| roles.iter().any(is));
        topic.map_or_else(|| key.to_owned(), |(topic, _)| topic.clone())
    }

    fn wait(&mut self, step: u64, assembled: Assembled) {
        let Assembled { observation, image_stamp: stamp, .. } = assembled;
        self.waiting_bytes += bytes(&observation);
        let episode = self.episode.clone();
        self.waiting.push_back(Sample { episode, step, stamp, observation, truth: Truth::default() });
    }

    /// Gives the samples whose truth is complete.
    fn release(&mut self, now: Stamp) {
        while let Some(oldest) = self.waiting.front() {
            let complete = self.truths.complete(oldest.stamp, now);
            if !complete && self.waiting_bytes <= self.options.waiting_bytes {
                break;
            }
            self.cut_short += u64::from(!complete);
            self.release_oldest(now);
        }
        // Later samples may be of frames that are as old as the node takes them.
        let reach = self.options.config.max_age + Duration::from_secs(1);
        let oldest = self.waiting.front().map_or(now, |oldest| oldest.stamp.min(now)).min(now - reach);
        self.truths.forget_before(oldest);
    }

    fn release_oldest(&mut self, now: Stamp) {
        if let Some(mut sample) = self.waiting.pop_front() {
            self.waiting_bytes -= bytes(&sample.observation);
            sample.truth = self.truths.of(sample.stamp, now);
            self.ready.push_back(sample);
        }
    }

    fn release_all(&mut self, now: Stamp) {
        while !self.waiting.is_empty() {
            self.release_oldest(now);
        }
    }
}

impl Iterator for Samples {
    type Item = Result<Sample, BagError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(sample) = self.ready.pop_front() {
                self.samples += 1;
                return Some(Ok(sample));
            }
            if self.ended {
                return None;
            }
            match self.messages.next() {
                Some(Ok(message)) => self.take(message),
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    self.ended = true;
                    self.release_all(self.now.unwrap_or_default());
                }
            }
        }
    }
}

/// Bytes of an observation's frames.
fn bytes(observation: &Observation) -> usize {
    observation.video.values().flatten().map(|frame| frame.as_raw().len()).sum()
}

fn check<M: Message>(bag: &Bag, topic: &str, parameter: String) -> Result<(), SamplesError> {
    check_with(bag, topic, super::is_type::<M>, &type_name::<M>(), parameter)
}

fn check_with(
    bag: &Bag,
    topic: &str,
    fits: fn(&str) -> bool,
    expected: &str,
    parameter: String,
) -> Result<(), SamplesError> {
    let found = bag.topic(topic)?;
    if fits(&found.kind) {
        return Ok(());
    }
    let (topic, expected, found) = (topic.to_owned(), expected.to_owned(), found.kind.clone());
    Err(SamplesError::Type { topic, expected, found, parameter })
}
