//! FLOPs and bytes of one tick.

use std::{iter::Sum, ops::Add};

use serde::{Deserialize, Serialize};

use crate::{
    benchmark::cases::{Case, Shape},
    checkpoint::{BlockContext, EagleConfig, ModelConfig, Purpose, TensorSpec, key_table},
};

/// Bytes of a weight: 16-bit floating point.
const WEIGHT_BYTES: f64 = 2.0;

const VISION: &str = "backbone.model.vision_model.vision_model.";
const CONNECTOR: &str = "backbone.model.mlp1.";
const LANGUAGE: &str = "backbone.model.language_model.model.layers.";
const BLOCKS: &str = "action_head.model.transformer_blocks.";

/// What is computed, and what is read for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Floating-point operations; a multiply-add is two.
    pub flops: f64,
    /// Bytes of weights.
    pub bytes: f64,
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { flops: self.flops + other.flops, bytes: self.bytes + other.bytes }
    }
}

impl Sum for Work {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), Add::add)
    }
}

/// What is computed when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// As the public reference does it: keys and values of the context in every cross-attending block and in every step, and
    /// what depends on the time step alone in every step.
    Naive,
    /// Keys and values of the context once per tick, of text and image tokens apart; what depends on the time step alone
    /// before the first tick. The way of every mode here.
    Precomputed,
    /// As [`Precomputed`](Self::Precomputed), and the language model's keys and values of everything before the first image
    /// kept from tick to tick while the instruction is the same.
    PrefixReused,
}

impl Path {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Naive, Self::Precomputed, Self::PrefixReused];

    /// For people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Naive => "naive",
            Self::Precomputed => "precomputed",
            Self::PrefixReused => "prefix reused",
        }
    }
}

/// The work of one tick, part by part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TickWork {
    /// Vision tower and connector, all images.
    pub vision: Work,
    /// The kept layers of the language model.
    pub language: Work,
    /// Once per tick: state encoder, and keys and values of the context unless they belong to the step.
    pub context: Work,
    /// One denoising step: action encoder, DiT, action decoder.
    pub step: Work,
    /// Denoising steps.
    pub steps: usize,
}

impl TickWork {
    /// The work of a case on a model of these sizes.
    pub fn new(model: &ModelConfig, eagle: &EagleConfig, case: &Case, shape: &Shape, path: Path) -> Self {
        let counter = Counter::new(model, eagle, case, shape);
        Self {
            vision: counter.vision(),
            language: counter.language(path),
            context: counter.context(path),
            step: counter.step(path),
            steps: case.steps.unwrap_or(model.num_inference_timesteps),
        }
    }
}

struct Counter<'a> {
    model: &'a ModelConfig,
    eagle: &'a EagleConfig,
    table: Vec<TensorSpec>,
    /// Samples in the batch.
    batch: f64,
    images: f64,
    patches: f64,
    /// Tokens of one prompt.
    tokens: f64,
    image_tokens: f64,
    /// Tokens before the first image, system line and instruction.
    prefix: f64,
    /// State and action tokens.
    sequence: f64,
    horizon: f64,
}

/// One state token.
const STATE_TOKENS: f64 = 1.0;

impl<'a> Counter<'a> {
    fn new(model: &'a ModelConfig, eagle: &'a EagleConfig, case: &Case, shape: &Shape) -> Self {
        let patch = eagle.vision.patch_size as f64;
        let (width, height) = (f64::from(shape.image.0), f64::from(shape.image.1));
        let mut table = key_table(model, eagle);
        table.retain(|spec| spec.purpose == Purpose::Inference);
        let prefix = crate::benchmark::layout::PREFIX_TOKENS + shape.instruction_tokens;
        Self {
            batch: case.batch as f64,
            images: (case.cameras * case.batch) as f64,
            patches: (width / patch) * (height / patch),
            tokens: shape.prompt_tokens as f64,
            image_tokens: (case.cameras * shape.image_tokens) as f64,
            prefix: prefix as f64,
            sequence: STATE_TOKENS + case.horizon as f64,
            horizon: case.horizon as f64,
            model,
            eagle,
            table,
        }
    }

    /// Values of the tensors that `choose` chooses, of one embodiment where there are several.
    fn values(&self, choose: impl Fn(&str) -> bool) -> f64 {
        self.chosen(choose).map(|spec| self.elements(spec)).sum()
    }

    fn chosen(&self, choose: impl Fn(&str) -> bool) -> impl Iterator<Item = &TensorSpec> {
        self.table.iter().filter(move |spec| choose(&spec.name))
    }

    fn elements(&self, spec: &TensorSpec) -> f64 {
        let all = spec.elements() as f64;
        if per_embodiment(&spec.name) { all / self.model.max_num_embodiments as f64 } else { all }
    }

    /// Linears over `rows` rows: every matrix that `choose` chooses is multiplied once, everything chosen is read once.
    fn linears(&self, rows: f64, choose: impl Fn(&str) -> bool + Copy) -> Work {
        let matrices: f64 = self
            .chosen(choose)
            // Biases and norms have one dimension, or two where there is one per embodiment.
            .filter(|spec| spec.shape.len() == if per_embodiment(&spec.name) { 3 } else { 2 })
            .map(|spec| self.elements(spec))
            .sum();
        Work { flops: 2.0 * rows * matrices, bytes: WEIGHT_BYTES * self.values(choose) }
    }

    fn vision(&self) -> Work {
        let config = &self.eagle.vision;
        let rows = self.images * self.patches;
        let tower = self
            .linears(rows, |name| name.starts_with(VISION) && !name.ends_with("position_embedding.weight"));
        let unshuffle = (self.eagle.unshuffle_factor() as f64).powi(2);
        let connector = self.linears(rows / unshuffle, |name| name.starts_with(CONNECTOR));
        let layers = config.num_hidden_layers as f64;
        let attention = attention(rows, self.patches, config.hidden_size as f64) * layers;
        tower + connector + computed(attention)
    }

    fn language(&self, path: Path) -> Work {
        let config = &self.eagle.text;
        let kept = if path == Path::PrefixReused { self.prefix } else { 0.0 };
        let linears = self.linears(self.batch * (self.tokens - kept), |name| name.starts_with(LANGUAGE));
        let width = (config.num_attention_heads * config.head_dim) as f64;
        // Causal: row i sees i + 1 keys, half of the square.
        let causal = |tokens: f64| attention(tokens, tokens, width) / 2.0;
        let layers = self.model.select_layer as f64;
        linears + computed(self.batch * layers * (causal(self.tokens) - causal(kept)))
    }

    fn context(&self, path: Path) -> Work {
        let state = self.linears(self.batch, |name| name.starts_with("action_head.state_encoder."));
        let keys = match path {
            Path::Naive => Work::default(),
            Path::Precomputed | Path::PrefixReused => self.cross_keys(path),
        };
        state + keys
    }

    /// Tokens that the cross-attending block computes keys and values of, and attends to.
    fn keys_of(&self, block: usize, path: Path) -> Option<f64> {
        let context = BlockContext::of(block, self.model.attend_text_every_n_blocks);
        match (context, path) {
            (BlockContext::Own, _) => None,
            (_, Path::Naive) => Some(self.tokens),
            (BlockContext::Text, _) => Some(self.tokens - self.image_tokens),
            (BlockContext::Image, _) => Some(self.image_tokens),
        }
    }

    fn blocks(&self) -> std::ops::Range<usize> {
        0..self.model.diffusion.num_layers
    }

    /// Keys and values of the context, all blocks.
    fn cross_keys(&self, path: Path) -> Work {
        let of_block = |block: usize| {
            let keys = self.keys_of(block, path)?;
            let prefix = format!("{BLOCKS}{block}.attn1.to_");
            let prefix = prefix.as_str();
            Some(self.linears(self.batch * keys, move |name| {
                name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('k') || rest.starts_with('v'))
            }))
        };
        self.blocks().filter_map(of_block).sum()
    }

    fn step(&self, path: Path) -> Work {
        let rows = self.batch * self.sequence;
        let width = self.model.input_embedding_dim as f64;
        let own = |block: usize| {
            BlockContext::of(block, self.model.attend_text_every_n_blocks) == BlockContext::Own
        };
        let blocks = self.linears(rows, |name| {
            let Some((block, part)) = name.strip_prefix(BLOCKS).and_then(|rest| rest.split_once('.')) else {
                return name.starts_with("action_head.model.proj_out_2.");
            };
            let key = part.starts_with("attn1.to_k") || part.starts_with("attn1.to_v");
            !part.starts_with("norm1.") && (!key || block.parse().is_ok_and(own))
        });
        let attention: f64 = self
            .blocks()
            .map(|block| attention(rows, self.keys_of(block, path).unwrap_or(self.sequence), width))
            .sum();
        let decoder = self.linears(rows, |name| name.starts_with("action_head.action_decoder."));
        let encoder =
            self.linears(self.batch * self.horizon, |name| name.starts_with("action_head.action_encoder."));
        let known_before = if path == Path::Naive {
            self.cross_keys(path) + self.linears(self.batch, is_of_time)
        } else {
            // The half of the second layer that reads the time is a bias by then.
            let time = self.values(|name| name == "action_head.action_encoder.W2.W") / 2.0;
            Work { flops: -2.0 * self.batch * self.horizon * time, bytes: -WEIGHT_BYTES * time }
        };
        blocks + computed(attention) + decoder + encoder + known_before
    }
}

/// Whether there is one of this tensor per embodiment.
fn per_embodiment(name: &str) -> bool {
    name.ends_with(".W") || name.ends_with(".b")
}

/// What depends on the time step alone: time embedding, adaptive norms, output modulation.
fn is_of_time(name: &str) -> bool {
    name.starts_with("action_head.model.timestep_encoder.")
        || name.starts_with("action_head.model.proj_out_1.")
        || (name.starts_with(BLOCKS) && name.contains(".norm1."))
}

/// FLOPs of scores and weighted sum: `rows` rows over `keys` keys, all heads together `width` wide.
fn attention(rows: f64, keys: f64, width: f64) -> f64 {
    4.0 * rows * keys * width
}

fn computed(flops: f64) -> Work {
    Work { flops, bytes: 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::benchmark::model_sizes::KnownModel;

    /// A tick of `images` images of this size, of `tokens` prompt tokens and this horizon, on the 3B model.
    fn work(images: usize, image: (u32, u32), tokens: usize, horizon: usize, path: Path) -> TickWork {
        let sizes = KnownModel::N1d6_3b.sizes();
        let [case, ..] = Case::standard();
        let case = Case { cameras: images, prompt_tokens: tokens, horizon, ..case };
        let image_tokens = (image.0 * image.1 / 784) as usize;
        let instruction_tokens = tokens.saturating_sub(16 + images * (image_tokens + 7));
        let shape = Shape { image, image_tokens, instruction_tokens, prompt_tokens: tokens };
        TickWork::new(&sizes.model, &sizes.eagle, &case, &shape, path)
    }

    /// Within one per cent.
    #[track_caller]
    fn near(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 0.01, "expected {expected:e}, found {found:e}");
    }

    #[test]
    fn the_vision_towers_work_per_image_is_that_of_its_layer_sizes_worked_out_by_hand() {
        for (image, flops) in [((252, 252), 282e9), ((336, 252), 382e9), ((448, 252), 520e9)] {
            let one = work(1, image, 200, 50, Path::Naive).vision;
            near(one.flops, flops);
            near(one.bytes, 0.825e9 + 27.3e6);
            // Weights are read once for all images.
            let four = work(4, image, 700, 50, Path::Naive).vision;
            near(four.flops, 4.0 * flops);
            assert_eq!(four.bytes, one.bytes);
        }
    }

    #[test]
    fn the_language_models_work_is_that_of_its_layer_sizes_worked_out_by_hand() {
        for (tokens, flops) in [(108, 175e9), (196, 318e9), (250, 407e9), (376, 615e9)] {
            let language = work(1, (252, 252), tokens, 50, Path::Precomputed).language;
            near(language.flops, flops);
            near(language.bytes, 1.611e9);
        }
    }

    #[test]
    fn a_denoising_step_is_cheaper_once_what_does_not_depend_on_the_actions_is_known() {
        for (tokens, flops) in [(108, 109e9), (196, 127e9), (250, 138e9), (376, 164e9)] {
            let naive = work(1, (252, 252), tokens, 50, Path::Naive).step;
            near(naive.flops, flops);
            near(naive.bytes, 2.200e9);
        }
        let step = work(2, (336, 252), 250, 50, Path::Precomputed).step;
        near(step.flops, 87e9);
        near(step.bytes, 1.677e9);
        let short = work(2, (336, 252), 250, 16, Path::Precomputed).step;
        near(short.flops, 29e9);
        assert_eq!(short.bytes, step.bytes);
    }

    #[test]
    fn keys_and_values_of_the_context_are_computed_once_and_of_half_the_tokens_on_average() {
        let before = work(2, (336, 252), 250, 50, Path::Precomputed).context;
        // 3.4 MB of it are the state encoder's.
        near(before.bytes, 0.201e9 + 3.4e6);
        near(before.flops, 25e9);
        let naive = work(2, (336, 252), 250, 50, Path::Naive);
        near(naive.context.bytes, 3.4e6);
        let saved = naive.step.flops - work(2, (336, 252), 250, 50, Path::Precomputed).step.flops;
        assert!(saved > 50e9, "{saved:e}");
    }

    #[test]
    fn a_kept_prefix_saves_its_rows_and_reads_the_same_weights() {
        let whole = work(2, (336, 252), 250, 50, Path::Precomputed);
        let kept = work(2, (336, 252), 250, 50, Path::PrefixReused);
        assert_eq!(whole.language.bytes, kept.language.bytes);
        // 14 + 4 of the instruction + 6 of the first image's tag.
        near(kept.language.flops / whole.language.flops, (250.0 - 24.0) / 250.0);
        assert_eq!((whole.vision, whole.step), (kept.vision, kept.step));
    }

    #[test]
    fn a_batch_multiplies_the_work_and_not_the_reading() {
        let sizes = KnownModel::N1d6_3b.sizes();
        let [one, ..] = Case::standard();
        let shape = one.shape().unwrap();
        let eight = Case { batch: 8, ..one.clone() };
        let of = |case: &Case| TickWork::new(&sizes.model, &sizes.eagle, case, &shape, Path::Precomputed);
        let (one, eight) = (of(&one), of(&eight));
        for (one, eight) in [
            (one.vision, eight.vision),
            (one.language, eight.language),
            (one.context, eight.context),
            (one.step, eight.step),
        ] {
            near(eight.flops, 8.0 * one.flops);
            assert_eq!(eight.bytes, one.bytes);
        }
    }
}
