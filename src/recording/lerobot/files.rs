//! Opening a dataset's files: missing ones, git-LFS pointers and path templates.

use std::{
    fs::File,
    io::Read,
    path::{Component, Path, PathBuf},
};

use serde::de::DeserializeOwned;

use super::error::LeRobotError;
use crate::checkpoint::side_file::LFS_PREFIX;

/// Largest file of text that is read, in bytes. `episodes.jsonl` of a hundred thousand episodes has some 20 MB.
const MAX_TEXT: u64 = 256 << 20;
/// No pointer is longer.
const LFS_BYTES: u64 = 1024;

const MISSING: &str =
    "expected a file of the dataset: is it complete, and is the folder its root, which holds meta/?";

/// Opens a file and refuses a git-LFS pointer.
pub(super) fn open(path: &Path) -> Result<File, LeRobotError> {
    let failed = |source| LeRobotError::Read { path: path.to_owned(), source, advice: MISSING };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(failed(std::io::ErrorKind::IsADirectory.into()));
    }
    if metadata.len() <= LFS_BYTES {
        let mut start = Vec::new();
        (&file).take(LFS_PREFIX.len() as u64).read_to_end(&mut start).map_err(failed)?;
        if start == LFS_PREFIX {
            return Err(LeRobotError::LfsPointer { path: path.to_owned(), bytes: metadata.len() });
        }
        std::io::Seek::rewind(&mut &file).map_err(failed)?;
    }
    Ok(file)
}

/// Reads a file of text.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, LeRobotError> {
    let mut bytes = Vec::new();
    open(path)?.take(MAX_TEXT + 1).read_to_end(&mut bytes).map_err(|source| LeRobotError::Read {
        path: path.to_owned(),
        source,
        advice: MISSING,
    })?;
    if bytes.len() as u64 > MAX_TEXT {
        return Err(LeRobotError::TooLarge { path: path.to_owned(), limit: MAX_TEXT });
    }
    Ok(bytes)
}

/// Reads a JSON file.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, LeRobotError> {
    parse(path, "", &read(path)?)
}

/// Reads a file with one JSON value per line; empty lines are skipped.
pub(super) fn read_json_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, LeRobotError> {
    read(path)?
        .split(|&byte| byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .map(|(number, line)| parse(path, &format!("line {}", number + 1), line))
        .collect()
}

fn parse<T: DeserializeOwned>(path: &Path, place: &str, json: &[u8]) -> Result<T, LeRobotError> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let inside = error.path().to_string();
        let at = match (place, inside.as_str()) {
            ("", ".") => "the top level".to_owned(),
            ("", _) => inside,
            (_, ".") => place.to_owned(),
            (_, _) => format!("{place}, {inside}"),
        };
        LeRobotError::Json { path: path.to_owned(), at, message: error.into_inner().to_string() }
    })
}

/// The value of one placeholder of a path template.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Number(u64),
    Text(&'a str),
}

/// Fills a template such as `data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet`, whose placeholders
/// follow Python's `str.format`. The result must stay inside `root`.
pub(super) fn fill(root: &Path, template: &str, values: &[(&str, Value)]) -> Result<PathBuf, String> {
    let mut path = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        path.push_str(before);
        let (placeholder, after) = after.split_once('}').ok_or_else(|| "an unclosed {".to_owned())?;
        rest = after;
        let (name, format) = placeholder.split_once(':').unwrap_or((placeholder, ""));
        let Some((_, value)) = values.iter().find(|(known, _)| *known == name) else {
            let known: Vec<_> = values.iter().map(|(name, _)| *name).collect();
            return Err(format!("the placeholder {{{name}}}, where {} are known", known.join(", ")));
        };
        match (value, format) {
            (Value::Text(text), "" | "s") => path.push_str(text),
            (Value::Number(number), "" | "d") => path.push_str(&number.to_string()),
            (Value::Number(number), format) => {
                let width = format
                    .strip_prefix('0')
                    .and_then(|format| format.strip_suffix('d'))
                    .and_then(|width| width.parse::<usize>().ok())
                    .filter(|width| *width <= 20)
                    .ok_or_else(|| format!("the format {format:?} of {name}"))?;
                path.push_str(&format!("{number:0width$}"));
            }
            (Value::Text(_), format) => return Err(format!("the format {format:?} of {name}")),
        }
    }
    path.push_str(rest);
    let relative = Path::new(&path);
    if relative.components().all(|part| matches!(part, Component::Normal(_))) && !path.is_empty() {
        Ok(root.join(relative))
    } else {
        Err(format!("the path {path:?}, which leads out of the dataset"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_as_python_fills_it() {
        let values = [("episode_chunk", Value::Number(1)), ("video_key", Value::Text("a.b"))];
        let fill = |template| fill(Path::new("root"), template, &values);
        assert_eq!(
            fill("v/chunk-{episode_chunk:03d}/{video_key}/{episode_chunk}.mp4").unwrap(),
            Path::new("root/v/chunk-001/a.b/1.mp4")
        );
        for (template, message) in [
            ("{other}", "{other}"),
            ("{video_key", "unclosed"),
            ("{episode_chunk:x}", "\"x\""),
            ("{episode_chunk:09999999999d}", "09999999999d"),
            ("../{video_key}", "out of the dataset"),
            ("/{video_key}", "out of the dataset"),
            ("", "out of the dataset"),
        ] {
            assert!(fill(template).unwrap_err().contains(message), "{template}");
        }
    }

    #[test]
    fn a_git_lfs_pointer_names_the_command_that_fetches_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("episode.parquet");
        std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n").unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("git lfs pull"));
    }

    #[test]
    fn a_broken_line_is_named_by_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tasks.jsonl");
        std::fs::write(&path, "{\"a\": 1}\n\n{\"a\": \"x\"}\n").unwrap();
        let error = read_json_lines::<std::collections::BTreeMap<String, u64>>(&path).unwrap_err();
        assert!(error.to_string().contains("line 3, a: "), "{error}");
    }
}
