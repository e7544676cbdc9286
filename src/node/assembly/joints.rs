//! Joint messages to state vectors, by joint name.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ops::Range;

use ndarray::{Array2, ArrayView1};

use crate::ros::msg::JointState;

/// Most joints that one message may name.
pub const MAX_JOINTS: usize = 4096;

/// Most names that an error message lists.
const LISTED: usize = 32;

/// Why a joint message was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum JointError {
    /// A configured joint is not in the message.
    #[error(
        "expected all joints of `state`, missing {}; the message has {}. Let one publisher send all of them, or \
         correct the names in the configuration",
        listed(missing),
        listed(came)
    )]
    Missing {
        /// Configured joints that did not come.
        missing: Vec<String>,
        /// Joints that came.
        came: Vec<String>,
    },
    /// A configured joint is in the message twice.
    #[error("expected each joint once, found {joint:?} twice")]
    Duplicate {
        /// The joint.
        joint: String,
    },
    /// There are not as many positions as names.
    #[error("expected a position for each of the {names} joint names, found {positions}")]
    Lengths {
        /// Names in the message.
        names: usize,
        /// Positions in the message.
        positions: usize,
    },
    /// A position is not a number, infinite, or beyond the range of f32.
    #[error("expected a finite position of the joint {joint:?}, found {position}")]
    NotFinite {
        /// The joint.
        joint: String,
        /// Its position.
        position: f64,
    },
    /// The message names more than [`MAX_JOINTS`] joints.
    #[error("expected at most {MAX_JOINTS} joints, found {found}")]
    TooMany {
        /// Names in the message.
        found: usize,
    },
}

fn listed(names: &[String]) -> String {
    let mut text = names.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        text.push_str("no joints");
    } else if names.len() > LISTED {
        text.push_str(&format!(" and {} more", names.len() - LISTED));
    }
    text
}

/// Where the configured joints stand in a message, and in which state keys they go.
#[derive(Debug)]
pub(crate) struct JointMap {
    /// All configured joints, key after key.
    names: Vec<String>,
    /// State keys with their part of `names`.
    keys: Vec<(String, Range<usize>)>,
    /// Names of the last message and where in it each configured joint stands: publishers rarely change their order, and
    /// comparing names is cheaper than looking them up.
    resolved: Option<(Vec<String>, Vec<usize>)>,
    /// How often the list of names changed after the first message.
    pub changes: u64,
}

impl JointMap {
    pub fn new(state: &[(String, Vec<String>)]) -> Self {
        let mut names = Vec::new();
        let mut keys = Vec::new();
        for (key, joints) in state {
            let start = names.len();
            names.extend(joints.iter().cloned());
            keys.push((key.clone(), start..names.len()));
        }
        Self { names, keys, resolved: None, changes: 0 }
    }

    /// Positions of all configured joints, key after key.
    pub fn read(&mut self, message: &JointState) -> Result<Vec<f32>, JointError> {
        let (names, positions) = (message.name.len(), message.position.len());
        if names > MAX_JOINTS {
            return Err(JointError::TooMany { found: names });
        }
        if names != positions {
            return Err(JointError::Lengths { names, positions });
        }
        let indices = match &mut self.resolved {
            Some((known, indices)) if *known == message.name => indices,
            resolved => {
                let indices = resolve(&self.names, &message.name)?;
                self.changes += u64::from(resolved.is_some());
                &mut resolved.insert((message.name.clone(), indices)).1
            }
        };
        let joints = self.names.iter().zip(indices.iter());
        joints
            .map(|(name, &index)| {
                // The indices are those of a list of names of the same length.
                let position = message.position[index];
                let value = position as f32;
                let not_finite = || JointError::NotFinite { joint: name.clone(), position };
                value.is_finite().then_some(value).ok_or_else(not_finite)
            })
            .collect()
    }

    /// State per key, shape (samples, dimension), from positions as [`JointMap::read`] gives them, oldest first.
    pub fn state(&self, samples: &[&[f32]]) -> BTreeMap<String, Array2<f32>> {
        let array = |range: &Range<usize>| {
            let mut array = Array2::zeros((samples.len(), range.len()));
            for (mut row, sample) in array.rows_mut().into_iter().zip(samples) {
                row.assign(&ArrayView1::from(&sample[range.clone()]));
            }
            array
        };
        self.keys.iter().map(|(key, range)| (key.clone(), array(range))).collect()
    }
}

fn resolve(wanted: &[String], came: &[String]) -> Result<Vec<usize>, JointError> {
    let mut places: HashMap<&str, (usize, bool)> = HashMap::with_capacity(came.len());
    for (index, name) in came.iter().enumerate() {
        places.entry(name).and_modify(|(_, twice)| *twice = true).or_insert((index, false));
    }
    let place = |name: &String| places.get(name.as_str());
    let missing: Vec<String> = wanted.iter().filter(|name| place(name).is_none()).cloned().collect();
    if !missing.is_empty() {
        return Err(JointError::Missing { missing, came: came.to_vec() });
    }
    let indices = wanted.iter().filter_map(|name| Some((name, place(name)?)));
    indices
        .map(
            |(name, &(index, twice))| {
                if twice { Err(JointError::Duplicate { joint: name.clone() }) } else { Ok(index) }
            },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    fn message(joints: &[(&str, f64)]) -> JointState {
        JointState {
            name: joints.iter().map(|(name, _)| name.to_string()).collect(),
            position: joints.iter().map(|(_, position)| *position).collect(),
            ..JointState::default()
        }
    }

    fn map() -> JointMap {
        JointMap::new(&[("arm".into(), names(&["a", "b"])), ("base".into(), names(&["c"]))])
    }

    #[test]
    fn joints_are_found_by_name_in_any_order_and_among_others() {
        let mut map = map();
        for (joints, changes) in [
            ([("a", 1.0), ("b", 2.0), ("c", 3.0), ("x", f64::NAN)], 0),
            ([("a", 1.0), ("b", 2.0), ("c", 3.0), ("x", 9.0)], 0),
            ([("c", 3.0), ("x", 9.0), ("b", 2.0), ("a", 1.0)], 1),
            ([("c", 3.0), ("x", 9.0), ("b", 2.0), ("a", 1.0)], 1),
            ([("x", 9.0), ("c", 3.0), ("b", 2.0), ("a", 1.0)], 2),
        ] {
            assert_eq!(map.read(&message(&joints)), Ok(vec![1.0, 2.0, 3.0]));
            assert_eq!(map.changes, changes);
        }
    }

    #[test]
    fn samples_become_rows_of_their_keys() {
        let state = map().state(&[&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]]);
        assert_eq!(state["arm"], array![[1.0, 2.0], [4.0, 5.0]]);
        assert_eq!(state["base"], array![[3.0], [6.0]]);
    }

    #[test]
    fn a_missing_joint_is_told_along_with_what_came() {
        let error = map().read(&message(&[("a", 1.0), ("z", 2.0)])).unwrap_err();
        assert_eq!(error, JointError::Missing { missing: names(&["b", "c"]), came: names(&["a", "z"]) });
        let text = error.to_string();
        assert!(text.contains("missing b, c; the message has a, z."), "{text}");
        let text = map().read(&message(&[])).unwrap_err().to_string();
        assert!(text.contains("the message has no joints."), "{text}");
    }

    #[test]
    fn a_list_without_a_needed_joint_does_not_spoil_the_next_message() {
        let mut map = map();
        let good = message(&[("a", 1.0), ("b", 2.0), ("c", 3.0)]);
        map.read(&good).unwrap();
        map.read(&message(&[("a", 1.0)])).unwrap_err();
        assert_eq!(map.read(&good), Ok(vec![1.0, 2.0, 3.0]));
    }

    #[test]
    fn a_long_list_of_names_is_cut_in_the_message() {
        let joints: Vec<(String, f64)> = (0..MAX_JOINTS).map(|i| (format!("joint_{i}"), 0.0)).collect();
        let joints: Vec<(&str, f64)> = joints.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let text = map().read(&message(&joints)).unwrap_err().to_string();
        assert!(text.contains("and 4064 more") && text.len() < 1000, "{text}");
    }

    #[test]
    fn a_needed_joint_that_comes_twice_is_refused_and_another_one_ignored() {
        let error = map().read(&message(&[("a", 1.0), ("b", 2.0), ("c", 3.0), ("b", 2.0)])).unwrap_err();
        assert_eq!(error, JointError::Duplicate { joint: "b".into() });
        let joints = [("a", 1.0), ("b", 2.0), ("c", 3.0), ("x", 2.0), ("x", 2.0)];
        assert_eq!(map().read(&message(&joints)), Ok(vec![1.0, 2.0, 3.0]));
    }

    #[test]
    fn lists_of_different_lengths_are_refused() {
        for positions in [0, 2, 4] {
            let mut message = message(&[("a", 1.0), ("b", 2.0), ("c", 3.0)]);
            message.position.resize(positions, 0.0);
            assert_eq!(map().read(&message), Err(JointError::Lengths { names: 3, positions }));
        }
        let message = JointState { name: vec![String::new(); MAX_JOINTS + 1], ..JointState::default() };
        assert_eq!(map().read(&message), Err(JointError::TooMany { found: MAX_JOINTS + 1 }));
    }

    #[test]
    fn positions_that_are_no_finite_f32_are_refused() {
        for position in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e39] {
            let error = map().read(&message(&[("a", 1.0), ("b", position), ("c", 3.0)])).unwrap_err();
            assert!(matches!(&error, JointError::NotFinite { joint, .. } if joint == "b"), "{error}");
        }
    }
}
