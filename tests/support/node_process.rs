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
            // Where other programs are busy, libgomp's threads wait for each other for seconds.
            .env("OMP_NUM_THREADS", "1")
            .stdout(Stdio::null())
            .spawn()
            .expect("the node starts");
        Self(process)
    }
}

/// The robot that belongs to the demo's configuration.
pub struct RobotProcess(Child);

impl RobotProcess {
    /// Publishes small pictures and joint states in a DDS domain, on loopback.
    pub fn demo(domain: u16) -> Self {
        let process = Command::new(env!("CARGO_BIN_EXE_synthetic_robot"))
            .args(["--localhost-only", "--size", "64x48", "--domain-id", &domain.to_string()])
            .stdout(Stdio::null())
            .spawn()
            .expect("the robot starts");
        Self(process)
    }
}

fn end(process: &mut Child) {
    // An error means that it has ended.
    let _ = process.kill();
    let _ = process.wait();
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

impl Drop for RobotProcess {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}
