//! Services and simulated time of the embedded transport, over loopback. The client is the crate's own, which calls as Fast
//! DDS does; `service_interop` calls as Cyclone DDS does.

mod support;

use std::{
    future::ready,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use groot_policy::ros::{
    msg::{Clock, String as Text, Time},
    srv::{Empty, GetParameters, GetParametersResponse, Names, ParameterValue, Trigger, TriggerResponse},
    transport::{NodeOptions, Qos, RosError, RosNode, ServiceCounters},
};
use ros2_client::{Client, Context, Name, Node, QosProfile, ServiceMapping, ServiceTypeName};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use support::{PATIENCE, loopback_node, test_domain, until};

/// A participant of its own, which knows nothing of ours.
struct Stranger {
    node: Node,
    _context: Context,
}

/// What the crate demands of a message.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
struct Body<T>(T);

impl<T: Serialize + DeserializeOwned> ros2_client::Message for Body<T> {}

impl Stranger {
    fn new(domain: u16) -> Self {
        let participant = rustdds::DomainParticipantBuilder::new(domain)
            .with_only_networks([IpAddr::V4(Ipv4Addr::LOCALHOST)])
            .build()
            .unwrap();
        let context = Context::from_domain_participant(participant).unwrap();
        let name = ros2_client::NodeName::new("/", "stranger").unwrap();
        let options = ros2_client::NodeOptions::new().enable_rosout(false).start_parameter_services(false);
        let mut node = context.new_node(name, options).unwrap();
        tokio::spawn(node.spinner().unwrap().spin());
        Self { node, _context: context }
    }

    async fn client<Q, R>(&mut self, service: &str, package: &str, kind: &str) -> Client<Body<Q>, Body<R>>
    where
        Q: Serialize + DeserializeOwned + Clone + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        let profile =
            || QosProfile::publisher_default().history(ros2_client::qos::History::KeepLast { depth: 10 });
        let (name, kind) = (Name::parse(service).unwrap(), ServiceTypeName::new(package, kind));
        let client =
            self.node.create_client(ServiceMapping::Enhanced, &name, &kind, profile(), profile()).unwrap();
        tokio::time::timeout(PATIENCE, client.wait_for_service(&self.node))
            .await
            .expect("the service is found");
        client
    }
}

async fn ask<Q, R>(client: &Client<Body<Q>, Body<R>>, request: Q) -> R
where
    Q: Serialize + DeserializeOwned + 'static,
    R: Serialize + DeserializeOwned + 'static,
{
    let answer = tokio::time::timeout(PATIENCE, client.async_call_service(Body(request))).await;
    answer.expect("the service answers").expect("the answer is one").0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_the_enhanced_mapping_are_answered_in_order() {
    let domain = test_domain();
    let node = loopback_node("server", domain);
    let server = node
        .serve::<GetParameters, _>("~/get", |Names { names }| {
            let value =
                |string_value| ParameterValue { r#type: 4, string_value, ..ParameterValue::default() };
            ready(GetParametersResponse { values: names.into_iter().map(value).collect() })
        })
        .unwrap();
    assert_eq!(server.name(), "/server/get");
    let mut stranger = Stranger::new(domain);
    let client = stranger
        .client::<Names, GetParametersResponse>("/server/get", "rcl_interfaces", "GetParameters")
        .await;
    for i in 0..20 {
        let names = vec![i.to_string(); i];
        let answer = ask(&client, Names { names: names.clone() }).await;
        assert_eq!(answer.values.into_iter().map(|value| value.string_value).collect::<Vec<_>>(), names);
    }
    // The last answer may arrive before it is counted.
    let all = ServiceCounters { answered: 20, ..ServiceCounters::default() };
    until("all calls are counted", || server.counters() == all).await;
}

/// Says that it has four thousand million names.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct HostileLengths {
    names: u32,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_requests_are_counted_and_survived() {
    let domain = test_domain();
    let node = loopback_node("server", domain);
    let server =
        node.serve::<GetParameters, _>("~/get", |_| ready(GetParametersResponse::default())).unwrap();
    let mut stranger = Stranger::new(domain);
    let hostile =
        stranger.client::<HostileLengths, Empty>("/server/get", "rcl_interfaces", "GetParameters").await;
    let huge = stranger.client::<Names, Empty>("/server/get", "rcl_interfaces", "GetParameters").await;
    hostile.async_send_request(Body(HostileLengths { names: u32::MAX })).await.unwrap();
    until("the hostile request is counted", || server.counters().damaged == 1).await;
    huge.async_send_request(Body(Names { names: vec!["x".repeat(300 << 10)] })).await.unwrap();
    until("the huge request is counted", || server.counters().damaged == 2).await;

    let client = stranger
        .client::<Names, GetParametersResponse>("/server/get", "rcl_interfaces", "GetParameters")
        .await;
    assert_eq!(ask(&client, Names::default()).await, GetParametersResponse::default());
    let all = ServiceCounters { answered: 1, damaged: 2, unsent: 0 };
    until("all calls are counted", || server.counters() == all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_ends_with_its_handle_and_no_later_than_with_the_node() {
    let domain = test_domain();
    let node = loopback_node("server", domain);
    let mut stranger = Stranger::new(domain);
    let trigger = |message: &'static str| {
        move |Empty| ready(TriggerResponse { success: true, message: message.to_owned() })
    };
    let server = node.serve::<Trigger, _>("/go", trigger("first")).unwrap();
    let client = stranger.client::<Empty, TriggerResponse>("/go", "std_srvs", "Trigger").await;
    assert_eq!(ask(&client, Empty).await.message, "first");
    drop(server);
    client.async_send_request(Body(Empty)).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_millis(300), async {
        client.async_receive_response(ros2_client::RmwRequestId::default()).await
    });
    assert!(answer.await.is_err(), "nobody answers");

    let server = node.serve::<Trigger, _>("/go", trigger("second")).unwrap();
    node.clone().shutdown().await;
    assert!(matches!(node.serve::<Trigger, _>("/go", trigger("third")), Err(RosError::ShutDown)));
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_use_sim_time_a_node_lives_in_the_time_of_clock() {
    let domain = test_domain();
    let simulator = loopback_node("simulator", domain);
    let node = RosNode::new(&NodeOptions {
        domain_id: Some(domain),
        localhost_only: Some(true),
        use_sim_time: true,
        ..NodeOptions::new("policy_node")
    })
    .unwrap();
    assert_eq!((node.clock(), node.now()), (None, Time::default()));
    assert!(simulator.clock().is_some());
    let clock = simulator.publisher::<Clock>("/clock", Qos::reliable(1)).unwrap();
    let words = simulator.publisher::<Text>("/words", Qos::reliable(10)).unwrap();
    let heard = node.subscribe::<Text>("/words", Qos::reliable(10), 1).unwrap();
    for time in [Time { sec: 100, nanosec: 5 }, Time { sec: 42, nanosec: 0 }] {
        // Best effort: the first may come before the node knows who publishes.
        until("it is that time", || {
            clock.publish(Clock { clock: time.clone() }).unwrap();
            node.clock().as_ref() == Some(&time)
        })
        .await;
        assert_eq!(node.now(), time);
        // What was said before the node listened is not kept for it; what came earlier than now is of no interest.
        while heard.try_recv().is_some() {}
        let mut received = None;
        until("the words are heard", || {
            words.publish(Text { data: time.sec.to_string() }).unwrap();
            received = heard.try_recv().filter(|received| received.message.data == time.sec.to_string());
            received.is_some()
        })
        .await;
        assert_eq!(received.map(|received| received.time), Some(time));
    }
}
