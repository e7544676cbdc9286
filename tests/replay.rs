//! The replay as its users meet it: the program on recordings, and beside the live node.

// Each test uses a part of what they share.
#[allow(dead_code)]
#[path = "support/node_process.rs"]
mod node_process;
#[allow(dead_code)]
mod support;

use std::{
    collections::BTreeMap,
    fs,
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use groot_policy::{
    evaluation::{Component, Run},
    model::policy::{Noise, Policy, PredictRequest},
    node::{config::NodeConfig, policy_options::policy_options},
    recording::{
        Sample,
        bag::{Bag, BagWriter, Samples, SamplesOptions, Stride, TruthSource, WriterOptions},
        lerobot::writer::{WriteOptions, write_dataset},
        synthetic::{SyntheticRecording, raw_image, write_bag},
    },
    ros::{
        Stamp,
        msg::{ActionChunk, Header, Image, JointState, JointTrajectory},
        transport::{NodeName, Qos},
    },
    synthetic::{SyntheticOptions, SyntheticRobot, demo_joint_names},
};
use node_process::NodeProcess;
use support::{PATIENCE, loopback_node, test_domain};

fn in_project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A bag of the synthetic robot: small pictures, JPEG.
fn bag(folder: &Path, name: &str, seconds: f64) -> PathBuf {
    let target = folder.join(name);
    let robot = SyntheticOptions { size: (160, 120), ..SyntheticOptions::default() };
    write_bag(&target, &SyntheticRecording { robot, seconds, ..SyntheticRecording::default() }).unwrap();
    target
}

fn replay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_benchmark_replay"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

/// The parameter files of the demo's replay, with little repetition.
fn with_demo(rest: &[&str]) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    for file in ["config/demo.yaml", "config/replay.yaml"] {
        arguments.extend(["--params-file".to_owned(), in_project(file).display().to_string()]);
    }
    arguments.extend(["--warm-up", "0", "--iterations", "1", "--component-steps", "1"].map(str::to_owned));
    arguments.extend(rest.iter().map(|&argument| argument.to_owned()));
    arguments
}

fn replay_demo(rest: &[&str]) -> Output {
    let arguments = with_demo(rest);
    replay(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn succeeded(output: Output) -> Output {
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    output
}

#[test]
fn a_bag_is_replayed_into_tables_files_and_predictions() {
    let folder = tempfile::tempdir().unwrap();
    let bag = bag(folder.path(), "drive", 2.0);
    let (out, predictions) = (folder.path().join("report"), folder.path().join("predictions"));
    let output = succeeded(replay_demo(&[
        "--bag",
        bag.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--write-bag",
        predictions.to_str().unwrap(),
    ]));
    let printed = text(&output.stdout);
    for part in ["Modes", "torch-bf16", "baseline", "DiT per denoising step", "Components", "language model"]
    {
        assert!(printed.contains(part), "{part:?} is not in {printed}");
    }
    let run = Run::load(&out.join("run.json")).unwrap();
    assert_eq!(run.partial, None);
    // The demo's node asks for five chunks a second.
    assert_eq!(run.source.samples, 10);
    let [reference, tested] = run.modes.as_slice() else { panic!("two modes") };
    assert!(run.is_reference(reference) && reference.denoising.is_none());
    let denoising = tested.denoising.as_ref().unwrap();
    assert_eq!(denoising.steps.len(), 4);
    // bf16 differs, and by no more than bf16 does.
    let cosine = denoising.overall.cosine.unwrap();
    assert!((0.99..1.0).contains(&cosine), "{cosine}");
    for mode in [reference, tested] {
        assert_eq!(mode.recorded.as_ref().unwrap().chunks, 10);
        for component in [Component::DataProcessing, Component::Vision, Component::Dit, Component::EndToEnd] {
            assert!(mode.latency(&component).is_some(), "{component:?}");
        }
    }
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("torch-bf16") && page.contains("left_arm_joint_1"));
    assert!(out.join("modes.csv").is_file());

    let written = Bag::open(&predictions).unwrap();
    let mut chunks = 0;
    let mut trajectories: BTreeMap<Stamp, JointTrajectory> = BTreeMap::new();
    for message in written.messages() {
        let message = message.unwrap();
        match message.topic() {
            "/policy_node/action_chunk" => chunks += 1,
            "/policy_node/joint_trajectory" => {
                let trajectory: JointTrajectory = message.decode().unwrap();
                assert_eq!(trajectory.points.len(), run.options.horizon as usize);
                trajectories.insert(Stamp::from(&trajectory.header.stamp), trajectory);
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((chunks, trajectories.len()), (10, 10));
}

#[test]
fn a_dataset_is_replayed_without_a_parameter_file() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = folder.path().join("dataset");
    let robot = SyntheticOptions { size: (96, 72), ..SyntheticOptions::default() };
    write_dataset(&dataset, &robot, &WriteOptions { seconds: 1.0, ..WriteOptions::default() }).unwrap();
    let (checkpoint, tokenizer) = (in_project("tests/golden/tiny"), in_project("tests/golden/tokenizer"));
    let output = succeeded(replay(&[
        "--dataset",
        dataset.to_str().unwrap(),
        "--episodes",
        "1",
        "--checkpoint",
        checkpoint.to_str().unwrap(),
        "--tokenizer",
        tokenizer.to_str().unwrap(),
        "--embodiment",
        "new_embodiment",
        "--warm-up",
        "0",
        "--iterations",
        "1",
        "--stride",
        "5",
        "--json",
    ]));
    let run: Run = serde_json::from_slice(&output.stdout).unwrap();
    // 20 rows, one observation in five.
    assert_eq!((run.source.samples, run.trajectories_done), (4, 1));
    assert_eq!(run.modes[0].recorded.as_ref().unwrap().chunks, 4);
    assert_eq!(run.trajectories[0].name, "episode 1");
}

#[test]
fn a_gate_that_holds_fails_the_run_with_the_figure() {
    let folder = tempfile::tempdir().unwrap();
    let bag = bag(folder.path(), "drive", 0.5);
    let output = replay_demo(&["--bag", bag.to_str().unwrap(), "--fail-if", "dit_cosine<2"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("torch-bf16") && told.contains("dit_cosine"), "{told}");
    succeeded(replay_demo(&["--bag", bag.to_str().unwrap(), "--fail-if", "dit_cosine<0.5"]));
    let output = replay_demo(&["--bag", bag.to_str().unwrap(), "--fail-if", "dit_cosin<0.5"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("dit_cosine"), "{}", text(&output.stderr));
}

#[test]
fn an_interrupted_replay_says_what_it_has_and_goes_on_from_its_journal() {
    let folder = tempfile::tempdir().unwrap();
    let bags = [bag(folder.path(), "one", 1.0), bag(folder.path(), "two", 30.0)];
    let journal = folder.path().join("journal");
    let arguments = with_demo(&[
        "--bag",
        bags[0].to_str().unwrap(),
        "--bag",
        bags[1].to_str().unwrap(),
        "--modes",
        "torch",
        "--resume",
        journal.to_str().unwrap(),
        "--json",
    ]);
    let process = Command::new(env!("CARGO_BIN_EXE_benchmark_replay"))
        .args(&arguments)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // The first bag's results are one line behind the journal's head.
    let start = Instant::now();
    while fs::read_to_string(&journal).map_or(0, |text| text.lines().count()) < 2 {
        assert!(start.elapsed() < 3 * PATIENCE, "no result in the journal");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &process.id().to_string()]).status().unwrap().success());
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    let partial: Run = serde_json::from_slice(&output.stdout).unwrap();
    assert!(partial.partial.is_some());
    assert!(partial.modes[0].recorded.as_ref().unwrap().chunks < 155);

    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = succeeded(replay(&arguments));
    assert!(text(&output.stderr).contains("going on after 1 results"), "{}", text(&output.stderr));
    let whole: Run = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(whole.partial, None);
    assert_eq!(whole.trajectories_done, 2);
    assert_eq!(whole.modes[0].recorded.as_ref().unwrap().chunks, 155);

    // Another run does not go into this journal.
    let mut others = arguments.clone();
    others.extend(["--seed", "7"]);
    let output = replay(&others);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("belongs to another run"), "{}", text(&output.stderr));
}

#[test]
fn two_saved_runs_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let bag = bag(folder.path(), "drive", 0.5);
    let runs = ["a.json", "b.json"].map(|name| folder.path().join(name));
    for (run, seed) in runs.iter().zip(["0", "1"]) {
        succeeded(replay_demo(&[
            "--bag",
            bag.to_str().unwrap(),
            "--seed",
            seed,
            "--save-run",
            run.to_str().unwrap(),
        ]));
    }
    let output = succeeded(replay(&["--compare", runs[0].to_str().unwrap(), runs[1].to_str().unwrap()]));
    let printed = text(&output.stdout);
    assert!(printed.contains("noise") && printed.contains("torch-bf16"), "{printed}");
}

#[test]
fn what_is_missing_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let bag = bag(folder.path(), "drive", 0.2);
    let bag = bag.to_str().unwrap();
    let demo = in_project("config/demo.yaml");
    for (arguments, parts) in [
        (vec!["--modes", "torch"], vec!["--bag", "--dataset"]),
        (vec!["--bag", bag], vec!["--params-file", "policy.yaml"]),
        (vec!["--bag", bag, "--params-file", demo.to_str().unwrap()], vec!["/front/image_raw", "compressed"]),
        (vec!["--bag", bag, "--modes", "tensorflow"], vec!["torch-bf16", "tensorflow"]),
        (vec!["--dataset", bag, "--checkpoint", "nowhere"], vec!["--embodiment"]),
        (vec!["--dataset", bag, "--checkpoint", "nowhere", "--embodiment", "x"], vec!["nowhere"]),
    ] {
        let output = replay(&arguments);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        for part in parts {
            assert!(told.contains(part), "{part:?} is not in {told}");
        }
    }
}

/// The messages of one instant, for the node and for the bag.
struct Instance {
    joints: JointState,
    images: Vec<(String, Image)>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bag_of_what_the_live_node_got_gives_the_same_observations_and_actions() {
    let demo = in_project("config/demo.yaml");
    let config = NodeConfig::load(&[demo], &[]).unwrap();
    let domain = test_domain();
    let patient = ["max_age_ms", "max_state_age_ms", "max_skew_ms"].map(|limit| format!("{limit}:=9000.0"));
    let mut arguments =
        vec!["-p", "noise_seed:=3", "-p", "step_time:=1.0", "-p", "watchdog.max_inference_ms:=9000.0"];
    patient.iter().for_each(|limit| arguments.extend(["-p", limit]));
    let _node = NodeProcess::demo(domain, &arguments);

    let robot = loopback_node("robot", domain);
    let received =
        robot.subscribe::<ActionChunk>("/policy_node/action_chunk", Qos::reliable(1), 100).unwrap();
    let joints = robot.publisher::<JointState>("/joint_states", Qos::sensor_data()).unwrap();
    let cameras: Vec<_> = config
        .cameras
        .iter()
        .map(|(key, camera)| {
            (
                key.clone(),
                camera.topic.clone(),
                robot.publisher::<Image>(&camera.topic, Qos::camera()).unwrap(),
            )
        })
        .collect();

    // What is sent goes into the bag as well: the joints of an instant before its frames, with the same stamp, so that the
    // sample that belongs to a frame does not depend on when the node asks.
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("live");
    let mut writer = BagWriter::create(&target, WriterOptions::default()).unwrap();
    let synthetic =
        SyntheticRobot::new(&SyntheticOptions { size: (160, 120), ..SyntheticOptions::default() });
    let instance = |time: f64, stamp: Stamp| Instance {
        joints: JointState {
            header: Header { stamp: stamp.into(), ..Header::default() },
            name: demo_joint_names(),
            position: synthetic.joints(time),
            ..JointState::default()
        },
        images: cameras
            .iter()
            .map(|(key, topic, _)| {
                let header = Header { stamp: stamp.into(), ..Header::default() };
                (topic.clone(), raw_image(header, synthetic.frame(key, time).unwrap()))
            })
            .collect(),
    };
    let begin = Instant::now();
    let mut chunks: Vec<ActionChunk> = Vec::new();
    while chunks.len() < 4 {
        assert!(begin.elapsed() < 3 * PATIENCE, "only {} chunks", chunks.len());
        let stamp = Stamp::from(&groot_policy::ros::msg::Time::now());
        let Instance { joints: state, images } = instance(begin.elapsed().as_secs_f64(), stamp);
        writer.write("/joint_states", stamp, &state).unwrap();
        joints.publish(state).unwrap();
        for ((topic, image), (.., publisher)) in images.into_iter().zip(&cameras) {
            writer.write(&topic, stamp, &image).unwrap();
            publisher.publish(image).unwrap();
        }
        // Where a joint message was lost or late, the node took an older one; the bag has them all.
        while let Some(chunk) = received.try_recv() {
            chunks.extend(Some(chunk.message).filter(|chunk| chunk.state_stamp == chunk.observation_stamp));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    writer.finish().unwrap();

    let mut policy = Policy::load(&policy_options(&config)).unwrap();
    let name = NodeName::new("", "policy_node").unwrap();
    let options = SamplesOptions {
        stride: Stride::Sets(NonZeroU32::MIN),
        truth: TruthSource::Nothing,
        ..SamplesOptions::new(&config, name, policy.processor())
    };
    let samples = Samples::new(&Bag::open(&target).unwrap(), options).unwrap();
    let samples: BTreeMap<Stamp, Sample> =
        samples.map(|sample| sample.unwrap()).map(|sample| (sample.stamp, sample)).collect();
    for chunk in chunks {
        let stamp = Stamp::from(&chunk.observation_stamp);
        let sample = samples.get(&stamp).unwrap_or_else(|| panic!("no sample at {stamp}"));
        assert_eq!(sample.observation.instruction, chunk.instruction);
        let request = PredictRequest::new(sample.observation.clone(), Noise::Seed(chunk.noise_seed));
        let actions = policy.predict(&request).unwrap().actions;
        assert_eq!(chunk.groups.len(), actions.len());
        for (group, (key, values)) in chunk.groups.iter().zip(&actions) {
            assert_eq!(&group.key, key);
            assert_eq!(group.data, values.iter().copied().collect::<Vec<_>>(), "{key} at {stamp}");
        }
    }
}
