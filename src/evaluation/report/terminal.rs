//! Tables for a terminal: at most 100 columns, no colours.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, TableStyle};

use super::{
    super::{compare::Comparison, metric::Metric, run::Run},
    number::{self, printable},
    table::{self, Table},
};

/// Widest line.
pub const WIDTH: u16 = 100;

/// The three tables of a run, with what a reader must know before them.
pub fn summary(run: &Run) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&wrap(&printable(&text)));
        out.push('\n');
    };
    line(format!("{} on {}", run.title(), source(run)));
    if let Some(partial) = &run.partial {
        line(format!("PARTIAL: {partial}; the figures are those measured so far."));
    }
    if run.checkpoint.random_weights {
        line("Random weights: errors against the recording mean nothing.".to_owned());
    }
    for note in &run.notes {
        line(note.clone());
    }
    for mode in &run.modes {
        let role = if run.is_reference(mode) { " (reference)" } else { "" };
        line(format!(
            "{}{role}: backbone {}, DiT {}",
            mode.name,
            or_unknown(&mode.backbone),
            or_unknown(&mode.dit)
        ));
        if let Some(failure) = &mode.failure {
            line(format!("  FAILED: {failure}"));
        }
        for note in &mode.notes {
            line(format!("  {note}"));
        }
    }
    for table in [table::modes(run), table::denoising_steps(run), table::components(run)] {
        if !table.rows.is_empty() {
            out.push('\n');
            out.push_str(&draw(&table));
        }
    }
    if let Some(not_finite) = not_finite(run) {
        out.push_str(&not_finite);
    }
    if !run.source.damage.is_empty() {
        out.push('\n');
        for damage in run.source.damage.iter().take(MAX_DAMAGE) {
            out.push_str(&wrap(&printable(&format!("recording: {damage}"))));
            out.push('\n');
        }
        if let Some(more) = run.source.damage.len().checked_sub(MAX_DAMAGE).filter(|&more| more > 0) {
            out.push_str(&format!("recording: and {more} more\n"));
        }
    }
    out
}

/// Lines of damage that are shown.
const MAX_DAMAGE: usize = 20;

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { "unknown" } else { text }
}

fn source(run: &Run) -> String {
    let source = &run.source;
    let trajectories = match run.trajectories_done {
        1 => "1 trajectory".to_owned(),
        n => format!("{n} trajectories"),
    };
    let name = if source.name.is_empty() { or_unknown(&source.path) } else { &source.name };
    let synthetic = if source.synthetic { ", synthetic" } else { "" };
    format!("{name} ({}{synthetic}; {trajectories})", or_unknown(&source.kind))
}

/// Says which errors have no figures because of NaN.
fn not_finite(run: &Run) -> Option<String> {
    let lines: Vec<String> = run
        .modes
        .iter()
        .flat_map(|mode| {
            let dit = mode.denoising.as_ref().map(|denoising| ("DiT", &denoising.overall));
            let actions = mode.actions.as_ref().map(|actions| ("actions", actions));
            let recorded = mode.recorded.as_ref().map(|recorded| ("end to end", &recorded.total));
            [dit, actions, recorded]
                .into_iter()
                .flatten()
                .filter(|(_, errors)| errors.non_finite > 0)
                .filter_map(move |(what, errors)| {
                    Some(format!("{}, {what}: {}\n", printable(&mode.name), errors.missing()?))
                })
        })
        .collect();
    (!lines.is_empty()).then(|| lines.concat())
}

/// Breaks a line at spaces so that it keeps the width.
pub(crate) fn wrap(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let fits = lines.last().is_none_or(|line| {
            line.is_empty() || line.chars().count() + 1 + word.chars().count() <= usize::from(WIDTH)
        });
        if !fits {
            lines.push("   ".to_owned());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() || word.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n")
}

/// A table as lines.
pub(crate) fn draw(table: &Table) -> String {
    let mut drawn = blank();
    drawn.set_header(table.columns.iter().map(|(_, heading)| heading.as_str()));
    let mut last: Vec<String> = Vec::new();
    for row in &table.rows {
        let shown: Vec<String> = row.iter().map(table::Cell::shown).collect();
        // What is as above is left out, so that a mode's rows read as one block.
        let mut above = true;
        let cells = shown.iter().enumerate().map(|(i, text)| {
            above = above && i < table.keys && last.get(i) == Some(text);
            if above { String::new() } else { text.clone() }
        });
        drawn.add_row(cells.collect::<Vec<_>>());
        last = shown;
    }
    let texts = |i: usize| table.rows.iter().all(|row| row.get(i).is_none_or(table::Cell::is_text));
    for (i, column) in drawn.column_iter_mut().enumerate() {
        let alignment = if texts(i) { CellAlignment::Left } else { CellAlignment::Right };
        column.set_cell_alignment(alignment);
    }
    finish(table.title, &drawn)
}

/// Lines above, under the heading and below; none between rows and columns.
const LINES: TableStyle = TableStyle::new()
    .top_border(LineStyle::none().fill('━').junction('━'))
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .bottom_border(LineStyle::none().fill('━').junction('━'));

fn blank() -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(LINES);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table
}

fn finish(title: &str, table: &comfy_table::Table) -> String {
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    format!("{title}\n{}\n", lines.join("\n"))
}

/// Two runs side by side: first what differs between them, then the figures of each mode.
pub fn comparison(comparison: &Comparison) -> String {
    let [a, b] = comparison.names.each_ref().map(|name| printable(name));
    let mut out = wrap(&format!("A: {a}")) + "\n" + &wrap(&format!("B: {b}")) + "\n";
    for warning in &comparison.warnings {
        out.push_str(&wrap(&printable(&format!("NOTE: {warning}"))));
        out.push('\n');
    }
    out.push('\n');
    if comparison.differences.is_empty() {
        out.push_str("Machine, checkpoint, source and options are the same.\n");
    } else {
        let mut table = blank();
        table.set_header(["differs", "A", "B"]);
        for difference in &comparison.differences {
            table.add_row([&difference.what, &difference.a, &difference.b].map(|text| printable(text)));
        }
        out.push_str(&finish("Not the same in both", &table));
    }
    for mode in &comparison.modes {
        let mut table = blank();
        table.set_header(["metric", "A", "B", "B / A", "better"]);
        for pair in &mode.metrics {
            let show = |value: &Result<f64, String>| {
                value.as_ref().map_or("-".to_owned(), |value| figure(&pair.metric, *value))
            };
            let ratio = pair.ratio().map_or("-".to_owned(), number::ratio);
            let better = pair.better().unwrap_or_default();
            table.add_row([pair.metric.to_string(), show(&pair.a), show(&pair.b), ratio, better.to_owned()]);
        }
        for column in table.column_iter_mut().skip(1).take(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        out.push('\n');
        out.push_str(&finish(&format!("Mode {}", printable(&mode.mode)), &table));
    }
    for (side, only) in [("A", &comparison.only_a), ("B", &comparison.only_b)] {
        if !only.is_empty() {
            out.push_str(&wrap(&printable(&format!("only in {side}: {}", only.join(", ")))));
            out.push('\n');
        }
    }
    out
}

/// A metric's figure as it is shown everywhere.
fn figure(metric: &Metric, value: f64) -> String {
    let name = metric.to_string();
    match metric {
        Metric::Latency(..) => number::milliseconds(value),
        Metric::Hz => number::rate(value),
        Metric::Speedup | Metric::DitGrowth | Metric::EndToEndRatio(_) => number::ratio(value),
        _ if name.contains("cosine") => number::cosine(value),
        _ => number::error(value),
    }
}
