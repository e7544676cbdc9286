//! What the DDS tests share.

use std::{
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use groot_policy::ros::transport::{NodeOptions, RosNode};

/// Longest wait for what must happen. Much longer than it takes, so that a busy machine fails no test.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A DDS domain for one test, so that tests running at the same time do not meet. Domains above 101 would share ports
/// with outgoing connections.
pub fn test_domain() -> u16 {
    static TESTS: AtomicU16 = AtomicU16::new(0);
    let process = (std::process::id() % 100) as u16;
    1 + (process + 13 * TESTS.fetch_add(1, Ordering::Relaxed)) % 100
}

/// A node that talks over loopback only.
pub fn loopback_node(name: &str, domain: u16) -> RosNode {
    let options =
        NodeOptions { domain_id: Some(domain), localhost_only: Some(true), ..NodeOptions::new(name) };
    RosNode::new(&options).expect("a node on loopback")
}

/// Waits until the condition holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
