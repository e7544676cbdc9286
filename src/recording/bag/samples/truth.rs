//! What the robot did from an observation on.
//!
//! Row k of a chunk is the action of the time stamp + k · `step_time`, whose effect is seen one step later (see
//! [`trajectory`](crate::node::trajectory)). So there are two times at which a recording may be asked, and it depends on
//! what it holds which is right:
//!
//! | recorded | row k is | at |
//! |---|---|---|
//! | measured positions | the position on the line between the neighbouring samples | stamp + (k + 1) · `step_time` |
//! | a trajectory of several points, which says when a position is *reached* | the newest trajectory's position | stamp + (k + 1) · `step_time` |
//! | set points: single-point trajectories, joint commands, position arrays, velocities | the newest command | stamp + k · `step_time` |

use std::{collections::BTreeSet, time::Duration};

use ndarray::Array2;

use super::{
    options::{SamplesOptions, TruthSource},
    series::{Entry, Series},
};
use crate::{
    motion::chunk::row_time,
    node::{assembly::JointMap, config::BaseConfig},
    recording::{
        Truth,
        bag::{DecodeError, RawMessage, is_type},
    },
    ros::{
        Stamp,
        msg::{
            Float64MultiArray, Header, JointState, JointTrajectory, Message, Twist, TwistStamped, Vector3,
        },
    },
};

/// A stamp that lies further back means that the clock was set back.
const CLOCK_JUMP: Duration = Duration::from_secs(2);

/// Most points that one trajectory may have.
const POINTS: usize = 65_536;

/// Why a message says nothing of the truth.
#[derive(Debug, thiserror::Error)]
pub(super) enum TruthFault {
    #[error("{0}")]
    Decode(#[from] DecodeError),
    #[error("{0}")]
    Refused(String),
}

/// Recorded actions by time, from as many sources as it takes.
pub(super) struct Truths {
    sources: Vec<Source>,
    keys: Vec<Key>,
    step_time: Duration,
    horizon: usize,
    max_gap: Duration,
}

/// An action key.
struct Key {
    name: String,
    dimension: usize,
    /// Its source and the first column there; None for a key that no source tells.
    place: Option<(usize, usize)>,
}

struct Source {
    topic: String,
    kind: Kind,
    series: Series,
}

enum Kind {
    Measured(JointMap),
    /// Joints of a position array in its order.
    Commanded(JointMap, Vec<String>),
    Base(Vec<Component>),
}

#[derive(Clone, Copy)]
struct Component {
    angular: bool,
    axis: usize,
}

impl Truths {
    /// The sources for some options; `joint_states` and `resolve` give the fully qualified names of topics.
    pub fn new(
        options: &SamplesOptions,
        joint_states: &str,
        command: Option<&str>,
        base: Option<&str>,
    ) -> Self {
        let config = &options.config;
        let mut sources = Vec::new();
        let key = |(name, dimension): &(String, usize)| Key {
            name: name.clone(),
            dimension: *dimension,
            place: None,
        };
        let mut keys: Vec<Key> = options.action.iter().map(key).collect();
        if let (Some(topic), Some(BaseConfig { key: base_key, components, .. })) =
            (base, &config.commands.base)
        {
            let components: Option<Vec<Component>> = components.iter().map(|name| component(name)).collect();
            let fits = |key: &&mut Key| {
                key.name == *base_key && components.as_ref().is_some_and(|found| found.len() == key.dimension)
            };
            let key = keys.iter_mut().find(fits);
            if let (Some(key), Some(components)) = (key, components) {
                key.place = Some((sources.len(), 0));
                let kind = Kind::Base(components);
                sources.push(Source { topic: topic.to_owned(), kind, series: Series::default() });
            }
        }
        let mut joints = Vec::new();
        let mut column = 0;
        for key in keys.iter_mut().filter(|key| key.place.is_none()) {
            let names = config.action_joints(&key.name);
            if names.len() == key.dimension && !names.is_empty() && options.truth != TruthSource::Nothing {
                key.place = Some((sources.len(), column));
                column += names.len();
                joints.push((key.name.clone(), names.to_vec()));
            }
        }
        if !joints.is_empty() {
            let map = JointMap::new(&joints);
            let order = config.commands.positions_joints.clone();
            let order = order.unwrap_or_else(|| joints.into_iter().flat_map(|(_, joints)| joints).collect());
            let (topic, kind) = match (&options.truth, command) {
                (TruthSource::Topic(_), Some(topic)) => (topic, Kind::Commanded(map, order)),
                _ => (joint_states, Kind::Measured(map)),
            };
            sources.push(Source { topic: topic.to_owned(), kind, series: Series::default() });
        }
        Self {
            sources,
            keys,
            step_time: config.step_time,
            horizon: options.horizon,
            max_gap: options.max_gap,
        }
    }

    /// Topics that are needed.
    pub fn topics(&self) -> BTreeSet<String> {
        self.sources.iter().map(|source| source.topic.clone()).collect()
    }

    /// Action keys of which nothing is recorded.
    pub fn without(&self) -> Vec<String> {
        self.keys.iter().filter(|key| key.place.is_none()).map(|key| key.name.clone()).collect()
    }

    /// Takes a message of any topic.
    pub fn take(&mut self, received: Stamp, message: &RawMessage) -> Result<(), TruthFault> {
        for source in self.sources.iter_mut().filter(|source| source.topic == message.topic()) {
            source.take(received, message)?;
        }
        Ok(())
    }

    /// Whether everything that the truth of an observation needs was recorded, `now` being the time of the recording.
    pub fn complete(&self, observation: Stamp, now: Stamp) -> bool {
        let last = row_time(observation, self.step_time, self.horizon.saturating_sub(1));
        now > last + self.max_gap
            || self.sources.iter().all(|source| source.series.newest().is_some_and(|newest| newest > last))
    }

    /// The truth from an observation on, as far as it is known at `now`.
    pub fn of(&self, observation: Stamp, now: Stamp) -> Truth {
        let rows: Vec<Vec<Vec<f32>>> =
            self.sources.iter().map(|source| self.rows(source, observation, now)).collect();
        let groups = self.keys.iter().filter_map(|key| {
            let (source, column) = key.place?;
            let rows = rows.get(source)?;
            let values: Vec<f32> =
                rows.iter().flat_map(|row| row.iter().skip(column).take(key.dimension).copied()).collect();
            Some((key.name.clone(), Array2::from_shape_vec((rows.len(), key.dimension), values).ok()?))
        });
        Truth { groups: groups.collect() }
    }

    fn rows(&self, source: &Source, observation: Stamp, now: Stamp) -> Vec<Vec<f32>> {
        let row = |step: usize| {
            let reach = row_time(observation, self.step_time, step);
            let give = match step.checked_sub(1) {
                Some(before) => row_time(observation, self.step_time, before),
                None => observation,
            };
            match source.kind {
                Kind::Measured(_) => source.series.between(reach, self.max_gap),
                // Whether a command still held behind the end of the recording, nobody knows.
                Kind::Commanded(..) | Kind::Base(_) if give > now => None,
                Kind::Commanded(..) | Kind::Base(_) => source.series.commanded(give, reach, self.max_gap),
            }
        };
        (0..self.horizon).map_while(row).collect()
    }

    /// Forgets what no observation from `oldest` on needs.
    pub fn forget_before(&mut self, oldest: Stamp) {
        let oldest = oldest - self.max_gap;
        self.sources.iter_mut().for_each(|source| source.series.forget_before(oldest));
    }

    /// Forgets everything: the recording's clock was set back.
    pub fn clear(&mut self) {
        self.sources.iter_mut().for_each(|source| source.series.clear());
    }
}

/// `linear.x` to `angular.z`; None for a dimension that is no velocity.
fn component(name: &str) -> Option<Component> {
    let (part, axis) = name.split_once('.')?;
    let axis = ["x", "y", "z"].iter().position(|known| *known == axis)?;
    match part {
        "linear" => Some(Component { angular: false, axis }),
        "angular" => Some(Component { angular: true, axis }),
        _ => None,
    }
}

fn stamp_of(header: &Header, received: Stamp) -> Stamp {
    match Stamp::from(&header.stamp) {
        Stamp::UNSET => received,
        stamp => stamp,
    }
}

impl Source {
    fn take(&mut self, received: Stamp, message: &RawMessage) -> Result<(), TruthFault> {
        let refuse = |error: &dyn std::fmt::Display| TruthFault::Refused(error.to_string());
        let kind = &message.channel.kind;
        let (stamp, entry) = match &mut self.kind {
            Kind::Measured(map) => {
                let state: JointState = message.decode()?;
                let positions = map.read(&state).map_err(|error| refuse(&error))?;
                (stamp_of(&state.header, received), Entry::Point(positions))
            }
            Kind::Commanded(map, _) if is_type::<JointTrajectory>(kind) => {
                let trajectory: JointTrajectory = message.decode()?;
                let start = stamp_of(&trajectory.header, received);
                (start, path(map, trajectory, start).map_err(TruthFault::Refused)?)
            }
            Kind::Commanded(map, names) if is_type::<Float64MultiArray>(kind) => {
                let array: Float64MultiArray = message.decode()?;
                let state = JointState { name: names.clone(), position: array.data, ..JointState::default() };
                (received, Entry::Point(map.read(&state).map_err(|error| refuse(&error))?))
            }
            Kind::Commanded(map, _) => {
                let state: JointState = message.decode()?;
                let positions = map.read(&state).map_err(|error| refuse(&error))?;
                (stamp_of(&state.header, received), Entry::Point(positions))
            }
            Kind::Base(components) => {
                let (stamp, twist) = if is_type::<Twist>(kind) {
                    (received, message.decode::<Twist>()?)
                } else {
                    let TwistStamped { header, twist } = message.decode()?;
                    (stamp_of(&header, received), twist)
                };
                let axis =
                    |vector: &Vector3, axis| [vector.x, vector.y, vector.z].get(axis).copied().unwrap_or(0.0);
                let value = |part: &Component| {
                    axis(if part.angular { &twist.angular } else { &twist.linear }, part.axis) as f32
                };
                let values: Vec<f32> = components.iter().map(value).collect();
                if values.iter().any(|value| !value.is_finite()) {
                    return Err(TruthFault::Refused(format!("expected finite velocities, found {values:?}")));
                }
                (stamp, Entry::Point(values))
            }
        };
        self.series.insert(stamp, entry, CLOCK_JUMP);
        Ok(())
    }
}

/// A trajectory as a path; with a single point, as a set point.
fn path(map: &mut JointMap, trajectory: JointTrajectory, start: Stamp) -> Result<Entry, String> {
    let JointTrajectory { joint_names, points, .. } = trajectory;
    if points.is_empty() || points.len() > POINTS {
        return Err(format!("expected 1 to {POINTS} points, found {}", points.len()));
    }
    let mut state = JointState { name: joint_names, ..JointState::default() };
    let mut path: Vec<(Stamp, Vec<f32>)> = Vec::with_capacity(points.len());
    for point in points {
        state.position = point.positions;
        let positions = map.read(&state).map_err(|error| error.to_string())?;
        let time = start + &point.time_from_start;
        if path.last().is_some_and(|(last, _)| *last >= time) {
            return Err("expected points whose times rise".to_owned());
        }
        path.push((time, positions));
    }
    match path.len() {
        1 => path.pop().map(|(_, point)| Entry::Point(point)).ok_or_else(String::new),
        _ => Ok(Entry::Path(path)),
    }
}

/// Types of a topic of recorded commands.
pub(super) fn is_command(kind: &str) -> bool {
    is_type::<JointTrajectory>(kind) || is_type::<Float64MultiArray>(kind) || is_type::<JointState>(kind)
}

/// Types of a topic of recorded base velocities.
pub(super) fn is_velocity(kind: &str) -> bool {
    is_type::<Twist>(kind) || is_type::<TwistStamped>(kind)
}

/// The full name of a type.
pub(super) fn type_name<M: Message>() -> String {
    format!("{}/msg/{}", M::PACKAGE, M::NAME)
}
