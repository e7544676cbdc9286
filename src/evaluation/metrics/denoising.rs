//! Errors of the DiT per denoising step.

use serde::{Deserialize, Serialize};

use super::{ErrorStats, ErrorSummary, MetricError};

/// More denoising steps than any sampler uses; a larger number is a mistake.
pub const MAX_DENOISING_STEPS: usize = 1024;

/// Errors of a tested DiT against the reference mode's, step by step.
///
/// At each denoising step both are fed the same inputs, those that the reference mode met on its own way, so that the error
/// of a step is that of the DiT alone and not of the steps before it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DenoisingErrors {
    steps: Vec<ErrorStats>,
}

impl DenoisingErrors {
    /// Takes the two outputs of denoising step `step` (from 0), flattened: one sample.
    ///
    /// # Errors
    /// Outputs of different lengths, a step beyond [`MAX_DENOISING_STEPS`].
    pub fn push(&mut self, step: usize, reference: &[f32], tested: &[f32]) -> Result<(), MetricError> {
        if step >= MAX_DENOISING_STEPS {
            return Err(MetricError::DenoisingStep(step));
        }
        let mut stats = ErrorStats::default();
        stats.push(reference, tested)?;
        if self.steps.len() <= step {
            self.steps.resize_with(step + 1, ErrorStats::default);
        }
        if let Some(entry) = self.steps.get_mut(step) {
            entry.merge(&stats);
        }
        Ok(())
    }

    /// Takes what another one has taken.
    pub fn merge(&mut self, other: &Self) {
        if self.steps.len() < other.steps.len() {
            self.steps.resize_with(other.steps.len(), ErrorStats::default);
        }
        self.steps.iter_mut().zip(&other.steps).for_each(|(mine, theirs)| mine.merge(theirs));
    }

    /// The figures; None where nothing was compared.
    pub fn summary(&self) -> Option<DenoisingSummary> {
        if self.steps.is_empty() {
            return None;
        }
        let mut overall = ErrorStats::default();
        self.steps.iter().for_each(|step| overall.merge(step));
        Some(DenoisingSummary {
            overall: overall.summary(),
            steps: self.steps.iter().map(ErrorStats::summary).collect(),
        })
    }
}

/// The figures of [`DenoisingErrors`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DenoisingSummary {
    /// Over all steps; one sample is one output of one step.
    pub overall: ErrorSummary,
    /// Per denoising step, from 0.
    pub steps: Vec<ErrorSummary>,
}

impl DenoisingSummary {
    /// How the error grows along the steps: the last step's MSE divided by the first's.
    ///
    /// None where one of them was not measured, and where the first is zero: nothing can be said about growth then.
    pub fn growth(&self) -> Option<f64> {
        let first = self.steps.first()?.mse?;
        let last = self.steps.last()?.mse?;
        (first > 0.0).then(|| last / first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(steps: &[&[f32]]) -> DenoisingErrors {
        let mut errors = DenoisingErrors::default();
        for (step, tested) in steps.iter().enumerate() {
            errors.push(step, &vec![1.0; tested.len()], tested).unwrap();
        }
        errors
    }

    #[test]
    fn growth_is_the_last_steps_mse_over_the_firsts() {
        let summary = errors(&[&[2.0, 1.0], &[1.0, 1.0], &[3.0, 2.0]]).summary().unwrap();
        let mse: Vec<_> = summary.steps.iter().map(|step| step.mse.unwrap()).collect();
        assert_eq!(mse, [0.5, 0.0, 2.5]);
        assert_eq!(summary.growth(), Some(5.0));
        assert_eq!(summary.overall.mse, Some(1.0));
        assert_eq!(summary.overall.samples, 3);
    }

    #[test]
    fn there_is_no_growth_from_zero_and_none_from_what_was_not_measured() {
        assert_eq!(errors(&[&[1.0], &[2.0]]).summary().unwrap().growth(), None);
        assert_eq!(errors(&[&[2.0], &[f32::NAN]]).summary().unwrap().growth(), None);
        assert_eq!(DenoisingErrors::default().summary(), None);
        let mut late = DenoisingErrors::default();
        late.push(2, &[1.0], &[2.0]).unwrap();
        assert_eq!(late.summary().unwrap().growth(), None);
    }

    #[test]
    fn merging_adds_the_steps_that_only_the_other_has() {
        let mut merged = errors(&[&[2.0]]);
        merged.merge(&errors(&[&[4.0], &[3.0]]));
        let summary = merged.summary().unwrap();
        let mse: Vec<_> = summary.steps.iter().map(|step| step.mse.unwrap()).collect();
        assert_eq!(mse, [5.0, 4.0]);
    }

    #[test]
    fn an_absurd_step_is_refused_and_takes_no_memory() {
        let error = DenoisingErrors::default().push(usize::MAX, &[1.0], &[1.0]).unwrap_err();
        assert!(error.to_string().starts_with("expected a denoising step below 1024, found"));
    }
}
