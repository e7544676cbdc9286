//! The one table of the node's parameters: everything that checks, documents or announces a parameter reads it here.

use std::fmt::Write as _;

use super::spec::{Constraint, ParameterDefault, ParameterSpec};
use super::value::ParameterType;
use crate::{
    execution::{ExecutionMode, Preprocessing},
    processor::text::MAX_INSTRUCTION_CHARS,
};

const fn parameter(
    name: &'static str,
    kind: ParameterType,
    default: ParameterDefault,
    constraint: Constraint,
    unit: &'static str,
    dynamic: bool,
    description: &'static str,
) -> ParameterSpec {
    ParameterSpec { name, kind, default, constraint, unit, description, dynamic }
}

const STATIC: bool = false;
const DYNAMIC: bool = true;

/// Every parameter of the node.
pub fn parameter_table() -> &'static [ParameterSpec] {
    use Constraint as C;
    use ParameterDefault as D;
    use ParameterType as T;
    const TABLE: &[ParameterSpec] = &[
        parameter(
            "checkpoint.path",
            T::String,
            D::Required,
            C::NonEmpty("folder"),
            "",
            STATIC,
            "Folder of the checkpoint (`config.json`, weights, `processor_config.json`, `statistics.json`, \
             `embodiment_id.json`). A relative path counts from the folder of the YAML file.",
        ),
        parameter(
            "checkpoint.tokenizer",
            T::String,
            D::String(""),
            C::None,
            "",
            STATIC,
            "Folder of the tokenizer (`vocab.json`, `merges.txt`, added tokens). Empty: `tokenizer/` in the \
             checkpoint, else the checkpoint itself.",
        ),
        parameter(
            "checkpoint.eagle_config",
            T::String,
            D::String(""),
            C::None,
            "",
            STATIC,
            "Configuration file of the Eagle backbone. Empty: `eagle_config.json` in the checkpoint where there is one, else \
             the built-in one of the 3B model.",
        ),
        parameter(
            "embodiment",
            T::String,
            D::Required,
            C::NonEmpty("embodiment tag"),
            "",
            STATIC,
            "Tag of the embodiment in the checkpoint, e.g. `new_embodiment`.",
        ),
        parameter(
            "device",
            T::String,
            D::String("auto"),
            C::Device,
            "",
            STATIC,
            "Where the model runs: `auto` (the first GPU, else the CPU), `cpu`, `cuda` or `cuda:N`.",
        ),
        parameter(
            "mode",
            T::String,
            D::String("auto"),
            C::Choice(&ExecutionMode::NAMES),
            "",
            STATIC,
            "How the network is executed: `eager` (operation by operation), `graph` (captured once per shape of the inputs as CUDA \
             graphs; the first two ticks of a shape take longer), `graph-fused` (the same, with kernels that do the work of several \
             operations) or `auto` (the fastest of them that works; the log says which, and why).",
        ),
        parameter(
            "preprocessing",
            T::String,
            D::String("auto"),
            C::Choice(&Preprocessing::NAMES),
            "",
            STATIC,
            "Who makes the network's images of camera frames; the bytes are the same. `cpu`: the processor's cores. `gpu`: CUDA kernels. \
             `auto`: the GPU where the network runs on one as `graph` or `graph-fused` and its kernels give the bytes of the CPU when they \
             are tried, else the CPU.",
        ),
        parameter(
            "tensorrt.engines",
            T::String,
            D::String(""),
            C::None,
            "",
            STATIC,
            "Folder of TensorRT engines, as `engine_builder` writes it: the denoising steps run on the one for this checkpoint and \
             GPU. Empty: they run on libtorch.",
        ),
        parameter(
            "tensorrt.precision",
            T::String,
            D::String("fp16"),
            C::Choice(&["fp32", "fp16", "bf16", "int8"]),
            "",
            STATIC,
            "Precision of the engine.",
        ),
        parameter(
            "tensorrt.auto_build",
            T::Bool,
            D::Bool(false),
            C::None,
            "",
            STATIC,
            "Whether an engine that is missing, damaged or built for something else (checkpoint, GPU, TensorRT) is built before the \
             node becomes active, which takes minutes. Without it such an engine is refused with the command that builds it.",
        ),
        parameter(
            "rate",
            T::Double,
            D::Double(5.0),
            C::Doubles(0.01, 200.0),
            "Hz",
            DYNAMIC,
            "How often the policy is asked for a new chunk. A tick that takes longer delays the next one.",
        ),
        parameter(
            "instruction",
            T::String,
            D::String(""),
            C::Text(MAX_INSTRUCTION_CHARS),
            "",
            DYNAMIC,
            "What the robot is asked to do. A message on `instruction_topic` sets it, too. May be empty.",
        ),
        parameter(
            "instruction_topic",
            T::String,
            D::String("~/instruction"),
            C::Topic,
            "",
            STATIC,
            "Topic of `std_msgs/String` messages that replace the instruction.",
        ),
        parameter(
            "denoising_steps",
            T::Integer,
            D::Integer(0),
            C::Integers(0, 1000),
            "",
            DYNAMIC,
            "Denoising steps per chunk. 0: as many as the checkpoint says.",
        ),
        parameter(
            "noise_seed",
            T::Integer,
            D::Integer(-1),
            C::Integers(-1, i64::MAX),
            "",
            STATIC,
            "Seed of the noise that chunks are denoised from. -1: a new one at every start.",
        ),
        parameter(
            "step_time",
            T::Double,
            D::Required,
            C::Doubles(0.001, 10.0),
            "s",
            STATIC,
            "Time between two actions of a chunk: the frame period of the data that the checkpoint was trained on. \
             A wrong value makes the robot move too fast or too slowly.",
        ),
        parameter(
            "cameras.<video key>.topic",
            T::String,
            D::Required,
            C::Topic,
            "",
            STATIC,
            "Topic of the camera that is the checkpoint's `<video key>`.",
        ),
        parameter(
            "cameras.<video key>.transport",
            T::String,
            D::String("raw"),
            C::Choice(&["raw", "compressed"]),
            "",
            STATIC,
            "`raw`: `sensor_msgs/Image` on the topic. `compressed`: `sensor_msgs/CompressedImage` on \
             `<topic>/compressed`.",
        ),
        parameter(
            "joint_states_topic",
            T::String,
            D::String("joint_states"),
            C::Topic,
            "",
            STATIC,
            "Topic of the `sensor_msgs/JointState` messages. Each message must name all joints of `state`.",
        ),
        parameter(
            "state.<state key>.joints",
            T::StringArray,
            D::Required,
            C::Joints(1),
            "",
            STATIC,
            "Joints whose positions are the checkpoint's `<state key>`, in its order.",
        ),
        parameter(
            "action.<action key>.joints",
            T::StringArray,
            D::Absent("the joints of the state key of the same name"),
            C::Joints(0),
            "",
            STATIC,
            "Joints that the checkpoint's `<action key>` moves, in its order. Empty: the key is left out of the joint \
             trajectory and appears in the action chunk only.",
        ),
        parameter(
            "max_age_ms",
            T::Double,
            D::Double(500.0),
            C::Doubles(1.0, 60_000.0),
            "ms",
            DYNAMIC,
            "No chunk is made from a camera frame that is older, or that was stamped further in the future.",
        ),
        parameter(
            "max_skew_ms",
            T::Double,
            D::Double(50.0),
            C::Doubles(0.0, 10_000.0),
            "ms",
            DYNAMIC,
            "No chunk is made from camera frames whose stamps lie further apart, nor from a joint sample further from \
             the newest of them.",
        ),
        parameter(
            "max_state_age_ms",
            T::Double,
            D::Double(200.0),
            C::Doubles(1.0, 60_000.0),
            "ms",
            DYNAMIC,
            "No chunk is made where the newest joint sample is older, or was stamped further in the future.",
        ),
        parameter(
            "trajectory_topic",
            T::String,
            D::String("~/joint_trajectory"),
            C::Topic,
            "",
            STATIC,
            "Topic of the `trajectory_msgs/JointTrajectory` messages.",
        ),
        parameter(
            "chunk_topic",
            T::String,
            D::String("~/action_chunk"),
            C::Topic,
            "",
            STATIC,
            "Topic of the `groot_policy/ActionChunk` messages.",
        ),
        parameter(
            "frame_id",
            T::String,
            D::String(""),
            C::Frame,
            "",
            STATIC,
            "Frame in the header of the joint trajectory.",
        ),
        parameter(
            "domain_id",
            T::Integer,
            D::Integer(-1),
            C::Integers(-1, 232),
            "",
            STATIC,
            "DDS domain. -1: `ROS_DOMAIN_ID` of the environment, else 0.",
        ),
        parameter(
            "use_sim_time",
            T::Bool,
            D::Bool(false),
            C::None,
            "",
            STATIC,
            "Whether time is what `/clock` says, as in simulations and recordings, and not the system's. No chunk is \
             made before the first `/clock`.",
        ),
        parameter(
            "dry_run",
            T::Bool,
            D::Bool(true),
            C::None,
            "",
            DYNAMIC,
            "Whether everything goes to topics under `~/dry_run/` instead of the robot's. Switching it off while active deactivates.",
        ),
        parameter(
            "autostart",
            T::Bool,
            D::Bool(true),
            C::None,
            "",
            STATIC,
            "Whether the node activates itself once the policy is loaded.",
        ),
        parameter(
            "handover.mode",
            T::String,
            D::String("blend"),
            C::Choice(&["replace", "blend", "rtc"]),
            "",
            DYNAMIC,
            "How a chunk takes over from the one before: at once, by a weighted ensemble over the overlap, or by real-time chunking.",
        ),
        parameter(
            "handover.execute_horizon",
            T::Integer,
            D::Integer(0),
            C::Integers(0, 1000),
            "steps",
            DYNAMIC,
            "Steps of a chunk after which the next one is to be in force. 0: a new one at each tick of `rate`.",
        ),
        parameter(
            "handover.overlap",
            T::Integer,
            D::Integer(4),
            C::Integers(0, 1000),
            "steps",
            DYNAMIC,
            "Steps over which one chunk takes over from another. At most the horizon counts.",
        ),
        parameter(
            "handover.initial_latency_ms",
            T::Double,
            D::Double(200.0),
            C::Doubles(0.0, 10_000.0),
            "ms",
            DYNAMIC,
            "Latency that is assumed until one was measured.",
        ),
        parameter(
            "command_rate",
            T::Double,
            D::Double(100.0),
            C::Doubles(1.0, 1000.0),
            "Hz",
            STATIC,
            "Rate of the commands on `positions_topic` and `base_twist.topic`, and of the watchdog.",
        ),
        parameter(
            "positions_topic",
            T::String,
            D::String(""),
            C::OptionalTopic,
            "",
            STATIC,
            "Topic of `std_msgs/Float64MultiArray` commands, sampled from the chunk by time. Empty: none.",
        ),
        parameter(
            "positions_joints",
            T::StringArray,
            D::Absent("all joints that actions move"),
            C::Joints(0),
            "",
            STATIC,
            "Joints of `positions_topic`, in the order of the controller.",
        ),
        parameter(
            "base_twist.topic",
            T::String,
            D::String("~/cmd_vel"),
            C::Topic,
            "",
            STATIC,
            "Topic of `geometry_msgs/TwistStamped` commands for a base.",
        ),
        parameter(
            "base_twist.key",
            T::String,
            D::String(""),
            C::None,
            "",
            STATIC,
            "Action key that holds base velocities. Empty: none.",
        ),
        parameter(
            "base_twist.components",
            T::StringArray,
            D::Absent("none"),
            C::None,
            "",
            STATIC,
            "What each dimension of the key is: `linear.x` to `angular.z`, in m/s and rad/s, or `none`.",
        ),
        parameter(
            "base_twist.frame_id",
            T::String,
            D::String("base_link"),
            C::Frame,
            "",
            STATIC,
            "Frame of the base velocities.",
        ),
        parameter(
            "base_twist.max_linear",
            T::Double,
            D::Double(0.0),
            C::Doubles(0.0, 100.0),
            "m/s",
            STATIC,
            "Greatest speed of the base. 0: no limit.",
        ),
        parameter(
            "base_twist.max_angular",
            T::Double,
            D::Double(0.0),
            C::Doubles(0.0, 100.0),
            "rad/s",
            STATIC,
            "Greatest speed of turning. 0: no limit.",
        ),
        parameter(
            "estop_topic",
            T::String,
            D::String("~/estop"),
            C::Topic,
            "",
            STATIC,
            "Topic of `std_msgs/Bool`. True stops and stays latched until `~/reset`.",
        ),
        parameter(
            "robot_description_topic",
            T::String,
            D::String(""),
            C::OptionalTopic,
            "",
            STATIC,
            "Topic of the URDF whose joint limits are to apply. Empty: none.",
        ),
        parameter(
            "limits.<joint>.lower",
            T::Double,
            D::Absent("no limit"),
            C::Doubles(-1e6, 1e6),
            "rad or m",
            DYNAMIC,
            "Least position of a joint. Of this, the defaults and the URDF, the strictest applies.",
        ),
        parameter(
            "limits.<joint>.upper",
            T::Double,
            D::Absent("no limit"),
            C::Doubles(-1e6, 1e6),
            "rad or m",
            DYNAMIC,
            "Greatest position of a joint.",
        ),
        parameter(
            "limits.<joint>.velocity",
            T::Double,
            D::Absent("`default_limits.velocity`"),
            C::Doubles(1e-6, 1e6),
            "rad/s or m/s",
            DYNAMIC,
            "Greatest speed of a joint.",
        ),
        parameter(
            "limits.<joint>.step",
            T::Double,
            D::Absent("`default_limits.step`"),
            C::Doubles(1e-9, 1e6),
            "rad or m",
            DYNAMIC,
            "Greatest change of a joint from one command to the next.",
        ),
        parameter(
            "default_limits.velocity",
            T::Double,
            D::Double(0.0),
            C::Doubles(0.0, 1e6),
            "rad/s or m/s",
            DYNAMIC,
            "Greatest speed of joints without a limit of their own. 0: none.",
        ),
        parameter(
            "default_limits.step",
            T::Double,
            D::Double(0.0),
            C::Doubles(0.0, 1e6),
            "rad or m",
            DYNAMIC,
            "Greatest change of such joints from one command to the next. 0: none.",
        ),
        parameter(
            "watchdog.action",
            T::String,
            D::String("hold"),
            C::Choice(&["hold", "stop"]),
            "",
            DYNAMIC,
            "What a fault does: hold the last pose and go on commanding it, or stop there and command nothing.",
        ),
        parameter(
            "watchdog.max_observation_age_ms",
            T::Double,
            D::Double(1000.0),
            C::Doubles(1.0, 60_000.0),
            "ms",
            DYNAMIC,
            "Oldest set of camera frames while active.",
        ),
        parameter(
            "watchdog.max_state_age_ms",
            T::Double,
            D::Double(500.0),
            C::Doubles(1.0, 60_000.0),
            "ms",
            DYNAMIC,
            "Oldest joint sample while active.",
        ),
        parameter(
            "watchdog.max_inference_ms",
            T::Double,
            D::Double(1000.0),
            C::Doubles(1.0, 600_000.0),
            "ms",
            DYNAMIC,
            "Longest tick.",
        ),
        parameter(
            "watchdog.max_chunk_age_ms",
            T::Double,
            D::Double(2000.0),
            C::Doubles(1.0, 600_000.0),
            "ms",
            DYNAMIC,
            "Longest time without a new chunk.",
        ),
        parameter(
            "status_topic",
            T::String,
            D::String("~/status"),
            C::Topic,
            "",
            STATIC,
            "Topic of the `groot_policy/PolicyStatus` messages.",
        ),
        parameter(
            "status_period",
            T::Double,
            D::Double(1.0),
            C::Doubles(0.1, 3600.0),
            "s",
            DYNAMIC,
            "Time between two status lines.",
        ),
        parameter(
            "status_note",
            T::String,
            D::String(""),
            C::None,
            "",
            STATIC,
            "Text at the end of each status line, e.g. that a checkpoint is only a test.",
        ),
    ];
    TABLE
}

/// The table as Markdown, as it stands in the README.
pub fn markdown_table() -> String {
    let mut text = String::from(
        "| Parameter | Type | Default | Range | Unit | While running | Meaning |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for spec in parameter_table() {
        let default = match spec.default {
            ParameterDefault::Required => "required".into(),
            ParameterDefault::Absent(text) => text.into(),
            ParameterDefault::Bool(value) => format!("`{value}`"),
            ParameterDefault::Integer(value) => format!("`{value}`"),
            ParameterDefault::Double(value) => format!("`{value:?}`"),
            ParameterDefault::String("") => "empty".into(),
            ParameterDefault::String(value) => format!("`{value}`"),
        };
        let dynamic = if spec.dynamic { "changeable" } else { "fixed" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| `{}` | {} | {default} | {} | {} | {dynamic} | {} |",
            spec.name,
            spec.kind,
            spec.range(),
            spec.unit,
            spec.description
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_passes_its_own_check_unchanged() {
        for spec in parameter_table() {
            if let Some(value) = spec.default.value() {
                assert_eq!(spec.check(&value), Ok(value), "{}", spec.name);
            }
        }
    }

    #[test]
    fn every_constraint_is_for_the_kind_of_its_parameter() {
        for spec in parameter_table() {
            let kind = match spec.constraint {
                Constraint::None => continue,
                Constraint::Integers(..) => ParameterType::Integer,
                Constraint::Doubles(..) => ParameterType::Double,
                Constraint::Joints(_) => ParameterType::StringArray,
                _ => ParameterType::String,
            };
            assert_eq!(spec.kind, kind, "{}", spec.name);
        }
    }

    #[test]
    fn no_two_parameters_share_a_name_and_each_is_described() {
        for (i, spec) in parameter_table().iter().enumerate() {
            assert!(parameter_table()[..i].iter().all(|other| !other.matches(spec.name)), "{}", spec.name);
            assert!(
                spec.description.ends_with('.') && !spec.description.contains(['|', '\n']),
                "{}",
                spec.name
            );
        }
    }

    #[test]
    fn the_markdown_table_has_a_row_of_seven_cells_per_parameter() {
        let text = markdown_table();
        assert_eq!(text.lines().count(), parameter_table().len() + 2);
        for line in text.lines() {
            assert_eq!(line.matches('|').count(), 8, "{line}");
        }
    }

    /// `GROOT_UPDATE_README=1` writes the table there.
    #[test]
    fn the_readme_shows_the_table_as_it_is() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
        let readme = std::fs::read_to_string(&path).unwrap();
        let begin = "<!-- parameters:begin -->\n";
        let (before, rest) = readme.split_once(begin).expect("the marker of the beginning");
        let (table, after) = rest.split_once("<!-- parameters:end -->").expect("the marker of the end");
        if std::env::var_os("GROOT_UPDATE_README").is_some() {
            let text = format!("{before}{begin}{}<!-- parameters:end -->{after}", markdown_table());
            std::fs::write(path, text).unwrap();
        } else {
            assert_eq!(table, markdown_table(), "run this test with GROOT_UPDATE_README=1");
        }
    }
}
