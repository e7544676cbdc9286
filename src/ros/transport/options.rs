//! How a node joins the network: its options, and the environment variables of ROS 2 that fill what they leave open.

use super::error::RosError;

/// Highest DDS domain whose ports fit below 65536.
pub(super) const MAX_DOMAIN_ID: u16 = 232;

/// Receive buffer below which raw camera images are lost, in bytes: a 640x480 rgb8 image is 0.9 MB and several cameras
/// send theirs at once.
const NEEDED_RECEIVE_BUFFER: u64 = 4 << 20;

/// How calls of a service are written in DDS. The middlewares of ROS 2 disagree on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ServiceMapping {
    /// Each client is answered in the way of its own middleware, known by the vendor in its identifier: Cyclone DDS as
    /// [`ServiceMapping::Cyclone`], all others as [`ServiceMapping::Enhanced`].
    #[default]
    Auto,
    /// "Enhanced" of the OMG's RPC over DDS: the call's identity travels beside the data. Fast DDS, RTI Connext.
    Enhanced,
    /// "Basic" of the OMG's RPC over DDS: the call's identity is a header of the data. Connext where it is told to.
    Basic,
    /// A header of 16 bytes: `rmw_cyclonedds`.
    Cyclone,
}

/// How a node joins the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOptions {
    /// The node's name.
    pub name: String,
    /// The node's namespace; empty or `/` is the root.
    pub namespace: String,
    /// DDS domain; `None` reads `ROS_DOMAIN_ID` and falls back to 0.
    pub domain_id: Option<u16>,
    /// Whether to talk to this machine only; `None` reads `ROS_LOCALHOST_ONLY` and `ROS_AUTOMATIC_DISCOVERY_RANGE`.
    pub localhost_only: Option<bool>,
    /// Receive buffer to ask the kernel for, per socket, in bytes.
    pub socket_receive_buffer: usize,
    /// Topic and service names to replace, each with what stands in its place, as in `-r from:=to`. The first that
    /// matches counts.
    pub remaps: Vec<(String, String)>,
    /// Whether the node's clock follows `/clock` instead of the system's.
    pub use_sim_time: bool,
    /// How service calls are written.
    pub service_mapping: ServiceMapping,
}

impl NodeOptions {
    /// A node in the root namespace that takes everything else from the environment.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: String::new(),
            domain_id: None,
            localhost_only: None,
            socket_receive_buffer: 8 << 20,
            remaps: Vec::new(),
            use_sim_time: false,
            service_mapping: ServiceMapping::Auto,
        }
    }

    /// Domain and reach, from the options where they say it and else from the environment.
    ///
    /// # Errors
    /// [`RosError::Environment`] for a variable that cannot be read as what it should be, [`RosError::Domain`] for a
    /// domain that does not exist.
    pub fn network(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Network, RosError> {
        // ROS takes an empty variable for one that is not set.
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        let domain_id = match self.domain_id {
            Some(domain) => domain,
            None => domain_from(variable("ROS_DOMAIN_ID"))?,
        };
        if domain_id > MAX_DOMAIN_ID {
            return Err(RosError::Domain(domain_id));
        }
        let localhost_only = match self.localhost_only {
            Some(only) => only,
            // As in rcl: the older variable, where it is switched on, outweighs the newer one.
            None => {
                localhost_from(variable("ROS_LOCALHOST_ONLY"))?
                    || range_is_localhost(variable("ROS_AUTOMATIC_DISCOVERY_RANGE"))?
            }
        };
        Ok(Network { domain_id, localhost_only })
    }
}

/// Where on the network a node lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// DDS domain.
    pub domain_id: u16,
    /// Whether only the loopback interface is used.
    pub localhost_only: bool,
}

fn domain_from(value: Option<String>) -> Result<u16, RosError> {
    let Some(value) = value else { return Ok(0) };
    value.trim().parse().map_err(|_| RosError::Environment {
        variable: "ROS_DOMAIN_ID",
        value,
        expected: "a number from 0 to 232",
    })
}

fn localhost_from(value: Option<String>) -> Result<bool, RosError> {
    match value.as_deref() {
        None | Some("0") => Ok(false),
        Some("1") => Ok(true),
        Some(other) => Err(RosError::Environment {
            variable: "ROS_LOCALHOST_ONLY",
            value: other.to_owned(),
            expected: "0 or 1",
        }),
    }
}

fn range_is_localhost(value: Option<String>) -> Result<bool, RosError> {
    match value.as_deref() {
        None | Some("SUBNET" | "SYSTEM_DEFAULT") => Ok(false),
        Some("LOCALHOST") => Ok(true),
        Some("OFF") => Err(RosError::Environment {
            variable: "ROS_AUTOMATIC_DISCOVERY_RANGE",
            value: "OFF".to_owned(),
            expected: "SUBNET, LOCALHOST or SYSTEM_DEFAULT: this transport cannot be kept from discovering peers",
        }),
        Some(other) => Err(RosError::Environment {
            variable: "ROS_AUTOMATIC_DISCOVERY_RANGE",
            value: other.to_owned(),
            expected: "SUBNET, LOCALHOST or SYSTEM_DEFAULT",
        }),
    }
}

/// What to tell the user if the kernel's receive buffers, of at most `limit` bytes, are too small for raw images.
pub fn receive_buffer_warning(limit: u64) -> Option<String> {
    (limit < NEEDED_RECEIVE_BUFFER).then(|| {
        format!(
            "the kernel grants receive buffers of at most {limit} bytes, less than the {NEEDED_RECEIVE_BUFFER} that \
             raw camera images need: most will be lost. Raise the limit with `sudo sysctl -w \
             net.core.rmem_max={}`, or subscribe to compressed images",
            2 * NEEDED_RECEIVE_BUFFER
        )
    })
}

/// The largest receive buffer that the kernel grants, in bytes; `None` where it does not say (not Linux).
pub fn kernel_receive_buffer_limit() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/net/core/rmem_max").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(options: &NodeOptions, environment: &[(&str, &str)]) -> Result<Network, String> {
        let lookup = |name: &str| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        options.network(lookup).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_environment_means_domain_0_on_every_network() {
        let everywhere = Ok(Network { domain_id: 0, localhost_only: false });
        assert_eq!(network(&NodeOptions::new("n"), &[]), everywhere);
        let empty =
            [("ROS_DOMAIN_ID", ""), ("ROS_LOCALHOST_ONLY", ""), ("ROS_AUTOMATIC_DISCOVERY_RANGE", "")];
        assert_eq!(network(&NodeOptions::new("n"), &empty), everywhere);
    }

    #[test]
    fn the_environment_chooses_domain_and_reach() {
        let options = NodeOptions::new("n");
        let reach = |environment: &[(&str, &str)]| network(&options, environment).map(|n| n.localhost_only);
        assert_eq!(network(&options, &[("ROS_DOMAIN_ID", "42")]).map(|n| n.domain_id), Ok(42));
        assert_eq!(reach(&[("ROS_LOCALHOST_ONLY", "1")]), Ok(true));
        assert_eq!(reach(&[("ROS_LOCALHOST_ONLY", "0")]), Ok(false));
        assert_eq!(reach(&[("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")]), Ok(true));
        assert_eq!(reach(&[("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")]), Ok(false));
        assert_eq!(reach(&[("ROS_AUTOMATIC_DISCOVERY_RANGE", "SYSTEM_DEFAULT")]), Ok(false));
        assert_eq!(
            reach(&[("ROS_LOCALHOST_ONLY", "1"), ("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")]),
            Ok(true)
        );
    }

    #[test]
    fn options_outweigh_the_environment() {
        let options =
            NodeOptions { domain_id: Some(7), localhost_only: Some(false), ..NodeOptions::new("n") };
        let environment = [("ROS_DOMAIN_ID", "not a number"), ("ROS_LOCALHOST_ONLY", "1")];
        assert_eq!(network(&options, &environment), Ok(Network { domain_id: 7, localhost_only: false }));
    }

    #[test]
    fn a_variable_that_makes_no_sense_is_refused_by_name_and_value() {
        for (variable, value) in [
            ("ROS_DOMAIN_ID", "-1"),
            ("ROS_DOMAIN_ID", "12a"),
            ("ROS_LOCALHOST_ONLY", "yes"),
            ("ROS_AUTOMATIC_DISCOVERY_RANGE", "localhost"),
            ("ROS_AUTOMATIC_DISCOVERY_RANGE", "OFF"),
        ] {
            let error = network(&NodeOptions::new("n"), &[(variable, value)]).unwrap_err();
            assert!(error.contains(variable) && error.contains(value), "{error}");
        }
        let error = network(&NodeOptions::new("n"), &[("ROS_DOMAIN_ID", "233")]).unwrap_err();
        assert!(error.contains("233") && error.contains("232"), "{error}");
    }

    #[test]
    fn only_a_small_receive_buffer_is_worth_a_warning() {
        let warning = receive_buffer_warning(212_992).unwrap();
        assert!(
            warning.contains("212992") && warning.contains("sysctl -w net.core.rmem_max=8388608"),
            "{warning}"
        );
        assert_eq!(receive_buffer_warning(4_194_304), None);
    }
}
