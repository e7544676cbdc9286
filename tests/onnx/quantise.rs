//! INT8 graphs: what the checker says, and how far they are from f32.

use std::collections::BTreeMap;

use groot_policy::checkpoint::Checkpoint;
use groot_policy::onnx::dit::{Extent, FusedOptions, fused, step_terms};
use groot_policy::onnx::proto::ModelProto;
use groot_policy::onnx::quantise::{products, quantise};
use groot_policy::onnx::validate::compare;
use groot_policy::onnx::{ElementType, Graph, NormStyle, Style};
use ndarray::Axis;
use prost::Message;

use crate::checkpoint_writer::Tensors;
use crate::fixture::Fixture;
use crate::runner::{Runner, array, floats};
use crate::samples::{Sample, open};

/// The inputs of the fused graph at each golden step.
pub fn golden_steps(fixture: &Fixture, checkpoint: &Checkpoint) -> (usize, Vec<Tensors>) {
    let samples = Sample::all(fixture);
    let sample = &samples[0];
    let steps = checkpoint.config.num_inference_timesteps;
    let table = step_terms(checkpoint, sample.embodiment, steps).unwrap();
    let (image, valid) = (sample.golden.i64("image_mask"), sample.golden.i64("backbone_attention_mask"));
    let rows = |wanted: i64| -> Vec<usize> {
        let flags = image.iter().zip(&valid).enumerate();
        flags.filter(|(_, (i, v))| **v != 0 && **i == wanted).map(|(at, _)| at).collect()
    };
    let every = 2 * checkpoint.config.attend_text_every_n_blocks;
    let inputs = (0..steps).map(|step| {
        let rows_of_step = table.index_axis(Axis(0), step).to_owned().into_dyn();
        let mut inputs = Tensors::from([
            ("actions".to_owned(), floats(&sample.f32(&format!("head.step{step}.actions_in")))),
            ("state_tokens".to_owned(), floats(&sample.f32("head.state_features"))),
            ("step_terms".to_owned(), floats(&rows_of_step)),
        ]);
        for block in (0..checkpoint.config.diffusion.num_layers).step_by(2) {
            let rows = rows(i64::from(block % every != 0));
            for (name, part) in [("keys", "cross_k"), ("values", "cross_v")] {
                let all = sample.f32(&format!("head.{part}.block{block}"));
                inputs.insert(format!("{name}_{block}"), floats(&all.select(Axis(1), &rows)));
            }
        }
        inputs
    });
    (sample.embodiment, inputs.collect())
}

/// The largest magnitude of every product's activations over all steps, measured by ONNX Runtime.
pub fn measured_ranges(runner: &mut Runner, graph: &mut Graph, steps: &[Tensors]) -> BTreeMap<String, f32> {
    for product in products(graph) {
        graph.output(&format!("{}.input", product.weight), product.activations).unwrap();
    }
    let model = runner.write(graph, "calibration").0.model;
    let mut ranges = BTreeMap::new();
    for inputs in steps {
        for (name, output) in runner.run(&model, inputs) {
            if let Some(weight) = name.strip_suffix(".input") {
                let most = array(&output).iter().fold(0f32, |most, value| most.max(value.abs()));
                let range = ranges.entry(weight.to_owned()).or_insert(0f32);
                *range = range.max(most);
            }
        }
    }
    ranges
}

#[test]
fn an_int8_graph_passes_the_checker_and_stays_near_f32() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let mut runner = Runner::start();
    let (embodiment, steps) = golden_steps(&fixture, &checkpoint);
    let options = FusedOptions::new(embodiment, Extent::Dynamic, Extent::Dynamic);
    let plain = runner.write(&fused(&checkpoint, &options).unwrap(), "plain").0.model;
    let ranges = measured_ranges(&mut runner, &mut fused(&checkpoint, &options).unwrap(), &steps);
    // Query, key and value are one product in odd blocks; even ones have queries only. Encoder and decoder have two each.
    assert_eq!(ranges.len(), 4 * checkpoint.config.diffusion.num_layers + 4);

    let mut run = |stem: &str, factor: f32| {
        let mut graph = fused(&checkpoint, &options).unwrap();
        let ranges = ranges.iter().map(|(name, range)| (name.clone(), range * factor)).collect();
        quantise(&mut graph, &ranges).unwrap();
        let written = runner.write(&graph, stem).0;
        let cosines = steps.iter().map(|inputs| {
            let mut velocity = |model: &std::path::Path| {
                BTreeMap::from([("velocity".to_owned(), array(&runner.run(model, inputs)["velocity"]))])
            };
            let (reference, narrow) = (velocity(&plain), velocity(&written.model));
            compare(&reference, &narrow).unwrap().layers[0].cosine
        });
        (cosines.fold(1.0, f64::min), written)
    };
    let (near, written) = run("int8", 1.0);
    let (clipped, _) = run("clipped", 0.02);
    println!("smallest cosine {near:.6}; with ranges fifty times too small {clipped:.6}");
    // Each operand of a product is off by at most half of 1/127 of its largest value; over a row that is a relative error
    // of about a hundredth each, in every one of the blocks' products: 1 - cos = error² / 2.
    let products = ranges.len() as f64;
    let limit = 1.0 - products * 2.0 * 0.01f64.powi(2) / 2.0;
    assert!(near >= limit && near < 1.0, "{near}, limit {limit}");
    assert!(clipped < limit, "{clipped}: ranges change nothing");

    let model = ModelProto::decode(std::fs::read(written.model).unwrap().as_slice()).unwrap();
    let nodes = model.graph.unwrap().node;
    let count = |operator: &str| nodes.iter().filter(|node| node.op_type() == operator).count();
    // Activations and weight of each product have a pair, and every node its zero point, which TensorRT 8.6 asks for.
    assert_eq!((count("QuantizeLinear"), count("DequantizeLinear")), (2 * ranges.len(), 2 * ranges.len()));
    assert!(
        nodes
            .iter()
            .filter(|node| node.op_type().ends_with("quantizeLinear"))
            .all(|node| node.input.len() == 3)
    );
    assert!(nodes.iter().filter(|node| node.op_type() == "QuantizeLinear").all(|node| node.input.len() == 3));
}

#[test]
fn some_products_alone_can_be_quantised() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let mut runner = Runner::start();
    let mut graph = fused(&checkpoint, &FusedOptions::new(0, Extent::Fixed(3), Extent::Fixed(4))).unwrap();
    let weights = products(&graph).into_iter().map(|product| product.weight);
    let ranges: BTreeMap<String, f32> =
        weights.filter(|name| name.contains(".ff.")).map(|name| (name, 1.0)).collect();
    assert_eq!(ranges.len(), 2 * checkpoint.config.diffusion.num_layers);
    quantise(&mut graph, &ranges).unwrap();
    runner.write(&graph, "some");
    assert!(products(&graph).iter().all(|product| !product.weight.contains(".ff.")));
}

#[test]
fn ranges_that_make_no_sense_are_refused_by_name() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let options = FusedOptions::new(0, Extent::Dynamic, Extent::Dynamic);
    let complain = |name: &str, range: f32, style: Style| {
        let mut graph = fused(&checkpoint, &FusedOptions { style, ..options.clone() }).unwrap();
        quantise(&mut graph, &BTreeMap::from([(name.to_owned(), range)])).unwrap_err().to_string()
    };
    let known = "action_head.model.transformer_blocks.0.ff.net.2.weight";
    let message = complain("no.such.weight", 1.0, Style::default());
    assert!(message.contains("no.such.weight") && message.contains("weight to quantise"), "{message}");
    for range in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let message = complain(known, range, Style::default());
        assert!(message.contains(known) && message.contains("a positive number"), "{message}");
    }
    // Scales of f16 need an operator set in which the axes of ReduceMean are an input.
    let explicit = Style { norms: NormStyle::Explicit, ..Style::new(ElementType::F16) };
    let message = complain(known, 1.0, explicit);
    assert!(message.contains("ReduceMean") && message.contains("opset 19"), "{message}");
}
