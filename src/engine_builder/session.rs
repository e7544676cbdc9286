//! One run of the program: checkpoint, ONNX, engine, verification, with a line for each step.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Serialize;
use tch::Device;

use super::{
    build::BuildRequest,
    calibration::{emulate::emulate, plan::Int8Plan},
    command::Command,
    graph::{EngineGraph, GraphPart, GraphRequest, Typing},
    tables::{self, Measured},
};
use crate::{
    checkpoint::{Checkpoint, OpenOptions, Parts},
    engine::{
        CalibrationRecord, CheckpointHasher, EngineRecord, EngineStore, GraphKind, Precision,
        calibration::CalibrationMethod, check_known, check_precision,
    },
    model::{
        device,
        tensorrt::{TensorRtDevice, hashes_in},
    },
    onnx::ElementType,
    tensorrt::F32Layers,
};

mod verification;

/// What a run left behind.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// The ONNX graph, where it was kept.
    pub onnx: Option<PathBuf>,
    /// The record of the engine.
    pub path: Option<PathBuf>,
    pub record: Option<EngineRecord>,
    /// Where the ranges of an INT8 graph without an engine come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationRecord>,
    /// What was measured: libtorch, then engines; or the graph with Q/DQ nodes, where there is no engine.
    pub measured: Vec<Measured>,
}

/// Carries the command out; `say` gets a line at the beginning and the end of each step.
///
/// # Errors
/// What keeps a step from being done; and an engine that is wrong, which is saved all the same, with its accuracy.
pub fn run(command: &Command, say: &mut dyn FnMut(&str)) -> Result<Outcome> {
    ensure!(
        command.precision != Precision::StronglyTyped,
        "--precision: expected fp32, fp16, bf16 or int8, found {}; say --strongly-typed beside it",
        command.precision
    );
    ensure!(
        command.precision != Precision::Int8 || command.graph == GraphKind::DitFused,
        "--precision int8: expected --graph {}, for which there are calibration inputs, found {}",
        GraphKind::DitFused,
        command.graph
    );
    let parts = if command.graph.is_backbone() { Parts::Backbone } else { Parts::ActionHead };
    let checkpoint = step(say, "checkpoint", || {
        let options = OpenOptions { eagle_config: command.eagle_config.clone(), parts };
        Ok(Arc::new(Checkpoint::open(&command.checkpoint, &options)?))
    })?;
    let graph = GraphRequest {
        embodiment: embodiment(command, &checkpoint)?,
        text: command.text_tokens,
        image: command.image_tokens,
    };
    if command.onnx_only {
        return export(command, &checkpoint, graph, say);
    }
    check_known(command.precision, command.graph, command.force)?;
    let requested = command.device.as_deref().unwrap_or("cuda");
    // libtorch first: whether it has CUDA is decided when it is first asked.
    let device = device::select(requested)?;
    let Device::Cuda(ordinal) = device else {
        bail!(
            "--device: expected cuda or cuda:N, found {requested:?}: engines are built on the GPU that runs them"
        );
    };
    let here = TensorRtDevice::open(ordinal)?;
    say(&format!("TensorRT {}, {:?}", here.library.version(), here.device));
    let target = target(command, graph, here.version().major)?;
    let session = Session { command, checkpoint, graph, target, device, here };
    session.run(say)
}

/// The graph alone.
fn export(
    command: &Command,
    checkpoint: &Checkpoint,
    request: GraphRequest,
    say: &mut dyn FnMut(&str),
) -> Result<Outcome> {
    // No TensorRT is asked: the types are f32 unless they shall be spelt out.
    let target = target(command, request, 0)?;
    let mut outcome = Outcome::default();
    let onnx = if command.precision == Precision::Int8 {
        let method = command.int8.method(None, command.strongly_typed)?;
        let device = device::select(command.device.as_deref().unwrap_or("auto"))?;
        make_folder(&command.out)?;
        let hash = step(say, "checkpoint hash", || checkpoint_hash(command, checkpoint))?;
        let plan = int8_plan(command, checkpoint, &hash, request, method, device);
        let inputs = step(say, "calibration inputs", || plan.inputs())?;
        let (ranges, record) = plan.ranges(&*inputs, say)?;
        let onnx = step(say, "ONNX graph", || plan.export(&ranges, target.typing, &command.out))?;
        if !command.no_verify {
            let measured = step(say, "emulation", || {
                let quantised = plan.quantised(request.any_length(), &ranges, Typing::Weak)?;
                emulate(checkpoint, request, &quantised, &*inputs, device)
            })?;
            outcome.measured.push(measured);
        }
        outcome.calibration = Some(record);
        onnx
    } else {
        step(say, "ONNX graph", || Ok(target.export(checkpoint, &command.out)?))?
    };
    say(&format!("{}: {} bytes of weights beside it", onnx.model.display(), onnx.data_bytes));
    Ok(Outcome { onnx: Some(onnx.model), ..outcome })
}

fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

fn checkpoint_hash(command: &Command, checkpoint: &Checkpoint) -> Result<String> {
    Ok(CheckpointHasher::new(Some(hashes_in(&command.out))).hash(&checkpoint.dir)?)
}

fn int8_plan<'a>(
    command: &'a Command,
    checkpoint: &'a Checkpoint,
    checkpoint_hash: &'a str,
    graph: GraphRequest,
    method: CalibrationMethod,
    device: Device,
) -> Int8Plan<'a> {
    Int8Plan {
        checkpoint,
        checkpoint_hash,
        graph,
        options: &command.int8,
        method,
        device,
        seed: command.seed,
        folder: &command.out,
        forced: command.force,
    }
}

/// A file of its own for each precision: TensorRT 8.6 ends the build with an error of Myelin where it finds timings of another.
pub fn timing_cache_name(precision: Precision, method: Option<CalibrationMethod>) -> String {
    match method {
        Some(method) => format!("timing-{precision}-{method}.cache"),
        None => format!("timing-{precision}.cache"),
    }
}

/// The graph that the command asks for, typed as `tensorrt_major` can build it.
fn target(command: &Command, request: GraphRequest, tensorrt_major: u32) -> Result<EngineGraph> {
    let prompt = || match command.tokens {
        Some(tokens) => Ok(tokens),
        None => request
            .text
            .and(request.image)
            .map_err(|problem| anyhow!("--text-tokens and --image-tokens: {problem}")),
    };
    let part = match command.graph {
        GraphKind::DitFused => GraphPart::Fused(request),
        GraphKind::DitCondition => GraphPart::Condition(request),
        GraphKind::DitReference => GraphPart::Reference { tokens: prompt()? },
        GraphKind::BackboneVision => GraphPart::Vision {
            images: command.images,
            size: (command.image_size.height, command.image_size.width),
        },
        GraphKind::BackboneLanguage => GraphPart::Language {
            tokens: prompt()?,
            // As libtorch has them in the same type.
            frequencies: match command.precision {
                Precision::Bf16 => ElementType::Bf16,
                _ => ElementType::F32,
            },
        },
    };
    let typing = Typing::choose(command.precision, command.strongly_typed, tensorrt_major);
    Ok(EngineGraph { part, typing })
}

fn embodiment(command: &Command, checkpoint: &Checkpoint) -> Result<usize> {
    if !matches!(command.graph, GraphKind::DitFused | GraphKind::DitCondition) {
        // The other graphs have none.
        return Ok(0);
    }
    let most = checkpoint.config.max_num_embodiments;
    match command.embodiment.parse::<usize>() {
        Ok(index) => {
            ensure!(index < most, "--embodiment: expected a tag or an index below {most}, found {index}");
            Ok(index)
        }
        Err(_) => Ok(checkpoint.embodiments.index(&command.embodiment, most)?),
    }
}

fn step<T>(say: &mut dyn FnMut(&str), what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(&format!("{what} ..."));
    let start = Instant::now();
    let result = work()?;
    say(&format!("{what}: {:.1} s", start.elapsed().as_secs_f64()));
    Ok(result)
}

struct Session<'a> {
    command: &'a Command,
    checkpoint: Arc<Checkpoint>,
    graph: GraphRequest,
    target: EngineGraph,
    device: Device,
    here: TensorRtDevice,
}

impl Session<'_> {
    fn run(&self, say: &mut dyn FnMut(&str)) -> Result<Outcome> {
        let Self { command, checkpoint, here, .. } = self;
        let version = here.version();
        check_precision(
            command.precision,
            command.graph,
            here.device.compute_capability(),
            (version.major, version.minor),
            command.force,
        )?;
        let method = match command.precision {
            Precision::Int8 => Some(command.int8.method(Some(version.major), command.strongly_typed)?),
            _ => None,
        };
        make_folder(&command.out)?;
        let store = EngineStore::new(&command.out);
        let hash = step(say, "checkpoint hash", || checkpoint_hash(command, checkpoint))?;
        let request = self.request(method);
        let plan =
            method.map(|method| int8_plan(command, checkpoint, &hash, self.graph, method, self.device));
        if !command.force
            && let Some(outcome) = self.present(&store, &hash, &request, plan.as_ref())?
        {
            say("an engine that fits is there already; --force builds it anew");
            return Ok(outcome);
        }
        // Beside the engine rather than in the system's folder, which may be small.
        let temporary = tempfile::Builder::new()
            .prefix(".onnx-")
            .tempdir_in(&command.out)
            .with_context(|| format!("cannot write into {}", command.out.display()))?;
        let folder = if command.keep_onnx { command.out.as_path() } else { temporary.path() };
        let what = method.map_or("ONNX graph".to_owned(), |method| format!("ONNX graph, INT8 by {method}"));
        say(&format!("{what} ..."));
        let start = Instant::now();
        let prepared = request.prepare(checkpoint, plan.as_ref(), folder, say)?;
        say(&format!("{what}: {:.1} s", start.elapsed().as_secs_f64()));
        let onnx = command.keep_onnx.then(|| prepared.onnx.model.clone());
        let built = step(say, &format!("engine in {}", command.precision), || {
            Ok(request.build(here, checkpoint, &hash, prepared, &store)?)
        })?;
        say(&format!(
            "{}: {} layers, {} MiB, {} warnings of TensorRT",
            built.path.display(),
            built.report.layers,
            built.report.plan_bytes >> 20,
            built.report.warnings
        ));
        drop(temporary);
        let whole = |record, measured| Outcome {
            onnx,
            path: Some(built.path.clone()),
            record: Some(record),
            calibration: None,
            measured,
        };
        step(say, "inputs and outputs", || self.inspect(&store, &built))?;
        if command.no_verify {
            let record = self.unmeasured(&store, &built, "asked for with --no-verify")?;
            return Ok(whole(record, Vec::new()));
        }
        let (record, measured) = match command.graph {
            GraphKind::DitFused => step(say, "verification", || self.verify(&store, &hash, &built))?,
            GraphKind::BackboneVision | GraphKind::BackboneLanguage => {
                (step(say, "verification", || self.verify_backbone(&store, &built))?, Vec::new())
            }
            GraphKind::DitCondition | GraphKind::DitReference => {
                let why = "the builder runs no engine of this graph; its inputs and outputs were looked at";
                (self.unmeasured(&store, &built, why)?, Vec::new())
            }
        };
        record.notes.iter().for_each(|note| say(note));
        self.judge(&record)?;
        Ok(whole(record, measured))
    }

    /// The engine that the command would build, if it is there.
    fn present(
        &self,
        store: &EngineStore,
        hash: &str,
        request: &BuildRequest,
        plan: Option<&Int8Plan>,
    ) -> Result<Option<Outcome>> {
        let needs = self.target.needs(&self.here, &self.checkpoint, hash, self.command.precision);
        let Ok(record) = store.load(&needs).map(|plan| plan.record) else { return Ok(None) };
        let calibrated = match (plan, &record.calibration) {
            (Some(plan), Some(calibration)) => plan.agrees_with(calibration)?,
            (plan, calibration) => plan.is_none() && calibration.is_none(),
        };
        let same = calibrated
            && record.shapes == self.target.shapes(&self.checkpoint)
            && record.builder == request.builder_record();
        let path = Some(store.record_path(&needs));
        Ok(same.then(|| Outcome { path, record: Some(record), ..Outcome::default() }))
    }

    fn request(&self, method: Option<CalibrationMethod>) -> BuildRequest {
        let command = self.command;
        let kept = command.norms_f32;
        let own_cache = || command.out.join(timing_cache_name(command.precision, method));
        BuildRequest {
            graph: self.target.clone(),
            precision: command.precision,
            workspace: command.workspace_mb.map(|mib| mib.saturating_mul(1 << 20)),
            optimisation_level: command.optimisation_level,
            timing_cache: Some(command.timing_cache.clone().unwrap_or_else(own_cache)),
            f32_layers: F32Layers { normalisation: kept, softmax: kept, ..F32Layers::default() },
            tf32: command.tf32,
            version_compatible: command.version_compatible,
            forced: command.force,
        }
    }
}

/// The tables of an outcome, for people.
pub fn summary(outcome: &Outcome) -> String {
    let measured = &outcome.measured;
    let tables = [tables::modes(measured), tables::latencies(measured), tables::steps(measured)];
    let tables = if measured.is_empty() { String::new() } else { tables.join("\n") };
    let notes =
        measured.iter().flat_map(|mode| mode.notes.iter().map(|note| format!("{}: {note}\n", mode.name)));
    let notes: String = notes.collect();
    let line = |what: &str, path: &Option<PathBuf>| {
        path.as_deref().map(|path: &Path| format!("{what}: {}\n", path.display())).unwrap_or_default()
    };
    format!("{tables}{notes}{}{}", line("ONNX", &outcome.onnx), line("engine", &outcome.path))
}
