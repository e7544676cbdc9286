//! From single messages to observations: which frames and joint samples belong together, and whether they are fresh.
//!
//! The rules:
//!
//! | rule | how |
//! |---|---|
//! | Frames that belong together | One of each camera, the stamps at most `max_skew` apart. The newest stamp of such a set is its *anchor*. |
//! | Joint sample | The one stamped nearest to the anchor, at most `max_skew` away. |
//! | Which set | The newest complete one with such a joint sample. |
//! | Age | Time since the stamp or since the arrival, whichever is longer. Every frame used is at most `max_age` old, the newest joint sample at most `max_state_age`. |
//! | Stamps in the future | At most as far as the greatest age: they cannot be told from a stopped clock. |
//! | No stamp | The time of arrival is taken. |
//! | Late message | Sorted in by its stamp. |
//! | Stamp that was there already | Dropped. |
//! | Stamp far behind | The clock was set back (a simulation restarted): the input's older samples are forgotten. |
//! | Decoding | Only of frames that are used, compressed ones once each, and outside of the assembler's lock with [`Selection::decode`]. A frame that cannot be decoded is as if it had never come. |
//!
//! Nothing here reads a clock: every time is passed in. Nothing here waits.

mod joints;
mod report;
mod ring;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use image::RgbImage;
use ndarray::Array2;
use rayon::prelude::*;

use super::config::NodeConfig;
use crate::observation::Observation;
use crate::processor::text::MAX_INSTRUCTION_CHARS;
use crate::ros::Stamp;
use crate::ros::image::{CameraMessage, ImageError};
use crate::ros::msg::JointState;
pub(crate) use joints::JointMap;
pub use joints::{JointError, MAX_JOINTS};
pub use report::{Blocked, Input, InputCounts, InputReport, NotReady};
pub use ring::Arrival;
use ring::{Entry, Ring};

/// Frames kept per camera where no history is needed: enough to find a set although cameras run at different rates and
/// deliver late.
const FRAMES: usize = 4;

/// Frames kept per camera at most where the checkpoint looks back: 2 s at 60 Hz.
const FRAMES_OF_HISTORY: usize = 128;

/// Joint samples kept at most; by time, they reach back as far as a frame may lie (see [`AssemblerConfig::state_window`]).
const JOINT_SAMPLES: usize = 4096;

/// Which inputs there are and how well they must fit together.
#[derive(Debug, Clone)]
pub struct AssemblerConfig {
    /// Video keys.
    pub cameras: Vec<String>,
    /// State keys, each with its joints in order.
    pub state: Vec<(String, Vec<String>)>,
    /// How far before the anchor each frame of a camera lies, oldest first; usually only zero.
    pub video_offsets: Vec<Duration>,
    /// How far before the anchor each joint sample lies, oldest first; usually only zero.
    pub state_offsets: Vec<Duration>,
    /// Oldest frame.
    pub max_age: Duration,
    /// Furthest distance between stamps that belong together.
    pub max_skew: Duration,
    /// Oldest newest joint sample.
    pub max_state_age: Duration,
}

impl AssemblerConfig {
    /// The inputs of a configuration, for a checkpoint whose video and state have these delta indices (0 is the present, −1
    /// one step before).
    pub fn new(config: &NodeConfig, video_deltas: &[i64], state_deltas: &[i64]) -> Self {
        // A delta beyond u32 steps, or in the future, cannot be meant; it is held at the end of the range.
        let offset = |&delta: &i64| {
            config.step_time.saturating_mul(u32::try_from(delta.saturating_neg().max(0)).unwrap_or(u32::MAX))
        };
        Self {
            cameras: config.cameras.keys().cloned().collect(),
            state: config.state.iter().map(|(key, joints)| (key.clone(), joints.clone())).collect(),
            video_offsets: video_deltas.iter().map(offset).collect(),
            state_offsets: state_deltas.iter().map(offset).collect(),
            max_age: config.max_age,
            max_skew: config.max_skew,
            max_state_age: config.max_state_age,
        }
    }

    /// How far behind the newest frame another one may be of use.
    fn video_window(&self) -> Duration {
        let longest = self.video_offsets.iter().max().copied().unwrap_or_default();
        longest.saturating_add(self.max_age).saturating_add(self.max_skew)
    }

    /// How far behind the newest joint sample another one may be of use: the anchor may be `max_age` old.
    fn state_window(&self) -> Duration {
        let longest = self.state_offsets.iter().max().copied().unwrap_or_default();
        longest.saturating_add(self.max_age).saturating_add(self.max_skew)
    }
}

/// A camera frame, decoded when it is needed.
#[derive(Debug)]
struct Frame {
    message: CameraMessage,
    /// Of a compressed frame. A raw one is decoded by copying it, which a picture that is kept would need as well.
    decoded: OnceLock<Result<RgbImage, ImageError>>,
}

impl Frame {
    fn image(&self) -> Result<RgbImage, ImageError> {
        match self.message {
            CameraMessage::Raw(_) => self.message.decode(),
            CameraMessage::Compressed(_) => self.decoded.get_or_init(|| self.message.decode()).clone(),
        }
    }
}

/// A message came from a camera that is not configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected one of the cameras {expected}, found {found:?}")]
pub struct UnknownCamera {
    /// Configured cameras.
    expected: String,
    /// The key that came.
    found: String,
}

/// An instruction is longer than the tokenizer takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "instruction refused: expected at most {MAX_INSTRUCTION_CHARS} characters, found {found}; the old one stays in force"
)]
pub struct InstructionTooLong {
    /// Characters of the instruction.
    pub found: usize,
}

/// One input's samples and how it fares.
#[derive(Debug)]
struct Channel<T> {
    ring: Ring<T>,
    counts: InputCounts,
    last_error: Option<String>,
}

impl<T> Channel<T> {
    fn new(capacity: usize, window: Duration) -> Self {
        Self { ring: Ring::new(capacity, window), counts: InputCounts::default(), last_error: None }
    }

    fn insert(&mut self, input: &Input, stamp: Stamp, received: Stamp, value: T) -> Arrival {
        let unstamped = stamp == Stamp::UNSET;
        if unstamped {
            if self.counts.unstamped == 0 {
                tracing::warn!("{input}: messages have no stamp, their time of arrival is taken");
            }
            self.counts.unstamped += 1;
        }
        let stamp = if unstamped { received } else { stamp };
        let arrival = self.ring.insert(Entry { stamp, received, value });
        match arrival {
            Arrival::Newest => {}
            Arrival::OutOfOrder => self.counts.out_of_order += 1,
            Arrival::Duplicate => self.counts.duplicates += 1,
            Arrival::ClockJump => {
                tracing::warn!("{input}: the clock was set back to {stamp}, older messages are forgotten");
                self.counts.clock_jumps += 1;
            }
        }
        arrival
    }

    fn refuse(&mut self, error: String) {
        self.counts.refused += 1;
        self.last_error = Some(error);
    }

    fn report(&self, input: Input, now: Stamp) -> InputReport {
        let age = self.ring.newest().map(|newest| newest.age(now));
        InputReport { input, age, counts: self.counts, last_error: self.last_error.clone() }
    }
}

/// Frames and joint samples that belong together, the frames not yet decoded.
#[derive(Debug)]
pub struct Selection {
    /// Per camera its frames, oldest first.
    frames: BTreeMap<String, Vec<(Stamp, Arc<Frame>)>>,
    state: BTreeMap<String, Array2<f32>>,
    instruction: String,
    image_stamp: Stamp,
    state_stamp: Stamp,
    ages: Vec<(Input, Duration)>,
}

/// A frame that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("camera {camera}: {error}")]
pub struct DecodeFailure {
    /// The camera's key.
    pub camera: String,
    stamp: Stamp,
    /// What is wrong with it.
    #[source]
    pub error: ImageError,
}

/// An observation and the times of its parts.
#[derive(Debug, Clone)]
pub struct Assembled {
    /// What the policy sees.
    pub observation: Observation,
    /// Stamp of the newest frame: the anchor.
    pub image_stamp: Stamp,
    /// Stamp of the joint sample beside it.
    pub state_stamp: Stamp,
    /// Age of what is used of each input, cameras first.
    pub ages: Vec<(Input, Duration)>,
}

impl Assembled {
    /// Whether no frame is older than `max_age`, `elapsed` after it was selected.
    pub fn is_fresh_after(&self, elapsed: Duration, max_age: Duration) -> bool {
        let mut cameras = self.ages.iter().filter(|(input, _)| matches!(input, Input::Camera(_)));
        cameras.all(|(_, age)| age.saturating_add(elapsed) <= max_age)
    }
}

impl Selection {
    /// Stamp of the newest frame: the anchor.
    pub fn image_stamp(&self) -> Stamp {
        self.image_stamp
    }

    /// What the robot was asked to do when this was selected.
    pub fn instruction(&self) -> &str {
        &self.instruction
    }

    /// Decodes the frames side by side, some milliseconds each for large JPEGs: call it where it blocks nobody. A compressed
    /// frame that was decoded before is not decoded again.
    ///
    /// # Errors
    /// The first frame that cannot be decoded; hand it to [`ObservationAssembler::discard`] and select again.
    pub fn decode(self) -> Result<Assembled, DecodeFailure> {
        let frames: Vec<_> = self.frames.into_iter().collect();
        let decoded: Vec<Result<(String, Vec<RgbImage>), DecodeFailure>> = frames
            .into_par_iter()
            .map(|(camera, frames)| {
                let images = frames.par_iter().map(|(stamp, frame)| {
                    let failure = |error| DecodeFailure { camera: camera.clone(), stamp: *stamp, error };
                    frame.image().map_err(failure)
                });
                // Of several failures the first one in order, whichever was found first.
                let images: Vec<Result<RgbImage, DecodeFailure>> = images.collect();
                let images = images.into_iter().collect::<Result<_, _>>()?;
                Ok((camera, images))
            })
            .collect();
        let video = decoded.into_iter().collect::<Result<_, _>>()?;
        Ok(Assembled {
            observation: Observation { video, state: self.state, instruction: self.instruction },
            image_stamp: self.image_stamp,
            state_stamp: self.state_stamp,
            ages: self.ages,
        })
    }
}

/// Collects messages and finds those that belong together.
#[derive(Debug)]
pub struct ObservationAssembler {
    config: AssemblerConfig,
    cameras: BTreeMap<String, Channel<Arc<Frame>>>,
    joints: Channel<Vec<f32>>,
    joint_map: JointMap,
    instruction: String,
    blocked: Blocked,
}

impl ObservationAssembler {
    /// An assembler that has seen nothing yet.
    pub fn new(config: AssemblerConfig) -> Self {
        let history = config.video_offsets.iter().any(|offset| !offset.is_zero());
        let frames = if history { FRAMES_OF_HISTORY } else { FRAMES };
        let camera = |key: &String| (key.clone(), Channel::new(frames, config.video_window()));
        Self {
            cameras: config.cameras.iter().map(camera).collect(),
            joints: Channel::new(JOINT_SAMPLES, config.state_window()),
            joint_map: JointMap::new(&config.state),
            instruction: String::new(),
            blocked: Blocked::default(),
            config,
        }
    }

    /// Takes a camera message that arrived at `received`. It is not decoded yet.
    ///
    /// # Errors
    /// No camera of this key is configured.
    pub fn on_image(
        &mut self,
        camera: &str,
        received: Stamp,
        message: CameraMessage,
    ) -> Result<Arrival, UnknownCamera> {
        let Some(channel) = self.cameras.get_mut(camera) else {
            let expected = self.config.cameras.join(", ");
            return Err(UnknownCamera { expected, found: camera.to_owned() });
        };
        channel.counts.received += 1;
        let stamp = message.stamp();
        let frame = Arc::new(Frame { message, decoded: OnceLock::new() });
        Ok(channel.insert(&Input::Camera(camera.to_owned()), stamp, received, frame))
    }

    /// Takes a joint message that arrived at `received`.
    ///
    /// # Errors
    /// What is wrong with it; it is then counted and otherwise as if it had never come.
    pub fn on_joints(&mut self, received: Stamp, message: &JointState) -> Result<Arrival, JointError> {
        self.joints.counts.received += 1;
        let positions =
            self.joint_map.read(message).inspect_err(|error| self.joints.refuse(error.to_string()))?;
        self.joints.counts.name_changes = self.joint_map.changes;
        let stamp = Stamp::from(&message.header.stamp);
        Ok(self.joints.insert(&Input::JointStates, stamp, received, positions))
    }

    /// Sets what the robot is asked to do from now on.
    pub fn set_instruction(&mut self, instruction: impl Into<String>) {
        self.instruction = instruction.into();
    }

    /// Takes an instruction that came as a message; whether it differs from the one before.
    ///
    /// # Errors
    /// It is too long; the old one stays in force.
    pub fn take_instruction(&mut self, text: String) -> Result<bool, InstructionTooLong> {
        let found = text.chars().count();
        if found > MAX_INSTRUCTION_CHARS {
            return Err(InstructionTooLong { found });
        }
        let changed = self.instruction != text;
        self.instruction = text;
        Ok(changed)
    }

    /// What the robot is asked to do.
    pub fn instruction(&self) -> &str {
        &self.instruction
    }

    /// Changes the limits, which may change while the node runs.
    pub fn set_limits(&mut self, max_age: Duration, max_skew: Duration, max_state_age: Duration) {
        self.config.max_age = max_age;
        self.config.max_skew = max_skew;
        self.config.max_state_age = max_state_age;
        let window = self.config.video_window();
        self.cameras.values_mut().for_each(|channel| channel.ring.set_window(window));
        self.joints.ring.set_window(self.config.state_window());
    }

    /// The newest observation, decoded here and now: [`ObservationAssembler::select`] and [`Selection::decode`] in one.
    ///
    /// # Errors
    /// Why there is none; counted in [`ObservationAssembler::blocked`].
    pub fn assemble(&mut self, now: Stamp) -> Result<Assembled, NotReady> {
        let mut failure: Option<DecodeFailure> = None;
        // Each round removes a frame or ends, so the rounds are at most as many as the frames.
        let reason = loop {
            let selection = match self.find(now) {
                Ok(selection) => selection,
                Err(reason) => break reason,
            };
            match selection.decode() {
                Ok(assembled) => return Ok(assembled),
                Err(broken) => {
                    self.discard(&broken);
                    failure.get_or_insert(broken);
                }
            }
        };
        let reason = match failure {
            Some(DecodeFailure { camera, error, .. }) => {
                NotReady::Undecodable { input: Input::Camera(camera), error }
            }
            None => reason,
        };
        self.blocked.count(&reason);
        Err(reason)
    }

    /// The newest frames and joint sample that belong together and are fresh. Quick: nothing is decoded or copied but the
    /// joint values.
    ///
    /// # Errors
    /// Why there are none; counted in [`ObservationAssembler::blocked`].
    pub fn select(&mut self, now: Stamp) -> Result<Selection, NotReady> {
        let found = self.find(now);
        if let Err(reason) = &found {
            self.blocked.count(reason);
        }
        found
    }

    /// As [`select`](Self::select), to look and not to act: nothing is counted.
    ///
    /// # Errors
    /// Why there are none.
    pub fn newest(&self, now: Stamp) -> Result<Selection, NotReady> {
        self.find(now)
    }

    /// Forgets a frame that cannot be decoded, and counts it.
    pub fn discard(&mut self, failure: &DecodeFailure) {
        if let Some(channel) = self.cameras.get_mut(&failure.camera) {
            channel.ring.remove(failure.stamp);
            channel.refuse(failure.error.to_string());
        }
    }

    /// How many ticks had no observation, by reason.
    pub fn blocked(&self) -> Blocked {
        self.blocked
    }

    /// How each input fares, cameras first.
    pub fn report(&self, now: Stamp) -> Vec<InputReport> {
        let cameras =
            self.cameras.iter().map(|(key, channel)| channel.report(Input::Camera(key.clone()), now));
        cameras.chain([self.joints.report(Input::JointStates, now)]).collect()
    }

    /// Ages of the cameras' newest frames, the oldest of them, and of the newest joint sample; None where something never
    /// came. Quick, for the command loop.
    pub fn ages(&self, now: Stamp) -> (Option<Duration>, Option<Duration>) {
        let newest = |channel: &Channel<_>| channel.ring.newest().map(|newest| newest.age(now));
        // None is the least of all options, so a camera that never sent must end the search.
        let cameras = self
            .cameras
            .values()
            .try_fold(Duration::ZERO, |oldest, channel| newest(channel).map(|age| oldest.max(age)));
        (cameras, self.joints.ring.newest().map(|newest| newest.age(now)))
    }

    fn find(&self, now: Stamp) -> Result<Selection, NotReady> {
        self.check_newest(now)?;
        let mut anchors: Vec<Stamp> =
            self.cameras.values().flat_map(|channel| channel.ring.stamps()).collect();
        anchors.sort_unstable();
        anchors.dedup();
        // Of the reasons against each set, that against the one that came furthest says most.
        let mut reason: Option<(u8, NotReady)> = None;
        for anchor in anchors.into_iter().rev() {
            match self.set_at(anchor, now) {
                Ok(selection) => return Ok(selection),
                Err(fault) if reason.as_ref().is_none_or(|(furthest, _)| fault.0 > *furthest) => {
                    reason = Some(fault);
                }
                Err(_) => {}
            }
        }
        // Without a camera there is no anchor.
        Err(reason.map_or(NotReady::Waiting { inputs: Vec::new() }, |(_, reason)| reason))
    }

    /// Every input has something, and the newest of it is fresh.
    fn check_newest(&self, now: Stamp) -> Result<(), NotReady> {
        let cameras = self.cameras.iter().map(|(key, channel)| {
            let newest = channel.ring.newest();
            (
                Input::Camera(key.clone()),
                newest.map(|newest| (newest.stamp, newest.age(now))),
                self.config.max_age,
            )
        });
        let newest = self.joints.ring.newest();
        let joints = (
            Input::JointStates,
            newest.map(|newest| (newest.stamp, newest.age(now))),
            self.config.max_state_age,
        );
        let inputs: Vec<_> = cameras.chain([joints]).collect();

        let absent = inputs.iter().filter(|(_, newest, _)| newest.is_none());
        let absent: Vec<Input> = absent.map(|(input, ..)| input.clone()).collect();
        if !absent.is_empty() {
            return Err(NotReady::Waiting { inputs: absent });
        }
        for (input, newest, limit) in inputs {
            let Some((stamp, age)) = newest else { continue };
            if age > limit {
                return Err(NotReady::Stale { input, age, limit });
            }
            let ahead = stamp.elapsed_since(now);
            if ahead > limit {
                return Err(NotReady::Future { input, ahead, limit });
            }
        }
        Ok(())
    }

    /// The set with this anchor; else why there is none and how far it came.
    fn set_at(&self, anchor: Stamp, now: Stamp) -> Result<Selection, (u8, NotReady)> {
        let AssemblerConfig { max_age, max_skew, video_offsets, state_offsets, .. } = &self.config;
        let (max_age, max_skew) = (*max_age, *max_skew);
        let mut ages = Vec::with_capacity(self.cameras.len() + 1);
        let mut present = Vec::with_capacity(self.cameras.len());
        for (key, channel) in &self.cameras {
            let input = || Input::Camera(key.clone());
            let frame = match channel.ring.newest_until(anchor) {
                Some(frame) if anchor.distance(frame.stamp) <= max_skew => frame,
                _ => {
                    let nearest = channel.ring.nearest(anchor);
                    let skew = nearest.map_or(Duration::MAX, |nearest| nearest.stamp.distance(anchor));
                    return Err((0, NotReady::Skewed { input: input(), skew, limit: max_skew }));
                }
            };
            let age = frame.age(now);
            if age > max_age {
                return Err((1, NotReady::Stale { input: input(), age, limit: max_age }));
            }
            ages.push((input(), age));
            present.push((key, channel, frame.stamp));
        }

        let skewed = |skew| NotReady::Skewed { input: Input::JointStates, skew, limit: max_skew };
        let Some(sample) = self.joints.ring.nearest(anchor) else {
            return Err((2, NotReady::Waiting { inputs: vec![Input::JointStates] }));
        };
        let skew = sample.stamp.distance(anchor);
        if skew > max_skew {
            return Err((2, skewed(skew)));
        }
        ages.push((Input::JointStates, sample.age(now)));

        let mut frames = BTreeMap::new();
        for (key, channel, stamp) in present {
            let input = Input::Camera(key.clone());
            frames.insert(key.clone(), looking_back(&channel.ring, stamp, video_offsets, max_skew, &input)?);
        }
        let samples =
            looking_back(&self.joints.ring, sample.stamp, state_offsets, max_skew, &Input::JointStates)?;
        let rows: Vec<&[f32]> = samples.iter().map(|(_, positions)| positions.as_slice()).collect();
        Ok(Selection {
            frames,
            state: self.joint_map.state(&rows),
            instruction: self.instruction.clone(),
            image_stamp: anchor,
            state_stamp: sample.stamp,
            ages,
        })
    }
}

/// The samples that lie nearest to each offset before `present`, each at most `max_skew` from where it should be.
fn looking_back<T: Clone>(
    ring: &Ring<T>,
    present: Stamp,
    offsets: &[Duration],
    max_skew: Duration,
    input: &Input,
) -> Result<Vec<(Stamp, T)>, (u8, NotReady)> {
    let sample = |&offset: &Duration| {
        let wanted = present - offset;
        ring.nearest(wanted)
            .filter(|sample| sample.stamp.distance(wanted) <= max_skew)
            .map(|sample| (sample.stamp, sample.value.clone()))
            .ok_or_else(|| (3, NotReady::History { input: input.clone(), offset }))
    };
    offsets.iter().map(sample).collect()
}
