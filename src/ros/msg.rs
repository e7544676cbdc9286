//! The ROS 2 messages that the package reads and writes, as plain structs in the field order of their `.msg` files,
//! which is the order CDR puts them on the wire.
//!
//! Byte arrays are [`ByteBuf`]: serde would otherwise visit an image byte by byte.

use std::time::SystemTime;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
pub use serde_bytes::ByteBuf;

/// A ROS 2 message type: its package and name, e.g. `sensor_msgs` and `Image`.
pub trait Message: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The package that defines the message.
    const PACKAGE: &'static str;
    /// The message's name inside the package.
    const NAME: &'static str;
}

macro_rules! messages {
    ($($package:literal { $($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $kind:ty),* $(,)? })* })*) => {$($(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* }
        impl Message for $name {
            const PACKAGE: &'static str = $package;
            const NAME: &'static str = stringify!($name);
        }
    )*)*};
}
pub(super) use messages;

messages! {
    "builtin_interfaces" {
        /// A point in time, counted from the epoch of the clock in use.
        Time {
            /// Whole seconds.
            sec: i32,
            /// Nanoseconds within the second, below 10^9.
            nanosec: u32,
        }
        /// A span of time; `sec` may be negative, `nanosec` always counts upwards.
        Duration {
            /// Whole seconds.
            sec: i32,
            /// Nanoseconds within the second, below 10^9.
            nanosec: u32,
        }
    }
    "std_msgs" {
        /// Time and frame of what follows.
        Header {
            /// When the data was taken.
            stamp: Time,
            /// The coordinate frame of the data.
            frame_id: std::string::String,
        }
        /// Text, e.g. the instruction.
        String {
            /// The text.
            data: std::string::String,
        }
        /// A truth value, e.g. of an e-stop.
        Bool {
            /// The value.
            data: bool,
        }
        /// One dimension of a [`MultiArrayLayout`].
        MultiArrayDimension {
            /// What the dimension is.
            label: std::string::String,
            /// Its length.
            size: u32,
            /// Values from one element of the dimension before to the next.
            stride: u32,
        }
        /// The shape of a [`Float64MultiArray`].
        MultiArrayLayout {
            /// Dimensions, outermost first.
            dim: Vec<MultiArrayDimension>,
            /// Values before the first one that counts.
            data_offset: u32,
        }
        /// Numbers, e.g. the positions of a forward command controller.
        Float64MultiArray {
            /// Shape; controllers of one list of joints do not look at it.
            layout: MultiArrayLayout,
            /// The numbers.
            data: Vec<f64>,
        }
    }
    "rosgraph_msgs" {
        /// The time of a simulation.
        Clock {
            /// Now.
            clock: Time,
        }
    }
    "geometry_msgs" {
        /// A vector.
        Vector3 {
            /// Forwards.
            x: f64,
            /// To the left.
            y: f64,
            /// Upwards.
            z: f64,
        }
        /// A velocity.
        Twist {
            /// m/s.
            linear: Vector3,
            /// rad/s, about the axes.
            angular: Vector3,
        }
        /// A velocity with its time and frame.
        TwistStamped {
            /// When it was commanded, and the frame it is in.
            header: Header,
            /// The velocity.
            twist: Twist,
        }
    }
    "diagnostic_msgs" {
        /// A name and a value, both text.
        KeyValue {
            /// The name.
            key: std::string::String,
            /// The value.
            value: std::string::String,
        }
        /// How one part of a node fares.
        DiagnosticStatus {
            /// One of the constants.
            level: u8,
            /// The part, e.g. `policy_node: inputs`.
            name: std::string::String,
            /// In one sentence.
            message: std::string::String,
            /// The device, where there is one.
            hardware_id: std::string::String,
            /// In figures.
            values: Vec<KeyValue>,
        }
        /// How a node fares.
        DiagnosticArray {
            /// When this was so.
            header: Header,
            /// Part by part.
            status: Vec<DiagnosticStatus>,
        }
    }
    "rcl_interfaces" {
        /// A line of a node's log, as `/rosout` carries it.
        Log {
            /// When it was written.
            stamp: Time,
            /// One of the constants.
            level: u8,
            /// The logger: the node's name, with dots for slashes.
            name: std::string::String,
            /// The line.
            msg: std::string::String,
            /// Source file.
            file: std::string::String,
            /// Function or module.
            function: std::string::String,
            /// Line in the source file.
            line: u32,
        }
    }
    "sensor_msgs" {
        /// An uncompressed image.
        Image {
            /// Acquisition time and optical frame.
            header: Header,
            /// Rows.
            height: u32,
            /// Columns.
            width: u32,
            /// Pixel format, e.g. `rgb8`.
            encoding: std::string::String,
            /// 1 where multi-byte samples are big-endian.
            is_bigendian: u8,
            /// Bytes from one row to the next.
            step: u32,
            /// `step` · `height` bytes.
            data: ByteBuf,
        }
        /// A JPEG or PNG image.
        CompressedImage {
            /// Acquisition time and optical frame.
            header: Header,
            /// What the publisher says of the format, e.g. `rgb8; jpeg compressed bgr8`.
            format: std::string::String,
            /// The compressed file.
            data: ByteBuf,
        }
        /// Positions, velocities and efforts of named joints; each list is as long as `name` or empty.
        JointState {
            /// Acquisition time.
            header: Header,
            /// Joint names.
            name: Vec<std::string::String>,
            /// rad or m.
            position: Vec<f64>,
            /// rad/s or m/s.
            velocity: Vec<f64>,
            /// Nm or N.
            effort: Vec<f64>,
        }
    }
    "trajectory_msgs" {
        /// One point of a [`JointTrajectory`]; each list is as long as the joint names or empty.
        JointTrajectoryPoint {
            /// rad or m.
            positions: Vec<f64>,
            /// rad/s or m/s.
            velocities: Vec<f64>,
            /// rad/s² or m/s².
            accelerations: Vec<f64>,
            /// Nm or N.
            effort: Vec<f64>,
            /// When to reach the point, counted from the header's stamp.
            time_from_start: Duration,
        }
        /// A trajectory of named joints.
        JointTrajectory {
            /// Start time; zero means "now".
            header: Header,
            /// Joint names, in the order of the points' lists.
            joint_names: Vec<std::string::String>,
            /// The points, in time order.
            points: Vec<JointTrajectoryPoint>,
        }
    }
    "groot_policy" {
        /// The part of an [`ActionChunk`] that belongs to one action key of the embodiment.
        ActionGroup {
            /// The action key, e.g. `left_arm`.
            key: std::string::String,
            /// Names of the key's dimensions: joint names where they are configured, else `key_0`, `key_1`, …
            names: Vec<std::string::String>,
            /// Values of one step.
            dimension: u32,
            /// `horizon` · `dimension` values, row-major: all dimensions of step 0, then of step 1, … SI units.
            data: Vec<f32>,
        }
        /// How long the stages of one tick took.
        StageTiming {
            /// Stage name: `preprocess`, `vision`, `language`, `action_head`, `total`, or `overhead`: what the node needed
            /// besides, from the arrival of the last camera frame to the publication.
            stage: std::string::String,
            /// Milliseconds of wall clock.
            milliseconds: f32,
        }
        /// A whole action chunk as the policy made it.
        ActionChunk {
            /// When the chunk was published; `frame_id` is empty.
            header: Header,
            /// Stamp of the newest camera frame the chunk answers.
            observation_stamp: Time,
            /// Stamp of the joint sample the chunk answers.
            state_stamp: Time,
            /// Counts the chunks of this node since its start, from 0.
            sequence: u64,
            /// Seed of the noise the chunk was denoised from.
            noise_seed: u64,
            /// Instruction the chunk answers, before formalisation.
            instruction: std::string::String,
            /// Tag of the embodiment, e.g. `new_embodiment`.
            embodiment: std::string::String,
            /// Steps in the chunk.
            horizon: u32,
            /// Time between two steps.
            step_time: Duration,
            /// Actions per action key, in the order of the checkpoint's modality keys.
            groups: Vec<ActionGroup>,
            /// Timing of the tick that made the chunk.
            timing: Vec<StageTiming>,
        }
        /// How long one stage took over the last ticks.
        StageLatency {
            /// Stage name, as in [`StageTiming`].
            stage: std::string::String,
            /// Ticks that the figures are of.
            samples: u32,
            /// Median, in milliseconds.
            p50: f32,
            /// Of a hundred ticks, one takes longer; in milliseconds.
            p99: f32,
        }
        /// How one input fares; counts are since the start.
        InputStatus {
            /// `camera` and its key, or `joint states`.
            name: std::string::String,
            /// Milliseconds since the newest sample; -1 where there is none yet.
            age: f32,
            /// Greatest age, in milliseconds.
            max_age: f32,
            /// Whether it is fresh enough.
            fresh: bool,
            /// Messages.
            received: u64,
            /// Messages that were no use.
            refused: u64,
            /// Messages that were sent and never came, by gaps in their publishers' numbering; -1 where the transport
            /// cannot tell.
            lost: i64,
            /// Messages that newer ones pushed out before they were read.
            overwritten: u64,
            /// Messages that came after newer ones.
            out_of_order: u64,
            /// Messages with a stamp that was there already.
            duplicates: u64,
            /// Times that the publisher's clock was set back.
            clock_jumps: u64,
            /// Why the last refused message was refused.
            last_error: std::string::String,
        }
        /// How often commands for one joint were clipped since the start.
        JointClips {
            /// The joint.
            joint: std::string::String,
            /// Commands outside the positions.
            position: u64,
            /// Commands that were too fast.
            velocity: u64,
            /// Commands that were too far from the one before.
            step: u64,
        }
        /// How the policy node fares; counts are since the start.
        PolicyStatus {
            /// When this was so; `frame_id` is empty.
            header: Header,
            /// Lifecycle state, an id of `lifecycle_msgs/State`.
            state: u8,
            /// Whether the robot is being commanded.
            commanding: bool,
            /// Whether commands go to the dry-run topics only.
            dry_run: bool,
            /// Whether an e-stop is latched.
            estop: bool,
            /// One of the `WATCHDOG_` constants.
            watchdog: u8,
            /// Why the watchdog holds or stops; else empty.
            watchdog_reason: std::string::String,
            /// How one chunk follows another, e.g. `blend`.
            handover: std::string::String,
            /// What carries the messages.
            transport: std::string::String,
            /// What computes the chunks, and where.
            engine: std::string::String,
            /// Tag of the embodiment.
            embodiment: std::string::String,
            /// Instruction in force, before formalisation.
            instruction: std::string::String,
            /// Chunks per second that are asked for.
            requested_rate: f32,
            /// Chunks per second in the last window.
            rate: f32,
            /// Chunks.
            chunks: u64,
            /// Ticks that failed.
            failed: u64,
            /// Ticks without an observation: an input had not come yet.
            blocked_waiting: u64,
            /// An input was too old, or from the future.
            blocked_stale: u64,
            /// Stamps lay too far apart.
            blocked_skewed: u64,
            /// No frame could be decoded.
            blocked_undecodable: u64,
            /// Chunks that were dropped because a value was not finite.
            dropped_not_finite: u64,
            /// Chunks that were dropped because they came too late.
            dropped_late: u64,
            /// Latency by stage.
            latency: Vec<StageLatency>,
            /// Inputs, cameras first.
            inputs: Vec<InputStatus>,
            /// Clips, by joint.
            clips: Vec<JointClips>,
            /// What went wrong last; empty where nothing did.
            last_error: std::string::String,
        }
    }
}

impl DiagnosticStatus {
    /// All is well.
    pub const OK: u8 = 0;
    /// Something deserves a look.
    pub const WARN: u8 = 1;
    /// Something does not work.
    pub const ERROR: u8 = 2;
    /// Nothing is known.
    pub const STALE: u8 = 3;
}

impl Log {
    /// Of interest to who looks for a fault.
    pub const DEBUG: u8 = 10;
    /// Of interest to the operator.
    pub const INFO: u8 = 20;
    /// Something deserves a look.
    pub const WARN: u8 = 30;
    /// Something does not work.
    pub const ERROR: u8 = 40;
    /// The node ends.
    pub const FATAL: u8 = 50;
}

impl PolicyStatus {
    /// Chunks are followed.
    pub const WATCHDOG_OK: u8 = 0;
    /// The last safe pose is held.
    pub const WATCHDOG_HOLD: u8 = 1;
    /// Nothing is commanded.
    pub const WATCHDOG_STOP: u8 = 2;
}

impl Time {
    /// The system clock now.
    pub fn now() -> Self {
        // A clock before 1970 is a clock that was never set: zero says "unknown" in ROS.
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self::from_nanoseconds(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX))
    }

    /// A time that lies `nanoseconds` after the epoch. Seconds beyond the message's 32 bits are cut to its limits.
    pub fn from_nanoseconds(nanoseconds: i64) -> Self {
        let seconds = nanoseconds.div_euclid(NANOSECONDS_PER_SECOND);
        Self {
            sec: seconds.clamp(i32::MIN.into(), i32::MAX.into()) as i32,
            nanosec: nanoseconds.rem_euclid(NANOSECONDS_PER_SECOND) as u32,
        }
    }

    /// Nanoseconds after the epoch. Cannot overflow: 2^31 s and 2^32 ns are below 2^63 ns.
    pub fn nanoseconds(&self) -> i64 {
        i64::from(self.sec) * NANOSECONDS_PER_SECOND + i64::from(self.nanosec)
    }
}

const NANOSECONDS_PER_SECOND: i64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_survives_the_way_through_nanoseconds() {
        for time in [
            Time { sec: 0, nanosec: 0 },
            Time { sec: 1_764_000_000, nanosec: 999_999_999 },
            Time { sec: -1, nanosec: 500_000_000 },
            Time { sec: i32::MAX, nanosec: 1 },
        ] {
            assert_eq!(Time::from_nanoseconds(time.nanoseconds()), time);
        }
        assert_eq!(Time { sec: -1, nanosec: 500_000_000 }.nanoseconds(), -500_000_000);
    }
}
