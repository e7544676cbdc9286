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
            /// Stage name: `preprocess`, `vision`, `language`, `action_head`, `total`.
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
    }
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
