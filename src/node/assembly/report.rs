//! What the assembler says about its inputs: why there is no observation, and how each input fares.

use std::fmt;
use std::time::Duration;

use crate::ros::image::ImageError;

/// A source of observations.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Input {
    /// The camera of a video key.
    Camera(String),
    /// The joint states.
    JointStates,
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Camera(key) => write!(f, "camera {key}"),
            Self::JointStates => f.write_str("joint states"),
        }
    }
}

/// Why no observation can be made now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// Inputs of which nothing usable came yet.
    #[error("waiting for {}", inputs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Waiting {
        /// The inputs.
        inputs: Vec<Input>,
    },
    /// An input stopped, or comes too late.
    #[error("{input} is {} old, at most {} are allowed", shown(*age), shown(*limit))]
    Stale {
        /// The input.
        input: Input,
        /// Age of its newest sample.
        age: Duration,
        /// Greatest age.
        limit: Duration,
    },
    /// An input's stamps lie in the future.
    #[error(
        "{input} is stamped {} in the future, at most {} are allowed; synchronise the clocks of the machines",
        shown(*ahead), shown(*limit)
    )]
    Future {
        /// The input.
        input: Input,
        /// How far its newest stamp lies ahead.
        ahead: Duration,
        /// Greatest lead.
        limit: Duration,
    },
    /// An input has nothing near enough to the newest camera frame.
    #[error("{input} is {} apart from the newest frame, at most {} are allowed", shown(*skew), shown(*limit))]
    Skewed {
        /// The input.
        input: Input,
        /// Distance of its nearest stamp from the newest camera frame.
        skew: Duration,
        /// Greatest distance.
        limit: Duration,
    },
    /// An input does not reach back as far as the checkpoint looks.
    #[error("{input} has nothing from {} before yet", shown(*offset))]
    History {
        /// The input.
        input: Input,
        /// How far back the sample is needed.
        offset: Duration,
    },
    /// Frames came, but none could be decoded.
    #[error("{input}: {error}")]
    Undecodable {
        /// The camera.
        input: Input,
        /// What is wrong with its newest frame.
        error: ImageError,
    },
}

/// A time as people read it.
fn shown(span: Duration) -> String {
    if span < Duration::from_secs(10) {
        format!("{:.1} ms", span.as_secs_f64() * 1e3)
    } else {
        format!("{:.0} s", span.as_secs_f64())
    }
}

/// How many ticks had no observation, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Blocked {
    /// [`NotReady::Waiting`] and [`NotReady::History`].
    pub waiting: u64,
    /// [`NotReady::Stale`] and [`NotReady::Future`].
    pub stale: u64,
    /// [`NotReady::Skewed`].
    pub skewed: u64,
    /// [`NotReady::Undecodable`].
    pub undecodable: u64,
}

impl Blocked {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.waiting + self.stale + self.skewed + self.undecodable
    }

    pub(super) fn count(&mut self, reason: &NotReady) {
        *match reason {
            NotReady::Waiting { .. } | NotReady::History { .. } => &mut self.waiting,
            NotReady::Stale { .. } | NotReady::Future { .. } => &mut self.stale,
            NotReady::Skewed { .. } => &mut self.skewed,
            NotReady::Undecodable { .. } => &mut self.undecodable,
        } += 1;
    }
}

/// How an input fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputReport {
    /// The input.
    pub input: Input,
    /// Age of its newest sample; `None` where there is none.
    pub age: Option<Duration>,
    /// What was counted since the start.
    pub counts: InputCounts,
    /// Why the last refused message was refused.
    pub last_error: Option<String>,
}

/// What is counted about an input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InputCounts {
    /// Messages.
    pub received: u64,
    /// Messages that were no use: undecodable frames, joint messages with an error.
    pub refused: u64,
    /// Messages that came after newer ones.
    pub out_of_order: u64,
    /// Messages with a stamp that was there already.
    pub duplicates: u64,
    /// Times that the publisher's clock was set back.
    pub clock_jumps: u64,
    /// Messages without a stamp.
    pub unstamped: u64,
    /// Changes of the list of joint names.
    pub name_changes: u64,
}
