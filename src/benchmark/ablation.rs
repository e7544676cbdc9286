//! What each switch brings: the same work with it and without it, everything else alike.
//!
//! Only what can really be switched is here. A mode that brings a new switch adds a row to [`SWITCHES`].

mod frames;

use std::time::{Duration, Instant};

use tch::Tensor;

use super::{
    cases::Case,
    chain::Chain,
    mode::Mode,
    model::{Candidate, ModeError},
    result::AblationResult,
    run::Settings,
};
use crate::{
    evaluation::LatencySamples,
    execution::ExecutionMode,
    model::{
        ModelError,
        device::synchronize,
        network::{Network, to_tensor},
        operators::PlainOperators,
        probe::Probe,
        tick::captured::Split,
    },
    processor::{ModelInputs, ProcessorError},
};

/// A switch.
pub struct Switch {
    /// What it is called.
    pub name: &'static str,
    /// What is timed.
    pub part: &'static str,
    how: How,
}

/// How a switch is thrown.
enum How {
    /// Two modes that differ in this alone, timed from inputs to actions.
    Modes { off: Mode, on: Mode },
    /// A captured network that is told on or off before its first tick.
    Captured(fn(&mut Network, bool) -> Result<(), ModelError>),
    /// Two ways of using the plain bf16 network: one pass of work with the switch on or off.
    Plain(fn(&mut Pass, bool) -> Result<Duration, Failure>),
    /// Frames to images in the GPU's memory, by its own kernels or by the processor's cores and an upload.
    Frames,
}

/// All switches.
pub const SWITCHES: [Switch; 11] = [
    Switch { name: "pre-processing on the GPU", part: "frames to images, upload included", how: How::Frames },
    Switch { name: "all cameras in one batch", part: "vision", how: How::Plain(batched_cameras) },
    Switch { name: "prompt layout kept", part: "vision and language", how: How::Plain(kept_layout) },
    Switch {
        name: "next inputs prepared beside the tick",
        part: "data and network",
        how: How::Plain(prepared_beside),
    },
    Switch { name: "cross K/V once per tick", part: "denoising", how: How::Plain(cross_keys) },
    Switch {
        name: "bf16 in place of f32",
        part: "network",
        how: How::Modes { off: Mode::F32, on: Mode::Eager },
    },
    Switch { name: "CUDA graphs", part: "network", how: How::Modes { off: Mode::Eager, on: Mode::Graph } },
    Switch { name: "one graph in place of three", part: "network", how: How::Captured(one_graph) },
    Switch {
        name: "joined products (QKV, gate and up)",
        part: "network",
        how: How::Captured(joined_products),
    },
    Switch { name: "prompt before the images kept", part: "network", how: How::Captured(prefix_reuse) },
    Switch {
        name: "fused kernels",
        part: "network",
        how: How::Modes { off: Mode::Graph, on: Mode::GraphFused },
    },
];

/// Why a switch has no figures.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Mode(#[from] ModeError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    #[error("{0}")]
    NotHere(&'static str),
    #[cfg(feature = "cuda")]
    #[error(
        "{wrong} of {all} bytes are not those of the CPU: this is a defect of groot_policy, please report it"
    )]
    Bytes {
        /// Bytes that differ.
        wrong: usize,
        all: usize,
    },
}

impl From<tch::TchError> for Failure {
    fn from(error: tch::TchError) -> Self {
        Self::Model(error.into())
    }
}

/// Measures all switches; those that cannot be measured say why.
pub fn measure(
    candidate: &Candidate,
    case: &Case,
    chain: &Chain,
    settings: &Settings,
) -> Vec<AblationResult> {
    let stage = Stage { candidate, case, chain, settings };
    let results = SWITCHES.iter().map(|switch| {
        let (on, off, failure) = match stage.throw(&switch.how) {
            Ok((on, off)) => (on.summary(), off.summary(), None),
            Err(failure) => (None, None, Some(failure.to_string())),
        };
        AblationResult { name: switch.name.to_owned(), part: switch.part.to_owned(), on, off, failure }
    });
    results.collect()
}

struct Stage<'a> {
    candidate: &'a Candidate,
    case: &'a Case,
    chain: &'a Chain,
    settings: &'a Settings,
}

/// One pass over one set of inputs.
struct Pass<'a> {
    network: &'a mut Network,
    chain: &'a Chain,
    inputs: ModelInputs,
    set: usize,
}

impl Stage<'_> {
    /// Times with the switch on, and off.
    fn throw(&self, how: &How) -> Result<(LatencySamples, LatencySamples), Failure> {
        match how {
            How::Modes { off, on } => {
                let off = self.time_mode(*off)?;
                Ok((self.time_mode(*on)?, off))
            }
            How::Captured(tell) => {
                let timed = |on| {
                    let mut network = self.candidate.network(Mode::Graph, self.case, self.settings.device)?;
                    tell(&mut network, on)?;
                    self.time_network(&mut network)
                };
                let off = timed(false)?;
                Ok((timed(true)?, off))
            }
            How::Frames => frames::measure(self.chain, self.settings),
            How::Plain(pass) => {
                let mut network = self.candidate.network(Mode::Eager, self.case, self.settings.device)?;
                let on = self.time(&mut network, |own| pass(own, true))?;
                let off = self.time(&mut network, |own| pass(own, false))?;
                Ok((on, off))
            }
        }
    }

    fn time_mode(&self, mode: Mode) -> Result<LatencySamples, Failure> {
        let mut network = self.candidate.network(mode, self.case, self.settings.device)?;
        self.time_network(&mut network)
    }

    fn time_network(&self, network: &mut Network) -> Result<LatencySamples, Failure> {
        self.time(network, |pass| {
            let noise = pass.chain.noise(pass.set)?;
            let start = Instant::now();
            pass.network.run(&pass.inputs, noise.view(), None, &mut Probe::off())?;
            Ok(start.elapsed())
        })
    }

    fn time(
        &self,
        network: &mut Network,
        mut work: impl FnMut(&mut Pass) -> Result<Duration, Failure>,
    ) -> Result<LatencySamples, Failure> {
        let Settings { warm_up, iterations, .. } = *self.settings;
        let mut samples = LatencySamples::default();
        for i in 0..(warm_up + iterations) as usize {
            let inputs = self.chain.prepare(i)?;
            let time = work(&mut Pass { network, chain: self.chain, inputs, set: i })?;
            if i >= warm_up as usize {
                samples.push(time);
            }
        }
        Ok(samples)
    }
}

impl Pass<'_> {
    /// Wall-clock time of device work, the device waited for before and after.
    fn timed<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Result<Duration, Failure> {
        let device = self.network.device();
        synchronize(device);
        let start = Instant::now();
        let made = work(self)?;
        synchronize(device);
        let time = start.elapsed();
        drop(made);
        Ok(time)
    }
}

/// One graph for the tick, or one per stage.
fn one_graph(network: &mut Network, on: bool) -> Result<(), ModelError> {
    network.set_mode_split(ExecutionMode::Graph, if on { Split::Whole } else { Split::Stages })
}

/// Products of the backbone that read the same input as one, with libtorch's operators between them.
fn joined_products(network: &mut Network, on: bool) -> Result<(), ModelError> {
    network.set_operators(if on { Some(Box::new(PlainOperators)) } else { None })
}

/// What stands before the first image computed once per instruction, or in each tick; both with joined products.
fn prefix_reuse(network: &mut Network, on: bool) -> Result<(), ModelError> {
    network.set_prefix_reuse(on);
    network.set_operators(Some(Box::new(PlainOperators)))
}

/// The vision tower over all images at once, or over one after the other.
fn batched_cameras(pass: &mut Pass, on: bool) -> Result<Duration, Failure> {
    let (images, height, width, channels) = pass.inputs.images.dim();
    if images < 2 {
        return Err(Failure::NotHere("one image only"));
    }
    let bytes: Vec<u8> = pass.inputs.images.iter().copied().collect();
    let size = [images, height, width, channels].map(|n| n as i64);
    let frames = Tensor::f_from_slice(&bytes)?.f_reshape(size)?;
    let parts = if on { vec![frames] } else { frames.f_split(1, 0)? };
    pass.timed(|pass| {
        let vision = pass.network.backbone().vision();
        parts
            .iter()
            .map(|part| Ok(vision.forward(part, &mut Probe::off())?))
            .collect::<Result<Vec<_>, Failure>>()
    })
}

/// The backbone with the instruction of the tick before, or with another one each time.
fn kept_layout(pass: &mut Pass, on: bool) -> Result<Duration, Failure> {
    if !on && pass.set.is_multiple_of(2) {
        // One word of the instruction is another, every other tick. Every id below the special ones is a word.
        const FIRST_WORD: usize = super::layout::BEFORE_INSTRUCTION;
        for id in pass.inputs.input_ids.column_mut(FIRST_WORD) {
            *id = (*id + 1) % 1000;
        }
    }
    pass.timed(|pass| {
        let ModelInputs { images, input_ids, attention_mask, .. } = &pass.inputs;
        let backbone = pass.network.backbone();
        let features =
            backbone.forward(images.view(), input_ids.view(), attention_mask.view(), &mut Probe::off())?;
        Ok(features.features)
    })
}

/// A tick and the pre-processing of the next one's inputs, on another thread meanwhile or before it.
fn prepared_beside(pass: &mut Pass, on: bool) -> Result<Duration, Failure> {
    let (chain, next) = (pass.chain, pass.set + 1);
    let noise = chain.noise(pass.set)?.view();
    let (network, inputs) = (&mut *pass.network, &pass.inputs);
    let start = Instant::now();
    if on {
        std::thread::scope(|scope| {
            let next = scope.spawn(|| chain.prepare(next));
            network.run(inputs, noise, None, &mut Probe::off())?;
            next.join().map_err(|_| Failure::NotHere("the pre-processing panicked"))??;
            Ok::<_, Failure>(())
        })?;
    } else {
        chain.prepare(next)?;
        network.run(inputs, noise, None, &mut Probe::off())?;
    }
    Ok(start.elapsed())
}

/// All denoising steps with the keys and values of the context computed before the first one, or before each.
fn cross_keys(pass: &mut Pass, on: bool) -> Result<Duration, Failure> {
    let (features, layout) = {
        let ModelInputs { images, input_ids, attention_mask, .. } = &pass.inputs;
        let backbone = pass.network.backbone();
        let layout = backbone.layout(input_ids.view(), attention_mask.view())?;
        let features =
            backbone.forward(images.view(), input_ids.view(), attention_mask.view(), &mut Probe::off())?;
        (features.features, layout)
    };
    let state = to_tensor(pass.inputs.state.view())?;
    let noise = to_tensor(pass.chain.noise(pass.set)?.view())?;
    pass.timed(|pass| {
        let head = pass.network.head();
        let mut tokens = head.condition(&features, &layout, &state, &mut Probe::off())?;
        let mut actions = noise.f_to_device(tokens.device())?;
        let steps = head.steps();
        for step in 0..steps {
            if !on && step > 0 {
                tokens = head.condition(&features, &layout, &state, &mut Probe::off())?;
            }
            let velocity = head.velocity(&tokens, &actions, step, &mut Probe::off())?;
            actions =
                actions.f_add(&velocity.f_to_kind(tch::Kind::Float)?.f_mul_scalar(1.0 / steps as f64)?)?;
        }
        Ok(actions)
    })
}
