//! `meta/modality.json`: which part of which column is which key of the checkpoint.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::json;

use super::{
    error::LeRobotError,
    files,
    info::{DatasetInfo, Feature},
    keys::DatasetKeys,
};

/// Path of `modality.json` inside a dataset.
pub const MODALITY_FILE: &str = "meta/modality.json";

const STATE_COLUMN: &str = "observation.state";
const ACTION_COLUMN: &str = "action";
const TASK_COLUMN: &str = "task_index";
const IMAGE_PREFIX: &str = "observation.images.";
const ANNOTATION_PREFIX: &str = "annotation.";

#[derive(Debug, Default, Deserialize)]
struct Modality {
    #[serde(default)]
    state: BTreeMap<String, SliceEntry>,
    #[serde(default)]
    action: BTreeMap<String, SliceEntry>,
    #[serde(default)]
    video: BTreeMap<String, KeyEntry>,
    #[serde(default)]
    annotation: BTreeMap<String, KeyEntry>,
}

#[derive(Debug, Deserialize)]
struct SliceEntry {
    start: usize,
    end: usize,
    #[serde(default)]
    original_key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct KeyEntry {
    #[serde(default)]
    original_key: Option<String>,
}

/// One state or action key of the checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slice {
    pub key: String,
    /// Index in [`Mapping::columns`].
    pub column: usize,
    pub range: Range<usize>,
}

/// One camera key of the checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Camera {
    pub key: String,
    /// Name of the column or video.
    pub feature: String,
    pub is_video: bool,
}

/// Where everything that a checkpoint wants lies in a dataset.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Mapping {
    /// Columns of numbers that are needed, each with its width.
    pub columns: Vec<(String, usize)>,
    pub state: Vec<Slice>,
    pub action: Vec<Slice>,
    pub cameras: Vec<Camera>,
    /// The column of task indices that holds the instruction.
    pub instruction: String,
}

impl Mapping {
    /// Finds the keys in the dataset.
    pub(super) fn new(root: &Path, info: &DatasetInfo, keys: &DatasetKeys) -> Result<Self, LeRobotError> {
        let path = root.join(MODALITY_FILE);
        let modality = match files::read_json::<Modality>(&path) {
            Ok(modality) => modality,
            Err(LeRobotError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Guess { path, info, keys }.mapping();
            }
            Err(error) => return Err(error),
        };
        let finder = Finder { path, info, modality };
        let mut mapping = Self::default();
        for (key, width) in &keys.state {
            let slice = finder.slice(&mut mapping.columns, "state", STATE_COLUMN, key, *width)?;
            mapping.state.push(slice);
        }
        for (key, width) in &keys.action {
            let slice = finder.slice(&mut mapping.columns, "action", ACTION_COLUMN, key, *width)?;
            mapping.action.push(slice);
        }
        mapping.cameras = keys.cameras.iter().map(|key| finder.camera(key)).collect::<Result<_, _>>()?;
        mapping.instruction = finder.instruction(keys.language.as_deref())?;
        Ok(mapping)
    }
}

struct Finder<'a> {
    path: PathBuf,
    info: &'a DatasetInfo,
    modality: Modality,
}

impl Finder<'_> {
    fn slice(
        &self,
        columns: &mut Vec<(String, usize)>,
        group: &str,
        default_column: &str,
        key: &str,
        width: usize,
    ) -> Result<Slice, LeRobotError> {
        let entries = if group == "state" { &self.modality.state } else { &self.modality.action };
        let Some(entry) = entries.get(key) else {
            return Err(self.invalid(
                group,
                format!("the checkpoint's {group} key {key:?} with {width} value(s)"),
                list(entries.keys()),
                "add it with start, end and, where the column is not the usual one, original_key",
            ));
        };
        let column = entry.original_key.as_deref().unwrap_or(default_column);
        let columns_width = self.info.features.get(column).and_then(Feature::width).ok_or_else(|| {
            self.invalid(
                &format!("{group}.{key}"),
                format!("a column of numbers that meta/info.json knows, found as {column:?}"),
                numbers(self.info),
                "name the column as original_key",
            )
        })?;
        let range = entry.start..entry.end;
        if range.start > range.end || range.end > columns_width || range.len() != width {
            return Err(self.invalid(
                &format!("{group}.{key}"),
                format!("{width} value(s), as in the checkpoint's statistics, within the {columns_width} of {column}"),
                format!("start {} and end {}", entry.start, entry.end),
                "use the checkpoint of this robot, or correct start and end",
            ));
        }
        Ok(Slice { key: key.to_owned(), column: column_index(columns, column, columns_width), range })
    }

    fn camera(&self, key: &str) -> Result<Camera, LeRobotError> {
        let Some(entry) = self.modality.video.get(key) else {
            return Err(self.invalid(
                "video",
                format!("the checkpoint's camera {key:?}"),
                list(self.modality.video.keys()),
                "add it with its original_key",
            ));
        };
        let usual = format!("{IMAGE_PREFIX}{key}");
        let feature = entry.original_key.as_deref().unwrap_or(&usual);
        camera(self.info, key, feature).ok_or_else(|| {
            self.invalid(
                &format!("video.{key}"),
                format!("a camera that meta/info.json knows, found as {feature:?}"),
                cameras(self.info),
                "name the camera as original_key",
            )
        })
    }

    fn instruction(&self, language: Option<&str>) -> Result<String, LeRobotError> {
        let Some(key) = language.filter(|key| *key != "task") else { return Ok(TASK_COLUMN.to_owned()) };
        let annotation = key.strip_prefix(ANNOTATION_PREFIX);
        match annotation.and_then(|annotation| self.modality.annotation.get(annotation)) {
            Some(entry) => Ok(entry.original_key.clone().unwrap_or_else(|| key.to_owned())),
            None => Err(self.invalid(
                "annotation",
                format!("the checkpoint's language key {key:?} (task, or {ANNOTATION_PREFIX} and a key of the file)"),
                list(self.modality.annotation.keys()),
                "add it, for example as {\"human.task_description\": {\"original_key\": \"task_index\"}}",
            )),
        }
    }

    fn invalid(&self, at: &str, expected: String, found: String, advice: &str) -> LeRobotError {
        LeRobotError::Invalid {
            path: self.path.clone(),
            at: at.to_owned(),
            expected,
            found,
            advice: advice.to_owned(),
        }
    }
}

/// A dataset without the file: what can be meant by its columns alone.
struct Guess<'a> {
    path: PathBuf,
    info: &'a DatasetInfo,
    keys: &'a DatasetKeys,
}

impl Guess<'_> {
    fn mapping(&self) -> Result<Mapping, LeRobotError> {
        let mut mapping = Mapping { instruction: TASK_COLUMN.to_owned(), ..Mapping::default() };
        let whole = |columns: &mut Vec<(String, usize)>, keys: &[(String, usize)], column: &str| match keys {
            [(key, width)] if self.info.features.get(column).and_then(Feature::width) == Some(*width) => {
                let slice = Slice {
                    key: key.clone(),
                    column: column_index(columns, column, *width),
                    range: 0..*width,
                };
                Some(vec![slice])
            }
            _ => None,
        };
        let state = whole(&mut mapping.columns, &self.keys.state, STATE_COLUMN);
        let action = whole(&mut mapping.columns, &self.keys.action, ACTION_COLUMN);
        let cameras: Option<Vec<_>> = self.keys.cameras.iter().map(|key| self.camera(key)).collect();
        let (Some(state), Some(action), Some(cameras)) = (state, action, cameras) else {
            return Err(LeRobotError::NoModality {
                path: self.path.clone(),
                needed: self.needed(),
                found: format!("{}; cameras {}", numbers(self.info), self::cameras(self.info)),
                example: self.example(),
            });
        };
        Ok(Mapping { state, action, cameras, ..mapping })
    }

    /// The camera of that name, or the dataset's only one for a checkpoint with one.
    fn camera(&self, key: &str) -> Option<Camera> {
        let usual = format!("{IMAGE_PREFIX}{key}");
        let mut all = self.info.features.iter().filter(|(_, feature)| feature.is_camera());
        camera(self.info, key, &usual).or_else(|| camera(self.info, key, key)).or_else(|| {
            match (self.keys.cameras.len(), all.next(), all.next()) {
                (1, Some((only, _)), None) => camera(self.info, key, only),
                _ => None,
            }
        })
    }

    fn needed(&self) -> String {
        let widths = |keys: &[(String, usize)]| {
            keys.iter().map(|(key, width)| format!("{key} ({width})")).collect::<Vec<_>>().join(", ")
        };
        format!(
            "state {}; action {}; cameras {}",
            widths(&self.keys.state),
            widths(&self.keys.action),
            list(&self.keys.cameras)
        )
    }

    /// The file as it would be if the keys lay side by side in the usual columns.
    fn example(&self) -> String {
        let slices = |keys: &[(String, usize)]| {
            let mut start = 0;
            let entries = keys.iter().map(|(key, width)| {
                let range = start..start + width;
                start = range.end;
                (key.clone(), json!({"start": range.start, "end": range.end}))
            });
            entries.collect::<serde_json::Map<_, _>>()
        };
        let video: serde_json::Map<_, _> = self
            .keys
            .cameras
            .iter()
            .map(|key| (key.clone(), json!({"original_key": format!("{IMAGE_PREFIX}{key}")})))
            .collect();
        let annotation = self.keys.language.as_deref().and_then(|key| key.strip_prefix(ANNOTATION_PREFIX));
        let annotation = annotation.unwrap_or("human.task_description");
        format!(
            "{:#}",
            json!({
                "state": slices(&self.keys.state),
                "action": slices(&self.keys.action),
                "video": video,
                "annotation": {annotation: {"original_key": TASK_COLUMN}},
            })
        )
    }
}

fn column_index(columns: &mut Vec<(String, usize)>, name: &str, width: usize) -> usize {
    columns.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
        columns.push((name.to_owned(), width));
        columns.len() - 1
    })
}

fn camera(info: &DatasetInfo, key: &str, feature: &str) -> Option<Camera> {
    let kind = info.features.get(feature).filter(|feature| feature.is_camera())?;
    Some(Camera { key: key.to_owned(), feature: feature.to_owned(), is_video: kind.dtype == "video" })
}

fn numbers(info: &DatasetInfo) -> String {
    let columns = info.features.iter().filter_map(|(name, feature)| Some((name, feature.width()?)));
    list(&columns.map(|(name, width)| format!("{name} ({width})")).collect::<Vec<_>>())
}

fn cameras(info: &DatasetInfo) -> String {
    list(info.features.iter().filter(|(_, feature)| feature.is_camera()).map(|(name, _)| name))
}

fn list<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    crate::checkpoint::side_file::list(names.into_iter().map(String::as_str))
}
