//! The options of the program `engine_builder`, from the command line or from parameters.

use std::path::PathBuf;

use clap::Parser;

#[cfg(feature = "onnxruntime")]
use super::validate;
use super::{
    calibration::{collect::CollectCommand, options::Int8Options},
    lengths::{ImageSize, Lengths},
};
use crate::{
    engine::{GraphKind, Precision},
    node::{arguments::RosArguments, tool_command::Tool},
    ros::transport::NodeName,
};

/// What the program is asked to do.
#[derive(Debug, Clone)]
pub enum Program {
    /// `engine_builder ...`, and `engine_builder calibrate build ...`, which is the same in INT8.
    Build(Box<Command>),
    /// `engine_builder calibrate collect ...`.
    Collect(Box<CollectCommand>),
    /// `engine_builder validate ...`.
    #[cfg(feature = "onnxruntime")]
    Validate(Box<validate::command::Command>),
}

impl Program {
    /// Reads the command line, whose first words may name a step of the calibration, or `validate`.
    ///
    /// # Errors
    /// What clap says, help and version among it, or parameters that cannot be read.
    pub fn read(arguments: &RosArguments, node: &NodeName) -> anyhow::Result<Self> {
        let words: Vec<&str> = arguments.rest.iter().map(String::as_str).collect();
        let behind = |words: &[&str]| RosArguments {
            rest: words.iter().map(|&word| word.to_owned()).collect(),
            ..arguments.clone()
        };
        match words.as_slice() {
            ["calibrate", "collect", rest @ ..] => {
                Ok(Self::Collect(Box::new(CollectCommand::read(&behind(rest), node)?)))
            }
            ["calibrate", "build", rest @ ..] => {
                // Wins over a parameter, and clap refuses to be told twice.
                let rest: Vec<&str> = ["--precision=int8"].iter().chain(rest).copied().collect();
                let command = Command::read(&behind(&rest), node)?;
                anyhow::ensure!(
                    command.int8.calibration.is_some(),
                    "calibrate build: expected --calibration DIR, a folder that `engine_builder calibrate collect` wrote, found \
                     none; `engine_builder --precision int8` takes synthetic inputs"
                );
                Ok(Self::Build(Box::new(command)))
            }
            ["calibrate", rest @ ..] => anyhow::bail!(
                "calibrate: expected `collect` (inputs for INT8 from recordings) or `build` (an INT8 engine from them), found \
                 {:?}; each has a --help",
                rest.first().copied().unwrap_or_default()
            ),
            ["validate", rest @ ..] => Self::validate(rest),
            _ => Ok(Self::Build(Box::new(Command::read(arguments, node)?))),
        }
    }

    #[cfg(feature = "onnxruntime")]
    fn validate(rest: &[&str]) -> anyhow::Result<Self> {
        let line = ["engine_builder validate"].iter().chain(rest);
        Ok(Self::Validate(Box::new(validate::command::Command::try_parse_from(line)?)))
    }

    #[cfg(not(feature = "onnxruntime"))]
    fn validate(_rest: &[&str]) -> anyhow::Result<Self> {
        anyhow::bail!(
            "validate: expected a program built with the feature `onnxruntime`, found one without; build it with \
             `cargo build --release --features onnxruntime`"
        )
    }
}

/// From a checkpoint to a verified TensorRT engine.
///
/// Writes the network as ONNX, builds an engine for the GPU of this machine, saves it with a record of what it is, and compares
/// it with libtorch. Also takes --ros-args with parameters engine.NAME, where NAME is that of an option here
/// (engine.checkpoint, engine.precision, ...).
///
/// For INT8 on recordings: `engine_builder calibrate collect`, then `engine_builder calibrate build`. `engine_builder validate`
/// compares the exported graphs with libtorch, layer by layer. Each has a --help of its own.
#[derive(Debug, Clone, Parser)]
#[command(name = "engine_builder", version)]
pub struct Command {
    /// Checkpoint directory
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// Embodiment tag of the checkpoint, or its index
    #[arg(long, value_name = "TAG", default_value = "new_embodiment")]
    pub embodiment: String,
    /// fp32, fp16, bf16 or int8
    #[arg(long, default_value = "fp16")]
    pub precision: Precision,
    /// Folder for engines; policy_node and benchmark_replay take the same
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Which part of the network: dit-fused (the one that policy_node runs), dit-condition, dit-reference, backbone-vision,
    /// backbone-language
    #[arg(long, default_value = "dit_fused")]
    pub graph: GraphKind,
    /// Tokens of a prompt that are not of images: least, usual, greatest; or one number, for a graph that takes no other
    #[arg(long, value_name = "MIN,OPT,MAX", default_value = "16,40,160")]
    pub text_tokens: Lengths,
    /// Image tokens of a prompt, of all cameras
    #[arg(long, value_name = "MIN,OPT,MAX", default_value = "64,162,640")]
    pub image_tokens: Lengths,
    /// Tokens of a whole prompt, for dit-reference and backbone-language [default: text and image tokens together]
    #[arg(long, value_name = "MIN,OPT,MAX")]
    pub tokens: Option<Lengths>,
    /// Images at once, of all cameras, for backbone-vision
    #[arg(long, value_name = "MIN,OPT,MAX", default_value = "1,2,4")]
    pub images: Lengths,
    /// Height and width of every image in pixels as the network sees it, for backbone-vision
    #[arg(long, value_name = "HEIGHTxWIDTH", default_value = "252x336")]
    pub image_size: ImageSize,
    /// 0 (quick) to 5 (looks longest for the fastest kernels); TensorRT's own where it is not given
    #[arg(long, value_name = "0..5", value_parser = clap::value_parser!(u8).range(0..=5))]
    pub optimisation_level: Option<u8>,
    /// Memory that one layer may use while it runs, in MiB; all of the GPU's where it is not given
    #[arg(long, value_name = "MIB")]
    pub workspace_mb: Option<usize>,
    /// File of kernel timings, read and written: makes the next build faster [default: one for each
    /// precision in the folder of engines]
    #[arg(long, value_name = "FILE")]
    pub timing_cache: Option<PathBuf>,
    /// Keep norms and softmax in f32
    #[arg(long)]
    pub norms_f32: bool,
    /// Products of an fp32 engine in the 19 bits of TF32
    #[arg(long)]
    pub tf32: bool,
    /// Let later versions of TensorRT of the same major run the engine, with slower kernels
    #[arg(long)]
    pub version_compatible: bool,
    /// Write the types of --precision into the graph, with norms and softmax in f32 and for int8 with Q/DQ nodes, instead of
    /// leaving the choice to TensorRT; TensorRT 10 and newer, and from 11 on always
    #[arg(long)]
    pub strongly_typed: bool,
    /// Write the ONNX graph and stop; needs neither TensorRT nor a GPU. With int8: the graph with Q/DQ nodes, and how accurate
    /// it is on the calibration inputs
    #[arg(long)]
    pub onnx_only: bool,
    /// Keep the ONNX graph beside the engine
    #[arg(long)]
    pub keep_onnx: bool,
    /// File for what TensorRT says of the engine's layers, as JSON
    #[arg(long, value_name = "FILE")]
    pub inspect: Option<PathBuf>,
    #[command(flatten)]
    pub int8: Int8Options,
    /// Build although the engine is there, or the precision is known to give wrong results
    #[arg(long)]
    pub force: bool,
    /// Do not compare the engine with libtorch
    #[arg(long)]
    pub no_verify: bool,
    /// Cosine of the velocities against libtorch below which the engine is called wrong
    #[arg(long, value_name = "COSINE", default_value_t = 0.999)]
    pub least_cosine: f64,
    /// Ticks that are compared
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub ticks: u64,
    /// Timed ticks
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub iterations: usize,
    /// Seed of the synthetic inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// cuda or cuda:N; with --onnx-only cpu too [default: cuda, or with --onnx-only what there is]
    #[arg(long)]
    pub device: Option<String>,
    /// A file that replaces the built-in configuration of the backbone
    #[arg(long, value_name = "FILE")]
    pub eagle_config: Option<PathBuf>,
    /// Print what was built and measured as JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

impl Command {
    /// Reads the options: those of the command line, which ROS arguments do not belong to, win over the parameters below
    /// `engine`.
    ///
    /// # Errors
    /// What clap says, help and version among it, or parameters that cannot be read.
    pub fn read(arguments: &RosArguments, node: &NodeName) -> anyhow::Result<Self> {
        const TOOL: Tool = Tool {
            program: "engine_builder",
            parameters: "engine",
            paths: &["checkpoint", "out", "timing_cache", "inspect", "calibration", "eagle_config"],
            joined: &["text_tokens", "image_tokens", "tokens", "images"],
        };
        Ok(Self::try_parse_from(TOOL.command_line(arguments, node)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::calibration::RangeRule;

    fn read(line: &[&str]) -> anyhow::Result<Command> {
        let arguments = crate::node::arguments::parse(line.iter().map(|word| (*word).to_owned()))?;
        Command::read(&arguments, &NodeName::new("", "engine_builder")?)
    }

    #[test]
    fn options_come_from_the_line_and_from_parameters_and_the_line_wins() {
        let ros = ["--ros-args", "-p", "engine.checkpoint:=ckpt", "-p", "engine.out:=engines"];
        let more = [
            "-p",
            "engine.text_tokens:=[8, 9, 10]",
            "-p",
            "engine.norms_f32:=true",
            "-p",
            "engine.precision:=int8",
        ];
        let line = ["--precision", "bf16"].iter().chain(&ros).chain(&more).copied().collect::<Vec<_>>();
        let command = read(&line).unwrap();
        assert_eq!(command.checkpoint, PathBuf::from("ckpt"));
        assert_eq!(command.precision, Precision::Bf16);
        assert_eq!(command.text_tokens.all(), [8, 9, 10]);
        assert!(command.norms_f32 && !command.force);
    }

    fn program(line: &[&str]) -> anyhow::Result<Program> {
        let arguments = crate::node::arguments::parse(line.iter().map(|word| (*word).to_owned()))?;
        Program::read(&arguments, &NodeName::new("", "engine_builder")?)
    }

    #[test]
    fn the_first_words_name_a_step_of_the_calibration_and_the_example_file_is_for_both() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/engine_builder.yaml");
        let collect = ["calibrate", "collect", "--bag", "b", "--params-file", file];
        let Program::Collect(collect) = program(&collect).unwrap() else { panic!("collect was asked for") };
        assert_eq!(
            (collect.samples, collect.recording.bag.as_slice()),
            (60, [PathBuf::from("b")].as_slice())
        );
        assert!(collect.out.ends_with("config/calibration"), "{}", collect.out.display());
        let build = ["calibrate", "build", "--checkpoint", "c", "--params-file", file];
        let Program::Build(build) = program(&build).unwrap() else { panic!("build was asked for") };
        assert_eq!((build.precision, build.int8.skip.len()), (Precision::Int8, 2));
        assert_eq!(build.int8.ranges, RangeRule::Percentile(99.99));
        assert_eq!(build.int8.calibration.unwrap(), collect.out);
        let plain = ["--checkpoint", "c", "--out", "o", "--precision", "int8", "--ranges", "min-max"];
        let Program::Build(plain) = program(&plain).unwrap() else { panic!("a build was asked for") };
        assert_eq!((plain.precision, plain.int8.ranges), (Precision::Int8, RangeRule::MinMax));
    }

    #[test]
    fn a_calibrated_build_is_int8_from_collected_inputs_and_nothing_else() {
        for (line, says) in [
            (&["calibrate"][..], "collect"),
            (&["calibrate", "built"], "\"built\""),
            (&["calibrate", "build", "--checkpoint", "c", "--out", "o"], "--calibration DIR"),
            (
                &[
                    "calibrate",
                    "build",
                    "--checkpoint",
                    "c",
                    "--out",
                    "o",
                    "--calibration",
                    "s",
                    "--precision",
                    "fp16",
                ],
                "--precision",
            ),
            (&["calibrate", "collect", "--out", "o", "--ranges", "entropy"], "--ranges"),
        ] {
            let error = format!("{:#}", program(line).unwrap_err());
            assert!(error.contains(says), "{line:?}: {error}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_choices() {
        for (line, says) in [
            (vec!["--checkpoint", "c", "--out", "o", "--precision", "fp61"], "fp16"),
            (vec!["--checkpoint", "c", "--out", "o", "--text-tokens", "9,8,7"], "MIN <= OPT"),
            (vec!["--checkpoint", "c", "--out", "o", "--optimisation-level", "6"], "0..=5"),
            (vec!["--checkpoint", "c", "--out", "o", "--image-size", "252"], "252x336"),
            (vec!["--checkpoint", "c", "--out", "o", "--graph", "backbone"], "backbone_vision"),
            (vec!["--out", "o"], "--checkpoint"),
        ] {
            let error = format!("{:#}", read(&line).unwrap_err());
            assert!(error.contains(says), "{line:?}: {error}");
        }
    }
}
