//! Frames of one camera of one episode, by row.

use std::collections::{BTreeSet, VecDeque};

use image::{ImageFormat, ImageReader, Limits, RgbImage};

use super::{
    error::LeRobotError,
    table::{Cell, Rows},
    video::Video,
};

/// Largest width or height of a stored picture.
const MAX_SIDE: u32 = 16_384;
/// Memory that decoding a stored picture may take.
const MAX_PICTURE_BYTES: u64 = 1 << 29;

/// Where the frames come from.
pub(super) enum Source {
    /// A column of picture files.
    Column { name: String, rows: Rows },
    /// A video, in which row 0 of the episode is shown at `start` seconds.
    Video { video: Video, start: f64 },
}

/// A camera's frames, asked for in ascending order of the present row.
pub(super) struct CameraFrames {
    pub key: String,
    source: Source,
    /// The row that the source gives next.
    next_row: u64,
    kept: VecDeque<(u64, RgbImage)>,
}

impl CameraFrames {
    pub(super) fn new(key: String, source: Source) -> Self {
        Self { key, source, next_row: 0, kept: VecDeque::new() }
    }

    /// Forgets the frames of rows below `row`.
    pub(super) fn forget_before(&mut self, row: u64) {
        while self.kept.front().is_some_and(|(kept, _)| *kept < row) {
            self.kept.pop_front();
        }
    }

    /// Decodes the frames of `rows` that are not there yet. `time` gives the seconds of a row since the episode's start.
    pub(super) fn fetch(
        &mut self,
        rows: &BTreeSet<u64>,
        time: impl Fn(u64) -> f64,
    ) -> Result<(), LeRobotError> {
        for &row in rows.range(self.next_row..) {
            let image = match &mut self.source {
                Source::Video { video, start } => video.frame(*start + time(row), row)?,
                Source::Column { name, rows } => {
                    let mut cell = None;
                    while self.next_row <= row {
                        cell = rows.next()?.and_then(|row| row.into_iter().next());
                        self.next_row += 1;
                    }
                    decode(rows, name, row, cell)?
                }
            };
            self.next_row = row + 1;
            self.kept.push_back((row, image));
        }
        Ok(())
    }

    /// A frame that was fetched.
    pub(super) fn get(&self, row: u64) -> Option<&RgbImage> {
        self.kept.iter().find(|(kept, _)| *kept == row).map(|(_, image)| image)
    }
}

fn decode(rows: &Rows, column: &str, row: u64, cell: Option<Cell>) -> Result<RgbImage, LeRobotError> {
    let failed = |found: String| LeRobotError::Picture {
        path: rows.path().to_owned(),
        row,
        column: column.to_owned(),
        found,
    };
    let Some(Cell::Bytes(Some(bytes))) = cell else {
        return Err(failed("none: only pictures stored in the table itself are read".to_owned()));
    };
    let format = image::guess_format(&bytes).ok();
    let Some(format) = format.filter(|format| matches!(format, ImageFormat::Png | ImageFormat::Jpeg)) else {
        return Err(failed(format!("{} bytes of another format", bytes.len())));
    };
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_PICTURE_BYTES);
    let mut reader = ImageReader::with_format(std::io::Cursor::new(bytes), format);
    reader.limits(limits);
    reader.decode().map(|image| image.into_rgb8()).map_err(|error| failed(error.to_string()))
}
