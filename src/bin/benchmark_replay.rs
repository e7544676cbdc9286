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

fn main() -> ExitCode {
    // The node whose parameters and topics are meant is the policy's.
    tool_command::run("benchmark_replay", "policy_node", |arguments, node| {
        // A word in front asks for something else than a replay; these take no parameters of a node.
        let rest = &arguments.rest;
        let verdict = match rest.first().map(String::as_str) {
            Some("bench") => Bench::try_parse_from(rest)?.run(&Interrupt::on_signal()?)?,
            Some("roofline") => Roofline::try_parse_from(rest)?.run()?,
            _ => run(&Command::read(arguments, node)?, arguments, node, Interrupt::on_signal()?)?,
        };
        Ok(match verdict {
            Verdict::Passed => ExitCode::SUCCESS,
            Verdict::Failed => ExitCode::FAILURE,
            Verdict::Interrupted => ExitCode::from(130),
        })
    })
}
