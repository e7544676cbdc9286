//! Writes the report of a run that nobody measured, to look at the page and the tables: all figures are made up from a seed.
//!
//! `cargo run --example report_gallery --no-default-features -- FOLDER`

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use groot_policy::evaluation::{
    ActionErrors, ActionGroup, CheckpointIdentity, Component, Cpu, Dimension, Gpu, Machine, ModeIdentity,
    ModeMeasurement, Options, Run, RunBuilder, Source, Tick, TrajectoryRecorder, TrajectoryResult, report,
};
use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

const HORIZON: usize = 16;
const STRIDE: usize = 8;
const STEP_TIME: f64 = 0.1;

/// A made-up mode: vision, language and DiT in ms, error of the DiT, error of the actions.
struct Mode {
    identity: ModeIdentity,
    milliseconds: [f64; 3],
    dit_error: f64,
    drift: f64,
}

fn modes() -> Vec<Mode> {
    let mode = |name: &str, dit: &str, milliseconds, dit_error, drift| Mode {
        identity: ModeIdentity { name: name.into(), backbone: "libtorch bf16".into(), dit: dit.into() },
        milliseconds,
        dit_error,
        drift,
    };
    vec![
        mode("torch", "libtorch bf16", [61.0, 96.0, 205.0], 0.0, 0.030),
        mode("tensorrt-fp16", "TensorRT fp16", [61.0, 96.0, 77.0], 0.0045, 0.031),
        mode("tensorrt-int8", "TensorRT int8", [61.0, 96.0, 75.0], 0.012, 0.036),
    ]
}

fn groups() -> Vec<ActionGroup> {
    let joints = |key: &str, names: &[&str], unit: &str| ActionGroup {
        key: key.into(),
        dimensions: names.iter().map(|name| Dimension::new(*name, unit)).collect(),
    };
    let arm = ["shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3"];
    let mut base = joints("base", &["forward", "turn"], "m/s");
    base.dimensions[1].unit = "rad/s".into();
    vec![joints("left_arm", &arm, "rad"), joints("gripper", &["opening"], "m"), base]
}

/// The made-up robot's motion.
fn pose(trajectory: usize, dimension: usize, step: usize) -> f64 {
    let t = step as f64 * STEP_TIME;
    let speed = 0.25 + 0.07 * dimension as f64 + 0.05 * trajectory as f64;
    let size = if dimension == 6 { 0.03 } else { 0.6 / (1.0 + 0.3 * dimension as f64) };
    size * ((t * speed * 2.0).sin() + 0.4 * (t * speed * 5.1 + dimension as f64).sin())
}

fn main() -> anyhow::Result<()> {
    let folder =
        PathBuf::from(std::env::args_os().nth(1).context("expected a folder to write to, found none")?);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let run = gallery()?;
    run.save(&folder.join("run.json"))?;
    report::csv::write(&run, &folder)?;
    std::fs::write(folder.join("report.html"), report::page(&run))?;
    print!("{}", report::terminal::summary(&run));
    Ok(())
}

/// The made-up run.
pub fn gallery() -> anyhow::Result<Run> {
    let mut random = ChaCha8Rng::seed_from_u64(16);
    let mut builder = RunBuilder::new(head(), modes().into_iter().map(|mode| mode.identity));
    for trajectory in 0..3 {
        builder.add(replay(trajectory, &mut random)?)?;
    }
    builder.head().source.samples = 3 * 24;
    Ok(builder.finish(None))
}

fn head() -> Run {
    let gpu = Gpu {
        name: "Made-up accelerator".into(),
        driver: "0.0".into(),
        cuda: "0.0".into(),
        compute_capability: "8.7".into(),
        memory_bytes: Some(64 << 30),
        sm_mhz: Some(1300),
        power_state: "P0".into(),
        ..Gpu::default()
    };
    Run {
        title: "A gallery of made-up figures".into(),
        created: "2026-01-01T00:00:00Z".into(),
        machine: Machine {
            os: "No system".into(),
            cpu: Cpu { model: "Made-up processor".into(), cores: Some(12), ..Cpu::default() },
            memory_bytes: Some(64 << 30),
            gpus: vec![gpu],
            power_mode: "MAXN".into(),
            ..Machine::default()
        },
        checkpoint: CheckpointIdentity {
            name: "no checkpoint".into(),
            embodiment: "new_embodiment".into(),
            ..CheckpointIdentity::default()
        },
        source: Source {
            kind: "generator".into(),
            name: "seed 16".into(),
            duration_s: Some(57.6),
            messages: [("/camera/front".to_owned(), 1728), ("/joint_states".to_owned(), 5760)].into(),
            synthetic: true,
            ..Source::default()
        },
        options: Options {
            horizon: HORIZON as u64,
            stride: STRIDE as u64,
            steps_per_trajectory: Some(24),
            component_steps_per_trajectory: Some(3),
            trajectories: Some(3),
            warm_up: 10,
            iterations: 30,
            noise_seed: Some(7),
            denoising_steps: 4,
            step_time_s: Some(STEP_TIME),
            ..Options::default()
        },
        reference: "torch".into(),
        notes: vec!["Every figure here is made up to show the page; nothing was measured.".into()],
        ..Run::default()
    }
}

fn replay(trajectory: usize, random: &mut ChaCha8Rng) -> anyhow::Result<TrajectoryResult> {
    let (groups, name) = (groups(), format!("episode {trajectory}"));
    let mut recorder = TrajectoryRecorder::new(&name, STEP_TIME, &groups);
    let mut measurements = Vec::new();
    for mode in modes() {
        let mut measurement = ModeMeasurement::new(&mode.identity.name);
        let mut errors = ActionErrors::new(&groups, HORIZON);
        for observation in 0..24 {
            let first = observation * STRIDE;
            let recorded = chunk(&groups, |dimension, row| pose(trajectory, dimension, first + row));
            let offset = Normal::new(0.0, mode.drift)?;
            let start: Vec<f64> = (0..9).map(|_| offset.sample(random)).collect();
            let predicted = chunk(&groups, |dimension, row| {
                let size = if dimension == 6 { 0.1 } else { 1.0 };
                let away = start[dimension] * (0.2 + row as f64 / 9.0) * size;
                pose(trajectory, dimension, first + row) + away
            });
            recorder.recorded(first as u64, &recorded);
            recorder.predicted(&mode.identity.name, first as u64, STRIDE, &predicted);
            errors.push(&predicted, &recorded)?;
            let mut one = ActionErrors::new(&groups, HORIZON);
            one.push(&predicted, &recorded)?;
            let latency = time(&mut measurement, &mode, random);
            measurement.timeline.push(Tick {
                time_s: first as f64 * STEP_TIME,
                latency_ms: latency,
                mse: one.summary().and_then(|summary| summary.total.mse),
                ..Tick::default()
            });
            if mode.dit_error > 0.0 {
                compare_dit(&mut measurement, &mode, random)?;
            }
        }
        measurement.recorded = Some(errors);
        measurement.peak_device_bytes = Some(7_100_000_000);
        measurements.push(measurement);
    }
    Ok(TrajectoryResult { name, measurements, plot: Some(recorder.finish()) })
}

fn chunk(groups: &[ActionGroup], value: impl Fn(usize, usize) -> f64) -> Vec<(String, Array2<f32>)> {
    let mut first = 0;
    let keys = groups.iter().map(|group| {
        let from = first;
        first += group.dimensions.len();
        let shape = (HORIZON, group.dimensions.len());
        (group.key.clone(), Array2::from_shape_fn(shape, |(row, column)| value(from + column, row) as f32))
    });
    keys.collect()
}

/// Makes up the latencies of one observation and gives the one end to end in ms.
fn time(measurement: &mut ModeMeasurement, mode: &Mode, random: &mut ChaCha8Rng) -> f64 {
    let slow = if random.random_bool(0.03) { 1.25 } else { 1.0 };
    let mut jitter = |ms: f64| ms * slow * (1.0 + 0.02 * random.random::<f64>().powi(2));
    let [vision, language, dit] = mode.milliseconds.map(&mut jitter);
    let (data, head) = (jitter(6.0), dit + jitter(2.5));
    let all = data + vision + language + head + 0.4;
    let components = [
        (Component::DataProcessing, data),
        (Component::Vision, vision),
        (Component::Language, language),
        (Component::Backbone, vision + language),
        (Component::Dit, dit),
        (Component::ActionHead, head),
        (Component::EndToEnd, all),
    ];
    for (component, ms) in components {
        measurement.latency(component).push(Duration::from_secs_f64(ms / 1e3));
    }
    all
}

/// Makes up the outputs of the DiT at four denoising steps.
fn compare_dit(
    measurement: &mut ModeMeasurement,
    mode: &Mode,
    random: &mut ChaCha8Rng,
) -> anyhow::Result<()> {
    let normal = Normal::new(0.0, 1.0)?;
    for step in 0..4 {
        let reference: Vec<f32> = (0..HORIZON * 32).map(|_| normal.sample(random) as f32).collect();
        let error = mode.dit_error * (1.0 + 0.06 * step as f64);
        let tested: Vec<f32> =
            reference.iter().map(|value| value + (error * normal.sample(random)) as f32).collect();
        measurement.denoising.push(step, &reference, &tested)?;
        measurement.actions.push(&reference, &tested)?;
    }
    Ok(())
}
