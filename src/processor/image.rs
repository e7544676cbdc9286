//! The evaluation image pipeline.
