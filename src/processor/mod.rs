//! From what the robot saw to what the network reads, and from what it wrote to physical actions.

pub mod image;
