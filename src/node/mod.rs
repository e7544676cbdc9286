//! The policy node.

pub mod config;
