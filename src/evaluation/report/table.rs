//! Tables as data: what the terminal, the CSV files and the page show alike.

use super::{
    super::{
        metrics::ErrorSummary,
        run::{Component, ModeResult, Run},
    },
    number,
};

/// A cell.
#[derive(Debug, Clone)]
pub(crate) enum Cell {
    /// Words, also from outside.
    Text(String),
    /// A figure and how it is shown.
    Figure(f64, fn(f64) -> String),
    /// A whole number.
    Count(u64),
    /// The reference mode, where a figure would hold it against itself.
    Baseline,
    /// Values that are NaN or infinite stand in the way of the figure.
    NotFinite,
    /// Not measured.
    None,
}

impl Cell {
    pub(crate) fn figure(value: Option<f64>, show: fn(f64) -> String) -> Self {
        value.map_or(Self::None, |value| Self::Figure(value, show))
    }

    /// A figure of an error.
    pub(crate) fn of_error(
        errors: Option<&ErrorSummary>,
        value: Option<f64>,
        show: fn(f64) -> String,
    ) -> Self {
        match errors {
            Some(errors) if errors.non_finite > 0 => Self::NotFinite,
            _ => Self::figure(value, show),
        }
    }

    /// For people.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Text(text) => number::printable(text),
            Self::Figure(value, show) => show(*value),
            Self::Count(value) => number::count(*value),
            Self::Baseline => "baseline".to_owned(),
            Self::NotFinite => "NaN".to_owned(),
            Self::None => "-".to_owned(),
        }
    }

    /// For programs: all digits, nothing where there is no figure.
    pub(crate) fn raw(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Figure(value, _) => value.to_string(),
            Self::Count(value) => value.to_string(),
            Self::Baseline => "baseline".to_owned(),
            Self::NotFinite => "NaN".to_owned(),
            Self::None => String::new(),
        }
    }

    pub(crate) fn is_text(&self) -> bool {
        matches!(self, Self::Text(_))
    }
}

/// A table.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    /// Name of its CSV file, without the extension.
    pub name: &'static str,
    /// Heading.
    pub title: &'static str,
    /// Columns: name in CSV, heading for people (with the unit).
    pub columns: Vec<(String, String)>,
    /// Rows.
    pub rows: Vec<Vec<Cell>>,
    /// Number of leading columns that are not repeated for people where they are as in the row above.
    pub keys: usize,
}

pub(crate) fn columns(columns: &[(&str, &str)]) -> Vec<(String, String)> {
    columns.iter().map(|(name, heading)| ((*name).to_owned(), (*heading).to_owned())).collect()
}

pub(crate) fn text(text: &str) -> Cell {
    Cell::Text(text.to_owned())
}

/// Modes with latencies and errors; three rows each: median, p90, p99.
pub(crate) fn modes(run: &Run) -> Table {
    let mut rows = Vec::new();
    for mode in &run.modes {
        type Pick = fn(&super::super::metrics::LatencySummary) -> f64;
        let figures: [(&str, Pick); 3] = [("median", |l| l.median), ("p90", |l| l.p90), ("p99", |l| l.p99)];
        for (i, (name, pick)) in figures.into_iter().enumerate() {
            let latency = |component| mode.latency(&component).map(pick);
            let end_to_end = latency(Component::EndToEnd);
            let mut row = vec![text(&mode.name), text(name)];
            let components = [Component::Backbone, Component::Dit, Component::EndToEnd];
            row.extend(components.map(|component| Cell::figure(latency(component), number::milliseconds)));
            let hz = end_to_end.filter(|&ms| ms > 0.0).map(|ms| 1000.0 / ms);
            row.push(Cell::figure(hz, number::rate));
            row.extend(if i == 0 { accuracy(run, mode) } else { vec![Cell::Text(String::new()); 4] });
            rows.push(row);
        }
    }
    let heads = [
        ("mode", "mode"),
        ("figure", ""),
        ("backbone_ms", "backbone\nms"),
        ("dit_ms", "DiT\nms"),
        ("end_to_end_ms", "end to\nend ms"),
        ("hz", "Hz"),
        ("dit_mse", "DiT\nMSE"),
        ("dit_cosine", "DiT\ncosine"),
        ("e2e_mse", "end to\nend MSE"),
        ("e2e_mae", "end to\nend MAE"),
    ];
    Table { name: "latency", title: "Modes", columns: columns(&heads), rows, keys: 1 }
}

/// DiT MSE, DiT cosine, end-to-end MSE and MAE.
pub(crate) fn accuracy(run: &Run, mode: &ModeResult) -> Vec<Cell> {
    let dit = mode.denoising.as_ref().map(|denoising| &denoising.overall);
    let recorded = mode.recorded.as_ref().map(|recorded| &recorded.total);
    let mut cells = if run.is_reference(mode) {
        vec![Cell::Baseline, Cell::Baseline]
    } else {
        vec![
            Cell::of_error(dit, dit.and_then(|dit| dit.mse), number::error),
            Cell::of_error(dit, dit.and_then(|dit| dit.cosine), number::cosine),
        ]
    };
    cells.push(Cell::of_error(recorded, recorded.and_then(|errors| errors.mse), number::error));
    cells.push(Cell::of_error(recorded, recorded.and_then(|errors| errors.mae), number::error));
    cells
}

/// The four figures of an error.
pub(crate) fn error_cells(errors: &ErrorSummary) -> [Cell; 4] {
    [
        Cell::of_error(Some(errors), errors.mse, number::error),
        Cell::of_error(Some(errors), errors.mae, number::error),
        Cell::of_error(Some(errors), errors.cosine, number::cosine),
        Cell::of_error(Some(errors), errors.max_abs, number::error),
    ]
}

/// The DiT's errors per denoising step, and their growth.
pub(crate) fn denoising_steps(run: &Run) -> Table {
    let mut rows = Vec::new();
    for mode in &run.modes {
        if run.is_reference(mode) {
            let mut row = vec![text(&mode.name), text("all")];
            row.extend(vec![Cell::Baseline; 5]);
            rows.push(row);
            continue;
        }
        let Some(denoising) = &mode.denoising else { continue };
        for (step, errors) in denoising.steps.iter().enumerate() {
            let mut row = vec![text(&mode.name), Cell::Text(step.to_string())];
            row.extend(error_cells(errors));
            row.push(Cell::Text(String::new()));
            rows.push(row);
        }
        let mut row = vec![text(&mode.name), text("all")];
        row.extend(error_cells(&denoising.overall));
        row.push(Cell::figure(denoising.growth(), number::ratio));
        rows.push(row);
    }
    let heads = [
        ("mode", "mode"),
        ("step", "step"),
        ("mse", "MSE"),
        ("mae", "MAE"),
        ("cosine", "cosine"),
        ("max_error", "max error"),
        ("growth", "growth\nlast/first"),
    ];
    Table {
        name: "denoising_steps",
        title: "DiT per denoising step, on the reference mode's inputs",
        columns: columns(&heads),
        rows,
        keys: 1,
    }
}

/// Latencies per component.
pub(crate) fn components(run: &Run) -> Table {
    let mut rows = Vec::new();
    for mode in &run.modes {
        for latency in &mode.latencies {
            let figures = &latency.summary;
            let values = [figures.median, figures.p90, figures.p99, figures.mean, figures.min, figures.max];
            let mut row = vec![text(&mode.name), text(latency.component.label())];
            row.extend(values.map(|value| Cell::Figure(value, number::milliseconds)));
            row.push(Cell::Count(figures.count));
            rows.push(row);
        }
    }
    let heads = [
        ("mode", "mode"),
        ("component", "component"),
        ("median_ms", "median"),
        ("p90_ms", "p90"),
        ("p99_ms", "p99"),
        ("mean_ms", "mean"),
        ("min_ms", "min"),
        ("max_ms", "max"),
        ("passes", "passes"),
    ];
    Table { name: "components", title: "Components, ms", columns: columns(&heads), rows, keys: 1 }
}

/// Errors against the recording per dimension.
pub(crate) fn dimensions(run: &Run) -> Table {
    let mut rows = Vec::new();
    for mode in &run.modes {
        let Some(recorded) = &mode.recorded else { continue };
        for group in &recorded.groups {
            for dimension in &group.dimensions {
                let errors = &dimension.error;
                let figure = |value| Cell::of_error(Some(errors), value, number::error);
                rows.push(vec![
                    text(&mode.name),
                    text(&group.key),
                    text(&dimension.name),
                    text(&dimension.unit),
                    figure(errors.rmse()),
                    figure(errors.mae),
                    figure(errors.max_abs),
                    Cell::figure(dimension.recorded_deviation, number::error),
                    figure(dimension.nrmse),
                ]);
            }
        }
    }
    let heads = [
        ("mode", "mode"),
        ("key", "action key"),
        ("dimension", "dimension"),
        ("unit", "unit"),
        ("rmse", "RMSE"),
        ("mae", "MAE"),
        ("max_error", "max error"),
        ("recorded_deviation", "recorded SD"),
        ("nrmse", "RMSE / SD"),
    ];
    Table {
        name: "dimensions",
        title: "Against the recording, per dimension",
        columns: columns(&heads),
        rows,
        keys: 2,
    }
}

/// Errors against the recording per horizon step; the key is empty for all keys together.
pub(crate) fn horizon(run: &Run) -> Table {
    let mut rows = Vec::new();
    for mode in &run.modes {
        let Some(recorded) = &mode.recorded else { continue };
        let all = [("", recorded.per_step.as_slice())];
        let groups = recorded.groups.iter().map(|group| (group.key.as_str(), group.per_step.as_slice()));
        for (key, steps) in all.into_iter().chain(groups) {
            for (step, errors) in steps.iter().enumerate() {
                let mut row = vec![text(&mode.name), text(key), Cell::Count(step as u64)];
                row.extend(error_cells(errors));
                rows.push(row);
            }
        }
    }
    let heads = [
        ("mode", "mode"),
        ("key", "action key"),
        ("step", "step"),
        ("mse", "MSE"),
        ("mae", "MAE"),
        ("cosine", "cosine"),
        ("max_error", "max error"),
    ];
    Table {
        name: "horizon",
        title: "Against the recording, over the horizon",
        columns: columns(&heads),
        rows,
        keys: 2,
    }
}
