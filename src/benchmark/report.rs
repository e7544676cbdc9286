//! Tables for a terminal.

use super::{
    published,
    result::{AblationResult, Benchmark, CaseResult, Pace, ThroughputResult},
    roofline::{Floor, FloorTable, Path},
};
use crate::evaluation::{
    Component, LatencySummary, ModeResult, Run,
    report::{
        number,
        table::{Cell, Table, columns, error_cells, text},
        terminal::{draw, wrap},
    },
};

/// Everything that was measured, case by case.
pub fn measured(benchmark: &Benchmark) -> String {
    let mut out = String::new();
    let mut cases = benchmark.cases.iter().peekable();
    if let Some(first) = cases.peek() {
        out.push_str(&head(&first.run));
    }
    for result in cases {
        out.push('\n');
        out.push_str(&case(result));
    }
    out
}

/// Model, machine, options.
fn head(run: &Run) -> String {
    let mut lines = vec![run.title().to_owned()];
    let machine = &run.machine;
    lines.push(format!("{}, {} ({})", machine.cpu.model, machine.os, machine.kernel));
    for gpu in &machine.gpus {
        lines.push(format!("{}, driver {}", gpu.name, gpu.driver));
    }
    let options = &run.options;
    lines.push(format!(
        "{} measured ticks after {} of warm-up, over {} different observations; seed {}",
        options.iterations,
        options.warm_up,
        run.source.samples,
        options.noise_seed.unwrap_or_default()
    ));
    lines.iter().map(|line| wrap(&number::printable(line)) + "\n").collect()
}

fn case(result: &CaseResult) -> String {
    let CaseResult { case, shape, run, .. } = result;
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&wrap(&number::printable(&text)));
        out.push('\n');
    };
    let (width, height) = shape.image;
    line(format!(
        "{case}; images of {width}x{height} ({} tokens each), instruction of {} tokens, {} denoising steps",
        shape.image_tokens, shape.instruction_tokens, run.options.denoising_steps
    ));
    if let Some(partial) = &run.partial {
        line(format!("PARTIAL: {}; the figures are those measured so far.", partial.reason));
    }
    run.notes.iter().for_each(|note| line(note.clone()));
    for mode in &run.modes {
        match &mode.failure {
            Some(reason) => line(format!("{}: NOT MEASURED: {reason}", mode.name)),
            None => line(format!("{}: backbone {}, DiT {}", mode.name, mode.backbone, mode.dit)),
        }
        mode.notes.iter().for_each(|note| line(format!("   {note}")));
    }
    let is_published = case.name == published::CASE;
    let mut table = |table: Option<Table>| {
        if let Some(table) = table {
            out.push('\n');
            out.push_str(&draw(&table));
        }
    };
    table(latencies(run, is_published));
    table(accuracy(run));
    table(floors(result));
    table(ablation(&result.ablation));
    table(throughput(&result.throughput));
    if is_published {
        let rows = published_rows(run);
        let device = rows.first().map_or("", |row| row.device);
        let mut lines =
            vec![format!("Rows \"published\": {device}, {}. Not measured here.", published::SOURCE)];
        lines.extend(beside_published(run, &rows));
        lines.iter().for_each(|line| out.push_str(&(wrap(line) + "\n")));
    }
    out
}

/// The fastest mode beside the published rows, on a device of the published table.
fn beside_published(run: &Run, rows: &[published::Published]) -> Option<String> {
    published::device(gpu_name(run))?;
    let modes = run.modes.iter().filter_map(|mode| Some((mode, mode.latency(&Component::EndToEnd)?.median)));
    let (mode, ms) = modes.min_by(|(_, a), (_, b)| a.total_cmp(b))?;
    let ratios = rows.iter().map(|row| format!("{} {}", row.mode, number::ratio(row.end_to_end / ms)));
    let ratios: Vec<String> = ratios.collect();
    Some(format!(
        "Fastest here: {}, {} ms end to end; published / measured: {}.",
        number::printable(&mode.name),
        number::milliseconds(ms),
        ratios.join(", ")
    ))
}

fn gpu_name(run: &Run) -> &str {
    run.machine.gpus.first().map_or("", |gpu| gpu.name.as_str())
}

fn published_rows(run: &Run) -> Vec<published::Published> {
    published::rows_for(gpu_name(run))
}

/// Median, p90 and p99 per mode, and NVIDIA's figures where they are for this case.
fn latencies(run: &Run, with_published: bool) -> Option<Table> {
    type Pick = fn(&LatencySummary) -> f64;
    let figures: [(&str, Pick); 3] = [("median", |l| l.median), ("p90", |l| l.p90), ("p99", |l| l.p99)];
    let mut rows = Vec::new();
    for mode in run.modes.iter().filter(|mode| !mode.latencies.is_empty()) {
        for (name, pick) in figures {
            let latency =
                |component: Component| Cell::figure(mode.latency(&component).map(pick), number::milliseconds);
            let hz =
                mode.latency(&Component::EndToEnd).map(pick).filter(|&ms| ms > 0.0).map(|ms| 1000.0 / ms);
            let mut row = vec![text(&mode.name), text(name)];
            row.extend(COLUMNS.map(latency));
            row.push(Cell::figure(hz, number::rate));
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return None;
    }
    if with_published {
        rows.extend(published_rows(run).iter().map(|row| {
            let figure = |value| Cell::Figure(value, number::milliseconds);
            let mut cells = vec![text(row.mode), text("published")];
            cells.extend([
                figure(row.data_processing),
                Cell::None,
                Cell::None,
                figure(row.backbone),
                Cell::None,
            ]);
            cells.extend([figure(row.action_head), figure(row.end_to_end)]);
            cells.push(Cell::Figure(row.hz, number::rate));
            cells
        }));
    }
    let heads = [
        ("mode", "mode"),
        ("figure", ""),
        ("data_processing_ms", "data\nproc."),
        ("vision_ms", "vision"),
        ("language_ms", "language"),
        ("backbone_ms", "backbone"),
        ("dit_ms", "DiT"),
        ("action_head_ms", "action\nhead"),
        ("end_to_end_ms", "end to\nend"),
        ("hz", "Hz"),
    ];
    Some(Table { name: "latency", title: "Latency, ms", columns: columns(&heads), rows, keys: 1 })
}

const COLUMNS: [Component; 7] = [
    Component::DataProcessing,
    Component::Vision,
    Component::Language,
    Component::Backbone,
    Component::Dit,
    Component::ActionHead,
    Component::EndToEnd,
];

/// Errors against f32: of the normalised actions, and of the velocity at each denoising step on the reference's inputs.
fn accuracy(run: &Run) -> Option<Table> {
    let mut rows = Vec::new();
    for mode in &run.modes {
        let mut row = |what: String, errors, growth: Option<f64>| {
            let mut cells = vec![text(&mode.name), Cell::Text(what)];
            cells.extend(error_cells(errors));
            cells.push(Cell::figure(growth, number::ratio));
            rows.push(cells);
        };
        if let Some(actions) = &mode.actions {
            row("actions".to_owned(), actions, None);
        }
        if let Some(denoising) = &mode.denoising {
            for (step, errors) in denoising.steps.iter().enumerate() {
                row(format!("velocity, step {step}"), errors, None);
            }
            row("velocity, all steps".to_owned(), &denoising.overall, denoising.growth());
        }
    }
    let heads = [
        ("mode", "mode"),
        ("what", "what"),
        ("mse", "MSE"),
        ("mae", "MAE"),
        ("cosine", "cosine"),
        ("max_error", "max error"),
        ("growth", "growth\nlast/first"),
    ];
    let table = Table {
        name: "accuracy",
        title: "Against f32 on the same observations and noise, normalised actions",
        columns: columns(&heads),
        rows,
        keys: 1,
    };
    (!table.rows.is_empty()).then_some(table)
}

/// The floors of a case alone: part by part, path by path.
pub fn paper(title: &str, tables: &[FloorTable]) -> String {
    let Some(first) = tables.first() else { return String::new() };
    let mut out = wrap(&format!("{title}; floors on {} ({})", first.hardware.name, first.hardware.source));
    out.push('\n');
    let mut rows = Vec::new();
    for (i, floor) in first.floors.iter().enumerate() {
        // Paths on which the part is the same share a row.
        let mut shared: Vec<(&Floor, Vec<&str>)> = Vec::new();
        for table in tables {
            let Some(own) = table.floors.get(i) else { continue };
            match shared.iter_mut().find(|(known, _)| known.work == own.work) {
                Some((_, labels)) => labels.push(table.path.label()),
                None => shared.push((own, vec![table.path.label()])),
            }
        }
        for (own, labels) in shared {
            let paths = if labels.len() == tables.len() { "all".to_owned() } else { labels.join(", ") };
            rows.push(vec![
                text(floor.component.label()),
                Cell::Text(paths),
                Cell::Figure(own.work.flops / 1e9, number::milliseconds),
                Cell::Figure(own.work.bytes / 1e9, number::error),
                text(own.bound.map_or("", |bound| bound.label())),
                Cell::Figure(own.milliseconds, number::milliseconds),
            ]);
        }
    }
    let heads = [
        ("part", "part"),
        ("path", "path"),
        ("gflop", "GFLOP"),
        ("gb", "GB"),
        ("bound", "bound by"),
        ("floor_ms", "floor\nms"),
    ];
    let table = Table { name: "roofline", title: "Roofline", columns: columns(&heads), rows, keys: 1 };
    out + &draw(&table)
}

/// Measured medians beside the floors, as lines.
pub fn beside_floors(result: &CaseResult) -> String {
    floors(result).map(|table| draw(&table) + "\n").unwrap_or_default()
}

/// Measured medians beside the floors of the way that every mode takes.
fn floors(result: &CaseResult) -> Option<Table> {
    let table = result.floors.iter().find(|table| table.path == Path::Precomputed)?;
    let mut rows = Vec::new();
    for floor in &table.floors {
        for (name, median) in measured_modes(&result.run, &floor.component) {
            rows.push(vec![
                text(floor.component.label()),
                Cell::Figure(floor.milliseconds, number::milliseconds),
                text(name),
                Cell::Figure(median, number::milliseconds),
                Cell::Figure(median / floor.milliseconds, number::ratio),
            ]);
        }
    }
    let heads = [
        ("part", "part"),
        ("floor_ms", "floor\nms"),
        ("mode", "mode"),
        ("median_ms", "median\nms"),
        ("ratio", "median /\nfloor"),
    ];
    let table = Table {
        name: "roofline_measured",
        title: "Measured beside the floor (end to end: with data processing, which has no floor)",
        columns: columns(&heads),
        rows,
        keys: 2,
    };
    (!table.rows.is_empty()).then_some(table)
}

fn measured_modes<'a>(run: &'a Run, component: &'a Component) -> impl Iterator<Item = (&'a str, f64)> {
    // f32 has other floors.
    let modes = run.modes.iter().filter(|mode| !run.is_reference(mode));
    modes.filter_map(|mode: &ModeResult| Some((mode.name.as_str(), mode.latency(component)?.median)))
}

/// What each switch brings.
fn ablation(results: &[AblationResult]) -> Option<Table> {
    if results.is_empty() {
        return None;
    }
    let median =
        |summary: &Option<LatencySummary>| Cell::figure(summary.map(|s| s.median), number::milliseconds);
    let row = |result: &AblationResult| {
        let gain = match &result.failure {
            Some(reason) => Cell::Text(reason.clone()),
            None => Cell::figure(result.gain(), number::ratio),
        };
        vec![text(&result.name), text(&result.part), median(&result.off), median(&result.on), gain]
    };
    let heads = [
        ("switch", "switch"),
        ("part", "part"),
        ("off_ms", "off\nms"),
        ("on_ms", "on\nms"),
        ("gain", "off / on"),
    ];
    let rows = results.iter().map(row).collect();
    Some(Table { name: "ablation", title: "One switch at a time", columns: columns(&heads), rows, keys: 0 })
}

/// Ticks per second, and how old the observation is when its actions are there.
fn throughput(results: &[ThroughputResult]) -> Option<Table> {
    if results.is_empty() {
        return None;
    }
    let mut rows = Vec::new();
    for result in results {
        for (order, pace) in [("in sequence", result.sequential), ("pipelined", result.pipelined)] {
            let figure = |pick: fn(&Pace) -> f64| Cell::figure(pace.as_ref().map(pick), number::milliseconds);
            let hz = Cell::figure(pace.map(|pace| pace.hz), number::rate);
            rows.push(vec![
                text(&result.mode),
                text(order),
                hz,
                figure(|pace| pace.age.median),
                figure(|pace| pace.age.p90),
            ]);
        }
        if let Some(reason) = &result.failure {
            rows.push(vec![
                text(&result.mode),
                Cell::Text(reason.clone()),
                Cell::None,
                Cell::None,
                Cell::None,
            ]);
        }
    }
    let heads = [
        ("mode", "mode"),
        ("order", "ticks"),
        ("hz", "Hz"),
        ("age_median_ms", "age\nmedian, ms"),
        ("age_p90_ms", "age\np90, ms"),
    ];
    let title = "Throughput, and the observation's age when its actions are there";
    Some(Table { name: "throughput", title, columns: columns(&heads), rows, keys: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::{ComponentLatency, Gpu, Machine};

    fn run(gpu: &str, modes: &[(&str, f64)]) -> Run {
        let mode = |&(name, median): &(&str, f64)| ModeResult {
            name: name.to_owned(),
            latencies: vec![ComponentLatency {
                component: Component::EndToEnd,
                summary: LatencySummary { count: 50, median, ..LatencySummary::default() },
                samples_ms: Vec::new(),
            }],
            ..ModeResult::default()
        };
        let gpus = vec![Gpu { name: gpu.to_owned(), ..Gpu::default() }];
        Run {
            machine: Machine { gpus, ..Machine::default() },
            modes: modes.iter().map(mode).collect(),
            ..Run::default()
        }
    }

    #[test]
    fn the_fastest_mode_is_held_against_the_published_rows_of_the_same_device_only() {
        let modes = [("eager", 40.0), ("graph", 8.0)];
        let on = run("NVIDIA H100 80GB HBM3", &modes);
        let line = beside_published(&on, &published_rows(&on)).unwrap();
        assert!(line.contains("graph, 8.00 ms") && line.contains("TensorRT DiT 4.50x"), "{line}");
        let elsewhere = run("NVIDIA A100", &modes);
        assert_eq!(beside_published(&elsewhere, &published_rows(&elsewhere)), None);
        let empty = run("NVIDIA H100 80GB HBM3", &[]);
        assert_eq!(beside_published(&empty, &published_rows(&empty)), None);
    }
}
