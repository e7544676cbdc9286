//! Whole bags of other writers.

use std::{collections::BTreeMap, time::Duration};

use groot_policy::{
    recording::bag::{Bag, OfferedQos},
    ros::{Stamp, msg},
};

use crate::support::{Listed, bags, expected, order, python, read};

const START: i64 = 1_700_000_000_000_000_000;

fn whole_bags() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(bags())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "messages.json" && !name.contains("empty"))
        .collect();
    names.sort();
    assert!(names.len() >= 20, "{names:?}");
    names
}

#[test]
fn every_storage_compression_and_version_gives_the_same_messages_in_the_order_of_time() {
    let expected = expected();
    for name in whole_bags() {
        let bag = Bag::open(bags().join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut found = read(&bag);
        assert!(found.is_sorted_by_key(|(_, _, time, _)| *time), "{name}: not in the order of time");
        found.sort_by(order);
        assert!(found == expected, "{name}: {} messages, expected {}", found.len(), expected.len());
        let mut messages = bag.messages();
        assert_eq!(messages.by_ref().count(), expected.len());
        assert!(messages.report().is_clean(), "{name}: {}", messages.report());
    }
}

#[test]
fn a_bag_says_what_is_in_it() {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    expected().iter().for_each(|(topic, ..)| *counts.entry(topic.clone()).or_default() += 1);
    let (start, end) = (START, expected().last().unwrap().2);
    for name in whole_bags() {
        let bag = Bag::open(bags().join(&name)).unwrap();
        let found: BTreeMap<String, u64> =
            bag.topics().iter().map(|topic| (topic.name.clone(), topic.count.unwrap())).collect();
        assert_eq!(found, counts, "{name}");
        assert_eq!((bag.start(), bag.end()), (Some(Stamp(start)), Some(Stamp(end))), "{name}");
        assert_eq!(bag.duration(), Duration::from_nanos((end - start) as u64), "{name}");
        let joints = bag.topic("/joint_states").unwrap();
        assert_eq!((joints.kind.as_str(), joints.encoding.as_str()), ("sensor_msgs/msg/JointState", "cdr"));
        // The recorder of Humble writes the depth of what keeps all as 0.
        let depth = if name.starts_with("humble") { 0 } else { 10 };
        let qos = OfferedQos { reliable: Some(true), transient_local: Some(false), depth: Some(depth) };
        assert_eq!(joints.qos, [qos], "{name}");
        let short = name.trim_end_matches(".mcap");
        assert_eq!(bag.name(), short);
    }
}

#[test]
fn an_empty_bag_is_fine() {
    for name in ["rosbags_empty_sqlite", "rosbags_empty_mcap"] {
        let bag = Bag::open(bags().join(name)).unwrap();
        assert_eq!((bag.start(), bag.end(), bag.duration()), (None, None, Duration::ZERO), "{name}");
        assert_eq!(bag.messages().count(), 0);
        assert!(bag.report().is_clean(), "{}", bag.report());
    }
}

#[test]
fn only_the_wanted_topics_are_given() {
    let wanted = ["/joint_states", "/odom", "/not_there"];
    let expected: Vec<Listed> =
        expected().into_iter().filter(|(topic, ..)| wanted.contains(&topic.as_str())).collect();
    for name in ["rosbags_sqlite_9", "mcap_lz4.mcap", "jazzy_split", "humble_split"] {
        let bag = Bag::open(bags().join(name)).unwrap();
        let mut found: Vec<Listed> =
            bag.messages_of(wanted).map(|message| crate::support::listed(&message.unwrap())).collect();
        found.sort_by(order);
        assert!(found == expected, "{name}");
    }
}

#[test]
fn the_time_of_publishing_is_told_where_the_bag_knows_it() {
    let bag = Bag::open(bags().join("mcap_zstd.mcap")).unwrap();
    for message in bag.messages() {
        let message = message.unwrap();
        assert_eq!(message.publish_time, Stamp(message.log_time.0 - 250));
    }
}

#[test]
fn messages_decode_to_what_the_python_decoder_finds() {
    let path = bags().join("rosbags_mcap_chunk_zstd");
    let mut joints = Vec::new();
    let mut texts = Vec::new();
    let mut images = Vec::new();
    for line in python(&["read", path.to_str().unwrap()]).lines() {
        let (topic, _, _, _, message): (String, String, i64, serde_json::Value, serde_json::Value) =
            serde_json::from_str(line).unwrap();
        match topic.as_str() {
            "/joint_states" => joints.push(message),
            "/policy_node/instruction" => texts.push(message),
            "/front/image_raw/compressed" => images.push(message),
            _ => {}
        }
    }
    assert_eq!((joints.len(), texts.len(), images.len()), (200, 1, 60));
    let bag = Bag::open(&path).unwrap();
    let (mut joint, mut image) = (0, 0);
    for message in bag.messages() {
        let message = message.unwrap();
        match message.topic() {
            "/joint_states" => {
                let ours: msg::JointState = message.decode().unwrap();
                let theirs = &joints[joint];
                assert_eq!(serde_json::to_value(&ours.position).unwrap(), theirs["position"]);
                assert_eq!(serde_json::to_value(&ours.name).unwrap(), theirs["name"]);
                assert_eq!(theirs["header"]["stamp"]["nanosec"], ours.header.stamp.nanosec);
                joint += 1;
            }
            "/front/image_raw/compressed" => {
                let ours: msg::CompressedImage = message.decode().unwrap();
                assert_eq!(images[image]["data"], crc32fast::hash(&ours.data));
                assert_eq!(images[image]["format"], ours.format);
                image += 1;
            }
            "/policy_node/instruction" => {
                assert_eq!(texts[0]["data"], message.decode::<msg::String>().unwrap().data);
            }
            _ => {}
        }
    }
    assert_eq!((joint, image), (200, 60));
}

#[test]
fn what_is_no_bag_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path| Bag::open(path).err().unwrap().to_string();
    let path = folder.path();
    assert!(open(&path.join("nothing")).contains("No such file"));
    assert!(
        open(path).contains(
            "expected a folder with metadata.yaml or with .mcap or .db3 files, found a folder with 0"
        )
    );
    std::fs::write(path.join("x.mcap"), "").unwrap();
    assert!(open(path).contains("found an empty file"), "{}", open(path));
    std::fs::write(path.join("x.mcap"), "hello").unwrap();
    let error = open(&path.join("x.mcap"));
    assert!(error.contains("expected an MCAP or SQLite file") && error.contains("68 65 6c 6c 6f"), "{error}");
    let packed = zstd::encode_all(&b"hello"[..], 0).unwrap();
    std::fs::write(path.join("x.mcap"), packed).unwrap();
    assert!(open(path).contains("x.mcap: expected an MCAP or SQLite file"), "{}", open(path));
    let database = rusqlite::Connection::open(path.join("y.db3")).unwrap();
    database.execute_batch("CREATE TABLE something(id INTEGER)").unwrap();
    drop(database);
    assert!(open(&path.join("y.db3")).contains("the tables topics and messages"));
}

#[test]
fn a_missing_file_of_a_split_bag_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let bag = crate::support::copy("jazzy_split", folder.path());
    std::fs::remove_file(bag.join("jazzy_split_4.mcap")).unwrap();
    let error = Bag::open(&bag).err().unwrap().to_string();
    assert!(error.contains("metadata.yaml names \"jazzy_split_4.mcap\", which is not there"), "{error}");
}

#[test]
fn reading_a_database_leaves_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let bag = crate::support::copy("humble_split", folder.path());
    let entries = || std::fs::read_dir(&bag).unwrap().count();
    let before = entries();
    assert_eq!(read(&Bag::open(&bag).unwrap()).len(), expected().len());
    assert_eq!(entries(), before);
}
