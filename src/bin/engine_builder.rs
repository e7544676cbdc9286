//! From a checkpoint to a TensorRT engine.

use std::process::ExitCode;

use groot_policy::{
    engine_builder::{command::Command, session},
    node::tool_command,
};

fn main() -> ExitCode {
    tool_command::run("engine_builder", "engine_builder", |arguments, node| {
        if let Some((word, rest)) = arguments.rest.split_first()
            && word == "validate"
        {
            return validate(rest);
        }
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

#[cfg(feature = "onnxruntime")]
fn validate(rest: &[String]) -> anyhow::Result<ExitCode> {
    use anyhow::Context as _;
    use clap::Parser as _;
    use groot_policy::{atomic_file::write_atomically, engine_builder::validate};

    let line = std::iter::once("engine_builder validate").chain(rest.iter().map(String::as_str));
    let command = validate::command::Command::try_parse_from(line)?;
    let report = validate::run(&command, &mut |line| eprintln!("{line}"))?;
    let json = serde_json::to_string_pretty(&report)?;
    if let Some(path) = &command.out {
        write_atomically(path, json.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if command.json {
        println!("{json}");
    } else {
        print!("{report}");
    }
    Ok(if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(not(feature = "onnxruntime"))]
fn validate(_rest: &[String]) -> anyhow::Result<ExitCode> {
    anyhow::bail!(
        "validate: expected a program built with the feature `onnxruntime`, found one without; build it with \
         `cargo build --release --features onnxruntime`"
    )
}
