//! `meta/info.json`: what the dataset holds and where its files lie.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value as Json;

use super::{
    error::LeRobotError,
    files::{self, Value},
};

/// Path of `info.json` inside a dataset.
pub const INFO_FILE: &str = "meta/info.json";
/// Fastest recording that is believed, in frames per second.
const MAX_FPS: f64 = 10_000.0;

/// The layouts that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One file per episode; `v2.1` and `v2.0`, which differ in their statistics alone.
    V2,
    /// Several episodes per file.
    V3,
}

/// What `meta/info.json` says.
#[derive(Debug, Clone)]
pub struct DatasetInfo {
    /// The file itself.
    pub path: PathBuf,
    /// Layout of the files.
    pub version: Version,
    /// As written: `v2.1`, `v3.0`.
    pub codebase_version: String,
    /// Kind of robot, if the dataset tells.
    pub robot_type: Option<String>,
    /// Rows per second.
    pub fps: f64,
    /// Number of episodes.
    pub total_episodes: u64,
    /// Number of rows of all episodes.
    pub total_frames: u64,
    /// Columns and videos by name.
    pub features: BTreeMap<String, Feature>,
    chunks_size: u64,
    data_path: String,
    video_path: Option<String>,
}

/// A column or a video.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Feature {
    /// `float32`, `int64`, `image`, `video`, and so on.
    pub dtype: String,
    /// Numbers per row; for pictures height, width and channels.
    #[serde(default)]
    pub shape: Vec<u64>,
    /// Names of the numbers, in one of several layouts.
    #[serde(default)]
    pub names: Json,
}

impl Feature {
    /// Whether the feature is a camera.
    pub fn is_camera(&self) -> bool {
        matches!(self.dtype.as_str(), "image" | "video")
    }

    /// Number of values in a row of numbers; `None` for anything else.
    pub fn width(&self) -> Option<usize> {
        match (self.is_camera() || self.dtype == "string", self.shape.as_slice()) {
            (false, []) => Some(1),
            (false, [width]) => usize::try_from(*width).ok(),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct Document {
    codebase_version: String,
    #[serde(default)]
    robot_type: Option<String>,
    fps: f64,
    total_episodes: u64,
    #[serde(default)]
    total_frames: u64,
    features: BTreeMap<String, Feature>,
    #[serde(default = "default_chunks_size")]
    chunks_size: u64,
    data_path: String,
    #[serde(default)]
    video_path: Option<String>,
}

fn default_chunks_size() -> u64 {
    1000
}

impl DatasetInfo {
    pub(super) fn load(root: &Path) -> Result<Self, LeRobotError> {
        let path = root.join(INFO_FILE);
        let document: Document = files::read_json(&path)?;
        let invalid = |at: &str, expected: &str, found: String, advice: &str| {
            Err(LeRobotError::Invalid {
                path: path.clone(),
                at: at.to_owned(),
                expected: expected.to_owned(),
                found,
                advice: advice.to_owned(),
            })
        };
        let version = match document.codebase_version.as_str() {
            "v2.0" | "v2.1" => Version::V2,
            "v3.0" => Version::V3,
            other => {
                let advice =
                    "convert the dataset with LeRobot's own scripts, convert_dataset_v21_to_v30 for instance";
                return invalid("codebase_version", "v2.1 or v3.0", format!("{other:?}"), advice);
            }
        };
        if !(document.fps > 0.0 && document.fps <= MAX_FPS) {
            let expected = format!("more than 0 and at most {MAX_FPS}");
            return invalid("fps", &expected, document.fps.to_string(), "give the recording's rate");
        }
        if document.chunks_size == 0 {
            return invalid("chunks_size", "at least 1", "0".to_owned(), "LeRobot writes 1000");
        }
        Ok(Self {
            path,
            version,
            codebase_version: document.codebase_version,
            robot_type: document.robot_type,
            fps: document.fps,
            total_episodes: document.total_episodes,
            total_frames: document.total_frames,
            features: document.features,
            chunks_size: document.chunks_size,
            data_path: document.data_path,
            video_path: document.video_path,
        })
    }

    fn fill(
        &self,
        root: &Path,
        at: &str,
        template: &str,
        values: &[(&str, Value)],
    ) -> Result<PathBuf, LeRobotError> {
        files::fill(root, template, values).map_err(|found| LeRobotError::Invalid {
            path: self.path.clone(),
            at: at.to_owned(),
            expected: "a path template of LeRobot's".to_owned(),
            found: format!("{found} (in {template:?})"),
            advice: "repair the template".to_owned(),
        })
    }

    /// The table of an episode of version 2.
    pub(super) fn episode_table(&self, root: &Path, episode: u64) -> Result<PathBuf, LeRobotError> {
        let values = [
            ("episode_chunk", Value::Number(episode / self.chunks_size)),
            ("episode_index", Value::Number(episode)),
        ];
        self.fill(root, "data_path", &self.data_path, &values)
    }

    /// A table of version 3.
    pub(super) fn table(&self, root: &Path, (chunk, file): (u64, u64)) -> Result<PathBuf, LeRobotError> {
        let values = [("chunk_index", Value::Number(chunk)), ("file_index", Value::Number(file))];
        self.fill(root, "data_path", &self.data_path, &values)
    }

    /// The video of an episode of version 2.
    pub(super) fn episode_video(
        &self,
        root: &Path,
        camera: &str,
        episode: u64,
    ) -> Result<PathBuf, LeRobotError> {
        let values = [
            ("episode_chunk", Value::Number(episode / self.chunks_size)),
            ("video_key", Value::Text(camera)),
            ("episode_index", Value::Number(episode)),
        ];
        self.fill(root, "video_path", self.video_template(camera)?, &values)
    }

    /// A video of version 3.
    pub(super) fn video(
        &self,
        root: &Path,
        camera: &str,
        (chunk, file): (u64, u64),
    ) -> Result<PathBuf, LeRobotError> {
        let values = [
            ("video_key", Value::Text(camera)),
            ("chunk_index", Value::Number(chunk)),
            ("file_index", Value::Number(file)),
        ];
        self.fill(root, "video_path", self.video_template(camera)?, &values)
    }

    fn video_template(&self, camera: &str) -> Result<&str, LeRobotError> {
        self.video_path.as_deref().ok_or_else(|| LeRobotError::Invalid {
            path: self.path.clone(),
            at: "video_path".to_owned(),
            expected: format!("a path template, because {camera} is a video"),
            found: "none".to_owned(),
            advice: "repair the file".to_owned(),
        })
    }
}
