//! Samples out of bags that the project did not write.

use std::{num::NonZeroU32, path::Path, time::Duration};

use groot_policy::{
    node::{
        assembly::{AssemblerConfig, ObservationAssembler},
        config::NodeConfig,
    },
    recording::{
        Sample,
        bag::{Bag, Samples, SamplesError, SamplesOptions, SamplesReport, Stride, TruthSource},
    },
    ros::{
        Stamp,
        image::CameraMessage,
        msg::{CompressedImage, JointState},
        transport::NodeName,
    },
};

use crate::support::bags;

const STEP: Duration = Duration::from_millis(50);
const HORIZON: usize = 8;

fn config(overrides: &[(&str, &str)]) -> NodeConfig {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.yaml");
    let compressed = [("cameras.front.transport", "compressed"), ("cameras.wrist.transport", "compressed")];
    let all: Vec<(String, String)> = compressed
        .iter()
        .chain(overrides)
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    NodeConfig::load(&[demo], &all).unwrap()
}

fn options() -> SamplesOptions {
    SamplesOptions {
        config: config(&[]),
        node: NodeName::new("/", "policy_node").unwrap(),
        video_deltas: vec![0],
        state_deltas: vec![0],
        action: [("left_arm", 6), ("gripper", 2)].map(|(key, dim)| (key.to_owned(), dim)).to_vec(),
        horizon: HORIZON,
        stride: Stride::Sets(NonZeroU32::MIN),
        truth: TruthSource::JointStates,
        max_gap: Duration::from_millis(500),
        waiting_bytes: 1 << 30,
    }
}

fn take(name: &str, options: SamplesOptions) -> (Vec<Sample>, SamplesReport) {
    let bag = Bag::open(bags().join(name)).unwrap();
    let mut samples = Samples::new(&bag, options).unwrap();
    let taken = samples.by_ref().collect::<Result<Vec<_>, _>>().unwrap();
    (taken, samples.report())
}

/// The position of a joint, as the recording's author defined it, `time` after its start.
fn position(joint: usize, time: i64) -> f64 {
    (time as f64 / 1e7 / 50.0 + joint as f64).sin()
}

const START: i64 = 1_700_000_000_000_000_000;

#[test]
fn every_complete_set_is_a_sample_whose_truth_is_where_the_joints_were() {
    let (samples, report) = take("mcap_zstd.mcap", options());
    assert!(report.bag.is_clean(), "{}", report.bag);
    assert_eq!((samples.len(), report.sets, report.samples, report.cut_short), (60, 60, 60, 0));
    assert_eq!(report.without_truth, [""; 0]);
    for (index, sample) in samples.iter().enumerate() {
        assert_eq!((sample.episode.as_str(), sample.step), ("mcap_zstd", index as u64));
        // The wrist's frame is the later one of a pair.
        assert_eq!(sample.stamp, Stamp(START + index as i64 * 33_333_333 + 2_000_000));
        assert_eq!(sample.observation.instruction, "pick up the red block");
        assert_eq!(sample.observation.video["front"][0].dimensions(), (64, 48));
        let keys: Vec<&str> = sample.truth.groups.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["left_arm", "gripper"]);
        for (first, (_, rows)) in [0, 12].into_iter().zip(&sample.truth.groups) {
            for ((step, column), value) in rows.indexed_iter() {
                let time = sample.stamp.0 - START + (step as i64 + 1) * STEP.as_nanos() as i64;
                let expected = position(first + column, time);
                // Between samples 10 ms apart, a line differs from the sine by at most (0.02)² / 8.
                assert!(
                    (f64::from(*value) - expected).abs() < 6e-5,
                    "{index} {step} {column}: {value} {expected}"
                );
            }
        }
    }
    // The last joint state is at 1.99 s.
    let steps = |sample: &Sample| (1_990_000_000 - (sample.stamp.0 - START)) / STEP.as_nanos() as i64;
    for sample in &samples {
        assert_eq!(sample.truth.steps(), usize::try_from(steps(sample).clamp(0, HORIZON as i64)).unwrap());
    }
}

#[test]
fn an_observation_is_the_one_of_the_node_at_that_moment() {
    let options = options();
    let (samples, _) = take("rosbags_sqlite_9", options.clone());
    let mut assembler = ObservationAssembler::new(AssemblerConfig::new(&options.config, &[0], &[0]));
    assembler.set_instruction("pick up the red block");
    let mut expected = samples.iter();
    let mut fresh = (false, false);
    for message in Bag::open(bags().join("rosbags_sqlite_9")).unwrap().messages() {
        let message = message.unwrap();
        let now = message.log_time;
        match message.topic() {
            "/joint_states" => {
                _ = assembler.on_joints(now, &message.decode::<JointState>().unwrap()).unwrap()
            }
            "/front/image_raw/compressed" | "/wrist/image_raw/compressed" => {
                let key = if message.topic().starts_with("/front") { "front" } else { "wrist" };
                let image: CompressedImage = message.decode().unwrap();
                assembler.on_image(key, now, CameraMessage::Compressed(image)).unwrap();
                fresh = (fresh.0 || key == "front", fresh.1 || key == "wrist");
            }
            _ => {}
        }
        if fresh == (true, true) {
            fresh = (false, false);
            let live = assembler.assemble(now).unwrap();
            let sample = expected.next().unwrap();
            assert_eq!(sample.stamp, live.image_stamp);
            assert!(sample.observation.video == live.observation.video, "{}", sample.step);
            assert_eq!(sample.observation.state, live.observation.state);
            assert_eq!(sample.observation.instruction, live.observation.instruction);
        }
    }
    assert_eq!(expected.next().map(|sample| sample.step), None);
}

#[test]
fn every_storage_gives_the_same_samples() {
    let (expected, _) = take("mcap_none.mcap", options());
    for name in ["humble_split", "jazzy_split", "rosbags_mcap_message_zstd", "rosbags_sqlite_file_zstd"] {
        let (found, report) = take(name, options());
        assert!(report.bag.is_clean(), "{name}: {}", report.bag);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((found.stamp, found.step), (expected.stamp, expected.step));
            assert_eq!(found.truth, expected.truth);
            assert!(found.observation.video == expected.observation.video);
            assert_eq!(found.observation.state, expected.observation.state);
        }
    }
}

#[test]
fn a_stride_takes_every_nth_set_or_the_first_of_each_period() {
    let every = |stride| {
        let (samples, report) = take("mcap_lz4.mcap", SamplesOptions { stride, ..options() });
        assert_eq!(report.sets, 60);
        samples.iter().map(|sample| sample.step).collect::<Vec<_>>()
    };
    assert_eq!(every(Stride::Sets(NonZeroU32::new(7).unwrap())), [0, 7, 14, 21, 28, 35, 42, 49, 56]);
    // At 30 Hz, multiples of 0.2 s fall on sets 6, 12, ... up to the rounding of the stamps.
    assert_eq!(every(Stride::Period(Duration::from_millis(199))), [0, 6, 12, 18, 24, 30, 36, 42, 48, 54]);
    assert_eq!(every(Stride::Period(Duration::from_secs(1))), [0, 31]);
}

#[test]
fn recorded_commands_hold_until_the_next_one() {
    let truth = TruthSource::Topic("commands".into());
    let config = config(&[]);
    let action = vec![
        ("left_arm".to_owned(), 6),
        ("right_arm".to_owned(), 6),
        ("gripper".to_owned(), 2),
        ("base".to_owned(), 2),
    ];
    let (samples, report) = take("mcap_zstd.mcap", SamplesOptions { truth, config, action, ..options() });
    assert!(report.bag.is_clean(), "{}", report.bag);
    assert_eq!(samples.len(), 60);
    for sample in &samples {
        let mut first = 0;
        for (_, rows) in &sample.truth.groups {
            for ((step, column), value) in rows.indexed_iter() {
                // Commands came 2 ms behind every twentieth of a second.
                let give = sample.stamp.0 - START + step as i64 * STEP.as_nanos() as i64 - 2_000_000;
                let command = give.div_euclid(50_000_000) * 50_000_000;
                let expected = (position(first + column, command) + 0.5) as f32;
                assert!(
                    (value - expected).abs() < 1e-6,
                    "{} {step} {column}: {value} {expected}",
                    sample.step
                );
            }
            first += rows.ncols();
        }
        assert_eq!(first, 16);
    }
}

#[test]
fn samples_do_not_pile_up_beyond_the_limit() {
    // Two frames of 64x48 have 18 KiB; the truth of a sample takes 12 sets.
    let (samples, report) = take("mcap_zstd.mcap", SamplesOptions { waiting_bytes: 100_000, ..options() });
    assert_eq!(samples.len(), 60);
    assert!(report.cut_short > 40, "{}", report.cut_short);
    assert!(samples.iter().all(|sample| sample.truth.steps() <= 3), "five sets are 0.17 s");
}

#[test]
fn keys_without_joints_have_no_truth_and_are_named() {
    let mut options = options();
    options.action.push(("hand".to_owned(), 3));
    let (samples, report) = take("mcap_none.mcap", options.clone());
    assert_eq!(report.without_truth, ["hand"]);
    assert_eq!(samples[0].truth.groups.len(), 2);
    let (samples, report) = take("mcap_none.mcap", SamplesOptions { truth: TruthSource::Nothing, ..options });
    assert_eq!((report.without_truth.len(), samples[0].truth.steps()), (3, 0));
}

#[test]
fn topics_that_do_not_fit_the_configuration_are_named() {
    let bag = Bag::open(bags().join("mcap_none.mcap")).unwrap();
    let error = |options| Samples::new(&bag, options).err().unwrap();
    let wrong =
        error(SamplesOptions { config: config(&[("cameras.front.topic", "/rear/image")]), ..options() });
    assert!(matches!(wrong, SamplesError::Bag(_)), "{wrong}");
    assert!(wrong.to_string().contains("expected the topic /rear/image/compressed, found"), "{wrong}");
    let wrong = error(SamplesOptions { config: config(&[("joint_states_topic", "/odom")]), ..options() });
    assert!(
        wrong
            .to_string()
            .contains("/odom: expected sensor_msgs/msg/JointState, the bag has \"nav_msgs/msg/Odometry\""),
        "{wrong}"
    );
    let wrong = error(SamplesOptions { truth: TruthSource::Topic("/odom".into()), ..options() });
    assert!(wrong.to_string().contains("the topic of recorded commands"), "{wrong}");
}
