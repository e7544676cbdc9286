//! The command line that ROS 2 gives its nodes.
//!
//! `ros2 run` and `ros2 launch` pass `--ros-args -r __node:=name -r __ns:=/ns -r from:=to --params-file f.yaml
//! -p name:=value --`; the same options work without `--ros-args`, for people.

use std::path::PathBuf;

use thiserror::Error;

use super::config::split_override;

/// What the command line says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RosArguments {
    /// Name of the node, where it is changed.
    pub node_name: Option<String>,
    /// Its namespace, where it is changed.
    pub namespace: Option<String>,
    /// Parameter files, in order.
    pub params_files: Vec<PathBuf>,
    /// Topics and services with what stands in their place, in order.
    pub remaps: Vec<(String, String)>,
    /// Single parameters, in order.
    pub parameters: Vec<(String, String)>,
    /// Directives for the log, e.g. `debug`.
    pub log_level: Option<String>,
    /// What is left for the program itself.
    pub rest: Vec<String>,
}

/// An option that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ArgumentError {
    /// An option at the end that wants a value.
    #[error("{option}: expected {expected} behind it, found the end of the command line")]
    MissingValue {
        /// The option.
        option: String,
        /// What it wants.
        expected: &'static str,
    },
    /// A remapping that is none.
    #[error("{option} {found}: expected <name>:=<name>, __node:=<name> or __ns:=<namespace>")]
    Remap {
        /// The option.
        option: String,
        /// What came.
        found: String,
    },
    /// A parameter that is none.
    #[error("{option} {found}: {reason}")]
    Parameter {
        /// The option.
        option: String,
        /// What came.
        found: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Sorts the arguments behind the program's name.
///
/// # Errors
/// The first option that makes no sense.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<RosArguments, ArgumentError> {
    let mut parsed = RosArguments::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let mut value = |expected| {
            let option = argument.clone();
            arguments.next().ok_or(ArgumentError::MissingValue { option, expected })
        };
        match argument.as_str() {
            "--ros-args" | "--" => {}
            "--params-file" => parsed.params_files.push(value("a YAML file")?.into()),
            "--log-level" => parsed.log_level = Some(value("a level such as info or debug")?),
            "-p" | "--param" => {
                let found = value("name:=value")?;
                let parameter = split_override(&found).map_err(|reason| ArgumentError::Parameter {
                    option: argument.clone(),
                    found: found.clone(),
                    reason,
                })?;
                parsed.parameters.push(parameter);
            }
            "-r" | "--remap" => {
                let found = value("<name>:=<name>, __node:=<name> or __ns:=<namespace>")?;
                match found.split_once(":=") {
                    Some(("__node" | "__name", name)) => parsed.node_name = Some(name.to_owned()),
                    Some(("__ns", namespace)) => parsed.namespace = Some(namespace.to_owned()),
                    // Limited to one node of a process, or to topics or services, by a colon: we are one node.
                    Some((from, _)) if from.contains(':') || from.starts_with("__") => {
                        return Err(ArgumentError::Remap { option: argument, found });
                    }
                    Some((from, to)) if !from.is_empty() && !to.is_empty() => {
                        parsed.remaps.push((from.to_owned(), to.to_owned()));
                    }
                    _ => return Err(ArgumentError::Remap { option: argument, found }),
                }
            }
            _ => parsed.rest.push(argument),
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<RosArguments, ArgumentError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_ros2_launch_passes_is_understood() {
        let parsed = parse_line(
            "--ros-args -r __node:=arm --params-file a.yaml -r __ns:=/robot --params-file b.yaml -p rate:=2.5 \
             -r image:=/camera/image --remap ~/status:=status --log-level debug -- --help",
        )
        .unwrap();
        let expected = RosArguments {
            node_name: Some("arm".to_owned()),
            namespace: Some("/robot".to_owned()),
            params_files: vec!["a.yaml".into(), "b.yaml".into()],
            remaps: [("image", "/camera/image"), ("~/status", "status")]
                .map(|(from, to)| (from.to_owned(), to.to_owned()))
                .to_vec(),
            parameters: vec![("rate".to_owned(), "2.5".to_owned())],
            log_level: Some("debug".to_owned()),
            rest: vec!["--help".to_owned()],
        };
        assert_eq!(parsed, expected);
    }

    #[test]
    fn an_option_that_makes_no_sense_is_named_with_what_was_expected() {
        for (line, parts) in [
            ("--params-file", ["--params-file", "a YAML file"]),
            ("-p rate", ["-p rate", ":="]),
            ("-r image=camera", ["-r image=camera", "<name>:=<name>"]),
            ("-r image:=", ["-r image:=", "<name>:=<name>"]),
            ("-r other_node:image:=camera", ["other_node:image:=camera", "<name>:=<name>"]),
            ("-r __log:=x", ["-r __log:=x", "__ns:="]),
        ] {
            let error = parse_line(line).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{part:?} is not in {error:?}");
            }
        }
    }
}
