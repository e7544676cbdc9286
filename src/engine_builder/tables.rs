//! What was found, for people and for programs.

use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::verify::{Distance, HeadLatency};
use crate::{
    engine::EngineRecord,
    evaluation::{DenoisingSummary, LatencySummary},
};

/// One way to run the denoising steps, measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Measured {
    pub name: String,
    /// Per reference.
    pub against: Vec<Against>,
    pub latencies: Vec<Latency>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

/// Distance from one reference.
#[derive(Debug, Clone, Serialize)]
pub struct Against {
    pub reference: String,
    /// Velocities from the same inputs.
    pub velocity: DenoisingSummary,
    /// Actions after each step, each on its own way.
    pub actions: DenoisingSummary,
}

/// Latency of one way of queueing.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    pub of: String,
    /// By the host's clock.
    pub denoising: LatencySummary,
    /// By the GPU's clock; None on the CPU.
    pub on_device: Option<LatencySummary>,
    pub conditioning: LatencySummary,
}

impl Measured {
    /// Adds a distance.
    pub fn add(&mut self, reference: &str, distance: &Distance) {
        let (velocity, actions) = distance.summaries();
        self.against.push(Against { reference: reference.to_owned(), velocity, actions });
    }

    /// Adds a latency.
    pub fn time(&mut self, of: &str, latency: &HeadLatency) {
        self.latencies.push(Latency {
            of: of.to_owned(),
            denoising: latency.denoising.summary().unwrap_or_default(),
            on_device: latency.on_device.summary(),
            conditioning: latency.conditioning.summary().unwrap_or_default(),
        });
    }
}

/// What an engine is called in the tables.
pub fn engine_name(record: &EngineRecord) -> String {
    let method = record.calibration.as_ref().map_or_else(String::new, |by| format!(" {}", by.method));
    let typed = if record.builder.strongly_typed { ", strongly typed" } else { "" };
    format!("TensorRT {}{method}{typed}", record.precision)
}

/// The table of modes: accuracy and latency of all denoising steps.
pub fn modes(all: &[Measured]) -> String {
    let mut table =
        blank(&["mode", "against", "velocity MSE", "MAE", "max", "cosine", "least cosine", "actions MSE"]);
    for mode in all {
        for against in &mode.against {
            let (velocity, actions) = (&against.velocity.overall, against.actions.steps.last());
            table.add_row([
                mode.name.clone(),
                against.reference.clone(),
                error(velocity.mse),
                error(velocity.mae),
                error(velocity.max_abs),
                cosine(velocity.cosine),
                cosine(velocity.cosine_min),
                error(actions.and_then(|actions| actions.mse)),
            ]);
        }
    }
    aligned(table, 2)
}

/// The table of latencies, in milliseconds.
pub fn latencies(all: &[Measured]) -> String {
    let mut table = blank(&[
        "mode",
        "queued",
        "steps median ms",
        "p90",
        "mean",
        "least",
        "by device events",
        "p90",
        "once per tick",
    ]);
    for mode in all {
        for latency in &mode.latencies {
            let LatencySummary { median, p90, mean, min, .. } = latency.denoising;
            let on_device = |of: fn(&LatencySummary) -> f64| latency.on_device.as_ref().map(of);
            let figures = [
                Some(median),
                Some(p90),
                Some(mean),
                Some(min),
                on_device(|device| device.median),
                on_device(|device| device.p90),
                Some(latency.conditioning.median),
            ]
            .map(|ms| ms.map_or("-".to_owned(), |ms| format!("{ms:.3}")));
            table.add_row([mode.name.clone(), latency.of.clone()].into_iter().chain(figures));
        }
    }
    aligned(table, 2)
}

/// The table of denoising steps: MSE at each, and how it grows.
pub fn steps(all: &[Measured]) -> String {
    let count = all.iter().flat_map(|mode| &mode.against).map(|a| a.velocity.steps.len()).max().unwrap_or(0);
    let mut headings = vec!["mode".to_owned(), "against".to_owned(), "MSE of".to_owned()];
    headings.extend((0..count).map(|step| format!("step {step}")));
    headings.push("growth".to_owned());
    let mut table = blank(&headings);
    for mode in all {
        for against in &mode.against {
            for (of, summary) in [("velocity", &against.velocity), ("actions", &against.actions)] {
                let mut row = vec![mode.name.clone(), against.reference.clone(), of.to_owned()];
                let at = |step: usize| error(summary.steps.get(step).and_then(|step| step.mse));
                row.extend((0..count).map(at));
                row.push(summary.growth().map_or("-".to_owned(), |growth| format!("{growth:.2}x")));
                table.add_row(row);
            }
        }
    }
    aligned(table, 3)
}

fn blank(headings: &[impl ToString]) -> Table {
    let mut table = Table::new();
    table.set_header(headings.iter().map(ToString::to_string));
    table
}

fn aligned(mut table: Table, words: usize) -> String {
    for column in table.column_iter_mut().skip(words) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

fn error(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.3e}"))
}

fn cosine(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.7}"))
}
