//! The definitions of the messages that are written, as a bag carries them so that others can read it without knowing the
//! types.

use std::collections::BTreeSet;

use crate::ros::msg::Message;

/// The line between two definitions of one text.
const SEPARATOR: &str = "================================================================================";

macro_rules! own {
    ($name:literal) => {
        include_str!(concat!("../../../msg/", $name, ".msg"))
    };
}

/// The definition of one message, without those that it contains.
fn definition(package: &str, name: &str) -> Option<&'static str> {
    Some(match (package, name) {
        ("builtin_interfaces", "Time" | "Duration") => "int32 sec\nuint32 nanosec\n",
        ("std_msgs", "Header") => "builtin_interfaces/Time stamp\nstring frame_id\n",
        ("std_msgs", "String") => "string data\n",
        ("std_msgs", "Bool") => "bool data\n",
        ("std_msgs", "MultiArrayDimension") => "string label\nuint32 size\nuint32 stride\n",
        ("std_msgs", "MultiArrayLayout") => "MultiArrayDimension[] dim\nuint32 data_offset\n",
        ("std_msgs", "Float64MultiArray") => "MultiArrayLayout layout\nfloat64[] data\n",
        ("rosgraph_msgs", "Clock") => "builtin_interfaces/Time clock\n",
        ("geometry_msgs", "Vector3") => "float64 x\nfloat64 y\nfloat64 z\n",
        ("geometry_msgs", "Twist") => "Vector3 linear\nVector3 angular\n",
        ("geometry_msgs", "TwistStamped") => "std_msgs/Header header\nTwist twist\n",
        ("sensor_msgs", "Image") => {
            "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\nuint32 step\n\
             uint8[] data\n"
        }
        ("sensor_msgs", "CompressedImage") => "std_msgs/Header header\nstring format\nuint8[] data\n",
        ("sensor_msgs", "JointState") => {
            "std_msgs/Header header\nstring[] name\nfloat64[] position\nfloat64[] velocity\nfloat64[] effort\n"
        }
        ("trajectory_msgs", "JointTrajectoryPoint") => {
            "float64[] positions\nfloat64[] velocities\nfloat64[] accelerations\nfloat64[] effort\n\
             builtin_interfaces/Duration time_from_start\n"
        }
        ("trajectory_msgs", "JointTrajectory") => {
            "std_msgs/Header header\nstring[] joint_names\nJointTrajectoryPoint[] points\n"
        }
        ("groot_policy", "ActionChunk") => own!("ActionChunk"),
        ("groot_policy", "ActionGroup") => own!("ActionGroup"),
        ("groot_policy", "StageTiming") => own!("StageTiming"),
        _ => return None,
    })
}

/// The definition of `M` with all that it contains, in the format `ros2msg`; `None` for a type that is not written to bags.
pub(super) fn full_definition<M: Message>() -> Option<String> {
    let mut text = definition(M::PACKAGE, M::NAME)?.to_owned();
    let mut known = BTreeSet::from([(M::PACKAGE.to_owned(), M::NAME.to_owned())]);
    let mut open = contained(M::PACKAGE, &text);
    while let Some((package, name)) = open.pop() {
        if known.insert((package.clone(), name.clone())) {
            let part = definition(&package, &name)?;
            text.push_str(&format!("{SEPARATOR}\nMSG: {package}/{name}\n{part}"));
            open.extend(contained(&package, part));
        }
    }
    Some(text)
}

/// Packages and names of the messages in a definition of `package`, last field first.
fn contained(package: &str, definition: &str) -> Vec<(String, String)> {
    let kinds = definition.lines().filter_map(|line| line.split('#').next()?.split_whitespace().next());
    // Primitive types are written small, messages with a capital.
    let messages = kinds.map(|kind| kind.split('[').next().unwrap_or(kind)).filter_map(|kind| {
        let (package, name) = kind.split_once('/').unwrap_or((package, kind));
        name.starts_with(|first: char| first.is_ascii_uppercase())
            .then(|| (package.to_owned(), name.to_owned()))
    });
    let mut messages: Vec<_> = messages.collect();
    messages.reverse();
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros::msg::{self, ActionChunk, JointState, JointTrajectory};

    #[test]
    fn a_definition_carries_what_it_contains_once_in_the_order_of_its_fields() {
        let headings = |text: &str| {
            text.lines().filter_map(|line| line.strip_prefix("MSG: ").map(str::to_owned)).collect::<Vec<_>>()
        };
        let text = full_definition::<JointState>().unwrap();
        assert!(text.starts_with("std_msgs/Header header\nstring[] name\n"));
        assert_eq!(headings(&text), ["std_msgs/Header", "builtin_interfaces/Time"]);
        let expected = [
            "std_msgs/Header",
            "builtin_interfaces/Time",
            "trajectory_msgs/JointTrajectoryPoint",
            "builtin_interfaces/Duration",
        ];
        assert_eq!(headings(&full_definition::<JointTrajectory>().unwrap()), expected);
        let chunk = full_definition::<ActionChunk>().unwrap();
        assert!(headings(&chunk).contains(&"groot_policy/ActionGroup".to_owned()), "{chunk}");
        assert_eq!(full_definition::<msg::DiagnosticArray>(), None);
    }
}
