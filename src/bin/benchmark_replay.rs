//! How accurate and how fast is this policy on my recordings?

use std::process::ExitCode;

use groot_policy::{
    evaluation::Interrupt,
    node::tool_command,
    replay::{
        command::Command,
        session::{Verdict, run},
    },
};

fn main() -> ExitCode {
    // The node whose parameters and topics are meant is the policy's.
    tool_command::run("benchmark_replay", "policy_node", |arguments, node| {
        let command = Command::read(arguments, node)?;
        Ok(match run(&command, arguments, node, Interrupt::on_signal()?)? {
            Verdict::Passed => ExitCode::SUCCESS,
            Verdict::Failed => ExitCode::FAILURE,
            Verdict::Interrupted => ExitCode::from(130),
        })
    })
}
