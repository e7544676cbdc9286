//! How accurate and how fast is this policy on my recordings?

use std::process::ExitCode;

use groot_policy::{
    evaluation::Interrupt,
    node::arguments,
    replay::{
        command::Command,
        session::{Verdict, run},
    },
    ros::transport::NodeName,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match start() {
        Ok(Verdict::Passed) => ExitCode::SUCCESS,
        Ok(Verdict::Failed) => ExitCode::FAILURE,
        Ok(Verdict::Interrupted) => ExitCode::from(130),
        Err(error) => match error.downcast::<clap::Error>() {
            // Help and version among it.
            Ok(error) => {
                // Nobody to tell where the terminal is gone.
                let _ = error.print();
                ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
            }
            Err(error) => {
                eprintln!("benchmark_replay: {error:#}");
                ExitCode::from(2)
            }
        },
    }
}

fn start() -> anyhow::Result<Verdict> {
    let arguments = arguments::parse(std::env::args().skip(1))?;
    let level = arguments.log_level.clone().or_else(|| std::env::var("RUST_LOG").ok());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(level.as_deref().unwrap_or("warn"))?)
        .with_target(false)
        .with_writer(std::io::stderr)
        .init();
    // The node whose parameters and topics are meant.
    let namespace = arguments.namespace.as_deref().unwrap_or_default();
    let node = NodeName::new(namespace, arguments.node_name.as_deref().unwrap_or("policy_node"))?;
    let command = Command::read(&arguments, &node)?;
    run(&command, &arguments, &node, Interrupt::on_signal()?)
}
