//! Action chunks to a steady flow of commands: which chunk is in force when, and how one takes over from another.
//!
//! | file | part |
//! |---|---|
//! | [`chunk`] | one prediction as positions over time |
//! | [`sampler`] | a chunk's position at any time |
//! | [`plan`] | what is being executed: one chunk, or several while one takes over from another |
//! | [`handover`] | how a chunk takes over: `replace`, `blend`, `rtc` |
//! | [`latency`] | how long the next answer will take |
//! | [`scheduler`] | when to ask for the next chunk, what to ask for, and which command is due now |
//! | [`simulation`] | what the three modes do to a simulated joint |
//!
//! Nothing here reads a clock, waits or locks: every time is an argument. So a prediction that takes long cannot hold up a
//! command, and every behaviour can be tested at any stamp.

pub mod chunk;
pub mod handover;
pub mod latency;
pub mod plan;
pub mod sampler;
pub mod scheduler;
pub mod simulation;

pub use chunk::{ChunkError, Layout, MotionChunk, MotionGroup, row_time};
pub use handover::{HandoverMode, Ramp};
pub use latency::LatencyEstimator;
pub use plan::{ActivePlan, Sample};
pub use sampler::Phase;
pub use scheduler::{Arrival, Counters, Dropped, RequestPlan, Scheduler, SchedulerConfig, SchedulerError};
