//! The pipeline's numbers against those of the public reference.
//!
//! `GROOT_GOLDEN_DIR=<dir> cargo test --release --test golden` runs the suite on any directory laid out like
//! `tests/golden/tiny`: sizes, layer counts, cameras and observations come from its files.

mod checkpoint;
mod fixture;
#[cfg(feature = "torch")]
mod model;
mod observations;
#[cfg(feature = "torch")]
mod operations;
#[cfg(feature = "torch")]
mod tensors;
mod processor;
mod text;
