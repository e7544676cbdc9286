//! `statistics.json`: what the training data looked like, per embodiment and key.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use ndarray::Array2;
use serde::Deserialize;

use super::side_file::{self, SideFileError};

/// The file's name inside a checkpoint directory.
pub const FILE: &str = "statistics.json";

/// Statistics of all embodiments in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    path: PathBuf,
    embodiments: BTreeMap<String, BTreeMap<StatisticsGroup, BTreeMap<String, KeyStatistics>>>,
}

/// The three groups of statistics of one embodiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StatisticsGroup {
    /// Raw state.
    State,
    /// Absolute actions.
    Action,
    /// Actions relative to the state, per time step.
    RelativeAction,
}

impl fmt::Display for StatisticsGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::State => "state",
            Self::Action => "action",
            Self::RelativeAction => "relative_action",
        })
    }
}

/// Statistics of one key; all arrays have the same shape: (1, dimension), or (horizon, dimension) for relative actions.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyStatistics {
    /// Mean.
    pub mean: Array2<f64>,
    /// Standard deviation, at least 0.
    pub std: Array2<f64>,
    /// Smallest value.
    pub min: Array2<f64>,
    /// Largest value.
    pub max: Array2<f64>,
    /// 1st percentile; only percentile normalisation needs it.
    pub q01: Option<Array2<f64>>,
    /// 99th percentile; only percentile normalisation needs it.
    pub q99: Option<Array2<f64>>,
}

impl KeyStatistics {
    /// Number of values of the key.
    pub fn dim(&self) -> usize {
        self.mean.ncols()
    }
}

#[derive(Deserialize)]
struct RawEmbodiment {
    #[serde(default)]
    state: BTreeMap<String, RawStatistics<Vec<f64>>>,
    #[serde(default)]
    action: BTreeMap<String, RawStatistics<Vec<f64>>>,
    #[serde(default)]
    relative_action: BTreeMap<String, RawStatistics<Vec<Vec<f64>>>>,
}

#[derive(Deserialize)]
struct RawStatistics<T> {
    mean: T,
    std: T,
    min: T,
    max: T,
    q01: Option<T>,
    q99: Option<T>,
}

/// One row per time step.
trait IntoRows {
    fn into_rows(self) -> Vec<Vec<f64>>;
}

impl IntoRows for Vec<f64> {
    fn into_rows(self) -> Vec<Vec<f64>> {
        vec![self]
    }
}

impl IntoRows for Vec<Vec<f64>> {
    fn into_rows(self) -> Vec<Vec<f64>> {
        self
    }
}

impl Statistics {
    /// Reads `statistics.json` of a checkpoint directory.
    pub fn load(checkpoint: &Path) -> Result<Self, SideFileError> {
        let path = checkpoint.join(FILE);
        Self::parse(&path, &side_file::read(&path)?)
    }

    /// Parses the file's contents; `path` serves messages only. Not-a-number and infinity, which Python writes as bare
    /// words, are no JSON and are refused as such.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, SideFileError> {
        let raw: BTreeMap<String, RawEmbodiment> = side_file::parse(path, json)?;
        let embodiments = raw
            .into_iter()
            .map(|(tag, raw)| {
                let groups = BTreeMap::from([
                    (StatisticsGroup::State, convert(path, &tag, StatisticsGroup::State, raw.state)?),
                    (StatisticsGroup::Action, convert(path, &tag, StatisticsGroup::Action, raw.action)?),
                    (
                        StatisticsGroup::RelativeAction,
                        convert(path, &tag, StatisticsGroup::RelativeAction, raw.relative_action)?,
                    ),
                ]);
                Ok((tag, groups))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { path: path.to_owned(), embodiments })
    }

    /// The statistics of one key.
    pub fn key(&self, tag: &str, group: StatisticsGroup, key: &str) -> Result<&KeyStatistics, SideFileError> {
        let groups = self.embodiments.get(tag).ok_or_else(|| {
            SideFileError::invalid(
                &self.path,
                "the top level",
                format!("the embodiment \"{tag}\""),
                side_file::list(self.embodiments.keys().map(String::as_str)),
            )
        })?;
        let keys = groups.get(&group);
        keys.and_then(|keys| keys.get(key)).ok_or_else(|| {
            SideFileError::invalid(
                &self.path,
                format!("{tag}.{group}"),
                format!("the key \"{key}\""),
                side_file::list(keys.into_iter().flat_map(|keys| keys.keys().map(String::as_str))),
            )
        })
    }
}

fn convert<T: IntoRows>(
    path: &Path,
    tag: &str,
    group: StatisticsGroup,
    raw: BTreeMap<String, RawStatistics<T>>,
) -> Result<BTreeMap<String, KeyStatistics>, SideFileError> {
    raw.into_iter()
        .map(|(key, raw)| {
            let statistics = raw.validate(path, &format!("{tag}.{group}.{key}"))?;
            Ok((key, statistics))
        })
        .collect()
}

impl<T: IntoRows> RawStatistics<T> {
    fn validate(self, path: &Path, at: &str) -> Result<KeyStatistics, SideFileError> {
        let mean = self.mean.into_rows();
        let shape = (mean.len(), mean.first().map_or(0, Vec::len));
        if shape.0 == 0 || shape.1 == 0 {
            return Err(SideFileError::invalid(path, format!("{at}.mean"), "at least one value", "none"));
        }
        let array = |name: &str, rows: Vec<Vec<f64>>| {
            let wrong = rows.iter().find(|row| row.len() != shape.1);
            if rows.len() != shape.0 || wrong.is_some() {
                return Err(SideFileError::invalid(
                    path,
                    format!("{at}.{name}"),
                    format!("{} x {} values, like the mean", shape.0, shape.1),
                    format!("{} x {}", rows.len(), wrong.map_or(shape.1, Vec::len)),
                ));
            }
            // The number of values was checked just above.
            Ok(Array2::from_shape_fn(shape, |(row, column)| rows[row][column]))
        };
        let std = array("std", self.std.into_rows())?;
        if let Some(negative) = std.iter().find(|&&std| std < 0.0) {
            let expected = "standard deviations of at least 0";
            return Err(SideFileError::invalid(path, format!("{at}.std"), expected, negative.to_string()));
        }
        Ok(KeyStatistics {
            mean: array("mean", mean)?,
            std,
            min: array("min", self.min.into_rows())?,
            max: array("max", self.max.into_rows())?,
            q01: self.q01.map(|rows| array("q01", rows.into_rows())).transpose()?,
            q99: self.q99.map(|rows| array("q99", rows.into_rows())).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use serde_json::{Value, json};

    fn key() -> Value {
        json!({"mean": [0.5, 1], "std": [1.0, 0.0], "min": [-1.0, 1.0], "max": [1.0, 1.0],
               "q01": [-0.9, 1.0], "q99": [0.9, 1.0]})
    }

    fn parse(json: &str) -> Result<Statistics, SideFileError> {
        Statistics::parse(Path::new(FILE), json.as_bytes())
    }

    #[test]
    fn flat_arrays_become_one_row_and_nested_ones_a_row_per_time_step() {
        let nested = json!({"mean": [[1.0], [2.0]], "std": [[1.0], [1.0]], "min": [[0.0], [0.0]], "max": [[3.0], [4.0]]});
        let document = json!({"robot": {"state": {"arm": key()}, "relative_action": {"arm": nested}}});
        let statistics = parse(&document.to_string()).unwrap();
        let state = statistics.key("robot", StatisticsGroup::State, "arm").unwrap();
        assert_eq!((state.dim(), &state.mean), (2, &array![[0.5, 1.0]]));
        let relative = statistics.key("robot", StatisticsGroup::RelativeAction, "arm").unwrap();
        assert_eq!((&relative.max, &relative.q01), (&array![[3.0], [4.0]], &None));
    }

    #[test]
    fn numbers_are_read_without_rounding_error() {
        // Both differ by one unit in the last place if digits and power of ten are divided in f64.
        let mut key = key();
        key["mean"] = serde_json::from_str("[1.0550984759064561, 1.8776400678657859]").unwrap();
        let statistics = parse(&json!({"robot": {"state": {"arm": key}}}).to_string()).unwrap();
        let mean = &statistics.key("robot", StatisticsGroup::State, "arm").unwrap().mean;
        assert_eq!(mean, &array![[1.0550984759064561, 1.8776400678657859]]);
    }

    #[test]
    fn every_kind_of_broken_key_is_named_with_its_path() {
        for (name, value, found) in [
            ("min", json!([0.0]), "found 1 x 1"),
            ("max", json!([0.0, 0.0, 0.0]), "found 1 x 3"),
            ("q99", json!([]), "found 1 x 0"),
            ("std", json!([1.0, -2.0]), "found -2"),
            ("std", json!([1.0, "x"]), "string \"x\""),
            ("std", json!([[1.0], [2.0]]), "sequence"),
            ("mean", json!([]), "found none"),
            ("mean", json!(null), "null"),
        ] {
            let mut key = key();
            key[name] = value;
            let message =
                parse(&json!({"robot": {"action": {"arm": key}}}).to_string()).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("{FILE}: at robot.action.arm.{name}"))
                    && message.contains(found),
                "{message}"
            );
        }
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        for word in ["NaN", "Infinity", "-Infinity", "1e999"] {
            let text = json!({"robot": {"action": {"arm": key()}}}).to_string().replace("0.5", word);
            let message = parse(&text).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{FILE}: at robot.action.arm")), "{message}");
        }
    }

    #[test]
    fn a_missing_embodiment_group_or_key_lists_what_there_is() {
        let statistics = parse(&json!({"robot": {"state": {"arm": key()}}}).to_string()).unwrap();
        for (tag, group, name, expected) in [
            ("other", StatisticsGroup::State, "arm", "expected the embodiment \"other\", found robot"),
            ("robot", StatisticsGroup::State, "leg", "robot.state: expected the key \"leg\", found arm"),
            ("robot", StatisticsGroup::RelativeAction, "arm", "expected the key \"arm\", found nothing"),
        ] {
            let message = statistics.key(tag, group, name).unwrap_err().to_string();
            assert!(message.ends_with(expected), "{message}");
        }
    }
}
