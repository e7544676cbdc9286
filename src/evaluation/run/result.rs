//! What was measured of one mode.

use serde::{Deserialize, Serialize};

use super::{
    super::metrics::{ActionSummary, DenoisingSummary, ErrorSummary, LatencySamples, LatencySummary},
    Component, Tick,
};

/// Most latency samples that a file keeps per component; of more, as many at even distances.
pub const MAX_KEPT_SAMPLES: usize = 4096;

/// Which programs and number formats a mode stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModeIdentity {
    /// Name on the command line: `tensorrt-fp16`.
    pub name: String,
    /// What runs the backbone: `libtorch bf16`.
    pub backbone: String,
    /// What runs the DiT: `TensorRT 10.3 fp16`.
    pub dit: String,
}

/// What was measured of one mode.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModeResult {
    /// Name on the command line.
    pub name: String,
    /// What runs the backbone.
    pub backbone: String,
    /// What runs the DiT.
    pub dit: String,
    /// Latencies per component.
    pub latencies: Vec<ComponentLatency>,
    /// The DiT's outputs against the reference mode's on the same inputs.
    pub denoising: Option<DenoisingSummary>,
    /// Normalised action chunks against the reference mode's from the same observation and noise.
    pub actions: Option<ErrorSummary>,
    /// Physical actions against the recorded ones.
    pub recorded: Option<ActionSummary>,
    /// The replayed observations in order, thinned out to [`MAX_TICKS`](super::MAX_TICKS) points.
    pub timeline: Vec<Tick>,
    /// Most device memory that was in use, in bytes.
    pub peak_device_bytes: Option<u64>,
    /// Why this mode was not measured or only in part; None where it was.
    pub failure: Option<String>,
    /// What a reader must know: one sentence each.
    pub notes: Vec<String>,
}

impl ModeResult {
    /// A mode of which nothing is measured yet.
    pub fn new(identity: ModeIdentity) -> Self {
        let ModeIdentity { name, backbone, dit } = identity;
        Self { name, backbone, dit, ..Self::default() }
    }

    /// Latency figures of a component, where it was measured.
    pub fn latency(&self, component: &Component) -> Option<&LatencySummary> {
        self.latencies.iter().find(|latency| latency.component == *component).map(|latency| &latency.summary)
    }
}

/// Latencies of one component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComponentLatency {
    /// Which.
    pub component: Component,
    /// The figures, from all measurements.
    pub summary: LatencySummary,
    /// The measurements in order, in milliseconds: all, or [`MAX_KEPT_SAMPLES`] at even distances.
    #[serde(default)]
    pub samples_ms: Vec<f64>,
}

impl ComponentLatency {
    /// The figures of these measurements; None without any.
    pub fn new(component: Component, samples: &LatencySamples) -> Option<Self> {
        let summary = samples.summary()?;
        let all = samples.milliseconds();
        let kept = all.len().min(MAX_KEPT_SAMPLES);
        let samples_ms = (0..kept).filter_map(|i| all.get(i * all.len() / kept).copied()).collect();
        Some(Self { component, summary, samples_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn figures_come_from_all_measurements_and_the_kept_ones_are_bounded() {
        let mut samples = LatencySamples::default();
        samples.extend((0..10_000).map(Duration::from_millis));
        let latency = ComponentLatency::new(Component::Dit, &samples).unwrap();
        assert_eq!((latency.summary.count, latency.summary.max), (10_000, 9999.0));
        assert_eq!(latency.samples_ms.len(), MAX_KEPT_SAMPLES);
        assert_eq!(latency.samples_ms[..3], [0.0, 2.0, 4.0]);
        assert!(latency.samples_ms.is_sorted());
        assert_eq!(ComponentLatency::new(Component::Dit, &LatencySamples::default()), None);
    }
}
