//! A commanded pose, a row of actions or a trajectory to the messages that controllers follow.
//!
//! | controller | message | hold | stop |
//! |---|---|---|---|
//! | `joint_trajectory_controller` | [`upcoming`] points of a chunk | [`pose_trajectory`] of the pose commanded last, again and again | the same once |
//! | `forward_command_controller` | [`PositionOutput`], at a fixed rate | the pose commanded last, again and again | nothing more |
//! | base | [`TwistOutput`], m/s and rad/s as REP 103 has them | zero, again and again | zero once |
//!
//! **A stop is not an empty trajectory.** That was ROS 1's way to cancel. The `joint_trajectory_controller` of ROS 2, from
//! Humble to Rolling, refuses a trajectory without points or without joint names with an error in its log, and goes on
//! with the one it has. What does stop it is a trajectory of one point, the pose it is at: it replaces the old one as a whole.
//!
//! The plan's points pass [`upcoming`], then [`Limiter::apply_trajectory`](crate::safety::limits::Limiter::apply_trajectory),
//! in this order: points that have passed must not count as the way to the next one. The trajectory's header has the
//! observation's stamp. It has positions only: the policy makes no velocities, and the controller then interpolates linearly.

use std::str::FromStr;
use std::time::Duration;

use crate::ros::Stamp;
use crate::ros::msg::{
    Float64MultiArray, Header, JointTrajectory, JointTrajectoryPoint, MultiArrayDimension, MultiArrayLayout,
    Twist, TwistStamped, Vector3,
};

/// Why an output cannot be configured or made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OutputError {
    /// A value is not a number or infinite; nothing is published.
    #[error("expected finite values, found {value} for {name}; nothing is published")]
    NotFinite {
        /// Joint or component.
        name: String,
        /// The value.
        value: f64,
    },
    /// There are not as many values as expected.
    #[error("expected {expected} {what}, found {found}")]
    Length {
        /// What there is a wrong number of.
        what: &'static str,
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Joints that the policy does not move.
    #[error("expected joints that the policy moves ({}), found {}", available.join(", "), missing.join(", "))]
    UnknownJoints {
        /// Joints of the policy.
        available: Vec<String>,
        /// The others.
        missing: Vec<String>,
    },
    /// No such part of a velocity.
    #[error("expected linear.x, linear.y, linear.z, angular.x, angular.y, angular.z or none, found {0:?}")]
    UnknownComponent(String),
    /// A part of a velocity is given by two dimensions.
    #[error("expected {0} once, found it twice")]
    RepeatedComponent(&'static str),
}

/// The points of a trajectory that lie after `earliest`, usually now or a command period later; `None` where none does.
///
/// The header's stamp and the times stay, so that the remaining ones still rise strictly and start above zero. The
/// controller then leads from where it is to the first of them. It would do without this, but would begin in the middle of
/// the segment that it is in, with a jump; and it refuses a trajectory whose last point has passed.
///
/// A trajectory without a stamp starts when it arrives: nothing of it can have passed.
pub fn upcoming(mut trajectory: JointTrajectory, earliest: Stamp) -> Option<JointTrajectory> {
    let stamp = Stamp::from(&trajectory.header.stamp);
    if stamp != Stamp::UNSET {
        trajectory.points.retain(|point| stamp + &point.time_from_start > earliest);
    }
    (!trajectory.points.is_empty()).then_some(trajectory)
}

/// A trajectory that leads from wherever the robot is to `pose` within `reach`, from its arrival on.
///
/// # Errors
/// A value that is not finite, a wrong number of positions, no joints.
pub fn pose_trajectory(
    joints: &[String],
    pose: &[f64],
    reach: Duration,
    frame_id: &str,
) -> Result<JointTrajectory, OutputError> {
    check_pose(joints, pose)?;
    // Controllers refuse a point at zero.
    let reach = reach.max(Duration::from_nanos(1));
    Ok(JointTrajectory {
        header: Header { frame_id: frame_id.to_owned(), ..Header::default() },
        joint_names: joints.to_vec(),
        points: vec![JointTrajectoryPoint {
            positions: pose.to_vec(),
            time_from_start: reach.into(),
            ..JointTrajectoryPoint::default()
        }],
    })
}

/// Positions for a controller that takes them as a plain list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionOutput {
    available: Vec<String>,
    /// Where in a pose each of the controller's joints stands.
    indices: Vec<usize>,
}

impl PositionOutput {
    /// `joints` in the controller's order, `available` in the order of the poses; a pose may have more joints.
    ///
    /// # Errors
    /// Joints that no pose has; no joints.
    pub fn new(joints: &[String], available: &[String]) -> Result<Self, OutputError> {
        let index = |joint: &String| available.iter().position(|other| other == joint);
        let missing: Vec<String> = joints.iter().filter(|joint| index(joint).is_none()).cloned().collect();
        if !missing.is_empty() {
            return Err(OutputError::UnknownJoints { available: available.to_vec(), missing });
        }
        if joints.is_empty() {
            return Err(OutputError::Length { what: "joints or more", expected: 1, found: 0 });
        }
        Ok(Self { available: available.to_vec(), indices: joints.iter().filter_map(index).collect() })
    }

    /// The message for a pose.
    ///
    /// # Errors
    /// A value that is not finite, also of a joint that is not the controller's; a wrong number of positions.
    pub fn message(&self, pose: &[f64]) -> Result<Float64MultiArray, OutputError> {
        check_pose(&self.available, pose)?;
        let data: Vec<f64> = self.indices.iter().filter_map(|&index| pose.get(index).copied()).collect();
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let dimension = MultiArrayDimension { label: "joints".to_owned(), size, stride: size };
        Ok(Float64MultiArray { layout: MultiArrayLayout { dim: vec![dimension], data_offset: 0 }, data })
    }
}

fn check_pose(joints: &[String], pose: &[f64]) -> Result<(), OutputError> {
    let (expected, found) = (joints.len(), pose.len());
    if expected != found {
        return Err(OutputError::Length { what: "positions", expected, found });
    }
    if expected == 0 {
        return Err(OutputError::Length { what: "joints or more", expected: 1, found: 0 });
    }
    check_finite(joints.iter().map(String::as_str).zip(pose.iter().copied()))
}

fn check_finite<'a>(values: impl IntoIterator<Item = (&'a str, f64)>) -> Result<(), OutputError> {
    match values.into_iter().find(|(_, value)| !value.is_finite()) {
        Some((name, value)) => Err(OutputError::NotFinite { name: name.to_owned(), value }),
        None => Ok(()),
    }
}

/// A part of a velocity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// Forwards, m/s.
    LinearX,
    /// To the left, m/s.
    LinearY,
    /// Upwards, m/s.
    LinearZ,
    /// Rolling to the right, rad/s.
    AngularX,
    /// Pitching down, rad/s.
    AngularY,
    /// Turning to the left, rad/s.
    AngularZ,
}

impl Component {
    /// The field of `geometry_msgs/Twist`.
    pub fn label(self) -> &'static str {
        match self {
            Self::LinearX => "linear.x",
            Self::LinearY => "linear.y",
            Self::LinearZ => "linear.z",
            Self::AngularX => "angular.x",
            Self::AngularY => "angular.y",
            Self::AngularZ => "angular.z",
        }
    }

    const ALL: [Self; 6] =
        [Self::LinearX, Self::LinearY, Self::LinearZ, Self::AngularX, Self::AngularY, Self::AngularZ];
}

impl FromStr for Component {
    type Err = OutputError;

    fn from_str(text: &str) -> Result<Self, OutputError> {
        let found = Self::ALL.into_iter().find(|component| component.label() == text);
        found.ok_or_else(|| OutputError::UnknownComponent(text.chars().take(40).collect()))
    }
}

/// Velocities for the base, from the dimensions of one action key.
#[derive(Debug, Clone, PartialEq)]
pub struct TwistOutput {
    /// What each dimension of the key is; `None` for one that is no velocity.
    components: Vec<Option<Component>>,
    /// Greatest speed, m/s.
    max_linear: Option<f64>,
    /// Greatest speed of turning, rad/s.
    max_angular: Option<f64>,
    frame_id: String,
}

impl TwistOutput {
    /// `components` has a name for each dimension of the action key, e.g. `linear.x`, or `none`.
    ///
    /// # Errors
    /// Another number of names than dimensions, unknown names, a name twice, a greatest speed that is none.
    pub fn new(
        components: &[String],
        dimensions: usize,
        max_linear: Option<f64>,
        max_angular: Option<f64>,
        frame_id: &str,
    ) -> Result<Self, OutputError> {
        let (expected, found) = (dimensions, components.len());
        if expected != found {
            return Err(OutputError::Length {
                what: "components, one per dimension of the key",
                expected,
                found,
            });
        }
        for (name, limit) in
            [("the greatest linear speed", max_linear), ("the greatest angular speed", max_angular)]
        {
            if let Some(value) = limit.filter(|limit| !(limit.is_finite() && *limit >= 0.0)) {
                return Err(OutputError::NotFinite { name: name.to_owned(), value });
            }
        }
        let components = components
            .iter()
            .map(|name| if name == "none" { Ok(None) } else { name.parse().map(Some) })
            .collect::<Result<Vec<Option<Component>>, _>>()?;
        for (index, component) in components.iter().enumerate() {
            if let Some(component) = component
                && components.iter().take(index).any(|other| *other == Some(*component))
            {
                return Err(OutputError::RepeatedComponent(component.label()));
            }
        }
        Ok(Self { components, max_linear, max_angular, frame_id: frame_id.to_owned() })
    }

    /// The velocity that a row of the action key commands, and whether it was too fast. One that is too fast is slowed
    /// down in its own direction.
    ///
    /// # Errors
    /// A value that is not finite, also in a dimension that is no velocity; a wrong number of values.
    pub fn message(&self, row: &[f64], now: Stamp) -> Result<(TwistStamped, bool), OutputError> {
        let (expected, found) = (self.components.len(), row.len());
        if expected != found {
            return Err(OutputError::Length { what: "values of the base", expected, found });
        }
        let label =
            |component: &Option<Component>| component.map_or("a dimension of the base", Component::label);
        check_finite(self.components.iter().map(label).zip(row.iter().copied()))?;
        let mut twist = Twist::default();
        for (component, &value) in self.components.iter().zip(row) {
            match component {
                Some(Component::LinearX) => twist.linear.x = value,
                Some(Component::LinearY) => twist.linear.y = value,
                Some(Component::LinearZ) => twist.linear.z = value,
                Some(Component::AngularX) => twist.angular.x = value,
                Some(Component::AngularY) => twist.angular.y = value,
                Some(Component::AngularZ) => twist.angular.z = value,
                None => {}
            }
        }
        let linear = slow_down(&mut twist.linear, self.max_linear);
        let angular = slow_down(&mut twist.angular, self.max_angular);
        Ok((TwistStamped { twist, ..self.zero(now) }, linear || angular))
    }

    /// Standing still.
    pub fn zero(&self, now: Stamp) -> TwistStamped {
        let header = Header { stamp: now.into(), frame_id: self.frame_id.clone() };
        TwistStamped { header, twist: Twist::default() }
    }
}

/// Shortens a vector to the limit; whether it was longer.
fn slow_down(vector: &mut Vector3, limit: Option<f64>) -> bool {
    let Some(limit) = limit else { return false };
    // Unlike the root of the sum of squares, this does not overflow for any finite vector that would matter.
    let length = vector.x.hypot(vector.y).hypot(vector.z);
    if length <= limit {
        return false;
    }
    let factor = limit / length;
    for part in [&mut vector.x, &mut vector.y, &mut vector.z] {
        *part *= factor;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros::msg;
    use proptest::prelude::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    fn trajectory(stamp: Stamp, times: &[u32]) -> JointTrajectory {
        let point = |&milliseconds: &u32| JointTrajectoryPoint {
            positions: vec![f64::from(milliseconds)],
            time_from_start: Duration::from_millis(milliseconds.into()).into(),
            ..JointTrajectoryPoint::default()
        };
        JointTrajectory {
            header: Header { stamp: stamp.into(), frame_id: "world".into() },
            joint_names: names(&["elbow"]),
            points: times.iter().map(point).collect(),
        }
    }

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn points_that_have_passed_are_left_out_and_the_others_keep_their_times() {
        let given = trajectory(Stamp(5 * SECOND), &[40, 80, 120, 160]);
        let left = upcoming(given.clone(), Stamp(5 * SECOND + 80_000_000)).unwrap();
        assert_eq!(left.header, given.header);
        assert_eq!(left.points, given.points[2..]);
        assert_eq!(upcoming(given.clone(), Stamp(0)).unwrap(), given);
    }

    #[test]
    fn a_trajectory_that_has_passed_is_none() {
        let given = trajectory(Stamp(5 * SECOND), &[40, 80]);
        assert_eq!(upcoming(given, Stamp(5 * SECOND + 80_000_000)), None);
        assert_eq!(upcoming(trajectory(Stamp(1), &[]), Stamp(0)), None);
    }

    #[test]
    fn a_trajectory_without_a_stamp_has_all_its_points_ahead() {
        let given = trajectory(Stamp::UNSET, &[40, 80]);
        assert_eq!(upcoming(given.clone(), Stamp(5 * SECOND)), Some(given));
    }

    proptest! {
        #[test]
        fn what_is_left_rises_strictly_and_lies_ahead(
            steps in prop::collection::vec(1u32..500, 0..50), stamp in 1i64..i64::from(i32::MAX), wait in 0i64..20,
        ) {
            let mut time = 0;
            let times: Vec<u32> = steps.iter().map(|step| { time += step; time }).collect();
            let earliest = Stamp(stamp + wait * SECOND);
            if let Some(left) = upcoming(trajectory(Stamp(stamp), &times), earliest) {
                let ahead: Vec<Stamp> = left.points.iter().map(|p| Stamp(stamp) + &p.time_from_start).collect();
                prop_assert!(ahead.iter().all(|time| *time > earliest));
                prop_assert!(ahead.windows(2).all(|pair| pair[0] < pair[1]));
                prop_assert!(ahead[0] > Stamp(stamp), "the first time is above zero");
            } else {
                prop_assert!(times.last().is_none_or(|&last| Stamp(stamp) + Duration::from_millis(last.into()) <= earliest));
            }
        }

        #[test]
        fn no_velocity_is_faster_than_allowed_nor_in_another_direction(
            row in prop::array::uniform3(-1e6f64..1e6), linear in 0.0f64..2.0, angular in 0.0f64..2.0,
        ) {
            let output = TwistOutput::new(
                &names(&["linear.x", "linear.y", "angular.z"]), 3, Some(linear), Some(angular), "",
            ).unwrap();
            let (message, clipped) = output.message(&row, Stamp(0)).unwrap();
            let Twist { linear: v, angular: w } = message.twist;
            prop_assert!(v.x.hypot(v.y) <= linear * (1.0 + 1e-12));
            prop_assert!(w.z.abs() <= angular * (1.0 + 1e-12));
            prop_assert!((v.x * row[1] - v.y * row[0]).abs() <= 1e-6 * (1.0 + row[0].hypot(row[1])));
            prop_assert!(w.z * row[2] >= 0.0);
            prop_assert_eq!(clipped, row[0].hypot(row[1]) > linear || row[2].abs() > angular);
        }
    }

    #[test]
    fn a_pose_is_held_by_a_trajectory_of_one_point_from_its_arrival_on() {
        let joints = names(&["elbow", "wrist"]);
        let held = pose_trajectory(&joints, &[0.5, -0.5], Duration::from_millis(20), "world").unwrap();
        assert_eq!(held.header, Header { frame_id: "world".into(), ..Header::default() });
        assert_eq!(held.joint_names, joints);
        assert_eq!(held.points.len(), 1);
        assert_eq!(held.points[0].positions, [0.5, -0.5]);
        assert_eq!(held.points[0].time_from_start, msg::Duration { sec: 0, nanosec: 20_000_000 });
        let at_once = pose_trajectory(&joints, &[0.5, -0.5], Duration::ZERO, "").unwrap();
        assert!(at_once.points[0].time_from_start.nanosec > 0);
    }

    #[test]
    fn no_output_lets_a_value_through_that_is_not_finite() {
        let joints = names(&["elbow", "wrist"]);
        let positions = PositionOutput::new(&names(&["wrist"]), &joints).unwrap();
        let twists = TwistOutput::new(&names(&["linear.x", "none"]), 2, None, None, "").unwrap();
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let expected = format!("expected finite values, found {value} for elbow; nothing is published");
            let row = [value, 0.0];
            let trajectory = pose_trajectory(&joints, &row, Duration::ZERO, "").unwrap_err();
            assert_eq!(trajectory.to_string(), expected);
            assert_eq!(positions.message(&row).unwrap_err().to_string(), expected);
            assert!(twists.message(&row, Stamp(0)).unwrap_err().to_string().contains("linear.x"));
            let unused = twists.message(&[0.0, value], Stamp(0)).unwrap_err();
            assert!(unused.to_string().contains("a dimension of the base"), "{unused}");
        }
    }

    #[test]
    fn no_output_takes_a_wrong_number_of_values() {
        let joints = names(&["elbow", "wrist"]);
        let positions = PositionOutput::new(&joints, &joints).unwrap();
        let twists = TwistOutput::new(&names(&["linear.x", "none"]), 2, None, None, "").unwrap();
        for error in [
            pose_trajectory(&joints, &[0.0], Duration::ZERO, "").unwrap_err(),
            positions.message(&[0.0]).unwrap_err(),
            twists.message(&[0.0], Stamp(0)).unwrap_err(),
        ] {
            assert!(matches!(error, OutputError::Length { expected: 2, found: 1, .. }), "{error}");
        }
        assert!(pose_trajectory(&[], &[], Duration::ZERO, "").is_err());
    }

    #[test]
    fn positions_come_in_the_order_of_the_controller() {
        let available = names(&["shoulder", "elbow", "wrist"]);
        let output = PositionOutput::new(&names(&["wrist", "shoulder"]), &available).unwrap();
        let message = output.message(&[1.0, 2.0, 3.0]).unwrap();
        assert_eq!(message.data, [3.0, 1.0]);
        let dimension = MultiArrayDimension { label: "joints".into(), size: 2, stride: 2 };
        assert_eq!(message.layout, MultiArrayLayout { dim: vec![dimension], data_offset: 0 });
        let error = PositionOutput::new(&names(&["tail", "elbow"]), &available).unwrap_err();
        assert_eq!(
            error.to_string(),
            "expected joints that the policy moves (shoulder, elbow, wrist), found tail"
        );
        assert!(PositionOutput::new(&[], &available).is_err());
    }

    #[test]
    fn each_dimension_of_the_base_goes_to_its_component() {
        let components = names(&["angular.z", "none", "linear.x", "linear.y"]);
        let output = TwistOutput::new(&components, 4, None, None, "base_link").unwrap();
        let (message, clipped) = output.message(&[1.0, 9.0, 2.0, 3.0], Stamp(7)).unwrap();
        assert!(!clipped);
        assert_eq!(message.header.frame_id, "base_link");
        assert_eq!(message.header.stamp, msg::Time { sec: 0, nanosec: 7 });
        assert_eq!(message.twist.linear, Vector3 { x: 2.0, y: 3.0, z: 0.0 });
        assert_eq!(message.twist.angular, Vector3 { x: 0.0, y: 0.0, z: 1.0 });
        assert_eq!(output.zero(Stamp(7)), TwistStamped { header: message.header, twist: Twist::default() });
    }

    #[test]
    fn a_base_that_is_too_fast_is_slowed_down_in_its_own_direction() {
        let components = names(&["linear.x", "linear.y", "angular.z"]);
        let output = TwistOutput::new(&components, 3, Some(0.5), Some(1.0), "").unwrap();
        let (message, clipped) = output.message(&[3.0, -4.0, -2.0], Stamp(0)).unwrap();
        assert!(clipped);
        let Twist { linear, angular } = message.twist;
        assert!((linear.x - 0.3).abs() < 1e-12 && (linear.y + 0.4).abs() < 1e-12, "{linear:?}");
        assert_eq!(angular.z, -1.0);
    }

    #[test]
    fn components_that_cannot_be_are_refused() {
        let new = |components: &[&str], dimensions, limit| {
            TwistOutput::new(&names(components), dimensions, limit, None, "").unwrap_err().to_string()
        };
        assert!(
            new(&["linear.x"], 3, None)
                .contains("expected 3 components, one per dimension of the key, found 1")
        );
        assert!(new(&["linear.w"], 1, None).contains("found \"linear.w\""));
        assert_eq!(new(&["linear.x", "linear.x"], 2, None), "expected linear.x once, found it twice");
        assert!(new(&["linear.x"], 1, Some(f64::NAN)).contains("greatest linear speed"));
        assert!(new(&["linear.x"], 1, Some(-1.0)).contains("found -1"));
    }
}
