//! What can be wrong with a checkpoint directory, in words that say where, what was expected and what was found.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::side_file::SideFileError;

/// How many problems one error spells out before it only counts.
const MAX_LISTED: usize = 20;

/// Longest piece of outside text (a tensor's name, a JSON value) that a message repeats, in characters.
const MAX_QUOTED: usize = 160;

/// Why a checkpoint directory cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The path given is not a directory.
    #[error("{path}: expected a checkpoint directory, found {found}", path = path.display())]
    NotADirectory { path: PathBuf, found: &'static str },

    /// A file without which nothing can be loaded is absent.
    #[error(
        "{path}: no such file; expected a directory with config.json and model.safetensors (or shards with \
         model.safetensors.index.json), found {found}",
        path = path.display()
    )]
    MissingFile { path: PathBuf, found: String },

    /// The operating system refused to give a file's metadata or contents.
    #[error("{path}: cannot be read: {source}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },

    /// Files of the directory are damaged, contradict each other, or ask for a variant of the network that is not built
    /// here. Everything of one kind (one configuration file; all weights) is reported together.
    #[error("{dir}: {problems}", dir = dir.display())]
    Invalid { dir: PathBuf, problems: Problems },

    /// A file beside the weights (a configuration, statistics, an index) is absent, damaged or senseless.
    #[error(transparent)]
    SideFile(#[from] SideFileError),

    /// A tensor was asked for that no file holds.
    #[error("tensor {tensor}: expected in the checkpoint's weights, found in none of its files")]
    NoSuchTensor { tensor: String },

    /// A tensor was asked for whose element type is none that the network reads.
    #[error("{file}: tensor {tensor}: expected BF16, F16 or F32, found {found}")]
    UnsupportedKind { file: String, tensor: String, found: String },
}

impl CheckpointError {
    /// The problems of one configuration file.
    pub(super) fn in_file(path: &Path, problems: Vec<Problem>) -> Self {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        Self::Invalid { dir: dir.to_owned(), problems: Problems(problems) }
    }
}

/// One thing that is wrong in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File name inside the checkpoint directory.
    pub file: String,
    /// The tensor or the configuration key concerned, if it is not the file as a whole.
    pub item: Option<String>,
    pub expected: String,
    pub found: String,
    /// What to do about it, where that is not plain from the rest.
    pub advice: Option<&'static str>,
}

impl Problem {
    /// A problem of the file as a whole.
    pub(super) fn file(file: &str, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            item: None,
            expected: expected.into(),
            found: found.into(),
            advice: None,
        }
    }

    /// A problem of one tensor or one configuration key.
    pub(super) fn item(
        file: &str,
        item: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self { item: Some(item.to_owned()), ..Self::file(file, expected, found) }
    }

    pub(super) fn with_advice(self, advice: &'static str) -> Self {
        Self { advice: Some(advice), ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", quote(&self.file))?;
        if let Some(item) = &self.item {
            write!(f, "{}: ", quote(item))?;
        }
        write!(f, "expected {}, found {}", self.expected, quote(&self.found))?;
        match self.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

/// All problems of one kind, gathered so that one attempt shows everything. Never empty inside an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.0.as_slice() {
            return only.fmt(f);
        }
        write!(f, "{} problems", self.0.len())?;
        for problem in self.0.iter().take(MAX_LISTED) {
            write!(f, "\n  {problem}")?;
        }
        match self.0.len().saturating_sub(MAX_LISTED) {
            0 => Ok(()),
            more => write!(f, "\n  ... and {more} more"),
        }
    }
}

/// Outside text made fit for a message: one line, bounded length, no control characters.
pub(super) fn quote(text: &str) -> String {
    let mut clean: String = text
        .chars()
        .take(MAX_QUOTED)
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect();
    if text.chars().nth(MAX_QUOTED).is_some() {
        clean.push_str("...");
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_problem_is_told_on_one_line() {
        let problem = Problem::item("config.json", "hidden_size", "a whole number", "\"many\"");
        assert_eq!(
            Problems(vec![problem]).to_string(),
            "config.json: hidden_size: expected a whole number, found \"many\""
        );
    }

    #[test]
    fn after_the_first_twenty_problems_the_rest_is_counted() {
        let problem = |i: usize| Problem::item("model.safetensors", &format!("tensor{i}"), "one", "none");
        let text = Problems((0..53).map(problem).collect()).to_string();
        assert!(text.starts_with("53 problems\n"), "{text}");
        assert!(text.contains("tensor19:") && !text.contains("tensor20:"), "{text}");
        assert!(text.ends_with("... and 33 more"), "{text}");
    }

    #[test]
    fn hostile_names_are_shortened_and_stay_on_one_line() {
        let quoted = quote(&format!("a\n\u{1b}[31m{}", "x".repeat(10_000)));
        assert!(quoted.chars().count() < 200 && !quoted.contains(['\n', '\u{1b}']), "{quoted}");
    }
}
