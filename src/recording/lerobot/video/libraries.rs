//! FFmpeg's libraries.

use std::{
    path::{Path, PathBuf},
    sync::Once,
};

use ffmpeg_next::{
    self as ffmpeg, Error, Packet, codec, color, decoder, ffi,
    format::{self, Pixel, context::Input},
    frame, media,
    rescale::TIME_BASE,
    software::scaling,
};
use image::RgbImage;

use super::{FrameSource, TimedFrame, frame_bytes};
use crate::recording::lerobot::error::LeRobotError;

/// A decoder inside this process.
pub(super) struct Libraries {
    path: PathBuf,
    input: Input,
    stream: usize,
    /// Seconds per unit of the frames' times.
    time_base: f64,
    decoder: decoder::Video,
    converter: Option<Converter>,
    /// The decoder has all of the file's packets.
    drained: bool,
}

impl Libraries {
    /// Opens a video at the last key frame at or before `start` seconds.
    pub(super) fn open(path: &Path, start: f64) -> Result<Self, LeRobotError> {
        static QUIET: Once = Once::new();
        // What goes wrong is in the errors.
        QUIET.call_once(|| ffmpeg::log::set_level(ffmpeg::log::Level::Quiet));
        let failed = |what: &str, error: Error| LeRobotError::Video {
            path: path.to_owned(),
            message: format!("FFmpeg's libraries {what}: {error}"),
        };
        // A word and a colon at the start of a path must not be read as a protocol.
        let mut url = std::ffi::OsString::from("file:");
        url.push(path);
        let mut input = format::input(&url).map_err(|error| failed("cannot open it", error))?;
        let stream = input.streams().find(|stream| stream.parameters().medium() == media::Type::Video);
        let stream = stream.ok_or_else(|| failed("find no video in it", Error::StreamNotFound))?;
        let (index, time_base) = (stream.index(), f64::from(stream.time_base()));
        let context = codec::Context::from_parameters(stream.parameters())
            .map_err(|error| failed("do not know its settings", error))?;
        let mut context = context.decoder();
        context.set_threading(codec::threading::Config::kind(codec::threading::Type::Frame));
        let decoder = context.video().map_err(|error| failed("have no decoder for it", error))?;
        if start > 0.0 {
            // A cast from f64 saturates.
            let place = (start * f64::from(TIME_BASE.denominator())) as i64;
            input.seek(place, ..place).map_err(|error| failed("cannot go to the episode", error))?;
        }
        Ok(Self {
            path: path.to_owned(),
            input,
            stream: index,
            time_base,
            decoder,
            converter: None,
            drained: false,
        })
    }

    fn failed(&self, message: String) -> LeRobotError {
        LeRobotError::Video { path: self.path.clone(), message }
    }

    /// Gives the decoder the next packet of the video, or tells it that there is none.
    fn feed(&mut self) -> Result<(), LeRobotError> {
        let mut packet = Packet::empty();
        loop {
            match packet.read(&mut self.input) {
                Ok(()) if packet.stream() != self.stream => {}
                Ok(()) => {
                    let sent = self.decoder.send_packet(&packet);
                    return sent.map_err(|error| self.failed(format!("a packet cannot be decoded: {error}")));
                }
                Err(Error::Eof) => {
                    self.drained = true;
                    let sent = self.decoder.send_eof();
                    return sent.map_err(|error| self.failed(format!("the end cannot be decoded: {error}")));
                }
                Err(error) => return Err(self.failed(format!("a packet cannot be read: {error}"))),
            }
        }
    }

    fn convert(&mut self, decoded: &frame::Video) -> Result<TimedFrame, LeRobotError> {
        if decoded.is_corrupt() || decoded.has_decode_errors() {
            return Err(self.failed("a frame is damaged".to_owned()));
        }
        let (width, height) = (decoded.width(), decoded.height());
        let mut bytes = Vec::with_capacity(frame_bytes(&self.path, width, height)?);
        let layout = Layout::of(decoded);
        if self.converter.as_ref().is_none_or(|converter| converter.layout != layout) {
            let converter = Converter::new(layout);
            self.converter =
                Some(converter.map_err(|error| self.failed(format!("no conversion to RGB: {error}")))?);
        }
        let mut rgb = frame::Video::empty();
        let converted =
            self.converter.as_mut().map_or(Err(Error::InvalidData), |c| c.context.run(decoded, &mut rgb));
        converted.map_err(|error| self.failed(format!("conversion to RGB: {error}")))?;
        // Rows are padded.
        let (row, stride) = (width as usize * 3, rgb.stride(0).max(1));
        for line in rgb.data(0).chunks(stride).take(height as usize) {
            bytes.extend_from_slice(line.get(..row).unwrap_or(line));
        }
        let seconds = decoded.timestamp().map_or(f64::NAN, |time| time as f64 * self.time_base);
        let image = RgbImage::from_raw(width, height, bytes);
        image
            .map(|image| TimedFrame { seconds, image })
            .ok_or_else(|| self.failed("a frame is cut off".to_owned()))
    }
}

impl FrameSource for Libraries {
    fn next_frame(&mut self) -> Result<Option<TimedFrame>, LeRobotError> {
        let mut decoded = frame::Video::empty();
        loop {
            match self.decoder.receive_frame(&mut decoded) {
                Ok(()) => return self.convert(&decoded).map(Some),
                Err(Error::Eof) => return Ok(None),
                Err(Error::Other { errno: ffmpeg::error::EAGAIN }) if !self.drained => self.feed()?,
                Err(error) => return Err(self.failed(format!("a frame cannot be decoded: {error}"))),
            }
        }
    }
}

/// What a conversion depends on.
#[derive(Clone, Copy, PartialEq)]
struct Layout {
    format: Pixel,
    width: u32,
    height: u32,
    space: color::Space,
    range: color::Range,
}

impl Layout {
    fn of(frame: &frame::Video) -> Self {
        Self {
            format: frame.format(),
            width: frame.width(),
            height: frame.height(),
            space: frame.color_space(),
            range: frame.color_range(),
        }
    }
}

struct Converter {
    layout: Layout,
    context: scaling::Context,
}

// SAFETY: the context is a plain block of memory that swscale binds to no thread; it is owned here alone, and used
// through `&mut` only.
unsafe impl Send for Converter {}

impl Converter {
    fn new(layout: Layout) -> Result<Self, Error> {
        let Layout { format, width, height, space, range } = layout;
        let mut context = scaling::Context::get(
            format,
            width,
            height,
            Pixel::RGB24,
            width,
            height,
            scaling::Flags::BILINEAR,
        )?;
        let (mut from, mut to) = (std::ptr::null_mut(), std::ptr::null_mut());
        let (mut from_full, mut to_full, mut brightness, mut contrast, mut saturation) = (0, 0, 0, 0, 0);
        // SAFETY: the context is valid for as long as `context` lives. The first call writes through seven pointers to
        // locals, the tables it points to are the context's own or static. `sws_getCoefficients` takes any number and
        // gives a static table. The last call copies the tables of four numbers.
        unsafe {
            ffi::sws_getColorspaceDetails(
                context.as_mut_ptr(),
                &mut from,
                &mut from_full,
                &mut to,
                &mut to_full,
                &mut brightness,
                &mut contrast,
                &mut saturation,
            );
            let (mut source, target): (*const i32, *const i32) = (from, to);
            if space != color::Space::Unspecified {
                source = ffi::sws_getCoefficients(ffi::AVColorSpace::from(space) as i32);
            }
            match range {
                color::Range::JPEG => from_full = 1,
                color::Range::MPEG => from_full = 0,
                color::Range::Unspecified => {}
            }
            // It refuses where there is nothing to set, for sources that are RGB already.
            ffi::sws_setColorspaceDetails(
                context.as_mut_ptr(),
                source,
                from_full,
                target,
                to_full,
                brightness,
                contrast,
                saturation,
            );
        }
        Ok(Self { layout, context })
    }
}
