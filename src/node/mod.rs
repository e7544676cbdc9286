//! The policy node.
//!
//! Its parts without ROS and clocks: [`config`] (what it is told), [`assembly`] (messages to observations),
//! [`chunk_message`] (actions to the message of a chunk), [`outputs`] (what controllers follow), [`parameter_store`] (its
//! parameters, read and changed from outside), [`status`] (what it says on the terminal), [`diagnostics`] (what it says to
//! other nodes) and [`transition_events`] (how it tells of changes of its state).
//! `parameter_server` and `lifecycle_services` offer services, `policy` wires everything to the transport and the model.

pub mod arguments;
pub mod assembly;
pub mod chunk_message;
pub mod config;
pub mod diagnostics;
#[cfg(feature = "transport")]
pub mod lifecycle_services;
pub mod outputs;
#[cfg(feature = "transport")]
pub mod parameter_server;
pub mod parameter_store;
#[cfg(all(feature = "torch", feature = "transport"))]
pub mod policy;
#[cfg(feature = "torch")]
pub mod policy_options;
pub mod status;
pub mod tool_command;
pub mod transition_events;
