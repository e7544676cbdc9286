//! How accurate and how fast is this policy: on my recordings, or on random inputs?

use std::process::ExitCode;

use clap::Parser;
use groot_policy::{
    benchmark::command::{Bench, Roofline},
    evaluation::Interrupt,
    node::tool_command,
    replay::{
        command::Command,
        session::{Verdict, run},
    },
};

#[cfg(feature = "tensorrt")]
use groot_policy::engine_builder::auto_build::load_policy;
/// Without TensorRT there is nothing to build.
#[cfg(not(feature = "tensorrt"))]
use groot_policy::model::policy::load_policy;

fn main() -> ExitCode {
    // The node whose parameters and topics are meant is the policy's.
    tool_command::run("benchmark_replay", "policy_node", |arguments, node| {
        // A word in front asks for something else than a replay; these take no parameters of a node.
        let rest = &arguments.rest;
        let verdict = match rest.first().map(String::as_str) {
            Some("bench") => Bench::try_parse_from(rest)?.run(&Interrupt::on_signal()?)?,
            Some("roofline") => Roofline::try_parse_from(rest)?.run()?,
            _ => {
                let command = Command::read(arguments, node)?;
                run(&command, arguments, node, load_policy, Interrupt::on_signal()?)?
            }
        };
        Ok(match verdict {
            Verdict::Passed => ExitCode::SUCCESS,
            Verdict::Failed => ExitCode::FAILURE,
            Verdict::Interrupted => ExitCode::from(130),
        })
    })
}
