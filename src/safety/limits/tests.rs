use super::*;
use crate::ros::msg::{self, Header, JointTrajectoryPoint};
use proptest::prelude::*;

fn limits(lower: f64, upper: f64, velocity: f64, step: f64) -> JointLimits {
    JointLimits { lower: Some(lower), upper: Some(upper), velocity: Some(velocity), step: Some(step) }
}

fn limiter(given: &[(&str, JointLimits)]) -> Limiter {
    let joints = given.iter().map(|(joint, _)| joint.to_string()).collect();
    let given = given.iter().map(|(joint, limits)| (joint.to_string(), *limits)).collect();
    Limiter::new(joints, LimitSettings { joints: given, ..LimitSettings::default() }).unwrap()
}

fn previous(pose: &[f64], milliseconds: u64) -> Option<Previous<'_>> {
    Some(Previous { pose, elapsed: Duration::from_millis(milliseconds) })
}

fn urdf(limit: &str) -> String {
    format!(r#"<robot><joint name="elbow" type="revolute"><limit {limit}/></joint></robot>"#)
}

#[test]
fn each_kind_of_limit_clips_and_is_counted_by_joint() {
    let mut limiter = limiter(&[
        ("elbow", JointLimits { lower: Some(-1.0), upper: Some(1.0), ..JointLimits::default() }),
        ("wrist", JointLimits { velocity: Some(2.0), ..JointLimits::default() }),
        ("finger", JointLimits { step: Some(0.01), ..JointLimits::default() }),
    ]);
    let mut pose = [3.0, 1.0, -1.0];
    let report = limiter.apply(previous(&[0.0; 3], 100), &mut pose).unwrap();
    assert_eq!(pose, [1.0, 0.2, -0.01]);
    let clips = |position, velocity, step| ClipCounts { position, velocity, step };
    assert_eq!(report.joints, [clips(1, 0, 0), clips(0, 1, 0), clips(0, 0, 1)]);
    limiter.apply(previous(&[0.0; 3], 100), &mut [-2.0, 0.0, 0.0]).unwrap();
    let counts: Vec<_> = limiter.counts().collect();
    assert_eq!(counts, [("elbow", clips(2, 0, 0)), ("wrist", clips(0, 1, 0)), ("finger", clips(0, 0, 1))]);
}

#[test]
fn a_joint_outside_its_positions_is_led_back_at_the_velocity_limit() {
    let mut limiter = limiter(&[("elbow", limits(-1.0, 1.0, 0.5, 10.0))]);
    let mut pose = [1.3];
    let mut way = Vec::new();
    for _ in 0..8 {
        let before = pose;
        pose = [1.5];
        limiter.apply(previous(&before, 100), &mut pose).unwrap();
        way.push((pose[0] * 1e9).round() / 1e9);
    }
    assert_eq!(way, [1.25, 1.2, 1.15, 1.1, 1.05, 1.0, 1.0, 1.0]);
}

#[test]
fn a_correction_as_small_as_rounding_is_made_but_not_counted() {
    let mut limiter = limiter(&[("finger", limits(0.0, 1.0, 1.0, 1.0))]);
    let mut pose = [1.0 + 1e-7];
    assert!(!limiter.apply(previous(&[1.0], 10), &mut pose).unwrap().any());
    assert_eq!(pose, [1.0]);
}

#[test]
fn without_time_there_is_no_motion_where_the_velocity_is_limited() {
    let mut limiter = limiter(&[("elbow", limits(-1.0, 1.0, 0.5, 1.0))]);
    let mut pose = [0.9];
    limiter.apply(previous(&[0.5], 0), &mut pose).unwrap();
    assert_eq!(pose, [0.5]);
}

#[test]
fn the_first_command_needs_a_pose_to_start_from_only_where_changes_are_limited() {
    let positions = JointLimits { lower: Some(-1.0), upper: Some(1.0), ..JointLimits::default() };
    let mut pose = [7.0];
    assert!(limiter(&[("elbow", positions)]).apply(None, &mut pose).unwrap().any());
    assert_eq!(pose, [1.0]);
    let error = limiter(&[("elbow", limits(-1.0, 1.0, 1.0, 1.0))]).apply(None, &mut [0.0]).unwrap_err();
    assert_eq!(error, CommandError::NoPrevious { joint: "elbow".into() });
}

#[test]
fn what_is_not_finite_is_dropped_whole_and_never_clipped() {
    let mut limiter =
        limiter(&[("elbow", limits(-1.0, 1.0, 1.0, 1.0)), ("wrist", limits(-1.0, 1.0, 1.0, 1.0))]);
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut pose = [5.0, value];
        let error = limiter.apply(previous(&[0.0, 0.0], 10), &mut pose).unwrap_err();
        assert!(error.to_string().contains(&format!("found {value} for the joint wrist in the command")));
        assert_eq!(pose[0], 5.0);
        let error = limiter.apply(previous(&[value, 0.0], 10), &mut [0.0, 0.0]).unwrap_err();
        assert!(error.to_string().contains("the joint elbow in the pose before"), "{error}");
    }
    assert!(limiter.counts().all(|(_, counts)| counts.total() == 0));
}

fn trajectory(stamp: i64, points: &[(u32, [f64; 2])]) -> JointTrajectory {
    let point = |(milliseconds, positions): &(u32, [f64; 2])| JointTrajectoryPoint {
        positions: positions.to_vec(),
        time_from_start: msg::Duration { sec: 0, nanosec: milliseconds * 1_000_000 },
        ..JointTrajectoryPoint::default()
    };
    JointTrajectory {
        header: Header { stamp: Stamp(stamp).into(), ..Header::default() },
        joint_names: vec!["elbow".into(), "wrist".into()],
        points: points.iter().map(point).collect(),
    }
}

#[test]
fn a_trajectory_is_limited_point_by_point_from_where_the_robot_is() {
    let wide = JointLimits::default();
    let limiter = limiter(&[
        ("elbow", JointLimits { velocity: Some(1.0), ..wide }),
        ("wrist", JointLimits { upper: Some(0.5), ..wide }),
    ]);
    let mut given = trajectory(1_000_000_000, &[(100, [1.0, 0.0]), (200, [1.0, 9.0]), (400, [0.3, 9.0])]);
    let start = Start { pose: &[0.0, 0.0], time: Stamp(1_050_000_000) };
    let report = limiter.apply_trajectory(Some(start), &mut given).unwrap();
    let positions: Vec<_> = given.points.iter().map(|point| point.positions.clone()).collect();
    let expected = [[0.05, 0.0], [0.15, 0.5], [0.3, 0.5]];
    for (found, expected) in positions.iter().zip(expected) {
        assert!((found[0] - expected[0]).abs() < 1e-12 && found[1] == expected[1], "{positions:?}");
    }
    assert_eq!(report.joints[0], ClipCounts { velocity: 2, ..ClipCounts::default() });
    assert_eq!(report.joints[1], ClipCounts { position: 2, ..ClipCounts::default() });
    // The commands sampled from it are counted.
    assert!(limiter.counts().all(|(_, counts)| counts.total() == 0));
}

#[test]
fn one_point_that_is_not_finite_drops_the_trajectory_untouched() {
    let limiter = limiter(&[("elbow", limits(-1.0, 1.0, 1.0, 1.0)), ("wrist", limits(-1.0, 1.0, 1.0, 1.0))]);
    let mut given = trajectory(0, &[(100, [5.0, 0.0]), (200, [0.0, f64::NAN])]);
    let start = Start { pose: &[0.0, 0.0], time: Stamp(0) };
    let error = limiter.apply_trajectory(Some(start), &mut given).unwrap_err();
    assert!(error.to_string().contains("the joint wrist in point 1"), "{error}");
    assert_eq!(given.points[0].positions, [5.0, 0.0]);
    assert!(limiter.counts().all(|(_, counts)| counts.total() == 0));
}

#[test]
fn a_trajectory_of_another_shape_is_refused() {
    let limiter = limiter(&[("elbow", JointLimits::default()), ("wrist", JointLimits::default())]);
    let mut swapped = trajectory(0, &[]);
    swapped.joint_names.reverse();
    let error = limiter.apply_trajectory(None, &mut swapped).unwrap_err();
    assert_eq!(error.to_string(), "expected a trajectory of the joints elbow, wrist, found wrist, elbow");
    let mut short = trajectory(0, &[(1, [0.0, 0.0])]);
    short.points[0].positions.pop();
    let error = limiter.apply_trajectory(None, &mut short).unwrap_err();
    assert_eq!(error.to_string(), "expected 2 positions in point 0, found 1");
    let mut fast = trajectory(0, &[(1, [0.0, 0.0])]);
    fast.points[0].velocities = vec![1.0, 1.0];
    assert_eq!(limiter.apply_trajectory(None, &mut fast), Err(CommandError::MoreThanPositions(0)));
}

#[test]
fn the_stricter_of_parameter_and_urdf_applies_in_each_respect() {
    let mut limiter = limiter(&[("elbow", limits(-2.0, 0.5, 3.0, 0.1))]);
    limiter.set_urdf(&urdf(r#"lower="-1" upper="1" velocity="5""#)).unwrap();
    assert_eq!(limiter.limits().collect::<Vec<_>>(), [("elbow", limits(-1.0, 0.5, 3.0, 0.1))]);
    limiter.set_urdf(&urdf(r#"lower="-3" upper="0.25" velocity="2""#)).unwrap();
    assert_eq!(limiter.limits().collect::<Vec<_>>(), [("elbow", limits(-2.0, 0.25, 2.0, 0.1))]);
}

#[test]
fn defaults_are_for_joints_without_a_parameter_and_do_not_loosen_the_urdf() {
    let settings = LimitSettings {
        joints: [("wrist".into(), JointLimits { velocity: Some(9.0), ..JointLimits::default() })].into(),
        default_velocity: Some(2.0),
        default_step: Some(0.5),
    };
    let mut limiter = Limiter::new(vec!["elbow".into(), "wrist".into()], settings).unwrap();
    limiter.set_urdf(&urdf(r#"lower="-1" upper="1" velocity="1""#)).unwrap();
    let velocities: Vec<_> = limiter.limits().map(|(_, limits)| (limits.velocity, limits.step)).collect();
    assert_eq!(velocities, [(Some(1.0), Some(0.5)), (Some(9.0), Some(0.5))]);
    assert_eq!(limiter.joints_without_position_limits(), ["wrist"]);
}

#[test]
fn every_impossible_limit_is_listed_and_those_in_force_stay() {
    let mut limiter = limiter(&[("elbow", limits(-1.0, 1.0, 1.0, 1.0))]);
    let bad = LimitSettings {
        joints: [
            ("elbow".into(), limits(2.0, 1.0, -1.0, f64::NAN)),
            ("elbwo".into(), limits(f64::NEG_INFINITY, 1.0, 1.0, 1.0)),
        ]
        .into(),
        default_velocity: Some(0.0),
        default_step: Some(f64::INFINITY),
    };
    let Err(LimitError::Problems(problems)) = limiter.set_settings(bad) else { panic!() };
    let mut places: Vec<_> = problems.iter().map(|problem| problem.place.as_str()).collect();
    places.sort_unstable();
    let expected = [
        "default_limits.step",
        "default_limits.velocity",
        "limits.elbow.lower",
        "limits.elbow.step",
        "limits.elbow.velocity",
        "limits.elbwo",
        "limits.elbwo.lower",
    ];
    assert_eq!(places, expected);
    assert_eq!(limiter.limits().next(), Some(("elbow", limits(-1.0, 1.0, 1.0, 1.0))));
}

#[test]
fn a_bad_robot_description_leaves_the_limits_of_the_good_one_in_force() {
    let mut limiter = limiter(&[("elbow", limits(-2.0, 2.0, 3.0, 1.0))]);
    limiter.set_urdf(&urdf(r#"lower="-1" upper="1" velocity="0.5""#)).unwrap();
    let good = limits(-1.0, 1.0, 0.5, 1.0);
    for (bad, part) in [
        ("garbage".to_owned(), "expected XML"),
        (urdf(r#"lower="1" upper="-1" velocity="1""#), "expected at most the upper limit"),
        (
            urdf(r#"lower="5" upper="6" velocity="1""#),
            "that the robot description allows (5 to 6), found -2 to 2",
        ),
    ] {
        let text = limiter.set_urdf(&bad).unwrap_err().to_string();
        assert!(text.contains(part) && text.contains("in force stay"), "{text}");
        assert_eq!(limiter.limits().next(), Some(("elbow", good)));
    }
    let elsewhere = LimitSettings {
        joints: [("elbow".into(), limits(3.0, 4.0, 1.0, 1.0))].into(),
        ..LimitSettings::default()
    };
    assert!(limiter.set_settings(elsewhere).is_err());
    assert_eq!(limiter.limits().next(), Some(("elbow", good)));
}

fn any_limits() -> impl Strategy<Value = JointLimits> {
    let bound = prop_oneof![-10.0..10.0, -1e12..1e12, Just(0.0)];
    let rate = || prop::option::of(prop_oneof![1e-9..10.0, 1e-300..1e12]);
    (prop::option::of(bound.clone()), prop::option::of(bound), rate(), rate()).prop_map(
        |(a, b, velocity, step)| {
            let (lower, upper) = match (a, b) {
                (Some(a), Some(b)) => (Some(f64::min(a, b)), Some(f64::max(a, b))),
                other => other,
            };
            JointLimits { lower, upper, velocity, step }
        },
    )
}

fn position() -> impl Strategy<Value = f64> {
    prop_oneof![-20.0..20.0, -1e300..1e300, prop::num::f64::NORMAL, Just(0.0), Just(f64::MAX), Just(f64::MIN)]
}

/// How far a position lies outside.
fn outside(limits: &JointLimits, position: f64) -> f64 {
    let below = limits.lower.map_or(0.0, |lower| lower - position);
    let above = limits.upper.map_or(0.0, |upper| position - upper);
    below.max(above).max(0.0)
}

proptest! {
    #[test]
    fn no_command_breaks_a_limit(
        limits in any_limits(), from in position(), to in position(), milliseconds in 0u64..100_000,
    ) {
        let mut limiter = limiter(&[("elbow", limits)]);
        let mut pose = [to];
        limiter.apply(previous(&[from], milliseconds), &mut pose).unwrap();
        let [reached] = pose;
        prop_assert!(reached.is_finite());
        let elapsed = Duration::from_millis(milliseconds).as_secs_f64();
        prop_assert!(limits.velocity.is_none_or(|velocity| (reached - from).abs() <= velocity * elapsed));
        prop_assert!(limits.step.is_none_or(|step| (reached - from).abs() <= step));
        if outside(&limits, from) == 0.0 || (limits.velocity.is_none() && limits.step.is_none()) {
            prop_assert_eq!(outside(&limits, reached), 0.0);
        } else {
            prop_assert!(outside(&limits, reached) <= outside(&limits, from));
        }
    }

    #[test]
    fn limiting_what_is_limited_changes_nothing_and_counts_only_a_joint_that_is_still_outside(
        limits in any_limits(), from in position(), to in position(), milliseconds in 0u64..100_000,
    ) {
        let mut limiter = limiter(&[("elbow", limits)]);
        let mut pose = [to];
        limiter.apply(previous(&[from], milliseconds), &mut pose).unwrap();
        let once = pose;
        let again = limiter.apply(previous(&[from], milliseconds), &mut pose).unwrap();
        prop_assert_eq!(pose, once);
        prop_assert!(!again.any() || outside(&limits, once[0]) > 0.0);
    }

    #[test]
    fn a_joint_outside_comes_back_in_the_time_that_its_velocity_allows(
        limits in any_limits().prop_filter("needs both", |l| l.lower.is_some() && l.upper.is_some()),
        away in 0.001f64..1.0, target in position(),
    ) {
        let limits = JointLimits { velocity: Some(1.0), step: None, ..limits };
        prop_assume!(limits.upper.is_some_and(|upper| upper.abs() < 100.0));
        let mut limiter = limiter(&[("elbow", limits)]);
        let mut pose = [limits.upper.unwrap() + away];
        for _ in 0..101 {
            let before = pose;
            pose = [target];
            limiter.apply(previous(&before, 10), &mut pose).unwrap();
        }
        prop_assert_eq!(outside(&limits, pose[0]), 0.0);
    }

    #[test]
    fn no_trajectory_breaks_a_limit(
        rows in prop::collection::vec((1u32..50, position(), position()), 0..20),
        elbow in any_limits(), wrist in any_limits(),
    ) {
        let limiter = limiter(&[("elbow", elbow), ("wrist", wrist)]);
        let mut time = 0;
        let points: Vec<_> = rows.iter().map(|(wait, a, b)| { time += wait; (time, [*a, *b]) }).collect();
        let mut given = trajectory(0, &points);
        let inside = |limits: &JointLimits| limits.lower.or(limits.upper).unwrap_or(0.0);
        let start = [inside(&elbow), inside(&wrist)];
        limiter.apply_trajectory(Some(Start { pose: &start, time: Stamp(0) }), &mut given).unwrap();
        let mut before = (start.to_vec(), 0);
        for (point, (time, _)) in given.points.iter().zip(&points) {
            let elapsed = Duration::from_millis(u64::from(time - before.1)).as_secs_f64();
            for (joint, limits) in [elbow, wrist].iter().enumerate() {
                let moved = (point.positions[joint] - before.0[joint]).abs();
                prop_assert!(limits.velocity.is_none_or(|velocity| moved <= velocity * elapsed));
                prop_assert!(limits.step.is_none_or(|step| moved <= step));
                prop_assert_eq!(outside(limits, point.positions[joint]), 0.0);
            }
            before = (point.positions.clone(), *time);
        }
    }
}
