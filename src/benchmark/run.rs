//! The loop: cases, modes, ticks.
//!
//! Of each case the f32 network runs first, once per set of inputs, and what it was given and what it made of it is kept. Then
//! the modes come one after the other, so that one network is in memory at a time: warm-up, measured ticks, the denoising alone,
//! and last the errors against what was kept. `f32` as a mode is measured like any other, so that its errors say how
//! far the same arithmetic repeats itself on the device.

use std::time::Instant;

use ndarray::Array3;
use tch::Device;

use super::{
    ablation,
    cases::{Case, CaseError},
    chain::Chain,
    device::{DeviceTimer, memory, reset_memory},
    gpu,
    mode::Mode,
    model::{Candidate, ModeError},
    result::CaseResult,
    throughput,
};
use crate::{
    evaluation::{
        Component, ErrorStats, Gpu, Interrupt, Machine, ModeIdentity, ModeMeasurement, Options, Partial, Run,
        RunBuilder, RunError, Source, TrajectoryResult,
    },
    execution::Preprocessing,
    model::{
        ModelError, device::synchronize, network::Network, policy::PolicyError, preprocess::Preprocessor,
        probe::Probe,
    },
    processor::ProcessorError,
    replay::{capture::Capture, runner::ReplayError},
};

/// How it is measured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is measured.
    pub modes: Vec<Mode>,
    /// Measured ticks per mode.
    pub iterations: u32,
    /// Ticks before them.
    pub warm_up: u32,
    /// Different sets of inputs.
    pub inputs: usize,
    /// Seed of the inputs.
    pub seed: u64,
    /// Where the network runs.
    pub device: Device,
    /// Who makes images of frames.
    pub preprocessing: Preprocessing,
    /// Whether the switches are measured too.
    pub ablation: bool,
    /// Whether captured modes are measured pipelined too.
    pub throughput: bool,
}

/// Why a case cannot be measured at all.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The case cannot be.
    #[error(transparent)]
    Case(#[from] CaseError),
    /// The observations do not fit the model.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// Results that do not belong together.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Why a mode has no figures, or only some.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Mode(#[from] ModeError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    #[error(transparent)]
    Compare(#[from] ReplayError),
    #[error("interrupted")]
    Interrupted,
}

impl From<PolicyError> for Failure {
    fn from(error: PolicyError) -> Self {
        Self::Compare(error.into())
    }
}

/// What f32 was given and what it made of it, set by set.
struct Reference {
    captures: Vec<Capture>,
    chunks: Vec<Array3<f32>>,
}

/// Measures one case. `said` hears what is being done.
///
/// # Errors
/// The case cannot be measured at all. What is wrong with one mode stands in its result.
pub fn run_case(
    candidate: &Candidate,
    case: &Case,
    settings: &Settings,
    interrupt: &Interrupt,
    said: &dyn Fn(&str),
) -> Result<CaseResult, BenchError> {
    let shape = case.shape()?;
    let chain = Chain::new(&candidate.sizes().model, case, &shape, settings.inputs.max(1), settings.seed)?;
    let bench = Bench { candidate, case, settings, chain: &chain, interrupt };
    let mut builder = RunBuilder::new(
        bench.head(),
        settings
            .modes
            .iter()
            .map(|mode| ModeIdentity { name: mode.name().to_owned(), ..ModeIdentity::default() }),
    );
    said(&format!("{}: f32, which the others are held against", case.name));
    let reference = match bench.reference() {
        Ok(reference) => Some(reference),
        Err(error) => {
            builder.head().notes.push(format!("No errors against f32, which cannot be run here: {error}"));
            None
        }
    };
    let mut done = 0;
    for &mode in settings.modes.iter().take_while(|_| !interrupt.is_asked()) {
        said(&format!("{}: {mode}", case.name));
        let mut measurement = ModeMeasurement::new(mode.name());
        let mut about = About::default();
        let outcome = bench.measure(mode, reference.as_ref(), &mut measurement, &mut about);
        let result =
            TrajectoryResult { name: case.name.clone(), measurements: vec![measurement], plot: None };
        builder.add(result)?;
        if let Err(failure) = outcome {
            builder.fail(mode.name(), failure.to_string());
        }
        about.tell(mode, &mut builder);
        done += 1;
    }
    let ablation = if settings.ablation && !interrupt.is_asked() {
        said(&format!("{}: one switch at a time", case.name));
        ablation::measure(candidate, case, &chain, settings)
    } else {
        Vec::new()
    };
    let partial = interrupt.is_asked().then(|| Partial {
        reason: "interrupted".to_owned(),
        done,
        planned: Some(settings.modes.len() as u64),
    });
    let run = builder.finish(partial);
    let throughput = if settings.throughput && !interrupt.is_asked() {
        said(&format!("{}: in sequence and pipelined", case.name));
        throughput::measure(candidate, case, &chain, settings)
    } else {
        Vec::new()
    };
    Ok(CaseResult { case: case.clone(), shape, run, floors: Vec::new(), ablation, throughput })
}

/// What becomes known of a mode while it runs.
#[derive(Default)]
struct About {
    identities: Option<(String, String)>,
    gpu: Option<Gpu>,
    /// Most bytes in tensors, and taken from the device, while it ran.
    memory: Option<(u64, u64)>,
    /// Most bytes taken while it was loaded.
    loading: Option<u64>,
    /// Whether the velocities are not those of captured steps.
    apart: bool,
    /// Whether the GPU makes images of frames.
    images_on_gpu: bool,
}

impl About {
    fn tell(self, mode: Mode, builder: &mut RunBuilder) {
        if let Some((backbone, dit)) = self.identities {
            builder.identify(ModeIdentity { name: mode.name().to_owned(), backbone, dit });
        }
        if let Some((tensors, taken)) = self.memory {
            let loading = self.loading.unwrap_or_default();
            let [tensors, taken, loading] = [tensors, taken, loading].map(|bytes| bytes as f64 / 1e9);
            let text = format!(
                "device memory: at most {tensors:.2} GB in tensors, {taken:.2} GB taken by libtorch's allocator \
                 (CUDA's own not counted); {loading:.2} GB while the weights were made"
            );
            builder.note(mode.name(), text);
        }
        if self.apart {
            builder.note(mode.name(), "velocities are those of the same head run step by step, not captured");
        }
        if self.images_on_gpu {
            let text = "data processing: frames to images on the GPU, upload of the raw frames included";
            builder.note(mode.name(), text);
        }
        let Some(gpu) = self.gpu else { return };
        let state = gpu::state(&gpu);
        if !state.is_empty() {
            builder.note(mode.name(), format!("under load: {state}"));
        }
        builder.head().machine.gpus = vec![gpu];
    }
}

/// What is measured.
struct Subject {
    network: Network,
    preprocessor: Preprocessor,
    timer: DeviceTimer,
}

struct Bench<'a> {
    candidate: &'a Candidate,
    case: &'a Case,
    settings: &'a Settings,
    chain: &'a Chain,
    interrupt: &'a Interrupt,
}

impl Bench<'_> {
    fn head(&self) -> Run {
        let Settings { iterations, warm_up, seed, device, .. } = self.settings;
        let steps = self.case.steps.unwrap_or(self.candidate.sizes().model.num_inference_timesteps);
        let checkpoint = self.candidate.identity();
        let weights = if checkpoint.random_weights { " with random weights" } else { "" };
        Run {
            title: format!("{}{weights} on {device:?}", checkpoint.name),
            machine: Machine::of_this_system(),
            checkpoint,
            source: Source {
                kind: "random inputs".to_owned(),
                name: self.case.to_string(),
                samples: self.chain.len() as u64,
                synthetic: true,
                ..Source::default()
            },
            options: Options {
                horizon: self.case.horizon as u64,
                warm_up: (*warm_up).into(),
                iterations: (*iterations).into(),
                noise_seed: Some(*seed),
                denoising_steps: steps as u64,
                other: [("device".to_owned(), format!("{device:?}"))].into(),
                ..Options::default()
            },
            reference: Mode::F32.name().to_owned(),
            ..Run::default()
        }
    }

    fn reference(&self) -> Result<Reference, Failure> {
        let mut network = self.candidate.network(Mode::F32, self.case, self.settings.device)?;
        let (mut captures, mut chunks) = (Vec::new(), Vec::new());
        for set in 0..self.chain.len() {
            let inputs = self.chain.prepare(set)?;
            let (capture, chunk) = Capture::record(&mut network, &inputs, self.chain.noise(set)?)?;
            captures.push(capture);
            chunks.push(chunk);
        }
        Ok(Reference { captures, chunks })
    }

    fn measure(
        &self,
        mode: Mode,
        reference: Option<&Reference>,
        measurement: &mut ModeMeasurement,
        about: &mut About,
    ) -> Result<(), Failure> {
        let Settings { iterations, warm_up, device, .. } = *self.settings;
        reset_memory(device);
        let network = self.candidate.network(mode, self.case, device)?;
        about.identities = Some(network.identities());
        about.loading = memory(device).map(|usage| usage.reserved_peak.unsigned_abs());
        // Making the weights takes memory of its own, which is not the running network's.
        reset_memory(device);
        let processor = self.chain.processor();
        let preprocessor = Preprocessor::new(self.settings.preprocessing, &network, processor)?;
        let mut subject = Subject { network, preprocessor, timer: DeviceTimer::new(device) };
        for i in 0..warm_up as usize {
            self.tick(&mut subject, i, None)?;
        }
        for i in 0..iterations as usize {
            self.tick(&mut subject, i, Some(measurement))?;
        }
        if let Some(usage) = memory(device) {
            let [tensors, taken] = [usage.allocated_peak, usage.reserved_peak].map(|n| n.unsigned_abs());
            measurement.peak_device_bytes = Some(taken);
            about.memory = Some((tensors, taken));
        }
        about.gpu = self.clocks(&mut subject)?;
        about.images_on_gpu = subject.preprocessor.on() == Preprocessing::Gpu;
        let mut network = subject.network;
        let Some(reference) = reference else { return Ok(()) };
        for (set, chunk) in reference.chunks.iter().enumerate() {
            self.go_on()?;
            let noise = self.chain.noise(set)?;
            let (own, _) = network.run(&self.chain.prepare(set)?, noise.view(), None, &mut Probe::off())?;
            let mut errors = ErrorStats::default();
            errors.push_pairs(chunk.iter().copied().zip(own.iter().copied()));
            measurement.actions.merge(&errors);
        }
        // Last, since the action head is now run apart from what was captured.
        about.apart = network.runner().is_some();
        for capture in &reference.captures {
            self.go_on()?;
            capture.compare(&mut network, &mut measurement.denoising)?;
        }
        if about.apart {
            return Ok(());
        }
        for i in 0..iterations as usize {
            self.go_on()?;
            let capture = &reference.captures[i % reference.captures.len()];
            measurement.latency(Component::Dit).push(capture.time_denoising(&mut network)?);
        }
        Ok(())
    }

    /// One tick, from frames in memory to physical actions in memory.
    fn tick(
        &self,
        subject: &mut Subject,
        set: usize,
        measurement: Option<&mut ModeMeasurement>,
    ) -> Result<(), Failure> {
        self.go_on()?;
        let device = self.settings.device;
        let Subject { network, preprocessor, timer } = subject;
        synchronize(device);
        let start = Instant::now();
        let (processor, observations) = (self.chain.processor(), self.chain.observations(set)?);
        let (inputs, images) = preprocessor.prepare(processor, observations, network)?;
        let data_processing = start.elapsed();
        timer.start();
        let noise = self.chain.noise(set)?.view();
        let (actions, stages) =
            network.run_with_images(&inputs, images.as_ref(), noise, None, &mut Probe::off())?;
        timer.stop();
        std::hint::black_box(self.chain.decode(set, &actions)?);
        let end_to_end = start.elapsed();
        let Some(measurement) = measurement else { return Ok(()) };
        for (component, time) in [
            (Component::DataProcessing, data_processing),
            (Component::Vision, stages.vision),
            (Component::Language, stages.language),
            (Component::Backbone, stages.vision + stages.language),
            (Component::ActionHead, stages.action_head),
            (Component::EndToEnd, end_to_end),
        ] {
            measurement.latency(component).push(time);
        }
        if let Some(time) = timer.elapsed(network, &stages) {
            measurement.latency(Component::Other(DEVICE.to_owned())).push(time);
        }
        Ok(())
    }

    /// The GPU's state with ticks going on, which are not measured.
    fn clocks(&self, subject: &mut Subject) -> Result<Option<Gpu>, Failure> {
        let Device::Cuda(ordinal) = self.settings.device else { return Ok(None) };
        let Some(mut question) = gpu::Question::ask(ordinal) else { return Ok(gpu::by_driver(ordinal)) };
        let mut set = 0;
        while question.is_open() {
            self.tick(subject, set, None)?;
            set += 1;
        }
        Ok(question.answer().or_else(|| gpu::by_driver(ordinal)))
    }

    fn go_on(&self) -> Result<(), Failure> {
        if self.interrupt.is_asked() { Err(Failure::Interrupted) } else { Ok(()) }
    }
}

/// The network between two events on the device.
pub const DEVICE: &str = "network, device events";
