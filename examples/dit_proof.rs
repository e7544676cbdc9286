//! The DiT at the size of the 3B model, with random weights, through TensorRT: does it build, is it right, how fast is it?
//!
//! ```text
//! dit_proof checkpoint --dir DIR [--blocks 32]
//! dit_proof onnx       --dir DIR --out DIR [--text 40] [--image 162]
//! dit_proof build      --dir DIR --out DIR --precision fp16 [--level 3] [--norms-f32]
//! dit_proof build      --dir DIR --out DIR --precision int8 --method explicit [--ranges percentile:99.99] [--smooth-quant 0.5]
//! dit_proof measure    --dir DIR --out DIR --precisions fp32,fp16,int8 [--json FILE]
//! ```
//!
//! Each step is a process of its own, so that one that hangs can be ended and the others still count. Needs an NVIDIA GPU
//! (but for the first two), libtorch with CUDA, and TensorRT in the folder TENSORRT_LIB.

mod random_checkpoint;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use groot_policy::{
    checkpoint::ModelConfig,
    engine::{CheckpointHasher, EngineStore, Precision},
    engine_builder::{
        build::{BuildRequest, PreparedGraph},
        calibration::{options::Int8Options, plan::Int8Plan},
        graph::{EngineGraph, GraphPart, GraphRequest, Typing},
        lengths::Lengths,
        session::timing_cache_name,
        synthetic::SyntheticTick,
        tables::{self, Measured},
        verify::{Distance, HeadLatency, Trace, torch_head},
    },
    model::{
        action_head::ActionHead,
        device,
        layers::Loader,
        tensorrt::{Queueing, TensorRtDevice, TensorRtVelocity},
    },
    onnx::Written,
    tensorrt::F32Layers,
};
use random_checkpoint::{CheckpointOptions, EMBODIMENT, open, write_checkpoint};
use tch::{Device, Kind};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    step: Step,
}

#[derive(Subcommand)]
enum Step {
    /// Write a checkpoint with random weights, if there is none
    Checkpoint(CheckpointOptions),
    /// Write the fused graph
    Onnx {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        prompt: Prompt,
    },
    /// Build and save an engine from the graph that `onnx` wrote, or for int8 from one of its own
    Build {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        prompt: Prompt,
        #[arg(long)]
        precision: Precision,
        #[arg(long)]
        level: Option<u8>,
        #[arg(long)]
        norms_f32: bool,
        #[command(flatten)]
        int8: Int8Options,
    },
    /// Compare the engines with libtorch, and time both
    Measure {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        prompt: Prompt,
        #[arg(long, value_delimiter = ',', default_value = "fp32,fp16,int8")]
        precisions: Vec<Precision>,
        #[arg(long, default_value_t = 4)]
        ticks: u64,
        #[arg(long, default_value_t = 10)]
        warm_up: usize,
        #[arg(long, default_value_t = 50)]
        iterations: usize,
        #[arg(long)]
        json: Option<PathBuf>,
    },
}

#[derive(clap::Args)]
struct Place {
    /// The checkpoint
    #[arg(long)]
    dir: PathBuf,
    /// Folder of graphs and engines
    #[arg(long)]
    out: PathBuf,
}

#[derive(clap::Args, Clone, Copy)]
struct Prompt {
    #[arg(long, default_value = "40")]
    text: Lengths,
    #[arg(long, default_value = "162")]
    image: Lengths,
}

impl Prompt {
    fn request(self) -> GraphRequest {
        GraphRequest { embodiment: EMBODIMENT, text: self.text, image: self.image }
    }

    fn tick(self, config: &ModelConfig, seed: u64) -> Result<SyntheticTick> {
        Ok(SyntheticTick::new(config, seed, self.text.usual(), self.image.usual())?)
    }
}

fn main() -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Arguments::parse().step {
        Step::Checkpoint(options) => timed("checkpoint", || write_checkpoint(&options)),
        Step::Onnx { place, prompt } => {
            let checkpoint = open(&place.dir)?;
            let written = timed("export", || Ok(prompt.request().export(&checkpoint, &place.out)?))?;
            println!("{} and {} bytes of weights", written.model.display(), written.data_bytes);
            Ok(())
        }
        Step::Build { place, prompt, precision, level, norms_f32, int8 } => {
            build(&place, prompt, precision, level, norms_f32, &int8)
        }
        Step::Measure { place, prompt, precisions, ticks, warm_up, iterations, json } => {
            measure(&place, prompt, &precisions, ticks, (warm_up, iterations), json.as_deref())
        }
    }
}

fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("{what} ...");
    let start = Instant::now();
    let result = work().with_context(|| what.to_owned())?;
    println!("{what}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(result)
}

fn build(
    place: &Place,
    prompt: Prompt,
    precision: Precision,
    level: Option<u8>,
    norms_f32: bool,
    int8: &Int8Options,
) -> Result<()> {
    // Before TensorRT, as libtorch must be the first to ask for CUDA.
    let device = device::select("cuda")?;
    let here = TensorRtDevice::open(0)?;
    println!("TensorRT {} on {:?}", here.library.version(), here.device);
    let checkpoint = open(&place.dir)?;
    let hash = timed("hash", || Ok(hasher(&place.out).hash(&place.dir)?))?;
    let major = here.version().major;
    let typing = Typing::choose(precision, false, major);
    let graph = EngineGraph { part: GraphPart::Fused(prompt.request()), typing };
    let method = match precision {
        Precision::Int8 => Some(int8.method(Some(major), false)?),
        _ => None,
    };
    let request = BuildRequest {
        graph,
        precision,
        workspace: None,
        optimisation_level: level,
        timing_cache: Some(place.out.join(timing_cache_name(precision, method))),
        f32_layers: F32Layers { normalisation: norms_f32, softmax: norms_f32, ..F32Layers::default() },
        tf32: false,
        version_compatible: false,
        forced: false,
    };
    let plan = method.map(|method| Int8Plan {
        checkpoint: &checkpoint,
        checkpoint_hash: &hash,
        graph: prompt.request(),
        options: int8,
        method,
        device,
        seed: 0,
        folder: &place.out,
        forced: false,
    });
    let prepared = if plan.is_some() || typing.is_strong() {
        timed("ranges and graph", || {
            fs::create_dir_all(&place.out)?;
            request.prepare(&checkpoint, plan.as_ref(), &place.out, &mut |line| println!("{line}"))
        })?
    } else {
        let model = place.out.join(format!("{}.onnx", request.graph.kind()));
        let onnx = Written { model, data: None, data_bytes: 0 };
        PreparedGraph { onnx, calibration: None, record: None }
    };
    let store = EngineStore::new(&place.out);
    let built = timed(&format!("build {precision}"), || {
        Ok(request.build(&here, &checkpoint, &hash, prepared, &store)?)
    })?;
    println!("{}: {:?}", built.path.display(), built.report);
    if let Some(calibration) = &built.record.calibration {
        println!("{calibration:?}");
    }
    Ok(())
}

fn measure(
    place: &Place,
    prompt: Prompt,
    precisions: &[Precision],
    ticks: u64,
    (warm_up, iterations): (usize, usize),
    json: Option<&Path>,
) -> Result<()> {
    let device = device::select("cuda")?;
    let here = TensorRtDevice::open(0)?;
    println!("TensorRT {} on {:?}", here.library.version(), here.device);
    let checkpoint = std::sync::Arc::new(open(&place.dir)?);
    let hash = timed("hash", || Ok(hasher(&place.out).hash(&place.dir)?))?;
    let ticks = (0..ticks).map(|seed| prompt.tick(&checkpoint.config, seed)).collect::<Result<Vec<_>>>()?;
    let first = ticks.first().context("expected at least one tick")?;

    let mut all: Vec<Measured> = Vec::new();
    let mut references: Vec<(String, Vec<Trace>)> = Vec::new();
    for (name, kind) in [("libtorch f32", Kind::Float), ("libtorch bf16", Kind::BFloat16)] {
        let mut head = timed(name, || Ok(torch_head(&checkpoint, EMBODIMENT, device, kind)?))?;
        let mut measured = Measured { name: name.to_owned(), ..Measured::default() };
        compare(&mut measured, &references, &mut head, &ticks, device)?;
        let traces =
            ticks.iter().map(|tick| Trace::record(&mut head, tick, device)).collect::<Result<Vec<_>, _>>()?;
        println!("{name}: root mean square of the velocities {:.4}", traces[0].velocity_rms());
        references.push((name.to_owned(), traces));
        measured.time("eager", &HeadLatency::measure(&mut head, first, device, warm_up, iterations)?);
        all.push(measured);
    }
    for &precision in precisions {
        let name = format!("TensorRT {precision}");
        let outcome = timed(&name, || {
            let store = EngineStore::new(&place.out);
            let needs = here.needs(&checkpoint, &hash, EMBODIMENT, precision);
            let (engine, record) = here.engine(&store, &needs)?;
            let name = tables::engine_name(&record);
            if let Some(calibration) = &record.calibration {
                println!("{calibration:?}");
            }
            println!("{} layers, {} bytes for a context", engine.layers(), engine.context_memory());
            // Keys and values in the types in which the backbone may run.
            for (kind, of) in [(Kind::BFloat16, "K/V bf16"), (Kind::Float, "K/V f32")] {
                let mut measured = Measured { name: format!("{name}, {of}"), ..Measured::default() };
                for (queueing, how) in [(Queueing::Eager, "eager"), (Queueing::Graph, "CUDA graph")] {
                    let at = Loader::new(&checkpoint.weights, device, kind).at("action_head");
                    let (shared, identity) = (std::sync::Arc::clone(&checkpoint), name.clone());
                    let velocity =
                        TensorRtVelocity::new(&at, shared, EMBODIMENT, &engine, queueing, identity)?;
                    let velocity = Box::new(velocity);
                    let mut head = ActionHead::with_engine(&at, &checkpoint.config, EMBODIMENT, velocity)?;
                    if queueing == Queueing::Graph {
                        compare(&mut measured, &references, &mut head, &ticks, device)?;
                    }
                    measured.time(how, &HeadLatency::measure(&mut head, first, device, warm_up, iterations)?);
                }
                println!("{}", tables::modes(std::slice::from_ref(&measured)));
                all.push(measured);
            }
            Ok(())
        });
        if let Err(error) = outcome {
            println!("{name}: FAILED: {error:#}");
        }
        if let Some(path) = json {
            fs::write(path, serde_json::to_vec_pretty(&all)?)?;
        }
    }
    println!("\n{}\n{}\n{}", tables::modes(&all), tables::latencies(&all), tables::steps(&all));
    if all.len() == references.len() && !precisions.is_empty() {
        bail!("no engine could be measured");
    }
    Ok(())
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

fn hasher(out: &Path) -> CheckpointHasher {
    CheckpointHasher::new(Some(out.join("checkpoint-hashes.json")))
}
