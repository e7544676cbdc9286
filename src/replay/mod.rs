//! Replaying recordings through the policy: how accurate and how fast is it?
//!
//! | file | part |
//! |---|---|
//! | [`options`] | which recording, and which policy sees it |
//! | [`command`] | that, and how it is replayed and judged |
//! | [`mode`] | what may run the network, by name |
//! | [`source`] | bags and datasets behind one face |
//! | [`capture`] | what the reference mode's action head was given, for other modes |
//! | [`predictions`] | predictions as a bag |
//! | [`session`] | one run of the command: progress, journal, tables, files |
//! | [`runner`] | the loop: modes, trajectories, observations |
//!
//! Observations come from the code that runs on the robot: a bag's messages go through the node's own
//! [`ObservationAssembler`](crate::node::assembly::ObservationAssembler), and everything through the same [`Policy`].
//!
//! [`Policy`]: crate::model::policy::Policy

pub mod capture;
pub mod command;
pub mod mode;
pub mod options;
pub mod predictions;
pub mod runner;
pub mod session;
pub mod source;
