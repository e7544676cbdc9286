//! The embedded transport and Eclipse Cyclone DDS understand each other: names, types, every field.

#[path = "support/peer.rs"]
mod peer;
mod support;

use std::{
    process::{Child, Command, Stdio},
    time::Instant,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use groot_policy::{
    ros::{
        msg::{
            ActionChunk, ActionGroup, ByteBuf, CompressedImage, Duration, Header, Image, JointState,
            JointTrajectory, JointTrajectoryPoint, Message, StageTiming, String as Text, Time,
        },
        transport::{Qos, RosNode, Subscription},
    },
    synthetic::demo_joint_names,
};
use peer::Peer;
use serde_json::{Value, json};
use support::{PATIENCE, loopback_node, test_domain, until};

fn start(name: &str) -> (RosNode, Peer) {
    let domain = test_domain();
    (loopback_node(name, domain), Peer::start(domain))
}

fn header(sec: i32, frame: &str) -> Header {
    Header { stamp: Time { sec, nanosec: 999_999_999 }, frame_id: frame.to_owned() }
}

fn bytes(data: &[u8]) -> Value {
    json!({ "base64": STANDARD.encode(data) })
}

async fn next<M: Message>(subscription: &Subscription<M>) -> M {
    let received = tokio::time::timeout(PATIENCE, subscription.recv()).await;
    received.expect("a message arrives").expect("the node is up").message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sensor_messages_of_another_dds_arrive_unchanged() {
    let (node, mut peer) = start("policy_node");
    let pixels: Vec<u8> = (0..480 * 640 * 3).map(|i: u32| (i % 253) as u8).collect();
    let image = Image {
        header: header(1_764_000_000, "front_optical_frame"),
        height: 480,
        width: 640,
        encoding: "rgb8".to_owned(),
        is_bigendian: 0,
        step: 1920,
        data: ByteBuf::from(pixels),
    };
    let compressed = CompressedImage {
        header: header(-1, ""),
        format: "rgb8; jpeg compressed bgr8".to_owned(),
        data: ByteBuf::from([0xff, 0xd8, 0x00, 0xff, 0xd9]),
    };
    let joints = JointState {
        header: header(i32::MAX, "base_link"),
        name: vec!["left_arm_joint_1".to_owned(), String::new(), "Gelenk_ä".to_owned()],
        position: vec![0.1, -std::f64::consts::PI, f64::MIN_POSITIVE],
        velocity: vec![],
        effort: vec![f64::MAX],
    };

    let images = node.subscribe::<Image>("front/image_raw", Qos::camera(), 1).unwrap();
    let jpegs = node.subscribe::<CompressedImage>("wrist/image_raw/compressed", Qos::camera(), 1).unwrap();
    let states = node.subscribe::<JointState>("joint_states", Qos::sensor_data(), 10).unwrap();
    let as_json = |header: &Header| serde_json::to_value(header).unwrap();
    for (topic, kind, message) in [
        (
            images.topic(),
            "sensor_msgs/Image",
            json!({
                "header": as_json(&image.header), "height": 480, "width": 640, "encoding": "rgb8", "is_bigendian": 0,
                "step": 1920, "data": bytes(&image.data),
            }),
        ),
        (
            jpegs.topic(),
            "sensor_msgs/CompressedImage",
            json!({
                "header": as_json(&compressed.header), "format": compressed.format, "data": bytes(&compressed.data),
            }),
        ),
        (states.topic(), "sensor_msgs/JointState", serde_json::to_value(&joints).unwrap()),
    ] {
        peer.ask(json!({"command": "publisher", "topic": topic, "type": kind, "qos": "sensor_data"}));
        peer.ask(json!({"command": "matched", "topic": topic}));
        // Best effort: repeated, since the first ones may come before our side knows the publisher.
        peer.ask(json!({"command": "repeat", "topic": topic, "message": message, "rate": 10}));
    }
    assert_eq!(next(&images).await, image);
    assert_eq!(next(&jpegs).await, compressed);
    assert_eq!(next(&states).await, joints);
    for topic in [images.topic(), jpegs.topic(), states.topic()] {
        let sent = peer.ask(json!({"command": "stop", "topic": topic}))["sent"].as_u64();
        assert!(sent > Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trajectories_and_chunks_reach_another_dds_field_by_field() {
    let (node, mut peer) = start("policy_node");
    let step = |sec, nanosec| Duration { sec, nanosec };
    let point = |i: u32| JointTrajectoryPoint {
        positions: vec![0.1 * f64::from(i), -1.0 / 3.0],
        velocities: vec![],
        accelerations: vec![1e300],
        effort: vec![],
        time_from_start: step(i as i32, 33_333_333 * i),
    };
    let trajectory = JointTrajectory {
        header: header(1_764_000_000, "base_link"),
        joint_names: vec!["left_arm_joint_1".to_owned(), "gripper_joint_1".to_owned()],
        points: (0..16).map(point).collect(),
    };
    let group = |key: &str, dimension: u32| ActionGroup {
        key: key.to_owned(),
        names: (0..dimension).map(|i| format!("{key}_{i}")).collect(),
        dimension,
        data: (0..16 * dimension).map(|i| (i as f32).sin()).collect(),
    };
    let chunk = ActionChunk {
        header: header(1, ""),
        observation_stamp: Time { sec: 2, nanosec: 3 },
        state_stamp: Time { sec: -4, nanosec: 5 },
        sequence: u64::MAX,
        noise_seed: 1 << 63,
        instruction: "hebe die Tasse auf: \"☕\"".to_owned(),
        embodiment: "new_embodiment".to_owned(),
        horizon: 16,
        step_time: step(0, 33_333_333),
        groups: vec![group("left_arm", 6), group("gripper", 1), group("empty", 0)],
        timing: ["preprocess", "total"]
            .map(|stage| StageTiming { stage: stage.to_owned(), milliseconds: 0.1 })
            .to_vec(),
    };

    let trajectories = node.publisher::<JointTrajectory>("~/joint_trajectory", Qos::reliable(10)).unwrap();
    let chunks = node.publisher::<ActionChunk>("~/action_chunk", Qos::reliable(10)).unwrap();
    let expected = [
        ("/policy_node/joint_trajectory", "trajectory_msgs", "JointTrajectory"),
        ("/policy_node/action_chunk", "groot_policy", "ActionChunk"),
    ];
    assert_eq!([trajectories.topic(), chunks.topic()], expected.map(|(topic, ..)| topic));
    for (topic, package, name) in expected {
        let kind = format!("{package}/{name}");
        peer.ask(json!({"command": "subscriber", "topic": topic, "type": kind, "qos": "reliable"}));
        peer.ask(json!({"command": "matched", "topic": topic}));
        let endpoints = peer.ask(json!({"command": "endpoints", "topic": topic}));
        let announced = json!([{
            "role": "publisher", "topic": format!("rt{topic}"), "type": format!("{package}::msg::dds_::{name}_"),
            "reliable": true, "latched": false,
        }]);
        assert_eq!(endpoints["endpoints"], announced);
    }
    until("our side knows the subscribers", || {
        trajectories.subscriber_count() == 1 && chunks.subscriber_count() == 1
    })
    .await;
    trajectories.publish(trajectory.clone()).unwrap();
    chunks.publish(chunk.clone()).unwrap();

    let answer = peer.ask(json!({"command": "take", "topic": trajectories.topic()}));
    let received: Vec<JointTrajectory> = serde_json::from_value(answer["messages"].clone()).unwrap();
    assert_eq!(received, [trajectory]);
    let answer = peer.ask(json!({"command": "take", "topic": chunks.topic()}));
    let received: Vec<ActionChunk> = serde_json::from_value(answer["messages"].clone()).unwrap();
    assert_eq!(received, [chunk]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latched_messages_reach_late_joiners_in_both_directions() {
    let (node, mut peer) = start("policy_node");
    let instruction =
        json!({"command": "publisher", "topic": "/instruction", "type": "std_msgs/String", "qos": "latched"});
    peer.ask(instruction);
    peer.ask(json!({"command": "publish", "topic": "/instruction", "message": {"data": "pick up the cup"}}));
    let subscription = node.subscribe::<Text>("/instruction", Qos::latched(), 1).unwrap();
    assert_eq!(next(&subscription).await.data, "pick up the cup");

    let status = node.publisher::<Text>("~/status", Qos::latched()).unwrap();
    status.publish(Text { data: "ready".to_owned() }).unwrap();
    let topic = status.topic();
    peer.ask(json!({"command": "subscriber", "topic": topic, "type": "std_msgs/String", "qos": "latched"}));
    let answer = peer.ask(json!({"command": "take", "topic": topic}));
    assert_eq!(answer["messages"], json!([{"data": "ready"}]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_successor_of_a_killed_peer_is_found() {
    let domain = test_domain();
    let node = loopback_node("policy_node", domain);
    let subscription = node.subscribe::<Text>("/instruction", Qos::reliable(10), 10).unwrap();
    for round in ["first", "second"] {
        let mut peer = Peer::start(domain);
        peer.ask(json!({
            "command": "publisher", "topic": "/instruction", "type": "std_msgs/String", "qos": "reliable"
        }));
        // Repeated, since a reliable publisher owes nothing to whom it does not know yet.
        let message = json!({"data": round});
        peer.ask(json!({"command": "repeat", "topic": "/instruction", "message": message, "rate": 20}));
        until(round, || std::iter::from_fn(|| subscription.try_recv()).any(|r| r.message.data == round))
            .await;
        peer.kill();
    }
}

/// The robot's process; ends with the test.
struct Robot(Child);

impl Drop for Robot {
    fn drop(&mut self) {
        // Errors mean that it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_synthetic_robot_shows_what_it_has_follows_a_trajectory_and_stops_when_asked_to() {
    let domain = test_domain();
    let robot = Command::new(env!("CARGO_BIN_EXE_synthetic_robot"))
        .args(["--localhost-only", "--size", "64x48", "--cameras", "front", "--follow", "--domain-id"])
        .arg(domain.to_string())
        .stdout(Stdio::null())
        .spawn();
    let mut robot = Robot(robot.expect("the robot starts"));
    let mut peer = Peer::start(domain);

    for (topic, kind) in
        [("/front/image_raw", "sensor_msgs/Image"), ("/joint_states", "sensor_msgs/JointState")]
    {
        peer.ask(
            json!({"command": "subscriber", "topic": topic, "type": kind, "qos": "sensor_data", "keep": 1}),
        );
    }
    let image = &peer.ask(json!({"command": "take", "topic": "/front/image_raw"}))["messages"][0];
    let shape = [&image["width"], &image["height"], &image["step"], &image["encoding"]];
    assert_eq!(shape, [&json!(64), &json!(48), &json!(192), &json!("rgb8")]);
    let data = STANDARD.decode(image["data"]["base64"].as_str().expect("base64")).expect("base64");
    assert_eq!(data.len(), 192 * 48);

    let joint = |peer: &mut Peer| -> JointState {
        let answer = peer.ask(json!({"command": "take", "topic": "/joint_states"}));
        serde_json::from_value(answer["messages"][0].clone()).expect("a joint state")
    };
    let state = joint(&mut peer);
    assert_eq!((state.name, state.position.len()), (demo_joint_names(), 16));

    let topic = "/policy_node/joint_trajectory";
    let goal = JointTrajectory {
        joint_names: vec!["gripper_joint_2".to_owned()],
        points: vec![JointTrajectoryPoint { positions: vec![1.5], ..JointTrajectoryPoint::default() }],
        ..JointTrajectory::default()
    };
    let kind = "trajectory_msgs/JointTrajectory";
    peer.ask(json!({"command": "publisher", "topic": topic, "type": kind, "qos": "reliable"}));
    peer.ask(json!({"command": "repeat", "topic": topic, "message": goal, "rate": 10}));
    let start = Instant::now();
    while joint(&mut peer).position[13] != 1.5 {
        assert!(start.elapsed() < PATIENCE, "the gripper never got to its goal");
    }

    let asked = Command::new("kill").arg(robot.0.id().to_string()).status().expect("kill runs");
    assert!(asked.success());
    assert!(robot.0.wait().expect("the robot ends").success());
}
