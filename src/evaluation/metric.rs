//! Figures by name, for gates and comparisons.

use std::fmt;

use super::{
    metrics::ErrorSummary,
    run::{Component, ModeResult, Run},
};

/// A figure of a mode that has a name of its own.
///
/// | name | figure |
/// |---|---|
/// | `dit_mse`, `dit_mae`, `dit_cosine`, `dit_cosine_min`, `dit_max_error` | the DiT's outputs against the reference mode's on the same inputs, over all denoising steps |
/// | `dit_growth` | MSE of the last denoising step / MSE of the first |
/// | `action_mse`, `action_mae`, `action_cosine`, `action_cosine_min`, `action_max_error` | normalised chunks against the reference mode's from the same noise |
/// | `e2e_mse`, `e2e_mae`, `e2e_cosine`, `e2e_max_error`, `e2e_nrmse` | physical actions against the recorded ones |
/// | `e2e_mse_ratio`, `e2e_mae_ratio` | the mode's figure / the reference mode's |
/// | `hz` | 1000 / median latency end to end |
/// | `speedup` | the reference mode's median latency end to end / the mode's |
/// | `peak_device_gb` | most device memory in use, in 10⁹ bytes |
/// | `<component>_ms`, `<component>_p90_ms`, `<component>_p99_ms`, `<component>_mean_ms`, `<component>_max_ms` | latency; `_ms` alone is the median |
///
/// Components are `data_processing`, `vision`, `language`, `backbone`, `dit`, `action_head` and `end_to_end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Metric {
    /// The DiT's outputs against the reference mode's.
    Dit(ErrorFigure),
    /// Growth of that error along the denoising steps.
    DitGrowth,
    /// Normalised chunks against the reference mode's.
    Action(ErrorFigure),
    /// Physical actions against the recording.
    EndToEnd(ErrorFigure),
    /// The same, normalised per dimension.
    EndToEndNrmse,
    /// The mode's figure against the recording divided by the reference mode's.
    EndToEndRatio(ErrorFigure),
    /// Ticks per second.
    Hz,
    /// The reference mode's latency divided by the mode's.
    Speedup,
    /// Device memory.
    PeakDeviceGb,
    /// Latency of a component.
    Latency(Component, LatencyFigure),
}

/// A figure of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorFigure {
    /// Mean squared error.
    Mse,
    /// Mean absolute error.
    Mae,
    /// Mean cosine of the samples.
    Cosine,
    /// Smallest cosine of a sample.
    CosineMin,
    /// Largest absolute error.
    MaxError,
}

impl ErrorFigure {
    fn name(self) -> &'static str {
        match self {
            Self::Mse => "mse",
            Self::Mae => "mae",
            Self::Cosine => "cosine",
            Self::CosineMin => "cosine_min",
            Self::MaxError => "max_error",
        }
    }

    fn of(self, errors: &ErrorSummary) -> Option<f64> {
        match self {
            Self::Mse => errors.mse,
            Self::Mae => errors.mae,
            Self::Cosine => errors.cosine,
            Self::CosineMin => errors.cosine_min,
            Self::MaxError => errors.max_abs,
        }
    }
}

/// A figure of a latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LatencyFigure {
    /// Median.
    Median,
    /// 90th percentile.
    P90,
    /// 99th percentile.
    P99,
    /// Mean.
    Mean,
    /// Largest.
    Max,
}

impl LatencyFigure {
    const ALL: [Self; 5] = [Self::Median, Self::P90, Self::P99, Self::Mean, Self::Max];

    fn suffix(self) -> &'static str {
        match self {
            Self::Median => "",
            Self::P90 => "_p90",
            Self::P99 => "_p99",
            Self::Mean => "_mean",
            Self::Max => "_max",
        }
    }
}

/// Whether a larger figure is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Errors, latencies.
    Lower,
    /// Cosines, rates.
    Higher,
}

impl Metric {
    /// All that have a name.
    pub fn all() -> impl Iterator<Item = Self> {
        use ErrorFigure::{Cosine, CosineMin, Mae, MaxError, Mse};
        let against_reference = [Mse, Mae, Cosine, CosineMin, MaxError];
        let dit = against_reference.into_iter().map(Self::Dit);
        let actions = against_reference.into_iter().map(Self::Action);
        let recorded = [Mse, Mae, Cosine, MaxError].into_iter().map(Self::EndToEnd);
        let ratios = [Mse, Mae].into_iter().map(Self::EndToEndRatio);
        let latencies = Component::ALL.into_iter().flat_map(|component| {
            LatencyFigure::ALL.into_iter().map(move |figure| Self::Latency(component.clone(), figure))
        });
        dit.chain([Self::DitGrowth])
            .chain(actions)
            .chain(recorded)
            .chain([Self::EndToEndNrmse])
            .chain(ratios)
            .chain([Self::Hz, Self::Speedup, Self::PeakDeviceGb])
            .chain(latencies)
    }

    /// The metric of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::all().find(|metric| metric.to_string() == name)
    }

    /// Whether the figure holds a mode against the reference mode, so that the reference mode itself has none.
    pub fn is_relative(&self) -> bool {
        matches!(
            self,
            Self::Dit(_) | Self::DitGrowth | Self::Action(_) | Self::EndToEndRatio(_) | Self::Speedup
        )
    }

    /// Which way is better.
    pub fn better(&self) -> Better {
        match self {
            Self::Hz | Self::Speedup => Better::Higher,
            Self::Dit(figure) | Self::Action(figure) | Self::EndToEnd(figure)
                if matches!(figure, ErrorFigure::Cosine | ErrorFigure::CosineMin) =>
            {
                Better::Higher
            }
            _ => Better::Lower,
        }
    }

    /// The figure of a mode of a run.
    ///
    /// # Errors
    /// In words why there is none: it was not measured, it is not a number, or the mode is the reference itself.
    pub fn value(&self, run: &Run, mode: &ModeResult) -> Result<f64, String> {
        if self.is_relative() && run.is_reference(mode) {
            return Err(format!("{} is the reference mode itself", mode.name));
        }
        let value = match self {
            Self::Dit(figure) => {
                let errors = mode.denoising.as_ref().map(|denoising| &denoising.overall);
                error(errors, *figure, "the DiT was not compared with the reference mode's")?
            }
            Self::DitGrowth => {
                let denoising = mode.denoising.as_ref();
                let denoising = denoising.ok_or("the DiT was not compared with the reference mode's")?;
                denoising.growth().ok_or(
                    "the error of the first or the last denoising step is missing or the first is zero",
                )?
            }
            Self::Action(figure) => {
                error(mode.actions.as_ref(), *figure, "actions were not compared with the reference mode's")?
            }
            Self::EndToEnd(figure) => recorded(mode, *figure)?,
            Self::EndToEndNrmse => {
                let summary = mode.recorded.as_ref().ok_or(NOT_RECORDED)?;
                summary.nrmse().ok_or("no dimension of the recording moves, or one was not measured")?
            }
            Self::EndToEndRatio(figure) => {
                let value = recorded(mode, *figure)?;
                let of_reference = recorded(reference(run)?, *figure)
                    .map_err(|reason| format!("reference mode: {reason}"))?;
                if of_reference == 0.0 {
                    return Err("the reference mode's figure is zero".to_owned());
                }
                value / of_reference
            }
            Self::Hz => rate(mode)?,
            Self::Speedup => {
                rate(mode)? / rate(reference(run)?).map_err(|reason| format!("reference mode: {reason}"))?
            }
            Self::PeakDeviceGb => {
                mode.peak_device_bytes.ok_or("device memory was not measured")? as f64 / 1e9
            }
            Self::Latency(component, figure) => {
                let summary = mode.latency(component);
                let summary = summary
                    .ok_or_else(|| format!("the latency of {} was not measured", component.label()))?;
                match figure {
                    LatencyFigure::Median => summary.median,
                    LatencyFigure::P90 => summary.p90,
                    LatencyFigure::P99 => summary.p99,
                    LatencyFigure::Mean => summary.mean,
                    LatencyFigure::Max => summary.max,
                }
            }
        };
        if value.is_finite() { Ok(value) } else { Err(format!("it is {value}")) }
    }
}

const NOT_RECORDED: &str = "actions were not compared with recorded ones";

fn error(errors: Option<&ErrorSummary>, figure: ErrorFigure, absent: &str) -> Result<f64, String> {
    let errors = errors.ok_or(absent)?;
    let missing = || errors.missing().unwrap_or_else(|| "it was not measured".to_owned());
    figure.of(errors).ok_or_else(missing)
}

fn recorded(mode: &ModeResult, figure: ErrorFigure) -> Result<f64, String> {
    error(mode.recorded.as_ref().map(|recorded| &recorded.total), figure, NOT_RECORDED)
}

fn rate(mode: &ModeResult) -> Result<f64, String> {
    let summary = mode.latency(&Component::EndToEnd).ok_or("the latency end to end was not measured")?;
    summary.hz().ok_or_else(|| "the median latency end to end is zero".to_owned())
}

fn reference(run: &Run) -> Result<&ModeResult, String> {
    run.reference_mode().ok_or_else(|| format!("the reference mode {:?} is not in the run", run.reference))
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dit(figure) => write!(f, "dit_{}", figure.name()),
            Self::DitGrowth => f.write_str("dit_growth"),
            Self::Action(figure) => write!(f, "action_{}", figure.name()),
            Self::EndToEnd(figure) => write!(f, "e2e_{}", figure.name()),
            Self::EndToEndNrmse => f.write_str("e2e_nrmse"),
            Self::EndToEndRatio(figure) => write!(f, "e2e_{}_ratio", figure.name()),
            Self::Hz => f.write_str("hz"),
            Self::Speedup => f.write_str("speedup"),
            Self::PeakDeviceGb => f.write_str("peak_device_gb"),
            Self::Latency(component, figure) => write!(f, "{}{}_ms", component.key(), figure.suffix()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_metric_has_a_name_of_its_own_by_which_it_is_found() {
        let names: Vec<String> = Metric::all().map(|metric| metric.to_string()).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        for metric in Metric::all() {
            assert_eq!(Metric::by_name(&metric.to_string()), Some(metric));
        }
        for name in ["dit_mse", "dit_cosine", "e2e_mse_ratio", "end_to_end_p99_ms", "dit_ms", "speedup"] {
            assert!(names.iter().any(|known| known == name), "{name}");
        }
        assert_eq!(Metric::by_name("dit"), None);
    }
}
