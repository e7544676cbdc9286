//! Parameter values, and how ROS reads them from YAML.

use std::fmt;

/// The value of a parameter: the kinds that ROS 2 has.
#[derive(Debug, Clone, PartialEq)]
pub enum ParameterValue {
    /// `true` or `false`.
    Bool(bool),
    /// A 64-bit integer.
    Integer(i64),
    /// A floating-point number.
    Double(f64),
    /// Text.
    String(String),
    /// A list of booleans.
    BoolArray(Vec<bool>),
    /// A list of integers.
    IntegerArray(Vec<i64>),
    /// A list of numbers.
    DoubleArray(Vec<f64>),
    /// A list of texts.
    StringArray(Vec<String>),
    /// `[]`, which fits every kind of list.
    EmptyArray,
}

/// The kind of a parameter's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterType {
    /// `true` or `false`.
    Bool,
    /// A 64-bit integer.
    Integer,
    /// A floating-point number; an integer is taken as one.
    Double,
    /// Text.
    String,
    /// A list of texts.
    StringArray,
}

impl fmt::Display for ParameterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "bool",
            Self::Integer => "integer",
            Self::Double => "double",
            Self::String => "string",
            Self::StringArray => "list of strings",
        })
    }
}

impl ParameterValue {
    /// What `rcl_yaml_param_parser` makes of an unquoted scalar: a YAML 1.1 boolean, a C integer (also hexadecimal, and
    /// octal after a leading zero), a number, else text.
    pub(super) fn from_plain(text: &str) -> Self {
        match text {
            "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
                return Self::Bool(true);
            }
            "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
                return Self::Bool(false);
            }
            _ => {}
        }
        if let Some(integer) = integer(text) {
            return Self::Integer(integer);
        }
        // YAML writes .inf and .nan, which Rust reads without the point.
        let unsigned = text.trim_start_matches(['+', '-']);
        let number = match unsigned {
            ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN" => text.replacen('.', "", 1).parse(),
            _ => text.parse::<f64>(),
        };
        number.map_or_else(|_| Self::String(text.to_owned()), Self::Double)
    }

    /// A list of equal kinds, or the position of the first element that differs from the first.
    pub(super) fn from_list(elements: Vec<Self>) -> Result<Self, usize> {
        /// Unwraps every element with `pick`.
        fn all<T>(
            elements: &[ParameterValue],
            pick: impl Fn(&ParameterValue) -> Option<T>,
        ) -> Result<Vec<T>, usize> {
            elements.iter().enumerate().map(|(i, element)| pick(element).ok_or(i)).collect()
        }
        match elements.first() {
            None => Ok(Self::EmptyArray),
            Some(Self::Bool(_)) => {
                all(&elements, |e| if let Self::Bool(v) = e { Some(*v) } else { None }).map(Self::BoolArray)
            }
            Some(Self::Integer(_)) => {
                all(&elements, |e| if let Self::Integer(v) = e { Some(*v) } else { None })
                    .map(Self::IntegerArray)
            }
            Some(Self::Double(_)) => {
                all(&elements, |e| if let Self::Double(v) = e { Some(*v) } else { None })
                    .map(Self::DoubleArray)
            }
            Some(Self::String(_)) => {
                all(&elements, |e| if let Self::String(v) = e { Some(v.clone()) } else { None })
                    .map(Self::StringArray)
            }
            Some(_) => Err(0),
        }
    }
}

/// A C integer literal, as `strtol` with base 0 reads it.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    // A second sign would pass the parser below.
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// The value as a message shows it, with its kind where the kind is what is wrong.
impl fmt::Display for ParameterValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "the boolean {value}"),
            Self::Integer(value) => write!(f, "the integer {value}"),
            Self::Double(value) => write!(f, "the number {value:?}"),
            Self::String(value) => write!(f, "the string {}", quoted(value)),
            Self::BoolArray(values) => write!(f, "a list of {}", counted(values.len(), "boolean")),
            Self::IntegerArray(values) => write!(f, "a list of {}", counted(values.len(), "integer")),
            Self::DoubleArray(values) => write!(f, "a list of {}", counted(values.len(), "number")),
            Self::StringArray(values) => write!(f, "a list of {}", counted(values.len(), "string")),
            Self::EmptyArray => f.write_str("an empty list"),
        }
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Text in quotation marks, shortened where it is absurdly long.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn string(text: &str) -> ParameterValue {
        ParameterValue::String(text.into())
    }

    #[test]
    fn plain_scalars_are_read_as_ros_reads_them() {
        for (text, expected) in [
            ("true", ParameterValue::Bool(true)),
            ("yes", ParameterValue::Bool(true)),
            ("off", ParameterValue::Bool(false)),
            ("N", ParameterValue::Bool(false)),
            ("tRUE", string("tRUE")),
            ("0", ParameterValue::Integer(0)),
            ("-7", ParameterValue::Integer(-7)),
            ("+7", ParameterValue::Integer(7)),
            ("0x1F", ParameterValue::Integer(31)),
            ("-0x10", ParameterValue::Integer(-16)),
            ("010", ParameterValue::Integer(8)),
            ("9223372036854775807", ParameterValue::Integer(i64::MAX)),
            ("-9223372036854775808", ParameterValue::Integer(i64::MIN)),
            ("9223372036854775808", ParameterValue::Double(9_223_372_036_854_775_808.0)),
            ("0.5", ParameterValue::Double(0.5)),
            ("1e-3", ParameterValue::Double(1e-3)),
            ("5.", ParameterValue::Double(5.0)),
            (".inf", ParameterValue::Double(f64::INFINITY)),
            ("-.INF", ParameterValue::Double(f64::NEG_INFINITY)),
            ("089", ParameterValue::Double(89.0)),
            ("1.2.3", string("1.2.3")),
            ("--5", string("--5")),
            ("0x", string("0x")),
            ("0x+5", string("0x+5")),
            ("~/chunk", string("~/chunk")),
            ("cuda:0", string("cuda:0")),
        ] {
            assert_eq!(ParameterValue::from_plain(text), expected, "{text}");
        }
        assert!(matches!(ParameterValue::from_plain(".nan"), ParameterValue::Double(v) if v.is_nan()));
    }

    #[test]
    fn a_mixed_list_points_to_the_odd_one_out() {
        let mixed = vec![string("a"), string("b"), ParameterValue::Integer(3)];
        assert_eq!(ParameterValue::from_list(mixed), Err(2));
        let numbers = vec![ParameterValue::Integer(1), ParameterValue::Double(2.0)];
        assert_eq!(ParameterValue::from_list(numbers), Err(1));
        assert_eq!(ParameterValue::from_list(vec![]), Ok(ParameterValue::EmptyArray));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[-+0-9a-fxX.é]{0,24}") {
            let _ = ParameterValue::from_plain(&text);
        }

        #[test]
        fn every_integer_is_read_back(value in any::<i64>()) {
            prop_assert_eq!(ParameterValue::from_plain(&value.to_string()), ParameterValue::Integer(value));
        }
    }
}
