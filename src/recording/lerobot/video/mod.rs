//! Video frames in the order of their time.
//!
//! Two decoders give the same frames to the last bit: FFmpeg's libraries (feature `video`), and the installed `ffmpeg`
//! program read through a pipe, which the default build uses because it needs nothing at build time. Both decode in
//! sequence, hold a few frames at a time, and convert to RGB by the colour matrix and range that the stream names.

mod executable;
#[cfg(feature = "video")]
mod libraries;

use std::path::{Path, PathBuf};

use image::RgbImage;

use super::error::LeRobotError;

/// Most pixels of a frame: 8K twice over.
const MAX_PIXELS: u64 = 1 << 26;
/// How far before the first frame that is wanted decoding starts, in seconds: more than rounding can shift it.
const MARGIN: f64 = 1.0;

/// A decoded frame and the time at which it is shown, in seconds on the file's own clock.
#[derive(Debug, Clone, PartialEq)]
struct TimedFrame {
    seconds: f64,
    image: RgbImage,
}

/// A decoder that stands somewhere in a video.
trait FrameSource: Send {
    /// The next frame, in the order in which frames are shown.
    fn next_frame(&mut self) -> Result<Option<TimedFrame>, LeRobotError>;
}

/// Which decoder to use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum VideoDecoder {
    /// FFmpeg's libraries where they are built in, otherwise the program that `GROOT_FFMPEG` names, otherwise `ffmpeg`.
    #[default]
    Default,
    /// This program.
    Program(PathBuf),
}

fn open_source(
    path: &Path,
    start: f64,
    decoder: &VideoDecoder,
) -> Result<Box<dyn FrameSource>, LeRobotError> {
    // A missing file or a git-LFS pointer gets its own message, not the decoder's.
    drop(super::files::open(path)?);
    let program = match decoder {
        VideoDecoder::Program(program) => program.clone(),
        #[cfg(feature = "video")]
        VideoDecoder::Default => return Ok(Box::new(libraries::Libraries::open(path, start)?)),
        #[cfg(not(feature = "video"))]
        VideoDecoder::Default => {
            std::env::var_os("GROOT_FFMPEG").map_or_else(|| PathBuf::from("ffmpeg"), PathBuf::from)
        }
    };
    Ok(Box::new(executable::Executable::open(path, start, &program)?))
}

/// Frames of one video, asked for by time in ascending order.
pub(super) struct Video {
    path: PathBuf,
    source: Box<dyn FrameSource>,
    tolerance: f64,
    /// The last frame at or before the time that was asked for.
    before: Option<TimedFrame>,
    /// The first frame after it.
    after: Option<TimedFrame>,
    ended: bool,
}

impl Video {
    /// Opens a video at `start` seconds, in a recording of `fps` frames per second.
    pub(super) fn open(
        path: &Path,
        start: f64,
        fps: f64,
        decoder: &VideoDecoder,
    ) -> Result<Self, LeRobotError> {
        let mut video = Self {
            path: path.to_owned(),
            source: open_source(path, (start - MARGIN).max(0.0), decoder)?,
            tolerance: 0.5 / fps,
            before: None,
            after: None,
            ended: false,
        };
        if start > MARGIN {
            video.after = video.next()?;
            if video.after.as_ref().is_none_or(|frame| frame.seconds > start + video.tolerance) {
                // The file's index led past the place: decode from the beginning.
                video.source = open_source(path, 0.0, decoder)?;
                (video.after, video.ended) = (None, false);
            }
        }
        Ok(video)
    }

    fn next(&mut self) -> Result<Option<TimedFrame>, LeRobotError> {
        let frame = if self.ended { None } else { self.source.next_frame()? };
        self.ended = frame.is_none();
        Ok(frame)
    }

    /// The frame nearest to `seconds`, at most half a frame's duration away from it. `row` serves the message only.
    pub(super) fn frame(&mut self, seconds: f64, row: u64) -> Result<RgbImage, LeRobotError> {
        while self.after.as_ref().is_none_or(|frame| frame.seconds <= seconds) {
            if let Some(frame) = self.after.take() {
                self.before = Some(frame);
            }
            match self.next()? {
                Some(frame) => self.after = Some(frame),
                None => break,
            }
        }
        let distance = |frame: &&TimedFrame| (frame.seconds - seconds).abs();
        let nearest = [&self.before, &self.after]
            .into_iter()
            .flatten()
            .min_by(|a, b| distance(a).total_cmp(&distance(b)));
        match nearest {
            Some(frame) if distance(&frame) <= self.tolerance => Ok(frame.image.clone()),
            other => Err(LeRobotError::Frame {
                path: self.path.clone(),
                row,
                wanted: seconds,
                tolerance: self.tolerance,
                found: match other {
                    Some(frame) if self.ended => {
                        format!("the end of the video, whose last frame is at {:.6} s", frame.seconds)
                    }
                    Some(frame) => format!("the nearest at {:.6} s", frame.seconds),
                    None => "no frame at all".to_owned(),
                },
            }),
        }
    }
}

/// The number of bytes of an RGB frame, or why there is none.
fn frame_bytes(path: &Path, width: u32, height: u32) -> Result<usize, LeRobotError> {
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > MAX_PIXELS {
        let message = format!("expected frames of 1 to {MAX_PIXELS} pixels, found {width} x {height}");
        return Err(LeRobotError::Video { path: path.to_owned(), message });
    }
    // At most 3·2²⁶.
    Ok(pixels as usize * 3)
}
