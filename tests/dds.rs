//! The embedded transport over loopback, between nodes of one process.

mod support;

use groot_policy::ros::{
    msg::{ByteBuf, CompressedImage, Header, Image, JointState, Message, String as Text, Time},
    transport::{Counters, NodeOptions, Publisher, Qos, Received, RosError, RosNode, Subscription},
};
use serde::{Deserialize, Serialize};
use support::{PATIENCE, loopback_node, test_domain, until, until_within};

fn text(data: &str) -> Text {
    Text { data: data.to_owned() }
}

fn pair() -> (RosNode, RosNode) {
    let domain = test_domain();
    (loopback_node("talker", domain), loopback_node("listener", domain))
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

#[tokio::test]
async fn a_slow_consumer_gets_the_newest_message_and_the_others_are_counted() {
    let (talker, listener) = pair();
    let publisher = talker.publisher("/instruction", Qos::reliable(50)).unwrap();
    let subscription = listener.subscribe::<Text>("/instruction", Qos::reliable(50), 1).unwrap();
    connected(&publisher, &subscription).await;
    (0..20).for_each(|i| publisher.publish(text(&i.to_string())).unwrap());
    until("all messages are received", || subscription.counters().received == 20).await;
    assert_eq!(next(&subscription).await.message, text("19"));
    assert_eq!(subscription.try_recv(), None);
    assert_eq!(subscription.counters(), Counters { received: 20, overwritten: 19, ..Counters::default() });
    publisher.publish(text("later")).unwrap();
    assert_eq!(next(&subscription).await.message, text("later"));
}

#[tokio::test]
async fn a_queue_keeps_the_newest_messages_in_order() {
    let (talker, listener) = pair();
    let publisher = talker.publisher("/joint_states", Qos::reliable(50)).unwrap();
    let subscription = listener.subscribe::<JointState>("/joint_states", Qos::reliable(50), 5).unwrap();
    connected(&publisher, &subscription).await;
    let state = |i: i32| JointState {
        header: Header { stamp: Time { sec: i, nanosec: 7 }, frame_id: "base_link".to_owned() },
        name: vec!["a".to_owned(), "longer name".to_owned()],
        position: vec![f64::from(i), -0.5],
        velocity: vec![],
        effort: vec![1e-300],
    };
    (0..20).for_each(|i| publisher.publish(state(i)).unwrap());
    until("all messages are received", || subscription.counters().received == 20).await;
    for i in 15..20 {
        assert_eq!(next(&subscription).await.message, state(i));
    }
    assert_eq!(subscription.try_recv(), None);
    assert_eq!(subscription.counters().overwritten, 15);
}

#[tokio::test]
async fn a_raw_image_arrives_byte_for_byte() {
    let (talker, listener) = pair();
    let publisher = talker.publisher("/front/image_raw", Qos::camera()).unwrap();
    let subscription = listener.subscribe::<Image>("/front/image_raw", Qos::camera(), 1).unwrap();
    connected(&publisher, &subscription).await;
    let image = Image {
        header: Header { stamp: talker.now(), frame_id: "front_optical_frame".to_owned() },
        height: 480,
        width: 640,
        encoding: "rgb8".to_owned(),
        is_bigendian: 0,
        step: 1920,
        data: ByteBuf::from((0..480 * 1920).map(|i: u32| (i % 251) as u8).collect::<Vec<u8>>()),
    };
    // Best effort: a first image may be lost while the machine is busy.
    let received = tokio::time::timeout(PATIENCE, async {
        loop {
            publisher.publish(image.clone()).unwrap();
            tokio::select! {
                received = subscription.recv() => break received.expect("the node is up"),
                () = tokio::time::sleep(std::time::Duration::from_millis(100)) => {}
            }
        }
    })
    .await
    .expect("an image arrives");
    assert_eq!(received.message, image);
    assert!(received.time.nanoseconds() >= image.header.stamp.nanoseconds());
}

#[tokio::test]
async fn a_late_joiner_receives_the_latched_message() {
    let (talker, listener) = pair();
    let publisher = talker.publisher("~/status", Qos::latched()).unwrap();
    publisher.publish(text("ready")).unwrap();
    let subscription = listener.subscribe::<Text>("/talker/status", Qos::latched(), 1).unwrap();
    assert_eq!(next(&subscription).await.message, text("ready"));
    assert_eq!(publisher.topic(), "/talker/status");
}

#[tokio::test]
async fn a_publisher_that_was_dropped_and_made_anew_is_found_again() {
    let (talker, listener) = pair();
    let subscription = listener.subscribe::<Text>("/instruction", Qos::sensor_data(), 10).unwrap();
    for round in ["first", "second"] {
        let publisher = talker.publisher("/instruction", Qos::reliable(10)).unwrap();
        connected(&publisher, &subscription).await;
        publisher.publish(text(round)).unwrap();
        assert_eq!(next(&subscription).await.message, text(round));
        drop(publisher);
        until("the publisher is gone", || subscription.publisher_count() == 0).await;
    }
}

#[tokio::test]
async fn a_node_that_was_shut_down_is_gone_for_its_peers_and_found_again_when_it_restarts() {
    let domain = test_domain();
    let listener = loopback_node("listener", domain);
    let subscription = listener.subscribe::<Text>("/instruction", Qos::reliable(10), 10).unwrap();
    for round in ["first", "second"] {
        let talker = loopback_node("talker", domain);
        let publisher = talker.publisher("/instruction", Qos::reliable(10)).unwrap();
        connected(&publisher, &subscription).await;
        publisher.publish(text(round)).unwrap();
        assert_eq!(next(&subscription).await.message, text(round));
        talker.shutdown().await;
        assert!(matches!(publisher.publish(text("too late")), Err(RosError::ShutDown)));
        // Its good-bye is a datagram that may be lost; then it is gone when its lease of a minute ends.
        let lease = std::time::Duration::from_secs(60);
        until_within(lease + PATIENCE, "the node is gone", || subscription.publisher_count() == 0).await;
    }
}

#[tokio::test]
async fn shutdown_ends_subscriptions_and_refuses_new_ones() {
    let node = loopback_node("listener", test_domain());
    let subscription = node.subscribe::<Text>("/instruction", Qos::latched(), 1).unwrap();
    let waiting = tokio::spawn(async move { subscription.recv().await });
    node.clone().shutdown().await;
    let ended = tokio::time::timeout(PATIENCE, waiting).await.expect("the subscription ends").unwrap();
    assert_eq!(ended, None);
    assert!(matches!(node.subscribe::<Text>("/instruction", Qos::latched(), 1), Err(RosError::ShutDown)));
    assert!(matches!(node.publisher::<Text>("/instruction", Qos::latched()), Err(RosError::ShutDown)));
    node.shutdown().await; // a second time is harmless
}

/// Says it is an image, but is cut off behind the header, as a damaged one may be.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct TruncatedImage {
    header: Header,
    height: u32,
}

impl Message for TruncatedImage {
    const PACKAGE: &'static str = "sensor_msgs";
    const NAME: &'static str = "Image";
}

/// Says it is an image, and that it has four thousand million joint names.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct HostileLengths {
    header: Header,
    names: u32,
}

impl Message for HostileLengths {
    const PACKAGE: &'static str = "sensor_msgs";
    const NAME: &'static str = "JointState";
}

#[tokio::test]
async fn damaged_messages_are_counted_and_survived() {
    let (talker, listener) = pair();
    let damaged = talker.publisher("/front/image_raw", Qos::reliable(10)).unwrap();
    let subscription = listener.subscribe::<Image>("/front/image_raw", Qos::reliable(10), 1).unwrap();
    connected(&damaged, &subscription).await;
    for height in 0..5 {
        damaged.publish(TruncatedImage { header: Header::default(), height }).unwrap();
    }
    until("damaged images are counted", || subscription.counters().undecodable == 5).await;

    let hostile = talker.publisher("/joint_states", Qos::reliable(10)).unwrap();
    let joints = listener.subscribe::<JointState>("/joint_states", Qos::reliable(10), 1).unwrap();
    connected(&hostile, &joints).await;
    hostile.publish(HostileLengths { header: Header::default(), names: u32::MAX }).unwrap();
    until("the hostile message is counted", || joints.counters().undecodable == 1).await;

    let honest = talker.publisher("/front/image_raw", Qos::reliable(10)).unwrap();
    until("the honest publisher is found", || honest.subscriber_count() == 1).await;
    let image = Image { height: 1, width: 1, step: 3, data: ByteBuf::from([1, 2, 3]), ..Image::default() };
    honest.publish(image.clone()).unwrap();
    assert_eq!(next(&subscription).await.message, image);
    assert_eq!(subscription.counters(), Counters { received: 1, undecodable: 5, ..Counters::default() });
}

/// Another type whose bytes could be read as text.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LooksLikeText {
    data: String,
}

impl Message for LooksLikeText {
    const PACKAGE: &'static str = "example_msgs";
    const NAME: &'static str = "Password";
}

#[tokio::test]
async fn messages_of_another_type_are_counted_and_not_delivered() {
    let (talker, listener) = pair();
    let subscription = listener.subscribe::<Text>("/instruction", Qos::sensor_data(), 10).unwrap();
    let stranger = talker.publisher("/instruction", Qos::reliable(10)).unwrap();
    connected(&stranger, &subscription).await;
    stranger.publish(LooksLikeText { data: "secret".to_owned() }).unwrap();
    until("the stranger's message is counted", || subscription.counters().wrong_type == 1).await;
    drop(stranger);
    until("the stranger is gone", || subscription.publisher_count() == 0).await;

    let friend = talker.publisher("/instruction", Qos::reliable(10)).unwrap();
    connected(&friend, &subscription).await;
    friend.publish(text("pick up the cup")).unwrap();
    assert_eq!(next(&subscription).await.message, text("pick up the cup"));
    assert_eq!(subscription.counters(), Counters { received: 1, wrong_type: 1, ..Counters::default() });
}

#[tokio::test]
async fn a_compressed_image_on_the_topic_of_raw_ones_is_survived() {
    let (talker, listener) = pair();
    let subscription = listener.subscribe::<Image>("/front/image_raw", Qos::camera(), 1).unwrap();
    let stranger = talker.publisher("/front/image_raw", Qos::reliable(10)).unwrap();
    connected(&stranger, &subscription).await;
    let compressed = CompressedImage {
        format: "jpeg".to_owned(),
        data: ByteBuf::from(vec![0xff; 2000]),
        ..Default::default()
    };
    stranger.publish(compressed).unwrap();
    until("the compressed image is counted", || {
        let counters = subscription.counters();
        counters.undecodable + counters.wrong_type == 1
    })
    .await;
    assert_eq!(subscription.counters().received, 0);
}

#[tokio::test]
async fn a_namespace_applies_to_relative_topics_only() {
    let options = NodeOptions {
        namespace: "left".to_owned(),
        domain_id: Some(test_domain()),
        localhost_only: Some(true),
        ..NodeOptions::new("arm_policy")
    };
    let node = RosNode::new(&options).unwrap();
    assert_eq!(node.name().qualified(), "/left/arm_policy");
    let relative = node.publisher::<Text>("instruction", Qos::latched()).unwrap();
    let absolute = node.subscribe::<Text>("/instruction", Qos::latched(), 1).unwrap();
    assert_eq!((relative.topic(), absolute.topic()), ("/left/instruction", "/instruction"));
    let error = node.subscribe::<Text>("bad name", Qos::latched(), 1).err().unwrap().to_string();
    assert!(error.contains("\"bad name\""), "{error}");
}

#[test]
fn a_node_outside_a_runtime_is_refused() {
    let options = NodeOptions::new("lonely");
    assert!(matches!(RosNode::new(&options), Err(RosError::NoRuntime)));
}
