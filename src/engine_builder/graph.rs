//! The fused graph as ONNX, and the shapes of its inputs.

use std::collections::BTreeMap;
use std::path::Path;

use super::lengths::Lengths;
use crate::{
    checkpoint::{BlockContext, Checkpoint, ModelConfig},
    engine::{
        ShapeRecord,
        fused::{cross_blocks, names},
    },
    onnx::{
        Data, ElementType, Graph, OnnxError, Style, Written,
        dit::{FusedOptions, fused, rows},
        write,
    },
    tensorrt::{Profile, ShapeRange},
};

/// Name of the graph's files, without ending.
pub const STEM: &str = "dit_fused";
/// Of those of the graph with Q/DQ nodes.
pub const INT8_STEM: &str = "dit_fused_int8";

/// What the graph is exported for.
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

    /// The fused graph with weights and activations of this type, norms and softmax in f32.
    ///
    /// # Errors
    /// A checkpoint that lacks something.
    pub fn graph<'w>(&self, checkpoint: &'w Checkpoint, kind: ElementType) -> Result<Graph<'w>, OnnxError> {
        let options = FusedOptions::new(self.embodiment, self.text.extent(), self.image.extent());
        fused(checkpoint, &FusedOptions { style: Style::new(kind), ..options })
    }

    /// Writes `dit_fused.onnx` and its weights into `folder`, in f32: the engine's builder chooses types itself.
    ///
    /// # Errors
    /// A checkpoint that lacks something, or a folder that cannot be written.
    pub fn export(&self, checkpoint: &Checkpoint, folder: &Path) -> Result<Written, OnnxError> {
        write(&self.graph(checkpoint, ElementType::F32)?, folder, STEM, Data::Full)
    }

    /// The shapes of every input: least, usual, greatest.
    pub fn shapes(&self, config: &ModelConfig) -> BTreeMap<String, ShapeRecord> {
        let width = config.input_embedding_dim as i64;
        let fixed = |shape: Vec<i64>| ShapeRecord { min: shape.clone(), opt: shape.clone(), max: shape };
        let actions = vec![1, config.action_horizon as i64, config.max_action_dim as i64];
        let mut shapes = BTreeMap::from([
            (names::ACTIONS.to_owned(), fixed(actions)),
            (names::STATE_TOKENS.to_owned(), fixed(vec![1, 1, width])),
            (names::STEP_TERMS.to_owned(), fixed(vec![rows(config) as i64, width])),
        ]);
        for (block, reads) in cross_blocks(config) {
            let lengths = if reads == BlockContext::Image { self.image } else { self.text };
            let [min, opt, max] = lengths.all().map(|tokens| vec![1, tokens as i64, width]);
            for name in [names::keys(block), names::values(block)] {
                let (min, opt, max) = (min.clone(), opt.clone(), max.clone());
                shapes.insert(name, ShapeRecord { min, opt, max });
            }
        }
        shapes
    }

    /// The optimisation profile; None where the graph leaves nothing open.
    pub fn profile(&self, config: &ModelConfig) -> Option<Profile> {
        let open = self.shapes(config).into_iter().filter(|(_, shape)| shape.min != shape.max);
        let profile = open.fold(Profile::default(), |profile, (name, ShapeRecord { min, opt, max })| {
            profile.with(name, ShapeRange { min, opt, max })
        });
        (!profile.0.is_empty()).then_some(profile)
    }

    /// The shapes of calibration inputs: the usual ones.
    pub fn calibration_profile(&self, config: &ModelConfig) -> Profile {
        let shapes = self.shapes(config).into_iter();
        shapes.fold(Profile::default(), |profile, (name, shape)| {
            profile.with(name, ShapeRange::fixed(shape.opt))
        })
    }
}
