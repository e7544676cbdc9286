//! Recordings of the [`synthetic`](crate::synthetic) robot, for examples and tests where no robot is at hand.

use std::{io::Cursor, path::Path};

use image::{ImageError, RgbImage, codecs::jpeg::JpegEncoder};
use thiserror::Error;

use super::bag::{BagError, BagWriter, WriterOptions};
use crate::{
    ros::{
        Stamp,
        msg::{self, ByteBuf, CompressedImage, Header, Image, JointState},
        transport::Qos,
    },
    synthetic::{SyntheticOptions, SyntheticRobot},
};

/// Quality of the JPEG pictures, of 100.
const JPEG_QUALITY: u8 = 90;

/// What is recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct SyntheticRecording {
    /// The robot.
    pub robot: SyntheticOptions,
    /// Length in seconds.
    pub seconds: f64,
    /// Pictures per second of each camera.
    pub camera_rate: f64,
    /// Joint states per second.
    pub joint_rate: f64,
    /// Whether pictures are JPEG on `NAME/image_raw/compressed`, or raw on `NAME/image_raw`.
    pub compressed: bool,
    /// What the robot is asked to do, on `/policy_node/instruction`.
    pub instruction: String,
    /// When the recording starts.
    pub start: Stamp,
    /// How the bag is written.
    pub writer: WriterOptions,
}

impl Default for SyntheticRecording {
    /// Ten seconds of the demo's robot: JPEG pictures at 30 Hz and joint states at 100 Hz.
    fn default() -> Self {
        Self {
            robot: SyntheticOptions::default(),
            seconds: 10.0,
            camera_rate: 30.0,
            joint_rate: 100.0,
            compressed: true,
            instruction: "pick up the red block".to_owned(),
            // 14 November 2023; the same recording each time.
            start: Stamp(1_700_000_000_000_000_000),
            writer: WriterOptions::default(),
        }
    }
}

/// Why a recording was not made.
#[derive(Debug, Error)]
pub enum SyntheticError {
    /// The bag.
    #[error(transparent)]
    Bag(#[from] BagError),
    /// A picture could not be compressed.
    #[error("cannot compress a picture: {0}")]
    Picture(#[from] ImageError),
    /// A rate or the length makes no recording.
    #[error("expected {what} from 0 to {limit}, found {found}")]
    Range {
        /// What it is.
        what: &'static str,
        /// The most it may be.
        limit: f64,
        /// What came.
        found: f64,
    },
}

/// A topic that publishes by the clock.
#[derive(Clone, Copy)]
struct Beat {
    rate: f64,
    /// How much later than its stamp a message is recorded, in nanoseconds.
    late: i64,
    /// Messages so far.
    count: u64,
    /// The camera, or `None` for the joints.
    camera: Option<usize>,
}

impl Beat {
    /// Seconds from the start to the next message.
    fn time(&self) -> f64 {
        self.count as f64 / self.rate
    }

    fn stamp(&self, start: Stamp) -> Stamp {
        Stamp(start.0.saturating_add((self.time() * 1e9).round() as i64))
    }

    /// When the next message is recorded.
    fn log_time(&self, start: Stamp) -> Stamp {
        Stamp(self.stamp(start).0.saturating_add(self.late))
    }
}

/// Writes the recording as a bag in the folder `target`, which must not be there yet: the topics of the demo's robot, in
/// the order of log time. Pictures are recorded 5 ms after their stamps, joint states 1 ms.
///
/// # Errors
/// Rates or a length out of range, and what [`BagWriter`] refuses.
pub fn write_bag(target: impl AsRef<Path>, recording: &SyntheticRecording) -> Result<(), SyntheticError> {
    let SyntheticRecording { robot: options, start, .. } = recording;
    let range = |what, found: f64, limit| {
        if (0.0..=limit).contains(&found) {
            Ok(())
        } else {
            Err(SyntheticError::Range { what, limit, found })
        }
    };
    range("a length in seconds", recording.seconds, 1e6)?;
    range("a camera rate", recording.camera_rate, 1e4)?;
    range("a joint rate", recording.joint_rate, 1e4)?;

    let robot = SyntheticRobot::new(options);
    let mut writer = BagWriter::create(target, recording.writer)?;
    let topics: Vec<String> = options
        .cameras
        .iter()
        .map(|camera| format!("/{camera}/image_raw{}", if recording.compressed { "/compressed" } else { "" }))
        .collect();
    for topic in &topics {
        match recording.compressed {
            true => writer.declare::<CompressedImage>(topic, Qos::sensor_data())?,
            false => writer.declare::<Image>(topic, Qos::sensor_data())?,
        }
    }
    let instruction = "/policy_node/instruction";
    writer.declare::<msg::String>(instruction, Qos::latched())?;
    writer.write(instruction, *start, &msg::String { data: recording.instruction.clone() })?;

    let joints = Beat { rate: recording.joint_rate, late: 1_000_000, count: 0, camera: None };
    let camera = |index| Beat { rate: recording.camera_rate, late: 5_000_000, count: 0, camera: Some(index) };
    let mut beats: Vec<Beat> = std::iter::once(joints).chain((0..topics.len()).map(camera)).collect();
    beats.retain(|beat| beat.rate > 0.0);
    while let Some(beat) = beats.iter_mut().min_by_key(|beat| beat.log_time(*start)) {
        let (time, stamp, log_time) = (beat.time(), beat.stamp(*start), beat.log_time(*start));
        if time >= recording.seconds {
            break;
        }
        beat.count += 1;
        let header = |frame_id: String| Header { stamp: stamp.into(), frame_id };
        match beat.camera {
            None => {
                let state = JointState {
                    header: header(String::new()),
                    name: options.joints.clone(),
                    position: robot.joints(time),
                    ..JointState::default()
                };
                writer.write("/joint_states", log_time, &state)?;
            }
            Some(index) => {
                let (Some(topic), Some(name)) = (topics.get(index), options.cameras.get(index)) else {
                    continue;
                };
                // The robot was made with this camera.
                let Some(frame) = robot.frame(name, time) else { continue };
                let header = header(format!("{name}_optical_frame"));
                match recording.compressed {
                    true => writer.write(topic, log_time, &jpeg_image(header, &frame)?)?,
                    false => writer.write(topic, log_time, &raw_image(header, frame))?,
                }
            }
        }
    }
    Ok(writer.finish()?)
}

/// A picture as `sensor_msgs/Image`.
pub fn raw_image(header: Header, frame: RgbImage) -> Image {
    Image {
        header,
        height: frame.height(),
        width: frame.width(),
        encoding: "rgb8".to_owned(),
        is_bigendian: 0,
        step: 3 * frame.width(),
        data: ByteBuf::from(frame.into_raw()),
    }
}

/// A picture as `sensor_msgs/CompressedImage`.
///
/// # Errors
/// It cannot be compressed.
pub fn jpeg_image(header: Header, frame: &RgbImage) -> Result<CompressedImage, ImageError> {
    let mut data = Cursor::new(Vec::new());
    JpegEncoder::new_with_quality(&mut data, JPEG_QUALITY).encode_image(frame)?;
    // What image_transport writes for a JPEG of an rgb8 image.
    let format = "rgb8; jpeg compressed bgr8".to_owned();
    Ok(CompressedImage { header, format, data: ByteBuf::from(data.into_inner()) })
}
