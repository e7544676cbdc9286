//! One run of the program: checkpoint, ONNX, engine, verification, with a line for each step.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tch::{Device, Kind};

use super::{
    build::{BuildRequest, Built},
    calibration::{emulate::emulate, plan::Int8Plan},
    command::Command,
    graph::{GraphRequest, INT8_STEM},
    synthetic::SyntheticTick,
    tables::{self, Measured},
    verify::{Distance, HeadLatency, Trace, torch_head},
};
use crate::{
    checkpoint::{Checkpoint, OpenOptions, Parts},
    engine::{
        AccuracyRecord, CalibrationRecord, CheckpointHasher, EngineNeeds, EngineRecord, EngineStore,
        GraphKind, LatencyRecord, Precision, calibration::CalibrationMethod, check_precision,
    },
    model::{
        action_head::ActionHead,
        default_kind, device,
        layers::Loader,
        tensorrt::{Queueing, TensorRtDevice, TensorRtVelocity, hashes_in},
    },
    onnx::{Data, ElementType, write},
    tensorrt::{F32Layers, Runtime},
};

/// Passes before the first timed one.
const WARM_UP: usize = 10;

/// What a run left behind.
#[derive(Debug, Serialize)]
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
        command.graph == GraphKind::DitFused,
        "--graph: expected {}, the graph that the policy runs, found {}; the other graphs are for ONNX tools",
        GraphKind::DitFused,
        command.graph
    );
    let checkpoint = step(say, "checkpoint", || {
        let options = OpenOptions { eagle_config: command.eagle_config.clone(), parts: Parts::ActionHead };
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
    let session = Session { command, checkpoint, graph, device, here };
    session.run(say)
}

/// The graph alone.
fn export(
    command: &Command,
    checkpoint: &Checkpoint,
    graph: GraphRequest,
    say: &mut dyn FnMut(&str),
) -> Result<Outcome> {
    let request = build_request(command, graph, None);
    // No TensorRT is asked: the types are f32 unless they shall be spelt out.
    let kind = request.graph_kind(0);
    let mut outcome =
        Outcome { onnx: None, path: None, record: None, calibration: None, measured: Vec::new() };
    let onnx = if command.precision == Precision::Int8 {
        let method = command.int8.method(None)?;
        let device = device::select(command.device.as_deref().unwrap_or("auto"))?;
        make_folder(&command.out)?;
        let hash = step(say, "checkpoint hash", || checkpoint_hash(command, checkpoint))?;
        let plan = int8_plan(command, checkpoint, &hash, graph, method, device);
        let inputs = step(say, "calibration inputs", || plan.inputs())?;
        let (ranges, record) = plan.ranges(&*inputs, say)?;
        let onnx = step(say, "ONNX graph", || {
            Ok(write(&plan.quantised(graph, &ranges, kind)?, &command.out, INT8_STEM, Data::Full)?)
        })?;
        if !command.no_verify {
            let measured = step(say, "emulation", || {
                let quantised = plan.quantised(graph.any_length(), &ranges, ElementType::F32)?;
                emulate(checkpoint, graph, &quantised, &*inputs, device)
            })?;
            outcome.measured.push(measured);
        }
        outcome.calibration = Some(record);
        onnx
    } else {
        step(say, "ONNX graph", || Ok(request.prepare(checkpoint, None, 0, &command.out, &mut |_| ())?.onnx))?
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

fn build_request(command: &Command, graph: GraphRequest, method: Option<CalibrationMethod>) -> BuildRequest {
    let kept = command.norms_f32;
    let own_cache = || command.out.join(timing_cache_name(command.precision, method));
    BuildRequest {
        graph,
        precision: command.precision,
        workspace: command.workspace_mb.map(|mib| mib.saturating_mul(1 << 20)),
        optimisation_level: command.optimisation_level,
        timing_cache: Some(command.timing_cache.clone().unwrap_or_else(own_cache)),
        f32_layers: F32Layers { normalisation: kept, softmax: kept, ..F32Layers::default() },
        tf32: command.tf32,
        version_compatible: command.version_compatible,
        strongly_typed: command.strongly_typed,
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

fn embodiment(command: &Command, checkpoint: &Checkpoint) -> Result<usize> {
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
            Precision::Int8 => Some(command.int8.method(Some(version.major))?),
            _ => None,
        };
        make_folder(&command.out)?;
        let store = EngineStore::new(&command.out);
        let hash = step(say, "checkpoint hash", || checkpoint_hash(command, checkpoint))?;
        let request = build_request(command, self.graph, method);
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
        let prepared = request.prepare(checkpoint, plan.as_ref(), version.major, folder, say)?;
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
        if command.no_verify {
            return Ok(whole(built.record.clone(), Vec::new()));
        }
        let (record, measured) = step(say, "verification", || self.verify(&store, &hash, &built))?;
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
        let needs = self.here.needs(&self.checkpoint, hash, self.graph.embodiment, self.command.precision);
        let Ok(loaded) = store.load(&needs) else { return Ok(None) };
        let record = loaded.record.clone();
        let calibrated = match (plan, &record.calibration) {
            (Some(plan), Some(calibration)) => plan.agrees_with(calibration)?,
            (plan, calibration) => plan.is_none() && calibration.is_none(),
        };
        let same = calibrated
            && record.shapes == self.graph.shapes(&self.checkpoint.config)
            && record.builder == request.builder_record(self.here.version().major);
        let path = Some(store.record_path(&needs));
        Ok(same.then(|| Outcome {
            onnx: None,
            path,
            record: Some(record),
            calibration: None,
            measured: Vec::new(),
        }))
    }

    fn tick(&self, seed: u64) -> Result<SyntheticTick> {
        let (text, image) = (self.graph.text.usual(), self.graph.image.usual());
        Ok(SyntheticTick::new(&self.checkpoint.config, seed, text, image)?)
    }

    /// Compares the engine with libtorch in f32 and in the device's own type, and writes what was found into its record.
    ///
    /// An INT8 engine has the fp16 engine of the same folder beside it, where there is one.
    fn verify(
        &self,
        store: &EngineStore,
        hash: &str,
        built: &Built,
    ) -> Result<(EngineRecord, Vec<Measured>)> {
        let (command, checkpoint, device) = (self.command, &self.checkpoint, self.device);
        let embodiment = self.graph.embodiment;
        let ticks = (0..command.ticks).map(|tick| self.tick(command.seed.wrapping_add(tick)));
        let ticks = ticks.collect::<Result<Vec<_>>>()?;
        let own = default_kind(device);
        let mut all: Vec<Measured> = Vec::new();
        let mut references: Vec<(String, Vec<Trace>)> = Vec::new();
        for kind in [Kind::Float, own] {
            let name = format!("libtorch {kind:?}");
            let mut head = torch_head(checkpoint, embodiment, device, kind)?;
            let mut measured = Measured { name: name.clone(), ..Measured::default() };
            self.compare(&mut measured, &references, &mut head, &ticks)?;
            let traces = ticks.iter().map(|tick| Trace::record(&mut head, tick, device));
            let traces = traces.collect::<Result<Vec<_>, _>>()?;
            measured.time("eager", &self.time(&mut head, &ticks)?);
            references.push((name, traces));
            all.push(measured);
        }
        if command.precision == Precision::Int8 {
            let needs = self.here.needs(checkpoint, hash, embodiment, Precision::Fp16);
            match self.engine(store, &needs, &references, &ticks) {
                Ok(fp16) => all.push(fp16),
                Err(error) => tracing::info!("no fp16 engine to put beside it: {error:#}"),
            }
        }
        let mut measured = self.engine(store, &built.needs, &references, &ticks)?;
        if let Some(calibration) = &built.record.calibration {
            measured.notes.push(format!(
                "{}, {} ranges of {} samples",
                calibration.method, calibration.ranges, calibration.samples
            ));
        }
        let mut record = built.record.clone();
        record.accuracy = measured.against.last().map(|against| {
            let velocity = &against.velocity;
            AccuracyRecord {
                against: against.reference.clone(),
                inputs: format!("{} synthetic ticks from seed {}", command.ticks, command.seed),
                // Values that are not finite stand in the way of figures.
                mse: velocity.overall.mse.unwrap_or(f64::MAX),
                cosine: velocity.overall.cosine.unwrap_or(0.0),
                max_error: velocity.overall.max_abs.unwrap_or(f64::MAX),
                mse_per_step: velocity.steps.iter().map(|step| step.mse.unwrap_or(f64::MAX)).collect(),
                growth: velocity.growth().unwrap_or(f64::MAX),
            }
        });
        record.latency = measured.latencies.last().map(|latency| LatencyRecord {
            of: format!("all denoising steps, {}, synchronised", latency.of),
            iterations: latency.denoising.count,
            median_ms: latency.denoising.median,
            mean_ms: latency.denoising.mean,
            p90_ms: latency.denoising.p90,
        });
        store.update(&built.needs, &record)?;
        all.push(measured);
        Ok((record, all))
    }

    /// Accuracy and latency of an engine that is there.
    fn engine(
        &self,
        store: &EngineStore,
        needs: &EngineNeeds,
        references: &[(String, Vec<Trace>)],
        ticks: &[SyntheticTick],
    ) -> Result<Measured> {
        let (checkpoint, embodiment) = (&self.checkpoint, self.graph.embodiment);
        let plan = store.load(needs)?;
        let engine = Runtime::new(&self.here.library, &self.here.device)?.deserialise(&plan)?;
        let name = tables::engine_name(&plan.record);
        drop(plan);
        let mut measured = Measured { name: name.clone(), ..Measured::default() };
        for (queueing, how) in [(Queueing::Eager, "eager"), (Queueing::Graph, "CUDA graph")] {
            let at =
                Loader::new(&checkpoint.weights, self.device, default_kind(self.device)).at("action_head");
            let identity = name.clone();
            let velocity =
                TensorRtVelocity::new(&at, Arc::clone(checkpoint), embodiment, &engine, queueing, identity)?;
            let mut head = ActionHead::with_engine(&at, &checkpoint.config, embodiment, Box::new(velocity))?;
            if queueing == Queueing::Graph {
                self.compare(&mut measured, references, &mut head, ticks)?;
            }
            measured.time(how, &self.time(&mut head, ticks)?);
        }
        Ok(measured)
    }

    fn compare(
        &self,
        measured: &mut Measured,
        references: &[(String, Vec<Trace>)],
        head: &mut ActionHead,
        ticks: &[SyntheticTick],
    ) -> Result<()> {
        for (reference, traces) in references {
            let mut distance = Distance::default();
            for (trace, tick) in traces.iter().zip(ticks) {
                distance.add(trace, head, tick, self.device)?;
            }
            measured.add(reference, &distance);
        }
        Ok(())
    }

    fn time(&self, head: &mut ActionHead, ticks: &[SyntheticTick]) -> Result<HeadLatency> {
        let tick = ticks.first().context("expected at least one tick")?;
        Ok(HeadLatency::measure(head, tick, self.device, WARM_UP, self.command.iterations)?)
    }

    fn judge(&self, record: &EngineRecord) -> Result<()> {
        let Some(accuracy) = &record.accuracy else { return Ok(()) };
        let least = self.command.least_cosine;
        ensure!(
            accuracy.cosine >= least,
            "the engine is wrong: expected a cosine of at least {least} against {}, found {}; the engine was saved with this in its \
             record. Try --norms-f32, another precision, or another TensorRT; --least-cosine moves the limit",
            accuracy.against,
            accuracy.cosine
        );
        Ok(())
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
