//! How accurate and how fast: from the numbers that a policy gives to tables, files and a page.

mod compare;
mod gate;
mod metric;
mod metrics;
mod run;

pub use compare::{Comparison, Difference, MetricPair, ModeComparison};
pub use gate::{Condition, Gate, GateError, Operator, Violation};
pub use metric::{Better, ErrorFigure, LatencyFigure, Metric};
pub use metrics::*;
pub use run::*;
