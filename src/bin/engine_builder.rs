//! From a checkpoint to a TensorRT engine.

use std::process::ExitCode;

use groot_policy::{
    engine_builder::{command::Command, session},
    node::arguments,
    ros::transport::NodeName,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast::<clap::Error>() {
            // Help and version among it.
            Ok(error) => {
                // Nobody to tell where the terminal is gone.
                let _ = error.print();
                ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
            }
            Err(error) => {
                eprintln!("engine_builder: {error:#}");
                ExitCode::from(2)
            }
        },
    }
}

fn start() -> anyhow::Result<()> {
    let arguments = arguments::parse(std::env::args().skip(1))?;
    let level = arguments.log_level.clone().or_else(|| std::env::var("RUST_LOG").ok());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(level.as_deref().unwrap_or("warn"))?)
        .with_target(false)
        .with_writer(std::io::stderr)
        .init();
    let namespace = arguments.namespace.as_deref().unwrap_or_default();
    let node = NodeName::new(namespace, arguments.node_name.as_deref().unwrap_or("engine_builder"))?;
    let command = Command::read(&arguments, &node)?;
    let outcome = session::run(&command, &mut |line| eprintln!("{line}"))?;
    if command.json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        print!("{}", session::summary(&outcome));
    }
    Ok(())
}
