//! The quality of service that a topic's publishers offered, as bags keep it: YAML, as text in bags up to ROS 2 Iron and
//! in MCAP files, as YAML proper with names for numbers from Jazzy on.

use serde::{Deserialize, de::IgnoredAny};
use serde_yaml::Value;

/// What is of use of one publisher's quality of service. Settings that the bag does not name, or names in a way that is
/// not known, are `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OfferedQos {
    /// Whether lost messages are sent again.
    pub reliable: Option<bool>,
    /// Whether late subscribers get the last messages.
    pub transient_local: Option<bool>,
    /// How many messages are kept; `None` also where all are.
    pub depth: Option<u64>,
}

/// How `metadata.yaml` and MCAP files write the profiles of a topic.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Profiles {
    Text(String),
    List(Vec<Value>),
    Other(IgnoredAny),
}

impl Default for Profiles {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

/// Most profiles of one topic.
const PROFILES: usize = 1024;

impl Profiles {
    /// The profiles; none where they are not written in a known way.
    pub fn parse(&self) -> Vec<OfferedQos> {
        match self {
            Self::Text(text) => {
                serde_yaml::from_str::<Vec<Value>>(text).as_deref().map(profiles).unwrap_or_default()
            }
            Self::List(list) => profiles(list),
            Self::Other(_) => Vec::new(),
        }
    }
}

fn profiles(list: &[Value]) -> Vec<OfferedQos> {
    list.iter().take(PROFILES).map(profile).collect()
}

fn profile(value: &Value) -> OfferedQos {
    // The numbers are those of the `rmw` enums: 1 reliable, 2 best effort; 1 transient local, 2 volatile; 1 keep last.
    let choice = |key: &str, yes: &str, no: &str| match value.get(key)? {
        Value::String(name) if name == yes => Some(true),
        Value::String(name) if name == no => Some(false),
        number => match number.as_u64()? {
            1 => Some(true),
            2 => Some(false),
            _ => None,
        },
    };
    let keeps_last = choice("history", "keep_last", "keep_all") != Some(false);
    OfferedQos {
        reliable: choice("reliability", "reliable", "best_effort"),
        transient_local: choice("durability", "transient_local", "volatile"),
        depth: value.get("depth").and_then(Value::as_u64).filter(|_| keeps_last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_text_and_names_in_a_list_say_the_same() {
        let text =
            "- history: 1\n  depth: 10\n  reliability: 1\n  durability: 2\n  deadline: {sec: 1, nsec: 0}\n";
        let list = "- history: keep_last\n  depth: 10\n  reliability: reliable\n  durability: volatile\n";
        let expected = [OfferedQos { reliable: Some(true), transient_local: Some(false), depth: Some(10) }];
        assert_eq!(Profiles::Text(text.to_owned()).parse(), expected);
        assert_eq!(serde_yaml::from_str::<Profiles>(list).unwrap().parse(), expected);
    }

    #[test]
    fn unknown_settings_are_left_open() {
        for text in ["", "nonsense", "{a: 1}", "[1, {history: 9, reliability: unknown, durability: 0}]"] {
            let profiles = Profiles::Text(text.to_owned()).parse();
            assert!(profiles.iter().all(|profile| *profile == OfferedQos::default()), "{text}");
        }
        assert_eq!(serde_yaml::from_str::<Profiles>("7").unwrap().parse(), []);
    }
}
