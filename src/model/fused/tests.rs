//! That the rearranged weights compute what the plain layers compute; each kernel against the plain operator, and all
//! steps against the plain ones, on the emulated GPU and, where there is one, on a real one.
//!
//! Bounds: bf16 keeps 8 bits, so rounding to nearest moves a value by at most half a unit of its last place, 2⁻⁹ to 2⁻⁸ of
//! the value. A kernel that computes in f32 and rounds once is within that of the f32 reference on the same (bf16)
//! operands, but for f32's own rounding ([`units`]); one that rounds several times on the way within a few times that, for
//! values that do not cancel ([`distance`]).

mod attention;
mod backbone;
mod backbone_products;
mod elementwise;
mod machine;
mod norms;
mod products;
mod sequence_attention;
mod steps;

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::super::{
    dit::{BlockContext, TorchDit},
    layers::{Loader, RmsNorm, attention, merge_heads, plain_layer_norm, split_heads},
    probe::Probe,
    tokens::TokenLayout,
    velocity::{LayeredVelocity, VelocityEngine},
};
use super::operators::Operators;
use super::weights::{HeadWeights, Linear, StepTerms};
use super::{FusedQueueing, FusedVelocity};
use crate::checkpoint::{Checkpoint, ModelConfig, OpenOptions, Parts, timesteps};
use crate::model::ModelError;

/// Half a unit of bf16's last place just below a power of two, relative.
const HALF_ULP: f64 = 1.0 / 512.0;
/// Units of the last place that one rounding moves a value, with a little for what f32 lost before.
const ONE_ROUNDING: f64 = 0.52;

fn tiny() -> Checkpoint {
    // Where the program was built, or where it runs: it may have been carried to a machine with a GPU.
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = if built.exists() { built } else { Path::new(".") }.join("tests/golden/tiny");
    Checkpoint::open(&folder, &OpenOptions { parts: Parts::ActionHead, ..OpenOptions::default() }).unwrap()
}

fn normal(size: &[i64], seed: i64) -> Tensor {
    tch::manual_seed(seed);
    Tensor::randn(size, (Kind::Float, Device::Cpu))
}

/// The largest |a - b| / (1 + |b|).
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) =
        (a.to_device(Device::Cpu).to_kind(Kind::Double), b.to_device(Device::Cpu).to_kind(Kind::Double));
    assert_eq!(a.size(), b.size());
    assert_eq!(a.isfinite().logical_not().sum(Kind::Int64).int64_value(&[]), 0, "not finite");
    ((&a - &b).abs() / (b.abs() + 1.0)).max().double_value(&[])
}

/// The largest |a - b| in units of bf16's last place of b; values below 1/64 count as that large.
fn units(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) =
        (a.to_device(Device::Cpu).to_kind(Kind::Double), b.to_device(Device::Cpu).to_kind(Kind::Double));
    assert_eq!(a.size(), b.size());
    assert_eq!(a.isfinite().logical_not().sum(Kind::Int64).int64_value(&[]), 0, "not finite");
    let last_place = (b.abs().clamp_min(1.0 / 64.0).log2().floor() - 7.0).exp2();
    ((a - b).abs() / last_place).max().double_value(&[])
}

fn mean_square(a: &Tensor, b: &Tensor) -> f64 {
    let difference =
        a.to_device(Device::Cpu).to_kind(Kind::Double) - b.to_device(Device::Cpu).to_kind(Kind::Double);
    difference.square().mean(Kind::Double).double_value(&[])
}

/// A prompt layout: in each row `text` tokens with `image` tokens among them, shorter rows padded on the left.
fn layout(rows: &[(usize, usize)], device: Device) -> TokenLayout {
    let length = rows.iter().map(|(text, image)| text + image).max().unwrap();
    let mut ids = ndarray::Array2::zeros((rows.len(), length));
    let mut valid = ndarray::Array2::from_elem((rows.len(), length), false);
    for (row, (text, image)) in rows.iter().enumerate() {
        let start = length - text - image;
        for i in start..length {
            valid[(row, i)] = true;
            ids[(row, i)] = i64::from((start + text / 2..start + text / 2 + image).contains(&i));
        }
    }
    TokenLayout::new(ids.view(), valid.view(), 1, device).unwrap()
}

/// The fused step in plain operators, f32: what the kernels compute, in their order.
struct Plain<'a> {
    weights: &'a HeadWeights,
    terms: StepTerms,
    heads: i64,
    horizon: i64,
}

impl Plain<'_> {
    fn linear(x: &Tensor, linear: &Linear) -> Tensor {
        x.linear(&linear.weight.to_kind(Kind::Float), Some(&linear.bias))
    }

    fn norm(&self, x: &Tensor, step: i64, place: i64, eps: f64) -> Tensor {
        let pair = self.terms.modulation.get(step).get(place);
        plain_layer_norm(x, eps).unwrap() * pair.get(0) + pair.get(1)
    }

    fn velocity(
        &self,
        step: i64,
        states: &Tensor,
        actions: &Tensor,
        text: &Tensor,
        image: &Tensor,
    ) -> Tensor {
        let weights = self.weights;
        let width = weights.token.outputs() as i64;
        let padding = weights.embed.inputs() as i64 - actions.size()[2];
        let embed = actions
            .constant_pad_nd([0, padding])
            .linear(&weights.embed.weight.to_kind(Kind::Float), Some(&self.terms.embedding.get(step)));
        let tokens = Self::linear(&embed.silu(), &weights.token) + weights.positions.as_ref().unwrap();
        let mut x = Tensor::cat(&[states, &tokens], 1);
        for (i, block) in weights.blocks.iter().enumerate() {
            let input = Self::linear(&self.norm(&x, step, i as i64, 1e-5), &block.input);
            let (keys, values) = if block.reads == BlockContext::Own {
                (input.narrow(2, width, width), input.narrow(2, 2 * width, width))
            } else {
                let (group, context) = match block.reads {
                    BlockContext::Text => (weights.text.as_ref().unwrap(), text),
                    _ => (weights.image.as_ref().unwrap(), image),
                };
                let bias = group.bias.to_kind(Kind::Float);
                let all = context.linear(&group.weight.to_kind(Kind::Float), Some(&bias));
                let at = 2 * block.place as i64 * width;
                (all.narrow(2, at, width), all.narrow(2, at + width, width))
            };
            let heads = |x: &Tensor| split_heads(x, self.heads).unwrap();
            let attended =
                attention(&heads(&input.narrow(2, 0, width)), &heads(&keys), &heads(&values), None).unwrap();
            x += Self::linear(&merge_heads(&attended).unwrap(), &block.out);
            let fed = Self::linear(&plain_layer_norm(&x, 1e-5).unwrap(), &block.ff_in).gelu("tanh");
            x += Self::linear(&fed, &block.ff_out);
        }
        let normed = self.norm(&x, step, weights.blocks.len() as i64, 1e-6);
        let decoded = Self::linear(&Self::linear(&normed, &weights.decode).relu(), &weights.velocity);
        decoded.narrow(1, decoded.size()[1] - self.horizon, self.horizon).narrow(2, 0, actions.size()[2])
    }
}

#[test]
fn joined_and_multiplied_out_weights_compute_the_plain_velocity() {
    let checkpoint = tiny();
    let config = &checkpoint.config;
    let at = |kind| Loader::new(&checkpoint.weights, Device::Cpu, kind).at("action_head");
    let embodiment = 1;
    let steps = timesteps(4, config.num_timestep_buckets);
    let dit = TorchDit::load(&at(Kind::Float).at("model"), config).unwrap();
    let mut layered = LayeredVelocity::load(&at(Kind::Float), config, embodiment, Box::new(dit)).unwrap();
    layered.set_timesteps(&steps).unwrap();

    let weights = HeadWeights::load(&at(Kind::BFloat16), config, embodiment).unwrap();
    let plain = Plain {
        terms: weights.step_terms(&steps).unwrap(),
        weights: &weights,
        heads: config.diffusion.num_attention_heads as i64,
        horizon: config.action_horizon as i64,
    };
    let layout = layout(&[(9, 12)], Device::Cpu);
    let context = normal(&[1, 21, config.backbone_embedding_dim as i64], 1);
    layered.condition(&context, &layout, &mut Probe::off()).unwrap();
    let (text, image) = (layout.text.gather(&context).unwrap(), layout.image.gather(&context).unwrap());
    let states = normal(&[1, 1, config.input_embedding_dim as i64], 2);
    let actions = normal(&[1, config.action_horizon as i64, config.max_action_dim as i64], 3);
    for step in 0..4 {
        let expected = layered.velocity(step, &states, &actions, &mut Probe::off()).unwrap();
        let found = plain.velocity(step as i64, &states, &actions, &text, &image);
        // The checkpoint's weights are bf16 values: only those that are multiplied out are rounded, two of the layers.
        let worst = distance(&found, &expected);
        assert!(worst < 4.0 * HALF_ULP, "step {step}: {worst}");
        assert!(expected.abs().max().double_value(&[]) > 0.1, "a velocity that says nothing");
    }
}

#[test]
fn a_cpu_is_refused_with_what_to_choose() {
    let checkpoint = tiny();
    let at = Loader::new(&checkpoint.weights, Device::Cpu, Kind::BFloat16).at("action_head");
    let error = FusedVelocity::load(&at, &checkpoint.config, 0).err().unwrap().to_string();
    assert!(error.contains("choose cuda"), "{error}");
    let error = Operators::new(Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("NVIDIA"), "{error}");
}

#[test]
fn a_step_without_timesteps_context_or_fitting_inputs_is_refused() {
    let Some(device) = machine::gpu("a_step_without_timesteps_context_or_fitting_inputs_is_refused") else {
        return;
    };
    let checkpoint = tiny();
    let config = &checkpoint.config;
    let at = Loader::new(&checkpoint.weights, device, Kind::BFloat16).at("action_head");
    let mut engine = FusedVelocity::load(&at, config, 1).unwrap();
    engine.set_queueing(FusedQueueing::Eager);
    let states = Tensor::zeros([1, 1, config.input_embedding_dim as i64], (Kind::BFloat16, device));
    let noise =
        Tensor::zeros([1, config.action_horizon as i64, config.max_action_dim as i64], (Kind::Float, device));
    let error = engine.denoise(&states, &noise).unwrap_err().to_string();
    assert!(error.contains("condition"), "{error}");
    let context = Tensor::zeros([1, 21, config.backbone_embedding_dim as i64], (Kind::BFloat16, device));
    engine.condition(&context, &layout(&[(9, 12)], device), &mut Probe::off()).unwrap();
    let error = engine.velocity(0, &states, &noise, &mut Probe::off()).unwrap_err().to_string();
    assert!(error.contains("denoising step"), "{error}");
    let error = engine.denoise(&states, &noise.narrow(1, 0, 3)).unwrap_err().to_string();
    assert!(error.contains("noisy actions"), "{error}");
}
