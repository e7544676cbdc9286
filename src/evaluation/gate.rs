//! Conditions under which a run fails: a replay as a gate in somebody's CI.

use std::fmt;

use super::{
    metric::Metric,
    run::{ModeResult, Run},
};

/// How a figure is held against a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

impl Operator {
    fn holds(self, value: f64, threshold: f64) -> bool {
        match self {
            Self::Less => value < threshold,
            Self::LessOrEqual => value <= threshold,
            Self::Greater => value > threshold,
            Self::GreaterOrEqual => value >= threshold,
        }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        })
    }
}

/// One condition: `dit_cosine<0.9999`, or for one mode only `tensorrt-fp16:dit_cosine<0.9999`.
///
/// Without a mode it holds for every mode; where the metric compares with the reference mode, for every other mode.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// The only mode it is for.
    pub mode: Option<String>,
    /// The figure.
    pub metric: Metric,
    /// How it is compared.
    pub operator: Operator,
    /// With what.
    pub threshold: f64,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(mode) = &self.mode {
            write!(f, "{mode}:")?;
        }
        write!(f, "{}{}{}", self.metric, self.operator, self.threshold)
    }
}

/// A condition that cannot be read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GateError {
    /// There is none.
    #[error("expected conditions such as dit_cosine<0.9999,e2e_mse_ratio>1.02, found nothing{place}")]
    Empty {
        /// Where, among several.
        place: String,
    },
    /// No comparison in it.
    #[error("expected METRIC<NUMBER with one of < <= > >=, found {condition:?}")]
    Operator {
        /// The condition.
        condition: String,
    },
    /// The threshold is no number.
    #[error("expected a finite number after {operator} in {condition:?}, found {found:?}")]
    Threshold {
        /// The condition.
        condition: String,
        /// Its operator.
        operator: Operator,
        /// What stands there.
        found: String,
    },
    /// No metric has this name.
    #[error("unknown metric {found:?} in {condition:?}{suggestion}; known: {known}")]
    Metric {
        /// The condition.
        condition: String,
        /// The name.
        found: String,
        /// `; did you mean ...?`, or nothing.
        suggestion: String,
        /// All names.
        known: String,
    },
    /// A colon without a mode before it.
    #[error(
        "expected a mode before the colon in {condition:?}, found nothing; leave the colon out for all modes"
    )]
    Mode {
        /// The condition.
        condition: String,
    },
}

/// Conditions of which none may hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gate {
    /// The conditions.
    pub conditions: Vec<Condition>,
}

impl std::str::FromStr for Gate {
    type Err = GateError;

    /// Reads conditions parted by commas: `dit_cosine<0.9999,tensorrt-fp16:end_to_end_p99_ms>250`.
    fn from_str(text: &str) -> Result<Self, GateError> {
        let parts: Vec<&str> = text.split(',').collect();
        let several = parts.len() > 1;
        let conditions = parts.iter().enumerate().map(|(i, part)| match part.trim() {
            "" if several => Err(GateError::Empty { place: format!(" as number {} of {text:?}", i + 1) }),
            "" => Err(GateError::Empty { place: String::new() }),
            part => condition(part),
        });
        Ok(Self { conditions: conditions.collect::<Result<_, _>>()? })
    }
}

fn condition(text: &str) -> Result<Condition, GateError> {
    let whole = || text.to_owned();
    let no_operator = || GateError::Operator { condition: whole() };
    let place = text.find(['<', '>']).ok_or_else(no_operator)?;
    let (name, rest) = text.split_at(place);
    // An equals sign before or after the comparison (`=<`, `==`) is not taken for part of a name.
    if name.contains('=') || name.trim().is_empty() {
        return Err(no_operator());
    }
    let operators = [
        ("<=", Operator::LessOrEqual),
        (">=", Operator::GreaterOrEqual),
        ("<", Operator::Less),
        (">", Operator::Greater),
    ];
    let (threshold, operator) = operators
        .into_iter()
        .find_map(|(sign, operator)| Some((rest.strip_prefix(sign)?.trim(), operator)))
        .ok_or_else(no_operator)?;
    let number = threshold.parse::<f64>().ok().filter(|number| number.is_finite());
    let threshold = number.ok_or_else(|| GateError::Threshold {
        condition: whole(),
        operator,
        found: threshold.to_owned(),
    })?;
    // A mode's name may have colons of its own; a metric's has none.
    let (mode, metric) = match name.rsplit_once(':') {
        Some((mode, metric)) => (Some(mode.trim()), metric.trim()),
        None => (None, name.trim()),
    };
    if mode == Some("") {
        return Err(GateError::Mode { condition: whole() });
    }
    let metric = Metric::by_name(metric).ok_or_else(|| unknown_metric(text, metric))?;
    Ok(Condition { mode: mode.map(str::to_owned), metric, operator, threshold })
}

fn unknown_metric(condition: &str, found: &str) -> GateError {
    let known: Vec<String> = Metric::all().map(|metric| metric.to_string()).collect();
    let suggestion = nearest(found, known.iter().map(String::as_str));
    GateError::Metric {
        condition: condition.to_owned(),
        found: found.to_owned(),
        suggestion: suggestion.map(|name| format!("; did you mean {name}?")).unwrap_or_default(),
        known: known.join(", "),
    }
}

/// The name most like `found`, where one is like it.
fn nearest<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = known.map(|name| (strsim::jaro_winkler(found, name), name));
    let best = likeness.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(likeness, _)| *likeness > 0.8).map(|(_, name)| name)
}

/// A condition that holds, or of which it cannot be said that it does not.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    /// The condition; None for a run that ended early.
    pub condition: Option<Condition>,
    /// The mode; None where no mode is concerned in particular.
    pub mode: Option<String>,
    /// The figure; None where there is none.
    pub value: Option<f64>,
    /// The reason in words.
    pub reason: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Gate {
    /// What the gate has against a run; nothing where it passes.
    ///
    /// A gate that cannot be evaluated does not pass: a figure that was not measured or is not a number, a mode that is not
    /// in the run or failed, a run without a mode to judge, and a run that ended early are violations.
    pub fn violations(&self, run: &Run) -> Vec<Violation> {
        let mut violations = Vec::new();
        if let Some(partial) = &run.partial {
            violations.push(Violation {
                condition: None,
                mode: None,
                value: None,
                reason: format!("the run is not complete: {partial}"),
            });
        }
        for condition in &self.conditions {
            let violation = |mode: Option<&ModeResult>, value, reason| Violation {
                condition: Some(condition.clone()),
                mode: mode.map(|mode| mode.name.clone()),
                value,
                reason,
            };
            let modes: Vec<&ModeResult> = match &condition.mode {
                Some(name) => run.mode(name).into_iter().collect(),
                None => {
                    let relative = condition.metric.is_relative();
                    run.modes.iter().filter(|mode| !(relative && run.is_reference(mode))).collect()
                }
            };
            if modes.is_empty() {
                violations.push(violation(None, None, format!("{condition}: {}", nobody(condition, run))));
            }
            for mode in modes {
                if let Some((value, reason)) = judge(condition, run, mode) {
                    violations.push(violation(Some(mode), value, reason));
                }
            }
        }
        violations
    }
}

fn judge(condition: &Condition, run: &Run, mode: &ModeResult) -> Option<(Option<f64>, String)> {
    let Condition { metric, operator, threshold, .. } = condition;
    let name = &mode.name;
    if let Some(failure) = &mode.failure {
        return Some((
            None,
            format!("{name}: {metric} cannot be judged ({condition}): the mode failed: {failure}"),
        ));
    }
    match metric.value(run, mode) {
        Ok(value) if operator.holds(value, *threshold) => {
            Some((Some(value), format!("{name}: {metric} is {value}, which is {operator} {threshold}")))
        }
        Ok(_) => None,
        Err(reason) => Some((None, format!("{name}: {metric} cannot be judged ({condition}): {reason}"))),
    }
}

/// Why a condition concerns no mode of the run.
fn nobody(condition: &Condition, run: &Run) -> String {
    let modes: Vec<&str> = run.modes.iter().map(|mode| mode.name.as_str()).collect();
    match &condition.mode {
        Some(name) => {
            let suggestion = nearest(name, modes.iter().copied());
            let suggestion = suggestion.map(|mode| format!("; did you mean {mode}?")).unwrap_or_default();
            format!("expected a mode of the run ({}), found {name:?}{suggestion}", modes.join(", "))
        }
        None if modes.is_empty() => "the run has no modes".to_owned(),
        None => format!(
            "the run has only the reference mode {}, which has no {}",
            run.reference, condition.metric
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::{
        ActionSummary, Component, ComponentLatency, DenoisingSummary, ErrorSummary, LatencySummary, Partial,
    };

    fn gate(text: &str) -> Gate {
        text.parse().unwrap()
    }

    fn refused(text: &str) -> String {
        text.parse::<Gate>().unwrap_err().to_string()
    }

    fn mode(name: &str, cosine: Option<f64>, mse: f64, median: f64) -> ModeResult {
        let overall = ErrorSummary { count: 1, cosine, ..ErrorSummary::default() };
        let total = ErrorSummary { count: 1, mse: Some(mse), ..ErrorSummary::default() };
        let summary = LatencySummary { median, p99: 2.0 * median, ..LatencySummary::default() };
        ModeResult {
            name: name.into(),
            denoising: Some(DenoisingSummary { overall, steps: Vec::new() }),
            recorded: Some(ActionSummary { total, ..ActionSummary::default() }),
            latencies: vec![ComponentLatency {
                component: Component::EndToEnd,
                summary,
                samples_ms: Vec::new(),
            }],
            ..ModeResult::default()
        }
    }

    fn run() -> Run {
        let modes = vec![
            mode("torch", None, 0.087, 364.0),
            mode("tensorrt-fp16", Some(0.999978), 0.088, 236.0),
            mode("tensorrt-int8", Some(0.99), 0.1, 234.0),
        ];
        Run { reference: "torch".into(), modes, ..Run::default() }
    }

    fn reasons(text: &str, run: &Run) -> Vec<String> {
        gate(text).violations(run).iter().map(Violation::to_string).collect()
    }

    #[test]
    fn conditions_are_read_with_all_operators_spaces_and_modes() {
        let gate = gate("dit_cosine<0.9999, e2e_mse_ratio >= 1.02,a:b:hz<=5 ,torch : end_to_end_p99_ms>1e2");
        let shown: Vec<String> = gate.conditions.iter().map(Condition::to_string).collect();
        assert_eq!(
            shown,
            ["dit_cosine<0.9999", "e2e_mse_ratio>=1.02", "a:b:hz<=5", "torch:end_to_end_p99_ms>100"]
        );
        assert_eq!(gate.conditions[2].mode.as_deref(), Some("a:b"));
        assert_eq!(gate.conditions[3].mode.as_deref(), Some("torch"));
    }

    #[test]
    fn what_cannot_be_read_is_named_with_what_was_expected() {
        assert_eq!(
            refused(""),
            "expected conditions such as dit_cosine<0.9999,e2e_mse_ratio>1.02, found nothing"
        );
        assert!(
            refused("hz<1,,").ends_with("found nothing as number 2 of \"hz<1,,\""),
            "{}",
            refused("hz<1,,")
        );
        for text in ["dit_cosine", "dit_cosine=1", "dit_cosine=<1", "dit_cosine==1", "<1", "e2e_mse!=2"] {
            assert_eq!(
                refused(text),
                format!("expected METRIC<NUMBER with one of < <= > >=, found {text:?}")
            );
        }
        for (text, found) in [
            ("hz<", ""),
            ("hz<fast", "fast"),
            ("hz<NaN", "NaN"),
            ("hz<inf", "inf"),
            ("hz<1<2", "1<2"),
            ("hz<<1", "<1"),
        ] {
            assert_eq!(
                refused(text),
                format!("expected a finite number after < in {text:?}, found {found:?}")
            );
        }
        assert!(refused(":hz<1").starts_with("expected a mode before the colon in \":hz<1\""));
    }

    #[test]
    fn an_unknown_metric_gets_a_suggestion_and_the_list() {
        let message = refused("fast:dit_cosin<0.9");
        assert!(
            message.starts_with("unknown metric \"dit_cosin\" in \"fast:dit_cosin<0.9\"; did you mean dit_cosine?; known: dit_mse, "),
            "{message}"
        );
        assert!(message.contains("e2e_mse_ratio") && message.contains("end_to_end_p99_ms"), "{message}");
        assert!(refused("e2e_mse_ration>1").contains("did you mean e2e_mse_ratio?"));
        assert!(!refused("zzz<1").contains("did you mean"));
    }

    #[test]
    fn a_run_within_all_limits_passes() {
        assert_eq!(
            reasons("dit_cosine<0.98,e2e_mse_ratio>1.2,end_to_end_ms>400,hz<2", &run()),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_violation_names_mode_value_and_threshold() {
        let violations = gate("dit_cosine<0.9999").violations(&run());
        let [violation] = violations.as_slice() else { panic!("{violations:?}") };
        assert_eq!((violation.mode.as_deref(), violation.value), (Some("tensorrt-int8"), Some(0.99)));
        assert_eq!(violation.to_string(), "tensorrt-int8: dit_cosine is 0.99, which is < 0.9999");
    }

    #[test]
    fn thresholds_themselves_are_in_or_out_as_the_operator_says() {
        let violated = |text: &str| !reasons(text, &run()).is_empty();
        assert!(violated("torch:end_to_end_ms>=364") && !violated("torch:end_to_end_ms>364"));
        assert!(violated("torch:end_to_end_ms<=364") && !violated("torch:end_to_end_ms<364"));
    }

    #[test]
    fn a_mode_in_front_limits_the_condition_to_it() {
        assert_eq!(reasons("tensorrt-fp16:dit_cosine<0.9999", &run()), Vec::<String>::new());
        assert_eq!(reasons("tensorrt-int8:dit_cosine<0.9999", &run()).len(), 1);
    }

    #[test]
    fn absolute_figures_are_judged_for_the_reference_mode_too() {
        assert_eq!(reasons("end_to_end_ms>300", &run()), ["torch: end_to_end_ms is 364, which is > 300"]);
    }

    #[test]
    fn the_ratio_is_that_to_the_reference_mode() {
        let reasons = reasons("e2e_mse_ratio>1.02", &run());
        assert_eq!(reasons.len(), 1);
        assert!(reasons[0].starts_with("tensorrt-int8: e2e_mse_ratio is 1.149"), "{reasons:?}");
    }

    #[test]
    fn what_was_not_measured_fails_with_the_reason() {
        assert_eq!(
            reasons("tensorrt-fp16:vision_ms>1", &run()),
            [
                "tensorrt-fp16: vision_ms cannot be judged (tensorrt-fp16:vision_ms>1): the latency of vision was not measured"
            ]
        );
        let mut broken = run();
        let errors = &mut broken.modes[1].denoising.as_mut().unwrap().overall;
        *errors = ErrorSummary { count: 6, non_finite: 2, ..ErrorSummary::default() };
        assert_eq!(
            reasons("tensorrt-fp16:dit_cosine<0.5", &broken),
            [
                "tensorrt-fp16: dit_cosine cannot be judged (tensorrt-fp16:dit_cosine<0.5): 2 of 8 values are NaN or infinite"
            ]
        );
        broken.modes[1].denoising = None;
        assert!(reasons("tensorrt-fp16:dit_cosine<0.5", &broken)[0].contains("the DiT was not compared"));
        broken.modes[0].recorded.as_mut().unwrap().total.mse = Some(f64::NAN);
        assert_eq!(reasons("torch:e2e_mse<0", &broken).len(), 1);
        assert!(reasons("tensorrt-fp16:e2e_mse_ratio>9", &broken)[0].contains("NaN"));
    }

    #[test]
    fn a_failed_mode_fails_the_gate() {
        let mut failed = run();
        failed.modes[2].failure = Some("no engine".into());
        assert!(reasons("hz<1", &failed)[0].ends_with("the mode failed: no engine"));
    }

    #[test]
    fn a_mode_that_is_not_there_fails_and_gets_a_suggestion() {
        assert_eq!(
            reasons("tensorrt-fp61:hz<1", &run()),
            [
                "tensorrt-fp61:hz<1: expected a mode of the run (torch, tensorrt-fp16, tensorrt-int8), found \"tensorrt-fp61\"; did you mean tensorrt-fp16?"
            ]
        );
        assert_eq!(reasons("hz<1", &Run::default()), ["hz<1: the run has no modes"]);
        let alone = Run { modes: run().modes[..1].to_vec(), ..run() };
        assert_eq!(
            reasons("dit_cosine<0.5", &alone),
            ["dit_cosine<0.5: the run has only the reference mode torch, which has no dit_cosine"]
        );
        assert!(reasons("torch:dit_cosine<0.5", &run())[0].ends_with("torch is the reference mode itself"));
    }

    #[test]
    fn a_run_that_ended_early_does_not_pass() {
        let partial = Some(Partial { reason: "interrupted".into(), done: 2, planned: Some(5) });
        let run = Run { partial, ..run() };
        assert_eq!(reasons("hz<0", &run), ["the run is not complete: interrupted after 2 of 5 trajectories"]);
    }
}
