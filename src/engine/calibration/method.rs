//! How ranges come to be: by whom, and by which rule.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::histogram::Histogram;
use crate::engine::EngineError;

/// Who finds the ranges of an INT8 engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CalibrationMethod {
    /// TensorRT's own calibrators, before version 11: each tensor of the network gets a range, and TensorRT decides what
    /// runs in INT8.
    #[default]
    Calibrator,
    /// This program: pairs of QuantizeLinear and DequantizeLinear in the graph say what runs in INT8, and with which
    /// scales. Any version.
    Explicit,
}

impl CalibrationMethod {
    const ALL: [Self; 2] = [Self::Calibrator, Self::Explicit];

    /// The name in files and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Calibrator => "calibrator",
            Self::Explicit => "explicit",
        }
    }
}

impl fmt::Display for CalibrationMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CalibrationMethod {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        Self::ALL.into_iter().find(|method| method.as_str() == text).ok_or_else(|| EngineError::Invalid {
            what: "method of the calibration".to_owned(),
            expected: Self::ALL.map(Self::as_str).join(", "),
            found: format!("{text:?}"),
        })
    }
}

/// What becomes of what was seen of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RangeRule {
    /// The range that loses the least information.
    #[default]
    Entropy,
    /// All that was seen.
    MinMax,
    /// The range that holds this many percent of the values.
    Percentile(f64),
}

impl RangeRule {
    /// The range of what was seen; None if that is nothing, or zeros alone.
    pub fn range(self, seen: &Histogram) -> Option<f64> {
        let range = match self {
            Self::Entropy => seen.entropy(),
            Self::MinMax => Some(seen.max_abs()),
            Self::Percentile(percent) => seen.percentile(percent / 100.0),
        };
        // Where most values are zero, the share may be reached there: a range all the same must hold something.
        range.filter(|range| *range > 0.0).or_else(|| Some(seen.max_abs()).filter(|most| *most > 0.0))
    }
}

impl fmt::Display for RangeRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entropy => f.write_str("entropy"),
            Self::MinMax => f.write_str("min-max"),
            Self::Percentile(percent) => write!(f, "percentile:{percent}"),
        }
    }
}

impl From<RangeRule> for String {
    fn from(rule: RangeRule) -> Self {
        rule.to_string()
    }
}

impl TryFrom<String> for RangeRule {
    type Error = EngineError;

    fn try_from(text: String) -> Result<Self, EngineError> {
        text.parse()
    }
}

impl FromStr for RangeRule {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        let percentile = || text.strip_prefix("percentile:")?.parse::<f64>().ok();
        match (text, percentile()) {
            ("entropy", _) => Ok(Self::Entropy),
            ("min-max", _) => Ok(Self::MinMax),
            (_, Some(percent)) if percent > 0.0 && percent <= 100.0 => Ok(Self::Percentile(percent)),
            _ => Err(EngineError::Invalid {
                what: "rule for ranges".to_owned(),
                expected: "entropy, min-max or percentile:P with P above 0 and at most 100, such as percentile:99.99".to_owned(),
                found: format!("{text:?}"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_methods_are_read_as_they_are_written() {
        for text in ["entropy", "min-max", "percentile:99.99", "percentile:100"] {
            assert_eq!(text.parse::<RangeRule>().expect("a rule").to_string(), text);
        }
        for text in ["percentile", "percentile:0", "percentile:101", "percentile:NaN", "minmax", ""] {
            let error = text.parse::<RangeRule>().expect_err("no rule").to_string();
            assert!(error.contains("percentile:99.99"), "{error}");
        }
        for method in CalibrationMethod::ALL {
            assert_eq!(method.as_str().parse::<CalibrationMethod>().expect("a method"), method);
        }
        let error = "qdq".parse::<CalibrationMethod>().expect_err("no method").to_string();
        assert!(error.contains("calibrator, explicit") && error.contains("qdq"), "{error}");
    }

    #[test]
    fn each_rule_cuts_as_much_as_it_says() {
        let mut seen = Histogram::default();
        assert_eq!(RangeRule::MinMax.range(&seen), None);
        seen.observe(std::iter::repeat_n(0.0, 900));
        assert_eq!(RangeRule::MinMax.range(&seen), None);
        seen.observe((1..=100_u8).map(f32::from));
        assert_eq!(RangeRule::MinMax.range(&seen), Some(100.0));
        // 950 of 1000 values are at most 50, which ends a bin of 128/2048.
        assert_eq!(RangeRule::Percentile(95.0).range(&seen), Some(50.0));
        assert!(RangeRule::Entropy.range(&seen).is_some_and(|range| range > 0.0 && range <= 100.0));
        // Half of the values are zero, and no range is.
        let mut mostly = Histogram::default();
        mostly.observe([0.0]);
        mostly.observe([3.0]);
        assert!(RangeRule::Percentile(50.0).range(&mostly).is_some_and(|range| range > 0.0));
    }
}
