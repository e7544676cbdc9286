//! Whole files to configurations and to lists of problems.

use std::path::Path;

use super::*;
use crate::engine::{EngineChoice, Precision};
use crate::execution::{ExecutionMode, Preprocessing};

const COMPLETE: &str = "\
policy_node:
  ros__parameters:
    checkpoint.path: model
    embodiment: gr1
    step_time: 0.05
    cameras: {front: {topic: /front}}
    state: {arm: {joints: [a, b]}}
";

fn parse(text: &str) -> Result<NodeConfig, ConfigError> {
    let mut problems = Vec::new();
    let given = section::read_text(Path::new("folder/p.yaml"), text, DEFAULT_NODE, &mut problems);
    let parameters = Parameters::from_given(given, &mut problems);
    ConfigError::unless_empty(problems)?;
    NodeConfig::from_parameters(parameters)
}

fn problems(text: &str) -> Vec<String> {
    parse(text).map(|_| ()).unwrap_err().problems.iter().map(ToString::to_string).collect()
}

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

fn joints(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

#[test]
fn absent_parameters_take_their_defaults() {
    let config = parse(COMPLETE).unwrap();
    assert_eq!(config.checkpoint.path, Path::new("folder/model"));
    assert_eq!((config.checkpoint.tokenizer, config.checkpoint.eagle_config), (None, None));
    assert_eq!((config.device, config.rate, config.engine), (Device::Auto, 5.0, None));
    assert_eq!((config.denoising_steps, config.noise_seed, config.domain_id), (None, None, None));
    assert_eq!(config.step_time, Duration::from_millis(50));
    assert_eq!(
        config.cameras["front"],
        CameraConfig { topic: "/front".into(), transport: ImageTransport::Raw }
    );
    assert_eq!(config.max_age, Duration::from_millis(500));
    assert_eq!(config.trajectory_topic, "~/joint_trajectory");
    assert_eq!(config.instruction, "");
}

#[test]
fn modes_are_read_and_other_names_are_refused_with_the_choices() {
    assert_eq!(parse(COMPLETE).unwrap().mode, ExecutionMode::Auto);
    assert_eq!(parse(&format!("{COMPLETE}    mode: graph\n")).unwrap().mode, ExecutionMode::Graph);
    let error = parse(&format!("{COMPLETE}    mode: fast\n")).unwrap_err().to_string();
    assert!(error.contains("mode") && error.contains("graph-fused"), "{error}");
    assert_eq!(parse(COMPLETE).unwrap().preprocessing, Preprocessing::Auto);
    let chosen = parse(&format!("{COMPLETE}    preprocessing: cpu\n")).unwrap();
    assert_eq!(chosen.preprocessing, Preprocessing::Cpu);
    let error = parse(&format!("{COMPLETE}    preprocessing: dsp\n")).unwrap_err().to_string();
    assert!(error.contains("preprocessing") && error.contains("gpu"), "{error}");
}

#[test]
fn a_folder_of_engines_asks_for_an_engine_of_the_precision() {
    let config = parse(&format!("{COMPLETE}    tensorrt: {{engines: trt, precision: int8}}\n")).unwrap();
    let choice = |folder: &str, precision, auto_build| {
        Some(EngineChoice { folder: folder.into(), precision, auto_build })
    };
    assert_eq!(config.engine, choice("folder/trt", Precision::Int8, false));
    let config = parse(&format!("{COMPLETE}    tensorrt.engines: /trt\n")).unwrap();
    assert_eq!(config.engine, choice("/trt", Precision::Fp16, false));
    let config = parse(&format!("{COMPLETE}    tensorrt: {{engines: /trt, auto_build: true}}\n")).unwrap();
    assert_eq!(config.engine, choice("/trt", Precision::Fp16, true));
    let error = parse(&format!("{COMPLETE}    tensorrt.auto_build: 1\n")).unwrap_err().to_string();
    assert!(error.contains("tensorrt.auto_build: expected true or false"), "{error}");
    let error = parse(&format!("{COMPLETE}    tensorrt.precision: fp61\n")).unwrap_err().to_string();
    assert!(error.contains("tensorrt.precision") && error.contains("int8"), "{error}");
}

#[test]
fn given_parameters_arrive_in_their_fields() {
    let text = format!(
        "{COMPLETE}    checkpoint.tokenizer: /t\n    checkpoint.eagle_config: e.json\n    device: cuda:2\n    rate: 10\n    \
         instruction: ''\n    denoising_steps: 8\n    noise_seed: 0x10\n    domain_id: 0\n    status_period: 0.5\n    \
         max_age_ms: 0x64\n    max_skew_ms: 0.5\n    max_state_age_ms: 1\n    frame_id: base\n    chunk_topic: /c\n    \
         action: {{arm: {{joints: [b, a]}}, base: {{joints: []}}}}\n"
    );
    let config = parse(&text).unwrap();
    assert_eq!(config.checkpoint.tokenizer.as_deref(), Some(Path::new("/t")));
    assert_eq!(config.checkpoint.eagle_config.as_deref(), Some(Path::new("folder/e.json")));
    assert_eq!((config.device, config.rate), (Device::Cuda(2), 10.0));
    assert_eq!((config.denoising_steps, config.noise_seed, config.domain_id), (Some(8), Some(16), Some(0)));
    assert_eq!(config.status_period, Duration::from_millis(500));
    assert_eq!(config.max_age, Duration::from_millis(100));
    assert_eq!(config.max_skew, Duration::from_micros(500));
    assert_eq!(config.max_state_age, Duration::from_millis(1));
    assert_eq!((config.frame_id.as_str(), config.chunk_topic.as_str()), ("base", "/c"));
    assert_eq!(config.action_joints("arm"), joints(&["b", "a"]));
    assert_eq!(config.action_joints("base"), joints(&[]));
}

#[test]
fn an_action_key_moves_the_joints_of_its_state_key_unless_told_otherwise() {
    let config = parse(COMPLETE).unwrap();
    assert_eq!(config.action_joints("arm"), joints(&["a", "b"]));
    assert_eq!(config.action_joints("unknown"), joints(&[]));
}

#[test]
fn every_problem_is_reported_at_once_with_its_line_and_path() {
    let text = "\
policy_node:
  ros__parameters:
    checkpoint: {path: ''}
    embodiment:
    rate: fast
    device: gpu
    cameras:
      front: {topic: ''}
      wrist: {transport: raw}
    camera.top.topic: /top
    max_skew_mss: 5.0
    cameras.side: /side
    rate.hz: 3
    action: 5
    gravity_vector: x
    state: {arm: {joints: [a, a]}}
";
    let mut expected = [
        "3: policy_node.ros__parameters.checkpoint.path: expected a non-empty folder, found \"\"",
        "4: policy_node.ros__parameters.embodiment: expected a value, found nothing; write '' for an empty string or \
         leave the parameter out",
        "5: policy_node.ros__parameters.rate: expected a number from 0.01 to 200 Hz, found the string \"fast\"",
        "6: policy_node.ros__parameters.device: expected auto, cpu, cuda or cuda:N, found \"gpu\"",
        "8: policy_node.ros__parameters.cameras.front.topic: expected a non-empty topic name, found \"\"",
        "9: policy_node.ros__parameters.cameras.wrist.topic: required, but missing",
        "10: policy_node.ros__parameters.camera.top.topic: unknown parameter; did you mean cameras.top.topic?",
        "11: policy_node.ros__parameters.max_skew_mss: unknown parameter; did you mean max_skew_ms?",
        "12: policy_node.ros__parameters.cameras.side: unknown parameter; did you mean cameras.side.topic?",
        "13: policy_node.ros__parameters.rate.hz: rate is one double, found a mapping",
        "14: policy_node.ros__parameters.action: expected a mapping, found a single value or a list",
        "15: policy_node.ros__parameters.gravity_vector: unknown parameter; the README lists the known ones",
        "16: policy_node.ros__parameters.state.arm.joints: expected a non-empty list of different joint names, found \
         \"a\" twice",
    ]
    .map(|problem| format!("folder/p.yaml:{problem}"))
    .to_vec();
    expected.push("step_time: required, but missing".into());
    assert_eq!(problems(text), expected);
    let whole = parse(text).map(|_| ()).unwrap_err().to_string();
    assert!(whole.starts_with("the configuration has 14 problems:\n  "), "{whole}");
    assert_eq!(whole.lines().count(), 15);
}

#[test]
fn a_single_problem_is_one_line() {
    let error = parse(&format!("{COMPLETE}    rate: 0\n")).map(|_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the configuration has a problem: folder/p.yaml:8: policy_node.ros__parameters.rate: \
         expected a number from 0.01 to 200 Hz, found 0"
    );
}

#[test]
fn values_that_contradict_one_another_are_problems() {
    let text = format!(
        "{COMPLETE}    cameras.wrist.topic: /w/compressed\n    action: {{x: {{joints: [a, b]}}, y: {{joints: [c, b]}}}}\n"
    );
    let found = problems(&text);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].contains("cameras.wrist.topic: \"/w/compressed\" looks like a topic of compressed images")
    );
    assert!(found[1].contains("action.y.joints: the joint \"b\" already belongs to action.x.joints"));
}

#[test]
fn a_compressed_camera_subscribes_beside_its_base_topic() {
    let camera = |topic: &str, transport| CameraConfig { topic: topic.into(), transport }.subscribed_topic();
    assert_eq!(camera("/a", ImageTransport::Raw), "/a");
    assert_eq!(camera("/a", ImageTransport::Compressed), "/a/compressed");
    assert_eq!(camera("/a/compressed", ImageTransport::Compressed), "/a/compressed");
}

#[test]
fn devices_are_read_strictly() {
    for (text, expected) in [
        ("auto", Ok(Device::Auto)),
        ("cpu", Ok(Device::Cpu)),
        ("cuda", Ok(Device::Cuda(0))),
        ("cuda:3", Ok(Device::Cuda(3))),
        ("cuda:", Err(())),
        ("cuda:+1", Err(())),
        ("cuda:-1", Err(())),
        ("cuda:99999999999999999999", Err(())),
        ("CUDA", Err(())),
        ("", Err(())),
    ] {
        assert_eq!(text.parse(), expected, "{text}");
    }
}

#[test]
fn later_files_and_overrides_win_and_paths_count_from_where_they_stand() {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first.yaml");
    let second = folder.path().join("second.yaml");
    std::fs::write(&first, COMPLETE).unwrap();
    std::fs::write(
        &second,
        "/**: {ros__parameters: {rate: 7.0, embodiment: other, checkpoint.tokenizer: t}}\n",
    )
    .unwrap();
    let overrides = [("embodiment", "third"), ("checkpoint.path", "here")].map(|(n, v)| (n.into(), v.into()));
    let config = NodeConfig::load(&[first, second], &overrides).unwrap();
    assert_eq!((config.rate, config.embodiment.as_str()), (7.0, "third"));
    assert_eq!(config.checkpoint.path, Path::new("here"));
    assert_eq!(config.checkpoint.tokenizer, Some(folder.path().join("t")));
}

#[test]
fn a_wrong_override_is_a_problem_beside_those_of_the_files() {
    let overrides =
        [("rate", "fast"), ("ratte", "1"), ("instruction", "")].map(|(n, v)| (n.into(), v.into()));
    let error = NodeConfig::load(&[PathBuf::from("absent.yaml")], &overrides).map(|_| ()).unwrap_err();
    let texts: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
    assert!(texts[0].starts_with("absent.yaml: cannot be read"), "{texts:?}");
    for expected in [
        "-p rate: expected a number from 0.01 to 200 Hz, found the string \"fast\"",
        "-p ratte: unknown parameter; did you mean rate?",
        "checkpoint.path: required, but missing",
    ] {
        assert!(texts.iter().any(|text| text == expected), "{texts:?}");
    }
    assert!(texts.iter().any(|text| text.starts_with("-p instruction: expected a value, found nothing")));
}

#[test]
fn the_parameters_list_every_value_that_counts() {
    let config = parse(COMPLETE).unwrap();
    let names: Vec<&str> = config.parameters.iter().map(|(name, _)| name).collect();
    for name in ["cameras.front.topic", "cameras.front.transport", "state.arm.joints", "rate", "domain_id"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert!(!names.contains(&"action.arm.joints"));
    assert_eq!(config.parameters.get("rate"), Some(&ParameterValue::Double(5.0)));
}

#[test]
fn the_shipped_default_is_valid_and_shows_every_parameter() {
    let config = NodeConfig::load_for("/robot/policy_node", &[shipped("policy.yaml")], &[]).unwrap();
    assert_eq!(config.checkpoint.path, shipped("../checkpoints/GR00T-N1.6-3B"));
    let given: Vec<&str> = config
        .parameters
        .iter()
        .map(|(name, _)| name)
        .filter(|name| config.parameters.source(name).is_some())
        .collect();
    for spec in parameter_table() {
        assert!(given.iter().any(|name| spec.matches(name)), "{} is not in policy.yaml", spec.name);
    }
}

#[test]
fn the_shipped_default_shows_the_defaults_of_the_table() {
    let config = NodeConfig::load(&[shipped("policy.yaml")], &[]).unwrap();
    for spec in parameter_table().iter().filter(|spec| !spec.name.contains('<')) {
        if let Some(default) = spec.default.value() {
            assert_eq!(config.parameters.get(spec.name), Some(&default), "{}", spec.name);
        }
    }
}

#[test]
fn the_shipped_profiles_are_valid_and_know_their_robots() {
    for (file, embodiment, cameras, state) in [
        ("single_arm.yaml", "new_embodiment", 2, &[("single_arm", 5), ("gripper", 1)][..]),
        (
            "alfie.yaml",
            "new_embodiment",
            4,
            &[
                ("base", 3),
                ("left_arm", 6),
                ("left_hand", 1),
                ("right_arm", 6),
                ("right_hand", 1),
                ("head", 2),
            ],
        ),
        (
            "gr1.yaml",
            "gr1",
            1,
            &[("left_arm", 7), ("right_arm", 7), ("left_hand", 6), ("right_hand", 6), ("waist", 3)],
        ),
        (
            "libero.yaml",
            "libero_panda",
            2,
            &[("x", 1), ("y", 1), ("z", 1), ("roll", 1), ("pitch", 1), ("yaw", 1), ("gripper", 2)],
        ),
        ("droid.yaml", "oxe_droid", 2, &[("eef_9d", 9), ("gripper_position", 1), ("joint_position", 7)]),
    ] {
        let config = NodeConfig::load_for("/robot/policy_node", &[shipped(file)], &[]).unwrap();
        assert_eq!((config.embodiment.as_str(), config.cameras.len()), (embodiment, cameras), "{file}");
        let mut sizes: Vec<(&str, usize)> =
            config.state.iter().map(|(key, joints)| (key.as_str(), joints.len())).collect();
        let mut expected = state.to_vec();
        sizes.sort_unstable();
        expected.sort_unstable();
        assert_eq!(sizes, expected, "{file}");
    }
}

#[test]
fn the_demo_fits_the_tiny_checkpoint() {
    let config = NodeConfig::load(&[shipped("demo.yaml")], &[]).unwrap();
    assert!(config.checkpoint.path.join("config.json").is_file());
    assert!(config.checkpoint.tokenizer.as_ref().unwrap().join("vocab.json").is_file());
    assert!(config.checkpoint.eagle_config.as_ref().unwrap().is_file());
    config.check_against(&tiny_keys(&config.embodiment, &config.checkpoint.path)).unwrap();
}

/// The keys of an embodiment, straight from the checkpoint's files.
fn tiny_keys(embodiment: &str, checkpoint: &Path) -> CheckpointKeys {
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(checkpoint.join(name)).unwrap()).unwrap()
    };
    let (processor, statistics) = (read("processor_config.json"), read("statistics.json"));
    let keys = |modality: &str| -> Vec<String> {
        let keys = &processor["processor_kwargs"]["modality_configs"][embodiment][modality]["modality_keys"];
        keys.as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()).collect()
    };
    let with_dimensions = |modality: &str| -> Vec<(String, usize)> {
        let dimension = |key: &str| statistics[embodiment][modality][key]["mean"].as_array().unwrap().len();
        keys(modality).into_iter().map(|key| (key.clone(), dimension(&key))).collect()
    };
    CheckpointKeys {
        video: keys("video"),
        state: with_dimensions("state"),
        action: with_dimensions("action"),
    }
}

#[test]
fn whatever_does_not_fit_the_checkpoint_is_reported_at_once() {
    let text = format!(
        "{COMPLETE}    cameras.side.topic: /side\n    state.leg.joints: [l]\n    state.tail.joints: [t]\n    \
         action: {{head: {{joints: [h, i]}}, base: {{joints: []}}, wing: {{joints: [w]}}}}\n"
    );
    let config = parse(&text).unwrap();
    let keys = CheckpointKeys {
        video: joints(&["front", "wrist"]),
        state: [("arm", 3), ("leg", 1), ("hand", 2)].map(|(key, dimension)| (key.into(), dimension)).to_vec(),
        action: [("arm", 3), ("leg", 2), ("head", 1), ("base", 2)].map(|(k, d)| (k.into(), d)).to_vec(),
    };
    let error = config.check_against(&keys).unwrap_err();
    let found: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
    let start = "folder/p.yaml";
    let path = "policy_node.ros__parameters";
    let unknown = "the checkpoint's embodiment gr1 has no such key; it has";
    assert_eq!(
        found,
        [
            format!("{start}:7: {path}.state.arm.joints: expected 3 joints as in the checkpoint, found 2"),
            format!("{start}:8: {path}.cameras.side.topic: {unknown} front, wrist"),
            format!("{start}:10: {path}.state.tail.joints: {unknown} arm, leg, hand"),
            format!("{start}:11: {path}.action.wing.joints: {unknown} arm, leg, head, base"),
            format!("{start}:11: {path}.action.head.joints: expected 1 joints as in the checkpoint, found 2"),
            "cameras.wrist.topic: required by the checkpoint's embodiment gr1, but missing".into(),
            "state.hand.joints: required by the checkpoint's embodiment gr1, but missing".into(),
            "action.leg.joints: expected 2 joints as in the checkpoint, found 1; set action.leg.joints, or to [] to \
             leave the key out of the joint trajectory"
                .into(),
        ]
    );
}

#[test]
fn a_joint_that_two_action_keys_would_move_is_a_problem() {
    let text = format!("{COMPLETE}    action.base.joints: [b]\n");
    let keys = CheckpointKeys {
        video: joints(&["front"]),
        state: vec![("arm".into(), 2)],
        action: vec![("arm".into(), 2), ("base".into(), 1)],
    };
    let error = parse(&text).unwrap().check_against(&keys).unwrap_err();
    assert_eq!(error.problems.len(), 1, "{error}");
    assert!(
        error
            .to_string()
            .contains("action.base.joints: the joint \"b\" is already moved by the action key arm")
    );
}
