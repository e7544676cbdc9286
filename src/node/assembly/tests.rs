//! Sequences of messages to observations, and to reasons why there is none.

use ndarray::array;
use proptest::prelude::*;

use super::*;
use crate::ros::msg::{ByteBuf, Header, Image};

const MILLISECOND: i64 = 1_000_000;

fn at(milliseconds: i64) -> Stamp {
    Stamp(milliseconds * MILLISECOND)
}

fn span(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn header(stamp: Stamp) -> Header {
    Header { stamp: stamp.into(), ..Header::default() }
}

/// A frame of one grey pixel, by which a test knows it again.
fn frame(stamp: Stamp, grey: u8) -> CameraMessage {
    CameraMessage::Raw(Image {
        header: header(stamp),
        height: 1,
        width: 1,
        encoding: "mono8".into(),
        step: 1,
        data: ByteBuf::from(vec![grey]),
        ..Image::default()
    })
}

fn broken_frame(stamp: Stamp) -> CameraMessage {
    match frame(stamp, 0) {
        CameraMessage::Raw(image) => CameraMessage::Raw(Image { encoding: "16UC1".into(), ..image }),
        compressed => compressed,
    }
}

fn joints(stamp: Stamp, position: f64) -> JointState {
    JointState {
        header: header(stamp),
        name: vec!["b".into(), "a".into()],
        position: vec![position + 0.5, position],
        ..JointState::default()
    }
}

fn config(cameras: &[&str]) -> AssemblerConfig {
    AssemblerConfig {
        cameras: cameras.iter().map(|camera| camera.to_string()).collect(),
        state: vec![("arm".into(), vec!["a".into(), "b".into()])],
        video_offsets: vec![Duration::ZERO],
        state_offsets: vec![Duration::ZERO],
        max_age: span(500),
        max_skew: span(20),
        max_state_age: span(200),
    }
}

/// An assembler under test, whose messages arrive at their stamps.
struct Robot(ObservationAssembler);

impl Robot {
    fn new(cameras: &[&str]) -> Self {
        Self(ObservationAssembler::new(config(cameras)))
    }

    fn image(&mut self, camera: &str, stamp: i64, grey: u8) -> Arrival {
        self.0.on_image(camera, at(stamp), frame(at(stamp), grey)).unwrap()
    }

    fn joints(&mut self, stamp: i64, position: f64) -> Arrival {
        self.0.on_joints(at(stamp), &joints(at(stamp), position)).unwrap()
    }

    fn greys(&mut self, now: i64) -> Result<Vec<u8>, NotReady> {
        let video = self.0.assemble(at(now))?.observation.video;
        Ok(video.into_values().flatten().map(|image| image.get_pixel(0, 0).0[0]).collect())
    }

    fn reason(&mut self, now: i64) -> String {
        self.greys(now).unwrap_err().to_string()
    }

    fn counts(&self, input: usize) -> InputCounts {
        self.0.report(at(0))[input].counts
    }
}

#[test]
fn the_newest_frames_and_the_nearest_joint_sample_make_the_observation() {
    let mut robot = Robot::new(&["front", "wrist"]);
    robot.image("front", 1000, 1);
    robot.image("wrist", 1005, 2);
    robot.image("front", 1033, 3);
    robot.image("wrist", 1038, 4);
    for (stamp, position) in [(1000, 0.0), (1030, 1.0), (1040, 2.0), (1050, 3.0)] {
        robot.joints(stamp, position);
    }
    robot.0.set_instruction("pick it up");
    let assembled = robot.0.assemble(at(1060)).unwrap();
    assert_eq!((assembled.image_stamp, assembled.state_stamp), (at(1038), at(1040)));
    assert_eq!(assembled.observation.state["arm"], array![[2.0, 2.5]]);
    assert_eq!(assembled.observation.instruction, "pick it up");
    assert_eq!(assembled.observation.video["front"][0].get_pixel(0, 0).0, [3; 3]);
    assert_eq!(assembled.observation.video["wrist"][0].get_pixel(0, 0).0, [4; 3]);
    let camera = |key: &str| Input::Camera(key.into());
    assert_eq!(
        assembled.ages,
        [(camera("front"), span(27)), (camera("wrist"), span(22)), (Input::JointStates, span(20))]
    );
}

#[test]
fn an_incomplete_set_gives_way_to_the_newest_complete_one() {
    let mut robot = Robot::new(&["front", "wrist"]);
    robot.joints(1000, 0.0);
    for (camera, stamp, grey) in [("front", 1000, 1), ("wrist", 1000, 2), ("front", 1033, 3)] {
        robot.image(camera, stamp, grey);
    }
    assert_eq!(robot.greys(1040), Ok(vec![1, 2]));
}

#[test]
fn a_set_waits_for_a_joint_sample_of_its_time_and_an_older_set_serves_meanwhile() {
    let mut robot = Robot::new(&["front"]);
    robot.image("front", 1000, 1);
    robot.joints(1000, 0.0);
    robot.image("front", 1033, 2);
    assert_eq!(robot.greys(1040), Ok(vec![1]));
    robot.joints(1030, 1.0);
    assert_eq!(robot.greys(1040), Ok(vec![2]));
}

#[test]
fn nothing_is_assembled_before_every_input_came() {
    let mut robot = Robot::new(&["front", "wrist"]);
    assert_eq!(robot.reason(0), "waiting for camera front, camera wrist, joint states");
    robot.image("front", 1000, 1);
    assert_eq!(robot.reason(1000), "waiting for camera wrist, joint states");
    robot.image("wrist", 1000, 1);
    robot.joints(1000, 0.0);
    assert!(robot.greys(1000).is_ok());
    assert_eq!(robot.0.blocked(), Blocked { waiting: 2, ..Blocked::default() });
}

#[test]
fn a_camera_that_stops_blocks_once_its_last_frame_is_too_old_and_frees_when_it_returns() {
    let mut robot = Robot::new(&["front", "wrist"]);
    for stamp in (1000..1500).step_by(30) {
        robot.image("front", stamp, 1);
        robot.joints(stamp, 0.0);
    }
    robot.image("wrist", 1000, 2);
    robot.image("front", 1500, 1);
    robot.joints(1500, 0.0);
    assert_eq!(
        robot.reason(1500),
        "camera wrist is 500.0 ms apart from the newest frame, at most 20.0 ms are allowed"
    );
    assert_eq!(robot.reason(1501), "camera wrist is 501.0 ms old, at most 500.0 ms are allowed");
    robot.image("wrist", 1502, 2);
    assert_eq!(robot.greys(1502), Ok(vec![1, 2]));
    assert_eq!(robot.0.blocked(), Blocked { stale: 1, skewed: 1, ..Blocked::default() });
    assert_eq!(robot.0.blocked().total(), 2);
}

#[test]
fn joint_states_that_stop_block_although_an_old_sample_fits_the_frames() {
    let mut robot = Robot::new(&["front"]);
    robot.joints(1000, 0.0);
    robot.image("front", 1000, 1);
    assert_eq!(robot.greys(1200), Ok(vec![1]));
    assert_eq!(robot.reason(1201), "joint states is 201.0 ms old, at most 200.0 ms are allowed");
}

#[test]
fn joint_samples_too_far_from_every_frame_block() {
    let mut robot = Robot::new(&["front"]);
    robot.image("front", 1000, 1);
    robot.joints(1021, 0.0);
    assert_eq!(
        robot.reason(1030),
        "joint states is 21.0 ms apart from the newest frame, at most 20.0 ms are allowed"
    );
    robot.joints(1020, 0.0);
    assert_eq!(robot.greys(1030), Ok(vec![1]));
}

#[test]
fn frames_exactly_at_the_limits_are_used() {
    let mut robot = Robot::new(&["front", "wrist"]);
    robot.image("front", 1000, 1);
    robot.image("wrist", 1020, 2);
    robot.joints(1400, 0.0);
    robot.joints(1040, 0.0);
    assert_eq!(robot.greys(1500), Ok(vec![1, 2]));
    assert!(robot.reason(1501).contains("camera front is 501.0 ms old"));
}

#[test]
fn stamps_from_the_future_block_beyond_the_greatest_age() {
    let mut robot = Robot::new(&["front"]);
    robot.0.on_image("front", at(1000), frame(at(1500), 1)).unwrap();
    robot.0.on_joints(at(1000), &joints(at(1500), 0.0)).unwrap();
    assert_eq!(
        robot.reason(1000),
        "joint states is stamped 500.0 ms in the future, at most 200.0 ms are allowed; synchronise the clocks of \
         the machines"
    );
    assert!(robot.reason(999).starts_with("camera front is stamped 501.0 ms in the future"));
    robot.0.set_limits(span(500), span(20), span(500));
    assert_eq!(robot.greys(1000), Ok(vec![1]));
}

#[test]
fn a_publisher_whose_clock_runs_ahead_does_not_stay_fresh_after_it_stopped() {
    let mut robot = Robot::new(&["front"]);
    robot.0.on_image("front", at(1000), frame(at(1100), 1)).unwrap();
    robot.0.on_joints(at(1500), &joints(at(1100), 0.0)).unwrap();
    robot.0.set_limits(span(500), span(20), span(5000));
    assert_eq!(robot.greys(1500), Ok(vec![1]));
    assert!(robot.reason(1501).contains("camera front is 501.0 ms old"));
}

#[test]
fn a_clock_that_is_set_back_starts_the_input_anew() {
    let mut robot = Robot::new(&["front"]);
    robot.image("front", 9000, 1);
    robot.joints(9000, 0.0);
    assert_eq!(robot.greys(9000), Ok(vec![1]));
    assert_eq!(robot.image("front", 100, 2), Arrival::ClockJump);
    assert!(robot.reason(100).starts_with("joint states is stamped 8900.0 ms in the future"));
    assert_eq!(robot.joints(100, 0.0), Arrival::ClockJump);
    assert_eq!(robot.greys(100), Ok(vec![2]));
    assert_eq!((robot.counts(0).clock_jumps, robot.counts(1).clock_jumps), (1, 1));
}

#[test]
fn late_and_repeated_messages_are_sorted_in_dropped_and_counted() {
    let mut robot = Robot::new(&["front"]);
    robot.joints(1000, 0.0);
    assert_eq!(robot.image("front", 1010, 1), Arrival::Newest);
    assert_eq!(robot.image("front", 1000, 2), Arrival::OutOfOrder);
    assert_eq!(robot.image("front", 1010, 3), Arrival::Duplicate);
    assert_eq!(robot.greys(1020), Ok(vec![1]));
    let counts = robot.counts(0);
    assert_eq!((counts.received, counts.out_of_order, counts.duplicates), (3, 1, 1));
}

#[test]
fn a_frozen_camera_that_repeats_its_stamp_goes_stale() {
    let mut robot = Robot::new(&["front"]);
    for now in (1000..1600).step_by(50) {
        robot.joints(now, 0.0);
        robot.0.on_image("front", at(now), frame(at(1000), 1)).unwrap();
    }
    assert!(robot.reason(1550).contains("camera front is 550.0 ms old"));
    assert_eq!(robot.counts(0).duplicates, 11);
}

#[test]
fn messages_without_a_stamp_count_from_their_arrival() {
    let mut robot = Robot::new(&["front"]);
    robot.0.on_image("front", at(1000), frame(Stamp::UNSET, 1)).unwrap();
    robot.0.on_joints(at(1005), &joints(Stamp::UNSET, 0.0)).unwrap();
    let assembled = robot.0.assemble(at(1010)).unwrap();
    assert_eq!((assembled.image_stamp, assembled.state_stamp), (at(1000), at(1005)));
    assert_eq!((robot.counts(0).unstamped, robot.counts(1).unstamped), (1, 1));
}

#[test]
fn a_joint_list_that_changes_its_order_is_followed_and_counted() {
    let mut robot = Robot::new(&["front"]);
    robot.image("front", 1000, 1);
    robot.joints(1000, 1.0);
    let mut turned = joints(at(1001), 2.0);
    turned.name.reverse();
    turned.position.reverse();
    robot.image("front", 1001, 1);
    robot.0.on_joints(at(1001), &turned).unwrap();
    assert_eq!(robot.0.assemble(at(1001)).unwrap().observation.state["arm"], array![[2.0, 2.5]]);
    assert_eq!(robot.counts(1).name_changes, 1);
}

#[test]
fn a_bad_joint_message_is_counted_and_otherwise_as_if_it_never_came() {
    let mut robot = Robot::new(&["front"]);
    robot.image("front", 1000, 1);
    robot.joints(1000, 1.0);
    robot.0.on_joints(at(1001), &joints(at(1001), f64::NAN)).unwrap_err();
    let mut short = joints(at(1002), 1.0);
    short.position.pop();
    robot.0.on_joints(at(1002), &short).unwrap_err();
    assert_eq!(robot.0.assemble(at(1002)).unwrap().state_stamp, at(1000));
    let report = &robot.0.report(at(1002))[1];
    assert_eq!((report.counts.received, report.counts.refused, report.age), (3, 2, Some(span(2))));
    assert!(report.last_error.as_ref().unwrap().contains("2 joint names, found 1"), "{report:?}");
}

#[test]
fn a_broken_frame_gives_way_to_the_one_before() {
    let mut robot = Robot::new(&["front"]);
    robot.joints(1000, 0.0);
    robot.image("front", 1000, 1);
    robot.0.on_image("front", at(1010), broken_frame(at(1010))).unwrap();
    assert_eq!(robot.greys(1010), Ok(vec![1]));
    let report = &robot.0.report(at(1010))[0];
    assert_eq!(report.counts.refused, 1);
    assert!(report.last_error.as_ref().unwrap().contains("16UC1"));
}

#[test]
fn where_every_frame_is_broken_the_reason_says_what_is_wrong_with_them() {
    let mut robot = Robot::new(&["front"]);
    robot.joints(1000, 0.0);
    for stamp in [1000, 1005, 1010] {
        robot.0.on_image("front", at(stamp), broken_frame(at(stamp))).unwrap();
    }
    let reason = robot.reason(1010);
    assert!(reason.starts_with("camera front: expected one of the encodings rgb8"), "{reason}");
    assert_eq!(robot.0.blocked(), Blocked { undecodable: 1, ..Blocked::default() });
    assert_eq!(robot.counts(0).refused, 3);
}

#[test]
fn only_frames_that_are_used_are_decoded() {
    let mut robot = Robot::new(&["front"]);
    robot.joints(1000, 0.0);
    robot.0.on_image("front", at(1000), broken_frame(at(1000))).unwrap();
    robot.image("front", 1010, 1);
    assert_eq!(robot.greys(1010), Ok(vec![1]));
    assert_eq!(robot.counts(0).refused, 0, "the older frame was never looked at");
}

#[test]
fn a_selection_decodes_without_the_assembler() {
    let mut robot = Robot::new(&["front"]);
    robot.joints(1000, 0.0);
    robot.0.on_image("front", at(1000), broken_frame(at(1000))).unwrap();
    let failure = robot.0.select(at(1000)).unwrap().decode().unwrap_err();
    robot.0.discard(&failure);
    assert_eq!(robot.0.select(at(1000)).unwrap_err().to_string(), "waiting for camera front");
    robot.image("front", 1001, 7);
    let selection = robot.0.select(at(1001)).unwrap();
    drop(robot);
    assert_eq!(selection.decode().unwrap().observation.video["front"].len(), 1);
}

#[test]
fn frames_and_joints_of_the_past_come_before_those_of_the_present() {
    let mut config = config(&["front"]);
    config.video_offsets = vec![span(500), Duration::ZERO];
    config.state_offsets = vec![span(100), Duration::ZERO];
    let mut robot = Robot(ObservationAssembler::new(config));
    for (i, stamp) in (1000..=1450).step_by(50).enumerate() {
        robot.image("front", stamp, i as u8);
        robot.joints(stamp, f64::from(i as u8));
    }
    assert_eq!(robot.reason(1450), "camera front has nothing from 500.0 ms before yet");
    robot.image("front", 1495, 10);
    robot.joints(1500, 10.0);
    let assembled = robot.0.assemble(at(1500)).unwrap();
    let greys: Vec<u8> =
        assembled.observation.video["front"].iter().map(|i| i.get_pixel(0, 0).0[0]).collect();
    assert_eq!(greys, [0, 10]);
    assert_eq!(assembled.observation.state["arm"], array![[8.0, 8.5], [10.0, 10.5]]);
}

#[test]
fn delta_indices_become_times_before_the_present() {
    let overrides = [
        ("checkpoint.path", "x"),
        ("embodiment", "x"),
        ("step_time", "0.1"),
        ("cameras.front.topic", "x"),
        ("state.arm.joints", "[a]"),
    ];
    let config = NodeConfig::load(&[], &overrides.map(|(name, value)| (name.into(), value.into()))).unwrap();
    let assembler = AssemblerConfig::new(&config, &[-15, 0], &[i64::MIN, 3]);
    assert_eq!(assembler.video_offsets, [span(1500), Duration::ZERO]);
    assert!(assembler.state_offsets[0] > Duration::from_secs(1_000_000));
    assert_eq!(assembler.state_offsets[1], Duration::ZERO);
    assert_eq!(
        (assembler.cameras, assembler.state),
        (vec!["front".into()], vec![("arm".into(), vec!["a".into()])])
    );
}

#[test]
fn an_unknown_camera_is_an_error() {
    let mut robot = Robot::new(&["front"]);
    let error = robot.0.on_image("side", at(0), frame(at(0), 1)).unwrap_err();
    assert_eq!(error.to_string(), "expected one of the cameras front, found \"side\"");
}

#[test]
fn slow_and_fast_inputs_find_one_another() {
    let mut robot = Robot::new(&["front", "wrist"]);
    let (mut blocked, mut ticks) = (0, 0);
    for now in 0..3000 {
        if now % 66 == 3 {
            robot.image("front", now + 1000, 1);
        }
        if now % 33 == 10 {
            robot.image("wrist", now + 1000, 2);
        }
        robot.joints(now + 1000, 0.0);
        if now > 100 && now % 50 == 0 {
            ticks += 1;
            blocked += i32::from(robot.greys(now + 1000).is_err());
        }
    }
    assert_eq!((ticks, blocked), (57, 0));
}

/// What may happen to an assembler.
#[derive(Debug, Clone)]
enum Event {
    Image { camera: usize, delay: i64, broken: bool },
    Joints { delay: i64 },
    Wait(i64),
    Tick,
}

fn event() -> impl Strategy<Value = Event> {
    // Mostly plausible delays, some wild ones: late, early, unstamped, from another epoch.
    let delay =
        || prop_oneof![8 => -30i64..60, 1 => -3000i64..3000, 1 => any::<i64>().prop_map(|d| d / MILLISECOND)];
    prop_oneof![
        4 => (0usize..2, delay(), prop::bool::weighted(0.1))
            .prop_map(|(camera, delay, broken)| Event::Image { camera, delay, broken }),
        4 => delay().prop_map(|delay| Event::Joints { delay }),
        3 => (0i64..80).prop_map(Event::Wait),
        1 => (-5000i64..1000).prop_map(Event::Wait),
        3 => Just(Event::Tick),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_sequence_of_messages_gives_a_stale_or_skewed_observation(
        events in prop::collection::vec(event(), 0..150), history in any::<bool>()
    ) {
        let cameras = ["front", "wrist"];
        let mut limits = config(&cameras);
        if history {
            limits.video_offsets.insert(0, span(60));
        }
        let mut assembler = ObservationAssembler::new(limits.clone());
        let mut now: i64 = 1_000_000;
        let mut ticks = 0;
        let mut blocked = 0;
        for event in events {
            match event {
                Event::Image { camera, delay, broken } => {
                    let stamp = Stamp(now.saturating_sub(delay).saturating_mul(MILLISECOND));
                    let message = if broken { broken_frame(stamp) } else { frame(stamp, 1) };
                    assembler.on_image(cameras[camera], at(now), message).unwrap();
                }
                Event::Joints { delay } => {
                    let stamp = Stamp(now.saturating_sub(delay).saturating_mul(MILLISECOND));
                    assembler.on_joints(at(now), &joints(stamp, 0.0)).unwrap();
                }
                Event::Wait(time) => now += time,
                Event::Tick => {
                    ticks += 1;
                    let selected = assembler.select(at(now));
                    let frames = selected.map(|selection| {
                        let stamps = |(key, frames): (&String, &Vec<(Stamp, Arc<Frame>)>)| {
                            (key.clone(), frames.iter().map(|(stamp, _)| *stamp).collect::<Vec<_>>())
                        };
                        selection.frames.iter().map(stamps).collect::<Vec<_>>()
                    });
                    let selectable = frames.is_ok();
                    blocked += u64::from(!selectable);
                    if let Ok(frames) = frames {
                        let present: Vec<Stamp> = frames.iter().map(|(_, stamps)| stamps[stamps.len() - 1]).collect();
                        let newest = *present.iter().max().unwrap();
                        for stamp in &present {
                            prop_assert!(newest.distance(*stamp) <= limits.max_skew);
                            prop_assert!(at(now).elapsed_since(*stamp) <= limits.max_age);
                            prop_assert!(stamp.elapsed_since(at(now)) <= limits.max_age);
                        }
                        for (_, stamps) in &frames {
                            let present = stamps[stamps.len() - 1];
                            for (stamp, offset) in stamps.iter().zip(&limits.video_offsets) {
                                prop_assert!((present - *offset).distance(*stamp) <= limits.max_skew);
                            }
                        }
                    }
                    match assembler.assemble(at(now)) {
                        Ok(assembled) => {
                            prop_assert!(selectable);
                            prop_assert!(assembled.image_stamp.distance(assembled.state_stamp) <= limits.max_skew);
                            prop_assert_eq!(assembled.ages.len(), 3);
                            for (input, age) in &assembled.ages {
                                let limit = match input {
                                    Input::Camera(_) => limits.max_age,
                                    // The sample lies beside the anchor; its own limit is for the newest one.
                                    Input::JointStates => Duration::MAX,
                                };
                                prop_assert!(*age <= limit);
                            }
                            let frames = assembled.observation.video.values();
                            prop_assert!(frames.clone().all(|images| images.len() == limits.video_offsets.len()));
                            prop_assert_eq!(frames.count(), 2);
                        }
                        Err(_) => blocked += 1,
                    }
                }
            }
        }
        prop_assert_eq!(assembler.blocked().total(), blocked);
        prop_assert!(blocked <= 2 * ticks);
    }
}
