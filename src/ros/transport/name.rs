//! Names: validation, and expansion of relative and private names as `rcl` does it.
//!
//! | written | node `arm_policy` in namespace `/left` | rule |
//! |---|---|---|
//! | `/joint_states` | `/joint_states` | absolute: kept |
//! | `joint_states` | `/left/joint_states` | relative: under the namespace |
//! | `~/status` | `/left/arm_policy/status` | private: under the node |
//!
//! Then the remappings: one whose left side expands to the same name replaces it by its right side, expanded.

use super::error::RosError;

/// Longest fully qualified topic name that every ROS middleware takes, in bytes.
const MAX_TOPIC_NAME: usize = 247;

/// The fully qualified name of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeName {
    /// `/` or `/a/b`, never with a slash at the end.
    namespace: String,
    base: String,
    /// Fully qualified names with what stands in their place.
    remaps: Vec<(String, String)>,
}

impl NodeName {
    /// A node called `base` in `namespace`; an empty namespace is the root, a missing leading slash is added.
    ///
    /// # Errors
    /// [`RosError::Name`] names the part that breaks the rules.
    pub fn new(namespace: &str, base: &str) -> Result<Self, RosError> {
        check_token(base).map_err(|problem| invalid("node name", base, problem))?;
        let relative = namespace.strip_prefix('/').unwrap_or(namespace);
        if !relative.is_empty() {
            check_tokens(relative).map_err(|problem| invalid("namespace", namespace, problem))?;
        }
        Ok(Self { namespace: format!("/{relative}"), base: base.to_owned(), remaps: Vec::new() })
    }

    /// The same node with remappings of topics and services, `from` and `to`, each written as any name.
    ///
    /// # Errors
    /// [`RosError::Name`] names the side that breaks the rules.
    pub fn with_remaps(mut self, remaps: &[(String, String)]) -> Result<Self, RosError> {
        self.remaps = remaps
            .iter()
            .map(|(from, to)| Ok((self.expand(from)?, self.expand(to)?)))
            .collect::<Result<_, RosError>>()?;
        Ok(self)
    }

    /// The namespace, with a leading slash.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name without its namespace.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Namespace and name, e.g. `/left/arm_policy`.
    pub fn qualified(&self) -> String {
        format!("{}/{}", self.namespace.trim_end_matches('/'), self.base)
    }

    /// The fully qualified form of a topic or service name, remapped.
    ///
    /// # Errors
    /// [`RosError::Name`] names the topic and the rule it breaks.
    pub fn resolve(&self, name: &str) -> Result<String, RosError> {
        let expanded = self.expand(name)?;
        let remap = self.remaps.iter().find(|(from, _)| *from == expanded);
        Ok(remap.map_or(expanded, |(_, to)| to.clone()))
    }

    /// The fully qualified name that [`NodeName::resolve`] turns into `resolved`, for a client library that applies the same
    /// remappings by itself.
    #[cfg(any(feature = "r2r", test))]
    pub(super) fn before_remapping<'a>(&'a self, resolved: &'a str) -> &'a str {
        if !self.remaps.iter().any(|(from, _)| from == resolved) {
            return resolved; // goes through unchanged
        }
        self.remaps.iter().find(|(_, to)| to == resolved).map_or(resolved, |(from, _)| from)
    }

    fn expand(&self, name: &str) -> Result<String, RosError> {
        let fail = |problem: String| invalid("topic name", name, problem);
        let resolved = if let Some(absolute) = name.strip_prefix('/') {
            check_tokens(absolute).map_err(fail)?;
            name.to_owned()
        } else if let Some(private) = name.strip_prefix('~') {
            let private = private
                .strip_prefix('/')
                .ok_or_else(|| fail("a slash must follow the tilde, as in ~/status".to_owned()))?;
            check_tokens(private).map_err(fail)?;
            format!("{}/{private}", self.qualified())
        } else {
            check_tokens(name).map_err(fail)?;
            format!("{}/{name}", self.namespace.trim_end_matches('/'))
        };
        if resolved.len() > MAX_TOPIC_NAME {
            return Err(fail(format!(
                "{} bytes long in full, at most {MAX_TOPIC_NAME} allowed",
                resolved.len()
            )));
        }
        Ok(resolved)
    }
}

fn invalid(what: &'static str, name: &str, problem: String) -> RosError {
    RosError::Name { what, name: name.to_owned(), problem }
}

/// Checks tokens separated by single slashes, with no slash at either end.
fn check_tokens(path: &str) -> Result<(), String> {
    path.split('/').try_for_each(check_token)
}

fn check_token(token: &str) -> Result<(), String> {
    let Some(first) = token.chars().next() else {
        return Err("a part between slashes is empty".to_owned());
    };
    if let Some(bad) = token.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '_') {
        return Err(format!("character {bad:?}, only letters, digits and _ are allowed"));
    }
    if first.is_ascii_digit() {
        return Err(format!("{token:?} begins with a digit"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(namespace: &str) -> NodeName {
        NodeName::new(namespace, "arm_policy").unwrap()
    }

    #[test]
    fn names_expand_as_in_rcl() {
        let (root, left) = (node(""), node("/left"));
        assert_eq!(root.qualified(), "/arm_policy");
        assert_eq!(node("a/b"), node("/a/b"));
        for (name, in_root, in_left) in [
            ("/joint_states", "/joint_states", "/joint_states"),
            ("joint_states", "/joint_states", "/left/joint_states"),
            ("front/image_raw", "/front/image_raw", "/left/front/image_raw"),
            ("~/status", "/arm_policy/status", "/left/arm_policy/status"),
        ] {
            assert_eq!(root.resolve(name).unwrap(), in_root);
            assert_eq!(left.resolve(name).unwrap(), in_left);
        }
    }

    #[test]
    fn a_remapping_replaces_the_name_it_stands_for_however_it_is_written() {
        let remaps = [
            ("joint_states", "/robot/joint_states"),
            ("~/status", "status"),
            ("/front/image_raw", "~/front"),
            ("~/status", "/never"),
        ]
        .map(|(from, to)| (from.to_owned(), to.to_owned()));
        let left = node("/left").with_remaps(&remaps).unwrap();
        for (name, expected) in [
            ("joint_states", "/robot/joint_states"),
            ("/left/joint_states", "/robot/joint_states"),
            ("/joint_states", "/joint_states"),
            ("~/status", "/left/status"),
            ("arm_policy/status", "/left/status"),
            // Once: what a remapping yields is not remapped again.
            ("/front/image_raw", "/left/arm_policy/front"),
            ("status", "/left/status"),
        ] {
            assert_eq!(left.resolve(name).unwrap(), expected, "{name}");
        }
        let bad = [("a".to_owned(), "b c".to_owned())];
        let error = node("/").with_remaps(&bad).unwrap_err().to_string();
        assert!(error.contains("\"b c\""), "{error}");
    }

    #[test]
    fn a_remapped_name_can_be_traced_back_where_names_are_swapped() {
        let remaps = [("front", "wrist"), ("wrist", "front"), ("state", "joint_states")]
            .map(|(from, to)| (from.to_owned(), to.to_owned()));
        let node = node("/").with_remaps(&remaps).unwrap();
        for name in ["front", "wrist", "state", "joint_states", "other"] {
            let resolved = node.resolve(name).unwrap();
            assert_eq!(node.resolve(node.before_remapping(&resolved)).unwrap(), resolved, "{name}");
        }
    }

    #[test]
    fn a_bad_name_is_refused_with_the_name_and_the_reason() {
        for (name, reason) in [
            ("", "empty"),
            ("/", "empty"),
            ("a//b", "empty"),
            ("/a/", "empty"),
            ("~", "tilde"),
            ("~status", "tilde"),
            ("a/~/b", "'~'"),
            ("front camera", "' '"),
            ("kamera_ä", "'ä'"),
            ("front/0raw", "\"0raw\" begins with a digit"),
        ] {
            let error = node("/").resolve(name).unwrap_err().to_string();
            assert!(error.contains(&format!("{name:?}")) && error.contains(reason), "{name:?}: {error}");
        }
        let long = format!("/{}", "a".repeat(300));
        assert!(node("/").resolve(&long).unwrap_err().to_string().contains("301 bytes"));
        assert!(NodeName::new("/", "a/b").unwrap_err().to_string().contains("node name \"a/b\""));
        assert!(NodeName::new("/x/", "a").unwrap_err().to_string().contains("namespace \"/x/\""));
    }
}
