//! Inputs for the parts of the network that need no recording.

use ndarray::{Array2, Array4};
use rand::{Rng, SeedableRng};
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

/// Side of a patch of one colour in a synthetic frame, in pixels.
const COLOURED: usize = 28;
/// By how much its pixels differ from its colour.
const GRAIN: i16 = 12;

/// Frames (N, height, width, 3) of a seed: patches of random colour with some grain, the same on every machine.
pub fn frames(seed: u64, images: usize, (height, width): (usize, usize)) -> Array4<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (rows, columns) = (height.div_ceil(COLOURED), width.div_ceil(COLOURED));
    let colours = Array4::from_shape_simple_fn((images, rows, columns, 3), || random.random::<u8>());
    Array4::from_shape_fn((images, height, width, 3), |(image, y, x, channel)| {
        let colour = i16::from(colours[(image, y / COLOURED, x / COLOURED, channel)]);
        let value = colour + random.random_range(-GRAIN..=GRAIN);
        // Within a byte after the clamp.
        value.clamp(0, 255) as u8
    })
}

/// Token ids (1, text + image) of a seed, with `image` image tokens in the middle of random others.
pub fn token_ids(seed: u64, text: usize, image: usize, image_token: i64, vocabulary: usize) -> Array2<i64> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let before = text / 2;
    Array2::from_shape_fn((1, text + image), |(_, place)| {
        if (before..before + image).contains(&place) {
            return image_token;
        }
        // A vocabulary of the image token alone does not exist.
        loop {
            let id = random.random_range(0..vocabulary as i64);
            if id != image_token {
                return id;
            }
        }
    })
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
