//! The backbone's graphs against the golden features.

use std::collections::BTreeMap;

use groot_policy::onnx::backbone::{
    LanguageOptions, VisionOptions, inverse_frequencies, language, resize_positions, rotary_tables, vision,
};
use groot_policy::onnx::dit::Extent;
use groot_policy::onnx::{ElementType, Style};
use groot_policy::processor::Processor;
use ndarray::{Array2, ArrayD, Axis, Ix3};

use crate::checkpoint_writer::Tensors;
use crate::fixture::{Fixture, GoldenFile};
use crate::observations::observations;
use crate::runner::{Engine, Runner, array, booleans, floats};
use crate::samples::{F32_LIMIT, compare, open, row_of};

/// Compares every output with the golden tensor of its name; where a golden tensor is one image's, with that image's.
fn compare_all(
    what: &str,
    outputs: &Tensors,
    golden: &GoldenFile,
    limit: impl Fn(&ArrayD<f32>) -> f64,
) -> (usize, f64) {
    let (mut compared, mut worst) = (0, 0f64);
    for name in golden.names() {
        let (stem, image) = match name.rsplit_once(".image") {
            Some((stem, image)) => (stem, image.parse::<usize>().ok()),
            None => (name.as_str(), None),
        };
        let Some(output) = outputs.get(stem) else { continue };
        let want = golden.f32(&name);
        let mut got = array(output);
        if let Some(image) = image {
            got = row_of(&got, image).index_axis_move(Axis(0), 0);
        }
        worst = worst.max(compare(&format!("{what}: {name}"), &got, &want, limit(&want)));
        compared += 1;
    }
    (compared, worst)
}

/// Pixel values (N, 3, H, W) of an observation's images.
fn pixel_values(fixture: &Fixture, info: &crate::fixture::ObservationInfo) -> ArrayD<f32> {
    let checkpoint = open(fixture);
    let tokenizer = fixture.tokenizer_dir();
    let processor = Processor::load(&checkpoint, Some(&tokenizer), &info.embodiment_tag).unwrap();
    let inputs = processor.prepare_batch(&observations(fixture, info)).unwrap();
    let values = inputs.images.mapv(|byte| (f32::from(byte) - 127.5) / 127.5);
    values.permuted_axes([0, 3, 1, 2]).as_standard_layout().to_owned().into_dyn()
}

#[test]
fn the_vision_graph_reproduces_every_golden_layer_of_every_observation() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let mut runner = Runner::start();
    for info in &fixture.manifest.observations {
        let pixels = pixel_values(&fixture, info);
        let size = (pixels.shape()[2], pixels.shape()[3]);
        let options = VisionOptions { images: Extent::Dynamic, size, style: Style::default(), expose: true };
        let stem = format!("vision_{}", info.name);
        let model = runner.write(&vision(&checkpoint, &options).unwrap(), &stem).0.model;
        let mut outputs = runner.run(&model, &Tensors::from([("pixel_values".to_owned(), floats(&pixels))]));
        let embeds = outputs.remove("image_embeds").unwrap();
        outputs.insert("vision.mlp1".to_owned(), embeds);
        let golden = fixture.file(&format!("{}.fp32", info.name));
        let (compared, worst) = compare_all(&info.name, &outputs, &golden, |_| F32_LIMIT);
        assert!(compared >= info.num_images, "{}: only {compared} tensors", info.name);
        println!("{}: {compared} tensors, largest difference {worst:.2e}", info.name);
    }
}

fn language_inputs(golden: &GoldenFile, padding: bool) -> Tensors {
    let mut inputs = Tensors::from([("inputs_embeds".to_owned(), floats(&golden.f32("llm.inputs_embeds")))]);
    if padding {
        let mask = golden.i64("backbone_attention_mask").mapv(|v| v != 0);
        inputs.insert("attention_mask".to_owned(), booleans(&mask));
    }
    inputs
}

fn named_as_golden(mut outputs: Tensors) -> Tensors {
    let features = outputs.remove("hidden_states").unwrap();
    outputs.insert("backbone_features".to_owned(), features);
    outputs
}

#[test]
fn the_language_graph_reproduces_every_golden_layer_of_every_observation() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let mut runner = Runner::start();
    for info in &fixture.manifest.observations {
        let golden = fixture.file(&format!("{}.fp32", info.name));
        let padding = golden.i64("backbone_attention_mask").iter().any(|v| *v == 0);
        let options = LanguageOptions {
            batch: Extent::Fixed(info.batch),
            padding,
            expose: true,
            ..LanguageOptions::new(Extent::Fixed(info.seq_len))
        };
        let stem = format!("language_{}", info.name);
        let model = runner.write(&language(&checkpoint, &options).unwrap(), &stem).0.model;
        let outputs = named_as_golden(runner.run(&model, &language_inputs(&golden, padding)));
        let (compared, worst) = compare_all(&info.name, &outputs, &golden, |_| F32_LIMIT);
        assert!(compared > checkpoint.config.select_layer, "{}: only {compared} tensors", info.name);
        println!("{}: {compared} tensors, largest difference {worst:.2e}", info.name);
    }
}

#[test]
fn one_dynamic_language_graph_serves_prompts_and_batches_of_every_length() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let mut runner = Runner::start();
    let options =
        LanguageOptions { batch: Extent::Dynamic, padding: true, ..LanguageOptions::new(Extent::Dynamic) };
    let model = runner.write(&language(&checkpoint, &options).unwrap(), "language").0.model;
    for info in &fixture.manifest.observations {
        let golden = fixture.file(&format!("{}.fp32", info.name));
        let outputs = named_as_golden(runner.run(&model, &language_inputs(&golden, true)));
        let (compared, _) = compare_all(&info.name, &outputs, &golden, |_| F32_LIMIT);
        assert_eq!(compared, 1);
    }
}

/// The golden bf16 run has rounded frequencies; two bf16 implementations differ by up to 0.30 on values up to 9.
#[test]
fn the_bf16_language_graph_is_within_what_two_bf16_implementations_differ_by() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let mut runner = Runner::start();
    // The first unpadded observation: the evaluator is slow.
    let info = fixture.manifest.observations.iter().find(|info| info.batch == 1).unwrap();
    let golden = fixture.file(&format!("{}.bf16", info.name));
    let options = LanguageOptions {
        frequencies: ElementType::Bf16,
        style: Style::new(ElementType::Bf16),
        expose: true,
        ..LanguageOptions::new(Extent::Fixed(info.seq_len))
    };
    let model = runner.write(&language(&checkpoint, &options).unwrap(), "language").0.model;
    let inputs = language_inputs(&golden, false);
    let outputs = named_as_golden(runner.run_on(Engine::Evaluator, &model, &inputs));
    let limit = |want: &ArrayD<f32>| want.iter().fold(0f64, |m, v| m.max(f64::from(v.abs()))) * 0.30 / 9.0;
    let (compared, worst) = compare_all(&info.name, &outputs, &golden, limit);
    assert!(compared > checkpoint.config.select_layer, "only {compared} tensors");
    println!("{compared} tensors, largest difference {worst:.2e}");
}

#[test]
fn the_vision_graph_in_f16_stays_near_the_golden_features() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let mut runner = Runner::start();
    let info = &fixture.manifest.observations[0];
    let pixels = pixel_values(&fixture, info);
    let size = (pixels.shape()[2], pixels.shape()[3]);
    let style = Style::new(ElementType::F16);
    let options = VisionOptions { images: Extent::Fixed(info.num_images), size, style, expose: true };
    let model = runner.write(&vision(&checkpoint, &options).unwrap(), "vision").0.model;
    let mut outputs = runner.run(&model, &Tensors::from([("pixel_values".to_owned(), floats(&pixels))]));
    let embeds = outputs.remove("image_embeds").unwrap();
    outputs.insert("vision.mlp1".to_owned(), embeds);
    let golden = fixture.file(&format!("{}.fp32", info.name));
    // An eighth of what bf16 implementations differ by: f16 has three bits more.
    let limit =
        |want: &ArrayD<f32>| want.iter().fold(0f64, |m, v| m.max(f64::from(v.abs()))) * 0.30 / 9.0 / 8.0;
    let (compared, worst) = compare_all(&info.name, &outputs, &golden, limit);
    assert!(compared >= info.num_images, "only {compared} tensors");
    println!("{compared} tensors, largest difference {worst:.2e}");
}

#[test]
fn resized_position_grids_are_the_golden_ones() {
    let ops = Fixture::load().file("ops.fp32");
    if !ops.contains("posinterp.grid") {
        return;
    }
    let grid = ops.f32("posinterp.grid").into_dimensionality::<Ix3>().unwrap();
    let sizes: BTreeMap<String, (usize, usize)> = ops
        .names()
        .into_iter()
        .filter_map(|name| {
            let (rows, columns) = name.strip_prefix("posinterp.")?.split_once('x')?;
            let size = (rows.parse().ok()?, columns.parse().ok()?);
            Some((name, size))
        })
        .collect();
    assert!(!sizes.is_empty());
    for (name, (rows, columns)) in sizes {
        compare(&name, &resize_positions(grid.view(), rows, columns).into_dyn(), &ops.f32(&name), F32_LIMIT);
    }
}

#[test]
fn rotary_tables_at_the_real_models_dimensions_are_the_golden_ones() {
    let ops = Fixture::load().file("ops.fp32");
    if !ops.contains("real.rope_inv_freq") {
        return;
    }
    let text = groot_policy::checkpoint::EagleConfig::n1d6_3b().text;
    for (suffix, frequencies, kind) in [
        ("", "real.rope_inv_freq", ElementType::F32),
        ("_bf16inv", "real.rope_inv_freq_bf16", ElementType::Bf16),
    ] {
        let own = inverse_frequencies(text.rope_theta, text.head_dim, kind);
        compare(frequencies, &ndarray::arr1(&own).into_dyn(), &ops.f32(frequencies), 1e-8);
        let (cos, sin) = rotary_tables(&own, 512, 1.0);
        let seventh = |table: &Array2<f32>| table.slice(ndarray::s![..;7, ..]).to_owned().into_dyn();
        for (name, table) in [("cos", cos), ("sin", sin)] {
            let name = format!("real.rope_{name}{suffix}");
            compare(&name, &seventh(&table), &ops.f32(&name), F32_LIMIT);
        }
    }
}

#[test]
fn requests_that_make_no_sense_are_refused_with_what_would() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let size =
        |size| VisionOptions { images: Extent::Fixed(1), size, style: Style::default(), expose: false };
    for wrong in [(0, 28), (28, 30), (14, 28)] {
        let message = vision(&checkpoint, &size(wrong)).unwrap_err().to_string();
        assert!(message.contains("image size") && message.contains("multiples of 28"), "{message}");
    }
    for most in [0, 1 << 20] {
        let options = LanguageOptions { max_tokens: most, ..LanguageOptions::new(Extent::Dynamic) };
        let message = language(&checkpoint, &options).unwrap_err().to_string();
        assert!(message.contains("longest prompt") && message.contains(&most.to_string()), "{message}");
    }
}
