//! The Eagle backbone: frames and prompt to features, one per token.

use std::time::Instant;

use ndarray::{ArrayView2, ArrayView4};
use tch::{Device, Tensor};

use super::{
    ModelError,
    device::synchronize,
    language::{LanguageModel, SequenceContext},
    layers::Loader,
    probe::Probe,
    tokens::TokenLayout,
    vision::VisionTower,
};
use crate::checkpoint::{EagleConfig, ModelConfig};

/// Vision tower and language model.
pub struct Backbone {
    vision: VisionTower,
    language: LanguageModel,
    image_token: i64,
    device: Device,
    /// Layout and tables of the prompt last seen: constant while instruction and image sizes are.
    prompt: Option<Prompt>,
}

struct Prompt {
    layout: TokenLayout,
    context: SequenceContext,
}

/// What the backbone says of one tick.
pub struct Features<'a> {
    /// (B, S, D), after the final norm.
    pub features: Tensor,
    /// Which of the S tokens are image, text and padding.
    pub layout: &'a TokenLayout,
    /// When the vision tower was done, the language model not yet begun.
    pub vision_done: Instant,
}

impl Backbone {
    /// Loads the module `backbone.model`.
    pub fn load(at: &Loader, model: &ModelConfig, eagle: &EagleConfig) -> Result<Self, ModelError> {
        Ok(Self {
            vision: VisionTower::load(at, eagle)?,
            language: LanguageModel::load(&at.at("language_model"), eagle, model.select_layer)?,
            image_token: eagle.image_token_index as i64,
            device: at.device(),
            prompt: None,
        })
    }

    /// Where it runs.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The vision tower.
    pub fn vision(&mut self) -> &mut VisionTower {
        &mut self.vision
    }

    /// The language model.
    pub fn language(&self) -> &LanguageModel {
        &self.language
    }

    /// The layout of a batch of prompts, ids and attention mask (B, S).
    pub fn layout(
        &self,
        input_ids: ArrayView2<i64>,
        attention_mask: ArrayView2<bool>,
    ) -> Result<TokenLayout, ModelError> {
        TokenLayout::new(input_ids, attention_mask, self.image_token, self.device)
    }

    /// Frames (N, H, W, 3), prompt ids and attention mask (B, S) → features (B, S, D).
    pub fn forward(
        &mut self,
        frames: ArrayView4<u8>,
        input_ids: ArrayView2<i64>,
        attention_mask: ArrayView2<bool>,
        probe: &mut Probe,
    ) -> Result<Features<'_>, ModelError> {
        let shape: Vec<i64> = frames.shape().iter().map(|&n| n as i64).collect();
        let frames = frames.as_standard_layout();
        // Standard layout was just asked for, so there is a slice; an empty one is refused by the tower.
        let frames = Tensor::f_from_slice(frames.as_slice().unwrap_or(&[]))?.f_reshape(shape)?;
        let images = self.vision.forward(&frames, probe)?;
        synchronize(self.device);
        let vision_done = Instant::now();

        let known = self.prompt.take().filter(|p| p.layout.matches(input_ids, attention_mask));
        let prompt = match known {
            Some(prompt) => prompt,
            None => {
                let layout = TokenLayout::new(input_ids, attention_mask, self.image_token, self.device)?;
                let context = self.language.context(&layout)?;
                Prompt { layout, context }
            }
        };
        let embeddings = self.language.embed(&prompt.layout, &images)?;
        probe.record(|| "llm.inputs_embeds".to_owned(), &embeddings);
        let features = self.language.forward(&embeddings, &prompt.context, probe)?;
        probe.record(|| "backbone_features".to_owned(), &features);
        synchronize(self.device);
        let prompt = self.prompt.insert(prompt);
        Ok(Features { features, layout: &prompt.layout, vision_done })
    }
}
