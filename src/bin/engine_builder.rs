//! From a checkpoint to a TensorRT engine.

use std::process::ExitCode;

use groot_policy::{
    engine_builder::{
        calibration::collect::{self, Collected},
        command::Program,
        session,
    },
    evaluation::Interrupt,
    node::tool_command,
};

fn main() -> ExitCode {
    tool_command::run("engine_builder", "engine_builder", |arguments, node| {
        let say = &mut |line: &str| eprintln!("{line}");
        match Program::read(arguments, node)? {
            Program::Build(command) => {
                let outcome = session::run(&command, say)?;
                if command.json {
                    println!("{}", serde_json::to_string_pretty(&outcome)?);
                } else {
                    print!("{}", session::summary(&outcome));
                }
                Ok(ExitCode::SUCCESS)
            }
            Program::Collect(command) => {
                Ok(match collect::run(&command, arguments, node, &Interrupt::on_signal()?, say)? {
                    Collected::Whole(set) => {
                        println!("{}", serde_json::to_string_pretty(&set)?);
                        ExitCode::SUCCESS
                    }
                    Collected::Interrupted => ExitCode::from(130),
                })
            }
            #[cfg(feature = "onnxruntime")]
            Program::Validate(command) => validate(&command, say),
        }
    })
}

#[cfg(feature = "onnxruntime")]
fn validate(
    command: &groot_policy::engine_builder::validate::command::Command,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<ExitCode> {
    use anyhow::Context as _;
    use groot_policy::{atomic_file::write_atomically, engine_builder::validate};

    let report = validate::run(command, say)?;
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
