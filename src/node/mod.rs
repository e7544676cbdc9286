//! The policy node.
//!
//! Its parts without ROS and clocks: [`config`] (what it is told), [`assembly`] (messages to observations) and
//! [`trajectory`] (actions to messages).

pub mod assembly;
pub mod config;
pub mod trajectory;
