//! Checkpoint directories, sound and broken, as whole directories on disk.

#[path = "support/checkpoint_writer.rs"]
mod checkpoint_writer;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use checkpoint_writer::{
    INDEX_FILE, SINGLE_FILE, Tensor, Tensors, copy_side_files, deal, edit_header, edit_json, raw_file,
    read_json, read_tensors, tiny_checkpoint, write_json, write_shards, write_tensors,
};
use groot_policy::checkpoint::{
    Checkpoint, CheckpointError, EagleConfig, ModelConfig, OpenOptions, Purpose, WeightKind, Weights,
    key_table,
};
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

fn open(dir: &Path) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::open(dir, &OpenOptions::default())
}

/// A copy of the tiny checkpoint with everything as it is but the weights, which are missing.
fn without_weights() -> TempDir {
    let dir = TempDir::new().unwrap();
    copy_side_files(&tiny_checkpoint(), dir.path());
    dir
}

fn tiny_tensors() -> Tensors {
    read_tensors(&tiny_checkpoint().join(SINGLE_FILE))
}

/// The tiny checkpoint's tensors with eight rows of the vocabulary instead of all, by far the most of its bytes; the
/// configuration in `dir` is changed to suit.
fn small_tensors_and_config(dir: &Path) -> Tensors {
    let mut tensors = tiny_tensors();
    let embedding = tensors.get_mut(EMBEDDING).unwrap();
    let row_bytes = embedding.data.len() / embedding.shape[0];
    embedding.shape[0] = 8;
    embedding.data.truncate(8 * row_bytes);
    edit_json(&dir.join("eagle_config.json"), |eagle| {
        eagle["image_token_index"] = json!(7);
        eagle["text_config"]["vocab_size"] = json!(8);
    });
    tensors
}

const EMBEDDING: &str = "backbone.model.language_model.model.embed_tokens.weight";
const LM_HEAD: &str = "backbone.model.language_model.lm_head.weight";
const MASK_TOKEN: &str = "action_head.mask_token";
const VLLN: &str = "action_head.vlln.weight";
const VLLN_BIAS: &str = "action_head.vlln.bias";

/// A sound small checkpoint in one file, for a test to break.
fn whole() -> (TempDir, Tensors) {
    let dir = without_weights();
    let tensors = small_tensors_and_config(dir.path());
    write_tensors(&dir.path().join(SINGLE_FILE), &tensors);
    assert!(open(dir.path()).is_ok());
    (dir, tensors)
}

/// A sound small checkpoint in three shards, for a test to break; with the shards' names and tensors.
fn sharded() -> (TempDir, Vec<String>, Vec<Tensors>) {
    let dir = without_weights();
    let shards = deal(small_tensors_and_config(dir.path()), 3);
    let names = write_shards(dir.path(), &shards);
    assert!(open(dir.path()).is_ok());
    (dir, names, shards)
}

/// The message of the one problem of a directory.
fn only_complaint(dir: &Path, wanted: &[&str]) {
    let error = open(dir).unwrap_err();
    let text = error.to_string();
    if let CheckpointError::Invalid { problems, .. } = &error {
        assert_eq!(problems.0.len(), 1, "{text}");
    }
    assert!(text.contains(&dir.display().to_string()), "the directory is not named in: {text}");
    for part in wanted {
        assert!(text.contains(part), "{part:?} not in: {text}");
    }
}

fn shape(tensor: &Tensor) -> String {
    let dims: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
    format!("({})", dims.join(", "))
}

fn entry<'a>(header: &'a mut Map<String, Value>, tensor: &str) -> &'a mut Value {
    header.get_mut(tensor).unwrap()
}

#[test]
fn the_tiny_checkpoint_opens_with_the_values_of_its_files_and_the_references_defaults() {
    let dir = tiny_checkpoint();
    let checkpoint = open(&dir).unwrap();
    let (config, eagle) = (read_json(&dir.join("config.json")), read_json(&dir.join("eagle_config.json")));
    assert_eq!(json!(checkpoint.config.max_state_dim), config["max_state_dim"]);
    assert_eq!(json!(checkpoint.config.diffusion.num_layers), config["diffusion_model_cfg"]["num_layers"]);
    assert_eq!(json!(checkpoint.config.use_relative_action), config["use_relative_action"]);
    assert_eq!(json!(checkpoint.eagle.vision.hidden_size), eagle["vision_config"]["hidden_size"]);
    assert_eq!(json!(checkpoint.eagle.text.head_dim), eagle["text_config"]["head_dim"]);
    assert_eq!(json!(checkpoint.eagle.image_token_index), eagle["image_token_index"]);
    assert!(config.get("num_timestep_buckets").is_none() && config.get("add_pos_embed").is_none());
    assert_eq!(checkpoint.config.num_timestep_buckets, 1000);
    assert!(checkpoint.config.add_pos_embed);
}

#[test]
fn the_key_table_of_the_tiny_checkpoint_is_its_tensors_and_the_two_leftovers_that_it_lacks() {
    let checkpoint = open(&tiny_checkpoint()).unwrap();
    let mut shapes: BTreeMap<String, Vec<usize>> =
        tiny_tensors().into_iter().map(|(name, tensor)| (name, tensor.shape)).collect();
    shapes.insert(LM_HEAD.into(), shapes[EMBEDDING].clone());
    shapes.insert(MASK_TOKEN.into(), vec![1, 1, checkpoint.config.input_embedding_dim]);
    let table = key_table(&checkpoint.config, &checkpoint.eagle);
    assert_eq!(table.into_iter().map(|spec| (spec.name, spec.shape)).collect::<BTreeMap<_, _>>(), shapes);
}

#[test]
fn shards_of_mixed_types_with_leftovers_of_training_give_the_same_views_as_one_file() {
    let dir = without_weights();
    let mut tensors = tiny_tensors();
    let embedding = tensors[EMBEDDING].clone();
    tensors.insert(LM_HEAD.into(), embedding);
    let width = open(&tiny_checkpoint()).unwrap().config.input_embedding_dim;
    tensors.insert(MASK_TOKEN.into(), Tensor::zeros(Dtype::BF16, &[1, 1, width]));
    for (i, tensor) in tensors.values_mut().enumerate() {
        *tensor = tensor.cast([Dtype::F32, Dtype::F16, Dtype::BF16][i / 3 % 3]);
    }
    write_shards(dir.path(), &deal(tensors.clone(), 3));
    let weights = open(dir.path()).unwrap().weights;
    assert!(weights.names().eq(tensors.keys().map(String::as_str)));
    for (name, tensor) in &tensors {
        let view = weights.get(name).unwrap();
        let kind = match tensor.dtype {
            Dtype::F32 => WeightKind::F32,
            Dtype::F16 => WeightKind::F16,
            _ => WeightKind::Bf16,
        };
        assert_eq!((view.kind, view.shape, view.bytes), (kind, &*tensor.shape, &*tensor.data), "{name}");
    }
    assert!(
        tensors.keys().any(|name| name.contains(".vision_model.head.")),
        "no pooling head in the fixture"
    );
}

#[test]
fn leftovers_of_training_and_unknown_tensors_are_tolerated_whatever_they_look_like() {
    let (dir, mut tensors) = whole();
    tensors.retain(|name, _| !name.contains(".vision_model.head."));
    tensors.insert(LM_HEAD.into(), Tensor::zeros(Dtype::I64, &[3]));
    tensors.insert("action_head.novelty".into(), Tensor::zeros(Dtype::F8_E4M3, &[5]));
    write_tensors(&dir.path().join(SINGLE_FILE), &tensors);
    let weights = open(dir.path()).unwrap().weights;
    let text = weights.get("action_head.novelty").unwrap_err().to_string();
    for part in [SINGLE_FILE, "action_head.novelty", "expected BF16, F16 or F32", "found F8_E4M3"] {
        assert!(text.contains(part), "{part:?} not in: {text}");
    }
    let text = weights.get("action_head.nowhere").unwrap_err().to_string();
    assert!(text.contains("tensor action_head.nowhere: expected in the checkpoint's weights, found in none"));
}

#[test]
fn the_real_models_6_gigabytes_open_without_being_read() {
    let dir = TempDir::new().unwrap();
    let config =
        json!({"max_state_dim": 128, "max_action_dim": 128, "action_horizon": 50, "state_dropout_prob": 0.8});
    copy_side_files(&tiny_checkpoint(), dir.path());
    fs::remove_file(dir.path().join("eagle_config.json")).unwrap();
    write_json(&dir.path().join("config.json"), &config);
    let model = ModelConfig::from_file(&dir.path().join("config.json")).unwrap();
    let (mut header, mut end) = (Map::new(), 0);
    for spec in key_table(&model, &EagleConfig::n1d6_3b()) {
        let start = end;
        end += 2 * spec.elements();
        header.insert(spec.name, json!({"dtype": "BF16", "shape": spec.shape, "data_offsets": [start, end]}));
    }
    // The tensors' bytes are a hole in the file, which takes no room on the disk.
    let bytes = raw_file(serde_json::to_string(&header).unwrap().as_bytes(), &[]);
    let path = dir.path().join(SINGLE_FILE);
    fs::write(&path, &bytes).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len((bytes.len() + end) as u64).unwrap();

    let checkpoint = open(dir.path()).unwrap();
    assert_eq!(checkpoint.eagle, EagleConfig::n1d6_3b());
    assert_eq!(checkpoint.weights.names().count(), 1107);
    let decoder = checkpoint.weights.get("action_head.action_decoder.layer2.W").unwrap();
    assert_eq!((decoder.shape, decoder.bytes.len()), (&[32, 1024, 128][..], 32 * 1024 * 128 * 2));
}

#[test]
fn an_explicit_eagle_config_wins_over_that_of_the_directory_which_wins_over_the_built_in() {
    let (dir, _) = whole();
    let own = dir.path().join("eagle_config.json");
    let elsewhere = TempDir::new().unwrap();
    let moved = elsewhere.path().join("backbone.json");
    fs::copy(&own, &moved).unwrap();
    fs::write(&own, "not used").unwrap();
    let options = OpenOptions { eagle_config: Some(moved), ..OpenOptions::default() };
    assert!(Checkpoint::open(dir.path(), &options).is_ok());
    only_complaint(dir.path(), &["eagle_config.json: at ", "line 1"]);
    fs::remove_file(&own).unwrap();
    only_complaint(
        dir.path(),
        &[
            "config.json: backbone_embedding_dim: expected 2048, the hidden_size of the Eagle language model, found",
        ],
    );
    let absent =
        OpenOptions { eagle_config: Some(elsewhere.path().join("absent.json")), ..OpenOptions::default() };
    let text = Checkpoint::open(dir.path(), &absent).unwrap_err().to_string();
    assert!(text.contains("absent.json: cannot be read: No such file"), "{text}");
}

#[test]
fn a_directory_that_is_not_there_or_is_a_file_or_is_empty_is_named() {
    let dir = TempDir::new().unwrap();
    only_complaint(dir.path(), &["config.json: no such file", "found an empty directory"]);
    only_complaint(&dir.path().join("gone"), &["gone: expected a checkpoint directory, found nothing there"]);
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    only_complaint(&file, &["file: expected a checkpoint directory, found a file"]);
    only_complaint(dir.path(), &["config.json: no such file", "found file"]);
}

#[test]
fn a_directory_without_weights_says_which_files_it_looked_for_and_what_is_there() {
    let dir = without_weights();
    only_complaint(
        dir.path(),
        &[
            "model.safetensors: no such file; expected a directory with config.json and model.safetensors (or shards with model.safetensors.index.json)",
            "config.json, eagle_config.json, ",
        ],
    );
}

#[test]
fn a_configuration_that_is_not_json_or_has_wrong_values_is_refused_before_the_weights() {
    let dir = without_weights();
    let config = dir.path().join("config.json");
    edit_json(&config, |config| {
        config["max_seq_len"] = json!(config["action_horizon"].as_u64().unwrap() - 1)
    });
    only_complaint(dir.path(), &["config.json: max_seq_len: expected at least", "the action_horizon, found"]);
    let layers = read_json(&dir.path().join("eagle_config.json"))["text_config"]["num_hidden_layers"].clone();
    let beyond = layers.as_u64().unwrap() + 1;
    edit_json(&config, |config| {
        config["max_seq_len"] = config["action_horizon"].clone();
        config["select_layer"] = json!(beyond);
    });
    only_complaint(
        dir.path(),
        &[&format!(
            "config.json: select_layer: expected at most {layers}, the Eagle language model's layers, found {beyond}"
        )],
    );
    fs::write(&config, "{\"hidden_size\": ").unwrap();
    only_complaint(dir.path(), &["config.json: at ", "EOF while parsing"]);
    fs::write(&config, "[3]").unwrap();
    only_complaint(dir.path(), &["config.json: expected a JSON object, found [3]"]);
    fs::write(&config, vec![b' '; 65 << 20]).unwrap();
    only_complaint(dir.path(), &["config.json: expected at most 67108864 bytes, found 68157440"]);
}

#[test]
fn a_missing_tensor_is_named_with_the_shape_it_should_have() {
    let (dir, mut tensors) = whole();
    let gone = tensors.remove(VLLN).unwrap();
    write_tensors(&dir.path().join(SINGLE_FILE), &tensors);
    let expected = format!("expected a tensor of shape {}", shape(&gone));
    only_complaint(
        dir.path(),
        &["model.safetensors: action_head.vlln.weight: ", &expected, "found no such tensor"],
    );
    write_shards(dir.path(), &deal(tensors, 2));
    fs::remove_file(dir.path().join(SINGLE_FILE)).unwrap();
    only_complaint(
        dir.path(),
        &["model.safetensors.index.json: action_head.vlln.weight: ", &expected, "found no such tensor"],
    );
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    let (dir, mut tensors) = whole();
    let name = "action_head.state_encoder.layer1.W";
    let right = tensors[name].clone();
    let mut wrong = right.shape.clone();
    wrong.swap(1, 2);
    tensors.insert(name.into(), Tensor::zeros(Dtype::F32, &wrong));
    write_tensors(&dir.path().join(SINGLE_FILE), &tensors);
    only_complaint(
        dir.path(),
        &[
            &format!("model.safetensors: {name}: expected shape {}", shape(&right)),
            &format!("found {}", shape(&tensors[name])),
        ],
    );
}

#[test]
fn a_needed_tensor_of_an_unsupported_type_is_named_with_that_type() {
    for dtype in [Dtype::F8_E4M3, Dtype::I64, Dtype::F64] {
        let (dir, mut tensors) = whole();
        let shape_of = tensors[VLLN].shape.clone();
        tensors.insert(VLLN.into(), Tensor::zeros(dtype, &shape_of));
        write_tensors(&dir.path().join(SINGLE_FILE), &tensors);
        let found = format!("found {dtype} {}", shape(&tensors[VLLN]));
        only_complaint(
            dir.path(),
            &["model.safetensors: action_head.vlln.weight: expected BF16, F16 or F32", &found],
        );
    }
    let (dir, _) = whole();
    edit_header(&dir.path().join(SINGLE_FILE), |header| entry(header, VLLN)["dtype"] = json!("Q4_K"));
    only_complaint(dir.path(), &["action_head.vlln.weight: expected BF16, F16 or F32", "found Q4_K"]);
}

#[test]
fn a_truncated_file_is_named_with_the_first_tensor_cut_and_both_sizes() {
    let (dir, tensors) = whole();
    let path = dir.path().join(SINGLE_FILE);
    let bytes = fs::read(&path).unwrap();
    let data: usize = tensors.values().map(|t| t.data.len()).sum();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    only_complaint(
        dir.path(),
        &[
            "model.safetensors: ",
            &format!("expected {data} bytes of tensors, of which this one ends at {data}"),
            &format!("found {} bytes", data - 1),
            "download it again",
        ],
    );
    let header = bytes.len() - data;
    fs::write(&path, &bytes[..header - 1]).unwrap();
    only_complaint(
        dir.path(),
        &[
            &format!("model.safetensors: expected a header of {} bytes", header - 8),
            &format!("found a file that ends after {} of them", header - 9),
        ],
    );
    fs::write(&path, &bytes[..5]).unwrap();
    only_complaint(dir.path(), &["model.safetensors: expected a safetensors file", "found 5 bytes in all"]);
    fs::write(&path, []).unwrap();
    only_complaint(dir.path(), &["model.safetensors: expected a safetensors file", "found 0 bytes in all"]);
    fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
    only_complaint(
        dir.path(),
        &[
            &format!("model.safetensors: expected {data} bytes of tensors, as its header says"),
            &format!("found {} bytes", data + 1),
        ],
    );
}

#[test]
fn a_corrupt_header_is_named() {
    let (dir, _) = whole();
    let path = dir.path().join(SINGLE_FILE);
    fs::write(&path, raw_file(b"{\"action_head", &[])).unwrap();
    only_complaint(
        dir.path(),
        &[
            "model.safetensors: expected a header of JSON",
            "found text that does not parse: EOF while parsing",
        ],
    );
    fs::write(&path, raw_file(b"[]", &[])).unwrap();
    only_complaint(dir.path(), &["model.safetensors: expected a header of JSON", "expected a JSON object"]);
    fs::write(&path, [&u64::MAX.to_le_bytes()[..], b"{}"].concat()).unwrap();
    only_complaint(
        dir.path(),
        &[
            "model.safetensors: expected a safetensors header of at most 8388608 bytes",
            "found a header length of 18446744073709551615",
        ],
    );
}

#[test]
fn a_header_entry_that_contradicts_itself_or_its_neighbours_is_named() {
    let broken_entry = |edit: &dyn Fn(&mut Value), wanted: &[&str]| {
        let (dir, _) = whole();
        edit_header(&dir.path().join(SINGLE_FILE), |header| edit(entry(header, VLLN)));
        only_complaint(dir.path(), wanted);
    };
    let of_vlln = "model.safetensors: action_head.vlln.weight: expected ";
    broken_entry(
        &|entry| entry["shape"] = json!([7]),
        &[of_vlln, "the bytes of BF16 (7), found data_offsets ["],
    );
    broken_entry(
        &|entry| entry["data_offsets"] = json!([4, 2]),
        &[of_vlln, "not run backwards, found [4, 2]"],
    );
    broken_entry(
        &|entry| entry["data_offsets"] = json!([-1, 2]),
        &[of_vlln, "a header entry {dtype, shape, data_offsets: [start, end]}, found {", "[-1,2]"],
    );
    broken_entry(
        &|entry| {
            let offsets = entry["data_offsets"].as_array_mut().unwrap();
            offsets.iter_mut().for_each(|offset| *offset = json!(offset.as_u64().unwrap() + (1 << 40)));
        },
        &[of_vlln, "data within the file's ", " bytes of tensors, found data_offsets [1099"],
    );
    let (dir, _) = whole();
    let mut offsets = String::new();
    edit_header(&dir.path().join(SINGLE_FILE), |header| {
        let of_bias = entry(header, VLLN_BIAS)["data_offsets"].clone();
        offsets = of_bias.to_string();
        entry(header, VLLN)["data_offsets"] = of_bias;
    });
    only_complaint(
        dir.path(),
        &[of_vlln, "data from byte ", "where action_head.vlln.bias ends", "found data_offsets"],
    );
}

#[test]
fn a_git_lfs_pointer_says_how_to_get_the_file() {
    let pointer = "version https://git-lfs\noid sha256:0000\nsize 6573217664\n";
    let (dir, _) = whole();
    fs::write(dir.path().join(SINGLE_FILE), pointer).unwrap();
    let advice = "run `git lfs pull`";
    only_complaint(
        dir.path(),
        &["model.safetensors: expected the file itself, found a git-LFS pointer to it", advice],
    );
    fs::write(dir.path().join("config.json"), pointer).unwrap();
    only_complaint(dir.path(), &["config.json: expected the file itself, found a git-LFS pointer", advice]);
}

#[test]
fn a_missing_shard_is_named_once_with_what_it_should_hold() {
    let (dir, names, shards) = sharded();
    fs::remove_file(dir.path().join(&names[1])).unwrap();
    let expected = format!(
        "{}: expected the shard that holds {} tensors, among them {}, found no such file",
        names[1],
        shards[1].len(),
        shards[1].keys().next().unwrap()
    );
    only_complaint(dir.path(), &[&expected]);
    fs::create_dir(dir.path().join(&names[1])).unwrap();
    only_complaint(dir.path(), &[&names[1], "found not a regular file"]);
}

#[test]
fn a_corrupt_shard_is_one_problem_and_not_one_for_each_of_its_tensors() {
    let (dir, names, _) = sharded();
    fs::write(dir.path().join(&names[2]), raw_file(b"nonsense", &[])).unwrap();
    only_complaint(dir.path(), &[&names[2], "expected a header of JSON"]);
}

#[test]
fn a_tensor_that_the_index_places_where_it_is_not_is_named_with_the_shard() {
    let (dir, names, mut shards) = sharded();
    let gone = shards[0].keys().next().unwrap().clone();
    shards[0].remove(&gone);
    write_tensors(&dir.path().join(&names[0]), &shards[0]);
    only_complaint(
        dir.path(),
        &[&format!(
            "{}: {gone}: expected the tensor, which model.safetensors.index.json places here, found no such tensor",
            names[0]
        )],
    );
}

#[test]
fn a_tensor_in_two_shards_is_named_with_both() {
    let (dir, names, mut shards) = sharded();
    let (twin, tensor) = shards[0].first_key_value().map(|(n, t)| (n.clone(), t.clone())).unwrap();
    shards[2].insert(twin.clone(), tensor);
    write_tensors(&dir.path().join(&names[2]), &shards[2]);
    only_complaint(
        dir.path(),
        &[&format!(
            "{}: {twin}: expected each tensor in one shard only, found it in {} too",
            names[2], names[0]
        )],
    );
}

#[test]
fn a_tensor_that_the_index_places_in_two_shards_is_named_with_both() {
    let (dir, names, shards) = sharded();
    let tensor = shards[0].keys().next().unwrap();
    let path = dir.path().join(INDEX_FILE);
    let twice = fs::read_to_string(&path).unwrap().replacen(
        "\"weight_map\": {",
        &format!("\"weight_map\": {{\"{tensor}\": \"{}\",", names[0]),
        1,
    );
    fs::write(
        &path,
        twice.replacen(
            &format!("\n    \"{tensor}\": \"{}\"", names[0]),
            &format!("\n    \"{tensor}\": \"{}\"", names[1]),
            1,
        ),
    )
    .unwrap();
    only_complaint(
        dir.path(),
        &[&format!(
            "{INDEX_FILE}: {tensor}: expected each tensor in one shard only, found \"{}\" and \"{}\"",
            names[0], names[1]
        )],
    );
}

#[test]
fn an_index_that_leads_out_of_the_directory_is_refused() {
    let (dir, names, shards) = sharded();
    let tensor = shards[0].keys().next().unwrap();
    let outside = TempDir::new().unwrap();
    fs::copy(dir.path().join(&names[0]), outside.path().join("model.safetensors")).unwrap();
    let absolute = outside.path().join("model.safetensors").display().to_string();
    let folder = outside.path().file_name().unwrap().to_str().unwrap();
    for escape in [json!(absolute), json!(format!("../{folder}/model.safetensors")), json!(3)] {
        edit_json(&dir.path().join(INDEX_FILE), |index| index["weight_map"][tensor] = escape.clone());
        only_complaint(
            dir.path(),
            &[&format!(
                "{INDEX_FILE}: {tensor}: expected the name of a .safetensors file inside the directory, found {escape}"
            )],
        );
    }
}

#[test]
fn an_index_without_a_weight_map_is_refused() {
    let (dir, _, _) = sharded();
    write_json(&dir.path().join(INDEX_FILE), &json!({"metadata": {}}));
    only_complaint(dir.path(), &[INDEX_FILE, "missing field `weight_map`"]);
}

#[test]
fn the_single_file_wins_where_shards_lie_beside_it() {
    let (dir, tensors) = whole();
    write_json(&dir.path().join(INDEX_FILE), &json!({"weight_map": {VLLN: "model-gone.safetensors"}}));
    let weights = Weights::open(dir.path()).unwrap();
    assert_eq!(weights.names().count(), tensors.len());
}

#[test]
fn all_problems_of_the_weights_are_in_one_error_of_bounded_length() {
    let (dir, mut tensors) = whole();
    let model = open(dir.path()).unwrap();
    let needed =
        key_table(&model.config, &model.eagle).iter().filter(|s| s.purpose == Purpose::Inference).count();
    tensors.insert(VLLN.into(), Tensor::zeros(Dtype::I64, &[1, 2]));
    tensors.retain(|name, _| name == VLLN);
    write_tensors(&dir.path().join(SINGLE_FILE), &tensors);
    let error = open(dir.path()).unwrap_err();
    let CheckpointError::Invalid { problems, .. } = &error else { panic!("{error}") };
    // All others are missing, and this one has neither type nor shape.
    assert_eq!(problems.0.len(), needed - 1 + 2);
    let text = error.to_string();
    assert_eq!(text.lines().count(), 1 + 20 + 1, "{text}");
    assert!(text.contains(&format!("{} problems", needed + 1)), "{text}");
    assert!(text.ends_with(&format!("... and {} more", needed + 1 - 20)), "{text}");
}
