use super::*;
use crate::safety::gate::Transition;

fn input(input: Input, age: Option<u64>, received: u64) -> InputSnapshot {
    InputSnapshot {
        report: InputReport {
            input,
            age: age.map(Duration::from_millis),
            counts: InputCounts { received, ..InputCounts::default() },
            last_error: None,
        },
        transport: TransportCounts::default(),
        max_age: Duration::from_millis(500),
    }
}

fn gate(dry_run: bool) -> Gate {
    let mut gate = Gate::new(dry_run);
    gate.request(Transition::Configure, &[]);
    gate.request(Transition::Activate, &[]);
    gate
}

/// A node that has nothing to complain about, after `seconds`.
fn healthy(seconds: u64) -> Snapshot {
    let mut latency = LatencyWindow::default();
    latency.record([("vision", Duration::from_millis(10)), ("total", Duration::from_millis(40))]);
    Snapshot {
        time: Stamp(1_000_000_000 * seconds as i64),
        node: "policy_node".into(),
        device: "cuda:0".into(),
        engine: Engine::Ready("bf16 on cuda:0".into()),
        transport: "embedded DDS".into(),
        embodiment: "new_embodiment".into(),
        instruction: "pick up the cup".into(),
        handover: "blend".into(),
        inputs: vec![
            input(Input::Camera("front".into()), Some(30), 30 * seconds),
            input(Input::JointStates, Some(8), 100 * seconds),
        ],
        blocked: Blocked::default(),
        blocked_because: None,
        requested_rate: 5.0,
        rate: 4.9,
        latency: latency.latencies(),
        chunks: 5 * seconds,
        failed: 0,
        last_error: None,
        dropped_not_finite: 0,
        dropped_late: 0,
        clips: vec![("elbow".into(), ClipCounts::default())],
        gate: gate(false),
        watchdog: watchdog::State::Ok,
        starting: false,
    }
}

/// The level and message of a part, after a healthy second.
fn part(name: &str, now: &Snapshot) -> (u8, String) {
    let array = diagnostics(Some(&healthy(1)), now);
    let status =
        array.status.into_iter().find(|status| status.name == format!("policy_node: {name}")).unwrap();
    (status.level, status.message)
}

/// Checks that exactly this part complains, with this level and in these words.
fn complains(change: impl Fn(&mut Snapshot), name: &str, level: u8, words: &[&str]) {
    let mut now = healthy(2);
    change(&mut now);
    for other in ["inputs", "inference", "motion", "activation"] {
        let (found, message) = part(other, &now);
        if other == name {
            assert_eq!(found, level, "{other}: {message}");
            for words in words {
                assert!(message.contains(words), "{words:?} is not in {message:?}");
            }
        } else {
            assert_eq!(found, DiagnosticStatus::OK, "{other}: {message}");
        }
    }
}

const WARN: u8 = DiagnosticStatus::WARN;
const ERROR: u8 = DiagnosticStatus::ERROR;

#[test]
fn a_healthy_node_is_ok_in_every_part() {
    let array = diagnostics(Some(&healthy(1)), &healthy(2));
    assert_eq!(array.header.stamp.sec, 2);
    let shown: Vec<_> = array.status.iter().map(|s| (s.level, s.name.as_str(), s.message.as_str())).collect();
    assert_eq!(
        shown,
        [
            (0, "policy_node: inputs", "2 inputs fresh"),
            (0, "policy_node: inference", "4.90 Hz"),
            (0, "policy_node: motion", "chunks are followed"),
            (0, "policy_node: activation", "active"),
        ]
    );
    assert!(array.status.iter().all(|status| status.hardware_id == "cuda:0"));
    let values = &array.status[1].values;
    let value = |key: &str| values.iter().find(|v| v.key == key).map(|v| v.value.as_str());
    assert_eq!(value("engine"), Some("bf16 on cuda:0"));
    assert_eq!(value("total p99 (ms)"), Some("40.00"));
}

#[test]
fn a_frozen_camera_is_an_error_with_its_age_and_limit() {
    let freeze = |now: &mut Snapshot| now.inputs[0].report.age = Some(Duration::from_millis(1300));
    complains(freeze, "inputs", ERROR, &["camera front is 1300 ms old, at most 500 ms are allowed"]);
}

#[test]
fn an_input_that_never_came_is_an_error() {
    complains(
        |now| now.inputs[1].report.age = None,
        "inputs",
        ERROR,
        &["joint states: nothing usable came yet"],
    );
}

#[test]
fn joints_that_are_all_nan_are_an_error_and_some_are_a_warning() {
    let refuse = |refused: u64| {
        move |now: &mut Snapshot| {
            now.inputs[1].report.counts.refused = refused;
            now.inputs[1].report.last_error = Some("found NaN".into());
        }
    };
    complains(refuse(100), "inputs", ERROR, &["joint states: all 100 new messages refused: found NaN"]);
    complains(refuse(3), "inputs", WARN, &["joint states: 3 of 100 new messages refused: found NaN"]);
}

#[test]
fn payloads_and_types_that_are_wrong_are_a_warning() {
    complains(|now| now.inputs[0].transport.undecodable = 2, "inputs", WARN, &["camera front: 2 payloads"]);
    complains(|now| now.inputs[0].transport.wrong_type = 2, "inputs", WARN, &["2 messages of a publisher"]);
    complains(|now| now.inputs[0].report.counts.clock_jumps = 1, "inputs", WARN, &["clock was set back"]);
}

#[test]
fn messages_that_were_lost_on_the_way_are_a_warning_with_their_number() {
    let lost = |now: &mut Snapshot| now.inputs[0].transport.lost = Some(7);
    complains(lost, "inputs", WARN, &["camera front: 7 messages were lost on the way"]);
    let values = &diagnostics(None, &healthy(2)).status[0].values;
    assert!(values.iter().all(|value| !value.key.ends_with("lost")), "nothing is claimed that is not known");
}

#[test]
fn frames_that_a_faster_camera_overwrites_are_no_fault() {
    let mut now = healthy(2);
    now.inputs[0].transport.overwritten = 25;
    assert_eq!(part("inputs", &now).0, DiagnosticStatus::OK);
}

#[test]
fn ticks_blocked_by_skew_are_a_warning_with_the_reason() {
    let skew = |now: &mut Snapshot| {
        now.blocked.skewed = 3;
        now.blocked_because = Some("camera wrist is 80 ms apart".into());
    };
    complains(
        skew,
        "inputs",
        WARN,
        &["3 ticks blocked by stamps too far apart", "camera wrist is 80 ms apart"],
    );
}

#[test]
fn a_failed_engine_is_an_error() {
    let fail = |now: &mut Snapshot| now.engine = Engine::Failed("out of memory".into());
    complains(fail, "inference", ERROR, &["the engine failed: out of memory"]);
    let mut now = healthy(2);
    fail(&mut now);
    assert_eq!(policy_status(&now).last_error, "out of memory");
}

#[test]
fn an_engine_that_is_being_built_is_a_warning_and_the_status_says_how_far_it_is() {
    let line = "building the TensorRT engine: Tactic selection (13 of 140), 95 s";
    let build = |now: &mut Snapshot| now.engine = Engine::Building(line.into());
    complains(build, "inference", WARN, &[line]);
    let mut now = healthy(2);
    build(&mut now);
    assert_eq!((policy_status(&now).engine.as_str(), policy_status(&now).last_error.as_str()), (line, ""));
}

#[test]
fn failed_ticks_and_chunks_that_are_not_finite_are_errors() {
    let fail = |now: &mut Snapshot| {
        now.failed = 2;
        now.last_error = Some("the action head produced NaN".into());
    };
    complains(fail, "inference", ERROR, &["2 ticks failed: the action head produced NaN"]);
    complains(
        |now| now.dropped_not_finite = 1,
        "inference",
        ERROR,
        &["1 chunks dropped: a value was not finite"],
    );
}

#[test]
fn a_rate_below_four_fifths_and_late_chunks_are_warnings() {
    complains(|now| now.rate = 3.9, "inference", WARN, &["3.90 Hz, 5.00 Hz are asked for"]);
    complains(|now| now.dropped_late = 4, "inference", WARN, &["4 chunks dropped: they came too late"]);
    let mut now = healthy(2);
    now.rate = 4.0;
    assert_eq!(part("inference", &now).0, DiagnosticStatus::OK);
    now.rate = 0.0;
    now.gate.request(Transition::Deactivate, &[]);
    assert_eq!(part("inference", &now).0, DiagnosticStatus::OK, "an inactive node need not make chunks");
}

#[test]
fn a_watchdog_that_holds_or_stops_is_an_error_but_not_before_the_first_chunk() {
    let reason = || "the inference has been running for 900 ms".to_owned();
    complains(
        |now| now.watchdog = watchdog::State::Hold { reason: reason() },
        "motion",
        ERROR,
        &["hold: the inference has been running for 900 ms"],
    );
    complains(|now| now.watchdog = watchdog::State::Stop { reason: reason() }, "motion", ERROR, &["stop: "]);
    let start = |now: &mut Snapshot| {
        now.watchdog = watchdog::State::Hold { reason: "waiting for the first chunk".into() };
        now.starting = true;
    };
    complains(start, "motion", WARN, &["waiting for the first chunk"]);
}

#[test]
fn clips_are_a_warning_that_names_the_joints() {
    let clip = |now: &mut Snapshot| now.clips[0].1 = ClipCounts { position: 2, velocity: 1, step: 0 };
    complains(clip, "motion", WARN, &["commands clipped: elbow (position 2, velocity 1)"]);
}

#[test]
fn an_e_stop_is_an_error_until_it_is_reset() {
    let mut now = healthy(2);
    now.gate.on_estop(true);
    assert_eq!(part("activation", &now).0, ERROR);
    let status = policy_status(&now);
    assert_eq!((status.estop, status.commanding, status.state), (true, false, 2));
    now.gate.on_estop(false);
    now.gate.reset();
    assert_eq!(part("activation", &now), (DiagnosticStatus::OK, "inactive".into()));
}

#[test]
fn dry_run_is_said_and_is_no_fault() {
    let mut now = healthy(2);
    now.gate = gate(true);
    assert_eq!(
        part("activation", &now),
        (DiagnosticStatus::OK, "active, in dry run: the robot is not commanded".into())
    );
    assert!(!policy_status(&now).commanding);
}

#[test]
fn what_is_over_is_not_reported_again_but_stays_counted() {
    let mut now = healthy(2);
    now.failed = 2;
    now.dropped_not_finite = 1;
    now.blocked.skewed = 3;
    now.clips[0].1.position = 2;
    now.inputs[0].report.counts.refused = 1;
    let later = Snapshot { time: Stamp(3_000_000_000), ..now.clone() };
    let array = diagnostics(Some(&now), &later);
    let levels: Vec<_> = array.status.iter().map(|status| status.level).collect();
    assert_eq!(levels, [DiagnosticStatus::OK; 4], "{:?}", array.status);
    let status = policy_status(&later);
    assert_eq!((status.failed, status.blocked_skewed, status.clips[0].position), (2, 3, 2));
}

#[test]
fn several_faults_are_all_told_worst_first() {
    let mut now = healthy(2);
    now.inputs[0].transport.wrong_type = 1;
    now.inputs[1].report.age = Some(Duration::from_secs(2));
    let (level, message) = part("inputs", &now);
    assert_eq!(level, ERROR);
    assert!(
        message.starts_with("joint states is 2000 ms old") && message.contains("; camera front: 1"),
        "{message}"
    );
}

#[test]
fn the_status_message_says_everything_that_is_known() {
    let mut now = healthy(2);
    now.inputs[1].report.age = None;
    now.inputs[0].transport =
        TransportCounts { lost: Some(9), overwritten: 4, undecodable: 2, wrong_type: 1 };
    now.inputs[0].report.counts.refused = 10;
    now.watchdog = watchdog::State::Stop { reason: "why".into() };
    let status = policy_status(&now);
    assert_eq!((status.state, status.dry_run, status.commanding), (3, false, false), "a stop is silent");
    assert_eq!((status.watchdog, status.watchdog_reason.as_str()), (PolicyStatus::WATCHDOG_STOP, "why"));
    assert_eq!((status.requested_rate, status.rate, status.chunks), (5.0, 4.9, 10));
    assert_eq!((status.engine.as_str(), status.handover.as_str()), ("bf16 on cuda:0", "blend"));
    let inputs: Vec<_> = status.inputs.iter().map(|i| (i.name.as_str(), i.age, i.fresh, i.refused)).collect();
    assert_eq!(inputs, [("camera front", 30.0, true, 13), ("joint states", -1.0, false, 0)]);
    let passed: Vec<_> = status.inputs.iter().map(|i| (i.lost, i.overwritten)).collect();
    assert_eq!(passed, [(9, 4), (-1, 0)], "one transport counts what was lost, the other cannot");
    assert_eq!(status.latency, now.latency);
}

#[test]
fn percentiles_are_those_of_the_nearest_rank() {
    let mut window = LatencyWindow::default();
    for millisecond in (1..=200).rev() {
        window.record([("total", Duration::from_millis(millisecond))]);
    }
    let total = &window.latencies()[0];
    assert_eq!((total.samples, total.p50, total.p99), (200, 100.0, 198.0));
    let mut one = LatencyWindow::default();
    one.record([("total", Duration::from_millis(7))]);
    assert_eq!((one.latencies()[0].p50, one.latencies()[0].p99), (7.0, 7.0));
    assert_eq!(LatencyWindow::default().latencies(), []);
}

#[test]
fn a_window_that_nobody_takes_does_not_grow_without_end() {
    let mut window = LatencyWindow::default();
    for _ in 0..=LATENCIES {
        window.record([("total", Duration::ZERO)]);
    }
    assert_eq!(window.latencies()[0].samples as usize, LATENCIES);
}

#[test]
fn each_input_has_the_limit_of_its_kind() {
    let reports = healthy(1).inputs.into_iter().map(|input| input.report).collect();
    let (camera, joints) = (Duration::from_millis(500), Duration::from_millis(200));
    let counts = |input: &Input| TransportCounts {
        overwritten: u64::from(*input == Input::JointStates),
        ..TransportCounts::default()
    };
    let inputs = input_snapshots(reports, counts, camera, joints);
    let shown: Vec<_> = inputs.iter().map(|i| (i.max_age, i.transport.overwritten)).collect();
    assert_eq!(shown, [(camera, 0), (joints, 1)]);
}
