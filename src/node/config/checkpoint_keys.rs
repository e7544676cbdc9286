//! The configuration against the keys of the checkpoint's embodiment.

use super::NodeConfig;
use super::problem::{ConfigError, Problem};

/// What an embodiment of the checkpoint reads and writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointKeys {
    /// Video keys.
    pub video: Vec<String>,
    /// State keys with their dimensions.
    pub state: Vec<(String, usize)>,
    /// Action keys with their dimensions.
    pub action: Vec<(String, usize)>,
}

impl NodeConfig {
    /// Checks that cameras, state and action keys are those of the checkpoint's embodiment, each with as many joints as
    /// it has dimensions.
    ///
    /// An action key may be left without joints (it is then in the action chunk only); every other key must be there, and
    /// none that the checkpoint does not know.
    ///
    /// # Errors
    /// Every missing or unknown key, every wrong number of joints, every joint that two action keys would move.
    pub fn check_against(&self, keys: &CheckpointKeys) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        let mut compare =
            |group: &str, field: &str, expected: &[&str], given: &[&String], all_needed: bool| {
                let known = expected.join(", ");
                for key in given.iter().filter(|key| !expected.contains(&key.as_str())) {
                    let message = format!(
                        "the checkpoint's embodiment {} has no such key; it has {}",
                        self.embodiment,
                        if known.is_empty() { "none" } else { &known }
                    );
                    problems.push(self.parameters.problem(&format!("{group}.{key}.{field}"), message));
                }
                for key in expected.iter().filter(|key| all_needed && !given.iter().any(|name| name == *key))
                {
                    let message =
                        format!("required by the checkpoint's embodiment {}, but missing", self.embodiment);
                    problems.push(self.parameters.problem(&format!("{group}.{key}.{field}"), message));
                }
            };
        let video: Vec<&str> = keys.video.iter().map(String::as_str).collect();
        compare("cameras", "topic", &video, &self.cameras.keys().collect::<Vec<_>>(), true);
        compare("state", "joints", &names(&keys.state), &self.state.keys().collect::<Vec<_>>(), true);
        compare("action", "joints", &names(&keys.action), &self.action.keys().collect::<Vec<_>>(), false);

        for (key, dimension) in &keys.state {
            if let Some(joints) = self.state.get(key) {
                let name = format!("state.{key}.joints");
                problems.extend(self.wrong_number(&name, joints, *dimension, ""));
            }
        }
        for (i, (key, dimension)) in keys.action.iter().enumerate() {
            let joints = self.action_joints(key);
            let name = format!("action.{key}.joints");
            if self.action.contains_key(key) {
                if !joints.is_empty() {
                    problems.extend(self.wrong_number(&name, joints, *dimension, ""));
                }
            } else if keys.state.iter().all(|(state_key, state_dimension)| {
                // A state key with a wrong number of joints was reported above.
                state_key != key || (joints.len() == *state_dimension && state_dimension != dimension)
            }) && !joints.is_empty()
            {
                let hint = format!("; set {name}, or to [] to leave the key out of the joint trajectory");
                problems.extend(self.wrong_number(&name, joints, *dimension, &hint));
            }
            for (other, _) in &keys.action[..i] {
                // Two given lists were compared when the configuration was built.
                let both_given = self.action.contains_key(key) && self.action.contains_key(other);
                let shared = joints.iter().find(|joint| self.action_joints(other).contains(joint));
                if let (false, Some(joint)) = (both_given, shared) {
                    let message = format!("the joint {joint:?} is already moved by the action key {other}");
                    problems.push(self.parameters.problem(&name, message));
                }
            }
        }
        ConfigError::unless_empty(problems)
    }

    fn wrong_number(&self, name: &str, joints: &[String], dimension: usize, hint: &str) -> Option<Problem> {
        (joints.len() != dimension).then(|| {
            let found = joints.len();
            let message = format!("expected {dimension} joints as in the checkpoint, found {found}{hint}");
            self.parameters.problem(name, message)
        })
    }
}

fn names(keys: &[(String, usize)]) -> Vec<&str> {
    keys.iter().map(|(key, _)| key.as_str()).collect()
}
