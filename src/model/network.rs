//! The network as a whole: model inputs and noise in, normalised action chunk out.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use ndarray::{Array3, ArrayView3};
use tch::{Device, Kind, Tensor};

use super::{
    ModelError,
    action_head::{ActionHead, Pull},
    backbone::Backbone,
    cuda::{self, EnteredStream, Stream},
    device::synchronize,
    layers::{Loader, WeightSource},
    operators::BackboneOperators,
    probe::Probe,
    selection::{Selection, Sizes, select},
    tick::{
        Parts, TickInputs,
        captured::{Split, Streams},
        runner::{TickRunner, UNDER_WAY},
    },
};
use crate::{
    checkpoint::{Checkpoint, EagleConfig, ModelConfig},
    engine::EngineChoice,
    execution::ExecutionMode,
    processor::{ModelInputs, guidance::Guidance},
};

/// Wall-clock time of a run's stages.
#[derive(Debug, Clone, Copy, Default)]
pub struct StageTimes {
    /// Vision tower and connector, upload included.
    pub vision: Duration,
    /// Language model.
    pub language: Duration,
    /// State encoder, denoising, download.
    pub action_head: Duration,
}

/// Backbone and action head of one embodiment.
pub struct Network {
    /// First, so that captured graphs are dropped before the weights that they read.
    runner: Option<TickRunner>,
    /// The mode in force, never `Auto`, and why it is that one, where it was chosen for the caller.
    mode: (ExecutionMode, Option<String>),
    /// Where ticks that are not eager run; always the same, since libtorch keeps memory for each stream that it used.
    stream: Option<Stream>,
    /// Where their action heads run while pipelined.
    head_stream: Option<Stream>,
    pipelined: bool,
    /// Eager runs that were begun and not finished.
    begun: VecDeque<(Array3<f32>, StageTimes)>,
    /// What ticks that are not eager use between joined products of the backbone; None for the plain path.
    operators: Option<Box<dyn BackboneOperators>>,
    /// Whether what was loaded are the parts of `graph-fused`; and why not, where `auto` did without.
    fused: bool,
    without: Option<String>,
    prefix_reuse: bool,
    backbone: Backbone,
    head: ActionHead,
    default_steps: usize,
    device: Device,
    kind: Kind,
}

impl Network {
    /// Loads what inference needs from `source`, on libtorch, eager.
    ///
    /// # Errors
    /// The source lacks a tensor, or there is no memory for it.
    pub fn load<'a>(
        source: impl Into<WeightSource<'a>>,
        model: &ModelConfig,
        eagle: &EagleConfig,
        embodiment: usize,
        device: Device,
        kind: Kind,
    ) -> Result<Self, ModelError> {
        let root = Loader::new(source, device, kind);
        Self::assemble(ExecutionMode::Eager, &root, Sizes { model, eagle, embodiment }, None)
    }

    /// Loads from `source` what `mode` runs on, and chooses that mode.
    ///
    /// # Errors
    /// As [`load`](Self::load), or the mode cannot be had here. `Auto` always can.
    pub fn load_for<'a>(
        mode: ExecutionMode,
        source: impl Into<WeightSource<'a>>,
        model: &ModelConfig,
        eagle: &EagleConfig,
        embodiment: usize,
        device: Device,
        kind: Kind,
    ) -> Result<Self, ModelError> {
        let root = Loader::new(source, device, kind);
        Self::assemble(mode, &root, Sizes { model, eagle, embodiment }, None)
    }

    /// Loads what `mode` runs on from a checkpoint, and chooses that mode; `engine` is the TensorRT engine that denoises,
    /// where one is to.
    ///
    /// # Errors
    /// As [`load_for`](Self::load_for), or there is no such engine.
    pub fn open(
        checkpoint: &Arc<Checkpoint>,
        embodiment: usize,
        device: Device,
        kind: Kind,
        engine: Option<&EngineChoice>,
        mode: ExecutionMode,
    ) -> Result<Self, ModelError> {
        let sizes = Sizes { model: &checkpoint.config, eagle: &checkpoint.eagle, embodiment };
        let root = Loader::new(&checkpoint.weights, device, kind);
        // The engine comes first: it is the largest piece of memory, and where it does not fit, that is soon said.
        let at = root.at("action_head");
        let head = engine.map(|choice| engine_head(&at, checkpoint, embodiment, choice)).transpose()?;
        Self::assemble(mode, &root, sizes, head)
    }

    fn assemble(
        mode: ExecutionMode,
        root: &Loader,
        sizes: Sizes,
        engine: Option<ActionHead>,
    ) -> Result<Self, ModelError> {
        let mut backbone = Backbone::load(&root.at("backbone.model"), sizes.model, sizes.eagle)?;
        let Selection { head, operators, without } = select(mode, root, sizes, &mut backbone, engine)?;
        let default_steps = head.steps();
        let (device, kind) = (root.device(), root.kind());
        let mut network = Self {
            runner: None,
            mode: (ExecutionMode::Eager, None),
            stream: None,
            head_stream: None,
            pipelined: false,
            begun: VecDeque::new(),
            fused: operators.is_some(),
            without,
            operators,
            prefix_reuse: false,
            backbone,
            head,
            default_steps,
            device,
            kind,
        };
        if mode != ExecutionMode::Eager {
            network.set_mode(mode)?;
        }
        Ok(network)
    }

    /// Chooses how the network is executed, among the modes that it was loaded for. What was captured before is let go.
    ///
    /// # Errors
    /// The mode cannot be had here, or runs on other parts than those that were loaded. `Auto` always can be had.
    pub fn set_mode(&mut self, mode: ExecutionMode) -> Result<(), ModelError> {
        self.set_mode_split(mode, Split::default())
    }

    /// [`set_mode`](Self::set_mode), with a say in which stages become one graph.
    ///
    /// # Errors
    /// As there.
    pub fn set_mode_split(&mut self, mode: ExecutionMode, split: Split) -> Result<(), ModelError> {
        let fits = match mode {
            ExecutionMode::Auto => true,
            ExecutionMode::Eager | ExecutionMode::Graph => !self.fused,
            ExecutionMode::GraphFused => self.fused,
        };
        if !fits {
            let loaded = if self.fused {
                "fused kernels: auto or graph-fused"
            } else {
                "plain operators: auto, eager or graph"
            };
            return Err(ModelError::Input {
                what: "execution mode",
                expected: format!("one for a network that was loaded with {loaded}"),
                found: format!("{mode}; load the network for that mode"),
            });
        }
        let (runner, mode) = match mode {
            ExecutionMode::Eager => (None, (mode, None)),
            ExecutionMode::Graph | ExecutionMode::GraphFused => (Some(self.capturing(split)?), (mode, None)),
            ExecutionMode::Auto if !self.device.is_cuda() => {
                (None, (ExecutionMode::Eager, Some("CUDA graphs need a GPU".to_owned())))
            }
            ExecutionMode::Auto => match (self.capturing(split), self.fused, &self.without) {
                (Ok(runner), true, _) => {
                    let why = "the fastest that works on this GPU".to_owned();
                    (Some(runner), (ExecutionMode::GraphFused, Some(why)))
                }
                (Ok(runner), false, without) => {
                    let why = match without {
                        Some(reason) => format!("without fused kernels, since {reason}"),
                        None => "fused kernels compute in bf16 on a GPU".to_owned(),
                    };
                    (Some(runner), (ExecutionMode::Graph, Some(why)))
                }
                (Err(error), ..) => (None, (ExecutionMode::Eager, Some(error.to_string()))),
            },
        };
        (self.runner, self.mode) = (runner, mode);
        self.choose_stream()?;
        tracing::info!("the network runs in {}", self.mode_text());
        // Weights were uploaded on another stream than the one that is used from now on, or the other way round.
        synchronize(self.device);
        Ok(())
    }

    /// Chooses what ticks that are not eager use between joined products of the backbone: query, key and value as one, gate
    /// and up as one. None is the plain path, bit by bit that of `eager`. What was captured before is let go.
    ///
    /// # Errors
    /// The operators belong to another device, or nothing can be captured any more.
    pub fn set_operators(&mut self, operators: Option<Box<dyn BackboneOperators>>) -> Result<(), ModelError> {
        if let Some(runner) = &mut self.runner {
            runner.forget();
        }
        self.operators = operators;
        self.choose_stream()
    }

    /// Whether ticks that are not eager compute the prompt before its first image only when it changes, see
    /// [`TickRunner::set_prefix_reuse`]. What was captured before is let go.
    pub fn set_prefix_reuse(&mut self, reuse: bool) {
        self.prefix_reuse = reuse;
        if let Some(runner) = &mut self.runner {
            runner.set_prefix_reuse(reuse);
        }
    }

    /// Whether the action head of one captured tick may run beside the backbone of the next, see [`begin`](Self::begin). Each shape
    /// then takes twice the memory. What was captured before is let go. In mode `eager` it changes nothing.
    ///
    /// While pipelined, the head is not to be used [apart](Self::head): its work is on a stream of its own.
    ///
    /// # Errors
    /// Nothing can be captured any more.
    pub fn set_pipelined(&mut self, pipelined: bool) -> Result<(), ModelError> {
        self.pipelined = pipelined;
        if self.runner.is_some() {
            self.runner = Some(self.capturing(Split::default())?);
            self.choose_stream()?;
            // As when the mode is chosen.
            synchronize(self.device);
        }
        Ok(())
    }

    /// Whether [`set_pipelined`](Self::set_pipelined) is on.
    pub fn is_pipelined(&self) -> bool {
        self.pipelined && self.runner.is_some()
    }

    /// Tells everybody who queues work without libtorch on which stream it runs.
    fn choose_stream(&mut self) -> Result<(), ModelError> {
        let Some(stream) = self.stream()? else { return Ok(()) };
        let own = self.runner.as_ref().and_then(TickRunner::streams).map(|streams| streams.head);
        self.head.queue_on(&own.unwrap_or(stream))?;
        self.operators.as_mut().map_or(Ok(()), |operators| operators.queue_on(&stream))
    }

    /// The stream that the network's work is queued on, but for the head of pipelined ticks; None where nothing but the default stream was ever chosen.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn stream(&self) -> Result<Option<Stream>, ModelError> {
        match (self.runner.as_ref().and_then(TickRunner::streams), self.device) {
            (Some(streams), _) => Ok(Some(streams.backbone)),
            (None, Device::Cuda(device)) if cuda::available().is_ok() => Ok(Some(Stream::current(device)?)),
            (None, _) => Ok(None),
        }
    }

    fn capturing(&mut self, split: Split) -> Result<TickRunner, ModelError> {
        match self.device {
            Device::Cuda(device) => {
                let stream = self.stream.map_or_else(|| Stream::take(device), Ok)?;
                let mut streams = Streams::one(*self.stream.insert(stream));
                if self.pipelined {
                    // Its kernels are small and each waits for the one before: those of the vision tower, which fill the GPU, are not
                    // to come in between.
                    let head = self.head_stream.map_or_else(|| Stream::take_urgent(device), Ok)?;
                    streams.head = *self.head_stream.insert(head);
                }
                let mut runner = TickRunner::capturing(streams, split);
                runner.set_prefix_reuse(self.prefix_reuse);
                Ok(runner)
            }
            device => Err(ModelError::Device {
                requested: format!("{device:?}"),
                reason: "CUDA graphs need an NVIDIA GPU".to_owned(),
            }),
        }
    }

    /// The mode in force: one that can be executed, never `auto`.
    pub fn mode(&self) -> ExecutionMode {
        self.mode.0
    }

    fn mode_text(&self) -> String {
        match &self.mode {
            (mode, Some(why)) => format!("mode {mode} (auto: {why})"),
            (mode, None) => format!("mode {mode}"),
        }
    }

    /// Where ticks run that were captured; None in mode `eager`.
    pub fn runner(&self) -> Option<&TickRunner> {
        self.runner.as_ref()
    }

    /// Makes the network's stream the current one, until the returned value is dropped: for whoever uses backbone or head
    /// apart from [`run`](Self::run), since in captured modes neither is on the default stream.
    ///
    /// # Errors
    /// CUDA refuses.
    pub fn enter(&self) -> Result<Option<EnteredStream>, ModelError> {
        Ok(self.runner.as_ref().map(TickRunner::enter).transpose()?.flatten())
    }

    /// Backbone and action head at once.
    pub fn parts(&mut self) -> Parts<'_> {
        Parts {
            backbone: &mut self.backbone,
            head: &mut self.head,
            operators: self.operators.as_deref().map(|operators| operators as &dyn BackboneOperators),
        }
    }

    /// The backbone.
    pub fn backbone(&mut self) -> &mut Backbone {
        &mut self.backbone
    }

    /// The action head.
    pub fn head(&mut self) -> &mut ActionHead {
        &mut self.head
    }

    /// Where the network runs.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The type it computes in.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where and how the network runs, e.g. `Cpu Float, mode eager, DiT: libtorch Float on Cpu`.
    pub fn identity(&self) -> String {
        let engine = self.head.engine().identity();
        format!("{:?} {:?}, {}, DiT: {engine}", self.device, self.kind, self.mode_text())
    }

    /// What runs the backbone and what runs the DiT, for people.
    pub fn identities(&self) -> (String, String) {
        let graphs = match self.mode.0 {
            ExecutionMode::Eager => "",
            _ => " as CUDA graphs",
        };
        let operators = self.operators.as_ref().filter(|_| self.runner.is_some());
        let operators = operators.map_or_else(String::new, |own| format!(" with {}", own.identity()));
        let backbone = format!("libtorch {:?} on {:?}{operators}{graphs}", self.kind, self.device);
        let captured = if self.head.engine().capturable() { graphs } else { "" };
        (backbone, format!("{}{captured}", self.head.engine().identity()))
    }

    /// Denoising steps in force.
    pub fn denoising_steps(&self) -> usize {
        self.head.steps()
    }

    /// Denoising steps that the checkpoint asks for.
    pub fn default_denoising_steps(&self) -> usize {
        self.default_steps
    }

    /// Changes the number of denoising steps.
    ///
    /// # Errors
    /// More steps than the model has timesteps, or none.
    pub fn set_denoising_steps(&mut self, steps: usize) -> Result<(), ModelError> {
        self.head.set_steps(steps)?;
        if self.runner.is_some() {
            // What the steps' constants were computed on is not the stream that reads them.
            synchronize(self.device);
        }
        Ok(())
    }

    /// Rows and columns of the noise: (action horizon, max action dim).
    pub fn noise_shape(&self) -> (usize, usize) {
        self.head.noise_shape()
    }

    /// Inputs of B samples and noise (B, horizon, action dim) → normalised actions of the same shape, pulled to `guidance`,
    /// which holds for all samples alike.
    ///
    /// # Errors
    /// What does not fit, or [`ModelError::NonFinite`]: a chunk with NaN or infinity is never handed out.
    pub fn run(
        &mut self,
        inputs: &ModelInputs,
        noise: ArrayView3<f32>,
        guidance: Option<&Guidance>,
        probe: &mut Probe,
    ) -> Result<(Array3<f32>, StageTimes), ModelError> {
        self.run_with_images(inputs, None, noise, guidance, probe)
    }

    /// [`run`](Self::run), with `images` on the device, u8 (images, height, width, 3), in place of those of `inputs`. What makes
    /// them is queued on [`stream`](Self::stream).
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_with_images(
        &mut self,
        inputs: &ModelInputs,
        images: Option<&Tensor>,
        noise: ArrayView3<f32>,
        guidance: Option<&Guidance>,
        probe: &mut Probe,
    ) -> Result<(Array3<f32>, StageTimes), ModelError> {
        if self.runner.is_some() && !probe.is_on() {
            let inputs = TickInputs { model: inputs, noise, guidance, images };
            return self.captured(&inputs, |runner, inputs, parts| runner.run(inputs, parts));
        }
        self.run_eagerly(&TickInputs { model: inputs, noise, guidance, images }, probe)
    }

    /// Begins a run, as [`run_with_images`](Self::run_with_images) does, and comes back while the device works. While
    /// [pipelined](Self::set_pipelined) the next one may be begun before this one is finished: its backbone then works beside this
    /// one's action head. `images` may be written to again, on [`stream`](Self::stream), as soon as this comes back.
    ///
    /// In mode `eager`, and where a shape is not captured yet, the run is over when this comes back.
    ///
    /// # Errors
    /// As [`run`](Self::run), or two runs are under way; then none was begun.
    pub fn begin(&mut self, inputs: &TickInputs) -> Result<(), ModelError> {
        if self.runner.is_some() {
            return self.captured(inputs, |runner, inputs, parts| runner.begin(inputs, parts));
        }
        if self.begun.len() >= UNDER_WAY {
            return Err(ModelError::Input {
                what: "run",
                expected: "the oldest one to be finished before another one begins".to_owned(),
                found: format!("{} under way", self.begun.len()),
            });
        }
        let answer = self.run_eagerly(inputs, &mut Probe::off())?;
        self.begun.push_back(answer);
        Ok(())
    }

    /// What the run that was begun first of those under way came to; waits for that one alone.
    ///
    /// # Errors
    /// As [`run`](Self::run), or none is under way.
    pub fn finish(&mut self) -> Result<(Array3<f32>, StageTimes), ModelError> {
        let _entered = self.enter()?;
        match &mut self.runner {
            Some(runner) => runner.finish(),
            None => self.begun.pop_front().ok_or_else(|| ModelError::Input {
                what: "run",
                expected: "one to be begun before it is finished".to_owned(),
                found: "none".to_owned(),
            }),
        }
    }

    /// Something with the runner, which there is.
    fn captured<T>(
        &mut self,
        inputs: &TickInputs,
        work: impl FnOnce(&mut TickRunner, &TickInputs, &mut Parts) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        if let Some(guidance) = inputs.guidance {
            Pull::check(guidance, self.head.noise_shape())?;
        }
        // All of the network's work is on one stream, but for a head that has its own.
        let _entered = self.enter()?;
        let Some(runner) = &mut self.runner else {
            let (expected, found) = ("a captured mode".to_owned(), "eager".to_owned());
            return Err(ModelError::Input { what: "execution mode", expected, found });
        };
        let operators = self.operators.as_deref().map(|operators| operators as &dyn BackboneOperators);
        let parts = &mut Parts { backbone: &mut self.backbone, head: &mut self.head, operators };
        work(runner, inputs, parts)
    }

    /// Operation by operation.
    fn run_eagerly(
        &mut self,
        inputs: &TickInputs,
        probe: &mut Probe,
    ) -> Result<(Array3<f32>, StageTimes), ModelError> {
        let TickInputs { model: inputs, noise, guidance, images } = *inputs;
        let _entered = self.enter()?;
        let start = Instant::now();
        let backbone = &mut self.backbone;
        let (ids, mask) = (inputs.input_ids.view(), inputs.attention_mask.view());
        let features = match images {
            Some(images) => backbone.forward_frames(images, ids, mask, probe)?,
            None => backbone.forward(inputs.images.view(), ids, mask, probe)?,
        };
        let vision = features.vision_done - start;
        let language = features.vision_done.elapsed();
        let head_start = Instant::now();
        // A head with a stream of its own begins when the backbone is done.
        let own = self.runner.as_ref().and_then(TickRunner::streams).filter(|streams| streams.apart());
        let _own = match own {
            Some(streams) => {
                streams.backbone.wait()?;
                Some(streams.head.enter()?)
            }
            None => None,
        };
        let state = to_tensor(inputs.state.view())?;
        let tokens = self.head.condition(&features.features, features.layout, &state, probe)?;
        let actions = self.head.denoise_guided(&tokens, &to_tensor(noise)?, guidance, probe)?;
        let actions = to_array(&actions)?;
        refuse_non_finite(&actions, &features.features)?;
        Ok((actions, StageTimes { vision, language, action_head: head_start.elapsed() }))
    }
}

#[cfg(feature = "tensorrt")]
fn engine_head(
    at: &Loader,
    checkpoint: &Arc<Checkpoint>,
    embodiment: usize,
    choice: &EngineChoice,
) -> Result<ActionHead, ModelError> {
    super::tensorrt::load(at, checkpoint, embodiment, choice)
}

#[cfg(not(feature = "tensorrt"))]
fn engine_head(
    _at: &Loader,
    _checkpoint: &Arc<Checkpoint>,
    _embodiment: usize,
    choice: &EngineChoice,
) -> Result<ActionHead, ModelError> {
    Err(ModelError::Input {
        what: "TensorRT engine",
        expected: "a program built with the feature `tensorrt`".to_owned(),
        found: format!("one without, asked for a {} engine in {}", choice.precision, choice.folder.display()),
    })
}

/// Refuses a chunk with NaN or infinity and says whether the backbone's features have them already.
pub(super) fn refuse_non_finite(actions: &Array3<f32>, features: &Tensor) -> Result<(), ModelError> {
    let bad = actions.iter().filter(|v| !v.is_finite()).count() as i64;
    if bad == 0 {
        return Ok(());
    }
    let broken = features.f_isfinite()?.f_logical_not()?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    let (stage, count) = if broken > 0 { ("backbone", broken) } else { ("action head", bad) };
    Err(ModelError::NonFinite { stage, count })
}

/// A tensor of the values, f32 on the CPU.
pub(crate) fn to_tensor(values: ArrayView3<f32>) -> Result<Tensor, ModelError> {
    let (a, b, c) = values.dim();
    let flat: Vec<f32> = values.iter().copied().collect();
    Ok(Tensor::f_from_slice(&flat)?.f_reshape([a as i64, b as i64, c as i64])?)
}

/// The values of a tensor of three axes as f32.
pub(crate) fn to_array(tensor: &Tensor) -> Result<Array3<f32>, ModelError> {
    let size = tensor.size();
    let flat = super::device::to_host(tensor)?;
    let shape = (size[0] as usize, size[1] as usize, size[2] as usize);
    Array3::from_shape_vec(shape, flat).map_err(|error| ModelError::Input {
        what: "action chunk",
        expected: format!("{shape:?}"),
        found: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use ndarray::Array4;

    use super::{
        super::{device, random::RandomWeights, small},
        *,
    };

    #[test]
    fn random_weights_make_a_network_whose_actions_depend_on_every_input() {
        let mut network = small::network(Kind::Float);
        let mut run = |inputs: &ModelInputs, noise: &Array3<f32>| {
            network.run(inputs, noise.view(), None, &mut Probe::off()).unwrap().0
        };
        let (inputs, noise) = small::inputs(1, 2, &[6]);
        let actions = run(&inputs, &noise);
        assert_eq!(actions, run(&inputs, &noise));
        let mut other = inputs.clone();
        other.images[(1, 3, 3, 0)] ^= 0x80;
        assert_ne!(actions, run(&other, &noise));
        let mut other = inputs.clone();
        other.input_ids[(0, 0)] += 1;
        assert_ne!(actions, run(&other, &noise));
        let mut other = inputs.clone();
        other.state[(0, 0, 3)] += 1.0;
        assert_ne!(actions, run(&other, &noise));
        assert_ne!(actions, run(&inputs, &(&noise + 1.0)));
    }

    #[test]
    fn runs_that_are_begun_before_the_one_before_is_finished_give_what_they_give_in_sequence() {
        let mut network = small::network(Kind::Float);
        assert_eq!(begin_and_finish(&mut network), in_sequence(&mut network));
        assert!(network.finish().unwrap_err().to_string().contains("none"));
        // The same on a GPU, in memory that takes turns: captured, replayed, and with an instruction of another length between.
        let Ok(device) = device::select("cuda") else {
            return eprintln!("skipped on the GPU: there is none");
        };
        let (model, eagle) = small::configs();
        let weights = RandomWeights::new(&model, &eagle, 5);
        let mut network =
            Network::load_for(ExecutionMode::Graph, &weights, &model, &eagle, 1, device, Kind::Float)
                .unwrap();
        in_sequence(&mut network);
        let expected = in_sequence(&mut network);
        assert_eq!(begin_and_finish(&mut network), expected);
        network.set_pipelined(true).unwrap();
        assert!(network.is_pipelined());
        // Captured at the second tick of each shape.
        begin_and_finish(&mut network);
        for _ in 0..4 {
            assert_eq!(begin_and_finish(&mut network), expected);
        }
        assert_eq!(in_sequence(&mut network), expected);
        network.set_pipelined(false).unwrap();
        in_sequence(&mut network);
        assert_eq!(in_sequence(&mut network), expected);
    }

    /// Inputs of two shapes.
    fn several() -> Vec<(ModelInputs, Array3<f32>)> {
        [(1, 6), (2, 6), (3, 6), (4, 9), (5, 9), (6, 6)]
            .map(|(seed, text)| small::inputs(seed, 1, &[text]))
            .into()
    }

    fn in_sequence(network: &mut Network) -> Vec<Array3<f32>> {
        let run = |(inputs, noise): &(ModelInputs, Array3<f32>)| {
            network.run(inputs, noise.view(), None, &mut Probe::off()).unwrap().0
        };
        several().iter().map(run).collect()
    }

    fn begin_and_finish(network: &mut Network) -> Vec<Array3<f32>> {
        let mut found = Vec::new();
        for (place, (model, noise)) in several().iter().enumerate() {
            network.begin(&TickInputs { model, noise: noise.view(), guidance: None, images: None }).unwrap();
            if place > 0 {
                found.push(network.finish().unwrap().0);
            }
        }
        found.push(network.finish().unwrap().0);
        found
    }

    #[test]
    fn images_on_the_device_take_the_place_of_the_inputs_own() {
        let mut network = small::network(Kind::Float);
        let (inputs, noise) = small::inputs(1, 2, &[6]);
        let expected = network.run(&inputs, noise.view(), None, &mut Probe::off()).unwrap().0;
        let (count, height, width, _) = inputs.images.dim();
        let bytes: Vec<u8> = inputs.images.iter().copied().collect();
        let size = [count, height, width, 3].map(|n| n as i64);
        let images = Tensor::from_slice(&bytes).reshape(size);
        let without = ModelInputs { images: Array4::zeros((count, height, width, 0)), ..inputs };
        let found = network
            .run_with_images(&without, Some(&images), noise.view(), None, &mut Probe::off())
            .unwrap()
            .0;
        assert_eq!(found, expected);
        // On memory that stays, twice, with other images between.
        let mut runner = TickRunner::plain();
        for (images, same) in [(&images, true), (&images.bitwise_not(), false), (&images, true)] {
            let tick =
                TickInputs { model: &without, noise: noise.view(), guidance: None, images: Some(images) };
            let found = runner.run(&tick, &mut network.parts()).unwrap().0;
            assert_eq!(found == expected, same);
        }
        assert!(network.run(&without, noise.view(), None, &mut Probe::off()).is_err());
    }
}
