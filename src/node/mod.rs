//! The policy node.
//!
//! Its parts without ROS and clocks: [`config`] (what it is told), [`assembly`] (messages to observations),
//! [`trajectory`] (actions to messages) and [`status`] (what it says on the terminal). `policy` wires them to the
//! transport and the model.

pub mod arguments;
pub mod assembly;
pub mod config;
#[cfg(all(feature = "torch", feature = "dds"))]
pub mod policy;
pub mod status;
pub mod trajectory;
