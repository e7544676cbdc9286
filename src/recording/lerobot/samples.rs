//! Walking through episodes: observation and truth of one row after the other.

use std::collections::{BTreeSet, VecDeque};

use ndarray::Array2;

use super::{
    LeRobotDataset, SampleOptions,
    camera::{CameraFrames, Source},
    episodes::Episode,
    error::LeRobotError,
    keys::DatasetKeys,
    mapping::{Mapping, Slice},
    table::{Cell, Rows, Table, Wanted},
    video::Video,
};
use crate::{
    observation::Observation,
    recording::{Sample, Truth},
    ros::Stamp,
};

const TIMESTAMP: &str = "timestamp";
const EPISODE_INDEX: &str = "episode_index";

/// Samples of the chosen episodes, in their order. The first error ends them.
pub struct Samples<'a> {
    dataset: &'a LeRobotDataset,
    options: SampleOptions,
    keys: DatasetKeys,
    mapping: Mapping,
    episodes: VecDeque<u64>,
    current: Option<Cursor>,
}

impl<'a> Samples<'a> {
    pub(super) fn new(
        dataset: &'a LeRobotDataset,
        options: SampleOptions,
        keys: DatasetKeys,
    ) -> Result<Self, LeRobotError> {
        let mapping = Mapping::new(&dataset.root, &dataset.info, &keys)?;
        let episodes: VecDeque<u64> = match options.episodes.is_empty() {
            true => dataset.episodes.keys().copied().collect(),
            false => options.episodes.iter().copied().collect(),
        };
        for &episode in &episodes {
            dataset.episode(episode)?;
        }
        if episodes.is_empty() {
            return Err(LeRobotError::Invalid {
                path: dataset.root.clone(),
                at: "the list of episodes".to_owned(),
                expected: "at least one episode".to_owned(),
                found: "none".to_owned(),
                advice: "record one".to_owned(),
            });
        }
        Ok(Self { dataset, options, keys, mapping, episodes, current: None })
    }

    fn next_sample(&mut self) -> Result<Option<Sample>, LeRobotError> {
        loop {
            if let Some(cursor) = &mut self.current {
                if let Some(sample) = cursor.next_sample(self.dataset, &self.keys, &self.mapping)? {
                    return Ok(Some(sample));
                }
                self.current = None;
            }
            let Some(number) = self.episodes.pop_front() else { return Ok(None) };
            let cursor = Cursor::open(self.dataset, &self.options, &self.mapping, number)?;
            self.current = Some(cursor);
        }
    }
}

impl Iterator for Samples<'_> {
    type Item = Result<Sample, LeRobotError>;

    fn next(&mut self) -> Option<Self::Item> {
        let sample = self.next_sample();
        if sample.is_err() {
            self.episodes.clear();
            self.current = None;
        }
        sample.transpose()
    }
}

/// The columns that come before those of the mapping.
struct Layout {
    timestamp: Option<usize>,
    episode: Option<usize>,
    task: usize,
    first: usize,
}

/// A place in an episode.
struct Cursor {
    number: u64,
    length: u64,
    stride: u64,
    /// Rows from here on are not visited.
    end: u64,
    next: u64,
    rows: Rows,
    layout: Layout,
    /// Rows of numbers around the present one.
    window: VecDeque<Vec<Cell>>,
    /// Number within the episode of the window's first row.
    window_start: u64,
    cameras: Vec<CameraFrames>,
}

impl Cursor {
    fn open(
        dataset: &LeRobotDataset,
        options: &SampleOptions,
        mapping: &Mapping,
        number: u64,
    ) -> Result<Self, LeRobotError> {
        let episode = dataset.episode(number)?;
        let (table, first_row) = dataset.table(number, episode)?;
        let present = table.len().saturating_sub(first_row);
        // As the reference does: a table that is shorter or longer than the list says counts as far as both go.
        let length = if episode.place.is_some() { episode.length } else { episode.length.min(present) };
        if length != episode.length {
            tracing::warn!(
                episode = number,
                listed = episode.length,
                present,
                "fewer rows than the list of episodes says"
            );
        }
        if length == 0 {
            return Err(LeRobotError::Invalid {
                path: table.path().to_owned(),
                at: format!("episode {number}"),
                expected: "at least one row".to_owned(),
                found: "none".to_owned(),
                advice: "leave the episode out with --episodes".to_owned(),
            });
        }
        let has = |column: &str| table.columns().any(|name| name == column);
        let mut wanted = vec![Wanted::Numbers(&mapping.instruction)];
        let mut optional = |column: &'static str, needed: bool| {
            (needed && has(column)).then(|| {
                wanted.push(Wanted::Numbers(column));
                wanted.len() - 1
            })
        };
        let timestamp = optional(TIMESTAMP, true);
        // Files of several episodes are checked against the list, files of one need not be.
        let episode_column = optional(EPISODE_INDEX, episode.place.is_some());
        let layout = Layout { timestamp, episode: episode_column, task: 0, first: wanted.len() };
        wanted.extend(mapping.columns.iter().map(|(name, _)| Wanted::Numbers(name)));
        let range = first_row..first_row.saturating_add(length);
        let rows = table.rows(&wanted, range.clone())?;
        let cameras = mapping
            .cameras
            .iter()
            .map(|camera| {
                let source = if camera.is_video {
                    let (path, start) = dataset.video(number, episode, &camera.feature)?;
                    let video = Video::open(&path, start, dataset.info.fps, &options.decoder)?;
                    Source::Video { video, start }
                } else {
                    let rows = table.rows(&[Wanted::Bytes(&camera.feature)], range.clone())?;
                    Source::Column { name: camera.feature.clone(), rows }
                };
                Ok(CameraFrames::new(camera.key.clone(), source))
            })
            .collect::<Result<_, LeRobotError>>()?;
        Ok(Self {
            number,
            length,
            stride: options.stride.max(1),
            end: options.steps_per_episode.unwrap_or(length).min(length),
            next: 0,
            rows,
            layout,
            window: VecDeque::new(),
            window_start: 0,
            cameras,
        })
    }

    fn next_sample(
        &mut self,
        dataset: &LeRobotDataset,
        keys: &DatasetKeys,
        mapping: &Mapping,
    ) -> Result<Option<Sample>, LeRobotError> {
        let now = self.next;
        if now >= self.end {
            return Ok(None);
        }
        self.next = now.saturating_add(self.stride);
        self.move_window(now, keys, mapping)?;
        self.fetch_frames(now, keys, dataset.info.fps)?;

        let mut observation = Observation {
            instruction: dataset.tasks.text(self.task(now)?)?.to_owned(),
            ..Observation::default()
        };
        for camera in &self.cameras {
            let frames = keys.video_deltas.iter().filter_map(|delta| camera.get(self.clamped(now, *delta)));
            observation.video.insert(camera.key.clone(), frames.cloned().collect());
        }
        let past: Vec<u64> = keys.state_deltas.iter().map(|delta| self.clamped(now, *delta)).collect();
        for slice in &mapping.state {
            observation.state.insert(slice.key.clone(), self.values(slice, &past, mapping)?);
        }
        // What is recorded of the future: no row beyond the end, and none after one that is.
        let future: Vec<u64> = keys
            .action_deltas
            .iter()
            .map(|delta| now.saturating_add_signed(*delta))
            .take_while(|row| *row < self.length)
            .collect();
        let groups = mapping
            .action
            .iter()
            .map(|slice| Ok((slice.key.clone(), self.values(slice, &future, mapping)?)))
            .collect::<Result<_, LeRobotError>>()?;
        Ok(Some(Sample {
            episode: format!("episode {}", self.number),
            step: now,
            stamp: Stamp((self.seconds(now, dataset.info.fps) * 1e9).round() as i64),
            observation,
            truth: Truth { groups },
        }))
    }

    /// The row `delta` rows from `row`, within the episode.
    fn clamped(&self, row: u64, delta: i64) -> u64 {
        row.saturating_add_signed(delta).min(self.length.saturating_sub(1))
    }

    /// Reads up to the last row that is needed and forgets those before the first.
    fn move_window(&mut self, now: u64, keys: &DatasetKeys, mapping: &Mapping) -> Result<(), LeRobotError> {
        let deltas = || [&keys.video_deltas, &keys.state_deltas, &keys.action_deltas].into_iter().flatten();
        let first = deltas().map(|delta| self.clamped(now, *delta)).fold(now, u64::min);
        let last = deltas().map(|delta| self.clamped(now, *delta)).fold(now, u64::max);
        while self.window_start + (self.window.len() as u64) <= last {
            let row = self.window_start + self.window.len() as u64;
            let Some(cells) = self.rows.next()? else {
                let message =
                    format!("expected {} rows of episode {}, found {row}", self.length, self.number);
                return Err(LeRobotError::Table { path: self.rows.path().to_owned(), message });
            };
            self.check(row, &cells, mapping)?;
            self.window.push_back(cells);
            while self.window_start < first && !self.window.is_empty() {
                self.window.pop_front();
                self.window_start += 1;
            }
        }
        while self.window_start < first && self.window.pop_front().is_some() {
            self.window_start += 1;
        }
        Ok(())
    }

    fn check(&self, row: u64, cells: &[Cell], mapping: &Mapping) -> Result<(), LeRobotError> {
        let invalid = |column: &str, expected: String, found: String, advice: &str| LeRobotError::Invalid {
            path: self.rows.path().to_owned(),
            at: format!("row {row} of episode {}, column {column}", self.number),
            expected,
            found,
            advice: advice.to_owned(),
        };
        if let Some(cell) = self.layout.episode.and_then(|column| cells.get(column))
            && cell.index() != Some(self.number)
        {
            let advice = "the list of episodes does not belong to this file";
            let found = format!("{:?}", cell.numbers());
            return Err(invalid(EPISODE_INDEX, self.number.to_string(), found, advice));
        }
        for ((column, width), cell) in mapping.columns.iter().zip(cells.iter().skip(self.layout.first)) {
            let found = cell.numbers().len();
            if found != *width {
                let expected = format!("{width} value(s), as in meta/info.json");
                return Err(invalid(
                    column,
                    expected,
                    found.to_string(),
                    "the table does not belong to the dataset",
                ));
            }
        }
        Ok(())
    }

    /// The cell of a row inside the window.
    fn cell(&self, row: u64, column: usize) -> Option<&Cell> {
        let index = usize::try_from(row.checked_sub(self.window_start)?).ok()?;
        self.window.get(index)?.get(column)
    }

    /// Seconds since the episode's start.
    fn seconds(&self, row: u64, fps: f64) -> f64 {
        let recorded = self.layout.timestamp.and_then(|column| self.cell(row, column));
        let recorded = recorded.and_then(|cell| cell.numbers().first().copied());
        recorded.filter(|seconds| seconds.is_finite()).unwrap_or(row as f64 / fps)
    }

    fn task(&self, row: u64) -> Result<u64, LeRobotError> {
        let cell = self.cell(row, self.layout.task);
        cell.and_then(Cell::index).ok_or_else(|| LeRobotError::Invalid {
            path: self.rows.path().to_owned(),
            at: format!("row {row} of episode {}, the instruction's column", self.number),
            expected: "the index of a task".to_owned(),
            found: format!("{:?}", cell.map(Cell::numbers)),
            advice: "name a column of task indices in meta/modality.json".to_owned(),
        })
    }

    /// A key's values in some rows, which lie inside the window.
    fn values(&self, slice: &Slice, rows: &[u64], mapping: &Mapping) -> Result<Array2<f32>, LeRobotError> {
        let mut values = Array2::zeros((rows.len(), slice.range.len()));
        for (&row, mut target) in rows.iter().zip(values.rows_mut()) {
            let cell = self.cell(row, self.layout.first + slice.column);
            // The width was checked when the row was read, the range when the mapping was made.
            let source = cell.and_then(|cell| cell.numbers().get(slice.range.clone())).unwrap_or_default();
            for (index, (&value, target)) in source.iter().zip(target.iter_mut()).enumerate() {
                *target = value as f32;
                if !target.is_finite() {
                    return Err(LeRobotError::NotFinite {
                        path: self.rows.path().to_owned(),
                        row,
                        column: mapping.columns.get(slice.column).map_or_else(String::new, |c| c.0.clone()),
                        index: slice.range.start + index,
                        value,
                    });
                }
            }
        }
        Ok(values)
    }

    /// Decodes what the present sample needs, and on the way to it what later samples will look back at.
    fn fetch_frames(&mut self, now: u64, keys: &DatasetKeys, fps: f64) -> Result<(), LeRobotError> {
        let needed_at = |now: u64| keys.video_deltas.iter().map(move |delta| (now, *delta));
        let mut rows: BTreeSet<u64> = needed_at(now).map(|(now, delta)| self.clamped(now, delta)).collect();
        let (first, last) = (rows.first().copied().unwrap_or(now), rows.last().copied().unwrap_or(now));
        let span = keys.video_deltas.iter().map(|delta| delta.unsigned_abs()).max().unwrap_or(0);
        // A later sample can look back to the rows up to `last` only while it is at most the span away.
        let mut later = now.saturating_add(self.stride);
        while later < self.end && later <= last.saturating_add(span) {
            let looked_at = needed_at(later).map(|(now, delta)| self.clamped(now, delta));
            rows.extend(looked_at.filter(|row| (first..=last).contains(row)));
            later = later.saturating_add(self.stride);
        }
        let mut cameras = std::mem::take(&mut self.cameras);
        let result = cameras.iter_mut().try_for_each(|camera| {
            camera.forget_before(first);
            camera.fetch(&rows, |row| self.seconds(row, fps))
        });
        self.cameras = cameras;
        result
    }
}

impl LeRobotDataset {
    fn episode(&self, number: u64) -> Result<&Episode, LeRobotError> {
        self.episodes.get(&number).ok_or_else(|| LeRobotError::Episode {
            path: self.root.clone(),
            episode: number,
            present: match (self.episodes.keys().next(), self.episodes.keys().next_back()) {
                (Some(first), Some(last)) => format!("{} episodes, {first} to {last}", self.episodes.len()),
                _ => "no episode".to_owned(),
            },
        })
    }

    /// The table of an episode and the number of the episode's first row in it.
    fn table(&self, number: u64, episode: &Episode) -> Result<(Table, u64), LeRobotError> {
        match &episode.place {
            None => Ok((Table::open(&self.info.episode_table(&self.root, number)?)?, 0)),
            Some(place) => {
                let table = Table::open(&self.info.table(&self.root, place.table)?)?;
                // The file starts with the first of its episodes.
                let start = self.first_rows.get(&place.table).copied().unwrap_or(place.first_row);
                Ok((table, place.first_row.saturating_sub(start)))
            }
        }
    }

    /// The video of an episode and the time in seconds at which the episode starts in it.
    fn video(
        &self,
        number: u64,
        episode: &Episode,
        camera: &str,
    ) -> Result<(std::path::PathBuf, f64), LeRobotError> {
        let place = episode.place.as_ref().and_then(|place| place.videos.get(camera));
        match place {
            Some((file, start)) => Ok((self.info.video(&self.root, camera, *file)?, *start)),
            None => Ok((self.info.episode_video(&self.root, camera, number)?, 0.0)),
        }
    }
}
