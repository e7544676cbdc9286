//! `engine_builder validate` on the tiny checkpoint: graphs that are right, and errors that were put into one layer.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command as Process;

use clap::Parser;
use groot_policy::checkpoint::{Checkpoint, OpenOptions};
use groot_policy::engine_builder::validate::command::Command;
use groot_policy::engine_builder::validate::parts::Part;
use groot_policy::engine_builder::validate::report::Report;
use groot_policy::engine_builder::validate::{Validation, run};
use tch::Device;

use crate::checkpoint_writer::{
    SINGLE_FILE, Tensors, copy_side_files, read_tensors, tiny_checkpoint, write_tensors,
};
use crate::runner::onnxruntime_library;

fn command(more: &[&str]) -> Command {
    let (checkpoint, library) = (tiny_checkpoint(), onnxruntime_library());
    let (checkpoint, library) = (checkpoint.display().to_string(), library.display().to_string());
    let line = ["validate", "--checkpoint", &checkpoint, "--onnxruntime", &library];
    let sizes = ["--image-size", "56x84", "--text-tokens", "9"];
    let golden = more.contains(&"--golden");
    let sizes = if golden { &[][..] } else { &sizes[..] };
    Command::try_parse_from(line.iter().chain(sizes).chain(more)).unwrap()
}

fn names(report: &Report, part: usize) -> BTreeSet<String> {
    report.parts[part].comparison.layers.iter().map(|layer| layer.name.clone()).collect()
}

/// Every layer is there, in both, and the same but for rounding in f32.
fn assert_right(report: &Report) {
    assert!(report.is_right() && report.beyond_f16.is_empty() && report.zero.is_empty(), "{report}");
    for part in &report.parts {
        assert_eq!(part.comparison.unmatched, Vec::<String>::new());
        for layer in &part.comparison.layers {
            assert!(layer.cosine > 0.999_999 && layer.elements > 0, "{layer:?}");
            assert!(layer.reference.largest() > 0.0, "{layer:?}");
        }
    }
}

#[test]
fn every_layer_of_every_part_agrees_with_libtorch_and_the_report_says_so() {
    let report = run(&command(&[]), &mut |_| {}).unwrap();
    assert_right(&report);
    let checkpoint = Checkpoint::open(&tiny_checkpoint(), &OpenOptions::default()).unwrap();
    let config = &checkpoint.config;
    let parts: Vec<Part> = report.parts.iter().map(|part| part.part).collect();
    assert_eq!(parts, Part::ALL);
    for layer in 0..checkpoint.eagle.vision.num_hidden_layers {
        assert!(names(&report, 0).contains(&format!("vision.layer{layer}.mlp_out")));
    }
    for layer in 0..config.select_layer {
        assert!(names(&report, 1).contains(&format!("llm.layer{layer}.attn_out")));
    }
    let dit = names(&report, 2);
    for block in 0..config.diffusion.num_layers {
        for step in 0..config.num_inference_timesteps {
            assert!(dit.contains(&format!("step{step}.block{block}.ff")), "{dit:?}");
        }
    }
    assert!(dit.contains("condition.keys_0") && dit.contains("condition.state_tokens"), "{dit:?}");
    assert!(dit.contains("step0.velocity"), "{dit:?}");

    let text = report.to_string();
    assert!(text.contains("vision: all") && text.contains("within the range of f16"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    let first = &json["parts"][0]["layers"][0];
    assert_eq!(first["name"], "vision.patch_pos_embed");
    for field in ["mse", "cosine", "max_abs", "elements"] {
        assert!(first[field].is_number(), "{first}");
    }
    assert!(first["reference"]["min"].is_number() && first["other"]["beyond_f16"] == 0, "{first}");
}

#[test]
fn a_recorded_observation_goes_through_the_parts_before_the_one_that_is_compared() {
    let golden = tiny_checkpoint().join("golden").display().to_string();
    let report = run(&command(&["--golden", &golden, "--part", "dit"]), &mut |_| {}).unwrap();
    assert_eq!(report.parts.len(), 1);
    assert!(report.inputs.contains("observation obs"), "{}", report.inputs);
    assert_right(&report);
    // Other inputs than the synthetic ones, so other values.
    let synthetic = run(&command(&["--part", "dit"]), &mut |_| {}).unwrap();
    let last = |report: &Report| report.parts[0].comparison.layers.last().unwrap().reference;
    assert_ne!(last(&report), last(&synthetic));
    let wrong = command(&["--golden", &golden, "--observation", "no such one"]);
    let error = run(&wrong, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("no such one") && error.contains("obs"), "{error}");
}

/// A copy of the tiny checkpoint with every second output of a Linear negated.
fn spoilt(folder: &Path, tensor: &str) -> Checkpoint {
    let tiny = tiny_checkpoint();
    copy_side_files(&tiny, folder);
    let mut tensors: Tensors = read_tensors(&tiny.join(SINGLE_FILE));
    let weight = tensors.get_mut(tensor).unwrap_or_else(|| panic!("no {tensor}"));
    let row = weight.data.len() / weight.shape[0];
    for row in weight.data.chunks_exact_mut(row).step_by(2) {
        // The sign is the highest bit of a bf16, little-endian.
        row.iter_mut().skip(1).step_by(2).for_each(|byte| *byte ^= 0x80);
    }
    write_tensors(&folder.join(SINGLE_FILE), &tensors);
    Checkpoint::open(folder, &OpenOptions::default()).unwrap()
}

#[test]
fn an_error_in_one_layers_weights_is_found_in_that_layer() {
    const VISION: &str = "backbone.model.vision_model.vision_model.encoder.layers";
    const LANGUAGE: &str = "backbone.model.language_model.model.layers";
    const DIT: &str = "action_head.model.transformer_blocks";
    let reference = Checkpoint::open(&tiny_checkpoint(), &OpenOptions::default()).unwrap();
    for (part, tensor, layer) in [
        (Part::Vision, format!("{VISION}.1.mlp.fc2.weight"), "vision.layer1.mlp_out"),
        (Part::Vision, "backbone.model.mlp1.3.weight".to_owned(), "image_embeds"),
        (Part::Language, format!("{LANGUAGE}.2.self_attn.o_proj.weight"), "llm.layer2.attn_out"),
        (Part::Dit, format!("{DIT}.2.attn1.to_v.weight"), "condition.values_2"),
        (Part::Dit, format!("{DIT}.1.ff.net.2.weight"), "step0.block1.ff"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let exported = spoilt(folder.path(), &tensor);
        let command = command(&[]);
        let validation = Validation {
            exported: &exported,
            reference: &reference,
            inputs: &command.inputs(&reference).unwrap(),
            device: Device::Cpu,
            library: command.onnxruntime.clone(),
            folder: folder.path(),
        };
        let found = validation.run(&[part], &mut |_| {}).unwrap();
        let inputs = command.inputs(&reference).unwrap();
        let report = Report::new(folder.path(), &inputs, command.least_cosine, found);
        assert_eq!(report.wrong, [layer], "{tensor}\n{report}");
        assert!(report.to_string().contains(&format!("WRONG from {layer} on")), "{report}");
        assert!(!report.is_right());
    }
}

#[test]
fn the_program_says_what_to_install_without_onnx_runtime_and_writes_its_report_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let program = || {
        let mut program = Process::new(env!("CARGO_BIN_EXE_engine_builder"));
        program.arg("validate").arg("--checkpoint").arg(tiny_checkpoint());
        program.args(["--part", "vision", "--image-size", "56x84", "--out", "report.json"]);
        // Where there is no .venv.
        program.current_dir(folder.path()).env_remove("VIRTUAL_ENV").env_remove("ORT_DYLIB_PATH");
        program
    };
    let output = program().output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("pip install onnxruntime") && error.contains("ORT_DYLIB_PATH"), "{error}");
    assert!(!folder.path().join("report.json").exists());

    let output = program().env("ORT_DYLIB_PATH", onnxruntime_library()).output().unwrap();
    let (table, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(table.contains("vision.layer0.attn_out") && table.contains("cosine"), "{table}");
    let json = std::fs::read_to_string(folder.path().join("report.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["parts"][0]["part"], "vision");
    assert_eq!(json["wrong"], serde_json::json!([]));

    // A limit that nothing reaches.
    let mut strict = program();
    let output = strict.env("ORT_DYLIB_PATH", onnxruntime_library()).args(["--least-cosine", "1.1"]).output();
    assert_eq!(output.unwrap().status.code(), Some(1));
}
