//! The lists of episodes and tasks, in both layouts.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    error::LeRobotError,
    files,
    info::{DatasetInfo, Version},
    table::{Cell, Table, Wanted},
};

const EPISODES_V2: &str = "meta/episodes.jsonl";
const EPISODES_V3: &str = "meta/episodes";
const TASKS_V2: &str = "meta/tasks.jsonl";
const TASKS_V3: &str = "meta/tasks.parquet";

/// Where an episode lies.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Episode {
    /// Number of rows by the list.
    pub length: u64,
    /// Its place in files that hold several episodes; `None` in version 2.
    pub place: Option<Place>,
}

/// An episode's part of the files of version 3.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    /// Chunk and file of the table.
    pub table: (u64, u64),
    /// Number of its first row in the whole dataset.
    pub first_row: u64,
    /// Per video its chunk, its file, and the time in seconds at which the episode starts in it.
    pub videos: BTreeMap<String, ((u64, u64), f64)>,
}

/// Reads the list of episodes; `videos` are the features whose places are needed.
pub(super) fn load(
    root: &Path,
    info: &DatasetInfo,
    videos: &[&str],
) -> Result<BTreeMap<u64, Episode>, LeRobotError> {
    match info.version {
        Version::V2 => load_v2(root),
        Version::V3 => load_v3(root, videos),
    }
}

fn load_v2(root: &Path) -> Result<BTreeMap<u64, Episode>, LeRobotError> {
    #[derive(Deserialize)]
    struct Line {
        episode_index: u64,
        length: u64,
    }
    let lines: Vec<Line> = files::read_json_lines(&root.join(EPISODES_V2))?;
    Ok(lines
        .into_iter()
        .map(|line| (line.episode_index, Episode { length: line.length, place: None }))
        .collect())
}

fn load_v3(root: &Path, videos: &[&str]) -> Result<BTreeMap<u64, Episode>, LeRobotError> {
    let mut names: Vec<String> =
        ["episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index"]
            .map(str::to_owned)
            .into();
    let fixed = names.len();
    for video in videos {
        names.extend(
            ["chunk_index", "file_index", "from_timestamp"].map(|name| format!("videos/{video}/{name}")),
        );
    }
    let wanted: Vec<_> = names.iter().map(|name| Wanted::Numbers(name)).collect();
    let mut episodes = BTreeMap::new();
    for path in numbered_files(&root.join(EPISODES_V3))? {
        let table = Table::open(&path)?;
        let mut rows = table.rows(&wanted, 0..table.len())?;
        while let Some(row) = rows.next()? {
            let index = |column: usize| {
                row.get(column).and_then(Cell::index).ok_or_else(|| {
                    let found =
                        row.get(column).map_or_else(String::new, |cell| format!("{:?}", cell.numbers()));
                    invalid(&path, &names[column], "a whole number of at least 0", found)
                })
            };
            let mut places = BTreeMap::new();
            for (number, video) in videos.iter().enumerate() {
                let column = fixed + 3 * number;
                let start = row.get(column + 2).and_then(|cell| cell.numbers().first().copied());
                let start = start.filter(|start| start.is_finite() && *start >= 0.0).ok_or_else(|| {
                    invalid(&path, &names[column + 2], "seconds of at least 0", format!("{start:?}"))
                })?;
                places.insert((*video).to_owned(), ((index(column)?, index(column + 1)?), start));
            }
            let place = Place { first_row: index(2)?, table: (index(3)?, index(4)?), videos: places };
            episodes.insert(index(0)?, Episode { length: index(1)?, place: Some(place) });
        }
    }
    Ok(episodes)
}

fn invalid(path: &Path, at: &str, expected: &str, found: String) -> LeRobotError {
    LeRobotError::Invalid {
        path: path.to_owned(),
        at: at.to_owned(),
        expected: expected.to_owned(),
        found,
        advice: "repair the dataset's list of episodes".to_owned(),
    }
}

/// The files `chunk-XXX/file-XXX.parquet` of a folder, in the order of their numbers.
fn numbered_files(folder: &Path) -> Result<Vec<PathBuf>, LeRobotError> {
    let advice = "LeRobot v3.0 keeps its list of episodes there: is the dataset complete?";
    let failed = |path: &Path, source| LeRobotError::Read { path: path.to_owned(), source, advice };
    let list = |folder: &Path| -> Result<Vec<PathBuf>, LeRobotError> {
        let entries = std::fs::read_dir(folder).map_err(|source| failed(folder, source))?;
        let mut paths = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| failed(folder, source))?;
        // Numbers above 999 are longer: the order is that of the numbers, not of the letters.
        paths.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
        Ok(paths)
    };
    let mut files = Vec::new();
    for chunk in list(folder)?.into_iter().filter(|path| path.is_dir()) {
        files.extend(
            list(&chunk)?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "parquet")),
        );
    }
    if files.is_empty() {
        return Err(failed(folder, std::io::ErrorKind::NotFound.into()));
    }
    Ok(files)
}

/// The texts of the tasks by their index.
#[derive(Debug, Clone, Default)]
pub(super) struct Tasks {
    pub path: PathBuf,
    pub texts: BTreeMap<u64, String>,
}

impl Tasks {
    pub(super) fn load(root: &Path, version: Version) -> Result<Self, LeRobotError> {
        match version {
            Version::V2 => Self::load_v2(root.join(TASKS_V2)),
            Version::V3 => Self::load_v3(root.join(TASKS_V3)),
        }
    }

    fn load_v2(path: PathBuf) -> Result<Self, LeRobotError> {
        #[derive(Deserialize)]
        struct Line {
            task_index: u64,
            task: String,
        }
        let lines: Vec<Line> = files::read_json_lines(&path)?;
        Ok(Self { path, texts: lines.into_iter().map(|line| (line.task_index, line.task)).collect() })
    }

    fn load_v3(path: PathBuf) -> Result<Self, LeRobotError> {
        let table = Table::open(&path)?;
        // pandas names the column of an index that has no name so.
        let unnamed = "__index_level_0__";
        let text = if table.columns().any(|name| name == unnamed) { unnamed } else { "task" };
        let mut rows = table.rows(&[Wanted::Numbers("task_index"), Wanted::Bytes(text)], 0..table.len())?;
        let mut texts = BTreeMap::new();
        while let Some(row) = rows.next()? {
            match row.as_slice() {
                [index, Cell::Bytes(Some(text))] if index.index().is_some() => {
                    let text = String::from_utf8_lossy(text).into_owned();
                    texts.extend(index.index().map(|index| (index, text)));
                }
                other => {
                    return Err(invalid(&path, "a row", "a task's index and its text", format!("{other:?}")));
                }
            }
        }
        Ok(Self { path, texts })
    }

    /// The text of a task.
    pub(super) fn text(&self, index: u64) -> Result<&str, LeRobotError> {
        self.texts.get(&index).map(String::as_str).ok_or_else(|| LeRobotError::Invalid {
            path: self.path.clone(),
            at: "task_index".to_owned(),
            expected: format!("the task {index}, which a row refers to"),
            found: match (self.texts.keys().next(), self.texts.keys().next_back()) {
                (Some(first), Some(last)) => format!("{} tasks, {first} to {last}", self.texts.len()),
                _ => "no task".to_owned(),
            },
            advice: "add the task".to_owned(),
        })
    }
}
