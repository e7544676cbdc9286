//! What the DDS tests share.

use std::{
    net::{Ipv4Addr, TcpListener},
    time::{Duration, Instant},
};

use groot_policy::ros::transport::{NodeOptions, RosNode};

/// Longest wait for what must happen. Much longer than it takes, so that a busy machine fails no test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A DDS domain that no other test uses, in this process or another, as long as this process lives. Domains above 100
/// would share ports with outgoing connections.
pub fn test_domain() -> u16 {
    for domain in 1..=100 {
        // Whoever listens on the domain's port owns it; the kernel gives it free at the process's end.
        if let Ok(claim) = TcpListener::bind((Ipv4Addr::LOCALHOST, 21_000 + domain)) {
            std::mem::forget(claim);
            return domain;
        }
    }
    panic!("all of the 100 DDS domains for tests are in use");
}

/// A node that talks over loopback only.
pub fn loopback_node(name: &str, domain: u16) -> RosNode {
    let options =
        NodeOptions { domain_id: Some(domain), localhost_only: Some(true), ..NodeOptions::new(name) };
    RosNode::new(&options).expect("a node on loopback")
}

/// Waits until the condition holds.
pub async fn until(what: &str, condition: impl FnMut() -> bool) {
    until_within(PATIENCE, what, condition).await;
}

/// Waits until the condition holds, for what may rightly take longer.
pub async fn until_within(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < patience, "{what}: not within {patience:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
