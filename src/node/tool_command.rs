//! The companion tools' command lines: parameters below the tool's name, then what stands on the line itself.

use std::process::ExitCode;

use anyhow::bail;
use tracing_subscriber::EnvFilter;

use super::{
    arguments::{self, RosArguments},
    config::{ParameterValue, tool_parameters},
};
use crate::ros::transport::NodeName;

/// A companion tool, one of [`TOOLS`](super::config::TOOLS).
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// The program.
    pub program: &'static str,
    /// What its parameters stand below.
    pub parameters: &'static str,
    /// Parameters that are paths: like those of the node's own, they count from the file's folder.
    pub paths: &'static [&'static str],
    /// Parameters whose lists go into one word, with commas.
    pub joined: &'static [&'static str],
}

impl Tool {
    /// The words of the command line, the program's name first. What comes later wins.
    ///
    /// # Errors
    /// Parameters that cannot be read, or that no option can hold.
    pub fn command_line(&self, arguments: &RosArguments, node: &NodeName) -> anyhow::Result<Vec<String>> {
        let parameters = tool_parameters(
            &node.qualified(),
            self.parameters,
            &arguments.params_files,
            &arguments.parameters,
        )?;
        let mut line = vec![self.program.to_owned()];
        for (index, (name, value, folder)) in parameters.iter().enumerate() {
            let option = format!("--{}", name.replace('_', "-"));
            let on_the_line = arguments.rest.iter().any(|argument| {
                argument.strip_prefix(&option).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
            });
            // The command line wins over the files, a later file over an earlier one.
            if on_the_line || parameters[index + 1..].iter().any(|(later, ..)| later == name) {
                continue;
            }
            let texts: Vec<String> = match value {
                ParameterValue::Bool(true) => vec![],
                ParameterValue::Bool(false) => continue,
                ParameterValue::Integer(value) => vec![value.to_string()],
                ParameterValue::Double(value) => vec![value.to_string()],
                ParameterValue::String(value) => vec![value.clone()],
                ParameterValue::StringArray(values) => values.clone(),
                ParameterValue::IntegerArray(values) => {
                    vec![values.iter().map(i64::to_string).collect::<Vec<_>>().join(",")]
                }
                other => bail!(
                    "{}.{name}: expected a text, a number, a boolean or a list, found {other}",
                    self.parameters
                ),
            };
            let is_path = self.paths.contains(&name.as_str());
            let texts = texts.into_iter().map(|text| match folder {
                Some(folder) if is_path => folder.join(text).display().to_string(),
                _ => text,
            });
            let texts: Vec<String> = texts.collect();
            line.push(option);
            if self.joined.contains(&name.as_str()) {
                line.push(texts.join(","));
            } else {
                line.extend(texts);
            }
        }
        line.extend(arguments.rest.iter().cloned());
        Ok(line)
    }
}

/// The whole of a companion program: ROS arguments, log on standard error, `work`, and its error as people and shells expect
/// it. `node` is the name of the node that is meant unless the arguments name one.
pub fn run(
    program: &str,
    node: &str,
    work: impl FnOnce(&RosArguments, &NodeName) -> anyhow::Result<ExitCode>,
) -> ExitCode {
    let start = || {
        let arguments = arguments::parse(std::env::args().skip(1))?;
        let level = arguments.log_level.clone().or_else(|| std::env::var("RUST_LOG").ok());
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::try_new(
                level.as_deref().unwrap_or("warn,groot_policy::progress=info"),
            )?)
            .with_target(false)
            .with_writer(std::io::stderr)
            .init();
        let namespace = arguments.namespace.as_deref().unwrap_or_default();
        let node = NodeName::new(namespace, arguments.node_name.as_deref().unwrap_or(node))?;
        work(&arguments, &node)
    };
    start().unwrap_or_else(|error: anyhow::Error| match error.downcast::<clap::Error>() {
        // Help and version among it.
        Ok(error) => {
            // Nobody to tell where the terminal is gone.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::from(2)
        }
    })
}
