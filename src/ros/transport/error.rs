//! What can go wrong between a node and the network.

/// An error of the transport.
#[derive(Debug, thiserror::Error)]
pub enum RosError {
    /// A node, namespace or topic name breaks the ROS 2 naming rules.
    #[error("{what} {name:?} is not valid: {problem}")]
    Name {
        /// `node name`, `namespace` or `topic name`.
        what: &'static str,
        /// The offending name.
        name: String,
        /// The rule it breaks.
        problem: String,
    },
    /// An environment variable of ROS holds something else than it may.
    #[error("environment variable {variable} is {value:?}, expected {expected}")]
    Environment {
        /// The variable's name.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        expected: &'static str,
    },
    /// The DDS domain does not exist.
    #[error("DDS domain id {0} does not exist, expected 0 to {max}", max = super::options::MAX_DOMAIN_ID)]
    Domain(u16),
    /// The node was created outside a tokio runtime.
    #[error("a node needs a tokio runtime for its background tasks: create it inside one")]
    NoRuntime,
    /// The middleware refused.
    #[error("cannot {action}")]
    Middleware {
        /// What was tried, e.g. `subscribe to /joint_states`.
        action: String,
        /// The middleware's own words.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A reliable publisher has a full send window.
    #[error("message on {topic} was not sent: a reliable subscriber has stopped acknowledging")]
    Congested {
        /// The topic.
        topic: String,
    },
    /// The node has been shut down.
    #[error("the node has been shut down")]
    ShutDown,
}
