//! The one table of the node's parameters: everything that checks, documents or announces a parameter reads it here.

use std::fmt::Write as _;

use super::spec::{Constraint, ParameterDefault, ParameterSpec};
use super::value::ParameterType;
use crate::processor::text::MAX_INSTRUCTION_CHARS;

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
            "What the robot is asked to do, until a message on `instruction_topic` says otherwise. May be empty.",
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
