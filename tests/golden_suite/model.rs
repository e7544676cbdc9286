//! Whole ticks: every stored intermediate of every observation, in f32 and bf16.

use groot_policy::model::{
    policy::{Noise, Policy, PolicyOptions, PredictRequest},
    probe::Probe,
    tick::{TickInputs, runner::TickRunner},
    tokens::TokenLayout,
};
use groot_policy::processor::{
    ModelInputs,
    guidance::{Guidance, PlannedActions},
    text::IMAGE_TOKEN_ID,
};
use ndarray::{Array2, Array3, ArrayD, ArrayView2, Axis, Ix3, s};
use tch::{Kind, Tensor};

use crate::{
    fixture::{Fixture, GoldenFile, ObservationInfo},
    observations::observations,
    tensors::{Comparison, to_array, to_tensor},
};

/// f32: what an independent implementation is asked to reach, absolute.
const F32_LIMIT: f64 = 5e-5;
/// bf16: what two independent bf16 implementations differ by on the actions (values up to 6.7), absolute.
const BF16_ACTIONS_LIMIT: f64 = 0.063;
/// bf16: what they differ by on hidden states, over the largest value (0.30 on values up to 9).
const BF16_HIDDEN_LIMIT: f64 = 0.30 / 9.0;

/// `GROOT_TEST_DEVICE=cuda` runs the whole ticks on a GPU.
fn device() -> String {
    std::env::var("GROOT_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned())
}

fn policy(fixture: &Fixture, tag: &str, kind: Kind) -> Policy {
    Policy::load(&PolicyOptions {
        checkpoint: fixture.dir.clone(),
        tokenizer: Some(fixture.tokenizer_dir()),
        embodiment: tag.to_owned(),
        device: device(),
        kind: Some(kind),
        ..PolicyOptions::default()
    })
    .unwrap()
}

fn noise(inputs: &GoldenFile) -> Array3<f32> {
    inputs.f32("noise").into_dimensionality::<Ix3>().unwrap()
}

/// Model inputs of an observation, made from its raw frames, state and text.
fn prepare(fixture: &Fixture, info: &ObservationInfo, policy: &Policy) -> ModelInputs {
    policy.processor().prepare_batch(&observations(fixture, info)).unwrap()
}

/// What our run says under a golden name; None where the name is none of a tick's.
fn find(name: &str, probe: &Probe, inputs: &ModelInputs) -> Option<Tensor> {
    if let Some(tensor) = probe.get(name) {
        return Some(tensor.shallow_clone());
    }
    // One image's part of what is computed for all images at once; position embeddings are the same for all.
    if let Some((stem, index)) = name.rsplit_once(".image") {
        let all = probe.get(stem)?;
        return Some(if all.dim() == 3 { all.get(index.parse().ok()?) } else { all.shallow_clone() });
    }
    let mask = |keep: &dyn Fn(usize, usize) -> bool| {
        let (rows, columns) = inputs.input_ids.dim();
        let flat: Vec<bool> = (0..rows * columns).map(|i| keep(i / columns, i % columns)).collect();
        Tensor::from_slice(&flat).reshape([rows as i64, columns as i64])
    };
    match name {
        "backbone_attention_mask" => Some(mask(&|r, c| inputs.attention_mask[(r, c)])),
        "image_mask" => Some(mask(&|r, c| inputs.input_ids[(r, c)] == IMAGE_TOKEN_ID)),
        _ => None,
    }
}

/// Golden file as f64, integers and booleans too.
fn golden(file: &GoldenFile, name: &str, dtype: &str) -> ArrayD<f64> {
    match dtype {
        "int64" | "bool" => file.i64(name).mapv(|v| v as f64),
        _ => file.f64(name),
    }
}

fn run_observation(
    fixture: &Fixture,
    info: &ObservationInfo,
    mode: &str,
    limit: impl Fn(&str, &ArrayD<f64>) -> f64,
) {
    let kind = if mode == "fp32" { Kind::Float } else { Kind::BFloat16 };
    let mut policy = policy(fixture, &info.embodiment_tag, kind);
    let inputs = prepare(fixture, info, &policy);
    let raw = fixture.file(&format!("{}.inputs", info.name));
    let mut probe = Probe::on();
    let actions = if mode == "bf16" {
        run_with_bf16_accumulator(&mut policy, &inputs, &noise(&raw), &mut probe)
    } else {
        policy.run(&inputs, noise(&raw).view(), &mut probe).unwrap().0
    };

    let stem = format!("{}.{mode}", info.name);
    let file = fixture.file(&stem);
    let mut comparison = Comparison::default();
    let states: Vec<_> = observations(fixture, info).into_iter().map(|o| o.state).collect();
    for tensor in fixture.manifest.tensors.iter().filter(|t| t.file == format!("{stem}.safetensors")) {
        let name = tensor.name.as_str();
        let want = golden(&file, name, &tensor.dtype);
        if let Some(key) = name.strip_prefix("action.") {
            let rows: Vec<Tensor> = actions
                .axis_iter(Axis(0))
                .zip(&states)
                .map(|(row, state)| {
                    let decoded = policy.processor().decode(row, state).unwrap();
                    let (_, values) = decoded.into_iter().find(|(k, _)| k == key).unwrap();
                    to_tensor(&values.mapv(f64::from).into_dyn(), Kind::Double)
                })
                .collect();
            comparison.check(name, &Tensor::stack(&rows, 0), &want, limit(name, &want));
        } else if name == "head.timesteps" {
            let ours = groot_policy::model::action_head::timesteps(want.len(), buckets(fixture));
            comparison.check(name, &Tensor::from_slice(&ours), &want, 0.5);
        } else if name == "action_pred_model_dtype" {
            let ours = to_tensor(&actions.mapv(f64::from).into_dyn(), Kind::BFloat16);
            comparison.check(name, &ours, &want, limit(name, &want));
        } else if let Some(ours) = find(name, &probe, &inputs) {
            comparison.check(name, &ours, &want, limit(name, &want));
        } else {
            comparison.fail(format!("{name}: the golden file has it, our run has not"));
        }
    }
    comparison.finish(&stem);
}

/// What the unmodified reference does: noise, Euler steps and result in bf16. Ours never does, so the loop is the test's.
fn run_with_bf16_accumulator(
    policy: &mut Policy,
    inputs: &ModelInputs,
    noise: &Array3<f32>,
    probe: &mut Probe,
) -> Array3<f32> {
    let state = to_tensor(&inputs.state.mapv(f64::from).into_dyn(), Kind::Float);
    let features = {
        let images = inputs.images.view();
        let (ids, mask) = (inputs.input_ids.view(), inputs.attention_mask.view());
        policy.backbone().forward(images, ids, mask, probe).unwrap().features
    };
    let layout = layout(inputs);
    let tokens = policy.head().condition(&features, &layout, &state, probe).unwrap();
    let mut actions = to_tensor(&noise.mapv(f64::from).into_dyn(), Kind::BFloat16).to_device(tokens.device());
    let steps = policy.head().steps();
    for step in 0..steps {
        let velocity = policy.head().velocity(&tokens, &actions, step, probe).unwrap();
        // Not in place: the probe still holds the old value.
        actions = actions.f_add(&(velocity * (1.0 / steps as f64))).unwrap();
        probe.record(|| format!("head.step{step}.actions_out"), &actions);
    }
    probe.record(|| "action_pred".to_owned(), &actions);
    to_array(&actions).mapv(|v| v as f32).into_dimensionality::<Ix3>().unwrap()
}

fn layout(inputs: &ModelInputs) -> TokenLayout {
    let (ids, mask) = (inputs.input_ids.view(), inputs.attention_mask.view());
    let device = groot_policy::model::device::select(&device()).unwrap();
    TokenLayout::new(ids, mask, IMAGE_TOKEN_ID, device).unwrap()
}

fn buckets(fixture: &Fixture) -> usize {
    groot_policy::checkpoint::Checkpoint::open(&fixture.dir, &Default::default())
        .unwrap()
        .config
        .num_timestep_buckets
}

#[test]
fn every_f32_intermediate_of_every_observation_is_reproduced() {
    let fixture = Fixture::load();
    for info in &fixture.manifest.observations {
        run_observation(&fixture, info, "fp32", |_, _| F32_LIMIT);
    }
}

#[test]
fn every_bf16_intermediate_of_every_observation_is_within_what_two_implementations_differ_by() {
    let fixture = Fixture::load();
    for info in &fixture.manifest.observations {
        run_observation(&fixture, info, "bf16", bf16_limit);
    }
}

#[test]
fn denoising_in_bf16_with_an_f32_accumulator_is_reproduced_from_the_raw_observation() {
    let fixture = Fixture::load();
    for info in &fixture.manifest.observations {
        run_observation(&fixture, info, "bf16_fp32acc", bf16_limit);
    }
}

fn bf16_limit(name: &str, want: &ArrayD<f64>) -> f64 {
    let largest = want.iter().fold(0f64, |m, v| m.max(v.abs()));
    if name.starts_with("action.") {
        // Physical units: the normalised range of ±1 is stretched to the joint's range.
        BF16_ACTIONS_LIMIT * largest.max(1.0)
    } else if name.starts_with("action_pred") || name.contains(".actions_") {
        BF16_ACTIONS_LIMIT
    } else {
        BF16_HIDDEN_LIMIT * largest
    }
}

/// One runner for all observations, so that instruction, cameras and batch change between its ticks.
#[test]
fn f32_actions_with_the_prompts_prefix_kept_are_the_references() {
    let fixture = Fixture::load();
    let mut tags: Vec<&str> =
        fixture.manifest.observations.iter().map(|info| info.embodiment_tag.as_str()).collect();
    tags.sort_unstable();
    tags.dedup();
    for tag in tags {
        let mut policy = policy(&fixture, tag, Kind::Float);
        let mut runner = TickRunner::plain();
        runner.set_prefix_reuse(true);
        let own = || fixture.manifest.observations.iter().filter(|info| info.embodiment_tag == tag);
        for info in own().chain(own()) {
            let model = prepare(&fixture, info, &policy);
            let noise = noise(&fixture.file(&format!("{}.inputs", info.name)));
            let inputs = TickInputs { model: &model, noise: noise.view(), guidance: None, images: None };
            let mut run = || runner.run(&inputs, &mut policy.network().parts()).unwrap().0;
            let actions = run();
            assert_eq!(actions, run(), "{}: what is kept is what was computed", info.name);
            let want = fixture.file(&format!("{}.fp32", info.name)).f64("action_pred");
            let ours = to_tensor(&actions.mapv(f64::from).into_dyn(), Kind::Float);
            let mut comparison = Comparison::default();
            comparison.check("action_pred", &ours, &want, F32_LIMIT);
            comparison.finish(&info.name);
        }
    }
}

/// Each denoising step from the reference's own accumulator and context: nothing accumulates, so the limit is tight.
#[test]
fn each_bf16_denoising_step_alone_is_reproduced_from_the_references_own_inputs() {
    let fixture = Fixture::load();
    for info in &fixture.manifest.observations {
        let mut policy = policy(&fixture, &info.embodiment_tag, Kind::BFloat16);
        let inputs = prepare(&fixture, info, &policy);
        let backbone = fixture.file(&format!("{}.bf16", info.name));
        let file = fixture.file(&format!("{}.bf16_fp32acc", info.name));
        let gpu = groot_policy::model::device::select(&device()).unwrap();
        let features = to_tensor(&backbone.f64("backbone_features"), Kind::BFloat16).to_device(gpu);
        let state = to_tensor(&inputs.state.mapv(f64::from).into_dyn(), Kind::Float);
        let layout = layout(&inputs);
        let mut off = Probe::off();
        let tokens = policy.head().condition(&features, &layout, &state, &mut off).unwrap();
        let mut comparison = Comparison::default();
        let steps = file.i64("head.timesteps").len();
        for step in 0..steps {
            let accumulator = file.f64(&format!("head.step{step}.actions_acc_in"));
            let accumulator = to_tensor(&accumulator, Kind::Float).to_device(gpu);
            let mut probe = Probe::on();
            let velocity = policy.head().velocity(&tokens, &accumulator, step, &mut probe).unwrap();
            for part in ["actions_in", "temb", "action_encoder_out", "sa_embs", "dit_out", "decoder_out"] {
                let name = format!("head.step{step}.{part}");
                let want = file.f64(&name);
                comparison.check(&name, probe.get(&name).unwrap(), &want, bf16_limit(&name, &want));
            }
            let name = format!("head.step{step}.actions_out");
            let want = file.f64(&name);
            let ours = accumulator + velocity.to_kind(Kind::Float) / steps as f64;
            comparison.check(&name, &ours, &want, bf16_limit(&name, &want));
        }
        comparison.finish(&format!("{} step by step", info.name));
    }
}

/// Guidance of every strength beside each other: the first rows frozen, the last free, one in between.
#[test]
fn guided_denoising_meets_its_target_where_it_is_frozen_and_changes_nothing_without_guidance() {
    let fixture = Fixture::load();
    for (info, kind) in
        fixture.manifest.observations.iter().zip([Kind::Float, Kind::BFloat16].into_iter().cycle())
    {
        let mut policy = policy(&fixture, &info.embodiment_tag, kind);
        let inputs = prepare(&fixture, info, &policy);
        let noise = noise(&fixture.file(&format!("{}.inputs", info.name)));
        let mut run = |guidance: Option<&Guidance>| {
            policy.run_guided(&inputs, noise.view(), guidance, &mut Probe::off()).unwrap().0
        };
        let free = run(None);
        assert_eq!(free, run(None));
        let shape = (free.dim().1, free.dim().2);
        let target =
            Array2::from_shape_fn(shape, |(row, column)| ((row * 7 + column * 3) as f32 * 0.37).sin());
        let of = |weight: &dyn Fn(usize) -> f32| {
            let weights = Array2::from_shape_fn(shape, |(row, _)| weight(row));
            Guidance { target: target.clone(), weights }
        };
        // The largest value of the noise and the actions bounds what rounding can do in a step.
        let rounding = 8.0 * f32::EPSILON * free.iter().chain(&noise).fold(1f32, |most, v| most.max(v.abs()));
        let apart = |a: ArrayView2<f32>, b: ArrayView2<f32>| {
            a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max)
        };
        for sample in run(Some(&of(&|_| 1.0))).outer_iter() {
            assert!(apart(sample, target.view()) <= rounding, "{}", info.name);
        }
        let half = shape.0 / 2;
        let guided = run(Some(&of(&|row| {
            if row < half {
                1.0
            } else if row == half {
                0.5
            } else {
                0.0
            }
        })));
        for (sample, free) in guided.outer_iter().zip(free.outer_iter()) {
            let rows = s![..half, ..];
            assert!(apart(sample.slice(rows), target.slice(rows)) <= rounding, "{}", info.name);
            let row = s![half..half + 1, ..];
            let (pulled, alone) =
                (apart(sample.slice(row), target.slice(row)), apart(free.slice(row), target.slice(row)));
            assert!(pulled < alone, "{}: {pulled} {alone}", info.name);
        }
        if kind == Kind::Float {
            let untied = run(Some(&of(&|_| 0.0)));
            let worst = untied.iter().zip(&free).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(f64::from(worst) <= F32_LIMIT, "{}: {worst}", info.name);
        }
    }
}

#[test]
fn guidance_of_another_shape_or_without_finite_values_is_refused() {
    let fixture = Fixture::load();
    let info = &fixture.manifest.observations[0];
    let mut policy = policy(&fixture, &info.embodiment_tag, Kind::Float);
    let inputs = prepare(&fixture, info, &policy);
    let noise = noise(&fixture.file(&format!("{}.inputs", info.name)));
    let shape = policy.noise_shape();
    let zeros = || Array2::<f32>::zeros(shape);
    for (target, weights, part) in [
        (Array2::zeros((1, shape.1)), zeros(), "guidance target"),
        (zeros(), Array2::zeros((shape.0, 1)), "guidance weights"),
        (Array2::from_elem(shape, f32::NAN), zeros(), "found NaN"),
    ] {
        let guidance = Guidance { target, weights };
        let answer = policy.run_guided(&inputs, noise.view(), Some(&guidance), &mut Probe::off());
        let message = answer.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

/// A plan that is the policy's own earlier prediction, asked for again from the same observation: frozen, it comes back.
#[test]
fn a_frozen_plan_comes_back_in_physical_units() {
    let fixture = Fixture::load();
    for info in &fixture.manifest.observations {
        let mut policy = policy(&fixture, &info.embodiment_tag, Kind::Float);
        for observation in observations(&fixture, info) {
            let ask = |noise| PredictRequest::new(observation.clone(), noise);
            let first = policy.predict(&ask(Noise::Seed(1))).unwrap();
            let weights = vec![1.0; policy.processor().action().horizon()];
            let planned = PlannedActions { actions: first.actions.iter().cloned().collect(), weights };
            let request = PredictRequest { planned: Some(planned.clone()), ..ask(Noise::Seed(2)) };
            let again = policy.predict(&request).unwrap();
            let shape = policy.noise_shape();
            // What the network's range can say of the plan, decoded: the plan itself but for what encoding clips.
            let target =
                policy.processor().action().guidance(&planned, &observation.state, shape).unwrap().target;
            let expected = policy.processor().decode(target.view(), &observation.state).unwrap();
            for ((key, values), (_, expected)) in again.actions.iter().zip(&expected) {
                let largest = expected.iter().fold(1f32, |most, value| most.max(value.abs()));
                let worst = values.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                assert!(worst <= 5e-5 * largest, "{} {key}: {worst}", info.name);
            }
        }
    }
}
