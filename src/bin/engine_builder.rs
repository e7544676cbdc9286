//! From a checkpoint to a TensorRT engine.

use std::process::ExitCode;

use groot_policy::{
    engine_builder::{command::Command, session},
    node::tool_command,
};

fn main() -> ExitCode {
    tool_command::run("engine_builder", "engine_builder", |arguments, node| {
        let command = Command::read(arguments, node)?;
        let outcome = session::run(&command, &mut |line| eprintln!("{line}"))?;
        if command.json {
            println!("{}", serde_json::to_string_pretty(&outcome)?);
        } else {
            print!("{}", session::summary(&outcome));
        }
        Ok(ExitCode::SUCCESS)
    })
}
