//! The loaded policy: noise, denoising steps, checkpoints in other layouts, and what it refuses.

#[path = "support/checkpoint_writer.rs"]
mod checkpoint_writer;

use std::path::Path;

use checkpoint_writer::{
    SINGLE_FILE, copy_side_files, deal, read_tensors, tiny_checkpoint, write_shards, write_tensors,
};
use groot_policy::{
    engine::{EngineChoice, Precision},
    execution::{ExecutionMode, Preprocessing},
    model::{
        ModelError,
        policy::{Noise, Policy, PolicyError, PolicyOptions, PredictRequest, Prediction, seeded_noise},
    },
    observation::Observation,
};
use image::RgbImage;
use tempfile::TempDir;

fn options(checkpoint: &Path) -> PolicyOptions {
    PolicyOptions {
        checkpoint: checkpoint.to_owned(),
        tokenizer: Some(tiny_checkpoint().join("../tokenizer")),
        embodiment: "new_embodiment".to_owned(),
        device: "cpu".to_owned(),
        ..PolicyOptions::default()
    }
}

fn load(checkpoint: &Path) -> Policy {
    Policy::load(&options(checkpoint)).unwrap()
}

fn observation(policy: &Policy) -> Observation {
    let mut observation = policy.processor().blank_observation();
    observation.instruction = "pick up the can".to_owned();
    for (i, frames) in observation.video.values_mut().enumerate() {
        frames[0] = RgbImage::from_fn(320, 240, |x, y| image::Rgb([x as u8, y as u8, (40 * i) as u8]));
    }
    observation
}

fn assert_equal(a: &Prediction, b: &Prediction) {
    assert_eq!(a.normalised, b.normalised);
    assert_eq!(a.actions, b.actions);
}

#[test]
fn equal_seeds_give_equal_actions_and_the_noise_itself_may_be_given() {
    let mut policy = load(&tiny_checkpoint());
    let observation = observation(&policy);
    let first = policy.predict(&PredictRequest::new(observation.clone(), Noise::Seed(5))).unwrap();
    assert_equal(&first, &policy.predict(&PredictRequest::new(observation.clone(), Noise::Seed(5))).unwrap());
    let noise = seeded_noise(5, policy.noise_shape());
    assert_equal(
        &first,
        &policy.predict(&PredictRequest::new(observation.clone(), Noise::Given(noise))).unwrap(),
    );
    // Prepared by another thread, while this one predicts something else.
    let (preparation, own) = (policy.preparation(), observation.clone());
    let elsewhere = std::thread::spawn(move || preparation.prepare(&own).unwrap());
    policy.predict(&PredictRequest::new(observation.clone(), Noise::Seed(6))).unwrap();
    let prepared = Some(elsewhere.join().unwrap());
    let request = PredictRequest { prepared, ..PredictRequest::new(observation.clone(), Noise::Seed(5)) };
    assert_equal(&first, &policy.predict(&request).unwrap());
    let other = policy.predict(&PredictRequest::new(observation.clone(), Noise::Seed(6))).unwrap();
    assert_ne!(first.normalised, other.normalised);
    assert_eq!((first.seed, other.seed), (Some(5), Some(6)));
}

#[test]
fn frames_become_the_same_images_on_the_gpu_and_a_network_on_the_cpu_leaves_them_to_the_cpu() {
    let mut policy = load(&tiny_checkpoint());
    let error = policy.set_preprocessing(Preprocessing::Gpu).unwrap_err().to_string();
    assert!(error.contains("Cpu") && error.contains("pre-process on the CPU"), "{error}");
    for on in [Preprocessing::Cpu, Preprocessing::Auto] {
        policy.set_preprocessing(on).unwrap();
        assert_eq!(policy.preprocessing(), Preprocessing::Cpu);
    }
    for mode in [ExecutionMode::Eager, ExecutionMode::Graph] {
        let on_gpu = PolicyOptions { device: "cuda".to_owned(), mode, ..options(&tiny_checkpoint()) };
        let mut policy = match Policy::load(&on_gpu) {
            Ok(policy) => policy,
            Err(error) => return eprintln!("skipped on the GPU: {error}"),
        };
        let observation = observation(&policy);
        let predict = |policy: &mut Policy| {
            policy.predict(&PredictRequest::new(observation.clone(), Noise::Seed(5))).unwrap()
        };
        // Captured ones make their images on the GPU of their own accord.
        let own = if mode == ExecutionMode::Graph { Preprocessing::Gpu } else { Preprocessing::Cpu };
        assert_eq!(policy.preprocessing(), own);
        policy.set_preprocessing(Preprocessing::Cpu).unwrap();
        // Captured from the second one of a shape on.
        let expected = [(); 3].map(|()| predict(&mut policy)).into_iter().next_back().unwrap();
        policy.set_preprocessing(Preprocessing::Gpu).unwrap();
        for _ in 0..2 {
            assert_equal(&expected, &predict(&mut policy));
        }
    }
}

#[test]
fn seeded_noise_is_standard_normal() {
    let noise = seeded_noise(1, (500, 128));
    let count = noise.len() as f64;
    let mean = noise.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
    let variance = noise.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
    // Five standard errors.
    assert!(mean.abs() < 5.0 / count.sqrt(), "{mean}");
    assert!((variance - 1.0).abs() < 5.0 * (2.0 / count).sqrt(), "{variance}");
}

#[test]
fn noise_of_another_shape_is_refused_with_both_shapes() {
    let mut policy = load(&tiny_checkpoint());
    let observation = observation(&policy);
    let (rows, columns) = policy.noise_shape();
    let noise = seeded_noise(5, (rows + 1, columns));
    let error = policy
        .predict(&PredictRequest::new(observation.clone(), Noise::Given(noise)))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&format!("{rows}, {columns}")) && error.contains(&(rows + 1).to_string()),
        "{error}"
    );
}

#[test]
fn the_number_of_denoising_steps_can_be_set_and_changed() {
    let six = PolicyOptions { denoising_steps: Some(6), ..options(&tiny_checkpoint()) };
    let mut policy = Policy::load(&six).unwrap();
    let observation = observation(&policy);
    let with_six = policy.predict(&PredictRequest::new(observation.clone(), Noise::Seed(5))).unwrap();
    policy.set_denoising_steps(4).unwrap();
    let with_four = policy.predict(&PredictRequest::new(observation.clone(), Noise::Seed(5))).unwrap();
    assert_ne!(with_six.normalised, with_four.normalised);
    assert_equal(
        &with_four,
        &load(&tiny_checkpoint()).predict(&PredictRequest::new(observation.clone(), Noise::Seed(5))).unwrap(),
    );
    let error = policy.set_denoising_steps(0).unwrap_err().to_string();
    assert!(error.contains("1 to 1000") && error.contains("found 0"), "{error}");
}

#[test]
fn a_sharded_checkpoint_in_f32_gives_the_same_actions_as_the_single_file_in_bf16() {
    let tensors = read_tensors(&tiny_checkpoint().join(SINGLE_FILE));
    let sharded = TempDir::new().unwrap();
    copy_side_files(&tiny_checkpoint(), sharded.path());
    // Every bf16 value is an f32 value.
    let wide =
        tensors.into_iter().map(|(name, tensor)| (name, tensor.cast(safetensors::Dtype::F32))).collect();
    write_shards(sharded.path(), &deal(wide, 3));
    let mut single = load(&tiny_checkpoint());
    let observation = observation(&single);
    let expected = single.predict(&PredictRequest::new(observation.clone(), Noise::Seed(5))).unwrap();
    assert_equal(
        &expected,
        &load(sharded.path()).predict(&PredictRequest::new(observation.clone(), Noise::Seed(5))).unwrap(),
    );
}

#[test]
fn a_network_that_computes_nan_gives_an_error_that_names_the_stage_and_never_a_chunk() {
    for (poisoned, stage) in [
        ("backbone.model.language_model.model.norm.weight", "backbone"),
        ("action_head.model.proj_out_2.bias", "action head"),
    ] {
        let mut tensors = read_tensors(&tiny_checkpoint().join(SINGLE_FILE));
        let tensor = tensors.get_mut(poisoned).unwrap();
        // The first bf16 value becomes a quiet NaN.
        tensor.data[..2].copy_from_slice(&[0xc0, 0x7f]);
        let broken = TempDir::new().unwrap();
        copy_side_files(&tiny_checkpoint(), broken.path());
        write_tensors(&broken.path().join(SINGLE_FILE), &tensors);
        let mut policy = load(broken.path());
        let observation = observation(&policy);
        match policy.predict(&PredictRequest::new(observation.clone(), Noise::Seed(5))) {
            Err(PolicyError::Model(ModelError::NonFinite { stage: found, count })) => {
                assert_eq!(found, stage);
                assert!(count > 0);
            }
            Err(other) => panic!("{poisoned}: {other}"),
            Ok(_) => panic!("{poisoned}: a chunk was handed out"),
        }
    }
}

#[test]
fn observations_that_do_not_fit_are_refused_with_what_is_missing() {
    let mut policy = load(&tiny_checkpoint());
    let whole = observation(&policy);
    let (camera, key) =
        (whole.video.keys().next().unwrap().clone(), whole.state.keys().next().unwrap().clone());

    let mut lacking = whole.clone();
    lacking.video.remove(&camera);
    let error =
        policy.predict(&PredictRequest::new(lacking.clone(), Noise::Seed(0))).unwrap_err().to_string();
    assert!(error.contains(&camera) && error.contains("expected 1 frame(s), found 0"), "{error}");

    let mut uneven = whole.clone();
    uneven.video.get_mut(&camera).unwrap()[0] = RgbImage::new(100, 100);
    let error = policy.predict(&PredictRequest::new(uneven.clone(), Noise::Seed(0))).unwrap_err().to_string();
    assert!(error.contains("one size after resizing") && error.contains("(256, 256)"), "{error}");

    let mut lacking = whole.clone();
    lacking.state.remove(&key);
    let error =
        policy.predict(&PredictRequest::new(lacking.clone(), Noise::Seed(0))).unwrap_err().to_string();
    assert!(error.contains(&key), "{error}");

    let mut broken = whole.clone();
    broken.state.get_mut(&key).unwrap()[(0, 0)] = f32::NAN;
    let error = policy.predict(&PredictRequest::new(broken.clone(), Noise::Seed(0))).unwrap_err().to_string();
    assert!(error.contains(&key) && error.contains("NaN"), "{error}");

    let mut silent = whole.clone();
    silent.instruction.clear();
    assert!(policy.predict(&PredictRequest::new(silent.clone(), Noise::Seed(0))).is_ok());
    assert!(
        policy.predict(&PredictRequest::new(whole.clone(), Noise::Seed(0))).is_ok(),
        "the policy goes on after refusals"
    );
}

#[test]
fn an_embodiment_that_the_checkpoint_does_not_know_is_refused_with_those_it_knows() {
    let unknown = PolicyOptions { embodiment: "r2d2".to_owned(), ..options(&tiny_checkpoint()) };
    let error = Policy::load(&unknown).err().unwrap().to_string();
    assert!(error.contains("r2d2") && error.contains("new_embodiment"), "{error}");
}

#[test]
fn a_tensorrt_engine_is_refused_on_the_cpu_before_anything_else_is_loaded() {
    let engine = EngineChoice { folder: "engines".into(), precision: Precision::Fp16, auto_build: true };
    let options = PolicyOptions { engine: Some(engine), ..options(&tiny_checkpoint()) };
    let error = Policy::load(&options).err().unwrap().to_string();
    assert!(error.contains("TensorRT engine"), "{error}");
}
