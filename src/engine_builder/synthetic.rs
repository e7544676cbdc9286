//! Inputs for the action head that need no recording.

use ndarray::Array2;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use tch::{Device, Kind, Tensor};

use crate::{
    checkpoint::ModelConfig,
    model::{ModelError, tokens::TokenLayout},
};

/// One tick's inputs, f32 on the CPU. The features are bf16 values, so that every type that runs them starts from the same.
pub struct SyntheticTick {
    /// Backbone features (1, S, backbone width), standard normal.
    pub features: Tensor,
    /// (1, 1, max state dim), in [-1, 1].
    pub state: Tensor,
    /// (1, horizon, max action dim), standard normal.
    pub noise: Tensor,
    ids: Array2<i64>,
}

/// Stands for an image in the layout.
const IMAGE: i64 = 1;

impl SyntheticTick {
    /// The tick of a seed, the same on every machine: `text` tokens, half of them before `image` tokens.
    pub fn new(config: &ModelConfig, seed: u64, text: usize, image: usize) -> Result<Self, ModelError> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut normal = |shape: [usize; 3]| -> Result<Tensor, ModelError> {
            let count = shape.iter().product();
            let values: Vec<f32> = StandardNormal.sample_iter(&mut random).take(count).collect();
            Ok(Tensor::f_from_slice(&values)?.f_reshape(shape.map(|n| n as i64))?)
        };
        let round = |x: Tensor| x.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float);
        let features = round(normal([1, text + image, config.backbone_embedding_dim])?)?;
        let state = round(normal([1, 1, config.max_state_dim])?.f_tanh()?)?;
        let noise = normal([1, config.action_horizon, config.max_action_dim])?;
        let before = text / 2;
        let ids = Array2::from_shape_fn((1, text + image), |(_, i)| {
            i64::from((before..before + image).contains(&i)) * IMAGE
        });
        Ok(Self { features, state, noise, ids })
    }

    /// Which tokens are text and which images.
    pub fn layout(&self, device: Device) -> Result<TokenLayout, ModelError> {
        let valid = Array2::from_elem(self.ids.dim(), true);
        TokenLayout::new(self.ids.view(), valid.view(), IMAGE, device)
    }
}
