//! The denoising steps on own kernels, at the size of the 3B model, with random weights: are they right, and how fast?
//!
//! ```text
//! fused_proof checkpoint --dir DIR [--blocks 32]
//! fused_proof run        --dir DIR [--text 40] [--image 81] [--ticks 2] [--json FILE] [--quick]
//! ```
//!
//! `run` needs an NVIDIA GPU and libtorch with CUDA; the compiler NVRTC and cuBLASLt are found beside libtorch. A part that
//! fails is reported, and the others still count.

mod random_checkpoint;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use groot_policy::{
    checkpoint::Checkpoint,
    cuda::{Gemms, Gpu, Kernels, Nvrtc, Tuned},
    engine_builder::{
        synthetic::SyntheticTick,
        tables::{self, Measured},
        verify::{Distance, HeadLatency, Trace, torch_head},
    },
    model::{
        action_head::ActionHead,
        device,
        fused::{FusedQueueing, FusedVelocity},
        layers::Loader,
        probe::Probe,
        velocity::VelocityEngine as _,
    },
};
use random_checkpoint::{CheckpointOptions, EMBODIMENT, open, write_checkpoint};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// Ways of a product that are shown.
const SHOWN: usize = 8;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    step: Step,
}

#[derive(Subcommand)]
enum Step {
    /// Write a checkpoint with random weights, if there is none
    Checkpoint(CheckpointOptions),
    /// Tune, time, compare
    Run(Options),
}

#[derive(clap::Args)]
struct Options {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long, default_value_t = 40)]
    text: usize,
    #[arg(long, default_value_t = 81)]
    image: usize,
    /// Ticks that accuracy is measured on
    #[arg(long, default_value_t = 2)]
    ticks: u64,
    #[arg(long, default_value_t = 50)]
    iterations: usize,
    #[arg(long)]
    json: Option<PathBuf>,
    /// Without the comparison in f32
    #[arg(long)]
    quick: bool,
}

fn main() -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Arguments::parse().step {
        Step::Checkpoint(options) => write_checkpoint(&options),
        Step::Run(options) => run(&options),
    }
}

/// What is found, for people at once and for programs at the end.
struct Report {
    found: serde_json::Map<String, Value>,
    path: Option<PathBuf>,
}

impl Report {
    /// Does a part; its failure is kept and reported.
    fn part<T>(&mut self, name: &str, work: impl FnOnce() -> Result<(T, Value)>) -> Option<T> {
        println!("\n== {name}");
        let start = Instant::now();
        let (result, value) = match work() {
            Ok((result, value)) => (Some(result), value),
            Err(error) => {
                println!("{name}: FAILED: {error:#}");
                (None, json!({"failed": format!("{error:#}")}))
            }
        };
        println!("-- {name}: {:.1} s", start.elapsed().as_secs_f64());
        self.found.insert(name.to_owned(), value);
        if let Some(path) = &self.path
            && let Err(error) = fs::write(path, Value::Object(self.found.clone()).to_string())
        {
            println!("{}: {error}", path.display());
        }
        result
    }
}

fn run(options: &Options) -> Result<()> {
    let device = device::select("cuda")?;
    let mut report = Report { found: serde_json::Map::new(), path: options.json.clone() };
    report.part("machine", || machine(device));
    let Some(checkpoint) = report.part("checkpoint", || Ok((open(&options.dir)?, Value::Null))) else {
        return Ok(());
    };
    let config = &checkpoint.config;
    let ticks = (0..options.ticks.max(1))
        .map(|seed| SyntheticTick::new(config, seed, options.text, options.image))
        .collect::<Result<Vec<_>, _>>()?;
    let first = ticks.first().context("a tick")?;

    let engine = report.part("load", || {
        let at = Loader::new(&checkpoint.weights, device, Kind::BFloat16).at("action_head");
        let mut engine = FusedVelocity::load(&at, config, EMBODIMENT)?;
        engine.set_timesteps(&groot_policy::checkpoint::timesteps(4, config.num_timestep_buckets))?;
        Ok((engine, Value::Null))
    });
    if let Some(mut engine) = engine {
        report.part("tune", || {
            condition(&mut engine, first, device)?;
            let tuned = engine.products();
            tuned.iter().for_each(print_tuned);
            Ok(((), tuned.iter().map(tuned_json).collect()))
        });
        report.part("run", || {
            let (states, noise) = inputs(&engine, first, config.input_embedding_dim as i64, device)?;
            for _ in 0..2 {
                let actions = engine.denoise(&states, &noise)?.context("all steps at once")?;
                let range = (actions.f_min()?.f_double_value(&[])?, actions.f_max()?.f_double_value(&[])?);
                println!("actions from {:.3} to {:.3}", range.0, range.1);
            }
            Ok(((), Value::Null))
        });
        for (name, overlap) in [("graph", true), ("graph without overlap", false)] {
            report.part(name, || {
                engine.set_overlap(overlap)?;
                let mut times = engine.time(options.iterations + 5)?;
                times.drain(..5);
                times.sort_by(f32::total_cmp);
                let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
                println!(
                    "4 steps: median {:.3} ms, p90 {:.3}, least {:.3} (GPU clock)",
                    at(0.5),
                    at(0.9),
                    at(0.0)
                );
                Ok(((), json!({"median": at(0.5), "p90": at(0.9), "least": at(0.0)})))
            });
            report.part(&format!("stages, {name}"), || {
                let profile = engine.profile(7)?;
                println!("{:<16} {:>8} {:>10} {:>10} {:>12}", "stage", "launches", "alone ms", "us each", "marginal us");
                for time in &profile {
                    let each = |ms: f32| 1000.0 * ms / time.launches.max(1) as f32;
                    let name = format!("{:?}", time.stage);
                    let (alone, marginal) = (each(time.alone), each(time.marginal));
                    println!("{name:<16} {:>8} {:>10.3} {alone:>10.2} {marginal:>12.2}", time.launches, time.alone);
                }
                let all = profile.iter().map(|time| {
                    json!({"stage": format!("{:?}", time.stage), "launches": time.launches, "alone_ms": time.alone,
                        "marginal_ms": time.marginal})
                });
                Ok(((), all.collect()))
            });
        }
        drop(engine);
    }
    report.part("other sizes", || other_sizes(config.input_embedding_dim));
    report.part("accuracy", || accuracy(&checkpoint, options, &ticks, device));
    Ok(())
}

fn machine(device: Device) -> Result<((), Value)> {
    let Device::Cuda(ordinal) = device else { anyhow::bail!("{device:?} is no GPU") };
    let gpu = Gpu::open(ordinal)?;
    let name = gpu.context().name()?;
    println!(
        "{name}: capability {}, {} multiprocessors, {} KiB shared of a block, {} MiB L2",
        gpu.capability(),
        gpu.multiprocessors(),
        gpu.shared_per_block() >> 10,
        gpu.l2() >> 20
    );
    let nvrtc = Nvrtc::load()?;
    println!("NVRTC {:?}, compiles for {}", nvrtc.version(), nvrtc.target(gpu.capability()));
    let gemms = Gemms::new(&gpu)?;
    println!("cuBLASLt {:?}", gemms.library());
    let start = Instant::now();
    Kernels::new(&gpu)?;
    println!("kernels compiled in {:.2} s", start.elapsed().as_secs_f64());
    Ok(((), json!({"gpu": name, "nvrtc": nvrtc.version(), "cublaslt": format!("{:?}", gemms.library())})))
}

fn condition(engine: &mut FusedVelocity, tick: &SyntheticTick, device: Device) -> Result<()> {
    let context = tick.features.f_to_device(device)?.f_to_kind(Kind::BFloat16)?;
    Ok(engine.condition(&context, &tick.layout(device)?, &mut Probe::off())?)
}

/// State tokens that are made up, and the tick's noise.
fn inputs(
    _engine: &FusedVelocity,
    tick: &SyntheticTick,
    width: i64,
    device: Device,
) -> Result<(Tensor, Tensor)> {
    let states = Tensor::f_zeros([1, 1, width], (Kind::BFloat16, device))?;
    Ok((states, tick.noise.f_to_device(device)?))
}

fn print_tuned(tuned: &Tuned) {
    println!("{} ({:.1} MB)", tuned.shape, tuned.weight_bytes() as f64 / 1e6);
    let library = tuned.candidates.iter().position(|candidate| candidate.library);
    for (place, candidate) in tuned.candidates.iter().enumerate() {
        let failed = candidate.time.is_err();
        if place >= SHOWN && Some(place) != library && !failed {
            continue;
        }
        match &candidate.time {
            Ok(us) => {
                let rate = tuned.weight_bytes() as f64 / us / 1e3;
                println!("  {us:>8.2} us {rate:>7.0} GB/s  {} (#{})", candidate.name, place + 1);
            }
            Err(error) => println!("  failed: {}: {error}", candidate.name),
        }
    }
}

fn tuned_json(tuned: &Tuned) -> Value {
    let candidates: Vec<Value> = tuned
        .candidates
        .iter()
        .map(|candidate| json!({"name": candidate.name, "us": candidate.time.as_ref().ok(), "failed": candidate.time.as_ref().err()}))
        .collect();
    json!({"shape": tuned.shape.to_string(), "weight_bytes": tuned.weight_bytes(), "candidates": candidates})
}

/// Products for the short horizon, which no tick of this checkpoint has.
fn other_sizes(width: usize) -> Result<((), Value)> {
    use groot_policy::cuda::{Activation, GemmShape};
    let gpu = Gpu::open(0)?;
    let kernels = Kernels::new(&gpu)?;
    let mut gemms = Gemms::new(&gpu)?;
    for (n, k, finish) in
        [(width, width, None), (4 * width, width, Some(Activation::GeluTanh)), (width, 4 * width, None)]
    {
        gemms.tuned(&kernels, GemmShape { rows: 17, n, k, finish })?;
    }
    gemms.table().iter().for_each(print_tuned);
    Ok(((), gemms.table().iter().map(tuned_json).collect()))
}

fn accuracy(
    checkpoint: &Checkpoint,
    options: &Options,
    ticks: &[SyntheticTick],
    device: Device,
) -> Result<((), Value)> {
    let first = ticks.first().context("a tick")?;
    let mut all: Vec<Measured> = Vec::new();
    let mut references: Vec<(String, Vec<Trace>)> = Vec::new();
    let plain = [("libtorch f32", Kind::Float), ("libtorch bf16", Kind::BFloat16)];
    for (name, kind) in plain.into_iter().skip(usize::from(options.quick)) {
        let mut head = torch_head(checkpoint, EMBODIMENT, device, kind)?;
        let mut measured = Measured { name: name.to_owned(), ..Measured::default() };
        compare(&mut measured, &references, &mut head, ticks, device)?;
        let traces =
            ticks.iter().map(|tick| Trace::record(&mut head, tick, device)).collect::<Result<Vec<_>, _>>()?;
        println!("{name}: root mean square of the velocities {:.4}", traces[0].velocity_rms());
        references.push((name.to_owned(), traces));
        measured.time("eager", &HeadLatency::measure(&mut head, first, device, 3, 20)?);
        all.push(measured);
    }
    for (how, queueing) in [("kernel by kernel", FusedQueueing::Eager), ("graph", FusedQueueing::Graph)] {
        let at = Loader::new(&checkpoint.weights, device, Kind::BFloat16).at("action_head");
        let mut engine = FusedVelocity::load(&at, &checkpoint.config, EMBODIMENT)?;
        engine.set_queueing(queueing);
        let mut head = ActionHead::with_engine(&at, &checkpoint.config, EMBODIMENT, Box::new(engine))?;
        let mut measured = Measured { name: format!("fused, {how}"), ..Measured::default() };
        compare(&mut measured, &references, &mut head, ticks, device)?;
        measured.time(how, &HeadLatency::measure(&mut head, first, device, 5, options.iterations)?);
        println!(
            "{how}: once recorded, all steps at once against step by step: {:?}",
            at_once(&mut head, first, device)
        );
        all.push(measured);
    }
    println!("\n{}\n{}\n{}", tables::modes(&all), tables::latencies(&all), tables::steps(&all));
    Ok(((), serde_json::to_value(&all)?))
}

/// The largest difference between the actions of the one graph and those of single steps.
fn at_once(head: &mut ActionHead, tick: &SyntheticTick, device: Device) -> Result<f64> {
    let features = head.adopt(&tick.features)?;
    let tokens = head.condition(&features, &tick.layout(device)?, &tick.state, &mut Probe::off())?;
    let mut run = |mut probe| head.denoise(&tokens, &tick.noise, &mut probe);
    let single = run(Probe::on())?;
    let joint = run(Probe::off())?;
    let again = run(Probe::off())?;
    let worst = |a: &Tensor| -> Result<f64> { Ok(a.f_sub(&single)?.f_abs()?.f_max()?.f_double_value(&[])?) };
    Ok(worst(&joint)?.max(worst(&again)?))
}

fn compare(
    measured: &mut Measured,
    references: &[(String, Vec<Trace>)],
    head: &mut ActionHead,
    ticks: &[SyntheticTick],
    device: Device,
) -> Result<()> {
    for (reference, traces) in references {
        let mut distance = Distance::default();
        for (trace, tick) in traces.iter().zip(ticks) {
            distance.add(trace, head, tick, device)?;
        }
        measured.add(reference, &distance);
    }
    Ok(())
}
