//! Options of INT8 builds, the same for every command that builds.

use std::path::PathBuf;

use clap::Args;

use crate::engine::{
    EngineError,
    calibration::{CalibrationMethod, RangeRule},
};

/// The first major version of TensorRT without calibrators.
const WITHOUT_CALIBRATORS: u32 = 11;

/// What INT8 is calibrated on, and how.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Int8Options {
    /// INT8: inputs to calibrate on, a folder that `calibrate collect` wrote; synthetic ones where it is not given
    #[arg(long, value_name = "DIR")]
    pub calibration: Option<PathBuf>,
    /// INT8: synthetic ticks to calibrate on
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub calibration_ticks: u64,
    /// INT8: calibrator (TensorRT's own, before 11) or explicit (Q/DQ nodes in the graph) [default: calibrator where there
    /// is one and no option asks for more]
    #[arg(long)]
    pub method: Option<CalibrationMethod>,
    /// INT8: the rule for ranges: entropy, min-max or percentile:P, such as percentile:99.99
    #[arg(long, value_name = "RULE", default_value = "entropy")]
    pub ranges: RangeRule,
    /// INT8, explicit: move outliers from activations into weights; 0 leaves them to the activations, 1 to the weights
    #[arg(long, value_name = "ALPHA")]
    pub smooth_quant: Option<f32>,
    /// INT8, explicit: products that stay as they are, by part of their weights' names, such as action_decoder
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    pub skip: Vec<String>,
}

impl Int8Options {
    /// Who finds the ranges. `tensorrt` is the major version that builds; None: none does, the graph alone is written. In a
    /// `strongly_typed` graph nobody but the graph says what is in INT8.
    ///
    /// # Errors
    /// Options that contradict each other, or that this TensorRT does not have.
    pub fn method(
        &self,
        tensorrt: Option<u32>,
        strongly_typed: bool,
    ) -> Result<CalibrationMethod, EngineError> {
        let invalid = |what: &str, expected: String, found: String| {
            Err(EngineError::Invalid { what: what.to_owned(), expected, found })
        };
        if let Some(alpha) = self.smooth_quant.filter(|alpha| !(0.0..=1.0).contains(alpha)) {
            return invalid("--smooth-quant", "0 to 1 (0.5 is usual)".to_owned(), alpha.to_string());
        }
        let explicit_alone = match self.ranges {
            RangeRule::Percentile(_) => Some(format!("--ranges {}", self.ranges)),
            _ if self.smooth_quant.is_some() => Some("--smooth-quant".to_owned()),
            _ if !self.skip.is_empty() => Some("--skip".to_owned()),
            _ if strongly_typed => Some("--strongly-typed".to_owned()),
            _ => None,
        };
        let has_calibrator = tensorrt.is_some_and(|major| major < WITHOUT_CALIBRATORS);
        match (self.method, explicit_alone) {
            (Some(CalibrationMethod::Calibrator), Some(option)) => invalid(
                "--method calibrator",
                "entropy or min-max ranges of all tensors: the other options need --method explicit"
                    .to_owned(),
                option,
            ),
            (Some(CalibrationMethod::Calibrator), None) if !has_calibrator => invalid(
                "--method calibrator",
                format!(
                    "a TensorRT before {WITHOUT_CALIBRATORS}, which has calibrators; use --method explicit"
                ),
                tensorrt.map_or("a graph without an engine".to_owned(), |major| format!("TensorRT {major}")),
            ),
            (Some(method), _) => Ok(method),
            (None, None) if has_calibrator => Ok(CalibrationMethod::Calibrator),
            (None, _) => Ok(CalibrationMethod::Explicit),
        }
    }

    /// Whether the product of this weight stays as it is.
    pub fn skips(&self, weight: &str) -> bool {
        self.skip.iter().any(|part| weight.contains(part.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Int8Options,
        #[arg(long)]
        strongly_typed: bool,
    }

    fn method(line: &[&str], tensorrt: Option<u32>) -> Result<CalibrationMethod, EngineError> {
        let line = ["program"].iter().chain(line);
        let Line { options, strongly_typed } = Line::try_parse_from(line).expect("options");
        options.method(tensorrt, strongly_typed)
    }

    #[test]
    fn tensorrt_calibrates_itself_where_it_can_and_is_asked_for_nothing_more() {
        use CalibrationMethod::{Calibrator, Explicit};
        for (line, tensorrt, expected) in [
            (&[][..], Some(8), Calibrator),
            (&["--ranges", "min-max"], Some(10), Calibrator),
            (&[], Some(11), Explicit),
            (&[], None, Explicit),
            (&["--method", "explicit"], Some(8), Explicit),
            (&["--ranges", "percentile:99.9"], Some(8), Explicit),
            (&["--smooth-quant", "0.5"], Some(10), Explicit),
            (&["--strongly-typed"], Some(10), Explicit),
            (&["--skip", "action_decoder", "action_encoder"], Some(10), Explicit),
        ] {
            assert_eq!(method(line, tensorrt).expect("a method"), expected, "{line:?} {tensorrt:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        for (line, tensorrt, says) in [
            (&["--method", "calibrator"][..], Some(11), "TensorRT 11"),
            (&["--method", "calibrator"], None, "explicit"),
            (&["--method", "calibrator", "--ranges", "percentile:99"], Some(8), "percentile:99"),
            (&["--method", "calibrator", "--skip", "x"], Some(8), "--skip"),
            (&["--method", "calibrator", "--strongly-typed"], Some(10), "--strongly-typed"),
            (&["--smooth-quant", "1.5"], Some(8), "1.5"),
        ] {
            let error = method(line, tensorrt).expect_err("refused").to_string();
            assert!(error.contains(says), "{line:?}: {error}");
        }
    }
}
