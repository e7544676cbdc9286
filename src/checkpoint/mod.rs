//! The model directory.

pub mod embodiments;
pub mod processor_config;
pub mod side_file;
pub mod statistics;
