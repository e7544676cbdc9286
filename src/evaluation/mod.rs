//! How accurate and how fast: from the numbers that a policy gives to tables, files and a page.

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
