//! The feature `onnxruntime`: graphs run from Rust.

use std::collections::BTreeMap;

use groot_policy::onnx::backbone::{LanguageOptions, language};
use groot_policy::onnx::dit::Extent;
use groot_policy::onnx::session::{GraphSession, Input};
use groot_policy::onnx::validate::compare;
use groot_policy::onnx::{Data, write};

use crate::fixture::Fixture;
use crate::runner::onnxruntime_library as library;
use crate::samples::{F32_LIMIT, open};

#[test]
fn a_graph_runs_and_its_layers_are_compared() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let info = fixture.manifest.observations.iter().find(|info| info.batch == 1).unwrap();
    let golden = fixture.file(&format!("{}.fp32", info.name));
    let options = LanguageOptions { expose: true, ..LanguageOptions::new(Extent::Fixed(info.seq_len)) };
    let folder = tempfile::tempdir().unwrap();
    let graph = language(&checkpoint, &options).unwrap();
    let written = write(&graph, folder.path(), "language", Data::Full).unwrap();
    let mut session = GraphSession::open(&written.model, Some(&library())).unwrap();
    assert_eq!(session.inputs(), ["inputs_embeds"]);
    let inputs = BTreeMap::from([("inputs_embeds".to_owned(), Input::F32(golden.f32("llm.inputs_embeds")))]);
    let outputs = session.run(&inputs).unwrap();
    let names = golden.names().into_iter().filter(|name| outputs.contains_key(name));
    let reference = names.map(|name| (name.clone(), golden.f32(&name))).collect();
    let comparison = compare(&reference, &outputs).unwrap();
    println!("{comparison}");
    assert!(comparison.layers.len() >= checkpoint.config.select_layer);
    for layer in &comparison.layers {
        assert!(layer.max_abs <= F32_LIMIT && layer.cosine > 0.999_999, "{layer:?}");
        assert!(!layer.other.overflows_f16(), "{layer:?}");
    }

    let error = session.run(&BTreeMap::new()).unwrap_err().to_string();
    assert!(
        error.contains("language.onnx") && error.contains("expected the inputs inputs_embeds"),
        "{error}"
    );
    let missing = folder.path().join("missing.onnx");
    let error = GraphSession::open(&missing, Some(&library())).err().unwrap().to_string();
    assert!(error.contains("missing.onnx"), "{error}");
}
