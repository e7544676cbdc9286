//! The node as its users meet it: a process on the network, spoken to by a DDS implementation that shares no code with it.

// Each test uses a part of what they share.
#[allow(dead_code)]
#[path = "support/peer.rs"]
mod peer;
#[allow(dead_code)]
mod support;

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use groot_policy::{
    model::policy::{Noise, Policy, PredictRequest},
    node::{config::NodeConfig, policy::policy_options},
    observation::Observation,
    ros::msg::{ActionChunk, JointTrajectory, Time},
};
use image::RgbImage;
use ndarray::Array2;
use peer::Peer;
use serde_json::{Value, json};
use support::{PATIENCE, test_domain};

fn demo_config() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.yaml")
}

fn node(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_policy_node"));
    command.args(arguments).env("ROS_LOCALHOST_ONLY", "1").env_remove("RUST_LOG");
    // libtorch's threads sleep while they wait: beside other tests they would take minutes to meet.
    command.env("OMP_WAIT_POLICY", "passive");
    command
}

/// A node that is stopped with the test, whatever becomes of it.
struct RunningNode(Child);

impl RunningNode {
    fn start(domain: u16, parameters: &[&str]) -> Self {
        let domain = format!("domain_id:={domain}");
        let demo = demo_config();
        let mut arguments = vec!["--ros-args", "--params-file", demo.to_str().unwrap(), "-p", &domain];
        parameters.iter().for_each(|parameter| arguments.extend(["-p", parameter]));
        Self(node(&arguments).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Asks it to stop as Ctrl-C does and returns what it printed.
    fn interrupt(mut self) -> String {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        let mut printed = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}\n{printed}");
        printed
    }
}

impl Drop for RunningNode {
    fn drop(&mut self) {
        // Has ended already where the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A frame with structure, so that a wrong row length or channel order shows in the numbers.
fn frame(phase: u32) -> RgbImage {
    RgbImage::from_fn(640, 480, |x, y| {
        image::Rgb([(x / 3 + phase) as u8, (y / 2) as u8, ((x + y * phase) % 251) as u8])
    })
}

fn image_message(frame: &RgbImage) -> Value {
    json!({
        "header": {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": "optical"},
        "height": frame.height(), "width": frame.width(), "encoding": "rgb8", "is_bigendian": 0,
        "step": frame.width() * 3, "data": {"base64": STANDARD.encode(frame.as_raw())},
    })
}

fn take<T: serde::de::DeserializeOwned>(peer: &mut Peer, topic: &str) -> Vec<T> {
    let answer = peer.ask(json!({"command": "take", "topic": topic, "timeout": PATIENCE.as_secs()}));
    serde_json::from_value(answer["messages"].clone()).unwrap()
}

#[test]
fn a_trajectory_has_the_numbers_that_the_library_computes_for_the_same_observation_and_noise() {
    const INSTRUCTION: &str = "Pick up the CAN, please!";
    let config = NodeConfig::load(&[demo_config()], &[]).unwrap();
    let step_time = Duration::from_secs(1);
    let frames: BTreeMap<String, RgbImage> =
        config.cameras.keys().zip(1..).map(|(key, phase)| (key.clone(), frame(phase))).collect();
    // One value per joint; the message names them in another order than the configuration does.
    let joints: Vec<String> = config.state.values().flatten().cloned().collect();
    let position = |name: &str| joints.iter().position(|joint| joint == name).unwrap() as f64 * 0.07 - 0.5;
    let mut names = joints.clone();
    names.reverse();
    let positions: Vec<f64> = names.iter().map(|name| position(name)).collect();

    let domain = test_domain();
    let mut peer = Peer::start(domain);
    // However slow the machine is: observations do not grow too old, and a chunk comes while its steps lie ahead.
    let patient: Vec<String> = [
        "max_age",
        "max_state_age",
        "watchdog.max_observation_age",
        "watchdog.max_state_age",
        "watchdog.max_inference",
        "watchdog.max_chunk_age",
    ]
    .map(|limit| format!("{limit}_ms:=60000.0"))
    .to_vec();
    // A status line before the first trajectory, however fast the machine is.
    let mut parameters =
        vec!["noise_seed:=11", "step_time:=1.0", "max_skew_ms:=10000.0", "status_period:=0.1"];
    parameters.extend(patient.iter().map(String::as_str));
    let running = RunningNode::start(domain, &parameters);
    let mut publish = |topic: &str, kind: &str, qos: &str, message: Value| {
        peer.ask(json!({"command": "publisher", "topic": topic, "type": kind, "qos": qos}));
        peer.ask(json!({"command": "matched", "topic": topic, "timeout": PATIENCE.as_secs()}));
        peer.ask(json!({"command": "repeat", "topic": topic, "message": message, "rate": 20, "restamp": qos == "sensor_data"}));
    };
    publish("/policy_node/instruction", "std_msgs/String", "reliable", json!({"data": INSTRUCTION}));
    for (key, frame) in &frames {
        publish(&config.cameras[key].topic, "sensor_msgs/Image", "sensor_data", image_message(frame));
    }
    let state = json!({
        "header": {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": ""},
        "name": names, "position": positions, "velocity": [], "effort": [],
    });
    publish(&config.joint_states_topic, "sensor_msgs/JointState", "sensor_data", state);

    for (topic, kind) in [
        ("/policy_node/action_chunk", "groot_policy/ActionChunk"),
        ("/policy_node/joint_trajectory", "trajectory_msgs/JointTrajectory"),
    ] {
        peer.ask(json!({"command": "subscriber", "topic": topic, "type": kind, "qos": "reliable"}));
    }
    let mut policy = Policy::load(&policy_options(&config)).unwrap();
    let observation = Observation {
        video: frames.into_iter().map(|(key, frame)| (key, vec![frame])).collect(),
        state: config
            .state
            .iter()
            .map(|(key, joints)| {
                let values = joints.iter().map(|joint| position(joint) as f32).collect();
                (key.clone(), Array2::from_shape_vec((1, joints.len()), values).unwrap())
            })
            .collect(),
        instruction: INSTRUCTION.to_owned(),
    };

    // The first chunks may answer the instruction of the configuration. Frames come at four times the rate of the ticks, so
    // a stamp tells which trajectory belongs to which chunk.
    let start = Instant::now();
    let mut trajectories: Vec<JointTrajectory> = Vec::new();
    let mut chunks: Vec<ActionChunk> = Vec::new();
    let (chunk, trajectory) = loop {
        trajectories.extend(take(&mut peer, "/policy_node/joint_trajectory"));
        chunks.extend(take(&mut peer, "/policy_node/action_chunk"));
        let mut pairs = chunks.iter().filter(|chunk| chunk.instruction == INSTRUCTION).filter_map(|chunk| {
            let same = |trajectory: &&JointTrajectory| trajectory.header.stamp == chunk.observation_stamp;
            Some((chunk.clone(), trajectories.iter().find(same)?.clone()))
        });
        if let Some(pair) = pairs.next_back() {
            break pair;
        }
        if start.elapsed() > 3 * PATIENCE {
            let (chunks, trajectories) = (chunks.len(), trajectories.len());
            let printed = running.interrupt();
            panic!("no chunk for the instruction among {chunks} and {trajectories} trajectories:\n{printed}");
        }
    };
    let printed = running.interrupt();
    assert!(printed.contains("the motions mean nothing"), "{printed}");

    let seed = 11 + chunk.sequence;
    assert_eq!(chunk.noise_seed, seed);
    let expected = policy.predict(&PredictRequest::new(observation, Noise::Seed(seed))).unwrap().actions;
    assert_eq!(chunk.groups.len(), expected.len());
    for (group, (key, values)) in chunk.groups.iter().zip(&expected) {
        assert_eq!((&group.key, group.dimension as usize), (key, values.ncols()));
        assert_eq!(group.names, config.state[key]);
        assert_eq!(group.data, values.iter().copied().collect::<Vec<_>>(), "{key}");
    }
    let horizon = expected[0].1.nrows();
    assert_eq!(chunk.horizon as usize, horizon);
    assert_ne!(chunk.state_stamp, Time::default());
    let stages: Vec<&str> = chunk.timing.iter().map(|t| t.stage.as_str()).collect();
    assert_eq!(stages, ["preprocess", "vision", "language", "action_head", "total", "overhead"]);

    let names: Vec<String> = expected.iter().flat_map(|(key, _)| config.state[key].clone()).collect();
    assert_eq!(trajectory.joint_names, names);
    // Points whose time had passed when the chunk came are left out.
    let passed = horizon - trajectory.points.len();
    assert!(passed < horizon);
    for (step, point) in trajectory.points.iter().enumerate().map(|(i, point)| (i + passed, point)) {
        let row: Vec<f64> =
            expected.iter().flat_map(|(_, values)| values.row(step).to_vec()).map(f64::from).collect();
        assert_eq!(point.positions, row, "step {step}");
        let nanoseconds = step_time.as_nanos() * (step as u128 + 1);
        let time =
            u128::from(point.time_from_start.nanosec) + point.time_from_start.sec as u128 * 1_000_000_000;
        assert_eq!(time, nanoseconds, "step {step}");
    }
}

/// Runs the demo's node with parameters that it refuses, and returns what it says.
fn refused(parameters: &[&str]) -> String {
    let (domain, demo) = (format!("domain_id:={}", test_domain()), demo_config());
    let mut arguments = vec!["--params-file", demo.to_str().unwrap(), "-p", &domain];
    parameters.iter().for_each(|parameter| arguments.extend(["-p", parameter]));
    let (output, error) = run(&arguments);
    assert_eq!(output.status.code(), Some(1), "{error}");
    error
}

fn run(arguments: &[&str]) -> (Output, String) {
    let output = node(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, error)
}

#[test]
fn a_configuration_with_several_faults_is_refused_with_all_of_them() {
    let error = refused(&["rate:=-1.0", "step_tim:=0.1", "device:=gpu"]);
    for part in ["rate", "step_tim", "step_time", "device", "gpu"] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

#[test]
fn cameras_and_joints_that_the_checkpoint_does_not_know_are_refused_with_all_of_them() {
    let error = refused(&["cameras.head.topic:=/head", "state.gripper.joints:=[only_one]"]);
    for part in ["cameras.head", "state.gripper.joints", "front, wrist"] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

#[test]
fn a_checkpoint_that_is_not_there_is_named_and_ends_the_node() {
    let error = refused(&["checkpoint.path:=/nowhere/GR00T"]);
    assert!(error.contains("/nowhere/GR00T") && error.contains("checkpoint directory"), "{error}");
}

#[test]
fn the_parameters_in_force_are_printed_as_a_parameter_file() {
    let demo = demo_config();
    let (output, error) =
        run(&["--params-file", demo.to_str().unwrap(), "-p", "rate:=3.5", "--print-parameters"]);
    assert!(output.status.success(), "{error}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("ros__parameters:") && printed.contains("rate: 3.5"), "{printed}");
}
