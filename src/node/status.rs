//! The line a second on the terminal: how the node fares, in words that fit one line.

use std::{fmt::Write as _, time::Duration};

use super::assembly::InputReport;

/// What became of the ticks since the last line.
#[derive(Debug, Default)]
pub struct StatusWindow {
    /// Stage durations of each prediction.
    predictions: Vec<[(&'static str, Duration); 5]>,
    /// Ticks without an observation, and why the last one had none.
    blocked: u64,
    blocked_because: Option<String>,
    /// Failed predictions or publications, and why the last one failed.
    failed: u64,
    failed_because: Option<String>,
}

impl StatusWindow {
    /// Counts a prediction that was published; the last stage is the total.
    pub fn predicted(&mut self, stages: [(&'static str, Duration); 5]) {
        self.predictions.push(stages);
    }

    /// Counts a tick that had nothing to predict from.
    pub fn blocked(&mut self, reason: impl ToString) {
        self.blocked += 1;
        self.blocked_because = Some(reason.to_string());
    }

    /// Counts a tick whose prediction failed.
    pub fn failed(&mut self, reason: impl ToString) {
        self.failed += 1;
        self.failed_because = Some(reason.to_string());
    }

    /// Why the last failed tick failed.
    pub fn last_failure(&self) -> Option<&str> {
        self.failed_because.as_deref()
    }

    /// The line for a window of length `elapsed`, after `chunks` chunks altogether.
    pub fn line(&self, elapsed: Duration, inputs: &[InputReport], chunks: u64, note: &str) -> String {
        let rate = self.predictions.len() as f64 / elapsed.as_secs_f64().max(1e-9);
        let mut line = format!("{rate:5.1} Hz");
        if let Some(first) = self.predictions.first() {
            let stages: Vec<String> = (0..first.len())
                .map(|i| {
                    let mut times: Vec<Duration> = self.predictions.iter().map(|p| p[i].1).collect();
                    times.sort_unstable();
                    format!("{} {:.1}", first[i].0, times[times.len() / 2].as_secs_f64() * 1e3)
                })
                .collect();
            // Writing to a string cannot fail.
            let _ = write!(line, " | ms: {}", stages.join(", "));
        }
        let ages: Vec<String> = inputs
            .iter()
            .map(|input| match input.age {
                Some(age) => format!("{} {} ms", input.input, age.as_millis()),
                None => format!("{} none yet", input.input),
            })
            .collect();
        let _ = write!(line, " | age: {} | {chunks} chunks", ages.join(", "));
        if let Some(reason) = &self.blocked_because {
            let _ = write!(line, " | {} ticks blocked: {reason}", self.blocked);
        }
        if let Some(reason) = &self.failed_because {
            let _ = write!(line, " | {} ticks FAILED: {reason}", self.failed);
        }
        if !note.is_empty() {
            let _ = write!(line, " | {note}");
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::assembly::{Input, InputCounts};

    fn stages(total: u64) -> [(&'static str, Duration); 5] {
        ["preprocess", "vision", "language", "action_head", "total"]
            .map(|name| (name, Duration::from_millis(if name == "total" { total } else { 1 })))
    }

    fn input(age: Option<u64>) -> InputReport {
        let age = age.map(Duration::from_millis);
        let input = Input::Camera("front".to_owned());
        InputReport { input, age, counts: InputCounts::default(), last_error: None }
    }

    #[test]
    fn the_line_tells_rate_median_latency_per_stage_and_input_ages() {
        let mut window = StatusWindow::default();
        [40, 10, 30].into_iter().for_each(|total| window.predicted(stages(total)));
        let line = window.line(Duration::from_secs(1), &[input(Some(21))], 7, "random weights");
        for part in ["3.0 Hz", "vision 1.0", "total 30.0", "camera front 21 ms", "7 chunks", "random weights"]
        {
            assert!(line.contains(part), "{part:?} is not in {line:?}");
        }
        assert!(!line.contains("blocked") && !line.contains("FAILED"), "{line}");
    }

    #[test]
    fn a_window_without_predictions_says_what_is_missing() {
        let mut window = StatusWindow::default();
        window.blocked("waiting for camera front");
        window.blocked("waiting for camera front");
        window.failed("the action head produced NaN");
        let line = window.line(Duration::from_secs(1), &[input(None)], 0, "");
        for part in
            ["0.0 Hz", "none yet", "2 ticks blocked: waiting for camera front", "1 ticks FAILED: the action"]
        {
            assert!(line.contains(part), "{part:?} is not in {line:?}");
        }
    }
}
