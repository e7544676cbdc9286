//! Bags of our own, read back by ourselves and by others.

use std::time::Duration;

use groot_policy::{
    recording::{
        bag::{Bag, BagError, BagWriter, OfferedQos, WriterOptions},
        synthetic::{SyntheticRecording, write_bag},
    },
    ros::{
        Stamp,
        msg::{
            self, ActionChunk, ActionGroup, Bool, ByteBuf, Clock, CompressedImage, Float64MultiArray, Header,
            Image, JointState, JointTrajectory, JointTrajectoryPoint, Message, MultiArrayDimension,
            MultiArrayLayout, StageTiming, Time, Twist, TwistStamped, Vector3,
        },
        transport::Qos,
    },
    synthetic::{SyntheticOptions, SyntheticRobot},
};
use serde_json::{Value, json};

use crate::support::python;

const START: i64 = 1_700_000_000_000_000_000;

fn header() -> Header {
    Header { stamp: Time { sec: 5, nanosec: 7 }, frame_id: "world".to_owned() }
}

fn trajectory() -> JointTrajectory {
    let point = |seconds: i32| JointTrajectoryPoint {
        positions: vec![0.5, f64::from(seconds)],
        time_from_start: msg::Duration { sec: seconds, nanosec: 1 },
        ..JointTrajectoryPoint::default()
    };
    JointTrajectory {
        header: header(),
        joint_names: vec!["elbow".to_owned(), "wrist".to_owned()],
        points: vec![point(1), point(2)],
    }
}

fn chunk() -> ActionChunk {
    let group = |key: &str| ActionGroup {
        key: key.to_owned(),
        names: vec![format!("{key}_0")],
        dimension: 1,
        data: vec![0.25, -1.5],
    };
    ActionChunk {
        header: header(),
        sequence: u64::MAX,
        noise_seed: 3,
        instruction: "pick up".to_owned(),
        embodiment: "gr1".to_owned(),
        horizon: 2,
        groups: vec![group("arm"), group("hand")],
        timing: vec![StageTiming { stage: "total".to_owned(), milliseconds: 1.5 }],
        ..ActionChunk::default()
    }
}

/// One message of each type that can be written, with what JSON says of it.
fn write_all(writer: &mut BagWriter) -> Vec<(String, String, Value)> {
    let mut written = Vec::new();
    fn add<M: Message>(writer: &mut BagWriter, written: &mut Vec<(String, String, Value)>, message: M) {
        let topic = format!("/{}", M::NAME.to_lowercase());
        let time = Stamp(START + written.len() as i64);
        writer.write(&topic, time, &message).unwrap();
        written.push((
            topic,
            format!("{}/msg/{}", M::PACKAGE, M::NAME),
            serde_json::to_value(&message).unwrap(),
        ));
    }
    let vector = |x| Vector3 { x, y: -1.0, z: 0.5 };
    let twist = Twist { linear: vector(1.0), angular: vector(2.0) };
    let dim = MultiArrayDimension { label: "joints".to_owned(), size: 2, stride: 1 };
    let layout = MultiArrayLayout { dim: vec![dim], data_offset: 0 };
    let joints = JointState {
        header: header(),
        name: vec!["elbow".to_owned()],
        position: vec![0.1],
        velocity: vec![],
        effort: vec![1e-9],
    };
    let image = Image {
        header: header(),
        height: 1,
        width: 2,
        encoding: "rgb8".to_owned(),
        is_bigendian: 0,
        step: 6,
        data: ByteBuf::from(vec![1, 2, 3, 4, 5, 6]),
    };
    let data = ByteBuf::from(vec![0xff, 0xd8, 1]);
    add(writer, &mut written, trajectory());
    add(writer, &mut written, chunk());
    add(writer, &mut written, joints);
    add(writer, &mut written, image);
    add(writer, &mut written, CompressedImage { header: header(), format: "jpeg".to_owned(), data });
    add(writer, &mut written, msg::String { data: "höher".to_owned() });
    add(writer, &mut written, Bool { data: true });
    add(writer, &mut written, Clock { clock: Time { sec: 1, nanosec: 2 } });
    add(writer, &mut written, Float64MultiArray { layout, data: vec![1.5, 2.5] });
    add(writer, &mut written, TwistStamped { header: header(), twist: twist.clone() });
    add(writer, &mut written, twist);
    written
}

/// Byte arrays as the Python side tells them: by their checksum.
fn told(mut message: Value, kind: &str) -> Value {
    if kind.ends_with("Image") {
        let bytes: Vec<u8> = serde_json::from_value(message["data"].take()).unwrap();
        message["data"] = json!(crc32fast::hash(&bytes));
    }
    message
}

#[test]
fn others_read_every_type_with_nothing_but_the_definitions_in_the_bag() {
    let folder = tempfile::tempdir().unwrap();
    for zstd in [false, true] {
        let path = folder.path().join(format!("written_{zstd}"));
        let mut writer =
            BagWriter::create(&path, WriterOptions { zstd, ..WriterOptions::default() }).unwrap();
        writer.declare::<msg::String>("/string", Qos::latched()).unwrap();
        let written = write_all(&mut writer);
        writer.finish().unwrap();

        let lines = python(&["read", path.to_str().unwrap()]);
        let read: Vec<(String, String, i64, Value, Value)> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read.len(), written.len());
        for (index, ((topic, kind, message), read)) in written.iter().zip(&read).enumerate() {
            assert_eq!((topic, kind, START + index as i64), (&read.0, &read.1, read.2));
            let qos = if topic == "/string" {
                json!([["RELIABLE", "TRANSIENT_LOCAL", 1]])
            } else {
                json!([["RELIABLE", "VOLATILE", 10]])
            };
            assert_eq!(read.3, qos, "{topic}");
            assert_eq!(told(message.clone(), kind), read.4, "{topic}");
        }

        let file = path.join(format!("written_{zstd}_0.mcap"));
        let lines = python(&["check", file.to_str().unwrap()]);
        let read: Vec<(String, String, i64, i64, Value)> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read.len(), written.len());
        for (index, ((topic, kind, _), read)) in written.iter().zip(&read).enumerate() {
            let time = START + index as i64;
            assert_eq!((topic, kind, time, time), (&read.0, &read.1, read.2, read.3));
        }
    }
}

#[test]
fn what_was_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep").join("down").join("mine");
    let mut writer = BagWriter::create(&path, WriterOptions::default()).unwrap();
    writer.declare::<JointTrajectory>("/jointtrajectory", Qos::sensor_data()).unwrap();
    let written = write_all(&mut writer);
    assert!(!path.exists(), "nothing is there before it is complete");
    writer.finish().unwrap();
    let entries: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(entries.len(), 1, "nothing else is left: {entries:?}");

    let bag = Bag::open(&path).unwrap();
    assert_eq!((bag.name(), bag.start()), ("mine", Some(Stamp(START))));
    assert_eq!(bag.duration(), Duration::from_nanos(written.len() as u64 - 1));
    let qos = OfferedQos { reliable: Some(false), transient_local: Some(false), depth: Some(5) };
    assert_eq!(bag.topic("/jointtrajectory").unwrap().qos, [qos]);
    let messages: Vec<_> = bag.messages().map(Result::unwrap).collect();
    assert_eq!(messages.len(), written.len());
    assert_eq!(messages[0].decode::<JointTrajectory>().unwrap(), trajectory());
    assert_eq!(messages[1].decode::<ActionChunk>().unwrap(), chunk());
}

#[test]
fn an_empty_bag_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty");
    BagWriter::create(&path, WriterOptions::default()).unwrap().finish().unwrap();
    let bag = Bag::open(&path).unwrap();
    assert_eq!((bag.messages().count(), bag.duration()), (0, Duration::ZERO));
    assert_eq!(python(&["read", path.to_str().unwrap()]), "");
}

#[test]
fn a_bag_is_never_written_over_another_one_and_an_unfinished_one_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bag");
    let create = || BagWriter::create(&path, WriterOptions::default());
    drop(create().unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let (first, second) = (create().unwrap(), create().unwrap());
    first.finish().unwrap();
    assert!(matches!(second.finish(), Err(BagError::Exists(_))));
    assert!(matches!(create(), Err(BagError::Exists(_))));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = BagWriter::create(folder.path().join("bag"), WriterOptions::default()).unwrap();
    writer.write("/a", Stamp(1), &Bool::default()).unwrap();
    let error = |result: Result<(), BagError>| result.unwrap_err().to_string();
    let text = error(writer.write("/a", Stamp(2), &Clock::default()));
    assert!(
        text.contains("/a: expected messages of std_msgs/msg/Bool as before, found rosgraph_msgs/msg/Clock"),
        "{text}"
    );
    let text = error(writer.write("/a", Stamp(-1), &Bool::default()));
    assert!(text.contains("expected a log time from 1970 on, found -0.000000001 s"), "{text}");
    let text = error(writer.write("/b", Stamp(1), &msg::Log::default()));
    assert!(text.contains("rcl_interfaces/msg/Log is not written to bags"), "{text}");
}

#[test]
fn a_synthetic_recording_holds_what_the_demo_publishes() {
    let folder = tempfile::tempdir().unwrap();
    let robot = SyntheticOptions { size: (32, 24), ..SyntheticOptions::default() };
    let reality = SyntheticRobot::new(&robot);
    for compressed in [false, true] {
        let path = folder.path().join(format!("synthetic_{compressed}"));
        let recording = SyntheticRecording {
            robot: robot.clone(),
            seconds: 1.0,
            compressed,
            ..SyntheticRecording::default()
        };
        write_bag(&path, &recording).unwrap();
        let bag = Bag::open(&path).unwrap();
        let counts: Vec<(&str, u64)> =
            bag.topics().iter().map(|topic| (topic.name.as_str(), topic.count.unwrap())).collect();
        let ending = if compressed { "/compressed" } else { "" };
        let (front, wrist) = (format!("/front/image_raw{ending}"), format!("/wrist/image_raw{ending}"));
        assert_eq!(
            counts,
            [
                (front.as_str(), 30),
                ("/joint_states", 100),
                ("/policy_node/instruction", 1),
                (wrist.as_str(), 30)
            ]
        );
        let messages: Vec<_> = bag.messages().map(Result::unwrap).collect();
        assert!(messages.is_sorted_by_key(|message| message.log_time));
        let joints: JointState =
            messages.iter().rfind(|message| message.topic() == "/joint_states").unwrap().decode().unwrap();
        assert_eq!(
            (joints.name.as_slice(), joints.position),
            (robot.joints.as_slice(), reality.joints(0.99))
        );
        let picture = messages.iter().rfind(|message| message.topic() == wrist).unwrap();
        let frame = if compressed {
            groot_policy::ros::image::decode_compressed(&picture.decode().unwrap()).unwrap()
        } else {
            groot_policy::ros::image::decode(&picture.decode().unwrap()).unwrap()
        };
        let real = reality.frame("wrist", 29.0 / 30.0).unwrap();
        let error = frame.iter().zip(real.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
        assert!(if compressed { error < 10 * frame.len() as u64 } else { error == 0 }, "{error}");
    }
    let recording = SyntheticRecording { camera_rate: f64::NAN, ..SyntheticRecording::default() };
    let error = write_bag(folder.path().join("x"), &recording).unwrap_err().to_string();
    assert!(error.contains("expected a camera rate from 0 to 10000, found NaN"), "{error}");
}
