//! Does the tick as CUDA graphs give what it gives operation by operation, and how much faster is it? At the size of the 3B
//! model, with random weights.
//!
//! ```text
//! graph_proof [--case nvidia-1cam,2cam,alfie-4cam] [--horizon 50] [--iterations 50] [--replays 100] [--json FILE]
//! ```
//!
//! Needs an NVIDIA GPU with 8 GB; without one it says so and ends well. Ends with an error where a result differs
//! or memory grows.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use groot_policy::{
    checkpoint::{EagleConfig, ModelConfig},
    evaluation::LatencySamples,
    execution::ExecutionMode,
    model::{
        cuda::{self, CapturedGraph, Pool, Stream},
        default_kind, device,
        network::Network,
        operators::PlainOperators,
        probe::Probe,
        random::RandomWeights,
        tick::captured::Split,
    },
    processor::{ModelInputs, guidance::Guidance},
};
use ndarray::{Array2, Array3, Array4};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// Of the built-in table: `new_embodiment`.
const EMBODIMENT: usize = 10;

#[derive(Parser)]
struct Arguments {
    #[arg(long, value_enum, value_delimiter = ',', default_value = "nvidia-1cam,2cam,alfie-4cam")]
    case: Vec<Case>,
    /// Action rows; the published model has 50
    #[arg(long, default_value_t = 50)]
    horizon: usize,
    /// Timed ticks per mode
    #[arg(long, default_value_t = 50)]
    iterations: usize,
    /// Replays whose results are compared bit by bit
    #[arg(long, default_value_t = 100)]
    replays: usize,
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Case {
    #[value(name = "nvidia-1cam")]
    OneCamera,
    #[value(name = "2cam")]
    TwoCameras,
    #[value(name = "alfie-4cam")]
    FourCameras,
}

impl Case {
    /// Name, number of frames, their height and width as the network gets them, text tokens.
    fn sizes(self) -> (&'static str, usize, [usize; 2], usize) {
        match self {
            Self::OneCamera => ("nvidia-1cam", 1, [252, 252], 41),
            Self::TwoCameras => ("2cam", 2, [252, 336], 34),
            Self::FourCameras => ("alfie-4cam", 4, [252, 280], 40),
        }
    }
}

fn main() -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let Ok(Device::Cuda(gpu)) = device::select("auto") else {
        println!("skipped: there is no usable GPU here");
        return Ok(());
    };
    cuda::available()?;
    failed_captures_do_no_harm(gpu)?;

    let model = ModelConfig { action_horizon: arguments.horizon, ..ModelConfig::n1d6_3b() };
    let eagle = EagleConfig::n1d6_3b();
    let device = Device::Cuda(gpu);
    let start = Instant::now();
    let weights = RandomWeights::new(&model, &eagle, 1);
    let mut network = Network::load(&weights, &model, &eagle, EMBODIMENT, device, default_kind(device))?;
    device::synchronize(device);
    cuda::trim_memory()?;
    let loaded = cuda::memory_usage(gpu)?;
    println!(
        "random weights made in {:.1} s, {:.2} GB; {}",
        start.elapsed().as_secs_f64(),
        gigabytes(loaded.allocated),
        network.identity()
    );
    let mut all = Vec::new();
    let mut different = 0;
    for case in &arguments.case {
        let (report, wrong) = prove(&mut network, &model, *case, &arguments, gpu)?;
        different += wrong;
        all.push(report);
    }
    if let Some(path) = &arguments.json {
        let document = json!({"loaded_bytes": loaded.allocated, "horizon": arguments.horizon, "cases": all});
        std::fs::write(path, serde_json::to_string_pretty(&document)?)?;
    }
    ensure!(different == 0, "{different} results differ");
    println!("all results are equal, bit by bit");
    Ok(())
}

/// One case in all modes: its figures, and the number of results that differ from eager ones.
fn prove(
    network: &mut Network,
    model: &ModelConfig,
    case: Case,
    arguments: &Arguments,
    gpu: usize,
) -> Result<(Value, usize)> {
    let (name, images, size, text) = case.sizes();
    // Three of one shape with different contents, one of another prompt length.
    let sets: Vec<Set> = [(1, text), (2, text), (3, text), (4, text + 7)]
        .map(|(seed, text)| Set::new(model, seed, images, size, text))
        .into();
    let tokens = sets[0].inputs.input_ids.ncols();
    println!("\n{name}: {images} frames of {size:?}, {tokens} tokens, horizon {}", model.action_horizon);
    network.set_mode(ExecutionMode::Eager)?;
    let eager = sets.iter().map(|set| set.run(network, false)).collect::<Result<Vec<_>>>()?;
    let again = sets.iter().map(|set| set.run(network, false)).collect::<Result<Vec<_>>>()?;
    let guided = sets[0].run(network, true)?;
    let mut different = 0;
    let mut compare = |what: &str, found: &Array3<f32>, expected: &Array3<f32>| {
        let wrong = found.iter().zip(expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        if wrong > 0 {
            let distance = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("  {what}: {wrong} of {} values differ, by up to {distance:e}", found.len());
            different += 1;
        }
    };
    for (number, (first, second)) in eager.iter().zip(&again).enumerate() {
        compare(&format!("eager, set {number}, second time"), second, first);
    }
    ensure!(eager[0] != eager[1] && eager[1] != eager[2], "different inputs give the same actions");
    let rms = (eager[0].iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / eager[0].len() as f64).sqrt();
    println!("  root mean square of the actions {rms:.3}");

    let mut report = BTreeMap::new();
    report.insert("eager".to_owned(), time(network, &sets[..3], arguments.iterations, gpu, "eager")?);
    for (mode, split) in [("graph", Split::Stages), ("graph, one for the tick", Split::Whole)] {
        network.set_mode_split(ExecutionMode::Graph, split)?;
        for what in ["operation by operation", "captured"] {
            let start = Instant::now();
            compare(&format!("{mode}, {what}"), &sets[0].run(network, false)?, &eager[0]);
            println!("  {mode}: tick {what}: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
        }
        for number in [0, 1, 0, 2, 3, 3, 3, 1] {
            let found = sets[number].run(network, false)?;
            compare(&format!("{mode}, set {number}"), &found, &eager[number]);
        }
        for turn in 0..3 {
            compare(&format!("{mode}, guided, {turn}"), &sets[0].run(network, true)?, &guided);
        }
        // Back and forth changes what the constants of the steps lie in.
        let steps = network.denoising_steps();
        network.set_denoising_steps(2)?;
        sets[0].run(network, false)?;
        network.set_denoising_steps(steps)?;
        let before = cuda::memory_usage(gpu)?;
        for turn in 0..arguments.replays {
            let number = turn % 3;
            let found = sets[number].run(network, false)?;
            compare(&format!("{mode}, replay {turn}, set {number}"), &found, &eager[number]);
        }
        let after = cuda::memory_usage(gpu)?;
        let (shapes, nodes) = network.runner().context("a runner")?.statistics();
        println!(
            "  {mode}: {shapes} shapes, {nodes} nodes; {} replays grew memory in use by {} and reserved by {} bytes",
            arguments.replays,
            after.allocated - before.allocated,
            after.reserved - before.reserved
        );
        ensure!(nodes > 0, "the tick was not captured");
        ensure!(
            after.allocated <= before.allocated && after.reserved <= before.reserved,
            "{mode}: memory grows from tick to tick"
        );
        report.insert(mode.to_owned(), time(network, &sets[..3], arguments.iterations, gpu, mode)?);
    }
    // One product for query, key and value, and one for gate and up: equal but for rounding.
    network.set_mode(ExecutionMode::Graph)?;
    network.set_operators(Some(Box::new(PlainOperators)))?;
    for set in &sets[..3] {
        set.run(network, false)?;
    }
    let joined = sets[0].run(network, false)?;
    let distance = joined.iter().zip(&eager[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("  joined products: actions differ from eager ones by up to {distance:e}");
    ensure!(f64::from(distance) < rms, "joined products give other actions");
    let mode = "graph, joined products";
    report.insert(mode.to_owned(), time(network, &sets[..3], arguments.iterations, gpu, mode)?);
    network.set_operators(None)?;
    network.set_mode(ExecutionMode::Eager)?;
    cuda::trim_memory()?;
    Ok((json!({"case": name, "tokens": tokens, "modes": report, "different": different}), different))
}

/// Wall-clock and device times of ticks over several input sets, after some that are not counted.
fn time(network: &mut Network, sets: &[Set], iterations: usize, gpu: usize, mode: &str) -> Result<Value> {
    cuda::reset_memory_peaks(gpu)?;
    let mut samples: [LatencySamples; 4] = Default::default();
    for iteration in 0..iterations + 10 {
        let set = &sets[iteration % sets.len()];
        let start = Instant::now();
        let (_, times) = network.run(&set.inputs, set.noise.view(), None, &mut Probe::off())?;
        let total = start.elapsed();
        if iteration >= 10 {
            for (samples, took) in
                samples.iter_mut().zip([times.vision, times.language, times.action_head, total])
            {
                samples.push(took);
            }
        }
    }
    let peak = cuda::memory_usage(gpu)?;
    let mut figures = serde_json::Map::new();
    let mut line = format!("  {mode}:");
    for (name, samples) in ["vision", "language", "action_head", "total"].into_iter().zip(&samples) {
        let summary = samples.summary().context("samples")?;
        figures.insert(name.to_owned(), serde_json::to_value(summary)?);
        line += &format!(" {name} {:.3}", milliseconds(samples));
    }
    println!("{line} ms (medians), peak {:.2} GB in use", gigabytes(peak.allocated_peak));
    figures.insert("peak_allocated".to_owned(), json!(peak.allocated_peak));
    figures.insert("peak_reserved".to_owned(), json!(peak.reserved_peak));
    Ok(Value::Object(figures))
}

fn milliseconds(samples: &LatencySamples) -> f64 {
    samples.summary().map_or(f64::NAN, |summary| summary.median)
}

fn gigabytes(bytes: i64) -> f64 {
    bytes as f64 / 1e9
}

/// What a tick is made from.
struct Set {
    inputs: ModelInputs,
    noise: Array3<f32>,
    guidance: Guidance,
}

impl Set {
    fn new(model: &ModelConfig, seed: u64, images: usize, [height, width]: [usize; 2], text: usize) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let image_tokens = images * height * width / (28 * 28);
        let first = text / 2;
        let input_ids = Array2::from_shape_fn((1, text + image_tokens), |(_, place)| {
            let is_image = (first..first + image_tokens).contains(&place);
            if is_image {
                i64::from(EagleConfig::n1d6_3b().image_token_index)
            } else {
                random.random_range(0..150_000)
            }
        });
        let shape = (model.action_horizon, model.max_action_dim);
        Self {
            inputs: ModelInputs {
                images: Array4::from_shape_simple_fn((images, height, width, 3), || random.random()),
                attention_mask: Array2::from_elem(input_ids.dim(), true),
                input_ids,
                state: Array3::from_shape_simple_fn((1, 1, model.max_state_dim), || {
                    random.random_range(-1.0..1.0)
                }),
            },
            noise: Array3::from_shape_simple_fn((1, shape.0, shape.1), || random.sample(StandardNormal)),
            guidance: Guidance {
                target: Array2::from_shape_simple_fn(shape, || random.random_range(-1.0..1.0)),
                weights: Array2::from_shape_fn(shape, |(row, _)| if row < 4 { 1.0 } else { 0.0 }),
            },
        }
    }

    fn run(&self, network: &mut Network, guided: bool) -> Result<Array3<f32>> {
        let guidance = guided.then_some(&self.guidance);
        Ok(network.run(&self.inputs, self.noise.view(), guidance, &mut Probe::off())?.0)
    }
}

/// A capture that cannot succeed is refused with a reason, and the next one works.
fn failed_captures_do_no_harm(gpu: usize) -> Result<()> {
    let stream = Stream::take(gpu)?;
    let entered = stream.enter()?;
    ensure!(
        Stream::current(gpu)? == stream && !stream.handle()?.is_null(),
        "the stream is not the current one"
    );
    let ones = Tensor::f_ones([1000], (Kind::Float, Device::Cuda(gpu)))?;
    // Sets up what is set up once.
    ensure!(ones.f_mul_scalar(2.0)?.f_sum(Kind::Float)?.f_double_value(&[])? == 2000.0, "the GPU cannot add");
    let pool = Pool::new()?;
    let refused = CapturedGraph::capture(&pool, || Ok(ones.f_sum(Kind::Float)?.f_double_value(&[])?));
    match refused {
        Ok(_) => bail!("a wait for the GPU was captured"),
        Err(error) => println!("a wait inside a capture is refused: {error}"),
    }
    let start = Instant::now();
    let (graph, doubled) = CapturedGraph::capture(&Pool::new()?, || Ok(ones.f_mul_scalar(2.0)?))?;
    graph.replay()?;
    stream.wait()?;
    let sum = doubled.f_sum(Kind::Float)?.f_double_value(&[])?;
    ensure!(sum == 2000.0, "expected 2000 of a captured doubling, found {sum}");
    ensure!(start.elapsed() < Duration::from_secs(60), "a capture takes minutes");
    drop(entered);
    ensure!(Stream::current(gpu)?.handle()?.is_null(), "the stream before is not the current one again");
    Ok(())
}
