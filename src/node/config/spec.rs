//! What a parameter is, and whether a value is one for it.

use super::value::{ParameterType, ParameterValue, quoted};

/// A parameter: its name, kind, default and meaning.
#[derive(Debug, Clone, Copy)]
pub struct ParameterSpec {
    /// Dotted name; a segment in angle brackets stands for a key of the embodiment.
    pub name: &'static str,
    /// Kind of its value.
    pub kind: ParameterType,
    /// Value where none is given.
    pub default: ParameterDefault,
    /// What the value must fulfil beside its kind.
    pub constraint: Constraint,
    /// Unit, or empty.
    pub unit: &'static str,
    /// What it does, in a sentence or two.
    pub description: &'static str,
    /// Whether it may change while the node runs.
    pub dynamic: bool,
}

/// What a parameter is where nobody sets it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ParameterDefault {
    /// It must be given.
    Required,
    /// It may be absent; the text says what happens then.
    Absent(&'static str),
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Integer(i64),
    /// A number.
    Double(f64),
    /// Text.
    String(&'static str),
}

impl ParameterDefault {
    /// The default as a value; `None` where there is none.
    pub fn value(self) -> Option<ParameterValue> {
        match self {
            Self::Required | Self::Absent(_) => None,
            Self::Bool(value) => Some(ParameterValue::Bool(value)),
            Self::Integer(value) => Some(ParameterValue::Integer(value)),
            Self::Double(value) => Some(ParameterValue::Double(value)),
            Self::String(value) => Some(ParameterValue::String(value.to_owned())),
        }
    }
}

/// What a value must fulfil beside its kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Constraint {
    /// Nothing.
    None,
    /// Text that is not empty; the text says what it is.
    NonEmpty(&'static str),
    /// Text of at most so many characters.
    Text(usize),
    /// A topic name by the rules of ROS 2.
    Topic,
    /// The same, or empty for none.
    OptionalTopic,
    /// A tf2 frame: any text without a leading slash.
    Frame,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    Device,
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// An integer between these bounds, both included.
    Integers(i64, i64),
    /// A finite number between these bounds, both included.
    Doubles(f64, f64),
    /// Joint names, none empty, none twice, at least so many.
    Joints(usize),
}

/// Whether a segment of a table name stands for a key of the embodiment.
pub(super) fn is_placeholder(segment: &str) -> bool {
    segment.starts_with('<')
}

impl ParameterSpec {
    /// Whether `name` is this parameter, or one of these parameters.
    pub fn matches(&self, name: &str) -> bool {
        let mut given = name.split('.');
        let matches = self.name.split('.').all(|expected| {
            given.next().is_some_and(|segment| {
                if is_placeholder(expected) { !segment.is_empty() } else { segment == expected }
            })
        });
        matches && given.next().is_none()
    }

    /// The value as this parameter takes it: an integer becomes a number, an empty list one of strings.
    ///
    /// # Errors
    /// What was expected and found, where kind or range do not fit.
    pub fn check(&self, value: &ParameterValue) -> Result<ParameterValue, String> {
        use ParameterValue as V;
        let accepted = match (self.kind, value) {
            (ParameterType::Bool, V::Bool(_))
            | (ParameterType::Integer, V::Integer(_))
            | (ParameterType::Double, V::Double(_))
            | (ParameterType::String, V::String(_))
            | (ParameterType::StringArray, V::StringArray(_)) => value.clone(),
            (ParameterType::Double, V::Integer(integer)) => V::Double(*integer as f64),
            (ParameterType::StringArray, V::EmptyArray) => V::StringArray(vec![]),
            _ => {
                let text_wanted = matches!(self.kind, ParameterType::String | ParameterType::StringArray);
                let quotable = !matches!(value, V::String(_) | V::StringArray(_) | V::EmptyArray);
                let hint =
                    if text_wanted && quotable { "; put text that looks like one in quotes" } else { "" };
                return Err(format!("expected {}, found {value}{hint}", self.expected()));
            }
        };
        match self.violation(&accepted) {
            None => Ok(accepted),
            Some(found) => Err(format!("expected {}, found {found}", self.expected())),
        }
    }

    /// What breaks the constraint; `None` where nothing does.
    fn violation(&self, value: &ParameterValue) -> Option<String> {
        use ParameterValue as V;
        match (self.constraint, value) {
            (Constraint::NonEmpty(_), V::String(text)) => text.is_empty().then(|| quoted(text)),
            (Constraint::Text(most), V::String(text)) => {
                let length = text.chars().count();
                (length > most).then(|| format!("{length}"))
            }
            (Constraint::Topic, V::String(text)) => {
                topic_fault(text).map(|fault| format!("{}{fault}", quoted(text)))
            }
            (Constraint::OptionalTopic, V::String(text)) => {
                let fault = if text.is_empty() { None } else { topic_fault(text) };
                fault.map(|fault| format!("{}{fault}", quoted(text)))
            }
            (Constraint::Frame, V::String(text)) => text.starts_with('/').then(|| quoted(text)),
            (Constraint::Device, V::String(text)) => {
                text.parse::<super::Device>().is_err().then(|| quoted(text))
            }
            (Constraint::Choice(choices), V::String(text)) => {
                (!choices.contains(&text.as_str())).then(|| quoted(text))
            }
            (Constraint::Integers(lowest, highest), V::Integer(number)) => {
                (!(lowest..=highest).contains(number)).then(|| number.to_string())
            }
            (Constraint::Doubles(lowest, highest), V::Double(number)) => {
                // Not-a-number is in no range.
                (!(lowest..=highest).contains(number)).then(|| format!("{number}"))
            }
            (Constraint::Joints(least), V::StringArray(names)) => {
                if names.len() < least {
                    return Some("an empty list".into());
                }
                if names.iter().any(String::is_empty) {
                    return Some("an empty name".into());
                }
                let twice = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name));
                twice.map(|(_, name)| format!("{} twice", quoted(name)))
            }
            // The kind of the value was checked, and no constraint of the table is for another kind (tested).
            _ => None,
        }
    }

    /// Kind and constraint in words.
    pub fn expected(&self) -> String {
        let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        match (self.constraint, self.kind) {
            (Constraint::None, ParameterType::Bool) => "true or false".into(),
            (Constraint::None, ParameterType::Integer) => "an integer".into(),
            (Constraint::None, ParameterType::Double) => format!("a number{unit}"),
            (Constraint::None, ParameterType::String) => "a string".into(),
            (Constraint::None, ParameterType::StringArray) => "a list of strings".into(),
            (Constraint::NonEmpty(what), _) => format!("a non-empty {what}"),
            (Constraint::Text(most), _) => format!("a string of at most {most} characters"),
            (Constraint::Topic, _) => "a non-empty topic name".into(),
            (Constraint::OptionalTopic, _) => "a topic name, or nothing".into(),
            (Constraint::Frame, _) => "a frame name without a leading slash".into(),
            (Constraint::Device, _) => "auto, cpu, cuda or cuda:N".into(),
            (Constraint::Choice(choices), _) => choices.join(" or "),
            (Constraint::Integers(lowest, i64::MAX), _) => format!("an integer from {lowest}"),
            (Constraint::Integers(lowest, highest), _) => format!("an integer from {lowest} to {highest}"),
            (Constraint::Doubles(lowest, highest), _) => format!("a number from {lowest} to {highest}{unit}"),
            (Constraint::Joints(0), _) => "a list of different joint names".into(),
            (Constraint::Joints(_), _) => "a non-empty list of different joint names".into(),
        }
    }

    /// The range as the README shows it; empty where there is none to speak of.
    pub(super) fn range(&self) -> String {
        match self.constraint {
            Constraint::Integers(lowest, i64::MAX) => format!("≥ {lowest}"),
            Constraint::Integers(lowest, highest) => format!("{lowest} to {highest}"),
            Constraint::Doubles(lowest, highest) => format!("{lowest} to {highest}"),
            Constraint::Choice(choices) => {
                choices.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ")
            }
            Constraint::NonEmpty(_) | Constraint::Joints(1..) => "not empty".into(),
            Constraint::Text(most) => format!("≤ {most} characters"),
            Constraint::None
            | Constraint::Topic
            | Constraint::OptionalTopic
            | Constraint::Frame
            | Constraint::Device
            | Constraint::Joints(0) => String::new(),
        }
    }
}

/// Why `name` is no topic name; empty where there is nothing to say but that it is empty.
///
/// The rules are those of `rcl` and `rmw`: letters, digits, `_` and `/`, no segment that starts with a digit, no double
/// or trailing slash, `~` only as the first segment. Substitutions in braces are not supported.
fn topic_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("");
    }
    let rest = match name.strip_prefix('~') {
        Some(rest) => match rest.strip_prefix('/') {
            Some(rest) => rest,
            None => return Some(": after ~ comes a slash"),
        },
        None => name.strip_prefix('/').unwrap_or(name),
    };
    if rest.split('/').any(str::is_empty) {
        return Some(": a part between slashes is empty");
    }
    if rest.split('/').any(|part| part.starts_with(|c: char| c.is_ascii_digit())) {
        return Some(": no part may start with a digit");
    }
    if !rest.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '/') {
        return Some(": only letters, digits, underscores and slashes are allowed");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::table::parameter_table;
    use super::*;

    fn spec(name: &str) -> &'static ParameterSpec {
        parameter_table().iter().find(|spec| spec.name == name).unwrap()
    }

    fn string(text: &str) -> ParameterValue {
        ParameterValue::String(text.into())
    }

    #[test]
    fn a_placeholder_stands_for_exactly_one_segment() {
        let camera = spec("cameras.<video key>.topic");
        assert!(camera.matches("cameras.front.topic"));
        for name in
            ["cameras.topic", "cameras..topic", "cameras.front.topic.x", "cameras.a.b.topic", "cameras"]
        {
            assert!(!camera.matches(name), "{name}");
        }
    }

    #[test]
    fn topic_names_follow_the_rules_of_ros() {
        for good in ["image", "/image", "~/image", "/a/b_c/d1", "_hidden", "camera/image_raw"] {
            assert_eq!(topic_fault(good), None, "{good}");
        }
        for bad in
            ["", "/", "~", "~image", "a//b", "a/", "/a/", "1a", "/a/1b", "a b", "a-b", "{node}/a", "a~", "é"]
        {
            assert!(topic_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn a_wrong_value_is_told_with_what_was_expected_and_found() {
        for (name, value, expected) in [
            ("cameras.<video key>.topic", string(""), r#"expected a non-empty topic name, found """#),
            ("rate", string("fast"), r#"expected a number from 0.01 to 200 Hz, found the string "fast""#),
            ("rate", ParameterValue::Double(0.0), "expected a number from 0.01 to 200 Hz, found 0"),
            ("rate", ParameterValue::Double(f64::NAN), "expected a number from 0.01 to 200 Hz, found NaN"),
            (
                "rate",
                ParameterValue::Double(f64::INFINITY),
                "expected a number from 0.01 to 200 Hz, found inf",
            ),
            ("domain_id", ParameterValue::Integer(233), "expected an integer from -1 to 232, found 233"),
            (
                "domain_id",
                ParameterValue::Double(1.0),
                "expected an integer from -1 to 232, found the number 1.0",
            ),
            ("noise_seed", ParameterValue::Integer(-2), "expected an integer from -1, found -2"),
            ("device", string("gpu"), r#"expected auto, cpu, cuda or cuda:N, found "gpu""#),
            (
                "instruction",
                ParameterValue::Integer(5),
                "expected a string of at most 4096 characters, found the integer 5; put text that looks like one in \
                 quotes",
            ),
            ("frame_id", string("/base"), r#"expected a frame name without a leading slash, found "/base""#),
            (
                "cameras.<video key>.transport",
                string("theora"),
                r#"expected raw or compressed, found "theora""#,
            ),
            (
                "state.<state key>.joints",
                ParameterValue::EmptyArray,
                "expected a non-empty list of different joint names, found an empty list",
            ),
            (
                "action.<action key>.joints",
                ParameterValue::StringArray(vec!["a".into(), "b".into(), "a".into()]),
                r#"expected a list of different joint names, found "a" twice"#,
            ),
            (
                "action.<action key>.joints",
                ParameterValue::IntegerArray(vec![1]),
                "expected a list of different joint names, found a list of 1 integer; \
                 put text that looks like one in quotes",
            ),
        ] {
            assert_eq!(spec(name).check(&value).unwrap_err(), expected);
        }
    }

    #[test]
    fn an_integer_is_taken_for_a_number_and_an_empty_list_for_one_of_strings() {
        assert_eq!(spec("rate").check(&ParameterValue::Integer(5)), Ok(ParameterValue::Double(5.0)));
        assert_eq!(
            spec("action.<action key>.joints").check(&ParameterValue::EmptyArray),
            Ok(ParameterValue::StringArray(vec![]))
        );
    }
}
