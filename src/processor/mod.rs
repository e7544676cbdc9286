//! From what the robot saw to what the network reads, and from what it wrote to physical actions.

pub mod action;
pub mod image;
mod normalisation;
pub mod rotation;
pub mod setup;
mod sincos;
pub mod state;
pub mod text;
