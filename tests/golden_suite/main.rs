//! The pipeline's numbers against those of the public reference.
//!
//! `GROOT_GOLDEN_DIR=<dir> cargo test --release --test golden` runs the suite on any directory laid out like
//! `tests/golden/tiny`: sizes, layer counts, cameras and observations come from its files.

mod checkpoint;
mod fixture;
mod images;
#[cfg(feature = "torch")]
mod model;
#[cfg(feature = "torch")]
mod observations;
#[cfg(feature = "torch")]
mod operations;
mod processor;
#[cfg(feature = "torch")]
mod tensors;
mod text;
