//! What an engine of the fused graph is fed, and how it is judged, with ONNX Runtime in TensorRT's place.

#[path = "support/checkpoint_writer.rs"]
mod checkpoint_writer;
#[path = "engine_builder/graphs.rs"]
mod graphs;
#[allow(dead_code, reason = "shared with the tests of the graphs, which use all of it")]
#[path = "onnx/runner.rs"]
mod runner;
#[cfg(feature = "onnxruntime")]
#[path = "engine_builder/validate.rs"]
mod validate;

use std::{path::PathBuf, sync::Arc};

use checkpoint_writer::{Tensors, tiny_checkpoint};
use groot_policy::{
    checkpoint::{Checkpoint, OpenOptions, Parts},
    engine::{ComputeCapability, GpuRecord, Precision, RebuildCommand, VersionRecord, fused::FusedEngine},
    engine_builder::{
        calibration::inputs::{CalibrationInputs, DenoisingInputs},
        graph::GraphRequest,
        lengths::Lengths,
        synthetic::SyntheticTick,
        verify::{Distance, HeadLatency, Trace, torch_head},
    },
    model::{
        ModelError,
        action_head::ActionHead,
        layers::Loader,
        probe::Probe,
        tensorrt::{CrossProjections, step_terms_tensor},
        tokens::TokenLayout,
        velocity::VelocityEngine,
    },
};
use ndarray::{ArrayD, IxDyn};
use runner::{Runner, array, floats};
use tch::{Device, Kind, Tensor};

const EMBODIMENT: usize = 2;
const TEXT: usize = 9;
const IMAGE: usize = 14;
/// What two f32 implementations may differ by.
const LIMIT: f64 = 5e-5;

fn checkpoint() -> Arc<Checkpoint> {
    let options = OpenOptions { parts: Parts::ActionHead, ..OpenOptions::default() };
    Arc::new(Checkpoint::open(&tiny_checkpoint(), &options).unwrap())
}

fn request() -> GraphRequest {
    GraphRequest {
        embodiment: EMBODIMENT,
        text: Lengths::new(4, TEXT, 20).unwrap(),
        image: Lengths::fixed(IMAGE),
    }
}

fn values(tensor: &Tensor) -> ArrayD<f32> {
    let tensor = tensor.to_kind(Kind::Float).contiguous();
    let mut flat = vec![0f32; tensor.numel()];
    let count = flat.len();
    tensor.copy_data(&mut flat, count);
    let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
    ArrayD::from_shape_vec(IxDyn(&shape), flat).unwrap()
}

fn tensor(array: &ArrayD<f32>) -> Tensor {
    let flat: Vec<f32> = array.iter().copied().collect();
    let shape: Vec<i64> = array.shape().iter().map(|&n| n as i64).collect();
    Tensor::from_slice(&flat).reshape(shape)
}

/// The fused graph, fed as the TensorRT engine is.
struct OnnxVelocity {
    runner: Runner,
    model: PathBuf,
    checkpoint: Arc<Checkpoint>,
    projections: CrossProjections,
    terms: Tensor,
    tick: Tensors,
    /// Added to each velocity, to be found again.
    error: f64,
}

impl OnnxVelocity {
    fn head(error: f64) -> ActionHead {
        let checkpoint = checkpoint();
        let runner = Runner::start();
        let model = request().export(&checkpoint, runner.folder.path()).unwrap().model;
        let at = Loader::new(&checkpoint.weights, Device::Cpu, Kind::Float).at("action_head");
        let engine = Self {
            projections: CrossProjections::load(&at.at("model"), &checkpoint.config).unwrap(),
            runner,
            model,
            checkpoint: Arc::clone(&checkpoint),
            terms: Tensor::new(),
            tick: Tensors::new(),
            error,
        };
        ActionHead::with_engine(&at, &checkpoint.config, EMBODIMENT, Box::new(engine)).unwrap()
    }
}

impl VelocityEngine for OnnxVelocity {
    fn identity(&self) -> String {
        "ONNX Runtime".to_owned()
    }

    fn set_timesteps(&mut self, timesteps: &[i64]) -> Result<(), ModelError> {
        self.terms = step_terms_tensor(&self.checkpoint, EMBODIMENT, timesteps.len())?;
        Ok(())
    }

    fn condition(
        &mut self,
        context: &Tensor,
        layout: &TokenLayout,
        _probe: &mut Probe,
    ) -> Result<(), ModelError> {
        let projected = self.projections.project(context, layout)?;
        self.tick = projected.iter().map(|p| (p.input.to_owned(), floats(&values(&p.tokens)))).collect();
        Ok(())
    }

    fn velocity(
        &mut self,
        step: usize,
        state_tokens: &Tensor,
        actions: &Tensor,
        _probe: &mut Probe,
    ) -> Result<Tensor, ModelError> {
        let mut inputs = self.tick.clone();
        inputs.insert("actions".to_owned(), floats(&values(actions)));
        inputs.insert("state_tokens".to_owned(), floats(&values(state_tokens)));
        inputs.insert("step_terms".to_owned(), floats(&values(&self.terms.select(0, step as i64))));
        let outputs = self.runner.run(&self.model, &inputs);
        Ok(tensor(&array(&outputs["velocity"])) + self.error)
    }
}

fn tick(seed: u64) -> SyntheticTick {
    SyntheticTick::new(&checkpoint().config, seed, TEXT, IMAGE).unwrap()
}

fn distance(error: f64) -> Distance {
    let mut reference = torch_head(&checkpoint(), EMBODIMENT, Device::Cpu, Kind::Float).unwrap();
    let mut tested = OnnxVelocity::head(error);
    let mut distance = Distance::default();
    for seed in 0..2 {
        let trace = Trace::record(&mut reference, &tick(seed), Device::Cpu).unwrap();
        assert!(trace.velocity_rms() > 0.01, "nothing moves");
        distance.add(&trace, &mut tested, &tick(seed), Device::Cpu).unwrap();
    }
    distance
}

#[test]
fn a_head_with_one_engine_for_the_whole_step_denoises_as_the_layered_one() {
    let (velocity, actions) = distance(0.0).summaries();
    let steps = checkpoint().config.num_inference_timesteps;
    assert_eq!((velocity.steps.len(), actions.steps.len()), (steps, steps));
    for step in velocity.steps.iter().chain(&actions.steps) {
        assert!(step.max_abs.unwrap() < LIMIT, "{step:?}");
        assert!(step.max_abs.unwrap() > 0.0, "compared with itself");
    }
}

#[test]
fn an_engine_that_errs_alike_at_each_step_has_a_growing_error_in_the_actions_alone() {
    let error = 0.01;
    let (velocity, actions) = distance(error).summaries();
    let steps = velocity.steps.len() as f64;
    for step in &velocity.steps {
        let mse = step.mse.unwrap();
        assert!((mse / (error * error) - 1.0).abs() < 0.01, "{mse}");
    }
    assert!((velocity.growth().unwrap() - 1.0).abs() < 0.01);
    // After n of N steps the actions are off by n/N of it, but for what the network makes of that.
    let growth = actions.growth().unwrap();
    assert!(growth > steps && growth < 4.0 * steps * steps, "{growth}");
}

#[test]
fn calibration_inputs_are_what_the_engine_is_given_and_lead_to_the_same_velocities() {
    let checkpoint = checkpoint();
    let mut head = torch_head(&checkpoint, EMBODIMENT, Device::Cpu, Kind::Float).unwrap();
    let trace = Trace::record(&mut head, &tick(5), Device::Cpu).unwrap();
    let ticks = [Ok(tick(5))];
    let inputs = DenoisingInputs::record(&checkpoint, EMBODIMENT, &mut head, Device::Cpu, ticks, 5).unwrap();
    assert_eq!(inputs.len(), head.steps());
    let mut runner = Runner::start();
    let model = request().export(&checkpoint, runner.folder.path()).unwrap().model;
    let shapes = request().shapes(&checkpoint.config);
    for (sample, expected) in inputs.samples().iter().zip(trace.velocities()) {
        assert!(shapes.keys().eq(sample.tensors.keys()));
        let tensors: Tensors =
            sample.tensors.iter().map(|(name, tensor)| (name.clone(), floats(&values(tensor)))).collect();
        for (name, tensor) in &tensors {
            let shape: Vec<i64> = tensor.shape.iter().map(|&n| n as i64).collect();
            assert_eq!(shape, shapes[name].opt, "{name}");
        }
        let found = array(&runner.run(&model, &tensors)["velocity"]);
        let worst = found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        assert!(worst < LIMIT, "{worst}");
    }
}

#[test]
fn an_engine_is_asked_for_the_shapes_that_the_graph_is_exported_with() {
    let checkpoint = checkpoint();
    let needs = FusedEngine {
        checkpoint: checkpoint.dir.clone(),
        checkpoint_hash: "blake3:0".to_owned(),
        config: &checkpoint.config,
        embodiment: EMBODIMENT,
        state_tokens: 1,
        precision: Precision::Fp16,
        tensorrt: VersionRecord { major: 10, minor: 3, patch: 0 },
        gpu: GpuRecord {
            name: "GPU".to_owned(),
            compute_capability: ComputeCapability { major: 8, minor: 7 },
        },
    }
    .needs();
    let built = request().shapes(&checkpoint.config);
    assert_eq!(needs.shapes.keys().collect::<Vec<_>>(), built.keys().collect::<Vec<_>>());
    for (name, asked) in &needs.shapes {
        for shape in asked {
            assert_eq!((&built[name].min, &built[name].max), (shape, shape), "{name}");
        }
    }
    let open: Vec<String> = request().profile(&checkpoint.config).unwrap().0.into_keys().collect();
    assert!(
        !open.is_empty() && open.iter().all(|name| name.starts_with("keys_") || name.starts_with("values_"))
    );
    let fixed = GraphRequest { text: Lengths::fixed(TEXT), ..request() };
    assert_eq!(fixed.profile(&checkpoint.config), None);
    let command = RebuildCommand::new(&needs, std::path::Path::new("engines"), None).to_string();
    // Absolute, to be run anywhere.
    let here = std::env::current_dir().unwrap();
    let out = format!("--out {}", here.join("engines").display());
    assert!(command.contains(" --embodiment 2 ") && command.contains(&out), "{command}");
}

#[test]
fn latencies_are_measured_of_the_ticks_after_the_warm_up_alone() {
    let mut head = torch_head(&checkpoint(), EMBODIMENT, Device::Cpu, Kind::Float).unwrap();
    let latency = HeadLatency::measure(&mut head, &tick(0), Device::Cpu, 2, 3).unwrap();
    assert_eq!(latency.summary().count, 3);
    assert!(latency.summary().min > 0.0);
}

#[test]
fn a_batch_is_refused_since_the_graph_has_no_masks() {
    let checkpoint = checkpoint();
    let at = Loader::new(&checkpoint.weights, Device::Cpu, Kind::Float).at("action_head.model");
    let projections = CrossProjections::load(&at, &checkpoint.config).unwrap();
    let ids = ndarray::arr2(&[[0, 1, 1], [0, 0, 1]]);
    let valid = ndarray::Array2::from_elem(ids.dim(), true);
    let layout = TokenLayout::new(ids.view(), valid.view(), 1, Device::Cpu).unwrap();
    let width = checkpoint.config.backbone_embedding_dim as i64;
    let context = Tensor::zeros([2, 3, width], (Kind::Float, Device::Cpu));
    let error = projections.project(&context, &layout).err().unwrap().to_string();
    assert!(error.contains("expected 1 observation") && error.contains("found 2"), "{error}");
}
