//! The node's log, instruction, lifecycle and losses as a DDS implementation meets them that shares no code with it.

#[path = "support/node_process.rs"]
mod node_process;
// Each test binary uses a part of what they share.
#[allow(dead_code)]
#[path = "support/peer.rs"]
mod peer;
#[allow(dead_code)]
mod support;

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use groot_policy::ros::{
    msg::{DiagnosticArray, DiagnosticStatus, JointTrajectory, PolicyStatus, Time},
    rosout,
    transport::{Qos, Subscription},
};
use node_process::{NodeProcess, RobotProcess};
use peer::Peer;
use serde_json::{Value, json};
use support::{PATIENCE, loopback_node, test_domain};
use tracing_subscriber::layer::SubscriberExt as _;

/// More than an instruction may have.
const TOO_LONG: usize = 5000;

fn call(peer: &mut Peer, service: &str, kind: &str, request: Value) -> Value {
    let service = format!("/policy_node/{service}");
    peer.ask(json!({"command": "call", "service": service, "type": kind, "request": request}))["response"]
        .take()
}

fn take(peer: &mut Peer, topic: &str, count: usize) -> Vec<Value> {
    let answer = peer.ask(json!({"command": "take", "topic": topic, "count": count}));
    answer["messages"].as_array().expect("messages").clone()
}

/// Announces a publisher and waits until the node hears it.
fn speak(peer: &mut Peer, topic: &str, kind: &str, qos: &str) {
    peer.ask(json!({"command": "publisher", "topic": topic, "type": kind, "qos": qos}));
    peer.ask(json!({"command": "matched", "topic": topic}));
}

fn listen(peer: &mut Peer, topic: &str, kind: &str, qos: &str) {
    peer.ask(json!({"command": "subscriber", "topic": topic, "type": kind, "qos": qos, "keep": 2000}));
    peer.ask(json!({"command": "matched", "topic": topic}));
}

fn say(peer: &mut Peer, topic: &str, message: Value) {
    peer.ask(json!({"command": "publish", "topic": topic, "message": message}));
}

/// The first message that is as wanted.
async fn wait_for<M: groot_policy::ros::msg::Message + std::fmt::Debug>(
    what: &str,
    subscription: &Subscription<M>,
    wanted: impl Fn(&M) -> bool,
) -> M {
    let mut last = None;
    let wait = async {
        loop {
            let message = subscription.recv().await.expect("the node of the test is up").message;
            if wanted(&message) {
                return message;
            }
            last = Some(message);
        }
    };
    let found = tokio::time::timeout(PATIENCE, wait).await;
    found.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}; last {last:#?}"))
}

#[test]
fn a_warning_of_the_node_arrives_on_rosout_also_where_somebody_listens_only_later() {
    let domain = test_domain();
    let mut peer = Peer::start(domain);
    let _node = NodeProcess::demo(domain, &["-r", "__ns:=/robot"]);
    let topic = "/robot/policy_node/instruction";
    speak(&mut peer, topic, "std_msgs/String", "reliable");
    say(&mut peer, topic, json!({"data": "x".repeat(TOO_LONG)}));
    std::thread::sleep(Duration::from_millis(200));

    let endpoints = peer.ask(json!({"command": "endpoints", "topic": "/rosout"}));
    assert_eq!(
        endpoints["endpoints"],
        json!([{"role": "publisher", "topic": "rt/rosout", "type": "rcl_interfaces::msg::dds_::Log_", "reliable": true,
                "latched": true}])
    );
    listen(&mut peer, "/rosout", "rcl_interfaces/Log", "transient_local");
    let mut lines = Vec::new();
    let start = Instant::now();
    let warning = loop {
        lines.extend(take(&mut peer, "/rosout", 1));
        let last = lines.last().expect("one was taken");
        if last["msg"].as_str().is_some_and(|text| text.contains("instruction: expected a string")) {
            break last.clone();
        }
        assert!(start.elapsed() < PATIENCE, "{lines:#?}");
    };
    assert!(warning["msg"].as_str().unwrap().contains("at most 4096 characters, found 5000"), "{warning}");
    assert_eq!((&warning["level"], &warning["name"]), (&json!(30), &json!("robot.policy_node")));
    assert!(warning["line"].as_u64() > Some(0) && warning["stamp"]["sec"].as_i64() > Some(1_600_000_000));
    // What was said before anybody listened, from the first line on.
    let early =
        lines.iter().find(|line| line["msg"].as_str().is_some_and(|text| text.starts_with("loading ")));
    assert_eq!(early.expect("the first lines are kept")["level"], 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_late_to_rosout_gets_at_least_the_last_thousand_lines() {
    let (layer, queue) = rosout::layer();
    let domain = test_domain();
    let node = loopback_node("policy_node", domain);
    let sender = queue.publish(&node).unwrap();
    let log = tracing::Dispatch::new(tracing_subscriber::registry().with(layer));
    for part in 0..3 {
        // Less than the queue takes at once.
        let lines = part * 500..(part + 1) * 500;
        tracing::dispatcher::with_default(&log, || lines.for_each(|i| tracing::info!("{i}")));
        sender.flush(PATIENCE).await;
    }
    let mut peer = Peer::start(domain);
    listen(&mut peer, "/rosout", "rcl_interfaces/Log", "transient_local");
    let mut texts = Vec::new();
    while texts.last().is_none_or(|last| last != "1499") {
        let line = take(&mut peer, "/rosout", 1).remove(0);
        texts.push(line["msg"].as_str().unwrap().to_owned());
    }
    let last: Vec<String> = (500..1500).map(|i| i.to_string()).collect();
    assert!(texts.ends_with(&last), "{} lines, the first one {:?}", texts.len(), texts[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_instruction_is_what_was_said_last_by_message_or_by_parameter() {
    let domain = test_domain();
    let mut peer = Peer::start(domain);
    let _node = NodeProcess::demo(domain, &[]);
    let watcher = loopback_node("watcher", domain);
    let status = watcher.subscribe::<PolicyStatus>("/policy_node/status", Qos::latched(), 1).unwrap();
    let (topic, events) = ("/policy_node/instruction", "/parameter_events");
    listen(&mut peer, events, "rcl_interfaces/ParameterEvent", "reliable");
    speak(&mut peer, topic, "std_msgs/String", "latched");

    let parameter = |peer: &mut Peer| {
        let names = json!({"names": ["instruction"]});
        call(peer, "get_parameters", "rcl_interfaces/GetParameters", names)["values"][0]["string_value"]
            .take()
    };
    let set = |peer: &mut Peer, text: &str| {
        let value = json!({
            "type": 4, "bool_value": false, "integer_value": 0, "double_value": 0.0, "string_value": text,
            "byte_array_value": [], "bool_array_value": [], "integer_array_value": [], "double_array_value": [],
            "string_array_value": [],
        });
        let request = json!({"parameters": [{"name": "instruction", "value": value}]});
        let answer = call(peer, "set_parameters", "rcl_interfaces/SetParameters", request);
        assert_eq!(answer["results"][0]["successful"], true, "{answer}");
    };
    let in_force = async |text: &str| {
        wait_for(text, &status, |status| status.instruction == text).await;
    };

    assert_eq!(parameter(&mut peer), "pick up the red block");
    say(&mut peer, topic, json!({"data": "stack the cups"}));
    in_force("stack the cups").await;
    assert_eq!(parameter(&mut peer), "stack the cups");
    set(&mut peer, "wave");
    in_force("wave").await;
    assert_eq!(parameter(&mut peer), "wave");
    say(&mut peer, topic, json!({"data": "x".repeat(TOO_LONG)}));
    say(&mut peer, topic, json!({"data": "fold the towel"}));
    in_force("fold the towel").await;
    assert_eq!(parameter(&mut peer), "fold the towel");

    let mut told = Vec::new();
    while told.len() < 3 {
        let event = take(&mut peer, events, 1).remove(0);
        assert_eq!(event["node"], "/policy_node");
        for changed in event["changed_parameters"].as_array().unwrap() {
            told.push((changed["name"].clone(), changed["value"]["string_value"].clone()));
        }
    }
    let expected =
        ["stack the cups", "wave", "fold the towel"].map(|text| (json!("instruction"), json!(text)));
    assert_eq!(told, expected, "each change once, although the node hears latched and other publishers");
}

#[test]
fn each_change_of_the_lifecycle_is_told_in_the_steps_of_a_lifecycle_node() {
    let domain = test_domain();
    let mut peer = Peer::start(domain);
    let _node = NodeProcess::demo(domain, &[]);
    let topic = "/policy_node/transition_event";
    listen(&mut peer, topic, "lifecycle_msgs/TransitionEvent", "reliable");
    // Until the node has heard that we listen, what it tells is lost.
    let trigger = |peer: &mut Peer, service: &str| {
        assert_eq!(call(peer, service, "std_srvs/Trigger", json!({}))["success"], true);
    };
    let told = |peer: &mut Peer, seconds: u64| {
        peer.try_ask(json!({"command": "take", "topic": topic, "count": 1, "timeout": seconds})).is_ok()
    };
    let heard = (0..10).any(|_| {
        trigger(&mut peer, "deactivate");
        trigger(&mut peer, "activate");
        told(&mut peer, 4)
    });
    assert!(heard, "nothing was told of ten changes");
    while told(&mut peer, 2) {}
    trigger(&mut peer, "deactivate");
    let event = |peer: &mut Peer| {
        let event = take(peer, topic, 1).remove(0);
        let label = |part: &str| event[part]["label"].as_str().unwrap().to_owned();
        assert!(event["timestamp"].as_u64() > Some(1_600_000_000_000_000_000), "{event}");
        (
            label("transition"),
            event["transition"]["id"].as_u64().unwrap(),
            label("start_state"),
            label("goal_state"),
        )
    };
    let step = |transition: &str, id: u64, from: &str, to: &str| {
        (transition.to_owned(), id, from.to_owned(), to.to_owned())
    };
    while event(&mut peer) != step("deactivate", 4, "active", "deactivating") {}
    assert_eq!(event(&mut peer), step("transition_success", 40, "deactivating", "inactive"));

    let activate = json!({"transition": {"id": 3, "label": ""}});
    assert_eq!(call(&mut peer, "change_state", "lifecycle_msgs/ChangeState", activate)["success"], true);
    assert_eq!(event(&mut peer), step("activate", 3, "inactive", "activating"));
    assert_eq!(event(&mut peer), step("transition_success", 30, "activating", "active"));
    // Nothing changes, nothing is told; the e-stop's deactivation is told.
    assert_eq!(call(&mut peer, "activate", "std_srvs/Trigger", json!({}))["success"], true);
    speak(&mut peer, "/policy_node/estop", "std_msgs/Bool", "latched");
    say(&mut peer, "/policy_node/estop", json!({"data": true}));
    assert_eq!(event(&mut peer), step("deactivate", 4, "active", "deactivating"));
    assert_eq!(event(&mut peer), step("transition_success", 40, "deactivating", "inactive"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_are_lost_on_the_way_are_counted_and_diagnosed() {
    let domain = test_domain();
    let mut peer = Peer::start_on_bad_network(domain, 300);
    let _node = NodeProcess::demo(domain, &[]);
    let watcher = loopback_node("watcher", domain);
    let status = watcher.subscribe::<PolicyStatus>("/policy_node/status", Qos::latched(), 1).unwrap();
    let diagnostics = watcher.subscribe::<DiagnosticArray>("/diagnostics", Qos::reliable(10), 100).unwrap();
    let (width, height) = (64, 48);
    let frame = json!({
        "header": {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": ""},
        "height": height, "width": width, "encoding": "rgb8", "is_bigendian": 0, "step": 3 * width,
        "data": {"base64": STANDARD.encode(vec![90; 3 * width * height])},
    });
    let topic = "/front/image_raw";
    speak(&mut peer, topic, "sensor_msgs/Image", "sensor_data");
    peer.ask(json!({"command": "repeat", "topic": topic, "message": frame, "rate": 30, "restamp": true}));
    let front = |status: &PolicyStatus| {
        status
            .inputs
            .iter()
            .find(|input| input.name == "camera front")
            .cloned()
            .expect("the camera is an input")
    };
    let counted = wait_for("losses are counted", &status, |status| front(status).lost >= 10).await;
    let sent = peer.ask(json!({"command": "stop", "topic": topic}))["sent"].as_u64().unwrap();
    let front = front(&counted);
    assert!(front.received >= 10, "{front:?}");
    assert!(front.received + front.overwritten + front.lost.unsigned_abs() <= sent, "{front:?}, {sent} sent");
    let told = |status: &DiagnosticStatus| {
        status.level >= DiagnosticStatus::WARN
            && status.message.contains("camera front: ")
            && status.message.contains(" messages were lost on the way")
    };
    wait_for("losses are diagnosed", &diagnostics, |array| array.status.iter().any(told)).await;
}

/// As `joint_trajectory_controller` of ros2_controllers (Humble) checks what comes over its topic.
fn check_as_a_trajectory_controller(
    trajectory: &JointTrajectory,
    joints: &[String],
    now: i64,
) -> Result<(), String> {
    let JointTrajectory { header, joint_names, points } = trajectory;
    if points.is_empty() {
        return Err("an empty trajectory is ignored".to_owned());
    }
    if joint_names.len() != joints.len() || joint_names.iter().any(|name| !joints.contains(name)) {
        return Err(format!("joints {joint_names:?}, the controller has {joints:?}"));
    }
    let nanoseconds = |span: &groot_policy::ros::msg::Duration| {
        i64::from(span.sec) * 1_000_000_000 + i64::from(span.nanosec)
    };
    let end = points.last().map_or(0, |point| nanoseconds(&point.time_from_start));
    if header.stamp != Time::default() && header.stamp.nanoseconds() + end < now {
        return Err(format!("it ends in the past: {} + {end} ns, now {now}", header.stamp.nanoseconds()));
    }
    let mut before = -1;
    for (index, point) in points.iter().enumerate() {
        let time = nanoseconds(&point.time_from_start);
        if index > 0 && time <= before {
            return Err(format!("the time of point {index} is not above that of the one before"));
        }
        before = time;
        if point.positions.len() != joint_names.len() {
            return Err(format!("{} positions in point {index}", point.positions.len()));
        }
        for (what, values) in [
            ("velocities", &point.velocities),
            ("accelerations", &point.accelerations),
            ("effort", &point.effort),
        ] {
            if !values.is_empty() {
                return Err(format!("{what} in point {index}: nothing is claimed of them"));
            }
        }
        if point.positions.iter().any(|position| !position.is_finite()) {
            return Err(format!("point {index} is not finite"));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joint_trajectory_controller_would_refuse_no_trajectory_of_the_node() {
    let domain = test_domain();
    let controller = loopback_node("controller", domain);
    let topic = "/policy_node/joint_trajectory";
    let trajectories = controller.subscribe::<JointTrajectory>(topic, Qos::reliable(10), 100).unwrap();
    let _robot = RobotProcess::demo(domain);
    let _node = NodeProcess::demo(domain, &[]);
    let mut joints = groot_policy::synthetic::demo_joint_names();
    joints.sort();
    let mut longest = 0;
    for _ in 0..10 {
        let received = tokio::time::timeout(PATIENCE, trajectories.recv()).await.expect("trajectories come");
        let received = received.expect("the node of the test is up");
        let (trajectory, now) = (received.message, received.time.nanoseconds());
        // The way to the controller takes no time here, but the machine may be busy.
        let slack = 20_000_000;
        if let Err(reason) = check_as_a_trajectory_controller(&trajectory, &joints, now - slack) {
            panic!("{reason}: {trajectory:#?}");
        }
        longest = longest.max(trajectory.points.len());
    }
    assert!(longest > 1, "none leads anywhere");
}
