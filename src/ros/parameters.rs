//! The rules of ROS 2 for parameters, as far as they do not depend on what the parameters are.

use super::srv::{ListParametersResult, SetParametersResult};

/// The depth that stands for any depth, in `ListParameters`.
pub const DEPTH_RECURSIVE: u64 = 0;

/// What stands between the parts of a name.
const SEPARATOR: char = '.';

impl SetParametersResult {
    /// The parameters are set.
    pub fn success() -> Self {
        Self { successful: true, reason: String::new() }
    }

    /// They are not, and why.
    pub fn refusal(reason: impl Into<String>) -> Self {
        Self { successful: false, reason: reason.into() }
    }
}

/// The names that `ListParameters` asks for, in the order in which they come, with the groups they stand in.
///
/// A name counts where it is one of `prefixes`, or below one by at most `depth` parts; without prefixes, where it has at
/// most `depth` parts. The rules of `rclcpp`.
pub fn list<'a>(
    names: impl IntoIterator<Item = &'a str>,
    prefixes: &[String],
    depth: u64,
) -> ListParametersResult {
    let shallow = |rest: &str| {
        let separators = rest.matches(SEPARATOR).count() as u64;
        depth == DEPTH_RECURSIVE || separators < depth
    };
    let below = |name: &str, prefix: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.strip_prefix(SEPARATOR).is_some_and(shallow))
    };
    let mut result = ListParametersResult::default();
    for name in names {
        let asked_for = match prefixes {
            [] => shallow(name),
            prefixes => prefixes.iter().any(|prefix| below(name, prefix)),
        };
        if !asked_for {
            continue;
        }
        result.names.push(name.to_owned());
        if let Some((group, _)) = name.rsplit_once(SEPARATOR)
            && !result.prefixes.iter().any(|known| known == group)
        {
            result.prefixes.push(group.to_owned());
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 6] = [
        "cameras.front.topic",
        "cameras.front.transport",
        "cameras.wrist.topic",
        "camera_rate",
        "rate",
        "a.b",
    ];

    fn listed(prefixes: &[&str], depth: u64) -> (Vec<String>, Vec<String>) {
        let prefixes: Vec<String> = prefixes.iter().map(|&prefix| prefix.to_owned()).collect();
        let ListParametersResult { names, prefixes } = list(NAMES, &prefixes, depth);
        (names, prefixes)
    }

    #[test]
    fn everything_is_listed_without_prefixes_and_depth() {
        let (names, prefixes) = listed(&[], DEPTH_RECURSIVE);
        assert_eq!(names, NAMES);
        assert_eq!(prefixes, ["cameras.front", "cameras.wrist", "a"]);
    }

    #[test]
    fn depth_counts_the_parts_of_a_name() {
        assert_eq!(listed(&[], 1).0, ["camera_rate", "rate"]);
        assert_eq!(listed(&[], 2).0, ["camera_rate", "rate", "a.b"]);
        assert_eq!(listed(&[], 3).0, NAMES);
        assert_eq!(listed(&[], u64::MAX).0, NAMES);
    }

    #[test]
    fn prefixes_choose_groups_and_depth_counts_from_them() {
        let front = ["cameras.front.topic", "cameras.front.transport"];
        assert_eq!(
            listed(&["cameras.front"], 1),
            (front.map(str::to_owned).to_vec(), vec!["cameras.front".to_owned()])
        );
        assert_eq!(listed(&["cameras"], 1).0, [""; 0]);
        assert_eq!(listed(&["cameras"], 2).0, NAMES[..3]);
        assert_eq!(listed(&["cameras"], DEPTH_RECURSIVE).0, NAMES[..3]);
        assert_eq!(listed(&["rate", "a"], 1).0, ["rate", "a.b"]);
        // A group ends with a whole part.
        assert_eq!(listed(&["camera"], DEPTH_RECURSIVE).0, [""; 0]);
        assert_eq!(listed(&["rate"], 1), (vec!["rate".to_owned()], vec![]));
    }
}
