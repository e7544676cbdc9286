//! `benchmark_replay bench` and `benchmark_replay roofline`.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser};

use super::{
    cases::{Case, Overrides},
    mode::Mode,
    model::{Candidate, CheckpointOptions},
    model_sizes::{KnownModel, ModelSizes},
    report,
    result::Benchmark,
    roofline::{FloorTable, Hardware, Path, TickWork, floors},
    run::{Settings, run_case},
};
use crate::{
    checkpoint::{EagleConfig, ModelConfig},
    evaluation::{Gate, Interrupt},
    execution::Preprocessing,
    model::device,
    replay::session::Verdict,
};

/// Which cases, and what of them is to be otherwise.
#[derive(Debug, Clone, Args)]
pub struct CaseOptions {
    /// Standard cases: nvidia-1cam, 2cam, alfie-4cam
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "nvidia-1cam,2cam,alfie-4cam",
        value_name = "CASE,.."
    )]
    pub cases: Vec<String>,
    /// Action rows that are denoised at once
    #[arg(long, value_name = "N")]
    pub horizon: Option<usize>,
    /// Denoising steps; the model's where it is not given
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Cameras
    #[arg(long, value_name = "N")]
    pub cameras: Option<usize>,
    /// Width and height of a camera's frames
    #[arg(long, value_name = "WxH", value_parser = size)]
    pub size: Option<(u32, u32)>,
    /// Tokens of the whole prompt, images among them; where it is not given, the instruction keeps its length
    #[arg(long, value_name = "N")]
    pub prompt_tokens: Option<usize>,
    /// Observations that are run together
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
}

impl CaseOptions {
    fn cases(&self) -> anyhow::Result<Vec<Case>> {
        let overrides = Overrides {
            cameras: self.cameras,
            frame: self.size,
            prompt_tokens: self.prompt_tokens,
            horizon: self.horizon,
            steps: self.steps,
            batch: self.batch,
        };
        let mut cases: Vec<Case> = Vec::new();
        for name in &self.cases {
            ensure!(
                cases.iter().all(|case| case.name != *name),
                "--cases: expected each case once, found {name} twice"
            );
            cases.push(Case::by_name(name)?.with(&overrides)?);
        }
        Ok(cases)
    }
}

/// The hardware of the model on paper.
#[derive(Debug, Clone, Args)]
pub struct HardwareOptions {
    /// Known hardware: orin-agx-64, thor, rtx-4090, rtx-5090, h100
    #[arg(long, value_name = "NAME", conflicts_with_all = ["bandwidth_gbs", "tflops"])]
    pub preset: Option<Hardware>,
    /// Memory bandwidth in GB/s
    #[arg(long, value_name = "X", requires = "tflops", value_parser = rate)]
    pub bandwidth_gbs: Option<f64>,
    /// Dense 16-bit rate in TFLOP/s
    #[arg(long, value_name = "Y", requires = "bandwidth_gbs", value_parser = rate)]
    pub tflops: Option<f64>,
}

impl HardwareOptions {
    /// What was asked for; else what the GPU's name says.
    fn hardware(&self, gpu: Option<&str>) -> anyhow::Result<Hardware> {
        match (&self.preset, self.bandwidth_gbs, self.tflops, gpu) {
            (Some(preset), ..) => Ok(preset.clone()),
            (None, Some(bandwidth), Some(tflops), _) => Ok(Hardware::given(bandwidth, tflops)),
            (.., Some(gpu)) => Hardware::of_gpu(gpu).with_context(|| {
                format!("the rates of {gpu} are not known here; give --preset NAME, or --bandwidth-gbs and --tflops")
            }),
            _ => bail!("expected the hardware of the roofline, found none; give --preset NAME, or --bandwidth-gbs and --tflops"),
        }
    }

    fn is_given(&self) -> bool {
        self.preset.is_some() || self.bandwidth_gbs.is_some()
    }
}

/// How fast and how exact is every way of running the network, without a recording and without a checkpoint?
///
/// Runs random observations through the network of random weights (or of a checkpoint) in several modes, and holds each
/// against f32 on the same weights, observations and noise.
#[derive(Debug, Clone, Parser)]
#[command(name = "benchmark_replay bench", bin_name = "benchmark_replay bench", version)]
pub struct Bench {
    /// Random weights of a model: n1d6-3b, or tiny for a machine without a GPU
    #[arg(long, value_name = "MODEL", conflicts_with = "checkpoint")]
    pub random_weights: Option<KnownModel>,
    /// Checkpoint directory, in place of random weights
    #[arg(long, value_name = "DIR", requires = "embodiment")]
    pub checkpoint: Option<PathBuf>,
    /// A file that replaces the built-in configuration of the backbone
    #[arg(long, value_name = "FILE")]
    pub eagle_config: Option<PathBuf>,
    /// Embodiment tag of the checkpoint
    #[arg(long, value_name = "TAG")]
    pub embodiment: Option<String>,
    /// Folder of engine_builder's engines, for the tensorrt modes
    #[arg(long, value_name = "DIR")]
    pub engines: Option<PathBuf>,
    #[command(flatten)]
    pub cases: CaseOptions,
    /// f32, eager, graph, graph-fused, tensorrt-fp32, tensorrt-fp16, tensorrt-bf16, tensorrt-int8
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "eager,graph,graph-fused,tensorrt-fp16",
        value_name = "MODE,.."
    )]
    pub modes: Vec<Mode>,
    /// Measured ticks per mode and case
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub iterations: u32,
    /// Ticks before the first measured one
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub warm_up: u32,
    /// Different sets of observations and noise
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub inputs: usize,
    /// Seed of weights, observations and noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Who makes images of frames: auto (the GPU for captured modes on one), cpu, gpu
    #[arg(long, value_name = "WHERE", default_value = "auto")]
    pub preprocessing: Preprocessing,
    /// Measure one switch at a time too
    #[arg(long)]
    pub ablation: bool,
    /// Measure graph and graph-fused pipelined too: the action head of one tick beside the backbone of the next
    #[arg(long)]
    pub throughput: bool,
    /// Print the least times that bytes and FLOPs allow, and how far each mode is from them
    #[arg(long)]
    pub roofline: bool,
    #[command(flatten)]
    pub hardware: HardwareOptions,
    /// File for everything that was measured
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Conditions under which the exit code is 1, e.g. 'graph:action_cosine<0.999,graph:end_to_end_ms>8'
    #[arg(long, value_name = "CONDITIONS")]
    pub fail_if: Option<Gate>,
}

/// The least time that bytes and FLOPs allow, on paper: nothing is run.
#[derive(Debug, Clone, Parser)]
#[command(name = "benchmark_replay roofline", bin_name = "benchmark_replay roofline", version)]
pub struct Roofline {
    /// Sizes of the model
    #[arg(long, value_name = "MODEL", default_value = "n1d6-3b")]
    pub model: KnownModel,
    /// Checkpoint directory whose sizes are taken instead; its config.json is read
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    #[command(flatten)]
    pub cases: CaseOptions,
    #[command(flatten)]
    pub hardware: HardwareOptions,
    /// What `bench --json` wrote: its medians are put beside the floors
    #[arg(long, value_name = "FILE")]
    pub measured: Option<PathBuf>,
    /// Print the floors as JSON
    #[arg(long)]
    pub json: bool,
}

impl Bench {
    /// Carries the command out.
    ///
    /// # Errors
    /// Options, checkpoints and files that cannot be used.
    pub fn run(&self, interrupt: &Interrupt) -> anyhow::Result<Verdict> {
        let cases = self.cases.cases()?;
        for (index, mode) in self.modes.iter().enumerate() {
            ensure!(
                !self.modes[..index].contains(mode),
                "--modes: expected each mode once, found {mode} twice"
            );
        }
        ensure!(self.iterations > 0, "--iterations: expected at least 1, found 0");
        ensure!((1..=1024).contains(&self.inputs), "--inputs: expected 1 to 1024, found {}", self.inputs);
        let candidate = self.candidate()?;
        let settings = Settings {
            modes: self.modes.clone(),
            iterations: self.iterations,
            warm_up: self.warm_up,
            inputs: self.inputs,
            seed: self.seed,
            device: device::select(&self.device)?,
            preprocessing: self.preprocessing,
            ablation: self.ablation,
            throughput: self.throughput,
        };
        let wanted = self.roofline || self.hardware.is_given();
        let no_gpu = !settings.device.is_cuda();
        ensure!(
            !(wanted && no_gpu) || self.hardware.is_given(),
            "--roofline: expected the hardware to be held against, since nothing is known of this CPU; give --preset \
             NAME, or --bandwidth-gbs and --tflops"
        );
        if no_gpu && self.random_weights == Some(KnownModel::N1d6_3b) {
            eprintln!(
                "n1d6-3b on a CPU takes some 11 GB of memory and long; --random-weights tiny is meant for it"
            );
        }
        let mut benchmark = Benchmark::new();
        for case in &cases {
            if interrupt.is_asked() {
                break;
            }
            benchmark
                .cases
                .push(run_case(&candidate, case, &settings, interrupt, &|line| eprintln!("{line}"))?);
        }
        let mut paper = String::new();
        if wanted {
            let gpu = benchmark.cases.first().and_then(|result| result.run.machine.gpus.first());
            match self.hardware.hardware(gpu.map(|gpu| gpu.name.as_str())) {
                Ok(hardware) => {
                    for result in &mut benchmark.cases {
                        result.floors = tables(candidate.sizes(), &result.case, &hardware)?;
                        paper += "\n";
                        paper += &report::paper(&result.case.to_string(), &result.floors);
                    }
                }
                // What was measured is worth printing without.
                Err(error) => eprintln!("no roofline: {error:#}"),
            }
        }
        print!("{}{paper}", report::measured(&benchmark));
        if let Some(path) = &self.json {
            benchmark.save(path)?;
            eprintln!("wrote {}", path.display());
        }
        let violations = self.fail_if.as_ref().map(|gate| benchmark.violations(gate)).unwrap_or_default();
        violations.iter().for_each(|violation| eprintln!("--fail-if: {violation}"));
        Ok(match violations.is_empty() {
            _ if interrupt.is_asked() => Verdict::Interrupted,
            true => Verdict::Passed,
            false => Verdict::Failed,
        })
    }

    fn candidate(&self) -> anyhow::Result<Candidate> {
        match (self.random_weights, &self.checkpoint, &self.embodiment) {
            (Some(known), ..) => Ok(Candidate::random(known, self.seed)),
            (None, Some(checkpoint), Some(embodiment)) => Ok(Candidate::open(CheckpointOptions {
                checkpoint: checkpoint.clone(),
                eagle_config: self.eagle_config.clone(),
                embodiment: embodiment.clone(),
                engines: self.engines.clone(),
            })?),
            _ => bail!(
                "expected a model, found none; give --random-weights n1d6-3b (tiny on a machine without a GPU), or \
                 --checkpoint DIR --embodiment TAG"
            ),
        }
    }
}

impl Roofline {
    /// Carries the command out.
    ///
    /// # Errors
    /// Options and files that cannot be used.
    pub fn run(&self) -> anyhow::Result<Verdict> {
        let sizes = match &self.checkpoint {
            Some(folder) => ModelSizes {
                model: ModelConfig::from_file(&folder.join("config.json"))?,
                eagle: match folder.join("eagle_config.json") {
                    file if file.is_file() => EagleConfig::from_file(&file)?,
                    _ => EagleConfig::n1d6_3b(),
                },
            },
            None => self.model.sizes(),
        };
        let mut measured = self.measured.as_deref().map(Benchmark::load).transpose()?;
        let gpu = measured.as_ref().and_then(|file| file.cases.first()?.run.machine.gpus.first());
        let hardware = self.hardware.hardware(gpu.map(|gpu| gpu.name.as_str()))?;
        // What was measured decides the cases: their figures belong to their shapes.
        let cases = match &measured {
            Some(file) => file.cases.iter().map(|result| result.case.clone()).collect(),
            None => self.cases.cases()?,
        };
        let mut all = Vec::new();
        let mut text = String::new();
        for case in &cases {
            let tables = tables(&sizes, case, &hardware)?;
            text += &report::paper(&case.to_string(), &tables);
            text += "\n";
            if let Some(result) =
                measured.as_mut().and_then(|file| file.cases.iter_mut().find(|r| r.case == *case))
            {
                result.floors = tables.clone();
                text += &report::beside_floors(result);
            }
            all.push(serde_json::json!({"case": case, "floors": tables}));
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&all)?);
        } else {
            print!("{text}");
        }
        Ok(Verdict::Passed)
    }
}

fn tables(sizes: &ModelSizes, case: &Case, hardware: &Hardware) -> anyhow::Result<Vec<FloorTable>> {
    let shape = case.shape()?;
    let of = |path| floors(&TickWork::new(&sizes.model, &sizes.eagle, case, &shape, path), hardware, path);
    Ok(Path::ALL.map(of).into())
}

/// `640x480`.
fn size(text: &str) -> Result<(u32, u32), String> {
    let parsed =
        text.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    parsed.ok_or_else(|| format!("expected WIDTHxHEIGHT such as 640x480, found {text:?}"))
}

/// A rate above zero.
fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| format!("expected a number above zero, found {text:?}"))
}
