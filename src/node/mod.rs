//! The policy node.
//!
//! Its parts without ROS and clocks: [`config`] (what it is told), [`assembly`] (messages to observations),
//! [`trajectory`] (actions to messages), [`parameter_store`] (its parameters, read and changed from outside) and
//! [`status`] (what it says on the terminal). `parameter_server` and `lifecycle_services` offer services, `policy` wires
//! everything to the transport and the model.

pub mod arguments;
pub mod assembly;
pub mod config;
#[cfg(feature = "transport")]
pub mod lifecycle_services;
#[cfg(feature = "transport")]
pub mod parameter_server;
pub mod parameter_store;
#[cfg(all(feature = "torch", feature = "transport"))]
pub mod policy;
pub mod status;
pub mod trajectory;
