//! The transformer's graphs against the golden denoising.

use std::collections::BTreeMap;
use std::path::PathBuf;

use groot_policy::checkpoint::{BlockContext, Checkpoint, timesteps};
use groot_policy::onnx::dit::{
    ConditionOptions, Extent, FusedOptions, KeyValueLayout, ReferenceOptions, StepInput, StepOutput, condition,
    fused, reference, step_terms,
};
use groot_policy::onnx::{ElementType, NormStyle, Style};
use ndarray::{ArrayD, Axis, Slice};
use safetensors::Dtype;

use crate::checkpoint_writer::{Tensor, Tensors};
use crate::fixture::{Fixture, GoldenFile, max_abs_diff};
use crate::runner::{Engine, Runner, array, booleans, floats, integers, signature};

/// f32: what an independent implementation is asked to reach, absolute.
const F32_LIMIT: f64 = 5e-5;

/// One sample of one observation.
struct Sample {
    name: String,
    golden: GoldenFile,
    row: usize,
    embodiment: usize,
    noise: ArrayD<f32>,
    /// The backbone's features at text and at image tokens, (1, tokens, width).
    text: ArrayD<f32>,
    image: ArrayD<f32>,
}

impl Sample {
    fn all(fixture: &Fixture) -> Vec<Self> {
        let mut samples = Vec::new();
        for info in &fixture.manifest.observations {
            let preproc = fixture.file(&format!("{}.preproc", info.name));
            let inputs = fixture.file(&format!("{}.inputs", info.name));
            for row in 0..info.batch {
                let golden = fixture.file(&format!("{}.fp32", info.name));
                let embodiments: Vec<i64> = preproc.i64("embodiment_id").into_iter().collect();
                let features = row_of(&golden.f32("backbone_features"), row);
                let image = row_of(&golden.i64("image_mask"), row);
                let valid = row_of(&golden.i64("backbone_attention_mask"), row);
                let chosen = |wanted: i64| {
                    let keep = image.iter().zip(&valid).enumerate();
                    let keep = keep.filter(|(_, (i, v))| **v != 0 && **i == wanted).map(|(at, _)| at);
                    features.select(Axis(1), &keep.collect::<Vec<_>>())
                };
                samples.push(Self {
                    name: format!("{} row {row}", info.name),
                    row,
                    embodiment: embodiments[row.min(embodiments.len() - 1)] as usize,
                    noise: row_of(&inputs.f32("noise"), row),
                    text: chosen(0),
                    image: chosen(1),
                    golden,
                });
            }
        }
        samples
    }

    fn f32(&self, name: &str) -> ArrayD<f32> {
        row_of(&self.golden.f32(name), self.row)
    }

    fn tokens(&self) -> (usize, usize) {
        (self.text.shape()[1], self.image.shape()[1])
    }
}

fn row_of<T: Clone>(array: &ArrayD<T>, row: usize) -> ArrayD<T> {
    array.slice_axis(Axis(0), Slice::from(row..row + 1)).to_owned()
}

fn open(fixture: &Fixture) -> Checkpoint {
    Checkpoint::open(&fixture.dir, &Default::default()).unwrap()
}

fn compare(what: &str, got: &ArrayD<f32>, want: &ArrayD<f32>, limit: f64) -> f64 {
    let worst = max_abs_diff(what, &got.mapv(f64::from), &want.mapv(f64::from));
    assert!(worst <= limit, "{what}: differs by {worst:.3e}, limit {limit:.1e}");
    worst
}

/// Exports `condition` and `fused` for the options, both checked.
fn export(runner: &mut Runner, checkpoint: &Checkpoint, options: &FusedOptions, stem: &str) -> (PathBuf, PathBuf) {
    let companion = ConditionOptions {
        embodiment: options.embodiment,
        batch: options.batch,
        text_tokens: options.text_tokens,
        image_tokens: options.image_tokens,
        state_tokens: options.state_tokens,
        key_values: options.key_values,
        style: options.style,
    };
    let tick = runner.write(&condition(checkpoint, &companion).unwrap(), &format!("{stem}_condition")).0;
    let step = runner.write(&fused(checkpoint, options).unwrap(), stem).0;
    (tick.model, step.model)
}

/// What the fused graph takes once per tick.
fn tick_inputs(text: &ArrayD<f32>, image: &ArrayD<f32>, state: &ArrayD<f32>) -> Tensors {
    Tensors::from([
        ("text_features".to_owned(), floats(text)),
        ("image_features".to_owned(), floats(image)),
        ("state".to_owned(), floats(state)),
    ])
}

/// The whole denoising, f32 accumulator; `visit` sees the outputs and the accumulator after each step.
fn denoise(
    runner: &mut Runner,
    engine: Engine,
    model: &std::path::Path,
    tick: &Tensors,
    table: Option<&ndarray::Array3<f32>>,
    (noise, steps): (&ArrayD<f32>, usize),
    mut visit: impl FnMut(usize, &Tensors, &ArrayD<f32>),
) -> ArrayD<f32> {
    let mut actions = noise.clone();
    for step in 0..steps {
        let mut inputs = tick.clone();
        inputs.insert("actions".to_owned(), floats(&actions));
        match table {
            Some(table) => {
                let rows = table.index_axis(Axis(0), step).to_owned().into_dyn();
                inputs.insert("step_terms".to_owned(), floats(&rows));
            }
            None => {
                inputs.insert("step".to_owned(), integers(&ndarray::arr1(&[step as i64]).into_dyn()));
            }
        }
        let outputs = runner.run_on(engine, model, &inputs);
        actions = match outputs.get("actions_out") {
            Some(next) => array(next),
            None => actions + array(&outputs["velocity"]) / steps as f32,
        };
        visit(step, &outputs, &actions);
    }
    actions
}

#[test]
fn the_fused_graph_denoises_every_observation_to_the_golden_actions() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let config = &checkpoint.config;
    let steps = config.num_inference_timesteps;
    let mut runner = Runner::start();
    let mut worst = 0f64;
    for (i, sample) in Sample::all(&fixture).iter().enumerate() {
        let (text, image) = sample.tokens();
        let options = FusedOptions {
            expose: true,
            ..FusedOptions::new(sample.embodiment, Extent::Fixed(text), Extent::Fixed(image))
        };
        let (tick, model) = export(&mut runner, &checkpoint, &options, &format!("fused_{i}"));
        let state = sample.f32("head.state_in");
        let tick = runner.run(&tick, &tick_inputs(&sample.text, &sample.image, &state));
        let name = format!("{}: state tokens", sample.name);
        compare(&name, &array(&tick["state_tokens"]), &sample.f32("head.state_features"), F32_LIMIT);
        let table = step_terms(&checkpoint, sample.embodiment, steps).unwrap();
        let mut compared = 0;
        let noise = (&sample.noise, steps);
        let actions = denoise(&mut runner, Engine::OnnxRuntime, &model, &tick, Some(&table), noise, |step, outputs, actions| {
            let name = |part: &str| format!("head.step{step}.{part}");
            for (part, output) in outputs {
                if sample.golden.contains(&name(part)) {
                    let what = format!("{}: {}", sample.name, name(part));
                    worst = worst.max(compare(&what, &array(output), &sample.f32(&name(part)), F32_LIMIT));
                    compared += 1;
                }
            }
            let what = format!("{}: actions after step {step}", sample.name);
            worst = worst.max(compare(&what, actions, &sample.f32(&name("actions_out")), F32_LIMIT));
        });
        assert!(compared >= steps, "{}: only {compared} intermediate values", sample.name);
        worst = worst.max(compare(&sample.name, &actions, &sample.f32("action_pred"), F32_LIMIT));
    }
    println!("largest difference {worst:.2e}");
}
