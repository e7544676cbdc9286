//! Writes the synthetic robot as a LeRobot dataset of version 2.1, with the pictures inside the tables, so that
//! nothing is needed to read it back.

use std::{
    fs::File,
    io::Cursor,
    path::{Path, PathBuf},
    sync::Arc,
};

use image::{ImageFormat, RgbImage};
use parquet::{
    basic::{Compression, ZstdLevel},
    column::writer::ColumnWriter,
    data_type::ByteArray,
    errors::{ParquetError, Result as ParquetResult},
    file::{
        properties::WriterProperties,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::parser::parse_message_type,
};
use serde_json::{Value as Json, json};

use super::{INFO_FILE, LeRobotError, MODALITY_FILE};
use crate::synthetic::{SyntheticOptions, SyntheticRobot};

/// Rows per row group, and with it the pictures that are in memory at once.
const ROWS_PER_GROUP: u64 = 32;
const CHUNKS_SIZE: u64 = 1000;

/// What is recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct WriteOptions {
    /// Number of episodes.
    pub episodes: u64,
    /// Length of each in seconds.
    pub seconds: f64,
    /// Rows per second.
    pub fps: u32,
    /// The task.
    pub instruction: String,
}

impl Default for WriteOptions {
    /// Two episodes of five seconds at 20 Hz.
    fn default() -> Self {
        Self { episodes: 2, seconds: 5.0, fps: 20, instruction: "move the square".to_owned() }
    }
}

/// Writes a dataset into `root`, which is made where it is not there; files of the same names are replaced.
///
/// State and action keys are the joints' names up to `_joint_`, in the order of the joints. The action of a row is
/// where the joints are one row later. Episode e starts e lengths after the robot's start, so that no two are equal.
///
/// # Errors
/// What cannot be written, and lengths of less than a row.
pub fn write_dataset(
    root: &Path,
    robot: &SyntheticOptions,
    options: &WriteOptions,
) -> Result<(), LeRobotError> {
    let rows = (options.seconds * f64::from(options.fps)).round();
    if !(1.0..=1e9).contains(&rows) {
        let message = format!("expected episodes of 1 to 10⁹ rows, found {rows}");
        return Err(LeRobotError::Write { path: root.to_owned(), message });
    }
    // In the range that was checked just above.
    let rows = rows as u64;
    let picture_of = SyntheticRobot::new(robot);
    for episode in 0..options.episodes {
        let path = root.join(format!("data/chunk-{:03}/episode_{episode:06}.parquet", episode / CHUNKS_SIZE));
        make_parent(&path)?;
        let span = EpisodeSpan { episode, rows, fps: options.fps };
        write_episode(&path, &picture_of, robot, &span)
            .map_err(|error| LeRobotError::Write { path, message: error.to_string() })?;
    }
    write_json(root.join(INFO_FILE), &info(&picture_of, robot, options, rows))?;
    write_json(root.join(MODALITY_FILE), &modality(robot))?;
    write_lines(
        root.join("meta/tasks.jsonl"),
        [json!({"task_index": 0, "task": options.instruction})].into_iter(),
    )?;
    let episodes = 0..options.episodes;
    write_lines(
        root.join("meta/episodes.jsonl"),
        episodes.map(|e| json!({"episode_index": e, "tasks": [options.instruction], "length": rows})),
    )
}

struct EpisodeSpan {
    episode: u64,
    rows: u64,
    fps: u32,
}

impl EpisodeSpan {
    /// Seconds since the robot's start.
    fn time(&self, row: u64) -> f64 {
        (self.episode * self.rows + row) as f64 / f64::from(self.fps)
    }
}

fn write_episode(
    path: &Path,
    picture_of: &SyntheticRobot,
    robot: &SyntheticOptions,
    span: &EpisodeSpan,
) -> ParquetResult<()> {
    let schema = Arc::new(parse_message_type(&schema(robot))?);
    let compression = Compression::ZSTD(ZstdLevel::default());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer = SerializedFileWriter::new(File::create(path)?, schema, properties)?;
    let mut start = 0;
    while start < span.rows {
        let end = (start + ROWS_PER_GROUP).min(span.rows);
        let mut group = Group { writer: writer.next_row_group()? };
        for camera in &robot.cameras {
            group.pictures((start..end).map(|row| picture_of.frame(camera, span.time(row))))?;
        }
        group.lists((start..end).map(|row| picture_of.joints(span.time(row))))?;
        group.lists((start..end).map(|row| picture_of.joints(span.time(row + 1))))?;
        group.floats((start..end).map(|row| (row as f64 / f64::from(span.fps)) as f32))?;
        group.integers((start..end).map(|row| row as i64))?;
        group.integers((start..end).map(|_| span.episode as i64))?;
        group.integers((start..end).map(|row| (span.episode * span.rows + row) as i64))?;
        group.integers((start..end).map(|_| 0))?;
        group.writer.close()?;
        start = end;
    }
    writer.close()?;
    Ok(())
}

fn schema(robot: &SyntheticOptions) -> String {
    let mut schema = String::from("message schema {\n");
    for camera in &robot.cameras {
        schema += &format!(
            "required group observation.images.{camera} {{ required binary bytes; optional binary path (UTF8); }}\n"
        );
    }
    for column in ["observation.state", "action"] {
        schema += &format!(
            "required group {column} (LIST) {{ repeated group list {{ required float element; }} }}\n"
        );
    }
    schema += "required float timestamp;\nrequired int64 frame_index;\nrequired int64 episode_index;\n\
               required int64 index;\nrequired int64 task_index;\n}";
    schema
}

/// A row group, whose columns are written in the order of the schema.
struct Group<'a> {
    writer: SerializedRowGroupWriter<'a, File>,
}

impl Group<'_> {
    fn column(&mut self, write: impl FnOnce(&mut ColumnWriter) -> ParquetResult<usize>) -> ParquetResult<()> {
        let Some(mut column) = self.writer.next_column()? else {
            return Err(ParquetError::General("the schema has no such column".to_owned()));
        };
        write(column.untyped())?;
        column.close()
    }

    fn pictures(&mut self, pictures: impl Iterator<Item = Option<RgbImage>>) -> ParquetResult<()> {
        let encoded = pictures
            .map(|picture| {
                let mut bytes = Cursor::new(Vec::new());
                let picture = picture.ok_or_else(|| ParquetError::General("no such camera".to_owned()))?;
                picture
                    .write_to(&mut bytes, ImageFormat::Png)
                    .map_err(|error| ParquetError::External(Box::new(error)))?;
                Ok(ByteArray::from(bytes.into_inner()))
            })
            .collect::<ParquetResult<Vec<_>>>()?;
        let absent = vec![0; encoded.len()];
        self.column(|column| match column {
            ColumnWriter::ByteArrayColumnWriter(column) => column.write_batch(&encoded, None, None),
            _ => Err(wrong_type()),
        })?;
        self.column(|column| match column {
            ColumnWriter::ByteArrayColumnWriter(column) => column.write_batch(&[], Some(&absent), None),
            _ => Err(wrong_type()),
        })
    }

    fn lists(&mut self, rows: impl Iterator<Item = Vec<f64>>) -> ParquetResult<()> {
        let (mut values, mut definitions, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            for (index, value) in row.iter().enumerate() {
                values.push(*value as f32);
                definitions.push(1);
                repetitions.push(i16::from(index > 0));
            }
            if row.is_empty() {
                definitions.push(0);
                repetitions.push(0);
            }
        }
        self.column(|column| match column {
            ColumnWriter::FloatColumnWriter(column) => {
                column.write_batch(&values, Some(&definitions), Some(&repetitions))
            }
            _ => Err(wrong_type()),
        })
    }

    fn floats(&mut self, values: impl Iterator<Item = f32>) -> ParquetResult<()> {
        let values: Vec<_> = values.collect();
        self.column(|column| match column {
            ColumnWriter::FloatColumnWriter(column) => column.write_batch(&values, None, None),
            _ => Err(wrong_type()),
        })
    }

    fn integers(&mut self, values: impl Iterator<Item = i64>) -> ParquetResult<()> {
        let values: Vec<_> = values.collect();
        self.column(|column| match column {
            ColumnWriter::Int64ColumnWriter(column) => column.write_batch(&values, None, None),
            _ => Err(wrong_type()),
        })
    }
}

fn wrong_type() -> ParquetError {
    ParquetError::General("the schema's columns have another order".to_owned())
}

fn info(picture_of: &SyntheticRobot, robot: &SyntheticOptions, options: &WriteOptions, rows: u64) -> Json {
    let numbers = json!({"dtype": "float32", "shape": [robot.joints.len()], "names": robot.joints});
    let integer = json!({"dtype": "int64", "shape": [1], "names": null});
    let mut features = serde_json::Map::new();
    for camera in &robot.cameras {
        // The robot limits the size that was asked for.
        let (width, height) =
            picture_of.frame(camera, 0.0).map_or(robot.size, |picture| picture.dimensions());
        let names = ["height", "width", "channels"];
        let feature = json!({"dtype": "image", "shape": [height, width, 3], "names": names});
        features.insert(format!("observation.images.{camera}"), feature);
    }
    for (name, feature) in [
        ("observation.state", &numbers),
        ("action", &numbers),
        ("timestamp", &json!({"dtype": "float32", "shape": [1], "names": null})),
        ("frame_index", &integer),
        ("episode_index", &integer),
        ("index", &integer),
        ("task_index", &integer),
    ] {
        features.insert(name.to_owned(), feature.clone());
    }
    json!({
        "codebase_version": "v2.1",
        "robot_type": "synthetic",
        "total_episodes": options.episodes,
        "total_frames": options.episodes * rows,
        "total_tasks": 1,
        "total_videos": 0,
        "total_chunks": options.episodes.div_ceil(CHUNKS_SIZE),
        "chunks_size": CHUNKS_SIZE,
        "fps": options.fps,
        "splits": {"train": format!("0:{}", options.episodes)},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": null,
        "features": features,
    })
}

fn modality(robot: &SyntheticOptions) -> Json {
    let mut slices: Vec<(&str, usize, usize)> = Vec::new();
    for (index, joint) in robot.joints.iter().enumerate() {
        let key = joint.split_once("_joint_").map_or(joint.as_str(), |(key, _)| key);
        match slices.last_mut() {
            Some((last, _, end)) if *last == key => *end = index + 1,
            _ => slices.push((key, index, index + 1)),
        }
    }
    let slices: serde_json::Map<_, _> = slices
        .into_iter()
        .map(|(key, start, end)| (key.to_owned(), json!({"start": start, "end": end})))
        .collect();
    let video: serde_json::Map<_, _> = robot
        .cameras
        .iter()
        .map(|camera| (camera.clone(), json!({"original_key": format!("observation.images.{camera}")})))
        .collect();
    let task = json!({"original_key": "task_index"});
    json!({
        "state": slices,
        "action": slices,
        "video": video,
        "annotation": {"human.task_description": task, "human.action.task_description": task},
    })
}

fn make_parent(path: &Path) -> Result<(), LeRobotError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(parent)
        .map_err(|error| LeRobotError::Write { path: parent.to_owned(), message: error.to_string() })
}

fn write_json(path: PathBuf, value: &Json) -> Result<(), LeRobotError> {
    write_text(path, format!("{value:#}\n"))
}

fn write_lines(path: PathBuf, values: impl Iterator<Item = Json>) -> Result<(), LeRobotError> {
    write_text(path, values.map(|value| format!("{value}\n")).collect())
}

fn write_text(path: PathBuf, text: String) -> Result<(), LeRobotError> {
    make_parent(&path)?;
    std::fs::write(&path, text).map_err(|error| LeRobotError::Write { path, message: error.to_string() })
}
