//! The graphs that engines are built from: as ONNX, and the shapes of their inputs.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::lengths::Lengths;
use crate::{
    checkpoint::{BlockContext, Checkpoint, ModelConfig, Parts},
    engine::{
        EngineNeeds, GraphKind, GraphRecord, Precision, ShapeRecord,
        fused::{cross_blocks, model_config, names},
    },
    model::tensorrt::TensorRtDevice,
    onnx::{
        Data, ElementType, Graph, OnnxError, Style, Written,
        backbone::{LanguageOptions, VisionOptions, language, vision},
        dit::{
            ConditionOptions, Extent, FusedOptions, KeyValueLayout, ReferenceOptions, condition, fused,
            reference, rows,
        },
        write,
    },
    tensorrt::{Profile, ShapeRange},
};

/// Version of the graphs beside the fused one, as [`FUSED_GRAPH_VERSION`](crate::engine::fused::FUSED_GRAPH_VERSION).
const GRAPH_VERSION: u32 = 1;

/// The first major version of TensorRT in which the graph alone says what is computed in which type.
const TYPED_ALONE: u32 = 11;

/// What the fused graph is exported for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphRequest {
    /// Index of the embodiment.
    pub embodiment: usize,
    pub text: Lengths,
    pub image: Lengths,
}

impl GraphRequest {
    /// The same for prompts of any length.
    #[must_use]
    pub fn any_length(self) -> Self {
        Self { text: Lengths::any(), image: Lengths::any(), ..self }
    }

    /// Writes `dit_fused.onnx` and its weights into `folder`, in f32: the engine's builder chooses types itself.
    ///
    /// # Errors
    /// A checkpoint that lacks something, or a folder that cannot be written.
    pub fn export(&self, checkpoint: &Checkpoint, folder: &Path) -> Result<Written, OnnxError> {
        EngineGraph::from(*self).export(checkpoint, folder)
    }

    /// The shapes of every input: least, usual, greatest.
    pub fn shapes(&self, config: &ModelConfig) -> BTreeMap<String, ShapeRecord> {
        let width = config.input_embedding_dim as i64;
        let actions = vec![1, config.action_horizon as i64, config.max_action_dim as i64];
        let mut shapes = BTreeMap::from([
            (names::ACTIONS.to_owned(), fixed(actions)),
            (names::STATE_TOKENS.to_owned(), fixed(vec![1, 1, width])),
            (names::STEP_TERMS.to_owned(), fixed(vec![rows(config) as i64, width])),
        ]);
        for (block, reads) in cross_blocks(config) {
            let lengths = if reads == BlockContext::Image { self.image } else { self.text };
            let shape = tokens(lengths, width);
            for name in [names::keys(block), names::values(block)] {
                shapes.insert(name, shape.clone());
            }
        }
        shapes
    }

    /// The optimisation profile; None where the graph leaves nothing open.
    pub fn profile(&self, config: &ModelConfig) -> Option<Profile> {
        profile(self.shapes(config), |shape| shape.min != shape.max)
    }
}

fn fixed(shape: Vec<i64>) -> ShapeRecord {
    ShapeRecord { min: shape.clone(), opt: shape.clone(), max: shape }
}

/// (1, tokens, width).
fn tokens(lengths: Lengths, width: i64) -> ShapeRecord {
    let [min, opt, max] = lengths.all().map(|tokens| vec![1, tokens as i64, width]);
    ShapeRecord { min, opt, max }
}

fn profile(shapes: BTreeMap<String, ShapeRecord>, open: impl Fn(&ShapeRecord) -> bool) -> Option<Profile> {
    let open = shapes.into_iter().filter(|(_, shape)| open(shape));
    let profile = open.fold(Profile::default(), |profile, (name, ShapeRecord { min, opt, max })| {
        profile.with(name, ShapeRange { min, opt, max })
    });
    (!profile.0.is_empty()).then_some(profile)
}

/// Who says in which types an engine computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Typing {
    /// TensorRT, within what the precision allows it; the graph is in f32. Ended with version 10.
    #[default]
    Weak,
    /// The graph: weights and products in this type, or in 8 bits where Q/DQ nodes stand around them; norms, softmax, and the
    /// inputs and outputs of the whole in f32, with casts between. From version 10 on.
    Strong(ElementType),
}

impl Typing {
    /// The typing for an engine of `precision`: strong where that is asked for, or where TensorRT has no other.
    pub fn choose(precision: Precision, strongly_typed: bool, tensorrt_major: u32) -> Self {
        let kind = match precision {
            Precision::Fp32 | Precision::StronglyTyped => ElementType::F32,
            // What is not in INT8 is in f16, as weakly typed builders choose too.
            Precision::Fp16 | Precision::Int8 => ElementType::F16,
            Precision::Bf16 => ElementType::Bf16,
        };
        let asked = strongly_typed || precision == Precision::StronglyTyped;
        if asked || tensorrt_major >= TYPED_ALONE { Self::Strong(kind) } else { Self::Weak }
    }

    /// Whether the graph says it.
    pub fn is_strong(self) -> bool {
        self != Self::Weak
    }

    /// How the graph is written.
    pub fn style(self) -> Style {
        match self {
            Self::Weak => Style::default(),
            Self::Strong(kind) => Style::new(kind),
        }
    }
}

/// A part of the model with what its export needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GraphPart {
    /// One denoising step.
    Fused(GraphRequest),
    /// What it takes once per tick.
    Condition(GraphRequest),
    /// The transformer alone, all lengths left open as in the public export.
    Reference {
        /// Tokens of a prompt.
        tokens: Lengths,
    },
    /// Vision tower and connector.
    Vision {
        /// Images at once.
        images: Lengths,
        /// Height and width in pixels, fixed in the graph.
        size: (usize, usize),
    },
    /// The kept layers of the language model, for one prompt without padding.
    Language {
        /// Tokens of a prompt.
        tokens: Lengths,
        /// What the rotary frequencies are rounded to.
        frequencies: ElementType,
    },
}

/// A graph that an engine can be built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineGraph {
    pub part: GraphPart,
    pub typing: Typing,
}

impl From<GraphRequest> for EngineGraph {
    /// One denoising step, types left to TensorRT.
    fn from(request: GraphRequest) -> Self {
        Self { part: GraphPart::Fused(request), typing: Typing::Weak }
    }
}

impl EngineGraph {
    /// Which graph it is.
    pub fn kind(&self) -> GraphKind {
        match self.part {
            GraphPart::Fused(_) => GraphKind::DitFused,
            GraphPart::Condition(_) => GraphKind::DitCondition,
            GraphPart::Reference { .. } => GraphKind::DitReference,
            GraphPart::Vision { .. } => GraphKind::BackboneVision,
            GraphPart::Language { .. } => GraphKind::BackboneLanguage,
        }
    }

    /// The graph; `expose` makes each layer's values further outputs, where the graph has that.
    ///
    /// # Errors
    /// Sizes that do not fit the checkpoint, or a checkpoint that lacks something.
    pub fn graph<'w>(&self, checkpoint: &'w Checkpoint, expose: bool) -> Result<Graph<'w>, OnnxError> {
        let style = self.typing.style();
        match self.part {
            GraphPart::Fused(GraphRequest { embodiment, text, image }) => {
                let plain = FusedOptions::new(embodiment, text.extent(), image.extent());
                fused(checkpoint, &FusedOptions { style, expose, ..plain })
            }
            GraphPart::Condition(GraphRequest { embodiment, text, image }) => {
                let options = ConditionOptions {
                    embodiment,
                    batch: Extent::Fixed(1),
                    text_tokens: text.extent(),
                    image_tokens: image.extent(),
                    state_tokens: 1,
                    key_values: KeyValueLayout::default(),
                    style,
                };
                condition(checkpoint, &options)
            }
            GraphPart::Reference { .. } => {
                reference(checkpoint, &ReferenceOptions { style, expose, ..ReferenceOptions::default() })
            }
            GraphPart::Vision { images, size } => {
                vision(checkpoint, &VisionOptions { images: images.extent(), size, style, expose })
            }
            GraphPart::Language { tokens, frequencies } => {
                let [.., max_tokens] = tokens.all();
                let plain = LanguageOptions::new(tokens.extent());
                language(checkpoint, &LanguageOptions { max_tokens, frequencies, style, expose, ..plain })
            }
        }
    }

    /// Writes the graph and its weights into `folder`, under the name of its kind.
    ///
    /// # Errors
    /// As [`graph`](Self::graph), or a folder that cannot be written.
    pub fn export(&self, checkpoint: &Checkpoint, folder: &Path) -> Result<Written, OnnxError> {
        write(&self.graph(checkpoint, false)?, folder, self.kind().as_str(), Data::Full)
    }

    /// The shapes of every input: least, usual, greatest.
    pub fn shapes(&self, checkpoint: &Checkpoint) -> BTreeMap<String, ShapeRecord> {
        let config = &checkpoint.config;
        let (width, context) = (config.input_embedding_dim as i64, config.backbone_embedding_dim as i64);
        let named = |shapes: Vec<(&str, ShapeRecord)>| {
            shapes.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect()
        };
        match self.part {
            GraphPart::Fused(request) => request.shapes(config),
            GraphPart::Condition(GraphRequest { text, image, .. }) => named(vec![
                ("text_features", tokens(text, context)),
                ("image_features", tokens(image, context)),
                ("state", fixed(vec![1, 1, config.max_state_dim as i64])),
            ]),
            GraphPart::Reference { tokens: lengths } => {
                let [min, opt, max] = lengths.all().map(|tokens| vec![1, tokens as i64]);
                let mask = ShapeRecord { min, opt, max };
                named(vec![
                    // The state's token and the actions'.
                    ("sa_embs", fixed(vec![1, 1 + config.action_horizon as i64, width])),
                    ("vl_embs", tokens(lengths, context)),
                    ("timestep", fixed(vec![1])),
                    ("image_mask", mask.clone()),
                    ("backbone_attention_mask", mask),
                ])
            }
            GraphPart::Vision { images, size: (height, width) } => {
                let shape = |images: usize| vec![images as i64, 3, height as i64, width as i64];
                let [min, opt, max] = images.all().map(shape);
                named(vec![("pixel_values", ShapeRecord { min, opt, max })])
            }
            GraphPart::Language { tokens: lengths, .. } => {
                let width = checkpoint.eagle.text.hidden_size as i64;
                named(vec![("inputs_embeds", tokens(lengths, width))])
            }
        }
    }

    /// The optimisation profile; None where the graph leaves nothing open.
    pub fn profile(&self, checkpoint: &Checkpoint) -> Option<Profile> {
        // The reference's dimensions are open even where one size is meant.
        let all = matches!(self.part, GraphPart::Reference { .. });
        profile(self.shapes(checkpoint), |shape| all || shape.min != shape.max)
    }

    /// Which tensors of a checkpoint it is made of.
    pub fn parts(&self) -> Parts {
        if self.kind().is_backbone() { Parts::Backbone } else { Parts::ActionHead }
    }

    /// What is folded into it.
    fn parameters(&self) -> BTreeMap<String, Value> {
        let named: Vec<(&str, Value)> = match self.part {
            GraphPart::Fused(GraphRequest { embodiment, .. })
            | GraphPart::Condition(GraphRequest { embodiment, .. }) => {
                vec![("embodiment", json!(embodiment)), ("state_tokens", json!(1))]
            }
            GraphPart::Reference { .. } => Vec::new(),
            GraphPart::Vision { size: (height, width), .. } => {
                vec![("height", json!(height)), ("width", json!(width))]
            }
            GraphPart::Language { frequencies, .. } => {
                vec![("rotary_frequencies", json!(frequencies.name()))]
            }
        };
        named.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// What is asked of an engine of it for this checkpoint, here.
    pub fn needs(
        &self,
        here: &TensorRtDevice,
        checkpoint: &Checkpoint,
        checkpoint_hash: &str,
        precision: Precision,
    ) -> EngineNeeds {
        let embodiment = match self.part {
            GraphPart::Fused(GraphRequest { embodiment, .. }) => embodiment,
            _ => 0,
        };
        let fused = here.needs(checkpoint, checkpoint_hash, embodiment, precision);
        if self.kind() == GraphKind::DitFused {
            return fused;
        }
        let eagle = &checkpoint.eagle;
        let model_config = match self.part {
            GraphPart::Vision { .. } => fields(&eagle.vision),
            GraphPart::Language { .. } => {
                let mut fields = fields(&eagle.text);
                fields.insert("select_layer".to_owned(), json!(checkpoint.config.select_layer));
                fields
            }
            _ => model_config(&checkpoint.config),
        };
        EngineNeeds {
            model_config,
            graph: GraphRecord { kind: self.kind(), version: GRAPH_VERSION, parameters: self.parameters() },
            shapes: self
                .shapes(checkpoint)
                .into_iter()
                .map(|(name, shape)| (name, vec![shape.opt]))
                .collect(),
            ..fused
        }
    }
}

/// The fields of a part's configuration.
fn fields(part: &impl Serialize) -> BTreeMap<String, Value> {
    // Plain structs of numbers, which JSON can hold.
    match serde_json::to_value(part) {
        Ok(Value::Object(fields)) => fields.into_iter().collect(),
        other => BTreeMap::from([("eagle".to_owned(), json!(format!("{other:?}")))]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_written_into_the_graph_on_request_and_wherever_tensorrt_has_no_other_way() {
        use Precision::{Bf16, Fp16, Fp32, Int8, StronglyTyped};
        for (precision, asked, major, typing) in [
            (Fp16, false, 10, Typing::Weak),
            (Fp16, true, 10, Typing::Strong(ElementType::F16)),
            (Bf16, true, 10, Typing::Strong(ElementType::Bf16)),
            (Fp16, false, 11, Typing::Strong(ElementType::F16)),
            (Bf16, false, 11, Typing::Strong(ElementType::Bf16)),
            (Fp32, false, 11, Typing::Strong(ElementType::F32)),
            (Int8, false, 8, Typing::Weak),
            (Int8, false, 10, Typing::Weak),
            (Int8, true, 10, Typing::Strong(ElementType::F16)),
            (Int8, false, 11, Typing::Strong(ElementType::F16)),
            (StronglyTyped, false, 10, Typing::Strong(ElementType::F32)),
        ] {
            assert_eq!(Typing::choose(precision, asked, major), typing, "{precision} {asked} {major}");
        }
        let style = Typing::Strong(ElementType::F16).style();
        assert!(style.kind == ElementType::F16 && style.norms_in_f32 && style.softmax_in_f32);
    }
}
