//! How accurate and how fast: from the numbers that a policy gives to tables, files and a page.
//!
//! | what | where |
//! |---|---|
//! | errors and latencies, streamed and mergeable, with their definitions | [`ErrorStats`], [`DenoisingErrors`], [`ActionErrors`], [`LatencySamples`] |
//! | one trajectory's results, which a journal keeps so that a broken run goes on | [`TrajectoryResult`], [`Journal`] |
//! | a whole run, saved as JSON | [`RunBuilder`], [`Run`] |
//! | terminal, CSV, HTML | [`report`] |
//! | figures by name, conditions on them, two runs side by side | [`Metric`], [`Gate`], [`Comparison`] |
//! | progress, Ctrl-C | [`Progress`], [`Interrupt`] |
//!
//! ```
//! use std::time::Duration;
//! use groot_policy::evaluation::{
//!     Component, Gate, ModeIdentity, ModeMeasurement, Run, RunBuilder, TrajectoryResult, report,
//! };
//!
//! let head = Run { reference: "torch".into(), ..Run::default() };
//! let mode = |name: &str| ModeIdentity { name: name.into(), backbone: "libtorch".into(), dit: name.into() };
//! let mut builder = RunBuilder::new(head, [mode("torch"), mode("fast")]);
//!
//! let mut fast = ModeMeasurement::new("fast");
//! fast.latency(Component::EndToEnd).push(Duration::from_millis(8));
//! fast.denoising.push(0, &[1.0, 2.0], &[1.0, 2.01])?;
//! builder.add(TrajectoryResult { name: "episode 0".into(), measurements: vec![fast], plot: None })?;
//!
//! let run = builder.finish(None);
//! print!("{}", report::terminal::summary(&run));
//! let page: String = report::page(&run);
//! let gate: Gate = "fast:dit_cosine<0.9999,fast:end_to_end_ms>10".parse()?;
//! assert!(gate.violations(&run).is_empty());
//! # assert!(page.contains("fast"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod compare;
mod gate;
mod interrupt;
mod journal;
mod metric;
mod metrics;
mod progress;
pub mod report;
mod run;

pub use compare::{Comparison, Difference, MetricPair, ModeComparison};
pub use gate::{Condition, Gate, GateError, Operator, Violation};
pub use interrupt::Interrupt;
pub use journal::{Journal, JournalError, key as journal_key};
pub use metric::{Better, ErrorFigure, LatencyFigure, Metric};
pub use metrics::*;
pub use progress::Progress;
pub use run::*;
