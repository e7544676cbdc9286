//! Inputs of a tick at fixed addresses, the three stages over them, and the result.

use ndarray::{Array2, Array3};
use tch::{Device, Kind, Tensor, kind::Element};

use super::{
    super::{
        ModelError,
        action_head::Pull,
        cuda::{Pinned, Stream},
        language::SequenceContext,
        network::to_array,
        operators::{BackboneOperators, PlainOperators},
        probe::Probe,
        tokens::TokenLayout,
        velocity::Retained,
    },
    Parts, Stage, TickInputs,
    prefix::Prefix,
};
use crate::processor::ModelInputs;

/// A prompt on the device: its layout and what the language model makes of that.
pub struct Prompt {
    /// Which of its tokens are image, text and padding.
    pub layout: TokenLayout,
    /// Tables and masks of the language model.
    pub context: SequenceContext,
}

impl Prompt {
    /// The prompt of these inputs.
    ///
    /// # Errors
    /// A prompt without text or without images.
    pub fn new(parts: &Parts, inputs: &ModelInputs) -> Result<Self, ModelError> {
        let layout = parts.backbone.layout(inputs.input_ids.view(), inputs.attention_mask.view())?;
        let context = parts.backbone.language().context(&layout)?;
        Ok(Self { layout, context })
    }

    /// Whether this is the prompt of these inputs.
    pub fn matches(&self, inputs: &ModelInputs) -> bool {
        self.layout.matches(inputs.input_ids.view(), inputs.attention_mask.view())
    }

    /// Takes over another prompt of the same shape; no tensor moves.
    fn refill(&mut self, other: &Self) -> Result<(), ModelError> {
        self.layout.refill(&other.layout)?;
        self.context.refill(&other.context)
    }

    fn deep_copy(&self) -> Result<Self, ModelError> {
        Ok(Self { layout: self.layout.deep_copy()?, context: self.context.deep_copy()? })
    }
}

/// Everything that decides the shape of any tensor of a tick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TickShape {
    frames: Vec<i64>,
    prompt: Vec<i64>,
    state: Vec<i64>,
    noise: Vec<i64>,
    /// Tokens before the first image whose computation is kept; 0: none is.
    prefix: usize,
    guided: bool,
    steps: usize,
}

impl TickShape {
    /// The shape of a tick with this prompt and number of denoising steps, which computes the prompt before its first image
    /// anew or, with `reuse_prefix`, only when it changes.
    pub fn new(inputs: &TickInputs, prompt: &Prompt, steps: usize, reuse_prefix: bool) -> Self {
        let extents = |shape: &[usize]| shape.iter().map(|&n| n as i64).collect();
        Self {
            frames: inputs.images.map_or_else(|| extents(inputs.model.images.shape()), Tensor::size),
            prompt: prompt.layout.shape(),
            state: extents(inputs.model.state.shape()),
            noise: extents(inputs.noise.shape()),
            prefix: if reuse_prefix { prompt.layout.prefix() } else { 0 },
            guided: inputs.guidance.is_some(),
            steps,
        }
    }
}

/// An input whose address stays.
struct Input {
    tensor: Tensor,
    /// Where its values wait for the copy to a GPU.
    staging: Option<Pinned>,
}

impl Input {
    fn new(shape: &[i64], kind: Kind, device: Device) -> Result<Self, ModelError> {
        let tensor = Tensor::f_zeros(shape, (kind, device))?;
        let bytes = tensor.numel() * kind.elt_size_in_bytes();
        let staging = if device.is_cuda() { Some(Pinned::new(bytes)?) } else { None };
        Ok(Self { tensor, staging })
    }

    fn fill<T: Element>(&mut self, values: &[T], stream: Option<&Stream>) -> Result<(), ModelError> {
        match (&mut self.staging, stream) {
            (Some(staging), Some(stream)) => staging.upload(values, &self.tensor, stream),
            _ => {
                let values = Tensor::f_from_slice(values)?.f_reshape(self.tensor.size())?;
                Ok(self.tensor.f_copy_(&values)?)
            }
        }
    }
}

/// The tick of one shape.
pub struct StaticTick {
    shape: TickShape,
    frames: Input,
    prompt: Prompt,
    /// What is kept of the prompt before its first image.
    prefix: Option<Prefix>,
    state: Input,
    noise: Input,
    /// Target and weights, (horizon, action dim).
    guidance: Option<(Input, Input)>,
    /// What each stage left for the next.
    images: Option<Tensor>,
    features: Option<Tensor>,
    actions: Option<Tensor>,
}

impl StaticTick {
    /// Memory for ticks of a shape; `prompt` is one of it.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(shape: TickShape, prompt: &Prompt, parts: &Parts) -> Result<Self, ModelError> {
        let device = prompt.layout.input_ids.device();
        let guidance = if shape.guided {
            let table = || Input::new(shape.noise.get(1..).unwrap_or(&[]), Kind::Float, device);
            Some((table()?, table()?))
        } else {
            None
        };
        Ok(Self {
            guidance,
            prefix: match shape.prefix {
                0 => None,
                _ => Prefix::new(parts.backbone.language(), &prompt.layout)?,
            },
            frames: Input::new(&shape.frames, Kind::Uint8, device)?,
            prompt: prompt.deep_copy()?,
            state: Input::new(&shape.state, Kind::Float, device)?,
            noise: Input::new(&shape.noise, Kind::Float, device)?,
            shape,
            images: None,
            features: None,
            actions: None,
        })
    }

    /// The shape.
    pub fn shape(&self) -> &TickShape {
        &self.shape
    }

    /// Puts a tick's inputs in place. `prompt` is theirs, and all are of this tick's shape.
    ///
    /// With a stream the copies are only queued: it must be waited for before the next call.
    ///
    /// # Errors
    /// Inputs of another shape, or CUDA refuses.
    pub fn fill(
        &mut self,
        inputs: &TickInputs,
        prompt: &Prompt,
        stream: Option<&Stream>,
    ) -> Result<(), ModelError> {
        // An array in standard layout is a slice, and that is just what is asked for.
        let model = inputs.model;
        match inputs.images {
            Some(images) => self.frames.tensor.f_copy_(images)?,
            None => self.frames.fill(model.images.as_standard_layout().as_slice().unwrap_or(&[]), stream)?,
        }
        self.state.fill(model.state.as_standard_layout().as_slice().unwrap_or(&[]), stream)?;
        self.noise.fill(inputs.noise.as_standard_layout().as_slice().unwrap_or(&[]), stream)?;
        if let (Some((target, weights)), Some(guidance)) = (&mut self.guidance, inputs.guidance) {
            let fill = |input: &mut Input, values: &Array2<f32>| {
                input.fill(values.as_standard_layout().as_slice().unwrap_or(&[]), stream)
            };
            fill(target, &guidance.target)?;
            fill(weights, &guidance.weights)?;
        }
        if !self.prompt.matches(model) {
            self.prompt.refill(prompt)?;
        }
        Ok(())
    }

    /// Whether the prompt before its first image is computed only when it changes.
    pub fn keeps_prefix(&self) -> bool {
        self.prefix.is_some()
    }

    /// Whether what is kept of the prompt is not that of the inputs in place: it must be computed before the stages run.
    pub fn prefix_is_due(&self) -> bool {
        self.prefix.as_ref().is_some_and(|prefix| !prefix.is_of(&self.prompt.layout))
    }

    /// Queues the computation of what is kept of the prompt; none where nothing is. It can be captured, as stages can.
    ///
    /// # Errors
    /// What does not fit.
    pub fn run_prefix(&mut self, parts: &Parts) -> Result<(), ModelError> {
        let Some(prefix) = &mut self.prefix else { return Ok(()) };
        let Prompt { layout, context } = &self.prompt;
        prefix.compute(parts.backbone.language(), layout, context, joined_operators(parts))
    }

    /// Runs `queue`, which queues the computation of what is kept of the prompt in place, if it is due.
    ///
    /// # Errors
    /// Those of `queue`; then it stays due.
    pub fn refresh_prefix(
        &mut self,
        queue: impl FnOnce(&mut Self) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        if !self.prefix_is_due() {
            return Ok(());
        }
        // What is half overwritten is nobody's.
        if let Some(prefix) = &mut self.prefix {
            prefix.set_tokens(None);
        }
        queue(self)?;
        if let Some(prefix) = &mut self.prefix {
            prefix.set_tokens(Some(&self.prompt.layout));
        }
        Ok(())
    }

    /// Queues a stage. Nothing in here waits for the device or reads the host's memory, so that it can be captured.
    ///
    /// # Errors
    /// What does not fit, or a stage whose predecessor has not run.
    pub fn run(&mut self, stage: Stage, parts: &mut Parts) -> Result<(), ModelError> {
        let off = &mut Probe::off();
        match stage {
            Stage::Vision => {
                let vision = parts.backbone.vision();
                self.images = Some(match parts.operators {
                    Some(operators) => vision.forward_joined(&self.frames.tensor, operators)?,
                    None => vision.forward(&self.frames.tensor, off)?,
                });
            }
            Stage::Language => {
                let images = after(self.images.as_ref())?;
                let language = parts.backbone.language();
                let embeddings = language.embed(&self.prompt.layout, images)?;
                let context = &self.prompt.context;
                self.features = Some(match (&self.prefix, parts.operators) {
                    (Some(prefix), _) => {
                        prefix.complete(language, &embeddings, context, joined_operators(parts))?
                    }
                    (None, Some(operators)) => language.forward_joined(embeddings, context, operators)?,
                    (None, None) => language.forward(&embeddings, context, off)?,
                });
            }
            Stage::ActionHead => {
                let features = after(self.features.as_ref())?;
                let tokens = parts.head.condition(features, &self.prompt.layout, &self.state.tensor, off)?;
                let pull = self.guidance.as_ref().map(|(target, weights)| Pull {
                    target: target.tensor.shallow_clone(),
                    weights: weights.tensor.shallow_clone(),
                });
                let actions = parts.head.denoise_pulled(&tokens, &self.noise.tensor, pull.as_ref(), off)?;
                self.actions = Some(actions.f_contiguous()?);
            }
        }
        Ok(())
    }

    /// Lets go of what the stages made.
    pub fn forget(&mut self) {
        (self.images, self.features, self.actions) = (None, None, None);
    }

    /// The last stage's actions (B, horizon, action dim), f32 on the device.
    ///
    /// # Errors
    /// The stages have not run.
    pub fn actions(&self) -> Result<&Tensor, ModelError> {
        after(self.actions.as_ref())
    }

    /// The backbone's features (B, S, D), on the device.
    ///
    /// # Errors
    /// The stages have not run.
    pub fn features(&self) -> Result<&Tensor, ModelError> {
        after(self.features.as_ref())
    }

    /// Waits for the actions and reads them.
    ///
    /// # Errors
    /// The stages have not run, or failed on the device.
    pub fn read(&self) -> Result<Array3<f32>, ModelError> {
        to_array(self.actions()?)
    }

    /// What the stages, which ran last for this tick, worked on and nobody else is bound to keep.
    ///
    /// # Errors
    /// There is no memory.
    pub fn retained(&self, parts: &mut Parts) -> Result<Vec<Retained>, ModelError> {
        let mut retained = parts.head.engine().retained();
        if let [_, height, width, _] = self.shape.frames.as_slice() {
            retained.push(Box::new(parts.backbone.vision().positions_of(*height, *width)?));
        }
        Ok(retained)
    }
}

/// Operators for the language model where a part of the prompt is kept, which is done with joined products in any case.
fn joined_operators<'a>(parts: &Parts<'a>) -> &'a dyn BackboneOperators {
    parts.operators.unwrap_or(&PlainOperators)
}

/// What a stage left.
fn after(left: Option<&Tensor>) -> Result<&Tensor, ModelError> {
    left.ok_or_else(|| ModelError::Input {
        what: "stage of a tick",
        expected: "the stages before it to have run".to_owned(),
        found: "nothing of theirs".to_owned(),
    })
}
