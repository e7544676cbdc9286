//! `engine_builder calibrate` as its users meet it: the program on recordings, on the CPU.

#[path = "support/checkpoint_writer.rs"]
mod checkpoint_writer;
#[allow(dead_code, reason = "shared with the tests of the graphs, which use all of it")]
#[path = "onnx/runner.rs"]
mod runner;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use checkpoint_writer::{Tensors, tiny_checkpoint};
use groot_policy::{
    checkpoint::{Checkpoint, OpenOptions, Parts},
    engine::calibration::{CalibrationSample, CalibrationSet},
    engine_builder::{graph::GraphRequest, lengths::Lengths},
    model::policy::{Noise, Policy, PolicyOptions, PredictRequest, seeded_noise},
    recording::{
        bag::TruthSource,
        lerobot::writer::{WriteOptions, write_dataset},
        synthetic::{SyntheticRecording, write_bag},
    },
    replay::{command, options::PreparedRecording},
    ros::transport::NodeName,
    synthetic::SyntheticOptions,
};
use runner::{Runner, array};
use serde_json::Value;

/// What two f32 implementations may differ by.
const LIMIT: f64 = 5e-5;
/// Longest wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(180);

fn in_project(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path).display().to_string()
}

fn builder(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine_builder"));
    command.args(arguments).env_remove("RUST_LOG");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn succeeded(output: Output) -> Value {
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn refused(output: Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    text(&output.stderr)
}

/// A bag of the synthetic robot, small pictures.
fn bag(folder: &Path, seconds: f64) -> String {
    let target = folder.join("bag");
    let robot = SyntheticOptions { size: (160, 120), ..SyntheticOptions::default() };
    write_bag(&target, &SyntheticRecording { robot, seconds, ..SyntheticRecording::default() }).unwrap();
    target.display().to_string()
}

fn demo_files() -> [String; 4] {
    let option = || "--params-file".to_owned();
    [option(), in_project("config/demo.yaml"), option(), in_project("config/replay.yaml")]
}

fn collect<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["calibrate", "collect", "--device", "cpu", "--out", out], more].concat()
}

fn samples(folder: &str) -> Vec<CalibrationSample> {
    let set = CalibrationSet::open(folder).unwrap();
    (0..set.len()).map(|index| set.read(index).unwrap()).collect()
}

/// The tiny checkpoint's fused graph for an embodiment, written for ONNX Runtime.
fn fused(runner: &Runner, embodiment: usize) -> PathBuf {
    let options = OpenOptions { parts: Parts::ActionHead, ..OpenOptions::default() };
    let checkpoint = Checkpoint::open(&tiny_checkpoint(), &options).unwrap();
    let request = GraphRequest { embodiment, text: Lengths::any(), image: Lengths::any() };
    request.export(&checkpoint, runner.folder.path()).unwrap().model
}

/// Lets ONNX Runtime denoise from a sample, and gives what the actions are after the step.
fn stepped(runner: &mut Runner, model: &Path, sample: &CalibrationSample, steps: usize) -> Vec<f64> {
    let tensors = sample.tensors.iter().map(|(name, tensor)| {
        let (shape, data) = (tensor.shape.clone(), tensor.bytes.clone());
        (name.clone(), checkpoint_writer::Tensor { dtype: tensor.dtype, shape, data })
    });
    let velocity = array(&runner.run(model, &tensors.collect::<Tensors>())["velocity"]);
    let before = sample.tensors["actions"].to_f32().unwrap();
    before.iter().zip(&velocity).map(|(a, v)| f64::from(*a) + f64::from(*v) / steps as f64).collect()
}

fn worst(a: impl IntoIterator<Item = f64>, b: impl IntoIterator<Item = f64>) -> f64 {
    a.into_iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn a_bags_set_holds_what_the_policy_gave_each_step_and_leads_to_its_actions() {
    const SEED: u64 = 3;
    let folder = tempfile::tempdir().unwrap();
    let (bag, out) = (bag(folder.path(), 1.0), folder.path().join("set").display().to_string());
    let files = demo_files();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let mut line = collect(&out, &["--bag", &bag, "--seed", "3", "--steps", "3", "--samples", "1000"]);
    line.extend(&files);
    let told = succeeded(builder(&line).output().unwrap());

    // The same observations, as a replay gets them.
    let replay = ["--bag", &bag, "--steps", "3", "--modes", "torch"].map(str::to_owned);
    let parameters = [&replay[..], &files.iter().map(|&file| file.to_owned()).collect::<Vec<_>>()].concat();
    let arguments = groot_policy::node::arguments::parse(parameters).unwrap();
    let node = NodeName::new("", "policy_node").unwrap();
    let command = command::Command::read(&arguments, &node).unwrap();
    let PreparedRecording { recording, policy, .. } =
        command.recording.prepare(TruthSource::Nothing, &arguments, &node).unwrap();
    let mut policy = Policy::load(&PolicyOptions { device: "cpu".to_owned(), ..policy }).unwrap();
    let observations: Vec<_> = recording.open(0).unwrap().take(3).map(|sample| sample.unwrap()).collect();
    assert_eq!(observations.len(), 3);

    let steps = policy.denoising_steps();
    let set = CalibrationSet::open(&out).unwrap();
    assert_eq!(told["hash"], Value::String(set.hash()));
    assert_eq!((set.len(), set.meta().steps, set.meta().seed), (3 * steps, steps, SEED));
    assert_eq!(set.meta().embodiment, policy.processor().embodiment_index());
    let mut runner = Runner::start();
    let model = fused(&runner, set.meta().embodiment);
    let mut ways: BTreeMap<String, Vec<CalibrationSample>> = BTreeMap::new();
    for sample in samples(&out) {
        ways.entry(sample.source.clone()).or_default().push(sample);
    }
    for (number, observation) in observations.into_iter().enumerate() {
        let (_, way) =
            ways.iter().find(|(name, _)| name.ends_with(&format!("observation {number}"))).unwrap();
        assert!(way.iter().map(|sample| sample.step).eq(0..steps), "one sample of each step, in their order");
        let seed = SEED + number as u64;
        let noise = seeded_noise(seed, policy.noise_shape());
        let mut expected: Vec<f64> = noise.iter().map(|v| f64::from(*v)).collect();
        for sample in way {
            let actions = sample.tensors["actions"].to_f32().unwrap();
            assert!(
                worst(actions.iter().map(|v| f64::from(*v)), expected) < LIMIT,
                "{number} {}",
                sample.step
            );
            expected = stepped(&mut runner, &model, sample, steps);
        }
        let request = PredictRequest::new(observation.observation, Noise::Seed(seed));
        let end = policy.predict(&request).unwrap().normalised;
        assert!(worst(end.iter().map(|v| f64::from(*v)), expected) < LIMIT, "observation {number}");
    }
}

#[test]
fn a_datasets_set_is_even_over_the_steps_and_the_same_for_the_same_seed() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = folder.path().join("dataset");
    let robot = SyntheticOptions { size: (96, 72), ..SyntheticOptions::default() };
    write_dataset(&dataset, &robot, &WriteOptions { seconds: 1.0, ..WriteOptions::default() }).unwrap();
    let dataset = dataset.display().to_string();
    let (checkpoint, tokenizer) = (in_project("tests/golden/tiny"), in_project("tests/golden/tokenizer"));
    let run = |name: &str, seed: &str, more: &[&str]| {
        let out = folder.path().join(name).display().to_string();
        let options =
            ["--dataset", &dataset, "--episodes", "0,1", "--checkpoint", &checkpoint, "--seed", seed];
        let more =
            [&["--tokenizer", &tokenizer, "--embodiment", "new_embodiment", "--stride", "4"], more].concat();
        succeeded(builder(&collect(&out, &[&options[..], &more].concat())).output().unwrap())
    };
    let first = run("first", "1", &["--samples", "10"]);
    assert_eq!(first["samples"], serde_json::json!([3, 3, 2, 2]));
    // 20 rows in steps of 4, twice.
    assert_eq!(first["offered"], serde_json::json!([10, 10, 10, 10]));
    assert_eq!(first["hash"], run("again", "1", &["--samples", "10"])["hash"]);
    assert_ne!(first["hash"], run("other", "2", &["--samples", "10"])["hash"]);
    let sources: Vec<String> = samples(&folder.path().join("first").display().to_string())
        .into_iter()
        .map(|sample| sample.source)
        .collect();
    assert!(sources.iter().any(|source| source.starts_with("episode 0")), "{sources:?}");
    assert!(sources.iter().any(|source| source.starts_with("episode 1")), "{sources:?}");
    // Names of files say nothing of what else was tried on the way.
    let mut names: Vec<_> = fs::read_dir(folder.path().join("first"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = (0..10).map(|number| format!("sample-{number:06}.safetensors"));
    assert_eq!(names, ["calibration.json".to_owned()].into_iter().chain(expected).collect::<Vec<_>>());
}

#[test]
fn an_interrupted_collection_leaves_no_set_and_the_old_one_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("set").display().to_string();
    let checkpoint = in_project("tests/golden/tiny");
    let synthetic = |ticks: &'static str| {
        let more = ["--synthetic", ticks, "--checkpoint", &checkpoint, "--embodiment", "new_embodiment"];
        collect(&out, &[&more[..], &["--text-tokens", "9", "--image-tokens", "14", "--force"]].concat())
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let run = |ticks| {
        let line = synthetic(ticks);
        builder(&line.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let before = succeeded(run("2").output().unwrap())["hash"].clone();
    let process = run("1000000").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let hidden = || {
        let entries = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        entries
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with('.'))
            .collect::<Vec<_>>()
    };
    let start = Instant::now();
    while !hidden().iter().any(|staging| fs::read_dir(staging).is_ok_and(|mut files| files.next().is_some()))
    {
        assert!(start.elapsed() < PATIENCE, "nothing was collected");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &process.id().to_string()]).status().unwrap().success());
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("ticks"), "no progress: {}", text(&output.stderr));
    assert_eq!(CalibrationSet::open(&out).unwrap().hash(), before.as_str().unwrap());
    assert!(hidden().is_empty(), "{:?}", hidden());
}

#[test]
fn a_collected_set_becomes_a_graph_with_q_dq_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (set, out) = (path("set"), path("engines"));
    let checkpoint = in_project("tests/golden/tiny");
    let common = ["--checkpoint", &checkpoint, "--embodiment", "new_embodiment"];
    let lengths = ["--text-tokens", "9", "--image-tokens", "14"];
    let line = collect(&set, &[&["--synthetic", "2"], &common[..], &lengths].concat());
    let collected = succeeded(builder(&line).output().unwrap());
    let line = [
        "calibrate",
        "build",
        "--calibration",
        &set,
        "--out",
        &out,
        "--onnx-only",
        "--json",
        "--device",
        "cpu",
    ];
    let more = ["--ranges", "percentile:99.99", "--smooth-quant", "0.5", "--skip", "action_decoder"];
    let built = succeeded(builder(&[&line[..], &common, &more].concat()).output().unwrap());
    let calibration = &built["calibration"];
    assert_eq!(calibration["hash"], collected["hash"]);
    assert_eq!(calibration["method"], "explicit");
    assert_eq!(calibration["ranges"], "percentile:99.99");
    assert_eq!(calibration["smooth_quant"], 0.5);
    assert_eq!((&calibration["samples"], &calibration["seed"]), (&Value::from(8), &Value::from(0)));
    assert!(Path::new(built["onnx"].as_str().unwrap()).is_file());
    let cosine = built["measured"][0]["against"][0]["velocity"]["overall"]["cosine"].as_f64().unwrap();
    assert!(cosine > 0.9 && cosine < 1.0, "{cosine}");
    let mut runner = Runner::start();
    let model = PathBuf::from(built["onnx"].as_str().unwrap());
    runner.check(&model);
    let plain = fused(&runner, CalibrationSet::open(&set).unwrap().meta().embodiment);
    let sample = &samples(&set)[0];
    let [int8, f32] = [&model, &plain].map(|model| stepped(&mut runner, model, sample, 4));
    let difference = worst(int8, f32);
    assert!(difference > 0.0 && difference < 1.0, "{difference}");
}

#[test]
fn what_cannot_be_collected_or_built_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let full = folder.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("notes.txt"), "mine").unwrap();
    let (full, out) = (full.display().to_string(), folder.path().join("set").display().to_string());
    let checkpoint = in_project("tests/golden/tiny");
    let common = ["--checkpoint", &checkpoint, "--embodiment", "new_embodiment"];
    for (line, parts) in [
        (collect(&out, &[]), vec!["--bag", "--dataset", "--synthetic"]),
        (collect(&out, &["--synthetic", "1"]), vec!["--checkpoint"]),
        (
            collect(&full, &[&["--synthetic", "1", "--force"], &common[..]].concat()),
            vec!["--out", "files in"],
        ),
        (collect(&out, &["--samples", "0"]), vec!["--samples"]),
        (collect(&out, &[&["--synthetic", "0"], &common[..]].concat()), vec!["at least one observation"]),
        (vec!["calibrate"], vec!["collect", "build"]),
        (vec!["calibrate", "measure"], vec!["collect", "build", "measure"]),
        ([&["calibrate", "build", "--out", &out], &common[..]].concat(), vec!["--calibration", "collect"]),
        (
            [&["--precision", "int8", "--onnx-only", "--method", "calibrator", "--out", &out], &common[..]]
                .concat(),
            vec!["--method explicit"],
        ),
    ] {
        let told = refused(builder(&line).output().unwrap());
        for part in parts {
            assert!(told.contains(part), "{part:?} is not in {told}");
        }
    }
    assert!(!Path::new(&out).exists());
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
    // Nothing is left beside them either.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn parameters_of_a_file_are_options_of_the_same_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("calibrate.yaml");
    let checkpoint = in_project("tests/golden/tiny");
    let yaml = format!(
        "/**:\n  ros__parameters:\n    calibrate: {{checkpoint: {checkpoint}, embodiment: new_embodiment, synthetic: 1, out: set, \
         text_tokens: 9, image_tokens: 14, samples: 2, device: cpu}}\n    engine: {{checkpoint: {checkpoint}, embodiment: \
         new_embodiment, calibration: set, out: engines, precision: fp16, method: explicit, smooth_quant: 0.5, skip: [action_decoder, \
         action_encoder], onnx_only: true, no_verify: true, device: cpu, json: true}}\n"
    );
    fs::write(&file, yaml).unwrap();
    let file = file.display().to_string();
    let ros = ["--ros-args", "--params-file", &file];
    let collected = succeeded(builder(&[&["calibrate", "collect"], &ros[..]].concat()).output().unwrap());
    assert_eq!(collected["samples"], serde_json::json!([1, 1, 0, 0]));
    // What `calibrate build` means by itself wins over the file's precision.
    let built = succeeded(builder(&[&["calibrate", "build"], &ros[..]].concat()).output().unwrap());
    assert_eq!(built["calibration"]["skipped"], serde_json::json!(["action_decoder", "action_encoder"]));
    assert!(folder.path().join("engines/dit_fused_int8.onnx").is_file());
}
