//! The denoising steps on own CUDA kernels: seven launches per block, all steps in one CUDA graph.
//!
//! bf16 weights and operands, f32 inside every kernel; unlike on libtorch the residual stream and the timesteps' terms stay
//! f32, and so do the sums of products until their reader has added bias and residual.
//!
//! | file | part |
//! |---|---|
//! | `weights` | the action head's weights, joined and multiplied out |
//! | `tick` | buffers for ticks of one size, and the queue of kernels |
//! | [`operators`] | the backbone's fused operators on libtorch's tensors |

pub mod operators;
#[cfg(test)]
mod tests;
mod tick;
mod weights;

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::CudaStream;
use tch::{Device, Kind, Tensor};

use super::{
    ModelError,
    cuda::Stream,
    layers::Loader,
    probe::Probe,
    tokens::TokenLayout,
    velocity::{Retained, VelocityEngine},
};
use crate::{
    checkpoint::ModelConfig,
    cuda::{CudaError, Gemms, Gpu, Kernels, Queue, Recording, Tuned},
};
use operators::Operators;
pub use tick::Stage;
use tick::{Machine, Run, Sizes, Stages, Tick, TickShape};
use weights::HeadWeights;

/// Sizes of ticks that are kept ready.
const KEPT: usize = 4;

/// Limits of what is asked into the L2 cache ahead that are tried, in bytes. Two at most are asked for at once, beside what is
/// read, and the H100's cache holds 50 MB.
const AHEAD: [usize; 5] = [0, 2 << 20, 4 << 20, 8 << 20, 16 << 20];
/// Runs that are timed for each choice.
const TUNING_RUNS: usize = 5;
/// Times that every choice is looked at, beside what was chosen of the others.
const ROUNDS: usize = 2;

/// Where runs are queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FusedQueueing {
    /// As a recorded CUDA graph, on the default stream.
    #[default]
    Graph,
    /// Kernel by kernel.
    Eager,
}

/// What a kind of kernel takes in a run of all steps.
#[derive(Debug, Clone, Copy)]
pub struct StageTime {
    pub stage: Stage,
    /// Kernels or products of this kind.
    pub launches: usize,
    /// Milliseconds of these alone, one after the other.
    pub alone: f32,
    /// Milliseconds that the run is shorter without them.
    pub marginal: f32,
}

/// The fused denoising step.
pub struct FusedVelocity {
    /// The one in use is the last.
    ticks: Vec<Tick>,
    machine: Machine,
    gpu: Gpu,
    /// libtorch's stream on this thread.
    default: Arc<CudaStream>,
    /// Where graphs are recorded, and where kernels are queued one by one.
    private: Arc<CudaStream>,
    /// Where everything is queued instead, kernel by kernel.
    foreign: Option<Arc<CudaStream>>,
    queueing: FusedQueueing,
    overlap: bool,
    /// Whether the last of `ticks` has its keys and values.
    conditioned: bool,
    device: Device,
}

impl FusedVelocity {
    /// Loads the module `action_head` of one embodiment; `at` is that module on a GPU in bf16. Takes seconds: the kernels
    /// are compiled. The products are tuned when the first tick tells its size.
    ///
    /// # Errors
    /// No GPU, no NVRTC, a type other than bf16, or sizes that the kernels are not made for.
    pub fn load(at: &Loader, config: &ModelConfig, embodiment: usize) -> Result<Self, ModelError> {
        Self::load_with(at, config, embodiment, |gpu| Ok(Kernels::new(gpu)?))
    }

    /// As [`load`](Self::load), with the kernels that were compiled for the operators of the same GPU.
    ///
    /// # Errors
    /// As there.
    pub fn load_beside(
        operators: &Operators,
        at: &Loader,
        config: &ModelConfig,
        embodiment: usize,
    ) -> Result<Self, ModelError> {
        Self::load_with(at, config, embodiment, |_| Ok(operators.kernels()))
    }

    fn load_with(
        at: &Loader,
        config: &ModelConfig,
        embodiment: usize,
        kernels: impl FnOnce(&Gpu) -> Result<Kernels, ModelError>,
    ) -> Result<Self, ModelError> {
        let device = at.device();
        let ordinal = ordinal(device)?;
        if at.kind() != Kind::BFloat16 {
            return Err(ModelError::Input {
                what: "type of the fused kernels",
                expected: "bf16".to_owned(),
                found: format!("{:?}", at.kind()),
            });
        }
        let sizes = Sizes {
            width: config.input_embedding_dim,
            heads: config.diffusion.num_attention_heads.max(1),
            horizon: config.action_horizon,
            action_dim: config.max_action_dim,
        };
        if !sizes.width.is_multiple_of(sizes.heads) || !sizes.action_dim.is_multiple_of(4) {
            return Err(ModelError::Input {
                what: "sizes of the fused kernels",
                expected: "a width that the heads divide, and a multiple of 4 action dimensions".to_owned(),
                found: format!("{sizes:?}"),
            });
        }
        let gpu = Gpu::open(ordinal)?;
        let kernels = kernels(&gpu)?;
        let machine = Machine {
            attention: kernels.attention(sizes.width / sizes.heads)?,
            gemms: Gemms::new(&gpu)?,
            kernels,
            weights: HeadWeights::load(at, config, embodiment)?,
            terms: None,
            sizes,
        };
        // SAFETY: null is the default stream, which always is. It is libtorch's current one on this thread: nothing in this
        // program sets another without telling (`use_stream`).
        let default = unsafe { gpu.external_stream(std::ptr::null_mut()) };
        Ok(Self {
            ticks: Vec::new(),
            machine,
            default,
            private: gpu.new_stream()?,
            foreign: None,
            queueing: FusedQueueing::default(),
            overlap: gpu.overlaps(),
            conditioned: false,
            device,
            gpu,
        })
    }

    /// Chooses how runs are queued.
    pub fn set_queueing(&mut self, queueing: FusedQueueing) {
        self.queueing = queueing;
    }

    /// Chooses whether kernels may start before their predecessor has ended, where the GPU can: on by default.
    pub fn set_overlap(&mut self, overlap: bool) -> Result<(), ModelError> {
        self.forget()?;
        self.overlap = overlap && self.gpu.overlaps();
        Ok(())
    }

    /// Queues everything on `stream`, libtorch's current one, kernel by kernel, so that it can be part of a capture of the
    /// whole tick; None goes back to the default stream.
    ///
    /// # Safety
    /// A stream of this GPU's primary context that outlives its use here.
    pub unsafe fn use_stream(&mut self, stream: Option<*mut c_void>) {
        // SAFETY: by this function's contract.
        self.foreign = stream.map(|stream| unsafe { self.gpu.external_stream(stream) });
    }

    /// What was measured when the products were tuned.
    pub fn products(&self) -> &[Tuned] {
        self.machine.gemms.table()
    }

    /// Chooses what cannot be told of a product alone, since kernels run beside each other: which way of each product makes
    /// the whole fastest, and how much is asked into the L2 cache ahead.
    fn tune(&self, tick: &mut Tick) -> Result<(), ModelError> {
        if !self.gpu.overlaps() || self.machine.terms.is_none() {
            return Ok(());
        }
        // Once, so that all is loaded before it is recorded.
        tick.queue(&self.machine, &Queue::new(Arc::clone(&self.private), self.overlap), Run::All)?;
        self.wait();
        let start = Instant::now();
        let before = self.time_of(tick)?;
        let mut best = before;
        for _ in 0..ROUNDS {
            for place in 0..tick.products().count() {
                let Some(mut chosen) = tick.products().nth(place).cloned() else { continue };
                for way in self.machine.gemms.ways(chosen.shape) {
                    if Arc::ptr_eq(way, &chosen) {
                        continue;
                    }
                    tick.choose(place, way);
                    let time = self.time_of(tick)?;
                    // Less is noise.
                    if time < 0.998 * best {
                        (best, chosen) = (time, Arc::clone(way));
                    }
                }
                tick.choose(place, &chosen);
            }
            let mut kept = tick.ahead;
            for bytes in AHEAD {
                tick.ahead = bytes;
                let time = self.time_of(tick)?;
                if time < 0.998 * best {
                    (best, kept) = (time, bytes);
                }
            }
            tick.ahead = kept;
        }
        let ways: Vec<String> =
            tick.products().map(|gemm| format!("{}: {}", gemm.shape, gemm.plan.name())).collect();
        tracing::info!(
            "denoising steps tuned in {:.1} s: {best:.3} ms, {before:.3} before; {} MiB of weights asked into the L2 cache \
             ahead; {}",
            start.elapsed().as_secs_f64(),
            tick.ahead >> 20,
            ways.join("; ")
        );
        Ok(())
    }

    /// Milliseconds of all steps.
    fn time_of(&self, tick: &Tick) -> Result<f32, ModelError> {
        let queue = |queue: &Queue| tick.queue(&self.machine, queue, Run::All);
        let mut recording = Recording::new(&self.private, self.overlap, queue)?;
        Ok(recording.median(0, TUNING_RUNS)?)
    }

    /// Milliseconds of each of `count` runs of all steps on the last tick's inputs, by the GPU's own clock.
    ///
    /// # Errors
    /// No tick yet, or the GPU's.
    pub fn time(&mut self, count: usize) -> Result<Vec<f32>, ModelError> {
        let (machine, overlap) = (&self.machine, self.overlap);
        let tick = self.ticks.last().ok_or_else(no_tick)?;
        let mut recording =
            Recording::new(&self.private, overlap, |queue| tick.queue(machine, queue, Run::All))?;
        Ok(recording.time(count)?)
    }

    /// How long each kind of kernel takes in a run of all steps: alone, and by what the run lacks without it. The second
    /// is less where kernels overlap. The last tick's results are overwritten with nonsense.
    ///
    /// # Errors
    /// As [`time`](Self::time).
    pub fn profile(&mut self, count: usize) -> Result<Vec<StageTime>, ModelError> {
        let (machine, overlap) = (&self.machine, self.overlap);
        let tick = self.ticks.last().ok_or_else(no_tick)?;
        let time = |stages: Stages| -> Result<f32, ModelError> {
            let mut recording = Recording::new(&self.private, overlap, |queue| {
                tick.queue_stages(machine, queue, Run::All, stages)
            })?;
            Ok(recording.median(0, count)?)
        };
        let whole = time(Stages::ALL)?;
        let used = Stage::ALL.into_iter().filter(|&stage| tick.launches(machine, stage) > 0);
        used.map(|stage| {
            Ok(StageTime {
                stage,
                launches: tick.launches(machine, stage),
                alone: time(Stages::only(stage))?,
                marginal: whole - time(Stages::without(stage))?,
            })
        })
        .collect()
    }

    /// Drops what was recorded, as addresses or constants change.
    fn forget(&mut self) -> Result<(), ModelError> {
        self.wait();
        self.ticks.iter_mut().for_each(|tick| tick.recordings.clear());
        Ok(())
    }

    fn wait(&self) {
        if let Err(error) = self.gpu.wait() {
            tracing::warn!("{error}");
        }
    }

    fn run(&mut self, run: Run, states: &Tensor, actions: &Tensor) -> Result<Tensor, ModelError> {
        let Some(tick) = self.ticks.last_mut().filter(|_| self.conditioned) else {
            return Err(no_tick());
        };
        check_size(
            "state tokens",
            states,
            &[tick.shape.samples as i64, tick.shape.states as i64, self.machine.sizes.width as i64],
        )?;
        let Sizes { horizon, action_dim, .. } = self.machine.sizes;
        check_size(
            "noisy actions",
            actions,
            &[tick.shape.samples as i64, horizon as i64, action_dim as i64],
        )?;
        tick.fill(states, actions)?;
        let machine = &self.machine;
        if let Some(stream) = &self.foreign {
            tick.queue(machine, &Queue::new(Arc::clone(stream), self.overlap), run)?;
            return tick.result(run);
        }
        let place = run.place();
        if let Some(Some(recording)) = tick.recordings.get_mut(place) {
            recording.launch(&self.default)?;
            return tick.result(run);
        }
        let ordering = |error| ModelError::from(CudaError::driver("ordering two streams")(error));
        self.private.join(&self.default).map_err(ordering)?;
        tick.queue(machine, &Queue::new(Arc::clone(&self.private), self.overlap), run)?;
        self.default.join(&self.private).map_err(ordering)?;
        let result = tick.result(run)?;
        if self.queueing == FusedQueueing::Graph {
            // Now that everything has run once, and is loaded.
            let recorded =
                Recording::new(&self.private, self.overlap, |queue| tick.queue(machine, queue, run));
            let recorded = match recorded {
                Ok(recording) => Some(recording),
                Err(error) => {
                    tracing::warn!(
                        "the denoising steps are queued kernel by kernel, as they cannot be recorded: {error}"
                    );
                    self.queueing = FusedQueueing::Eager;
                    None
                }
            };
            if tick.recordings.len() <= place {
                tick.recordings.resize_with(place + 1, || None);
            }
            tick.recordings[place] = recorded;
        }
        Ok(result)
    }
}

fn no_tick() -> ModelError {
    ModelError::Input {
        what: "diffusion transformer",
        expected: "a context (`condition`) before the first step".to_owned(),
        found: "none".to_owned(),
    }
}

fn check_size(what: &'static str, tensor: &Tensor, expected: &[i64]) -> Result<(), ModelError> {
    if tensor.size() == expected {
        return Ok(());
    }
    Err(ModelError::Input { what, expected: format!("{expected:?}"), found: format!("{:?}", tensor.size()) })
}

/// The GPU's number.
fn ordinal(device: Device) -> Result<usize, ModelError> {
    match device {
        Device::Cuda(ordinal) => Ok(ordinal),
        other => Err(ModelError::Device {
            requested: format!("{other:?}"),
            reason: "the fused kernels run on NVIDIA GPUs only: choose cuda, or the mode eager".to_owned(),
        }),
    }
}

/// Refuses a stream of another GPU.
fn refuse_other_device(stream: &Stream, device: Device) -> Result<(), ModelError> {
    let found = Device::Cuda(stream.device());
    if found == device {
        return Ok(());
    }
    Err(ModelError::Input {
        what: "stream of the fused kernels",
        expected: format!("one of {device:?}"),
        found: format!("{found:?}"),
    })
}

impl VelocityEngine for FusedVelocity {
    fn identity(&self) -> String {
        format!("fused kernels bf16 on {:?}", self.device)
    }

    fn set_timesteps(&mut self, timesteps: &[i64]) -> Result<(), ModelError> {
        self.forget()?;
        self.machine.terms = Some(self.machine.weights.step_terms(timesteps)?);
        Ok(())
    }

    fn retained(&self) -> Vec<Retained> {
        let tick = self.ticks.last().into_iter().flat_map(Tick::memory);
        let terms = self.machine.terms.iter().flat_map(|terms| [&terms.modulation, &terms.embedding]);
        tick.chain(terms).map(|tensor| Box::new(tensor.shallow_clone()) as Retained).collect()
    }

    fn queue_on(&mut self, stream: &Stream) -> Result<(), ModelError> {
        refuse_other_device(stream, self.device)?;
        let handle = stream.handle()?;
        // What runs on the stream before must be done with the buffers.
        self.wait();
        // SAFETY: libtorch's streams are of the primary context and live until the process ends.
        unsafe { self.use_stream((!handle.is_null()).then_some(handle)) };
        Ok(())
    }

    fn capturable(&self) -> bool {
        // Kernel by kernel on libtorch's stream; a recording of its own cannot be part of another capture.
        self.foreign.is_some()
    }

    fn condition(
        &mut self,
        context: &Tensor,
        layout: &TokenLayout,
        _probe: &mut Probe,
    ) -> Result<(), ModelError> {
        let shape = TickShape {
            samples: layout.batch().max(0) as usize,
            states: 1,
            text: layout.text.len().max(0) as usize,
            image: layout.image.len().max(0) as usize,
            masked: layout.text.mask.is_some() || layout.image.mask.is_some(),
        };
        self.conditioned = false;
        match self.ticks.iter().position(|tick| tick.shape == shape) {
            Some(index) => {
                let tick = self.ticks.remove(index);
                self.ticks.push(tick);
            }
            None => {
                // What was chosen is a matter of the rows alone: a prompt of another length, which may come while a robot
                // moves, is not worth trying it all again.
                let rows = |shape: &TickShape| (shape.samples, shape.states);
                let known =
                    self.ticks.iter().find(|tick| rows(&tick.shape) == rows(&shape)).map(Tick::choices);
                let is_known = known.is_some();
                // Before memory for another is taken.
                if self.ticks.len() >= KEPT {
                    self.wait();
                    drop(self.ticks.remove(0));
                }
                let mut tick = Tick::new(&mut self.machine, shape, known, self.device)?;
                if !is_known {
                    // On another stream than the one that has just filled it.
                    self.wait();
                    self.tune(&mut tick)?;
                }
                self.ticks.push(tick);
            }
        }
        let tick = self.ticks.last_mut().ok_or_else(no_tick)?;
        tick.condition(&self.machine.weights, context, layout)?;
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
        let velocity = self.run(Run::Step(step), state_tokens, actions)?;
        probe.record(|| format!("head.step{step}.actions_in"), actions);
        Ok(velocity)
    }

    fn denoise(&mut self, state_tokens: &Tensor, noise: &Tensor) -> Result<Option<Tensor>, ModelError> {
        Ok(Some(self.run(Run::All, state_tokens, noise)?))
    }
}

impl Drop for FusedVelocity {
    fn drop(&mut self) {
        // The GPU may still work on what is about to be freed.
        self.wait();
    }
}
