//! Buffers for ticks of one size, and the kernels of a denoising step queued on them.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::super::{ModelError, dit::BlockContext, tokens::TokenLayout};
use super::weights::{CrossGroup, HeadWeights, Linear, StepTerms};
use crate::cuda::{
    Activation, Ahead, AttentionArguments, EulerArguments, Gemm, GemmCall, GemmShape, Gemms, Kernel, Kernels,
    NormArguments, Queue, Recording, StartArguments,
};

/// Epsilon of the blocks' norms.
const BLOCK_EPS: f32 = 1e-5;
/// Epsilon of the norm before the output.
const OUTPUT_EPS: f32 = 1e-6;

/// Sizes that the model fixes.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub width: usize,
    pub heads: usize,
    pub horizon: usize,
    pub action_dim: usize,
}

impl Sizes {
    fn head_width(&self) -> usize {
        self.width / self.heads
    }
}

/// Sizes that may differ from tick to tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TickShape {
    pub samples: usize,
    /// State tokens of a sample.
    pub states: usize,
    /// Text and image tokens of a sample that are gathered.
    pub text: usize,
    pub image: usize,
    /// Whether prompts of a batch have different lengths.
    pub masked: bool,
}

/// What all ticks share.
pub struct Machine {
    pub kernels: Kernels,
    pub attention: Kernel,
    pub gemms: Gemms,
    pub weights: HeadWeights,
    pub terms: Option<StepTerms>,
    pub sizes: Sizes,
}

/// The products of a step, tuned.
#[derive(Clone)]
struct Products {
    embed: Arc<Gemm>,
    token: Arc<Gemm>,
    /// By the block's number of outputs: queries alone, or with keys and values.
    queries: Arc<Gemm>,
    joint: Option<Arc<Gemm>>,
    out: Arc<Gemm>,
    ff_in: Arc<Gemm>,
    ff_out: Arc<Gemm>,
    decode: Arc<Gemm>,
    velocity: Arc<Gemm>,
}

impl Products {
    fn all(&self) -> impl Iterator<Item = &Arc<Gemm>> {
        let Self { embed, token, queries, joint, out, ff_in, ff_out, decode, velocity } = self;
        [ff_out, ff_in, queries, out, token, embed, decode, velocity].into_iter().chain(joint)
    }

    /// Those that every block needs: the rest of a step is little.
    fn of_blocks(&self) -> impl Iterator<Item = &Arc<Gemm>> {
        [&self.ff_out, &self.ff_in, &self.out, &self.queries].into_iter().chain(&self.joint)
    }

    fn of_blocks_mut(&mut self) -> impl Iterator<Item = &mut Arc<Gemm>> {
        [&mut self.ff_out, &mut self.ff_in, &mut self.out, &mut self.queries]
            .into_iter()
            .chain(&mut self.joint)
    }
}

/// What was chosen by timing whole runs, which other ticks of as many rows take over.
pub struct Choices {
    products: Products,
    ahead: usize,
}

/// Keys and values of a group of blocks.
struct Cross {
    /// bf16 (samples, tokens, blocks · 2 · width).
    all: Tensor,
    /// i32 (samples), where prompts differ in length.
    lengths: Option<Tensor>,
    tokens: usize,
}

/// Ticks of one size: memory at fixed addresses, and what was recorded on it.
pub struct Tick {
    pub shape: TickShape,
    products: Products,
    text: Option<Cross>,
    image: Option<Cross>,
    /// bf16 (samples · states, width).
    states: Tensor,
    /// f32 (samples, horizon, action dim).
    noise: Tensor,
    actions: Tensor,
    velocity: Tensor,
    /// bf16 (samples · horizon, padded action dim).
    rounded: Tensor,
    /// bf16 (samples · horizon, width).
    embedded: Tensor,
    /// f32 (samples · tokens, width).
    residual: Tensor,
    /// bf16 (samples · tokens, width).
    normed: Tensor,
    /// bf16 (samples · tokens, width or 3 · width): queries, for self-attention then keys and values.
    projected: Tensor,
    /// bf16 (samples · tokens, width).
    attended: Tensor,
    /// bf16 (samples · tokens, feed-forward width).
    hidden: Tensor,
    /// bf16 (samples · horizon, decoder width).
    decoded: Tensor,
    /// f32, parts of the product that is being made.
    parts: Tensor,
    /// Bytes of weights that kernels ask into the L2 cache ahead of the product that reads them, at most.
    pub ahead: usize,
    /// All steps; then each step alone.
    pub recordings: Vec<Option<Recording>>,
}

fn address(tensor: &Tensor) -> u64 {
    tensor.data_ptr() as u64
}

/// Of element `index` of an f32 tensor.
fn f32_at(tensor: &Tensor, index: usize) -> u64 {
    address(tensor) + 4 * index as u64
}

/// What a run starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// All steps, from the noise.
    All,
    /// One step, for its velocity.
    Step(usize),
}

impl Run {
    /// Place in [`Tick::recordings`].
    pub fn place(self) -> usize {
        match self {
            Self::All => 0,
            Self::Step(step) => step + 1,
        }
    }
}

/// Kinds of kernels of a denoising step, to tell which takes how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Integrate,
    Embed,
    Token,
    Start,
    Queries,
    Joint,
    CrossAttention,
    SelfAttention,
    Out,
    MiddleNorm,
    FeedIn,
    FeedOut,
    BlockNorm,
    Decode,
    Velocity,
}

impl Stage {
    /// In their order.
    pub const ALL: [Self; 15] = [
        Self::Integrate,
        Self::Embed,
        Self::Token,
        Self::Start,
        Self::Queries,
        Self::Joint,
        Self::CrossAttention,
        Self::SelfAttention,
        Self::Out,
        Self::MiddleNorm,
        Self::FeedIn,
        Self::FeedOut,
        Self::BlockNorm,
        Self::Decode,
        Self::Velocity,
    ];
}

/// Which stages are queued.
#[derive(Debug, Clone, Copy)]
pub struct Stages(u32);

impl Stages {
    /// A step as it is.
    pub const ALL: Self = Self(u32::MAX);

    /// One alone: its results mean nothing.
    pub fn only(stage: Stage) -> Self {
        Self(1 << stage as u32)
    }

    /// All but one: as above.
    pub fn without(stage: Stage) -> Self {
        Self(!(1 << stage as u32))
    }

    fn has(self, stage: Stage) -> bool {
        self.0 & 1 << stage as u32 != 0
    }
}

impl Tick {
    /// Tunes the products for this size, where that is not done yet, and allocates. What was chosen for a tick of as many
    /// rows is `known`.
    pub fn new(
        machine: &mut Machine,
        shape: TickShape,
        known: Option<Choices>,
        device: Device,
    ) -> Result<Self, ModelError> {
        let Machine { gemms, kernels, weights, sizes, .. } = machine;
        let rows = shape.samples * (shape.states + sizes.horizon);
        let actions = shape.samples * sizes.horizon;
        let mut tuned = |rows: usize, linear: &Linear, finish| {
            gemms.tuned(kernels, GemmShape { rows, n: linear.outputs(), k: linear.inputs(), finish })
        };
        let of = |own: bool| weights.blocks.iter().find(|block| (block.reads == BlockContext::Own) == own);
        let (Some(cross), joint) = (of(false), of(true)) else {
            return Err(ModelError::Input {
                what: "diffusion transformer",
                expected: "at least one block".to_owned(),
                found: "none".to_owned(),
            });
        };
        let tuned = Products {
            embed: tuned(actions, &weights.embed, Some(Activation::Silu))?,
            token: tuned(actions, &weights.token, None)?,
            queries: tuned(rows, &cross.input, Some(Activation::None))?,
            joint: joint.map(|block| tuned(rows, &block.input, Some(Activation::None))).transpose()?,
            out: tuned(rows, &cross.out, None)?,
            ff_in: tuned(rows, &cross.ff_in, Some(Activation::GeluTanh))?,
            ff_out: tuned(rows, &cross.ff_out, None)?,
            decode: tuned(actions, &weights.decode, Some(Activation::Relu))?,
            velocity: tuned(actions, &weights.velocity, None)?,
        };
        // Room for any way: which is best is found out later.
        let room = |gemm: &Gemm| gemm.plan.parts() * gemm.shape.rows * gemm.shape.n;
        let ways = tuned.all().flat_map(|gemm| gemms.ways(gemm.shape));
        let parts = ways.map(|gemm| room(gemm)).max();
        let Choices { products, ahead } = known.unwrap_or(Choices { products: tuned, ahead: 0 });
        let bf16 = |shape: [usize; 2]| Tensor::f_zeros(shape.map(|n| n as i64), (Kind::BFloat16, device));
        let f32 = |shape: [usize; 3]| Tensor::f_zeros(shape.map(|n| n as i64), (Kind::Float, device));
        let cross_memory = |group: &Option<CrossGroup>, tokens: usize| -> Result<Option<Cross>, ModelError> {
            let Some(group) = group else { return Ok(None) };
            let size = [shape.samples as i64, tokens as i64, group.weight.size()[0]];
            let lengths = if shape.masked {
                Some(Tensor::f_zeros([shape.samples as i64], (Kind::Int, device))?)
            } else {
                None
            };
            Ok(Some(Cross { all: Tensor::f_zeros(size, (Kind::BFloat16, device))?, lengths, tokens }))
        };
        let projected = products.joint.as_ref().unwrap_or(&products.queries).shape.n;
        let chunk = [shape.samples, sizes.horizon, sizes.action_dim];
        Ok(Self {
            text: cross_memory(&weights.text, shape.text)?,
            image: cross_memory(&weights.image, shape.image)?,
            states: bf16([shape.samples * shape.states, sizes.width])?,
            noise: f32(chunk)?,
            actions: f32(chunk)?,
            velocity: f32(chunk)?,
            rounded: bf16([actions, weights.embed.inputs()])?,
            embedded: bf16([actions, sizes.width])?,
            residual: f32([1, rows, sizes.width])?,
            normed: bf16([rows, sizes.width])?,
            projected: bf16([rows, projected])?,
            attended: bf16([rows, sizes.width])?,
            hidden: bf16([rows, cross.ff_in.outputs()])?,
            decoded: bf16([actions, weights.decode.outputs()])?,
            parts: f32([1, 1, parts.unwrap_or(0)])?,
            ahead,
            products,
            shape,
            recordings: Vec::new(),
        })
    }

    /// What was chosen.
    pub fn choices(&self) -> Choices {
        Choices { products: self.products.clone(), ahead: self.ahead }
    }

    /// The blocks' products, by place: those that take longest first.
    pub fn products(&self) -> impl Iterator<Item = &Arc<Gemm>> {
        self.products.of_blocks()
    }

    /// Has the product at this place computed in another of its ways.
    pub fn choose(&mut self, place: usize, way: &Arc<Gemm>) {
        if let Some(product) = self.products.of_blocks_mut().nth(place) {
            *product = Arc::clone(way);
        }
        self.recordings.clear();
    }

    /// All that the kernels work on.
    pub fn memory(&self) -> impl Iterator<Item = &Tensor> {
        let cross = self.text.iter().chain(&self.image);
        let cross = cross.flat_map(|cross| std::iter::once(&cross.all).chain(&cross.lengths));
        let own = [
            &self.states,
            &self.noise,
            &self.actions,
            &self.velocity,
            &self.rounded,
            &self.embedded,
            &self.residual,
            &self.normed,
            &self.projected,
            &self.attended,
            &self.hidden,
            &self.decoded,
            &self.parts,
        ];
        cross.chain(own)
    }

    /// Projects a tick's context into keys and values.
    pub fn condition(
        &mut self,
        weights: &HeadWeights,
        context: &Tensor,
        layout: &TokenLayout,
    ) -> Result<(), ModelError> {
        let groups =
            [(&weights.text, &mut self.text, &layout.text), (&weights.image, &mut self.image, &layout.image)];
        for (group, cross, tokens) in groups {
            let (Some(group), Some(cross)) = (group, cross) else { continue };
            let gathered = tokens.gather(context)?.f_to_kind(Kind::BFloat16)?;
            cross.all.f_copy_(&gathered.f_linear(&group.weight, Some(&group.bias))?)?;
            if let (Some(lengths), Some(mask)) = (&mut cross.lengths, &tokens.mask) {
                let counts = mask.f_sum_dim_intlist([1, 2, 3].as_slice(), false, Kind::Int)?;
                lengths.f_copy_(&counts)?;
            } else if let Some(lengths) = &mut cross.lengths {
                let _ = lengths.f_fill_(cross.tokens as i64)?;
            }
        }
        Ok(())
    }

    /// Takes a run's inputs.
    pub fn fill(&mut self, states: &Tensor, actions: &Tensor) -> Result<(), ModelError> {
        self.states.f_copy_(&states.f_reshape(self.states.size())?)?;
        Ok(self.noise.f_copy_(actions)?)
    }

    /// f32 (samples, horizon, action dim), a copy.
    pub fn result(&self, run: Run) -> Result<Tensor, ModelError> {
        let from = if run == Run::All { &self.actions } else { &self.velocity };
        let mut result = from.f_empty_like()?;
        result.f_copy_(from)?;
        Ok(result)
    }

    /// Launches of a stage in a run of all steps.
    pub fn launches(&self, machine: &Machine, stage: Stage) -> usize {
        let steps = machine.terms.as_ref().map_or(0, |terms| terms.modulation.size()[0] as usize);
        let blocks = &machine.weights.blocks;
        let own = blocks.iter().filter(|block| block.reads == BlockContext::Own).count();
        steps
            * match stage {
                Stage::Integrate
                | Stage::Embed
                | Stage::Token
                | Stage::Start
                | Stage::Decode
                | Stage::Velocity => 1,
                Stage::Queries | Stage::CrossAttention => blocks.len() - own,
                Stage::Joint | Stage::SelfAttention => own,
                Stage::Out | Stage::MiddleNorm | Stage::FeedIn | Stage::FeedOut | Stage::BlockNorm => {
                    blocks.len()
                }
            }
    }

    /// Queues a run.
    pub fn queue(&self, machine: &Machine, queue: &Queue, run: Run) -> Result<(), ModelError> {
        self.queue_stages(machine, queue, run, Stages::ALL)
    }

    /// Queues some stages of a run.
    pub fn queue_stages(
        &self,
        machine: &Machine,
        queue: &Queue,
        run: Run,
        stages: Stages,
    ) -> Result<(), ModelError> {
        let steps = machine.terms.as_ref().map_or(0, |terms| terms.modulation.size()[0] as usize);
        self.integrate(machine, queue, None, steps)?;
        match run {
            Run::All => {
                for step in 0..steps {
                    self.step(machine, queue, step, stages)?;
                    if stages.has(Stage::Integrate) {
                        self.integrate(machine, queue, Some(false), steps)?;
                    }
                }
            }
            Run::Step(step) => {
                self.step(machine, queue, step, stages)?;
                self.integrate(machine, queue, Some(true), steps)?;
            }
        }
        Ok(())
    }

    /// The accumulator: None takes the noise; Some adds the velocity and, if true, keeps it.
    fn integrate(
        &self,
        machine: &Machine,
        queue: &Queue,
        velocity: Option<bool>,
        steps: usize,
    ) -> Result<(), ModelError> {
        let Machine { kernels, weights, sizes, .. } = machine;
        let rows = self.shape.samples * sizes.horizon;
        let columns = weights.velocity.outputs();
        let arguments = EulerArguments {
            noise: if velocity.is_none() { address(&self.noise) } else { 0 },
            actions: address(&self.actions),
            parts: if velocity.is_none() { 0 } else { address(&self.parts) },
            bias: address(&weights.velocity.bias),
            velocity: if velocity == Some(true) { address(&self.velocity) } else { 0 },
            rounded: address(&self.rounded),
            part_stride: (rows * columns) as i64,
            splits: self.products.velocity.plan.parts() as i32,
            rows: rows as i32,
            dim: sizes.action_dim as i32,
            columns: columns as i32,
            padded: weights.embed.inputs() as i32,
            factor: 1.0 / steps.max(1) as f32,
        };
        // SAFETY: tensors of this tick and of the weights, of the sizes that the arguments tell; both are
        // kept until the GPU is done (`FusedVelocity` waits before it drops them).
        Ok(unsafe { kernels.euler(queue, &arguments) }?)
    }

    /// The beginning of a layer's weight, behind `skipped` bytes, as far as is asked for ahead.
    fn ahead_of(&self, linear: &Linear, skipped: usize) -> Ahead {
        // Weights' rows are whole vectors of 16 bytes.
        let skipped = skipped / 16 * 16;
        let left = (2 * linear.weight.numel()).saturating_sub(skipped);
        match left.min(self.ahead) / 16 * 16 {
            0 => Ahead::default(),
            bytes => Ahead { from: address(&linear.weight) + skipped as u64, bytes: bytes as u64 },
        }
    }

    fn product(
        &self,
        machine: &Machine,
        queue: &Queue,
        gemm: &Gemm,
        linear: &Linear,
        (input, out): (&Tensor, &Tensor),
        ahead: Ahead,
    ) -> Result<(), ModelError> {
        let call = GemmCall {
            activations: address(input),
            weight: address(&linear.weight),
            bias: address(&linear.bias),
            bias_bf16: linear.bias_bf16.as_ref().map_or(0, address),
            out: address(out),
            parts: address(&self.parts),
            ahead,
        };
        // SAFETY: as above.
        Ok(unsafe { machine.gemms.multiply(&machine.kernels, queue, gemm, &call) }?)
    }

    /// Rounded actions to the parts of their velocities.
    fn step(&self, machine: &Machine, queue: &Queue, step: usize, stages: Stages) -> Result<(), ModelError> {
        let Machine { kernels, gemms, weights, terms, sizes, .. } = machine;
        let Some(terms) = terms.as_ref().filter(|terms| (step as i64) < terms.modulation.size()[0]) else {
            return Err(ModelError::Input {
                what: "denoising step",
                expected: "one whose timestep was set".to_owned(),
                found: step.to_string(),
            });
        };
        let TickShape { samples, states, .. } = self.shape;
        let products = &self.products;
        let (width, tokens) = (sizes.width, states + sizes.horizon);
        let rows = samples * tokens;
        let count = weights.blocks.len();
        let modulation = |block: usize| {
            let at = ((step * (count + 1) + block) * 2) * width;
            (f32_at(&terms.modulation, at), f32_at(&terms.modulation, at + width))
        };

        let call = GemmCall {
            activations: address(&self.rounded),
            weight: address(&weights.embed.weight),
            bias: f32_at(&terms.embedding, step * width),
            bias_bf16: 0,
            out: address(&self.embedded),
            parts: address(&self.parts),
            ahead: self.ahead_of(&weights.token, 0),
        };
        if stages.has(Stage::Embed) {
            // SAFETY: as in `integrate`.
            unsafe { gemms.multiply(kernels, queue, &products.embed, &call)? };
        }
        // Each product asks for what the next one reads. The next but one is left to what lies between, which reads little.
        let first =
            weights.blocks.first().map_or_else(Ahead::default, |block| self.ahead_of(&block.input, 0));
        if stages.has(Stage::Token) {
            self.product(
                machine,
                queue,
                &products.token,
                &weights.token,
                (&self.embedded, &self.parts),
                first,
            )?;
        }
        let (multiply, add) = modulation(0);
        let start = StartArguments {
            residual: address(&self.residual),
            states: address(&self.states),
            parts: address(&self.parts),
            bias: address(&weights.token.bias),
            positions: weights.positions.as_ref().map_or(0, address),
            multiply,
            add,
            out: address(&self.normed),
            part_stride: (samples * sizes.horizon * width) as i64,
            splits: products.token.plan.parts() as i32,
            width: width as i32,
            state_count: states as i32,
            horizon: sizes.horizon as i32,
            eps: BLOCK_EPS,
        };
        if stages.has(Stage::Start) {
            // SAFETY: as in `integrate`.
            unsafe { kernels.start_norm(queue, samples, &start)? };
        }

        for (index, block) in weights.blocks.iter().enumerate() {
            let own = block.reads == BlockContext::Own;
            let input = match &products.joint {
                Some(joint) if own => joint,
                _ => &products.queries,
            };
            if stages.has(if own { Stage::Joint } else { Stage::Queries }) {
                self.product(
                    machine,
                    queue,
                    input,
                    &block.input,
                    (&self.normed, &self.projected),
                    self.ahead_of(&block.out, 0),
                )?;
            }
            let columns = block.input.outputs();
            let queries = address(&self.projected);
            let mut attention = AttentionArguments {
                queries,
                keys: queries + 2 * width as u64,
                values: queries + 4 * width as u64,
                lengths: 0,
                out: address(&self.attended),
                ahead: self.ahead_of(&block.ff_in, 0),
                columns: columns as i32,
                key_stride: columns as i32,
                query_count: tokens as i32,
                key_count: tokens as i32,
                early: i32::from(!own),
                scale: (std::f64::consts::LOG2_E / (sizes.head_width() as f64).sqrt()) as f32,
            };
            if !own {
                let cross = if block.reads == BlockContext::Text { &self.text } else { &self.image };
                let cross = cross.as_ref().ok_or_else(|| ModelError::Input {
                    what: "diffusion transformer",
                    expected: "keys and values for its cross-attention".to_owned(),
                    found: "none".to_owned(),
                })?;
                attention.keys = address(&cross.all) + (block.place * 2 * width * 2) as u64;
                attention.values = attention.keys + (width * 2) as u64;
                attention.lengths = cross.lengths.as_ref().map_or(0, address);
                attention.key_stride = cross.all.size()[2] as i32;
                attention.key_count = cross.tokens as i32;
            }
            let heads = (samples, sizes.heads, sizes.head_width());
            if stages.has(if own { Stage::SelfAttention } else { Stage::CrossAttention }) {
                // SAFETY: as in `integrate`.
                unsafe { kernels.attend(queue, &machine.attention, heads, &attention)? };
            }
            if stages.has(Stage::Out) {
                self.product(
                    machine,
                    queue,
                    &products.out,
                    &block.out,
                    (&self.attended, &self.parts),
                    self.ahead_of(&block.ff_in, self.ahead),
                )?;
            }

            let mut norm = NormArguments {
                residual: address(&self.residual),
                parts: address(&self.parts),
                bias: address(&block.out.bias),
                multiply: 0,
                add: 0,
                out: address(&self.normed),
                part_stride: (rows * width) as i64,
                splits: products.out.plan.parts() as i32,
                width: width as i32,
                tokens: tokens as i32,
                first: 0,
                count: tokens as i32,
                keep: 1,
                eps: BLOCK_EPS,
            };
            if stages.has(Stage::MiddleNorm) {
                // SAFETY: as in `integrate`.
                unsafe { kernels.residual_norm(queue, samples, &norm)? };
            }
            if stages.has(Stage::FeedIn) {
                self.product(
                    machine,
                    queue,
                    &products.ff_in,
                    &block.ff_in,
                    (&self.normed, &self.hidden),
                    self.ahead_of(&block.ff_out, 0),
                )?;
            }
            let next = weights.blocks.get(index + 1).map_or(&weights.decode, |block| &block.input);
            if stages.has(Stage::FeedOut) {
                self.product(
                    machine,
                    queue,
                    &products.ff_out,
                    &block.ff_out,
                    (&self.hidden, &self.parts),
                    self.ahead_of(next, 0),
                )?;
            }

            // The next block's first norm, or the output's, of the action tokens alone.
            (norm.multiply, norm.add) = modulation(index + 1);
            norm.bias = address(&block.ff_out.bias);
            norm.splits = products.ff_out.plan.parts() as i32;
            if index + 1 == count {
                norm.first = states as i32;
                norm.count = sizes.horizon as i32;
                norm.keep = 0;
                norm.eps = OUTPUT_EPS;
            }
            if stages.has(Stage::BlockNorm) {
                // SAFETY: as in `integrate`.
                unsafe { kernels.residual_norm(queue, samples, &norm)? };
            }
        }
        if stages.has(Stage::Decode) {
            self.product(
                machine,
                queue,
                &products.decode,
                &weights.decode,
                (&self.normed, &self.decoded),
                self.ahead_of(&weights.velocity, 0),
            )?;
        }
        if stages.has(Stage::Velocity) {
            self.product(
                machine,
                queue,
                &products.velocity,
                &weights.velocity,
                (&self.decoded, &self.parts),
                self.ahead_of(&weights.embed, 0),
            )?;
        }
        Ok(())
    }
}
