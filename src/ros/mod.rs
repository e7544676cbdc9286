//! ROS 2 messages and the transport under them.

pub mod msg;
pub mod transport;
