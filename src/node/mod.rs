//! The policy node.
//!
//! Its parts without ROS and clocks: [`config`] (what it is told), [`assembly`] (messages to observations),
//! [`trajectory`] (actions to messages), [`outputs`] (what controllers follow), [`status`] (what it says on the terminal)
//! and [`diagnostics`] (what it says to other nodes). `policy` wires them to the transport and the model.

pub mod arguments;
pub mod assembly;
pub mod config;
pub mod diagnostics;
pub mod outputs;
#[cfg(all(feature = "torch", feature = "dds"))]
pub mod policy;
pub mod status;
pub mod trajectory;
