//! Every graph that an engine can be built from, written by the program's own command without TensorRT and without a GPU.

use std::collections::BTreeMap;

use clap::Parser;
use groot_policy::checkpoint::{Checkpoint, OpenOptions};
use groot_policy::engine::{CalibrationSource, GraphKind, Precision};
use groot_policy::engine_builder::command::Command;
use groot_policy::engine_builder::graph::{EngineGraph, GraphPart, GraphRequest, Typing};
use groot_policy::engine_builder::lengths::Lengths;
use groot_policy::engine_builder::session;
use groot_policy::onnx::{ElementType, Graph};

use crate::checkpoint_writer::tiny_checkpoint;
use crate::runner::{Runner, signature};

fn command(folder: &std::path::Path, more: &[&str]) -> Command {
    let (checkpoint, folder) = (tiny_checkpoint().display().to_string(), folder.display().to_string());
    let line = ["engine_builder", "--checkpoint", &checkpoint, "--out", &folder];
    let sizes = [
        ["--text-tokens", "4,9,20"],
        ["--image-tokens", "14"],
        ["--images", "1,2,3"],
        ["--image-size", "56x84"],
    ];
    let sizes = sizes.iter().filter(|[name, _]| !more.contains(name)).flatten();
    Command::try_parse_from(line.iter().chain(sizes).chain(more)).unwrap()
}

/// The same graphs as the command's.
fn graph(kind: GraphKind, typing: Typing) -> EngineGraph {
    let (text, image) = (Lengths::new(4, 9, 20).unwrap(), Lengths::fixed(14));
    let request = GraphRequest { embodiment: 2, text, image };
    let tokens = text.and(image).unwrap();
    let frequencies = match typing {
        Typing::Strong(ElementType::Bf16) => ElementType::Bf16,
        _ => ElementType::F32,
    };
    let part = match kind {
        GraphKind::DitFused => GraphPart::Fused(request),
        GraphKind::DitCondition => GraphPart::Condition(request),
        GraphKind::DitReference => GraphPart::Reference { tokens },
        GraphKind::BackboneVision => {
            GraphPart::Vision { images: Lengths::new(1, 2, 3).unwrap(), size: (56, 84) }
        }
        GraphKind::BackboneLanguage => GraphPart::Language { tokens, frequencies },
    };
    EngineGraph { part, typing }
}

fn checkpoint() -> Checkpoint {
    Checkpoint::open(&tiny_checkpoint(), &OpenOptions::default()).unwrap()
}

#[test]
fn every_graph_is_written_without_a_gpu_and_accepted_by_the_onnx_checker() {
    let checkpoint = checkpoint();
    let mut runner = Runner::start();
    for kind in GraphKind::ALL {
        let name = kind.as_str().replace('_', "-");
        let folder = runner.folder.path().join(&name);
        let outcome =
            session::run(&command(&folder, &["--onnx-only", "--graph", &name]), &mut |_| {}).unwrap();
        let model = outcome.onnx.unwrap();
        assert_eq!(model.file_name().unwrap().to_str().unwrap(), format!("{kind}.onnx"));
        let inputs = signature(&runner.check(&model)["inputs"]);
        let target = graph(kind, Typing::Weak);
        let shapes = target.shapes(&checkpoint);
        assert_eq!(inputs.keys().collect::<Vec<_>>(), shapes.keys().collect::<Vec<_>>(), "{kind}");
        // What the file leaves open is in the profile, and what it fixes has this one size.
        let profile = target.profile(&checkpoint).unwrap();
        for (input, (_, dims)) in inputs {
            let shape = &shapes[&input];
            assert_eq!(dims.len(), shape.opt.len(), "{kind} {input}");
            let open = dims.iter().any(|dim| dim.parse::<i64>().is_err());
            assert!(!open || profile.0.contains_key(&input), "{kind} {input}: {dims:?}");
            for (axis, dim) in dims.iter().enumerate() {
                if let Ok(size) = dim.parse::<i64>() {
                    let all = [shape.min[axis], shape.opt[axis], shape.max[axis]];
                    assert_eq!(all, [size; 3], "{kind} {input}");
                }
            }
        }
    }
}

/// Types of the inputs of an operator's nodes, of which a graph must have some.
fn input_types(graph: &Graph, operator: &str) -> Vec<ElementType> {
    let nodes = graph.nodes().iter().filter(|node| node.operator == operator);
    nodes.flat_map(|node| &node.inputs).map(|input| graph.kind(*input)).collect()
}

#[test]
fn a_strongly_typed_graph_has_products_in_its_type_and_norms_softmax_and_io_in_f32() {
    let checkpoint = checkpoint();
    let mut runner = Runner::start();
    for (precision, kind) in [("fp16", ElementType::F16), ("bf16", ElementType::Bf16)] {
        for part in GraphKind::ALL {
            let name = format!("{part}_{precision}");
            let folder = runner.folder.path().join(&name);
            let line =
                ["--onnx-only", "--strongly-typed", "--precision", precision, "--graph", part.as_str()];
            let outcome = session::run(&command(&folder, &line), &mut |_| {}).unwrap();
            let answer = runner.check(&outcome.onnx.unwrap());
            assert_eq!(answer["metadata"]["kind"], kind.name(), "{name}");

            let target = graph(part, Typing::choose(precision.parse::<Precision>().unwrap(), true, 10));
            let graph = target.graph(&checkpoint, false).unwrap();
            let products = input_types(&graph, "MatMul");
            assert!(!products.is_empty() && products.iter().all(|found| *found == kind), "{name}");
            let mut norms = input_types(&graph, "LayerNormalization");
            norms.extend(input_types(&graph, "ReduceMean"));
            assert!(!norms.is_empty() && norms.iter().all(|found| *found == ElementType::F32), "{name}");
            let softmax = input_types(&graph, "Softmax");
            assert!(softmax.iter().all(|found| *found == ElementType::F32), "{name}");
            assert_eq!(softmax.is_empty(), part == GraphKind::DitCondition, "{name}");
            // What passes between two of our graphs keeps its type; the reference's is the public one.
            let narrow = |input: &str| {
                input.starts_with("keys_") || input.starts_with("values_") || part == GraphKind::DitReference
            };
            for info in graph.inputs().chain(graph.outputs()) {
                let wanted = if info.kind.is_float() && narrow(&info.name) { kind } else { info.kind };
                assert_eq!(info.kind, wanted, "{name} {}", info.name);
                assert!(narrow(&info.name) || info.kind == ElementType::F32, "{name} {}", info.name);
            }
        }
    }
}

#[test]
fn an_int8_graph_has_8_bits_around_its_products_and_the_type_of_its_typing_elsewhere() {
    let mut runner = Runner::start();
    for (typing, kind, opset) in [(&[][..], "f32", 17), (&["--strongly-typed"], "f16", 19)] {
        let folder = runner.folder.path().join(format!("int8_{kind}"));
        let line = ["--onnx-only", "--precision", "int8", "--calibration-ticks", "1", "--device", "cpu"];
        let line: Vec<&str> = line.iter().chain(typing).copied().collect();
        let outcome = session::run(&command(&folder, &line), &mut |_| {}).unwrap();
        let model = outcome.onnx.unwrap();
        assert_eq!(model.file_name().unwrap(), "dit_fused_int8.onnx");
        let answer = runner.check(&model);
        assert_eq!((&answer["metadata"]["kind"], &answer["opset"]), (&kind.into(), &opset.into()));
        let calibration = outcome.calibration.unwrap();
        assert_eq!(calibration.source, CalibrationSource::Synthetic(1));
        assert!(calibration.samples > 0, "{calibration:?}");
        let cosine = outcome.measured[0].against[0].velocity.overall.cosine.unwrap();
        assert!(cosine > 0.99, "{kind}: {cosine}");
    }
}

#[test]
fn what_cannot_be_built_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let cases: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("say --strongly-typed", ["--precision", "strongly_typed"].as_slice()),
        (
            "found --strongly-typed",
            &["--onnx-only", "--precision", "int8", "--strongly-typed", "--method", "calibrator"],
        ),
        ("for which there are calibration inputs", &["--precision", "int8", "--graph", "reference"]),
        ("multiples of 28", &["--onnx-only", "--graph", "backbone-vision", "--image-size", "56x80"]),
        ("cosine of 0.302", &["--graph", "backbone-vision"]),
        (
            "expected cuda or cuda:N",
            &["--device", "cpu", "--graph", "backbone-language", "--precision", "bf16"],
        ),
    ]);
    for (says, line) in cases {
        let error = format!("{:#}", session::run(&command(folder.path(), line), &mut |_| {}).unwrap_err());
        assert!(error.contains(says), "{line:?}: {error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{line:?}");
    }
}
