//! What was measured, as a file.
//!
//! A [`Benchmark`] is a JSON file with its schema number. What a reader does not know is ignored, and what is not there takes its
//! default; the number rises when the meaning of a field changes, and a file with a higher number is refused.

use std::{fs::File, io::Read, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    cases::{Case, Shape},
    roofline::FloorTable,
};
use crate::{
    atomic_file::write_atomically,
    evaluation::{Gate, LatencySummary, Run, Tool},
};

/// Number of the schema that this version writes, and the highest that it reads.
pub const SCHEMA: u32 = 1;

/// Longest file that is read.
pub const MAX_BYTES: u64 = 64 << 20;

/// All cases.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Benchmark {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// Program that measured.
    pub tool: Tool,
    /// Case by case.
    pub cases: Vec<CaseResult>,
}

/// What was measured of one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseResult {
    /// Which.
    pub case: Case,
    /// What its frames and its prompt become.
    pub shape: Shape,
    /// Latencies and errors mode by mode, with machine, options and notes. The reference is `f32`.
    pub run: Run,
    /// The least times that bytes and FLOPs allow, where they were asked for.
    #[serde(default)]
    pub floors: Vec<FloorTable>,
    /// What each switch brings, where it was asked for.
    #[serde(default)]
    pub ablation: Vec<AblationResult>,
    /// Ticks in sequence and pipelined, where that was asked for.
    #[serde(default)]
    pub throughput: Vec<ThroughputResult>,
}

/// One tick after the other, and each begun before the one before is finished.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThroughputResult {
    /// Name of the mode.
    pub mode: String,
    /// One after the other.
    pub sequential: Option<Pace>,
    /// The head of one beside the backbone of the next.
    pub pipelined: Option<Pace>,
    /// Why there are none, or what is wrong with them.
    pub failure: Option<String>,
}

/// A series of ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Ticks per second.
    pub hz: f64,
    /// Age of each observation when its actions are there: since its frames were in memory, before data processing.
    pub age: LatencySummary,
}

/// A switch on and off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AblationResult {
    /// The switch.
    pub name: String,
    /// What is timed.
    pub part: String,
    /// Times with the switch on.
    pub on: Option<LatencySummary>,
    /// Times with the switch off.
    pub off: Option<LatencySummary>,
    /// Why there are none.
    pub failure: Option<String>,
}

impl AblationResult {
    /// How many times as long it takes without.
    pub fn gain(&self) -> Option<f64> {
        let (on, off) = (self.on?.median, self.off?.median);
        (on > 0.0).then(|| off / on)
    }
}

/// A file that cannot be read as a benchmark, or not written.
#[derive(Debug, thiserror::Error)]
pub enum BenchmarkFileError {
    /// The system refuses.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// Too long.
    #[error("{path}: expected at most {MAX_BYTES} bytes, found more")]
    TooLong {
        /// The file.
        path: String,
    },
    /// Not such a file.
    #[error("{path}: expected what `benchmark_replay bench --json` writes, found other JSON: {error}")]
    Content {
        /// The file.
        path: String,
        /// What does not fit.
        error: serde_json::Error,
    },
    /// From a later version.
    #[error(
        "{path}: expected schema {SCHEMA} or lower, found {found}; read it with the version that wrote it"
    )]
    Schema {
        /// The file.
        path: String,
        /// Its number.
        found: u32,
    },
}

impl Benchmark {
    /// Nothing measured yet.
    pub fn new() -> Self {
        Self { schema: SCHEMA, ..Self::default() }
    }

    /// The case of this name.
    pub fn case(&self, name: &str) -> Option<&CaseResult> {
        self.cases.iter().find(|result| result.case.name == name)
    }

    /// Conditions that hold, in words; none where all is well.
    pub fn violations(&self, gate: &Gate) -> Vec<String> {
        let of_case = |result: &CaseResult| {
            let violations = gate.violations(&result.run);
            violations
                .iter()
                .map(|violation| format!("{}: {violation}", result.case.name))
                .collect::<Vec<_>>()
        };
        self.cases.iter().flat_map(of_case).collect()
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`BenchmarkFileError`].
    pub fn load(path: &Path) -> Result<Self, BenchmarkFileError> {
        let name = path.display().to_string();
        let failed = |error| BenchmarkFileError::Io { path: name.clone(), error };
        let mut text = Vec::new();
        File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut text)).map_err(failed)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(BenchmarkFileError::TooLong { path: name });
        }
        let content = |error| BenchmarkFileError::Content { path: name.clone(), error };
        let result: Self = serde_json::from_slice(&text).map_err(content)?;
        match result.schema {
            1..=SCHEMA => Ok(result),
            found => Err(BenchmarkFileError::Schema { path: name, found }),
        }
    }

    /// Writes a file: all of it, or nothing.
    ///
    /// # Errors
    /// [`BenchmarkFileError`].
    pub fn save(&self, path: &Path) -> Result<(), BenchmarkFileError> {
        let name = path.display().to_string();
        let content = |error| BenchmarkFileError::Content { path: name.clone(), error };
        let text = serde_json::to_vec_pretty(self).map_err(content)?;
        write_atomically(path, &text).map_err(|error| BenchmarkFileError::Io { path: name, error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bench.json");
        std::fs::write(&path, text).unwrap();
        Benchmark::load(&path).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let [case, ..] = Case::standard();
        let result = CaseResult {
            shape: case.shape().unwrap(),
            case,
            run: Run { reference: "f32".into(), ..Run::default() },
            floors: Vec::new(),
            ablation: Vec::new(),
            throughput: vec![ThroughputResult {
                mode: "graph".into(),
                sequential: Some(Pace { hz: 100.0, ..Pace::default() }),
                pipelined: None,
                failure: None,
            }],
        };
        let benchmark = Benchmark { cases: vec![result], ..Benchmark::new() };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bench.json");
        benchmark.save(&path).unwrap();
        assert_eq!(Benchmark::load(&path).unwrap(), benchmark);
    }

    #[test]
    fn another_file_is_refused_with_the_reason() {
        assert!(saved("{}").contains("expected schema 1 or lower, found 0"));
        assert!(saved(r#"{"schema": 2}"#).contains("found 2"));
        assert!(saved("7").contains("bench --json"));
        assert!(Benchmark::load(Path::new("no/such/file")).unwrap_err().to_string().contains("no/such/file"));
    }
}
