//! Services, parameters, lifecycle and log as Eclipse Cyclone DDS sees them, calling as `rmw_cyclonedds` does.

#[path = "support/lifecycle.rs"]
mod lifecycle;
// Each test binary uses a part of what they share.
#[allow(dead_code)]
#[path = "support/peer.rs"]
mod peer;
#[allow(dead_code)]
mod support;

use std::{path::Path, sync::Arc};

use groot_policy::{
    node::{
        config::NodeConfig, lifecycle_services, parameter_server::ParameterServer,
        parameter_store::ParameterStore,
    },
    ros::{
        rosout,
        srv::{Empty, Parameter, ParameterValue, Trigger, TriggerResponse, parameter_type},
        transport::{NodeOptions, RosNode, ServiceMapping},
    },
};
use lifecycle::Life;
use peer::Peer;
use serde_json::{Value, json};
use support::{loopback_node, test_domain};
use tracing_subscriber::layer::SubscriberExt as _;

fn start() -> (RosNode, Peer) {
    let domain = test_domain();
    (loopback_node("policy_node", domain), Peer::start(domain))
}

fn demo_store() -> Arc<ParameterStore> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.yaml");
    Arc::new(ParameterStore::new(NodeConfig::load(&[demo], &[]).expect("the demo's configuration")))
}

fn call(peer: &mut Peer, service: &str, kind: &str, request: Value) -> Value {
    let service = format!("/policy_node/{service}");
    peer.ask(json!({"command": "call", "service": service, "type": kind, "request": request}))["response"]
        .take()
}

fn double(name: &str, double_value: f64) -> Parameter {
    let value = ParameterValue { r#type: parameter_type::DOUBLE, double_value, ..ParameterValue::default() };
    Parameter { name: name.to_owned(), value }
}

fn text(name: &str, text: &str) -> Parameter {
    let string_value = text.to_owned();
    let value = ParameterValue { r#type: parameter_type::STRING, string_value, ..ParameterValue::default() };
    Parameter { name: name.to_owned(), value }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_are_listed_read_and_described_for_another_dds() {
    let (node, mut peer) = start();
    let _server = ParameterServer::start(&node, demo_store()).unwrap();

    let listed = call(
        &mut peer,
        "list_parameters",
        "rcl_interfaces/ListParameters",
        json!({"prefixes": ["cameras.front", "rate"], "depth": 0}),
    );
    let front = ["cameras.front.topic", "cameras.front.transport", "rate"];
    assert_eq!(listed, json!({"result": {"names": front, "prefixes": ["cameras.front"]}}));

    let names = json!({"names": ["rate", "state.gripper.joints", "nothing", "use_sim_time"]});
    let values = call(&mut peer, "get_parameters", "rcl_interfaces/GetParameters", names.clone());
    let values = values["values"].as_array().unwrap();
    let kinds: Vec<&Value> = values.iter().map(|value| &value["type"]).collect();
    assert_eq!(kinds, [3, 9, 0, 1]);
    assert_eq!(values[0]["double_value"], 5.0);
    assert_eq!(values[1]["string_array_value"], json!(["gripper_joint_1", "gripper_joint_2"]));

    let types = call(&mut peer, "get_parameter_types", "rcl_interfaces/GetParameterTypes", names.clone());
    assert_eq!(types, json!({"types": {"base64": "AwkAAQ=="}})); // 3, 9, 0, 1

    let described = call(&mut peer, "describe_parameters", "rcl_interfaces/DescribeParameters", names);
    let [rate, joints, nothing, _] = described["descriptors"].as_array().unwrap().as_slice() else {
        panic!("{described}")
    };
    assert_eq!(rate["floating_point_range"], json!([{"from_value": 0.01, "to_value": 200.0, "step": 0.0}]));
    assert_eq!((&rate["read_only"], &rate["type"]), (&json!(false), &json!(3)));
    assert!(rate["description"].as_str().unwrap().contains("asked for a new chunk"));
    assert_eq!(joints["read_only"], true);
    assert_eq!(joints["additional_constraints"], "a non-empty list of different joint names");
    assert_eq!((&nothing["name"], &nothing["type"]), (&json!("nothing"), &json!(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_are_set_from_another_dds_and_changes_are_announced() {
    let (node, mut peer) = start();
    let events = "/parameter_events";
    peer.ask(json!({
        "command": "subscriber", "topic": events, "type": "rcl_interfaces/ParameterEvent", "qos": "reliable"
    }));
    let store = demo_store();
    let watching = store.watch();
    let _server = ParameterServer::start(&node, store).unwrap();
    peer.ask(json!({"command": "matched", "topic": events}));

    let request = json!({"parameters": [
        double("rate", 10.0), text("device", "cpu"), double("max_age_ms", -1.0), text("instruction", "wave")
    ]});
    let set = call(&mut peer, "set_parameters", "rcl_interfaces/SetParameters", request);
    let done = json!({"successful": true, "reason": ""});
    assert_eq!((&set["results"][0], &set["results"][3]), (&done, &done));
    for (result, reason) in [
        (&set["results"][1], "device cannot change while the node runs"),
        (&set["results"][2], "max_age_ms: expected a number from 1 to 60000 ms, found -1"),
    ] {
        assert_eq!(result["successful"], false);
        assert!(result["reason"].as_str().unwrap().contains(reason), "{result}");
    }
    let config = watching.borrow().clone();
    assert_eq!((config.rate, config.instruction.as_str()), (10.0, "wave"));

    let atomically = |peer: &mut Peer, parameters: Value| {
        let request = json!({"parameters": parameters});
        let kind = "rcl_interfaces/SetParametersAtomically";
        call(peer, "set_parameters_atomically", kind, request)["result"].take()
    };
    let refused = atomically(&mut peer, json!([double("rate", 20.0), double("ratte", 1.0)]));
    assert_eq!(refused["successful"], false);
    assert!(refused["reason"].as_str().unwrap().contains("did you mean rate?"), "{refused}");
    assert_eq!(watching.borrow().rate, 10.0);
    assert_eq!(atomically(&mut peer, json!([double("rate", 20.0), double("max_skew_ms", 5.0)])), done);
    assert_eq!(watching.borrow().rate, 20.0);

    let mut changed: Vec<Vec<String>> = Vec::new();
    while changed.len() < 3 {
        for event in peer.ask(json!({"command": "take", "topic": events}))["messages"].as_array().unwrap() {
            assert_eq!(event["node"], "/policy_node");
            let names = event["changed_parameters"].as_array().unwrap().iter();
            let names: Vec<String> = names.map(|p| p["name"].as_str().unwrap().to_owned()).collect();
            // What was there at the start is announced, too, for those who know us by then.
            if !names.is_empty() {
                changed.push(names);
            }
        }
    }
    assert_eq!(changed, [vec!["rate"], vec!["instruction"], vec!["rate", "max_skew_ms"]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_life_of_the_node_is_asked_for_and_changed_from_another_dds() {
    let (node, mut peer) = start();
    let life = Arc::new(Life::default());
    let _services = lifecycle_services::serve(&node, life.clone()).unwrap();

    let state = |peer: &mut Peer| {
        call(peer, "get_state", "lifecycle_msgs/GetState", json!({}))["current_state"].take()
    };
    assert_eq!(state(&mut peer), json!({"id": 2, "label": "inactive"}));

    let states = call(&mut peer, "get_available_states", "lifecycle_msgs/GetAvailableStates", json!({}));
    assert_eq!(states["available_states"].as_array().unwrap().len(), 4);
    let ways =
        call(&mut peer, "get_available_transitions", "lifecycle_msgs/GetAvailableTransitions", json!({}));
    assert!(ways["available_transitions"].as_array().unwrap().contains(&json!({
        "transition": {"id": 3, "label": "activate"},
        "start_state": {"id": 2, "label": "inactive"},
        "goal_state": {"id": 3, "label": "active"},
    })));

    let change = |peer: &mut Peer, id: u8, label: &str| {
        let request = json!({"transition": {"id": id, "label": label}});
        call(peer, "change_state", "lifecycle_msgs/ChangeState", request)["success"].take()
    };
    assert_eq!(change(&mut peer, 4, ""), false, "it is not active");
    assert_eq!(change(&mut peer, 3, ""), true);
    assert_eq!(state(&mut peer), json!({"id": 3, "label": "active"}));

    let trigger = |peer: &mut Peer, name: &str| call(peer, name, "std_srvs/Trigger", json!({}));
    assert_eq!(trigger(&mut peer, "deactivate"), json!({"success": true, "message": "deactivate"}));
    life.refuse("the emergency stop is pressed");
    let refused = json!({"success": false, "message": "the emergency stop is pressed"});
    assert_eq!(trigger(&mut peer, "activate"), refused);
    assert_eq!(trigger(&mut peer, "reset"), json!({"success": true, "message": "reset"}));
    assert_eq!(trigger(&mut peer, "activate")["success"], true);
    assert_eq!(
        trigger(&mut peer, "activate"),
        json!({"success": true, "message": "the node is active already"})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_told_to_do_so_speaks_the_basic_mapping() {
    let domain = test_domain();
    let node = RosNode::new(&NodeOptions {
        domain_id: Some(domain),
        localhost_only: Some(true),
        service_mapping: ServiceMapping::Basic,
        ..NodeOptions::new("policy_node")
    })
    .unwrap();
    let mut peer = Peer::start(domain);
    let _server = ParameterServer::start(&node, demo_store()).unwrap();
    let request = json!({"names": ["rate"]});
    let answer = peer.ask(json!({
        "command": "call", "service": "/policy_node/get_parameters", "type": "rcl_interfaces/GetParameters",
        "request": request, "mapping": "basic"
    }));
    assert_eq!(answer["response"]["values"][0]["double_value"], 5.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_reaches_another_dds() {
    let (layer, queue) = rosout::layer();
    // For the whole process: lines may come from any of its threads.
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).expect("the first");
    tracing::warn!("said before there was a node");
    let domain = test_domain();
    let node = RosNode::new(&NodeOptions {
        namespace: "/robot".to_owned(),
        domain_id: Some(domain),
        localhost_only: Some(true),
        ..NodeOptions::new("policy_node")
    })
    .unwrap();
    queue.publish(&node).unwrap();
    let mut peer = Peer::start(domain);
    peer.ask(json!({"command": "subscriber", "topic": "/rosout", "type": "rcl_interfaces/Log", "qos": "transient_local"}));
    let line = loop {
        let answer = peer.ask(json!({"command": "take", "topic": "/rosout"}));
        if let line @ Value::Object(_) = &answer["messages"][0]
            && line["msg"] == "said before there was a node"
        {
            break line.clone();
        }
    };
    assert_eq!((&line["level"], &line["name"]), (&json!(30), &json!("robot.policy_node")));
    assert!(line["file"].as_str().unwrap().ends_with("service_interop.rs"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_can_be_remapped_and_its_handler_may_wait() {
    let domain = test_domain();
    let node = RosNode::new(&NodeOptions {
        domain_id: Some(domain),
        localhost_only: Some(true),
        remaps: vec![("~/activate".to_owned(), "/robot/go".to_owned())],
        ..NodeOptions::new("policy_node")
    })
    .unwrap();
    let mut calls = 0;
    let server = node
        .serve::<Trigger, _>("~/activate", move |Empty| {
            calls += 1;
            let message = format!("call {calls}");
            async move {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                TriggerResponse { success: true, message }
            }
        })
        .unwrap();
    assert_eq!(server.name(), "/robot/go");
    let mut peer = Peer::start(domain);
    for expected in ["call 1", "call 2"] {
        let call =
            json!({"command": "call", "service": "/robot/go", "type": "std_srvs/Trigger", "request": {}});
        assert_eq!(peer.ask(call)["response"]["message"], expected);
    }
}
