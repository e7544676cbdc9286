//! The policy node.
