//! The node as its users start it: a process.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

/// Ends with the test, whatever becomes of it.
pub struct NodeProcess(Child);

impl NodeProcess {
    /// Runs the demo's configuration in a DDS domain, on loopback, with further command line arguments.
    pub fn demo(domain: u16, arguments: &[&str]) -> Self {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.yaml");
        let process = Command::new(env!("CARGO_BIN_EXE_policy_node"))
            .args(["--ros-args", "-p", &format!("domain_id:={domain}"), "--params-file"])
            .arg(demo)
            .args(arguments)
            .env("ROS_LOCALHOST_ONLY", "1")
            .env_remove("RUST_LOG")
            .stdout(Stdio::null())
            .spawn()
            .expect("the node starts");
        Self(process)
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
