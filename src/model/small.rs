//! A network that is small enough for tests, with random weights, and inputs for it.

use ndarray::{Array2, Array3, Array4};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use tch::{Device, Kind};

use super::{network::Network, random::RandomWeights};
use crate::{
    checkpoint::{DiffusionConfig, EagleConfig, ModelConfig},
    processor::ModelInputs,
};

pub const IMAGE_TOKEN: u32 = 90;

/// Sizes that differ from each other wherever the model lets them.
pub fn configs() -> (ModelConfig, EagleConfig) {
    let mut eagle = EagleConfig::n1d6_3b();
    eagle.vision.hidden_size = 24;
    eagle.vision.intermediate_size = 40;
    eagle.vision.num_hidden_layers = 2;
    eagle.vision.num_attention_heads = 3;
    eagle.vision.patch_size = 4;
    eagle.vision.num_patches = 9;
    eagle.text.hidden_size = 32;
    eagle.text.intermediate_size = 48;
    eagle.text.num_attention_heads = 4;
    eagle.text.num_key_value_heads = 2;
    eagle.text.head_dim = 16;
    eagle.text.vocab_size = 100;
    eagle.image_token_index = IMAGE_TOKEN;
    let model = ModelConfig {
        max_state_dim: 7,
        max_action_dim: 9,
        action_horizon: 5,
        max_num_embodiments: 3,
        backbone_embedding_dim: 32,
        hidden_size: 20,
        input_embedding_dim: 24,
        diffusion: DiffusionConfig {
            num_layers: 4,
            num_attention_heads: 2,
            attention_head_dim: 12,
            output_dim: 20,
        },
        max_seq_len: 8,
        select_layer: 2,
        ..ModelConfig::n1d6_3b()
    };
    (model, eagle)
}

/// The network of these sizes on the CPU.
pub fn network(kind: Kind) -> Network {
    let (model, eagle) = configs();
    let weights = RandomWeights::new(&model, &eagle, 5);
    Network::load(&weights, &model, &eagle, 1, Device::Cpu, kind).unwrap()
}

/// Inputs with `images` frames of 16 x 8 pixels per sample, and noise.
///
/// `texts` are the text tokens of each sample; where they differ, the shorter prompts are padded on the left.
pub fn inputs(seed: u64, images: usize, texts: &[usize]) -> (ModelInputs, Array3<f32>) {
    let (model, eagle) = configs();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let batch = texts.len();
    let image_tokens = images * 2;
    let length = texts.iter().max().unwrap() + image_tokens;
    let mut input_ids = Array2::zeros((batch, length));
    let mut attention_mask = Array2::from_elem((batch, length), false);
    for (row, &text) in texts.iter().enumerate() {
        let padding = length - text - image_tokens;
        let first_image = padding + text / 2;
        for column in padding..length {
            let is_image = (first_image..first_image + image_tokens).contains(&column);
            input_ids[(row, column)] =
                if is_image { i64::from(IMAGE_TOKEN) } else { random.random_range(0..80) };
            attention_mask[(row, column)] = true;
        }
    }
    assert_eq!(eagle.vision.patch_size * 2, 8, "the frames below are of two cells");
    let inputs = ModelInputs {
        images: Array4::from_shape_simple_fn((batch * images, 16, 8, 3), || random.random()),
        input_ids,
        attention_mask,
        state: Array3::from_shape_simple_fn((batch, 1, model.max_state_dim), || {
            random.sample(StandardNormal)
        }),
    };
    let noise = (batch, model.action_horizon, model.max_action_dim);
    (inputs, Array3::from_shape_simple_fn(noise, || random.sample(StandardNormal)))
}
