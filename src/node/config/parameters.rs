//! The node's parameters by name: given, checked against the table, completed with defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::problem::{ConfigError, Problem};
use super::section::{self, Given, Source};
use super::spec::{ParameterDefault, ParameterSpec, is_placeholder};
use super::table::parameter_table;
use super::value::{ParameterValue, quoted};

/// Longest unknown name for which a similar one is looked up.
const LONGEST_COMPARED: usize = 128;

/// Why a parameter keeps its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// There is no such parameter.
    #[error("{name} is not a parameter of this node: {hint}")]
    Undeclared {
        /// The name.
        name: String,
        /// What may have been meant.
        hint: String,
    },
    /// It is read only once.
    #[error(
        "{name} cannot change while the node runs: set it in the parameter file or with -p {name}:=..., and restart \
         the node"
    )]
    Static {
        /// The name.
        name: String,
    },
    /// It does not take the value.
    #[error("{name}: {fault}")]
    Value {
        /// The name.
        name: String,
        /// What was expected and found.
        fault: String,
    },
}

/// Companion tools that read the node's files too. Parameters below these names are theirs.
pub const TOOLS: [&str; 3] = ["replay", "engine", "calibrate"];

/// The parameters of a companion tool, one of [`TOOLS`], in the order in which they override one another: name behind the
/// tool's, value, and the folder from which a relative path counts.
///
/// # Errors
/// Files that cannot be read, values that are none. What the node makes of its own parameters is not looked at.
pub fn tool_parameters(
    node: &str,
    tool: &str,
    files: &[PathBuf],
    overrides: &[(String, String)],
) -> Result<Vec<(String, ParameterValue, Option<PathBuf>)>, ConfigError> {
    let mut problems = Vec::new();
    let given = read(node, files, overrides, &mut problems);
    ConfigError::unless_empty(problems)?;
    let own = given.into_iter().filter_map(|Given { name, value, source }| {
        let name = name.strip_prefix(tool)?.strip_prefix('.')?.to_owned();
        let folder = source.file.as_deref().and_then(Path::parent).map(Path::to_owned);
        Some((name, value?, folder))
    });
    Ok(own.collect())
}

fn read(
    node: &str,
    files: &[PathBuf],
    overrides: &[(String, String)],
    problems: &mut Vec<Problem>,
) -> Vec<Given> {
    let mut given = Vec::new();
    for file in files {
        given.extend(section::read_file(file, node, problems));
    }
    for (name, value) in overrides {
        given.extend(section::read_override(name, value, node, problems));
    }
    given
}

/// Every parameter that is set, by its dotted name, each valid by the table.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    value: ParameterValue,
    /// `None` for a default and for what was changed while the node ran.
    source: Option<Source>,
}

impl Parameters {
    /// Reads files and overrides for the node with the fully qualified name `node`; a later one wins over an earlier one.
    ///
    /// # Errors
    /// Every problem of the files and overrides; a required parameter that is missing is one too.
    pub fn load(node: &str, files: &[PathBuf], overrides: &[(String, String)]) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let given = read(node, files, overrides, &mut problems);
        let parameters = Self::from_given(given, &mut problems);
        ConfigError::unless_empty(problems).map(|()| parameters)
    }

    pub(super) fn from_given(given: Vec<Given>, problems: &mut Vec<Problem>) -> Self {
        let mut parameters = Self::default();
        let mut refused = Vec::new();
        for Given { name, value, source } in given {
            if TOOLS.iter().any(|tool| name.strip_prefix(tool).is_some_and(|rest| rest.starts_with('.'))) {
                continue;
            }
            let Some(spec) = parameter_table().iter().find(|spec| spec.matches(&name)) else {
                problems.push(source.problem(unknown(&name)));
                continue;
            };
            let Some(value) = value else {
                refused.push(name);
                continue;
            };
            match spec.check(&value) {
                Ok(value) => {
                    parameters.entries.insert(name, Entry { value, source: Some(source) });
                }
                Err(message) => {
                    problems.push(source.problem(message));
                    refused.push(name);
                }
            }
        }
        parameters.add_defaults(&refused, problems);
        parameters
    }

    /// Completes with defaults; a required parameter that was given but refused is not reported as missing, too.
    fn add_defaults(&mut self, refused: &[String], problems: &mut Vec<Problem>) {
        for spec in parameter_table() {
            for (name, sibling) in self.expected_names(spec.name, refused) {
                if self.entries.contains_key(&name) || refused.contains(&name) {
                    continue;
                }
                match spec.default {
                    ParameterDefault::Required => problems.push(missing(&name, sibling)),
                    default => {
                        if let Some(value) = default.value() {
                            self.entries.insert(name, Entry { value, source: None });
                        }
                    }
                }
            }
        }
    }

    /// The names that a name of the table stands for: itself, or one per key for which any parameter of the group is
    /// given, along with where that one is given.
    fn expected_names(&self, pattern: &str, refused: &[String]) -> Vec<(String, Option<Source>)> {
        let Some((group, rest)) = pattern.split_once(".<") else {
            return vec![(pattern.to_owned(), None)];
        };
        let field = rest.split_once('.').map_or("", |(_, field)| field);
        self.keys(group, refused)
            .into_iter()
            .map(|key| {
                let prefix = format!("{group}.{key}.");
                let sibling = self.entries.iter().find(|(name, _)| name.starts_with(&prefix));
                (format!("{prefix}{field}"), sibling.and_then(|(_, entry)| entry.source.clone()))
            })
            .collect()
    }

    /// The keys of a group such as `cameras`, in alphabetical order.
    fn keys(&self, group: &str, refused: &[String]) -> Vec<String> {
        let mut keys: Vec<String> = self
            .entries
            .keys()
            .chain(refused)
            .filter_map(|name| name.strip_prefix(group)?.strip_prefix('.')?.split('.').next())
            .map(str::to_owned)
            .collect();
        keys.sort();
        keys.dedup();
        keys
    }

    /// The keys for which parameters of a group such as `cameras` are set, in alphabetical order.
    pub fn group_keys(&self, group: &str) -> Vec<String> {
        self.keys(group, &[])
    }

    /// The value of a parameter; `None` where it is neither set nor has a default.
    pub fn get(&self, name: &str) -> Option<&ParameterValue> {
        self.entries.get(name).map(|entry| &entry.value)
    }

    /// What a parameter is; `None` for one that is not set.
    pub fn spec(&self, name: &str) -> Option<&'static ParameterSpec> {
        self.entries.get(name)?;
        parameter_table().iter().find(|spec| spec.matches(name))
    }

    /// Gives a parameter another value while the node runs. Values that do not fit together are found by
    /// [`NodeConfig::from_parameters`](super::NodeConfig::from_parameters).
    ///
    /// # Errors
    /// A parameter that is not set, does not change, or does not take the value.
    pub fn change(&mut self, name: &str, value: &ParameterValue) -> Result<(), ChangeError> {
        let (Some(spec), Some(entry)) = (self.spec(name), self.entries.get_mut(name)) else {
            return Err(ChangeError::Undeclared { name: shown(name), hint: unknown(name) });
        };
        if !spec.dynamic {
            return Err(ChangeError::Static { name: name.to_owned() });
        }
        entry.value =
            spec.check(value).map_err(|fault| ChangeError::Value { name: name.to_owned(), fault })?;
        // It no longer is what stands there. Paths, which count from the file they stand in, never change.
        entry.source = None;
        Ok(())
    }

    /// Names and values, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ParameterValue)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), &entry.value))
    }

    /// Where a parameter was given; `None` for a default.
    pub(super) fn source(&self, name: &str) -> Option<&Source> {
        self.entries.get(name)?.source.as_ref()
    }

    /// A problem at the place where a parameter was given, or at its name where it was not.
    pub(super) fn problem(&self, name: &str, message: impl Into<String>) -> Problem {
        match self.source(name) {
            Some(source) => source.problem(message),
            None => Problem { file: None, line: None, path: name.to_owned(), message: message.into() },
        }
    }
}

/// A required parameter that is missing: in the file where its siblings stand, if there are any.
fn missing(name: &str, sibling: Option<Source>) -> Problem {
    let message = "required, but missing".to_owned();
    let Some(sibling) = sibling else {
        return Problem { file: None, line: None, path: name.to_owned(), message };
    };
    let (group, _) = sibling.path.rsplit_once('.').unwrap_or(("", &sibling.path));
    let (_, field) = name.rsplit_once('.').unwrap_or(("", name));
    Problem { path: format!("{group}.{field}"), file: sibling.file, line: sibling.line, message }
}

/// A name from outside, shortened where it is absurdly long.
fn shown(name: &str) -> String {
    if name.len() > LONGEST_COMPARED { quoted(name) } else { name.to_owned() }
}

fn unknown(name: &str) -> String {
    if parameter_table().iter().any(|spec| spec.matches(name)) {
        return "it was not given a value at the start".into();
    }
    if parameter_table().iter().any(|spec| spec.name.starts_with(&format!("{name}."))) {
        return "expected a mapping, found a single value or a list".into();
    }
    if let Some(spec) = parameter_table().iter().find(|spec| name.starts_with(&format!("{}.", spec.name))) {
        return format!("{} is one {}, found a mapping", spec.name, spec.kind);
    }
    match similar(name) {
        Some(known) => format!("unknown parameter; did you mean {known}?"),
        None => "unknown parameter; the README lists the known ones".into(),
    }
}

/// The known name that is closest to `name`, with the keys of `name` in place of the table's placeholders.
fn similar(name: &str) -> Option<String> {
    if name.len() > LONGEST_COMPARED {
        return None;
    }
    let given: Vec<&str> = name.split('.').collect();
    parameter_table()
        .iter()
        .map(|spec| {
            let segments = spec.name.split('.').enumerate();
            let filled: Vec<&str> = segments
                .map(|(i, segment)| match given.get(i) {
                    Some(key) if is_placeholder(segment) => key,
                    _ => segment,
                })
                .collect();
            filled.join(".")
        })
        .map(|known| (strsim::damerau_levenshtein(name, &known), known))
        .min()
        .filter(|(distance, known)| *distance <= 2.max(known.len() / 3))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_similar_name_is_suggested_with_its_keys() {
        for (name, expected) in [
            ("checkpoint.pth", Some("checkpoint.path")),
            ("camera.front.topic", Some("cameras.front.topic")),
            ("cameras.front.tpoic", Some("cameras.front.topic")),
            ("max_age", Some("max_age_ms")),
            ("max_skew_mss", Some("max_skew_ms")),
            ("state.left_arm.joint", Some("state.left_arm.joints")),
            ("actions.left_arm.joints", Some("action.left_arm.joints")),
            ("stepp_time", Some("step_time")),
            ("gravity_vector", None),
            ("x", None),
        ] {
            assert_eq!(similar(name).as_deref(), expected, "{name}");
        }
        assert_eq!(similar(&"x".repeat(1_000_000)), None);
    }
}
