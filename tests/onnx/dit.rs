//! The transformer's graphs against the golden denoising.

use std::path::{Path, PathBuf};

use groot_policy::checkpoint::Checkpoint;
use groot_policy::onnx::dit::{
    ConditionOptions, Extent, FusedOptions, KeyValueLayout, ReferenceOptions, StepInput, StepOutput,
    condition, fused, reference, step_terms,
};
use groot_policy::onnx::{Attribute, ElementType, Graph, NormStyle, Style};
use ndarray::{Array3, ArrayD, Axis, concatenate};
use safetensors::Dtype;

use crate::checkpoint_writer::Tensors;
use crate::fixture::Fixture;
use crate::runner::{Engine, Runner, array, booleans, floats, integers, signature};
use crate::samples::{F32_LIMIT, Sample, compare, open, row_of};

/// Exports `condition` and `fused` for the options, both checked.
fn export(
    runner: &mut Runner,
    checkpoint: &Checkpoint,
    options: &FusedOptions,
    stem: &str,
) -> (PathBuf, PathBuf) {
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
    model: &Path,
    tick: &Tensors,
    table: Option<&Array3<f32>>,
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
        let actions = denoise(
            &mut runner,
            Engine::OnnxRuntime,
            &model,
            &tick,
            Some(&table),
            noise,
            |step, outputs, actions| {
                let name = |part: &str| format!("head.step{step}.{part}");
                for (part, output) in outputs {
                    if sample.golden.contains(&name(part)) {
                        let what = format!("{}: {}", sample.name, name(part));
                        worst =
                            worst.max(compare(&what, &array(output), &sample.f32(&name(part)), F32_LIMIT));
                        compared += 1;
                    }
                }
                let what = format!("{}: actions after step {step}", sample.name);
                worst = worst.max(compare(&what, actions, &sample.f32(&name("actions_out")), F32_LIMIT));
            },
        );
        assert!(compared >= steps, "{}: only {compared} intermediate values", sample.name);
        worst = worst.max(compare(&sample.name, &actions, &sample.f32("action_pred"), F32_LIMIT));
    }
    println!("largest difference {worst:.2e}");
}

/// One export that serves all prompts, of each kind of export there is, gives what the plain one gives.
#[test]
fn every_variant_of_the_fused_graph_gives_the_same_actions() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let steps = checkpoint.config.num_inference_timesteps;
    let mut runner = Runner::start();
    let samples = Sample::all(&fixture);
    let embodiment = samples[0].embodiment;
    let plain = FusedOptions::new(embodiment, Extent::Dynamic, Extent::Dynamic);
    let explicit = Style { norms: NormStyle::Explicit, ..Style::default() };
    for (stem, options) in [
        ("dynamic", plain.clone()),
        ("heads", FusedOptions { key_values: KeyValueLayout::Heads, ..plain.clone() }),
        ("index", FusedOptions { step: StepInput::Index { steps }, ..plain.clone() }),
        ("euler", FusedOptions { output: StepOutput::Actions { steps }, ..plain.clone() }),
        ("explicit", FusedOptions { style: explicit, ..plain.clone() }),
        ("batches", FusedOptions { batch: Extent::Dynamic, ..plain.clone() }),
    ] {
        let (tick_model, model) = export(&mut runner, &checkpoint, &options, stem);
        let table = step_terms(&checkpoint, embodiment, steps).unwrap();
        let table = (options.step == StepInput::Terms).then_some(&table);
        let mut worst = 0f64;
        for sample in samples.iter().filter(|sample| sample.embodiment == embodiment) {
            let state = sample.f32("head.state_in");
            let tick = runner.run(&tick_model, &tick_inputs(&sample.text, &sample.image, &state));
            let noise = (&sample.noise, steps);
            let actions =
                denoise(&mut runner, Engine::OnnxRuntime, &model, &tick, table, noise, |_, _, _| {});
            let what = format!("{stem}: {}", sample.name);
            worst = worst.max(compare(&what, &actions, &sample.f32("action_pred"), F32_LIMIT));
        }
        println!("{stem}: largest difference {worst:.2e}");
    }
}

#[test]
fn samples_of_a_batch_do_not_touch_each_other() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let steps = checkpoint.config.num_inference_timesteps;
    let mut runner = Runner::start();
    let samples = Sample::all(&fixture);
    let sample = &samples[0];
    let options = FusedOptions {
        batch: Extent::Fixed(2),
        ..FusedOptions::new(sample.embodiment, Extent::Dynamic, Extent::Dynamic)
    };
    let (tick, model) = export(&mut runner, &checkpoint, &options, "pair");
    // The second sample is another one with as many tokens.
    let twice = |first: &ArrayD<f32>, second: &ArrayD<f32>| {
        concatenate(Axis(0), &[first.view(), second.view()]).unwrap()
    };
    let (text, image) = (twice(&sample.text, &(&sample.text * 0.5)), twice(&sample.image, &(-&sample.image)));
    let state = sample.f32("head.state_in");
    let state = twice(&state, &(&state + 0.25));
    let noise = twice(&sample.noise, &(-&sample.noise));
    let tick = runner.run(&tick, &tick_inputs(&text, &image, &state));
    let table = step_terms(&checkpoint, sample.embodiment, steps).unwrap();
    let run = (&noise, steps);
    let actions = denoise(&mut runner, Engine::OnnxRuntime, &model, &tick, Some(&table), run, |_, _, _| {});
    compare("first of two", &row_of(&actions, 0), &sample.f32("action_pred"), F32_LIMIT);
    let apart = &row_of(&actions, 1) - &row_of(&actions, 0);
    assert!(apart.iter().any(|v| v.abs() > 0.1), "the second sample changed nothing");
}

/// Whole denoising in a narrow type, against the reference in f32.
fn denoise_narrow(kind: ElementType, style: Style, stem: &str) -> f64 {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let steps = checkpoint.config.num_inference_timesteps;
    let mut runner = Runner::start();
    // ONNX Runtime's kernels for the CPU compute f16 graphs, but have no bf16.
    let engine = if kind == ElementType::Bf16 { Engine::Evaluator } else { Engine::OnnxRuntime };
    let mut worst = 0f64;
    for (i, sample) in Sample::all(&fixture).iter().enumerate() {
        let (text, image) = sample.tokens();
        let options = FusedOptions {
            style,
            ..FusedOptions::new(sample.embodiment, Extent::Fixed(text), Extent::Fixed(image))
        };
        let (tick, model) = export(&mut runner, &checkpoint, &options, &format!("{stem}_{i}"));
        let state = sample.f32("head.state_in");
        let tick = runner.run_on(engine, &tick, &tick_inputs(&sample.text, &sample.image, &state));
        let stored = if kind == ElementType::Bf16 { Dtype::BF16 } else { Dtype::F16 };
        assert_eq!(tick["keys_0"].dtype, stored);
        let table = step_terms(&checkpoint, sample.embodiment, steps).unwrap();
        let noise = (&sample.noise, steps);
        let actions = denoise(&mut runner, engine, &model, &tick, Some(&table), noise, |_, _, _| {});
        worst = worst.max(compare(&sample.name, &actions, &sample.f32("action_pred"), f64::INFINITY));
    }
    println!("{stem}: largest difference from the f32 actions {worst:.3e}");
    worst
}

/// How far the reference itself is from its f32 actions when it runs in bf16 with an f32 accumulator.
fn references_own_bf16_error(fixture: &Fixture) -> f64 {
    let errors = fixture.manifest.observations.iter().map(|info| {
        let of = |mode: &str| fixture.file(&format!("{}.{mode}", info.name)).f32("action_pred");
        compare(&info.name, &of("bf16_fp32acc"), &of("fp32"), f64::INFINITY)
    });
    let most = errors.fold(0.0, f64::max);
    println!("the reference in bf16: {most:.3e}");
    most
}

/// Rounding errors of two implementations are two draws of the same size: the larger of some hundred values of one may
/// exceed that of the other by half.
#[test]
fn the_bf16_graph_is_about_as_far_from_f32_as_the_reference_in_bf16() {
    let limit = 1.5 * references_own_bf16_error(&Fixture::load());
    let worst = denoise_narrow(ElementType::Bf16, Style::new(ElementType::Bf16), "bf16");
    assert!(worst > 0.0 && worst <= limit, "{worst:.3e}, limit {limit:.3e}");
}

/// f16 has three bits more than bf16.
#[test]
fn the_f16_graph_is_about_an_eighth_as_far_from_f32_as_the_reference_in_bf16() {
    let limit = 1.5 * references_own_bf16_error(&Fixture::load()) / 8.0;
    let worst = denoise_narrow(ElementType::F16, Style::new(ElementType::F16), "f16");
    assert!(worst > 0.0 && worst <= limit, "{worst:.3e}, limit {limit:.3e}");
}

#[test]
fn the_reference_graph_has_the_interface_of_the_public_export() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let config = &checkpoint.config;
    let mut runner = Runner::start();
    let (_, answer) =
        runner.write(&reference(&checkpoint, &ReferenceOptions::default()).unwrap(), "reference");
    let (width, context) =
        (config.input_embedding_dim.to_string(), config.backbone_embedding_dim.to_string());
    let entry = |name: &str, kind: &str, shape: &[&str]| {
        (name.to_owned(), (kind.to_owned(), shape.iter().map(|dim| (*dim).to_owned()).collect::<Vec<_>>()))
    };
    let inputs = [
        entry("sa_embs", "FLOAT", &["batch_size", "sa_seq_len", &width]),
        entry("vl_embs", "FLOAT", &["batch_size", "vl_seq_len", &context]),
        entry("timestep", "INT64", &["batch_size"]),
        entry("image_mask", "BOOL", &["batch_size", "vl_seq_len"]),
        entry("backbone_attention_mask", "BOOL", &["batch_size", "vl_seq_len"]),
    ];
    assert_eq!(signature(&answer["inputs"]), inputs.into());
    let output = config.diffusion.output_dim.to_string();
    let outputs = [entry("output", "FLOAT", &["batch_size", "sa_seq_len", &output])];
    assert_eq!(signature(&answer["outputs"]), outputs.into());
    assert_eq!((answer["opset"].as_i64(), answer["ir_version"].as_i64()), (Some(17), Some(8)));
}

#[test]
fn the_reference_graph_reproduces_every_golden_step_of_every_batch() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let mut runner = Runner::start();
    let options = ReferenceOptions { expose: true, ..ReferenceOptions::default() };
    let model = runner.write(&reference(&checkpoint, &options).unwrap(), "reference").0.model;
    let flags = |array: ArrayD<i64>| booleans(&array.mapv(|v| v != 0));
    let mut worst = 0f64;
    for info in &fixture.manifest.observations {
        let golden = fixture.file(&format!("{}.fp32", info.name));
        for (step, t) in golden.i64("head.timesteps").iter().enumerate() {
            let name = |part: &str| format!("head.step{step}.{part}");
            let inputs = Tensors::from([
                ("sa_embs".to_owned(), floats(&golden.f32(&name("sa_embs")))),
                ("vl_embs".to_owned(), floats(&golden.f32("head.vl_embeds"))),
                ("timestep".to_owned(), integers(&ArrayD::from_elem(vec![info.batch], *t))),
                ("image_mask".to_owned(), flags(golden.i64("image_mask"))),
                ("backbone_attention_mask".to_owned(), flags(golden.i64("backbone_attention_mask"))),
            ]);
            let outputs = runner.run(&model, &inputs);
            for (part, output) in &outputs {
                let part = name(if part == "output" { "dit_out" } else { part });
                if golden.contains(&part) {
                    let what = format!("{}: {part}", info.name);
                    worst = worst.max(compare(&what, &array(output), &golden.f32(&part), F32_LIMIT));
                }
            }
        }
    }
    // Two samples at timesteps of their own, with masks of their own.
    let ops = fixture.file("ops.fp32");
    let x = ops.f32("block.x");
    let inputs = Tensors::from([
        ("sa_embs".to_owned(), floats(&x)),
        ("vl_embs".to_owned(), floats(&ops.f32("block.enc"))),
        ("timestep".to_owned(), integers(&ndarray::arr1(&[250, 750]).into_dyn())),
        ("image_mask".to_owned(), flags(ops.i64("dit.image_mask"))),
        ("backbone_attention_mask".to_owned(), flags(ops.i64("dit.attention_mask"))),
    ]);
    let outputs = runner.run(&model, &inputs);
    worst = worst.max(compare("dit.out", &array(&outputs["output"]), &ops.f32("dit.out"), F32_LIMIT));
    println!("largest difference {worst:.2e}");
}

/// The steps' terms against the goldens' time embedding: their only other trace is in whole activations.
#[test]
fn the_reference_graphs_time_embedding_is_the_golden_one_at_every_golden_timestep() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let config = &checkpoint.config;
    let mut runner = Runner::start();
    let options = ReferenceOptions { expose: true, ..ReferenceOptions::default() };
    let model = runner.write(&reference(&checkpoint, &options).unwrap(), "reference").0.model;
    let ops = fixture.file("ops.fp32");
    let t = ops.i64("timestep.t");
    let batch = t.len();
    let zeros = |width: usize| floats(&ArrayD::zeros(vec![batch, 2, width]));
    let inputs = Tensors::from([
        ("sa_embs".to_owned(), zeros(config.input_embedding_dim)),
        ("vl_embs".to_owned(), zeros(config.backbone_embedding_dim)),
        ("timestep".to_owned(), integers(&t)),
        ("image_mask".to_owned(), booleans(&ArrayD::from_shape_fn(vec![batch, 2], |i| i[1] == 0))),
        ("backbone_attention_mask".to_owned(), booleans(&ArrayD::from_elem(vec![batch, 2], true))),
    ]);
    let outputs = runner.run(&model, &inputs);
    compare("timestep.temb", &array(&outputs["temb"]), &ops.f32("timestep.temb"), F32_LIMIT);
}

/// Epsilons of the LayerNormalization nodes under a place in the graph.
fn epsilons(graph: &Graph, place: &str) -> Vec<f32> {
    let norms = graph.nodes().iter().filter(|node| node.operator == "LayerNormalization");
    let at = norms.filter(|node| node.name.starts_with(place));
    at.flat_map(|node| &node.attributes)
        .filter_map(|attribute| match attribute {
            Attribute::Float("epsilon", value) => Some(*value),
            _ => None,
        })
        .collect()
}

/// Too small to show in the goldens' activations.
#[test]
fn the_norms_have_the_references_epsilons() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let blocks = checkpoint.config.diffusion.num_layers;
    let options = FusedOptions::new(0, Extent::Dynamic, Extent::Dynamic);
    let graph = fused(&checkpoint, &options).unwrap();
    assert_eq!(epsilons(&graph, "block"), vec![1e-5; 2 * blocks]);
    assert_eq!(epsilons(&graph, "action_decoder"), [1e-6]);
    let graph = reference(&checkpoint, &ReferenceOptions::default()).unwrap();
    assert_eq!(epsilons(&graph, "block"), vec![1e-5; 2 * blocks]);
    assert_eq!(epsilons(&graph, "output"), [1e-6]);
}

#[test]
fn the_fused_graph_holds_neither_masks_nor_integers() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let options = FusedOptions::new(0, Extent::Fixed(20), Extent::Fixed(30));
    let graph = fused(&checkpoint, &options).unwrap();
    assert!(graph.inputs().chain(graph.outputs()).all(|info| info.kind == ElementType::F32));
    let operators: std::collections::BTreeSet<_> = graph.nodes().iter().map(|node| node.operator).collect();
    for unwanted in ["Where", "And", "Not", "Gather", "Shape", "Cast", "Sin", "Cos"] {
        assert!(!operators.contains(unwanted), "{unwanted} among {operators:?}");
    }
}

#[test]
fn requests_that_do_not_fit_the_checkpoint_are_refused_with_what_would() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let config = &checkpoint.config;
    let plain = FusedOptions::new(0, Extent::Fixed(20), Extent::Fixed(30));
    let beyond = config.num_timestep_buckets + 1;
    for (options, parts) in [
        (
            FusedOptions { embodiment: config.max_num_embodiments, ..plain.clone() },
            ["embodiment index", "below"],
        ),
        (
            FusedOptions { step: StepInput::Index { steps: 0 }, ..plain.clone() },
            ["denoising steps", "found 0"],
        ),
        (
            FusedOptions { output: StepOutput::Actions { steps: beyond }, ..plain.clone() },
            ["denoising steps", "1 to"],
        ),
        (FusedOptions { text_tokens: Extent::Fixed(0), ..plain.clone() }, ["size of", "text_tokens"]),
        (FusedOptions { state_tokens: 0, ..plain.clone() }, ["size of", "state_tokens"]),
        (FusedOptions { style: Style::new(ElementType::I64), ..plain.clone() }, ["type of the graph", "i64"]),
    ] {
        let message = fused(&checkpoint, &options).unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "{part} not in {message}");
        }
    }
    for steps in [0, beyond] {
        assert!(step_terms(&checkpoint, 0, steps).unwrap_err().to_string().contains("denoising steps"));
    }
}
