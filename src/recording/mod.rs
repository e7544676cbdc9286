//! Recordings of a robot, read in the order of time and in bounded memory.
//!
//! Every source gives the same [`Sample`]s: what the policy would have seen at one instant, and what the robot really
//! did from then on.

pub mod bag;
pub mod lerobot;
mod sample;
pub mod synthetic;

pub use sample::{Sample, Truth};
