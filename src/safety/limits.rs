//! Limits of joints, and what keeps commands within them.
//!
//! A limit may be given by a parameter, by a default for all joints, and by the robot's URDF. **The strictest of them
//! applies**: a parameter can tighten the URDF, never loosen it. The defaults of velocity and step are for the joints that
//! have no parameter of their own.
//!
//! | limit | of a command | counted as |
//! |---|---|---|
//! | position | clamped to [lower, upper] | position clip |
//! | velocity | moved from the pose before by at most velocity · elapsed time | velocity clip |
//! | step | moved from the pose before by at most the step | step clip |
//!
//! **Velocity and step win over position.** A joint that is found outside its positions is led back at the speed that the
//! other limits allow, never further out: a jump does more harm than a moment outside. Until it is back, each command counts as
//! a position clip. A joint that is inside stays inside.
//!
//! What is not a finite number is never clipped: the command is refused whole.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::urdf::{self, UrdfError};
use crate::ros::Stamp;
use crate::ros::msg::JointTrajectory;

/// Corrections of at most this many rad or m are made but not counted: rounding of the model's 32-bit actions.
const UNCOUNTED: f64 = 1e-6;

/// The limits of one joint; `None` for no limit. Radians for revolute joints, metres for prismatic ones.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct JointLimits {
    /// Least position.
    pub lower: Option<f64>,
    /// Greatest position.
    pub upper: Option<f64>,
    /// Greatest speed, per second.
    pub velocity: Option<f64>,
    /// Greatest change from one command to the next.
    pub step: Option<f64>,
}

impl JointLimits {
    /// The stricter of two limits in each respect.
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        fn pick(a: Option<f64>, b: Option<f64>, stricter: fn(f64, f64) -> f64) -> Option<f64> {
            match (a, b) {
                (Some(a), Some(b)) => Some(stricter(a, b)),
                (a, b) => a.or(b),
            }
        }
        Self {
            lower: pick(self.lower, other.lower, f64::max),
            upper: pick(self.upper, other.upper, f64::min),
            velocity: pick(self.velocity, other.velocity, f64::min),
            step: pick(self.step, other.step, f64::min),
        }
    }

    /// What is wrong with single limits, by field, and whether the positions leave room.
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        for (field, value) in [("lower", self.lower), ("upper", self.upper)] {
            if let Some(value) = value.filter(|value| !value.is_finite()) {
                faults.push((field, format!("expected a finite position, found {value}")));
            }
        }
        for (field, value) in [("velocity", self.velocity), ("step", self.step)] {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
                faults.push((field, format!("expected a finite number above 0, found {value}")));
            }
        }
        if let (Some(lower), Some(upper)) = (self.lower, self.upper)
            && lower > upper
        {
            faults.push(("lower", format!("expected at most the upper limit {upper}, found {lower}")));
        }
        faults
    }

    /// Leads `previous` to `target` as far as the limits allow; `None` where there is no pose before.
    fn reach(&self, previous: Option<(f64, Duration)>, target: f64) -> (f64, ClipCounts) {
        let mut clips = ClipCounts::default();
        let inside = self.lower.map_or(target, |lower| target.max(lower));
        let inside = self.upper.map_or(inside, |upper| inside.min(upper));
        clips.position = u64::from((inside - target).abs() > UNCOUNTED);
        let Some((previous, elapsed)) = previous else { return (inside, clips) };
        let allowed = [self.velocity.map(|velocity| velocity * elapsed.as_secs_f64()), self.step];
        let wanted = (inside - previous).abs();
        let exceeds = |limit: Option<f64>| limit.is_some_and(|limit| wanted > limit + UNCOUNTED);
        clips.velocity = u64::from(exceeds(allowed[0]));
        clips.step = u64::from(exceeds(allowed[1]));
        let reached =
            allowed.into_iter().flatten().fold(inside, |to, allowed| approach(previous, to, allowed));
        (reached, clips)
    }
}

/// The value nearest to `target` that is at most `allowed` away from `previous`.
fn approach(previous: f64, target: f64, allowed: f64) -> f64 {
    let distance = target - previous;
    if distance.abs() <= allowed {
        return target;
    }
    let mut reached = previous + allowed.copysign(distance);
    // The sum is rounded and may lie one representable number too far.
    while (reached - previous).abs() > allowed {
        reached = if distance > 0.0 { reached.next_down() } else { reached.next_up() };
    }
    reached
}

/// Limits as the parameters give them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LimitSettings {
    /// By joint.
    pub joints: BTreeMap<String, JointLimits>,
    /// Velocity of joints that have none in `joints`.
    pub default_velocity: Option<f64>,
    /// Step of joints that have none in `joints`.
    pub default_step: Option<f64>,
}

/// A limit that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitProblem {
    /// Parameter, or place in the URDF, e.g. `limits.elbow.lower` or `robot_description, joint elbow`.
    pub place: String,
    /// What was expected, what was found.
    pub message: String,
}

impl fmt::Display for LimitProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Why limits are refused. Those in force stay.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LimitError {
    /// Limits that cannot be, all of them; never empty.
    #[error(
        "the joint limits are refused, those in force stay: {}",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Problems(Vec<LimitProblem>),
    /// The robot description is no URDF of this robot.
    #[error("the robot description is refused, the limits in force stay: {0}")]
    Urdf(#[from] UrdfError),
}

/// Why a command is refused whole. It is as it was passed in, and nothing is counted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CommandError {
    /// A value is not a number or infinite.
    #[error(
        "expected finite positions, found {value} for the joint {joint} in {place}; the whole command is dropped"
    )]
    NotFinite {
        /// The joint.
        joint: String,
        /// `the command`, `the pose before` or `point N`.
        place: String,
        /// The value.
        value: f64,
    },
    /// There are not as many positions as joints.
    #[error("expected {expected} positions in {place}, found {found}")]
    Length {
        /// See [`CommandError::NotFinite`].
        place: String,
        /// Joints.
        expected: usize,
        /// Positions.
        found: usize,
    },
    /// A change is limited, but nobody knows from where.
    #[error(
        "the joint {joint} has a velocity or step limit: expected the pose before the command, found none"
    )]
    NoPrevious {
        /// The joint.
        joint: String,
    },
    /// The trajectory is for other joints.
    #[error("expected a trajectory of the joints {}, found {}", expected.join(", "), found.join(", "))]
    Joints {
        /// Joints of the limiter.
        expected: Vec<String>,
        /// Joints of the trajectory.
        found: Vec<String>,
    },
    /// A point has velocities, accelerations or efforts, which would contradict clipped positions.
    #[error("expected positions only, found more in point {0}")]
    MoreThanPositions(usize),
}

/// How often a joint's commands were clipped, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClipCounts {
    /// Commands outside the positions.
    pub position: u64,
    /// Commands that were too fast.
    pub velocity: u64,
    /// Commands that were too far from the one before.
    pub step: u64,
}

impl ClipCounts {
    /// All kinds together. A command that breaks two limits counts in both.
    pub fn total(&self) -> u64 {
        self.position + self.velocity + self.step
    }
}

impl std::ops::AddAssign for ClipCounts {
    fn add_assign(&mut self, other: Self) {
        self.position += other.position;
        self.velocity += other.velocity;
        self.step += other.step;
    }
}

/// What was clipped in one command or one trajectory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClipReport {
    /// Per joint, in the limiter's order.
    pub joints: Vec<ClipCounts>,
}

impl ClipReport {
    /// Whether anything was clipped.
    pub fn any(&self) -> bool {
        self.joints.iter().any(|counts| counts.total() > 0)
    }
}

/// The pose from which a command starts.
#[derive(Debug, Clone, Copy)]
pub struct Previous<'a> {
    /// The pose commanded before, or the measured one; in the limiter's order.
    pub pose: &'a [f64],
    /// Time from that pose to the command.
    pub elapsed: Duration,
}

/// The pose from which a trajectory starts.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// The commanded or measured pose; in the limiter's order.
    pub pose: &'a [f64],
    /// When it is, or was, the robot's; on the clock of the trajectory's header. For a header without a stamp, zero.
    pub time: Stamp,
}

/// Keeps commands for a fixed list of joints within their limits, and counts what it clips.
#[derive(Debug, Clone)]
pub struct Limiter {
    joints: Vec<String>,
    settings: LimitSettings,
    urdf: BTreeMap<String, JointLimits>,
    limits: Vec<JointLimits>,
    counts: Vec<ClipCounts>,
}

impl Limiter {
    /// A limiter for the joints, in the order in which poses will come.
    ///
    /// # Errors
    /// Every limit that cannot be, every name that is none of the joints.
    pub fn new(joints: Vec<String>, settings: LimitSettings) -> Result<Self, LimitError> {
        let limits = merge(&joints, &settings, &BTreeMap::new())?;
        let counts = vec![ClipCounts::default(); joints.len()];
        Ok(Self { joints, settings, urdf: BTreeMap::new(), limits, counts })
    }

    /// Replaces the limits of the parameters.
    ///
    /// # Errors
    /// As for [`Limiter::new`], and limits that leave no room beside the URDF's. Those in force stay.
    pub fn set_settings(&mut self, settings: LimitSettings) -> Result<(), LimitError> {
        self.limits = merge(&self.joints, &settings, &self.urdf)?;
        self.settings = settings;
        Ok(())
    }

    /// Takes the limits of the robot's URDF, instead of those of an earlier one. The largest text that is accepted takes some
    /// 100 ms: call it where it blocks nobody.
    ///
    /// Returns what deserves a line in the log: joints that the URDF does not have, and the like.
    ///
    /// # Errors
    /// A text that is no URDF, limits that cannot be. Those in force stay.
    pub fn set_urdf(&mut self, xml: &str) -> Result<Vec<String>, LimitError> {
        let description = urdf::read(xml, &self.joints)?;
        self.limits = merge(&self.joints, &self.settings, &description.limits)?;
        self.urdf = description.limits;
        Ok(description.notes)
    }

    /// The joints and the limits in force.
    pub fn limits(&self) -> impl Iterator<Item = (&str, JointLimits)> {
        self.joints.iter().map(String::as_str).zip(self.limits.iter().copied())
    }

    /// The joints whose positions nothing limits on at least one side. A continuous joint is one of them.
    pub fn joints_without_position_limits(&self) -> Vec<&str> {
        let open = |(_, limits): &(&str, JointLimits)| limits.lower.is_none() || limits.upper.is_none();
        self.limits().filter(open).map(|(joint, _)| joint).collect()
    }

    /// What was clipped since the start, by joint.
    pub fn counts(&self) -> impl Iterator<Item = (&str, ClipCounts)> {
        self.joints.iter().map(String::as_str).zip(self.counts.iter().copied())
    }

    /// Leads a pose within the limits. `previous` may be missing where no joint has a velocity or step limit.
    ///
    /// # Errors
    /// A value that is not finite, a wrong number of positions, a missing previous pose.
    pub fn apply(
        &mut self,
        previous: Option<Previous<'_>>,
        target: &mut [f64],
    ) -> Result<ClipReport, CommandError> {
        self.check("the command", target)?;
        self.check_previous(previous.map(|previous| previous.pose))?;
        let mut report = self.empty_report();
        let previous = previous.map(|previous| (previous.pose, previous.elapsed));
        self.clip(previous, target, &mut report);
        self.count(&report);
        Ok(report)
    }

    /// Leads a trajectory within the limits, each point by the one before it, the first one by `start`. What it clips is
    /// reported but not counted: the commands sampled from the same plan are.
    ///
    /// A first point that lies before `start.time` may not move at all where the velocity is limited: leave points that
    /// have passed out first.
    ///
    /// # Errors
    /// As for [`Limiter::apply`]; other joints than the limiter's, or the same in another order.
    pub fn apply_trajectory(
        &self,
        start: Option<Start<'_>>,
        trajectory: &mut JointTrajectory,
    ) -> Result<ClipReport, CommandError> {
        if trajectory.joint_names != self.joints {
            return Err(CommandError::Joints {
                expected: self.joints.clone(),
                found: trajectory.joint_names.clone(),
            });
        }
        for (index, point) in trajectory.points.iter().enumerate() {
            if !(point.velocities.is_empty() && point.accelerations.is_empty() && point.effort.is_empty()) {
                return Err(CommandError::MoreThanPositions(index));
            }
            self.check(&format!("point {index}"), &point.positions)?;
        }
        self.check_previous(start.map(|start| start.pose))?;
        let mut report = self.empty_report();
        let stamp = Stamp::from(&trajectory.header.stamp);
        let mut previous = start.map(|start| (start.pose, start.time));
        for point in &mut trajectory.points {
            let time = stamp + &point.time_from_start;
            let before = previous.map(|(pose, then)| (pose, time.elapsed_since(then)));
            self.clip(before, &mut point.positions, &mut report);
            previous = Some((&point.positions, time));
        }
        Ok(report)
    }

    fn empty_report(&self) -> ClipReport {
        ClipReport { joints: vec![ClipCounts::default(); self.joints.len()] }
    }

    fn clip(&self, previous: Option<(&[f64], Duration)>, target: &mut [f64], report: &mut ClipReport) {
        for (index, (limits, counts)) in self.limits.iter().zip(&mut report.joints).enumerate() {
            let before = previous.and_then(|(pose, elapsed)| Some((*pose.get(index)?, elapsed)));
            // Lengths were checked, so there is a position for each joint.
            let Some(position) = target.get_mut(index) else { return };
            let (reached, clips) = limits.reach(before, *position);
            *position = reached;
            *counts += clips;
        }
    }

    fn count(&mut self, report: &ClipReport) {
        self.counts.iter_mut().zip(&report.joints).for_each(|(counts, clips)| *counts += *clips);
    }

    fn check(&self, place: &str, pose: &[f64]) -> Result<(), CommandError> {
        let (expected, found) = (self.joints.len(), pose.len());
        if expected != found {
            return Err(CommandError::Length { place: place.to_owned(), expected, found });
        }
        match self.joints.iter().zip(pose).find(|(_, value)| !value.is_finite()) {
            Some((joint, &value)) => {
                Err(CommandError::NotFinite { joint: joint.clone(), place: place.to_owned(), value })
            }
            None => Ok(()),
        }
    }

    fn check_previous(&self, pose: Option<&[f64]>) -> Result<(), CommandError> {
        if let Some(pose) = pose {
            return self.check("the pose before", pose);
        }
        match self.limits().find(|(_, limits)| limits.velocity.is_some() || limits.step.is_some()) {
            Some((joint, _)) => Err(CommandError::NoPrevious { joint: joint.to_owned() }),
            None => Ok(()),
        }
    }
}

/// The limits that apply to each joint.
fn merge(
    joints: &[String],
    settings: &LimitSettings,
    urdf: &BTreeMap<String, JointLimits>,
) -> Result<Vec<JointLimits>, LimitError> {
    let mut problems = Vec::new();
    let mut report = |place: String, message: String| problems.push(LimitProblem { place, message });
    let defaults = JointLimits {
        velocity: settings.default_velocity,
        step: settings.default_step,
        ..JointLimits::default()
    };
    for (field, message) in defaults.faults() {
        report(format!("default_limits.{field}"), message);
    }
    for (joint, limits) in &settings.joints {
        if !joints.contains(joint) {
            let message = format!("the policy moves no such joint; it moves {}", joints.join(", "));
            report(format!("limits.{joint}"), message);
        }
        for (field, message) in limits.faults() {
            report(format!("limits.{joint}.{field}"), message);
        }
    }
    let limits = joints
        .iter()
        .map(|joint| {
            let mut given = settings.joints.get(joint).copied().unwrap_or_default();
            given.velocity = given.velocity.or(settings.default_velocity);
            given.step = given.step.or(settings.default_step);
            let Some(described) = urdf.get(joint).copied() else { return given };
            let both = given.stricter(described);
            // Faults of one source alone are told at that source.
            if let (Some(lower), Some(upper)) = (both.lower, both.upper)
                && lower > upper
                && given.faults().is_empty()
            {
                let message = format!(
                    "expected positions that the robot description allows ({} to {}), found {} to {}",
                    shown(described.lower, "-inf"),
                    shown(described.upper, "inf"),
                    shown(given.lower, "-inf"),
                    shown(given.upper, "inf")
                );
                report(format!("limits.{joint}"), message);
            }
            both
        })
        .collect();
    if problems.is_empty() { Ok(limits) } else { Err(LimitError::Problems(problems)) }
}

fn shown(limit: Option<f64>, none: &str) -> String {
    limit.map_or_else(|| none.to_owned(), |limit| limit.to_string())
}

#[cfg(test)]
mod tests;
