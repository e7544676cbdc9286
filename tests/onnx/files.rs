//! What is written, and what becomes of checkpoints and directories that cannot be used.

use std::fs;
use std::path::Path;

use groot_policy::checkpoint::{Checkpoint, OpenOptions, Purpose, key_table};
use groot_policy::onnx::backbone::{LanguageOptions, VisionOptions, language, vision};
use groot_policy::onnx::dit::{
    ConditionOptions, Extent, FusedOptions, KeyValueLayout, ReferenceOptions, condition, fused, reference,
};
use groot_policy::onnx::proto::ModelProto;
use groot_policy::onnx::{Data, ElementType, Graph, Style, write};
use prost::Message;
use safetensors::Dtype;
use serde_json::{Map, json};

use crate::checkpoint_writer::{
    SINGLE_FILE, copy_side_files, edit_json, read_tensors, write_json, write_tensors,
};
use crate::fixture::Fixture;
use crate::runner::Runner;
use crate::samples::open;

/// A checkpoint of the released 3B model's sizes. Its weights are zeros that take no space on the disk.
fn full_size_checkpoint(dir: &Path) -> Checkpoint {
    copy_side_files(&Fixture::load().dir, dir);
    fs::remove_file(dir.join("eagle_config.json")).unwrap();
    write_json(
        &dir.join("config.json"),
        &json!({"max_state_dim": 128, "max_action_dim": 128, "action_horizon": 50, "use_relative_action": true}),
    );
    edit_json(&dir.join("processor_config.json"), |config| {
        config["processor_kwargs"]["max_state_dim"] = json!(128);
        config["processor_kwargs"]["max_action_dim"] = json!(128);
    });
    let config = groot_policy::checkpoint::ModelConfig::from_file(&dir.join("config.json")).unwrap();
    let table = key_table(&config, &groot_policy::checkpoint::EagleConfig::n1d6_3b());
    let mut header = Map::new();
    let mut end = 0;
    for spec in table.iter().filter(|spec| spec.purpose == Purpose::Inference) {
        let begin = end;
        end += 2 * spec.elements() as u64;
        let entry = json!({"dtype": "BF16", "shape": spec.shape, "data_offsets": [begin, end]});
        header.insert(spec.name.clone(), entry);
    }
    let text = serde_json::to_vec(&header).unwrap();
    let path = dir.join(SINGLE_FILE);
    fs::write(&path, [&(text.len() as u64).to_le_bytes()[..], &text].concat()).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(8 + text.len() as u64 + end).unwrap();
    Checkpoint::open(dir, &OpenOptions::default()).unwrap()
}

/// Parameters among the graph's constants: everything that is no shape, axis or table.
fn parameters(graph: &Graph) -> usize {
    let constants = graph.initializers().iter().map(|initializer| graph.info(initializer.value));
    let weights = constants.filter(|info| info.kind.is_float() && info.name.contains('.'));
    weights
        .map(|info| info.shape.iter().map(|dim| dim.to_string().parse::<usize>().unwrap()).product::<usize>())
        .sum()
}

#[test]
fn graphs_of_the_3b_model_pass_the_checker_and_have_its_parameters() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = full_size_checkpoint(folder.path());
    let mut runner = Runner::start();
    let style = Style::new(ElementType::Bf16);
    let plain = FusedOptions::new(10, Extent::Fixed(34), Extent::Fixed(216));
    let companion = ConditionOptions {
        embodiment: 10,
        batch: Extent::Fixed(1),
        text_tokens: Extent::Dynamic,
        image_tokens: Extent::Dynamic,
        state_tokens: 1,
        key_values: KeyValueLayout::Tokens,
        style,
    };
    let sight =
        VisionOptions { images: Extent::Fixed(2), size: (252, 336), style: Style::default(), expose: false };
    let prompt = LanguageOptions::new(Extent::Fixed(250));
    // Of the DiT's 1,091,722,240 parameters the fused graph has neither the time embedding and the norms' own Linears
    // (2,755,584 and 32 x 4,721,664), nor keys and values of the cross-attention (16 x 6,294,528), nor both output
    // projections (4,721,664 and 1,573,888); and it has one encoder (folded) and one decoder (folded).
    let blocks = 1_091_722_240 - 2_755_584 - 32 * 4_721_664 - 16 * 6_294_528 - 4_721_664 - 1_573_888;
    let encoder = 128 * 1536 + 1536 * 1536 + 50 * 1536;
    let decoder = 1536 * 1024 + 1024 + 1024 * 128 + 128;
    for (stem, graph, expected) in [
        ("fused", fused(&checkpoint, &plain).unwrap(), blocks + encoder + decoder),
        (
            "fused_f16",
            fused(&checkpoint, &FusedOptions { style: Style::new(ElementType::F16), ..plain.clone() })
                .unwrap(),
            blocks + encoder + decoder,
        ),
        ("reference", reference(&checkpoint, &ReferenceOptions::default()).unwrap(), 1_091_722_240),
        ("condition", condition(&checkpoint, &companion).unwrap(), 16 * 6_294_528 + 1_706_496 + 2 * 2048),
        // The position embedding is resized and holds the patch embedding's bias; it is counted as a table.
        ("vision", vision(&checkpoint, &sight).unwrap(), 412_442_352 - 256 * 1152 - 1152 + 13_644_800),
        ("language", language(&checkpoint, &prompt).unwrap(), 805_378_048),
    ] {
        assert_eq!(parameters(&graph), expected, "{stem}");
        let written = write(&graph, runner.folder.path(), stem, Data::Sparse).unwrap();
        let data = fs::metadata(written.data.unwrap()).unwrap();
        assert_eq!(data.len(), written.data_bytes);
        assert!(fs::metadata(&written.model).unwrap().len() < 4 << 20, "{stem}: the structure is large");
        runner.check(&written.model);
        println!("{stem}: {} nodes, {:.2} GB of weights", graph.nodes().len(), data.len() as f64 / 1e9);
    }
}

#[test]
fn weights_lie_aligned_one_after_the_other_in_the_data_file() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let folder = tempfile::tempdir().unwrap();
    let graph = reference(&checkpoint, &ReferenceOptions::default()).unwrap();
    let written = write(&graph, folder.path(), "dit", Data::Full).unwrap();
    let model = ModelProto::decode(fs::read(&written.model).unwrap().as_slice()).unwrap();
    let bytes = fs::read(written.data.as_ref().unwrap()).unwrap();
    assert_eq!(bytes.len() as u64, written.data_bytes);
    let mut end = 0;
    let mut external = 0;
    for tensor in model.graph.unwrap().initializer {
        if tensor.external_data.is_empty() {
            assert!(tensor.raw_data.unwrap().len() < 1024);
            continue;
        }
        let field = |key: &str| {
            let entry = tensor.external_data.iter().find(|entry| entry.key() == key).unwrap();
            entry.value().to_owned()
        };
        assert_eq!(field("location"), "dit.onnx.data");
        let (offset, length): (u64, u64) =
            (field("offset").parse().unwrap(), field("length").parse().unwrap());
        let alignment = if length >= 4 * 4096 { 4096 } else { 64 };
        assert!(offset >= end && offset % alignment == 0 && offset < end + alignment, "{offset} after {end}");
        end = offset + length;
        external += 1;
    }
    assert_eq!(end, written.data_bytes);
    assert!(external > 10);
}

#[test]
fn the_same_export_gives_the_same_files_and_leaves_nothing_else() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("new/deep");
    let graph = || fused(&checkpoint, &FusedOptions::new(0, Extent::Dynamic, Extent::Dynamic)).unwrap();
    let contents = |dir: &Path| {
        let written = write(&graph(), dir, "dit", Data::Full).unwrap();
        (fs::read(written.model).unwrap(), fs::read(written.data.unwrap()).unwrap())
    };
    let first = contents(&dir);
    assert_eq!(first, contents(&dir));
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["dit.onnx", "dit.onnx.data"]);
}

#[test]
fn a_failed_export_leaves_the_earlier_one_as_it_was() {
    let fixture = Fixture::load();
    let folder = tempfile::tempdir().unwrap();
    let options = FusedOptions::new(0, Extent::Dynamic, Extent::Dynamic);
    let checkpoint = open(&fixture);
    let written = write(&fused(&checkpoint, &options).unwrap(), folder.path(), "dit", Data::Full).unwrap();
    let before = (fs::read(&written.model).unwrap(), fs::read(written.data.as_ref().unwrap()).unwrap());

    let broken = tempfile::tempdir().unwrap();
    copy_side_files(&fixture.dir, broken.path());
    let mut tensors = read_tensors(&fixture.dir.join(SINGLE_FILE));
    let name = "action_head.model.transformer_blocks.1.ff.net.2.weight";
    let weight = tensors.get_mut(name).unwrap();
    *weight = weight.cast(Dtype::F32);
    weight.data[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    write_tensors(&broken.path().join(SINGLE_FILE), &tensors);
    let checkpoint = Checkpoint::open(broken.path(), &OpenOptions::default()).unwrap();
    let error = write(&fused(&checkpoint, &options).unwrap(), folder.path(), "dit", Data::Full)
        .unwrap_err()
        .to_string();
    for part in [name, "NaN", "damaged or its training diverged"] {
        assert!(error.contains(part), "{part} not in {error}");
    }
    let after = (fs::read(&written.model).unwrap(), fs::read(written.data.as_ref().unwrap()).unwrap());
    assert!(before == after, "the earlier files changed");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "something was left over");
}

#[test]
fn weights_beyond_the_range_of_f16_are_refused_for_f16_only() {
    let fixture = Fixture::load();
    let broken = tempfile::tempdir().unwrap();
    copy_side_files(&fixture.dir, broken.path());
    let mut tensors = read_tensors(&fixture.dir.join(SINGLE_FILE));
    let name = "action_head.model.transformer_blocks.0.ff.net.0.proj.weight";
    let weight = tensors.get_mut(name).unwrap();
    *weight = weight.cast(Dtype::F32);
    weight.data[..4].copy_from_slice(&70_000f32.to_le_bytes());
    write_tensors(&broken.path().join(SINGLE_FILE), &tensors);
    let checkpoint = Checkpoint::open(broken.path(), &OpenOptions::default()).unwrap();
    let export = |kind| {
        let options = FusedOptions {
            style: Style::new(kind),
            ..FusedOptions::new(0, Extent::Dynamic, Extent::Dynamic)
        };
        let folder = tempfile::tempdir().unwrap();
        write(&fused(&checkpoint, &options).unwrap(), folder.path(), "dit", Data::Full)
    };
    let error = export(ElementType::F16).unwrap_err().to_string();
    for part in [name, "70000", "f16", "65504", "bf16 or f32"] {
        assert!(error.contains(part), "{part} not in {error}");
    }
    export(ElementType::Bf16).unwrap();
    export(ElementType::F32).unwrap();
}

#[test]
fn a_directory_that_cannot_be_written_to_is_named_with_what_to_do() {
    let fixture = Fixture::load();
    let checkpoint = open(&fixture);
    let graph = fused(&checkpoint, &FusedOptions::new(0, Extent::Dynamic, Extent::Dynamic)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let complain = |dir: &Path, stem: &str| write(&graph, dir, stem, Data::Full).unwrap_err().to_string();
    let message = complain(&file, "dit");
    assert!(message.contains("file") && message.contains("choose an output directory"), "{message}");
    let message = complain(&file.join("below"), "dit");
    assert!(message.contains("below") && message.contains("choose an output directory"), "{message}");
    fs::create_dir(folder.path().join("taken.onnx")).unwrap();
    let message = complain(folder.path(), "taken");
    assert!(message.contains("taken.onnx") && message.contains("found a directory"), "{message}");
    for stem in ["", "a/b", ".hidden"] {
        let message = complain(folder.path(), stem);
        assert!(message.contains("file name") && message.contains("plain name"), "{message}");
    }
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["file", "taken.onnx"], "something was left over");
}

#[test]
fn a_tensor_that_is_gone_is_named_by_the_checkpoints_own_error() {
    let fixture = Fixture::load();
    let broken = tempfile::tempdir().unwrap();
    copy_side_files(&fixture.dir, broken.path());
    let mut tensors = read_tensors(&fixture.dir.join(SINGLE_FILE));
    let name = "action_head.model.proj_out_2.bias";
    tensors.remove(name).unwrap();
    write_tensors(&broken.path().join(SINGLE_FILE), &tensors);
    let error = Checkpoint::open(broken.path(), &OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains(name), "{error}");
}
