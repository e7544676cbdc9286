//! Two runs side by side: two machines, two versions, two checkpoints.

use super::{
    metric::{Better, Metric},
    run::{ModeResult, Run},
};

/// Something that is not the same in both runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What, as a path into the file: `options.stride`.
    pub what: String,
    /// In the first run.
    pub a: String,
    /// In the second.
    pub b: String,
}

/// One figure in both runs.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricPair {
    /// Which.
    pub metric: Metric,
    /// In the first run, or why there is none.
    pub a: Result<f64, String>,
    /// In the second.
    pub b: Result<f64, String>,
}

impl MetricPair {
    /// The second run's figure divided by the first's; None where one is missing or the first is zero.
    pub fn ratio(&self) -> Option<f64> {
        let (a, b) = (self.a.as_ref().ok()?, self.b.as_ref().ok()?);
        let ratio = b / a;
        ratio.is_finite().then_some(ratio)
    }

    /// Which run has the better figure: `A`, `B` or `same`; None where one is missing.
    pub fn better(&self) -> Option<&'static str> {
        let (a, b) = (self.a.as_ref().ok()?, self.b.as_ref().ok()?);
        let b_is_better = match self.metric.better() {
            Better::Lower => b < a,
            Better::Higher => b > a,
        };
        Some(if a == b {
            "same"
        } else if b_is_better {
            "B"
        } else {
            "A"
        })
    }
}

/// A mode that both runs have.
#[derive(Debug, Clone, PartialEq)]
pub struct ModeComparison {
    /// Its name.
    pub mode: String,
    /// The figures that at least one run has.
    pub metrics: Vec<MetricPair>,
}

/// Two runs side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// What to call the runs.
    pub names: [String; 2],
    /// Anything but the results that differs: the first thing to read.
    pub differences: Vec<Difference>,
    /// Modes that both have, in the first run's order.
    pub modes: Vec<ModeComparison>,
    /// Modes that only the first run has.
    pub only_a: Vec<String>,
    /// Modes that only the second run has.
    pub only_b: Vec<String>,
    /// What weakens the comparison: one sentence each.
    pub warnings: Vec<String>,
}

impl Comparison {
    /// Compares two runs; the names are for headings, the files' names for instance.
    pub fn new(names: [&str; 2], a: &Run, b: &Run) -> Self {
        let both = a.modes.iter().filter_map(|mode| Some((mode, b.mode(&mode.name)?)));
        let only = |these: &Run, those: &Run| -> Vec<String> {
            let only = these.modes.iter().filter(|mode| those.mode(&mode.name).is_none());
            only.map(|mode| mode.name.clone()).collect()
        };
        let modes = both.map(|(mode_a, mode_b)| compare_modes((a, mode_a), (b, mode_b)));
        Self {
            names: names.map(str::to_owned),
            differences: differences(a, b),
            modes: modes.collect(),
            only_a: only(a, b),
            only_b: only(b, a),
            warnings: warnings(names, a, b),
        }
    }
}

fn compare_modes((run_a, a): (&Run, &ModeResult), (run_b, b): (&Run, &ModeResult)) -> ModeComparison {
    let pairs = Metric::all().map(|metric| MetricPair {
        a: metric.value(run_a, a),
        b: metric.value(run_b, b),
        metric,
    });
    ModeComparison {
        mode: a.name.clone(),
        metrics: pairs.filter(|pair| pair.a.is_ok() || pair.b.is_ok()).collect(),
    }
}

/// All leaves of what describes the runs, in which they differ.
fn differences(a: &Run, b: &Run) -> Vec<Difference> {
    let identities = |run: &Run| -> serde_json::Value {
        let modes = run.modes.iter().map(|mode| {
            let identity = serde_json::json!({ "backbone": mode.backbone, "dit": mode.dit });
            (mode.name.clone(), identity)
        });
        serde_json::Value::Object(modes.collect())
    };
    // Of the modes that only one run has the comparison speaks elsewhere.
    let (mut modes_a, mut modes_b) = (identities(a), identities(b));
    if let (Some(in_a), Some(in_b)) = (modes_a.as_object_mut(), modes_b.as_object_mut()) {
        in_a.retain(|name, _| in_b.contains_key(name));
        in_b.retain(|name, _| in_a.contains_key(name));
    }
    let described = |run: &Run, modes: serde_json::Value| {
        serde_json::json!({
            "machine": run.machine,
            "checkpoint": run.checkpoint,
            "source": run.source,
            "options": run.options,
            "reference": run.reference,
            "tool": run.tool,
            "modes": modes,
        })
    };
    json_differences(&described(a, modes_a), &described(b, modes_b))
}

/// The leaves in which two JSON values differ.
pub(super) fn json_differences(a: &serde_json::Value, b: &serde_json::Value) -> Vec<Difference> {
    let mut found = Vec::new();
    collect_differences(String::new(), Some(a), Some(b), &mut found);
    found
}

fn collect_differences(
    path: String,
    a: Option<&serde_json::Value>,
    b: Option<&serde_json::Value>,
    found: &mut Vec<Difference>,
) {
    use serde_json::Value;
    if a == b {
        return;
    }
    let child = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match (a, b) {
        (Some(Value::Object(in_a)), Some(Value::Object(in_b))) => {
            let only_b = in_b.keys().filter(|name| !in_a.contains_key(*name));
            for name in in_a.keys().chain(only_b) {
                collect_differences(child(name), in_a.get(name), in_b.get(name), found);
            }
        }
        (Some(Value::Array(in_a)), Some(Value::Array(in_b)))
            if in_a.iter().chain(in_b).any(serde_json::Value::is_object) =>
        {
            for i in 0..in_a.len().max(in_b.len()) {
                collect_differences(child(&i.to_string()), in_a.get(i), in_b.get(i), found);
            }
        }
        _ => found.push(Difference { what: path, a: leaf(a), b: leaf(b) }),
    }
}

fn leaf(value: Option<&serde_json::Value>) -> String {
    match value {
        None | Some(serde_json::Value::Null) => "none".to_owned(),
        Some(serde_json::Value::String(text)) if text.is_empty() => "none".to_owned(),
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn warnings(names: [&str; 2], a: &Run, b: &Run) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, run) in names.into_iter().zip([a, b]) {
        if let Some(partial) = &run.partial {
            warnings.push(format!("{name} is not complete: {partial}"));
        }
        for mode in &run.modes {
            if let Some(failure) = &mode.failure {
                warnings.push(format!("{name}: mode {} failed: {failure}", mode.name));
            }
        }
    }
    if a.reference != b.reference {
        warnings.push(format!(
            "the reference modes differ ({} and {}): errors of the DiT and ratios are not against the same thing",
            a.reference, b.reference
        ));
    }
    if a.source.name != b.source.name || a.source.hash != b.source.hash || a.options != b.options {
        warnings.push("recordings or options differ: errors may differ for that reason alone".to_owned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::{
        Component, ComponentLatency, DenoisingSummary, ErrorSummary, Gpu, LatencySummary, Machine, Options,
        Partial,
    };

    fn mode(name: &str, median: f64, mse: f64) -> ModeResult {
        let summary =
            LatencySummary { median, p90: median, p99: median, mean: median, ..LatencySummary::default() };
        let overall = ErrorSummary { count: 4, mse: Some(mse), ..ErrorSummary::default() };
        ModeResult {
            name: name.into(),
            dit: format!("{name} dit"),
            latencies: vec![ComponentLatency {
                component: Component::EndToEnd,
                summary,
                samples_ms: Vec::new(),
            }],
            denoising: Some(DenoisingSummary { overall, steps: Vec::new() }),
            ..ModeResult::default()
        }
    }

    fn run(modes: Vec<ModeResult>, gpu: &str, stride: u64) -> Run {
        Run {
            reference: "torch".into(),
            machine: Machine { gpus: vec![Gpu { name: gpu.into(), ..Gpu::default() }], ..Machine::default() },
            options: Options { stride, ..Options::default() },
            modes,
            ..Run::default()
        }
    }

    #[test]
    fn modes_are_compared_figure_by_figure_with_ratios() {
        let a =
            run(vec![mode("torch", 400.0, 0.0), mode("fast", 200.0, 2e-5), mode("old", 1.0, 0.0)], "Orin", 8);
        let b =
            run(vec![mode("new", 1.0, 0.0), mode("torch", 100.0, 0.0), mode("fast", 20.0, 4e-5)], "Orin", 8);
        let comparison = Comparison::new(["a.json", "b.json"], &a, &b);
        assert_eq!(comparison.differences, []);
        assert_eq!((comparison.only_a, comparison.only_b), (vec!["old".to_owned()], vec!["new".to_owned()]));
        assert_eq!(comparison.warnings, Vec::<String>::new());
        let fast = comparison.modes.iter().find(|mode| mode.mode == "fast").unwrap();
        let pair = |name: &str| fast.metrics.iter().find(|pair| pair.metric.to_string() == name);
        let ratio = |name: &str| pair(name).and_then(MetricPair::ratio);
        assert_eq!(
            (ratio("end_to_end_ms"), ratio("dit_mse"), ratio("speedup")),
            (Some(0.1), Some(2.0), Some(2.5))
        );
        assert_eq!(pair("vision_ms"), None, "neither run has it");
        let torch = &comparison.modes[0];
        assert!(torch.metrics.iter().all(|pair| !pair.metric.is_relative()), "{torch:?}");
    }

    #[test]
    fn differences_in_machine_options_and_engines_are_named() {
        let a = run(vec![mode("fast", 200.0, 0.0)], "Orin", 8);
        let mut b = run(vec![mode("fast", 20.0, 0.0)], "H100", 16);
        b.modes[0].dit = "other dit".into();
        let differences = Comparison::new(["a", "b"], &a, &b).differences;
        let shown: Vec<_> = differences
            .iter()
            .map(|found| (found.what.as_str(), found.a.as_str(), found.b.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                ("machine.gpus.0.name", "Orin", "H100"),
                ("options.stride", "8", "16"),
                ("modes.fast.dit", "fast dit", "other dit")
            ]
        );
    }

    #[test]
    fn a_ratio_to_zero_or_to_nothing_is_none() {
        let pair = |a, b| MetricPair { metric: Metric::Hz, a, b };
        assert_eq!(pair(Ok(0.0), Ok(1.0)).ratio(), None);
        assert_eq!(pair(Ok(1.0), Err(String::new())).ratio(), None);
        assert_eq!(pair(Ok(2.0), Ok(1.0)).ratio(), Some(0.5));
    }

    #[test]
    fn what_weakens_the_comparison_is_said() {
        let a = run(vec![], "Orin", 8);
        let mut b =
            run(vec![ModeResult { failure: Some("no engine".into()), ..mode("x", 1.0, 1.0) }], "Orin", 9);
        b.reference = "eager".into();
        b.partial = Some(Partial { reason: "interrupted".into(), done: 1, planned: None });
        assert_eq!(
            Comparison::new(["a", "b"], &a, &b).warnings,
            [
                "b is not complete: interrupted after 1 trajectories",
                "b: mode x failed: no engine",
                "the reference modes differ (torch and eager): errors of the DiT and ratios are not against the same thing",
                "recordings or options differ: errors may differ for that reason alone"
            ]
        );
    }
}
