//! The transport: topics in, topics out, services, over the network of ROS 2.
//!
//! [`RosNode`], [`Subscription`], [`Publisher`] and [`ServiceServer`] are what the rest of the package knows. What carries the bytes is a
//! module behind them, chosen when the package is built:
//!
//! | feature | module | for |
//! |---|---|---|
//! | `dds` | `dds` | machines without ROS 2; on the wire a node like any other |
//! | `r2r` | `r2r` | robots: the client library and the middleware of the ROS 2 that is sourced; wins where both are on |
//!
//! Such a module offers `Node` (`open`, `subscribe`, `advertise`, `serve`, `close`), `Writer` and `Reader` (the two ends of
//! a topic, both of which know who is connected) and `Server`; names, environment, clock, inboxes and counters are ours and
//! the same for all. The services are those of [`srv`](crate::ros::srv) and no others, so that a client library whose
//! services are typed can be given a match arm for each.
//!
//! The `dds` transport is built for the node graph of one ROS 2 distribution, feature `humble` or `jazzy` (both: jazzy).
//! Topics work with any; `ros2 node list` shows the node only on its own.

#[cfg(all(feature = "dds", not(any(feature = "humble", feature = "jazzy"))))]
compile_error!(
    "feature `dds` needs the ROS 2 distribution whose node graph it joins: add feature `humble` or `jazzy`"
);

#[cfg(all(feature = "transport", not(any(feature = "dds", feature = "r2r"))))]
compile_error!("feature `transport` is set by the transports: choose `dds` or `r2r`");

#[cfg(feature = "transport")]
mod clock;
#[cfg(all(feature = "dds", not(feature = "r2r")))]
mod dds;
mod error;
mod name;
#[cfg(feature = "transport")]
mod node;
mod options;
mod qos;
#[cfg(feature = "r2r")]
mod r2r;
#[cfg(feature = "transport")]
mod service;
mod signal;
#[cfg(feature = "transport")]
mod subscription;

#[cfg(all(feature = "dds", not(feature = "r2r")))]
use dds as backend;
#[cfg(feature = "r2r")]
use r2r as backend;

pub use error::RosError;
pub use name::NodeName;
pub use options::{
    Network, NodeOptions, ServiceMapping, kernel_receive_buffer_limit, receive_buffer_warning,
};
pub use qos::Qos;
pub use signal::shutdown_signal;
#[cfg(feature = "transport")]
pub use {
    node::{Publisher, RosNode},
    service::{ServiceCounters, ServiceServer},
    subscription::{Counters, Received, Subscription},
};

/// Whether this transport knows which messages were sent and never came: the client library keeps it to itself.
pub const COUNTS_LOST: bool = cfg!(not(feature = "r2r"));

/// Directives for `tracing_subscriber::EnvFilter` that silence what the middleware says without need, and leave its
/// errors and its warnings about incompatible quality of service.
///
/// What is silenced and why: every orderly stop reports `leave_multicast_group` and often `Cannot notify spin task`;
/// peers that are just leaving cause `No locators`; small kernel buffers, which we explain ourselves, are reported once
/// per socket. `r2r` takes a publisher's leave for a message that it failed to read, and reports as well what it returns.
pub const LOG_DIRECTIVES: &str = "rustdds=error,rustdds::rtps::reader=warn,rustdds::network::udp_listener=off,\
                                  ros2_client=error,ros2_client::node=off,\
                                  r2r::subscribers=off,r2r::publishers=off";
