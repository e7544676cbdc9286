//! One CSV file per table.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    super::{metric::Metric, run::Run},
    table::{self, Table},
};

/// A CSV file that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {error}")]
pub struct CsvError {
    /// The file or folder.
    pub path: PathBuf,
    /// The reason.
    pub error: io::Error,
}

/// The files of a run, name and content: `modes.csv` (every metric that gates know, one row per mode), `latency.csv`,
/// `denoising_steps.csv`, `components.csv`, `dimensions.csv` and `horizon.csv`.
///
/// Figures have all their digits; what was not measured is empty, what has values that are not finite is `NaN`, and the
/// reference mode's figures against itself are `baseline`. A text that a spreadsheet would take for a formula gets an
/// apostrophe in front.
pub fn tables(run: &Run) -> Vec<(String, String)> {
    let tables = [
        table::modes(run),
        table::denoising_steps(run),
        table::components(run),
        table::dimensions(run),
        table::horizon(run),
    ];
    let modes = ("modes.csv".to_owned(), modes(run));
    let others = tables.iter().map(|table| (format!("{}.csv", table.name), one(table)));
    [modes].into_iter().chain(others).collect()
}

/// Writes the files of [`tables`] into a folder, which is made where it is not there; gives their paths.
///
/// # Errors
/// The system refuses.
pub fn write(run: &Run, folder: &Path) -> Result<Vec<PathBuf>, CsvError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |error| CsvError { path, error }
    };
    std::fs::create_dir_all(folder).map_err(fail(folder))?;
    let write = |(name, text): (String, String)| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(fail(&path))?;
        Ok(path)
    };
    tables(run).into_iter().map(write).collect()
}

fn modes(run: &Run) -> String {
    let heads = ["mode", "role", "backbone", "dit", "failure"].map(str::to_owned);
    let heads: Vec<String> =
        heads.into_iter().chain(Metric::all().map(|metric| metric.to_string())).collect();
    let rows = run.modes.iter().map(|mode| {
        let role = if run.is_reference(mode) { "baseline" } else { "" };
        let failure = mode.failure.as_deref().unwrap_or_default();
        let texts = [&mode.name, role, &mode.backbone, &mode.dit, failure].map(safe);
        let figures = Metric::all()
            .map(|metric| metric.value(run, mode).map_or(String::new(), |value| value.to_string()));
        texts.into_iter().chain(figures).collect()
    });
    records(heads, rows)
}

fn one(table: &Table) -> String {
    let heads = table.columns.iter().map(|(name, _)| name.clone()).collect();
    let cell = |cell: &table::Cell| if cell.is_text() { safe(&cell.raw()) } else { cell.raw() };
    records(heads, table.rows.iter().map(|row| row.iter().map(cell).collect()))
}

fn records(heads: Vec<String>, rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for record in [heads].into_iter().chain(rows) {
        // Writing into memory fails only for records of different lengths, and each is as long as the heads.
        let _ = writer.write_record(record);
    }
    String::from_utf8(writer.into_inner().unwrap_or_default()).unwrap_or_default()
}

/// A text that no spreadsheet runs.
fn safe(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    if formula { format!("'{text}") } else { text.to_owned() }
}
