//! The limits in a robot's URDF, from a text that anybody on the network may have sent.
//!
//! `roxmltree` rather than a URDF crate: those read every mesh and inertia, and set a missing `lower` or `upper` to 0, after
//! which it cannot be told from one that is given.
//!
//! | joint type | limits |
//! |---|---|
//! | `revolute`, `prismatic` | `<limit>` with `velocity` and at least one of `lower` and `upper`; the other one is 0 as the format says |
//! | `continuous` | velocity where there is a `<limit>`; no positions |
//! | other | cannot be commanded: an error |
//!
//! Infinite values are no limits. A `mimic` joint is read as any other, with a note. Joints that the policy does not move are
//! not looked at. Document types, and with them entities, are refused.

use std::collections::BTreeMap;

use roxmltree::{Document, Node, ParsingOptions};

use super::limits::JointLimits;

/// Longest robot description, in bytes.
pub const MAX_BYTES: usize = 10 * 1024 * 1024;

/// Most tags. The parser reserves memory by them before it reads.
const MAX_TAGS: usize = 400_000;
/// Most equals signs; as above.
const MAX_EQUALS: usize = 800_000;
/// Most attributes of one element: the parser compares each with each.
const MAX_ATTRIBUTES: usize = 256;
/// Most declarations of namespaces: the parser copies all that are in force for each.
const MAX_NAMESPACES: usize = 256;

/// Why a text gives no limits.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UrdfError {
    /// The text is absurdly large or of absurd shape.
    #[error("expected at most {limit} {what}, found {found}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: usize,
        /// How much there is; where counting stops early, more than the limit.
        found: usize,
    },
    /// It is no XML.
    #[error("expected XML, found: {0}")]
    Xml(String),
    /// It is XML of something else.
    #[error("expected the root element <robot>, found <{0}>")]
    NoRobot(String),
    /// Joints that the policy moves have no usable limits; every problem.
    #[error("{}", .0.join("; "))]
    Joints(Vec<String>),
}

/// What a URDF says of the joints asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct UrdfLimits {
    /// By joint.
    pub limits: BTreeMap<String, JointLimits>,
    /// What is no error but may surprise.
    pub notes: Vec<String>,
}

/// Reads the limits of `joints`.
///
/// # Errors
/// See [`UrdfError`].
pub fn read(xml: &str, joints: &[String]) -> Result<UrdfLimits, UrdfError> {
    check_size(xml)?;
    let options =
        ParsingOptions { allow_dtd: false, nodes_limit: 4 * MAX_TAGS as u32, ..ParsingOptions::default() };
    let document =
        Document::parse_with_options(xml, options).map_err(|error| UrdfError::Xml(error.to_string()))?;
    let robot = document.root_element();
    if !robot.has_tag_name("robot") {
        return Err(UrdfError::NoRobot(robot.tag_name().name().chars().take(80).collect()));
    }
    // Only children of <robot> are the robot's joints; <transmission> and <ros2_control> have elements of the same name.
    let mut elements: BTreeMap<&str, Vec<Node<'_, '_>>> = BTreeMap::new();
    for joint in robot.children().filter(|node| node.has_tag_name("joint")) {
        elements.entry(joint.attribute("name").unwrap_or_default()).or_default().push(joint);
    }
    let mut problems = Vec::new();
    let mut notes = Vec::new();
    let mut limits = BTreeMap::new();
    for name in joints {
        match elements.get(name.as_str()).map(Vec::as_slice) {
            None => notes
                .push(format!("the robot description has no joint {name}: its limits are the parameters'")),
            Some([joint]) => {
                if joint.children().any(|child| child.has_tag_name("mimic")) {
                    notes.push(format!("joint {name} mimics another one, but the policy moves it by itself"));
                }
                limits.insert(name.clone(), limits_of(name, *joint, &mut problems));
            }
            Some(several) => problems.push(format!("joint {name}: expected one, found {}", several.len())),
        }
    }
    if problems.is_empty() { Ok(UrdfLimits { limits, notes }) } else { Err(UrdfError::Joints(problems)) }
}

fn limits_of(name: &str, joint: Node<'_, '_>, problems: &mut Vec<String>) -> JointLimits {
    let kind = joint.attribute("type").unwrap_or("no type");
    let moves_within = match kind {
        "revolute" | "prismatic" => true,
        "continuous" => false,
        _ => {
            problems
                .push(format!("joint {name}: expected revolute, prismatic or continuous, found {kind:.40}"));
            return JointLimits::default();
        }
    };
    let Some(limit) = joint.children().find(|child| child.has_tag_name("limit")) else {
        if moves_within {
            problems.push(format!("joint {name}: expected a <limit> for a {kind} joint, found none"));
        }
        return JointLimits::default();
    };
    let mut number = |attribute: &str| {
        let text = limit.attribute(attribute)?;
        let value = text.trim().parse::<f64>().ok().filter(|value| !value.is_nan());
        if value.is_none() {
            problems.push(format!("joint {name}: expected a number as {attribute}, found {text:.40?}"));
        }
        Some(value)
    };
    // The outer level: whether it is there; the inner one: whether it is a number.
    let velocity = number("velocity");
    let (lower, upper) = if moves_within { (number("lower"), number("upper")) } else { (None, None) };
    if velocity.is_none() {
        problems.push(format!("joint {name}: expected a velocity in its <limit>, found none"));
    }
    let (lower, upper) = match (lower, upper) {
        (None, None) if moves_within => {
            problems.push(format!("joint {name}: expected lower and upper in its <limit>, found neither"));
            (None, None)
        }
        (None, None) => (None, None),
        (lower, upper) => (lower.unwrap_or(Some(0.0)), upper.unwrap_or(Some(0.0))),
    };
    let limits = JointLimits {
        lower: lower.filter(|&lower| lower != f64::NEG_INFINITY),
        upper: upper.filter(|&upper| upper != f64::INFINITY),
        velocity: velocity.flatten().filter(|&velocity| velocity != f64::INFINITY),
        step: None,
    };
    let faults = limits.faults();
    problems.extend(faults.into_iter().map(|(field, message)| format!("joint {name}, {field}: {message}")));
    limits
}

/// Refuses what would cost the parser much memory or time.
fn check_size(xml: &str) -> Result<(), UrdfError> {
    let check = |what, limit, found| {
        if found > limit { Err(UrdfError::TooLarge { what, limit, found }) } else { Ok(()) }
    };
    check("bytes", MAX_BYTES, xml.len())?;
    let bytes = xml.as_bytes();
    let count = |wanted: u8| bytes.iter().filter(|&&byte| byte == wanted).count();
    check("tags", MAX_TAGS, count(b'<'))?;
    check("equals signs", MAX_EQUALS, count(b'='))?;
    check("namespaces", MAX_NAMESPACES, xml.matches("xmlns").count())?;
    // No attribute value has a `<` in it, so an element's attributes all lie between two of them.
    for element in xml.split('<') {
        // An attribute's equals sign is followed by a quote; that of a rule drawn in a comment is not.
        let values = element.split('=').skip(1).filter(|rest| rest.trim_start().starts_with(['"', '\'']));
        check("attributes of an element", MAX_ATTRIBUTES, values.count())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joints(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    fn problem(xml: &str, names: &[&str]) -> String {
        read(xml, &joints(names)).unwrap_err().to_string()
    }

    const ARM: &str = r#"<?xml version="1.0"?>
        <!-- ===== ===== "generated" ===== -->
        <robot name="arm" xmlns:xacro="http://www.ros.org/wiki/xacro">
          <link name="base"/>
          <joint name="elbow" type="revolute"><limit lower="-1.5" upper="2" effort="3" velocity="0.5"/></joint>
          <joint name="slide" type="prismatic"><limit upper="0.25" effort="3" velocity="0.1"/></joint>
          <joint name="wheel" type="continuous"><limit effort="3" velocity="9"/></joint>
          <joint name="spinner" type="continuous"/>
          <joint name="finger" type="prismatic"><mimic joint="slide"/><limit lower="0" upper="1" velocity="inf"/></joint>
          <joint name="mount" type="fixed"/>
          <joint name="broken" type="revolute"/>
          <transmission name="t"><joint name="elbow"/></transmission>
          <ros2_control name="c" type="system"><joint name="elbow"/></ros2_control>
        </robot>"#;

    #[test]
    fn each_type_of_joint_has_the_limits_that_the_format_gives_it() {
        let names = ["elbow", "slide", "wheel", "spinner"];
        let read = read(ARM, &joints(&names)).unwrap();
        let limits = |lower, upper, velocity| JointLimits { lower, upper, velocity, step: None };
        let expected = [
            limits(Some(-1.5), Some(2.0), Some(0.5)),
            limits(Some(0.0), Some(0.25), Some(0.1)),
            limits(None, None, Some(9.0)),
            limits(None, None, None),
        ];
        for (name, expected) in names.iter().zip(expected) {
            assert_eq!(read.limits[*name], expected, "{name}");
        }
        assert_eq!(read.notes, Vec::<String>::new());
    }

    #[test]
    fn an_absent_joint_and_a_mimic_joint_are_noted_and_infinite_is_no_limit() {
        let read = read(ARM, &joints(&["finger", "tail"])).unwrap();
        assert_eq!(read.limits["finger"].velocity, None);
        assert_eq!(read.limits["finger"].upper, Some(1.0));
        assert!(read.notes[0].contains("joint finger mimics"), "{:?}", read.notes);
        assert!(read.notes[1].contains("no joint tail"), "{:?}", read.notes);
        assert_eq!((read.limits.len(), read.notes.len()), (1, 2));
    }

    #[test]
    fn joints_that_cannot_be_limited_are_all_listed() {
        let text = problem(ARM, &["mount", "elbow", "broken"]);
        assert!(
            text.contains("joint mount: expected revolute, prismatic or continuous, found fixed"),
            "{text}"
        );
        assert!(text.contains("joint broken: expected a <limit> for a revolute joint, found none"), "{text}");
    }

    #[test]
    fn numbers_that_are_none_and_limits_that_contradict_are_told() {
        let with = |limit: &str| {
            problem(
                &format!(r#"<robot><joint name="j" type="revolute"><limit {limit}/></joint></robot>"#),
                &["j"],
            )
        };
        for (limit, part) in [
            (r#"lower="1" upper="0" velocity="1""#, "expected at most the upper limit 0, found 1"),
            (r#"lower="x" upper="0" velocity="1""#, r#"expected a number as lower, found "x""#),
            (r#"lower="nan" upper="0" velocity="1""#, "expected a number as lower"),
            (r#"lower="inf" upper="inf" velocity="1""#, "expected a finite position, found inf"),
            (r#"lower="0" upper="1" velocity="-1""#, "expected a finite number above 0, found -1"),
            (r#"lower="0" upper="1" velocity="0""#, "expected a finite number above 0, found 0"),
            (r#"lower="0" upper="1""#, "expected a velocity"),
            (r#"velocity="1" effort="1""#, "expected lower and upper in its <limit>, found neither"),
        ] {
            let text = with(limit);
            assert!(text.contains(part) && text.contains("joint j"), "{limit}: {text}");
        }
        let twice =
            r#"<robot><joint name="j" type="continuous"/><joint name="j" type="continuous"/></robot>"#;
        assert!(problem(twice, &["j"]).contains("expected one, found 2"));
    }

    #[test]
    fn what_is_no_urdf_says_what_it_is() {
        assert!(problem("", &[]).starts_with("expected XML, found"));
        assert!(problem("garbage & more", &[]).starts_with("expected XML, found"));
        assert!(problem("<robot><joint></robot>", &[]).starts_with("expected XML, found"));
        assert_eq!(problem("<sdf/>", &[]), "expected the root element <robot>, found <sdf>");
    }

    #[test]
    fn entities_are_refused_before_they_can_expand() {
        let levels: String =
            (1..12).map(|i| format!("<!ENTITY e{i} \"{}\">", format!("&e{};", i - 1).repeat(10))).collect();
        let bomb = format!("<!DOCTYPE robot [<!ENTITY e0 \"ha\">{levels}]><robot>&e11;</robot>");
        assert!(problem(&bomb, &[]).contains("DTD"), "{}", problem(&bomb, &[]));
    }

    #[test]
    fn a_description_of_absurd_size_or_shape_is_refused() {
        for (xml, what) in [
            (" ".repeat(MAX_BYTES + 1), "bytes"),
            (format!("<robot>{}</robot>", "<a/>".repeat(MAX_TAGS)), "tags"),
            (format!("<robot>{}</robot>", "=".repeat(MAX_EQUALS + 1)), "equals signs"),
            (format!("<robot {}/>", r#"xmlns:a="b" "#.repeat(MAX_NAMESPACES + 1)), "namespaces"),
            (
                format!(
                    "<robot {}/>",
                    (0..=MAX_ATTRIBUTES).map(|i| format!("a{i} = '>' ")).collect::<String>()
                ),
                "attributes of an element",
            ),
        ] {
            let text = problem(&xml, &[]);
            assert!(text.starts_with("expected at most") && text.contains(what), "{what}: {text}");
        }
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        let depth = MAX_TAGS / 2 - 2;
        let xml = format!("<robot>{}{}</robot>", "<a>".repeat(depth), "</a>".repeat(depth));
        assert_eq!(read(&xml, &[]).unwrap().limits.len(), 0);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[<>/=\"' a-j&;!\\[\\]\\-0-9.]{0,120}") {
            let _ = read(&text, &joints(&["j"]));
            let _ = read(&format!("<robot>{text}</robot>"), &joints(&["j"]));
        }

        #[test]
        fn a_cut_description_never_gives_limits_that_contradict(end in 0..ARM.len()) {
            if let Ok(read) = read(ARM.get(..end).unwrap_or_default(), &joints(&["elbow", "slide"])) {
                prop_assert!(read.limits.values().all(|limits| limits.faults().is_empty()));
            }
        }
    }
}
