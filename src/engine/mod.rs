//! Engines as files: what they were built from, whether they fit, and the statistics behind INT8.
//!
//! Nothing here knows CUDA or TensorRT; the module `tensorrt` builds and runs engines, and this one keeps them honest.
//!
//! | file | what it knows |
//! |---|---|
//! | [`EngineRecord`] | the JSON beside an engine, compared with [`EngineNeeds`] |
//! | [`EngineStore`] | the folder of engines: writing them whole, checking their hash before use |
//! | [`RebuildCommand`] | the command that builds what is missing or does not fit |
//! | [`CheckpointHasher`] | the identity of the weights |
//! | [`check_precision`] | what a GPU cannot run, and what is known to be wrong |
//! | [`activity`] | the build in progress: how far it is, and an end to it |
//! | [`fused`] | what an engine of the fused graph must be built for |
//! | [`calibration`] | ranges for INT8 from collected inputs |

pub mod activity;
mod checkpoint_hash;
mod error;
pub mod fused;
mod graph;
mod precision;
mod rebuild;
mod record;
mod store;

pub mod calibration;

pub use checkpoint_hash::CheckpointHasher;
pub use error::EngineError;
pub use fused::EngineChoice;
pub use graph::GraphKind;
pub use precision::{ComputeCapability, Precision, check_known, check_precision};
pub use rebuild::RebuildCommand;
pub use record::{
    AccuracyRecord, BuilderRecord, CalibrationRecord, CalibrationSource, CheckpointRecord, Difference,
    Differences, EngineNeeds, EngineRecord, GpuRecord, GraphRecord, LatencyRecord, PlanRecord, RECORD_FORMAT,
    ShapeRecord, VersionRecord,
};
pub use store::{EngineStore, StoredPlan};
