//! The sections of the page.

use maud::{Markup, html};

use super::{
    super::{
        super::{
            metric::{ErrorFigure, Metric},
            run::{Component, Cpu, Gpu, ModeResult, Run},
        },
        number::{self, printable},
        table::{self, Cell, Table},
    },
    chart::Ink,
    plots, swatch,
};

/// Lines of damage that are shown.
const MAX_DAMAGE: usize = 200;

/// What the heading says in one line.
pub(super) fn facts(run: &Run) -> Vec<String> {
    let source = &run.source;
    let name = if source.name.is_empty() { &source.path } else { &source.name };
    let trajectories = match run.trajectories_done {
        0 => String::new(),
        1 => "1 trajectory".to_owned(),
        n => format!("{} trajectories", number::count(n)),
    };
    let samples = if source.samples > 0 {
        format!("{} observations", number::count(source.samples))
    } else {
        String::new()
    };
    let hardware = run.machine.gpus.first().map_or(&run.machine.cpu.model, |gpu| &gpu.name);
    let date = run.created.split('T').next().unwrap_or_default();
    let facts = [name.clone(), source.kind.clone(), trajectories, samples, hardware.clone(), date.to_owned()];
    facts.into_iter().filter(|fact| !fact.trim().is_empty()).map(|fact| printable(&fact)).collect()
}

/// What must be known before any figure is read.
pub(super) fn banners(run: &Run) -> Markup {
    let failed: Vec<&ModeResult> = run.modes.iter().filter(|mode| mode.failure.is_some()).collect();
    let broken = run.modes.iter().flat_map(|mode| {
        let dit = mode.denoising.as_ref().map(|denoising| ("DiT", &denoising.overall));
        let actions = mode.actions.as_ref().map(|actions| ("actions", actions));
        let recorded = mode.recorded.as_ref().map(|recorded| ("against the recording", &recorded.total));
        let all = [dit, actions, recorded].into_iter().flatten().filter(|(_, errors)| errors.non_finite > 0);
        all.filter_map(move |(what, errors)| Some(format!("{}, {what}: {}", mode.name, errors.missing()?)))
    });
    let broken: Vec<String> = broken.collect();
    html! {
        @if let Some(partial) = &run.partial {
            p class="banner warn" { b { "Partial. " } (printable(&partial.to_string())) "; the figures are those measured so far." }
        }
        @for mode in failed {
            p class="banner bad" { b { (printable(&mode.name)) " failed. " } (printable(mode.failure.as_deref().unwrap_or_default())) }
        }
        @for line in broken {
            p class="banner bad" { b { "Not a number. " } (printable(&line)) "." }
        }
        @if run.checkpoint.random_weights {
            p class="banner warn" { b { "Random weights. " } "Errors against the recording mean nothing; latencies and errors between modes do." }
        }
        @if run.source.synthetic {
            p class="banner" { b { "Synthetic recording. " } "A program made it up; no robot was there." }
        }
        @for note in &run.notes { p class="banner" { (printable(note)) } }
        @if !run.source.damage.is_empty() {
            details class="banner warn" {
                summary { b { "The recording is damaged or incomplete: " } (number::count(run.source.damage.len() as u64)) " findings" }
                ul {
                    @for line in run.source.damage.iter().take(MAX_DAMAGE) { li { (printable(line)) } }
                    @if run.source.damage.len() > MAX_DAMAGE { li { "and " (run.source.damage.len() - MAX_DAMAGE) " more" } }
                }
            }
        }
    }
}

fn metric(run: &Run, mode: &ModeResult, metric: &Metric, show: fn(f64) -> String) -> Option<String> {
    metric.value(run, mode).ok().map(show)
}

/// One card per mode: what it costs and what it is worth.
pub(super) fn cards(run: &Run) -> Markup {
    html! {
        section aria-labelledby="modes" {
            h2 id="modes" { "Modes" }
            div class="cards" {
                @for (place, mode) in run.modes.iter().enumerate() { (card(run, place, mode)) }
            }
        }
    }
}

fn card(run: &Run, place: usize, mode: &ModeResult) -> Markup {
    let end_to_end = mode.latency(&Component::EndToEnd);
    let ratio = metric(run, mode, &Metric::EndToEndRatio(ErrorFigure::Mse), number::ratio);
    let [dit_mse, dit_cosine, e2e_mse, e2e_mae] = accuracy_of(run, mode);
    html! {
        article class="card" {
            h3 { (swatch(Ink::Mode(place))) " " (printable(&mode.name)) }
            p class="identity" { "backbone " (or_unknown(&mode.backbone)) " · DiT " (or_unknown(&mode.dit)) }
            @if let Some(latency) = end_to_end {
                p class="figure" {
                    b { (number::milliseconds(latency.median)) } " ms"
                    @if let Some(hz) = latency.hz() { span class="aside" { (number::rate(hz)) " Hz" } }
                    @if let Some(speedup) = metric(run, mode, &Metric::Speedup, number::ratio) {
                        span class="chip" title="median latency of the reference mode divided by this mode's" { (speedup) " as fast" }
                    }
                    @if run.is_reference(mode) { span class="chip" { "baseline" } }
                }
                p class="tail" { "p90 " (number::milliseconds(latency.p90)) " · p99 " (number::milliseconds(latency.p99)) " ms end to end" }
            } @else {
                p class="figure" { "not timed" }
            }
            dl {
                dt { "DiT cosine" } dd { (dit_cosine.shown()) }
                dt { "DiT MSE" } dd { (dit_mse.shown()) }
                @if let Some(actions) = &mode.actions {
                    dt { "action cosine" } dd { (Cell::of_error(Some(actions), actions.cosine, number::cosine).shown()) }
                }
                dt { "end-to-end MSE" } dd { (e2e_mse.shown()) @if let Some(ratio) = ratio { " " span class="aside" { (ratio) } } }
                dt { "end-to-end MAE" } dd { (e2e_mae.shown()) }
                @if let Some(nrmse) = metric(run, mode, &Metric::EndToEndNrmse, number::error) {
                    dt { "RMSE / recorded SD" } dd { (nrmse) }
                }
                @if let Some(bytes) = mode.peak_device_bytes { dt { "device memory" } dd { (number::bytes(bytes)) } }
            }
            @for note in &mode.notes { p class="note" { (printable(note)) } }
        }
    }
}

fn accuracy_of(run: &Run, mode: &ModeResult) -> [Cell; 4] {
    let mut cells = table::accuracy(run, mode).into_iter();
    std::array::from_fn(|_| cells.next().unwrap_or(Cell::None))
}

fn or_unknown(text: &str) -> String {
    if text.is_empty() { "unknown".to_owned() } else { printable(text) }
}

/// Parts of the time end to end that do not overlap, with what is left over.
fn parts(mode: &ModeResult) -> Vec<(&'static str, String, f64)> {
    let median = |component| mode.latency(&component).map(|latency| latency.median);
    let mut parts = Vec::new();
    let mut add = |class, component: Component| {
        let value = median(component.clone());
        if let Some(value) = value {
            parts.push((class, component.label().to_owned(), value));
        }
        value.is_some()
    };
    add("c0", Component::DataProcessing);
    // Vision and language are the backbone; the DiT is most of the action head.
    if median(Component::Vision).is_some() && median(Component::Language).is_some() {
        add("c1", Component::Vision);
        add("c2", Component::Language);
    } else {
        add("c2", Component::Backbone);
    }
    if !add("c3", Component::ActionHead) {
        add("c3", Component::Dit);
    }
    let known: f64 = parts.iter().map(|(.., value)| value).sum();
    if let Some(rest) = median(Component::EndToEnd).map(|all| all - known).filter(|rest| *rest > 0.005) {
        parts.push(("c4", "rest".to_owned(), rest));
    }
    parts
}

/// Where the time goes.
pub(super) fn time(run: &Run) -> Markup {
    let all: Vec<(&ModeResult, Vec<_>)> = run.modes.iter().map(|mode| (mode, parts(mode))).collect();
    let total = |parts: &[(&str, String, f64)]| parts.iter().map(|(.., value)| value).sum::<f64>();
    let longest = all.iter().map(|(_, parts)| total(parts)).fold(0.0, f64::max);
    let table = table::components(run);
    html! {
        section aria-labelledby="time" {
            h2 id="time" { "Where the time goes" }
            @if longest > 0.0 {
                div class="bars" {
                    @for (mode, parts) in &all {
                        div class="row" {
                            div class="name" { (printable(&mode.name)) }
                            div class="bar" aria-hidden="true" {
                                @for (class, label, value) in parts {
                                    span class=(class) style={ "width:" (format!("{:.2}", 100.0 * value / longest)) "%" }
                                        title={ (printable(label)) " " (number::milliseconds(*value)) " ms" } {}
                                }
                            }
                            ul class="parts" {
                                @for (class, label, value) in parts {
                                    li { i class=(class) {} (printable(label)) " " b { (number::milliseconds(*value)) } " ms" }
                                }
                            }
                        }
                    }
                }
                p class="hint" { "Medians of each part, after warm-up and with the device synchronised; "
                    "“rest” is what the median end to end has beyond their sum." }
            }
            (latencies(run))
            (plots::grid(&plots::histograms(run)))
            (draw("Each component, ms", &table))
        }
    }
}

/// The table of the modes, one row each, with the tails under the medians.
fn latencies(run: &Run) -> Markup {
    let components = [Component::Backbone, Component::Dit, Component::EndToEnd];
    let heads = [
        "backbone ms",
        "DiT ms",
        "end to end ms",
        "Hz",
        "DiT MSE",
        "DiT cosine",
        "end-to-end MSE",
        "end-to-end MAE",
    ];
    html! {
        div class="panel" {
            h3 id="table-modes" { "Modes beside the reference " span { "median, with p90 · p99 below" } }
            div class="scroll" tabindex="0" role="region" aria-labelledby="table-modes" {
            table class="stack" aria-labelledby="table-modes" {
                thead { tr { th scope="col" { "mode" } @for head in heads { th scope="col" { (head) } } } }
                tbody {
                    @for mode in &run.modes {
                        tr class=[run.is_reference(mode).then_some("reference")] {
                            th scope="row" { (printable(&mode.name)) }
                            @for (component, head) in components.iter().zip(heads) {
                                td data-label=(head) {
                                    @if let Some(latency) = mode.latency(component) {
                                        b { (number::milliseconds(latency.median)) }
                                        span class="tail" { (number::milliseconds(latency.p90)) " · " (number::milliseconds(latency.p99)) }
                                    } @else { "-" }
                                }
                            }
                            td data-label="Hz" {
                                @if let Some(hz) = mode.latency(&Component::EndToEnd).and_then(|latency| latency.hz()) { b { (number::rate(hz)) } } @else { "-" }
                            }
                            @for (cell, head) in table::accuracy(run, mode).iter().zip(heads.iter().skip(4)) {
                                td data-label=(head) { (cell.shown()) }
                            }
                        }
                    }
                }
            }
            }
        }
    }
}

/// The DiT step by step, and the chunk step by step.
pub(super) fn accuracy(run: &Run) -> Markup {
    let (growth, horizon) = (plots::growth(run), plots::horizon(run));
    let steps = table::denoising_steps(run);
    html! {
        @if !growth.is_empty() || run.modes.iter().any(|mode| mode.denoising.is_some()) {
            section aria-labelledby="dit" {
                h2 id="dit" { "The DiT, denoising step by denoising step" }
                p class="hint" { "At each step both are fed what the reference mode met there, so each error is the step's own." }
                (plots::grid(&growth))
                (draw("DiT per denoising step, against the reference mode", &steps))
            }
        }
        @if !horizon.is_empty() {
            section aria-labelledby="horizon" {
                h2 id="horizon" { "Error over the horizon" }
                p class="hint" { "Against the recorded actions; how far ahead the chunk can be trusted." }
                (plots::grid(&horizon))
            }
        }
    }
}

/// Recorded and predicted motion.
pub(super) fn trajectories(run: &Run) -> Markup {
    html! {
        @if !run.trajectories.is_empty() {
            section aria-labelledby="motion" {
                h2 id="motion" { "Recorded and predicted motion" }
                p class="hint" { "Of each chunk the part up to the next replayed observation; thin vertical lines: a chunk begins." }
                @for plot in &run.trajectories {
                    details class="trajectory" open="" {
                        summary { (printable(&plot.name)) " " span { (number::count(plot.steps)) " steps, " (number::count(plot.boundaries.len() as u64)) " chunks" } }
                        @for note in plots::left_out(run, plot) { p class="note" { (printable(&note)) } }
                        (plots::grid(&plots::trajectory(run, plot)))
                    }
                }
                @if run.trajectories_done > run.trajectories.len() as u64 {
                    p class="note" { "The motion of the first " (run.trajectories.len()) " of " (number::count(run.trajectories_done)) " trajectories is shown; the figures are of all." }
                }
            }
        }
    }
}

/// Latency and error in the order of the replay.
pub(super) fn along(run: &Run) -> Markup {
    let charts = plots::timelines(run);
    html! {
        @if !charts.is_empty() {
            section aria-labelledby="along" {
                h2 id="along" { "Along the replay" }
                p class="hint" { "Thin vertical lines: another trajectory begins." }
                (plots::grid(&charts))
            }
        }
    }
}

/// Errors per joint.
pub(super) fn dimensions(run: &Run) -> Markup {
    let table = table::dimensions(run);
    html! {
        @if !table.rows.is_empty() {
            section aria-labelledby="joints" {
                h2 id="joints" { "Per dimension" }
                (draw("Against the recorded actions; SD is the recording's own standard deviation", &table))
            }
        }
    }
}

/// A table as it is, in a frame of its own that can be scrolled sideways.
fn draw(caption: &str, table: &Table) -> Markup {
    let texts = |i: usize| table.rows.iter().all(|row| row.get(i).is_none_or(Cell::is_text));
    let align = |i: usize| texts(i).then_some("text");
    let name = |row: &[Cell]| row.first().map(Cell::shown);
    let blocks: Vec<&[Vec<Cell>]> = table.rows.chunk_by(|a, b| name(a) == name(b)).collect();
    let id = format!("table-{}", table.name);
    html! {
        @if !table.rows.is_empty() {
            div class="panel" {
                h3 id=(id) { (caption) }
                div class="scroll" tabindex="0" role="region" aria-labelledby=(id) {
                    table aria-labelledby=(id) {
                        thead { tr { @for (i, (_, heading)) in table.columns.iter().enumerate() { th scope="col" class=[align(i)] { (heading) } } } }
                        @for block in blocks {
                            tbody {
                                @for (number, row) in block.iter().enumerate() {
                                    tr {
                                        @for (i, cell) in row.iter().enumerate() {
                                            @if i > 0 { td class=[align(i)] { (cell.shown()) } }
                                            @else if number == 0 { th scope="rowgroup" rowspan=(block.len()) { (cell.shown()) } }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Machine, checkpoint, source, options.
pub(super) fn circumstances(run: &Run) -> Markup {
    let machine = &run.machine;
    let (checkpoint, source, options) = (&run.checkpoint, &run.source, &run.options);
    let count = |value: u64| number::count(value);
    let or_all = |value: Option<u64>| value.map_or("all".to_owned(), number::count);
    let mut hardware = vec![
        ("board", machine.board.clone()),
        ("processor", cpu(&machine.cpu)),
        ("memory", machine.memory_bytes.map(number::bytes).unwrap_or_default()),
    ];
    hardware.extend(machine.gpus.iter().map(|gpu| ("GPU", self::gpu(gpu))));
    hardware.extend([
        ("power mode", machine.power_mode.clone()),
        ("system", joined(&[&machine.os, &machine.kernel])),
    ]);
    hardware.extend(machine.software.iter().map(|(name, version)| ("library", format!("{name} {version}"))));
    let policy = vec![
        ("checkpoint", checkpoint.name.clone()),
        ("folder", checkpoint.path.clone()),
        ("fingerprint", checkpoint.hash.clone()),
        ("embodiment", checkpoint.embodiment.clone()),
        ("parameters", checkpoint.parameters.map(count).unwrap_or_default()),
    ];
    let mut recording = vec![
        ("kind", source.kind.clone()),
        ("name", source.name.clone()),
        ("path", source.path.clone()),
        ("fingerprint", source.hash.clone()),
        ("length", source.duration_s.map(|seconds| format!("{seconds:.1} s")).unwrap_or_default()),
        ("observations", count(source.samples)),
    ];
    recording.extend(
        source
            .messages
            .iter()
            .map(|(topic, messages)| ("messages", format!("{topic}: {}", count(*messages)))),
    );
    let mut how = vec![
        ("horizon", format!("{} steps", count(options.horizon))),
        ("stride", format!("{} steps", count(options.stride))),
        ("step time", options.step_time_s.map(|seconds| format!("{seconds} s")).unwrap_or_default()),
        ("observations per trajectory", or_all(options.steps_per_trajectory)),
        ("of these step by step", or_all(options.component_steps_per_trajectory)),
        (
            "trajectories",
            format!("{} done of {}", count(run.trajectories_done), or_all(options.trajectories)),
        ),
        ("warm-up", format!("{} passes", count(options.warm_up))),
        ("iterations", count(options.iterations)),
        ("noise seed", options.noise_seed.map(|seed| seed.to_string()).unwrap_or_default()),
        ("denoising steps", count(options.denoising_steps)),
        ("reference mode", run.reference.clone()),
    ];
    how.extend(options.other.iter().map(|(name, value)| ("option", format!("{name}: {value}"))));
    html! {
        section aria-labelledby="how" {
            h2 id="how" { "How it was measured" }
            div class="columns" {
                (list("Machine", &hardware)) (list("Policy", &policy)) (list("Recording", &recording)) (list("Options", &how))
            }
        }
    }
}

fn list(title: &str, entries: &[(&str, String)]) -> Markup {
    html! {
        div class="facts-list" {
            h3 { (title) }
            dl { @for (name, value) in entries.iter().filter(|(_, value)| !value.is_empty()) { dt { (name) } dd { (printable(value)) } } }
        }
    }
}

fn joined(parts: &[&str]) -> String {
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(", ")
}

fn cpu(cpu: &Cpu) -> String {
    let cores = match (cpu.cores, cpu.usable_cores) {
        (Some(all), Some(usable)) if usable != all => format!("{usable} of {all} cores"),
        (Some(cores), _) | (None, Some(cores)) => format!("{cores} cores"),
        (None, None) => String::new(),
    };
    let clock = cpu.max_mhz.map(|mhz| format!("up to {mhz} MHz")).unwrap_or_default();
    joined(&[&cpu.model, &cpu.architecture, &cores, &clock, &cpu.governor])
}

fn gpu(gpu: &Gpu) -> String {
    let with =
        |name: &str, value: &str| if value.is_empty() { String::new() } else { format!("{name} {value}") };
    let number = |value: Option<u64>, name: &str, unit: &str| {
        value.map(|value| format!("{name}{value} {unit}")).unwrap_or_default()
    };
    joined(&[
        &gpu.name,
        &gpu.memory_bytes.map(number::bytes).unwrap_or_default(),
        &with("driver", &gpu.driver),
        &with("CUDA", &gpu.cuda),
        &with("compute capability", &gpu.compute_capability),
        &number(gpu.sm_mhz, "SM ", "MHz"),
        &number(gpu.memory_mhz, "memory ", "MHz"),
        &gpu.power_state,
        &number(gpu.power_limit_w, "limit ", "W"),
        &number(gpu.temperature_c, "", "°C"),
    ])
}

/// What the words mean.
pub(super) fn definitions() -> Markup {
    let entries = [
        (
            "MSE, MAE, max error",
            "mean squared, mean absolute and largest absolute error over all values of all samples, in f64",
        ),
        ("cosine", "of the two whole tensors, flattened, per sample; then the mean over the samples"),
        ("growth", "MSE of the last denoising step divided by that of the first"),
        (
            "end-to-end errors",
            "physical actions against the recorded ones; the total adds keys of different units as they are",
        ),
        (
            "RMSE / SD",
            "RMSE of a dimension divided by the standard deviation of what was recorded there: 0 is perfect, 1 is no better than always predicting the mean",
        ),
        (
            "median, p90, p99",
            "with linear interpolation between the two nearest measurements, as NumPy's default",
        ),
        ("Hz", "1000 divided by the median latency end to end in ms"),
        ("NaN", "some values were NaN or infinite; no figure is given over the rest"),
    ];
    html! {
        section aria-labelledby="words" {
            h2 id="words" { "What the figures mean" }
            dl class="definitions" { @for (name, meaning) in entries { dt { (name) } dd { (meaning) } } }
        }
    }
}
