//! Which charts a run gives.

use maud::{Markup, html};

use super::{
    super::super::{
        metrics::ErrorSummary,
        run::{Component, ModeResult, Run, TrajectoryPlot},
    },
    chart::{Chart, Ink, Line},
    scale::Scale,
};

/// Most points of all lines of the trajectories together; of more, lines are thinned out.
const POINT_BUDGET: usize = 160_000;
/// Bars of a histogram.
const BINS: usize = 36;
/// Most chunk boundaries that are drawn in one chart.
const MAX_MARKS: usize = 120;

type Place<'a> = (usize, &'a ModeResult);

fn modes(run: &Run) -> impl Iterator<Item = Place<'_>> {
    run.modes.iter().enumerate()
}

fn line(place: usize, mode: &ModeResult, points: Vec<(f64, f64)>, dots: bool) -> Line {
    Line { label: mode.name.clone(), ink: Ink::Mode(place), points, dots }
}

fn by_step(
    steps: &[ErrorSummary],
    figure: impl Fn(&ErrorSummary) -> Option<f64>,
    first: usize,
) -> Vec<(f64, f64)> {
    let values = steps.iter().enumerate();
    values.map(|(i, errors)| ((i + first) as f64, figure(errors).unwrap_or(f64::NAN))).collect()
}

/// A chart of non-negative figures over numbered steps; None without any.
fn steps_chart(title: &str, subtitle: &str, x_label: &str, y_label: &str, lines: Vec<Line>) -> Option<Chart> {
    let y = Scale::positive(lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y)), 30.0)?;
    let steps = lines.iter().flat_map(|line| line.points.iter().map(|(x, _)| *x));
    let (min, max) = steps.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), x| (min.min(x), max.max(x)));
    let air = (max - min).max(1.0) * 0.03;
    Some(Chart {
        title: title.to_owned(),
        subtitle: format!("{subtitle}{}", if y.is_log() { " (logarithmic)" } else { "" }),
        x_label: x_label.to_owned(),
        y_label: y_label.to_owned(),
        x: Scale::exact(min - air, max + air),
        y,
        lines,
        marks: Vec::new(),
        choice: None,
        filled: false,
        whole_x: true,
    })
}

/// The DiT's error at each denoising step.
pub(super) fn growth(run: &Run) -> Vec<Chart> {
    let lines = |figure: fn(&ErrorSummary) -> Option<f64>| -> Vec<Line> {
        modes(run)
            .filter(|(_, mode)| !run.is_reference(mode))
            .filter_map(|(place, mode)| {
                Some(line(place, mode, by_step(&mode.denoising.as_ref()?.steps, figure, 0), true))
            })
            .collect()
    };
    let charts = [
        steps_chart("MSE per denoising step", "", "denoising step", "MSE", lines(|errors| errors.mse)),
        steps_chart(
            "Largest error per step",
            "",
            "denoising step",
            "max error",
            lines(|errors| errors.max_abs),
        ),
        steps_chart(
            "What the cosine lacks to 1",
            "",
            "denoising step",
            "1 − cosine",
            lines(|errors| errors.cosine.map(|cosine| 1.0 - cosine)),
        ),
    ];
    charts.into_iter().flatten().collect()
}

/// The error against the recording over the horizon: all keys, then each.
pub(super) fn horizon(run: &Run) -> Vec<Chart> {
    let recorded = || modes(run).filter_map(|(place, mode)| Some((place, mode, mode.recorded.as_ref()?)));
    let all = recorded().map(|(place, mode, recorded)| {
        line(place, mode, by_step(&recorded.per_step, |errors| errors.mse, 1), false)
    });
    let mut charts: Vec<Chart> =
        steps_chart("All keys", "", "step of the chunk", "MSE", all.collect()).into_iter().collect();
    let keys = recorded().map(|(_, _, recorded)| recorded.groups.len()).max().unwrap_or(0);
    for i in 0..keys {
        let groups =
            recorded().filter_map(|(place, mode, recorded)| Some((place, mode, recorded.groups.get(i)?)));
        let groups: Vec<_> = groups.collect();
        let Some((_, _, first)) = groups.first() else { continue };
        let unit = first.unit().map(|unit| format!(" ({unit})")).unwrap_or_default();
        let lines = groups.iter().map(|(place, mode, group)| {
            line(*place, mode, by_step(&group.per_step, ErrorSummary::rmse, 1), false)
        });
        charts.extend(steps_chart(
            &first.key,
            "",
            "step of the chunk",
            &format!("RMSE{unit}"),
            lines.collect(),
        ));
    }
    charts
}

/// How the latencies end to end are spread: one chart per mode, each with its own axis.
pub(super) fn histograms(run: &Run) -> Vec<Chart> {
    let one = |(place, mode): Place<'_>| -> Option<Chart> {
        let latency = mode.latencies.iter().find(|latency| latency.component == Component::EndToEnd)?;
        let samples = &latency.samples_ms;
        let x = Scale::linear(samples.iter().copied())?;
        let edge = |i: usize| x.value(i as f64 / BINS as f64);
        let mut counts = [0u64; BINS];
        for bin in samples.iter().filter_map(|&sample| x.place(sample)) {
            if let Some(count) = counts.get_mut(((bin * BINS as f64) as usize).min(BINS - 1)) {
                *count += 1;
            }
        }
        let share = |count: u64| 100.0 * count as f64 / samples.len() as f64;
        let steps = counts.iter().enumerate();
        let steps = steps.flat_map(|(i, &count)| [(edge(i), share(count)), (edge(i + 1), share(count))]);
        let lines = vec![line(place, mode, steps.collect(), false)];
        let y = Scale::positive(
            lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y)),
            f64::INFINITY,
        )?;
        let figures = &latency.summary;
        Some(Chart {
            title: mode.name.clone(),
            subtitle: format!("{} passes", latency.summary.count),
            x_label: "latency end to end (ms)".to_owned(),
            y_label: "share of passes (%)".to_owned(),
            x,
            y,
            lines,
            marks: vec![(figures.median, "median"), (figures.p90, "p90"), (figures.p99, "p99")],
            choice: None,
            filled: true,
            whole_x: false,
        })
    };
    modes(run).filter_map(one).collect()
}

/// Latency and error along the replay.
pub(super) fn timelines(run: &Run) -> Vec<Chart> {
    let last = run.modes.iter().flat_map(|mode| mode.timeline.last()).map(|tick| tick.tick).max();
    let Some(last) = last else { return Vec::new() };
    let lines = |figure: fn(&super::super::super::run::Tick) -> f64| -> Vec<Line> {
        modes(run)
            .filter(|(_, mode)| !mode.timeline.is_empty())
            .map(|(place, mode)| {
                let points = mode.timeline.iter().map(|tick| (tick.tick as f64, figure(tick)));
                line(place, mode, points.collect(), false)
            })
            .collect()
    };
    let borders = run.modes.iter().find(|mode| !mode.timeline.is_empty()).map(|mode| {
        let pairs = mode.timeline.windows(2);
        let borders = pairs.filter_map(|pair| match pair {
            [a, b] if a.trajectory != b.trajectory => Some((b.tick as f64, "")),
            _ => None,
        });
        borders.take(MAX_MARKS).collect::<Vec<_>>()
    });
    let chart = |title: &str, y_label: &str, lines: Vec<Line>| -> Option<Chart> {
        let y = Scale::positive(lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y)), 30.0)?;
        Some(Chart {
            title: title.to_owned(),
            subtitle: if y.is_log() { "(logarithmic)" } else { "" }.to_owned(),
            x_label: "replayed observation".to_owned(),
            y_label: y_label.to_owned(),
            x: Scale::exact(0.0, last as f64),
            y,
            lines,
            marks: borders.clone().unwrap_or_default(),
            choice: None,
            filled: false,
            whole_x: true,
        })
    };
    let latency = chart("Latency along the replay", "end to end (ms)", lines(|tick| tick.latency_ms));
    let error =
        chart("Error along the replay", "MSE of the chunk", lines(|tick| tick.mse.unwrap_or(f64::NAN)));
    latency.into_iter().chain(error).collect()
}

/// Recorded and predicted motion, one chart per dimension.
pub(super) fn trajectory(run: &Run, plot: &TrajectoryPlot) -> Vec<Chart> {
    let thin = thinning(run);
    let step = if plot.step_time_s > 0.0 && plot.step_time_s.is_finite() { plot.step_time_s } else { 1.0 };
    let seconds = step * plot.every.max(1) as f64;
    let mut charts = Vec::new();
    for dimension in &plot.dimensions {
        let points = |values: &[f32]| -> Vec<(f64, f64)> {
            let values = values.iter().enumerate().step_by(thin);
            values.map(|(i, &value)| (i as f64 * seconds, f64::from(value))).collect()
        };
        let recorded = Line {
            label: "recorded".to_owned(),
            ink: Ink::Recorded,
            points: points(&dimension.recorded),
            dots: false,
        };
        let predicted = dimension.predicted.iter().map(|series| Line {
            label: series.mode.clone(),
            ink: Ink::Mode(run.modes.iter().position(|mode| mode.name == series.mode).unwrap_or(0)),
            points: points(&series.values),
            dots: false,
        });
        let lines: Vec<Line> = [recorded].into_iter().chain(predicted).collect();
        let all = || lines.iter().flat_map(|line| line.points.iter());
        let Some(y) = Scale::linear(all().map(|(_, y)| *y)) else { continue };
        let end = all().map(|(x, _)| *x).fold(0.0, f64::max);
        let unit = if dimension.unit.is_empty() { String::new() } else { format!(" ({})", dimension.unit) };
        let name = if dimension.name.is_empty() { &dimension.key } else { &dimension.name };
        charts.push(Chart {
            title: name.clone(),
            subtitle: if dimension.name.is_empty() { String::new() } else { dimension.key.clone() },
            x_label: if plot.step_time_s > 0.0 { "time (s)" } else { "step" }.to_owned(),
            y_label: format!("action{unit}"),
            x: Scale::exact(0.0, end),
            y,
            lines,
            marks: boundaries(plot, step),
            choice: Some(name.clone()),
            filled: false,
            whole_x: false,
        });
    }
    charts
}

/// Times at which chunks begin, thinned out where they would make a grey area.
fn boundaries(plot: &TrajectoryPlot, step: f64) -> Vec<(f64, &'static str)> {
    let every = plot.boundaries.len().div_ceil(MAX_MARKS).max(1);
    plot.boundaries.iter().step_by(every).map(|&boundary| (boundary as f64 * step, "")).collect()
}

/// Every how many points of the trajectories' lines are drawn, so that the page stays of a bounded size.
fn thinning(run: &Run) -> usize {
    let dimensions = run.trajectories.iter().flat_map(|plot| &plot.dimensions);
    let points: usize = dimensions
        .map(|dimension| {
            dimension.recorded.len()
                + dimension.predicted.iter().map(|series| series.values.len()).sum::<usize>()
        })
        .sum();
    points.div_ceil(POINT_BUDGET).max(1)
}

/// What was left out of the plots of a trajectory, in words.
pub(super) fn left_out(run: &Run, plot: &TrajectoryPlot) -> Vec<String> {
    let mut notes = plot.left_out.clone();
    let thin = thinning(run);
    if thin > 1 {
        notes.push(format!("of the kept points one in {thin} is drawn"));
    }
    if plot.boundaries.len() > MAX_MARKS {
        notes.push(format!("of {} chunk boundaries at most {MAX_MARKS} are drawn", plot.boundaries.len()));
    }
    notes
}

/// Charts beside each other.
pub(super) fn grid(charts: &[Chart]) -> Markup {
    html! { div class="charts" { @for chart in charts { (chart.draw()) } } }
}
