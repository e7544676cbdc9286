//! A made-up observation on which two ways to compute the same thing are held against each other, before the faster one
//! moves a robot.
//!
//! Kernels of our own, compiled for whatever GPU is there, are not taken on trust: a GPU, a driver or a compiler that nobody
//! has tried would otherwise show itself as wrong actions.

use ndarray::{Array2, Array3, Array4};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use tch::{Kind, Tensor};

use super::{
    ModelError,
    action_head::ActionHead,
    backbone::Backbone,
    network::to_tensor,
    operators::BackboneOperators,
    probe::Probe,
    tokens::{TokenLayout, duplicate},
};
use crate::{
    checkpoint::{EagleConfig, ModelConfig},
    processor::ModelInputs,
};

/// Cosine of the angle between results that count as the same. Two bf16 computations in another order stay above 0.9998 at
/// the size of the 3B model; an index or a sum that is wrong falls far below.
pub const LEAST_COSINE: f64 = 0.999;
/// Height and width of the frame in cells: pixels that become one image token.
const CELLS: usize = 6;
/// Text tokens before the frame, and behind it.
const TEXT: usize = 12;
const SEED: u64 = 0x6772_6f6f;

/// The observation.
pub struct Trial {
    inputs: ModelInputs,
    noise: Array3<f32>,
}

impl Trial {
    /// One frame, a prompt, a state and noise for a model of these sizes, the same each time.
    pub fn new(model: &ModelConfig, eagle: &EagleConfig) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(SEED);
        let side = CELLS * 2 * eagle.vision.patch_size;
        let image_token = eagle.image_token_index as i64;
        let words = i64::try_from(eagle.text.vocab_size).unwrap_or(i64::MAX).min(image_token).max(1);
        let image_tokens = CELLS * CELLS;
        let length = 2 * TEXT + image_tokens;
        let input_ids = Array2::from_shape_fn((1, length), |(_, column)| {
            if (TEXT..TEXT + image_tokens).contains(&column) {
                image_token
            } else {
                random.random_range(0..words)
            }
        });
        let inputs = ModelInputs {
            images: Array4::from_shape_simple_fn((1, side, side, 3), || random.random()),
            attention_mask: Array2::from_elem((1, length), true),
            input_ids,
            state: Array3::from_shape_simple_fn((1, 1, model.max_state_dim), || {
                random.sample(StandardNormal)
            }),
        };
        let noise = (1, model.action_horizon, model.max_action_dim);
        Self { inputs, noise: Array3::from_shape_simple_fn(noise, || random.sample(StandardNormal)) }
    }

    /// The features (1, S, D) of the plain backbone, and the prompt's layout.
    ///
    /// # Errors
    /// What libtorch reports.
    pub fn features(&self, backbone: &mut Backbone) -> Result<(Tensor, TokenLayout), ModelError> {
        let ModelInputs { images, input_ids, attention_mask, .. } = &self.inputs;
        let layout = backbone.layout(input_ids.view(), attention_mask.view())?;
        let features =
            backbone.forward(images.view(), input_ids.view(), attention_mask.view(), &mut Probe::off())?;
        Ok((duplicate(&features.features)?, layout))
    }

    /// The same on joined products with `operators` between them.
    ///
    /// # Errors
    /// What libtorch or the operators report.
    pub fn joined_features(
        &self,
        backbone: &mut Backbone,
        layout: &TokenLayout,
        operators: &dyn BackboneOperators,
    ) -> Result<Tensor, ModelError> {
        let size = self.inputs.images.shape().iter().map(|&n| n as i64).collect::<Vec<_>>();
        let flat: Vec<u8> = self.inputs.images.iter().copied().collect();
        let frames = Tensor::f_from_slice(&flat)?.f_reshape(size)?.f_to_device(backbone.device())?;
        let images = backbone.vision().forward_joined(&frames, operators)?;
        let language = backbone.language();
        let embeddings = language.embed(layout, &images)?;
        language.forward_joined(embeddings, &language.context(layout)?, operators)
    }

    /// The way from the noise to the actions (1, horizon, action dim) of a head: the noise itself, which every head starts
    /// from, would hide differences.
    ///
    /// # Errors
    /// What the head reports.
    pub fn way(
        &self,
        head: &mut ActionHead,
        features: &Tensor,
        layout: &TokenLayout,
    ) -> Result<Tensor, ModelError> {
        let off = &mut Probe::off();
        let tokens = head.condition(features, layout, &to_tensor(self.inputs.state.view())?, off)?;
        let noise = to_tensor(self.noise.view())?;
        let actions = head.denoise(&tokens, &noise, off)?;
        Ok(actions.f_sub(&noise.f_to_device(actions.device())?)?)
    }
}

/// The cosine of the angle between `found` and `expected`.
///
/// # Errors
/// [`ModelError::Disagreement`] below [`LEAST_COSINE`], or where a value is not finite.
pub fn agree(what: &'static str, found: &Tensor, expected: &Tensor) -> Result<f64, ModelError> {
    let flat = |x: &Tensor| x.f_reshape([-1]).and_then(|x| x.f_to_kind(Kind::Double));
    let (found, expected) = (flat(found)?, flat(expected)?);
    let length = |x: &Tensor| Ok::<f64, tch::TchError>(x.f_dot(x)?.f_double_value(&[])?.sqrt());
    let cosine = found.f_dot(&expected)?.f_double_value(&[])? / (length(&found)? * length(&expected)?);
    // Written so that NaN does not pass.
    if cosine >= LEAST_COSINE {
        Ok(cosine)
    } else {
        Err(ModelError::Disagreement { what, cosine, least: LEAST_COSINE })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            dit::TorchDit,
            layers::Loader,
            operators::PlainOperators,
            random::RandomWeights,
            small,
            velocity::{LayeredVelocity, VelocityEngine},
        },
        *,
    };
    use tch::Device;

    /// An engine that is wrong in one component of its velocities.
    struct Damaged(Box<dyn VelocityEngine>);

    impl VelocityEngine for Damaged {
        fn identity(&self) -> String {
            "damaged".to_owned()
        }

        fn set_timesteps(&mut self, timesteps: &[i64]) -> Result<(), ModelError> {
            self.0.set_timesteps(timesteps)
        }

        fn condition(
            &mut self,
            x: &Tensor,
            layout: &TokenLayout,
            probe: &mut Probe,
        ) -> Result<(), ModelError> {
            self.0.condition(x, layout, probe)
        }

        fn velocity(
            &mut self,
            step: usize,
            states: &Tensor,
            actions: &Tensor,
            probe: &mut Probe,
        ) -> Result<Tensor, ModelError> {
            let velocity = self.0.velocity(step, states, actions, probe)?;
            let _ = velocity.f_select(2, 0)?.f_mul_scalar_(-1.0)?;
            Ok(velocity)
        }
    }

    #[test]
    fn equal_computations_agree_and_one_that_is_wrong_in_one_joint_does_not() {
        let (model, eagle) = small::configs();
        let trial = Trial::new(&model, &eagle);
        let mut network = small::network(Kind::BFloat16);
        let (features, layout) = trial.features(network.backbone()).unwrap();
        let joined = trial.joined_features(network.backbone(), &layout, &PlainOperators).unwrap();
        assert!(agree("features", &joined, &features).unwrap() > 0.9999);

        let expected = trial.way(network.head(), &features, &layout).unwrap();
        let found = trial.way(network.head(), &features, &layout).unwrap();
        assert!(agree("actions", &found, &expected).unwrap() > 0.999_999);

        let weights = RandomWeights::new(&model, &eagle, 5);
        let at = Loader::new(&weights, Device::Cpu, Kind::BFloat16).at("action_head");
        let dit = Box::new(TorchDit::load(&at.at("model"), &model).unwrap());
        let plain = LayeredVelocity::load(&at, &model, 1, dit).unwrap();
        let mut head = ActionHead::with_engine(&at, &model, 1, Box::new(Damaged(Box::new(plain)))).unwrap();
        let found = trial.way(&mut head, &features, &layout).unwrap();
        let error = agree("fused denoising steps", &found, &expected).unwrap_err().to_string();
        assert!(error.contains("fused denoising steps") && error.contains("0.999"), "{error}");
    }

    #[test]
    fn values_that_are_not_finite_never_agree() {
        let values = Tensor::from_slice(&[1.0, f64::NAN]);
        assert!(agree("actions", &values, &values).is_err());
    }
}
