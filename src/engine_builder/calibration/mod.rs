//! INT8: from recordings to the ranges that an engine is built with.
//!
//! | file | step |
//! |---|---|
//! | [`collect`] | recordings through the policy, and what the fused graph was given at each denoising step into a set |
//! | [`inputs`] | such inputs: from a set, or of synthetic ticks |
//! | [`options`] | whose ranges, and by which rule |
//! | [`measure`] | the ranges of each product's activations, with libtorch |
//! | [`plan`] | what a build needs: a calibrator with its batches, or ranges for a graph with Q/DQ nodes |
//! | [`emulate`] | how accurate such a graph is, before TensorRT has seen it |

pub mod collect;
pub mod emulate;
pub mod inputs;
pub mod measure;
pub mod options;
pub mod plan;
