//! That the rearranged weights compute what the plain layers compute; each kernel against the plain operator, and all
//! steps against the plain ones, on the emulated GPU and, where there is one, on a real one.
//!
//! Bounds: bf16 keeps 8 bits, so rounding to nearest moves a value by at most half a unit of its last place, 2⁻⁹ to 2⁻⁸ of
//! the value. A kernel that computes in f32 and rounds once is within that of the f32 reference on the same (bf16)
//! operands, but for f32's own rounding ([`units`]); one that rounds several times on the way within a few times that, for
//! values that do not cancel ([`distance`]).

mod attention;
mod backbone;
mod elementwise;
mod machine;
mod norms;
mod products;
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

<<<<<<< HEAD
=======
/// A queue on the default stream, so that libtorch's work before and after it is in order.
fn default_queue(gpu: &Gpu) -> Queue {
    // SAFETY: null is the default stream, which always is.
    Queue::new(unsafe { gpu.external_stream(std::ptr::null_mut()) }, false)
}

#[test]
fn every_shape_of_the_product_agrees_with_the_plain_one() {
    let Some(device) = gpu("every_shape_of_the_product_agrees_with_the_plain_one") else { return };
    let gpu = Gpu::open(0).unwrap();
    let kernels = Kernels::new(&gpu).unwrap();
    let mut gemms = Gemms::new(&gpu).unwrap();
    let mut tried = 0;
    for (rows, n, k) in [(51, 1536, 1536), (17, 192, 520), (3, 100, 24), (120, 144, 256)] {
        let x = normal(&[rows, k], 1).to_kind(Kind::BFloat16).to_device(device);
        let w = (normal(&[n, k], 2) * 0.05).to_kind(Kind::BFloat16).to_device(device);
        let bias = normal(&[n], 3).to_kind(Kind::BFloat16).to_device(device);
        let wide_bias = bias.to_kind(Kind::Float);
        let exact = x.to_kind(Kind::Float).matmul(&w.to_kind(Kind::Float).transpose(0, 1));
        for finish in [None, Some(Activation::GeluTanh), Some(Activation::Silu), Some(Activation::Relu)] {
            let shape = GemmShape { rows: rows as usize, n: n as usize, k: k as usize, finish };
            // Also compiles the kernels.
            let best = gemms.tuned(&kernels, shape).unwrap();
            let mut gemms_to_try = vec![best];
            for skinny in Skinny::ALL {
                for (parts, prefetch) in [(1, false), (2, true)] {
                    let split = (k as usize).div_ceil(parts).next_multiple_of(skinny.chunk());
                    let parts = (k as usize).div_ceil(split);
                    let plan = Plan::Own { skinny, split, depth: parts, prefetch };
                    gemms_to_try.push(std::sync::Arc::new(Gemm { shape, plan }));
                }
                for depth in Skinny::CLUSTERS {
                    let skinny = skinny.in_clusters(depth);
                    let split = (k as usize).div_ceil(depth).next_multiple_of(skinny.chunk());
                    let plan = Plan::Own { skinny, split, depth, prefetch: false };
                    gemms_to_try.push(std::sync::Arc::new(Gemm { shape, plan }));
                }
            }
            for gemm in gemms_to_try {
                let parts =
                    Tensor::full([gemm.plan.parts() as i64, rows, n], f64::NAN, (Kind::Float, device));
                let out = Tensor::full([rows, n], f64::NAN, (Kind::BFloat16, device));
                let call = GemmCall {
                    activations: x.data_ptr() as u64,
                    weight: w.data_ptr() as u64,
                    bias: wide_bias.data_ptr() as u64,
                    bias_bf16: bias.data_ptr() as u64,
                    out: if finish.is_some() { out.data_ptr() } else { parts.data_ptr() } as u64,
                    parts: parts.data_ptr() as u64,
                };
                // SAFETY: tensors of the sizes of the shape, alive until the result is read.
                let queued = unsafe { gemms.multiply(&kernels, &default_queue(&gpu), &gemm, &call) };
                // A shape of the kernel that does not fit this GPU was not compiled.
                if queued.is_err() {
                    continue;
                }
                tried += 1;
                let biased = &exact + &wide_bias;
                let (found, expected, bound) = match finish {
                    // f32 throughout: sums of k products of values around 0.05 in another order.
                    None => (
                        parts.sum_dim_intlist([0i64].as_slice(), false, Kind::Float),
                        exact.shallow_clone(),
                        1e-4,
                    ),
                    Some(Activation::GeluTanh) => (out, biased.gelu("tanh"), 1.1 * HALF_ULP),
                    Some(Activation::Silu) => (out, biased.silu(), 1.1 * HALF_ULP),
                    Some(_) => (out, biased.relu(), 1.1 * HALF_ULP),
                };
                let worst = distance(&found, &expected);
                assert!(worst < bound, "{shape}, {}: {worst}", gemm.plan.name());
            }
        }
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn attention_agrees_with_the_plain_one_for_ragged_lengths() {
    let Some(device) = gpu("attention_agrees_with_the_plain_one_for_ragged_lengths") else { return };
    let gpu = Gpu::open(0).unwrap();
    let kernels = Kernels::new(&gpu).unwrap();
    let cases = [
        (32, 48, 1, 51, None),
        (32, 48, 1, 51, Some(37)),
        (32, 48, 1, 17, Some(1)),
        (4, 16, 2, 17, Some(170)),
        (8, 48, 1, 3, Some(400)),
        (4, 16, 1, 16, None),
        (2, 64, 2, 33, Some(162)),
    ];
    for (heads, width, samples, queries, keys) in cases {
        let kernel = kernels.attention(width as usize).unwrap();
        let (columns, splits) = (heads * width * if keys.is_none() { 3 } else { 1 }, 3);
        let parts = normal(&[splits, samples * queries, columns], 1).to_device(device);
        let bias = normal(&[columns], 2).to_device(device);
        let joined = (parts.sum_dim_intlist([0i64].as_slice(), false, Kind::Float) + &bias)
            .to_kind(Kind::BFloat16)
            .to_kind(Kind::Float)
            .reshape([samples, queries, columns]);
        let width_all = heads * width;
        let count = keys.unwrap_or(queries);
        // Keys and values lie among those of other blocks.
        let cross = normal(&[samples, count, 4 * width_all], 3).to_kind(Kind::BFloat16).to_device(device);
        let (k, v) = match keys {
            Some(_) => {
                let wide = cross.to_kind(Kind::Float);
                (wide.narrow(2, width_all, width_all), wide.narrow(2, 2 * width_all, width_all))
            }
            None => (joined.narrow(2, width_all, width_all), joined.narrow(2, 2 * width_all, width_all)),
        };
        // In a batch, the second sample has fewer keys.
        let short = if samples > 1 && keys.is_some() { count - 9 } else { count };
        let lengths = Tensor::from_slice(&[count as i32, short as i32]).to_device(device);
        let places = Tensor::arange(count, (Kind::Int, device));
        let mask = places.unsqueeze(0).less_tensor(&lengths.narrow(0, 0, samples).unsqueeze(1));
        let mask = mask.reshape([samples, 1, 1, count]);
        let split = |x: &Tensor| split_heads(&x.contiguous(), heads).unwrap();
        let expected =
            attention(&split(&joined.narrow(2, 0, width_all)), &split(&k), &split(&v), Some(&mask));
        let expected = merge_heads(&expected.unwrap()).unwrap();
        let out = Tensor::full([samples, queries, width_all], f64::NAN, (Kind::BFloat16, device));
        let own = keys.is_none();
        let base = cross.data_ptr() as u64;
        let arguments = AttentionArguments {
            parts: parts.data_ptr() as u64,
            bias: bias.data_ptr() as u64,
            keys: if own { 0 } else { base + 2 * width_all as u64 },
            values: if own { 0 } else { base + 4 * width_all as u64 },
            lengths: if own { 0 } else { lengths.data_ptr() as u64 },
            out: out.data_ptr() as u64,
            part_stride: samples * queries * columns,
            splits: splits as i32,
            columns: columns as i32,
            key_stride: 4 * width_all as i32,
            query_count: queries as i32,
            key_count: count as i32,
            scale: (std::f64::consts::LOG2_E / (width as f64).sqrt()) as f32,
        };
        let sizes = (samples as usize, heads as usize, width as usize);
        // SAFETY: tensors of the sizes that the arguments tell, alive until the result is read.
        unsafe { kernels.attend(&default_queue(&gpu), &kernel, sizes, &arguments) }.unwrap();
        // The weights of the softmax are rounded before they meet the values, and the result is: two roundings. Values
        // reach 5, of which the absolute part of the distance keeps a fifth.
        let worst = distance(&out, &expected);
        assert!(
            worst < 8.0 * HALF_ULP,
            "{heads} heads of {width}, {samples} x {queries} over {keys:?}: {worst}"
        );
    }
}

#[test]
fn the_backbone_s_operators_agree_with_the_plain_ones() {
    let Some(device) = gpu("the_backbone_s_operators_agree_with_the_plain_ones") else { return };
    let operators = Operators::new(device).unwrap();
    let bf16 = |size: &[i64], seed| normal(size, seed).to_kind(Kind::BFloat16).to_device(device);
    for (rows, width) in [(51, 2048), (3, 1152), (170, 4608), (1, 64)] {
        let (x, y) = (bf16(&[1, rows, width], 1), bf16(&[1, rows, width], 2));
        let (weight, bias) = (bf16(&[width], 3), bf16(&[width], 4));
        let sum = &x + &y;
        let norm = RmsNorm::new(weight.shallow_clone(), 1e-6);
        for addend in [None, Some(&y)] {
            let input = if addend.is_some() { &sum } else { &x };
            let mut residual = x.copy();
            let found = operators.rms_norm(&mut residual, addend, &weight, 1e-6).unwrap();
            assert_eq!(distance(&residual, input), 0.0, "residual of {rows} x {width}");
            // The same roundings in the same places; the mean's last f32 digit may tip one of them: a unit of bf16's last
            // place twice.
            let worst = distance(&found, &norm.forward(input).unwrap());
            assert!(worst <= 4.0 * HALF_ULP, "RMSNorm {rows} x {width}: {worst}");
            let mut residual = x.copy();
            let found = operators.layer_norm(&mut residual, addend, &weight, &bias, 1e-6).unwrap();
            let wide = |x: &Tensor| x.to_kind(Kind::Float);
            let expected =
                wide(input).layer_norm([width], Some(&wide(&weight)), Some(&wide(&bias)), 1e-6, false);
            let worst = distance(&found, &expected);
            assert!(worst < 1.1 * HALF_ULP, "LayerNorm {rows} x {width}: {worst}");
        }
        let gate = bf16(&[1, rows, 2 * width], 5);
        let found = operators.gated(&gate).unwrap();
        let expected = gate.narrow(2, 0, width).silu() * gate.narrow(2, width, width);
        assert!(distance(&found, &expected) <= 4.0 * HALF_ULP, "SwiGLU {rows} x {width}");
        for (activation, name) in [(Activation::GeluTanh, "tanh"), (Activation::GeluErf, "none")] {
            let found = operators.bias_activation(&x, Some(&bias), activation).unwrap();
            let expected = (&x + &bias).to_kind(Kind::Float).gelu(name);
            assert!(distance(&found, &expected) < 1.1 * HALF_ULP, "GELU {name} {rows} x {width}");
        }
    }
    for (samples, tokens, heads) in [(1, 51, 16), (2, 37, 8), (1, 1, 1)] {
        let width = 128;
        let x = bf16(&[samples, tokens, heads * width + 256], 6);
        let (weight, cos, sin) = (bf16(&[width], 7), bf16(&[tokens, width], 8), bf16(&[tokens, width], 9));
        let found = operators.rotated(&x, heads, &weight, (&cos, &sin), 1e-6).unwrap();
        let split = x.narrow(2, 0, heads * width).reshape([samples, tokens, heads, width]);
        let normed = RmsNorm::new(weight, 1e-6).forward(&split).unwrap().transpose(1, 2);
        let half = width / 2;
        let turned = Tensor::cat(&[-normed.narrow(-1, half, half), normed.narrow(-1, 0, half)], -1);
        let expected = &normed * &cos + &turned * &sin;
        // Products of values up to 4 cancel: a tipped rounding of each shows against 1 in the distance.
        assert!(distance(&found, &expected) < 16.0 * HALF_ULP, "rotation {samples} x {tokens} x {heads}");
    }
}

/// The head on the plain path.
fn plain_head(checkpoint: &Checkpoint, device: Device, kind: Kind) -> ActionHead {
    let at = Loader::new(&checkpoint.weights, device, kind).at("action_head");
    let dit = TorchDit::load(&at.at("model"), &checkpoint.config).unwrap();
    ActionHead::load(&at, &checkpoint.config, 1, Box::new(dit)).unwrap()
}

#[test]
fn fused_steps_are_as_near_to_f32_as_plain_bf16_is() {
    let Some(device) = gpu("fused_steps_are_as_near_to_f32_as_plain_bf16_is") else { return };
    let checkpoint = tiny();
    let config = &checkpoint.config;
    let at = Loader::new(&checkpoint.weights, device, Kind::BFloat16).at("action_head");
    let engine = FusedVelocity::load(&at, config, 1).unwrap();
    let mut fused = ActionHead::with_engine(&at, config, 1, Box::new(engine)).unwrap();
    let mut exact = plain_head(&checkpoint, device, Kind::Float);
    let mut rounded = plain_head(&checkpoint, device, Kind::BFloat16);
    let (mut fused_error, mut rounded_error) = (0.0, 0.0);
    let batches: [&[(usize, usize)]; 4] = [&[(9, 12)], &[(5, 40)], &[(9, 12), (4, 7)], &[(1, 1)]];
    for (seed, rows) in batches.into_iter().enumerate() {
        let seed = 10 * seed as i64;
        let samples = rows.len() as i64;
        let layout = layout(rows, device);
        let features = normal(&[samples, layout.seq_len(), config.backbone_embedding_dim as i64], seed)
            .to_kind(Kind::BFloat16)
            .to_device(device);
        let state =
            normal(&[samples, 1, config.max_state_dim as i64], seed + 1).tanh().to_kind(Kind::BFloat16);
        let noise = normal(&[samples, config.action_horizon as i64, config.max_action_dim as i64], seed + 2);
        let run = |head: &mut ActionHead, kind| {
            let features = features.to_kind(kind);
            let tokens = head.condition(&features, &layout, &state, &mut Probe::off()).unwrap();
            // Twice: queued kernel by kernel, then as what was recorded.
            let first = head.denoise(&tokens, &noise, &mut Probe::off()).unwrap();
            let second = head.denoise(&tokens, &noise, &mut Probe::off()).unwrap();
            // Step by step as well.
            let stepwise = head.denoise(&tokens, &noise, &mut Probe::on()).unwrap();
            (first, second, stepwise)
        };
        let (reference, ..) = run(&mut exact, Kind::Float);
        let (plain, ..) = run(&mut rounded, Kind::BFloat16);
        let (first, second, stepwise) = run(&mut fused, Kind::BFloat16);
        assert_eq!(distance(&first, &second), 0.0, "the recording differs");
        assert!(distance(&stepwise, &first) < 1e-5, "the single steps differ");
        fused_error += mean_square(&first, &reference);
        rounded_error += mean_square(&plain, &reference);
    }
    // Sums and the residual stream keep more than on the plain path.
    assert!(fused_error <= rounded_error, "mean square {fused_error} beside {rounded_error}");
    assert!(rounded_error > 0.0);
}

>>>>>>> integrate
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
