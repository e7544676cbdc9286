//! One denoising step as a single TensorRT engine, in the memory and on the current stream of libtorch.
//!
//! Of the transformer's weights only the key and value projections of the cross-attending blocks are in libtorch's memory:
//! they run once per tick, in the backbone's type. Everything else is inside the engine.

mod buffers;
mod load;
mod projections;
mod single;

pub(crate) use load::hashes_in;
pub use load::{TensorRtDevice, load};
pub use projections::{CrossProjections, Projected};
pub use single::SingleRun;

use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::driver::CudaStream;
use tch::{Device, Kind, Tensor};

use super::{
    ModelError,
    cuda::{self, Stream},
    layers::{Loader, split_heads},
    probe::Probe,
    tokens::TokenLayout,
    velocity::VelocityEngine,
};
use crate::{
    checkpoint::{Checkpoint, timesteps},
    engine::fused::names,
    onnx::dit::step_terms,
    tensorrt::{CapturedContext, Context, Engine},
};
use buffers::Buffer;

/// How the engine's runs are queued.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Queueing {
    /// As a captured CUDA graph.
    #[default]
    Graph,
    /// Kernel by kernel.
    Eager,
}

/// The fused graph on TensorRT.
pub struct TensorRtVelocity {
    /// First, so that it is dropped before the memory that it works on.
    run: CapturedContext,
    gpu: crate::tensorrt::Device,
    /// libtorch's current stream when a run was last queued, and its handle as a number.
    stream: (usize, Arc<CudaStream>),
    actions: Buffer,
    state_tokens: Buffer,
    step_terms: Buffer,
    velocity: Buffer,
    projections: CrossProjections,
    /// Keys and values, in the order of the projections.
    cross: Vec<Buffer>,
    heads: i64,
    /// Per number of denoising steps: (steps, rows, width).
    tables: BTreeMap<usize, Tensor>,
    steps: usize,
    conditioned: bool,
    checkpoint: Arc<Checkpoint>,
    embodiment: usize,
    device: Device,
    identity: String,
}

impl TensorRtVelocity {
    /// Takes an engine of the fused graph; `at` is the module `action_head`, whose device must be the engine's GPU.
    ///
    /// # Errors
    /// Inputs or outputs that are not those of the fused graph of this checkpoint, or no memory for them.
    pub fn new(
        at: &Loader,
        checkpoint: Arc<Checkpoint>,
        embodiment: usize,
        engine: &Engine,
        queueing: Queueing,
        identity: String,
    ) -> Result<Self, ModelError> {
        let device = at.device();
        let mut context = Context::new(engine)?;
        let gpu = context.device().cloned().ok_or_else(|| ModelError::Device {
            requested: format!("{device:?}"),
            reason: "the TensorRT engine has no GPU of its own; it must be loaded for one".to_owned(),
        })?;
        if device != Device::Cuda(gpu.ordinal()) {
            return Err(ModelError::Device {
                requested: format!("{device:?}"),
                reason: format!(
                    "the TensorRT engine is on cuda:{}, and both must be on one GPU",
                    gpu.ordinal()
                ),
            });
        }
        let config = &checkpoint.config;
        let width = config.input_embedding_dim as i64;
        let action_shape = [1, config.action_horizon as i64, config.max_action_dim as i64];
        let rows = crate::onnx::dit::rows(config) as i64;
        let actions = Buffer::fixed(engine, names::ACTIONS, Some(&action_shape), device)?;
        let state_tokens = Buffer::fixed(engine, names::STATE_TOKENS, None, device)?;
        let step_terms = Buffer::fixed(engine, names::STEP_TERMS, Some(&[rows, width]), device)?;
        let velocity = Buffer::fixed(engine, names::VELOCITY, Some(&action_shape), device)?;
        for buffer in [&actions, &state_tokens, &step_terms, &velocity] {
            buffer.bind(&mut context)?;
        }
        let projections = CrossProjections::load(&at.at("model"), config)?;
        let mut cross = Vec::new();
        for input in projections.inputs() {
            let buffer = Buffer::new(engine, input, device)?;
            buffer.bind(&mut context)?;
            buffer.announce(&mut context)?;
            cross.push(buffer);
        }
        let heads = config.diffusion.num_attention_heads as i64;
        // SAFETY: null is the default stream, which always is.
        let stream = (0, unsafe { gpu.external_stream(std::ptr::null_mut()) });
        let run = match queueing {
            Queueing::Graph => CapturedContext::new(context),
            Queueing::Eager => {
                CapturedContext::without_graph(context, "queueing kernel by kernel was asked for")
            }
        };
        Ok(Self {
            run,
            gpu,
            stream,
            actions,
            state_tokens,
            step_terms,
            velocity,
            projections,
            cross,
            heads,
            tables: BTreeMap::new(),
            steps: 0,
            conditioned: false,
            checkpoint,
            embodiment,
            device,
            identity,
        })
    }

    /// The stream on which libtorch queues this thread's work, so that inputs and outputs need no wait in between.
    fn current_stream(&mut self) -> Result<&Arc<CudaStream>, ModelError> {
        let handle = match cuda::available() {
            Ok(()) => Stream::current(self.gpu.ordinal())?.handle()?,
            // Nothing in this program can have chosen another than the default stream then.
            Err(_) => std::ptr::null_mut(),
        };
        if handle as usize != self.stream.0 {
            // SAFETY: libtorch's streams are of the device's primary context and live until the process ends.
            self.stream = (handle as usize, unsafe { self.gpu.external_stream(handle) });
        }
        Ok(&self.stream.1)
    }

    /// Why the runs are queued kernel by kernel, if they are.
    pub fn fallback(&self) -> Option<&str> {
        self.run.fallback()
    }
}

impl VelocityEngine for TensorRtVelocity {
    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn set_timesteps(&mut self, given: &[i64]) -> Result<(), ModelError> {
        let steps = given.len();
        let known = timesteps(steps, self.checkpoint.config.num_timestep_buckets);
        if given != known {
            return Err(ModelError::Input {
                what: "timesteps of a TensorRT engine",
                expected: format!("those of {steps} denoising steps, {known:?}"),
                found: format!("{given:?}"),
            });
        }
        if !self.tables.contains_key(&steps) {
            let table = step_terms_tensor(&self.checkpoint, self.embodiment, steps)?;
            self.tables.insert(steps, table.f_to_device(self.device)?);
        }
        self.steps = steps;
        Ok(())
    }

    fn condition(
        &mut self,
        context: &Tensor,
        layout: &TokenLayout,
        _probe: &mut Probe,
    ) -> Result<(), ModelError> {
        self.conditioned = false;
        let engine = self.run.context();
        for (projected, buffer) in self.projections.project(context, layout)?.into_iter().zip(&mut self.cross)
        {
            let mut own = projected.tokens;
            if buffer.rank() == 4 {
                own = split_heads(&own, self.heads)?;
            }
            buffer.check(&own.size(), projected.reads)?;
            buffer.resize(&own.size(), engine)?;
            buffer.fill(&own)?;
        }
        self.conditioned = true;
        Ok(())
    }

    fn velocity(
        &mut self,
        step: usize,
        state_tokens: &Tensor,
        actions: &Tensor,
        probe: &mut Probe,
    ) -> Result<Tensor, ModelError> {
        let table =
            self.tables.get(&self.steps).filter(|_| step < self.steps).ok_or_else(|| ModelError::Input {
                what: "denoising step",
                expected: format!("below {}", self.steps),
                found: step.to_string(),
            })?;
        if !self.conditioned {
            return Err(ModelError::Input {
                what: "TensorRT engine",
                expected: "a context (`condition`) before the first step".to_owned(),
                found: "none".to_owned(),
            });
        }
        // Into the same memory each time: the captured graph holds its addresses.
        self.step_terms.fill(&table.f_select(0, step as i64)?)?;
        self.state_tokens.fill(state_tokens)?;
        self.actions.fill(actions)?;
        probe.record(|| format!("head.step{step}.actions_in"), actions);
        let stream = Arc::clone(self.current_stream()?);
        self.run.run(&stream)?;
        // A copy: the next step writes over it.
        Ok(self.velocity.view()?.f_to_kind(Kind::Float)?.f_add_scalar(0.0)?)
    }
}

/// The terms of all steps, (steps, rows, width), f32 on the CPU.
pub fn step_terms_tensor(
    checkpoint: &Checkpoint,
    embodiment: usize,
    steps: usize,
) -> Result<Tensor, ModelError> {
    let terms = step_terms(checkpoint, embodiment, steps)?;
    let shape: Vec<i64> = terms.shape().iter().map(|&extent| extent as i64).collect();
    let flat: Vec<f32> = terms.into_iter().collect();
    Ok(Tensor::f_from_slice(&flat)?.f_reshape(shape)?)
}
