//! The transport on a sourced ROS 2: nodes of this process, and nodes of the client library that are not ours. Domain and
//! reach are those of the environment. The messages of this package must be in what is sourced.

#![cfg(not(feature = "r2r-doc-only"))]

use std::time::Duration;

use groot_policy::ros::{
    msg::{ActionChunk, ActionGroup, ByteBuf, Header, Image, JointState, Message, String as Text, Time},
    srv::{Empty, GetParameters, GetParametersResponse, ParameterValue, Trigger, TriggerResponse},
    transport::{Counters, NodeOptions, Publisher, Qos, Received, RosError, RosNode, Subscription},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Other tests, and other users of the domain, must not meet ours.
fn name(what: &str) -> String {
    format!("{what}_{}", std::process::id())
}

fn node(what: &str) -> RosNode {
    RosNode::new(&NodeOptions::new(name(what))).unwrap()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"));
}

async fn connected<M: Message, N: Message>(publisher: &Publisher<M>, subscription: &Subscription<N>) {
    until("publisher and subscriber find each other", || {
        publisher.subscriber_count() == 1 && subscription.publisher_count() == 1
    })
    .await;
}

async fn next<M: Message>(subscription: &Subscription<M>) -> Received<M> {
    let received = tokio::time::timeout(PATIENCE, subscription.recv()).await;
    received.expect("a message arrives").expect("the node is up")
}

fn text(data: &str) -> Text {
    Text { data: data.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_consumer_gets_the_newest_messages_and_not_the_oldest_ten() {
    let (talker, listener) = (node("burst_talker"), node("burst_listener"));
    let topic = format!("/{}", name("burst"));
    let publisher = talker.publisher(&topic, Qos::reliable(100)).unwrap();
    let subscription = listener.subscribe::<Text>(&topic, Qos::reliable(100), 3).unwrap();
    connected(&publisher, &subscription).await;
    (0..50).for_each(|i| publisher.publish(text(&i.to_string())).unwrap());
    until("all messages are received", || subscription.counters().received == 50).await;
    for expected in ["47", "48", "49"] {
        assert_eq!(next(&subscription).await.message, text(expected));
    }
    assert_eq!(subscription.try_recv(), None);
    assert_eq!(subscription.counters(), Counters { received: 50, overwritten: 47, ..Counters::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stamp_of_a_message_is_the_one_it_was_sent_with() {
    let (talker, listener) = (node("stamp_talker"), node("stamp_listener"));
    let topic = format!("/{}", name("stamp"));
    let publisher = talker.publisher(&topic, Qos::sensor_data()).unwrap();
    let subscription = listener.subscribe::<JointState>(&topic, Qos::sensor_data(), 10).unwrap();
    connected(&publisher, &subscription).await;
    let state = JointState {
        header: Header { stamp: Time { sec: 12, nanosec: 34 }, frame_id: "base_link".to_owned() },
        name: vec!["a".to_owned(), "longer name".to_owned()],
        position: vec![1.5, -0.5],
        velocity: vec![],
        effort: vec![1e-300],
    };
    publisher.publish(state.clone()).unwrap();
    assert_eq!(next(&subscription).await.message, state);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_and_our_own_messages_arrive_as_they_were_sent() {
    let (talker, listener) = (node("types_talker"), node("types_listener"));
    let (image_topic, chunk_topic) = (format!("/{}", name("image")), format!("/{}", name("chunk")));
    let images = talker.publisher(&image_topic, Qos::reliable(2)).unwrap();
    let chunks = talker.publisher(&chunk_topic, Qos::reliable(2)).unwrap();
    let image_subscription = listener.subscribe::<Image>(&image_topic, Qos::reliable(2), 1).unwrap();
    let chunk_subscription = listener.subscribe::<ActionChunk>(&chunk_topic, Qos::reliable(2), 1).unwrap();
    connected(&images, &image_subscription).await;
    connected(&chunks, &chunk_subscription).await;
    let image = Image {
        header: Header { stamp: Time::now(), frame_id: "front_optical_frame".to_owned() },
        height: 480,
        width: 640,
        encoding: "rgb8".to_owned(),
        is_bigendian: 0,
        step: 1920,
        data: ByteBuf::from(
            (0..480 * 1920).map(|i: u32| i.wrapping_mul(2_654_435_761) as u8).collect::<Vec<_>>(),
        ),
    };
    images.publish(image.clone()).unwrap();
    assert!(next(&image_subscription).await.message == image);
    let group = ActionGroup {
        key: "left_arm".to_owned(),
        names: vec!["left_arm_1".to_owned()],
        dimension: 1,
        data: vec![0.25, -1.5],
    };
    let chunk = ActionChunk { sequence: 7, horizon: 2, groups: vec![group], ..ActionChunk::default() };
    chunks.publish(chunk.clone()).unwrap();
    assert_eq!(next(&chunk_subscription).await.message, chunk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_payload_is_counted_and_the_next_message_arrives() {
    let listener = node("damage_listener");
    let topic = format!("/{}", name("damage"));
    let subscription = listener.subscribe::<JointState>(&topic, Qos::reliable(10), 10).unwrap();
    let context = r2r::Context::create().unwrap();
    let mut other = r2r::Node::create(context, &name("damage_talker"), "").unwrap();
    let profile = r2r::QosProfile::default();
    let publisher = other.create_publisher_untyped(&topic, "sensor_msgs/msg/JointState", profile).unwrap();
    until("publisher and subscriber find each other", || subscription.publisher_count() == 1).await;
    until("publisher and subscriber find each other", || {
        publisher.get_inter_process_subscription_count().is_ok_and(|count| count == 1)
    })
    .await;
    // A frame of four thousand million characters.
    publisher.publish_raw(&[0, 1, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).unwrap();
    let whole = JointState { name: vec!["a".to_owned()], position: vec![0.5], ..JointState::default() };
    publisher.publish_raw(&groot_policy::ros::cdr::encode(&whole).unwrap()).unwrap();
    assert_eq!(next(&subscription).await.message, whole);
    assert_eq!(subscription.counters(), Counters { received: 1, undecodable: 1, ..Counters::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_latched_message_reaches_whoever_comes_late() {
    let (talker, listener) = (node("latch_talker"), node("latch_listener"));
    let topic = format!("/{}", name("latched"));
    let publisher = talker.publisher(&topic, Qos::latched()).unwrap();
    ["old", "new"].iter().for_each(|data| publisher.publish(text(data)).unwrap());
    let subscription = listener.subscribe::<Text>(&topic, Qos::latched(), 1).unwrap();
    assert_eq!(next(&subscription).await.message, text("new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_shut_down_ends_its_subscriptions_and_refuses_to_publish() {
    let node = node("short_lived");
    let topic = format!("/{}", name("end"));
    let publisher = node.publisher(&topic, Qos::reliable(1)).unwrap();
    let subscription = node.subscribe::<Text>(&topic, Qos::reliable(1), 1).unwrap();
    node.clone().shutdown().await;
    assert_eq!(subscription.recv().await, None);
    assert!(matches!(publisher.publish(text("x")), Err(RosError::ShutDown)));
    assert!(matches!(node.publisher::<Text>(&topic, Qos::reliable(1)), Err(RosError::ShutDown)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_that_is_not_the_environments_is_refused_with_what_to_set() {
    let elsewhere = NodeOptions { domain_id: Some(199), ..NodeOptions::new(name("elsewhere")) };
    let error = RosNode::new(&elsewhere).err().expect("refused");
    let reason = std::error::Error::source(&error).expect("a reason").to_string();
    assert!(reason.contains("ROS_DOMAIN_ID=199"), "{reason}");
}

/// Calls a service by a node that is not ours.
async fn call<T>(service: String, request: T::Request) -> T::Response
where
    T: r2r::WrappedServiceTypeSupport + 'static,
    T::Request: Send + 'static,
    T::Response: Send + 'static,
{
    let context = r2r::Context::create().unwrap();
    let mut node = r2r::Node::create(context, &name("client"), "").unwrap();
    let client = node.create_client::<T>(&service, r2r::QosProfile::services_default()).unwrap();
    let available = r2r::Node::is_available(&client).unwrap();
    let (end, mut ended) = tokio::sync::oneshot::channel::<()>();
    let spinning = tokio::task::spawn_blocking(move || {
        while matches!(ended.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Empty)) {
            node.spin_once(Duration::from_millis(5));
        }
    });
    tokio::time::timeout(PATIENCE, available).await.expect("the service is found").unwrap();
    let answer = client.request(&request).unwrap();
    let answer = tokio::time::timeout(PATIENCE, answer).await.expect("an answer comes").unwrap();
    end.send(()).unwrap();
    spinning.await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn services_answer_the_clients_of_the_client_library() {
    let server = node("server");
    let trigger = format!("/{}/activate", name("server"));
    let parameters = format!("/{}/get_parameters", name("server"));
    let triggers = server
        .serve::<Trigger, _>("~/activate", |Empty| {
            std::future::ready(TriggerResponse { success: true, message: "active".to_owned() })
        })
        .unwrap();
    let _parameters = server
        .serve::<GetParameters, _>("~/get_parameters", |request| {
            let value = |name: &String| ParameterValue {
                r#type: 4,
                string_value: name.clone(),
                ..ParameterValue::default()
            };
            std::future::ready(GetParametersResponse { values: request.names.iter().map(value).collect() })
        })
        .unwrap();

    let answer =
        call::<r2r::std_srvs::srv::Trigger::Service>(trigger, r2r::std_srvs::srv::Trigger::Request {}).await;
    assert_eq!((answer.success, answer.message.as_str()), (true, "active"));
    assert_eq!(triggers.counters().answered, 1);

    let request = r2r::rcl_interfaces::srv::GetParameters::Request {
        names: vec!["rate".to_owned(), "cameras.front.topic".to_owned()],
    };
    let answer = call::<r2r::rcl_interfaces::srv::GetParameters::Service>(parameters, request).await;
    let values: Vec<&str> = answer.values.iter().map(|value| value.string_value.as_str()).collect();
    assert_eq!(values, ["rate", "cameras.front.topic"]);
}
